//! Who leads.

use std::collections::BTreeMap;

use trireme_types::{Epoch, NodeId};

/// An epoch has one leader.
pub(crate) const ONE_LEADER: &str = "an epoch has one leader";

/// Who was seen to lead in each epoch.
#[derive(Debug, Default)]
pub(crate) struct Leaders(BTreeMap<Epoch, NodeId>);

impl Leaders {
    /// Records that a replica believes to lead.
    pub(crate) fn leads(&mut self, id: NodeId, epoch: Epoch) {
        let leader = *self.0.entry(epoch).or_insert(id);
        assert!(leader == id, "{ONE_LEADER}: {leader} and {id} lead in epoch {epoch}");
    }

    /// Returns the newest epoch that had a leader.
    pub(crate) fn newest(&self) -> Epoch {
        self.0.last_key_value().map_or(0, |(epoch, _)| *epoch)
    }

    /// Returns how many epochs had a leader.
    pub(crate) fn epochs(&self) -> usize {
        self.0.len()
    }
}
