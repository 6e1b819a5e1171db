//! Moves of the network, of disks and of a late coordinator that need no crash; and faults that last
//! while the rest must serve.

use super::{KEYS, Numbers, Run, Trial};
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
    /// All give up the log that their tables hold: who comes back needs a snapshot.
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

/// A fault of one node that lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lasting {
    Crash,
    Pause,
    /// Nothing reaches it, or reaches others from it.
    Partition,
    /// It hears no other node, by all lanes or by the data lane.
    Deaf(Option<Way>),
    /// No other node hears it, by all lanes or by the data lane.
    Mute(Option<Way>),
    Disk,
    Table,
    Coordinator,
}

impl Lasting {
    /// Returns one of them.
    pub(super) fn any(numbers: &mut Numbers) -> Self {
        match numbers.below(10) {
            0 => Self::Crash,
            1 => Self::Pause,
            2 => Self::Partition,
            3 => Self::Deaf(None),
            4 => Self::Deaf(Some(Way::Data)),
            5 => Self::Mute(None),
            6 => Self::Mute(Some(Way::Data)),
            7 => Self::Disk,
            8 => Self::Table,
            _ => Self::Coordinator,
        }
    }
}

/// How long a cluster has to get around a fault of one of its nodes, in milliseconds.
const GETS_AROUND_IN: u64 = 8000;

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
            Move::Late(node, how) => {
                if let Some(words) = S::late(node, how) {
                    self.coordinator(&words);
                }
            }
            Move::Isolate(node) => {
                let leader = self.leader();
                for other in 1..=self.nodes {
                    if other != leader && node != leader {
                        self.cut(other, node, None);
                    }
                }
            }
            Move::Flood => {
                for _ in 0..2 {
                    KEYS.iter().for_each(|key| self.put(self.leader(), key));
                }
            }
            Move::ReleaseAll => {
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

    fn table(&mut self, node: u64, is_stalled: bool) {
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
            if let Some(words) = S::late(node, 2) {
                self.coordinator(&words);
            }
            for other in (1..=self.nodes).filter(|other| *other != node) {
                self.peer_alive(node, other);
            }
        }
    }

    /// Has one node suffer from a fault, and sees the others serve.
    pub(super) fn serve_in_spite_of(&mut self, fault: Lasting, node: Option<u64>) {
        let node = node.unwrap_or_else(|| self.leader());
        self.suffer(fault, node);
        self.run(100);
        // What waits at a leader shows that it does not get on.
        self.put(self.leader(), "a");
        self.run(GETS_AROUND_IN);
        let acknowledged = self.runner.invariants().acknowledged;
        let leader = self.leader();
        self.put(leader, "b");
        self.run(1000);
        assert!(
            self.runner.invariants().acknowledged > acknowledged,
            "the rest does not serve: a put at n{leader} is not acknowledged, {fault:?} at n{node}"
        );
        let answered = self.runner.invariants().answered;
        self.get(leader, "b");
        self.run(500);
        assert!(
            self.runner.invariants().answered > answered,
            "the rest does not serve: n{leader} does not read, {fault:?} at n{node}"
        );
        if fault == Lasting::Pause {
            self.execute(format!("resume {node}"), &Command::Resume(node));
        }
    }

    fn suffer(&mut self, fault: Lasting, node: u64) {
        let others: Vec<u64> = (1..=self.nodes).filter(|other| *other != node).collect();
        match fault {
            Lasting::Crash => self.execute(format!("crash {node}"), &Command::Crash(node)),
            Lasting::Pause => self.execute(format!("pause {node}"), &Command::Pause(node)),
            Lasting::Partition => {
                self.execute(format!("partition {node}"), &Command::Partition(vec![node]));
            }
            Lasting::Deaf(lane) => others.iter().for_each(|other| self.cut(*other, node, lane)),
            Lasting::Mute(lane) => others.iter().for_each(|other| self.cut(node, *other, lane)),
            Lasting::Disk => self.take(super::Step::Disk(node, true)),
            Lasting::Table => self.table(node, true),
            Lasting::Coordinator => self.take(super::Step::CutCoordinator(node)),
        }
    }
}
