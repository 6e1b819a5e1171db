//! `trireme range move`.

use clap::Args;
use serde_json::json;
use trireme_client::ClientOptions;
use trireme_types::{CohortId, NodeId};

use super::cluster::ClusterArgs;
use super::output;
use super::progress::say;
use super::range_leader::node;
use super::range_protocol::{DEADLINE, cohort};

/// Arguments of `trireme range move`.
#[derive(Args)]
pub(crate) struct RangeMoveArgs {
    /// The cohort that serves the range, as `range list` shows it; also one that has ended.
    #[arg(value_name = "COHORT", value_parser = cohort)]
    cohort: CohortId,
    /// The node that holds the replica, as `node list` shows it.
    #[arg(long, value_name = "NODE", value_parser = node)]
    from: NodeId,
    /// The node that is to hold it.
    #[arg(long, value_name = "NODE", value_parser = node)]
    to: NodeId,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

impl RangeMoveArgs {
    /// Has the replica move, and prints which cohort serves the range then.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let Self { cohort, from, to, json: wants_json } = self;
        let options = ClientOptions { deadline: DEADLINE, ..ClientOptions::default() };
        let client = cluster.connect_with(options).await?;
        let serves = client.move_replica(cohort, from, to, say).await?;
        let route = client.routes().ranges.into_iter().find(|route| route.cohort == serves);
        let replicas = route.map(|route| route.replicas).unwrap_or_default();
        if wants_json {
            let replicas: Vec<_> = replicas.iter().map(|node| node.0).collect();
            return output::json(&json!({ "cohort": serves.0, "replicas": replicas }));
        }
        let replicas: Vec<_> = replicas.iter().map(NodeId::to_string).collect();
        Ok(output::line(format!("{serves} serves the range on {}", replicas.join(", ")))?)
    }
}
