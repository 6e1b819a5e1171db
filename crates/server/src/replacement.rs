//! Replaces the replicas that cohorts have lost for good (M52), and carries on with moves.
//!
//! A cohort of PacificA takes a replica out that does not answer. When its configuration has lacked one
//! for a while, its leader invites a living node to hold one; the node's [`crate::hosting`] opens it, and
//! it joins as its protocol has it. The members of the other protocols are fixed: when one's node has been
//! away for a while, the node that is invited learns, and once it has caught up the cohort ends and goes on
//! with it in the other's place ([`crate::moving`]), as in a move that was asked for. Until the while is
//! over, the replica that is away may come back with what it has, which is far cheaper: replacing at once
//! would copy all rows whenever a node is away for a moment (P13).
//!
//! What is asked for stands at the coordinator, so that the next leader goes on where this one
//! stops. How long a replica has been missing is counted by the leader alone: one that takes over
//! waits anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use trireme_coordinator::CoordinatorError;
use trireme_coordinator::recipes::invitations::{Invitation, Leaving, Standing, Why};
use trireme_coordinator::recipes::succession::is_over;
use trireme_replication::{ReplicaStatus, Role};
use trireme_types::{CohortConfig, CohortId, NodeId};

use crate::cohort::HostedCohort;
use crate::moving::{Move, is_prepared, matched};
use crate::protocols::admits_replicas;
use crate::routes::{NodeDirectory, Routes};
use crate::succession::{Change, Changes};

/// How often the cohorts that are led here are looked at.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long an invited node that lives may come no further, before another one is asked. Long enough to
/// send a large snapshot; a node that is given up too early may still join, as long as a replica is missing.
const INVITATION_TIMEOUT: Duration = Duration::from_secs(600);

/// How long an invited node may be away before another one is asked.
const INVITED_AWAY_MAX: Duration = Duration::from_secs(30);

/// For how many cohorts that a node leads others may be invited at a time, so that a node that is gone does
/// not have all its ranges copied at once.
const INVITATIONS_MAX: usize = 16;

/// Who sees to it that cohorts that are led here have all their replicas, where they are to be.
pub(crate) struct Replacement {
    pub(crate) changes: Changes,
    /// How long a replica must be missing before it is replaced.
    pub(crate) delay: Duration,
}

/// What this node has seen of a cohort since it leads it.
#[derive(Default)]
struct Seen {
    /// Since when a replica is missing.
    lacks_since: Option<Instant>,
    /// Who is invited.
    invited: Option<Invited>,
    /// All nodes that were in a configuration.
    members: BTreeSet<NodeId>,
    /// Since when the nodes have been away that are members or invited, and are not there.
    away_since: BTreeMap<NodeId, Instant>,
    /// The members and the invited, where their nodes are draining.
    draining: BTreeSet<NodeId>,
    /// The cohort's end is being proposed.
    sealing: Option<JoinHandle<()>>,
}

/// Who is invited, and how far that has come.
#[derive(Clone, Copy)]
struct Invited {
    standing: Standing,
    /// How far its replica has come.
    matched: u64,
    /// Whether that is far enough for it to take a member's place.
    is_prepared: bool,
    /// Since when it is known here, or has come no further.
    since: Instant,
}

/// What is to be done about a cohort.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Invite {
        before: Option<Standing>,
        invitation: Invitation,
    },
    Withdraw(Standing),
    /// The cohort is to end, so that its successor has its replicas where they are to be.
    Seal(Move),
}

/// Which nodes are there, and which are to hold no replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nodes {
    pub(crate) alive: BTreeSet<NodeId>,
    pub(crate) draining: BTreeSet<NodeId>,
}

/// Who could be invited.
struct Candidates {
    nodes: Nodes,
    /// How many replicas each node holds or is invited to hold.
    replicas: BTreeMap<NodeId, usize>,
    /// For how many more cohorts others may be invited.
    room: usize,
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
        let (routes, now) = (self.changes.router.routes(), Instant::now());
        let nodes = Nodes::of(&self.changes.directory);
        self.withdraw_what_is_over(&routes, &nodes).await;
        let led: Vec<_> = routes.hosted.values().filter_map(|it| self.led(&routes, it)).collect();
        seen.retain(|cohort, _| led.iter().any(|(config, _)| config.cohort == *cohort));
        let mut candidates = None;
        for (config, hosted) in led {
            let seen = seen.entry(config.cohort).or_default();
            let standing = routes.invitations.get(&config.cohort).copied();
            seen.take_in(now, config, standing, &nodes);
            // Nearly always there is nothing to do, and no node to be counted.
            if !seen.may_need_a_step() {
                continue;
            }
            let status = hosted.replica.status();
            if status.role != Role::Leader {
                continue;
            }
            seen.note_progress(now, &status);
            let candidates = candidates.get_or_insert_with(|| self.candidates(&routes, &nodes));
            if let Some(step) = next_step(config, seen, candidates, now, self.delay) {
                self.perform(hosted, seen, step).await;
            }
        }
    }

    /// Returns the newest configuration of a cohort that is led here.
    fn led<'a>(
        &self,
        routes: &'a Routes,
        hosted: &'a Arc<HostedCohort>,
    ) -> Option<(&'a CohortConfig, &'a Arc<HostedCohort>)> {
        let config = routes.configs.get(&hosted.descriptor.cohort)?;
        // One that has ended gets no replica any more.
        let leads = !hosted.table.is_sealed() && hosted.replica.leader() == Some(self.changes.node);
        leads.then_some((config, hosted))
    }

    /// Withdraws the invitations to cohorts of which nothing is needed any more. One node does.
    async fn withdraw_what_is_over(&self, routes: &Routes, nodes: &Nodes) {
        //= RANGE-19
        if nodes.alive.first() != Some(&self.changes.node) {
            return;
        }
        for (&cohort, &standing) in &routes.invitations {
            if is_over(&routes.configs, cohort) {
                self.withdraw(cohort, standing).await;
            }
        }
    }

    fn candidates(&self, routes: &Routes, nodes: &Nodes) -> Candidates {
        let mut replicas = BTreeMap::new();
        let serving = routes.map.ranges().iter().filter_map(|it| routes.configs.get(&it.cohort));
        let members = serving.flat_map(|config| &config.replicas);
        let invited = routes.invitations.values().map(|standing| &standing.invitation.node);
        members.chain(invited).for_each(|&node| *replicas.entry(node).or_default() += 1);
        let is_led = |cohort: &&CohortId| {
            let hosted = routes.hosted.get(cohort);
            hosted.is_some_and(|hosted| hosted.replica.leader() == Some(self.changes.node))
        };
        let under_way = routes.invitations.keys().filter(is_led).count();
        let room = INVITATIONS_MAX.saturating_sub(under_way);
        Candidates { nodes: nodes.clone(), replicas, room }
    }

    async fn perform(&self, hosted: &Arc<HostedCohort>, seen: &mut Seen, step: Step) {
        let cohort = hosted.descriptor.cohort;
        match step {
            Step::Invite { before, invitation } => {
                tracing::info!(%cohort, ?invitation, "a node is invited to hold a replica");
                let invited = self.changes.invitations.invite(cohort, before, invitation).await;
                log_outcome(cohort, invited);
            }
            Step::Withdraw(standing) => self.withdraw(cohort, standing).await,
            Step::Seal(wanted) => {
                let (changes, hosted) = (self.changes.clone(), Arc::clone(hosted));
                // It waits for the cohort, which the others need not.
                seen.sealing = Some(tokio::spawn(async move {
                    tracing::info!(%cohort, ?wanted, "a replica moves");
                    let routes = changes.router.routes();
                    if let Err(error) = changes.seal(&routes, &hosted, &Change::Move(wanted)).await
                    {
                        tracing::info!(%cohort, %error, "the replica has not moved yet");
                    }
                }));
            }
        }
    }

    async fn withdraw(&self, cohort: CohortId, standing: Standing) {
        tracing::info!(%cohort, invitation = ?standing.invitation, "an invitation is over");
        log_outcome(cohort, self.changes.invitations.withdraw(cohort, standing).await);
    }
}

fn log_outcome(cohort: CohortId, performed: Result<bool, CoordinatorError>) {
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

impl Nodes {
    pub(crate) fn of(directory: &NodeDirectory) -> Self {
        let mut nodes = Self::default();
        for node in directory.all() {
            let id = NodeId(node.id);
            nodes.alive.extend(node.alive.then_some(id));
            nodes.draining.extend(node.draining.then_some(id));
        }
        nodes
    }
}

impl Seen {
    fn take_in(
        &mut self,
        now: Instant,
        config: &CohortConfig,
        standing: Option<Standing>,
        nodes: &Nodes,
    ) {
        self.members.extend(&config.replicas);
        let lacks = config.replicas_missing() > 0;
        self.lacks_since = lacks.then(|| self.lacks_since.unwrap_or(now));
        if self.invited.map(|invited| invited.standing) != standing {
            let invited =
                |standing| Invited { standing, matched: 0, is_prepared: false, since: now };
            self.invited = standing.map(invited);
        }
        let invited = standing.map(|standing| standing.invitation.node);
        let all = config.replicas.iter().copied().chain(invited);
        self.draining = all.clone().filter(|node| nodes.draining.contains(node)).collect();
        let away: BTreeSet<_> = all.filter(|node| !nodes.alive.contains(node)).collect();
        self.away_since.retain(|node, _| away.contains(node));
        for node in away {
            self.away_since.entry(node).or_insert(now);
        }
    }

    fn may_need_a_step(&self) -> bool {
        let is_whole = self.lacks_since.is_none() && self.away_since.is_empty();
        !is_whole || self.invited.is_some() || !self.draining.is_empty()
    }

    /// Records how far the replica of the invited node has come.
    fn note_progress(&mut self, now: Instant, status: &ReplicaStatus) {
        let Some(invited) = &mut self.invited else { return };
        let node = invited.standing.invitation.node;
        invited.is_prepared = is_prepared(status, node);
        let matched = matched(status, node);
        if matched > invited.matched {
            (invited.matched, invited.since) = (matched, now);
        }
    }

    /// Returns for how long a node has been away.
    fn away_for(&self, node: NodeId, now: Instant) -> Option<Duration> {
        self.away_since.get(&node).map(|since| now - *since)
    }

    /// Returns true if an invited node does not come.
    fn does_not_come(&self, Invited { standing, since, .. }: Invited, now: Instant) -> bool {
        let is_away = self.away_for(standing.invitation.node, now);
        is_away.is_some_and(|it| it >= INVITED_AWAY_MAX) || now - since >= INVITATION_TIMEOUT
    }
}

impl Candidates {
    /// Takes the node that is to be invited: of those that live and are not in the cohort, one that
    /// was not in it before, since such a one comes back by itself if it has kept what it had;
    /// then the one with the fewest replicas; then the one with the lowest number.
    fn take(
        &mut self,
        config: &CohortConfig,
        former: &BTreeSet<NodeId>,
        except: Option<NodeId>,
    ) -> Option<NodeId> {
        if self.room == 0 {
            return None;
        }
        let is_free = |node: &NodeId| !config.replicas.contains(node) && Some(*node) != except;
        let replicas = |node| self.replicas.get(&node).copied().unwrap_or_default();
        let rank = |&node: &NodeId| (former.contains(&node), replicas(node), node);
        let free = self.nodes.alive.difference(&self.nodes.draining).copied().filter(is_free);
        let taken = free.min_by_key(rank)?;
        // So that the next cohort that lost a replica goes elsewhere.
        *self.replicas.entry(taken).or_default() += 1;
        self.room -= 1;
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
    if seen.sealing.as_ref().is_some_and(|sealing| !sealing.is_finished()) {
        return None;
    }
    let moving = seen.invited.and_then(|it| Some((it, it.standing.invitation.leaving?)));
    match moving {
        Some((invited, leaving)) => next_step_of_move(config, seen, invited, leaving, now, delay),
        None if seen.lacks_since.is_some() => {
            fill_what_is_missing(config, seen, candidates, now, delay)
        }
        // None is missing any more.
        None if seen.invited.is_some() => seen.invited.map(|it| Step::Withdraw(it.standing)),
        None => {
            let leaving = who_is_to_go(config, seen, now, delay)?;
            let node = candidates.take(config, &BTreeSet::new(), None)?;
            let invitation = Invitation { node, at: config.version, leaving: Some(leaving) };
            Some(Step::Invite { before: None, invitation })
        }
    }
}

/// Goes on with a replica that is to move.
fn next_step_of_move(
    config: &CohortConfig,
    seen: &Seen,
    invited: Invited,
    leaving: Leaving,
    now: Instant,
    delay: Duration,
) -> Option<Step> {
    let standing = invited.standing;
    let to = standing.invitation.node;
    let is_moot = config.replicas.contains(&to)
        || (!config.replicas.contains(&leaving.node) && config.replicas_missing() == 0)
        || match leaving.why {
            Why::Asked | Why::Spread => false,
            Why::Draining => !seen.draining.contains(&leaving.node),
            Why::Gone => seen.away_for(leaving.node, now).is_none(),
        };
    // What is there would have to go again.
    let is_moot = is_moot || seen.draining.contains(&to);
    let makes_room = makes_room(config, seen, invited, leaving, now, delay);
    if is_moot || makes_room || seen.does_not_come(invited, now) {
        return Some(Step::Withdraw(standing));
    }
    // Of a cohort that lacks a replica, the invited node becomes the one that it lacks.
    let is_whole = config.replicas_missing() == 0;
    (is_whole && invited.is_prepared).then_some(Step::Seal(Move { from: leaving.node, to }))
}

/// Returns true if a move gives way to the replacement of another member that has been away for too long: one
/// that is for no such reason where members are fixed, and one to a node that is away itself.
fn makes_room(
    config: &CohortConfig,
    seen: &Seen,
    invited: Invited,
    leaving: Leaving,
    now: Instant,
    delay: Duration,
) -> bool {
    let is_away = seen.away_for(invited.standing.invitation.node, now).is_some();
    let is_missing = seen.lacks_since.is_some_and(|since| now - since >= delay);
    let mut gone = gone(config, seen, now, delay).filter(|node| *node != leaving.node);
    let is_gone = gone.next().is_some();
    (is_gone && leaving.why != Why::Gone) || ((is_gone || is_missing) && is_away)
}

/// Returns the members that have been away for too long, where members are fixed.
fn gone(
    config: &CohortConfig,
    seen: &Seen,
    now: Instant,
    delay: Duration,
) -> impl Iterator<Item = NodeId> {
    let is_gone = move |node: &NodeId| seen.away_for(*node, now).is_some_and(|it| it >= delay);
    let is_fixed = !admits_replicas(config.protocol);
    config.replicas.iter().copied().filter(move |node| is_fixed && is_gone(node))
}

/// Returns the member whose place another node is to take: where members are fixed, one that has been away for
/// too long; or one that is draining.
fn who_is_to_go(
    config: &CohortConfig,
    seen: &Seen,
    now: Instant,
    delay: Duration,
) -> Option<Leaving> {
    let gone = gone(config, seen, now, delay).map(|node| Leaving { node, why: Why::Gone });
    let members = config.replicas.iter().copied();
    let draining = members.filter(|node| seen.draining.contains(node));
    let draining = draining.map(|node| Leaving { node, why: Why::Draining });
    gone.chain(draining).next()
}

/// Invites a node where a configuration lacks a replica.
fn fill_what_is_missing(
    config: &CohortConfig,
    seen: &Seen,
    candidates: &mut Candidates,
    now: Instant,
    delay: Duration,
) -> Option<Step> {
    let lacks_since = seen.lacks_since?;
    let before = seen.invited.map(|invited| invited.standing);
    let except = match seen.invited {
        None => None,
        Some(Invited { standing, .. }) if config.replicas.contains(&standing.invitation.node) => {
            return Some(Step::Withdraw(standing));
        }
        Some(Invited { standing, since, .. }) => {
            let node = standing.invitation.node;
            if candidates.nodes.alive.contains(&node) && now - since < INVITATION_TIMEOUT {
                return None;
            }
            Some(node)
        }
    };
    if now - lacks_since < delay {
        return None;
    }
    let node = candidates.take(config, &seen.members, except)?;
    let invitation = Invitation { node, at: config.version, leaving: None };
    Some(Step::Invite { before, invitation })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use trireme_coordinator::NodeVersion;
    use trireme_coordinator::recipes::invitations::{AllInvitations, Invitations};
    use trireme_proto::v1;
    use trireme_storage::{TableOptions, Tables};
    use trireme_types::{ClusterId, Protocol, RangeMap};

    use super::*;
    use crate::backpressure::Backpressure;
    use crate::readers::Readers;
    use crate::routes::Router;
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
        let invitation = Invitation { node: NodeId(node), at: 2, leaving: None };
        Standing { invitation, version: NodeVersion(9) }
    }

    fn candidates(alive: &[u64], replicas: &[(u64, usize)]) -> Candidates {
        Candidates {
            nodes: there(alive),
            replicas: replicas.iter().map(|&(node, count)| (NodeId(node), count)).collect(),
            room: INVITATIONS_MAX,
        }
    }

    /// All nodes are there.
    fn all() -> Nodes {
        there(&[1, 2, 3, 4, 5])
    }

    fn invites(node: u64, before: Option<Standing>) -> Option<Step> {
        let invitation = Invitation { node: NodeId(node), at: 3, leaving: None };
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
        seen.take_in(begin, &config(&[1, 2, 3]), invited, &all());
        seen.take_in(begin, &config(&[1, 2]), invited, &all());
        seen.take_in(begin + after, &config(&[1, 2]), invited, &all());
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
        seen.take_in(begin, &config(&[1, 2]), None, &all());
        seen.take_in(begin + DELAY, &config(&[1, 2, 3]), None, &all());
        seen.take_in(begin + DELAY, &config(&[1, 2]), None, &all());
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
        seen.take_in(now, &config(&[1, 2, 4]), Some(standing(4)), &all());
        let full = next_step(&config(&[1, 2, 4]), &seen, &mut nodes, now, DELAY);
        assert_eq!(full, Some(Step::Withdraw(standing(4))));
        // Another one is missing, and not for long yet.
        seen.take_in(now, &config(&[1, 4]), Some(standing(4)), &all());
        let another = next_step(&config(&[1, 4]), &seen, &mut nodes, now, DELAY);
        assert_eq!(another, Some(Step::Withdraw(standing(4))));
    }

    fn fixed(replicas: &[u64]) -> CohortConfig {
        CohortConfig { protocol: Protocol::Raft, ..config(replicas) }
    }

    fn moving(node: u64, why: Why) -> Standing {
        let leaving = Some(Leaving { node: NodeId(3), why });
        let invitation = Invitation { node: NodeId(node), at: 3, leaving };
        Standing { invitation, version: NodeVersion(9) }
    }

    fn there(nodes: &[u64]) -> Nodes {
        let alive = nodes.iter().copied().map(NodeId).collect();
        Nodes { alive, draining: BTreeSet::new() }
    }

    /// A move can wait, and one to a node that is away may never end.
    #[test]
    fn a_move_gives_way_to_the_replacement_of_a_member_that_is_gone() {
        let step = |config: &CohortConfig, why, nodes: &[u64], after| {
            let (mut seen, begin) = (Seen::default(), Instant::now());
            seen.take_in(begin, config, Some(moving(4, why)), &there(nodes));
            next_step(config, &seen, &mut candidates(nodes, &[]), begin + after, DELAY)
        };
        let withdrawn = |why| Some(Step::Withdraw(moving(4, why)));
        let of_fixed = |why, nodes: &[u64], after| step(&fixed(&[1, 2, 3]), why, nodes, after);
        let early = DELAY - Duration::from_millis(1);
        assert_eq!(of_fixed(Why::Asked, &[1, 3, 4], early), None, "node 2 may come back");
        assert_eq!(of_fixed(Why::Asked, &[1, 3, 4], DELAY), withdrawn(Why::Asked));
        assert_eq!(of_fixed(Why::Gone, &[1, 4], DELAY), None, "node 3 is gone as well");
        assert_eq!(of_fixed(Why::Gone, &[1], DELAY), withdrawn(Why::Gone), "node 4 is away");
        // Of the others the invited node becomes the one that is missing, if it is there.
        let of_others = |nodes: &[u64]| step(&config(&[1, 3]), Why::Asked, nodes, DELAY);
        assert_eq!(of_others(&[1, 3, 4]), None);
        assert_eq!(of_others(&[1, 3]), withdrawn(Why::Asked));
    }

    /// Where the members are fixed, a learner is to take the place of one that is gone for good. [RANGE-17]
    #[test]
    fn a_member_whose_node_has_been_away_for_long_enough_is_replaced() {
        let (mut seen, begin) = (Seen::default(), Instant::now());
        let mut nodes = candidates(&[1, 2, 4, 5], &[(4, 9), (5, 1)]);
        seen.take_in(begin, &fixed(&[1, 2, 3]), None, &there(&[1, 2, 4, 5]));
        let mut step = |seen: &Seen, after| {
            next_step(&fixed(&[1, 2, 3]), seen, &mut nodes, begin + after, DELAY)
        };
        assert_eq!(step(&seen, DELAY - Duration::from_millis(1)), None);
        let invitation = moving(5, Why::Gone).invitation;
        assert_eq!(step(&seen, DELAY), Some(Step::Invite { before: None, invitation }));
        // One that drains can wait.
        let draining = Nodes { draining: [NodeId(1)].into(), ..there(&[1, 2, 4, 5]) };
        seen.take_in(begin, &fixed(&[1, 2, 3]), None, &draining);
        assert_eq!(step(&seen, DELAY), Some(Step::Invite { before: None, invitation }));
        // It is back for a moment.
        seen.take_in(begin + DELAY / 2, &fixed(&[1, 2, 3]), None, &all());
        seen.take_in(begin + DELAY, &fixed(&[1, 2, 3]), None, &there(&[1, 2, 4, 5]));
        assert_eq!(step(&seen, DELAY), None);
    }

    /// Whatever the protocol: it is there, and gives its replicas away one by one.
    #[test]
    fn a_member_whose_node_is_draining_is_replaced_at_once_by_one_that_is_not() {
        let draining = |nodes: &[u64]| {
            let draining = nodes.iter().copied().map(NodeId).collect();
            Nodes { draining, ..all() }
        };
        let step = |config: &CohortConfig, draining: Nodes, standing| {
            let (mut seen, now) = (Seen::default(), Instant::now());
            seen.take_in(now, config, standing, &draining);
            let mut nodes = Candidates { nodes: draining, ..candidates(&[], &[(5, 7)]) };
            next_step(config, &seen, &mut nodes, now, DELAY)
        };
        for config in [config(&[1, 2, 3]), fixed(&[1, 2, 3])] {
            let invited = |node| {
                let invitation = moving(node, Why::Draining).invitation;
                Some(Step::Invite { before: None, invitation })
            };
            assert_eq!(step(&config, draining(&[3]), None), invited(4));
            assert_eq!(step(&config, draining(&[3, 4]), None), invited(5));
            assert_eq!(step(&config, draining(&[3, 4, 5]), None), None, "no node is left");
            let standing = moving(4, Why::Draining);
            assert_eq!(step(&config, draining(&[3]), Some(standing)), None, "it has nothing yet");
            let not_any_more = step(&config, draining(&[]), Some(standing));
            assert_eq!(not_any_more, Some(Step::Withdraw(standing)));
            for why in [Why::Draining, Why::Asked, Why::Spread] {
                let standing = moving(4, why);
                let drains = step(&config, draining(&[3, 4]), Some(standing));
                assert_eq!(
                    drains,
                    Some(Step::Withdraw(standing)),
                    "the node that it goes to drains"
                );
            }
        }
    }

    #[test]
    fn not_all_that_a_dead_node_held_is_copied_at_once() {
        let mut nodes = candidates(&[1, 2, 4], &[]);
        let mut invited = 0;
        for _ in 0..INVITATIONS_MAX + 3 {
            let (mut seen, begin) = (Seen::default(), Instant::now());
            seen.take_in(begin, &fixed(&[1, 2, 3]), None, &there(&[1, 2, 4]));
            let step = next_step(&fixed(&[1, 2, 3]), &seen, &mut nodes, begin + DELAY, DELAY);
            invited += usize::from(step.is_some());
        }
        assert_eq!(invited, INVITATIONS_MAX);
    }

    /// What becomes of a move from node 3 to node 4, which has come so far.
    fn step_of_move(
        why: Why,
        replicas: &[u64],
        there_are: &[u64],
        (is_prepared, after): (bool, Duration),
    ) -> Option<Step> {
        let (mut seen, begin) = (Seen::default(), Instant::now());
        let standing = Some(moving(4, why));
        seen.take_in(begin, &fixed(replicas), standing, &there(there_are));
        if let Some(invited) = &mut seen.invited {
            invited.is_prepared = is_prepared;
        }
        let mut nodes = candidates(there_are, &[]);
        next_step(&fixed(replicas), &seen, &mut nodes, begin + after, DELAY)
    }

    #[test]
    fn a_move_ends_with_the_seal_or_is_given_up() {
        let (withdrawn, no_time) = (Some(Step::Withdraw(moving(4, Why::Asked))), Duration::ZERO);
        let seal = Some(Step::Seal(Move { from: NodeId(3), to: NodeId(4) }));
        let of_asked = |replicas: &[u64], is_prepared, after| {
            step_of_move(Why::Asked, replicas, &[1, 2, 3, 4], (is_prepared, after))
        };
        assert_eq!(of_asked(&[1, 2, 3], false, no_time), None, "it has nothing yet");
        assert_eq!(of_asked(&[1, 2, 3], true, no_time), seal);
        assert_eq!(of_asked(&[1, 2, 3], false, INVITATION_TIMEOUT), withdrawn, "it does not come");
        assert_eq!(of_asked(&[1, 2, 4], true, no_time), withdrawn, "it is there");
        assert_eq!(of_asked(&[1, 2, 5], true, no_time), withdrawn, "another has taken the place");
        assert_eq!(of_asked(&[1, 2], true, no_time), None, "it becomes the one that is missing");
        let away = |after| step_of_move(Why::Asked, &[1, 2, 3], &[1, 2, 3], (false, after));
        assert_eq!(away(INVITED_AWAY_MAX - Duration::from_millis(1)), None, "it may come back");
        assert_eq!(away(INVITED_AWAY_MAX), withdrawn);
        let unasked = |nodes: &[u64]| step_of_move(Why::Gone, &[1, 2, 3], nodes, (true, no_time));
        assert_eq!(unasked(&[1, 2, 4]), seal);
        let is_back = Some(Step::Withdraw(moving(4, Why::Gone)));
        assert_eq!(unasked(&[1, 2, 3, 4]), is_back, "the member is back");
    }

    /// A cohort that is led by a fake replica, on a node that asks a real coordinator.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_leader_invites_a_living_node_and_withdraws_the_invitation_when_it_is_in() {
        let (embedded, folder) = (EmbeddedCoordinator::start().await, TempDir::new().unwrap());
        let coordinator = embedded.connect().await;
        let tables = Tables::open(folder.path(), TableOptions::default()).unwrap();
        let directory = Arc::<NodeDirectory>::default();
        let alive = |id| {
            let (address, alive, draining) = (String::new(), id != 3, false);
            v1::Node { id, address, alive, draining }
        };
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
        let changes = Changes { node: NodeId(1), router: router.clone(), directory, invitations };
        let replacement = Replacement { changes, delay: Duration::from_millis(50) };
        let running = tokio::spawn(replacement.run());
        let invited = told.next().await.unwrap().unwrap();
        let expected = Invitation { node: NodeId(4), at: 3, leaving: None };
        assert_eq!(invited[&CohortId(1)].invitation, expected, "node 3 is dead");
        router.set(routes(&[1, 2, 4], invited));
        assert_eq!(told.next().await, Some(Ok(AllInvitations::new())));
        running.abort();
        coordinator.close().await.unwrap();
    }
}
