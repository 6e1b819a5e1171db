//! Giving room back: who holds the oldest segments, and moving what they hold on.
//!
//! Segments go oldest first, so one entry that still counts holds its own segment and all later
//! ones, whatever its cohort. Mostly its owner gives it up: [`SharedLog::holders`] names the owners.
//! An owner that cannot, because its entry is not committed, not applied or not on the disk of its
//! table yet, has the entry written again at the head of the log ([`SharedLog::move_oldest`]), as
//! raft-engine's rewrite and Bitcask's merge do. Only the place of the entry changes, and nothing
//! that its owner sees.
//!
//! # Why a moved entry is safe
//!
//! The record is that of the entry, as it was first written, and means the same: this entry is at
//! this `seq`. It may be written only while the physical log holds the entry. The writer decides that
//! by the ledger, which is exact up to its own position:
//!
//! * A truncation, a purge, a replacement or a forgetting that is in the log already has taken the
//!   entry out of the ledger, and it is left out. One that still waits comes behind the moved record,
//!   and drops that as it would have dropped the first.
//! * Between the old place and the new one nothing in the log drops the entry, or the ledger would
//!   not have it. So recovery comes to the same state from both, or from the new one alone.
//! * The old segment goes only once nothing in it counts, which it does until the new record is in
//!   the log, and the removal syncs the log first. A crash before it leaves both records, or the old
//!   one.

use std::sync::Arc;

use trireme_types::CohortId;

use super::cohort::Cohort;
use super::queue::{MovedEntry, Operation, OperationBody};
use super::read::{self, Wanted};
use super::segment::Segment;
use super::{LogError, LogHolder, SharedLog};

impl SharedLog {
    /// Returns the bytes of all segments, each at its whole length.
    pub fn size(&self) -> u64 {
        let segments = self.handle.core.segments.read();
        segments.values().map(|segment| segment.len).sum()
    }

    /// Returns the cohorts that keep the log from being as short as this: those with entries in the
    /// segments that would have to go (S10). The segment that is being written never goes.
    pub fn holders(&self, target_bytes: u64) -> Vec<LogHolder> {
        let ledger = self.handle.core.ledger.lock();
        let segments = self.handle.core.segments.read();
        let mut size: u64 = segments.values().map(|segment| segment.len).sum();
        let mut newest = None;
        for segment in segments.values().take(segments.len().saturating_sub(1)) {
            if size <= target_bytes {
                break;
            }
            size -= segment.len;
            newest = Some(segment.number);
        }
        drop(segments);
        newest.map_or_else(Vec::new, |newest| ledger.holders(newest))
    }

    /// Returns the bytes of a cohort's entries after `seq`.
    pub fn bytes_after(&self, cohort: CohortId, seq: u64) -> u64 {
        self.handle.core.ledger.lock().bytes_after(cohort, seq)
    }

    /// Has `done` called as that of a write is, once everything that was submitted before is in the
    /// log and the segments that it made useless are gone from it.
    pub fn after_all(
        &self,
        done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) -> Result<(), LogError> {
        let nothing = Operation {
            cohort: Arc::new(Cohort::new(CohortId(0), Default::default())),
            io: None,
            body: OperationBody::Move(Vec::new()),
            done: Some(Box::new(done)),
        };
        self.handle.core.queue.tail()?.push(nothing);
        Ok(())
    }

    /// Has entries of the oldest segment with any that count written again at the head of the log:
    /// about as many as these bytes hold. Once a segment has none left, it is removed. Returns how
    /// many bytes of entries are on their way; 0 if nothing can be moved now. `done` is called as
    /// that of a write is, once they are in the log, and not at all if nothing is moved.
    ///
    /// Reads from the disk. Fails if what is to be moved is damaged, or if too much waits for the
    /// writer.
    pub fn move_oldest(
        &self,
        max_bytes: u64,
        done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) -> Result<u64, LogError> {
        let Some((segment, entries)) = self.oldest_entries(max_bytes) else { return Ok(0) };
        let mut pieces = Vec::new();
        for (cohort, seqs) in entries {
            pieces.extend(self.pieces(cohort, &segment, &seqs)?);
        }
        let bytes = pieces.iter().map(|piece| piece.record_bytes() as u64).sum();
        if let Some(last) = pieces.last_mut() {
            last.done = Some(Box::new(done));
            let mut tail = self.handle.core.queue.tail()?;
            pieces.into_iter().for_each(|piece| tail.push(piece));
        }
        Ok(bytes)
    }

    /// Returns the oldest segment with entries that count, unless it is being written, and what of
    /// them to move next.
    #[expect(clippy::type_complexity, reason = "a segment and, by cohort, sequences")]
    fn oldest_entries(&self, max_bytes: u64) -> Option<(Arc<Segment>, Vec<(CohortId, Vec<u64>)>)> {
        let ledger = self.handle.core.ledger.lock();
        let segments = self.handle.core.segments.read();
        let closed = segments.values().take(segments.len().saturating_sub(1));
        let oldest = closed.into_iter().find(|segment| !ledger.is_dead(segment.number))?;
        Some((Arc::clone(oldest), ledger.entries_in(oldest.number, max_bytes)))
    }

    /// Reads these entries of a cohort from a segment. One that lies elsewhere now, or nowhere, is
    /// left out: a write that waits has dropped or replaced it.
    fn pieces(
        &self,
        cohort: CohortId,
        segment: &Arc<Segment>,
        seqs: &[u64],
    ) -> Result<Vec<Operation>, LogError> {
        let log = self.cohort_as_it_is(cohort);
        let (wanted, places): (Vec<_>, Vec<_>) = {
            let index = log.index.lock();
            let slots = seqs.iter().filter_map(|seq| index.slot_in(*seq, segment.number));
            let wanted = slots.map(|(lsn, slot)| {
                let segment = Arc::clone(segment);
                (Wanted::OnDisk { lsn, segment, slot }, (slot.segment, slot.position))
            });
            wanted.unzip()
        };
        let (entries, disk_bytes) = read::resolve(cohort, wanted)?;
        self.handle.core.count_disk_read(disk_bytes);
        let mut pieces = Vec::new();
        let mut piece = Vec::new();
        let mut bytes = 0;
        for (entry, from) in entries.into_iter().zip(places) {
            let moved = MovedEntry { entry, from, to: None };
            if bytes + moved.record_bytes() > self.handle.core.options.block_bytes_max
                && !piece.is_empty()
            {
                pieces.push(std::mem::take(&mut piece));
                bytes = 0;
            }
            bytes += moved.record_bytes();
            piece.push(moved);
        }
        if !piece.is_empty() {
            pieces.push(piece);
        }
        let operation = |piece| Operation {
            cohort: Arc::clone(&log),
            io: None,
            body: OperationBody::Move(piece),
            done: None,
        };
        Ok(pieces.into_iter().map(operation).collect())
    }
}
