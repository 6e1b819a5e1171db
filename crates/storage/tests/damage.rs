//! Damage on disk: it is named, with its file and its place, and never taken for the end of the log;
//! except in the very last block, where nothing tells it from a write that a crash has torn.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{append, dir, identity, open_stepped, read_all, segments, small, step};
use parking_lot::Mutex;
use trireme_storage::fs::{Crash, Fs, FsOperation, MemFs, SECTOR_BYTES};
use trireme_storage::log::{LogError, LogIdentity, LogOptions, LogWrite, SharedLog};
use trireme_types::{ClusterId, CohortId, Lsn, NodeId};

/// The blocks of a log as they were written: file, position and length of each.
type Blocks = Arc<Mutex<Vec<(PathBuf, u64, usize)>>>;

/// Makes a log of a few segments and blocks, and returns what was written where.
fn make(fs: &MemFs) -> Blocks {
    let blocks: Blocks = Arc::default();
    let seen = Arc::clone(&blocks);
    fs.observe(move |call| {
        if call.operation == FsOperation::Write && call.position > 0 {
            seen.lock().push((call.path.clone(), call.position, call.bytes));
        }
        Ok(())
    });
    let log = open_stepped(fs, small()).unwrap();
    for round in 0..8 {
        for cohort in 1..=3 {
            step(&log, cohort, append(round * 3 + 1..=round * 3 + 3, 200));
        }
        step(&log, 1, LogWrite::HardState(vec![7; 40].into()));
        step(&log, 2, LogWrite::CommitPoint(Lsn::new(1, round + 1)));
    }
    drop(log);
    blocks
}

/// A spare file is renamed into its segment, so a block's path is told by its position: the blocks
/// of a segment rise, and a fall is the next segment.
fn by_segment(fs: &MemFs, blocks: &Blocks) -> Vec<(PathBuf, Vec<(u64, u64)>)> {
    let mut found: Vec<Vec<(u64, u64)>> = Vec::new();
    for (_, position, bytes) in &*blocks.lock() {
        let piece = (*position, *position + *bytes as u64);
        match found.last_mut() {
            Some(last) if last.last().is_some_and(|before| before.1 <= piece.0) => last.push(piece),
            _ => found.push(vec![piece]),
        }
    }
    let paths = segments(fs);
    assert_eq!(paths.len(), found.len());
    assert!(paths.len() >= 3, "the log has only {} segments", paths.len());
    paths.into_iter().zip(found).collect()
}

/// Returns a copy of the disk on which one bit of the file is flipped.
fn flipped(fs: &MemFs, path: &Path, position: usize) -> MemFs {
    let copy = fs.crash_with(Crash::KeepUnsynced);
    let mut bytes = copy.contents(path).unwrap();
    bytes[position] ^= 1 << (position % 8);
    copy.set_contents(path, &bytes).unwrap();
    copy
}

/// What opening a damaged log came to.
#[derive(Debug, PartialEq)]
enum Opened {
    /// The log is what it was.
    Whole,
    /// The log ends before its last block.
    Shorter,
    /// The damage was found, in this file, at a block or header that starts here.
    Corrupt(PathBuf, u64),
}

fn contents(log: &SharedLog) -> Vec<(CohortId, Vec<trireme_types::Entry>, bool)> {
    let of = |id: CohortId| {
        let log = log.cohort(id);
        (id, read_all(&log), log.hard_state().is_some())
    };
    (1..=3).map(|cohort| of(CohortId(cohort))).collect()
}

fn opened(fs: &MemFs, whole: &[(CohortId, Vec<trireme_types::Entry>, bool)]) -> Opened {
    match open_stepped(fs, small()) {
        Ok(log) if contents(&log) == whole => Opened::Whole,
        Ok(_) => Opened::Shorter,
        Err(LogError::Corrupt { path, position, .. }) => Opened::Corrupt(path, position),
        Err(error) => panic!("the wrong error: {error}"),
    }
}

/// Every byte of headers and small fields, and some of the rest.
fn probes(len: usize, blocks: &[(u64, u64)]) -> Vec<usize> {
    let mut probes: Vec<usize> = (0..64).chain((64..len).step_by(61)).collect();
    for (start, end) in blocks {
        let (start, end) = (*start as usize, *end as usize);
        probes.extend((start..start + 48).step_by(3).chain([start + 50, start + 84, end - 1]));
    }
    probes
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let fs = MemFs::new();
    let blocks = make(&fs);
    fs.stop_observing();
    // The last write was a commit point, which `contents` does not compare; one more entry makes
    // the loss of the last block visible.
    let by_segment = by_segment(&fs, &blocks);
    let log = open_stepped(&fs.crash_with(Crash::KeepUnsynced), small()).unwrap();
    let whole = contents(&log);
    let newest = by_segment.len() - 1;
    for (number, (path, blocks)) in by_segment.iter().enumerate() {
        let len = fs.contents(path).unwrap().len();
        for position in probes(len, blocks) {
            let found = opened(&flipped(&fs, path, position), &whole);
            let what = format!("byte {position} of {}: {found:?}", path.display());
            let at = position as u64;
            let hit = blocks.iter().position(|(start, end)| (*start..*end).contains(&at));
            match hit {
                _ if at < SECTOR_BYTES as u64 => {
                    assert_eq!(found, Opened::Corrupt(path.clone(), 0), "{what}");
                }
                // Behind the last block there is nothing yet.
                None => assert_eq!(found, Opened::Whole, "{what}"),
                Some(hit) if number == newest && hit == blocks.len() - 1 => {
                    assert!(matches!(found, Opened::Whole | Opened::Shorter), "{what}");
                }
                Some(hit) => {
                    let block = blocks[hit].0;
                    assert_eq!(found, Opened::Corrupt(path.clone(), block), "{what}");
                }
            }
        }
    }
}

/// The mark of a clean end says that everything before it is on disk, so damage to the last written
/// entry is damage then.
#[test]
fn after_a_clean_close_damage_at_the_end_is_damage_too() {
    let fs = MemFs::new();
    let blocks = make(&fs);
    let log = open_stepped(&fs, small()).unwrap();
    step(&log, 1, append(25..=25, 300));
    log.close().unwrap();
    let whole = contents(&log);
    fs.stop_observing();
    let by_segment = by_segment(&fs, &blocks);
    let (path, blocks) = by_segment.last().unwrap();
    let (end, before) = (blocks[blocks.len() - 1], blocks[blocks.len() - 2]);
    for position in before.0..before.1 {
        let found = opened(&flipped(&fs, path, position as usize), &whole);
        assert_eq!(found, Opened::Corrupt(path.clone(), before.0), "byte {position}");
    }
    for position in end.0..end.1 {
        let found = opened(&flipped(&fs, path, position as usize), &whole);
        assert_eq!(found, Opened::Whole, "byte {position} of the mark itself");
    }
}

#[test]
fn a_missing_segment_is_named() {
    let fs = MemFs::new();
    make(&fs);
    let paths = segments(&fs);
    for path in &paths[1..paths.len() - 1] {
        let copy = fs.crash_with(Crash::KeepUnsynced);
        copy.remove(path).unwrap();
        let error = open_stepped(&copy, small()).unwrap_err();
        let LogError::MissingSegment { number, .. } = error else { panic!("{error}") };
        assert!(path.ends_with(format!("{number:020}.log")), "{number} for {}", path.display());
    }
    // That the oldest is missing shows by the entries that are nowhere.
    let copy = fs.crash_with(Crash::KeepUnsynced);
    copy.remove(&paths[0]).unwrap();
    let error = open_stepped(&copy, small()).unwrap_err();
    assert!(error.to_string().contains("one before this is missing"), "{error}");
}

#[test]
fn a_cut_file_is_corrupt() {
    let fs = MemFs::new();
    make(&fs);
    for path in segments(&fs) {
        let bytes = fs.contents(&path).unwrap();
        for len in [0, 100, 512, 4096, bytes.len() - 1] {
            let copy = fs.crash_with(Crash::KeepUnsynced);
            copy.set_contents(&path, &bytes[..len]).unwrap();
            let error = open_stepped(&copy, small()).unwrap_err();
            let LogError::Corrupt { path: named, position, .. } = &error else { panic!("{error}") };
            assert_eq!((named, *position), (&path, len as u64), "{error}");
        }
    }
}

#[test]
fn a_later_format_is_refused_as_that() {
    let fs = MemFs::new();
    make(&fs);
    let path = segments(&fs).remove(0);
    let mut bytes = fs.contents(&path).unwrap();
    bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
    bytes[12..16].fill(0);
    let checksum = crc32fast::hash(&bytes[..SECTOR_BYTES]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    fs.set_contents(&path, &bytes).unwrap();
    let error = open_stepped(&fs, small()).unwrap_err();
    assert!(matches!(error, LogError::FutureFormat { found: 2, supported: 1, .. }), "{error}");
}

#[test]
fn another_nodes_or_clusters_log_is_refused() {
    let fs = MemFs::new();
    make(&fs);
    let LogIdentity { cluster, node } = identity();
    let strangers =
        [LogIdentity { cluster, node: NodeId(9) }, LogIdentity { cluster: ClusterId(9), node }];
    for stranger in strangers {
        let error = SharedLog::open(Arc::new(fs.clone()), dir(), stranger, small()).unwrap_err();
        let LogError::ForeignLog { found, expected, .. } = error else { panic!("{error}") };
        assert_eq!((found, expected), (identity(), stranger));
    }
}

#[test]
fn a_log_is_open_once() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, small()).unwrap();
    let error = open_stepped(&fs, small()).unwrap_err();
    assert!(matches!(error, LogError::InUse { .. }), "{error}");
    log.close().unwrap();
    open_stepped(&fs, small()).unwrap();
}

/// Entries that were whole at the start may rot later: a reader is told, not given them.
#[test]
fn a_reader_is_not_given_a_damaged_entry() {
    let fs = MemFs::new();
    let blocks = make(&fs);
    fs.stop_observing();
    let options = LogOptions { cache_bytes: 0, ..small() };
    let (path, blocks) = by_segment(&fs, &blocks).remove(0);
    let first = blocks[0].0;
    let log = open_stepped(&fs, options).unwrap();
    assert_eq!(read_all(&log.cohort(CohortId(1))).len(), 24);
    let file = fs.open(&path).unwrap();
    file.write_at(b"!", first + 48 + 36 + 5).unwrap();
    let error = log.cohort(CohortId(1)).read(1..100, usize::MAX).unwrap_err();
    let LogError::Corrupt { path: named, position, .. } = &error else { panic!("{error}") };
    assert_eq!((named, *position), (&path, first + 48), "{error}");
    // Later entries are well.
    assert_eq!(log.cohort(CohortId(1)).read(2..4, usize::MAX).unwrap().len(), 2);
}
