//! Format 1 stays readable: the folder `fixtures/v1` was written once and is never written again.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;

use bytes::Bytes;
use common::{DIR, append, entry, open_stepped, read_all, step};
use trireme_storage::fs::{Crash, Fs, MemFs};
use trireme_storage::log::{LogBounds, LogOptions, LogWrite};
use trireme_types::{CohortId, Entry, EntryKind, Lsn};

fn options() -> LogOptions {
    LogOptions { segment_bytes: 4096, block_bytes_max: 4096, ..LogOptions::default() }
}

/// Writes a log with everything in it that format 1 knows.
fn write_all_there_is(fs: &MemFs) {
    let log = open_stepped(fs, options()).unwrap();
    let mut barrier = entry(1, 4, "");
    barrier.kind = EntryKind::NoOp;
    let mut members = entry(1, 5, "members");
    members.kind = EntryKind::Protocol;
    step(&log, 1, append(1..=3, 40));
    step(&log, 1, LogWrite::Append(vec![barrier, members]));
    step(&log, 2, append(1..=9, 300));
    step(&log, 3, append(1..=2, 5));
    step(&log, 1, LogWrite::HardState(Bytes::from_static(b"vote")));
    step(&log, 2, LogWrite::TruncateAfter { seq: 6 });
    step(&log, 2, LogWrite::Append(vec![entry(2, 7, "in place of the dropped")]));
    step(&log, 2, LogWrite::CommitPoint(Lsn::new(1, 6)));
    log.close().unwrap();
    let log = open_stepped(fs, options()).unwrap();
    log.forget_cohort(CohortId(3)).unwrap();
    while log.step() {}
    step(&log, 1, LogWrite::Purge { upto: Lsn::new(1, 2) });
    step(&log, 1, LogWrite::Append(vec![entry(2, 3, "replaced")]));
    step(&log, 4, append(1..=4, 700));
    step(&log, 4, LogWrite::Purge { upto: Lsn::new(5, 80) });
    log.close().unwrap();
}

fn fixture() -> MemFs {
    let disk = MemFs::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1");
    for file in fs::read_dir(folder).unwrap() {
        let file = file.unwrap();
        let path = Path::new(DIR).join(file.file_name());
        disk.set_contents(&path, &fs::read(file.path()).unwrap()).unwrap();
    }
    disk
}

#[test]
fn format_1_is_read() {
    let log = open_stepped(&fixture(), options()).unwrap();
    assert_eq!(log.cohorts(), [CohortId(1), CohortId(2), CohortId(4)]);
    let first = log.cohort(CohortId(1));
    let bounds = LogBounds { purged: Lsn::new(1, 2), last: Lsn::new(1, 5) };
    assert_eq!(first.bounds(), bounds);
    assert_eq!(first.hard_state().unwrap(), "vote");
    assert_eq!(first.commit_point(), Lsn::new(1, 2));
    let entries: Vec<(EntryKind, Lsn, Bytes)> = read_all(&first)
        .into_iter()
        .map(|Entry { kind, lsn, payload }| (kind, lsn, payload))
        .collect();
    let expected = [
        (EntryKind::Commands, Lsn::new(2, 3), "replaced".into()),
        (EntryKind::NoOp, Lsn::new(1, 4), "".into()),
        (EntryKind::Protocol, Lsn::new(1, 5), "members".into()),
    ];
    assert_eq!(entries, expected);
    let second = log.cohort(CohortId(2));
    assert_eq!(second.commit_point(), Lsn::new(1, 6));
    let LogWrite::Append(mut expected) = append(1..=6, 300) else { unreachable!() };
    expected.push(entry(2, 7, "in place of the dropped"));
    assert_eq!(read_all(&second), expected);
    let fourth = Lsn::new(5, 80);
    let bounds = LogBounds { purged: fourth, last: fourth };
    assert_eq!(log.cohort(CohortId(4)).bounds(), bounds);
}

/// While format 1 is what is written, the same writes make the same bytes.
#[test]
fn format_1_is_written() {
    let disk = MemFs::new();
    write_all_there_is(&disk);
    let written = disk.crash_with(Crash::LoseUnsynced);
    let expected = fixture();
    assert_eq!(common::segments(&written), common::segments(&expected));
    for path in common::segments(&written) {
        let (written, expected) = (written.contents(&path), expected.contents(&path));
        assert!(written.unwrap() == expected.unwrap(), "{} differs", path.display());
    }
}
