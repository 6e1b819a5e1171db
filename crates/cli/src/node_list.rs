//! `trireme node list`.

use clap::Args;
use serde_json::{Value, json};

use super::cluster::ClusterArgs;
use super::{output, table};

/// Arguments of `trireme node list`.
#[derive(Args)]
pub(crate) struct NodeListArgs {
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

impl NodeListArgs {
    /// Prints the nodes that the cluster knows.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let nodes = cluster.connect().await?.routes().nodes;
        if self.json {
            let nodes = nodes.iter().map(
                |node| json!({ "node": node.id.0, "address": node.address, "alive": node.alive }),
            );
            return output::json(&nodes.collect::<Vec<Value>>());
        }
        let mut listed = table::table(&["NODE", "ADDRESS", "ALIVE"]);
        for node in nodes {
            let alive = if node.alive { "yes" } else { "no" };
            listed.add_row([node.id.to_string(), node.address, alive.to_owned()]);
        }
        Ok(output::line(table::text(listed))?)
    }
}
