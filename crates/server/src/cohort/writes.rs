//! The queue of a cohort's writes: what waits becomes one log entry.
//!
//! There is no timer. While batches replicate, the next one fills; as soon as one of them is done,
//! whatever waits leaves together. One lone write leaves at once, and under load the batch
//! grows with the time that replication takes, whatever the protocol.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;
use trireme_proto::convert;
use trireme_proto::v1::response::Result as Answer;
use trireme_replication::{Replica, ReplicaError};
use trireme_types::limits::{BATCH_BYTES_MAX, BATCH_COMMANDS_MAX, VALUE_BYTES_MAX};
use trireme_types::{Command, CommandBatch, Operation, Outcome, PATH};

use super::Counters;
use super::clock::CohortClock;
use super::queue::{Batch, Limits, Queue};
use crate::backpressure::{Backpressure, while_under_way};
use crate::refusal;
use crate::request::ReplyTo;
use crate::routes::NodeDirectory;

/// The most bytes of keys and values that wait in one cohort's queue; past it a client is answered
/// `BUSY`.
const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The most writes that wait in one cohort's queue.
const QUEUE_WRITES_MAX: usize = 65_536;

/// The most batches of one cohort that replicate at once. More hide a slow disk or network; fewer
/// make larger batches, which cost less a write. See docs/performance.md for what was measured.
const BATCHES_MAX: usize = 2;

/// The bytes that one write counts for besides its key and value.
const WRITE_OVERHEAD: usize = 64;

/// How long a batch may replicate before its clients get the answer that its outcome is unknown.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(15);

/// A write that waits for its batch.
pub(crate) struct PendingWrite {
    pub(crate) command: Command,
    pub(crate) deadline: Instant,
    pub(crate) reply: ReplyTo,
}

/// The queue of one cohort's writes. What waits when it is dropped is still done.
pub(super) struct WriteQueue {
    batcher: Arc<Batcher>,
}

struct Batcher {
    queue: Queue<PendingWrite>,
    runtime: Handle,
    replica: Arc<dyn Replica>,
    clock: CohortClock,
    directory: Arc<NodeDirectory>,
    counters: Arc<Counters>,
    backpressure: Arc<Backpressure>,
}

impl WriteQueue {
    /// Starts a queue that is worked off on the current runtime.
    pub(super) fn start(
        replica: Arc<dyn Replica>,
        clock: CohortClock,
        directory: Arc<NodeDirectory>,
        counters: Arc<Counters>,
        backpressure: Arc<Backpressure>,
    ) -> Self {
        let limits =
            Limits { items: QUEUE_WRITES_MAX, bytes: QUEUE_BYTES_MAX, workers: BATCHES_MAX };
        let (queue, runtime) = (Queue::new(limits), Handle::current());
        let batcher = Batcher { queue, runtime, replica, clock, directory, counters, backpressure };
        Self { batcher: Arc::new(batcher) }
    }

    pub(super) fn push(&self, write: PendingWrite) {
        let bytes = write.command.operation.size() + WRITE_OVERHEAD;
        match self.batcher.queue.push(write, bytes) {
            Ok(false) => {}
            Ok(true) => drop(self.batcher.runtime.spawn(Arc::clone(&self.batcher).run())),
            Err(write) => {
                write.reply.refuse(refusal::busy("too many writes wait for the cohort"));
            }
        }
    }
}

impl Batcher {
    /// Replicates one batch after the other until nothing waits.
    async fn run(self: Arc<Self>) {
        loop {
            // The next write may be as large as writes can be, so a batch ends that much below its
            // limit; and about at what a short log has room for.
            let bytes_max = self.backpressure.batch_bytes_max();
            let bytes_max = bytes_max.min(BATCH_BYTES_MAX - VALUE_BYTES_MAX);
            let Some(batch) = self.queue.take(BATCH_COMMANDS_MAX, bytes_max) else { return };
            self.replicate(batch).await;
        }
    }

    async fn replicate(&self, batch: Batch<PendingWrite>) {
        let replicas = || self.replica.status().replicas;
        let under_way = self.backpressure.admit(batch.bytes, replicas).await;
        let now = Instant::now();
        let mut commands = Vec::with_capacity(batch.items.len());
        let mut replies = Vec::with_capacity(batch.items.len());
        for write in batch.items {
            if write.deadline <= now {
                write.reply.refuse(refusal::expired());
                continue;
            }
            let is_put = matches!(write.command.operation, Operation::Put { .. });
            commands.push(write.command);
            replies.push((write.reply, is_put));
        }
        if commands.is_empty() {
            return;
        }
        let proposal = self.replica.propose(CommandBatch { commands, clock: self.clock.now() });
        let proposal = tokio::time::timeout(PROPOSE_TIMEOUT, proposal);
        match while_under_way(proposal, under_way).await {
            Ok(Ok(outcomes)) => self.answer(replies, &outcomes),
            Ok(Err(error)) => self.refuse(replies, &error),
            Err(_) => {
                let late = ReplicaError::Ambiguous("the write was not committed in time".into());
                self.refuse(replies, &late);
            }
        }
    }

    fn answer(&self, replies: Vec<(ReplyTo, bool)>, outcomes: &[Outcome]) {
        assert_eq!(replies.len(), outcomes.len(), "a batch has one outcome for each command");
        self.counters.commands.fetch_add(replies.len() as u64, Ordering::Relaxed);
        tracing::trace!(target: PATH, "path: answered");
        for ((reply, is_put), &outcome) in replies.into_iter().zip(outcomes) {
            reply.send(answer(is_put, outcome));
        }
    }

    fn refuse(&self, replies: Vec<(ReplyTo, bool)>, error: &ReplicaError) {
        let error = refusal::of_replica(error, |node| self.directory.node(node));
        for (reply, _) in replies {
            reply.refuse(error.clone());
        }
    }
}

fn answer(is_put: bool, outcome: Outcome) -> Answer {
    match outcome {
        Outcome::WrongRange => return Answer::Error(refusal::moved()),
        Outcome::SessionGone { clock } => return Answer::Error(refusal::session_gone(clock)),
        Outcome::SessionsFull => {
            return Answer::Error(refusal::busy("the cohort has no room for another session"));
        }
        Outcome::Put { .. } | Outcome::Deleted { .. } | Outcome::ConditionFailed { .. } => {}
    }
    let answer = if is_put {
        convert::put_response(outcome).map(Answer::Put)
    } else {
        convert::delete_response(outcome).map(Answer::Delete)
    };
    // A retry that named another kind of write than the first attempt gets that one's outcome.
    answer.unwrap_or_else(|| {
        Answer::Error(refusal::invalid("the write's number was used for another kind of write"))
    })
}
