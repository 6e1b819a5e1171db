//! What others may read of a replica without asking its task.

use parking_lot::Mutex;

use crate::core::{CoreStatus, Moment};
use crate::replica::Role;
use trireme_types::NodeId;

/// The core's description as of its last batch.
pub(super) struct Published {
    status: Mutex<CoreStatus>,
}

impl Published {
    pub(super) fn new(status: CoreStatus) -> Self {
        Self { status: Mutex::new(status) }
    }

    pub(super) fn set(&self, status: CoreStatus) {
        *self.status.lock() = status;
    }

    pub(super) fn get(&self) -> CoreStatus {
        self.status.lock().clone()
    }

    pub(super) fn leader(&self) -> Option<NodeId> {
        self.status.lock().leader
    }

    /// Returns the role, and when the leader was last heard.
    pub(super) fn heard(&self) -> (Role, Option<Moment>) {
        let status = self.status.lock();
        (status.role, status.leader_heard)
    }
}
