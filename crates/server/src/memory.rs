//! What a node remembers of the catalog.
//!
//! `memory.json` in the data folder holds the newest range map and the newest configuration of every
//! cohort that the coordinator has sent the node, with the line and the revision of the coordinator
//! that it last trusted, and the replicas that it has set aside. The node acts in nothing that does
//! not stand there: a configuration is on its disk before a replica is opened in it or hears of it. So
//! whatever the coordinator loses, the members of each configuration that was ever acted in know it.
//!
//! The file is replaced whole when it changes, and those who wait for it share one write.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use trireme_coordinator::Line;
use trireme_coordinator::recipes::knowledge::{Conflict, Knowledge, WrittenKnowledge};
use trireme_types::{CohortId, NodeId};

use crate::data_folder::{DataFolderError, MEMORY_FILE, io_error, read_checked, replace};

/// The format that this build writes, and the newest that it reads.
const FORMAT: u32 = 2;

/// Why something could not be remembered.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The node knows something else under the same number.
    #[error("what the coordinator says contradicts what this node has acted in: {0}")]
    Conflict(#[from] Conflict),
    /// The disk did not take it.
    #[error(transparent)]
    Folder(#[from] DataFolderError),
}

/// What a node remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeMemory {
    /// The node.
    pub node: NodeId,
    /// The newest map and configurations.
    pub known: Knowledge,
    /// The line in which the coordinator was last known to have lost nothing.
    pub line: Line,
    /// The newest revision of it that the node has seen.
    pub revision: i64,
    /// Names the creation of the catalog that this is about.
    pub creation: i64,
    /// The replicas that are set aside, and since when, in milliseconds of Unix time.
    pub set_aside: BTreeMap<CohortId, u64>,
    /// The cohorts whose replica here was given up at some time. One that is opened again without
    /// anything on the disk has lost what it acknowledged.
    pub given_up: BTreeSet<CohortId>,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct MemoryFile {
    format: u32,
    node: NodeId,
    line: Line,
    revision: i64,
    #[serde(default)]
    creation: i64,
    known: WrittenKnowledge,
    #[serde(default)]
    set_aside: BTreeMap<CohortId, u64>,
    #[serde(default)]
    given_up: BTreeSet<CohortId>,
}

impl NodeMemory {
    /// Reads what the node of a folder remembers, without holding the folder; `None` if it remembers
    /// nothing.
    pub fn read(folder: &Path) -> Result<Option<Self>, DataFolderError> {
        let path = folder.join(MEMORY_FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(io_error(&path, source)),
        };
        Self::parse(&path, &bytes).map(Some)
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, DataFolderError> {
        let damaged = |reason| DataFolderError::Damaged { path: path.to_owned(), reason };
        let file: MemoryFile = read_checked(path, bytes, FORMAT)?;
        let MemoryFile { node, line, revision, creation, known, set_aside, given_up, .. } = file;
        let known = Knowledge::try_from(known)
            .map_err(|error| damaged(<serde_json::Error as serde::de::Error>::custom(error)))?;
        Ok(Self { node, known, line, revision, creation, set_aside, given_up })
    }

    fn file(&self) -> MemoryFile {
        MemoryFile {
            format: FORMAT,
            node: self.node,
            line: self.line,
            revision: self.revision,
            creation: self.creation,
            known: WrittenKnowledge::from(&self.known),
            set_aside: self.set_aside.clone(),
            given_up: self.given_up.clone(),
        }
    }

    /// Returns the time as it is remembered.
    pub(crate) fn now() -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The memory of a running node.
pub(crate) struct Memory {
    folder: PathBuf,
    newest: Mutex<Numbered>,
    /// The number of what is on the disk. Held while that is changed.
    written: tokio::sync::Mutex<u64>,
}

/// What is remembered, and how often it has changed.
struct Numbered {
    number: u64,
    memory: Arc<NodeMemory>,
}

impl Memory {
    /// Returns a memory that begins with `memory`, which is on the disk when this returns.
    pub(crate) fn start(folder: &Path, memory: NodeMemory) -> Result<Self, DataFolderError> {
        replace(folder, MEMORY_FILE, &memory.file())?;
        let newest = Mutex::new(Numbered { number: 0, memory: Arc::new(memory) });
        Ok(Self { folder: folder.to_owned(), newest, written: tokio::sync::Mutex::new(0) })
    }

    /// Returns what is remembered.
    pub(crate) fn get(&self) -> Arc<NodeMemory> {
        Arc::clone(&self.newest.lock().memory)
    }

    /// Changes what is remembered; on the disk when this returns, whether or not it has changed.
    pub(crate) async fn update(
        &self,
        change: impl FnOnce(&mut NodeMemory) -> Result<(), Conflict>,
    ) -> Result<(), MemoryError> {
        let number = {
            let mut newest = self.newest.lock();
            let mut changed = NodeMemory::clone(&newest.memory);
            change(&mut changed)?;
            if changed != *newest.memory {
                newest.memory = Arc::new(changed);
                newest.number += 1;
            }
            newest.number
        };
        Ok(self.write_up_to(number).await?)
    }

    /// Has what is remembered on the disk, as it was at this number or later.
    async fn write_up_to(&self, number: u64) -> Result<(), DataFolderError> {
        let mut written = self.written.lock().await;
        if *written >= number {
            return Ok(());
        }
        let (number, memory) = {
            let newest = self.newest.lock();
            (newest.number, Arc::clone(&newest.memory))
        };
        let folder = self.folder.clone();
        let writing =
            tokio::task::spawn_blocking(move || replace(&folder, MEMORY_FILE, &memory.file()));
        writing.await.unwrap_or_else(|error| {
            Err(io_error(&self.folder.join(MEMORY_FILE), io::Error::other(error)))
        })?;
        *written = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use trireme_fuzz::{Fuzz, Verdict};
    use trireme_types::{ClusterId, CohortConfig, Protocol, RangeMap};

    use super::*;
    use crate::checked_json::{repair, to_checked_json};

    fn memory() -> NodeMemory {
        let map = RangeMap::from_splits(&[]).unwrap();
        let known = Knowledge { cluster: ClusterId(7), map, configs: BTreeMap::new() };
        NodeMemory {
            node: NodeId(2),
            known,
            line: Line { cluster: 1, term: 2 },
            revision: 3,
            creation: 4,
            set_aside: BTreeMap::new(),
            given_up: BTreeSet::new(),
        }
    }

    #[test]
    fn fuzz_memory_file() {
        let mut known = memory();
        known.known.configs.insert(CohortId(1), config(4, &[1, 2]));
        let write = |memory: &NodeMemory| to_checked_json(&memory.file()).unwrap();
        let old = serde_json::to_vec(&MemoryFile { format: 1, ..memory().file() }).unwrap();
        let valid = [write(&memory()), write(&known), old];
        let repair = |bytes: &mut Vec<u8>| repair(bytes);
        Fuzz::new("fuzz_memory_file", valid).repair(&repair).run(|bytes| {
            let read = NodeMemory::parse(Path::new("memory.json"), bytes);
            if let Ok(memory) = &read {
                let again = NodeMemory::parse(Path::new("memory.json"), &write(memory));
                assert_eq!(&again.unwrap(), memory);
            }
            Verdict::from(&read)
        });
    }

    fn config(version: u64, replicas: &[u64]) -> CohortConfig {
        CohortConfig {
            cohort: CohortId(1),
            version,
            protocol: Protocol::Pacifica,
            replicas: replicas.iter().copied().map(NodeId).collect(),
            replicas_wanted: 3,
            incarnations: [].into(),
            origin: None,
        }
    }

    #[tokio::test]
    async fn what_is_remembered_is_on_the_disk_and_written_only_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(NodeMemory::read(dir.path()).unwrap(), None);
        let running = Memory::start(dir.path(), memory()).unwrap();
        assert_eq!(NodeMemory::read(dir.path()).unwrap(), Some(memory()));
        let inode = || fs::metadata(dir.path().join(MEMORY_FILE)).unwrap().modified().unwrap();
        let before = inode();
        running.update(|_| Ok(())).await.unwrap();
        assert_eq!(inode(), before, "nothing has changed");
        let changing = [1, 2, 3].map(|version| {
            running.update(move |memory| {
                memory.known.take(&config(version, &[1, 2]));
                memory.set_aside.insert(CohortId(version), 5);
                Ok(())
            })
        });
        for done in futures::future::join_all(changing).await {
            done.unwrap();
        }
        let read = NodeMemory::read(dir.path()).unwrap().unwrap();
        assert_eq!(read, *running.get());
        assert_eq!(read.known.configs[&CohortId(1)], config(3, &[1, 2]));
        assert_eq!(read.set_aside.len(), 3);
    }

    /// What cannot be written is not known, so that no replica acts in it; it is tried again.
    #[tokio::test]
    async fn what_the_disk_does_not_take_is_an_error_until_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("node");
        fs::create_dir(&folder).unwrap();
        let running = Memory::start(&folder, memory()).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let raise = |memory: &mut NodeMemory| {
            memory.revision = 9;
            Ok(())
        };
        assert!(running.update(raise).await.is_err());
        assert!(running.update(raise).await.is_err(), "it has not changed, and is not written");
        fs::create_dir(&folder).unwrap();
        running.update(raise).await.unwrap();
        assert_eq!(NodeMemory::read(&folder).unwrap().unwrap().revision, 9);
    }

    #[test]
    fn a_later_format_and_damage_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(MEMORY_FILE);
        fs::write(&path, r#"{"format": 3}"#).unwrap();
        let future = NodeMemory::read(dir.path()).unwrap_err();
        assert!(matches!(future, DataFolderError::Future { found: 3, .. }), "{future}");
        fs::write(&path, r#"{"format": 1}"#).unwrap();
        assert!(matches!(NodeMemory::read(dir.path()), Err(DataFolderError::Damaged { .. })));
    }
}
