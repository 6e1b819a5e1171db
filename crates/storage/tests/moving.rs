//! Entries that are written again at the head of the log, so that old segments can go.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use common::{
    append, entry, open, open_stepped, read_all, segments, small, step, wait_until, write,
};
use trireme_storage::fs::{Crash, Fs, MemFs};
use trireme_storage::log::{LogBounds, LogError, LogWrite, SharedLog};
use trireme_types::{CohortId, Lsn};

/// Moves what the oldest segments hold until nothing is left to move, and returns the bytes.
fn move_all(log: &SharedLog) -> u64 {
    let mut moved = 0;
    for _ in 0..1000 {
        let bytes = log.move_oldest(1000, |result| result.unwrap()).unwrap();
        if bytes == 0 {
            return moved;
        }
        moved += bytes;
        while log.step() {}
        if log.metrics().segments == 1 {
            return moved;
        }
    }
    panic!("there is no end of what is moved");
}

/// Fills a few segments by a cohort that lets go of everything at once.
fn fill(log: &SharedLog, cohort: u64, count: u64) {
    let last = log.cohort(CohortId(cohort)).bounds().last.seq;
    for seq in last + 1..=last + count {
        step(log, cohort, append(seq..=seq, 900));
        step(log, cohort, LogWrite::Purge { upto: Lsn::new(1, seq) });
    }
}

/// Idle cohorts that purge nothing do not keep the log from being cut, and lose nothing.
#[test]
fn what_idle_cohorts_hold_is_moved_and_the_old_segments_go() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, small()).unwrap();
    for cohort in 7..=9 {
        step(&log, cohort, append(1..=3, 50));
        step(&log, cohort, LogWrite::HardState(Bytes::from_static(b"vote")));
        step(&log, cohort, LogWrite::CommitPoint(Lsn::new(1, 2)));
    }
    fill(&log, 1, 60);
    let before = log.metrics();
    assert!(before.segments > 5, "{before:?}");
    assert_eq!(log.bytes_after(CohortId(7), 1), 2 * 86);
    assert_eq!((log.bytes_after(CohortId(7), 3), log.bytes_after(CohortId(6), 0)), (0, 0));
    let moved = move_all(&log);
    let after = log.metrics();
    assert_eq!(after.segments, 1, "{after:?}");
    assert_eq!((moved, after.moved_bytes), (9 * 86, 9 * 86));
    assert_eq!(after.live_bytes, before.live_bytes);
    assert_eq!(after.entries_appended, before.entries_appended, "a moved entry is not another one");
    assert_eq!(segments(&fs).len(), 1);
    let check = |log: &SharedLog| {
        for cohort in 7..=9 {
            let log = log.cohort(CohortId(cohort));
            assert_eq!(log.bounds(), LogBounds { purged: Lsn::ZERO, last: Lsn::new(1, 3) });
            assert_eq!(LogWrite::Append(read_all(&log)), append(1..=3, 50));
            assert_eq!(log.hard_state(), Some(Bytes::from_static(b"vote")));
            assert_eq!(log.commit_point(), Lsn::new(1, 2));
        }
    };
    check(&log);
    drop(log);
    check(&open_stepped(&fs.crash_with(Crash::LoseUnsynced), small()).unwrap());
}

/// What asks to hear when all is written finds the log as short as that makes it.
#[test]
fn the_log_is_shorter_when_who_waits_for_it_hears() {
    let fs = MemFs::new();
    let log = open(&fs);
    let cohort = log.cohort(CohortId(1));
    for seq in 1..=20 {
        write(&cohort, append(seq..=seq, 900));
    }
    assert!(log.metrics().segments > 1);
    cohort.submit(LogWrite::Purge { upto: Lsn::new(1, 20) }).unwrap();
    let (heard, hears) = std::sync::mpsc::channel();
    let asked = log.clone();
    log.after_all(move |result| heard.send(result.map(|()| asked.size())).unwrap()).unwrap();
    assert_eq!(hears.recv().unwrap().unwrap(), 8192);
    assert_eq!(log.cohorts(), [CohortId(1)]);
}

/// What is dropped or replaced while its copy is on the way stays so, in the log and after a
/// restart. [SPIN-43]
#[test]
fn what_is_dropped_while_it_is_moved_stays_dropped() {
    // The write that overtakes the move, or is overtaken by it, and the entries that are left.
    let old = |seq| entry(1, seq, &format!("{seq:0>50}"));
    let new = entry(2, 3, "new");
    let cases = [
        (LogWrite::TruncateAfter { seq: 2 }, vec![old(1), old(2)]),
        (LogWrite::Purge { upto: Lsn::new(1, 2) }, vec![old(3), old(4)]),
        (LogWrite::Append(vec![new.clone()]), vec![old(1), old(2), new, old(4)]),
    ];
    for (change, left) in cases {
        for is_first in [true, false] {
            let fs = MemFs::new();
            let log = open_stepped(&fs, small()).unwrap();
            let cohort = log.cohort(CohortId(7));
            step(&log, 7, append(1..=4, 50));
            fill(&log, 1, 20);
            let start = |log: &SharedLog| log.move_oldest(u64::MAX, |result| result.unwrap());
            if is_first {
                cohort.submit(change.clone()).unwrap();
                start(&log).unwrap();
            } else {
                assert_eq!(start(&log).unwrap(), 4 * 86);
                cohort.submit(change.clone()).unwrap();
            }
            while log.step() {}
            assert_eq!(read_all(&cohort), left, "{change:?}, first: {is_first}");
            move_all(&log);
            assert_eq!(log.metrics().segments, 1, "{change:?}, first: {is_first}");
            assert_eq!(read_all(&cohort), left, "{change:?}, first: {is_first}");
            drop((log, cohort));
            let log = open_stepped(&fs, small()).unwrap();
            assert_eq!(read_all(&log.cohort(CohortId(7))), left, "{change:?}, first: {is_first}");
        }
    }
}

#[test]
fn an_entry_is_moved_once_however_often_that_is_asked_for() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, small()).unwrap();
    let cohort = log.cohort(CohortId(7));
    step(&log, 7, append(1..=4, 50));
    fill(&log, 1, 20);
    // Both read the same entries, and the second comes to be written when the first has moved them.
    assert_eq!(log.move_oldest(u64::MAX, |result| result.unwrap()).unwrap(), 4 * 86);
    assert_eq!(log.move_oldest(u64::MAX, |result| result.unwrap()).unwrap(), 4 * 86);
    while log.step() {}
    assert_eq!(log.metrics().moved_bytes, 4 * 86, "each entry was moved once");
    assert_eq!(LogWrite::Append(read_all(&cohort)), append(1..=4, 50));
}

#[test]
fn damage_in_what_is_to_be_moved_is_an_error_and_changes_nothing() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, small()).unwrap();
    step(&log, 7, append(1..=4, 50));
    fill(&log, 1, 20);
    let first = segments(&fs)[0].clone();
    let bytes = fs.contents(&first).unwrap();
    let at = bytes.windows(10).position(|window| window == [b'0'; 10]).unwrap();
    fs.open(&first).unwrap().write_at(b"1", at as u64).unwrap();
    let error = log.move_oldest(u64::MAX, |result| result.unwrap()).unwrap_err();
    assert!(matches!(error, LogError::Corrupt { .. }), "{error}");
    assert!(!log.step(), "nothing is on its way");
}

/// With its threads, a log moves entries while others write, and readers find each of them.
#[test]
fn readers_find_every_entry_while_it_is_moved() {
    let fs = MemFs::new();
    let log = open(&fs);
    let idle = log.cohort(CohortId(7));
    write(&idle, append(1..=20, 50));
    let busy = log.cohort(CohortId(1));
    let growths = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&growths);
    log.on_growth(move |bytes| {
        assert!(bytes > 8192);
        counted.fetch_add(1, Ordering::Relaxed);
    });
    for seq in 1..=200 {
        write(&busy, append(seq..=seq, 900));
        write(&busy, LogWrite::Purge { upto: Lsn::new(1, seq) });
        log.move_oldest(500, |result| result.unwrap()).unwrap();
        assert_eq!(LogWrite::Append(read_all(&idle)), append(1..=20, 50));
    }
    assert!(growths.load(Ordering::Relaxed) > 10);
    wait_until("old segments to go", || {
        log.move_oldest(u64::MAX, |result| result.unwrap()).unwrap();
        log.metrics().segments <= 2
    });
    assert!(log.metrics().moved_bytes > 20 * 86);
}
