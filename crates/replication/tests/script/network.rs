//! What is between the nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use trireme_replication::Lane;
use trireme_types::NodeId;

use super::table::Table;

/// A way between two nodes. What goes one way arrives in order; ways do not wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// The data lane. A cut of it cuts snapshots too.
    Data,
    /// The heartbeat lane.
    Heartbeat,
    /// A connection of its own, as snapshots have.
    Own,
}

impl From<Lane> for Way {
    fn from(lane: Lane) -> Self {
        match lane {
            Lane::Data => Self::Data,
            Lane::Heartbeat => Self::Heartbeat,
        }
    }
}

impl FromStr for Way {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "data" => Ok(Self::Data),
            "heartbeat" => Ok(Self::Heartbeat),
            "own" => Ok(Self::Own),
            other => Err(format!("no lane is called {other}")),
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data",
            Self::Heartbeat => "heartbeat",
            Self::Own => "own",
        })
    }
}

/// Something that one node sent to another.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) content: Content,
    pub(crate) way: Way,
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
    pub(crate) way: Option<Way>,
}

impl Selection {
    fn includes(&self, id: u64, envelope: &Envelope) -> bool {
        (self.ids.is_empty() || self.ids.contains(&id))
            && self.from.is_none_or(|from| from == envelope.from)
            && self.to.is_none_or(|to| to == envelope.to)
            && self.way.is_none_or(|way| way == envelope.way)
    }
}

/// The messages that are under way, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Network {
    under_way: BTreeMap<u64, Envelope>,
    sent: u64,
    cut_off: BTreeSet<NodeId>,
    /// From whom to whom, and by which way, nothing passes, though both are there.
    cuts: BTreeSet<(NodeId, NodeId, Way)>,
    /// The state of the choice which way goes first; 0 if what was sent first arrives first.
    shuffle: u64,
}

impl Network {
    /// Has ways overtake each other from now on, unless the seed is 0.
    pub(crate) const fn shuffle(&mut self, seed: u64) {
        self.shuffle = seed;
    }

    /// Takes a message and returns its number; `None` if it is lost at once.
    pub(crate) fn send(&mut self, envelope: Envelope) -> Option<u64> {
        let is_cut = self.cuts.contains(&(envelope.from, envelope.to, envelope.way));
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

    /// Loses what the one sends the other from now on, on one lane or on all. Returns what was under
    /// way and is lost.
    pub(crate) fn cut(
        &mut self,
        from: NodeId,
        to: NodeId,
        lane: Option<Way>,
    ) -> Vec<(u64, Envelope)> {
        let ways: &[Way] = match lane {
            None => &[Way::Data, Way::Heartbeat, Way::Own],
            Some(Way::Data) => &[Way::Data, Way::Own],
            Some(Way::Heartbeat) => &[Way::Heartbeat],
            Some(Way::Own) => &[Way::Own],
        };
        self.cuts.extend(ways.iter().map(|way| (from, to, *way)));
        let is_lost = |e: &Envelope| (e.from, e.to) == (from, to) && ways.contains(&e.way);
        self.under_way.extract_if(.., |_, envelope| is_lost(envelope)).collect()
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

    /// Takes a message off the network: the oldest one, or, if ways overtake each other, the oldest
    /// one of some way.
    pub(crate) fn take_next(&mut self) -> Option<(u64, Envelope)> {
        if self.shuffle == 0 {
            return self.under_way.pop_first();
        }
        let mut first = BTreeMap::new();
        for (id, e) in &self.under_way {
            // Every snapshot has a connection to itself.
            let own = if e.way == Way::Own { *id } else { 0 };
            first.entry((e.from, e.to, e.way, own)).or_insert(*id);
        }
        let first: Vec<u64> = first.into_values().collect();
        let choices = u64::try_from(first.len()).ok().filter(|choices| *choices > 0)?;
        // A linear congruential generator (Knuth's): chance is all that is wanted of it.
        self.shuffle =
            self.shuffle.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1) | (1 << 63);
        let chosen = usize::try_from((self.shuffle >> 33) % choices).ok()?;
        let id = first[chosen];
        self.under_way.remove(&id).map(|envelope| (id, envelope))
    }

    /// Loses what is sent to a node that died, and returns it. What it sent itself may still
    /// arrive, but for snapshots and answers to them, whose connections it takes with it.
    pub(crate) fn lose(&mut self, node: NodeId) -> Vec<(u64, Envelope)> {
        let is_lost = |e: &Envelope| {
            e.to == node || (e.from == node && !matches!(e.content, Content::Message(_)))
        };
        self.under_way.extract_if(.., |_, envelope| is_lost(envelope)).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&u64, &Envelope)> {
        self.under_way.iter()
    }
}
