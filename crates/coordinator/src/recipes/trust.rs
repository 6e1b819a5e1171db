//! How far a party trusts that the coordinator is what it was, and whose answers would settle it.
//!
//! A coordinator that was put back to what it knew earlier answers as ever. Only those who know more
//! can notice: this has the rules on whom to ask before anything is changed there, without the asking.

use std::collections::{BTreeMap, BTreeSet};

use trireme_types::{CohortConfig, CohortId, Epoch, NodeId, Protocol};

use crate::Line;

/// Who may know more of a cohort than a coordinator that was put back to an older state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KnowsMore {
    /// The coordinator has no part in what the replicas agree on.
    None,
    /// Some replica of any majority: of the epochs that were led.
    SomeOfAMajority,
    /// Any replica of the newest configuration: of one that came after it.
    All,
}

/// Returns who may know more of a cohort of the protocol than its coordinator.
pub const fn knows_more(protocol: Protocol) -> KnowsMore {
    match protocol {
        Protocol::Raft => KnowsMore::None,
        Protocol::Spinnaker => KnowsMore::SomeOfAMajority,
        Protocol::Pacifica => KnowsMore::All,
    }
}

/// How far the coordinator is trusted.
#[derive(Clone, Debug)]
pub struct Trust {
    /// The line that this is about.
    pub line: Line,
    /// The creation of the catalog that this is about. A real etcd that lost its data begins with the
    /// same line again, so that the line alone would not show it.
    pub creation: i64,
    /// What is still to be found out about it; `None` once it is trusted.
    pub asking: Option<Asking>,
}

/// What is known of a line that is not trusted yet.
#[derive(Clone, Debug, Default)]
pub struct Asking {
    /// Whether this process was started since a line was trusted.
    pub has_restarted: bool,
    /// Whether the catalog has been compared with all nodes in this line.
    pub is_compared: bool,
    /// Who has said what it knows, the catalog being no older than that now.
    pub answered: BTreeSet<NodeId>,
    /// The newest epoch that any node that answered has promised, of each Spinnaker cohort.
    pub promised: BTreeMap<CohortId, Epoch>,
    /// The cohorts of Spinnaker whose epoch is no older than a majority has promised.
    pub raised: BTreeSet<CohortId>,
}

impl Trust {
    /// Notes the line that the coordinator is in, and which creation of the catalog it has, if that is
    /// known. Returns true if they are others than before, so that those must be asked who know more.
    pub fn note(&mut self, line: Line, creation: Option<i64>) -> bool {
        let creation = creation.unwrap_or(self.creation);
        if (self.line, self.creation) == (line, creation) {
            return false;
        }
        // A node that was asking since its start still has to.
        let has_restarted = self.asking.as_ref().is_some_and(|asking| asking.has_restarted);
        let asking = Asking { has_restarted, ..Asking::default() };
        *self = Self { line, creation, asking: Some(asking) };
        true
    }

    /// Returns true if it is known that the coordinator knows all that is to be known of a cohort, of
    /// which `node` knows this as the newest configuration.
    pub fn is_cleared(&self, node: NodeId, newest: Option<&CohortConfig>) -> bool {
        match (&self.asking, newest) {
            (Some(asking), Some(config)) => asking.missing(node, config).is_empty(),
            (Some(_), None) => false,
            (None, _) => true,
        }
    }
}

impl Asking {
    /// Notes the newest epochs that nodes have promised, of which not all may have answered yet.
    pub fn note_promises(&mut self, promised: impl IntoIterator<Item = (CohortId, Epoch)>) {
        for (cohort, epoch) in promised {
            let known = self.promised.entry(cohort).or_default();
            *known = epoch.max(*known);
        }
    }

    /// Returns whose answers `node` lacks before a cohort may be changed; more than are needed, where
    /// a majority will do.
    pub fn missing(&self, node: NodeId, config: &CohortConfig) -> Vec<NodeId> {
        let is_missing = |other: &NodeId| *other != node && !self.answered.contains(other);
        let missing: Vec<_> = config.replicas.iter().copied().filter(is_missing).collect();
        let has_majority = config.replicas.len() - missing.len() > config.replicas.len() / 2;
        let is_enough = match knows_more(config.protocol) {
            KnowsMore::None => true,
            KnowsMore::SomeOfAMajority => has_majority && self.raised.contains(&config.cohort),
            KnowsMore::All => self.is_compared || (has_majority && !self.has_restarted),
        };
        if is_enough { Vec::new() } else { missing }
    }
}
