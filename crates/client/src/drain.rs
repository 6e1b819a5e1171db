//! Nodes that leave the cluster, asked for again until they have.

use tonic::Code;
use trireme_proto::v1;
use trireme_types::NodeId;

use crate::asking::Asking;
use crate::client::{Client, admin_error};
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
        let (mut is_draining, mut had) = (false, None);
        loop {
            let missing = match self.ask_to_drain(node, true, is_draining).await {
                Ok(table) => {
                    is_draining = true;
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
        let mut asking = Asking::new(self.options().deadline, note);
        loop {
            match self.ask_to_drain(node, false, false).await {
                Ok(_) => return Ok(()),
                Err(error @ ClientError::Invalid(_)) => return Err(error),
                Err(error) => asking.pause_for(node, error.to_string()).await?,
            }
        }
    }

    /// Removes a node from the cluster that holds no replica and does not run. Safe to repeat.
    pub async fn remove_node(
        &self,
        node: NodeId,
        note: impl FnMut(&str) + Send,
    ) -> Result<(), ClientError> {
        let mut asking = Asking::new(self.options().deadline, note);
        loop {
            let asked = async {
                let table = self.refresh_routes().await?;
                let other = any_node(self, &table)?;
                let request = v1::RemoveNodeRequest { node: node.0 };
                judge(&other, other.remove_node(request).await)
            };
            match asked.await {
                Ok(()) => return Ok(()),
                Err(error @ ClientError::Invalid(_)) => return Err(error),
                Err(error) => asking.pause_for(node, error.to_string()).await?,
            }
        }
    }

    /// Has a node drain, or not any more, unless that is known to have been done; returns the newest routes.
    async fn ask_to_drain(
        &self,
        node: NodeId,
        draining: bool,
        is_done: bool,
    ) -> Result<RouteTable, ClientError> {
        let table = self.refresh_routes().await?;
        if !is_done {
            let other = any_node(self, &table)?;
            let request = v1::SetDrainingRequest { node: node.0, draining };
            judge(&other, other.set_draining(request).await)?;
        }
        Ok(table)
    }
}

/// Returns how many ranges have a replica on a node.
fn held(table: &RouteTable, node: NodeId) -> usize {
    table.ranges.iter().filter(|route| route.replicas.contains(&node)).count()
}

/// Returns a node that can be asked.
fn any_node(client: &Client, table: &RouteTable) -> Result<NodeHandle, ClientError> {
    let node = table
        .nodes
        .iter()
        .find(|node| node.alive)
        .ok_or_else(|| ClientError::Connect("no node is known to live".to_owned()))?;
    NodeHandle::new(&node.address, client.options_handle())
}

fn judge(node: &NodeHandle, answer: Result<(), (Code, String)>) -> Result<(), ClientError> {
    answer.map_err(|(code, reason)| match code {
        Code::InvalidArgument => ClientError::Invalid(reason),
        _ => admin_error(node, reason),
    })
}
