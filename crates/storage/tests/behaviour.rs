//! What the shared log promises its users, one promise a test.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use bytes::Bytes;
use common::{
    append, dir, entry, identity, open, open_stepped, read_all, segments, small, step, wait_until,
    with_durability, write,
};
use parking_lot::{Condvar, Mutex};
use trireme_storage::fs::{Crash, Fs, FsOperation, MemFs, RealFs};
use trireme_storage::log::{
    IoId, LogBounds, LogError, LogErrorClass, LogHolder, LogOptions, LogWrite, Refused, SharedLog,
};
use trireme_types::{CohortId, Durability, Lsn};

/// A gate before each forced sync, which tests close and open.
#[derive(Default)]
struct Gate {
    is_closed: Mutex<bool>,
    changed: Condvar,
    waiting: AtomicUsize,
    syncs: AtomicUsize,
}

impl Gate {
    fn before_syncs(fs: &MemFs) -> Arc<Self> {
        let gate = Arc::new(Self::default());
        let seen = Arc::clone(&gate);
        fs.observe(move |call| {
            if call.operation == FsOperation::Sync {
                seen.pass();
            }
            Ok(())
        });
        gate
    }

    fn pass(&self) {
        let mut is_closed = self.is_closed.lock();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while *is_closed {
            self.changed.wait(&mut is_closed);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        self.syncs.fetch_add(1, Ordering::SeqCst);
    }

    fn close(&self) {
        *self.is_closed.lock() = true;
    }

    fn open(&self) {
        *self.is_closed.lock() = false;
        self.changed.notify_all();
    }

    fn wait_for_one(&self) {
        wait_until("a sync to start", || self.waiting.load(Ordering::SeqCst) == 1);
    }
}

#[test]
fn cohorts_share_one_file_and_each_has_its_own_contiguous_log() {
    let fs = MemFs::new();
    let options = LogOptions { segment_bytes: 1 << 20, ..small() };
    let log = SharedLog::open(Arc::new(fs.clone()), dir(), identity(), options).unwrap();
    for seq in 1..=50 {
        for cohort in 1..=3 {
            write(&log.cohort(CohortId(cohort)), append(seq..=seq, 20));
        }
    }
    assert_eq!(segments(&fs).len(), 1, "M11: one log file for all cohorts");
    drop(log);
    let log = open(&fs);
    assert_eq!(log.cohorts(), [CohortId(1), CohortId(2), CohortId(3)]);
    for cohort in log.cohorts() {
        let log = log.cohort(cohort);
        let seqs: Vec<u64> = read_all(&log).iter().map(|entry| entry.lsn.seq).collect();
        assert_eq!(seqs, (1..=50).collect::<Vec<_>>());
    }
}

#[test]
fn one_scan_recovers_all_cohorts_and_reads_each_byte_once() {
    let fs = MemFs::new();
    let log = open(&fs);
    for seq in 1..=100 {
        for cohort in 1..=3 {
            log.cohort(CohortId(cohort)).submit(append(seq..=seq, 100)).unwrap();
        }
    }
    log.close().unwrap();
    drop(log);
    let bytes: u64 = segments(&fs).iter().map(|path| fs.open(path).unwrap().len().unwrap()).sum();
    let read = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&read);
    fs.observe(move |call| {
        if call.operation == FsOperation::Read {
            seen.lock().push((call.path.clone(), call.position, call.bytes as u64));
        }
        Ok(())
    });
    let log = open(&fs);
    let metrics = log.metrics();
    assert_eq!((metrics.scans, metrics.scanned_bytes), (1, bytes), "M12");
    let mut read = std::mem::take(&mut *read.lock());
    read.sort();
    assert_eq!(read.iter().map(|(_, _, bytes)| bytes).sum::<u64>(), bytes);
    for pair in read.windows(2) {
        let ((path, start, len), (next_path, next_start, _)) = (&pair[0], &pair[1]);
        assert!(path != next_path || start + len <= *next_start, "bytes were read twice");
    }
    for cohort in 1..=3 {
        assert_eq!(log.cohort(CohortId(cohort)).bounds().last, Lsn::new(1, 100));
    }
}

#[test]
fn what_waits_for_one_sync_shares_the_next() {
    let fs = MemFs::new();
    let log = open(&fs);
    let gate = Gate::before_syncs(&fs);
    gate.close();
    log.cohort(CohortId(1)).submit(append(1..=1, 10)).unwrap();
    gate.wait_for_one();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut last = IoId::default();
    for seq in 1..=20 {
        for cohort in 2..=4 {
            let seen = Arc::clone(&order);
            let done = move |result: Result<(), LogError>| {
                result.unwrap();
                seen.lock().push((seq, cohort));
            };
            let log = log.cohort(CohortId(cohort));
            last = log.submit_then(append(seq..=seq, 10), done).unwrap();
            assert_eq!(log.bounds().last, Lsn::new(1, seq), "readable on return");
            assert_eq!(log.durable(), IoId(0), "nothing is durable before the sync");
        }
    }
    assert!(log.queued_bytes() > 60 * 10);
    let before = gate.syncs.load(Ordering::SeqCst);
    gate.open();
    wait_until("all to be durable", || log.cohort(CohortId(4)).durable() >= last);
    assert_eq!(gate.syncs.load(Ordering::SeqCst), before + 2, "M13: the held one and one more");
    let expected: Vec<_> = (1..=20).flat_map(|seq| (2..=4).map(move |c| (seq, c))).collect();
    wait_until("all answers", || order.lock().len() == expected.len());
    assert_eq!(*order.lock(), expected, "answers come in the order of submission");
    wait_until("the queue to be empty", || log.queued_bytes() == 0);
}

#[test]
fn an_append_replaces_one_entry_and_leaves_no_hole() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, small()).unwrap();
    step(&log, 1, append(1..=5, 3));
    step(&log, 1, LogWrite::Append(vec![entry(2, 3, "again")]));
    let cohort = log.cohort(CohortId(1));
    let expected = [
        entry(1, 1, "001"),
        entry(1, 2, "002"),
        entry(2, 3, "again"),
        entry(1, 4, "004"),
        entry(1, 5, "005"),
    ];
    assert_eq!(read_all(&cohort), expected, "P9: the entries behind it stay");
    let hole = cohort.submit(append(7..=7, 1)).unwrap_err().error;
    assert!(matches!(hole, LogError::Hole { seq: 7, last: 5, .. }), "{hole}");
    let mixed = LogWrite::Append(vec![entry(3, 6, "a"), entry(3, 8, "b")]);
    assert!(cohort.submit(mixed).is_err());
    step(&log, 1, LogWrite::Purge { upto: Lsn::new(1, 2) });
    let purged = cohort.submit(append(2..=2, 1)).unwrap_err().error;
    assert!(matches!(purged, LogError::BelowPurged { seq: 2, .. }), "{purged}");
    assert_eq!(purged.class(), LogErrorClass::Invalid);
    let below = cohort.submit(LogWrite::TruncateAfter { seq: 1 }).unwrap_err().error;
    assert!(matches!(below, LogError::BelowPurged { seq: 1, .. }), "{below}");
    let ahead = cohort.submit(LogWrite::CommitPoint(Lsn::new(1, 6))).unwrap_err().error;
    assert!(matches!(ahead, LogError::CommitPastEnd { .. }), "{ahead}");
    assert_eq!(read_all(&cohort), expected[2..], "refused writes change nothing");
    drop((log, cohort));
    let log = open_stepped(&fs, small()).unwrap();
    assert_eq!(read_all(&log.cohort(CohortId(1))), expected[2..]);
}

#[test]
fn a_purge_past_the_end_resets_the_log() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, small()).unwrap();
    step(&log, 1, append(1..=5, 3));
    let upto = Lsn::new(4, 90);
    step(&log, 1, LogWrite::Purge { upto });
    step(&log, 1, LogWrite::Append(vec![entry(4, 91, "next")]));
    for log in [log.clone(), open_stepped(&fs.crash(1), small()).unwrap()] {
        let cohort = log.cohort(CohortId(1));
        assert_eq!(cohort.bounds(), LogBounds { purged: upto, last: Lsn::new(4, 91) });
        assert_eq!(cohort.commit_point(), upto, "what is purged was committed");
        assert_eq!(cohort.lsn_at(90), Some(upto));
        assert_eq!(cohort.lsn_at(89), None);
        assert_eq!(read_all(&cohort), [entry(4, 91, "next")]);
    }
}

#[test]
fn reads_stop_at_their_bounds_from_memory_and_from_disk() {
    let fs = MemFs::new();
    let options = LogOptions { cache_bytes: 2000, ..small() };
    let log = open_stepped(&fs, options.clone()).unwrap();
    step(&log, 1, append(1..=30, 100));
    step(&log, 2, append(1..=30, 100));
    let check = |log: &SharedLog| {
        let cohort = log.cohort(CohortId(1));
        let seqs = |range, max_bytes| -> Vec<u64> {
            cohort.read(range, max_bytes).unwrap().iter().map(|entry| entry.lsn.seq).collect()
        };
        assert_eq!(seqs(5..8, usize::MAX), [5, 6, 7]);
        assert_eq!(seqs(5..20, 0), [5], "at least one");
        assert_eq!(seqs(5..20, 3 * 140), [5, 6, 7]);
        assert_eq!(seqs(29..99, usize::MAX), [29, 30]);
        assert_eq!(seqs(31..99, usize::MAX), [0; 0]);
        assert_eq!(seqs(0..3, usize::MAX), [1, 2], "from the first that there is");
        let LogWrite::Append(expected) = append(1..=30, 100) else { unreachable!() };
        assert_eq!(read_all(&cohort), expected);
    };
    check(&log);
    assert!(log.metrics().disk_read_bytes > 0, "the cache is too small for all of it");
    let cohort = log.cohort(CohortId(2));
    assert_eq!(cohort.read_cached(1..31, usize::MAX), None, "part of it is on disk");
    let newest = cohort.read(30..31, usize::MAX).unwrap();
    assert_eq!(cohort.read_cached(30..31, usize::MAX), Some(newest.clone()));
    let after = |seq| cohort.read_after_cached(Lsn::new(1, seq), 31, usize::MAX);
    assert_eq!((after(1), after(29)), (None, Some(Some(newest))));
    drop((cohort, log));
    check(&open_stepped(&fs, options).unwrap());
}

#[test]
fn entries_are_read_behind_the_very_one_that_was_named() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, small()).unwrap();
    step(&log, 1, append(1..=6, 3));
    let cohort = log.cohort(CohortId(1));
    let seqs = |previous, end| {
        let entries = cohort.read_after(previous, end, usize::MAX).unwrap();
        assert_eq!(cohort.read_after_cached(previous, end, usize::MAX), Some(entries.clone()));
        entries.map(|entries| entries.iter().map(|entry| entry.lsn.seq).collect::<Vec<_>>())
    };
    assert_eq!(seqs(Lsn::new(1, 3), 6), Some(vec![4, 5]));
    assert_eq!(seqs(Lsn::ZERO, 3), Some(vec![1, 2]));
    assert_eq!(seqs(Lsn::new(1, 6), 9), None, "nothing follows");
    step(&log, 1, LogWrite::TruncateAfter { seq: 2 });
    step(&log, 1, LogWrite::Append(vec![entry(2, 3, "a"), entry(2, 4, "b"), entry(2, 5, "c")]));
    assert_eq!(seqs(Lsn::new(1, 3), 6), None, "another entry is there now");
    assert_eq!(seqs(Lsn::new(2, 3), 6), Some(vec![4, 5]));
    step(&log, 1, LogWrite::Purge { upto: Lsn::new(2, 3) });
    assert_eq!(seqs(Lsn::new(2, 3), 6), Some(vec![4, 5]), "the purged point is known");
    assert_eq!(seqs(Lsn::new(1, 2), 6), None);
}

#[test]
fn recent_entries_are_read_from_memory() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, small()).unwrap();
    step(&log, 1, append(1..=30, 100));
    assert_eq!(read_all(&log.cohort(CohortId(1))).len(), 30);
    assert_eq!(log.metrics().disk_read_bytes, 0);
}

#[test]
fn an_idle_cohort_holds_the_oldest_segment_and_is_named() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, small()).unwrap();
    step(&log, 7, append(1..=4, 50));
    assert_eq!(log.holders(0), [], "the segment that is being written never goes");
    for seq in 1..=60 {
        step(&log, 1, append(seq..=seq, 900));
        step(&log, 1, LogWrite::Purge { upto: Lsn::new(1, seq) });
    }
    assert!(log.metrics().segments > 3);
    let held =
        |entries: u64| vec![LogHolder { cohort: CohortId(7), upto: 4, bytes: entries * (36 + 50) }];
    assert_eq!(log.holders(0), held(4), "S10");
    assert_eq!(log.holders(log.size() - 1), held(4));
    assert_eq!(log.holders(log.size()), [], "so long it may be");
    step(&log, 7, LogWrite::Purge { upto: Lsn::new(1, 3) });
    assert_eq!(log.holders(0), held(1));
    step(&log, 7, LogWrite::Purge { upto: Lsn::new(1, 4) });
    assert_eq!((log.holders(0).len(), log.metrics().segments), (0, 1));
    assert_eq!(segments(&fs).len(), 1, "the files are gone too");
    // What the removed segments had established is still known.
    drop(log);
    let log = open_stepped(&fs, small()).unwrap();
    let bounds = log.cohort(CohortId(7)).bounds();
    assert_eq!(bounds, LogBounds { purged: Lsn::new(1, 4), last: Lsn::new(1, 4) });
}

#[test]
fn a_forgotten_cohort_pins_nothing_and_starts_anew() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, small()).unwrap();
    step(&log, 7, append(1..=4, 50));
    step(&log, 7, LogWrite::HardState(Bytes::from_static(b"old")));
    for seq in 1..=20 {
        step(&log, 1, append(seq..=seq, 900));
        step(&log, 1, LogWrite::Purge { upto: Lsn::new(1, seq) });
    }
    assert_eq!(log.holders(0).len(), 1);
    log.forget_cohort(CohortId(7)).unwrap();
    while log.step() {}
    assert_eq!((log.holders(0).len(), log.metrics().segments), (0, 1));
    assert_eq!(log.cohorts(), [CohortId(1)]);
    drop(log);
    let log = open_stepped(&fs, small()).unwrap();
    assert_eq!(log.cohorts(), [CohortId(1)]);
    let cohort = log.cohort(CohortId(7));
    assert_eq!((cohort.bounds(), cohort.hard_state()), (LogBounds::default(), None));
    step(&log, 7, append(1..=1, 5));
    assert_eq!(cohort.bounds().last, Lsn::new(1, 1));
}

/// A crash before `done` brings everything back; one behind it brings nothing.
#[test]
fn a_cohort_is_forgotten_for_good_when_that_is_reported() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, small()).unwrap();
    step(&log, 7, append(1..=4, 50));
    step(&log, 7, LogWrite::Purge { upto: Lsn::new(1, 3) });
    let is_done = Arc::new(AtomicBool::new(false));
    let forget = |log: &SharedLog| {
        let is_done = Arc::clone(&is_done);
        let done = move |result: Result<(), LogError>| {
            result.unwrap();
            is_done.store(true, Ordering::Relaxed);
        };
        log.forget_cohort_then(CohortId(7), done).unwrap();
    };
    forget(&log);
    assert!(!is_done.load(Ordering::Relaxed), "nothing is on disk yet");
    drop(log);

    let log = open_stepped(&fs, small()).unwrap();
    let bounds = LogBounds { purged: Lsn::new(1, 3), last: Lsn::new(1, 4) };
    assert_eq!(log.cohort(CohortId(7)).bounds(), bounds);
    forget(&log);
    while !is_done.load(Ordering::Relaxed) {
        assert!(log.step(), "all is written, and it is not reported");
    }
    drop(log);
    assert_eq!(open_stepped(&fs, small()).unwrap().cohorts(), []);
}

#[test]
fn a_reader_keeps_the_segment_that_it_reads() {
    let fs = MemFs::new();
    let options = LogOptions { cache_bytes: 0, ..small() };
    let log = SharedLog::open(Arc::new(fs), dir(), identity(), options).unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (log, is_over) = (log.cohort(CohortId(1)), Arc::clone(&is_over));
            thread::spawn(move || {
                let mut reads = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let entries = log.read(0..u64::MAX, usize::MAX).unwrap();
                    for pair in entries.windows(2) {
                        assert_eq!(pair[0].lsn.seq + 1, pair[1].lsn.seq);
                    }
                    reads += usize::from(!entries.is_empty());
                }
                reads
            })
        })
        .collect();
    let cohort = log.cohort(CohortId(1));
    for seq in 1..=400_u64 {
        write(&cohort, append(seq..=seq, 700));
        write(&cohort, LogWrite::Purge { upto: Lsn::new(1, seq.saturating_sub(20)) });
    }
    is_over.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
    assert!(log.metrics().removed_segments > 10);
}

#[test]
fn segments_roll_under_load_from_many_threads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/log");
    let options = LogOptions { segment_bytes: 64 << 10, ..LogOptions::default() };
    let open = || SharedLog::open(Arc::new(RealFs), &path, identity(), options.clone()).unwrap();
    let log = open();
    let threads: Vec<_> = (1..=4)
        .map(|id| {
            let log = log.cohort(CohortId(id));
            thread::spawn(move || {
                for seq in 0..100 {
                    log.submit(append(seq * 5 + 1..=seq * 5 + 5, 100 * id as usize)).unwrap();
                    if seq % 10 == 9 {
                        let upto = Lsn::new(1, seq * 5 - 40);
                        write(&log, LogWrite::Purge { upto });
                    }
                }
                log.submit(LogWrite::CommitPoint(Lsn::new(1, 500))).unwrap();
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    log.close().unwrap();
    let metrics = log.metrics();
    assert!(metrics.segments + metrics.removed_segments > 5, "{metrics:?}");
    assert_eq!(metrics.entries_appended, 2000);
    drop(log);
    let log = open();
    for id in 1..=4 {
        let cohort = log.cohort(CohortId(id));
        let bounds = LogBounds { purged: Lsn::new(1, 455), last: Lsn::new(1, 500) };
        assert_eq!(cohort.bounds(), bounds);
        assert_eq!(cohort.commit_point(), Lsn::new(1, 500), "a clean close keeps it");
        let LogWrite::Append(expected) = append(456..=500, 100 * id as usize) else {
            unreachable!()
        };
        assert_eq!(read_all(&cohort), expected);
    }
}

#[test]
fn a_failed_sync_ends_the_log_for_good() {
    for operation in [FsOperation::Sync, FsOperation::Write] {
        let fs = MemFs::new();
        let log = open(&fs);
        write(&log.cohort(CohortId(1)), append(1..=1, 10));
        let told = Arc::new(Mutex::new(None));
        let teller = Arc::clone(&told);
        log.on_failure(move |error| *teller.lock() = Some(error.to_string()));
        fs.fail_nth(operation, 1);
        let answer = Arc::new(Mutex::new(None));
        let answered = Arc::clone(&answer);
        let cohort = log.cohort(CohortId(1));
        let io = cohort
            .submit_then(append(2..=2, 10), move |result| *answered.lock() = Some(result))
            .unwrap();
        wait_until("the answer", || answer.lock().is_some());
        let answer = answer.lock().take().unwrap().unwrap_err();
        assert!(matches!(answer, LogError::Poisoned(_)), "{answer}");
        assert!(told.lock().take().unwrap().contains("the disk failed"));
        // The disk would do it now, but nobody may ask it again.
        let later = cohort.submit(append(3..=3, 10)).unwrap_err().error;
        assert_eq!(later.class(), LogErrorClass::Fatal);
        assert!(cohort.durable() < io);
        assert!(matches!(log.close().unwrap_err(), LogError::Poisoned(_)));
        let late = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&late);
        log.on_failure(move |_| seen.store(true, Ordering::Relaxed));
        assert!(late.load(Ordering::Relaxed), "whoever asks later is told at once");
        drop((log, cohort));
        let log = open(&fs.crash_with(Crash::LoseUnsynced));
        assert_eq!(log.cohort(CohortId(1)).bounds().last, Lsn::new(1, 1));
    }
}

#[test]
fn a_full_disk_is_called_that() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, small()).unwrap();
    let told = Arc::new(Mutex::new(None));
    let teller = Arc::clone(&told);
    log.on_failure(move |error| *teller.lock() = Some(error.clone()));
    fs.limit_room(100);
    let later = (1..=10).find_map(|seq| {
        let refused = log.cohort(CohortId(1)).submit(append(seq..=seq, 2000)).err();
        log.step();
        refused
    });
    let error = told.lock().take().unwrap();
    assert!(matches!(error, LogError::DiskFull { .. }), "{error}");
    let later = later.unwrap().error;
    assert!(later.to_string().contains("the disk is full"), "{later}");
}

#[test]
fn a_commit_point_goes_with_the_next_write_or_soon_by_itself() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, small()).unwrap();
    step(&log, 1, append(1..=3, 10));
    let before = log.metrics();
    let cohort = log.cohort(CohortId(1));
    let point = cohort.submit(LogWrite::CommitPoint(Lsn::new(1, 2))).unwrap();
    step(&log, 2, append(1..=1, 10));
    let after = log.metrics();
    assert_eq!((after.blocks, after.syncs), (before.blocks + 1, before.syncs + 1));
    assert_eq!(cohort.durable(), point);
    drop((log, cohort));

    let log = open(&fs);
    let cohort = log.cohort(CohortId(1));
    assert_eq!(cohort.commit_point(), Lsn::new(1, 2));
    write(&cohort, LogWrite::CommitPoint(Lsn::new(1, 3)));
    assert_eq!(open(&fs.crash(1)).cohort(CohortId(1)).commit_point(), Lsn::new(1, 3));
    write(&cohort, LogWrite::CommitPoint(Lsn::new(1, 1)));
    assert_eq!(cohort.commit_point(), Lsn::new(1, 3), "never back");
    cohort.submit(LogWrite::TruncateAfter { seq: 1 }).unwrap();
    assert_eq!(cohort.commit_point(), Lsn::new(1, 1), "never ahead of the log (S8)");
}

#[test]
fn a_closed_log_is_read_but_not_written() {
    let fs = MemFs::new();
    let log = open(&fs);
    let cohort = log.cohort(CohortId(1));
    cohort.submit(append(1..=3, 10)).unwrap();
    cohort.submit(LogWrite::CommitPoint(Lsn::new(1, 3))).unwrap();
    log.close().unwrap();
    log.close().unwrap();
    assert_eq!(cohort.durable(), IoId(2), "closing leaves nothing behind");
    assert!(matches!(cohort.submit(append(4..=4, 1)).unwrap_err().error, LogError::Closed));
    assert_eq!(read_all(&cohort).len(), 3);
    let log = open(&fs.crash_with(Crash::LoseUnsynced));
    assert_eq!(log.cohort(CohortId(1)).commit_point(), Lsn::new(1, 3));
}

#[test]
fn in_memory_a_write_is_answered_before_the_disk_has_it() {
    let fs = MemFs::new();
    let is_held = Arc::new(AtomicBool::new(true));
    let options = with_durability(Durability::Memory);
    let log = SharedLog::open(Arc::new(fs.clone()), dir(), identity(), options).unwrap();
    let hold = Arc::clone(&is_held);
    fs.observe(move |call| {
        if call.operation == FsOperation::Write {
            wait_until("the disk to go on", || !hold.load(Ordering::Relaxed));
        }
        Ok(())
    });
    write(&log.cohort(CohortId(1)), append(1..=1, 10));
    is_held.store(false, Ordering::Relaxed);
    log.close().unwrap();
    assert_eq!(open(&fs).cohort(CohortId(1)).bounds().last.seq, 1);
}

#[test]
fn with_the_operating_systems_durability_nothing_is_forced() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, with_durability(Durability::Os)).unwrap();
    for seq in 1..=5 {
        step(&log, 1, append(seq..=seq, 10));
    }
    assert_eq!(log.metrics().syncs, 0);
    drop(log);
    let survivors = |crash| open(&fs.crash_with(crash)).cohort(CohortId(1)).bounds().last.seq;
    assert_eq!(survivors(Crash::KeepUnsynced), 5, "the process may die");
    assert_eq!(survivors(Crash::LoseUnsynced), 0, "the power may not");
}

#[test]
fn past_its_bound_the_queue_takes_no_more() {
    let fs = MemFs::new();
    let options = LogOptions { queue_bytes_max: 8192, ..small() };
    let log = open_stepped(&fs, options).unwrap();
    let cohort = log.cohort(CohortId(1));
    let answered = Arc::new(AtomicBool::new(false));
    let refused = (1..100).find_map(|seq| {
        let answered = Arc::clone(&answered);
        let done = move |_| answered.store(seq > 1, Ordering::Relaxed);
        cohort.submit_then(append(seq..=seq, 1000), done).err()
    });
    let Refused { error, write, done } = *refused.expect("the queue has a bound");
    assert_eq!(error.class(), LogErrorClass::Retry, "{error}");
    let last = cohort.bounds().last.seq;
    assert!(write == append(last + 1..=last + 1, 1000), "the write comes back as it was");
    assert!(!answered.load(Ordering::Relaxed));
    while log.step() {}
    answered.store(false, Ordering::Relaxed);
    cohort.submit_then(write, done).unwrap();
    while log.step() {}
    assert!(answered.load(Ordering::Relaxed), "the listener that came back serves the next try");
    assert_eq!(cohort.bounds().last.seq, last + 1);
    let large = LogWrite::HardState(vec![0; 1 << 20].into());
    assert!(matches!(cohort.submit(large).unwrap_err().error, LogError::TooLarge { .. }));
}

#[test]
fn the_last_handle_may_be_dropped_anywhere() {
    let fs = MemFs::new();
    let log = open(&fs);
    let cohort = log.cohort(CohortId(1));
    let kept = cohort.clone();
    let done = Arc::new(AtomicBool::new(false));
    let is_done = Arc::clone(&done);
    let gate = Gate::before_syncs(&fs);
    gate.close();
    cohort
        .submit_then(append(1..=1, 10), move |_| {
            drop(kept);
            is_done.store(true, Ordering::SeqCst);
        })
        .unwrap();
    drop((log, cohort));
    gate.open();
    wait_until("the answer", || done.load(Ordering::SeqCst));
    wait_until("the log to be given back", || {
        let opened = SharedLog::open(Arc::new(fs.clone()), dir(), identity(), small());
        opened.is_ok_and(|log| log.cohort(CohortId(1)).bounds().last.seq == 1)
    });
}

#[test]
fn a_panic_on_the_writers_thread_fails_the_log() {
    let log = open(&MemFs::new());
    let cohort = log.cohort(CohortId(1));
    cohort.submit_then(append(1..=1, 1), |_| std::panic::resume_unwind(Box::new(()))).unwrap();
    wait_until("the log to fail", || cohort.submit(LogWrite::Append(Vec::new())).is_err());
    assert!(log.close().unwrap_err().to_string().contains("panicked"));
}

#[test]
fn senseless_options_are_refused() {
    let fs: Arc<dyn Fs> = Arc::new(MemFs::new());
    for options in [
        LogOptions { segment_bytes: 100, ..LogOptions::default() },
        LogOptions { block_bytes_max: 1 << 30, ..LogOptions::default() },
        LogOptions { queue_bytes_max: 1, ..LogOptions::default() },
    ] {
        let opened = SharedLog::open(Arc::clone(&fs), dir(), identity(), options);
        assert!(matches!(opened.unwrap_err(), LogError::InvalidOption { .. }));
    }
}

/// A write that the system refuses with an error of its own is reported with that.
#[test]
fn the_systems_own_words_are_kept() {
    let fs = MemFs::new();
    let log = open_stepped(&fs, small()).unwrap();
    fs.observe(|call| match call.operation {
        FsOperation::Write => Err(io::Error::from_raw_os_error(122)),
        _ => Ok(()),
    });
    log.cohort(CohortId(1)).submit(append(1..=1, 1)).unwrap();
    log.step();
    let error = log.close().unwrap_err();
    assert!(error.to_string().contains("quota"), "{error}");
}
