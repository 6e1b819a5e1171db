//! The second engine: the crate `sled`.
//!
//! Three things are done around it:
//!
//! * **Visibility.** sled applies a batch row by row as far as iterators can tell, so a lock keeps
//!   writers out while a page is read. A view copies its rows into an unlinked file under the same
//!   lock, and reads them from there.
//! * **Durability.** On Linux sled's flush starts write-back with `sync_file_range`, which forces
//!   neither the file's length nor the disk's cache (sled issue 1452). After it, every file that
//!   may have changed is forced here, and the folders too.
//! * **Opening.** sled can fail or panic on files that a crash left behind. Both become
//!   [`TableError::WillNotOpen`]: the rows are lost to this node and come back from the log and
//!   from other replicas.
//! * **Damage.** sled checks what it reads, but its recovery takes damage for what a crash has torn and
//!   passes over it. So the checksums of its files are recorded when it is closed in order, and compared
//!   when it is opened.
//!
//! What is left out: after a power cut sled may find its own older writes torn, since it reuses
//! space of its file before our forcing. It then does not open, or opens at an earlier point. Nor is
//! all damage found that comes to the files of a table that a crash left.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::RwLock;
use rustix::fs::{FlockOperation, flock};
use sled::IVec;
use trireme_types::Engine;

use crate::table::engine::{ScanBudget, Scanned, Span, TableEngine, View, Visit, scan_all};
use crate::table::{TableError, WriteBatch, checksums, folder};

/// How long to wait for the file lock of a table that was closed a moment ago: sled's threads let
/// go of it a little after its handle.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// How often the lock is tried meanwhile.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// sled's file of rows.
const ROWS_FILE: &str = "db";

/// A sled database.
pub(crate) struct SledEngine {
    path: PathBuf,
    /// Locked for writing by writers and for reading by pages and views, so that neither sees a
    /// batch in part. `None` once closed.
    db: RwLock<Option<sled::Db>>,
    unflushed_bytes: AtomicU64,
}

impl SledEngine {
    /// Opens the database in the folder `path`, or begins one there.
    pub(crate) fn open(path: &Path, cache_bytes: u64) -> Result<Self, TableError> {
        let config = sled::Config::new().path(path).cache_capacity(cache_bytes);
        // Flushes are ours to start.
        let config = config.flush_every_ms(None);
        checksums::check(path).map_err(|checksums::Changed { path, reason }| {
            TableError::WillNotOpen { engine: Engine::Sled, path, reason }
        })?;
        checksums::remove(path)?;
        let db = folder::catch_panic(Engine::Sled, path, || open_unlocked(&config))?;
        let engine = Self {
            path: path.to_owned(),
            db: RwLock::new(Some(db)),
            unflushed_bytes: AtomicU64::new(0),
        };
        // A killed process may have left writes that the system has and the disk has not. What is
        // read from now on counts as persisted, so it must be.
        engine.flush()?;
        Ok(engine)
    }

    fn get_from(&self, db: &sled::Db, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        self.reading("read a row", || Ok(db.get(key)?.map(to_bytes)))
    }

    /// Calls `read`. What it finds of the files is an error that names them, and so is a panic of sled
    /// over them.
    fn reading<T>(
        &self,
        doing: &'static str,
        read: impl FnOnce() -> Result<T, sled::Error>,
    ) -> Result<T, TableError> {
        let read = folder::catch_panic(Engine::Sled, &self.path, || Ok(read()));
        read.map_err(|panic| self.damaged(doing, Box::new(panic)))?.map_err(|error| match error {
            sled::Error::Io(_) => failed(doing, error),
            error => self.damaged(doing, Box::new(error)),
        })
    }

    fn damaged(
        &self,
        doing: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    ) -> TableError {
        let path = self.path.join(ROWS_FILE);
        TableError::Damaged { engine: Engine::Sled, doing, path, source }
    }

    /// Shows the rows of the span to `visit`.
    fn scan_of(
        &self,
        db: &sled::Db,
        span: &Span,
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<Scanned, TableError> {
        if span.is_empty() {
            return Ok(Scanned::default());
        }
        let mut rows = range(db, span);
        let (mut entries, mut bytes, mut paused_at) = (0, 0, None);
        let mut next = || {
            let mut next = || if span.reverse { rows.next_back() } else { rows.next() };
            self.reading("read rows", || next().transpose())
        };
        while let Some((key, value)) = next()? {
            let key = to_bytes(key);
            entries += 1;
            bytes += key.len() + value.len();
            if visit(key.clone(), to_bytes(value)) == ControlFlow::Break(()) {
                break;
            }
            if entries >= budget.entries || bytes >= budget.bytes {
                paused_at = Some(key);
                break;
            }
        }
        Ok(Scanned { paused_at, tombstones: 0, read: ScanBudget { entries, bytes } })
    }

    fn scan_of_all(
        &self,
        db: &sled::Db,
        spans: &[Span],
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<Scanned, TableError> {
        scan_all(spans, budget, visit, |span, budget, visit| self.scan_of(db, span, budget, visit))
    }

    /// Forces every file that sled may have written, and the folders that name them.
    fn force_files(&self) -> Result<(), TableError> {
        folder::force_folder(&self.path)?;
        let blobs = self.path.join("blobs");
        if blobs.exists() {
            folder::force_folder(&blobs)?;
        }
        Ok(())
    }
}

impl TableEngine for SledEngine {
    fn write(&self, batch: WriteBatch) -> Result<(), TableError> {
        let bytes = batch.bytes() as u64;
        let mut changes = sled::Batch::default();
        for change in batch.into_changes() {
            match change.value {
                Some(value) => changes.insert(&change.key[..], &value[..]),
                None => changes.remove(&change.key[..]),
            }
        }
        let db = self.db.write();
        usable(&db)?.apply_batch(changes).map_err(|e| failed("write", e))?;
        self.unflushed_bytes.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }

    fn writes_in_memory(&self) -> bool {
        // Its pages may have to be read, and its buffers to be written.
        false
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        self.get_from(usable(&self.db.read())?, key)
    }

    fn get_both(&self, keys: [&[u8]; 2]) -> Result<[Option<Bytes>; 2], TableError> {
        let db = self.db.read();
        let db = usable(&db)?;
        Ok([self.get_from(db, keys[0])?, self.get_from(db, keys[1])?])
    }

    fn get_and_scan(
        &self,
        key: &[u8],
        spans: &[Span],
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<(Option<Bytes>, Scanned), TableError> {
        let db = self.db.read();
        let db = usable(&db)?;
        Ok((self.get_from(db, key)?, self.scan_of_all(db, spans, budget, visit)?))
    }

    fn get_resident(&self, _key: &[u8]) -> Result<Option<Option<Bytes>>, TableError> {
        // sled does not reveal what its cache holds.
        Ok(None)
    }

    fn get_both_resident(
        &self,
        _keys: [&[u8]; 2],
    ) -> Result<Option<[Option<Bytes>; 2]>, TableError> {
        Ok(None)
    }

    fn scan(
        &self,
        spans: &[Span],
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<Scanned, TableError> {
        self.scan_of_all(usable(&self.db.read())?, spans, budget, visit)
    }

    fn view(&self, span: &Span) -> Result<View, TableError> {
        let spool = || -> Result<Spool, TableError> {
            let io = |source| TableError::io("spool rows beside", &self.path)(source);
            let mut spool = BufWriter::new(tempfile::tempfile().map_err(io)?);
            let mut rows = 0;
            if !span.is_empty() {
                let db = self.db.read();
                let mut found = range(usable(&db)?, span);
                let mut next = || self.reading("read rows", || found.next().transpose());
                while let Some((key, value)) = next()? {
                    write_part(&mut spool, &key).map_err(io)?;
                    write_part(&mut spool, &value).map_err(io)?;
                    rows += 1;
                }
            }
            let mut file = spool.into_inner().map_err(|e| io(e.into_error()))?;
            file.seek(SeekFrom::Start(0)).map_err(io)?;
            Ok(Spool { path: self.path.clone(), file: BufReader::new(file), rows })
        };
        Ok(Box::new(spool()?))
    }

    fn flush(&self) -> Result<(), TableError> {
        let bytes = self.unflushed_bytes.load(Ordering::Acquire);
        // Writers need not wait for the disk.
        let db = usable(&self.db.read())?.clone();
        db.flush().map_err(|e| failed("flush", e))?;
        self.force_files()?;
        self.unflushed_bytes.fetch_sub(bytes, Ordering::AcqRel);
        Ok(())
    }

    fn compact(&self) -> Result<bool, TableError> {
        // sled tidies up as it writes.
        Ok(false)
    }

    fn purge_tombstones(&self) -> Result<bool, TableError> {
        // sled keeps none: a removed row leaves nothing for a scan to pass over.
        Ok(false)
    }

    fn is_behind(&self) -> bool {
        false
    }

    fn unflushed_bytes(&self) -> u64 {
        self.unflushed_bytes.load(Ordering::Acquire)
    }

    fn disk_bytes(&self) -> u64 {
        let db = self.db.read();
        db.as_ref().and_then(|db| db.size_on_disk().ok()).unwrap_or(0)
    }

    /// sled does not say where its rows are.
    fn file_bytes(&self, _spans: &[Span]) -> u64 {
        self.disk_bytes()
    }

    fn close(&self) -> Result<(), TableError> {
        let Some(db) = self.db.write().take() else { return Ok(()) };
        drop(db);
        let rows = File::open(self.path.join(ROWS_FILE));
        let rows = rows.map_err(TableError::io("open", &self.path))?;
        // sled's threads may hold on to its files for a little longer, and change them.
        if wait_for_lock(&rows) {
            return checksums::record(&self.path);
        }
        tracing::warn!(path = %self.path.display(), "the table's files are in use, and their checksums are not recorded");
        Ok(())
    }
}

fn usable(db: &Option<sled::Db>) -> Result<&sled::Db, TableError> {
    db.as_ref().ok_or(TableError::Closed)
}

fn range(db: &sled::Db, span: &Span) -> sled::Iter {
    db.range(&span.start[..]..&span.end[..])
}

/// Returns true once no one else has the file locked.
fn wait_for_lock(file: &File) -> bool {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return true,
            Err(_) if Instant::now() < deadline => std::thread::sleep(LOCK_POLL),
            Err(_) => return false,
        }
    }
}

/// The rows of a view, in an unlinked file.
struct Spool {
    path: PathBuf,
    file: BufReader<File>,
    rows: u64,
}

impl Iterator for Spool {
    type Item = Result<(Bytes, Bytes), TableError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.rows = self.rows.checked_sub(1)?;
        let key = read_part(&mut self.file);
        let row = key.and_then(|key| Ok((key, read_part(&mut self.file)?)));
        Some(row.map_err(TableError::io("read spooled rows beside", &self.path)))
    }
}

fn write_part(file: &mut impl Write, part: &[u8]) -> io::Result<()> {
    let len = u32::try_from(part.len()).map_err(io::Error::other)?;
    file.write_all(&len.to_be_bytes())?;
    file.write_all(part)
}

fn read_part(file: &mut impl Read) -> io::Result<Bytes> {
    let mut len = [0; 4];
    file.read_exact(&mut len)?;
    let len = u32::from_be_bytes(len) as usize;
    let mut part = vec![0; len];
    file.read_exact(&mut part)?;
    Ok(Bytes::from(part))
}

/// Opens the database, waiting a while for a previous user of its files to let go of them.
fn open_unlocked(config: &sled::Config) -> Result<sled::Db, String> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match config.open() {
            Err(sled::Error::Io(error)) if is_lock(&error) && Instant::now() < deadline => {
                std::thread::sleep(LOCK_POLL);
            }
            result => return result.map_err(|error| error.to_string()),
        }
    }
}

fn is_lock(error: &io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

fn to_bytes(bytes: IVec) -> Bytes {
    Bytes::copy_from_slice(&bytes)
}

fn failed(doing: &'static str, source: sled::Error) -> TableError {
    TableError::Engine { engine: Engine::Sled, doing, source: Box::new(source) }
}
