//! The clock of a cohort, as its leader reads it.
//!
//! A cohort's time goes through its log: each batch names the time, and the highest that was applied
//! is what all replicas go by. No machine's own date is in it, so none that is wrong can carry the
//! cohort's time away. A node counts on from the time that it found applied, by its monotonic clock.
//! Since the time that it counts from was no more than has passed, its own is no more than has
//! passed either: a cohort's clock never runs faster than the clocks of its nodes, whichever leads. It
//! stands still while the cohort takes no writes, until the next one names the time, and while no
//! node of it runs.

use parking_lot::Mutex;
use tokio::time::Instant;
use trireme_storage::CohortTable;

/// Counts one cohort's time at one node.
pub(super) struct CohortClock {
    table: CohortTable,
    /// A time of the cohort, and when it was that.
    anchor: Mutex<(u64, Instant)>,
}

impl CohortClock {
    pub(super) fn start(table: CohortTable) -> Self {
        let anchor = Mutex::new((table.clock(), Instant::now()));
        Self { table, anchor }
    }

    /// Returns the time, in milliseconds.
    pub(super) fn now(&self) -> u64 {
        let mut anchor = self.anchor.lock();
        let now = Instant::now();
        let applied = self.table.clock();
        let passed = u64::try_from(now.duration_since(anchor.1).as_millis()).unwrap_or(u64::MAX);
        let counted = anchor.0.saturating_add(passed);
        if applied <= counted {
            return counted;
        }
        // Others were here for longer, or this node's table has only now caught up with them.
        *anchor = (applied, now);
        applied
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use trireme_storage::{TableOptions, Tables};
    use trireme_types::{CohortId, CommandBatch, Entry, EntryKind, KeyRange, Lsn};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_counts_on_from_the_highest_time_that_was_applied() {
        let folder = tempfile::tempdir().unwrap();
        let tables = Tables::open(folder.path(), TableOptions::default()).unwrap();
        let table = tables.cohort(CohortId(1), KeyRange::all()).unwrap();
        let apply = |seq, clock| {
            let payload: Bytes = CommandBatch { clock, ..CommandBatch::default() }.encode();
            let entry = Entry { lsn: Lsn::new(1, seq), kind: EntryKind::Commands, payload };
            table.apply(&[entry]).unwrap();
        };
        let clock = CohortClock::start(table.clone());
        assert_eq!(clock.now(), 0);
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(clock.now(), 1500);
        apply(1, 700);
        assert_eq!(clock.now(), 1500, "another node's clock that lags behind");
        apply(2, 9000);
        assert_eq!(clock.now(), 9000);
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(clock.now(), 9010);
        let restarted = CohortClock::start(table.clone());
        assert_eq!(restarted.now(), 9000);
    }
}
