//! What was dropped from a log stays dropped, and what stands in its place stays (S9).

use std::path::Path;
use std::sync::Arc;

use super::mistakes::{Mistake, making};
use super::*;
use crate::fs::MemFs;
use crate::{LogIdentity, LogOptions, LogWrite, SharedLog};

/// A follower holds 1.1 to 1.3, of which a new leader has 1.1 and 1.2. It drops what it does not
/// know to be committed, is sent 1.2 again and 2.3, and restarts; dropped again, 2.3 does not come
/// back. Returns what its log holds after either restart.
fn logs_after_restarts(mistake: Option<Mistake>) -> [Vec<Lsn>; 2] {
    let fs = MemFs::new();
    let write = |writes: Vec<LogWrite>| {
        let log = open(&fs);
        let cohort = log.cohort(COHORT);
        for write in writes {
            cohort.submit(write).unwrap();
            while log.step() {}
        }
    };
    let append = |lsns: &[Lsn]| {
        let at = |lsn: &Lsn| Entry { lsn: *lsn, ..entry(lsn.seq, vec![put("k", "v")]) };
        LogWrite::Append(lsns.iter().map(at).collect())
    };
    let held = || {
        let log = making(mistake, || open(&fs));
        let entries = log.cohort(COHORT).read(0..u64::MAX, usize::MAX).unwrap();
        entries.into_iter().map(|entry| entry.lsn).collect::<Vec<_>>()
    };
    write(vec![
        append(&[Lsn::new(1, 1), Lsn::new(1, 2), Lsn::new(1, 3)]),
        LogWrite::TruncateAfter { seq: 1 },
        append(&[Lsn::new(1, 2), Lsn::new(2, 3)]),
    ]);
    let first = held();
    write(vec![LogWrite::TruncateAfter { seq: 2 }]);
    [first, held()]
}

fn open(fs: &MemFs) -> SharedLog {
    let identity =
        LogIdentity { cluster: trireme_types::ClusterId(1), node: trireme_types::NodeId(1) };
    let fs = Arc::new(fs.clone());
    SharedLog::open_stepped(fs, Path::new("/node/log"), identity, LogOptions::default()).unwrap()
}

/// What the follower must hold after either restart. [SPIN-43]
fn expected() -> [Vec<Lsn>; 2] {
    let kept = vec![Lsn::new(1, 1), Lsn::new(1, 2)];
    [[kept.clone(), vec![Lsn::new(2, 3)]].concat(), kept]
}

#[test]
fn s9_what_is_dropped_stays_dropped_and_what_takes_its_place_stays() {
    assert_eq!(logs_after_restarts(None), expected());
}

#[test]
fn s9_a_list_of_skipped_addresses_loses_what_was_appended_again() {
    let [first, _] = logs_after_restarts(Some(Mistake::SkipsAddresses));
    assert!(!first.contains(&Lsn::new(1, 2)), "1.2 is not lost: {first:?}");
}

#[test]
fn s9_without_a_record_what_was_dropped_comes_back() {
    let [_, second] = logs_after_restarts(Some(Mistake::ForgetsTruncations));
    assert!(second.contains(&Lsn::new(2, 3)), "2.3 does not come back: {second:?}");
}

/// A cohort's entries are moved to the head of the log, and two of them are dropped just when they
/// have been read for it, so that the drop is written before they are. Returns what the log holds
/// after a restart.
fn log_after_a_drop_amid_a_move(mistake: Option<Mistake>) -> Vec<u64> {
    let fs = MemFs::new();
    let options = || LogOptions { segment_bytes: 4096, ..LogOptions::default() };
    let open = || {
        let identity =
            LogIdentity { cluster: trireme_types::ClusterId(1), node: trireme_types::NodeId(1) };
        let dir = Path::new("/node/log");
        SharedLog::open_stepped(Arc::new(fs.clone()), dir, identity, options()).unwrap()
    };
    let log = open();
    let entries = |seqs: std::ops::RangeInclusive<u64>, bytes| {
        let value = "v".repeat(bytes);
        LogWrite::Append(seqs.map(|seq| entry(seq, vec![put("k", &value)])).collect())
    };
    log.cohort(COHORT).submit(entries(1..=4, 10)).unwrap();
    while log.step() {}
    log.cohort(CohortId(2)).submit(entries(1..=1, 4000)).unwrap();
    while log.step() {}
    let dropping = log.cohort(COHORT);
    let is_dropped = std::sync::atomic::AtomicBool::new(false);
    fs.observe(move |call| {
        let was_dropped = is_dropped.swap(true, std::sync::atomic::Ordering::Relaxed);
        if call.operation == crate::fs::FsOperation::Read && !was_dropped {
            dropping.submit(LogWrite::TruncateAfter { seq: 2 }).unwrap();
        }
        Ok(())
    });
    assert!(log.move_oldest(u64::MAX, |result| result.unwrap()).unwrap() > 0);
    making(mistake, || while log.step() {});
    fs.stop_observing();
    drop(log);
    let entries = open().cohort(COHORT).read(0..u64::MAX, usize::MAX).unwrap();
    entries.into_iter().map(|entry| entry.lsn.seq).collect()
}

#[test]
fn s9_what_is_dropped_between_the_reading_and_the_writing_of_a_move_stays_dropped() {
    assert_eq!(log_after_a_drop_amid_a_move(None), [1, 2]);
}

#[test]
fn s9_a_move_that_does_not_look_again_brings_back_what_was_dropped() {
    assert_eq!(log_after_a_drop_amid_a_move(Some(Mistake::MovesBlindly)), [1, 2, 3, 4]);
}
