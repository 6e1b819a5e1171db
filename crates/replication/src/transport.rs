//! How replicas reach each other: what the protocols ask of the server's network.

use async_trait::async_trait;
use bytes::Bytes;
use trireme_storage::SnapshotReader;
use trireme_types::{CohortId, NodeId};

/// A way between two nodes that does not wait for the other ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Log entries, their acknowledgements, votes.
    Data,
    /// Heartbeats, and what else must not wait behind data.
    Heartbeat,
}

/// Why a message or a snapshot did not go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no connection to the node.
    #[error("{0} cannot be reached")]
    Unreachable(NodeId),
    /// As many bytes wait for the node as may wait.
    #[error("too much is waiting to be sent to {0}")]
    Full(NodeId),
    /// The node took the snapshot's connection and did not take the snapshot.
    #[error("{node} did not take the snapshot: {reason}")]
    Refused {
        /// The node.
        node: NodeId,
        /// What it said, or what broke.
        reason: String,
    },
}

/// Sends messages to the replicas of a cohort on other nodes.
///
/// Messages of one lane to one node arrive in the order in which they were sent, or not at all.
/// There is one connection per lane and pair of nodes, which all cohorts share.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Hands a message to the lane. Never waits; `Ok` promises nothing about its arrival.
    fn send(
        &self,
        to: NodeId,
        cohort: CohortId,
        lane: Lane,
        payload: Bytes,
    ) -> Result<(), SendError>;

    /// Sends a snapshot over a connection of its own, and returns the other replica's answer.
    async fn send_snapshot(
        &self,
        to: NodeId,
        cohort: CohortId,
        header: Bytes,
        snapshot: SnapshotReader,
    ) -> Result<Bytes, SendError>;
}
