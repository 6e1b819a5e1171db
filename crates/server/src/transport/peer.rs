//! The way to one peer: two connections that this node opens, and opens again when they break.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use prost::Message;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use trireme_proto::v1::PeerFrame;
use trireme_replication::Lane;
use trireme_types::NodeId;

use super::faults::Fate;
use super::frame::{Connection, FrameReader, FrameWriter, LinkError};
use super::in_flight::InFlight;
use super::log_once::Who;
use super::queue::LaneQueue;
use super::{Shared, hello, wire_lane};

/// What a frame needs beside the payload of its only message.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// The first pause before a connection is opened again.
const BACKOFF_MIN: Duration = Duration::from_millis(20);

/// The longest such pause. A connection that lasted longer starts again from the first.
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// One peer.
pub(super) struct Peer {
    pub(super) node: NodeId,
    /// Where the node is; `None` once it is listed no more.
    address: watch::Sender<Option<String>>,
    /// Changes when the heartbeat connection ends, for the data connection to end with it.
    heartbeat_ends: watch::Sender<()>,
    data: Link,
    heartbeat: Link,
}

/// One lane to one peer.
pub(super) struct Link {
    pub(super) queue: LaneQueue,
    is_connected: AtomicBool,
    /// The last round trip in microseconds, plus one; 0 before the first.
    round_trip: AtomicU64,
    frames: AtomicU64,
    messages: AtomicU64,
    bytes: AtomicU64,
}

/// How the way to a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerState {
    /// The peer.
    pub node: NodeId,
    /// Whether both lanes to it are connected.
    pub connected: bool,
    /// How long its last answer to a ping on the heartbeat lane took; `None` if there was none on
    /// the present connection.
    pub round_trip: Option<Duration>,
    /// The bytes that wait to be sent to it, all lanes together.
    pub queued_bytes: usize,
    /// What was sent to it on the data lane.
    pub data: Sent,
    /// What was sent to it on the heartbeat lane.
    pub heartbeat: Sent,
}

/// What was sent on a lane since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames, each of them with one write.
    pub frames: u64,
    /// The messages in those frames.
    pub messages: u64,
    /// The bytes of those frames.
    pub bytes: u64,
}

impl Peer {
    /// Returns a peer whose first connections may be waited for.
    pub(super) fn new(shared: &Shared, node: NodeId, address: String) -> Self {
        let link = || Link::new(shared, node);
        Self {
            node,
            address: watch::Sender::new(Some(address)),
            heartbeat_ends: watch::Sender::new(()),
            data: link(),
            heartbeat: link(),
        }
    }

    /// Sets where the node is from now on. Connections to another address end.
    pub(super) fn set_address(&self, address: Option<&String>) {
        self.address.send_if_modified(|current| {
            let is_other = current.as_ref() != address;
            if is_other {
                *current = address.cloned();
            }
            is_other
        });
    }

    pub(super) fn address(&self) -> Option<String> {
        self.address.borrow().clone()
    }

    pub(super) fn link(&self, lane: Lane) -> &Link {
        match lane {
            Lane::Data => &self.data,
            Lane::Heartbeat => &self.heartbeat,
        }
    }

    pub(super) fn state(&self) -> PeerState {
        let links = [&self.data, &self.heartbeat];
        let round_trip = self.heartbeat.round_trip.load(Ordering::Relaxed);
        PeerState {
            node: self.node,
            connected: links.iter().all(|link| link.is_connected.load(Ordering::Relaxed)),
            round_trip: round_trip.checked_sub(1).map(Duration::from_micros),
            queued_bytes: links.iter().map(|link| link.queue.bytes()).sum(),
            data: self.data.sent(),
            heartbeat: self.heartbeat.sent(),
        }
    }
}

impl Link {
    fn new(shared: &Shared, node: NodeId) -> Self {
        let options = &shared.options;
        let message_bytes_max = options.frame_bytes_max.saturating_sub(FRAME_OVERHEAD_BYTES);
        Self {
            queue: LaneQueue::new(node, options.queue_bytes_max, message_bytes_max),
            is_connected: AtomicBool::new(false),
            round_trip: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    fn sent(&self) -> Sent {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Sent {
            frames: count(&self.frames),
            messages: count(&self.messages),
            bytes: count(&self.bytes),
        }
    }
}

/// Keeps one lane to a peer connected as long as it has an address. Ends only with the peer.
pub(super) async fn keep_connected(shared: Arc<Shared>, peer: Arc<Peer>, lane: Lane) {
    let mut addresses = peer.address.subscribe();
    loop {
        let address = addresses.borrow_and_update().clone();
        let connected = async {
            match address {
                Some(address) => connect_and_again(&shared, &peer, lane, &address).await,
                None => pending().await,
            }
        };
        let changed = tokio::select! {
            biased;
            changed = addresses.changed() => changed,
            () = connected => Ok(()),
        };
        peer.link(lane).queue.close();
        if changed.is_err() {
            return;
        }
    }
}

/// Connects to a peer at one address and sends what waits for it; when the connection ends, drops
/// what still waits, pauses and connects again, for ever.
async fn connect_and_again(shared: &Shared, peer: &Peer, lane: Lane, address: &str) {
    let queue = &peer.link(lane).queue;
    let mut backoff = BACKOFF_MIN;
    // Messages may wait for the first connection; afterwards, only while there is one.
    queue.open();
    loop {
        let end = match connect(shared, peer.node, lane, address).await {
            Ok(connection) => {
                let started = Instant::now();
                let end = converse(shared, peer, lane, connection).await;
                if started.elapsed() > BACKOFF_MAX {
                    shared.log_once.forget(peer.node);
                    backoff = BACKOFF_MIN;
                }
                end
            }
            Err(error) => error,
        };
        queue.close();
        report(shared, peer.node, lane, address, &end);
        // Jitter keeps the nodes of a cluster that starts from calling in step.
        sleep(backoff.mul_f64(rand::random_range(0.5..=1.0))).await;
        backoff = BACKOFF_MAX.min(backoff * 2);
    }
}

async fn connect(
    shared: &Shared,
    to: NodeId,
    lane: Lane,
    address: &str,
) -> Result<Connection, LinkError> {
    let lane = wire_lane(lane);
    if !shared.lets_pass(to, lane).await {
        return Err(LinkError::Cut);
    }
    hello::open(&shared.options, to, address, lane).await
}

/// Sends over a connection until it ends. Returns why it did.
async fn converse(
    shared: &Shared,
    peer: &Peer,
    lane: Lane,
    Connection { reader, writer }: Connection,
) -> LinkError {
    let started = Instant::now();
    // Subscribed before the queue opens, so that an end in between is not missed.
    let mut heartbeat_ends = peer.heartbeat_ends.subscribe();
    let _up = Up::new(shared, peer, lane);
    tokio::select! {
        end = send_frames(shared, peer, lane, writer, started) => end,
        end = hear_answers(shared, peer, lane, reader, started) => end,
        _ = heartbeat_ends.changed(), if lane == Lane::Data => LinkError::HeartbeatEnded,
    }
}

/// Writes what waits, all that fits into one frame, and a ping whenever one is due. Returns why it
/// cannot any more.
async fn send_frames(
    shared: &Shared,
    peer: &Peer,
    lane: Lane,
    mut writer: FrameWriter,
    started: Instant,
) -> LinkError {
    let link = peer.link(lane);
    let mut in_flight = InFlight::default();
    let mut ping_at = started;
    let mut has_gap = false;
    loop {
        if let Err(error) = write_due(link, &mut writer, &mut in_flight).await {
            return error.into();
        }
        // What is on its way may cost as much as what waits; past that, it waits.
        let has_room = in_flight.bytes() < shared.options.queue_bytes_max;
        let messages = if has_room { link.queue.take() } else { Vec::new() };
        let now = Instant::now();
        let is_ping_due = now >= ping_at;
        if messages.is_empty() && !is_ping_due {
            let wake_at = in_flight.next_due().map_or(ping_at, |due| due.min(ping_at));
            let filled = async {
                match has_room {
                    true => link.queue.filled().await,
                    false => pending().await,
                }
            };
            // Either way there is something to do now.
            let _elapsed = timeout_at(wake_at, filled).await;
            continue;
        }
        let mut frame = PeerFrame { messages, ping: 0, pong: 0 };
        if is_ping_due {
            frame.ping = micros(now - started) + 1;
            ping_at = now + shared.options.ping_interval;
        }
        let due = match shared.fate(peer.node, wire_lane(lane)) {
            Fate::Drop => {
                has_gap = true;
                continue;
            }
            // What comes after a gap belongs to a later connection.
            Fate::Pass | Fate::Delay(_) if has_gap => return LinkError::Cut,
            Fate::Pass => now,
            Fate::Delay(delay) => now + delay,
        };
        in_flight.push(due, frame.encoded_len() + FRAME_OVERHEAD_BYTES, frame);
    }
}

/// Writes the frames whose time has come.
async fn write_due(
    link: &Link,
    writer: &mut FrameWriter,
    in_flight: &mut InFlight<PeerFrame>,
) -> io::Result<()> {
    while let Some(frame) = in_flight.pop() {
        let bytes = writer.send(&frame).await?;
        link.frames.fetch_add(1, Ordering::Relaxed);
        link.messages.fetch_add(frame.messages.len() as u64, Ordering::Relaxed);
        link.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Reads the answers to the pings, whose absence shows that the other end is gone. Returns why
/// there are no more.
async fn hear_answers(
    shared: &Shared,
    peer: &Peer,
    lane: Lane,
    mut reader: FrameReader,
    started: Instant,
) -> LinkError {
    let link = peer.link(lane);
    let silence_max = shared.silence_max(lane);
    loop {
        let frame: PeerFrame = match reader.next_within(silence_max).await {
            Ok(frame) => frame,
            Err(error) => return error,
        };
        let now = micros(started.elapsed());
        let sent = frame.pong.checked_sub(1).filter(|sent| *sent <= now);
        let Some(sent) = sent else {
            return LinkError::Unexpected("an answer to no ping");
        };
        if !frame.messages.is_empty() || frame.ping != 0 {
            return LinkError::Unexpected("more than an answer to a ping");
        }
        link.round_trip.store(now - sent + 1, Ordering::Relaxed);
    }
}

/// Marks a lane as connected for as long as it lives.
struct Up<'a> {
    shared: &'a Shared,
    peer: &'a Peer,
    lane: Lane,
}

impl<'a> Up<'a> {
    fn new(shared: &'a Shared, peer: &'a Peer, lane: Lane) -> Self {
        let link = peer.link(lane);
        link.is_connected.store(true, Ordering::Relaxed);
        link.queue.open();
        tracing::info!(node = %peer.node, ?lane, "connected to a peer");
        if lane == Lane::Heartbeat {
            shared.handler.peer_up(peer.node);
        }
        Self { shared, peer, lane }
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        let link = self.peer.link(self.lane);
        link.is_connected.store(false, Ordering::Relaxed);
        link.round_trip.store(0, Ordering::Relaxed);
        // When the handler hears that the peer is gone, nothing can be sent to it any more.
        link.queue.close();
        if self.lane == Lane::Heartbeat {
            self.peer.data.queue.close();
            self.peer.heartbeat_ends.send_replace(());
            if !self.shared.stop.is_cancelled() {
                self.shared.handler.peer_down(self.peer.node);
            }
        }
    }
}

/// Logs why a connection ended or was not opened: what an operator must mend once, as a warning.
fn report(shared: &Shared, node: NodeId, lane: Lane, address: &str, end: &LinkError) {
    let cause = end.to_string();
    if !shared.log_once.is_first(Who::Node(node), &cause) {
        tracing::debug!(%node, ?lane, address, cause, "no connection to a peer");
    } else if end.is_violation() {
        tracing::warn!(%node, ?lane, address, cause, "no connection to a peer");
    } else {
        tracing::info!(%node, ?lane, address, cause, "no connection to a peer");
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
