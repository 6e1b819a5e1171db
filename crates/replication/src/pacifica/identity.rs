//! Which incarnation of a replica is meant (PAC-45, PAC-46).
//!
//! A replica is one as long as its disk keeps what it acknowledged. One that starts on an empty disk,
//! because that was lost or its replica discarded, is another incarnation of the same node: it has a
//! number of its own, which it names in whatever it acknowledges. The configuration names the
//! incarnation that it lists. So a replica that finds another one listed in its place knows that it
//! lacks what that one acknowledged, and a primary never takes the one for the other.

use trireme_types::{CohortConfig, Incarnation, NodeId};

use super::primary::Primary;
use super::{Pacifica, Shared};
use crate::streaming::wire::HardState;

/// The version of a cohort's first configuration, whose replicas have nothing to lose.
const FIRST_VERSION: u64 = 1;

impl Shared {
    /// Returns true if this incarnation is the one that the configuration lists. Where it names none,
    /// which only a first version does, or one from before incarnations were named, the disk decides:
    /// one that has never acted in any version has acknowledged nothing that a later one builds on.
    pub(super) fn is_the_listed_one(&self, config: &CohortConfig) -> bool {
        if self.own.options.faults.trusts_an_empty_disk() {
            return true;
        }
        //= PAC-45
        match config.incarnations.get(&self.node) {
            Some(listed) => *listed == self.own.incarnation,
            None => {
                let is_first = config.version <= FIRST_VERSION;
                !self.state.is_learner && (is_first || self.state.promised > 0)
            }
        }
    }
}

impl Pacifica {
    /// Does nothing as long as another incarnation is listed in this one's place (PAC-44).
    pub(super) fn wait_until_taken_out(&mut self) {
        //= PAC-44
        tracing::warn!("the replica lost its data and is still in the configuration");
        let cx = &mut self.shared;
        if !cx.state.is_learner {
            cx.keep(HardState { is_learner: true, ..cx.state });
        }
        cx.own.pending = None;
        self.become_idle();
    }
}

impl Primary {
    /// Returns true if a follower that is heard is the incarnation that the primary counts or brings
    /// up to date. The first that is heard is, where the configuration names none.
    pub(super) fn is_known_as(
        &mut self,
        cx: &Shared,
        from: NodeId,
        incarnation: Incarnation,
    ) -> bool {
        if !self.leading.followers.contains_key(&from) {
            return false;
        }
        //= PAC-46
        let is_careless = cx.own.options.faults.trusts_an_empty_disk();
        is_careless || *self.incarnations.entry(from).or_insert(incarnation) == incarnation
    }
}
