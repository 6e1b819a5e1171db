//! What a replica knows of its cohort's configuration, in every role.

use trireme_storage::IoId;
use trireme_types::{CohortConfig, CohortId, Epoch, Incarnation, NodeId};

use super::health::Health;
use super::proposal::Pending;
use super::{PacificaOptions, Shared};
use crate::core::Moment;

/// What a replica knows of its cohort's configuration, and of itself in it.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(super) cohort: CohortId,
    pub(super) options: PacificaOptions,
    /// What distinguishes it from the replicas that had another disk under the same name.
    pub(super) incarnation: Incarnation,
    /// Nothing was on its disk: no incarnation of it ever acted.
    pub(super) is_new: bool,
    /// The newest version that it had acted in when it started.
    pub(super) promised_at_start: Epoch,
    /// The newest configuration that the manager has sent.
    pub(super) config: Option<CohortConfig>,
    /// What it asked the manager for and has not seen decided.
    pub(super) pending: Option<Pending>,
    /// It is named as the primary, and has promised another one not to be it yet.
    pub(super) named: Option<Named>,
    /// It becomes primary when this write, by which it will know that it acted, is on disk.
    pub(super) becomes_primary_at: Option<IoId>,
    pub(super) health: Health,
    /// When it stepped down, though it is the primary of the newest configuration.
    pub(super) stepped_down: Option<Moment>,
    /// The newest version whose primary has stepped down: what it sent before counts no more.
    pub(super) released: Epoch,
}

/// How a replica came to be named as the primary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    /// It is what it had asked for.
    pub(super) is_mine: bool,
    /// It is the first configuration that it knows.
    pub(super) is_first: bool,
}

impl Membership {
    /// Returns how many replicas the newest configuration has.
    pub(super) fn replicas(&self) -> usize {
        self.config.as_ref().map_or(0, |config| config.replicas.len())
    }

    /// Returns true if the newest configuration has fewer replicas than a write needs.
    pub(super) fn has_too_few(&self) -> bool {
        self.replicas() < self.options.min_replicas_for_write
    }

    /// Returns true if the newest configuration has fewer replicas than are wanted.
    pub(super) fn is_missing_one(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.replicas_missing() > 0)
    }

    /// Returns the primary of the newest configuration.
    pub(super) fn primary(&self) -> Option<NodeId> {
        self.config.as_ref().and_then(|config| config.replicas.first().copied())
    }

    /// Returns true if the newest configuration lists the node.
    pub(super) fn is_listed(&self, node: NodeId) -> bool {
        self.config.as_ref().is_some_and(|config| config.replicas.contains(&node))
    }

    /// Returns true if the replica has asked for this one to be added.
    pub(super) fn is_adding(&self, node: NodeId) -> bool {
        let Some(pending) = &self.pending else { return false };
        pending.config.replicas.contains(&node) && !self.is_listed(node)
    }
}

impl Shared {
    /// Returns true if the replica may have promised another primary not to be one yet. It asks for
    /// that only when it is free; but whether it has asked, it does not know after a restart: what it
    /// asked for then may be installed at any time. A primary is bound to no other, and one that has
    /// acted in this version before was free when it began.
    pub(super) fn is_bound(&self, config: &CohortConfig, is_primary: bool) -> bool {
        let has_acted = config.version <= self.own.promised_at_start;
        !self.own.is_new && !is_primary && !has_acted && self.now < self.support.until()
    }

    /// Returns when a secondary may ask to take the primary's place (PAC-32).
    pub(super) fn may_take_over_from(&self) -> Moment {
        let own = &self.own;
        let is_secondary = own.is_listed(self.node)
            && !self.state.is_learner
            && own.primary() != Some(self.node)
            && own.config.as_ref().is_some_and(|config| config.version == self.state.promised);
        if !is_secondary || own.pending.is_some() || self.could_not_lead() {
            return Moment::FAR;
        }
        self.support.until()
    }
}
