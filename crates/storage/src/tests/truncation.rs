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
