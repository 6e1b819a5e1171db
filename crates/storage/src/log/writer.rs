//! The one writer of a log.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use trireme_types::{CohortId, Durability, Entry, PATH};

use super::cohort::Cohort;
use super::format::{
    self, BLOCK_HEADER_BYTES, BlockHeader, BlockPlace, FIRST_BLOCK, RECORD_HEADER_BYTES,
    RecordBody, SegmentHeader,
};
use super::ledger::Ledger;
use super::queue::{Ending, MovedEntry, Operation, OperationBody, Work};
use super::segment::Segment;
use super::{Core, LogError};

/// What a cached entry costs in memory besides its payload.
const CACHED_ENTRY_BYTES: usize = 96;

/// A block's buffer is given back when it has grown past this.
const BUFFER_BYTES_KEPT: usize = 16 << 20;

/// Where a writer goes on: after what is in the log.
pub(super) struct WriterStart {
    pub(super) segment: Arc<Segment>,
    pub(super) position: u64,
    pub(super) next_block: u64,
    pub(super) opening: u64,
    /// Whether the segment holds no block yet, and so must first say what older ones established.
    pub(super) is_restatement_due: bool,
}

/// The one writer of a log: it puts what waits into a block, writes and syncs it, and says so.
///
/// It alone knows where the log ends. Everything it owns is touched by nobody else, so it holds no
/// lock while it waits for the disk.
pub(super) struct Writer {
    core: Arc<Core>,
    segment: Arc<Segment>,
    /// Where the next block goes: a multiple of the sector size that no acknowledged byte reaches.
    position: u64,
    next_block: u64,
    /// Every block up to this one is known to be on disk.
    synced_block: u64,
    opening: u64,
    is_restatement_due: bool,
    was_spare_asked: bool,
    is_over: bool,
    buffer: Vec<u8>,
    /// The cached entries that are on disk, oldest first, so that the oldest leave first.
    cached: VecDeque<CachedEntry>,
    cached_bytes: usize,
}

struct CachedEntry {
    cohort: Arc<Cohort>,
    seq: u64,
    token: u64,
    bytes: usize,
}

impl Writer {
    pub(super) fn new(core: Arc<Core>, start: WriterStart) -> Self {
        Self {
            core,
            segment: start.segment,
            position: start.position,
            next_block: start.next_block,
            // Local recovery has synced what it found.
            synced_block: start.next_block - 1,
            opening: start.opening,
            is_restatement_due: start.is_restatement_due,
            was_spare_asked: false,
            is_over: false,
            buffer: Vec::new(),
            cached: VecDeque::new(),
            cached_bytes: 0,
        }
    }

    /// Writes what is submitted until the log ends or fails.
    pub(super) fn run(&mut self) {
        let _watch = PanicWatch(Arc::clone(&self.core));
        while !self.is_over {
            let work = self.core.queue.wait();
            self.work(work);
        }
    }

    /// Writes one block of what waits now. Says whether there was anything to do.
    pub(super) fn step(&mut self) -> bool {
        if self.is_over {
            return false;
        }
        match self.core.queue.poll() {
            Some(work) => {
                self.work(work);
                true
            }
            None => false,
        }
    }

    fn work(&mut self, work: Work) {
        let (result, in_flight, goes_on) = match work {
            Work::Write(mut operations) => {
                let result = self.write_operations(&mut operations);
                (result, operations, true)
            }
            Work::End(Ending::Close) => (self.write_end(), Vec::new(), false),
            Work::End(Ending::Abandon) => (Ok(()), Vec::new(), false),
        };
        match result {
            Ok(()) if goes_on => return,
            Ok(()) => {}
            Err(error) => {
                tracing::error!(%error, "the log failed and takes no more writes");
                self.core.queue.fail(error, in_flight);
            }
        }
        self.is_over = true;
        self.core.queue.set_ended();
    }

    fn write_operations(&mut self, operations: &mut Vec<Operation>) -> Result<(), LogError> {
        let durability = self.core.options.durability;
        if durability == Durability::Memory {
            complete(operations);
        }
        let body_bytes = operations.iter().map(Operation::record_bytes).sum();
        self.make_room(body_bytes)?;
        let places = self.write_block(operations, false)?;
        if durability == Durability::Fsync {
            self.sync()?;
        }
        self.locate(operations, &places);
        // Before anybody hears of the writes, so that the log is as short then as they make it.
        self.remove_dead_segments()?;
        complete(operations);
        self.core.queue.release(operations);
        operations.clear();
        self.evict();
        Ok(())
    }

    /// Ends the log with the mark that everything before it is on disk.
    fn write_end(&mut self) -> Result<(), LogError> {
        if self.synced_block + 1 < self.next_block {
            self.sync()?;
        }
        self.make_room(0)?;
        self.write_block(&mut [], true)?;
        self.sync()
    }

    /// Makes sure that the segment has room for a block with these records, in a new segment if
    /// need be.
    fn make_room(&mut self, body_bytes: usize) -> Result<(), LogError> {
        let restated = if self.is_restatement_due { self.restatement_bytes() } else { 0 };
        let needed = format::block_bytes(body_bytes + restated) as u64;
        if self.position + needed <= self.segment.len {
            self.ask_for_spare();
            return Ok(());
        }
        self.start_segment(body_bytes)
    }

    fn start_segment(&mut self, body_bytes: usize) -> Result<(), LogError> {
        // With no block of an older segment in doubt, damage in any but the last segment is always
        // damage, and the end of the log is always in the last one; whatever the durability.
        if self.synced_block + 1 < self.next_block {
            self.sync()?;
        }
        let block_bytes = format::block_bytes(body_bytes + self.restatement_bytes()) as u64;
        let len = self.core.options.segment_bytes.max(FIRST_BLOCK + block_bytes);
        let spare = self.core.keeper.take_spare(len)?;
        let header = SegmentHeader {
            identity: self.core.identity,
            number: u64::from(self.segment.number) + 1,
            len,
            first_block: self.next_block,
        };
        let segment = Arc::new(self.core.folder.make_segment(spare, header)?);
        self.core.keeper.spare_is_named();
        let size = {
            let mut segments = self.core.segments.write();
            segments.insert(segment.number, Arc::clone(&segment));
            segments.values().map(|segment| segment.len).sum()
        };
        self.core.growth_listeners.read().iter().for_each(|listener| listener(size));
        tracing::debug!(segment = segment.number, "the log goes on in another segment");
        self.segment = segment;
        self.position = FIRST_BLOCK;
        self.is_restatement_due = true;
        self.was_spare_asked = false;
        Ok(())
    }

    /// Asks for the next segment's file once this one is half full.
    fn ask_for_spare(&mut self) {
        if !self.was_spare_asked && self.position > self.segment.len / 2 {
            self.core.keeper.ask_for_spare(self.core.options.segment_bytes);
            self.was_spare_asked = true;
        }
    }

    fn restatement_bytes(&self) -> usize {
        let restatements = self.core.ledger.lock().restatements();
        restatements.iter().map(|(_, state)| state.record_bytes()).sum()
    }

    /// Writes these operations as one block, and returns where in the segment the records of each
    /// start.
    fn write_block(
        &mut self,
        operations: &mut [Operation],
        is_end: bool,
    ) -> Result<Vec<u32>, LogError> {
        let (places, records) = self.fill(operations);
        let header = BlockHeader {
            number: self.next_block,
            synced: self.synced_block,
            opening: self.opening,
            body_bytes: 0,
            body_checksum: 0,
            records,
            is_end,
        };
        let place = BlockPlace {
            identity: self.core.identity,
            segment: u64::from(self.segment.number),
            position: self.position,
        };
        header.seal(&mut self.buffer, place);
        let written = self.segment.file.write_at(&self.buffer, self.position);
        written.map_err(|e| LogError::io("write to", &self.segment.path, e))?;
        let bytes = self.buffer.len() as u64;
        let counters = &self.core.counters;
        counters.blocks.fetch_add(1, Ordering::Relaxed);
        counters.records.fetch_add(u64::from(records), Ordering::Relaxed);
        counters.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.position += bytes;
        self.next_block += 1;
        self.is_restatement_due = false;
        if self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = Vec::new();
        }
        Ok(places)
    }

    /// Puts the records of these operations into the buffer, behind room for the block's header and
    /// behind the restatements if they are due, and notes in the ledger what the log holds with
    /// them.
    fn fill(&mut self, operations: &mut [Operation]) -> (Vec<u32>, u32) {
        self.buffer.clear();
        self.buffer.resize(BLOCK_HEADER_BYTES, 0);
        let mut ledger = self.core.ledger.lock();
        let mut records = 0;
        if self.is_restatement_due {
            for (cohort, state) in ledger.restatements() {
                let body = RecordBody::Restatement(state);
                format::encode_record(&mut self.buffer, cohort, &body, &[]);
                records += 1;
            }
        }
        let mut places = Vec::with_capacity(operations.len());
        for Operation { cohort, body, .. } in operations {
            let place = self.position + self.buffer.len() as u64;
            places.push(u32::try_from(place).expect("segments are kept below 4 GiB"));
            let id = cohort.id;
            let buffer = &mut self.buffer;
            records += 1;
            match body {
                OperationBody::Append(entries) => {
                    records -= 1;
                    for (entry, _) in entries {
                        let body = RecordBody::Entry(entry.kind, entry.lsn);
                        format::encode_record(buffer, id, &body, &entry.payload);
                        let payload_bytes = u32::try_from(entry.payload.len())
                            .expect("an entry above a few MiB was refused");
                        ledger.put(id, entry.lsn.seq, self.segment.number, payload_bytes);
                        records += 1;
                    }
                }
                OperationBody::HardState(state) => {
                    format::encode_record(buffer, id, &RecordBody::HardState, state);
                    ledger.set_hard_state(id, state.clone());
                }
                OperationBody::TruncateAfter { kept, commit_point } => {
                    format::encode_record(buffer, id, &RecordBody::TruncateAfter(*kept), &[]);
                    ledger.truncate_after(id, kept.seq, *commit_point);
                }
                OperationBody::Purge { upto, commit_point } => {
                    format::encode_record(buffer, id, &RecordBody::Purge(*upto), &[]);
                    ledger.purge(id, *upto, *commit_point);
                }
                OperationBody::CommitPoint(point) => {
                    format::encode_record(buffer, id, &RecordBody::CommitPoint(*point), &[]);
                    ledger.set_commit_point(id, *point);
                }
                OperationBody::Forget => {
                    format::encode_record(buffer, id, &RecordBody::Forget, &[]);
                    ledger.forget(id);
                }
                OperationBody::Move(moved) => {
                    records -= 1;
                    let place = (self.segment.number, self.position);
                    records += move_entries(buffer, &mut ledger, id, place, moved);
                }
            }
        }
        (places, records)
    }

    fn sync(&mut self) -> Result<(), LogError> {
        let started = Instant::now();
        let synced = self.segment.file.sync_data();
        synced.map_err(|e| LogError::io("sync", &self.segment.path, e))?;
        self.core.counters.syncs.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.core.counters.last_sync_micros.store(micros, Ordering::Relaxed);
        tracing::trace!(target: PATH, micros, "path: forced");
        self.synced_block = self.next_block - 1;
        Ok(())
    }

    /// Tells the cohorts' indexes where their entries lie, which may leave memory from now on.
    fn locate(&mut self, operations: &[Operation], places: &[u32]) {
        for (operation, place) in operations.iter().zip(places) {
            let entries = match &operation.body {
                OperationBody::Append(entries) => entries,
                OperationBody::Move(moved) => {
                    self.relocate(&operation.cohort, moved);
                    continue;
                }
                _ => continue,
            };
            let count = entries.len() as u64;
            self.core.counters.entries_appended.fetch_add(count, Ordering::Relaxed);
            let mut index = operation.cohort.index.lock();
            let mut position = *place;
            for (entry, token) in entries {
                let seq = entry.lsn.seq;
                index.locate(seq, *token, self.segment.number, position);
                let record_bytes = RECORD_HEADER_BYTES + entry.payload.len();
                position += u32::try_from(record_bytes).expect("an entry has at most a few MiB");
                let bytes = CACHED_ENTRY_BYTES + entry.payload.len();
                self.cached_bytes += bytes;
                let cohort = Arc::clone(&operation.cohort);
                self.cached.push_back(CachedEntry { cohort, seq, token: *token, bytes });
            }
        }
    }

    /// Tells the cohort's index where its moved entries lie.
    fn relocate(&self, cohort: &Cohort, moved: &[MovedEntry]) {
        let mut bytes = 0;
        let mut index = cohort.index.lock();
        for moved in moved {
            let Some(position) = moved.to else { continue };
            index.relocate(moved.entry.lsn.seq, moved.from, (self.segment.number, position));
            bytes += moved.record_bytes() as u64;
        }
        self.core.counters.moved_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes the oldest written entries out of memory until the rest is within its bound.
    fn evict(&mut self) {
        while self.cached_bytes > self.core.options.cache_bytes
            && let Some(oldest) = self.cached.pop_front()
        {
            self.cached_bytes -= oldest.bytes;
            oldest.cohort.index.lock().evict(oldest.seq, oldest.token);
        }
    }

    /// Removes the oldest segments that hold nothing which still counts.
    fn remove_dead_segments(&mut self) -> Result<(), LogError> {
        let dead = self.dead_segments();
        if dead.is_empty() {
            return Ok(());
        }
        // What supersedes their entries must be on disk before they go, whatever the durability.
        if self.synced_block + 1 < self.next_block {
            self.sync()?;
        }
        let mut segments = self.core.segments.write();
        for segment in &dead {
            segments.remove(&segment.number);
        }
        drop(segments);
        let count = dead.len() as u64;
        self.core.counters.removed_segments.fetch_add(count, Ordering::Relaxed);
        self.core.keeper.remove(dead.iter().map(|segment| segment.path.clone()).collect());
        Ok(())
    }

    /// Returns the segments before the first that still counts, oldest first.
    fn dead_segments(&self) -> Vec<Arc<Segment>> {
        let ledger = self.core.ledger.lock();
        let segments = self.core.segments.read();
        segments
            .values()
            .take_while(|at| at.number != self.segment.number && ledger.is_dead(at.number))
            .cloned()
            .collect()
    }
}

/// Fails the log when the writer panics, so that nobody waits for it for ever.
struct PanicWatch(Arc<Core>);

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.queue.fail(LogError::WriterPanicked, Vec::new());
            self.0.queue.set_ended();
        }
    }
}

/// Writes these entries of a cohort again, but for those that the log has dropped or replaced since
/// they were read: what is written last counts, and they must not count again. Returns how many were
/// written. `place` is the segment and where in it the block starts.
fn move_entries(
    buffer: &mut Vec<u8>,
    ledger: &mut Ledger,
    cohort: CohortId,
    (segment, block): (u32, u64),
    moved: &mut [MovedEntry],
) -> u32 {
    let mut records = 0;
    for moved in moved {
        let Entry { lsn, kind, payload } = &moved.entry;
        if !ledger.is_in(cohort, lsn.seq, moved.from.0) && !moves_blindly() {
            continue;
        }
        let position = block + buffer.len() as u64;
        moved.to = Some(u32::try_from(position).expect("segments are kept below 4 GiB"));
        format::encode_record(buffer, cohort, &RecordBody::Entry(*kind, *lsn), payload);
        let payload_bytes =
            u32::try_from(payload.len()).expect("an entry above a few MiB was refused");
        ledger.put(cohort, lsn.seq, segment, payload_bytes);
        records += 1;
    }
    records
}

#[cfg(test)]
fn moves_blindly() -> bool {
    crate::tests::mistakes::is_made(crate::tests::mistakes::Mistake::MovesBlindly)
}

#[cfg(not(test))]
const fn moves_blindly() -> bool {
    false
}

/// Publishes that these operations are durable, and tells whoever waits.
fn complete(operations: &mut [Operation]) {
    for Operation { cohort, io, body, done } in operations {
        if let Some(io) = io.take() {
            if let OperationBody::HardState(state) = body {
                cohort.index.lock().set_hard_state(state.clone(), io);
            }
            cohort.durable.store(io, Ordering::Release);
        }
        if let Some(done) = done.take() {
            done(Ok(()));
        }
    }
}
