//! Moves of the network, of disks and of a late coordinator that need no crash.

use super::steps::KEYS;
use super::{Numbers, Run, Trial};
use crate::script::Command;
use crate::script::network::Way;

/// A move, which does nothing where it makes no sense.
#[derive(Clone, Copy, Debug)]
pub(super) enum Move {
    /// Messages of one lane arrive before those of the other.
    Deliver {
        from: u64,
        to: u64,
        count: usize,
        lane: Way,
    },
    /// One lane is cut one way.
    Cut {
        from: u64,
        to: u64,
        lane: Way,
    },
    /// A node, or the leader, reads nothing of its log for others, or goes on.
    Sender(Option<u64>, bool),
    /// A table neither applies nor installs, or goes on.
    Table(Option<u64>, bool),
    PeerLost(u64, u64),
    PeerAlive(u64, u64),
    /// What the coordinator has to say to the node is late, in one of several ways.
    Late(u64, u64),
    /// Only the leader reaches this node.
    Isolate(u64),
    /// As many writes as several pieces of the log hold.
    Flood,
    /// All give up the log that their tables hold: one that comes back needs a snapshot.
    ReleaseAll,
}

pub(super) fn pick(numbers: &mut Numbers, nodes: u64) -> Move {
    let (node, other) = (numbers.below(nodes) + 1, numbers.below(nodes) + 1);
    let at = (numbers.below(2) == 0).then_some(node);
    let lane = if numbers.below(2) == 0 { Way::Data } else { Way::Heartbeat };
    let count = usize::try_from(numbers.below(3) + 1).expect("few messages");
    match numbers.below(26) {
        0..5 => Move::Deliver { from: node, to: other, count, lane },
        5..7 => Move::Cut { from: node, to: other, lane },
        7..10 => Move::Sender(at, true),
        10..12 => Move::Sender(at, false),
        12 => Move::Table(at, true),
        13 => Move::Table(at, false),
        14..16 => Move::PeerLost(node, other),
        16..18 => Move::PeerAlive(node, other),
        18..22 => Move::Late(node, numbers.below(3)),
        22 => Move::Isolate(node),
        23 => Move::Flood,
        _ => Move::ReleaseAll,
    }
}

impl<S: Trial> Run<S> {
    pub(super) fn make(&mut self, step: Move) {
        match step {
            Move::Deliver { from, to, count, lane } if from != to => {
                let text = format!("deliver from={from} to={to} count={count} lane={lane}");
                let (ids, from, to) = (vec![], Some(from), Some(to));
                let (count, lane) = (Some(count), Some(lane));
                self.execute(text, &Command::Deliver { ids, from, to, count, lane });
            }
            Move::Cut { from, to, lane } => self.cut(from, to, Some(lane)),
            Move::Sender(node, is_stalled) => {
                let node = node.unwrap_or_else(|| self.leader());
                self.sender(node, is_stalled);
            }
            Move::Table(node, is_stalled) => {
                let node = node.unwrap_or_else(|| self.leader());
                self.table(node, is_stalled);
            }
            Move::PeerLost(a, b) if a != b => {
                self.execute(format!("peerlost {a} {b}"), &Command::Peerlost(a, b));
            }
            Move::PeerAlive(a, b) if a != b => self.peer_alive(a, b),
            Move::Late(node, how) => self.coordinator(&S::late(node, how)),
            Move::Isolate(node) => {
                self.count("isolate");
                let leader = self.leader();
                for other in 1..=self.nodes {
                    if other != leader && node != leader {
                        self.cut(other, node, None);
                    }
                }
            }
            Move::Flood => {
                self.count("flood");
                for _ in 0..2 {
                    KEYS.iter().for_each(|key| self.put(self.leader(), key));
                }
            }
            Move::ReleaseAll => {
                self.count("release all");
                for node in 1..=self.nodes {
                    self.take(super::Step::FlushAndRelease(node));
                }
            }
            _ => {}
        }
    }

    pub(super) fn cut(&mut self, from: u64, to: u64, lane: Option<Way>) {
        if from != to {
            let shown = lane.map(|lane| format!(" lane={lane}")).unwrap_or_default();
            self.execute(format!("cut {from} {to}{shown}"), &Command::Cut { from, to, lane });
        }
    }

    fn sender(&mut self, node: u64, is_stalled: bool) {
        let what = if is_stalled { "stall" } else { "resume" };
        self.execute(format!("sender {node} {what}"), &Command::Sender(node, what.into(), None));
    }

    pub(super) fn table(&mut self, node: u64, is_stalled: bool) {
        let what = if is_stalled { "stall" } else { "resume" };
        self.execute(format!("table {node} {what}"), &Command::Table(node, what.into()));
    }

    fn peer_alive(&mut self, a: u64, b: u64) {
        self.execute(format!("peeralive {a} {b}"), &Command::Peeralive(a, b));
    }

    /// Ends what moves have begun.
    pub(super) fn relieve(&mut self) {
        for node in 1..=self.nodes {
            self.sender(node, false);
            self.table(node, false);
            // Nothing is late any more.
            self.coordinator(&S::late(node, 2));
            for other in (1..=self.nodes).filter(|other| *other != node) {
                self.peer_alive(node, other);
            }
        }
    }
}
