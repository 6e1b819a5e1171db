//! Damaged and hostile bytes in the log's files: each decoder by itself, then the whole scan.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use trireme_fuzz::{Fuzz, Verdict};
use trireme_types::{ClusterId, CohortId, Entry, EntryKind, Lsn, NodeId};

use super::format::tests::bodies;
use super::format::{
    BLOCK_HEADER_BYTES, BlockHeader, BlockPlace, FIRST_BLOCK, RECORD_HEADER_BYTES, Record,
    RecordBody, SegmentHeader, block_bytes, decode_record, encode_record,
};
use super::{LogError, LogIdentity, LogOptions, LogWrite, SharedLog};
use crate::fs::{Fs, MemFs, SECTOR_BYTES};

const SEGMENT_BYTES: usize = 8192;

fn identity() -> LogIdentity {
    LogIdentity { cluster: ClusterId(7), node: NodeId(2) }
}

fn dir() -> &'static Path {
    Path::new("/node/log")
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes: SEGMENT_BYTES as u64,
        block_bytes_max: 4096,
        ..LogOptions::default()
    }
}

/// The kind of a restatement's record.
const RESTATEMENT: u8 = 7;

/// Makes a record's checksum right. What a restatement says to have been in segments that are gone
/// costs memory for each entry, as it would in a log that was written so; it is kept to what the test
/// has memory for, or past what any log has.
fn repair_record(bytes: &mut [u8]) {
    if bytes.len() >= RECORD_HEADER_BYTES + 8 && bytes[8] == RESTATEMENT {
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or([0; 8]));
        let (purged, last) = (u64_at(28), u64_at(RECORD_HEADER_BYTES));
        let count = last.saturating_sub(purged);
        if (10_000..1 << 33).contains(&count) {
            let last = purged + count % 10_000;
            bytes[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + 8]
                .copy_from_slice(&last.to_le_bytes());
        }
    }
    if bytes.len() >= RECORD_HEADER_BYTES {
        let len = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        let end = RECORD_HEADER_BYTES.saturating_add(len).min(bytes.len());
        let checksum = crc32fast::hash(&bytes[4..end]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
    }
}

#[test]
fn fuzz_log_record() {
    let valid = bodies().into_iter().map(|(body, payload)| {
        let mut bytes = Vec::new();
        encode_record(&mut bytes, CohortId(5), &body, payload);
        bytes
    });
    let repair = |bytes: &mut Vec<u8>| repair_record(bytes);
    Fuzz::new("fuzz_log_record", valid).repair(&repair).run(|bytes| {
        let Ok((record, len)) = decode_record(bytes) else { return Verdict::Refused };
        let Record { cohort, body, payload } = &record;
        let mut again = Vec::new();
        encode_record(&mut again, *cohort, body, payload);
        let (read, _) = decode_record(&again).expect("what was written is read");
        assert_eq!((read.cohort, &read.body), (*cohort, body));
        // A restatement's payload is its body, in which any byte but 0 stands for "yes".
        if !matches!(body, RecordBody::Restatement(_)) {
            assert_eq!(&read.payload, payload);
        }
        assert!(len <= bytes.len());
        Verdict::Accepted
    });
}

#[test]
fn fuzz_log_segment_header() {
    let header = SegmentHeader { identity: identity(), number: 4, len: 8192, first_block: 17 };
    let repair = |bytes: &mut Vec<u8>| {
        bytes.resize(SECTOR_BYTES, 0);
        repair_segment_header(bytes);
    };
    Fuzz::new("fuzz_log_segment_header", [header.encode()]).repair(&repair).run(|bytes| {
        let Ok(sector) = bytes.try_into() else { return Verdict::Refused };
        let Ok(header) = SegmentHeader::decode(sector) else { return Verdict::Refused };
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
        Verdict::Accepted
    });
}

fn repair_segment_header(sector: &mut [u8]) {
    sector[0..8].copy_from_slice(b"TRIRELOG");
    sector[8..12].copy_from_slice(&1_u32.to_le_bytes());
    sector[12..16].fill(0);
    let checksum = crc32fast::hash(&sector[..SECTOR_BYTES]);
    sector[12..16].copy_from_slice(&checksum.to_le_bytes());
}

/// Makes the checksums of a segment right: of its header, and of every block and record whose
/// lengths lie within it.
fn repair_segment(bytes: &mut [u8], number: u64) {
    if bytes.len() < SECTOR_BYTES {
        return;
    }
    // The identity is no decoder's matter; a strange one only ends the scan early.
    bytes[16..24].copy_from_slice(&identity().cluster.0.to_le_bytes());
    bytes[24..32].copy_from_slice(&identity().node.0.to_le_bytes());
    bytes[32..40].copy_from_slice(&number.to_le_bytes());
    let len = bytes.len() as u64;
    bytes[40..48].copy_from_slice(&len.to_le_bytes());
    repair_segment_header(bytes);
    let mut at = SECTOR_BYTES;
    while at + BLOCK_HEADER_BYTES <= bytes.len() && bytes[at..at + 4] == *b"TBLK" {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap_or([0; 4]));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or([0; 8]));
        let room = bytes.len() - at - BLOCK_HEADER_BYTES;
        let body = (u32_at(at + 32) as usize).min(room);
        let header = BlockHeader {
            number: u64_at(at + 8),
            synced: u64_at(at + 16),
            opening: u64_at(at + 24),
            body_bytes: 0,
            body_checksum: 0,
            records: u32_at(at + 40),
            is_end: u32_at(at + 44) & 1 != 0,
        };
        let end = (at + block_bytes(body)).min(bytes.len());
        let mut block = bytes[at..at + BLOCK_HEADER_BYTES + body].to_vec();
        let mut record = BLOCK_HEADER_BYTES;
        while record + RECORD_HEADER_BYTES <= block.len() {
            repair_record(&mut block[record..]);
            let len =
                u32::from_le_bytes(block[record + 4..record + 8].try_into().unwrap_or_default());
            record = record.saturating_add(RECORD_HEADER_BYTES).saturating_add(len as usize);
        }
        let place = BlockPlace { identity: identity(), segment: number, position: at as u64 };
        header.seal(&mut block, place);
        let count = block.len().min(end - at);
        bytes[at..at + count].copy_from_slice(&block[..count]);
        at = end;
    }
}

/// Returns the segments of a log that has every kind of record, one behind the other.
fn log_of_every_kind() -> Vec<u8> {
    let fs = MemFs::new();
    let log = SharedLog::open_stepped(Arc::new(fs.clone()), dir(), identity(), options());
    let log = log.expect("a new log opens");
    let entry = |seq, kind| {
        let payload = vec![b'p'; 200].into();
        Entry { lsn: Lsn::new(1, seq), kind, payload }
    };
    let entries = |from, to| {
        LogWrite::Append((from..=to).map(|seq| entry(seq, EntryKind::Commands)).collect())
    };
    let step = |cohort, write| {
        log.cohort(CohortId(cohort)).submit(write).expect("the write fits the log");
        while log.step() {}
    };
    for round in 0..4 {
        for cohort in 1..=2 {
            step(cohort, entries(round * 4 + 1, round * 4 + 4));
        }
        step(1, LogWrite::HardState(vec![7; 20].into()));
        step(2, LogWrite::CommitPoint(Lsn::new(1, round + 1)));
    }
    step(2, LogWrite::TruncateAfter { seq: 10 });
    step(2, LogWrite::Purge { upto: Lsn::new(1, 5) });
    step(3, entries(1, 2));
    log.forget_cohort(CohortId(3)).expect("a cohort can be forgotten");
    while log.step() {}
    drop(log);
    let names = fs.list(dir()).expect("the folder is there");
    let names = names.into_iter().filter(|name| name.ends_with(".log"));
    names.flat_map(|name| fs.contents(&dir().join(name)).expect("the segment is there")).collect()
}

fn segment_path(number: u64) -> PathBuf {
    dir().join(format!("{number:020}.log"))
}

/// What a log holds of one cohort: its entries, its hard state and its commit point.
type Held = (CohortId, Option<Vec<Entry>>, Option<bytes::Bytes>, Lsn);

fn contents(log: &SharedLog) -> Vec<Held> {
    let of = |id| {
        let log = log.cohort(id);
        let entries = log.read(0..u64::MAX, usize::MAX);
        (id, entries.ok(), log.hard_state(), log.commit_point())
    };
    log.cohorts().into_iter().map(of).collect()
}

/// The scan takes any bytes, names what is wrong with its file and position, and comes to the same
/// when it is repeated; what it has accepted can be written to.
#[test]
fn fuzz_log_recovery() {
    let valid = log_of_every_kind();
    assert!(valid.len() >= 2 * SEGMENT_BYTES, "the log has one segment only");
    let repair = |bytes: &mut Vec<u8>| {
        let pieces = bytes.chunks_mut(SEGMENT_BYTES);
        pieces.zip(1..).for_each(|(piece, number)| repair_segment(piece, number));
    };
    // The scan reads a mebibyte at a time, and clears a torn end as much at a time.
    Fuzz::new("fuzz_log_recovery", [valid]).repair(&repair).memory(16 << 20, 512).run(|bytes| {
        let fs = MemFs::new();
        fs.create_dir_all(dir()).expect("a folder can be made");
        for (piece, number) in bytes.chunks(SEGMENT_BYTES).zip(1..).take(8) {
            fs.set_contents(&segment_path(number), piece).expect("a file can be made");
        }
        let open = || SharedLog::open_stepped(Arc::new(fs.clone()), dir(), identity(), options());
        let log = match open() {
            Ok(log) => log,
            Err(LogError::Corrupt { path, position, .. }) => {
                let len =
                    fs.contents(&path).expect("damage is named with a file that is there").len();
                assert!(position <= len as u64, "damage at {position} of {len}");
                return Verdict::Refused;
            }
            Err(_) => return Verdict::Refused,
        };
        let found = contents(&log);
        drop(log);
        let log = open().expect("what was opened opens again");
        assert_eq!(contents(&log), found);
        // What the log says of itself can be continued.
        for (cohort, ..) in found {
            let log = log.cohort(cohort);
            let Some(seq) = log.bounds().last.seq.checked_add(1) else { continue };
            let lsn = Lsn::new(u64::MAX, seq);
            let next = Entry { lsn, kind: EntryKind::NoOp, payload: bytes::Bytes::new() };
            log.submit(LogWrite::Append(vec![next])).ok();
        }
        while log.step() {}
        Verdict::Accepted
    });
}

#[test]
fn first_blocks_stand_behind_the_header() {
    assert_eq!(FIRST_BLOCK, SECTOR_BYTES as u64, "as `repair_segment` takes it");
}
