//! What can go wrong with a log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trireme_types::{CohortId, Lsn};

use super::LogIdentity;

/// What went wrong with a log.
///
/// It can be cloned, because one failed sync is the answer to every write that waited for it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// A call to the file system failed.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the file system said.
        source: Arc<io::Error>,
    },
    /// The disk has no room left, or the user's quota is spent.
    #[error("the disk is full: could not {action} {}: {source}", path.display())]
    DiskFull {
        /// What was tried, as a verb.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the file system said.
        source: Arc<io::Error>,
    },
    /// The file does not hold what was once durably written to it.
    #[error(
        "{} is corrupt at byte {position}: {what}; move the node's whole folder away and start the \
         node on an empty one, to have it rebuilt from its peers",
        path.display()
    )]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Where in it, in bytes from its start.
        position: u64,
        /// What is wrong there.
        what: String,
    },
    /// A segment between the oldest and the newest is not there.
    #[error("the log in {} lacks its segment {number}, though a later one exists", dir.display())]
    MissingSegment {
        /// The log's folder.
        dir: PathBuf,
        /// The missing segment.
        number: u64,
    },
    /// The file was written by a later version of Trireme.
    #[error("{} has log format {found}; this build reads up to {supported}", path.display())]
    FutureFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The highest format that this build reads.
        supported: u32,
    },
    /// The log was written by another node, or for another cluster.
    #[error("{} belongs to {found}, not to {expected}", path.display())]
    ForeignLog {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: LogIdentity,
        /// Whose it should have been.
        expected: LogIdentity,
    },
    /// Another process has the log open.
    #[error("the log in {} is in use by another process", dir.display())]
    InUse {
        /// The log's folder.
        dir: PathBuf,
    },
    /// A write or a sync failed earlier, so nothing can be promised any more; the node must stop.
    #[error("the log takes no more writes, because earlier: {0}")]
    Poisoned(Arc<Self>),
    /// The log's writer ended by a bug.
    #[error("the log's writer panicked")]
    WriterPanicked,
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
    /// The append would leave a hole in the cohort's log. Nothing of it was written.
    #[error("{cohort}: an append at {seq} would leave a hole after {last}")]
    Hole {
        /// The cohort.
        cohort: CohortId,
        /// The first entry that does not fit.
        seq: u64,
        /// The last entry before it.
        last: u64,
    },
    /// The write concerns entries that were purged. Nothing of it was written.
    #[error("{cohort}: entry {seq} was purged; the log starts after {purged}")]
    BelowPurged {
        /// The cohort.
        cohort: CohortId,
        /// The entry.
        seq: u64,
        /// The highest purged entry.
        purged: Lsn,
    },
    /// A purge past what the cohort's table has on disk: after a crash, only the log could bring the
    /// rest back. Nothing was written.
    #[error(
        "{cohort}: the log up to {upto} is not to be given up: the table has {persisted} on disk"
    )]
    NotPersisted {
        /// The cohort.
        cohort: CohortId,
        /// The last entry that was to go.
        upto: Lsn,
        /// The last entry that the table has on disk.
        persisted: Lsn,
    },
    /// A commit point past the last entry. Nothing was written.
    #[error("{cohort}: the commit point {point} lies past the last entry {last}")]
    CommitPastEnd {
        /// The cohort.
        cohort: CohortId,
        /// The refused commit point.
        point: Lsn,
        /// The cohort's last entry.
        last: Lsn,
    },
    /// An entry or a hard state larger than the format allows. Nothing was written.
    #[error("{cohort}: {bytes} bytes are more than the {max} that {what} may have")]
    TooLarge {
        /// The cohort.
        cohort: CohortId,
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The most that it may have.
        max: usize,
    },
    /// More waits for the disk than the log may hold in memory. Nothing was written, and the same
    /// write may be tried again later.
    #[error("{queued} bytes wait for the disk, past the limit of {max}")]
    QueueFull {
        /// The bytes that wait.
        queued: usize,
        /// The limit, [`super::LogOptions::queue_bytes_max`].
        max: usize,
    },
    /// Options that make no sense.
    #[error("the log's option {option}: {reason}")]
    InvalidOption {
        /// Which.
        option: &'static str,
        /// Why not.
        reason: &'static str,
    },
}

/// What a caller can do about a [`LogError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogErrorClass {
    /// Try again later: the log is well and nothing was written.
    Retry,
    /// The request was wrong: nothing was written, and trying again would not help.
    Invalid,
    /// The log cannot go on: the node must stop, and a person must look.
    Fatal,
}

impl LogError {
    /// Says what a caller can do about it.
    pub fn class(&self) -> LogErrorClass {
        match self {
            Self::QueueFull { .. } => LogErrorClass::Retry,
            Self::Hole { .. }
            | Self::BelowPurged { .. }
            | Self::CommitPastEnd { .. }
            | Self::NotPersisted { .. }
            | Self::TooLarge { .. }
            | Self::InvalidOption { .. } => LogErrorClass::Invalid,
            Self::Io { .. }
            | Self::DiskFull { .. }
            | Self::Corrupt { .. }
            | Self::MissingSegment { .. }
            | Self::FutureFormat { .. }
            | Self::ForeignLog { .. }
            | Self::InUse { .. }
            | Self::Poisoned(_)
            | Self::WriterPanicked
            | Self::Closed => LogErrorClass::Fatal,
        }
    }

    /// Returns the error of a call to the file system; a full disk is told apart.
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        let is_full =
            matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let source = Arc::new(source);
        if is_full {
            Self::DiskFull { action, path, source }
        } else {
            Self::Io { action, path, source }
        }
    }

    pub(super) fn corrupt(path: &Path, position: u64, what: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), position, what: what.into() }
    }

    /// Returns what later callers are told after this error has ended the log.
    pub(super) fn poison(&self) -> Self {
        match self {
            Self::Poisoned(_) => self.clone(),
            first => Self::Poisoned(Arc::new(first.clone())),
        }
    }
}
