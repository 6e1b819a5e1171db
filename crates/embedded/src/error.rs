//! Why the embedded coordinator cannot start or go on.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the embedded coordinator cannot start, or has stopped.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The address cannot be listened on.
    #[error("the coordinator cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A file or folder cannot be read or written.
    #[error("the coordinator cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process has the folder open.
    #[error("the coordinator's folder {} is in use by another process", .0.display())]
    InUse(PathBuf),
    /// A file does not hold what was written to it. Nothing was changed; what it should hold must
    /// come from a copy, or the folder be given up.
    #[error(
        "the coordinator's file {} is damaged at byte {position}: {reason}; move the coordinator's \
         whole folder away, to have what it held made again from what the nodes know",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the damage begins, in bytes from the file's start.
        position: u64,
        /// What is wrong there.
        reason: String,
    },
    /// A backup cannot be restored. Nothing was changed.
    #[error("the backup cannot be restored: {0}")]
    Backup(String),
    /// An earlier write or sync failed; what the disk holds is not known any more, so that
    /// nothing more is answered until a restart has read it.
    #[error("the coordinator has stopped: {0}")]
    Poisoned(String),
}
