//! openraft's log storage over a cohort's log.
//!
//! Entries, votes and commit points all go into the node's one shared log; there is no second log
//! anywhere. The cohort's log is FIFO, which is the order that openraft asks of votes and entries.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use futures::{Stream, StreamExt, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, entry::RaftEntry as _};
use prost::Message;
use tokio::sync::oneshot;
use trireme_proto::v1;
use trireme_storage::{CohortLog, LogError, LogWrite};

use super::types::{
    LogId, RaftEntry, TypeConfig, Vote, from_log, log_id, lsn, lsn_or_zero, malformed, to_log,
    vote, vote_message,
};

/// The most bytes of entries that one read for a follower returns: the size of an append.
const APPEND_BYTES_MAX: usize = 1024 * 1024;

/// The most bytes of entries that one step of applying reads.
const APPLY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// One cohort's log, as openraft sees it.
#[derive(Clone)]
pub(super) struct RaftLogStore {
    log: CohortLog,
}

impl RaftLogStore {
    /// Returns openraft's view of a cohort's log.
    pub(super) fn new(log: CohortLog) -> Self {
        Self { log }
    }

    /// Reads entries from sequence `start` on, before `end`, as many as `bytes_max` holds and at
    /// least one if there is one.
    fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<RaftEntry>> {
        let entries = self.log.read(start..end, bytes_max).map_err(io_error)?;
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
            let mut more = self.read(start, end, APPLY_BYTES_MAX)?;
            let Some(last) = more.last() else { break };
            start = lsn(last.log_id).seq + 1;
            entries.append(&mut more);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        let Some(bytes) = self.log.hard_state() else { return Ok(None) };
        Ok(Some(vote(v1::RaftVote::decode(bytes).map_err(malformed)?)))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<RaftEntry>> {
        let (start, end) = self.sequences(&(start..end));
        self.read(start, end, APPEND_BYTES_MAX)
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
                let entries = store.read(start, end, APPLY_BYTES_MAX)?;
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
        let bytes = vote_message(vote).encode_to_vec();
        let (sender, durable) = oneshot::channel();
        let done = move |result| {
            // A replica that stopped waits for nothing.
            let _stopped = sender.send(result);
        };
        self.log.submit_then(LogWrite::HardState(bytes.into()), done).map_err(io_error)?;
        let result = durable.await.map_err(|_| io::Error::other("the log has stopped"))?;
        result.map_err(io_error)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let point = LogWrite::CommitPoint(lsn_or_zero(committed));
        self.log.submit(point).map_err(io_error)?;
        Ok(())
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
        let entries = entries.into_iter().map(to_log).collect();
        let done = move |result: Result<(), LogError>| {
            callback.io_completed(result.map_err(io_error));
        };
        self.log.submit_then(LogWrite::Append(entries), done).map_err(io_error)?;
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        // Later writes of this cohort follow it into the log, so none is durable before it is.
        let seq = lsn_or_zero(last).seq;
        self.log.submit(LogWrite::TruncateAfter { seq }).map_err(io_error)?;
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.log.submit(LogWrite::Purge { upto: lsn(upto) }).map_err(io_error)?;
        Ok(())
    }
}

fn io_error(error: impl Into<LogError>) -> io::Error {
    io::Error::other(error.into())
}
