//! What becomes of what the node sends to others.

use std::collections::BTreeMap;

use arc_swap::ArcSwap;
use trireme_types::NodeId;

use super::request::LinkFates;
use crate::transport::{ConnectionLane, Fate, LinkFaults};

/// The fates of the links that do not just work.
#[derive(Default)]
pub(super) struct LinkTable {
    fates: ArcSwap<LinkFates>,
}

impl LinkTable {
    pub(super) fn set(&self, fates: LinkFates) {
        self.fates.store(fates.into());
    }
}

impl LinkFaults for LinkTable {
    fn fate(&self, to: NodeId, lane: ConnectionLane) -> Fate {
        let fates: &BTreeMap<_, _> = &self.fates.load();
        fates.get(&(to, lane)).copied().unwrap_or_default()
    }
}
