//! What is proposed to the configuration manager (§2.4), and asked for again until it is decided.

use std::collections::BTreeMap;
use std::time::Duration;

use trireme_types::{CohortConfig, Incarnation, NodeId};

use super::{Proposal, Shared};
use crate::core::{Effect, Moment, When};

/// After how long a proposal is sent again whose fate is not known yet.
const RETRY: Duration = Duration::from_millis(500);

/// A proposal that is not decided, as far as the replica knows.
#[derive(Debug)]
pub(super) struct Pending {
    /// What it asked for: the direct successor of the configuration that it knew.
    pub(super) config: CohortConfig,
    /// When it asks again.
    pub(super) retry_at: Moment,
}

/// What a proposal is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose<'a> {
    /// A secondary takes the place of a primary that is silent.
    TakeOver,
    /// A primary that was restarted goes on under a new version (P7).
    Resume,
    /// A primary goes on without these secondaries.
    Remove(&'a [NodeId]),
    /// A primary adds a candidate that has everything.
    Add(NodeId),
    /// A primary hands over.
    Transfer {
        /// The secondary that is to be the primary.
        to: NodeId,
    },
}

impl Shared {
    /// Asks the manager for a change, unless it has one to decide already. `heard` has the
    /// incarnations that a primary knows.
    pub(super) fn propose(
        &mut self,
        purpose: Purpose<'_>,
        heard: Option<&BTreeMap<NodeId, Incarnation>>,
    ) {
        let Some(known) = &self.own.config else { return };
        // Of a newer version than the manager has sent, nothing is known to build on (P4).
        if self.own.pending.is_some() || known.version < self.state.promised {
            return;
        }
        let mut replicas = known.replicas.clone();
        match purpose {
            Purpose::TakeOver => {
                let old = replicas.first().copied();
                replicas.retain(|node| *node != self.node && Some(*node) != old);
                replicas.insert(0, self.node);
            }
            Purpose::Resume => {}
            Purpose::Remove(nodes) => replicas.retain(|node| !nodes.contains(node)),
            Purpose::Add(node) => replicas.push(node),
            Purpose::Transfer { to } => {
                replicas.retain(|node| *node != to);
                replicas.insert(0, to);
            }
        }
        let incarnations = self.incarnations_of(&replicas, known, heard);
        let replicas_wanted = known.replicas_wanted();
        let version = known.version + 1;
        let config =
            CohortConfig { version, replicas, replicas_wanted, incarnations, ..known.clone() };
        tracing::info!(?purpose, version = config.version, "asking the configuration manager");
        self.own.pending = Some(Pending { config, retry_at: self.now + RETRY });
        self.ask();
    }

    /// Returns the incarnations of these replicas, as far as they are listed or known.
    fn incarnations_of(
        &self,
        replicas: &[NodeId],
        known: &CohortConfig,
        heard: Option<&BTreeMap<NodeId, Incarnation>>,
    ) -> BTreeMap<NodeId, Incarnation> {
        //= PAC-45
        let of = |node: &NodeId| {
            let own = (*node == self.node).then_some(self.own.incarnation);
            let listed = known.incarnations.get(node).copied();
            own.or(listed).or_else(|| heard?.get(node).copied())
        };
        replicas.iter().filter_map(|node| Some((*node, of(node)?))).collect()
    }

    /// Asks, or asks again for the very same (PAC-34; P4).
    fn ask(&mut self) {
        let Some(pending) = &self.own.pending else { return };
        //= PAC-34
        let request = Proposal(pending.config.clone());
        self.journal.push(Effect::Coordinate { request, when: When::Now });
    }

    pub(super) fn retry_pending(&mut self) {
        let now = self.now;
        if let Some(pending) = self.own.pending.as_mut().filter(|pending| pending.retry_at <= now) {
            pending.retry_at = now + RETRY;
            self.ask();
        }
    }
}

#[cfg(test)]
mod tests {
    use trireme_types::{CohortId, Protocol};

    use super::super::{Pacifica, PacificaOptions};
    use super::*;
    use crate::core::Recovered;

    /// Returns a replica that knows this configuration, of version 4, and has acted up to `promised`.
    fn knowing(replicas_wanted: usize, promised: u64) -> Pacifica {
        let core = Pacifica::new(&Recovered::nothing(), PacificaOptions::new(Incarnation(7)));
        let mut core = core.expect("the options make sense");
        core.shared.own.config = Some(CohortConfig {
            cohort: CohortId(1),
            version: 4,
            protocol: Protocol::Pacifica,
            replicas: [1, 2].map(NodeId).to_vec(),
            replicas_wanted,
            incarnations: [].into(),
            origin: None,
        });
        core.shared.state.promised = promised;
        core
    }

    /// What is asked for is built upon the newest configuration, or not at all (P4).
    #[test]
    fn nothing_is_asked_for_behind_a_newer_version() {
        let asked = |promised| {
            let mut core = knowing(3, promised);
            core.shared.propose(Purpose::Resume, None);
            core.shared.own.pending.map(|pending| pending.config.version)
        };
        assert_eq!((asked(3), asked(4), asked(5)), (Some(5), Some(5), None));
    }

    /// A configuration from before they were counted wants as many replicas as it has.
    #[test]
    fn what_is_asked_for_says_how_many_replicas_are_wanted() {
        let wanted = |wanted| {
            let mut core = knowing(wanted, 4);
            core.shared.propose(Purpose::Remove(&[NodeId(2)]), None);
            let pending = core.shared.own.pending.expect("it asks");
            (pending.config.replicas, pending.config.replicas_wanted)
        };
        assert_eq!(wanted(3), (vec![NodeId(1)], 3));
        assert_eq!(wanted(0), (vec![NodeId(1)], 2));
    }
}
