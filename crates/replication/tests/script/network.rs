//! What is between the nodes.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use trireme_types::NodeId;

use super::table::Table;

/// Something that one node sent to another.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) content: Content,
    /// What scripts print.
    pub(crate) text: String,
}

/// What is in an envelope.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Message(Bytes),
    Snapshot {
        message: Bytes,
        table: Table,
    },
    /// The answer to a snapshot; none if it was lost or refused.
    SnapshotAnswer(Option<Bytes>),
}

/// Which messages a command is about.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) ids: Vec<u64>,
    pub(crate) from: Option<NodeId>,
    pub(crate) to: Option<NodeId>,
    /// The most messages that are chosen.
    pub(crate) count: usize,
}

impl Selection {
    fn includes(&self, id: u64, envelope: &Envelope) -> bool {
        (self.ids.is_empty() || self.ids.contains(&id))
            && self.from.is_none_or(|from| from == envelope.from)
            && self.to.is_none_or(|to| to == envelope.to)
    }
}

/// The messages that are under way, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Network {
    under_way: BTreeMap<u64, Envelope>,
    sent: u64,
    cut_off: BTreeSet<NodeId>,
    /// From whom to whom nothing passes, though both are there.
    cuts: BTreeSet<(NodeId, NodeId)>,
}

impl Network {
    /// Takes a message and returns its number; `None` if it is lost at once.
    pub(crate) fn send(&mut self, envelope: Envelope) -> Option<u64> {
        let is_cut = self.cuts.contains(&(envelope.from, envelope.to));
        if is_cut || !self.connects(envelope.from, envelope.to) {
            return None;
        }
        self.sent += 1;
        self.under_way.insert(self.sent, envelope);
        Some(self.sent)
    }

    pub(crate) fn connects(&self, a: NodeId, b: NodeId) -> bool {
        self.cut_off.contains(&a) == self.cut_off.contains(&b)
    }

    /// Cuts nodes off from the others. Returns what was under way between them and is lost.
    pub(crate) fn cut_off(&mut self, nodes: impl Iterator<Item = NodeId>) -> Vec<(u64, Envelope)> {
        self.cut_off.extend(nodes);
        let cut_off = &self.cut_off;
        let is_lost = |e: &Envelope| cut_off.contains(&e.from) != cut_off.contains(&e.to);
        self.under_way.extract_if(.., |_, envelope| is_lost(envelope)).collect()
    }

    /// Loses what the one sends the other from now on. Returns what was under way and is lost.
    pub(crate) fn cut(&mut self, from: NodeId, to: NodeId) -> Vec<(u64, Envelope)> {
        self.cuts.insert((from, to));
        self.under_way.extract_if(.., |_, e| (e.from, e.to) == (from, to)).collect()
    }

    pub(crate) fn heal(&mut self) {
        self.cut_off.clear();
        self.cuts.clear();
    }

    /// Takes the chosen messages off the network, the oldest first.
    pub(crate) fn take(&mut self, selection: &Selection) -> Vec<(u64, Envelope)> {
        let chosen = |id: &u64, envelope: &mut Envelope| selection.includes(*id, envelope);
        self.under_way.extract_if(.., chosen).take(selection.count).collect()
    }

    /// Takes the oldest message off the network.
    pub(crate) fn take_oldest(&mut self) -> Option<(u64, Envelope)> {
        self.under_way.pop_first()
    }

    /// Loses what is sent to a node that died, and returns it. What it sent itself may still
    /// arrive, but for snapshots, whose connections it takes with it.
    pub(crate) fn lose(&mut self, node: NodeId) -> Vec<(u64, Envelope)> {
        self.under_way.retain(|_, e| e.from != node || matches!(e.content, Content::Message(_)));
        self.under_way.extract_if(.., |_, envelope| envelope.to == node).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&u64, &Envelope)> {
        self.under_way.iter()
    }
}
