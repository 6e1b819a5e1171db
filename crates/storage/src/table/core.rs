//! The engine with what surrounds it: the bound on memory, failure, flushes and their listeners.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::slice::from_ref;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use trireme_types::{CohortId, Lsn};

use crate::table::engine::{ScanBudget, Scanned, Span, TableEngine, View, Visit};
use crate::table::{TableError, WriteBatch};

/// How many memtables' worth of writes may be in memory and not on disk before writers wait: one
/// being flushed and one being filled.
pub const MEMTABLES_MAX: u64 = 2;

/// The most keys that one batch of [`Core::remove_span`] removes.
const REMOVE_BATCH_KEYS: usize = 1024;

/// The tombstones that scans pass over before the tables look whether they should be removed. A scan
/// passes over some millions a second; fewer would have every small deletion looked at.
const TOMBSTONES_PASSED_MAX: u64 = 16 * 1024;

/// What the tables have done and hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableMetrics {
    /// Completed flushes.
    pub flushes: u64,
    /// Steps of compaction that changed something.
    pub compactions: u64,
    /// How often the files were rewritten without their tombstones.
    pub purges: u64,
    /// Bytes of keys and values written, sessions and meta rows included.
    pub written_bytes: u64,
    /// Writes that had to wait for a flush.
    pub stalls: u64,
    /// About how many bytes the files hold.
    pub disk_bytes: u64,
    /// Bytes written and not flushed yet.
    pub memtable_bytes: u64,
}

/// The engine, shared by the handles of all cohorts and the maintenance threads.
pub(crate) struct Core {
    engine: Box<dyn TableEngine>,
    memtable_bytes: u64,
    failed: AtomicBool,
    tasks: Mutex<Tasks>,
    /// Woken when something in `tasks` changes.
    changed: Condvar,
    /// Held through a flush, so that persisted points move in order.
    flushing: Mutex<()>,
    points: Mutex<BTreeMap<CohortId, Arc<Points>>>,
    flush_listeners: Mutex<Vec<FlushListener>>,
    failure_listeners: Mutex<Vec<FailureListener>>,
    seal_listener: Mutex<Option<SealListener>>,
    counters: Counters,
}

pub(crate) type FlushListener = Arc<dyn Fn() + Send + Sync>;
pub(crate) type SealListener = Arc<dyn Fn(CohortId) + Send + Sync>;
pub(crate) type FailureListener = Arc<dyn Fn(&TableError) + Send + Sync>;

/// What is to be done and what has become of it.
#[derive(Default)]
pub(crate) struct Tasks {
    pub(crate) flush_wanted: bool,
    pub(crate) compaction_wanted: bool,
    /// Scans passed over many tombstones.
    pub(crate) purge_wanted: bool,
    pub(crate) compacting: bool,
    pub(crate) stopping: bool,
    failure: Option<String>,
}

/// How far one cohort's table has come.
#[derive(Debug)]
pub(crate) struct Points {
    /// Applied, then persisted. The second never passes the first.
    values: Mutex<(Lsn, Lsn)>,
}

/// A view whose failed reads are failures of the tables. It does not keep them open.
struct WatchedView {
    view: View,
    core: Weak<Core>,
}

impl Iterator for WatchedView {
    type Item = Result<(Bytes, Bytes), TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.view.next()?;
        Some(match self.core.upgrade() {
            Some(core) => core.readable(row),
            None => row,
        })
    }
}

#[derive(Default)]
struct Counters {
    flushes: AtomicU64,
    compactions: AtomicU64,
    purges: AtomicU64,
    /// Tombstones that scans passed over since they were last looked at.
    tombstones_passed: AtomicU64,
    written_bytes: AtomicU64,
    stalls: AtomicU64,
}

impl Points {
    /// Returns the points of a table that was just opened.
    pub(crate) fn new(applied: Lsn, persisted: Lsn) -> Arc<Self> {
        Arc::new(Self { values: Mutex::new((applied, persisted)) })
    }

    pub(crate) fn applied(&self) -> Lsn {
        self.values.lock().0
    }

    pub(crate) fn persisted(&self) -> Lsn {
        self.values.lock().1
    }

    pub(crate) fn set_applied(&self, lsn: Lsn) {
        self.values.lock().0 = lsn;
    }

    fn raise_persisted(&self, lsn: Lsn) {
        let mut values = self.values.lock();
        values.1 = values.1.max(lsn);
    }
}

impl Core {
    pub(crate) fn new(engine: Box<dyn TableEngine>, memtable_bytes: u64) -> Self {
        Self {
            engine,
            memtable_bytes,
            failed: AtomicBool::new(false),
            tasks: Mutex::default(),
            changed: Condvar::new(),
            flushing: Mutex::new(()),
            points: Mutex::default(),
            flush_listeners: Mutex::default(),
            failure_listeners: Mutex::default(),
            seal_listener: Mutex::default(),
            counters: Counters::default(),
        }
    }

    /// Writes a batch, after waiting for memory if too much is unflushed.
    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), TableError> {
        self.check_usable()?;
        if self.is_full() {
            self.wait_for_memory()?;
        }
        self.counters.written_bytes.fetch_add(batch.bytes() as u64, Ordering::Relaxed);
        self.engine.write(batch).map_err(|error| self.fail(error))?;
        if self.engine.unflushed_bytes() >= self.memtable_bytes {
            self.want_flush(&mut self.tasks());
        }
        Ok(())
    }

    /// Says whether [`Core::write`] waits for neither a disk nor memory.
    pub(crate) fn writes_at_once(&self) -> bool {
        self.engine.writes_in_memory() && !self.is_full()
    }

    /// Makes everything written so far durable, and moves every cohort's persisted point.
    pub(crate) fn flush(&self) -> Result<(), TableError> {
        {
            let _flushing = self.flushing.lock();
            self.check_usable()?;
            // Taken before the flush begins, so that all of it is in what the flush covers.
            let applied: Vec<_> = self.points.lock().values().cloned().collect();
            let applied: Vec<_> = applied.into_iter().map(|p| (p.applied(), p)).collect();
            self.engine.flush().map_err(|error| self.fail(error))?;
            for (lsn, points) in applied {
                points.raise_persisted(lsn);
            }
            self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        }
        {
            let mut tasks = self.tasks();
            tasks.flush_wanted = self.engine.unflushed_bytes() >= self.memtable_bytes;
            tasks.compaction_wanted = true;
            self.changed.notify_all();
        }
        let listeners = self.flush_listeners.lock().clone();
        listeners.iter().for_each(|listener| listener());
        Ok(())
    }

    /// Does one step of compaction; says whether there may be more to do.
    pub(crate) fn compact(&self) -> Result<bool, TableError> {
        let changed = self.engine.compact().map_err(|error| self.fail(error))?;
        self.counters.compactions.fetch_add(changed.into(), Ordering::Relaxed);
        Ok(changed)
    }

    /// Removes every row of the span, in several batches.
    pub(crate) fn remove_span(&self, span: &Span) -> Result<(), TableError> {
        let mut rest = span.clone();
        loop {
            let mut keys = Vec::with_capacity(REMOVE_BATCH_KEYS);
            self.scan(from_ref(&rest), ScanBudget::UNLIMITED, &mut |key, _| {
                keys.push(key);
                match keys.len() {
                    REMOVE_BATCH_KEYS => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                }
            })?;
            let Some(last) = keys.last() else {
                return Ok(());
            };
            // Right after the last key, so that no removed row is passed over again.
            rest.start = [&last[..], &[0]].concat();
            let mut batch = WriteBatch::default();
            keys.into_iter().for_each(|key| batch.remove_key(key));
            self.write(batch)?;
        }
    }

    /// Returns the first row of the span.
    pub(crate) fn first(&self, span: &Span) -> Result<Option<(Bytes, Bytes)>, TableError> {
        let mut first = None;
        let scanned = self.engine.scan(from_ref(span), ScanBudget::UNLIMITED, &mut |key, value| {
            first = Some((key, value));
            ControlFlow::Break(())
        });
        self.readable(scanned)?;
        Ok(first)
    }

    /// Has the tables fail if a read found the disk damaged, and returns what was read. A replica that
    /// cannot read what it acknowledged must not go on to serve, lead and vote beside others that can.
    pub(crate) fn readable<T>(&self, read: Result<T, TableError>) -> Result<T, TableError> {
        read.map_err(|error| if error.is_of_the_disk() { self.fail(error) } else { error })
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        self.readable(self.engine.get(key))
    }

    pub(crate) fn get_both(&self, keys: [&[u8]; 2]) -> Result<[Option<Bytes>; 2], TableError> {
        self.readable(self.engine.get_both(keys))
    }

    pub(crate) fn get_resident(&self, key: &[u8]) -> Result<Option<Option<Bytes>>, TableError> {
        self.readable(self.engine.get_resident(key))
    }

    pub(crate) fn get_both_resident(
        &self,
        keys: [&[u8]; 2],
    ) -> Result<Option<[Option<Bytes>; 2]>, TableError> {
        self.readable(self.engine.get_both_resident(keys))
    }

    pub(crate) fn get_and_scan(
        &self,
        key: &[u8],
        spans: &[Span],
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<(Option<Bytes>, Scanned), TableError> {
        let read = self.engine.get_and_scan(key, spans, budget, visit);
        let (value, scanned) = self.readable(read)?;
        self.count_tombstones(scanned.tombstones);
        Ok((value, scanned))
    }

    pub(crate) fn scan(
        &self,
        spans: &[Span],
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<Scanned, TableError> {
        let scanned = self.readable(self.engine.scan(spans, budget, visit))?;
        self.count_tombstones(scanned.tombstones);
        Ok(scanned)
    }

    pub(crate) fn file_bytes(&self, spans: &[Span]) -> u64 {
        self.engine.file_bytes(spans)
    }

    /// Has the tombstones removed once scans have passed over many.
    fn count_tombstones(&self, passed: usize) {
        if passed == 0 {
            return;
        }
        let (counter, passed) = (&self.counters.tombstones_passed, passed as u64);
        let before = counter.fetch_add(passed, Ordering::Relaxed);
        if before < TOMBSTONES_PASSED_MAX && before + passed >= TOMBSTONES_PASSED_MAX {
            self.tasks().purge_wanted = true;
            self.changed.notify_all();
        }
    }

    /// Removes tombstones from the files, if it pays. What was deleted a moment ago lies in memory,
    /// from where it must reach the files first.
    pub(crate) fn purge_tombstones(&self) -> Result<(), TableError> {
        self.flush()?;
        let purged = self.engine.purge_tombstones().map_err(|error| self.fail(error))?;
        self.counters.purges.fetch_add(purged.into(), Ordering::Relaxed);
        self.counters.tombstones_passed.store(0, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn view(self: &Arc<Self>, span: &Span) -> Result<View, TableError> {
        let view = self.readable(self.engine.view(span))?;
        Ok(Box::new(WatchedView { view, core: Arc::downgrade(self) }))
    }

    /// Has every flush from now on move these points.
    pub(crate) fn add_points(&self, cohort: CohortId, points: Arc<Points>) {
        self.points.lock().insert(cohort, points);
    }

    pub(crate) fn remove_points(&self, cohort: CohortId) {
        self.points.lock().remove(&cohort);
    }

    /// Returns how far a cohort's table is on disk; [`Lsn::ZERO`] for one that is not open.
    pub(crate) fn persisted(&self, cohort: CohortId) -> Lsn {
        self.points.lock().get(&cohort).map_or(Lsn::ZERO, |points| points.persisted())
    }

    pub(crate) fn on_flush(&self, listener: FlushListener) {
        self.flush_listeners.lock().push(listener);
    }

    pub(crate) fn on_failure(&self, listener: FailureListener) {
        self.failure_listeners.lock().push(Arc::clone(&listener));
        // A failure that came first has told nobody who comes now.
        if let Err(error @ TableError::Failed { .. }) = self.check_usable() {
            listener(&error);
        }
    }

    /// Has `listener` called whenever a cohort has ended here.
    pub(crate) fn on_seal(&self, listener: SealListener) {
        *self.seal_listener.lock() = Some(listener);
    }

    /// Reports that a cohort has ended here.
    pub(crate) fn sealed(&self, cohort: CohortId) {
        let listener = self.seal_listener.lock().clone();
        if let Some(listener) = listener {
            listener(cohort);
        }
    }

    /// Lets go of the listeners, which may hold handles of this very table.
    pub(crate) fn forget_listeners(&self) {
        self.flush_listeners.lock().clear();
        self.failure_listeners.lock().clear();
        self.seal_listener.lock().take();
    }

    /// Takes note of a failure after which the disk's content is not known: nothing is written any
    /// more. Returns the error for the caller to pass on.
    pub(crate) fn fail(&self, error: TableError) -> TableError {
        {
            let mut tasks = self.tasks();
            if tasks.failure.is_some() {
                return error;
            }
            tracing::error!(%error, "the tables have failed and take no more writes");
            tasks.failure = Some(error.to_string());
            self.failed.store(true, Ordering::Release);
            self.changed.notify_all();
        }
        let listeners = std::mem::take(&mut *self.failure_listeners.lock());
        listeners.iter().for_each(|listener| listener(&error));
        error
    }

    /// Fails unless the tables take writes.
    pub(crate) fn check_usable(&self) -> Result<(), TableError> {
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        Self::check_tasks(&self.tasks())
    }

    /// Refuses everything from now on and has the maintenance threads end.
    pub(crate) fn stop(&self) {
        self.tasks().stopping = true;
        self.failed.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Ends the use of the engine's files, after the maintenance threads have ended.
    pub(crate) fn close_engine(&self) -> Result<(), TableError> {
        self.engine.close()
    }

    pub(crate) fn metrics(&self) -> TableMetrics {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        TableMetrics {
            flushes: count(&self.counters.flushes),
            compactions: count(&self.counters.compactions),
            purges: count(&self.counters.purges),
            written_bytes: count(&self.counters.written_bytes),
            stalls: count(&self.counters.stalls),
            disk_bytes: self.engine.disk_bytes(),
            memtable_bytes: self.engine.unflushed_bytes(),
        }
    }

    pub(crate) fn is_behind(&self) -> bool {
        self.engine.is_behind()
    }

    pub(crate) fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock()
    }

    /// Waits until something in the tasks may have changed.
    pub(crate) fn wait(&self, tasks: &mut MutexGuard<'_, Tasks>) {
        self.changed.wait(tasks);
    }

    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    fn is_full(&self) -> bool {
        self.engine.unflushed_bytes() >= self.memtable_bytes.saturating_mul(MEMTABLES_MAX)
    }

    fn wait_for_memory(&self) -> Result<(), TableError> {
        self.counters.stalls.fetch_add(1, Ordering::Relaxed);
        let mut tasks = self.tasks();
        while self.is_full() {
            Self::check_tasks(&tasks)?;
            self.want_flush(&mut tasks);
            self.wait(&mut tasks);
        }
        Self::check_tasks(&tasks)
    }

    fn want_flush(&self, tasks: &mut Tasks) {
        if !tasks.flush_wanted {
            tasks.flush_wanted = true;
            self.changed.notify_all();
        }
    }

    fn check_tasks(tasks: &Tasks) -> Result<(), TableError> {
        match &tasks.failure {
            Some(reason) => Err(TableError::Failed { reason: reason.clone() }),
            None if tasks.stopping => Err(TableError::Closed),
            None => Ok(()),
        }
    }
}
