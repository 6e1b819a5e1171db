//! The upkeep of a log whose cohorts do as they are asked, or cannot.

use std::path::Path;

use bytes::Bytes;
use tempfile::TempDir;
use trireme_coordinator::recipes::invitations::AllInvitations;
use trireme_storage::fs::MemFs;
use trireme_storage::{CohortTable, LogIdentity, LogOptions, LogWrite, TableOptions};
use trireme_types::{
    ClusterId, Command, CommandBatch, Condition, Entry, EntryKind, KeyRange, Lsn, NodeId,
    Operation, RangeMap,
};

use super::*;
use crate::readers::Readers;
use crate::routes::{NodeDirectory, Routes};
use crate::testing::FakeReplica;

const SEGMENT: u64 = 64 * 1024;
const MAX: u64 = LOG_BYTES_MIN;

/// A log and tables, with cohorts that give up what they are asked for.
struct Fixture {
    maintenance: Maintenance,
    _folder: TempDir,
}

impl Fixture {
    /// Hosts so many cohorts, from 1 on.
    fn new(cohorts: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let identity = LogIdentity { cluster: ClusterId(7), node: NodeId(1) };
        let options =
            LogOptions { segment_bytes: SEGMENT, block_bytes_max: 8192, ..LogOptions::default() };
        let fs = Arc::new(MemFs::new());
        let log = SharedLog::open(fs, Path::new("/log"), identity, options).unwrap();
        let tables = Tables::open(folder.path(), TableOptions::default()).unwrap();
        log.protect(&tables);
        let directory = Arc::<NodeDirectory>::default();
        let (backpressure, readers) = (Backpressure::new(u64::MAX), Readers::start().unwrap());
        let map = RangeMap::from_splits(&[]).unwrap();
        let hosted = (1..=cohorts).map(CohortId).map(|cohort| {
            let table = tables.cohort(cohort, KeyRange::all()).unwrap();
            let replica = FakeReplica::new(1, cohort.0);
            replica.keep_log(log.cohort(cohort));
            let mut descriptor = map.ranges()[0].clone();
            descriptor.cohort = cohort;
            let hosted = HostedCohort::start(
                descriptor,
                replica,
                table,
                directory.clone(),
                backpressure.clone(),
                readers.clone(),
            );
            (cohort, hosted)
        });
        let routes = Routes {
            map: map.clone(),
            configs: BTreeMap::new(),
            invitations: AllInvitations::new(),
            hosted: hosted.collect(),
        };
        let router = Arc::new(Router::new(ClusterId(7), directory.clone(), routes));
        let limits = LogLimits::new(MAX, SEGMENT).unwrap();
        let progress = Progress { stuck_after: Duration::ZERO, ..Progress::default() };
        let maintenance = Maintenance { log, tables, router, backpressure, limits, progress };
        Self { maintenance, _folder: folder }
    }

    fn table(&self, cohort: u64) -> CohortTable {
        let cohort = CohortId(cohort);
        self.maintenance.tables.cohort(cohort, KeyRange::all()).unwrap()
    }

    /// Adds an entry of so many bytes to a cohort's log, and returns it.
    fn append(&self, cohort: u64, bytes: usize) -> Entry {
        let log = self.maintenance.log.cohort(CohortId(cohort));
        let (key, value) = (Bytes::from_static(b"key"), Bytes::from(vec![7; bytes]));
        let operation = Operation::Put { key, value, condition: Condition::None };
        let commands = vec![Command { request: None, operation }];
        let entry = Entry {
            lsn: Lsn::new(1, log.bounds().last.seq + 1),
            kind: EntryKind::Commands,
            payload: CommandBatch { commands, clock: 0 }.encode(),
        };
        log.submit(LogWrite::Append(vec![entry.clone()])).unwrap();
        entry
    }

    /// Adds applied entries of 4 KiB to these cohorts in turn until the log is past its limit.
    async fn fill(&self, cohorts: std::ops::RangeInclusive<u64>) {
        while self.maintenance.log.size() <= MAX {
            for cohort in cohorts.clone() {
                let entry = self.append(cohort, 4096);
                self.table(cohort).apply(&[entry]).unwrap();
            }
            self.maintenance.written().await;
        }
    }
}

fn entries(fixture: &Fixture, cohort: u64) -> Vec<Entry> {
    let log = fixture.maintenance.log.cohort(CohortId(cohort));
    log.read(0..u64::MAX, usize::MAX).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_cohorts_let_go_in_one_round_and_with_one_flush() {
    let fixture = Fixture::new(200);
    fixture.fill(1..=200).await;
    fixture.maintenance.shorten().await;
    let (log, tables) = (&fixture.maintenance.log, &fixture.maintenance.tables);
    assert!(log.size() <= fixture.maintenance.limits.release_above(), "{}", log.size());
    assert_eq!(tables.metrics().flushes, 1);
    assert_eq!(log.metrics().moved_bytes, 0, "who can let go need not be moved");
}

/// One cohort has no quorum, one has no replica here, and some are idle: the others' segments
/// go all the same, and nothing of theirs is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cohorts_that_cannot_let_go_do_not_hold_the_log_of_the_others() {
    let fixture = Fixture::new(4);
    let stuck: Vec<Entry> = (0..5).map(|_| fixture.append(4, 1000)).collect();
    let left: Vec<Entry> = (0..5).map(|_| fixture.append(9, 1000)).collect();
    for _ in 0..5 {
        fixture.fill(1..=3).await;
        fixture.maintenance.shorten().await;
        let size = fixture.maintenance.log.size();
        assert!(size <= fixture.maintenance.limits.release_above(), "{size}");
    }
    assert!(fixture.maintenance.log.metrics().moved_bytes > 0);
    assert_eq!((entries(&fixture, 4), entries(&fixture, 9)), (stuck, left));
    assert_eq!(fixture.maintenance.backpressure.refusal(CohortId(4)), None, "it holds little");
}

/// All of the segments that are to go are its own, so that the others are asked for more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cohort_that_fills_the_oldest_segments_alone_does_not_keep_the_log_long() {
    let fixture = Fixture::new(2);
    let Maintenance { log, limits, .. } = &fixture.maintenance;
    let stuck: Vec<Entry> = (0..100).map(|_| fixture.append(2, 4096)).collect();
    fixture.maintenance.written().await;
    for _ in 0..3 {
        fixture.fill(1..=1).await;
        fixture.maintenance.shorten().await;
        assert!(log.size() <= limits.release_above(), "{}", log.size());
        assert!(log.cohort(CohortId(1)).bounds().purged > Lsn::ZERO);
    }
    assert_eq!(entries(&fixture, 2), stuck);
}

/// What a cohort without a quorum goes on to write must not fill the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cohort_that_fills_its_share_is_held_up_until_it_is_applied() {
    let fixture = Fixture::new(2);
    let Maintenance { log, backpressure, limits, .. } = &fixture.maintenance;
    let mut stuck = Vec::new();
    while log.bytes_after(CohortId(2), 0) <= limits.unapplied_max() {
        stuck.push(fixture.append(2, 4096));
        fixture.maintenance.written().await;
    }
    assert!(log.bytes_after(CohortId(2), 0) < limits.move_below(), "so much is moved");
    fixture.fill(1..=1).await;
    fixture.maintenance.shorten().await;
    let refusal = backpressure.refusal(CohortId(2)).expect("it is refused");
    let bytes = log.bytes_after(CohortId(2), 0);
    assert!(refusal.starts_with(&format!("{bytes} bytes ")), "{refusal}");
    assert_eq!(backpressure.refusal(CohortId(1)), None);
    assert!(log.size() <= limits.release_above(), "{}", log.size());
    assert_eq!(entries(&fixture, 2), stuck);

    fixture.table(2).apply(&stuck).unwrap();
    fixture.fill(1..=1).await;
    fixture.maintenance.shorten().await;
    assert_eq!(backpressure.refusal(CohortId(2)), None);
}

/// Large writes fill more than a share of a short log while they are on their way. They are about to
/// be applied, and nothing is refused because of them; nor while what is applied moves on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_under_way_are_not_taken_for_those_of_a_cohort_that_is_stuck() {
    let mut fixture = Fixture::new(2);
    fixture.maintenance.progress.stuck_after = Duration::from_secs(3600);
    let limits = fixture.maintenance.limits;
    let mut under_way = Vec::new();
    while fixture.maintenance.log.bytes_after(CohortId(2), 0) <= limits.unapplied_max() {
        under_way.push(fixture.append(2, 64 * 1024));
        fixture.maintenance.written().await;
    }
    for entry in under_way {
        fixture.fill(1..=1).await;
        fixture.maintenance.shorten().await;
        assert_eq!(fixture.maintenance.backpressure.refusal(CohortId(2)), None);
        fixture.table(2).apply(&[entry]).unwrap();
    }
    let held = |bytes| BTreeMap::from([(CohortId(1), bytes)]);
    let progress = Progress { stuck_after: Duration::from_millis(1), ..Progress::default() };
    let (mut first, mut second, mut third) = (held(5), held(6), held(7));
    progress.retain_stuck(&mut first, |_| 1);
    std::thread::sleep(Duration::from_millis(2));
    progress.retain_stuck(&mut second, |_| 2);
    assert!(first.is_empty() && second.is_empty(), "it has applied something");
    std::thread::sleep(Duration::from_millis(2));
    progress.retain_stuck(&mut third, |_| 2);
    assert_eq!(third, held(7));
}

/// Batches wait while the log is at its limit, and not for ever if it cannot be shortened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_wait_at_the_limit_until_the_log_is_shorter() {
    let Fixture { maintenance, _folder } = Fixture::new(1);
    let (log, backpressure) = (maintenance.log.clone(), maintenance.backpressure.clone());
    let running = tokio::spawn(maintenance.run());
    // Nobody can let go of this, and it is more than may be moved.
    let entry = |seq| Entry {
        lsn: Lsn::new(1, seq),
        kind: EntryKind::Commands,
        payload: Bytes::from(vec![7; 4096]),
    };
    for seq in 1..=2 * MAX / 4096 {
        log.cohort(CohortId(9)).submit(LogWrite::Append(vec![entry(seq)])).unwrap();
        tokio::time::timeout(Duration::from_secs(20), backpressure.passed()).await.unwrap();
    }
    running.abort();

    let backpressure = Backpressure::new(u64::MAX);
    backpressure.pause(true);
    let waiting = tokio::time::timeout(Duration::from_millis(50), backpressure.passed());
    waiting.await.unwrap_err();
    backpressure.pause(false);
    backpressure.passed().await;
}

#[test]
fn an_equal_share_is_free_and_only_who_holds_more_is_held_up() {
    let held = |held: &[(u64, u64)]| -> BTreeMap<CohortId, u64> {
        held.iter().map(|&(cohort, bytes)| (CohortId(cohort), bytes)).collect()
    };
    let past = |all: &[(u64, u64)], max| past_their_share(held(all), max);
    assert_eq!(past(&[], 100), held(&[]));
    assert_eq!(past(&[(1, 90), (2, 10)], 100), held(&[]), "all together may hold as much");
    assert_eq!(past(&[(1, 91), (2, 10)], 100), held(&[(1, 91)]));
    assert_eq!(past(&[(1, 51), (2, 51), (3, 1)], 100), held(&[(1, 51), (2, 51)]));
    assert_eq!(past(&[(1, 101)], 100), held(&[(1, 101)]));
}

#[test]
fn limits_that_cannot_be_kept_are_refused() {
    const MIB: u64 = 1024 * 1024;
    for (max, segment) in [(MIB, MIB), (MIB, 65536), (1 << 40, 1 << 30), (64 * MIB, 4 * MIB)] {
        let limits = LogLimits::new(max, segment).unwrap();
        assert_eq!(limits.files() as u64, max / segment + 2);
        assert!(limits.flush_above() <= limits.release_above());
        assert!(limits.release_above() <= limits.pause_above().max(limits.release_above()));
        assert!(limits.pause_above() + segment <= max + segment, "{max} {segment}");
    }
    let refused = |max, segment| LogLimits::new(max, segment).unwrap_err().to_string();
    assert!(refused(MIB, 2 * MIB).contains("more than the whole log may have"));
    assert!(refused(MIB - 1, 65536).contains("--log-bytes-max of 1048575 is too little"));
    assert!(refused(MIB, 65535).contains("--segment-bytes of 65535 is too little"));
    assert!(refused(1 << 40, (1 << 30) + 1).contains("too much"));
    assert!(refused(0, 0).contains("too little"));
}

/// What is under way holds the log for a moment, for which writes wait; were the limit raised for it,
/// each such moment would make the log longer. What stays stuck stops nothing else.
#[test]
fn a_log_that_cannot_be_shortened_yet_is_waited_for_and_one_that_is_stuck_is_not() {
    let limits = LogLimits::new(MAX, SEGMENT).unwrap();
    let (mut excess, begin) = (Excess::default(), Instant::now());
    let (above, long) = (limits.pause_above(), limits.pause_above() + 3 * SEGMENT);
    assert_eq!(excess.pause_above(above, limits, begin), above);
    assert_eq!(excess.pause_above(long, limits, begin), above);
    let soon = begin + STUCK_AFTER - Duration::from_millis(1);
    assert_eq!(excess.pause_above(long, limits, soon), above, "it may only be under way");
    assert_eq!(excess.pause_above(long, limits, begin + STUCK_AFTER), long);
    let later = begin + 2 * STUCK_AFTER;
    assert_eq!(excess.pause_above(long + SEGMENT, limits, later), long + SEGMENT);
    assert_eq!(excess.pause_above(above, limits, later), above, "it was made shorter");
    assert_eq!(excess.pause_above(long, limits, later + STUCK_AFTER), above);
}
