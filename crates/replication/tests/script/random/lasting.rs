//! Faults that last while the rest must serve.

use trireme_types::NodeId;

use super::steps::Step;
use super::{Numbers, Run, Trial};
use crate::script::Command;
use crate::script::network::Way;

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
    pub(super) const ALL: [Self; 10] = [
        Self::Crash,
        Self::Pause,
        Self::Partition,
        Self::Deaf(None),
        Self::Deaf(Some(Way::Data)),
        Self::Mute(None),
        Self::Mute(Some(Way::Data)),
        Self::Disk,
        Self::Table,
        Self::Coordinator,
    ];

    /// Returns one of them.
    pub(super) fn any(numbers: &mut Numbers) -> Self {
        let at = usize::try_from(numbers.below(Self::ALL.len() as u64));
        Self::ALL[at.expect("a small number")]
    }
}

/// How long a cluster has to get around each fault of a minority of its nodes, in milliseconds.
const GETS_AROUND_IN: u64 = 8000;

/// When a minority of the nodes is at fault, the others serve (P14).
pub(crate) const THE_REST_SERVES: &str = "the rest serves in spite of faults";

impl<S: Trial> Run<S> {
    /// Has a minority of the nodes suffer, each from a fault, and sees the others serve.
    pub(super) fn serve_in_spite_of(&mut self, faults: &[(Lasting, Option<u64>)]) {
        let leader = self.leader();
        let mut suffering = Vec::new();
        for (fault, node) in faults {
            let mut node = node.unwrap_or(leader);
            while suffering.iter().any(|(_, other)| *other == node) {
                node = node % self.nodes + 1;
            }
            suffering.push((*fault, node));
        }
        let at_fault = |nodes: &[(Lasting, u64)]| {
            nodes.iter().map(|(_, node)| NodeId(*node)).collect::<Vec<_>>()
        };
        while suffering.len() > 1 && !S::survives(&self.runner, &at_fault(&suffering)) {
            suffering.pop();
        }
        for (fault, _) in &suffering {
            *self.tally.lasting.entry(format!("{fault:?}")).or_default() += 1;
        }
        *self.tally.lasting.entry(format!("{} at once", suffering.len())).or_default() += 1;
        suffering.iter().for_each(|(fault, node)| self.suffer(*fault, *node));
        self.run(100);
        // What waits at a leader shows that it does not get on.
        self.put(self.leader(), "a");
        self.run(GETS_AROUND_IN * suffering.len() as u64);
        let acknowledged = self.runner.invariants().history.acknowledged;
        let leader = self.leader();
        self.put(leader, "b");
        self.run(1000);
        assert!(
            self.runner.invariants().history.acknowledged > acknowledged,
            "{THE_REST_SERVES}: a put at n{leader} is not acknowledged: {suffering:?}"
        );
        let answered = self.runner.invariants().history.answered;
        self.get(leader, "b");
        self.run(500);
        assert!(
            self.runner.invariants().history.answered > answered,
            "{THE_REST_SERVES}: n{leader} does not read: {suffering:?}"
        );
        for (fault, node) in suffering {
            if fault == Lasting::Pause {
                self.execute(format!("resume {node}"), &Command::Resume(node));
            }
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
            Lasting::Disk => self.take(Step::Disk(node, true)),
            Lasting::Table => self.table(node, true),
            Lasting::Coordinator => self.take(Step::CutCoordinator(node)),
        }
    }
}
