//! `trireme node drain` and `trireme node remove`.

use clap::Args;
use serde_json::json;
use trireme_client::ClientOptions;
use trireme_types::NodeId;

use super::cluster::ClusterArgs;
use super::output;
use super::progress::say;
use super::range_leader::node;
use super::range_protocol::DEADLINE;

/// Arguments of `trireme node drain`.
#[derive(Args)]
pub(crate) struct NodeDrainArgs {
    /// The node, as `node list` shows it.
    #[arg(value_name = "NODE", value_parser = node)]
    node: NodeId,
    /// Let the node hold replicas again.
    #[arg(long)]
    undo: bool,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

/// Arguments of `trireme node remove`.
#[derive(Args)]
pub(crate) struct NodeRemoveArgs {
    /// The node, as `node list` shows it.
    #[arg(value_name = "NODE", value_parser = node)]
    node: NodeId,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

impl NodeDrainArgs {
    /// Has the node's replicas move to other nodes, and prints how many did.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let Self { node, undo, json: wants_json } = self;
        let options = ClientOptions { deadline: DEADLINE, ..ClientOptions::default() };
        let client = cluster.connect_with(options).await?;
        if undo {
            client.stop_draining(node, say).await?;
            if wants_json {
                return output::json(&json!({ "node": node.0, "draining": false }));
            }
            return Ok(output::line(format!("{node} may hold replicas"))?);
        }
        let moved = client.drain_node(node, say).await?;
        if wants_json {
            return output::json(&json!({ "node": node.0, "draining": true, "moved": moved }));
        }
        Ok(output::line(format!("{node} holds no replica; it had {moved}"))?)
    }
}

impl NodeRemoveArgs {
    /// Removes the node, and prints that it is.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let Self { node, json: wants_json } = self;
        let options = ClientOptions { deadline: DEADLINE, ..ClientOptions::default() };
        let client = cluster.connect_with(options).await?;
        client.remove_node(node, say).await?;
        if wants_json {
            return output::json(&json!({ "node": node.0, "removed": true }));
        }
        Ok(output::line(format!("{node} is removed"))?)
    }
}
