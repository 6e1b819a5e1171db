//! Which writes have to wait, or are refused, because of the length of the node's log.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use trireme_types::CohortId;
use trireme_types::limits::BATCH_BYTES_MAX;

/// The unit in which bytes under way are counted: a semaphore has too few permits for single bytes.
const UNIT_BYTES: u64 = 1024;

/// The most units: more than any log has, and as few as a semaphore bears on every machine.
const UNITS_MAX: u32 = 1 << 28;

/// What new writes meet while the log is too long. Maintenance decides it, and every cohort's queue
/// of writes asks.
pub(crate) struct Backpressure {
    /// Whether new batches of all cohorts wait.
    is_paused: watch::Sender<bool>,
    /// How many units all batches under way may have together.
    units: u32,
    under_way: Arc<Semaphore>,
    /// The cohorts whose new writes are refused, with the bytes of log that each holds for good.
    held_up: ArcSwap<BTreeMap<CohortId, u64>>,
}

impl Backpressure {
    /// Returns one that lets everything pass, as long as batches under way have no more than these
    /// bytes together.
    pub(crate) fn new(under_way_max: u64) -> Arc<Self> {
        let units = u32::try_from(under_way_max / UNIT_BYTES).unwrap_or(u32::MAX);
        let units = units.clamp(1, UNITS_MAX);
        Arc::new(Self {
            is_paused: watch::Sender::new(false),
            units,
            under_way: Arc::new(Semaphore::new(units as usize)),
            held_up: ArcSwap::default(),
        })
    }

    /// Has new batches wait, or lets them go on.
    pub(crate) fn pause(&self, is_paused: bool) {
        self.is_paused.send_if_modified(|paused| std::mem::replace(paused, is_paused) != is_paused);
    }

    /// Returns the most bytes that a batch of several writes should have.
    pub(crate) fn batch_bytes_max(&self) -> usize {
        let bytes = u64::from(self.units) * UNIT_BYTES;
        usize::try_from(bytes).map_or(BATCH_BYTES_MAX, |bytes| bytes.min(BATCH_BYTES_MAX))
    }

    /// Returns when a batch of so many bytes may be proposed, with its share of what may be under way,
    /// which is to be kept while it is. Batches have their turn in the order in which
    /// they ask; one that is larger than everything that may be under way is so alone.
    pub(crate) async fn admit(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = (bytes as u64).div_ceil(UNIT_BYTES);
        let units = u32::try_from(units).unwrap_or(u32::MAX).min(self.units);
        // The semaphore is never closed.
        let permit = Arc::clone(&self.under_way).acquire_many_owned(units).await.ok();
        self.passed().await;
        permit
    }

    /// Returns when nothing has to wait for the log to become shorter.
    pub(crate) async fn passed(&self) {
        let mut paused = self.is_paused.subscribe();
        // The sender is here, so this cannot fail.
        drop(paused.wait_for(|is_paused| !is_paused).await);
    }

    /// Has new writes of these cohorts refused, and of no other.
    pub(crate) fn hold_up(&self, cohorts: BTreeMap<CohortId, u64>) {
        if **self.held_up.load() != cohorts {
            self.held_up.store(Arc::new(cohorts));
        }
    }

    /// Returns true if the cohort's new writes are refused.
    pub(crate) fn is_held_up(&self, cohort: CohortId) -> bool {
        self.held_up.load().contains_key(&cohort)
    }

    /// Returns why a new write of the cohort is refused, if it is.
    pub(crate) fn refusal(&self, cohort: CohortId) -> Option<String> {
        let held_up = self.held_up.load();
        let bytes = held_up.get(&cohort)?;
        Some(format!(
            "{bytes} bytes of the node's log hold writes of cohort {cohort} that are not applied \
             yet, which is more than its share"
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    /// What is under way is in the log before it can be given up, so it is bounded by bytes, not by
    /// the number of cohorts.
    #[tokio::test]
    async fn batches_under_way_have_a_bounded_number_of_bytes_together() {
        let backpressure = Backpressure::new(512 * 1024);
        assert_eq!(backpressure.batch_bytes_max(), 512 * 1024);
        let first = backpressure.admit(300 * 1024).await;
        let second = backpressure.admit(200 * 1024).await;
        assert!(timeout(SOON, backpressure.admit(13 * 1024)).await.is_err());
        drop(first);
        let third = backpressure.admit(13 * 1024).await;
        // One that is larger than all that may be under way goes, and goes alone.
        assert!(timeout(SOON, backpressure.admit(2 * 1024 * 1024)).await.is_err());
        drop((second, third));
        let large = backpressure.admit(2 * 1024 * 1024).await;
        assert!(timeout(SOON, backpressure.admit(1)).await.is_err());
        drop(large);
        backpressure.pause(true);
        assert!(timeout(SOON, backpressure.admit(1)).await.is_err());
        backpressure.pause(false);
        assert!(backpressure.admit(1).await.is_some());
        assert!(Backpressure::new(u64::MAX).admit(usize::MAX).await.is_some());
    }
}
