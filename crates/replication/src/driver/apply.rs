//! Applies committed entries: on the replica's task where nothing has to be waited for, or else beside
//! it.
//!
//! A table may wait for its disk, and a log may read from it. Where either may, it happens on threads
//! that may wait. What is to be applied is a single number, so nothing queues up: however much was
//! committed meanwhile is applied in steps of bounded size, one after the other. Most often all of it
//! is in memory, and a step takes less than the change of threads to another one and back.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::Poll;

use futures::FutureExt;
use futures::future::BoxFuture;
use trireme_types::Lsn;

use super::storage::{APPLY_RESIDENT_BYTES_MAX, Applied, CohortLog, CohortTable, StagedSnapshot};
use crate::core::Ticket;
use crate::simulation;

/// What a step has come to.
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

/// Applies for one replica.
pub(super) struct Applier {
    source: Source,
    /// What is to be installed first, in this order. The core asks for one only if it is newer than
    /// all before it, so there are as many as other replicas at the most.
    snapshots: VecDeque<(Ticket, StagedSnapshot)>,
    /// The step beside the task.
    under_way: Option<BoxFuture<'static, Progress>>,
}

/// What entries are read from and applied to.
#[derive(Clone)]
struct Source {
    log: CohortLog,
    table: CohortTable,
    step_bytes_max: usize,
}

impl Applier {
    pub(super) fn new(log: CohortLog, table: CohortTable, step_bytes_max: usize) -> Self {
        let source = Source { log, table, step_bytes_max };
        Self { source, snapshots: VecDeque::new(), under_way: None }
    }

    /// Has a snapshot installed after those that wait, and before anything more is applied.
    pub(super) fn install(&mut self, ticket: Ticket, snapshot: StagedSnapshot) {
        self.snapshots.push_back((ticket, snapshot));
    }

    /// Applies the next entries up to `target`, as far as that takes no wait and nothing else is to
    /// come first: they are committed, and on disk.
    pub(super) fn apply_at_once(&self, target: u64) -> Result<Vec<Applied>, String> {
        let is_busy = self.under_way.is_some() || !self.snapshots.is_empty();
        if is_busy { Ok(Vec::new()) } else { self.source.apply_at_once(target) }
    }

    /// Begins the next step beside the task, unless one is under way or nothing is left to do.
    pub(super) fn go_on(&mut self, target: u64) {
        if self.under_way.is_some() {
            return;
        }
        let source = self.source.clone();
        let work = if let Some((ticket, snapshot)) = self.snapshots.pop_front() {
            beside(move || source.install(ticket, snapshot))
        } else if source.table.applied().seq < target {
            beside(move || source.apply(target).unwrap_or_else(Progress::Failed))
        } else {
            return;
        };
        self.under_way = Some(work);
    }

    /// Returns what the step beside the task has come to, when it has ended. Nothing is lost if this
    /// is dropped before.
    pub(super) async fn progress(&mut self) -> Progress {
        poll_fn(|context| {
            let Some(step) = &mut self.under_way else { return Poll::Pending };
            let progress = step.poll_unpin(context);
            if progress.is_ready() {
                self.under_way = None;
            }
            progress
        })
        .await
    }

    /// Waits for the step that is under way; until then, the table is not at rest.
    pub(super) async fn finish(&mut self) {
        if self.under_way.is_some() {
            self.progress().await;
        }
    }
}

/// Does work on a thread that may wait.
fn beside(work: impl FnOnce() -> Progress + Send + 'static) -> BoxFuture<'static, Progress> {
    let work = simulation::blocking(work);
    let broken = |error| Progress::Failed(format!("applying broke off: {error}"));
    work.map(move |progress| progress.unwrap_or_else(broken)).boxed()
}

impl Source {
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

    fn apply_at_once(&self, target: u64) -> Result<Vec<Applied>, String> {
        let first = self.table.applied().seq + 1;
        if target < first {
            return Ok(Vec::new());
        }
        let bytes_max = self.step_bytes_max.min(APPLY_RESIDENT_BYTES_MAX);
        let entries = self.log.read_cached(first..target + 1, bytes_max).unwrap_or_default();
        // If it lacks the entry, the step beside the task says so.
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
