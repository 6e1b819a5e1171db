//! How this node talks to the other nodes of its cluster.
//!
//! # What is guaranteed
//!
//! * **Sending never waits.** A message goes into a queue that is bounded in bytes, one per peer
//!   and lane; past the bound the answer is `Full`, and without a connection `Unreachable`.
//! * **Order, or nothing.** Messages of one lane to one node arrive in the order of sending, or not
//!   at all; what arrives after a gap belongs to a later connection. A peer serves a new connection
//!   only once it has done with the one before.
//! * **Lanes do not wait for each other.** Each has a connection, a queue, a writing task, and a
//!   receiving task of its own.
//! * **A peer that is gone is noticed**, at once if its connections break, within `silence_max` if
//!   nothing says so.
//! * **Nothing that arrives is trusted**: frames, connections and snapshots under way are limited,
//!   and what cannot be read ends its connection.
//!
//! # How it works
//!
//! All nodes' messages flow over connections that the sender opened: one for the data lane and one
//! for the heartbeat lane of each peer, which all cohorts share, and one for each snapshot. Peers
//! and clients share one port; [`is_peer`] distinguishes them by their first bytes.
//!
//! ```text
//! opener                                              acceptor
//! "TRIPEER1", PeerHello{from, to, cluster, lane}  ->  checks it, ends the lane's connection before
//! checks it                                       <-  PeerHello
//! PeerFrame{messages, ping}, ...                  ->  hands the messages over, in order
//! measures the round trip                         <-  PeerFrame{pong}
//! ```
//!
//! A writing task takes all that waits in its queue as one frame and writes it with one write;
//! while it writes, the next frame gathers. No timer is involved, so a lone message leaves at once
//! and the batches grow with the load. Every `ping_interval` a frame, an empty one if need be,
//! carries a ping.
//!
//! When a connection ends, what waited for it is dropped, since the protocols send again what still
//! matters; it is opened anew after a pause that grows from 20 ms to 500 ms. When the heartbeat
//! connection ends the data connection ends with it, so a peer is either there or gone.
//!
//! # What is left out
//!
//! There is no encryption and no authentication: the hello keeps nodes from talking to the wrong
//! ones by mistake, not by malice. A message is copied once, into its frame.

mod accept;
mod faults;
mod frame;
mod handler;
mod hello;
mod in_flight;
mod log_once;
mod options;
mod peer;
mod queue;
mod snapshot;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
/// What a connection between two nodes is for.
pub use trireme_proto::v1::Lane as ConnectionLane;
use trireme_proto::v1::SnapshotStart;
use trireme_replication::{Lane, SendError, Transport};
use trireme_storage::SnapshotReader;
use trireme_types::{CohortId, NodeId};

pub use self::faults::{Fate, LinkFaults};
pub use self::handler::PeerHandler;
pub use self::hello::is_peer;
pub use self::options::{GATHER_BYTES, TransportOptions};
pub use self::peer::{PeerState, Sent};

use self::accept::Turns;
use self::log_once::LogOnce;
use self::peer::Peer;

/// This node's connections to the other nodes of its cluster.
///
/// [`PeerTransport::shutdown`] ends them, and so does dropping it.
pub struct PeerTransport {
    shared: Arc<Shared>,
    /// Every node that ever had an address. Those that have none any more stay, so that a node's
    /// ups and downs are reported in order even if it comes back.
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
}

/// What all tasks of the transport need.
struct Shared {
    options: TransportOptions,
    handler: Arc<dyn PeerHandler>,
    runtime: Handle,
    log_once: LogOnce,
    turns: Arc<Turns>,
    /// Room for accepted connections.
    connections: Semaphore,
    /// Room for arriving snapshots.
    snapshots: Semaphore,
    /// Ends every task.
    stop: CancellationToken,
}

impl PeerTransport {
    /// Returns a transport that reaches no node yet. Its tasks run on `runtime`.
    pub fn new(
        options: TransportOptions,
        handler: Arc<dyn PeerHandler>,
        runtime: Handle,
    ) -> Arc<Self> {
        let shared = Shared {
            handler,
            runtime,
            log_once: LogOnce::default(),
            turns: Arc::default(),
            connections: Semaphore::new(options.connections_max),
            snapshots: Semaphore::new(options.snapshots_max),
            stop: CancellationToken::new(),
            options,
        };
        Arc::new(Self { shared: Arc::new(shared), peers: RwLock::default() })
    }

    /// Sets where all nodes are, as `host:port` each. Connections to a node that is somewhere else
    /// now end and are opened to the new address; a node that is not named cannot be reached. This
    /// node itself may be named and is passed over.
    pub fn set_addresses(&self, addresses: BTreeMap<NodeId, String>) {
        let mut peers = self.peers.write();
        // Checked under the lock that `shutdown` takes, so that it leaves no peer behind.
        if self.shared.stop.is_cancelled() {
            return;
        }
        for peer in peers.values() {
            peer.set_address(addresses.get(&peer.node));
        }
        for (node, address) in addresses {
            if node != self.shared.options.node && !peers.contains_key(&node) {
                let peer = Arc::new(Peer::new(&self.shared, node, address));
                self.connect(&peer, Lane::Data);
                self.connect(&peer, Lane::Heartbeat);
                peers.insert(node, peer);
            }
        }
    }

    /// Serves an accepted connection of a peer, until it ends or the transport is shut down. All
    /// that it sent must still be readable ([`is_peer`] takes nothing).
    pub async fn serve(&self, socket: TcpStream) {
        let shared = self.shared.clone();
        // A socket belongs to the runtime that it was made on until it is taken from it.
        let moved = socket.peer_addr().and_then(|address| Ok((socket.into_std()?, address)));
        let served = self.shared.runtime.spawn(async move {
            let (socket, address) = moved?;
            let socket = TcpStream::from_std(socket)?;
            let serving = accept::serve(&shared, socket, address);
            shared.stop.run_until_cancelled(serving).await;
            Ok::<_, std::io::Error>(())
        });
        match served.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "an accepted connection was lost"),
            Err(error) if error.is_cancelled() => {}
            Err(error) => tracing::error!(%error, "a peer's connection was not served to its end"),
        }
    }

    /// Describes the ways to all peers that have an address.
    pub fn peer_state(&self) -> Vec<PeerState> {
        let peers = self.peers.read();
        peers.values().filter(|peer| peer.address().is_some()).map(|peer| peer.state()).collect()
    }

    /// Ends all connections, without reporting to the handler that the peers are gone. No node can be
    /// reached from now on.
    pub fn shutdown(&self) {
        let mut peers = self.peers.write();
        self.shared.stop.cancel();
        peers.clear();
    }

    fn connect(&self, peer: &Arc<Peer>, lane: Lane) {
        let (shared, peer) = (self.shared.clone(), peer.clone());
        self.shared.runtime.spawn(async move {
            let stop = shared.stop.clone();
            stop.run_until_cancelled(peer::keep_connected(shared, peer, lane)).await;
        });
    }

    fn peer(&self, node: NodeId) -> Result<Arc<Peer>, SendError> {
        self.peers.read().get(&node).cloned().ok_or(SendError::Unreachable(node))
    }
}

impl Drop for PeerTransport {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[async_trait]
impl Transport for PeerTransport {
    fn send(
        &self,
        to: NodeId,
        cohort: CohortId,
        lane: Lane,
        payload: Bytes,
    ) -> Result<(), SendError> {
        match self.peers.read().get(&to) {
            Some(peer) => peer.link(lane).queue.push(cohort, payload),
            None => Err(SendError::Unreachable(to)),
        }
    }

    async fn send_snapshot(
        &self,
        to: NodeId,
        cohort: CohortId,
        header: Bytes,
        snapshot: SnapshotReader,
    ) -> Result<Bytes, SendError> {
        let address = self.peer(to)?.address().ok_or(SendError::Unreachable(to))?;
        let start = SnapshotStart { cohort: cohort.0, header, knows_progress: true };
        let shared = self.shared.clone();
        let stop = shared.stop.clone();
        let sending = snapshot::send(shared, to, address, start, snapshot);
        // A set aborts its task if the caller gives up.
        let mut task = JoinSet::new();
        task.spawn_on(stop.run_until_cancelled_owned(sending), &self.shared.runtime);
        match task.join_next().await {
            Some(Ok(Some(answer))) => answer,
            Some(Ok(None)) | None => Err(SendError::Unreachable(to)),
            Some(Err(error)) => Err(SendError::Refused { node: to, reason: error.to_string() }),
        }
    }
}

impl Shared {
    /// Returns what becomes of the next thing that goes to a node. Without faults it goes.
    fn fate(&self, to: NodeId, lane: ConnectionLane) -> Fate {
        let faults = self.options.faults.as_ref();
        faults.map(|faults| faults.fate(to, lane)).unwrap_or_default()
    }

    /// Returns true if something that nothing else can follow until it is answered may go to a node,
    /// after the delay that was asked for.
    async fn lets_pass(&self, to: NodeId, lane: ConnectionLane) -> bool {
        match self.fate(to, lane) {
            Fate::Pass => true,
            Fate::Drop => false,
            Fate::Delay(delay) => {
                sleep(delay).await;
                true
            }
        }
    }

    /// Returns how long a connection of the lane may give no sign of life.
    fn silence_max(&self, lane: Lane) -> Duration {
        match lane {
            Lane::Data => self.options.stall_max,
            Lane::Heartbeat => self.options.silence_max,
        }
    }
}

fn wire_lane(lane: Lane) -> ConnectionLane {
    match lane {
        Lane::Data => ConnectionLane::Data,
        Lane::Heartbeat => ConnectionLane::Heartbeat,
    }
}
