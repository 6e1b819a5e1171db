//! `trireme status`.
//!
//! The nodes and ranges are as the coordinator knows them; the rest is asked of every node at once.
//! Who leads a cohort is decided by what its replicas say of themselves, since what others say may
//! be old: of those that say they lead, the one of the highest epoch. A cohort none of whose
//! reachable replicas says so has no leader.

mod cohorts;
mod report;

use std::time::Duration;

use anyhow::bail;
use clap::Args;
use futures::future::join_all;
use trireme_client::{Client, ClientOptions, Node, NodeStatus};

use super::cluster::ClusterArgs;
use super::output;

use cohorts::Cohort;

/// How long a node may take to report its status, by default.
const DEADLINE: Duration = Duration::from_secs(3);

/// Arguments of `trireme status`.
#[derive(Args)]
pub(crate) struct StatusArgs {
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

/// A node, as the coordinator knows it, and what it says of itself.
pub(crate) struct NodeReport {
    /// The node.
    pub(crate) node: Node,
    /// How it is, or why it could not be asked.
    pub(crate) status: Result<NodeStatus, String>,
}

impl StatusArgs {
    /// Prints how nodes and cohorts are; fails if a cohort has no leader.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let options = ClientOptions { deadline: DEADLINE, ..ClientOptions::default() };
        let client = cluster.connect_with(options).await?;
        let routes = client.routes();
        let nodes = ask_nodes(&client).await;
        let cohorts: Vec<Cohort> =
            routes.ranges.iter().map(|route| cohorts::cohort(route, &nodes)).collect();
        if self.json {
            output::json(&report::json(routes.cluster, &nodes, &cohorts))?;
        } else {
            output::line(report::text(&nodes, &cohorts))?;
        }
        let leaderless = cohorts.iter().filter(|cohort| cohort.leader.is_none());
        let leaderless: Vec<String> = leaderless.map(|cohort| cohort.id.to_string()).collect();
        if !leaderless.is_empty() {
            bail!("no leader is to be found of {}", leaderless.join(", "));
        }
        Ok(())
    }
}

/// Asks all nodes of the routes at once how they are.
pub(crate) async fn ask_nodes(client: &Client) -> Vec<NodeReport> {
    let asking = client.routes().nodes.into_iter().map(|node| async move {
        let status = client.node_status(&node.address).await.map_err(|error| error.to_string());
        NodeReport { node, status }
    });
    join_all(asking).await
}
