//! Nodes that leave the cluster, asked for again until they have.

use trireme_proto::v1;
use trireme_types::NodeId;

use crate::asking::Asking;
use crate::client::{Client, admin_answer};
use crate::node::NodeHandle;
use crate::{ClientError, RouteTable};

impl Client {
    /// Has a node hold no replica any more: each moves to another node, while its range serves. Returns how
    /// many ranges had one. Safe to repeat. The node stays so until [`Client::stop_draining`].
    ///
    /// Waits until nothing has changed for as long as the client's deadline; `note` is called with what is
    /// left, whenever that is another thing than before.
    pub async fn drain_node(
        &self,
        node: NodeId,
        note: impl FnMut(&str) + Send,
    ) -> Result<usize, ClientError> {
        let mut asking = Asking::until_nothing_changes(self.options().deadline, note);
        let mut had = None;
        loop {
            let asked = async {
                if had.is_none() {
                    self.set_draining(node, true).await?;
                }
                self.newest_routes().await
            };
            let missing = match asked.await {
                Ok(table) => {
                    let left = held(&table, node);
                    let had = *had.get_or_insert(left);
                    if left == 0 {
                        return Ok(had);
                    }
                    format!("{node} holds replicas of {left} ranges")
                }
                Err(error @ ClientError::Invalid(_)) => return Err(error),
                Err(error) => error.to_string(),
            };
            asking.pause_for(node, missing).await?;
        }
    }

    /// Lets a node hold replicas again that drains or has drained. Safe to repeat.
    pub async fn stop_draining(
        &self,
        node: NodeId,
        note: impl FnMut(&str) + Send,
    ) -> Result<(), ClientError> {
        self.ask_until_done(node, note, async || self.set_draining(node, false).await).await
    }

    /// Removes a node from the cluster that holds no replica and does not run. Safe to repeat.
    pub async fn remove_node(
        &self,
        node: NodeId,
        note: impl FnMut(&str) + Send,
    ) -> Result<(), ClientError> {
        let remove = async || {
            let other = self.any_node().await?;
            let request = v1::RemoveNodeRequest { node: node.0 };
            admin_answer(&other, other.remove_node(request).await)
        };
        self.ask_until_done(node, note, remove).await
    }

    /// Asks again and again for what concerns a node, until it is done or refused, or until the deadline.
    async fn ask_until_done(
        &self,
        node: NodeId,
        note: impl FnMut(&str) + Send,
        ask: impl AsyncFn() -> Result<(), ClientError>,
    ) -> Result<(), ClientError> {
        let mut asking = Asking::new(self.options().deadline, note);
        loop {
            match ask().await {
                Ok(()) => return Ok(()),
                Err(error @ ClientError::Invalid(_)) => return Err(error),
                Err(error) => asking.pause_for(node, error.to_string()).await?,
            }
        }
    }

    /// Has a node drain, or not any more.
    async fn set_draining(&self, node: NodeId, draining: bool) -> Result<(), ClientError> {
        let other = self.any_node().await?;
        let request = v1::SetDrainingRequest { node: node.0, draining };
        admin_answer(&other, other.set_draining(request).await)
    }

    /// Returns a node that can be asked.
    async fn any_node(&self) -> Result<NodeHandle, ClientError> {
        let nodes = self.refresh_routes().await?.nodes;
        let node = nodes.iter().find(|node| node.alive);
        let node =
            node.ok_or_else(|| ClientError::Connect("no node is known to live".to_owned()))?;
        NodeHandle::new(&node.address, self.options_handle())
    }
}

/// Returns how many ranges have a replica on a node.
fn held(table: &RouteTable, node: NodeId) -> usize {
    table.ranges.iter().filter(|route| route.replicas.contains(&node)).count()
}
