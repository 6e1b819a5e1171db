//! One cohort's table: what its log amounts to.
//!
//! # What is guaranteed
//!
//! * **One order, one outcome.** Commands are judged when they are applied, in log order, each
//!   against the rows as all earlier commands left them, those of the same call included. So every
//!   replica comes to the same outcome, and of two conditional writes that await the same version
//!   only the first passes, however close they follow (S12).
//! * **Versions never repeat.** A write's version is the cohort's write counter at that write. The
//!   counter goes on across deletions, so a version once seen never returns with another value
//!   (S13). A deletion of a row takes a number too; a command that changes nothing takes none.
//! * **Retries do not apply twice** (C1). The outcome of each request is kept with the rows, and a
//!   request that comes again gets the recorded outcome.
//! * **All or nothing.** The changes of one call of [`CohortTable::apply`] reach the engine in one
//!   batch together with the applied point, so readers and restarts see whole calls.
//!
//! # The outcome of a deletion
//!
//! | condition | row there | row absent |
//! |---|---|---|
//! | none | deleted, existed | deleted, did not exist; no number |
//! | version matches | deleted, existed | condition failed, no current version |
//! | version differs | condition failed, current version | condition failed, no current version |
//! | absent | condition failed, current version | deleted, did not exist; no number |
//!
//! # Sessions
//!
//! Every request that carries a [`trireme_types::RequestId`] is recorded with its outcome, a failed
//! condition included: whoever wants to try again after a definite answer takes a new sequence.
//! Only [`Outcome::WrongRange`] is not recorded, since the write may yet be applied by the cohort
//! that its key belongs to. A request below the highest `first_incomplete` that its client has
//! named, or below what could be kept of a client with too much under way, is not applied; its
//! outcome is [`Outcome::ConditionFailed`] without a current version, which says truly that nothing
//! was changed, and which the client does not await any more.
//!
//! A session lives by the cohort's clock, which is in the log ([`trireme_types::CommandBatch`]): for
//! [`trireme_types::limits::SESSION_LIFETIME`] after the client was last heard. The write of a client
//! that may have been forgotten is refused as that, [`Outcome::SessionGone`]; where there is no room
//! for another session or outcome, [`Outcome::SessionsFull`]. Neither is recorded.
//!
//! # Generations
//!
//! A snapshot is installed beside the rows in force, under the next generation number, and then
//! takes their place by one write of the meta row. A crash leaves the old rows or the new ones.
//!
//! # The seal
//!
//! A cohort ends with a seal ([`trireme_types::Seal`]): the table records it and stays as it is from then
//! on. What comes behind it in the log changes nothing, and commands there have the outcome
//! [`Outcome::WrongRange`]. A sealed table answers no read and gives no snapshot: its successors may
//! have changed the rows, which they have where they lie ([`crate::Tables::begin`]).
//!
//! # What is left out
//!
//! The range is not replicated state here: [`CohortTable::set_range`] is told it. For replicas to
//! agree, it must be told at the same point of the log on each of them, and a restart that applies
//! entries from before that point must first be told the range of that time.

mod apply;
pub(crate) mod begin;
#[cfg(test)]
mod fuzz;
pub(crate) mod install;
mod sessions;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use trireme_types::limits::{SCAN_BYTES_MAX, SCAN_ROWS_MAX};
use trireme_types::{CohortId, Entry, KeyRange, Lsn, Outcome, PATH, Seal, Version};

use crate::cohort_table::apply::{Apply, Decoded};
use crate::cohort_table::sessions::Sessions;
use crate::snapshot::{SnapshotHeader, SnapshotReader};
use crate::table::keys::{self, Meta, PREFIX_BYTES, Place};
use crate::table::rows::Rows;
use crate::table::{Core, Points, ScanBudget, Scanned, Span, TableError, Visit, WriteBatch};

/// What one page of a scan may read, deleted rows and older versions included. It takes a few
/// milliseconds; more makes scans over deleted rows take fewer pages, and others wait longer.
const PAGE_BUDGET: ScanBudget =
    ScanBudget { entries: 2 * SCAN_ROWS_MAX, bytes: 4 * SCAN_BYTES_MAX };

/// The most bytes of entries that [`CohortTable::apply_resident`] applies in one call, in less than a
/// millisecond: it is for threads on which others wait.
pub const APPLY_RESIDENT_BYTES_MAX: usize = 256 * 1024;

/// How often it is looked whether the readers of what was replaced are done. Only a scan of files takes
/// longer than this.
const READERS_PAUSE: Duration = Duration::from_millis(1);

/// What became of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The entry.
    pub lsn: Lsn,
    /// One outcome per command, in order; empty for an entry without commands.
    pub outcomes: Vec<Outcome>,
}

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The version of the value.
    pub version: Version,
}

/// A part of a scan's answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPage {
    /// The rows, in the order asked for.
    pub rows: Vec<Row>,
    /// Whether a limit ended the page and more rows may follow.
    pub more: bool,
    /// If so, the last key that the page covers: the next page starts after it. It need not be that
    /// of a row.
    pub last: Option<Bytes>,
}

/// One cohort's rows, versions and sessions. A clone is another handle of the same table.
///
/// Reads run beside [`CohortTable::apply`]; calls of apply, [`CohortTable::install`] and the start
/// of a snapshot run one at a time.
#[derive(Clone)]
pub struct CohortTable {
    state: Arc<State>,
}

struct State {
    id: CohortId,
    core: Arc<Core>,
    points: Arc<Points>,
    /// Kept by each reader while rows are looked up, so that a generation is not removed under it. It is
    /// replaced and never locked: what replaces it waits for the readers there are, and no later reader
    /// waits for either.
    serving: ArcSwap<Serving>,
    /// Held while `serving` is replaced, so that no replacement is lost.
    replacing: Mutex<()>,
    /// Taken before `replacing` where both are needed.
    writer: Mutex<Writer>,
    protocol: RwLock<Option<(Lsn, Bytes)>>,
    seal: RwLock<Option<(Lsn, Arc<Seal>)>>,
    /// The cohort's clock as of what was applied last.
    clock: AtomicU64,
    /// What was written since the table was opened.
    written_bytes: AtomicU64,
}

/// Where reads go.
#[derive(Clone)]
pub(crate) struct Serving {
    generation: u32,
    rows: Rows,
    range: KeyRange,
    is_sealed: bool,
    is_dropped: bool,
}

/// What an apply works on beside the rows.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    applied: Lsn,
    /// The version of the last write.
    writes: u64,
    protocol: Option<(Lsn, Bytes)>,
    /// Whether `protocol` is newer than its row.
    protocol_changed: bool,
    /// What ended the cohort.
    seal: Option<(Lsn, Arc<Seal>)>,
    /// Whether it is newer than its row.
    seal_changed: bool,
    /// Where the rows lie.
    rows: Rows,
    sessions: Sessions,
}

impl CohortTable {
    /// Opens a cohort's table: reads its sessions and its protocol state. Without a meta row there
    /// is nothing yet.
    pub(crate) fn open(
        core: Arc<Core>,
        id: CohortId,
        range: KeyRange,
        meta: Option<Meta>,
        is_on_disk: bool,
    ) -> Result<Self, TableError> {
        let rows = Rows::Own;
        let none = Meta { generation: 1, applied: Lsn::ZERO, writes: 0, clock: 0, rows };
        let meta = meta.unwrap_or(none);
        let place = Place { cohort: id, generation: meta.generation };
        let mut writer = Writer {
            applied: meta.applied,
            writes: meta.writes,
            sessions: Sessions::at(meta.clock),
            rows: meta.rows,
            ..Writer::default()
        };
        if let Some(value) = core.get(&place.prefix(keys::KIND_SEAL))? {
            let (lsn, seal) = keys::decode_seal(id, &value)?;
            writer.seal = Some((lsn, Arc::new(seal)));
        }
        if let Some(value) = core.get(&place.prefix(keys::KIND_PROTOCOL))? {
            writer.protocol = Some(keys::decode_protocol(id, &value)?);
        }
        for row in core.view(&place.kind(keys::KIND_SESSION))? {
            let (key, value) = row?;
            writer.sessions.load(id, key.get(PREFIX_BYTES..).unwrap_or_default(), &value)?;
        }
        // What was begun a moment ago is not on disk yet; the next flush raises its point.
        let persisted = if is_on_disk { meta.applied } else { Lsn::ZERO };
        let points = Points::new(meta.applied, persisted);
        core.add_points(id, Arc::clone(&points));
        let serving = Serving {
            generation: meta.generation,
            rows: writer.rows.clone(),
            range,
            is_sealed: writer.seal.is_some(),
            is_dropped: false,
        };
        let state = State {
            id,
            core,
            points,
            serving: ArcSwap::from_pointee(serving),
            replacing: Mutex::default(),
            protocol: RwLock::new(writer.protocol.clone()),
            seal: RwLock::new(writer.seal.clone()),
            clock: AtomicU64::new(meta.clock),
            written_bytes: AtomicU64::new(0),
            writer: Mutex::new(writer),
        };
        Ok(Self { state: Arc::new(state) })
    }

    /// Applies entries in order, as one batch: the outcomes are returned when all of it is visible.
    ///
    /// The entries must rise from [`CohortTable::applied`] on. Nothing has changed after
    /// [`TableError::OutOfOrder`] and [`TableError::Batch`]; any other error has made the tables
    /// fail. May wait for a flush if memory is full.
    pub fn apply(&self, entries: &[Entry]) -> Result<Vec<Applied>, TableError> {
        let state = &*self.state;
        state.core.check_usable()?;
        let mut writer = state.writer.lock();
        let serving = state.present()?;
        let entries = apply::decode(serving.place(state.id), writer.applied, entries)?;
        state.apply(&mut writer, serving, entries)
    }

    /// Does what [`CohortTable::apply`] does, for at most [`APPLY_RESIDENT_BYTES_MAX`], if that waits
    /// neither for a disk or a flush nor for another change of the table; `None`, with nothing changed,
    /// if it may.
    pub fn apply_resident(&self, entries: &[Entry]) -> Result<Option<Vec<Applied>>, TableError> {
        let state = &*self.state;
        state.core.check_usable()?;
        let bytes: usize = entries.iter().map(|entry| entry.payload.len()).sum();
        if bytes > APPLY_RESIDENT_BYTES_MAX {
            return Ok(None);
        }
        let Some(mut writer) = state.writer.try_lock() else { return Ok(None) };
        let serving = state.present()?;
        let place = serving.place(state.id);
        let entries = apply::decode(place, writer.applied, entries)?;
        if !state.core.writes_at_once()
            || !apply::is_resident(&state.core, place, &writer.rows, &entries)?
        {
            return Ok(None);
        }
        state.apply(&mut writer, serving, entries).map(Some)
    }

    /// Returns the last entry that was applied; [`Lsn::ZERO`] if there was none.
    pub fn applied(&self) -> Lsn {
        self.state.points.applied()
    }

    /// Returns the cohort's clock, in milliseconds, as of the last entry that was applied. It counts
    /// the time that has passed while the cohort took writes, and never goes back.
    pub fn clock(&self) -> u64 {
        self.state.clock.load(Ordering::Acquire)
    }

    /// Returns the last entry that was applied when the last completed flush began: the log up to
    /// it is not needed for this table any more.
    pub fn persisted(&self) -> Lsn {
        self.state.points.persisted()
    }

    /// Returns the newest protocol entry that was applied, with its payload.
    pub fn protocol_state(&self) -> Option<(Lsn, Bytes)> {
        self.state.protocol.read().clone()
    }

    /// Returns what ended the cohort and where, if something has.
    pub fn seal(&self) -> Option<(Lsn, Arc<Seal>)> {
        self.state.seal.read().clone()
    }

    /// Returns true if the cohort has ended.
    pub fn is_sealed(&self) -> bool {
        self.state.serving.load().is_sealed
    }

    /// Returns the cohort.
    pub fn id(&self) -> CohortId {
        self.state.id
    }

    /// Returns the row of a key; `None` if there is none or if the key is not in the range.
    pub fn get(&self, key: &[u8]) -> Result<Option<Row>, TableError> {
        let state = &*self.state;
        let serving = state.serving()?;
        if !serving.range.contains(key) {
            return Ok(None);
        }
        let value = state.core.get(&serving.row_key(state.id, key))?;
        state.row(key, value)
    }

    /// Returns the row of a key as [`CohortTable::get`] does, and the last entry that the state
    /// includes in which it was found.
    pub fn get_with_applied(&self, key: &[u8]) -> Result<(Option<Row>, Lsn), TableError> {
        let state = &*self.state;
        loop {
            let serving = state.serving()?;
            let place = serving.place(state.id);
            // The applied point is written together with the rows, and so it is read.
            let keys = [&keys::meta_key(state.id)[..], &serving.row_key(state.id, key)];
            let [meta, value] = state.core.get_both(keys)?;
            let Some(applied) = state.applied_of(place, meta.as_ref())? else {
                std::thread::yield_now();
                continue;
            };
            let row = state.row(key, value.filter(|_| serving.range.contains(key)))?;
            return Ok((row, applied));
        }
    }

    /// Returns what [`CohortTable::get_with_applied`] does if that takes no read of a file; `None`
    /// where a file may have to be read.
    pub fn get_resident_with_applied(
        &self,
        key: &[u8],
    ) -> Result<Option<(Option<Row>, Lsn)>, TableError> {
        let state = &*self.state;
        let serving = state.serving()?;
        let place = serving.place(state.id);
        let keys = [&keys::meta_key(state.id)[..], &serving.row_key(state.id, key)];
        let Some([meta, value]) = state.core.get_both_resident(keys)? else { return Ok(None) };
        // Where the rows are just being replaced, a caller that may wait reads again.
        let Some(applied) = state.applied_of(place, meta.as_ref())? else { return Ok(None) };
        let row = state.row(key, value.filter(|_| serving.range.contains(key)))?;
        Ok(Some((row, applied)))
    }

    /// Returns what [`CohortTable::get`] does if that takes no read of a file: the outer option is
    /// `None` where a file may have to be read.
    pub fn get_resident(&self, key: &[u8]) -> Result<Option<Option<Row>>, TableError> {
        let state = &*self.state;
        let serving = state.serving()?;
        if !serving.range.contains(key) {
            return Ok(Some(None));
        }
        let row_key = serving.row_key(state.id, key);
        let Some(value) = state.core.get_resident(&row_key)? else { return Ok(None) };
        Ok(Some(state.row(key, value)?))
    }

    /// Returns the rows of `range` that lie in the cohort's own range, as of one moment, from the
    /// lowest key upwards or from the highest downwards. A page holds at most `limit` rows, at most
    /// [`SCAN_ROWS_MAX`], and ends after the row that passes [`SCAN_BYTES_MAX`]. It also ends, with
    /// the rows found until then, once it has read `PAGE_BUDGET`: what was deleted costs as much as
    /// what is there.
    pub fn scan(
        &self,
        range: &KeyRange,
        limit: usize,
        reverse: bool,
    ) -> Result<ScanPage, TableError> {
        let state = &*self.state;
        let serving = state.serving()?;
        let spans = serving.spans(state.id, range, reverse);
        let scan = |visit: Visit<'_>| Ok(((), state.core.scan(&spans, PAGE_BUDGET, visit)?));
        let (page, ()) = state.core.readable(collect(state.id, limit, scan))?;
        Ok(page)
    }

    /// Returns a page as [`CohortTable::scan`] does, and the last entry that the state includes in
    /// which its rows were found.
    pub fn scan_with_applied(
        &self,
        range: &KeyRange,
        limit: usize,
        reverse: bool,
    ) -> Result<(ScanPage, Lsn), TableError> {
        let state = &*self.state;
        let meta_key = keys::meta_key(state.id);
        loop {
            let serving = state.serving()?;
            let place = serving.place(state.id);
            let spans = serving.spans(state.id, range, reverse);
            let scan =
                |visit: Visit<'_>| state.core.get_and_scan(&meta_key, &spans, PAGE_BUDGET, visit);
            let (page, meta) = state.core.readable(collect(state.id, limit, scan))?;
            if let Some(applied) = state.applied_of(place, meta.as_ref())? {
                return Ok((page, applied));
            }
            std::thread::yield_now();
        }
    }

    /// Returns how many bytes the files hold that rows of the range are in: an upper bound of what the range
    /// takes on the disk, since files may hold rows of others too. What is in memory alone is not in it.
    pub fn file_bytes(&self) -> Result<u64, TableError> {
        let serving = self.state.serving()?;
        let spans = serving.spans(self.state.id, &KeyRange::all(), false);
        Ok(self.state.core.file_bytes(&spans))
    }

    /// Returns how many bytes entries have made the table write since it was opened: by no more have its rows
    /// grown. A snapshot that is installed does not count.
    pub fn written_bytes(&self) -> u64 {
        self.state.written_bytes.load(Ordering::Relaxed)
    }

    /// Has the table serve `range` from now on. Rows outside it stay on disk but are not served,
    /// and commands on them have the outcome [`Outcome::WrongRange`].
    /// When this returns, nothing of the range before is under way.
    pub fn set_range(&self, range: KeyRange) {
        let replaced = {
            let _replacing = self.state.replacing.lock();
            self.state.replace(|serving| Serving { range, ..serving })
        };
        wait_for_readers(&replaced);
    }

    /// Begins a snapshot of the table as of this call: the rows in the range, the sessions and the
    /// protocol state.
    pub fn snapshot(&self) -> Result<SnapshotReader, TableError> {
        let state = &*self.state;
        // Nothing is applied while the view is taken, so it fits the header.
        let writer = state.writer.lock();
        let serving = state.serving()?;
        let place = serving.place(state.id);
        let header = SnapshotHeader {
            cohort: state.id,
            applied: writer.applied,
            writes: writer.writes,
            clock: writer.sessions.clock(),
            range: serving.range.clone(),
            protocol: writer.protocol.clone(),
        };
        let sessions = state.core.view(&place.kind(keys::KIND_SESSION))?;
        let spans = serving.spans(state.id, &serving.range, false).into_iter();
        let rows: Vec<_> = spans.map(|span| state.core.view(&span)).collect::<Result<_, _>>()?;
        let rows = Box::new(rows.into_iter().flatten());
        Ok(SnapshotReader::new(header, sessions, rows))
    }

    /// Does what a reader does while it looks up rows, until what this returns is dropped.
    #[cfg(test)]
    pub(crate) fn begin_to_read(&self) -> impl Drop + '_ {
        self.state.serving.load_full()
    }

    /// Refuses everything from now on. When this returns, nothing is under way any more.
    pub(crate) fn set_dropped(&self) {
        let replaced = {
            let _replacing = self.state.replacing.lock();
            self.state.replace(|serving| Serving { is_dropped: true, ..serving })
        };
        wait_for_readers(&replaced);
    }
}

impl State {
    /// Returns where reads go now, which stays as it is while the caller keeps it.
    fn serving(&self) -> Result<Guard<Arc<Serving>>, TableError> {
        let serving = self.present()?;
        //= RANGE-3
        if serving.is_sealed { Err(TableError::Sealed(self.id)) } else { Ok(serving) }
    }

    /// Returns where the rows are, also if they are not to be read here any more.
    fn present(&self) -> Result<Guard<Arc<Serving>>, TableError> {
        let serving = self.serving.load();
        if serving.is_dropped { Err(TableError::Dropped(self.id)) } else { Ok(serving) }
    }

    /// Applies entries that were decoded under the lock of `writer`.
    fn apply(
        &self,
        writer: &mut Writer,
        serving: Guard<Arc<Serving>>,
        entries: Vec<Decoded>,
    ) -> Result<Vec<Applied>, TableError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        let mut apply = Apply::new(&self.core, serving.place(self.id), &serving.range, writer);
        // The sessions in memory are ahead of the disk after a failure, so it must be the end.
        let applied = apply.run(entries).map_err(|error| self.core.fail(error))?;
        let batch = apply.into_batch();
        let bytes = batch.bytes() as u64;
        self.core.write(batch)?;
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        if std::mem::take(&mut writer.protocol_changed) {
            self.protocol.write().clone_from(&writer.protocol);
        }
        self.clock.store(writer.sessions.clock(), Ordering::Release);
        if std::mem::take(&mut writer.seal_changed) {
            drop(serving);
            self.end(writer);
        }
        self.points.set_applied(writer.applied);
        tracing::trace!(target: PATH, cohort = %self.id, upto = %writer.applied, "path: applied");
        Ok(applied)
    }

    /// Refuses every read from now on, since the cohort has ended. When this returns, none is under way:
    /// the successors may change the rows. The writer is locked.
    fn end(&self, writer: &Writer) {
        //= RANGE-3
        self.seal.write().clone_from(&writer.seal);
        let replaced = {
            let _replacing = self.replacing.lock();
            self.replace(|serving| Serving { is_sealed: true, ..serving })
        };
        wait_for_readers(&replaced);
        tracing::info!(cohort = %self.id, seal = ?writer.seal, "sealed");
        self.core.sealed(self.id);
    }

    /// Reads the row that was found for a key.
    fn row(&self, key: &[u8], value: Option<Bytes>) -> Result<Option<Row>, TableError> {
        let row = value.map(|value| decode_row(self.id, key, &value)).transpose();
        self.core.readable(row)
    }

    /// Reads the last applied entry from a cohort's meta row; without one nothing was applied. `None`
    /// if the row is of another generation than what was read with it, which is just being replaced.
    fn applied_of(&self, place: Place, meta: Option<&Bytes>) -> Result<Option<Lsn>, TableError> {
        let Some(meta) = meta else { return Ok(Some(Lsn::ZERO)) };
        let meta = self.core.readable(Meta::decode(place.cohort, meta))?;
        Ok((meta.generation == place.generation).then_some(meta.applied))
    }

    /// Has later reads go elsewhere, and returns where they went. `replacing` is held.
    fn replace(&self, change: impl FnOnce(Serving) -> Serving) -> Arc<Serving> {
        let next = change(Serving::clone(&self.serving.load()));
        self.serving.swap(Arc::new(next))
    }
}

/// Waits until no reader uses `replaced` any more.
fn wait_for_readers(replaced: &Arc<Serving>) {
    while Arc::strong_count(replaced) > 1 {
        std::thread::sleep(READERS_PAUSE);
    }
}

impl Serving {
    const fn place(&self, cohort: CohortId) -> Place {
        Place { cohort, generation: self.generation }
    }

    /// Returns the engine key of a user key.
    fn row_key(&self, cohort: CohortId, key: &[u8]) -> Vec<u8> {
        self.rows.place_of(self.place(cohort), key).row_key(key)
    }

    /// Returns where the served rows of `range` lie, in the order in which they are to be read.
    fn spans(&self, cohort: CohortId, range: &KeyRange, reverse: bool) -> Vec<Span> {
        self.rows.spans(self.place(cohort), &self.range.intersection(range), reverse)
    }
}

impl Writer {
    /// Counts a write and returns its version.
    fn next_version(&mut self) -> Version {
        // Counting cannot reach the end; a damaged counter must not panic there.
        self.writes = self.writes.saturating_add(1);
        Version(self.writes)
    }

    /// Adds what an apply changes beside the rows: sessions, protocol state, meta row.
    fn write_own_rows(&mut self, place: Place, batch: &mut WriteBatch) {
        self.sessions.write_changed(place, batch);
        if let (true, Some((lsn, payload))) = (self.protocol_changed, &self.protocol) {
            let key = place.prefix(keys::KIND_PROTOCOL);
            batch.put(&[&key], &[&keys::lsn_header(*lsn), payload]);
        }
        if let (true, Some((lsn, seal))) = (self.seal_changed, &self.seal) {
            let key = place.prefix(keys::KIND_SEAL);
            batch.put(&[&key], &[&keys::lsn_header(*lsn), &seal.encode()]);
        }
        let meta = Meta {
            generation: place.generation,
            applied: self.applied,
            writes: self.writes,
            clock: self.sessions.clock(),
            rows: self.rows.clone(),
        };
        batch.put(&[&keys::meta_key(place.cohort)], &[&meta.encode()]);
    }
}

/// Gathers what `scan` shows into a page of at most `limit` rows.
fn collect<T>(
    cohort: CohortId,
    limit: usize,
    scan: impl FnOnce(Visit<'_>) -> Result<(T, Scanned), TableError>,
) -> Result<(ScanPage, T), TableError> {
    let limit = limit.min(SCAN_ROWS_MAX);
    let mut page = ScanPage::default();
    let mut bytes = 0;
    let mut damaged = None;
    let (value, scanned) = scan(&mut |key, value| {
        if page.rows.len() >= limit || bytes >= SCAN_BYTES_MAX {
            page.more = true;
            page.last = page.rows.last().map(|row| row.key.clone());
            return ControlFlow::Break(());
        }
        match decode_entry(cohort, &key, &value) {
            Ok(row) => {
                bytes += row.key.len() + row.value.len();
                page.rows.push(row);
                ControlFlow::Continue(())
            }
            Err(error) => {
                damaged = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    if let Some(key) = scanned.paused_at {
        page.more = true;
        page.last = Some(key.slice(PREFIX_BYTES.min(key.len())..));
    }
    damaged.map_or(Ok((page, value)), Err)
}

fn decode_row(cohort: CohortId, key: &[u8], value: &Bytes) -> Result<Row, TableError> {
    let (version, value) = keys::decode_row(cohort, value)?;
    Ok(Row { key: Bytes::copy_from_slice(key), value, version })
}

fn decode_entry(cohort: CohortId, key: &Bytes, value: &Bytes) -> Result<Row, TableError> {
    let (version, value) = keys::decode_row(cohort, value)?;
    // The span that was scanned holds no shorter key.
    Ok(Row { key: key.slice(PREFIX_BYTES.min(key.len())..), value, version })
}
