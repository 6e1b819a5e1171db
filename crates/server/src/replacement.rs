//! Replaces the replicas that cohorts have lost for good (M52).
//!
//! When a cohort's configuration has lacked a replica for a while, its leader invites a living node
//! to hold one; the node's [`crate::hosting`] opens it, and it joins as its protocol has it. Until
//! the while is over, the replica that was removed may come back with what it has, which is far
//! cheaper: replacing at once would copy all rows whenever a node is away for a moment (P13).
//!
//! What is asked for stands at the coordinator, so that the next leader goes on where this one
//! stops. How long a replica has been missing is counted by the leader alone: one that takes over
//! waits anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use trireme_coordinator::CoordinatorError;
use trireme_coordinator::recipes::invitations::{Invitation, Invitations, Standing};
use trireme_replication::Role;
use trireme_types::{CohortConfig, CohortId, NodeId};

use crate::cohort::HostedCohort;
use crate::protocols::admits_replicas;
use crate::routes::{NodeDirectory, Router, Routes};

/// How often the cohorts that are led here are looked at.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long an invited node that lives may take until it is in the configuration, before another
/// one is asked. Long enough to copy a large range; a node that is given up too early may still
/// join, as long as a replica is missing.
const INVITATION_TIMEOUT: Duration = Duration::from_secs(600);

/// Who sees to it that cohorts that are led here have all their replicas.
pub(crate) struct Replacement {
    pub(crate) node: NodeId,
    pub(crate) router: Arc<Router>,
    pub(crate) directory: Arc<NodeDirectory>,
    pub(crate) invitations: Invitations,
    /// How long a replica must be missing before it is replaced.
    pub(crate) delay: Duration,
}

/// What this node has seen of a cohort since it leads it.
#[derive(Default)]
struct Seen {
    /// Since when a replica is missing.
    lacks_since: Option<Instant>,
    /// Who is invited, and since when that is known here.
    invited: Option<(Standing, Instant)>,
    /// All nodes that were in a configuration.
    members: BTreeSet<NodeId>,
}

/// What is to be done about a cohort.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Invite { before: Option<Standing>, invitation: Invitation },
    Withdraw(Standing),
}

/// Who could be invited.
struct Candidates {
    alive: BTreeSet<NodeId>,
    /// How many replicas each node holds or is invited to hold.
    replicas: BTreeMap<NodeId, usize>,
}

impl Replacement {
    /// Runs until its task is aborted.
    pub(crate) async fn run(self) {
        let mut seen = BTreeMap::new();
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look(&mut seen).await;
        }
    }

    async fn look(&self, seen: &mut BTreeMap<CohortId, Seen>) {
        let (routes, now) = (self.router.routes(), Instant::now());
        let led: Vec<_> = routes.hosted.values().filter_map(|it| self.led(&routes, it)).collect();
        seen.retain(|cohort, _| led.iter().any(|config| config.cohort == *cohort));
        let mut candidates = None;
        for config in led {
            let seen = seen.entry(config.cohort).or_default();
            seen.take_in(now, config, routes.invitations.get(&config.cohort).copied());
            // Nearly always there is nothing to do, and no node to be counted.
            if !seen.may_need_a_step() {
                continue;
            }
            let candidates =
                candidates.get_or_insert_with(|| Candidates::of(&routes, &self.directory));
            if let Some(step) = next_step(config, seen, candidates, now, self.delay) {
                self.perform(config.cohort, step).await;
            }
        }
    }

    /// Returns the newest configuration of a cohort that is led here, if it can admit replicas.
    fn led<'a>(&self, routes: &'a Routes, hosted: &HostedCohort) -> Option<&'a CohortConfig> {
        let config = routes.configs.get(&hosted.descriptor.cohort)?;
        // One that has ended admits no replica.
        let leads = admits_replicas(config.protocol)
            && !hosted.table.is_sealed()
            && hosted.replica.leader() == Some(self.node)
            && hosted.replica.status().role == Role::Leader;
        leads.then_some(config)
    }

    async fn perform(&self, cohort: CohortId, step: Step) {
        let performed = match step {
            Step::Invite { before, invitation } => {
                tracing::info!(%cohort, ?invitation, "a node is invited to hold a replica");
                self.invitations.invite(cohort, before, invitation).await
            }
            Step::Withdraw(standing) => {
                tracing::info!(%cohort, invitation = ?standing.invitation, "an invitation is over");
                self.invitations.withdraw(cohort, standing).await
            }
        };
        match performed {
            Ok(true) => {}
            Ok(false) => tracing::info!(%cohort, "the invitation has changed meanwhile"),
            // The next look sees what became of it.
            Err(error @ CoordinatorError::Malformed { .. }) => {
                tracing::error!(%cohort, %error, "an invitation cannot be read");
            }
            Err(error) => tracing::warn!(%cohort, %error, "an invitation may not have changed"),
        }
    }
}

impl Seen {
    fn take_in(&mut self, now: Instant, config: &CohortConfig, standing: Option<Standing>) {
        self.members.extend(&config.replicas);
        let lacks = config.replicas_missing() > 0;
        self.lacks_since = lacks.then(|| self.lacks_since.unwrap_or(now));
        if self.invited.map(|(known, _)| known) != standing {
            self.invited = standing.map(|standing| (standing, now));
        }
    }

    fn may_need_a_step(&self) -> bool {
        self.lacks_since.is_some() || self.invited.is_some()
    }
}

impl Candidates {
    fn of(routes: &Routes, directory: &NodeDirectory) -> Self {
        let alive = directory.all().into_iter().filter(|node| node.alive);
        let mut replicas = BTreeMap::new();
        let members = routes.configs.values().flat_map(|config| &config.replicas);
        let invited = routes.invitations.values().map(|standing| &standing.invitation.node);
        members.chain(invited).for_each(|&node| *replicas.entry(node).or_default() += 1);
        Self { alive: alive.map(|node| NodeId(node.id)).collect(), replicas }
    }

    /// Takes the node that is to be invited: of those that live and are not in the cohort, one that
    /// was not in it before, since such a one comes back by itself if it has kept what it had;
    /// then the one with the fewest replicas; then the one with the lowest number.
    fn take(
        &mut self,
        config: &CohortConfig,
        former: &BTreeSet<NodeId>,
        except: Option<NodeId>,
    ) -> Option<NodeId> {
        let is_free = |node: &NodeId| !config.replicas.contains(node) && Some(*node) != except;
        let replicas = |node| self.replicas.get(&node).copied().unwrap_or_default();
        let rank = |&node: &NodeId| (former.contains(&node), replicas(node), node);
        let taken = self.alive.iter().copied().filter(is_free).min_by_key(rank)?;
        // So that the next cohort that lost a replica goes elsewhere.
        *self.replicas.entry(taken).or_default() += 1;
        Some(taken)
    }
}

/// Decides what is to be done about a cohort now.
fn next_step(
    config: &CohortConfig,
    seen: &Seen,
    candidates: &mut Candidates,
    now: Instant,
    delay: Duration,
) -> Option<Step> {
    let Seen { lacks_since, invited, members } = seen;
    let Some(lacks_since) = *lacks_since else {
        return invited.map(|(standing, _)| Step::Withdraw(standing));
    };
    let before = invited.map(|(standing, _)| standing);
    let except = match *invited {
        None => None,
        Some((standing, _)) if config.replicas.contains(&standing.invitation.node) => {
            return Some(Step::Withdraw(standing));
        }
        Some((standing, since)) => {
            let node = standing.invitation.node;
            if candidates.alive.contains(&node) && now - since < INVITATION_TIMEOUT {
                return None;
            }
            Some(node)
        }
    };
    if now - lacks_since < delay {
        return None;
    }
    let node = candidates.take(config, members, except)?;
    Some(Step::Invite { before, invitation: Invitation { node, at: config.version } })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use trireme_coordinator::NodeVersion;
    use trireme_coordinator::recipes::invitations::AllInvitations;
    use trireme_proto::v1;
    use trireme_storage::{TableOptions, Tables};
    use trireme_types::{ClusterId, Protocol, RangeMap};

    use super::*;
    use crate::backpressure::Backpressure;
    use crate::readers::Readers;
    use crate::testing::{EmbeddedCoordinator, FakeReplica};

    const DELAY: Duration = Duration::from_secs(10);

    fn config(replicas: &[u64]) -> CohortConfig {
        CohortConfig {
            cohort: CohortId(1),
            version: 3,
            protocol: Protocol::Pacifica,
            replicas: replicas.iter().copied().map(NodeId).collect(),
            replicas_wanted: 3,
            incarnations: [].into(),
            origin: None,
        }
    }

    fn standing(node: u64) -> Standing {
        let invitation = Invitation { node: NodeId(node), at: 2 };
        Standing { invitation, version: NodeVersion(9) }
    }

    fn candidates(alive: &[u64], replicas: &[(u64, usize)]) -> Candidates {
        Candidates {
            alive: alive.iter().copied().map(NodeId).collect(),
            replicas: replicas.iter().map(|&(node, count)| (NodeId(node), count)).collect(),
        }
    }

    fn invites(node: u64, before: Option<Standing>) -> Option<Step> {
        let invitation = Invitation { node: NodeId(node), at: 3 };
        Some(Step::Invite { before, invitation })
    }

    /// What is done `after` the cohort of nodes 1 and 2, once 1, 2 and 3, was first seen to lack
    /// a replica, with this invitation.
    fn step(
        after: Duration,
        invited: Option<Standing>,
        candidates: &mut Candidates,
    ) -> Option<Step> {
        let (mut seen, begin) = (Seen::default(), Instant::now());
        seen.take_in(begin, &config(&[1, 2, 3]), invited);
        seen.take_in(begin, &config(&[1, 2]), invited);
        seen.take_in(begin + after, &config(&[1, 2]), invited);
        next_step(&config(&[1, 2]), &seen, candidates, begin + after, DELAY)
    }

    /// P13: a node that is away for a moment costs no copy of its rows.
    #[test]
    fn a_replica_is_replaced_once_it_has_been_missing_for_long_enough() {
        let mut nodes = candidates(&[1, 2, 4, 5], &[(4, 2), (5, 1)]);
        assert_eq!(step(DELAY - Duration::from_millis(1), None, &mut nodes), None);
        assert_eq!(step(DELAY, None, &mut nodes), invites(5, None));
        // It has been counted, so that the next ones go elsewhere; of two, the lower number.
        assert_eq!(step(DELAY, None, &mut nodes), invites(4, None));
        assert_eq!(step(DELAY, None, &mut nodes), invites(5, None));

        let mut seen = Seen::default();
        let begin = Instant::now();
        seen.take_in(begin, &config(&[1, 2]), None);
        seen.take_in(begin + DELAY, &config(&[1, 2, 3]), None);
        seen.take_in(begin + DELAY, &config(&[1, 2]), None);
        let early = next_step(&config(&[1, 2]), &seen, &mut nodes, begin + DELAY, DELAY);
        assert_eq!(early, None, "it was back for a while");
    }

    /// One that was in the cohort comes back by itself, unless it has lost its disk: then it may be
    /// the only one there is.
    #[test]
    fn a_node_that_was_in_the_cohort_is_invited_only_if_there_is_no_other() {
        let mut nodes = candidates(&[1, 2, 3, 4], &[(4, 7)]);
        assert_eq!(step(DELAY, None, &mut nodes), invites(4, None));
        assert_eq!(step(DELAY, None, &mut candidates(&[1, 2, 3], &[])), invites(3, None));
        assert_eq!(step(DELAY, None, &mut candidates(&[1, 2], &[])), None);
    }

    #[test]
    fn an_invited_node_that_dies_or_takes_too_long_is_given_up_for_another() {
        let invited = Some(standing(4));
        assert_eq!(step(DELAY, invited, &mut candidates(&[1, 2, 4, 5], &[])), None);
        let (late, mut both) = (INVITATION_TIMEOUT, candidates(&[1, 2, 4, 5], &[]));
        assert_eq!(step(late, invited, &mut both), invites(5, invited));
        assert_eq!(step(DELAY, invited, &mut candidates(&[1, 2, 5], &[])), invites(5, invited));
        let mut nobody = candidates(&[1, 2, 4], &[]);
        assert_eq!(step(late, invited, &mut nobody), None, "it may still come");
    }

    #[test]
    fn an_invitation_that_has_served_its_purpose_is_withdrawn() {
        let mut nodes = candidates(&[1, 2, 4, 5], &[]);
        let mut seen = Seen::default();
        let now = Instant::now();
        seen.take_in(now, &config(&[1, 2, 4]), Some(standing(4)));
        let full = next_step(&config(&[1, 2, 4]), &seen, &mut nodes, now, DELAY);
        assert_eq!(full, Some(Step::Withdraw(standing(4))));
        // Another one is missing, and not for long yet.
        seen.take_in(now, &config(&[1, 4]), Some(standing(4)));
        let another = next_step(&config(&[1, 4]), &seen, &mut nodes, now, DELAY);
        assert_eq!(another, Some(Step::Withdraw(standing(4))));
    }

    /// A cohort that is led by a fake replica, on a node that asks a real coordinator.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_leader_invites_a_living_node_and_withdraws_the_invitation_when_it_is_in() {
        let (embedded, folder) = (EmbeddedCoordinator::start().await, TempDir::new().unwrap());
        let coordinator = embedded.connect().await;
        let tables = Tables::open(folder.path(), TableOptions::default()).unwrap();
        let directory = Arc::<NodeDirectory>::default();
        let alive = |id| v1::Node { id, address: String::new(), alive: id != 3 };
        directory.set((1..=4).map(alive));
        let map = RangeMap::from_splits(&[]).unwrap();
        let descriptor = map.ranges()[0].clone();
        let table = tables.cohort(descriptor.cohort, descriptor.range.clone()).unwrap();
        let replica = FakeReplica::new(1, 1);
        replica.lead(&[]);
        let (backpressure, readers) = (Backpressure::new(u64::MAX), Readers::start().unwrap());
        let hosted = HostedCohort::start(
            descriptor,
            replica,
            table,
            directory.clone(),
            backpressure,
            readers,
        );
        let routes = |replicas: &[u64], invitations: AllInvitations| Routes {
            map: map.clone(),
            configs: [(CohortId(1), config(replicas))].into(),
            invitations,
            hosted: [(CohortId(1), hosted.clone())].into(),
        };
        let first = routes(&[1, 2], AllInvitations::new());
        let router = Arc::new(Router::new(ClusterId(7), directory.clone(), first));
        let invitations = Invitations::new(&coordinator);
        let mut told = invitations.watch().unwrap();
        assert_eq!(told.next().await, Some(Ok(AllInvitations::new())));
        let replacement = Replacement {
            node: NodeId(1),
            router: router.clone(),
            directory,
            invitations,
            delay: Duration::from_millis(50),
        };
        let running = tokio::spawn(replacement.run());
        let invited = told.next().await.unwrap().unwrap();
        let expected = Invitation { node: NodeId(4), at: 3 };
        assert_eq!(invited[&CohortId(1)].invitation, expected, "node 3 is dead");
        router.set(routes(&[1, 2, 4], invited));
        assert_eq!(told.next().await, Some(Ok(AllInvitations::new())));
        running.abort();
        coordinator.close().await.unwrap();
    }
}
