//! Who takes what arrives.

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use trireme_replication::Lane;
use trireme_storage::StagedSnapshot;
use trireme_types::{CohortId, NodeId};

/// Takes what arrives from the other nodes of the cluster.
///
/// The cohort of a message or snapshot, and the bytes in it, are the sender's word: a cohort may
/// be unknown here, a payload may be damaged.
#[async_trait]
pub trait PeerHandler: Send + Sync + 'static {
    /// Takes a message. Called in the order of sending for each node and lane, by different
    /// threads for different ones. Must not block, since it is called on a thread that has other
    /// connections to see to. While it runs, nothing else arrives from that node on that lane.
    ///
    /// The payload is a slice of the frame that it came in, which stays in memory as long as any
    /// of its slices: a small payload that is kept for long should be copied.
    fn message(&self, from: NodeId, cohort: CohortId, lane: Lane, payload: Bytes);

    /// Returns the folder on whose disk arriving snapshots are kept until they are whole.
    fn snapshot_dir(&self) -> PathBuf;

    /// Takes a snapshot that has arrived whole, with what the protocol put before it. Returns the
    /// protocol's answer, or why there is none. Dropped if for
    /// [`super::TransportOptions::snapshot_install_timeout`] it makes no progress.
    async fn snapshot(
        &self,
        from: NodeId,
        cohort: CohortId,
        header: Bytes,
        staged: StagedSnapshot,
    ) -> Result<Bytes, String>;

    /// Hears that the node answers on the heartbeat lane. Every call is followed by one of
    /// [`PeerHandler::peer_down`] before the next for the same node. Must not block.
    fn peer_up(&self, node: NodeId);

    /// Hears that the node does not answer any more: its connections broke, or it was silent for
    /// too long. Must not block.
    fn peer_down(&self, node: NodeId);
}
