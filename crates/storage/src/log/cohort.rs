//! One cohort's log in the shared log.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use trireme_types::{CohortId, Entry, Lsn};

use super::format::RECORD_HEADER_BYTES;
use super::index::{CohortIndex, Found};
use super::options::{ENTRY_BYTES_MAX, HARD_STATE_BYTES_MAX};
use super::queue::{Done, Operation, OperationBody, Tail};
use super::read::{self, Wanted};
use super::{Handle, LogError};

/// A change to one cohort's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogWrite {
    /// Adds entries. One at a `seq` that the log has replaces that entry and no other
    /// (P9). One that would leave a hole, or that was purged, makes the whole append an error.
    Append(Vec<Entry>),
    /// Replaces the cohort's hard state: a few bytes of the protocol's own, such as its epoch and
    /// vote.
    HardState(Bytes),
    /// Drops every entry after `seq`, for good: none of them comes back at any restart, and what is
    /// appended at their place later lives (S9, M24). A commit point that lay among them
    /// falls back to `seq`.
    TruncateAfter {
        /// The last entry to keep.
        seq: u64,
    },
    /// Drops every entry up to and with `upto`, which the cohort's table has on disk; otherwise it
    /// is refused ([`super::SharedLog::protect`]). Past the last entry, it leaves an empty log that
    /// goes on after `upto`: a snapshot was installed.
    Purge {
        /// The last entry to drop.
        upto: Lsn,
    },
    /// Has a log that never held anything go on after `after`: its cohort begins with a table that
    /// includes all up to there, from elsewhere (RANGE-6). It gives up no entry; what brings the table
    /// back after a crash, until it is on disk, is not this log's to know.
    Begin {
        /// The last entry that the table includes.
        after: Lsn,
    },
    /// Notes how far the log is known to be committed. It goes to disk with the next other write,
    /// or by itself within 50 ms, so after a crash it may be old; it is never ahead of the log
    /// (S8). A point below the known one changes nothing.
    CommitPoint(Lsn),
}

/// A write that the log refused, and of which it did nothing. It comes back to its owner, who can
/// submit it again without having kept a copy: that is what [`LogError::QueueFull`] asks for.
pub struct Refused<D = ()> {
    /// Why.
    pub error: LogError,
    /// The write, as it was submitted.
    pub write: LogWrite,
    /// What was to be called once the write is durable; it was not called.
    pub done: D,
}

impl<D> fmt::Debug for Refused<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<D> From<Box<Refused<D>>> for LogError {
    fn from(refused: Box<Refused<D>>) -> Self {
        refused.error
    }
}

/// The number of one write of one cohort's log, counted from 1 since the log was opened. Writes
/// become durable in the order of their numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

impl fmt::Display for IoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "io{}", self.0)
    }
}

/// Where a cohort's log starts and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogBounds {
    /// The highest entry that was dropped from the front; [`Lsn::ZERO`] if none was.
    pub purged: Lsn,
    /// The last entry; equal to `purged` when the log is empty.
    pub last: Lsn,
}

impl LogBounds {
    /// Says whether the log has no entry.
    pub fn is_empty(&self) -> bool {
        self.last == self.purged
    }
}

/// What all handles of one cohort's log share.
pub(super) struct Cohort {
    pub(super) id: CohortId,
    pub(super) index: Mutex<CohortIndex>,
    /// The highest number of a durable write.
    pub(super) durable: AtomicU64,
}

impl Cohort {
    pub(super) fn new(id: CohortId, index: CohortIndex) -> Self {
        Self { id, index: Mutex::new(index), durable: AtomicU64::new(0) }
    }
}

/// One cohort's log: a logical log of entries, a hard state and a commit point, kept in the node's
/// shared log. Cheap to clone; all clones are the same log.
///
/// What was submitted is readable at once. It is durable, in the order of submission, once
/// [`CohortLog::durable`] has reached its number.
#[derive(Clone)]
pub struct CohortLog {
    pub(super) handle: Arc<Handle>,
    pub(super) cohort: Arc<Cohort>,
}

impl fmt::Debug for CohortLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CohortLog").field("cohort", &self.cohort.id).finish_non_exhaustive()
    }
}

impl CohortLog {
    /// Returns whose log it is.
    pub fn id(&self) -> CohortId {
        self.cohort.id
    }

    /// Submits a write and returns its number. The write is readable on return and will be durable
    /// later; this neither waits for the disk nor for the writer. A refused write has changed
    /// nothing, and comes back with the reason.
    pub fn submit(&self, write: LogWrite) -> Result<IoId, Box<Refused>> {
        self.enqueue(write, (), |()| None)
    }

    /// Submits a write as [`CohortLog::submit`] does. `done` is called on the writer's thread once
    /// the write is durable, or with the error that ended the log; in the order of submission over
    /// all cohorts. It must be quick and must not wait for the log. A refusal gives `done` back
    /// without having called it, so that the same write can be submitted again as it is.
    pub fn submit_then<D>(&self, write: LogWrite, done: D) -> Result<IoId, Box<Refused<D>>>
    where
        D: FnOnce(Result<(), LogError>) + Send + 'static,
    {
        self.enqueue(write, done, |done| Some(Box::new(done)))
    }

    /// Returns the number of the newest durable write; 0 if none is.
    pub fn durable(&self) -> IoId {
        IoId(self.cohort.durable.load(Ordering::Acquire))
    }

    /// Returns the entries from the first that the log has in `seqs`, in order and without a hole,
    /// until the range, the log or the room ends: at least one if there is any, and no more than
    /// `max_bytes` of them otherwise. Recent entries come from memory, others from disk, where each
    /// is checked against its checksum.
    pub fn read(&self, seqs: Range<u64>, max_bytes: usize) -> Result<Vec<Entry>, LogError> {
        let wanted = self.find(seqs, max_bytes, None);
        let (entries, disk_bytes) = read::resolve(self.cohort.id, wanted)?;
        self.handle.core.count_disk_read(disk_bytes);
        Ok(entries)
    }

    /// Returns entries as [`CohortLog::read`] does, from the one behind `previous` up to `end`, which is
    /// not included; `None` if the log does not hold `previous` there, or no entry behind it. Both are
    /// looked up at one moment, so that entries which took others' places are not taken for those that
    /// followed `previous`.
    pub fn read_after(
        &self,
        previous: Lsn,
        end: u64,
        max_bytes: usize,
    ) -> Result<Option<Vec<Entry>>, LogError> {
        let wanted = self.find(previous.seq + 1..end, max_bytes, Some(previous));
        if wanted.is_empty() {
            return Ok(None);
        }
        let (entries, disk_bytes) = read::resolve(self.cohort.id, wanted)?;
        self.handle.core.counters.disk_read_bytes.fetch_add(disk_bytes, Ordering::Relaxed);
        Ok(Some(entries))
    }

    /// Returns what [`CohortLog::read`] does if all of it is in memory; `None` if a file would have
    /// to be read.
    pub fn read_cached(&self, seqs: Range<u64>, max_bytes: usize) -> Option<Vec<Entry>> {
        all_ready(self.find(seqs, max_bytes, None))
    }

    /// Returns what [`CohortLog::read_after`] does if all of it is in memory: the outer option is
    /// `None` if a file would have to be read.
    pub fn read_after_cached(
        &self,
        previous: Lsn,
        end: u64,
        max_bytes: usize,
    ) -> Option<Option<Vec<Entry>>> {
        let wanted = self.find(previous.seq + 1..end, max_bytes, Some(previous));
        if wanted.is_empty() {
            return Some(None);
        }
        all_ready(wanted).map(Some)
    }

    /// Returns the address of the entry at `seq`, or of the purged point if it is there.
    pub fn lsn_at(&self, seq: u64) -> Option<Lsn> {
        self.cohort.index.lock().lsn_at(seq)
    }

    /// Returns where the log starts and ends, with what is not durable yet.
    pub fn bounds(&self) -> LogBounds {
        self.cohort.index.lock().bounds()
    }

    /// Returns the newest durable hard state, if there ever was one.
    pub fn hard_state(&self) -> Option<Bytes> {
        self.cohort.index.lock().hard_state()
    }

    /// Returns the highest commit point that was submitted.
    pub fn commit_point(&self) -> Lsn {
        self.cohort.index.lock().commit_point()
    }

    /// Drops everything that the log has of this cohort.
    pub(super) fn forget(&self, done: Option<Done>) -> Result<IoId, LogError> {
        let mut index = self.cohort.index.lock();
        let tail = self.handle.core.queue.tail()?;
        index.forget();
        Ok(self.push(&mut index, tail, vec![OperationBody::Forget], done))
    }

    fn enqueue<D>(
        &self,
        write: LogWrite,
        done: D,
        boxed: impl FnOnce(D) -> Option<Done>,
    ) -> Result<IoId, Box<Refused<D>>> {
        // The index and the queue are locked together, in this order everywhere, so that both see
        // the writes of a cohort in one order.
        let mut index = self.cohort.index.lock();
        let checked = check_sizes(self.cohort.id, &write)
            .and_then(|()| check_fits(self.cohort.id, &index, &write))
            .and_then(|()| self.check_persisted(&index, &write))
            .and_then(|()| self.handle.core.queue.tail());
        let tail = match checked {
            Ok(tail) => tail,
            Err(error) => return Err(Box::new(Refused { error, write, done })),
        };
        let pieces = self.change(&mut index, write);
        Ok(self.push(&mut index, tail, pieces, boxed(done)))
    }

    /// Refuses to give up entries that only the log would bring back after a crash.
    fn check_persisted(&self, index: &CohortIndex, write: &LogWrite) -> Result<(), LogError> {
        let (LogWrite::Purge { upto }, Some(points)) = (write, self.handle.core.persisted.get())
        else {
            return Ok(());
        };
        let (cohort, persisted) = (self.cohort.id, points.of(self.cohort.id));
        if upto.seq <= persisted.seq.max(index.bounds().purged.seq) || gives_up_unpersisted() {
            return Ok(());
        }
        let error = LogError::NotPersisted { cohort, upto: *upto, persisted };
        tracing::error!(%error, "a purge was refused");
        Err(error)
    }

    /// Changes the index as the write says, and returns what the writer has to put into the log.
    fn change(&self, index: &mut CohortIndex, write: LogWrite) -> Vec<OperationBody> {
        match write {
            LogWrite::Append(entries) => {
                let entries = entries.into_iter().map(|entry| {
                    let token = index.append(&entry);
                    (entry, token)
                });
                cut(entries, self.handle.core.options.block_bytes_max)
            }
            LogWrite::HardState(state) => vec![OperationBody::HardState(state)],
            LogWrite::TruncateAfter { seq } => {
                // Behind the last entry there is nothing to drop.
                let kept = index.lsn_at(seq).unwrap_or_else(|| index.last());
                index.truncate_after(kept);
                vec![OperationBody::TruncateAfter { kept, commit_point: index.commit_point() }]
            }
            LogWrite::Purge { upto } => {
                index.purge(upto);
                vec![OperationBody::Purge { upto, commit_point: index.commit_point() }]
            }
            LogWrite::Begin { after } => {
                index.purge(after);
                index.raise_commit_point(after);
                vec![OperationBody::Purge { upto: after, commit_point: index.commit_point() }]
            }
            LogWrite::CommitPoint(point) => {
                index.raise_commit_point(point);
                vec![OperationBody::CommitPoint(index.commit_point())]
            }
        }
    }

    fn push(
        &self,
        index: &mut CohortIndex,
        mut tail: Tail<'_>,
        pieces: Vec<OperationBody>,
        mut done: Option<Done>,
    ) -> IoId {
        index.submitted += 1;
        let io = index.submitted;
        let last = pieces.len() - 1;
        for (number, body) in pieces.into_iter().enumerate() {
            let is_last = number == last;
            tail.push(Operation {
                cohort: Arc::clone(&self.cohort),
                io: is_last.then_some(io),
                body,
                done: if is_last { done.take() } else { None },
            });
        }
        IoId(io)
    }

    /// Finds the entries to read. It takes hold of the segments that it names while the index still
    /// does: the writer lets go of a segment only after the index has. It finds none unless the log
    /// holds `previous`, if one is named.
    fn find(&self, seqs: Range<u64>, max_bytes: usize, previous: Option<Lsn>) -> Vec<Wanted> {
        let index = self.cohort.index.lock();
        if previous.is_some_and(|previous| index.lsn_at(previous.seq) != Some(previous)) {
            return Vec::new();
        }
        let segments = self.handle.core.segments.read();
        let first = seqs.start.max(index.bounds().purged.seq.saturating_add(1));
        let mut wanted = Vec::new();
        let mut bytes = 0;
        for seq in first..seqs.end {
            let Some(found) = index.find(seq) else { break };
            let payload_bytes = match &found {
                Found::Cached(entry) => entry.payload.len(),
                Found::OnDisk(_, slot) => slot.payload_bytes as usize,
            };
            bytes += RECORD_HEADER_BYTES + payload_bytes;
            if bytes > max_bytes && !wanted.is_empty() {
                break;
            }
            wanted.push(match found {
                Found::Cached(entry) => Wanted::Ready(entry),
                Found::OnDisk(lsn, slot) => {
                    let segment = segments.get(&slot.segment);
                    let segment = segment.expect("a segment stays while an index names it");
                    Wanted::OnDisk { lsn, segment: Arc::clone(segment), slot }
                }
            });
        }
        wanted
    }
}

#[cfg(test)]
fn gives_up_unpersisted() -> bool {
    crate::tests::mistakes::is_made(crate::tests::mistakes::Mistake::GivesUpUnpersisted)
}

#[cfg(not(test))]
const fn gives_up_unpersisted() -> bool {
    false
}

/// Returns the entries if none of them has to be read from a file.
fn all_ready(wanted: Vec<Wanted>) -> Option<Vec<Entry>> {
    let ready = wanted.into_iter().map(|wanted| match wanted {
        Wanted::Ready(entry) => Some(entry),
        Wanted::OnDisk { .. } => None,
    });
    ready.collect()
}

/// Cuts entries into pieces that each fit into a block, as far as single entries do. There is always
/// one piece, so that an append of nothing is answered in its turn too.
fn cut(entries: impl Iterator<Item = (Entry, u64)>, block_bytes_max: usize) -> Vec<OperationBody> {
    let mut pieces = Vec::new();
    let mut piece = Vec::new();
    let mut bytes = 0;
    for (entry, token) in entries {
        let record_bytes = RECORD_HEADER_BYTES + entry.payload.len();
        if bytes + record_bytes > block_bytes_max && !piece.is_empty() {
            pieces.push(OperationBody::Append(std::mem::take(&mut piece)));
            bytes = 0;
        }
        bytes += record_bytes;
        piece.push((entry, token));
    }
    pieces.push(OperationBody::Append(piece));
    pieces
}

/// Refuses what the format has no room for.
fn check_sizes(cohort: CohortId, write: &LogWrite) -> Result<(), LogError> {
    let (what, bytes, max) = match write {
        LogWrite::Append(entries) => {
            let largest = entries.iter().map(|entry| entry.payload.len()).max();
            ("an entry", largest.unwrap_or(0), ENTRY_BYTES_MAX)
        }
        LogWrite::HardState(state) => ("a hard state", state.len(), HARD_STATE_BYTES_MAX),
        _ => return Ok(()),
    };
    if bytes > max { Err(LogError::TooLarge { cohort, what, bytes, max }) } else { Ok(()) }
}

/// Refuses what does not fit the log as it is.
fn check_fits(cohort: CohortId, index: &CohortIndex, write: &LogWrite) -> Result<(), LogError> {
    let LogBounds { purged, last } = index.bounds();
    match write {
        LogWrite::Append(entries) => index.check_append(cohort, entries),
        LogWrite::TruncateAfter { seq } if *seq < purged.seq => {
            Err(LogError::BelowPurged { cohort, seq: *seq, purged })
        }
        LogWrite::Begin { after } if last != Lsn::ZERO => {
            Err(LogError::BelowPurged { cohort, seq: after.seq, purged: last })
        }
        LogWrite::CommitPoint(point) if point.seq > last.seq => {
            Err(LogError::CommitPastEnd { cohort, point: *point, last })
        }
        _ => Ok(()),
    }
}
