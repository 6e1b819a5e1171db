//! What a log counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a log has done since it was opened, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogMetrics {
    /// Scans of the whole log: always 1, however many cohorts were recovered (M12).
    pub scans: u64,
    /// The bytes that the scan read: each byte of each segment once.
    pub scanned_bytes: u64,
    /// Blocks written.
    pub blocks: u64,
    /// Records written.
    pub records: u64,
    /// Entries appended, those that replaced others included.
    pub entries_appended: u64,
    /// Bytes written, with what fills up the last sector of each block.
    pub written_bytes: u64,
    /// Forced syncs of segments for blocks.
    pub syncs: u64,
    /// How long the last of them took.
    pub last_sync: Duration,
    /// Segments that there are.
    pub segments: u64,
    /// The bytes of those segments, each at its whole length: what the log takes of the disk.
    pub segment_bytes: u64,
    /// Segments removed because nothing in them counted any more.
    pub removed_segments: u64,
    /// The bytes of entries that were written again so that old segments could go.
    pub moved_bytes: u64,
    /// The bytes of all entries that still count.
    pub live_bytes: u64,
    /// Bytes that wait to be written and answered.
    pub queued_bytes: u64,
    /// Bytes that readers have had to read from disk.
    pub disk_read_bytes: u64,
}

/// The counters behind [`LogMetrics`]. Each stands for itself, so they need no order among them.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) scanned_bytes: AtomicU64,
    pub(super) blocks: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) entries_appended: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) last_sync_micros: AtomicU64,
    pub(super) removed_segments: AtomicU64,
    pub(super) moved_bytes: AtomicU64,
    pub(super) disk_read_bytes: AtomicU64,
}

impl Counters {
    pub(super) fn snapshot(&self) -> LogMetrics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LogMetrics {
            scans: 1,
            scanned_bytes: get(&self.scanned_bytes),
            blocks: get(&self.blocks),
            records: get(&self.records),
            entries_appended: get(&self.entries_appended),
            written_bytes: get(&self.written_bytes),
            syncs: get(&self.syncs),
            last_sync: Duration::from_micros(get(&self.last_sync_micros)),
            removed_segments: get(&self.removed_segments),
            moved_bytes: get(&self.moved_bytes),
            disk_read_bytes: get(&self.disk_read_bytes),
            ..LogMetrics::default()
        }
    }
}
