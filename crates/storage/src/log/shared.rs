//! The shared log as its users see it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, ThreadId};

use parking_lot::{Mutex, RwLock};
use trireme_types::CohortId;

use super::cohort::{Cohort, CohortLog, IoId};
use super::keeper::Keeper;
use super::ledger::Ledger;
use super::metrics::{Counters, LogMetrics};
use super::options::{LogIdentity, LogOptions};
use super::queue::{Done, Ending, Queue};
use super::recovery;
use super::segment::{SegmentFolder, SegmentMap};
use super::writer::Writer;
use super::{LogError, recovery::Recovered};
use crate::fs::{Fs, FsLock};
use crate::table::{PersistedPoints, Tables};

/// The name of the file whose lock keeps a second process away.
const LOCK_FILE: &str = "lock";

/// A node's shared log. Cheap to clone; all clones, and the cohort logs taken from it, are one open
/// log, which ends when it is closed or the last of them is dropped.
#[derive(Clone)]
pub struct SharedLog {
    pub(super) handle: Arc<Handle>,
}

/// What all threads of a log share.
pub(super) struct Core {
    pub(super) folder: SegmentFolder,
    pub(super) identity: LogIdentity,
    pub(super) options: LogOptions,
    pub(super) queue: Queue,
    pub(super) segments: SegmentMap,
    pub(super) ledger: Mutex<Ledger>,
    pub(super) keeper: Keeper,
    pub(super) counters: Counters,
    /// How far each cohort's table is on disk; unset for a log without tables.
    pub(super) persisted: OnceLock<PersistedPoints>,
    pub(super) growth_listeners: RwLock<Vec<GrowthListener>>,
    cohorts: Mutex<BTreeMap<CohortId, Known>>,
    /// Held until the log is closed or nobody uses it any more.
    lock: Mutex<Option<Box<dyn FsLock>>>,
}

pub(super) type GrowthListener = Box<dyn Fn(u64) + Send + Sync>;

impl Core {
    pub(super) fn count_disk_read(&self, bytes: u64) {
        self.counters.disk_read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A cohort that was recovered or asked for. One that was forgotten stays, without a log, because
/// its writes may still be on their way.
struct Known {
    cohort: Arc<Cohort>,
    is_forgotten: bool,
}

/// What users hold: when the last of them lets go, the log ends.
pub(super) struct Handle {
    pub(super) core: Arc<Core>,
    runner: Runner,
}

/// Who writes.
enum Runner {
    Threads(Threads),
    /// Whoever calls [`SharedLog::step`].
    Caller(Mutex<Writer>),
}

/// The writer's thread and, after it, the keeper's.
#[derive(Default)]
struct Threads {
    ids: Vec<ThreadId>,
    running: Mutex<Vec<JoinHandle<()>>>,
}

impl SharedLog {
    /// Opens the log in this folder, or makes one if there is none. One scan brings back the logs of
    /// all cohorts (M12). Then a thread writes what is submitted.
    ///
    /// Fails if the log is damaged, belongs to another node or cluster, is of a later format or is
    /// in use, and leaves it as it was then.
    pub fn open(
        fs: Arc<dyn Fs>,
        dir: &Path,
        identity: LogIdentity,
        options: LogOptions,
    ) -> Result<Self, LogError> {
        let (core, mut writer) = open(fs, dir, identity, options, true)?;
        let for_keeper = Arc::clone(&core);
        // If a thread cannot be started, dropping the handle ends the other.
        let mut handle = Handle { core, runner: Runner::Threads(Threads::default()) };
        handle.start(dir, "log-writer", move || writer.run())?;
        handle.start(dir, "log-keeper", move || for_keeper.keeper.run())?;
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Opens the log as [`SharedLog::open`] does, but without threads: nothing is written until
    /// [`SharedLog::step`] is called. For simulators, where nothing may happen by itself.
    pub fn open_stepped(
        fs: Arc<dyn Fs>,
        dir: &Path,
        identity: LogIdentity,
        options: LogOptions,
    ) -> Result<Self, LogError> {
        let (core, writer) = open(fs, dir, identity, options, false)?;
        let runner = Runner::Caller(Mutex::new(writer));
        Ok(Self { handle: Arc::new(Handle { core, runner }) })
    }

    /// Writes one block of what waits, commit points included, and says whether anything did. Only
    /// for a log that was opened with [`SharedLog::open_stepped`]; on others it does nothing.
    pub fn step(&self) -> bool {
        match &self.handle.runner {
            Runner::Threads(_) => false,
            Runner::Caller(writer) => writer.lock().step(),
        }
    }

    /// Returns the cohort's log, which is empty if there was none.
    pub fn cohort(&self, id: CohortId) -> CohortLog {
        let mut cohorts = self.handle.core.cohorts.lock();
        let known = cohorts.entry(id).or_insert_with(|| Known::new(id, Default::default()));
        known.is_forgotten = false;
        CohortLog { handle: Arc::clone(&self.handle), cohort: Arc::clone(&known.cohort) }
    }

    /// Returns the cohorts that the scan found or that were asked for since, in order, without the
    /// forgotten.
    pub fn cohorts(&self) -> Vec<CohortId> {
        let cohorts = self.handle.core.cohorts.lock();
        cohorts.iter().filter(|(_, known)| !known.is_forgotten).map(|(id, _)| *id).collect()
    }

    /// Drops everything that the log has of a cohort: the node holds no replica of it any more, and
    /// what is left of one must not keep segments from being removed. Handles to the cohort's log
    /// that are left see it empty.
    ///
    /// After a crash the log has all of it again, unless the write was durable by then: see
    /// [`SharedLog::forget_cohort_then`].
    pub fn forget_cohort(&self, id: CohortId) -> Result<IoId, LogError> {
        self.forget(id, None)
    }

    /// Forgets a cohort as [`SharedLog::forget_cohort`] does, and has `done` called as that of a write
    /// is, once that is durable. Only then may the cohort's rows be dropped: a log that comes back
    /// without the rows that it purged is of no use to anyone.
    pub fn forget_cohort_then(
        &self,
        id: CohortId,
        done: impl FnOnce(Result<(), LogError>) + Send + 'static,
    ) -> Result<IoId, LogError> {
        self.forget(id, Some(Box::new(done)))
    }

    fn forget(&self, id: CohortId, done: Option<Done>) -> Result<IoId, LogError> {
        let io = self.cohort(id).forget(done)?;
        if let Some(known) = self.handle.core.cohorts.lock().get_mut(&id) {
            known.is_forgotten = true;
        }
        Ok(io)
    }

    /// Returns how many bytes wait to be written and answered. Admission control reads it.
    pub fn queued_bytes(&self) -> usize {
        self.handle.core.queue.queued_bytes()
    }

    /// Returns what the log has done and holds.
    pub fn metrics(&self) -> LogMetrics {
        let core = &self.handle.core;
        let (segments, segment_bytes) = {
            let segments = core.segments.read();
            (segments.len() as u64, segments.values().map(|segment| segment.len).sum())
        };
        LogMetrics {
            segments,
            segment_bytes,
            live_bytes: core.ledger.lock().live_bytes(),
            queued_bytes: self.queued_bytes() as u64,
            ..core.counters.snapshot()
        }
    }

    /// Has every purge from now on checked against these tables: one that goes past what a cohort's
    /// table has on disk is refused with [`LogError::NotPersisted`], from whom it may come, for
    /// nothing else brings those rows back after a crash. A cohort without a table may purge
    /// nothing. The first tables count.
    pub fn protect(&self, tables: &Tables) {
        let _first_counts = self.handle.core.persisted.set(tables.persisted_points());
    }

    /// Has `listener` called with the log's size whenever the log goes on in another segment. It is
    /// called on the writer's thread, and must be quick.
    pub fn on_growth(&self, listener: impl Fn(u64) + Send + Sync + 'static) {
        self.handle.core.growth_listeners.write().push(Box::new(listener));
    }

    /// Returns what there is of a cohort, whether it is forgotten or not.
    pub(super) fn cohort_as_it_is(&self, id: CohortId) -> Arc<Cohort> {
        let mut cohorts = self.handle.core.cohorts.lock();
        let known = cohorts.entry(id).or_insert_with(|| Known::new(id, Default::default()));
        Arc::clone(&known.cohort)
    }

    /// Has `listener` called when a write or a sync fails, which ends the log for good; at once if
    /// that has happened. It is called on the writer's thread, before the waiting writes are
    /// answered.
    pub fn on_failure(&self, listener: impl FnOnce(&LogError) + Send + 'static) {
        self.handle.core.queue.on_failure(Box::new(listener));
    }

    /// Writes and syncs everything that waits, notes in the log that it ended cleanly, and stops
    /// writing. Later writes are refused; reading goes on. Closing again does nothing more.
    ///
    /// Called from a write's `done`, it cannot wait for the end and returns before it.
    pub fn close(&self) -> Result<(), LogError> {
        let core = &self.handle.core;
        core.queue.end(Ending::Close);
        if !self.handle.finish() {
            return Ok(());
        }
        let result = core.queue.wait_for_end();
        core.lock.lock().take();
        result
    }
}

impl fmt::Debug for SharedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedLog")
            .field("dir", &self.handle.core.folder.dir)
            .finish_non_exhaustive()
    }
}

impl Handle {
    fn start(
        &mut self,
        dir: &Path,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), LogError> {
        if let Runner::Threads(threads) = &mut self.runner {
            let thread = thread::Builder::new().name(name.to_owned()).spawn(body);
            let thread = thread.map_err(|e| LogError::io("start the threads of", dir, e))?;
            threads.ids.push(thread.thread().id());
            threads.running.get_mut().push(thread);
        }
        Ok(())
    }

    /// Waits for the writer's end, which was asked for, and for its threads. Says whether it could:
    /// one of these threads cannot wait for itself.
    fn finish(&self) -> bool {
        let threads = match &self.runner {
            Runner::Caller(writer) => {
                writer.lock().run();
                return true;
            }
            Runner::Threads(threads) if threads.ids.contains(&thread::current().id()) => {
                self.core.keeper.stop();
                return false;
            }
            Runner::Threads(threads) => std::mem::take(&mut *threads.running.lock()),
        };
        // The writer comes first: it may still need the keeper.
        for thread in threads {
            // A panic of the writer has already failed the log.
            let _panicked = thread.join();
            self.core.keeper.stop();
        }
        true
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A stepped log that is dropped stops where it is, as a simulated process that dies does.
        if let Runner::Threads(_) = self.runner {
            self.core.queue.end(Ending::Abandon);
            self.finish();
        }
    }
}

impl Known {
    fn new(id: CohortId, index: super::index::CohortIndex) -> Self {
        Self { cohort: Arc::new(Cohort::new(id, index)), is_forgotten: false }
    }
}

fn open(
    fs: Arc<dyn Fs>,
    dir: &Path,
    identity: LogIdentity,
    options: LogOptions,
    has_threads: bool,
) -> Result<(Arc<Core>, Writer), LogError> {
    options.validate()?;
    fs.create_dir_all(dir).map_err(|e| LogError::io("create the folder", dir, e))?;
    let lock = fs.lock(&dir.join(LOCK_FILE)).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => LogError::InUse { dir: dir.to_owned() },
        _ => LogError::io("lock", dir, error),
    })?;
    let folder = SegmentFolder { fs, dir: dir.to_owned() };
    let Recovered { cohorts, segments, start, scanned_bytes, was_closed } =
        recovery::recover(&folder, identity, options.segment_bytes)?;
    let blocks = start.next_block - 1;
    let (segment_count, cohort_count) = (segments.len(), cohorts.len());
    let path = dir.display();
    tracing::info!(%path, segment_count, blocks, cohort_count, was_closed, "the log is open");
    let ledger = Ledger::from_indexes(cohorts.iter().map(|(id, index)| (*id, index)));
    let cohorts = cohorts.into_iter().map(|(id, index)| (id, Known::new(id, index))).collect();
    let core = Arc::new(Core {
        keeper: Keeper::new(folder.clone(), has_threads),
        folder,
        identity,
        queue: Queue::new(options.block_bytes_max, options.queue_bytes_max),
        options,
        segments: RwLock::new(segments),
        ledger: Mutex::new(ledger),
        counters: Counters::default(),
        persisted: OnceLock::new(),
        growth_listeners: RwLock::default(),
        cohorts: Mutex::new(cohorts),
        lock: Mutex::new(Some(lock)),
    });
    core.counters.scanned_bytes.store(scanned_bytes, Ordering::Relaxed);
    let writer = Writer::new(Arc::clone(&core), start);
    Ok((core, writer))
}
