//! One node's tables: a keyspace that all its cohorts share.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex};
use trireme_types::{CohortId, Engine, KeyRange, Lsn};

use crate::cohort_table::CohortTable;
use crate::cohort_table::begin::{self, Beginning};
use crate::table::engine::{Span, TableEngine};
use crate::table::keys::{self, Meta, Place};
use crate::table::maintenance::Maintenance;
use crate::table::{Core, TableError, TableMetrics, WriteBatch, folder};

/// How a node keeps its tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// The storage engine. A folder can only be opened by the engine that made it.
    pub engine: Engine,
    /// Bytes written after which a flush starts. Larger means fewer and larger files and less
    /// merging; memory holds up to [`crate::table::MEMTABLES_MAX`] times this much, for a moment
    /// one more, and the log is cut in steps of it. 64 MiB is what the tree's own files aim at.
    pub memtable_bytes: usize,
    /// Bytes of file content kept in memory for reads: with `lsm` half of them blocks of files, half
    /// rows of up to 64 KiB. Larger means fewer reads from disk.
    pub cache_bytes: usize,
    /// The files that are kept open for reads. Fewer leave more descriptors to connections, and have
    /// files opened again more often. Only `lsm` keeps more than one.
    pub open_files_max: usize,
}

impl Default for TableOptions {
    fn default() -> Self {
        Self {
            engine: Engine::default(),
            memtable_bytes: 64 * 1024 * 1024,
            cache_bytes: 128 * 1024 * 1024,
            open_files_max: 256,
        }
    }
}

/// All tables of one node. A clone is another handle of the same tables.
///
/// When the last handle of the tables and of their cohorts is dropped, the threads end and nothing
/// is flushed: that is what a crash leaves. [`Tables::close`] is the orderly end.
#[derive(Clone)]
pub struct Tables {
    shared: Arc<Shared>,
}

/// How far the tables of a node's cohorts are on disk. Does not keep the tables open.
pub(crate) struct PersistedPoints(Weak<Core>);

impl PersistedPoints {
    /// Returns the point of a cohort's table; [`Lsn::ZERO`] if no such table is open.
    pub(crate) fn of(&self, cohort: CohortId) -> Lsn {
        self.0.upgrade().map_or(Lsn::ZERO, |core| core.persisted(cohort))
    }
}

/// What all handles share. Dropping it ends the maintenance threads.
struct Shared {
    core: Arc<Core>,
    maintenance: Mutex<Option<Maintenance>>,
    cohorts: Mutex<Cohorts>,
    /// Signalled when a cohort is not busy any more.
    settled: Condvar,
    /// Held while a cohort is dropped: of two whose rows lie in one place, each would leave what the other
    /// has there.
    dropping: Mutex<()>,
}

/// The cohorts that have rows on disk or a handle. The lock is never held over I/O.
struct Cohorts {
    /// The meta rows found when the tables were opened, of cohorts without a handle yet.
    on_disk: BTreeMap<CohortId, Meta>,
    open: BTreeMap<CohortId, CohortTable>,
    /// Those that are being opened or dropped. What comes for one of them waits, so that none opens
    /// what is being removed; the others go on.
    busy: BTreeSet<CohortId>,
}

/// Keeps a cohort busy until it is dropped.
struct Busy<'a> {
    shared: &'a Shared,
    cohort: CohortId,
}

impl Shared {
    /// Waits until the cohort is not busy, and has it be so.
    fn occupy(&self, cohort: CohortId) -> Busy<'_> {
        let mut cohorts = self.cohorts.lock();
        while !cohorts.busy.insert(cohort) {
            self.settled.wait(&mut cohorts);
        }
        Busy { shared: self, cohort }
    }

    /// Returns where others than `cohort` have rows under the number of `under`.
    fn rows_of_others(&self, cohort: CohortId, under: CohortId) -> Vec<Span> {
        let cohorts = self.cohorts.lock();
        let open = cohorts.open.iter().map(|(id, table)| (id, table.rows()));
        let on_disk = cohorts.on_disk.iter().map(|(id, meta)| (id, meta.rows.clone()));
        let others = open.chain(on_disk).filter(|(id, _)| **id != cohort);
        others.flat_map(|(_, rows)| rows.under(under).collect::<Vec<_>>()).collect()
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.shared.cohorts.lock().busy.remove(&self.cohort);
        self.shared.settled.notify_all();
    }
}

impl Tables {
    /// Opens the tables in the folder `dir`, or begins some there if it is empty or absent; removes
    /// what interrupted snapshots and removals have left; starts the maintenance threads.
    ///
    /// Fails if the folder belongs to another engine or to a later format, or if the engine cannot
    /// open its files ([`TableError::WillNotOpen`]).
    pub fn open(dir: &Path, options: TableOptions) -> Result<Self, TableError> {
        let engine = folder::open_engine(
            dir,
            options.engine,
            options.cache_bytes as u64,
            options.open_files_max,
        )?;
        Self::with_engine(dir, engine, &options)
    }

    /// Opens the tables as [`Tables::open`] does, but without threads: nothing is flushed or merged
    /// unless [`Tables::flush`] or [`Tables::merge`] is called. For simulators, where nothing may
    /// happen by itself; their writes must fit into memory between two flushes.
    pub fn open_stepped(dir: &Path, options: &TableOptions) -> Result<Self, TableError> {
        let (cache_bytes, files) = (options.cache_bytes as u64, options.open_files_max);
        let engine = folder::open_engine(dir, options.engine, cache_bytes, files)?;
        let core = Arc::new(Core::new(engine, options.memtable_bytes as u64));
        Self::over(dir, core, None, options)
    }

    /// Opens tables over an engine that is open already, as one of a test's own, which fails or stalls
    /// where the test asks it to. Says nothing of whose the folder `dir` is.
    pub fn with_engine(
        dir: &Path,
        engine: Box<dyn TableEngine>,
        options: &TableOptions,
    ) -> Result<Self, TableError> {
        let core = Arc::new(Core::new(engine, options.memtable_bytes as u64));
        let maintenance = Maintenance::start(&core, options.engine)
            .map_err(TableError::io("start the maintenance threads of", dir))?;
        Self::over(dir, core, Some(maintenance), options)
    }

    fn over(
        dir: &Path,
        core: Arc<Core>,
        maintenance: Option<Maintenance>,
        options: &TableOptions,
    ) -> Result<Self, TableError> {
        let on_disk = find_cohorts(&core)?;
        tracing::info!(
            dir = %dir.display(),
            engine = %options.engine,
            cohorts = on_disk.len(),
            disk_bytes = core.metrics().disk_bytes,
            "opened the tables"
        );
        let cohorts = Cohorts { on_disk, open: BTreeMap::new(), busy: BTreeSet::new() };
        let (cohorts, settled) = (Mutex::new(cohorts), Condvar::new());
        let (maintenance, dropping) = (Mutex::new(maintenance), Mutex::new(()));
        Ok(Self { shared: Arc::new(Shared { core, maintenance, cohorts, settled, dropping }) })
    }

    /// Returns the table of a cohort, which holds nothing if the cohort is not known here. Every
    /// call for the same cohort returns a handle of the same table; `range` counts for the first.
    pub fn cohort(&self, id: CohortId, range: KeyRange) -> Result<CohortTable, TableError> {
        let _busy = self.shared.occupy(id);
        let meta = {
            let cohorts = self.shared.cohorts.lock();
            if let Some(table) = cohorts.open.get(&id) {
                return Ok(table.clone());
            }
            cohorts.on_disk.get(&id).cloned()
        };
        let table = CohortTable::open(Arc::clone(&self.shared.core), id, range, meta, true)?;
        let mut cohorts = self.shared.cohorts.lock();
        cohorts.on_disk.remove(&id);
        cohorts.open.insert(id, table.clone());
        Ok(table)
    }

    /// Begins a table where those of `ended` ended, in key order, each on its rows that lie in the range
    /// named with it, unless it has begun already. Nothing of it is on disk before the next flush: until
    /// then, the logs of `ended` are what brings it back (RANGE-8).
    ///
    /// Refused if the table of one of `ended` is not open or not sealed.
    pub fn begin(
        &self,
        ended: &[(CohortId, KeyRange)],
        beginning: &Beginning,
    ) -> Result<(), TableError> {
        let cohort = beginning.cohort;
        // In one order, so that two that begin wait for no other in a circle.
        let ids: BTreeSet<_> = ended.iter().map(|(id, _)| *id).chain([cohort]).collect();
        let _busy: Vec<_> = ids.into_iter().map(|id| self.shared.occupy(id)).collect();
        if self.has_begun(cohort) {
            return Ok(());
        }
        let open = |(id, range): &(CohortId, KeyRange)| {
            let table = self.shared.cohorts.lock().open.get(id).cloned();
            Ok((table.ok_or(TableError::NotSealed(*id))?, range.clone()))
        };
        let before: Vec<_> = ended.iter().map(open).collect::<Result<_, TableError>>()?;
        let meta = begin::hand_on(&self.shared.core, &before, beginning)?;
        tracing::info!(?ended, %cohort, base = %beginning.base, "begins where others have ended");
        let (core, range) = (Arc::clone(&self.shared.core), beginning.range.clone());
        let table = CohortTable::open(core, cohort, range, Some(meta), false)?;
        self.shared.cohorts.lock().open.insert(cohort, table);
        Ok(())
    }

    /// Returns true if a cohort has a table here that includes anything.
    pub fn has_begun(&self, cohort: CohortId) -> bool {
        let cohorts = self.shared.cohorts.lock();
        let is_open = cohorts.open.get(&cohort).is_some_and(|table| table.applied() != Lsn::ZERO);
        is_open || cohorts.on_disk.contains_key(&cohort)
    }

    /// Returns the cohorts that have a table here, in ascending order.
    pub fn cohorts(&self) -> Vec<CohortId> {
        let cohorts = self.shared.cohorts.lock();
        let mut ids: Vec<_> = cohorts.on_disk.keys().chain(cohorts.open.keys()).copied().collect();
        ids.sort_unstable();
        ids
    }

    /// Removes everything that a cohort has here. Durable when it returns; after a crash before
    /// that, the cohort is there as it was or not at all. Its handles answer
    /// [`TableError::Dropped`] from now on.
    pub fn drop_cohort(&self, id: CohortId) -> Result<(), TableError> {
        let core = &self.shared.core;
        let _alone = self.shared.dropping.lock();
        let _busy = self.shared.occupy(id);
        let (open, meta) = {
            let cohorts = self.shared.cohorts.lock();
            (cohorts.open.get(&id).cloned(), cohorts.on_disk.get(&id).cloned())
        };
        let rows = match (open, meta) {
            (Some(table), _) => {
                // Waits for the reads that are under way.
                table.set_dropped();
                table.rows()
            }
            (None, Some(meta)) => meta.rows,
            (None, None) => return Ok(()),
        };
        // Without its meta row the rest is rubbish, which the next start removes if this does not.
        let mut batch = WriteBatch::default();
        batch.remove(&[&keys::meta_key(id)]);
        core.write(batch)?;
        core.remove_points(id);
        //= RANGE-12
        for part in rows.parts() {
            // Its successors have theirs there, too.
            let others = self.shared.rows_of_others(id, part.place.cohort);
            remove_except(core, part.span(), others)?;
        }
        remove_except(core, keys::cohort_span(id), self.shared.rows_of_others(id, id))?;
        core.flush()?;
        let mut cohorts = self.shared.cohorts.lock();
        cohorts.open.remove(&id);
        cohorts.on_disk.remove(&id);
        Ok(())
    }

    /// Makes everything applied before the call durable and moves every cohort's persisted point
    /// (S10). Concurrent flushes wait for one another.
    pub fn flush(&self) -> Result<(), TableError> {
        self.shared.core.flush()
    }

    /// Merges files in one step, and returns true if there may be more to merge. Without
    /// [`Tables::open_stepped`] a thread does so after each flush.
    pub fn merge(&self) -> Result<bool, TableError> {
        self.shared.core.compact()
    }

    /// Returns how far the cohorts' tables are on disk, for who gives up their logs.
    pub(crate) fn persisted_points(&self) -> PersistedPoints {
        PersistedPoints(Arc::downgrade(&self.shared.core))
    }

    /// Has `listener` called after each completed flush, in the thread that flushed. It must not
    /// call [`Tables::flush`].
    pub fn on_flush(&self, listener: Box<dyn Fn() + Send + Sync>) {
        self.shared.core.on_flush(listener.into());
    }

    /// Has `listener` called once when a write or flush fails, after which the tables take no more
    /// writes; at once if that has happened already.
    pub fn on_failure(&self, listener: Box<dyn Fn(&TableError) + Send + Sync>) {
        self.shared.core.on_failure(listener.into());
    }

    /// Has `listener` called whenever a cohort has ended here, in the thread that applied its seal. It
    /// must not wait for the tables.
    pub fn on_seal(&self, listener: Box<dyn Fn(CohortId) + Send + Sync>) {
        self.shared.core.on_seal(listener.into());
    }

    /// Returns the engine's surroundings, for tests that damage what is in it.
    #[cfg(test)]
    pub(crate) fn core(&self) -> &Core {
        &self.shared.core
    }

    /// Returns what the tables have done and hold.
    pub fn metrics(&self) -> TableMetrics {
        self.shared.core.metrics()
    }

    /// Flushes and ends the maintenance threads. Nothing is written any more after it, and reads may be
    /// refused.
    pub fn close(&self) -> Result<(), TableError> {
        let flushed = match self.shared.core.flush() {
            Err(TableError::Closed) => Ok(()),
            result => result,
        };
        let maintenance = self.shared.maintenance.lock().take();
        // Ends its threads, which may be at the disk.
        drop(maintenance);
        self.shared.core.forget_listeners();
        flushed?;
        self.shared.core.close_engine()
    }
}

/// Finds the cohorts that have a meta row, and removes every other generation and every cohort
/// without one: what interrupted installations, replaced generations and removals have left. Rows
/// that lie under another cohort's number stay, whatever became of that one (RANGE-12).
fn find_cohorts(core: &Core) -> Result<BTreeMap<CohortId, Meta>, TableError> {
    let mut present = Vec::new();
    let mut found = BTreeMap::new();
    let mut rest = Span::new(Vec::new(), keys::END_OF_KEYS.to_vec());
    while let Some((key, _)) = core.first(&rest)? {
        let place = keys::place_of(&key).ok_or_else(|| {
            let reason = format!("the key {key:?} is too short");
            keys::corrupt(CohortId(0), "the keyspace", reason)
        })?;
        present.push(place.cohort);
        if let Some(value) = core.get(&keys::meta_key(place.cohort))? {
            found.insert(place.cohort, Meta::decode(place.cohort, &value)?);
        }
        rest.start = keys::cohort_span(place.cohort).end;
    }
    for cohort in present {
        let others = found.values().flat_map(|meta| meta.rows.under(cohort));
        let mut kept: Vec<Span> = others.collect();
        if let Some(meta) = found.get(&cohort) {
            let key = keys::meta_key(cohort);
            kept.push(Span::new(key.to_vec(), [&key[..], &[0]].concat()));
            kept.push(Place { cohort, generation: meta.generation }.all());
        }
        remove_except(core, keys::cohort_span(cohort), kept)?;
    }
    Ok(found)
}

/// Removes what is in the span and in none of `kept`.
fn remove_except(core: &Core, span: Span, mut kept: Vec<Span>) -> Result<(), TableError> {
    kept.sort_by(|a, b| a.start.cmp(&b.start));
    let mut start = span.start;
    for Span { start: from, end, .. } in kept {
        let from = from.min(span.end.clone());
        if start < from {
            core.remove_span(&Span::new(start.clone(), from))?;
        }
        start = start.max(end);
    }
    if start < span.end { core.remove_span(&Span::new(start, span.end)) } else { Ok(()) }
}
