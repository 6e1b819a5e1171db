//! The connections that other nodes open to this one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use trireme_proto::v1::{self, PeerFrame};
use trireme_replication::Lane;
use trireme_types::{CohortId, NodeId};

use super::faults::Fate;
use super::frame::LinkError;
use super::hello::Caller;
use super::in_flight::InFlight;
use super::log_once::Who;
use super::{Shared, snapshot, wire_lane};

/// The most answers to pings that are on their way at once. Only a delay that was asked for keeps
/// more than one there; a peer that asks still more often goes without.
const ANSWERS_MAX: usize = 1024;

/// Serves an accepted connection until it ends.
pub(super) async fn serve(shared: &Arc<Shared>, socket: TcpStream, address: SocketAddr) {
    let mut who = Who::Address(address.ip());
    if let Err(end) = converse(shared, socket, &mut who).await {
        let cause = end.to_string();
        if end.is_violation() && shared.log_once.is_first(who, &cause) {
            tracing::warn!(peer = %who, %address, cause, "closed a peer's connection");
        } else {
            tracing::debug!(peer = %who, %address, cause, "a peer's connection ended");
        }
    }
}

async fn converse(shared: &Arc<Shared>, socket: TcpStream, who: &mut Who) -> Result<(), LinkError> {
    let most = shared.options.connections_max;
    let _place = shared.connections.try_acquire().map_err(|_| LinkError::TooMany(most))?;
    let caller = Caller::receive(&shared.options, socket).await?;
    *who = Who::Node(caller.node);
    let lane = match caller.lane {
        v1::Lane::Data => Lane::Data,
        v1::Lane::Heartbeat => Lane::Heartbeat,
        v1::Lane::Snapshot => return snapshot::receive(shared, caller).await,
    };
    receive_messages(shared, caller, lane).await
}

/// Hands the messages of a connection over, in order, until it ends.
async fn receive_messages(
    shared: &Arc<Shared>,
    caller: Caller,
    lane: Lane,
) -> Result<(), LinkError> {
    let limit = shared.options.connect_timeout;
    let turn = Turn::new(shared.turns.clone(), (caller.node, lane));
    let _guard = match timeout(limit, turn.begins()).await {
        Ok(guard) => guard?,
        Err(_) => return Err(LinkError::Stalled(limit)),
    };
    // The caller sends nothing before it is welcomed, so an earlier connection of it, which has
    // ended by now, cannot have messages that come after those of this one.
    let mut caller = caller.welcome(shared).await?;
    caller.connection.reader.set_bytes_max(shared.options.frame_bytes_max);
    tracing::debug!(node = %caller.node, ?lane, "a peer connected");
    let silence_max = shared.silence_max(lane);
    let mut silent_at = Instant::now() + silence_max;
    let mut answers = InFlight::default();
    loop {
        let frame = tokio::select! {
            biased;
            () = turn.ends() => return Err(LinkError::Replaced),
            () = answers.wait() => None,
            frame = timeout_at(silent_at, caller.connection.reader.next()) => Some(frame),
        };
        match frame {
            None => send_answers(shared, &mut caller, lane, &mut answers).await?,
            Some(Ok(frame)) => {
                take_frame(shared, &mut caller, lane, &mut answers, frame?).await?;
                silent_at = Instant::now() + silence_max;
            }
            Some(Err(_)) => return Err(LinkError::Silent(silence_max)),
        }
    }
}

async fn take_frame(
    shared: &Shared,
    caller: &mut Caller,
    lane: Lane,
    answers: &mut InFlight<PeerFrame>,
    frame: PeerFrame,
) -> Result<(), LinkError> {
    let PeerFrame { messages, ping, pong } = frame;
    if pong != 0 {
        return Err(LinkError::Unexpected("an answer to a ping that was not sent"));
    }
    if ping != 0 && answers.len() < ANSWERS_MAX {
        let answer = PeerFrame { messages: Vec::new(), ping: 0, pong: ping };
        match shared.fate(caller.node, wire_lane(lane)) {
            Fate::Pass => answers.push(Instant::now(), 0, answer),
            Fate::Drop => {}
            Fate::Delay(delay) => answers.push(Instant::now() + delay, 0, answer),
        }
    }
    // Before the messages, whose receiver may take its time.
    send_answers(shared, caller, lane, answers).await?;
    for message in messages {
        shared.handler.message(caller.node, CohortId(message.cohort), lane, message.payload);
    }
    Ok(())
}

/// Sends the answers to pings whose time has come.
async fn send_answers(
    shared: &Shared,
    caller: &mut Caller,
    lane: Lane,
    answers: &mut InFlight<PeerFrame>,
) -> Result<(), LinkError> {
    while let Some(answer) = answers.pop() {
        caller.connection.writer.send_within(shared.silence_max(lane), &answer).await?;
    }
    Ok(())
}

/// Sees to it that of one node and lane one connection at a time is served, the latest.
#[derive(Default)]
pub(super) struct Turns {
    lanes: Mutex<HashMap<(NodeId, Lane), LaneTurn>>,
}

#[derive(Default)]
struct LaneTurn {
    /// The connections that are served or wait to be.
    connections: usize,
    /// Notifies the latest of them that a later one has come.
    latest: CancellationToken,
    /// Held by the one that is served.
    lock: Arc<tokio::sync::Mutex<()>>,
}

/// One connection's claim to be served.
struct Turn {
    turns: Arc<Turns>,
    key: (NodeId, Lane),
    replaced: CancellationToken,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl Turn {
    /// Ends the turns of all earlier connections of the node and lane.
    fn new(turns: Arc<Turns>, key: (NodeId, Lane)) -> Self {
        let replaced = CancellationToken::new();
        let lock = {
            let mut lanes = turns.lanes.lock();
            let lane = lanes.entry(key).or_default();
            lane.connections += 1;
            lane.latest.cancel();
            lane.latest = replaced.clone();
            lane.lock.clone()
        };
        Self { turns, key, replaced, lock }
    }

    /// Returns when no earlier connection is served any more.
    async fn begins(&self) -> Result<OwnedMutexGuard<()>, LinkError> {
        tokio::select! {
            biased;
            () = self.ends() => Err(LinkError::Replaced),
            guard = self.lock.clone().lock_owned() => Ok(guard),
        }
    }

    /// Returns when a later connection has come.
    async fn ends(&self) {
        self.replaced.cancelled().await;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Entry::Occupied(mut lane) = self.turns.lanes.lock().entry(self.key) {
            lane.get_mut().connections -= 1;
            // The lock may go only with the last that could hold it.
            if lane.get().connections == 0 {
                lane.remove();
            }
        }
    }
}
