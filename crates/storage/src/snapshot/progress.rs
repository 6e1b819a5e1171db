//! How far the installation of a snapshot is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what was done of a snapshot's installation. It is limited by what is done, not as a whole:
/// how long it takes depends on the snapshot and on the disk, and one that goes on must not be given
/// up.
#[derive(Clone, Debug, Default)]
pub struct SnapshotProgress {
    steps: Arc<AtomicU64>,
}

impl SnapshotProgress {
    /// Counts one more step.
    pub fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many steps were done.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }
}
