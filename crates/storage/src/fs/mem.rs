//! A file system in memory that can crash, fail, fill up and stall.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Fs, FsFile, FsLock, SECTOR_BYTES};

/// A file system in memory. Cloning it gives another handle to the same files.
///
/// [`MemFs::crash`] gives what a power cut at this moment would have left: of everything that was
/// not synced, each sector, each length and each change of a folder has survived or not, as the seed
/// decides, whatever happened to the others. The file system that was crashed goes on unharmed, so a
/// test can crash it at every call that it makes ([`MemFs::observe`]).
#[derive(Clone, Default)]
pub struct MemFs {
    disk: Arc<Mutex<Disk>>,
    observer: Arc<Mutex<Option<Observer>>>,
}

/// What a crash does to what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// All of it is lost, as if the disk had written nothing before it was told to.
    LoseUnsynced,
    /// All of it is kept, as when a process dies and its machine lives on.
    KeepUnsynced,
    /// Each piece is lost or kept, as the seed decides.
    Random(u64),
}

/// A kind of call to the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FsOperation {
    /// [`Fs::create`].
    Create,
    /// [`Fs::open`].
    Open,
    /// [`Fs::remove`].
    Remove,
    /// [`Fs::rename`].
    Rename,
    /// [`Fs::sync_dir`].
    SyncDir,
    /// [`FsFile::write_at`].
    Write,
    /// [`FsFile::read_at`].
    Read,
    /// [`FsFile::sync_data`].
    Sync,
    /// [`FsFile::preallocate`].
    Preallocate,
}

/// A call that is about to be made.
#[derive(Clone, Debug)]
pub struct FsCall {
    /// What it does.
    pub operation: FsOperation,
    /// To which file or folder. A file is named as it was opened.
    pub path: PathBuf,
    /// Where in the file it writes or reads; 0 for other operations.
    pub position: u64,
    /// How many bytes it writes or asks for; 0 for other operations.
    pub bytes: usize,
}

/// Sees each call before it is made. An error makes the call fail with it, undone.
type Observer = Arc<dyn Fn(&FsCall) -> io::Result<()> + Send + Sync>;

type Sector = Arc<[u8; SECTOR_BYTES]>;

#[derive(Clone, Default)]
struct Disk {
    files: HashMap<u64, Inode>,
    folders: BTreeMap<PathBuf, Folder>,
    locked: HashSet<PathBuf>,
    next_inode: u64,
    /// How many more bytes files may grow by; `None` means any number.
    room: Option<u64>,
}

/// A file's content. A sector that is in neither map reads as zero.
#[derive(Clone, Default)]
struct Inode {
    durable: BTreeMap<u64, Sector>,
    durable_len: u64,
    /// Every version that each sector was given since the last sync, oldest first.
    unsynced: BTreeMap<u64, Vec<Sector>>,
    len: u64,
    /// How many open files are this one. One without a name lives as long as it is open.
    opened: usize,
}

#[derive(Clone, Default)]
struct Folder {
    durable: BTreeMap<String, u64>,
    live: BTreeMap<String, u64>,
    /// The changes since the last sync, oldest first.
    unsynced: Vec<Change>,
}

/// A change to a folder, which a crash keeps whole or loses whole.
#[derive(Clone)]
enum Change {
    Add(String, u64),
    Remove(String),
    Rename(String, String, u64),
}

impl MemFs {
    /// Returns an empty file system.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the file system that a power cut would leave now, with nothing open and no lock
    /// held; `seed` decides what of the unsynced survives.
    pub fn crash(&self, seed: u64) -> Self {
        self.crash_with(Crash::Random(seed))
    }

    /// Returns the file system that a crash of this kind would leave now.
    pub fn crash_with(&self, crash: Crash) -> Self {
        let mut disk = self.disk.lock().clone();
        let mut survives = Chance::new(crash);
        for folder in disk.folders.values_mut() {
            folder.crash(&mut survives);
        }
        let named: HashSet<u64> =
            disk.folders.values().flat_map(|folder| folder.live.values().copied()).collect();
        disk.files.retain(|inode, _| named.contains(inode));
        let mut inodes: Vec<_> = disk.files.iter_mut().collect();
        inodes.sort_by_key(|(inode, _)| **inode);
        for (_, file) in inodes {
            file.crash(&mut survives);
        }
        disk.files.values_mut().for_each(|file| file.opened = 0);
        disk.locked.clear();
        disk.room = None;
        Self { disk: Arc::new(Mutex::new(disk)), observer: Arc::default() }
    }

    /// Calls `observer` before every call from now on; where it returns an error, the call fails
    /// with it. It may block (a stalled disk) and may crash this file system.
    pub fn observe(&self, observer: impl Fn(&FsCall) -> io::Result<()> + Send + Sync + 'static) {
        *self.observer.lock() = Some(Arc::new(observer));
    }

    /// Takes the observer away.
    pub fn stop_observing(&self) {
        *self.observer.lock() = None;
    }

    /// Makes the `nth` call of this kind from now (the first is 1) fail, and those after it succeed.
    /// Takes the place of an observer.
    pub fn fail_nth(&self, operation: FsOperation, nth: u64) {
        let seen = std::sync::atomic::AtomicU64::new(0);
        self.observe(move |call| {
            let is_the_one = call.operation == operation
                && seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1 == nth;
            if is_the_one { Err(io::Error::other("the disk failed")) } else { Ok(()) }
        });
    }

    /// Lets files grow by this many more bytes; past it, the disk is full.
    pub fn limit_room(&self, bytes: u64) {
        self.disk.lock().room = Some(bytes);
    }

    /// Returns a file's bytes as a reader would see them now.
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path)?;
        let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        file.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Puts a file with these bytes there, durably, in place of one that may have the name: the way
    /// to damage a file.
    pub fn set_contents(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let (dir, name) = split(path)?;
        let mut disk = self.disk.lock();
        disk.next_inode += 1;
        let inode = disk.next_inode;
        let mut file = Inode::default();
        file.write(bytes, 0);
        file.sync();
        disk.files.insert(inode, file);
        let folder = disk.folders.get_mut(dir).ok_or(io::ErrorKind::NotFound)?;
        folder.live.insert(name.clone(), inode);
        folder.durable.insert(name, inode);
        Ok(())
    }

    fn call(&self, operation: FsOperation, path: &Path) -> io::Result<()> {
        self.call_at(operation, path, 0, 0)
    }

    fn call_at(
        &self,
        operation: FsOperation,
        path: &Path,
        position: u64,
        bytes: usize,
    ) -> io::Result<()> {
        let observer = self.observer.lock().clone();
        let path = path.to_owned();
        match observer {
            Some(observer) => observer(&FsCall { operation, path, position, bytes }),
            None => Ok(()),
        }
    }
}

impl Fs for MemFs {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        for ancestor in dir.ancestors() {
            disk.folders.entry(ancestor.to_owned()).or_default();
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn FsFile>> {
        self.call(FsOperation::Create, path)?;
        let (dir, name) = split(path)?;
        let mut disk = self.disk.lock();
        disk.next_inode += 1;
        let inode = disk.next_inode;
        let folder = disk.folders.get_mut(dir).ok_or(io::ErrorKind::NotFound)?;
        if folder.live.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        folder.live.insert(name.clone(), inode);
        folder.unsynced.push(Change::Add(name, inode));
        disk.files.insert(inode, Inode { opened: 1, ..Inode::default() });
        Ok(Arc::new(MemFile { fs: self.clone(), inode, path: path.to_owned() }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn FsFile>> {
        self.call(FsOperation::Open, path)?;
        let (dir, name) = split(path)?;
        let mut disk = self.disk.lock();
        let folder = disk.folders.get(dir).ok_or(io::ErrorKind::NotFound)?;
        let inode = *folder.live.get(&name).ok_or(io::ErrorKind::NotFound)?;
        disk.files.get_mut(&inode).ok_or(io::ErrorKind::NotFound)?.opened += 1;
        Ok(Arc::new(MemFile { fs: self.clone(), inode, path: path.to_owned() }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call(FsOperation::Remove, path)?;
        let (dir, name) = split(path)?;
        let mut disk = self.disk.lock();
        let folder = disk.folders.get_mut(dir).ok_or(io::ErrorKind::NotFound)?;
        folder.live.remove(&name).ok_or(io::ErrorKind::NotFound)?;
        folder.unsynced.push(Change::Remove(name));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(FsOperation::Rename, from)?;
        let ((dir, old), (to_dir, new)) = (split(from)?, split(to)?);
        if dir != to_dir {
            return Err(io::Error::other("a file is renamed within its folder only"));
        }
        let mut disk = self.disk.lock();
        let folder = disk.folders.get_mut(dir).ok_or(io::ErrorKind::NotFound)?;
        let inode = folder.live.remove(&old).ok_or(io::ErrorKind::NotFound)?;
        folder.live.insert(new.clone(), inode);
        folder.unsynced.push(Change::Rename(old, new, inode));
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.disk.lock();
        let folder = disk.folders.get(dir).ok_or(io::ErrorKind::NotFound)?;
        Ok(folder.live.keys().cloned().collect())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.call(FsOperation::SyncDir, dir)?;
        let mut disk = self.disk.lock();
        let folder = disk.folders.get_mut(dir).ok_or(io::ErrorKind::NotFound)?;
        folder.durable = folder.live.clone();
        folder.unsynced.clear();
        disk.drop_unnamed();
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FsLock>> {
        if !self.disk.lock().locked.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemLock { fs: self.clone(), path: path.to_owned() }))
    }
}

struct MemFile {
    fs: MemFs,
    inode: u64,
    path: PathBuf,
}

impl MemFile {
    fn with<R>(&self, act: impl FnOnce(&mut Inode) -> R) -> io::Result<R> {
        let mut disk = self.fs.disk.lock();
        Ok(act(disk.files.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?))
    }

    /// Takes the room that growing to `len` needs, or fails as a full disk does.
    fn reserve(&self, len: u64) -> io::Result<()> {
        let mut disk = self.fs.disk.lock();
        let file = disk.files.get(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        let growth = len.saturating_sub(file.len);
        match disk.room {
            Some(room) if growth > room => Err(io::ErrorKind::StorageFull.into()),
            Some(room) => {
                disk.room = Some(room - growth);
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl FsFile for MemFile {
    fn write_at(&self, bytes: &[u8], position: u64) -> io::Result<()> {
        self.fs.call_at(FsOperation::Write, &self.path, position, bytes.len())?;
        self.reserve(position + bytes.len() as u64)?;
        self.with(|file| file.write(bytes, position))
    }

    fn read_at(&self, bytes: &mut [u8], position: u64) -> io::Result<usize> {
        self.fs.call_at(FsOperation::Read, &self.path, position, bytes.len())?;
        self.with(|file| file.read(bytes, position))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.fs.call(FsOperation::Sync, &self.path)?;
        self.with(Inode::sync)
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|file| file.len)
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.fs.call(FsOperation::Preallocate, &self.path)?;
        self.reserve(len)?;
        self.with(|file| file.len = file.len.max(len))
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        if let Some(file) = self.fs.disk.lock().files.get_mut(&self.inode) {
            file.opened -= 1;
        }
    }
}

impl Disk {
    /// Gives back files that no folder names, also none that a crash would bring back, and that
    /// nobody has open.
    fn drop_unnamed(&mut self) {
        let folders = self.folders.values();
        let named: HashSet<u64> = folders
            .flat_map(|folder| folder.live.values().chain(folder.durable.values()))
            .copied()
            .collect();
        self.files.retain(|inode, file| file.opened > 0 || named.contains(inode));
    }
}

struct MemLock {
    fs: MemFs,
    path: PathBuf,
}

impl FsLock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        self.fs.disk.lock().locked.remove(&self.path);
    }
}

impl Inode {
    fn sector(&self, number: u64) -> [u8; SECTOR_BYTES] {
        let newest = self.unsynced.get(&number).and_then(|versions| versions.last());
        newest.or_else(|| self.durable.get(&number)).map_or([0; SECTOR_BYTES], |sector| **sector)
    }

    fn write(&mut self, bytes: &[u8], position: u64) {
        for (number, within, range) in sectors(position, bytes.len()) {
            let mut sector = self.sector(number);
            sector[within..within + range.len()].copy_from_slice(&bytes[range]);
            self.unsynced.entry(number).or_default().push(Arc::new(sector));
        }
        self.len = self.len.max(position + bytes.len() as u64);
    }

    fn read(&self, bytes: &mut [u8], position: u64) -> usize {
        let left = self.len.saturating_sub(position);
        let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        for (number, within, range) in sectors(position, count) {
            let sector = self.sector(number);
            let len = range.len();
            bytes[range].copy_from_slice(&sector[within..within + len]);
        }
        count
    }

    fn sync(&mut self) {
        for (number, mut versions) in std::mem::take(&mut self.unsynced) {
            if let Some(newest) = versions.pop() {
                self.durable.insert(number, newest);
            }
        }
        self.durable_len = self.len;
    }

    fn crash(&mut self, survives: &mut Chance) {
        for (number, versions) in std::mem::take(&mut self.unsynced) {
            // The disk may have stopped at any version of the sector, also at the one before all.
            if let Some(kept) = survives.pick(versions.len()) {
                self.durable.insert(number, Arc::clone(&versions[kept]));
            }
        }
        if survives.pick(1).is_none() {
            self.len = self.durable_len;
        }
        self.durable_len = self.len;
        // What lies past the end is gone, and reads as zero should the file grow again.
        let end = self.len.div_ceil(SECTOR_BYTES as u64);
        self.durable.retain(|number, _| *number < end);
    }
}

impl Folder {
    fn crash(&mut self, survives: &mut Chance) {
        let mut names = std::mem::take(&mut self.durable);
        for change in std::mem::take(&mut self.unsynced) {
            if survives.pick(1).is_none() {
                continue;
            }
            match change {
                Change::Add(name, inode) => {
                    names.insert(name, inode);
                }
                Change::Remove(name) => {
                    names.remove(&name);
                }
                Change::Rename(from, to, inode) => {
                    names.remove(&from);
                    names.insert(to, inode);
                }
            }
        }
        self.live = names.clone();
        self.durable = names;
    }
}

/// Decides what survives a crash.
struct Chance {
    crash: Crash,
    state: u64,
}

impl Chance {
    fn new(crash: Crash) -> Self {
        let state = match crash {
            Crash::Random(seed) => seed,
            Crash::LoseUnsynced | Crash::KeepUnsynced => 0,
        };
        Self { crash, state }
    }

    /// Returns which of so many unsynced versions survives; `None` if none does.
    fn pick(&mut self, versions: usize) -> Option<usize> {
        match self.crash {
            Crash::LoseUnsynced => None,
            Crash::KeepUnsynced => versions.checked_sub(1),
            Crash::Random(_) => {
                let choices = versions as u64 + 1;
                usize::try_from(self.next() % choices).ok()?.checked_sub(1)
            }
        }
    }

    /// The SplitMix64 generator: small, and the same on every machine.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Cuts `[position, position + len)` at the borders of sectors: the sector's number, where in it the
/// piece starts, and which of the `len` bytes the piece is.
fn sectors(
    position: u64,
    len: usize,
) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let size = SECTOR_BYTES as u64;
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = position + done as u64;
        let within = usize::try_from(at % size).expect("a sector is small");
        let count = (SECTOR_BYTES - within).min(len - done);
        let range = done..done + count;
        done += count;
        Some((at / size, within, range))
    })
}

fn split(path: &Path) -> io::Result<(&Path, String)> {
    let name = path.file_name().and_then(|name| name.to_str());
    match (path.parent(), name) {
        (Some(dir), Some(name)) => Ok((dir, name.to_owned())),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/d/file";

    fn with_file() -> (MemFs, Arc<dyn FsFile>) {
        let fs = MemFs::new();
        fs.create_dir_all(Path::new("/d")).unwrap();
        let file = fs.create(Path::new(PATH)).unwrap();
        fs.sync_dir(Path::new("/d")).unwrap();
        (fs, file)
    }

    #[test]
    fn synced_bytes_survive_every_crash() {
        let (fs, file) = with_file();
        let bytes: Vec<u8> = (0..=255).cycle().take(3000).collect();
        file.write_at(&bytes, 100).unwrap();
        file.sync_data().unwrap();
        for seed in 0..20 {
            let after = fs.crash(seed).contents(Path::new(PATH)).unwrap();
            assert_eq!(after[100..], bytes);
        }
    }

    #[test]
    fn unsynced_sectors_are_lost_or_kept_each_for_itself() {
        let (fs, file) = with_file();
        file.preallocate(2048).unwrap();
        file.sync_data().unwrap();
        file.write_at(&[7; 2048], 0).unwrap();
        let mut seen = HashSet::new();
        for seed in 0..200 {
            let after = fs.crash(seed).contents(Path::new(PATH)).unwrap();
            for sector in after.chunks(SECTOR_BYTES) {
                assert!(sector.iter().all(|byte| *byte == sector[0]), "a torn sector");
            }
            seen.insert([after[0], after[512], after[1024], after[1536]]);
        }
        assert_eq!(seen.len(), 16, "every combination of survivors comes up");
        assert_eq!(fs.contents(Path::new(PATH)).unwrap(), [7; 2048], "the original is unharmed");
    }

    #[test]
    fn unsynced_names_may_be_lost_and_open_files_outlive_their_names() {
        let (fs, file) = with_file();
        fs.rename(Path::new(PATH), Path::new("/d/other")).unwrap();
        let outcomes: HashSet<_> = (0..20)
            .map(|seed| fs.crash(seed).list(Path::new("/d")).unwrap())
            .inspect(|names| assert_eq!(names.len(), 1))
            .collect();
        assert_eq!(outcomes.len(), 2);
        fs.remove(Path::new("/d/other")).unwrap();
        file.write_at(b"x", 0).unwrap();
        assert_eq!(file.len().unwrap(), 1);
    }

    #[test]
    fn calls_fail_where_a_test_asks_them_to() {
        let (fs, file) = with_file();
        fs.fail_nth(FsOperation::Write, 2);
        file.write_at(b"a", 0).unwrap();
        file.write_at(b"b", 1).unwrap_err();
        file.write_at(b"c", 1).unwrap();
        assert_eq!(fs.contents(Path::new(PATH)).unwrap(), b"ac");
        fs.limit_room(10);
        file.write_at(&[0; 12], 0).unwrap();
        assert_eq!(file.write_at(b"x", 12).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
