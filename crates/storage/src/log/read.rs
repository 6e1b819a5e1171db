//! Reading entries back from segments.

use std::sync::Arc;

use bytes::Bytes;
use trireme_types::{CohortId, Entry, Lsn};

use super::LogError;
use super::format::{self, RECORD_HEADER_BYTES, RecordBody};
use super::index::Slot;
use super::segment::Segment;

/// The most bytes that one read from a segment takes, unless a single entry has more.
const READ_BYTES_MAX: usize = 1 << 20;

/// The most bytes of other cohorts between two entries that are read along, rather than reading
/// twice.
const READ_GAP_MAX: usize = 16 << 10;

/// An entry that a reader wants.
pub(super) enum Wanted {
    Ready(Entry),
    OnDisk { lsn: Lsn, segment: Arc<Segment>, slot: Slot },
}

/// Returns the wanted entries, in order, and how many bytes were read from disk for them.
/// Neighbours in a segment are read together.
pub(super) fn resolve(
    cohort: CohortId,
    wanted: Vec<Wanted>,
) -> Result<(Vec<Entry>, u64), LogError> {
    let mut entries = Vec::with_capacity(wanted.len());
    let mut disk_bytes = 0;
    let mut at = 0;
    while let Some(next) = wanted.get(at) {
        match next {
            Wanted::Ready(entry) => {
                entries.push(entry.clone());
                at += 1;
            }
            Wanted::OnDisk { segment, slot, .. } => {
                let (count, bytes) = run(&wanted[at..]);
                let start = u64::from(slot.position);
                let bytes = read_bytes(segment, start, bytes)?;
                disk_bytes += bytes.len() as u64;
                for one in &wanted[at..at + count] {
                    if let Wanted::OnDisk { lsn, slot, .. } = one {
                        entries.push(entry(cohort, *lsn, slot, segment, start, &bytes)?);
                    }
                }
                at += count;
            }
        }
    }
    Ok((entries, disk_bytes))
}

/// Returns how many of the wanted entries, from the first on, are read at once, and the bytes from
/// the first one's start to the last one's end.
fn run(wanted: &[Wanted]) -> (usize, usize) {
    let (mut count, mut start, mut end, mut number) = (0, 0, 0, 0);
    for one in wanted {
        let Wanted::OnDisk { segment, slot, .. } = one else { break };
        let position = slot.position as usize;
        let next_end = position + RECORD_HEADER_BYTES + slot.payload_bytes as usize;
        if count == 0 {
            (start, number) = (position, segment.number);
        } else {
            let is_near = position >= end && position - end <= READ_GAP_MAX;
            if segment.number != number || !is_near || next_end - start > READ_BYTES_MAX {
                break;
            }
        }
        count += 1;
        end = next_end;
    }
    (count, end - start)
}

fn read_bytes(segment: &Segment, position: u64, len: usize) -> Result<Bytes, LogError> {
    let mut bytes = vec![0; len];
    let read = segment.file.read_at(&mut bytes, position);
    let read = read.map_err(|e| LogError::io("read", &segment.path, e))?;
    if read < len {
        let end = position + read as u64;
        return Err(LogError::corrupt(&segment.path, end, "the file ends within an entry"));
    }
    Ok(Bytes::from(bytes))
}

/// Takes one entry out of `bytes`, which were read from `start`, and checks that it is whole and the
/// one that was meant.
fn entry(
    cohort: CohortId,
    lsn: Lsn,
    slot: &Slot,
    segment: &Segment,
    start: u64,
    bytes: &Bytes,
) -> Result<Entry, LogError> {
    let position = u64::from(slot.position);
    let corrupt = |what| LogError::corrupt(&segment.path, position, what);
    let within = usize::try_from(position - start).expect("a read is far below 4 GiB");
    let record_bytes = RECORD_HEADER_BYTES + slot.payload_bytes as usize;
    let record = bytes.slice(within..within + record_bytes);
    let (decoded, len) = format::decode_record(&record).map_err(corrupt)?;
    match decoded.body {
        RecordBody::Entry(kind, found)
            if found == lsn && decoded.cohort == cohort && len == record_bytes =>
        {
            Ok(Entry { lsn, kind, payload: record.slice(RECORD_HEADER_BYTES..) })
        }
        _ => Err(corrupt("another record than the entry that was written there")),
    }
}
