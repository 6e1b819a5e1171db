//! Spinnaker's elections, as the recipe `election` of the coordinator's client has them.

use std::collections::{BTreeMap, BTreeSet};

use trireme_replication::spinnaker::{Candidate, ElectionRequest, ElectionView, Spinnaker};
use trireme_types::{Epoch, NodeId};

use super::{Carried, Coordinator, Recipe, SessionId};
use crate::world::World;

/// The elections of the one cohort.
#[derive(Clone, Default)]
pub(super) struct Elections {
    epoch: Epoch,
    leader: Option<(SessionId, NodeId, Epoch)>,
    candidates: Vec<(SessionId, Candidate)>,
    sequence: u64,
    /// Those who stood when the leader was elected.
    stood: BTreeSet<NodeId>,
}

impl Elections {
    /// Removes what is bound to a session.
    pub(super) fn end(&mut self, session: SessionId) {
        self.candidates.retain(|(of, _)| *of != session);
        self.leader = self.leader.filter(|(of, ..)| *of != session);
    }

    /// Makes `epoch` the newest if the newest is older; what an older leader has left goes with it.
    /// Returns true if it was older.
    pub(super) fn bring_forward(&mut self, epoch: Epoch) -> bool {
        let is_older = self.epoch < epoch;
        if is_older {
            self.epoch = epoch;
            self.leader = self.leader.filter(|(.., of)| *of >= epoch);
        }
        is_older
    }

    const fn round(&self) -> Epoch {
        self.epoch + 1
    }

    /// Returns those who stand in the next round, the newest of each node.
    fn standing(&self) -> BTreeMap<NodeId, (SessionId, Candidate)> {
        let standing = self.candidates.iter().filter(|(_, it)| it.round == self.round());
        standing.map(|(session, candidate)| (candidate.node, (*session, *candidate))).collect()
    }

    /// Returns true if a session's candidate has won among so many replicas.
    fn has_won(&self, session: SessionId, replicas: &[NodeId]) -> bool {
        let standing: Vec<_> = self.standing().into_values().collect();
        let counted = standing.iter().filter(|(_, it)| replicas.contains(&it.node));
        if counted.clone().count() <= replicas.len() / 2 {
            return false;
        }
        let winner = counted.max_by_key(|(_, it)| (it.last, std::cmp::Reverse(it.sequence)));
        winner.is_some_and(|(of, _)| *of == session)
    }
}

impl Recipe for Spinnaker {
    fn carry_out(
        coordinator: &Coordinator,
        node: NodeId,
        request: ElectionRequest,
    ) -> Carried<ElectionView> {
        let inner = &mut *coordinator.inner.lock();
        let Some(session) = inner.session(node) else { return Carried::NotYet };
        let elections = &mut inner.kept.elections;
        match request {
            ElectionRequest::Stand { round, last } if round == elections.round() => {
                elections.sequence += 1;
                let candidate = Candidate { node, round, last, sequence: elections.sequence };
                elections.candidates.push((session, candidate));
            }
            ElectionRequest::Lead { round }
                if round == elections.round()
                    && elections.has_won(session, &inner.kept.config.replicas) =>
            {
                elections.stood = elections.standing().into_keys().collect();
                elections.epoch = round;
                elections.leader = Some((session, node, round));
                elections.candidates.retain(|(_, candidate)| candidate.round > round);
            }
            ElectionRequest::Reclaim { epoch }
                if epoch == elections.epoch && elections.leader.is_none() =>
            {
                elections.leader = Some((session, node, epoch));
            }
            _ => {}
        }
        Carried::Done
    }

    fn epoch_of(view: &ElectionView) -> Epoch {
        view.epoch
    }

    fn is_remembered(_world: &World, _node: NodeId, _view: &ElectionView) -> bool {
        true
    }

    fn view(coordinator: &Coordinator, node: NodeId) -> ElectionView {
        let inner = coordinator.inner.lock();
        let session = inner.session(node);
        let is_ours = |of: NodeId, its: SessionId| of != node || Some(its) == session;
        let elections = &inner.kept.elections;
        let leader = elections.leader.filter(|(its, of, _)| is_ours(*of, *its));
        let each_wins = inner.each_wins && elections.stood.contains(&node);
        ElectionView {
            epoch: elections.epoch,
            leader: leader.map(|(_, of, epoch)| (if each_wins { node } else { of }, epoch)),
            candidates: elections.standing().into_values().map(|(_, it)| it).collect(),
        }
    }
}
