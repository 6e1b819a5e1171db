//! Engines that fail or stall.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::*;
use crate::TableError;
use crate::table::folder::open_engine;
use crate::table::{
    MEMTABLES_MAX, ScanBudget, Scanned, Span, TableEngine, View, Visit, WriteBatch,
};

for_each_engine!(
    a_failed_flush_poisons,
    a_failed_write_poisons,
    writers_wait_for_memory,
    writers_that_wait_are_told_of_a_failure,
    a_panic_of_the_engine_fails_the_tables,
);

/// What an engine is to do wrong, and how often it was asked.
#[derive(Default)]
struct Switches {
    fail_write: AtomicBool,
    fail_flush: AtomicBool,
    panic_in_compaction: AtomicBool,
    flushes: AtomicU64,
    stalled: Mutex<bool>,
    released: Condvar,
}

impl Switches {
    fn stall(&self, stalled: bool) {
        *self.stalled.lock() = stalled;
        self.released.notify_all();
    }
}

struct Faulty {
    engine: Box<dyn TableEngine>,
    switches: Arc<Switches>,
}

fn broken() -> TableError {
    let source = "the disk is gone".into();
    TableError::Engine { engine: Engine::Lsm, doing: "work", source }
}

impl TableEngine for Faulty {
    fn write(&self, batch: WriteBatch) -> Result<(), TableError> {
        if self.switches.fail_write.load(Ordering::Acquire) {
            return Err(broken());
        }
        self.engine.write(batch)
    }

    fn writes_in_memory(&self) -> bool {
        self.engine.writes_in_memory()
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        self.engine.get(key)
    }

    fn get_both(&self, keys: [&[u8]; 2]) -> Result<[Option<Bytes>; 2], TableError> {
        self.engine.get_both(keys)
    }

    fn get_resident(&self, key: &[u8]) -> Result<Option<Option<Bytes>>, TableError> {
        self.engine.get_resident(key)
    }

    fn get_both_resident(
        &self,
        keys: [&[u8]; 2],
    ) -> Result<Option<[Option<Bytes>; 2]>, TableError> {
        self.engine.get_both_resident(keys)
    }

    fn get_and_scan(
        &self,
        key: &[u8],
        spans: &[Span],
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<(Option<Bytes>, Scanned), TableError> {
        self.engine.get_and_scan(key, spans, budget, visit)
    }

    fn scan(
        &self,
        spans: &[Span],
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<Scanned, TableError> {
        self.engine.scan(spans, budget, visit)
    }

    fn view(&self, span: &Span) -> Result<View, TableError> {
        self.engine.view(span)
    }

    fn flush(&self) -> Result<(), TableError> {
        self.switches.flushes.fetch_add(1, Ordering::AcqRel);
        let mut stalled = self.switches.stalled.lock();
        while *stalled {
            self.switches.released.wait(&mut stalled);
        }
        drop(stalled);
        if self.switches.fail_flush.load(Ordering::Acquire) {
            return Err(broken());
        }
        self.engine.flush()
    }

    fn compact(&self) -> Result<bool, TableError> {
        assert!(!self.switches.panic_in_compaction.load(Ordering::Acquire), "a bug");
        self.engine.compact()
    }

    fn purge_tombstones(&self) -> Result<bool, TableError> {
        self.engine.purge_tombstones()
    }

    fn is_behind(&self) -> bool {
        self.engine.is_behind()
    }

    fn unflushed_bytes(&self) -> u64 {
        self.engine.unflushed_bytes()
    }

    fn disk_bytes(&self) -> u64 {
        self.engine.disk_bytes()
    }

    fn file_bytes(&self, spans: &[Span]) -> u64 {
        self.engine.file_bytes(spans)
    }
}

fn faulty(engine: Engine) -> (Fixture, Arc<Switches>) {
    let dir = tempfile::tempdir().unwrap();
    let options = small(engine);
    let switches = Arc::new(Switches::default());
    let engine = open_engine(dir.path(), engine, 1024 * 1024, 16).unwrap();
    let engine = Box::new(Faulty { engine, switches: Arc::clone(&switches) });
    let tables = Some(Tables::with_engine(dir.path(), engine, &options).unwrap());
    (Fixture { dir, options, tables }, switches)
}

/// Counts the failures that the tables tell of.
fn count_failures(fixture: &Fixture) -> Arc<AtomicU64> {
    let failures = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&failures);
    fixture.tables().on_failure(Box::new(move |_| {
        count.fetch_add(1, Ordering::AcqRel);
    }));
    failures
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn a_failed_flush_poisons(engine: Engine) {
    let (mut fixture, switches) = faulty(engine);
    let failures = count_failures(&fixture);
    let table = fixture.cohort();
    apply(&table, vec![put("k", "1")]);
    fixture.tables().flush().unwrap();
    apply(&table, vec![put("k", "2")]);
    switches.fail_flush.store(true, Ordering::Release);
    let error = fixture.tables().flush().unwrap_err();
    assert!(matches!(error, TableError::Engine { .. }) && error.is_fatal(), "{error}");
    assert_eq!(table.persisted(), Lsn::new(1, 1), "a failed flush moved the persisted point");
    // The disk working again changes nothing: what it holds is not known.
    switches.fail_flush.store(false, Ordering::Release);
    for _ in 0..2 {
        let refused = table.apply(&[entry(3, vec![put("k", "3")])]).unwrap_err();
        assert!(matches!(refused, TableError::Failed { .. }), "{refused}");
        let refused = fixture.tables().flush().unwrap_err();
        assert!(refused.to_string().contains("the disk is gone"), "{refused}");
    }
    assert_eq!(switches.flushes.load(Ordering::Acquire), 2, "a failed flush was tried again");
    assert_eq!(failures.load(Ordering::Acquire), 1);
    assert_eq!(count_failures(&fixture).load(Ordering::Acquire), 1, "a late listener is told");
    assert!(fixture.tables().close().is_err());
    drop(table);
    let table = fixture.reopen();
    assert!(table.applied() >= Lsn::new(1, 1));
}

fn a_failed_write_poisons(engine: Engine) {
    let (fixture, switches) = faulty(engine);
    let failures = count_failures(&fixture);
    let table = fixture.cohort();
    switches.fail_write.store(true, Ordering::Release);
    assert!(table.apply(&[entry(1, vec![put("k", "1")])]).unwrap_err().is_fatal());
    assert_eq!((table.applied(), get(&table, "k")), (Lsn::ZERO, None));
    switches.fail_write.store(false, Ordering::Release);
    assert!(matches!(table.apply(&[entry(1, vec![])]), Err(TableError::Failed { .. })));
    assert_eq!(failures.load(Ordering::Acquire), 1);
}

/// Memory does not grow past its bound while a flush stands still, and writers go on after it.
fn writers_wait_for_memory(engine: Engine) {
    let (fixture, switches) = faulty(engine);
    let table = fixture.cohort();
    switches.stall(true);
    let writes = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..1000 {
                apply(&table, vec![put("k", &"x".repeat(1000))]);
                writes.fetch_add(1, Ordering::AcqRel);
            }
        });
        eventually("no writer waits", || fixture.tables().metrics().stalls > 0);
        let bound = MEMTABLES_MAX * 64 * 1024;
        let metrics = fixture.tables().metrics();
        assert!(metrics.memtable_bytes < bound + 4 * 1024, "{metrics:?}");
        assert!(metrics.memtable_bytes >= bound, "{metrics:?}");
        assert!(writes.load(Ordering::Acquire) < 1000);
        let other = fixture.tables().cohort(CohortId(2), KeyRange::all()).unwrap();
        assert_eq!(other.apply_resident(&[entry(1, vec![put("k", "v")])]).unwrap(), None);
        assert_eq!(other.applied(), Lsn::ZERO);
        switches.stall(false);
    });
    assert_eq!(table.applied().seq, 1000);
    assert_eq!(writes.load(Ordering::Acquire), 1000);
}

fn writers_that_wait_are_told_of_a_failure(engine: Engine) {
    let (fixture, switches) = faulty(engine);
    let table = fixture.cohort();
    switches.stall(true);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for seq in 1.. {
                table.apply(&[entry(seq, vec![put("k", &"x".repeat(1000))])])?;
            }
            Ok(())
        });
        eventually("no writer waits", || fixture.tables().metrics().stalls > 0);
        switches.fail_flush.store(true, Ordering::Release);
        switches.stall(false);
        let result: Result<(), TableError> = writer.join().unwrap();
        assert!(matches!(result, Err(TableError::Failed { .. })));
    });
}

fn a_panic_of_the_engine_fails_the_tables(engine: Engine) {
    let (fixture, switches) = faulty(engine);
    let failures = count_failures(&fixture);
    switches.panic_in_compaction.store(true, Ordering::Release);
    fixture.tables().flush().unwrap();
    eventually("nobody is told", || failures.load(Ordering::Acquire) == 1);
    let refused = fixture.cohort().apply(&[entry(1, vec![])]).unwrap_err();
    assert!(matches!(refused, TableError::Failed { .. }), "{refused}");
}
