//! The transport's options.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use trireme_types::{ClusterId, NodeId};

use super::LinkFaults;

/// The most bytes of waiting messages that are gathered into one frame, and so into one write. A
/// message larger than this goes in a frame of its own. Large enough that the cost of a write does
/// not count, small enough that a ping does not wait long behind one.
pub const GATHER_BYTES: usize = 1024 * 1024;

/// How the transport behaves. Every duration must be longer than zero.
#[derive(Clone)]
pub struct TransportOptions {
    /// The cluster that this node belongs to; peers of another one are refused.
    pub cluster: ClusterId,
    /// This node.
    pub node: NodeId,
    /// The most bytes that may wait for one peer on one lane; past it, sending says
    /// [`trireme_replication::SendError::Full`]. More lets a short stall pass unnoticed and costs
    /// memory and latency when the stall is a long one. Default 64 MiB.
    pub queue_bytes_max: usize,
    /// The most bytes in one frame, sent or received, and so nearly the most in one message. At
    /// least [`GATHER_BYTES`]; all nodes of a cluster need the same. Default 16 MiB, which is a
    /// few of the largest log entries.
    pub frame_bytes_max: usize,
    /// How long opening a connection may take, both hellos included. Default 1 s.
    pub connect_timeout: Duration,
    /// How often each connection is asked for a sign of life. Default 100 ms.
    pub ping_interval: Duration,
    /// How long a heartbeat connection may give no sign of life before the peer counts as gone.
    /// Must be several times `ping_interval`. Default 1 s.
    pub silence_max: Duration,
    /// The same for a data connection, which may be held up for a while by a peer that is busy.
    /// Default 10 s.
    pub stall_max: Duration,
    /// How long each step of a snapshot may take: a chunk, or the beginning. Default 10 s.
    pub snapshot_step_timeout: Duration,
    /// How long installing a snapshot may make no progress once all of it has arrived. As a whole
    /// it may take as long as its size and the disk ask for. Flushing the table is one step, so this
    /// must be longer than that takes on a slow disk. Default 2 min.
    pub snapshot_install_timeout: Duration,
    /// The most snapshots that are received at a time; more are refused. Default 2.
    pub snapshots_max: usize,
    /// The most connections that peers may have open to this node: far more than a cluster of the
    /// intended size needs, and few enough to bound what strangers can tie up. Default 1024.
    pub connections_max: usize,
    /// Disturbs what is sent, on a node that allows it and in tests. Default none.
    pub faults: Option<Arc<dyn LinkFaults>>,
}

impl TransportOptions {
    /// Returns the defaults for this node of this cluster.
    pub fn new(cluster: ClusterId, node: NodeId) -> Self {
        Self {
            cluster,
            node,
            queue_bytes_max: 64 * 1024 * 1024,
            frame_bytes_max: 16 * 1024 * 1024,
            connect_timeout: Duration::from_secs(1),
            ping_interval: Duration::from_millis(100),
            silence_max: Duration::from_secs(1),
            stall_max: Duration::from_secs(10),
            snapshot_step_timeout: Duration::from_secs(10),
            snapshot_install_timeout: Duration::from_secs(120),
            snapshots_max: 2,
            connections_max: 1024,
            faults: None,
        }
    }
}

impl fmt::Debug for TransportOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cluster,
            node,
            queue_bytes_max,
            frame_bytes_max,
            connect_timeout,
            ping_interval,
            silence_max,
            stall_max,
            snapshot_step_timeout,
            snapshot_install_timeout,
            snapshots_max,
            connections_max,
            faults,
        } = self;
        f.debug_struct("TransportOptions")
            .field("cluster", cluster)
            .field("node", node)
            .field("queue_bytes_max", queue_bytes_max)
            .field("frame_bytes_max", frame_bytes_max)
            .field("connect_timeout", connect_timeout)
            .field("ping_interval", ping_interval)
            .field("silence_max", silence_max)
            .field("stall_max", stall_max)
            .field("snapshot_step_timeout", snapshot_step_timeout)
            .field("snapshot_install_timeout", snapshot_install_timeout)
            .field("snapshots_max", snapshots_max)
            .field("connections_max", connections_max)
            .field("faults", &faults.is_some())
            .finish()
    }
}
