//! The default engine: the log-structured merge tree of the crate `lsm-tree`.
//!
//! The crate gives memtables, sorted files and their merging, and leaves sequence numbers,
//! visibility, flushing and compaction to its user. This is how they are used here:
//!
//! * **One batch, one sequence number.** A writer takes the next number under `writer`, inserts
//!   every change under it, and only then raises `visible`. A reader sees numbers below `visible`,
//!   so it sees all of a batch or nothing. Batches are inserted one at a time.
//! * **No batch is split over two memtables.** Batches go into the memtable of `memtables`, and
//!   another takes its place under `writer` too: after the tree has sealed it, and before it is
//!   written to files. Sealed memtables reach the disk in order, and the tree's manifest takes up
//!   all files of one flush in one step, so what a crash leaves is a prefix of the batches.
//! * **Batches do not wait for a disk.** The tree keeps the lock on its list of files while it forces
//!   the list, so they go to the memtables directly, and no lock that they take is held while the
//!   tree's is waited for. Look-ups in memory wait for it only behind a flush or merge that waits for
//!   a reader which has yet to find its version of the tree.
//! * **`visible` is ours alone.** The tree raises the counter that it is given whenever it installs
//!   files, which may be in the middle of a batch; it is given one that nobody reads. Its versions
//!   take their numbers from the shared counter, so that each reader finds the version of the tree
//!   that fits its number.
//! * **Old versions.** Flushes and compactions may forget what no reader can ask for any more: the
//!   watermark is the value of `visible`, once every reader that holds an older one is done with
//!   its look-up (`readers`). A view that goes on for long holds its files by itself.
//! * **Scans are counted.** They read the tree's parts by themselves (`lsm_merge`), so that deleted
//!   rows and older versions count too, and give way. The memtables are noted in `memtables` when
//!   they are replaced, under its lock. A reader takes its number, then the memtables, then the
//!   files: what moves on meanwhile is seen twice, never missed.
//! * **Rows of files** that were read or flushed of late are kept (`row_cache`). A reader looks into
//!   the memtables first, so the cache must be brought up to date before a flush empties them.
//! * **Tombstones** go when the levels are merged. Where scans pass over many, all files are merged
//!   at once, if enough of what they hold is tombstones.
//! * **What is opened is on disk.** The tree forces its files when it writes them, but a process may
//!   have died before it did, with the files in the system's memory; they are forced again at a start.
//! * **After a restart** the numbers go on above the highest one found on disk. A merge into the
//!   last level writes 0 in place of numbers, which is below every later one, so that is enough.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use lsm_tree::compaction::Leveled;
use lsm_tree::{
    AbstractTree, AnyTree, Cache, Config, DescriptorTable, Guard, InternalValue, SeqNo,
    SequenceNumberCounter, Slice, ValueType,
};
use parking_lot::{Mutex, RwLock};
use trireme_types::Engine;

use crate::table::engine::{ScanBudget, Scanned, Span, TableEngine, View, Visit, scan_all};
use crate::table::lsm_merge::{Memtables, Parts};
use crate::table::row_cache::{Flushes, RowCache};
use crate::table::{TableError, WriteBatch, folder, lsm_files};

/// The sorted runs in the first level at which flushes wait for compaction. Each run is one more
/// place for a read to look; the tree begins to merge them at 4.
const FIRST_LEVEL_RUNS_MAX: usize = 20;

/// Where in its folder the tree keeps its sorted files.
pub(super) const TABLES_FOLDER: &str = "tables";

/// Of so many bytes of cache one is for rows; the others are for blocks of files. A row in its cache
/// takes a fraction of its block, and is read without a switch of threads; blocks serve scans too.
const ROW_CACHE_SHARE: u64 = 2;

/// The levels of a tree.
const LEVELS: usize = 7;

/// All files are rewritten to be rid of tombstones if at least one in so many entries is one: it is
/// the most entries that are written again for each tombstone that goes.
const ENTRIES_PER_TOMBSTONE_MAX: u64 = 8;

/// The most files that are merged at once, each of which is open meanwhile. A tree with more has
/// its tombstones merged away level by level.
const PURGE_FILES_MAX: usize = 64;

/// What a disk that cannot read a sector answers.
const EIO: i32 = rustix::io::Errno::IO.raw_os_error();

/// The size of the files that such a merge writes; the tree's own default.
const FILE_BYTES: u64 = 64 * 1024 * 1024;

/// A log-structured merge tree.
pub(crate) struct LsmEngine {
    folder: PathBuf,
    tree: AnyTree,
    /// Gives every batch and every version of the tree its number.
    numbers: SequenceNumberCounter,
    /// Numbers below it are visible. Raised only under `writer`, so never amid a batch.
    visible: AtomicU64,
    /// Held while a batch is inserted and while another memtable takes the place of a sealed one.
    writer: Mutex<()>,
    /// Held for reading from the moment a reader takes its number until it has found its version
    /// of the tree, or has recorded the number in `file_readers`; taken for writing to wait for those
    /// who came before. Never held while a file is read.
    readers: RwLock<()>,
    /// How many readers of files are under way below each number.
    file_readers: Mutex<BTreeMap<SeqNo, usize>>,
    /// The tree's memtables.
    memtables: RwLock<Memtables>,
    /// Rows of its files.
    rows: RowCache,
    strategy: Arc<Leveled>,
    /// Bytes in the memtable that is written to. Changed only under `writer`.
    active_bytes: AtomicU64,
    /// Bytes in the memtables that wait for the disk.
    sealed_bytes: AtomicU64,
}

impl LsmEngine {
    /// Opens the tree in the folder `path`, or begins one there.
    pub(crate) fn open(
        path: &Path,
        cache_bytes: u64,
        open_files_max: usize,
    ) -> Result<Self, TableError> {
        let row_bytes = cache_bytes / ROW_CACHE_SHARE;
        let numbers = SequenceNumberCounter::default();
        let config = Config::new(path, numbers.clone(), SequenceNumberCounter::default())
            .use_cache(Arc::new(Cache::with_capacity_bytes(cache_bytes - row_bytes)))
            .use_descriptor_table(Some(Arc::new(DescriptorTable::new(open_files_max))));
        let will_not_open =
            |path, reason| TableError::WillNotOpen { engine: Engine::Lsm, path, reason };
        lsm_files::check_list(path).map_err(|damage| will_not_open(damage.path, damage.reason))?;
        let tree = folder::catch_panic(Engine::Lsm, path, || {
            config.open().map_err(|error| error.to_string())
        });
        let tree = tree.map_err(|error| match (error, lsm_files::find_damaged(path)) {
            (TableError::WillNotOpen { reason, .. }, Some(damaged)) => {
                will_not_open(damaged, reason)
            }
            (error, _) => error,
        })?;
        // A process that was killed may have left files that the system has and the disk has not.
        // What is read from now on counts as persisted, so it must be.
        folder::force_folder(path)?;
        folder::force_folder(&path.join(TABLES_FOLDER))?;
        // 0 is never visible and 1 always is, so that every reader finds a version of the tree.
        let next = tree.get_highest_seqno().map_or(1, |highest| highest + 1).max(1);
        numbers.set(next);
        let memtables = Memtables { active: tree.active_memtable(), sealed: Vec::new() };
        Ok(Self {
            folder: path.to_owned(),
            tree,
            memtables: RwLock::new(memtables),
            rows: RowCache::new(row_bytes),
            numbers,
            visible: AtomicU64::new(next),
            writer: Mutex::new(()),
            readers: RwLock::new(()),
            file_readers: Mutex::default(),
            strategy: Arc::new(Leveled::default()),
            active_bytes: AtomicU64::new(0),
            sealed_bytes: AtomicU64::new(0),
        })
    }

    /// Calls `read` with the number below which it may see. `read` must find its version of the
    /// tree before it returns; what it reads from that version may come later.
    fn with_visible<T>(&self, read: impl FnOnce(SeqNo) -> T) -> T {
        let _reading = self.readers.read();
        read(self.visible.load(Ordering::Acquire))
    }

    /// Calls `read` with the number below which it may see. No entry that it needs is forgotten
    /// meanwhile, so it may read files, and nothing waits for it.
    fn with_files<T>(&self, read: impl FnOnce(SeqNo) -> T) -> T {
        let reader = self.with_visible(|visible| FileReader::new(&self.file_readers, visible));
        read(reader.visible)
    }

    /// Returns a number at or below that of every reader to come and of every reader still about.
    fn watermark(&self) -> SeqNo {
        let visible = self.visible.load(Ordering::Acquire);
        // Readers that took an older number hold the lock, if they have not recorded it; those after
        // this hold a newer number.
        drop(self.readers.write());
        let oldest = self.file_readers.lock().first_key_value().map(|(oldest, _)| *oldest);
        oldest.map_or(visible, |oldest| oldest.min(visible))
    }

    /// Lets readers use the newest version of the tree: between batches every number that was
    /// given out belongs to something complete.
    fn show_newest_version(&self) {
        let _writing = self.writer.lock();
        self.visible.store(self.numbers.get().max(1), Ordering::Release);
    }

    /// Returns what changes with every compaction that changes anything.
    fn shape(&self) -> (u64, [Option<usize>; LEVELS]) {
        (self.tree.disk_space(), std::array::from_fn(|level| self.tree.level_table_count(level)))
    }

    fn rows(&self, span: &Span) -> impl DoubleEndedIterator<Item = RowResult> + Send + use<> {
        let range = &span.start[..]..&span.end[..];
        let folder = self.folder.clone();
        self.with_visible(|visible| self.tree.range(range, visible, None)).map(move |row| {
            let (key, value) = row.into_inner().map_err(|e| failed(&folder, "read rows", e))?;
            Ok((Bytes::from(key), Bytes::from(value)))
        })
    }

    /// Returns what a scan at `visible` reads. The caller is in [`Self::with_visible`].
    fn parts(&self, span: &Span, visible: SeqNo) -> Parts {
        // A copy: their lock must not be held while the tree's is waited for.
        let memtables = self.memtables.read().to_vec();
        Parts::new(&self.tree, memtables, span, visible)
    }

    /// Returns what scans of the spans read, and from which side.
    fn parts_of_all(&self, spans: &[Span], visible: SeqNo) -> Vec<(bool, Parts)> {
        let spans = spans.iter().filter(|span| !span.is_empty());
        spans.map(|span| (span.reverse, self.parts(span, visible))).collect()
    }

    fn failed(&self, doing: &'static str, source: lsm_tree::Error) -> TableError {
        failed(&self.folder, doing, source)
    }

    /// Returns the value of `key` if no file is needed for it. The caller is in
    /// [`Self::with_visible`].
    fn resident_below(
        &self,
        memtables: &Memtables,
        visible: SeqNo,
        key: &[u8],
    ) -> Option<Option<Bytes>> {
        match memtables.get(key, visible) {
            Some(entry) => Some(value(entry)),
            None => self.rows.get(key),
        }
    }

    /// Keeps a row in memory that was read from files since `flushes`, if it is the newest.
    fn keep(&self, flushes: Flushes, key: &[u8], value: Option<&Bytes>) {
        let memtables = self.memtables.read();
        if self.rows.flushes() == flushes && memtables.get(key, SeqNo::MAX).is_none() {
            self.rows.keep(key, value.map(|value| &value[..]));
        }
    }

    fn get_below(&self, visible: SeqNo, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        let value = self.tree.get(key, visible).map_err(|e| self.failed("read a row", e))?;
        Ok(value.map(Bytes::from))
    }
}

/// A reader that may wait for files, recorded by its number until it is dropped.
struct FileReader<'a> {
    all: &'a Mutex<BTreeMap<SeqNo, usize>>,
    visible: SeqNo,
}

impl<'a> FileReader<'a> {
    fn new(all: &'a Mutex<BTreeMap<SeqNo, usize>>, visible: SeqNo) -> Self {
        *all.lock().entry(visible).or_default() += 1;
        Self { all, visible }
    }
}

impl Drop for FileReader<'_> {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        if let Some(count) = all.get_mut(&self.visible) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.visible);
            }
        }
    }
}

type RowResult = Result<(Bytes, Bytes), TableError>;

impl TableEngine for LsmEngine {
    fn write(&self, batch: WriteBatch) -> Result<(), TableError> {
        if batch.is_empty() {
            return Ok(());
        }
        let _writing = self.writer.lock();
        let number = self.numbers.next();
        // Not by way of the tree, which has a lock that it keeps through forced writes.
        let memtable = Arc::clone(&self.memtables.read().active);
        let mut memtable_bytes = 0;
        for change in batch.into_changes() {
            let key = Slice::from(change.key);
            (_, memtable_bytes) = memtable.insert(match change.value {
                Some(value) => InternalValue::from_components(key, value, number, ValueType::Value),
                None => InternalValue::new_tombstone(key, number),
            });
        }
        self.active_bytes.store(memtable_bytes, Ordering::Release);
        self.visible.store(number + 1, Ordering::Release);
        Ok(())
    }

    fn writes_in_memory(&self) -> bool {
        true
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        if let Some(found) = self.get_resident(key)? {
            return Ok(found);
        }
        let flushes = self.rows.flushes();
        let found = self.with_files(|visible| self.get_below(visible, key))?;
        self.keep(flushes, key, found.as_ref());
        Ok(found)
    }

    fn get_both(&self, keys: [&[u8]; 2]) -> Result<[Option<Bytes>; 2], TableError> {
        if let Some(found) = self.get_both_resident(keys)? {
            return Ok(found);
        }
        let flushes = self.rows.flushes();
        let found = self.with_files(|visible| {
            Ok([self.get_below(visible, keys[0])?, self.get_below(visible, keys[1])?])
        })?;
        for (key, found) in keys.into_iter().zip(&found) {
            self.keep(flushes, key, found.as_ref());
        }
        Ok(found)
    }

    fn get_resident(&self, key: &[u8]) -> Result<Option<Option<Bytes>>, TableError> {
        let resident = |visible| self.resident_below(&self.memtables.read(), visible, key);
        Ok(self.with_visible(resident))
    }

    fn get_both_resident(
        &self,
        keys: [&[u8]; 2],
    ) -> Result<Option<[Option<Bytes>; 2]>, TableError> {
        Ok(self.with_visible(|visible| {
            let memtables = self.memtables.read();
            let [first, second] = keys.map(|key| self.resident_below(&memtables, visible, key));
            Some([first?, second?])
        }))
    }

    fn get_and_scan(
        &self,
        key: &[u8],
        spans: &[Span],
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<(Option<Bytes>, Scanned), TableError> {
        let (value, parts) = self.with_files(|visible| {
            (self.get_below(visible, key), self.parts_of_all(spans, visible))
        });
        let scanned = scan_all(parts, budget, visit, |(reverse, parts), budget, visit| {
            parts.scan(reverse, budget, visit)
        });
        Ok((value?, scanned.map_err(|e| self.failed("read rows", e))?))
    }

    fn scan(
        &self,
        spans: &[Span],
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<Scanned, TableError> {
        let parts = self.with_visible(|visible| self.parts_of_all(spans, visible));
        let scanned = scan_all(parts, budget, visit, |(reverse, parts), budget, visit| {
            parts.scan(reverse, budget, visit)
        });
        scanned.map_err(|e| self.failed("read rows", e))
    }

    fn view(&self, span: &Span) -> Result<View, TableError> {
        if span.is_empty() {
            return Ok(Box::new(std::iter::empty()));
        }
        Ok(Box::new(self.rows(span)))
    }

    fn flush(&self) -> Result<(), TableError> {
        let flushing = self.tree.get_flush_lock();
        // Both wait while the tree forces the list of its files. Batches go into the sealed memtable
        // meanwhile, until the new one takes its place here.
        if let Some(full) = self.tree.rotate_memtable() {
            let active = self.tree.active_memtable();
            let _writing = self.writer.lock();
            let mut memtables = self.memtables.write();
            memtables.active = active;
            memtables.sealed.push(full);
            let sealed = self.active_bytes.swap(0, Ordering::AcqRel);
            self.sealed_bytes.fetch_add(sealed, Ordering::AcqRel);
        }
        let watermark = self.watermark();
        // Every reader from here on sees all that is in them.
        let sealed = self.memtables.read().sealed.clone();
        self.rows.update(&sealed);
        // The tree writes and forces the files, then its manifest, then the folders of both.
        self.tree.flush(&flushing, watermark).map_err(|e| self.failed("flush", e))?;
        // All that were sealed are in files now; the lock on flushing keeps others away.
        {
            let mut memtables = self.memtables.write();
            memtables.sealed.clear();
            self.rows.note_flush();
        }
        self.sealed_bytes.store(0, Ordering::Release);
        self.show_newest_version();
        Ok(())
    }

    fn compact(&self) -> Result<bool, TableError> {
        let before = self.shape();
        let strategy = Arc::clone(&self.strategy);
        self.tree.compact(strategy, self.watermark()).map_err(|e| self.failed("compact", e))?;
        self.show_newest_version();
        Ok(self.shape() != before)
    }

    fn purge_tombstones(&self) -> Result<bool, TableError> {
        let (tombstones, files) = (self.tree.tombstone_count(), self.tree.table_count());
        let entries = self.tree.approximate_len() as u64;
        let pays = tombstones.saturating_mul(ENTRIES_PER_TOMBSTONE_MAX) >= entries;
        if tombstones == 0 || !pays || files > PURGE_FILES_MAX {
            return Ok(false);
        }
        tracing::debug!(tombstones, entries, files, "rewriting the tables without what is deleted");
        let purged = self.tree.major_compact(FILE_BYTES, self.watermark());
        purged.map_err(|e| self.failed("remove tombstones", e))?;
        self.show_newest_version();
        Ok(true)
    }

    fn is_behind(&self) -> bool {
        self.tree.l0_run_count() >= FIRST_LEVEL_RUNS_MAX
    }

    fn unflushed_bytes(&self) -> u64 {
        self.active_bytes.load(Ordering::Acquire) + self.sealed_bytes.load(Ordering::Acquire)
    }

    fn disk_bytes(&self) -> u64 {
        self.tree.disk_space()
    }

    fn file_bytes(&self, spans: &[Span]) -> u64 {
        let version = self.tree.current_version();
        // A file that several spans lie in counts once.
        let mut files = BTreeMap::new();
        for run in version.iter_levels().flat_map(|level| level.iter()) {
            for span in spans.iter().filter(|span| !span.is_empty()) {
                let Some((first, last)) =
                    run.range_overlap_indexes(&(&span.start[..]..&span.end[..]))
                else {
                    continue;
                };
                for table in run.get(first..=last).unwrap_or_default() {
                    files.insert(table.id(), table.metadata.file_size);
                }
            }
        }
        files.values().sum()
    }
}

/// Returns the value of an entry; `None` of a tombstone.
fn value(entry: InternalValue) -> Option<Bytes> {
    (!entry.is_tombstone()).then(|| Bytes::from(entry.value))
}

/// Names the file that is damaged, if it is one that made an operation fail.
fn failed(folder: &Path, doing: &'static str, source: lsm_tree::Error) -> TableError {
    // What else a system refuses, such as room on a full disk, is no damage of a file.
    let is_refused = matches!(&source, lsm_tree::Error::Io(error)
        if error.raw_os_error().is_some_and(|code| code != EIO));
    let (engine, source) = (Engine::Lsm, Box::new(source));
    let damaged = if is_refused { None } else { lsm_files::find_damaged(folder) };
    match damaged {
        Some(path) => TableError::Damaged { engine, doing, path, source },
        None => TableError::Engine { engine, doing, source },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// How long what must not wait may take on a busy machine.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn put(engine: &LsmEngine, value: &str) {
        let mut batch = WriteBatch::default();
        batch.put(&[b"key"], &[value.as_bytes()]);
        engine.write(batch).unwrap();
    }

    fn resident(engine: &LsmEngine) -> Option<Option<Bytes>> {
        engine.get_resident(b"key").unwrap()
    }

    /// A row of a file is in memory once it was read or written, and follows what is written later.
    #[test]
    fn a_row_that_was_read_from_a_file_is_read_again_without_one() {
        let folder = tempfile::tempdir().unwrap();
        let open = || LsmEngine::open(folder.path(), 1024 * 1024, 16).unwrap();
        let engine = open();
        put(&engine, "first");
        engine.flush().unwrap();
        assert_eq!(resident(&engine), Some(Some("first".into())));
        drop(engine);
        let engine = &open();
        assert_eq!(resident(engine), None);
        engine.get(b"key").unwrap();
        assert_eq!(resident(engine), Some(Some("first".into())));
        put(engine, "second");
        put(engine, "third");
        engine.flush().unwrap();
        assert_eq!(resident(engine), Some(Some("third".into())));
        let mut batch = WriteBatch::default();
        batch.remove(&[b"key"]);
        engine.write(batch).unwrap();
        engine.flush().unwrap();
        assert_eq!(resident(engine), None, "what was deleted takes no room");
        assert_eq!(engine.get(b"key").unwrap(), None);
        assert_eq!(resident(engine), Some(None), "the row is known to be absent");
        put(engine, &"x".repeat(1024 * 1024));
        engine.flush().unwrap();
        assert_eq!(resident(engine), None, "the row is too large to keep");
    }

    /// What a flush takes from memory is kept only while there is room, and rows that are kept stay
    /// within the bytes that the cache may take.
    #[test]
    fn the_rows_that_are_kept_are_bounded() {
        const CACHE_BYTES: u64 = 64 * 1024;
        let folder = tempfile::tempdir().unwrap();
        let engine = &LsmEngine::open(folder.path(), CACHE_BYTES, 16).unwrap();
        for row in 0..1000_u32 {
            let mut batch = WriteBatch::default();
            batch.put(&[&row.to_be_bytes()], &[&[7; 256]]);
            engine.write(batch).unwrap();
        }
        engine.flush().unwrap();
        let resident = |row: &u32| engine.get_resident(&row.to_be_bytes()).unwrap().is_some();
        let kept = (0..1000).filter(resident).count();
        assert!(kept > 0 && kept < 100, "{kept}");
        for row in 0..1000_u32 {
            assert!(engine.get(&row.to_be_bytes()).unwrap().is_some());
        }
        assert!((0..1000).filter(resident).count() < 100);
        assert!(engine.rows.bytes() <= CACHE_BYTES / ROW_CACHE_SHARE);
    }

    /// A reader that took long does not put back what was replaced while it read.
    #[test]
    fn a_row_that_was_replaced_during_its_read_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let engine = &LsmEngine::open(folder.path(), 1024 * 1024, 16).unwrap();
        let old = Bytes::from_static(b"first");
        let begun = engine.rows.flushes();
        put(engine, "second");
        engine.keep(begun, b"key", Some(&old));
        assert_eq!(engine.rows.get(b"key"), None, "a memtable holds the row's newest state");
        engine.flush().unwrap();
        engine.keep(begun, b"key", Some(&old));
        assert_eq!(resident(engine), Some(Some("second".into())), "a memtable was flushed since");
    }

    /// Readers beside a writer and flushes never go back, wherever the row is read.
    #[test]
    fn readers_of_memory_and_files_never_go_back() {
        const WRITES: u64 = 4_000;
        const WRITES_PER_FLUSH: u64 = 40;
        const TURNS_PER_LOSS: u64 = 3;
        let folder = tempfile::tempdir().unwrap();
        let engine = &LsmEngine::open(folder.path(), 1024 * 1024, 16).unwrap();
        let number = |value: Bytes| String::from_utf8(value.to_vec()).unwrap().parse().unwrap();
        put(engine, "0");
        thread::scope(|scope| {
            let readers = [0, 1].map(|_| {
                scope.spawn(move || {
                    let (mut last, mut found_in_memory, mut turn) = (0, 0_u64, 0_u64);
                    while last < WRITES {
                        turn += 1;
                        if turn.is_multiple_of(TURNS_PER_LOSS) {
                            // So that files are read amid writes and flushes.
                            engine.rows.forget(b"key");
                        }
                        let found = match engine.get_resident(b"key").unwrap() {
                            Some(found) => {
                                found_in_memory += 1;
                                found
                            }
                            None => engine.get(b"key").unwrap(),
                        };
                        let read: u64 = number(found.expect("the row is never deleted"));
                        assert!(read >= last, "read {read} after {last}");
                        last = read;
                    }
                    found_in_memory
                })
            });
            for write in 1..=WRITES {
                put(engine, &write.to_string());
                if write % WRITES_PER_FLUSH == 0 {
                    engine.flush().unwrap();
                }
            }
            for reader in readers {
                assert!(reader.join().unwrap() > 0);
            }
        });
    }

    /// The tree keeps its lock while it forces the list of its files. Neither batches nor look-ups in
    /// memory wait for it, nor for a flush that waits for it, and no batch is lost or torn by that.
    #[test]
    fn who_writes_and_reads_memory_does_not_wait_for_the_trees_lock() {
        // Long enough for the flush to come to where it waits.
        const WRITES: u32 = 20_000;
        let folder = tempfile::tempdir().unwrap();
        let open = || LsmEngine::open(folder.path(), 1024 * 1024, 16).unwrap();
        let opened = open();
        let engine = &opened;
        put(engine, "first");
        thread::scope(|scope| {
            let forcing = engine.tree.get_version_history_lock();
            let flush = scope.spawn(|| engine.flush());
            let (done, is_done) = mpsc::channel();
            scope.spawn(move || {
                for write in 0..WRITES {
                    put(engine, &write.to_string());
                    assert_eq!(resident(engine), Some(Some(write.to_string().into())));
                }
                done.send(()).unwrap();
            });
            let result = is_done.recv_timeout(PATIENCE);
            drop(forcing);
            result.expect("neither waits");
            flush.join().unwrap().unwrap();
        });
        let last = Some(Bytes::from((WRITES - 1).to_string()));
        assert_eq!(engine.get(b"key").unwrap(), last);
        engine.flush().unwrap();
        drop(opened);
        assert_eq!(open().get(b"key").unwrap(), last);
    }

    /// A reader that waits for the disk holds up no flush, no compaction and no reader of memory, and
    /// finds the state that it began with, however often its row is replaced meanwhile.
    #[test]
    fn a_slow_reader_of_files_holds_nothing_up_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let engine = &LsmEngine::open(folder.path(), 1024 * 1024, 16).unwrap();
        put(engine, "first");
        thread::scope(|scope| {
            let (finish, is_finished) = mpsc::channel::<()>();
            let (begin, has_begun) = mpsc::channel();
            let reader = scope.spawn(move || {
                engine.with_files(|visible| {
                    begin.send(()).unwrap();
                    // As if the disk took so long.
                    let waited = is_finished.recv_timeout(PATIENCE);
                    (waited, engine.get_below(visible, b"key"))
                })
            });
            has_begun.recv().unwrap();
            let (done, is_done) = mpsc::channel();
            scope.spawn(move || {
                for value in ["second", "third"] {
                    engine.flush().unwrap();
                    put(engine, value);
                    engine.flush().unwrap();
                    engine.compact().unwrap();
                    engine.tree.major_compact(FILE_BYTES, engine.watermark()).unwrap();
                }
                put(engine, "fourth");
                done.send(engine.get_resident(b"key").unwrap()).unwrap();
            });
            let resident =
                is_done.recv_timeout(PATIENCE / 2).expect("nothing waits for the reader");
            assert_eq!(resident, Some(Some(Bytes::from_static(b"fourth"))));
            finish.send(()).unwrap();
            let (waited, found) = reader.join().unwrap();
            waited.unwrap();
            assert_eq!(found.unwrap(), Some(Bytes::from_static(b"first")));
        });
        assert!(engine.file_readers.lock().is_empty());
    }
}
