//! The writes that wait for the writer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use trireme_types::{Entry, Lsn};

use super::LogError;
use super::cohort::Cohort;
use super::format::RECORD_HEADER_BYTES;

/// How long a commit point waits for another write to go with. Nobody waits for a commit point; the
/// delay only has to be short enough that a restart finds a recent one.
pub(super) const COMMIT_POINT_DELAY: Duration = Duration::from_millis(50);

/// What a waiting write costs in memory besides its payload.
const OPERATION_BYTES: usize = 128;

/// Called once a write is durable, or never will be.
pub(super) type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// Called once when the log fails.
pub(super) type FailureListener = Box<dyn FnOnce(&LogError) + Send>;

/// A write that waits.
pub(super) struct Operation {
    pub(super) cohort: Arc<Cohort>,
    /// The number to publish once this is durable; `None` for all but the last piece of a write
    /// that was cut into several, and for what no owner of a cohort's log has submitted.
    pub(super) io: Option<u64>,
    pub(super) body: OperationBody,
    pub(super) done: Option<Done>,
}

/// What a write does. Where it can move the commit point, it says where the commit point is after it.
pub(super) enum OperationBody {
    /// Entries, each with its token.
    Append(Vec<(Entry, u64)>),
    HardState(Bytes),
    TruncateAfter {
        kept: Lsn,
        commit_point: Lsn,
    },
    Purge {
        upto: Lsn,
        commit_point: Lsn,
    },
    CommitPoint(Lsn),
    Forget,
    /// Entries that are to be written again, so that their segment can go.
    Move(Vec<MovedEntry>),
}

/// An entry that is to be written again.
pub(super) struct MovedEntry {
    pub(super) entry: Entry,
    /// The segment that it lay in when it was read, and its position there.
    pub(super) from: (u32, u32),
    /// The position in the segment being written, once it is written again. It is not if the log has
    /// dropped or replaced it meanwhile.
    pub(super) to: Option<u32>,
}

impl Operation {
    /// Returns the bytes that the write's records take in a block.
    pub(super) fn record_bytes(&self) -> usize {
        match &self.body {
            OperationBody::Append(entries) => {
                entries.iter().map(|(entry, _)| RECORD_HEADER_BYTES + entry.payload.len()).sum()
            }
            OperationBody::HardState(state) => RECORD_HEADER_BYTES + state.len(),
            OperationBody::Move(moved) => moved.iter().map(MovedEntry::record_bytes).sum(),
            _ => RECORD_HEADER_BYTES,
        }
    }

    fn queued_bytes(&self) -> usize {
        OPERATION_BYTES + self.record_bytes()
    }

    fn is_forced(&self) -> bool {
        !matches!(self.body, OperationBody::CommitPoint(_))
    }
}

impl MovedEntry {
    pub(super) fn record_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.entry.payload.len()
    }
}

/// How a log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// With a mark that says that everything before it is on disk.
    Close,
    /// Without: its last handle was dropped.
    Abandon,
}

/// What the writer is to do next.
pub(super) enum Work {
    Write(Vec<Operation>),
    End(Ending),
}

/// The writes that wait, in order.
pub(super) struct Queue {
    state: Mutex<State>,
    /// Signalled when the writer has a reason to look.
    ready: Condvar,
    /// Signalled when the writer has ended.
    ended: Condvar,
    /// The bytes of all writes that are not answered yet, with those in the block being written.
    bytes: AtomicUsize,
    block_bytes_max: usize,
    bytes_max: usize,
}

#[derive(Default)]
struct State {
    operations: VecDeque<Operation>,
    /// How many of the operations are more than a commit point.
    forced: usize,
    /// Since when commit points alone have waited.
    waiting_since: Option<Instant>,
    ending: Option<Ending>,
    has_ended: bool,
    failure: Option<LogError>,
    listeners: Vec<FailureListener>,
}

/// The queue's tail, held by a submitter while it changes its cohort's index, so that the index and
/// the queue agree on the order and nothing enters a queue that takes nothing.
pub(super) struct Tail<'a> {
    queue: &'a Queue,
    state: MutexGuard<'a, State>,
}

impl Queue {
    pub(super) fn new(block_bytes_max: usize, bytes_max: usize) -> Self {
        Self {
            state: Mutex::default(),
            ready: Condvar::new(),
            ended: Condvar::new(),
            bytes: AtomicUsize::new(0),
            block_bytes_max,
            bytes_max,
        }
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes hold of the tail, or says why the log takes no writes.
    pub(super) fn tail(&self) -> Result<Tail<'_>, LogError> {
        let state = self.state.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.poison());
        }
        if state.ending.is_some() {
            return Err(LogError::Closed);
        }
        let queued = self.queued_bytes();
        if queued > self.bytes_max {
            return Err(LogError::QueueFull { queued, max: self.bytes_max });
        }
        Ok(Tail { queue: self, state })
    }

    /// Waits until there is something to do: a write, a commit point that has waited long enough,
    /// or the end.
    pub(super) fn wait(&self) -> Work {
        let mut state = self.state.lock();
        loop {
            if state.forced > 0 || state.ending.is_some() {
                return self.take(&mut state);
            }
            match state.waiting_since.map(|since| since + COMMIT_POINT_DELAY) {
                None => self.ready.wait(&mut state),
                Some(until) if until <= Instant::now() => return self.take(&mut state),
                Some(until) => {
                    self.ready.wait_until(&mut state, until);
                }
            }
        }
    }

    /// Returns what waits now, if anything does.
    pub(super) fn poll(&self) -> Option<Work> {
        let mut state = self.state.lock();
        let is_idle = state.operations.is_empty() && state.ending.is_none();
        if is_idle { None } else { Some(self.take(&mut state)) }
    }

    /// Takes as many operations as one block may hold, at least one; the end when none is left.
    fn take(&self, state: &mut State) -> Work {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(next) = state.operations.front() {
            bytes += next.record_bytes();
            if bytes > self.block_bytes_max && !taken.is_empty() {
                break;
            }
            state.forced -= usize::from(next.is_forced());
            taken.extend(state.operations.pop_front());
        }
        if state.operations.is_empty() {
            state.waiting_since = None;
        }
        match state.ending {
            Some(ending) if taken.is_empty() => Work::End(ending),
            _ => Work::Write(taken),
        }
    }

    /// Gives back the room of operations that were answered.
    pub(super) fn release(&self, operations: &[Operation]) {
        let bytes: usize = operations.iter().map(Operation::queued_bytes).sum();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Asks the writer to end once everything that waits is written. The first way to end counts.
    pub(super) fn end(&self, ending: Ending) {
        self.state.lock().ending.get_or_insert(ending);
        self.ready.notify_all();
    }

    /// Says that the writer has ended.
    pub(super) fn set_ended(&self) {
        self.state.lock().has_ended = true;
        self.ended.notify_all();
    }

    /// Waits until the writer has ended, and says how.
    pub(super) fn wait_for_end(&self) -> Result<(), LogError> {
        let mut state = self.state.lock();
        while !state.has_ended {
            self.ended.wait(&mut state);
        }
        state.failure.as_ref().map_or(Ok(()), |failure| Err(failure.poison()))
    }

    /// Ends the log for good: every waiting write is answered with the failure, every later one
    /// refused, and whoever listens for it is told.
    pub(super) fn fail(&self, failure: LogError, in_flight: Vec<Operation>) {
        let (waiting, listeners) = {
            let mut state = self.state.lock();
            state.failure.get_or_insert_with(|| failure.clone());
            state.forced = 0;
            state.waiting_since = None;
            (std::mem::take(&mut state.operations), std::mem::take(&mut state.listeners))
        };
        for listener in listeners {
            listener(&failure);
        }
        let answer = failure.poison();
        for mut operation in in_flight.into_iter().chain(waiting) {
            self.release(std::slice::from_ref(&operation));
            if let Some(done) = operation.done.take() {
                done(Err(answer.clone()));
            }
        }
    }

    /// Calls `listener` when the log fails; at once if it has.
    pub(super) fn on_failure(&self, listener: FailureListener) {
        let failure = {
            let mut state = self.state.lock();
            match &state.failure {
                Some(failure) => failure.clone(),
                None => {
                    state.listeners.push(listener);
                    return;
                }
            }
        };
        listener(&failure);
    }
}

impl Tail<'_> {
    pub(super) fn push(&mut self, operation: Operation) {
        self.queue.bytes.fetch_add(operation.queued_bytes(), Ordering::Relaxed);
        if operation.is_forced() {
            self.state.forced += 1;
        } else if self.state.waiting_since.is_none() {
            self.state.waiting_since = Some(Instant::now());
        }
        // The writer looks by itself once a waiting commit point is due; it must be told only of
        // the first one, and of the first write that it should not delay.
        let is_first = self.state.operations.is_empty() || self.state.forced == 1;
        self.state.operations.push_back(operation);
        if is_first {
            self.queue.ready.notify_one();
        }
    }
}
