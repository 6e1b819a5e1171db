//! Questions and answers over a transport that only carries messages.
//!
//! # How a loss is noticed
//!
//! A lane delivers messages in the order of sending, or not at all, and a replica answers the
//! questions of one lane in their order. So a question is lost, or its answer is,
//!
//! - if a later question on its lane was answered, or
//! - if a probe that was sent after it is answered, and the answer, which a replica gives at once,
//!   says that the question had not arrived, or that its answer had left.
//!
//! A probe follows whatever waits for longer than one period. So what was lost is asked again within
//! about a round trip of the link's return, while a slow disk, which is what an append waits for,
//! has its time: [`Call::answer`]'s limit is the last resort. What probes find also shows a leader
//! that a lane carries nothing ([`Calls::silence`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use openraft::AnyError;
use openraft::errors::{NetworkError, RPCError, Timeout, Unreachable};
use openraft::network::RPCTypes;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;
use tokio::time::Instant;
use trireme_proto::v1;
use trireme_proto::v1::raft_message::Body;
use trireme_types::{CohortId, Lsn, NodeId, PATH};

use super::heard::Heard;
use super::types::{RaftId, TypeConfig};
use super::wire;
use crate::simulation;
use crate::transport::{Lane, SendError, Transport};

pub(super) type CallError = RPCError<TypeConfig>;

/// The questions of one replica that await an answer, and what is known of its lanes.
pub(super) struct Calls {
    cohort: CohortId,
    me: RaftId,
    transport: Arc<dyn Transport>,
    /// Where each lane's numbers begin. Drawn by chance, so that a late answer to a question of
    /// this node's last process, or of this replica's last incarnation, pairs with none of now.
    first: u64,
    lanes: Mutex<HashMap<(NodeId, Lane), LaneState>>,
    heard: Arc<Heard>,
}

/// One lane to and from one node.
#[derive(Default)]
struct LaneState {
    /// How many questions were numbered.
    asked: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// When the first probe was sent since something was answered; `None` if nothing is overdue.
    unproven_since: Option<Instant>,
    /// What the node's replica had applied when it last answered a probe.
    applied: Lsn,
    /// The number of the last question of the other node that arrived.
    received: u64,
    /// The number of the last question of the other node that was answered.
    answered: u64,
}

struct Waiting {
    asked_at: Instant,
    answer: oneshot::Sender<Answer>,
}

enum Answer {
    Body(Body),
    /// The question did not arrive, or its answer did not.
    Lost,
}

impl LaneState {
    /// Wakes those whose question or answer is lost.
    fn lose(&mut self, is_lost: impl Fn(u64) -> bool) {
        let lost: Vec<u64> = self.waiting.keys().copied().filter(|id| is_lost(*id)).collect();
        for waiting in lost.into_iter().filter_map(|id| self.waiting.remove(&id)) {
            // Who asked may have given up this instant.
            let _gone = waiting.answer.send(Answer::Lost);
        }
    }
}

impl Calls {
    pub(super) fn new(
        cohort: CohortId,
        me: RaftId,
        transport: Arc<dyn Transport>,
        heard: Arc<Heard>,
    ) -> Arc<Self> {
        let first = (simulation::random() >> 32) << 31;
        Arc::new(Self { cohort, me, transport, first, lanes: Mutex::default(), heard })
    }

    /// Returns what knows the age of this replica's commit point.
    pub(super) fn heard(&self) -> &Heard {
        &self.heard
    }

    pub(super) fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    pub(super) const fn cohort(&self) -> CohortId {
        self.cohort
    }

    pub(super) const fn me(&self) -> RaftId {
        self.me
    }

    /// Sends a question at once, and returns what waits for its answer.
    pub(super) fn ask(
        self: &Arc<Self>,
        to: RaftId,
        lane: Lane,
        question: Body,
    ) -> Result<Call, CallError> {
        let (sender, answer) = oneshot::channel();
        let id = {
            let mut lanes = self.lanes.lock();
            let state = lanes.entry((to.node(), lane)).or_default();
            let id = self.number(state);
            let waiting = Waiting { asked_at: Instant::now(), answer: sender };
            state.waiting.insert(id, waiting);
            id
        };
        let call = Call { id, to, lane, calls: self.clone(), answer };
        self.send(to, lane, id, question).map_err(|error| unreachable(&error))?;
        Ok(call)
    }

    /// Sends what needs no answer. One that cannot be sent is lost, as on any network.
    pub(super) fn notify(&self, to: RaftId, lane: Lane, body: Body) {
        let id = self.number(self.lanes.lock().entry((to.node(), lane)).or_default());
        if let Err(error) = self.send(to, lane, id, body) {
            tracing::debug!(%to, cohort = %self.cohort, %error, "a message was not sent");
        }
    }

    /// Records that another node's question arrived, whose number is higher than those before it
    /// unless the node has begun anew.
    pub(super) fn arrived(&self, from: NodeId, lane: Lane, id: u64) {
        let mut lanes = self.lanes.lock();
        let state = lanes.entry((from, lane)).or_default();
        if id <= state.received {
            state.answered = 0;
        }
        state.received = id;
    }

    /// Answers another replica's question. An answer that cannot be sent is lost, as on any network.
    pub(super) fn answer(&self, to: NodeId, lane: Lane, id: u64, body: Body) {
        // Recorded first: a probe whose answer overtakes this one costs a question asked twice.
        self.lanes.lock().entry((to, lane)).or_default().answered = id;
        self.reply(to, lane, id, body);
    }

    /// Answers at once, out of the order of the lane's questions.
    pub(super) fn reply(&self, to: NodeId, lane: Lane, id: u64, body: Body) {
        // An answer finds its question by its number, whatever the asker's incarnation.
        if let Err(error) = self.send(RaftId::first(to), lane, id, body) {
            tracing::debug!(%to, cohort = %self.cohort, %error, "an answer was not sent");
        }
    }

    /// Answers a probe.
    pub(super) fn answer_probe(&self, to: NodeId, lane: Lane, id: u64, applied: Lsn) {
        let (received, answered) = {
            let mut lanes = self.lanes.lock();
            let state = lanes.entry((to, lane)).or_default();
            (state.received, state.answered)
        };
        let applied = Some(applied.into());
        let reply = v1::RaftProbeReply { received, answered, applied };
        self.reply(to, lane, id, Body::ProbeReply(reply));
    }

    /// Hands an answer to whoever asked; one that nobody awaits any more is dropped.
    pub(super) fn complete(&self, from: NodeId, lane: Lane, id: u64, body: Body) {
        let mut lanes = self.lanes.lock();
        let Some(state) = lanes.get_mut(&(from, lane)) else { return };
        match body {
            Body::ProbeReply(v1::RaftProbeReply { received, answered, applied }) => {
                state.unproven_since = None;
                state.applied = applied.map_or(Lsn::ZERO, Into::into);
                state.lose(|it| it < id && (it > received || it <= answered));
            }
            body => {
                let waiting = state.waiting.remove(&id);
                // A refusal is given out of order, by a replica that counts for nothing.
                if waiting.is_some() && !matches!(body, Body::Failed(_)) {
                    state.unproven_since = None;
                    state.lose(|it| it < id);
                }
                if let Some(waiting) = waiting {
                    let _gone = waiting.answer.send(Answer::Body(body));
                }
            }
        }
    }

    /// Returns the nodes that a question on a lane awaits for longer than `period`.
    pub(super) fn overdue(&self, lane: Lane, period: Duration) -> Vec<NodeId> {
        let lanes = self.lanes.lock();
        let overdue = |state: &LaneState| {
            state.waiting.values().any(|waiting| waiting.asked_at.elapsed() > period)
        };
        let found = lanes.iter().filter(|((_, it), state)| *it == lane && overdue(state));
        // In an order of its own, that the same run may be had again.
        let mut found: Vec<NodeId> = found.map(|((node, _), _)| *node).collect();
        found.sort_unstable();
        found
    }

    /// Asks a replica what has arrived on a lane.
    pub(super) fn probe(&self, to: RaftId, lane: Lane) {
        let id = {
            let mut lanes = self.lanes.lock();
            let state = lanes.entry((to.node(), lane)).or_default();
            state.unproven_since.get_or_insert_with(Instant::now);
            self.number(state)
        };
        if let Err(error) = self.send(to, lane, id, Body::Probe(v1::RaftProbe {})) {
            tracing::trace!(%to, cohort = %self.cohort, %error, "a probe was not sent");
        }
    }

    /// Returns for how long a lane to a node has carried nothing there and back, although something
    /// was asked; zero if nothing is overdue.
    pub(super) fn silence(&self, node: NodeId, lane: Lane) -> Duration {
        let lanes = self.lanes.lock();
        let since = lanes.get(&(node, lane)).and_then(|state| state.unproven_since);
        since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Forgets that lanes were silent, when nothing is asked of them any more.
    pub(super) fn forget_silence(&self) {
        self.lanes.lock().values_mut().for_each(|state| state.unproven_since = None);
    }

    /// Returns what a node's replica had applied when it last answered a probe.
    pub(super) fn applied(&self, node: NodeId) -> Lsn {
        let lanes = self.lanes.lock();
        lanes.get(&(node, Lane::Data)).map_or(Lsn::ZERO, |state| state.applied)
    }

    fn number(&self, state: &mut LaneState) -> u64 {
        state.asked += 1;
        self.first + state.asked
    }

    fn send(&self, to: RaftId, lane: Lane, call: u64, body: Body) -> Result<(), SendError> {
        tracing::trace!(target: PATH, to = %to.node(), body = %wire::name(&body), "path: sent");
        let message = v1::RaftMessage { call, body: Some(body), to_incarnation: to.incarnation };
        self.transport.send(to.node(), self.cohort, lane, message.encode_to_vec().into())
    }
}

/// One question under way. Dropping it forgets the question.
pub(super) struct Call {
    id: u64,
    to: RaftId,
    lane: Lane,
    calls: Arc<Calls>,
    answer: oneshot::Receiver<Answer>,
}

impl Call {
    /// Waits for the answer, no longer than `limit`.
    pub(super) async fn answer(
        mut self,
        kind: RPCTypes,
        limit: Duration,
    ) -> Result<Body, CallError> {
        match tokio::time::timeout(limit, &mut self.answer).await {
            Ok(Ok(Answer::Body(Body::Failed(reason)))) => {
                // Asked again at once, it would refuse again.
                let error = AnyError::error(format!("{} could not answer: {reason}", self.to));
                Err(RPCError::Unreachable(Unreachable::new(&error)))
            }
            Ok(Ok(Answer::Body(body))) => Ok(body),
            Ok(Ok(Answer::Lost)) => Err(network("the question or its answer was lost")),
            Ok(Err(_)) => Err(network("the replica has stopped")),
            Err(_) => Err(RPCError::Timeout(Timeout {
                action: kind,
                id: self.calls.me,
                target: self.to,
                timeout: limit,
            })),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(state) = self.calls.lanes.lock().get_mut(&(self.to.node(), self.lane)) {
            state.waiting.remove(&self.id);
        }
    }
}

pub(super) fn unreachable(error: &SendError) -> CallError {
    RPCError::Unreachable(Unreachable::new(error))
}

/// The error for an answer that answers another question.
pub(super) fn unexpected(body: &Body) -> CallError {
    network(&format!("an answer of another kind: {body:?}"))
}

/// The error for an answer that says nothing.
pub(super) fn network(what: &str) -> CallError {
    RPCError::Network(NetworkError::new(&AnyError::error(what)))
}
