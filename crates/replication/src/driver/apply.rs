//! Applies committed entries: on the replica's task where nothing has to be waited for, or else beside
//! it.
//!
//! A table may wait for its disk, and a log may read from it. Where either may, it happens on threads
//! that may wait. What is to be applied is a single number, so nothing queues up: however much was
//! committed meanwhile is applied in steps of bounded size. Most often all of it is in memory, and a
//! step takes less than the two changes of threads to another one and back.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use trireme_types::Lsn;

use super::storage::{Applied, CohortLog, CohortTable, StagedSnapshot};
use crate::core::Ticket;
use crate::simulation;

/// The most results that wait for the replica's task, before applying waits for it.
pub(super) const RESULTS_MAX: usize = 4;

/// The most bytes of entries that are applied on the replica's task before its other work goes on. They
/// take less than a millisecond.
const AT_ONCE_BYTES_MAX: usize = 256 * 1024;

/// What applying has come to.
pub(super) enum Progress {
    /// These entries were applied, with these outcomes.
    Applied(Vec<Applied>),
    /// The snapshot took the table's place.
    Installed { ticket: Ticket, upto: Lsn },
    /// The snapshot is not newer than the table, and was dropped.
    Outdated { ticket: Ticket },
    /// Applying cannot go on.
    Failed(String),
}

/// What the table is to become.
#[derive(Default)]
pub(super) struct Orders {
    next: Mutex<Next>,
    changed: Notify,
}

#[derive(Default)]
struct Next {
    /// Every entry up to this sequence is to be applied.
    target: u64,
    /// What is to be installed first, in this order. The core asks for one only if it is newer than
    /// all before it, so there are as many as other replicas at the most.
    snapshots: VecDeque<(Ticket, StagedSnapshot)>,
    is_stopping: bool,
}

impl Orders {
    /// Has every entry up to this one applied: they are committed, and on disk.
    pub(super) fn apply(&self, upto: u64) {
        self.next.lock().target = upto;
        self.changed.notify_one();
    }

    /// Has a snapshot installed after those that wait, and before anything more is applied.
    pub(super) fn install(&self, ticket: Ticket, snapshot: StagedSnapshot) {
        self.next.lock().snapshots.push_back((ticket, snapshot));
        self.changed.notify_one();
    }

    /// Ends the work after the step that is under way.
    pub(super) fn stop(&self) {
        self.next.lock().is_stopping = true;
        self.changed.notify_one();
    }
}

/// Applies for one replica.
#[derive(Clone)]
pub(super) struct Applier {
    pub(super) log: CohortLog,
    pub(super) table: CohortTable,
    pub(super) orders: Arc<Orders>,
    pub(super) step_bytes_max: usize,
}

#[allow(clippy::large_enum_variant, reason = "one at a time, which is moved once")]
enum Step {
    Install(Ticket, StagedSnapshot),
    Apply { target: u64 },
    Rest,
    Stop,
}

impl Applier {
    /// Works until it is told to stop, fails, or nobody takes its results.
    pub(super) async fn run(self, results: mpsc::Sender<Progress>) {
        loop {
            let step = match self.next() {
                Step::Stop => return,
                Step::Rest => {
                    self.orders.changed.notified().await;
                    continue;
                }
                step => step,
            };
            let worker = self.clone();
            let work = simulation::blocking(move || worker.perform(step));
            let progress = match work.await {
                Ok(progress) => progress,
                Err(error) => Progress::Failed(format!("applying broke off: {error}")),
            };
            let is_end = matches!(progress, Progress::Failed(_));
            if results.send(progress).await.is_err() || is_end {
                return;
            }
        }
    }

    fn next(&self) -> Step {
        let mut next = self.orders.next.lock();
        if next.is_stopping {
            return Step::Stop;
        }
        if let Some((ticket, snapshot)) = next.snapshots.pop_front() {
            return Step::Install(ticket, snapshot);
        }
        if self.table.applied().seq < next.target {
            Step::Apply { target: next.target }
        } else {
            Step::Rest
        }
    }

    fn perform(&self, step: Step) -> Progress {
        match step {
            Step::Install(ticket, snapshot) => self.install(ticket, snapshot),
            Step::Apply { target } => self.apply(target).unwrap_or_else(Progress::Failed),
            Step::Rest | Step::Stop => Progress::Applied(Vec::new()),
        }
    }

    fn install(&self, ticket: Ticket, snapshot: StagedSnapshot) -> Progress {
        let upto = snapshot.header().applied;
        // Entries may have been applied past it since the core asked for it (C2).
        if upto <= self.table.applied() {
            return Progress::Outdated { ticket };
        }
        match self.table.install(snapshot) {
            Ok(()) => Progress::Installed { ticket, upto },
            Err(error) => Progress::Failed(format!("could not install a snapshot: {error}")),
        }
    }

    /// Applies the next entries up to `target` as far as that takes no wait; returns nothing if it may
    /// take one. Nothing else may be applied at the same time.
    pub(super) fn apply_at_once(&self, target: u64) -> Result<Vec<Applied>, String> {
        let first = self.table.applied().seq + 1;
        let bytes_max = self.step_bytes_max.min(AT_ONCE_BYTES_MAX);
        let entries = self.log.read_cached(first..target + 1, bytes_max).unwrap_or_default();
        // What the log lacks is found out by whoever may wait.
        if entries.first().is_none_or(|entry| entry.lsn.seq != first) {
            return Ok(Vec::new());
        }
        let applied = self.table.apply_resident(&entries);
        applied.map(Option::unwrap_or_default).map_err(|error| format!("could not apply: {error}"))
    }

    /// Applies the next entries up to `target`, as many as one step takes.
    fn apply(&self, target: u64) -> Result<Progress, String> {
        let first = self.table.applied().seq + 1;
        let read = self.log.read(first..target + 1, self.step_bytes_max);
        let entries = read.map_err(|error| format!("could not read what to apply: {error}"))?;
        if entries.first().is_none_or(|entry| entry.lsn.seq != first) {
            return Err(format!("the log lacks the committed entry {first}"));
        }
        let applied = self.table.apply(&entries);
        applied.map(Progress::Applied).map_err(|error| format!("could not apply: {error}"))
    }
}
