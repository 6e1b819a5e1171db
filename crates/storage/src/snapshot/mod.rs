//! A cohort's whole state as a stream of bytes, and back: one way for all three protocols.
//!
//! # The stream
//!
//! A header (where the table stands, and the protocol state), then the sessions, then the rows,
//! each in ascending order of its key. The same state makes the same bytes, on whichever node.
//!
//! The stream is cut into chunks of at most [`CHUNK_BYTES_MAX`] bytes without regard to where a row
//! ends, since one row can be larger than a chunk. Each chunk carries its number and a checksum;
//! the last one carries the number of rows, the number of bytes and the checksum of the whole. So
//! a chunk that was lost, repeated, moved or damaged on its way is noticed when it arrives, and a
//! stream that ends early never counts as whole.
//!
//! # The two ends
//!
//! [`SnapshotReader`] reads a table as of one moment while the table goes on changing.
//! [`SnapshotReceiver`] checks chunks and keeps them in a file without a name, which is gone when
//! the receiver or the process is. [`crate::CohortTable::install`] takes what it has gathered.

mod chunk;
#[cfg(test)]
mod fuzz;
mod progress;
mod reader;
mod receiver;
mod record;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use trireme_types::{CohortId, KeyRange, Lsn};

pub use self::chunk::CHUNK_BYTES_MAX;
pub use self::progress::SnapshotProgress;
pub use self::reader::SnapshotReader;
pub use self::receiver::{SnapshotReceiver, StagedSnapshot};
pub(crate) use self::record::{Record, Records};

/// Where the table stood when the snapshot was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHeader {
    /// Whose state it is. Installing does not ask for it to be the same cohort.
    pub cohort: CohortId,
    /// The last entry that is in it.
    pub applied: Lsn,
    /// The version of the last write that is in it.
    pub writes: u64,
    /// The keys whose rows are in it.
    pub range: KeyRange,
    /// The newest protocol entry, with its payload.
    pub protocol: Option<(Lsn, Bytes)>,
    /// The cohort's clock.
    pub clock: u64,
}

/// A stream that is no snapshot, or could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A chunk or the header has a format that this build does not read.
    #[error("a snapshot of format {found}; this build reads format {known}")]
    Format {
        /// The format that it has.
        found: u8,
        /// The format that this build reads.
        known: u8,
    },
    /// A chunk is not what was sent.
    #[error("chunk {index} of a snapshot is damaged: {reason}")]
    Damaged {
        /// Its place in the stream, counted here.
        index: u32,
        /// How it shows.
        reason: &'static str,
    },
    /// A chunk came out of order.
    #[error("chunk {found} of a snapshot came where chunk {expected} was due")]
    Order {
        /// The chunk that was due.
        expected: u32,
        /// The chunk that came.
        found: u32,
    },
    /// A chunk came after the last one.
    #[error("a snapshot goes on after its end")]
    PastEnd,
    /// The last chunk has not come.
    #[error("a snapshot ends after {chunks} chunks without its last one")]
    Truncated {
        /// How many came.
        chunks: u32,
    },
    /// The chunks are whole, and what they carry is no snapshot.
    #[error("a snapshot that cannot be read: {0}")]
    Malformed(String),
    /// The file that the stream is kept in cannot be used.
    #[error("cannot {doing} a snapshot: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl SnapshotError {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}
