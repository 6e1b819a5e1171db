//! The second engine: the crate `sled`.
//!
//! Three things are done around it:
//!
//! * **Visibility.** sled applies a batch row by row as far as iterators can tell, so a gate keeps
//!   writers out while a page is read. A view copies its rows into an unlinked file under the same
//!   gate, and reads them from there.
//! * **Durability.** On Linux sled's flush starts write-back with `sync_file_range`, which forces
//!   neither the file's length nor the disk's cache (sled issue 1452). After it, every file that
//!   may have changed is forced here, and the folders too.
//! * **Opening.** sled can fail or panic on files that a crash left behind. Both become
//!   [`TableError::WillNotOpen`]: the rows are lost to this node and come back from the log and
//!   from other replicas.
//!
//! What is left out: after a power cut sled may find its own older writes torn, since it reuses
//! space of its file before our forcing. It then does not open, or opens at an earlier point.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::RwLock;
use sled::IVec;
use trireme_types::Engine;

use crate::table::engine::{ScanBudget, Scanned, Span, TableEngine, View, Visit};
use crate::table::{TableError, WriteBatch, folder};

/// How long to wait for the file lock of a table that was closed a moment ago: sled's threads let
/// go of it a little after its handle.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// How often the lock is tried meanwhile.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// A sled database.
pub(crate) struct SledEngine {
    path: PathBuf,
    db: sled::Db,
    /// Held for writing by writers and for reading by pages and views, so that neither sees a
    /// batch in part.
    gate: RwLock<()>,
    unflushed_bytes: AtomicU64,
}

impl SledEngine {
    /// Opens the database in the folder `path`, or begins one there.
    pub(crate) fn open(path: &Path, cache_bytes: u64) -> Result<Self, TableError> {
        let config = sled::Config::new().path(path).cache_capacity(cache_bytes);
        // Flushes are ours to start.
        let config = config.flush_every_ms(None);
        let db = folder::catch_panic(Engine::Sled, path, || open_unlocked(&config))?;
        let engine = Self {
            path: path.to_owned(),
            db,
            gate: RwLock::new(()),
            unflushed_bytes: AtomicU64::new(0),
        };
        // A killed process may have left writes that the system has and the disk has not. What is
        // read from now on counts as persisted, so it must be.
        engine.flush()?;
        Ok(engine)
    }

    /// Returns the value of a key. The caller holds the gate.
    fn get_gated(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        let value = self.db.get(key).map_err(|e| failed("read a row", e))?;
        Ok(value.map(to_bytes))
    }

    /// Shows the rows of the span to `visit`. The caller holds the gate.
    fn scan_gated(
        &self,
        span: &Span,
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<Scanned, TableError> {
        if span.is_empty() {
            return Ok(Scanned::default());
        }
        let mut rows = self.range(span);
        let (mut entries, mut bytes) = (0, 0);
        while let Some(row) = if span.reverse { rows.next_back() } else { rows.next() } {
            let (key, value) = row.map_err(|e| failed("read rows", e))?;
            let key = to_bytes(key);
            entries += 1;
            bytes += key.len() + value.len();
            if visit(key.clone(), to_bytes(value)) == ControlFlow::Break(()) {
                break;
            }
            if entries >= budget.entries || bytes >= budget.bytes {
                return Ok(Scanned { paused_at: Some(key), tombstones: 0 });
            }
        }
        Ok(Scanned::default())
    }

    fn range(&self, span: &Span) -> sled::Iter {
        self.db.range(&span.start[..]..&span.end[..])
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
        let _writing = self.gate.write();
        self.db.apply_batch(changes).map_err(|e| failed("write", e))?;
        self.unflushed_bytes.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, TableError> {
        let _reading = self.gate.read();
        self.get_gated(key)
    }

    fn get_both(&self, keys: [&[u8]; 2]) -> Result<[Option<Bytes>; 2], TableError> {
        let _reading = self.gate.read();
        Ok([self.get_gated(keys[0])?, self.get_gated(keys[1])?])
    }

    fn get_and_scan(
        &self,
        key: &[u8],
        span: &Span,
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<(Option<Bytes>, Scanned), TableError> {
        let _reading = self.gate.read();
        Ok((self.get_gated(key)?, self.scan_gated(span, budget, visit)?))
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
        span: &Span,
        budget: ScanBudget,
        visit: Visit<'_>,
    ) -> Result<Scanned, TableError> {
        let _reading = self.gate.read();
        self.scan_gated(span, budget, visit)
    }

    fn view(&self, span: &Span) -> Result<View, TableError> {
        let spool = || -> Result<Spool, TableError> {
            let io = |source| TableError::io("spool rows beside", &self.path)(source);
            let mut spool = BufWriter::new(tempfile::tempfile().map_err(io)?);
            let mut rows = 0;
            if !span.is_empty() {
                let _reading = self.gate.read();
                for row in self.range(span) {
                    let (key, value) = row.map_err(|e| failed("read rows", e))?;
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
        self.db.flush().map_err(|e| failed("flush", e))?;
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
        self.db.size_on_disk().unwrap_or(0)
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
