//! `trireme range protocol`.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use trireme_client::{ClientOptions, Protocol};
use trireme_types::CohortId;

use super::cluster::ClusterArgs;
use super::output;
use super::progress::say;

/// How long the change may take by default: as long as it takes to elect a leader a few times.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// Arguments of `trireme range protocol`.
#[derive(Args)]
pub(crate) struct RangeProtocolArgs {
    /// The cohort that serves the range, as `range list` shows it; also one that has ended.
    #[arg(value_name = "COHORT", value_parser = cohort)]
    cohort: CohortId,
    /// spinnaker, raft or pacifica.
    #[arg(value_name = "PROTOCOL")]
    protocol: Protocol,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

impl RangeProtocolArgs {
    /// Has the range replicated by the protocol, and prints which cohort serves it then.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let Self { cohort, protocol, json: wants_json } = self;
        let options = ClientOptions { deadline: DEADLINE, ..ClientOptions::default() };
        let client = cluster.connect_with(options).await?;
        let serves = client.set_protocol(cohort, protocol, say).await?;
        let leader = client.routes().ranges.into_iter().find(|route| route.cohort == serves);
        let leader = leader.and_then(|route| route.leader);
        if wants_json {
            return output::json(&json!({
                "cohort": serves.0,
                "protocol": protocol.name(),
                "leader": leader.map(|node| node.0),
            }));
        }
        let leader = leader.map_or_else(|| "no node yet".to_owned(), |node| node.to_string());
        Ok(output::line(format!("{serves} serves the range by {protocol}, led by {leader}"))?)
    }
}

/// Reads a cohort's id, with or without its leading `c`.
pub(super) fn cohort(text: &str) -> Result<CohortId, String> {
    match text.strip_prefix('c').unwrap_or(text).parse() {
        Ok(id) if id > 0 => Ok(CohortId(id)),
        _ => Err("expected a cohort's id (c1, c2, ...)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cohort_is_named_as_it_is_shown() {
        assert_eq!((cohort("c7"), cohort("7")), (Ok(CohortId(7)), Ok(CohortId(7))));
        for text in ["", "c", "c0", "n1", "-1", "c1x"] {
            assert!(cohort(text).is_err(), "{text:?} was taken");
        }
    }
}
