//! Reads that wait for the disk, and what must not wait for them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::time::Instant;
use trireme_proto::v1;
use trireme_proto::v1::response::Result as Answer;
use trireme_storage::table::{
    ScanBudget, Scanned, Span, TableEngine, TableError, View, Visit, WriteBatch,
};
use trireme_storage::{TableOptions, Tables};
use trireme_types::{
    Command, CommandBatch, Condition, Consistency, Entry, EntryKind, KeyRange, Lsn, Operation,
    RangeMap,
};

use super::*;
use crate::backpressure::Backpressure;
use crate::cohort::{HostedCohort, Read};
use crate::request::ReplyTo;
use crate::routes::NodeDirectory;
use crate::testing::FakeReplica;

/// How long anything may take that waits for no disk. Only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the disk takes at most, so that a test that fails ends: longer than anything is waited
/// for.
const DISK_TIME_MAX: Duration = Duration::from_secs(30);

/// A disk that can stand still, and counts who waits for it.
#[derive(Default)]
struct Disk {
    state: Mutex<DiskState>,
    changed: Condvar,
}

#[derive(Default)]
struct DiskState {
    still: Still,
    waiting: usize,
}

/// What the disk does not answer.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Still {
    #[default]
    Nothing,
    Scans,
    Everything,
}

impl Disk {
    fn stand_still(&self, still: Still) {
        self.state.lock().still = still;
        self.changed.notify_all();
    }

    /// Waits as a get does.
    fn get(&self) {
        self.wait_while(|still| still == Still::Everything);
    }

    /// Waits as a scan does.
    fn scan(&self) {
        self.wait_while(|still| still != Still::Nothing);
    }

    fn wait_while(&self, stands_still: impl Fn(Still) -> bool) {
        let mut state = self.state.lock();
        state.waiting += 1;
        self.changed.notify_all();
        let stands_still = |state: &mut DiskState| stands_still(state.still);
        self.changed.wait_while_for(&mut state, stands_still, DISK_TIME_MAX);
        state.waiting -= 1;
    }

    /// Returns true if so many reads wait for it before the test's patience ends.
    fn is_waited_for_by(&self, count: usize) -> bool {
        let mut state = self.state.lock();
        let is_short_of = |state: &mut DiskState| state.waiting < count;
        !self.changed.wait_while_for(&mut state, is_short_of, PATIENCE).timed_out()
    }
}

/// An engine of which the keys that end with `old` lie in files, and all else in memory.
struct HalfResident {
    rows: RwLock<BTreeMap<Bytes, Bytes>>,
    disk: Arc<Disk>,
}

impl HalfResident {
    fn lies_in_a_file(key: &[u8]) -> bool {
        key.ends_with(b"old")
    }

    fn find(&self, key: &[u8]) -> Option<Bytes> {
        self.rows.read().get(key).cloned()
    }

    fn rows_of(&self, span: &Span) -> Vec<(Bytes, Bytes)> {
        if span.is_empty() {
            return Vec::new();
        }
        let bounds = (Bound::Included(&span.start[..]), Bound::Excluded(&span.end[..]));
        let rows = self.rows.read();
        let found = rows.range::<[u8], _>(bounds);
        let mut found: Vec<_> = found.map(|(key, value)| (key.clone(), value.clone())).collect();
        if span.reverse {
            found.reverse();
        }
        found
    }
}

impl TableEngine for HalfResident {
    fn write(&self, batch: WriteBatch) -> Result<(), TableError> {
        let mut rows = self.rows.write();
        for change in batch.into_changes() {
            match change.value {
                Some(value) => drop(rows.insert(change.key, value)),
                None => drop(rows.remove(&change.key)),
            }
        }
        Ok(())
    }

    fn writes_in_memory(&self) -> bool {
        true
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        if Self::lies_in_a_file(key) {
            self.disk.get();
        }
        Ok(self.find(key))
    }

    fn get_both(&self, keys: [&[u8]; 2]) -> Result<[Option<Bytes>; 2], TableError> {
        Ok([self.get(keys[0])?, self.get(keys[1])?])
    }

    fn get_resident(&self, key: &[u8]) -> Result<Option<Option<Bytes>>, TableError> {
        Ok((!Self::lies_in_a_file(key)).then(|| self.find(key)))
    }

    fn get_both_resident(
        &self,
        keys: [&[u8]; 2],
    ) -> Result<Option<[Option<Bytes>; 2]>, TableError> {
        let is_resident = !keys.iter().any(|key| Self::lies_in_a_file(key));
        Ok(is_resident.then(|| keys.map(|key| self.find(key))))
    }

    fn get_and_scan(
        &self,
        key: &[u8],
        spans: &[Span],
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<(Option<Bytes>, Scanned), TableError> {
        Ok((self.get(key)?, self.scan(spans, budget, visit)?))
    }

    fn scan(&self, spans: &[Span], _: ScanBudget, visit: Visit<'_>) -> Result<Scanned, TableError> {
        self.disk.scan();
        for (key, value) in spans.iter().flat_map(|span| self.rows_of(span)) {
            if visit(key, value).is_break() {
                break;
            }
        }
        Ok(Scanned::default())
    }

    fn view(&self, span: &Span) -> Result<View, TableError> {
        Ok(Box::new(self.rows_of(span).into_iter().map(Ok)))
    }

    fn flush(&self) -> Result<(), TableError> {
        Ok(())
    }

    fn compact(&self) -> Result<bool, TableError> {
        Ok(false)
    }

    fn purge_tombstones(&self) -> Result<bool, TableError> {
        Ok(false)
    }

    fn is_behind(&self) -> bool {
        false
    }

    fn unflushed_bytes(&self) -> u64 {
        0
    }

    fn disk_bytes(&self) -> u64 {
        0
    }

    fn file_bytes(&self, _spans: &[Span]) -> u64 {
        0
    }
}

/// A cohort that its node leads, with the rows `old` and `new`, on a runtime of one thread.
struct Fixture {
    runtime: Runtime,
    cohort: Arc<HostedCohort>,
    disk: Arc<Disk>,
    _folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
        let (folder, disk) = (TempDir::new().unwrap(), Arc::<Disk>::default());
        let engine = HalfResident { rows: RwLock::default(), disk: disk.clone() };
        let options = TableOptions::default();
        let tables = Tables::with_engine(folder.path(), Box::new(engine), &options).unwrap();
        let descriptor = RangeMap::from_splits(&[]).unwrap().ranges()[0].clone();
        let table = tables.cohort(descriptor.cohort, descriptor.range.clone()).unwrap();
        let put = |key: &'static str| {
            let (key, value) = (Bytes::from(key), Bytes::from_static(b"value"));
            Command {
                request: None,
                operation: Operation::Put { key, value, condition: Condition::None },
            }
        };
        let commands = vec![put("old"), put("new")];
        let payload = CommandBatch { commands, clock: 0 }.encode();
        table.apply(&[Entry { lsn: Lsn::new(1, 1), kind: EntryKind::Commands, payload }]).unwrap();
        let replica = FakeReplica::new(1, descriptor.cohort.0);
        replica.lead(&[]);
        let cohort = {
            let _on = runtime.enter();
            let (backpressure, readers) = (Backpressure::new(u64::MAX), Readers::start().unwrap());
            let directory = Arc::<NodeDirectory>::default();
            HostedCohort::start(descriptor, replica, table, directory, backpressure, readers)
        };
        Self { runtime, cohort, disk, _folder: folder }
    }

    /// Has the runtime's thread do something, and returns where what comes of it is received.
    fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> mpsc::Receiver<T> {
        let (sender, receiver) = mpsc::channel();
        self.runtime.spawn(async move {
            // A test that has failed receives nothing.
            let _failed = sender.send(work.await);
        });
        receiver
    }

    /// Asks the cohort as a request does, whose task runs on the runtime's thread.
    fn ask(&self, read: Read, consistency: Consistency) -> mpsc::Receiver<Answer> {
        let cohort = Arc::clone(&self.cohort);
        self.spawn(async move {
            let (caller, answer) = oneshot::channel();
            let reply = ReplyTo::Call { caller, node: Arc::default() };
            let deadline = Instant::now() + 2 * DISK_TIME_MAX;
            cohort.read(PendingRead { read, consistency, deadline, reply });
            answer.await.expect("every read is answered")
        })
    }

    fn get(&self, key: &'static str, consistency: Consistency) -> mpsc::Receiver<Answer> {
        self.ask(Read::Get(Bytes::from(key)), consistency)
    }

    fn scan(&self, consistency: Consistency) -> mpsc::Receiver<Answer> {
        self.ask(Read::Scan { range: KeyRange::all(), limit: 10, reverse: false }, consistency)
    }
}

/// Waits for what a read finds, and returns the keys.
#[track_caller]
fn keys(answer: &mpsc::Receiver<Answer>) -> Vec<Bytes> {
    let keys = |rows: Vec<v1::Row>| rows.into_iter().map(|row| row.key).collect();
    match answer.recv_timeout(PATIENCE).expect("it is answered") {
        Answer::Get(found) => keys(found.row.into_iter().collect()),
        Answer::Scan(page) => keys(page.rows),
        other => panic!("{other:?}"),
    }
}

const BOTH: [Consistency; 2] = [Consistency::Timeline, Consistency::Strong];

/// A get or a scan that has to wait for the disk holds up neither what is in memory nor what else the
/// runtime's threads do, such as carrying heartbeats: they do not run the reads.
#[test]
fn reads_that_wait_for_the_disk_hold_nothing_up() {
    let fixture = Fixture::new();
    fixture.disk.stand_still(Still::Everything);
    let gets = BOTH.map(|consistency| fixture.get("old", consistency));
    let scans = BOTH.map(|consistency| fixture.scan(consistency));
    assert!(fixture.disk.is_waited_for_by(4), "each of the four has begun, and waits by itself");
    for consistency in BOTH {
        assert_eq!(keys(&fixture.get("new", consistency)), ["new"]);
    }
    let beat = fixture.spawn(async { tokio::time::sleep(Duration::from_millis(10)).await });
    beat.recv_timeout(PATIENCE).expect("the thread does other work, and has timers run");
    for waiting in gets.iter().chain(&scans) {
        assert_eq!(waiting.try_recv().unwrap_err(), mpsc::TryRecvError::Empty);
    }
    fixture.disk.stand_still(Still::Nothing);
    gets.iter().for_each(|get| assert_eq!(keys(get), ["old"]));
    scans.iter().for_each(|scan| assert_eq!(keys(scan), ["new", "old"]));
}

/// More scans than there are threads for either kind of read leave those that gets are read on free.
#[test]
fn a_get_waits_for_no_scan() {
    let fixture = Fixture::new();
    fixture.disk.stand_still(Still::Scans);
    let scan = |number: usize| {
        let scan = fixture.scan(Consistency::Timeline);
        assert!(fixture.disk.is_waited_for_by(number.min(SCAN_THREADS)), "scan {number}");
        scan
    };
    let scans: Vec<_> = (1..=2 * (GET_THREADS + SCAN_THREADS)).map(scan).collect();
    assert_eq!(keys(&fixture.get("old", Consistency::Timeline)), ["old"]);
    for waiting in &scans {
        assert_eq!(waiting.try_recv().unwrap_err(), mpsc::TryRecvError::Empty);
    }
    fixture.disk.stand_still(Still::Nothing);
    scans.iter().for_each(|scan| assert_eq!(keys(scan), ["new", "old"]));
}
