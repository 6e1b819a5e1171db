//! Where tests may cut, or slow, the way to a peer.

use std::time::Duration;

use trireme_types::NodeId;

use super::ConnectionLane;

/// Decides what becomes of what this node sends. Everything that leaves towards a peer asks it:
/// opening a connection, frames of messages, snapshots, and the answers to the peer's pings and
/// snapshots. So one node that drops everything to another makes a one-way cut, and a peer does
/// notice the silence as it would notice a real one.
pub trait LinkFaults: Send + Sync + 'static {
    /// Returns what becomes of the next frame to `to` on `lane`. May be called from many tasks at
    /// once, and must not block.
    fn fate(&self, to: NodeId, lane: ConnectionLane) -> Fate;
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// It goes.
    #[default]
    Pass,
    /// It is lost, with all the messages in it.
    Drop,
    /// It goes after so long. What follows it on the lane waits behind it, since a connection
    /// keeps its order.
    Delay(Duration),
}
