//! How a cohort ends.

use std::collections::BTreeSet;

use trireme_types::{Epoch, Lsn, NodeId, Outcome};

use super::{Caller, Invariants};
use crate::script::Subject;
use crate::script::node::Node;

/// A replica that has applied the seal has the state after what was committed before it, and no other:
/// nothing behind the first seal changes anything (RANGE-2).
pub(crate) const ENDS_ALIKE: &str = "every replica ends with the same state";

/// A write is answered with what became of it if it lies before the seal, and with the range having
/// changed if it lies behind (RANGE-2).
pub(crate) const NOTHING_BEHIND_THE_SEAL: &str = "nothing behind the seal is acknowledged";

/// Once a replica has applied the seal, a successor may have acknowledged a write: no strong read that
/// comes later is answered by any replica of the cohort (RANGE-3, RANGE-4).
pub(crate) const NO_READ_AFTER_THE_END: &str =
    "no strong read that comes after the end is answered";

/// A leader of a later epoch has the seal once it is committed.
pub(crate) const THE_SEAL_IS_KEPT: &str = "a leader that is elected after the end has the seal";

/// The end of a cohort, as far as it has been seen.
#[derive(Debug, Default)]
pub(crate) struct Seals {
    /// The newest epoch that had a leader when the seal was first committed.
    committed_in: Option<Epoch>,
    /// Whether a replica has applied it.
    is_applied: bool,
    /// The strong reads that were asked for since.
    asked: BTreeSet<Caller>,
    /// How many callers were answered that the range has changed.
    pub(crate) turned_away: u64,
    /// How many snapshots were not given, since the cohort had ended.
    pub(crate) withheld: u64,
}

impl Seals {
    /// Records that a client asks for a strong read.
    pub(crate) fn read_asked(&mut self, caller: Caller) {
        if self.is_applied {
            self.asked.insert(caller);
        }
    }

    /// Checks a strong read that is answered.
    pub(crate) fn read_answered(&self, caller @ (id, ticket): Caller) {
        assert!(!self.asked.contains(&caller), "{NO_READ_AFTER_THE_END}: {id} answers {ticket}");
    }
}

impl Invariants {
    /// Checks a write that is answered with these outcomes, at its entry. Returns true if the answer is
    /// that the range has changed.
    pub(crate) fn is_turned_away(&mut self, id: NodeId, lsn: Lsn, outcomes: &[Outcome]) -> bool {
        let is_behind = self.agreement.seal().is_some_and(|seal| lsn.seq > seal.seq);
        let is_void = |outcome: &Outcome| *outcome == Outcome::WrongRange;
        let is_right = outcomes.iter().all(|outcome| is_void(outcome) == is_behind);
        assert!(is_right, "{NOTHING_BEHIND_THE_SEAL}: {id} answers {outcomes:?} at {lsn}");
        let is_turned_away = is_behind && !outcomes.is_empty();
        self.seals.turned_away += u64::from(is_turned_away);
        is_turned_away
    }

    /// Checks a replica, and whether it leads in this epoch, if it does.
    pub(crate) fn ends<S: Subject>(&mut self, node: &Node<S>, leads: Option<Epoch>) {
        let Some(seal) = self.agreement.seal() else {
            let sealed = node.table.seal();
            return assert!(sealed.is_none(), "{ENDS_ALIKE}: {} with {sealed:?}", node.id);
        };
        let committed_in = *self.seals.committed_in.get_or_insert(self.leaders.newest());
        let has_applied = node.table.applied.seq >= seal.seq;
        assert!(
            leads.is_none_or(|epoch| epoch <= committed_in)
                || has_applied
                || node.disk.memory.lsn_at(seal.seq) == Some(seal),
            "{THE_SEAL_IS_KEPT}: {} leads in {leads:?} without {seal}",
            node.id
        );
        self.seals.is_applied |= has_applied;
        let is_alike = if has_applied {
            self.agreement.is_final(&node.table)
        } else {
            node.table.seal().is_none()
        };
        let sealed = node.table.seal();
        assert!(is_alike, "{ENDS_ALIKE}: {} ended with {sealed:?}, others with {seal}", node.id);
    }
}
