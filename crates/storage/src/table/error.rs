//! What can go wrong with a table.

use std::io;
use std::path::{Path, PathBuf};

use trireme_types::{BatchDecodeError, CohortId, Engine, Lsn};

use crate::snapshot::SnapshotError;

/// Why a table could not do what was asked.
///
/// After [`TableError::is_fatal`] errors the node must stop: what its disk holds is not known.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A file operation failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The storage engine failed in an operation.
    #[error("the {engine} engine cannot {doing}: {source}")]
    Engine {
        /// The engine.
        engine: Engine,
        /// What was tried.
        doing: &'static str,
        /// The engine's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of the engine is not what was written. The rows are lost to this node, but not to the
    /// cluster.
    #[error(
        "the {engine} engine cannot {doing}: {} is damaged ({source}); move the node's whole folder \
         away and start the node on an empty one, to have it rebuilt from its peers",
        path.display()
    )]
    Damaged {
        /// The engine.
        engine: Engine,
        /// What was tried.
        doing: &'static str,
        /// The file, or the folder if it is not known which of its files it is.
        path: PathBuf,
        /// The engine's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine's files cannot be opened. The rows are lost to this node, but not to the
    /// cluster: a node with an empty folder gets them from other replicas.
    #[error(
        "the {engine} table in {} will not open: {reason}; move the node's whole folder away and \
         start the node on an empty one, to have it rebuilt from its peers",
        path.display()
    )]
    WillNotOpen {
        /// The engine.
        engine: Engine,
        /// The table's folder.
        path: PathBuf,
        /// The engine's complaint.
        reason: String,
    },
    /// The folder was made by another engine than the one asked for.
    #[error(
        "the table in {} was made by the engine {found}; it cannot be opened as {asked}",
        path.display()
    )]
    OtherEngine {
        /// The table's folder.
        path: PathBuf,
        /// The engine that made it.
        found: String,
        /// The engine that was asked for.
        asked: Engine,
    },
    /// The folder holds something, and it is no table.
    #[error("{} is not empty and holds no table", path.display())]
    NotATable {
        /// The folder.
        path: PathBuf,
    },
    /// Something on disk has a format that this build does not read.
    #[error("{what} has format {found}; this build reads format {known}")]
    Format {
        /// What was read.
        what: &'static str,
        /// The format that it has.
        found: u32,
        /// The format that this build reads.
        known: u32,
    },
    /// Something on disk is not what was written there.
    #[error("{what} of {cohort} is corrupt: {reason}")]
    Corrupt {
        /// What was read.
        what: &'static str,
        /// Whose it is.
        cohort: CohortId,
        /// How it shows.
        reason: String,
    },
    /// Entries were handed to a table that has come past them already.
    #[error("{cohort} has applied up to {applied}, so {found} cannot be applied next")]
    OutOfOrder {
        /// The cohort.
        cohort: CohortId,
        /// How far it has applied.
        applied: Lsn,
        /// The entry that was handed to it.
        found: Lsn,
    },
    /// The commands of a committed entry cannot be read.
    #[error("entry {lsn} of {cohort} cannot be applied: {source}")]
    Batch {
        /// The cohort.
        cohort: CohortId,
        /// The entry.
        lsn: Lsn,
        /// What is wrong with it.
        source: BatchDecodeError,
    },
    /// A snapshot is not ahead of what has been applied already.
    #[error("a snapshot at {snapshot} is older than {cohort}, which has applied up to {applied}")]
    OldSnapshot {
        /// The cohort.
        cohort: CohortId,
        /// How far it has applied.
        applied: Lsn,
        /// Where the snapshot stands.
        snapshot: Lsn,
    },
    /// A snapshot cannot be read.
    #[error("a snapshot for {cohort} cannot be installed: {source}")]
    Snapshot {
        /// The cohort.
        cohort: CohortId,
        /// What is wrong with it.
        source: SnapshotError,
    },
    /// The cohort's rows were removed from this node.
    #[error("{0} was dropped from this node")]
    Dropped(CohortId),
    /// The cohort has ended; its successors have its rows.
    #[error("{0} has ended, and its successors have its rows")]
    Sealed(CohortId),
    /// The cohort has no successor before it has ended.
    #[error("{0} has not ended here")]
    NotSealed(CohortId),
    /// The tables were closed.
    #[error("the tables are closed")]
    Closed,
    /// An earlier write or flush failed, so nothing more is written: what the disk holds is not
    /// known any more.
    #[error("the tables take no more writes since an earlier failure: {reason}")]
    Failed {
        /// The earlier failure.
        reason: String,
    },
}

impl TableError {
    /// Says whether the tables take no more writes after this error.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Io { .. } | Self::Engine { .. } | Self::Damaged { .. } | Self::Failed { .. } => {
                true
            }
            Self::WillNotOpen { .. }
            | Self::OtherEngine { .. }
            | Self::NotATable { .. }
            | Self::Format { .. }
            | Self::Corrupt { .. }
            | Self::OutOfOrder { .. }
            | Self::Batch { .. }
            | Self::OldSnapshot { .. }
            | Self::Snapshot { .. }
            | Self::Dropped(_)
            | Self::Sealed(_)
            | Self::NotSealed(_)
            | Self::Closed => false,
        }
    }

    /// Returns true if a read that ended so has found that the disk does not give back what was
    /// written to it.
    pub fn is_of_the_disk(&self) -> bool {
        match self {
            Self::Io { .. }
            | Self::Engine { .. }
            | Self::Damaged { .. }
            | Self::Format { .. }
            | Self::Corrupt { .. } => true,
            Self::WillNotOpen { .. }
            | Self::OtherEngine { .. }
            | Self::NotATable { .. }
            | Self::OutOfOrder { .. }
            | Self::Batch { .. }
            | Self::OldSnapshot { .. }
            | Self::Snapshot { .. }
            | Self::Dropped(_)
            | Self::Sealed(_)
            | Self::NotSealed(_)
            | Self::Closed
            | Self::Failed { .. } => false,
        }
    }

    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }
}
