//! What others may read of a replica without asking its task.

use parking_lot::Mutex;

use crate::core::{CoreStatus, Moment};
use crate::freshness::FreshnessLog;
use crate::replica::Role;
use trireme_types::{Lsn, NodeId};

/// The core's description as of its last batch.
pub(super) struct Published {
    state: Mutex<State>,
}

struct State {
    status: CoreStatus,
    freshness: FreshnessLog,
}

impl Published {
    pub(super) fn new(status: CoreStatus) -> Self {
        Self { state: Mutex::new(State { status, freshness: FreshnessLog::default() }) }
    }

    /// Replaces the description; the table has come to `applied`.
    pub(super) fn set(&self, status: CoreStatus, applied: Lsn) {
        let mut state = self.state.lock();
        if let Some((point, as_of)) = status.current {
            state.freshness.learn(point, as_of, applied);
        }
        state.status = status;
    }

    pub(super) fn get(&self) -> CoreStatus {
        self.state.lock().status.clone()
    }

    pub(super) fn leader(&self) -> Option<NodeId> {
        self.state.lock().status.leader
    }

    /// Takes back what was published of the time after `now`: another replica may lead from then on.
    pub(super) fn end_reads(&self, now: Moment) {
        self.state.lock().freshness.end(now);
    }

    /// Returns the role, and as of when a state that includes `applied` is known to be the newest.
    pub(super) fn as_of(&self, applied: Lsn) -> (Role, Option<Moment>) {
        let state = self.state.lock();
        (state.status.role, state.freshness.as_of(applied))
    }
}
