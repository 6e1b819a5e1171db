//! Where the way to a peer may be cut or made longer.

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
    /// It is lost, with all the messages in it, and so is what follows it on its connection, since
    /// a connection has no gaps. Once something would go again, the connection ends for a new one.
    Drop,
    /// It leaves so long after it was handed over. What is handed over meanwhile does not wait for
    /// it to arrive, but does not overtake it either, since a connection keeps its order. A snapshot
    /// leaves later as a whole.
    Delay(Duration),
}
