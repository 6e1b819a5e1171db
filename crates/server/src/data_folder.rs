//! A node's data folder: whose it is, and that only one process uses it.
//!
//! `node.json` names the cluster, the node and the choices that may not change under existing data;
//! `LOCK` is held while a process uses the folder. `memory.json` is what the node remembers of the
//! catalog, the shared log is in `log/`, the tables are in
//! `tables/`, snapshots that are being received in `incoming/`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use trireme_coordinator::recipes::membership::NodeInfo;
use trireme_types::{ClusterId, Durability, Engine, NodeId, Timing};

use crate::checked_json::{UnreadableJson, from_checked_json, to_checked_json};

/// The format of `node.json` that this build writes, and the newest that it reads.
const FORMAT: u32 = 2;

/// How many replicas a PacificA cohort must have to take writes, unless more is asked for.
pub const MIN_REPLICAS_FOR_WRITE: usize = 1;

const DESCRIPTION_FILE: &str = "node.json";
const LOCK_FILE: &str = "LOCK";

/// What the node remembers of the catalog; see [`crate::memory`].
pub(crate) const MEMORY_FILE: &str = "memory.json";

/// Linux's name for this run of the machine.
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";

/// What a data folder says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFile {
    pub(crate) format: u32,
    /// The cluster that the data belongs to, as 16 hexadecimal digits.
    pub cluster: String,
    /// The node that the data belongs to.
    pub node: NodeId,
    /// Drawn when the folder was made: the coordinator knows a node by it, so that a node whose
    /// disk was lost cannot come back as if it still had what it acknowledged (S14).
    pub data_id: u64,
    /// The storage engine that the tables were made with.
    pub engine: Engine,
    /// What an acknowledged write has survived.
    pub durability: Durability,
    /// Whether the log was made: from then on its absence is a loss, not a beginning.
    pub has_log: bool,
    /// Whether the node came to the cluster with this folder after it had lost another one, and
    /// with it what its replicas had acknowledged (S14).
    #[serde(default)]
    pub rejoins: bool,
    /// How often a node was started on the folder: raised on disk before the coordinator learns of the
    /// start. A folder that counts fewer than the coordinator knows of is an older copy.
    #[serde(default)]
    pub starts: u64,
    /// When the node came with this folder, or with it emptied, having lost what it had, in milliseconds
    /// of Unix time; 0.1.0 counted from one. Zero in its first folder. Of two folders the newer one has the
    /// higher number.
    #[serde(default)]
    pub incarnation: u64,
    /// Whether the log and the tables are to be set aside before anything is opened: they are older
    /// than what the node has acknowledged.
    #[serde(default)]
    pub sets_aside: bool,
    /// The address that the node listens on, host:port.
    pub listen: String,
    /// The address at which others reach it, if that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// The coordinator's endpoints.
    pub coordinator: Vec<String>,
    /// The periods of Spinnaker and PacificA.
    #[serde(default)]
    pub timing: Timing,
    /// How many replicas a PacificA cohort must have to take writes (P10).
    #[serde(default = "min_replicas_for_write")]
    pub min_replicas_for_write: usize,
}

/// What folders say that were made before the choice was remembered.
const fn min_replicas_for_write() -> usize {
    MIN_REPLICAS_FOR_WRITE
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataFolderError {
    /// Another process uses the folder.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// There is no node in the folder, and not enough was said to make one.
    #[error("{0} holds no node yet: a new one needs {1}")]
    Empty(PathBuf, &'static str),
    /// The folder's data is of another cluster.
    #[error("{path} holds data of cluster {found}, not of cluster {expected}")]
    OtherCluster {
        /// The folder.
        path: PathBuf,
        /// Its cluster.
        found: String,
        /// The cluster that was meant.
        expected: ClusterId,
    },
    /// Something was asked for that differs from what the data was made with.
    #[error("{path} was made with {what} {found}, not {asked}")]
    Differs {
        /// The folder.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What the folder was made with.
        found: String,
        /// What was asked for.
        asked: String,
    },
    /// The folder was written by a later version.
    #[error("{path} has format {found}, which a later version has written")]
    Future {
        /// The file that says so.
        path: PathBuf,
        /// The format it names.
        found: u32,
    },
    /// A file of the folder is not what was written.
    #[error(
        "{path} is damaged: {reason}; move the node's whole folder away and start the node on an empty \
         one, to have it rebuilt from its peers"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: serde_json::Error,
    },
    /// The folder is a node's and its log is gone: what the node acknowledged is lost with it (S14).
    #[error(
        "{0} has lost its log, and with it what the node acknowledged: put the log back, or move the \
         whole folder away, so that the node begins with an empty one and is rebuilt from its peers"
    )]
    LostLog(PathBuf),
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A data folder that this process holds.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    /// Holds the lock as long as it is open.
    _lock: File,
}

impl DataFolder {
    /// Opens a folder for this process alone, and makes it if it is not there.
    pub fn open(path: &Path) -> Result<Self, DataFolderError> {
        fs::create_dir_all(path).map_err(|source| io_error(path, source))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|source| io_error(&lock_path, source))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(DataFolderError::InUse(path.to_owned())),
            Err(error) => Err(io_error(&lock_path, error.into())),
        }
    }

    /// Returns true if a process holds the folder at `path`, which need not be there.
    pub fn is_in_use(path: &Path) -> Result<bool, DataFolderError> {
        let lock_path = path.join(LOCK_FILE);
        let lock = match File::open(&lock_path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(io_error(&lock_path, source)),
        };
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(io_error(&lock_path, error.into())),
        }
    }

    /// Returns the folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the folder of the shared log.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Returns the folder of the tables.
    pub fn tables(&self) -> PathBuf {
        self.path.join("tables")
    }

    /// Returns the folder of snapshots that are being received.
    pub fn incoming(&self) -> PathBuf {
        self.path.join("incoming")
    }

    /// Returns true if there is a log or a table in the folder, of whichever node.
    pub fn has_data(&self) -> Result<bool, DataFolderError> {
        for path in [self.log(), self.tables()] {
            match fs::read_dir(&path).map(Iterator::count) {
                Ok(0) => {}
                Ok(_) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(io_error(&path, source)),
            }
        }
        Ok(false)
    }

    /// Checks that a log that was made is still there.
    pub fn check_log(&self, file: &NodeFile) -> Result<(), DataFolderError> {
        let path = self.log();
        let is_there = match fs::read_dir(&path) {
            Ok(mut entries) => entries.any(|entry| {
                entry.is_ok_and(|entry| entry.path().extension().is_some_and(|end| end == "log"))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(source) => return Err(io_error(&path, source)),
        };
        if file.has_log && !is_there {
            return Err(DataFolderError::LostLog(self.path.clone()));
        }
        Ok(())
    }

    /// Returns what the folder says of itself; `None` if it is new.
    pub fn read(&self) -> Result<Option<NodeFile>, DataFolderError> {
        Self::describe(&self.path)
    }

    /// Returns what the folder at `path` says of itself, without holding or making it; `None` if it
    /// is new or not there. A process that holds it may be changing it.
    pub fn describe(path: &Path) -> Result<Option<NodeFile>, DataFolderError> {
        let path = path.join(DESCRIPTION_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error(&path, source)),
        };
        parse(&path, &bytes).map(Some)
    }

    /// Writes what the folder says of itself, so that a crash leaves the old or the new file whole.
    /// What is there already is not written again.
    pub fn write(&self, file: &NodeFile) -> Result<(), DataFolderError> {
        replace(&self.path, DESCRIPTION_FILE, file)
    }

    /// Returns where the folder is, in words that no copy of it shares: the file system's name for
    /// the lock that this process holds. Of two processes that name the same place, the earlier one
    /// has ended, since the lock is held by one.
    pub fn place(&self) -> Result<String, DataFolderError> {
        let lock_path = self.path.join(LOCK_FILE);
        let lock = self._lock.metadata().map_err(|source| io_error(&lock_path, source))?;
        // The machine is named by its boot: no lock outlives it.
        let boot = fs::read_to_string(BOOT_ID_FILE).unwrap_or_default();
        Ok(format!("{}/{}/{}", boot.trim(), lock.dev(), lock.ino()))
    }

    /// Moves the log and the tables to a folder beside them, out of the way of new ones, where they
    /// stay until an operator removes them. To be repeated where it was interrupted.
    pub fn set_data_aside(&self) -> Result<PathBuf, DataFolderError> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let mut seconds = now.map_or(0, |now| now.as_secs());
        let aside = loop {
            let aside = self.path.join(format!("set-aside-{seconds}"));
            match fs::create_dir(&aside) {
                Ok(()) => break aside,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => seconds += 1,
                Err(source) => return Err(io_error(&aside, source)),
            }
        };
        for path in [self.log(), self.tables(), self.path.join(MEMORY_FILE)] {
            let Some(name) = path.file_name() else { continue };
            match fs::rename(&path, aside.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error(&path, error));
                }
                _ => {}
            }
        }
        let synced = File::open(&self.path).and_then(|folder| folder.sync_all());
        synced.map_err(|source| io_error(&self.path, source))?;
        Ok(aside)
    }
}

impl NodeFile {
    /// Describes a new folder.
    pub fn new(
        cluster: ClusterId,
        node: NodeId,
        engine: Engine,
        durability: Durability,
        listen: String,
        coordinator: Vec<String>,
    ) -> Self {
        let (cluster, data_id) = (cluster.to_string(), rand::random());
        Self {
            format: FORMAT,
            cluster,
            node,
            data_id,
            engine,
            durability,
            has_log: false,
            rejoins: false,
            starts: 0,
            incarnation: 0,
            sets_aside: false,
            listen,
            advertise: None,
            coordinator,
            timing: Timing::default(),
            min_replicas_for_write: MIN_REPLICAS_FOR_WRITE,
        }
    }

    /// Returns the description with what may change from one start to the next.
    pub fn restarted(
        self,
        durability: Durability,
        listen: String,
        coordinator: Vec<String>,
    ) -> Self {
        Self { durability, listen, coordinator, ..self }
    }

    /// Returns the record of the node, as the coordinator keeps it.
    pub fn record(&self) -> NodeInfo {
        NodeInfo {
            folder: format!("{:016x}", self.data_id),
            starts: self.starts,
            incarnation: self.incarnation,
            ..NodeInfo::new(self.reached_at().to_owned())
        }
    }

    /// Returns the address at which clients and other nodes reach the node.
    pub fn reached_at(&self) -> &str {
        self.advertise.as_deref().unwrap_or(&self.listen)
    }

    /// Checks that the folder's data belongs to `cluster`.
    pub fn check_cluster(&self, path: &Path, cluster: ClusterId) -> Result<(), DataFolderError> {
        if self.cluster == cluster.to_string() {
            return Ok(());
        }
        Err(DataFolderError::OtherCluster {
            path: path.to_owned(),
            found: self.cluster.clone(),
            expected: cluster,
        })
    }
}

/// Replaces a file of a folder, so that a crash leaves the old or the new one whole. One that has the
/// same content already is left as it is: a full disk is then no reason not to start.
pub(crate) fn replace<T: Serialize>(
    folder: &Path,
    name: &str,
    content: &T,
) -> Result<(), DataFolderError> {
    let path = folder.join(name);
    let written = folder.join(format!("{name}.new"));
    let save = || -> io::Result<()> {
        let bytes = to_checked_json(content)?;
        if fs::read(&path).is_ok_and(|found| found == bytes) {
            return Ok(());
        }
        let mut output = File::create(&written)?;
        output.write_all(&bytes)?;
        output.sync_all()?;
        fs::rename(&written, &path)?;
        File::open(folder)?.sync_all()
    };
    save().map_err(|source| io_error(&path, source))
}

fn parse(path: &Path, bytes: &[u8]) -> Result<NodeFile, DataFolderError> {
    let file: NodeFile = read_checked(path, bytes, FORMAT)?;
    // It is written as this build writes it.
    Ok(NodeFile { format: FORMAT, ..file })
}

/// Reads a file of a data folder whose formats go up to `newest`.
pub(crate) fn read_checked<T: for<'de> Deserialize<'de>>(
    path: &Path,
    bytes: &[u8],
    newest: u32,
) -> Result<T, DataFolderError> {
    let path = path.to_owned();
    from_checked_json(bytes, newest).map_err(|error| match error {
        UnreadableJson::Future(found) => DataFolderError::Future { path, found },
        UnreadableJson::Damaged(reason) => DataFolderError::Damaged { path, reason },
    })
}

pub(crate) fn io_error(path: &Path, source: io::Error) -> DataFolderError {
    DataFolderError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use trireme_fuzz::{Fuzz, Verdict};

    use super::*;
    use crate::checked_json;

    fn file() -> NodeFile {
        let listen = "127.0.0.1:7101".to_owned();
        let coordinator = vec!["http://127.0.0.1:7100".to_owned()];
        let (engine, durability) = (Engine::Lsm, Durability::Fsync);
        NodeFile::new(ClusterId(7), NodeId(1), engine, durability, listen, coordinator)
    }

    #[test]
    fn fuzz_node_file() {
        let write = |file: &NodeFile| to_checked_json(file).unwrap();
        let old = serde_json::to_vec(&NodeFile { format: 1, ..file() }).unwrap();
        let valid = [write(&file()), old];
        let repair = |bytes: &mut Vec<u8>| checked_json::repair(bytes);
        Fuzz::new("fuzz_node_file", valid).repair(&repair).run(|bytes| {
            let read = parse(Path::new("node.json"), bytes);
            if let Ok(file) = &read {
                assert_eq!(&parse(Path::new("node.json"), &write(file)).unwrap(), file);
            }
            Verdict::from(&read)
        });
    }

    #[test]
    fn a_folder_reads_what_was_written_and_is_held_by_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        assert_eq!(folder.read().unwrap(), None);
        let written = file();
        folder.write(&written).unwrap();
        assert_eq!(folder.read().unwrap(), Some(written));
        let second = DataFolder::open(dir.path());
        assert!(matches!(second, Err(DataFolderError::InUse(_))), "{second:?}");
        assert!(DataFolder::is_in_use(dir.path()).unwrap());
        drop(folder);
        assert!(!DataFolder::is_in_use(dir.path()).unwrap());
        assert!(!DataFolder::is_in_use(&dir.path().join("not there")).unwrap());
        assert!(DataFolder::open(dir.path()).is_ok());
    }

    /// A node that changed nothing wrote its description anew at each start, and so could not be
    /// started while its disk was full.
    #[test]
    fn a_description_is_written_only_when_it_changes() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        let written = file();
        let inode = || fs::metadata(dir.path().join(DESCRIPTION_FILE)).unwrap().ino();
        folder.write(&written).unwrap();
        let first = inode();
        folder.write(&written).unwrap();
        assert_eq!(inode(), first);
        folder.write(&NodeFile { has_log: true, ..written }).unwrap();
        assert_ne!(inode(), first);
    }

    /// Folders were written before they remembered the periods.
    #[test]
    fn a_folder_that_says_nothing_of_periods_has_the_default_ones() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        let mut old = serde_json::to_value(NodeFile { format: 1, ..file() }).unwrap();
        let fields = old.as_object_mut().unwrap();
        assert!(fields.remove("timing").is_some());
        assert!(fields.remove("min_replicas_for_write").is_some());
        fs::write(dir.path().join(DESCRIPTION_FILE), old.to_string()).unwrap();
        let read = folder.read().unwrap().unwrap();
        assert_eq!((read.timing, read.min_replicas_for_write), (Timing::default(), 1));
    }

    #[test]
    fn a_log_that_was_made_and_is_gone_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        let made = NodeFile { has_log: true, ..file() };
        assert!(folder.check_log(&file()).is_ok(), "a folder that has none yet is new");
        let lost = folder.check_log(&made);
        assert!(matches!(lost, Err(DataFolderError::LostLog(_))), "{lost:?}");
        assert!(!folder.has_data().unwrap());
        fs::create_dir(folder.log()).unwrap();
        assert!(folder.check_log(&made).is_err());
        fs::write(folder.log().join("00000000000000000001.log"), "").unwrap();
        assert!(folder.check_log(&made).is_ok());
        assert!(folder.has_data().unwrap());
    }

    #[test]
    fn a_description_that_was_written_before_nodes_could_rejoin_is_read() {
        let mut written = serde_json::to_value(NodeFile { format: 1, ..file() }).unwrap();
        written.as_object_mut().unwrap().remove("rejoins").unwrap();
        let read = parse(Path::new("node.json"), written.to_string().as_bytes()).unwrap();
        assert!(!read.rejoins);
    }

    #[test]
    fn another_cluster_a_future_format_and_damage_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(dir.path()).unwrap();
        let other = file().check_cluster(dir.path(), ClusterId(8)).unwrap_err();
        assert!(matches!(other, DataFolderError::OtherCluster { .. }), "{other}");
        let future = r#"{"format": 3, "who": "knows"}"#;
        fs::write(dir.path().join(DESCRIPTION_FILE), future).unwrap();
        assert!(matches!(folder.read(), Err(DataFolderError::Future { found: 3, .. })));
        fs::write(dir.path().join(DESCRIPTION_FILE), "{\"form").unwrap();
        assert!(matches!(folder.read(), Err(DataFolderError::Damaged { .. })));
    }
}
