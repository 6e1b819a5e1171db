//! Local recovery: one scan of the physical log that brings every cohort's log back (M12).

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use trireme_types::CohortId;

use super::format::{
    self, BLOCK_BODY_MAX, BlockHeader, BlockPlace, FIRST_BLOCK, FORMAT, HeaderError, RecordBody,
    Restatement, SegmentHeader,
};
use super::index::{CohortIndex, Slot};
use super::segment::{NO_SEGMENT, Segment, SegmentFolder};
use super::writer::WriterStart;
use super::{LogError, LogIdentity};
use crate::fs::SECTOR_BYTES;

/// How many bytes the scan reads at a time.
const SCAN_BYTES: usize = 1 << 20;

/// After how many bytes the scan says how far it is: about once a second on a slow disk.
const PROGRESS_BYTES: u64 = 128 << 20;

/// The most entries that a cohort's log may have: far more than memory holds.
const COHORT_ENTRIES_MAX: u64 = 1 << 32;

/// What the scan found.
pub(super) struct Recovered {
    pub(super) cohorts: BTreeMap<CohortId, CohortIndex>,
    pub(super) segments: BTreeMap<u32, Arc<Segment>>,
    pub(super) start: WriterStart,
    pub(super) scanned_bytes: u64,
    /// Whether the log was closed cleanly, or is new.
    pub(super) was_closed: bool,
}

/// Reads the log in this folder once, from the oldest segment to the end of the log, and makes the
/// rest of the last segment ready to be written to. A log that is not there is made.
pub(super) fn recover(
    folder: &SegmentFolder,
    identity: LogIdentity,
    segment_bytes: u64,
) -> Result<Recovered, LogError> {
    let numbers = folder.list()?;
    if numbers.is_empty() {
        return create(folder, identity, segment_bytes);
    }
    let mut scan = Scan::new(identity);
    let mut segments = Vec::new();
    for number in numbers {
        segments.push(scan.open_segment(folder, number)?);
    }
    scan.next_block = segments[0].1.first_block;
    let mut position = FIRST_BLOCK;
    for (at, (segment, _)) in segments.iter().enumerate() {
        let next = segments.get(at + 1).map(|(_, header)| header);
        let before = scan.scanned_bytes;
        position = scan.segment(segment, next)?;
        if scan.scanned_bytes / PROGRESS_BYTES > before / PROGRESS_BYTES {
            let (read, of, bytes) = (at + 1, segments.len(), scan.scanned_bytes);
            tracing::info!(read, of, bytes, "reading the log: so many segments");
        }
    }
    let (last, last_header) = segments.last().expect("there is at least one segment");
    let is_restatement_due = scan.next_block == last_header.first_block;
    let start = WriterStart {
        segment: Arc::clone(last),
        position,
        next_block: scan.next_block,
        opening: scan.opening + 1,
        is_restatement_due,
    };
    let cohorts = scan.finish(&segments[0].0)?;
    let segments = segments.into_iter().map(|(segment, _)| (segment.number, segment)).collect();
    let Scan { scanned_bytes, was_closed, .. } = scan;
    Ok(Recovered { cohorts, segments, start, scanned_bytes, was_closed })
}

fn create(
    folder: &SegmentFolder,
    identity: LogIdentity,
    segment_bytes: u64,
) -> Result<Recovered, LogError> {
    let header = SegmentHeader { identity, number: 1, len: segment_bytes, first_block: 1 };
    let segment = Arc::new(folder.make_segment(folder.make_spare(segment_bytes)?, header)?);
    let start = WriterStart {
        segment: Arc::clone(&segment),
        position: FIRST_BLOCK,
        next_block: 1,
        opening: 1,
        is_restatement_due: true,
    };
    let segments = BTreeMap::from([(segment.number, segment)]);
    Ok(Recovered { cohorts: BTreeMap::new(), segments, start, scanned_bytes: 0, was_closed: true })
}

/// A scan under way: what the log says up to here.
struct Scan {
    identity: LogIdentity,
    cohorts: BTreeMap<CohortId, CohortIndex>,
    next_block: u64,
    opening: u64,
    was_closed: bool,
    scanned_bytes: u64,
}

impl Scan {
    fn new(identity: LogIdentity) -> Self {
        Self {
            identity,
            cohorts: BTreeMap::new(),
            next_block: 0,
            opening: 0,
            was_closed: false,
            scanned_bytes: 0,
        }
    }

    /// Opens a segment and checks its header. A segment gets its name only once its header and its
    /// length are durable, so whatever is wrong with them is damage.
    fn open_segment(
        &mut self,
        folder: &SegmentFolder,
        number: u64,
    ) -> Result<(Arc<Segment>, SegmentHeader), LogError> {
        let path = folder.path(number);
        let file = folder.fs.open(&path).map_err(|e| LogError::io("open", &path, e))?;
        let mut sector = [0; SECTOR_BYTES];
        let read = file.read_at(&mut sector, 0).map_err(|e| LogError::io("read", &path, e))?;
        self.scanned_bytes += read as u64;
        if read < SECTOR_BYTES {
            return Err(LogError::corrupt(&path, read as u64, "the segment's header is cut off"));
        }
        let header = SegmentHeader::decode(&sector).map_err(|error| match error {
            HeaderError::NotASegment => LogError::corrupt(&path, 0, "not a segment of a log"),
            HeaderError::Checksum => {
                LogError::corrupt(&path, 0, "the checksum of the segment's header is wrong")
            }
            HeaderError::Future(found) => {
                LogError::FutureFormat { path: path.clone(), found, supported: FORMAT }
            }
        })?;
        if header.identity != self.identity {
            let (found, expected) = (header.identity, self.identity);
            return Err(LogError::ForeignLog { path, found, expected });
        }
        let short = u32::try_from(number).ok().filter(|short| *short != NO_SEGMENT);
        let Some(short) = short.filter(|_| header.number == number && header.first_block > 0)
        else {
            let what = format!("it says that it is segment {}", header.number);
            return Err(LogError::corrupt(&path, 0, what));
        };
        let len = file.len().map_err(|e| LogError::io("measure", &path, e))?;
        if len < header.len {
            let what = format!("the file ends there, and should have {} bytes", header.len);
            return Err(LogError::corrupt(&path, len, what));
        }
        Ok((Arc::new(Segment { number: short, path, file, len: header.len }), header))
    }

    /// Reads the blocks of one segment, and returns where they end. `next` is the header of the
    /// segment after it.
    fn segment(
        &mut self,
        segment: &Segment,
        next: Option<&SegmentHeader>,
    ) -> Result<u64, LogError> {
        let mut reader = Reader::new(segment);
        let mut position = FIRST_BLOCK;
        let mut is_first = true;
        while let Some(header) = self.block(&mut reader, position)? {
            let block = reader.bytes(position, header.block_bytes())?;
            self.records(segment, position, &header, block, is_first)?;
            self.next_block += 1;
            self.opening = header.opening;
            self.was_closed = header.is_end;
            position += header.block_bytes() as u64;
            is_first = false;
        }
        match next {
            Some(next) if next.first_block == self.next_block => {}
            Some(next) => {
                let what = format!(
                    "there is no whole block {}, though the next segment starts with block {}",
                    self.next_block, next.first_block
                );
                return Err(LogError::corrupt(&segment.path, position, what));
            }
            None => self.end(segment, &mut reader, position)?,
        }
        self.scanned_bytes += reader.read_bytes;
        Ok(position)
    }

    /// Returns the header of the block at this position, if a whole one that continues the log is
    /// there.
    fn block(
        &self,
        reader: &mut Reader<'_>,
        position: u64,
    ) -> Result<Option<BlockHeader>, LogError> {
        let left = reader.segment.len.saturating_sub(position);
        if left < SECTOR_BYTES as u64 {
            return Ok(None);
        }
        let place = self.place(reader.segment, position);
        let Some(header) = BlockHeader::decode(reader.bytes(position, SECTOR_BYTES)?, place) else {
            return Ok(None);
        };
        let continues = header.number == self.next_block && header.opening >= self.opening;
        let fits =
            header.body_bytes as usize <= BLOCK_BODY_MAX && header.block_bytes() as u64 <= left;
        if !continues || !fits {
            return Ok(None);
        }
        let is_whole = header.is_whole(reader.bytes(position, header.block_bytes())?);
        Ok(is_whole.then_some(header))
    }

    /// Decides what the missing block at `position` of the last segment means. It is the torn tail
    /// of the log, unless anything behind it says that it had been synced; then it is damage, and
    /// ending the log here would lose acknowledged writes. A torn tail is overwritten with zeros, so
    /// that nothing of it can ever be taken for a block again.
    fn end(
        &self,
        segment: &Segment,
        reader: &mut Reader<'_>,
        position: u64,
    ) -> Result<(), LogError> {
        let mut at = position;
        let mut dirty_until = position;
        while at < segment.len {
            let left = usize::try_from(segment.len - at).unwrap_or(usize::MAX);
            let sector = reader.bytes(at, left.min(SECTOR_BYTES))?;
            if sector.iter().any(|byte| *byte != 0) {
                dirty_until = at + sector.len() as u64;
                let later = BlockHeader::decode(sector, self.place(segment, at));
                if let Some(later) = later.filter(|later| later.synced >= self.next_block) {
                    let what = format!(
                        "block {} is damaged: it had been synced when block {} was written",
                        self.next_block, later.number
                    );
                    return Err(LogError::corrupt(&segment.path, position, what));
                }
            }
            at += sector.len() as u64;
        }
        if dirty_until > position {
            let bytes = dirty_until - position;
            let path = segment.path.display();
            tracing::warn!(%path, position, bytes, "the log ends in a torn block; it is dropped");
            clear(segment, position, dirty_until)?;
        }
        // What was read may have been in the system's memory only. It is about to be relied upon.
        segment.file.sync_data().map_err(|e| LogError::io("sync", &segment.path, e))
    }

    fn place(&self, segment: &Segment, position: u64) -> BlockPlace {
        BlockPlace { identity: self.identity, segment: u64::from(segment.number), position }
    }

    fn records(
        &mut self,
        segment: &Segment,
        position: u64,
        header: &BlockHeader,
        block: &[u8],
        is_first_block: bool,
    ) -> Result<(), LogError> {
        let end = format::BLOCK_HEADER_BYTES + header.body_bytes as usize;
        let mut at = format::BLOCK_HEADER_BYTES;
        for _ in 0..header.records {
            let start = position + at as u64;
            let corrupt = |what| LogError::corrupt(&segment.path, start, what);
            let (record, len) = format::decode_record(&block[at..end]).map_err(corrupt)?;
            let place = u32::try_from(start).map_err(|_| corrupt("past the end of a segment"))?;
            if !is_first_block && matches!(record.body, RecordBody::Restatement(_)) {
                return Err(corrupt("a restatement that does not start a segment"));
            }
            self.apply(segment.number, place, &record).map_err(corrupt)?;
            at += len;
        }
        if at != end {
            let what = "bytes follow the last record of a block";
            return Err(LogError::corrupt(&segment.path, position + at as u64, what));
        }
        Ok(())
    }

    /// Does to the cohort's log what the record says, or says why that cannot be.
    fn apply(
        &mut self,
        segment: u32,
        position: u32,
        record: &format::Record<'_>,
    ) -> Result<(), &'static str> {
        let is_known = self.cohorts.contains_key(&record.cohort);
        let index = self.cohorts.entry(record.cohort).or_default();
        match &record.body {
            RecordBody::Entry(_, lsn) => {
                if lsn.seq <= index.bounds().purged.seq || lsn.seq - 1 > index.last_seq() {
                    return Err("an entry that does not fit its cohort's log");
                }
                let payload_bytes =
                    u32::try_from(record.payload.len()).map_err(|_| "too large an entry")?;
                index.put(lsn.seq, Slot { epoch: lsn.epoch, segment, position, payload_bytes });
            }
            RecordBody::HardState => {
                index.set_hard_state(Bytes::copy_from_slice(record.payload), 0);
            }
            #[cfg(test)]
            RecordBody::TruncateAfter(kept) if naive::replays() => naive::skip(index, *kept),
            //= SPIN-43
            RecordBody::TruncateAfter(kept) => index.truncate_after(*kept),
            RecordBody::Purge(upto) => index.purge(*upto),
            RecordBody::CommitPoint(point) => index.raise_commit_point(*point),
            RecordBody::Forget => {
                self.cohorts.remove(&record.cohort);
            }
            RecordBody::Restatement(state) => restate(index, is_known, state)?,
        }
        Ok(())
    }

    /// Checks that every entry which counts was found, and returns the cohorts.
    fn finish(&mut self, oldest: &Segment) -> Result<BTreeMap<CohortId, CohortIndex>, LogError> {
        let mut cohorts = std::mem::take(&mut self.cohorts);
        for (cohort, index) in &mut cohorts {
            #[cfg(test)]
            naive::drop_skipped(index);
            if let Some(seq) = index.first_missing() {
                let what = format!(
                    "entry {seq} of cohort {cohort} is in no segment: one before this is missing"
                );
                return Err(LogError::corrupt(&oldest.path, 0, what));
            }
            // Drops nothing, and clamps a commit point that lies past the last entry (S8).
            index.truncate_after(index.last());
        }
        Ok(cohorts)
    }
}

/// Takes over what a segment restates of a cohort, or compares it with what the segments before it
/// have said.
fn restate(
    index: &mut CohortIndex,
    is_known: bool,
    state: &Restatement,
) -> Result<(), &'static str> {
    if is_known {
        let is_same = index.bounds().purged == state.purged
            && index.last_seq() == state.last
            && index.hard_state() == state.hard_state;
        let differs = "a segment restates a cohort differently than the segments before it";
        return if is_same { Ok(()) } else { Err(differs) };
    }
    let count = state.last.checked_sub(state.purged.seq);
    if count.is_none_or(|count| count > COHORT_ENTRIES_MAX) {
        return Err("a restatement of a log that cannot be");
    }
    index.restate(state);
    Ok(())
}

/// Overwrites a torn tail with zeros. Nothing is written behind it before that is durable; a crash
/// on the way leaves a torn tail again.
fn clear(segment: &Segment, from: u64, to: u64) -> Result<(), LogError> {
    let zeros = vec![0; SCAN_BYTES];
    let mut at = from;
    while at < to {
        let count = usize::try_from(to - at).unwrap_or(usize::MAX).min(zeros.len());
        let written = segment.file.write_at(&zeros[..count], at);
        written.map_err(|e| LogError::io("clear the end of", &segment.path, e))?;
        at += count as u64;
    }
    segment.file.sync_data().map_err(|e| LogError::io("sync", &segment.path, e))
}

/// Reads a segment from its first block on, each byte once, as long as positions only rise.
struct Reader<'a> {
    segment: &'a Segment,
    /// The bytes read and not passed yet.
    buffer: Vec<u8>,
    /// Where in the segment the buffer starts.
    start: u64,
    read_bytes: u64,
}

impl<'a> Reader<'a> {
    fn new(segment: &'a Segment) -> Self {
        Self { segment, buffer: Vec::new(), start: FIRST_BLOCK, read_bytes: 0 }
    }

    /// Returns `len` bytes from `position`, which is not before that of the last call. The caller
    /// has checked that the segment has them.
    fn bytes(&mut self, position: u64, len: usize) -> Result<&[u8], LogError> {
        let mut at = usize::try_from(position - self.start).expect("a segment is below 4 GiB");
        if self.buffer.len() < at + len {
            self.buffer.drain(..at);
            self.start = position;
            at = 0;
            self.fill(len)?;
        }
        Ok(&self.buffer[at..at + len])
    }

    fn fill(&mut self, len: usize) -> Result<(), LogError> {
        let path = &self.segment.path;
        let filled = self.buffer.len();
        let next = self.start + filled as u64;
        let left = usize::try_from(self.segment.len - next).unwrap_or(usize::MAX);
        let count = (len - filled).max(SCAN_BYTES).min(left);
        self.buffer.resize(filled + count, 0);
        let read = self.segment.file.read_at(&mut self.buffer[filled..], next);
        let read = read.map_err(|e| LogError::io("read", path, e))?;
        self.read_bytes += read as u64;
        if read < count {
            let what = "the file ended while it was read";
            return Err(LogError::corrupt(path, next + read as u64, what));
        }
        Ok(())
    }
}

/// What local recovery must not do with what was dropped from a log (S9).
#[cfg(test)]
mod naive {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use trireme_types::Lsn;

    use super::CohortIndex;
    use crate::tests::mistakes::{Mistake, is_made};

    thread_local! {
        static SKIPPED: RefCell<BTreeSet<Lsn>> = const { RefCell::new(BTreeSet::new()) };
    }

    pub(super) fn replays() -> bool {
        is_made(Mistake::SkipsAddresses) || is_made(Mistake::ForgetsTruncations)
    }

    /// Puts the addresses after `kept` on a list, and leaves the entries where they are.
    pub(super) fn skip(index: &CohortIndex, kept: Lsn) {
        let dropped = (kept.seq + 1..=index.last_seq()).filter_map(|seq| index.lsn_at(seq));
        SKIPPED.with_borrow_mut(|skipped| skipped.extend(dropped));
    }

    /// Ends the log before the first entry whose address is on the list.
    pub(super) fn drop_skipped(index: &mut CohortIndex) {
        let skipped = SKIPPED.take();
        let bounds = index.bounds();
        let is_skipped = |seq: &u64| index.lsn_at(*seq).is_some_and(|lsn| skipped.contains(&lsn));
        let first = (bounds.purged.seq + 1..=bounds.last.seq).find(is_skipped);
        if is_made(Mistake::SkipsAddresses)
            && let Some(kept) = first.and_then(|seq| index.lsn_at(seq - 1))
        {
            index.truncate_after(kept);
        }
    }
}
