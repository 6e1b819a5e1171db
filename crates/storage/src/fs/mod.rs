//! The file operations that storage needs, and nothing more.
//!
//! Everything that storage does to a disk goes through [`Fs`], so that tests can put [`MemFs`] under
//! it: a file system that forgets, tears and reorders whatever was not synced when it crashes, and
//! that fails or stalls where a test asks it to. [`RealFs`] is the operating system's, and
//! [`FaultyFs`] lets whoever tests a running node stall, slow or fail the forces of another.
//!
//! What callers may rely on, and must not expect beyond:
//!
//! * Bytes are durable once [`FsFile::sync_data`] has returned `Ok` after they were written. Before
//!   that, after a crash, each 512-byte sector of them may be there or not, whatever happened to the
//!   other sectors. A sector itself is never torn.
//! * A file's name (its creation, renaming or removal) is durable once [`Fs::sync_dir`] on its folder
//!   has returned `Ok`. Before that, each change of a folder may survive a crash or not.
//! * A failed sync says nothing about what is on disk, and asking again proves nothing: the kernel
//!   may have dropped the pages. Whoever sees one must stop.
//! * An open file stays readable after its name is removed.

mod faulty;
mod mem;
mod real;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use faulty::{DiskFault, DiskFaults, FaultyFs};
pub use mem::{Crash, FsCall, FsOperation, MemFs};
pub use real::RealFs;

/// The unit that a disk writes whole or not at all, in bytes.
pub const SECTOR_BYTES: usize = 512;

/// A file system.
pub trait Fs: Send + Sync + 'static {
    /// Creates the folder and those above it where they are missing, and makes their names durable.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Creates an empty file and opens it for reading and writing. Fails with
    /// [`io::ErrorKind::AlreadyExists`] if the name is taken.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn FsFile>>;

    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn FsFile>>;

    /// Removes a file's name.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Gives a file another name in the same folder, in place of a file that may have it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Returns the names of the files in a folder, in no particular order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Makes the names in a folder durable as they are.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the lock that keeps a second process from using the same folder; it is held until the
    /// returned value is dropped. Creates the file if it is missing. Fails with
    /// [`io::ErrorKind::WouldBlock`] if the lock is held.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn FsLock>>;
}

/// An open file.
pub trait FsFile: Send + Sync {
    /// Writes all bytes at this position, growing the file where they reach past its end.
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()>;

    /// Reads bytes from this position, and returns how many: fewer than asked for only at the end
    /// of the file.
    fn read_at(&self, bytes: &mut [u8], position: u64) -> io::Result<usize>;

    /// Makes all bytes written so far, and the length, durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Returns the file's length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Says whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reserves room so that the file has at least this length; the added bytes read as zero.
    fn preallocate(&self, len: u64) -> io::Result<()>;
}

/// A held lock: dropping it lets go.
pub trait FsLock: Send + Sync {}
