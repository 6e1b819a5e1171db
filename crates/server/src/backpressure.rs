//! Which writes have to wait, or are refused, because of the length of the node's log.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use trireme_types::CohortId;

/// What new writes meet while the log is too long. Maintenance decides it, and every cohort's queue
/// of writes asks.
pub(crate) struct Backpressure {
    /// Whether new batches of all cohorts wait.
    is_paused: watch::Sender<bool>,
    /// The cohorts whose new writes are refused, with the bytes of log that each holds for good.
    held_up: ArcSwap<BTreeMap<CohortId, u64>>,
}

impl Backpressure {
    /// Returns one that lets everything pass.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { is_paused: watch::Sender::new(false), held_up: ArcSwap::default() })
    }

    /// Has new batches wait, or lets them go on.
    pub(crate) fn pause(&self, is_paused: bool) {
        self.is_paused.send_if_modified(|paused| std::mem::replace(paused, is_paused) != is_paused);
    }

    /// Returns when batches may be proposed.
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
