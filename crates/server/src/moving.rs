//! Replicas that move to other nodes: a node is invited, is brought up to date as a learner, and then is a
//! member of the successor, in place of one that is to go.

use std::sync::Arc;

use trireme_coordinator::recipes::invitations::{Invitation, Leaving, Standing, Why};
use trireme_replication::ReplicaStatus;
use trireme_types::{CohortConfig, CohortId, NodeId};

use crate::cohort::HostedCohort;
use crate::routes::Routes;
use crate::succession::{Changes, Refused, check_leads};

/// How far behind the commit point, in entries, a learner may be when the cohort ends: it has nearly
/// everything then, and begins in the successor once it has applied the rest. To have all of it is a race
/// that it need not win under load.
const LAG_MAX: u64 = 256;

/// A replica of a cohort that is to be on another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    /// The member that is to go.
    pub(crate) from: NodeId,
    /// The node that takes its place.
    pub(crate) to: NodeId,
}

impl Move {
    /// Returns the move that an invitation is about, if it is about one.
    pub(crate) fn of(invitation: &Invitation) -> Option<Self> {
        let Leaving { node: from, .. } = invitation.leaving?;
        Some(Self { from, to: invitation.node })
    }

    /// Returns true if a cohort has its replicas as they are to be.
    pub(crate) fn is_done(self, config: &CohortConfig) -> bool {
        config.replicas.contains(&self.to) && !config.replicas.contains(&self.from)
    }

    /// Returns the members of the successor of a cohort with these.
    pub(crate) fn applied_to(self, replicas: &[NodeId]) -> Vec<NodeId> {
        let stay = replicas.iter().copied().filter(|node| *node != self.from);
        stay.chain([self.to]).collect()
    }

    /// Refuses a cohort whose learner lacks too much.
    pub(crate) fn check_is_prepared(self, hosted: &HostedCohort) -> Result<(), Refused> {
        let status = hosted.replica.status();
        let (cohort, to) = (status.cohort, self.to);
        //= RANGE-18
        if is_prepared(&status, to) {
            return Ok(());
        }
        Err(Refused::NotNow(match lag(&status, to) {
            Some(lag) => format!("{to} is brought up to date and lacks {lag} entries of {cohort}"),
            None => format!("{to} has nothing of {cohort} yet"),
        }))
    }

    /// Refuses a move that cannot be.
    fn check(self, config: &CohortConfig) -> Result<(), Refused> {
        let (Self { from, to }, cohort) = (self, config.cohort);
        let invalid = |reason: String| Err(Refused::Invalid(reason));
        if !config.replicas.contains(&from) {
            let replicas: Vec<_> = config.replicas.iter().map(NodeId::to_string).collect();
            let replicas = replicas.join(", ");
            return invalid(format!("{from} holds no replica of {cohort}: {replicas} do"));
        }
        if config.replicas.contains(&to) {
            return invalid(format!("{to} holds a replica of {cohort} already"));
        }
        Ok(())
    }
}

/// Returns true if a node's replica has nearly all that its leader has committed.
pub(crate) fn is_prepared(status: &ReplicaStatus, node: NodeId) -> bool {
    lag(status, node).is_some_and(|lag| lag <= LAG_MAX)
}

/// Returns how many entries a node's replica lacks of what its leader has committed; `None` if the leader
/// has not heard how far it is.
fn lag(status: &ReplicaStatus, node: NodeId) -> Option<u64> {
    let (_, matched) = status.progress.iter().find(|(other, _)| *other == node)?;
    let is_known = matched.seq > 0 || status.committed.seq == 0;
    is_known.then(|| status.committed.seq.saturating_sub(matched.seq))
}

/// Returns how far a node's replica has come, as its leader knows.
pub(crate) fn matched(status: &ReplicaStatus, node: NodeId) -> u64 {
    let known = status.progress.iter().find(|(other, _)| *other == node);
    known.map_or(0, |(_, matched)| matched.seq)
}

impl Changes {
    /// Prepares that a replica moves; refuses with what it waits for until that is done.
    pub(crate) async fn prepare(
        &self,
        routes: &Routes,
        hosted: &Arc<HostedCohort>,
        config: &CohortConfig,
        wanted: Move,
    ) -> Result<(), Refused> {
        check_leads(hosted, self.node)?;
        let cohort = config.cohort;
        // The one that is missing may be the one that is to go, and be back soon, or not.
        if config.replicas_missing() > 0 {
            return Err(Refused::NotNow(format!("cohort {cohort} lacks a replica")));
        }
        wanted.check(config)?;
        let standing = routes.invitations.get(&cohort).copied();
        match standing {
            Some(standing) if Move::of(&standing.invitation) == Some(wanted) => {
                wanted.check_is_prepared(hosted)
            }
            other => {
                if let Some(Move { from, to }) = other.and_then(|it| Move::of(&it.invitation)) {
                    let reason = format!("a replica of {cohort} is moving from {from} to {to}");
                    return Err(Refused::NotNow(reason));
                }
                self.check_is_there(wanted.to)?;
                self.invite(cohort, other, config.version, wanted).await
            }
        }
    }

    fn check_is_there(&self, to: NodeId) -> Result<(), Refused> {
        match self.directory.node(to) {
            Some(node) if node.draining => {
                Err(Refused::Invalid(format!("{to} is draining, and is to hold no replica")))
            }
            Some(node) if node.alive => Ok(()),
            Some(_) => Err(Refused::NotNow(format!("{to} is not there"))),
            None => Err(Refused::Invalid(format!("there is no node {to}"))),
        }
    }

    async fn invite(
        &self,
        cohort: CohortId,
        before: Option<Standing>,
        at: u64,
        Move { from, to }: Move,
    ) -> Result<(), Refused> {
        let leaving = Some(Leaving { node: from, why: Why::Asked });
        let invitation = Invitation { node: to, at, leaving };
        tracing::info!(%cohort, ?invitation, "a node is invited to hold a replica");
        let invited = self.invitations.invite(cohort, before, invitation).await;
        let invited = invited.map_err(|error| Refused::Unknown(error.to_string()))?;
        Err(Refused::NotNow(match invited {
            true => format!("{to} is invited to hold a replica of {cohort}"),
            false => format!("another node was invited to hold a replica of {cohort}"),
        }))
    }
}

#[cfg(test)]
mod tests {
    use trireme_replication::{Measures, Role};
    use trireme_types::{Lsn, Protocol};

    use super::*;

    const MOVE: Move = Move { from: NodeId(3), to: NodeId(4) };

    fn config(replicas: &[u64]) -> CohortConfig {
        CohortConfig {
            cohort: CohortId(1),
            version: 3,
            protocol: Protocol::Raft,
            replicas: replicas.iter().copied().map(NodeId).collect(),
            replicas_wanted: 3,
            incarnations: [].into(),
            origin: None,
        }
    }

    #[test]
    fn a_move_puts_one_node_in_the_place_of_another() {
        let moved = config(&[2, 1, 4]);
        assert_eq!(MOVE.applied_to(&config(&[2, 3, 1]).replicas), moved.replicas);
        assert!(MOVE.is_done(&moved) && !MOVE.is_done(&config(&[1, 2, 3])));
        assert_eq!(MOVE.check(&config(&[1, 2, 3])), Ok(()));
        let refused = |replicas: &[u64]| MOVE.check(&config(replicas)).unwrap_err().to_string();
        assert_eq!(refused(&[1, 2]), "n3 holds no replica of c1: n1, n2 do");
        assert_eq!(refused(&[1, 3, 4]), "n4 holds a replica of c1 already");
    }

    /// [RANGE-18]
    #[test]
    fn a_learner_of_which_nothing_is_known_has_not_caught_up() {
        let lsn = |seq| Lsn::new(1, seq);
        let status = |progress: Option<u64>, committed: u64| ReplicaStatus {
            node: NodeId(1),
            cohort: CohortId(1),
            protocol: Protocol::Raft,
            role: Role::Leader,
            leader: Some(NodeId(1)),
            epoch: 1,
            last: lsn(committed),
            durable: lsn(committed),
            committed: lsn(committed),
            applied: lsn(committed),
            purged: Lsn::ZERO,
            replicas: [1, 2, 3].map(NodeId).to_vec(),
            progress: progress.map(|seq| (NodeId(4), lsn(seq))).into_iter().collect(),
            measures: Measures::default(),
        };
        assert_eq!(lag(&status(None, 9), NodeId(4)), None, "the leader does not know of it");
        assert_eq!(lag(&status(Some(0), 9), NodeId(4)), None, "it has acknowledged nothing");
        assert_eq!(lag(&status(Some(7), 9), NodeId(4)), Some(2));
        assert_eq!(lag(&status(Some(9), 7), NodeId(4)), Some(0));
    }
}
