//! `trireme range leader`.

use clap::Args;
use serde_json::json;
use trireme_client::ClientOptions;
use trireme_types::{CohortId, NodeId};

use super::cluster::ClusterArgs;
use super::output;
use super::progress::say;
use super::range_protocol::{DEADLINE, cohort};

/// Arguments of `trireme range leader`.
#[derive(Args)]
pub(crate) struct RangeLeaderArgs {
    /// The cohort that serves the range, as `range list` shows it.
    #[arg(value_name = "COHORT", value_parser = cohort)]
    cohort: CohortId,
    /// The node that is to lead it, as `node list` shows it.
    #[arg(value_name = "NODE", value_parser = node)]
    node: NodeId,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

impl RangeLeaderArgs {
    /// Has the node lead the range, and prints that it does.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let Self { cohort, node, json: wants_json } = self;
        let options = ClientOptions { deadline: DEADLINE, ..ClientOptions::default() };
        let client = cluster.connect_with(options).await?;
        let did_lead = client.transfer_leader(cohort, node, say).await?;
        if wants_json {
            return output::json(&json!({
                "cohort": cohort.0,
                "leader": node.0,
                "did_lead": did_lead,
            }));
        }
        let already = if did_lead { " already" } else { "" };
        Ok(output::line(format!("{node} leads {cohort}{already}"))?)
    }
}

/// Reads a node's id, with or without its leading `n`.
pub(super) fn node(text: &str) -> Result<NodeId, String> {
    match text.strip_prefix('n').unwrap_or(text).parse() {
        Ok(id) if id > 0 => Ok(NodeId(id)),
        _ => Err("expected a node's id (n1, n2, ...)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_as_it_is_shown() {
        assert_eq!((node("n7"), node("7")), (Ok(NodeId(7)), Ok(NodeId(7))));
        for text in ["", "n", "n0", "c1", "-1", "n1x"] {
            assert!(node(text).is_err(), "{text:?} was taken");
        }
    }
}
