//! At most one node leads in an epoch: Raft's Election Safety (§5.2 of its paper), and in the two
//! protocols of our own what makes an [`trireme_types::Lsn`] name one entry.

use std::collections::BTreeMap;

use trireme_replication::Role;
use trireme_types::{Epoch, NodeId};

use super::Seen;

/// Who was seen to lead in each epoch.
#[derive(Default)]
pub(super) struct Leaders {
    by_epoch: BTreeMap<Epoch, NodeId>,
}

impl Leaders {
    pub(super) fn look(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        if seen.status.role != Role::Leader {
            return Ok(());
        }
        let epoch = seen.status.epoch;
        let leader = *self.by_epoch.entry(epoch).or_insert(seen.node);
        if leader == seen.node {
            return Ok(());
        }
        Err(format!("one leader per epoch: {leader} and {} lead in epoch {epoch}", seen.node))
    }

    pub(super) fn count(&self) -> u64 {
        self.by_epoch.len() as u64
    }
}
