//! One cohort, put together from what its replicas say.

use trireme_client::{KeyRange, Measures, ReplicaStatus, Route};
use trireme_types::{CohortId, Lsn, NodeId};

use super::NodeReport;

/// A cohort.
pub(super) struct Cohort {
    pub(super) id: CohortId,
    pub(super) range: KeyRange,
    pub(super) protocol: String,
    /// The replica that leads, as far as could be asked.
    pub(super) leader: Option<NodeId>,
    /// The leader's epoch; without one, the highest that a replica knows.
    pub(super) epoch: Option<u64>,
    pub(super) replicas: Vec<Replica>,
}

/// A replica.
pub(super) struct Replica {
    pub(super) node: NodeId,
    /// What it says of itself, or why there is nothing.
    pub(super) state: Result<ReplicaState, NoState>,
}

/// Why nothing is known of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoState {
    /// Its node could not be asked.
    Unreachable,
    /// Its node holds no replica of the cohort, or not yet.
    Absent,
}

impl NoState {
    /// Returns the word that stands in place of the replica's role.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Absent => "absent",
        }
    }
}

/// What a replica says of itself.
#[derive(Debug)]
pub(super) struct ReplicaState {
    pub(super) role: String,
    pub(super) epoch: u64,
    pub(super) last: Lsn,
    pub(super) durable: Lsn,
    pub(super) committed: Lsn,
    pub(super) applied: Lsn,
    /// Entries that the leader knows to be committed and that this replica has not applied;
    /// `None` without a leader.
    pub(super) lag: Option<u64>,
    /// What it has measured of itself.
    pub(super) measures: Measures,
}

/// Puts together what the nodes say of the cohort that a route leads to.
pub(super) fn cohort(route: &Route, nodes: &[NodeReport]) -> Cohort {
    let mut replicas: Vec<Replica> = (route.replicas.iter())
        .map(|node| Replica { node: *node, state: state_of(route.cohort, *node, nodes) })
        .collect();
    let states = || replicas.iter().filter_map(|r| Some((r.node, r.state.as_ref().ok()?)));
    let leader = states()
        .filter(|(_, state)| state.role == "leader")
        .max_by_key(|(_, state)| state.epoch)
        .map(|(node, state)| (node, state.epoch, state.committed));
    let epoch = match leader {
        Some((_, epoch, _)) => Some(epoch),
        None => states().map(|(_, state)| state.epoch).max(),
    };
    if let Some((_, _, committed)) = leader {
        for state in replicas.iter_mut().filter_map(|replica| replica.state.as_mut().ok()) {
            state.lag = Some(committed.seq.saturating_sub(state.applied.seq));
        }
    }
    Cohort {
        id: route.cohort,
        range: route.range.clone(),
        protocol: route.protocol.clone(),
        leader: leader.map(|(node, ..)| node),
        epoch,
        replicas,
    }
}

fn state_of(cohort: CohortId, node: NodeId, nodes: &[NodeReport]) -> Result<ReplicaState, NoState> {
    let report = nodes.iter().find(|report| report.node.id == node);
    let told = report.and_then(|report| report.status.as_ref().ok()).ok_or(NoState::Unreachable)?;
    let replica = told.replicas.iter().find(|replica| replica.cohort == cohort.0);
    replica.map(replica_state).ok_or(NoState::Absent)
}

fn replica_state(told: &ReplicaStatus) -> ReplicaState {
    let lsn = |told: &Option<_>| told.map(Lsn::from).unwrap_or_default();
    ReplicaState {
        role: told.role.clone(),
        epoch: told.epoch,
        last: lsn(&told.last),
        durable: lsn(&told.durable),
        committed: lsn(&told.committed),
        applied: lsn(&told.applied),
        lag: None,
        measures: told.measures.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use trireme_client::{Node, NodeStatus};

    use super::*;

    fn report(node: u64, replica: Option<(&str, u64, u64, u64)>) -> NodeReport {
        let status = replica.map(|(role, epoch, committed, applied)| {
            let replica = ReplicaStatus {
                cohort: 1,
                role: role.to_owned(),
                epoch,
                committed: Some(Lsn::new(epoch, committed).into()),
                applied: Some(Lsn::new(epoch, applied).into()),
                ..Default::default()
            };
            NodeStatus { node, replicas: vec![replica], ..Default::default() }
        });
        let node = Node { id: NodeId(node), address: String::new(), alive: true, draining: false };
        NodeReport { node, status: status.ok_or_else(|| "cut off".to_owned()) }
    }

    fn cohort_of(nodes: &[NodeReport]) -> Cohort {
        let route = Route {
            range: KeyRange::all(),
            cohort: CohortId(1),
            epoch: 1,
            protocol: "raft".to_owned(),
            replicas: nodes.iter().map(|report| report.node.id).collect(),
            // What the routes say of leaders is not asked: it may be old.
            leader: Some(NodeId(3)),
        };
        cohort(&route, nodes)
    }

    #[test]
    fn the_leader_of_the_highest_epoch_leads() {
        let cohort = cohort_of(&[
            report(1, Some(("leader", 4, 9, 9))),
            report(2, Some(("leader", 5, 12, 11))),
            report(3, None),
        ]);
        assert_eq!((cohort.leader, cohort.epoch), (Some(NodeId(2)), Some(5)));
        let lags: Vec<_> = cohort
            .replicas
            .iter()
            .map(|replica| replica.state.as_ref().ok().map(|s| s.lag))
            .collect();
        assert_eq!(lags, [Some(Some(3)), Some(Some(1)), None]);
    }

    #[test]
    fn a_cohort_whose_leader_cannot_be_asked_has_none() {
        let cohort = cohort_of(&[
            report(1, Some(("follower", 4, 9, 9))),
            report(2, Some(("candidate", 5, 12, 11))),
            report(3, None),
        ]);
        assert_eq!((cohort.leader, cohort.epoch), (None, Some(5)));
        assert_eq!(cohort.replicas[0].state.as_ref().unwrap().lag, None);
    }
}
