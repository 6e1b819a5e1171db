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
                |node| json!({ "node": node.id.0, "address": node.address, "alive": node.alive, "draining": node.draining }),
            );
            return output::json(&nodes.collect::<Vec<Value>>());
        }
        let mut listed = table::table(&["NODE", "ADDRESS", "ALIVE", "DRAINING"]);
        for node in nodes {
            let yes = |is_so| if is_so { "yes" } else { "no" }.to_owned();
            let (alive, draining) = (yes(node.alive), yes(node.draining));
            listed.add_row([node.id.to_string(), node.address, alive, draining]);
        }
        Ok(output::line(table::text(listed))?)
    }
}
