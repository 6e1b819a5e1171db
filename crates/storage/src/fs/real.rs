//! The operating system's file system.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::{Fs, FsFile, FsLock};

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFs;

impl Fs for RealFs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let missing: Vec<&Path> = dir.ancestors().take_while(|at| !at.exists()).collect();
        fs::create_dir_all(dir)?;
        for made in missing {
            // A path without a parent, or with an empty one, is relative to the working folder.
            let parent = made.parent().filter(|parent| !parent.as_os_str().is_empty());
            self.sync_dir(parent.unwrap_or_else(|| Path::new(".")))?;
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn FsFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn FsFile>> {
        Ok(Arc::new(RealFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // A name that is not UTF-8 is none that storage has given.
            if let Ok(name) = entry.file_name().into_string()
                && !entry.file_type()?.is_dir()
            {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FsLock>> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(RealLock { _file: file })),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

struct RealFile(File);

impl FsFile for RealFile {
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, position)
    }

    fn read_at(&self, bytes: &mut [u8], position: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < bytes.len() {
            match self.0.read_at(&mut bytes[done..], position + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        if len <= self.0.metadata()?.len() {
            return Ok(());
        }
        #[cfg(target_os = "linux")]
        match rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, len) {
            // The file system cannot reserve room: the length alone must do, and a full disk then
            // shows at a later write.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            result => return Ok(result?),
        }
        self.0.set_len(len)
    }
}

/// The lock goes with the open file: closing it lets go.
struct RealLock {
    _file: File,
}

impl FsLock for RealLock {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_read_renamed_listed_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let nested = dir.path().join("a/b");
        RealFs.create_dir_all(&nested).unwrap();
        let (first, second) = (nested.join("first"), nested.join("second"));
        let file = RealFs.create(&first).unwrap();
        file.preallocate(4096).unwrap();
        assert_eq!(file.len().unwrap(), 4096);
        file.write_at(b"xyz", 10).unwrap();
        file.sync_data().unwrap();
        let mut bytes = [9; 5];
        assert_eq!(file.read_at(&mut bytes, 9).unwrap(), 5);
        assert_eq!(&bytes, b"\0xyz\0");
        assert_eq!(file.read_at(&mut bytes, 4094).unwrap(), 2);
        RealFs.rename(&first, &second).unwrap();
        RealFs.sync_dir(&nested).unwrap();
        assert_eq!(RealFs.list(&nested).unwrap(), ["second"]);
        assert_eq!(RealFs.create(&second).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        RealFs.remove(&second).unwrap();
        assert_eq!(file.read_at(&mut bytes, 9).unwrap(), 5, "an open file outlives its name");
        assert!(RealFs.list(&nested).unwrap().is_empty());
    }

    #[test]
    fn a_lock_is_held_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = RealFs.lock(&path).unwrap();
        assert_eq!(RealFs.lock(&path).err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        RealFs.lock(&path).unwrap();
    }
}
