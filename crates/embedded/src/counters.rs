//! What the embedded coordinator was asked, by kind.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often each kind of request was answered since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EmbeddedCounters {
    /// Range requests.
    pub ranges: u64,
    /// Puts, deletions, transactions and compactions.
    pub writes: u64,
    /// Leases granted, revoked or asked about.
    pub lease_requests: u64,
    /// Keep-alives: the only requests of an idle cluster (M19, M33).
    pub keep_alives: u64,
    /// Watchers created, cancelled or asked for their progress.
    pub watch_requests: u64,
    /// Everything else.
    pub others: u64,
    /// Syncs of the log; below `writes` where several writes shared one.
    pub syncs: u64,
}

#[derive(Debug, Default)]
pub(super) struct CounterCells {
    pub ranges: AtomicU64,
    pub writes: AtomicU64,
    pub lease_requests: AtomicU64,
    pub keep_alives: AtomicU64,
    pub watch_requests: AtomicU64,
    pub others: AtomicU64,
    pub syncs: AtomicU64,
}

impl CounterCells {
    pub(super) fn read(&self) -> EmbeddedCounters {
        let get = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        EmbeddedCounters {
            ranges: get(&self.ranges),
            writes: get(&self.writes),
            lease_requests: get(&self.lease_requests),
            keep_alives: get(&self.keep_alives),
            watch_requests: get(&self.watch_requests),
            others: get(&self.others),
            syncs: get(&self.syncs),
        }
    }
}

/// Counts one more.
pub(super) fn count(cell: &AtomicU64) {
    cell.fetch_add(1, Ordering::Relaxed);
}
