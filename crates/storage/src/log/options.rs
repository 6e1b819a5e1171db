//! The choices that a log is opened with.

use std::fmt;

use trireme_types::limits::BATCH_BYTES_MAX;
use trireme_types::{ClusterId, Durability, NodeId};

use super::LogError;

/// Whose log it is. It is written into every segment, and a log of another node or cluster is
/// refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

impl fmt::Display for LogIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} of cluster {}", self.node, self.cluster)
    }
}

/// The most bytes in one entry's payload: a whole command batch with what encoding adds to it.
pub const ENTRY_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;

/// The most bytes in a cohort's hard state. It is repeated in every segment for every cohort, so it
/// is kept small: an epoch and a vote need a few dozen bytes.
pub const HARD_STATE_BYTES_MAX: usize = 64 * 1024;

/// The choices that a log is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// The size that segments are made with, in bytes. Larger ones mean fewer files and rarer
    /// pauses for a new one; smaller ones give room back sooner. A segment whose first block needs
    /// more is made larger. Default 64 MiB, from 4 KiB to 1 GiB.
    pub segment_bytes: u64,
    /// What a write has survived when it is reported durable. Default: forced to disk.
    pub durability: Durability,
    /// The bytes of recent entries that are kept in memory for readers, over all cohorts; older
    /// ones are read from disk. Entries that wait for the disk are kept besides. Default 64 MiB.
    pub cache_bytes: usize,
    /// The bytes after which a block takes no more waiting writes. A larger one moves more with one
    /// sync, a smaller one lets the first of many waiting writes be acknowledged sooner.
    /// Default 8 MiB, from 4 KiB to 256 MiB.
    pub block_bytes_max: usize,
    /// The bytes that may wait for the disk before writes are refused with
    /// [`LogError::QueueFull`]: the last line of defence of the node's memory behind admission
    /// control, which reads [`super::SharedLog::queued_bytes`]. Default 512 MiB.
    pub queue_bytes_max: usize,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            durability: Durability::Fsync,
            cache_bytes: 64 << 20,
            block_bytes_max: 8 << 20,
            queue_bytes_max: 512 << 20,
        }
    }
}

impl LogOptions {
    /// Says which option makes no sense, if one does.
    pub fn validate(&self) -> Result<(), LogError> {
        let refuse = |option, reason| Err(LogError::InvalidOption { option, reason });
        if !(4 << 10..=1 << 30).contains(&self.segment_bytes) {
            return refuse("segment_bytes", "must be from 4 KiB to 1 GiB");
        }
        // With the largest segment, the largest entry and the restatement of every cohort, a
        // position in a segment must fit into 32 bits.
        if !(4 << 10..=256 << 20).contains(&self.block_bytes_max) {
            return refuse("block_bytes_max", "must be from 4 KiB to 256 MiB");
        }
        if self.queue_bytes_max < self.block_bytes_max {
            return refuse("queue_bytes_max", "must be at least block_bytes_max");
        }
        Ok(())
    }
}
