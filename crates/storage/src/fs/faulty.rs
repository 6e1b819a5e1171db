//! A file system whose forces can be made to stall, to be slow, or to fail.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::{Fs, FsFile, FsLock};

/// Another file system, whose forces ([`FsFile::sync_data`], [`Fs::sync_dir`]) do what a
/// [`DiskFaults`] says. All else goes straight through.
pub struct FaultyFs {
    inner: Arc<dyn Fs>,
    faults: DiskFaults,
}

/// What becomes of a force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskFault {
    /// It is done.
    #[default]
    None,
    /// It waits until there is another fault, or none.
    Stall,
    /// It waits so long, or until there is another fault, or none, and is done then.
    Slow(Duration),
    /// It fails.
    Fail,
}

/// Decides over the forces of a [`FaultyFs`]. Clones decide alike.
#[derive(Clone, Default)]
pub struct DiskFaults {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    fault: Mutex<DiskFault>,
    changed: Condvar,
}

impl FaultyFs {
    /// Returns `inner`, with forces that obey `faults`.
    pub fn new(inner: Arc<dyn Fs>, faults: DiskFaults) -> Self {
        Self { inner, faults }
    }

    fn wrap(&self, file: Arc<dyn FsFile>) -> Arc<dyn FsFile> {
        Arc::new(FaultyFile { inner: file, faults: self.faults.clone() })
    }
}

impl DiskFaults {
    /// Decides otherwise from now on, also over forces that wait.
    pub fn set(&self, fault: DiskFault) {
        *self.shared.fault.lock() = fault;
        self.shared.changed.notify_all();
    }

    /// Returns when a force may be done, or fails in its place.
    fn pass(&self) -> io::Result<()> {
        let began = Instant::now();
        let mut fault = self.shared.fault.lock();
        loop {
            match *fault {
                DiskFault::None => return Ok(()),
                DiskFault::Fail => return Err(io::Error::other("a fault that was asked for")),
                DiskFault::Stall => self.shared.changed.wait(&mut fault),
                DiskFault::Slow(delay) => {
                    let due = began + delay;
                    if self.shared.changed.wait_until(&mut fault, due).timed_out() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

impl Fs for FaultyFs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir_all(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn FsFile>> {
        self.inner.create(path).map(|file| self.wrap(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn FsFile>> {
        self.inner.open(path).map(|file| self.wrap(file))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.inner.rename(from, to)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.inner.list(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.faults.pass()?;
        self.inner.sync_dir(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FsLock>> {
        self.inner.lock(path)
    }
}

struct FaultyFile {
    inner: Arc<dyn FsFile>,
    faults: DiskFaults,
}

impl FsFile for FaultyFile {
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.inner.write_at(bytes, position)
    }

    fn read_at(&self, bytes: &mut [u8], position: u64) -> io::Result<usize> {
        self.inner.read_at(bytes, position)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.faults.pass()?;
        self.inner.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.inner.preallocate(len)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
    use std::thread;

    use super::*;
    use crate::fs::MemFs;

    /// Longer than anything takes that is not held up.
    const DEADLINE: Duration = Duration::from_secs(20);

    fn file() -> (Arc<dyn FsFile>, DiskFaults) {
        let faults = DiskFaults::default();
        let fs = FaultyFs::new(Arc::new(MemFs::default()), faults.clone());
        fs.create_dir_all(Path::new("/d")).unwrap();
        (fs.create(Path::new("/d/f")).unwrap(), faults)
    }

    /// Forces the file on another thread, which tells how that ended and how long it took.
    fn force(file: &Arc<dyn FsFile>) -> Receiver<(io::Result<()>, Duration)> {
        let (send, ended) = channel();
        let file = Arc::clone(file);
        thread::spawn(move || {
            let began = Instant::now();
            let result = file.sync_data();
            send.send((result, began.elapsed()))
        });
        ended
    }

    #[test]
    fn a_stalled_force_waits_until_it_is_healed_or_fails() {
        let (file, faults) = file();
        for (then, is_done) in [(DiskFault::None, true), (DiskFault::Fail, false)] {
            faults.set(DiskFault::Stall);
            let ended = force(&file);
            let early = ended.recv_timeout(Duration::from_millis(20));
            assert!(matches!(early, Err(RecvTimeoutError::Timeout)), "{early:?}");
            assert!(file.write_at(b"written", 0).is_ok(), "only forces stall");
            faults.set(then);
            let (result, _) = ended.recv_timeout(DEADLINE).unwrap();
            assert_eq!(result.is_ok(), is_done, "{result:?}");
        }
    }

    #[test]
    fn a_slow_force_is_done_after_its_time_and_one_that_is_healed_at_once() {
        let (file, faults) = file();
        let delay = Duration::from_millis(30);
        faults.set(DiskFault::Slow(delay));
        let (result, took) = force(&file).recv_timeout(DEADLINE).unwrap();
        assert!(result.is_ok() && took >= delay, "{result:?} after {took:?}");
        faults.set(DiskFault::Slow(10 * DEADLINE));
        let ended = force(&file);
        faults.set(DiskFault::None);
        assert!(ended.recv_timeout(DEADLINE).unwrap().0.is_ok());
    }
}
