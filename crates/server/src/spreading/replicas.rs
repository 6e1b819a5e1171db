//! Spreads the replicas over the nodes: one moves from a node that holds more than its share to one that holds
//! less, as if it had been asked for ([`crate::moving`]).
//!
//! One node decides, the living one of the lowest number, by what all of them know from the coordinator. It
//! invites, and the cohort's leader does the rest ([`crate::replacement`]). Nothing moves while a replica is
//! missing or on its way elsewhere: who is counted then is about to change. Two nodes that both take themselves
//! for the one that decides, for a moment, may move one replica more than there was need to.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use trireme_coordinator::recipes::invitations::{AllInvitations, Invitation, Leaving, Why};
use trireme_types::{CohortConfig, CohortId, NodeId};

use crate::moving::Move;
use crate::replacement::Nodes;
use crate::succession::Changes;

/// How often is looked whether replicas are to move.
const INTERVAL: Duration = Duration::from_secs(1);

/// How many replicas move at a time, so that clients do not notice.
const MOVES_MAX: usize = 2;

/// By how many replicas two nodes differ before one moves. By one less they would change places for ever.
const DIFFERENCE_MIN: usize = 2;

/// Who sees to it that no node holds more replicas than its share for long.
pub(crate) struct ReplicaSpreading {
    pub(crate) changes: Changes,
    /// How long the replicas must be spread unevenly before one moves.
    pub(crate) delay: Duration,
}

/// What is to be done about where the replicas are.
#[derive(Debug, PartialEq, Eq)]
enum Outlook {
    /// Nothing.
    Even,
    /// Nothing yet.
    Waits,
    /// A replica of this cohort is to move.
    Uneven(CohortId, Move),
}

impl ReplicaSpreading {
    /// Runs until its task is aborted.
    pub(crate) async fn run(self) {
        let mut uneven_since = None;
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            uneven_since = self.look(uneven_since).await;
        }
    }

    /// Returns since when the replicas are spread unevenly, as this node has seen it.
    async fn look(&self, uneven_since: Option<Instant>) -> Option<Instant> {
        //= RANGE-22
        let nodes = Nodes::of(&self.changes.directory);
        if nodes.alive.first() != Some(&self.changes.node) {
            return None;
        }
        let routes = self.changes.router.routes();
        let serving = routes.map.ranges().iter().map(|entry| routes.configs.get(&entry.cohort));
        // A map without one of its cohorts' configurations is older than the rest.
        let serving = serving.collect::<Option<Vec<_>>>()?;
        let (cohort, wanted) = match outlook(&serving, &routes.invitations, &nodes) {
            Outlook::Even => return None,
            Outlook::Waits => return uneven_since,
            Outlook::Uneven(cohort, wanted) => (cohort, wanted),
        };
        let now = Instant::now();
        let since = uneven_since.unwrap_or(now);
        if now - since >= self.delay {
            let version = routes.configs[&cohort].version;
            self.invite(cohort, version, wanted).await;
        }
        Some(since)
    }

    async fn invite(&self, cohort: CohortId, at: u64, Move { from, to }: Move) {
        let leaving = Some(Leaving { node: from, why: Why::Spread });
        let invitation = Invitation { node: to, at, leaving };
        tracing::info!(%cohort, ?invitation, "a node that holds fewer replicas is invited to hold one");
        match self.changes.invitations.invite(cohort, None, invitation).await {
            Ok(true) => {}
            Ok(false) => tracing::info!(%cohort, "another node was invited meanwhile"),
            // The next look sees what became of it.
            Err(error) => tracing::warn!(%cohort, %error, "a node may not have been invited"),
        }
    }
}

/// Decides by the configurations of the cohorts that serve.
fn outlook(serving: &[&CohortConfig], invitations: &AllInvitations, nodes: &Nodes) -> Outlook {
    let of = |config: &CohortConfig| invitations.get(&config.cohort).map(|it| it.invitation);
    let mut counts: BTreeMap<NodeId, usize> =
        nodes.alive.difference(&nodes.draining).map(|&node| (node, 0)).collect();
    let mut under_way = 0;
    for config in serving {
        let invitation = of(config);
        let is_whole = config.replicas_missing() == 0
            && config.replicas.iter().all(|node| counts.contains_key(node));
        let is_spread = |it: Invitation| it.leaving.is_some_and(|it| it.why == Why::Spread);
        if !is_whole || !invitation.is_none_or(is_spread) {
            return Outlook::Waits;
        }
        // A replica that moves counts where it will be.
        let moved = invitation.and_then(|it| Move::of(&it));
        let held =
            moved.map_or_else(|| config.replicas.clone(), |it| it.applied_to(&config.replicas));
        for node in held {
            let Some(count) = counts.get_mut(&node) else { return Outlook::Waits };
            *count += 1;
        }
        under_way += usize::from(moved.is_some());
    }
    let count = |node: &&NodeId| counts[*node];
    let (Some(&from), Some(&to)) =
        (counts.keys().max_by_key(count), counts.keys().min_by_key(count))
    else {
        return Outlook::Even;
    };
    if counts[&from] < counts[&to] + DIFFERENCE_MIN {
        return Outlook::Even;
    }
    let may_move = |config: &&&CohortConfig| {
        let holds = |node| config.replicas.contains(&node);
        of(config).is_none() && holds(from) && !holds(to)
    };
    match serving.iter().find(may_move) {
        Some(config) if under_way < MOVES_MAX => Outlook::Uneven(config.cohort, Move { from, to }),
        _ => Outlook::Waits,
    }
}

#[cfg(test)]
mod tests {
    use trireme_coordinator::NodeVersion;
    use trireme_coordinator::recipes::invitations::Standing;
    use trireme_types::Protocol;

    use super::*;

    fn config(cohort: usize, replicas: &[u64]) -> CohortConfig {
        CohortConfig {
            cohort: CohortId(cohort as u64),
            version: 1,
            protocol: Protocol::Raft,
            replicas: replicas.iter().copied().map(NodeId).collect(),
            replicas_wanted: 3,
            incarnations: [].into(),
            origin: None,
        }
    }

    fn nodes(alive: &[u64], draining: &[u64]) -> Nodes {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
        Nodes { alive: ids(alive), draining: ids(draining) }
    }

    fn invited(cohort: u64, from: u64, to: u64, why: Why) -> (CohortId, Standing) {
        let leaving = Some(Leaving { node: NodeId(from), why });
        let invitation = Invitation { node: NodeId(to), at: 1, leaving };
        (CohortId(cohort), Standing { invitation, version: NodeVersion(1) })
    }

    fn decided(configs: &[CohortConfig], invitations: &AllInvitations, nodes: &Nodes) -> Outlook {
        outlook(&configs.iter().collect::<Vec<_>>(), invitations, nodes)
    }

    fn uneven(cohort: u64, from: u64, to: u64) -> Outlook {
        Outlook::Uneven(CohortId(cohort), Move { from: NodeId(from), to: NodeId(to) })
    }

    /// Does what is decided until nothing is left to do, and returns how many replicas each node holds then.
    fn settle(configs: &mut [CohortConfig], nodes: &Nodes) -> (usize, Vec<usize>) {
        let mut moves = 0;
        while let Outlook::Uneven(cohort, wanted) = decided(configs, &[].into(), nodes) {
            let config = configs.iter_mut().find(|it| it.cohort == cohort).unwrap();
            assert!(!wanted.is_done(config));
            config.replicas = wanted.applied_to(&config.replicas);
            moves += 1;
        }
        let held = |node: &NodeId| configs.iter().filter(|it| it.replicas.contains(node)).count();
        (moves, nodes.alive.iter().map(held).collect())
    }

    /// [RANGE-22]
    #[test]
    fn a_node_that_comes_gets_its_share_and_then_nothing_moves_any_more() {
        for ranges in [1, 2, 7, 64] {
            let mut configs: Vec<_> = (1..=ranges).map(|it| config(it, &[1, 2, 3])).collect();
            let (moves, held) = settle(&mut configs, &nodes(&[1, 2, 3, 4], &[]));
            let (most, least) = (held.iter().max().unwrap(), held.iter().min().unwrap());
            assert!(most - least <= 1, "{ranges}: {held:?}");
            assert_eq!((moves, held[3]), (ranges * 3 / 4, ranges * 3 / 4));
        }
    }

    /// [RANGE-22]
    #[test]
    fn replicas_move_only_to_nodes_that_are_there_to_stay_and_from_whole_cohorts() {
        let all: Vec<_> = (1..=4).map(|it| config(it, &[1, 2, 3])).collect();
        let none = AllInvitations::new();
        assert_eq!(decided(&all, &none, &nodes(&[1, 2, 3], &[])), Outlook::Even);
        assert_eq!(decided(&all, &none, &nodes(&[1, 2, 3, 4], &[])), uneven(1, 3, 4));
        assert_eq!(decided(&all, &none, &nodes(&[1, 2, 3, 4], &[4])), Outlook::Even);
        // Their replicas go elsewhere, or come back.
        assert_eq!(decided(&all, &none, &nodes(&[1, 2, 3, 4], &[2])), Outlook::Waits);
        assert_eq!(decided(&all, &none, &nodes(&[1, 2, 4], &[])), Outlook::Waits);
        let lacking: Vec<_> = all.iter().cloned().chain([config(5, &[1, 2])]).collect();
        assert_eq!(decided(&lacking, &none, &nodes(&[1, 2, 3, 4], &[])), Outlook::Waits);
        assert_eq!(decided(&[], &none, &nodes(&[], &[])), Outlook::Even);
    }

    /// [RANGE-22]
    #[test]
    fn few_move_at_a_time_and_count_where_they_will_be() {
        let all: Vec<_> = (1..=8).map(|it| config(it, &[1, 2, 3])).collect();
        let there = nodes(&[1, 2, 3, 4], &[]);
        let mut invitations = AllInvitations::from([invited(1, 3, 4, Why::Spread)]);
        assert_eq!(decided(&all, &invitations, &there), uneven(2, 2, 4));
        invitations.extend([invited(2, 2, 4, Why::Spread)]);
        assert_eq!(decided(&all, &invitations, &there), Outlook::Waits);
        let asked = [invited(8, 1, 4, Why::Asked)].into();
        assert_eq!(decided(&all, &asked, &there), Outlook::Waits, "that comes first");
        let one = [config(1, &[1, 2, 3])];
        assert_eq!(decided(&one, &[].into(), &there), Outlook::Even);
    }
}
