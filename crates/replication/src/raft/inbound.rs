//! What a replica does with the messages of the others.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use openraft::Raft;
use parking_lot::Mutex;
use prost::Message;
use trireme_proto::v1;
use trireme_proto::v1::raft_message::Body;
use trireme_storage::CohortTable;
use trireme_types::{Lsn, NodeId, PATH};

use super::RaftFaults;
use super::admission::Newcomer;
use super::calls::Calls;
use super::heard::Heard;
use super::rest::{Asked, Ticks};
use super::state_machine::RaftTable;
use super::types::{LogId, RaftId, TypeConfig, Vote};
use super::wire;
use crate::queue::{Receiver, Sender, queue};
use crate::simulation;
use crate::transport::Lane;

/// The most questions of one replica, on one lane, that wait to be taken in; a leader has fewer
/// appends under way.
const QUESTIONS_MAX: usize = 256;

pub(super) type RaftHandle = Raft<TypeConfig, RaftTable>;

/// A question, the number that its answer is to carry, and what keeps the replica awake until it is
/// answered.
type Question = (u64, Body, Asked);

/// What a message asks of the replica itself, beside Raft.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// A replica under a new incarnation asks to be admitted.
    Join(Newcomer),
    /// The leader of this vote knows that this replica had acknowledged an entry, and finds that
    /// it does not have it any more.
    Lost {
        /// The leader's vote.
        vote: Vote,
        /// The entry.
        acknowledged: Lsn,
    },
    /// A leader replicates to another incarnation of this node's replica.
    Replaced {
        /// The leader's term.
        term: u64,
    },
}

/// Sorts what arrives: answers go to those who asked, questions to a task for each replica and
/// lane, which takes them in order.
pub(super) struct Inbound {
    raft: RaftHandle,
    calls: Arc<Calls>,
    heard: Arc<Heard>,
    table: CohortTable,
    events: Sender<Event>,
    queues: Mutex<HashMap<(NodeId, Lane), Sender<Question>>>,
    faults: RaftFaults,
    ticks: Arc<Ticks>,
}

impl Inbound {
    pub(super) fn new(
        raft: RaftHandle,
        ticks: Arc<Ticks>,
        calls: Arc<Calls>,
        heard: Arc<Heard>,
        table: CohortTable,
        events: Sender<Event>,
    ) -> Self {
        let (queues, faults) = (Mutex::default(), RaftFaults::default());
        Self { raft, ticks, calls, heard, table, events, queues, faults }
    }

    /// Returns it with the mistakes that it is to make.
    pub(super) fn with_faults(self, faults: RaftFaults) -> Self {
        Self { faults, ..self }
    }

    /// Takes a message in. Never waits; a question that finds the queue full is dropped, and its
    /// asker tries again.
    pub(super) fn deliver(&self, from: NodeId, lane: Lane, payload: Bytes) {
        let message = match v1::RaftMessage::decode(payload) {
            Ok(message) => message,
            Err(error) => {
                tracing::warn!(%from, %error, "a message that is none was dropped");
                return;
            }
        };
        let v1::RaftMessage { call, body: Some(body), to_incarnation } = message else { return };
        tracing::trace!(target: PATH, %from, body = %wire::name(&body), "path: received");
        let is_for_me = to_incarnation == self.calls.me().incarnation;
        match body {
            Body::AppendReply(_)
            | Body::VoteReply(_)
            | Body::TransferLeaderReply(_)
            | Body::ProbeReply(_)
            | Body::Failed(_) => self.calls.complete(from, lane, call, body),
            Body::Join(v1::RaftJoin { incarnation, is_invited }) => {
                let id = RaftId { node: from.0, incarnation };
                self.report(Event::Join(Newcomer { id, is_invited }));
            }
            // What another replica of this node has promised is not this one's to keep or to break.
            Body::Append(_) | Body::Vote(_) | Body::PreVote(_) | Body::TransferLeader(_)
                if !is_for_me =>
            {
                if let Body::Append(v1::RaftAppend { vote: Some(vote), .. }) = &body {
                    self.report(Event::Replaced { term: vote.term });
                }
                let reason = format!("the replica is {} now", self.calls.me());
                self.calls.reply(from, lane, call, Body::Failed(reason));
            }
            Body::Probe(_) | Body::Lost(_) if !is_for_me => {}
            Body::Probe(_) => self.calls.answer_probe(from, lane, call, self.table.applied()),
            Body::Lost(lost) => self.lost(lost),
            Body::Append(_) | Body::Vote(_) | Body::PreVote(_) | Body::TransferLeader(_) => {
                self.enqueue(from, lane, call, body);
            }
        }
    }

    /// Ends the tasks once they have taken in what waits.
    pub(super) fn close(&self) {
        self.queues.lock().clear();
    }

    fn lost(&self, v1::RaftLost { vote, acknowledged }: v1::RaftLost) {
        if let (Some(vote), Some(acknowledged)) = (vote, acknowledged) {
            self.report(Event::Lost {
                vote: super::types::vote(vote),
                acknowledged: acknowledged.into(),
            });
        }
    }

    fn report(&self, event: Event) {
        // One that finds no room is reported again by whoever sends it.
        if let Err(event) = self.events.try_send(event) {
            tracing::trace!(?event, "an event found no room");
        }
    }

    fn enqueue(&self, from: NodeId, lane: Lane, call: u64, body: Body) {
        self.calls.arrived(from, lane, call);
        if let Body::Append(append) = &body {
            self.heard.note(from, append, self.table.applied());
        }
        let asked = match &body {
            Body::Append(append) if append.entries.is_empty() => self.ticks.ask_by_heartbeat(),
            Body::Append(_) => self.ticks.ask(),
            _ => self.ticks.ask_to_elect(),
        };
        let mut queues = self.queues.lock();
        let queue = queues.entry((from, lane)).or_insert_with(|| self.start_task(from, lane));
        if queue.try_send((call, body, asked)).is_err() {
            tracing::debug!(%from, ?lane, "a message found the queue full and was dropped");
        }
    }

    fn start_task(&self, from: NodeId, lane: Lane) -> Sender<Question> {
        let (sender, questions) = queue(QUESTIONS_MAX);
        let (raft, calls) = (self.raft.clone(), self.calls.clone());
        simulation::spawn(answer_in_order(raft, calls, from, lane, self.faults, questions));
        sender
    }
}

/// Hands questions to Raft in the order in which they came, without waiting for one to be answered
/// before the next is asked: an append is answered when the disk has it.
async fn answer_in_order(
    raft: RaftHandle,
    calls: Arc<Calls>,
    from: NodeId,
    lane: Lane,
    faults: RaftFaults,
    mut questions: Receiver<Question>,
) {
    let mut answers: FuturesOrdered<BoxFuture<'static, Answer>> = FuturesOrdered::new();
    let mut open = true;
    while open || !answers.is_empty() {
        tokio::select! {
            // The next question is asked before the next answer is awaited, and polled at once:
            // that puts it in Raft's queue behind the ones before it.
            biased;
            question = questions.recv(), if open && answers.len() < QUESTIONS_MAX => {
                match question {
                    Some(question) => {
                        answers.push_back(ask(raft.clone(), question, faults).boxed());
                    }
                    None => open = false,
                }
            }
            Some((call, body, _asked)) = answers.next() => calls.answer(from, lane, call, body),
        }
    }
}

/// An answer, the number of its question, and what has kept the replica awake.
type Answer = (u64, Body, Asked);

async fn ask(raft: RaftHandle, question: Question, faults: RaftFaults) -> Answer {
    let (call, question, asked) = question;
    let answer = match question {
        Body::Append(append) => append_answer(&raft, append, faults).await,
        Body::Vote(ballot) => ballot_answer(&raft, ballot, false, faults).await,
        Body::PreVote(ballot) => ballot_answer(&raft, ballot, true, faults).await,
        Body::TransferLeader(transfer) => transfer_answer(&raft, transfer).await,
        answer => Err(format!("not a question: {answer:?}")),
    };
    (call, answer.unwrap_or_else(Body::Failed), asked)
}

async fn append_answer(
    raft: &RaftHandle,
    message: v1::RaftAppend,
    faults: RaftFaults,
) -> Result<Body, String> {
    let append = wire::append(message).map_err(|error| error.to_string())?;
    if faults.acknowledges_unseen() {
        let raft = raft.clone();
        simulation::spawn(async move { drop(raft.append_entries(append).await) });
        return Ok(Body::AppendReply(wire::append_reply_message(wire::AppendReply::Success)));
    }
    let reply = raft.append_entries(append).await.map_err(|error| error.to_string())?;
    Ok(Body::AppendReply(wire::append_reply_message(reply)))
}

async fn ballot_answer(
    raft: &RaftHandle,
    message: v1::RaftVoteRequest,
    pre_vote: bool,
    faults: RaftFaults,
) -> Result<Body, String> {
    let mut ballot = wire::ballot(message).map_err(|error| error.to_string())?;
    if faults.grants_every_vote() {
        ballot.last_log_id = Some(LogId::new_term_index(u64::MAX, u64::MAX));
    }
    let reply = if pre_vote { raft.pre_vote(ballot).await } else { raft.vote(ballot).await };
    let reply = reply.map_err(|error| error.to_string())?;
    Ok(Body::VoteReply(wire::ballot_reply_message(&reply)))
}

async fn transfer_answer(
    raft: &RaftHandle,
    message: v1::RaftTransferLeader,
) -> Result<Body, String> {
    let transfer = wire::transfer(message).map_err(|error| error.to_string())?;
    let answer = raft.handle_transfer_leader(transfer).await.map_err(|error| error.to_string())?;
    answer.map_err(|error| error.to_string())?;
    Ok(Body::TransferLeaderReply(v1::RaftTransferLeaderReply {}))
}
