//! openraft's log storage over a cohort's log.
//!
//! Entries, votes and commit points all go into the node's one shared log; there is no second log
//! anywhere. The cohort's log is FIFO, which is the order that openraft asks of votes and entries.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, entry::RaftEntry as _};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use trireme_proto::v1;
use trireme_storage::{CohortLog, LogError, LogErrorClass, LogWrite};
use trireme_types::{Entry, Lsn};

use super::RaftFaults;
use super::types::{
    LogId, RaftEntry, TypeConfig, Vote, from_log, log_id, lsn, lsn_or_zero, malformed, to_log,
    vote, vote_message,
};
use crate::simulation;

/// The most bytes of entries that one read for a follower returns: the size of an append.
const APPEND_BYTES_MAX: usize = 1024 * 1024;

/// The most bytes of entries that one step of applying reads.
const APPLY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The reads from the disk that go on at once in the process: each holds a thread, and at most
/// [`APPLY_BYTES_MAX`]. More of them would hardly be faster on one disk.
static FILE_READS: Semaphore = Semaphore::const_new(8);

/// How long to wait before a write that found the log's queue full is submitted again.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(2);

/// How long a full queue of the log is waited for. Meanwhile the replica does nothing else, so that
/// its followers miss its heartbeats and elect another leader. A disk that takes nothing for so long
/// has failed, and the node must stop.
const QUEUE_FULL_MAX: Duration = Duration::from_secs(300);

/// One cohort's log, as openraft sees it.
#[derive(Clone)]
pub(super) struct RaftLogStore {
    log: CohortLog,
    /// Which of the node's replicas the log belongs to.
    incarnation: u64,
    on_disk: Arc<Mutex<OnDisk>>,
    faults: RaftFaults,
}

/// How much of a log is on disk. openraft's own progress forgets that whenever a vote is stored.
#[derive(Debug, Default)]
pub(super) struct OnDisk {
    /// The last entry that is.
    pub(super) last: Lsn,
    /// How often the log's end was cut off. What was submitted before is in the log no more.
    cuts: u64,
}

impl OnDisk {
    /// Returns what a log that was opened holds.
    pub(super) const fn up_to(last: Lsn) -> Self {
        Self { last, cuts: 0 }
    }

    /// Notes that what was appended after so many cuts is on disk.
    fn note(&mut self, cuts: u64, last: Lsn) {
        if cuts == self.cuts {
            self.last = last;
        }
    }

    /// Notes that the log's end is cut off after `last`. Up to there it is on disk if more was.
    fn cut(&mut self, last: Lsn) {
        self.cuts += 1;
        if last.seq < self.last.seq {
            self.last = last;
        }
    }
}

impl RaftLogStore {
    /// Returns openraft's view of a cohort's log, which is this incarnation's.
    pub(super) fn new(log: CohortLog, incarnation: u64) -> Self {
        Self { log, incarnation, on_disk: Arc::default(), faults: RaftFaults::default() }
    }

    /// Returns it with a place where it is to record how much of the log is on disk.
    pub(super) fn recording(self, on_disk: Arc<Mutex<OnDisk>>) -> Self {
        Self { on_disk, ..self }
    }

    /// Returns it with the mistakes that it is to make.
    pub(super) fn with_faults(self, faults: RaftFaults) -> Self {
        Self { faults, ..self }
    }

    /// Returns the incarnation of the replica that stored the log's vote; `None` if there is none.
    pub(super) fn stored_incarnation(log: &CohortLog) -> io::Result<Option<u64>> {
        Ok(stored_vote(log)?.map(|vote| vote.own_incarnation))
    }

    /// Makes the log another incarnation's: durable when it returns. What it holds stays: it is
    /// where the new replica's leader begins to compare. The vote stays too, since a replica must
    /// know of no older term than its log does.
    pub(super) async fn adopt(log: &CohortLog, incarnation: u64) -> io::Result<()> {
        let vote = stored_vote(log)?.unwrap_or_default();
        let vote = v1::RaftVote { own_incarnation: incarnation, ..vote };
        Self::new(log.clone(), incarnation).save(&vote).await
    }

    async fn save(&self, vote: &v1::RaftVote) -> io::Result<()> {
        let (sender, durable) = oneshot::channel();
        let done = move |result| {
            // A replica that stopped waits for nothing.
            let _stopped = sender.send(result);
        };
        self.submit_then(LogWrite::HardState(vote.encode_to_vec().into()), done).await?;
        let result = durable.await.map_err(|_| io::Error::other("the log has stopped"))?;
        result.map_err(io_error)
    }

    /// Submits a write, and waits while the log's queue is full: it holds what other cohorts have
    /// written too, and says nothing of this one.
    async fn submit_then<D>(&self, write: LogWrite, done: D) -> io::Result<()>
    where
        D: FnOnce(Result<(), LogError>) + Send + 'static,
    {
        let (mut write, mut done, deadline) = (write, done, Instant::now() + QUEUE_FULL_MAX);
        loop {
            let refused = match self.log.submit_then(write, done) {
                Ok(_) => return Ok(()),
                Err(refused) => *refused,
            };
            let is_full = refused.error.class() == LogErrorClass::Retry;
            if !is_full || Instant::now() >= deadline {
                return Err(io_error(refused.error));
            }
            tracing::debug!(cohort = %self.log.id(), "waiting for room in the log's queue");
            (write, done) = (refused.write, refused.done);
            tokio::time::sleep(QUEUE_FULL_PAUSE).await;
        }
    }

    /// Reads entries from sequence `start` on, before `end`, as many as `bytes_max` holds and at
    /// least one if there is one. What must come from the disk is read on a thread that may wait for
    /// it: those that carry messages may not.
    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<RaftEntry>> {
        let entries = match self.log.read_cached(start..end, bytes_max) {
            Some(entries) => entries,
            None => {
                let _permit = FILE_READS.acquire().await.map_err(io::Error::other)?;
                let log = self.log.clone();
                let reading = simulation::blocking(move || log.read(start..end, bytes_max));
                reading.await.map_err(io::Error::other)?.map_err(io_error)?
            }
        };
        entries.into_iter().map(from_log).collect()
    }

    /// Returns the sequences of a range of indexes, within what the log holds.
    fn sequences(&self, indexes: &impl RangeBounds<u64>) -> (u64, u64) {
        let bounds = self.log.bounds();
        let start = match indexes.start_bound() {
            Bound::Included(&index) => index + 1,
            Bound::Excluded(&index) => index + 2,
            Bound::Unbounded => 0,
        };
        let end = match indexes.end_bound() {
            Bound::Included(&index) => index + 2,
            Bound::Excluded(&index) => index + 1,
            Bound::Unbounded => u64::MAX,
        };
        (start.max(bounds.purged.seq + 1), end.min(bounds.last.seq + 1))
    }
}

impl RaftLogReader<TypeConfig> for RaftLogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<RaftEntry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (mut start, end) = self.sequences(&range);
        let mut entries = Vec::new();
        while start < end {
            let mut more = self.read(start, end, APPLY_BYTES_MAX).await?;
            let Some(last) = more.last() else { break };
            start = lsn(last.log_id).seq + 1;
            entries.append(&mut more);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        // One of term 0 was never cast: it only names the incarnation.
        Ok(stored_vote(&self.log)?.filter(|stored| (stored.term, stored.node) != (0, 0)).map(vote))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<RaftEntry>> {
        let (start, end) = self.sequences(&(start..end));
        self.read(start, end, APPEND_BYTES_MAX).await
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<RaftEntry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let store = self.clone();
        let (start, end) = self.sequences(&range);
        let steps = stream::try_unfold(start, move |start| {
            let store = store.clone();
            async move {
                if start >= end {
                    return Ok::<_, io::Error>(None);
                }
                let entries = store.read(start, end, APPLY_BYTES_MAX).await?;
                let Some(last) = entries.last() else { return Ok(None) };
                let next = lsn(last.log_id()).seq + 1;
                Ok(Some((entries, next)))
            }
        });
        Box::pin(steps.flat_map(|step| match step {
            Ok(entries) => stream::iter(entries.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(error) => stream::iter(vec![Err(error)]),
        }))
    }
}

impl RaftLogStorage<TypeConfig> for RaftLogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let bounds = self.log.bounds();
        Ok(LogState { last_purged_log_id: log_id(bounds.purged), last_log_id: log_id(bounds.last) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        if self.faults.forgets_votes() {
            return Ok(());
        }
        let own_incarnation = self.incarnation;
        self.save(&v1::RaftVote { own_incarnation, ..vote_message(vote) }).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let point = LogWrite::CommitPoint(lsn_or_zero(committed));
        match self.log.submit(point) {
            Ok(_) => Ok(()),
            // Nobody waits for a commit point, and the next one says more.
            Err(refused) if refused.error.class() == LogErrorClass::Retry => Ok(()),
            Err(refused) => Err(io_error(refused.error)),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        // What was purged was on disk in the table, so up to there nothing is to be applied again.
        let (point, bounds) = (self.log.commit_point(), self.log.bounds());
        Ok(if point > bounds.purged { log_id(point) } else { None })
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().map(to_log).collect();
        let (on_disk, last) = (self.on_disk.clone(), entries.last().map(|entry| entry.lsn));
        let cuts = on_disk.lock().cuts;
        let done = move |result: Result<(), LogError>| {
            // Recorded first: a status that is read after openraft's acknowledgement includes it.
            if let (Ok(()), Some(last)) = (&result, last) {
                on_disk.lock().note(cuts, last);
            }
            callback.io_completed(result.map_err(io_error));
        };
        if self.faults.flushes_from_memory() {
            self.submit_then(LogWrite::Append(entries), drop).await?;
            done(Ok(()));
            return Ok(());
        }
        self.submit_then(LogWrite::Append(entries), done).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        // Later writes of this cohort follow it into the log, so none is durable before it is.
        let last = lsn_or_zero(last);
        self.on_disk.lock().cut(last);
        self.submit_then(LogWrite::TruncateAfter { seq: last.seq }, drop).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.submit_then(LogWrite::Purge { upto: lsn(upto) }, drop).await
    }
}

fn stored_vote(log: &CohortLog) -> io::Result<Option<v1::RaftVote>> {
    log.hard_state().map(|bytes| v1::RaftVote::decode(bytes).map_err(malformed)).transpose()
}

fn io_error(error: impl Into<LogError>) -> io::Error {
    io::Error::other(error.into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use trireme_storage::fs::{FsOperation, MemFs};
    use trireme_storage::{LogIdentity, LogOptions, SharedLog};
    use trireme_types::{ClusterId, CohortId, EntryKind, NodeId};

    use super::*;

    /// How long anything may take that waits for no disk. Only a failing test waits so long.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// How long the disk takes at most, so that a test that fails ends.
    const DISK_TIME_MAX: Duration = Duration::from_secs(30);

    const ENTRIES: u64 = 64;

    /// What was submitted before the log's end was cut off is in it no more, also if the same entries come
    /// again: the status would name them as durable before they are forced.
    #[test]
    fn what_is_on_disk_follows_the_cuts_of_a_log() {
        let (first, second) = (Lsn::new(1, 8), Lsn::new(1, 10));
        let mut on_disk = OnDisk::up_to(second);
        let cuts = on_disk.cuts;
        on_disk.cut(first);
        assert_eq!(on_disk.last, first, "what is before the cut stays");
        on_disk.note(cuts, Lsn::new(2, 9));
        on_disk.cut(first);
        assert_eq!(on_disk.last, first, "appended before the cut");
        on_disk.note(on_disk.cuts, second);
        assert_eq!(on_disk.last, second);
    }

    /// What a follower lacks may have to be read from the disk, and the thread that carries messages
    /// does not wait for it: what is newer goes out from memory, and timers run.
    #[test]
    fn entries_that_wait_for_the_disk_hold_nothing_up() {
        let fs = MemFs::new();
        let identity = LogIdentity { cluster: ClusterId(7), node: NodeId(1) };
        // The newest few are in memory.
        let options = LogOptions { cache_bytes: 16 * 1024, ..LogOptions::default() };
        let log = SharedLog::open(Arc::new(fs.clone()), Path::new("/log"), identity, options);
        let log = log.unwrap();
        let store = RaftLogStore::new(log.cohort(CohortId(1)), 0);
        let (durable, is_durable) = mpsc::channel();
        for seq in 1..=ENTRIES {
            let payload = vec![7; 4096].into();
            let entry = Entry { lsn: Lsn::new(1, seq), kind: EntryKind::Commands, payload };
            let durable = durable.clone();
            let done = move |result| drop(durable.send(result));
            store.log.submit_then(LogWrite::Append(vec![entry]), done).unwrap();
            is_durable.recv_timeout(PATIENCE).unwrap().unwrap();
        }
        let (ask, is_asked) = mpsc::channel();
        let (go_on, goes_on) = mpsc::channel::<()>();
        let goes_on = Mutex::new(goes_on);
        fs.observe(move |call| {
            if call.operation == FsOperation::Read {
                // A test that has failed, or lets the disk go on, listens no more.
                let _over = ask.send(());
                let _over = goes_on.lock().recv_timeout(DISK_TIME_MAX);
            }
            Ok(())
        });

        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let indexes = |entries: io::Result<Vec<RaftEntry>>| -> Vec<u64> {
            entries.unwrap().iter().map(|entry| entry.log_id.index).collect()
        };
        let mut reader = store.clone();
        let old = spawn(&runtime, async move { reader.limited_get_log_entries(0, 4).await });
        is_asked.recv_timeout(PATIENCE).expect("they are read from the disk");
        let mut reader = store.clone();
        let new = spawn(&runtime, async move { reader.limited_get_log_entries(62, 64).await });
        assert_eq!(indexes(new.recv_timeout(PATIENCE).expect("they are in memory")), [62, 63]);
        let beat = spawn(&runtime, async { tokio::time::sleep(Duration::from_millis(10)).await });
        beat.recv_timeout(PATIENCE).expect("the thread does other work, and has timers run");
        assert!(matches!(old.try_recv(), Err(mpsc::TryRecvError::Empty)), "the disk stands still");
        drop(go_on);
        assert_eq!(indexes(old.recv_timeout(PATIENCE).unwrap()), [0, 1, 2, 3]);
    }

    /// Has the runtime's thread do something, and returns where what comes of it is received.
    fn spawn<T: Send + 'static>(
        runtime: &tokio::runtime::Runtime,
        work: impl Future<Output = T> + Send + 'static,
    ) -> mpsc::Receiver<T> {
        let (sender, receiver) = mpsc::channel();
        runtime.spawn(async move {
            // A test that has failed receives nothing.
            let _failed = sender.send(work.await);
        });
        receiver
    }
}
