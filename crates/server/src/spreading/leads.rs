//! Spreads who leads over the nodes: one that leads more than its share hands cohorts to nodes that lead less,
//! one after the other.
//!
//! Each node decides for what it leads, by what its replicas know of who leads the other cohorts that it has a
//! replica of. It compares itself with each other node by the cohorts that both hold, which it knows all of. So
//! nothing has to be collected, and where all are even in this, each node leads about as large a part of what it
//! holds: how much it holds is spread by [`crate::spreading::ReplicaSpreading`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};
use trireme_replication::ReplicaStatus;
use trireme_types::{CohortId, NodeId};

use crate::replacement::Nodes;
use crate::routes::Routes;
use crate::succession::Changes;
use crate::transport::PeerTransport;

/// How often is looked whether a cohort is to be handed over, and so how many are: one each time.
const INTERVAL: Duration = Duration::from_secs(1);

/// By how many cohorts two nodes differ before one is handed over. By one less they would take turns for ever.
const DIFFERENCE_MIN: usize = 2;

/// By how many entries a replica may be behind that is to lead: it has to catch up before it serves.
const BEHIND_MAX: u64 = 1_000;

/// Who sees to it that this node does not lead more than its share for long.
pub(crate) struct LeadSpreading {
    pub(crate) changes: Changes,
    pub(crate) transport: Arc<PeerTransport>,
    /// How long this node must lead more before it hands a cohort over.
    pub(crate) delay: Duration,
}

/// A cohort that this node has a replica of.
struct Held {
    cohort: CohortId,
    leader: Option<NodeId>,
    replicas: Vec<NodeId>,
}

/// What is remembered from one look to the next.
#[derive(Default)]
struct Seen {
    /// Since when this node leads more than its share, or could not hand over what it was to.
    uneven_since: Option<Instant>,
    /// The cohort that was to be handed over at the last look.
    asked: Option<CohortId>,
    /// The cohort that was to be handed over last: it is the next one's turn.
    turn: Option<CohortId>,
}

impl LeadSpreading {
    /// Runs until its task is aborted.
    pub(crate) async fn run(self) {
        let mut seen = Seen::default();
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.look(&mut seen).await;
        }
    }

    async fn look(&self, seen: &mut Seen) {
        //= RANGE-23
        let routes = self.changes.router.routes();
        let mut held = held(&routes);
        held.sort_by_key(|it| (Some(it.cohort) <= seen.turn, it.cohort));
        let may_take = |cohort: CohortId, node: NodeId| {
            let hosted = &routes.hosted[&cohort];
            !routes.invitations.contains_key(&cohort)
                && !hosted.table.is_sealed()
                && keeps_up(&hosted.replica.status(), node)
        };
        let me = self.changes.node;
        let wanted = to_hand_over(me, &held, &self.may_lead(), may_take);
        let Some((cohort, to)) = seen.take_in(Instant::now(), self.delay, wanted, |asked| {
            held.iter().any(|it| it.cohort == asked && it.leader == Some(me))
        }) else {
            return;
        };
        tracing::info!(%cohort, %to, "handing over: this node leads more than that one");
        if let Err(error) = routes.hosted[&cohort].replica.transfer_leader(to).await {
            tracing::info!(%cohort, %to, %error, "not handed over");
        }
    }

    /// Returns the nodes that are there to stay, and that this node can reach.
    fn may_lead(&self) -> BTreeSet<NodeId> {
        let Nodes { alive, draining } = Nodes::of(&self.changes.directory);
        let peers = self.transport.peer_state();
        let reached = peers.into_iter().filter(|peer| peer.connected).map(|peer| peer.node);
        reached.filter(|node| alive.contains(node) && !draining.contains(node)).collect()
    }
}

impl Seen {
    /// Returns what is to be handed over now of what is `wanted`.
    fn take_in(
        &mut self,
        now: Instant,
        delay: Duration,
        wanted: Option<(CohortId, NodeId)>,
        leads: impl Fn(CohortId) -> bool,
    ) -> Option<(CohortId, NodeId)> {
        // What could not be handed over, or came back, would only make clients wait again.
        let failed = self.asked.take().is_some_and(leads);
        let Some((cohort, to)) = wanted else {
            self.uneven_since = None;
            return None;
        };
        let since = self.uneven_since.filter(|_| !failed).unwrap_or(now);
        self.uneven_since = Some(since);
        if now - since < delay {
            return None;
        }
        (self.asked, self.turn) = (Some(cohort), Some(cohort));
        Some((cohort, to))
    }
}

/// Returns the cohorts that serve and have a replica here.
fn held(routes: &Routes) -> Vec<Held> {
    let serving = routes.map.ranges().iter().filter_map(|entry| {
        let hosted = routes.hosted.get(&entry.cohort)?;
        let replicas = routes.configs.get(&entry.cohort)?.replicas.clone();
        Some(Held { cohort: entry.cohort, leader: hosted.replica.leader(), replicas })
    });
    serving.collect()
}

/// Returns true if the replica on a node is about as far as the leader whose status this is.
fn keeps_up(leader: &ReplicaStatus, node: NodeId) -> bool {
    let of_node = leader.progress.iter().find(|(other, _)| *other == node);
    of_node.is_some_and(|(_, lsn)| lsn.seq + BEHIND_MAX >= leader.last.seq)
}

/// Decides which cohort `me` hands over to which node: to the one to which it is furthest ahead in what both
/// hold, the first that this one `may_take`.
fn to_hand_over(
    me: NodeId,
    held: &[Held],
    may_lead: &BTreeSet<NodeId>,
    may_take: impl Fn(CohortId, NodeId) -> bool,
) -> Option<(CohortId, NodeId)> {
    // How many of the cohorts that both hold are led here, and there.
    let mut leads: BTreeMap<NodeId, (usize, usize)> = BTreeMap::new();
    for cohort in held {
        for &other in cohort.replicas.iter().filter(|other| may_lead.contains(other)) {
            let (here, there) = leads.entry(other).or_default();
            *here += usize::from(cohort.leader == Some(me));
            *there += usize::from(cohort.leader == Some(other));
        }
    }
    let mut behind: Vec<_> = leads
        .into_iter()
        .filter(|&(other, (here, there))| other != me && here >= there + DIFFERENCE_MIN)
        .map(|(other, (here, there))| (Reverse(here - there), other))
        .collect();
    behind.sort_unstable();
    behind.into_iter().find_map(|(_, to)| {
        let led = held.iter().filter(|it| it.leader == Some(me) && it.replicas.contains(&to));
        led.map(|it| it.cohort).find(|&cohort| may_take(cohort, to)).map(|cohort| (cohort, to))
    })
}

#[cfg(test)]
mod tests {
    use trireme_replication::Replica;
    use trireme_types::Lsn;

    use super::*;
    use crate::testing::FakeReplica;

    /// The cohorts of a cluster: who leads each, and who has a replica of it.
    type Cluster = Vec<(u64, Vec<u64>)>;

    fn held_by(node: u64, cluster: &Cluster) -> Vec<Held> {
        let of_node = cluster.iter().zip(1..).filter(|((_, replicas), _)| replicas.contains(&node));
        let held = of_node.map(|((leader, replicas), cohort)| Held {
            cohort: CohortId(cohort),
            leader: (*leader != 0).then_some(NodeId(*leader)),
            replicas: replicas.iter().copied().map(NodeId).collect(),
        });
        held.collect()
    }

    fn wanted(node: u64, cluster: &Cluster, may_lead: &[u64]) -> Option<(u64, u64)> {
        let may_lead = may_lead.iter().copied().map(NodeId).collect();
        let wanted = to_hand_over(NodeId(node), &held_by(node, cluster), &may_lead, |_, _| true);
        wanted.map(|(cohort, to)| (cohort.0, to.0))
    }

    /// Has all nodes hand over at the same moment until none does, and returns how many did and how many
    /// cohorts each leads then.
    fn settle(cluster: &mut Cluster, nodes: &[u64]) -> (usize, Vec<usize>) {
        let mut handed = 0;
        for _ in 0..10_000 {
            let all: Vec<_> = nodes.iter().filter_map(|&it| wanted(it, cluster, nodes)).collect();
            if all.is_empty() {
                let led = |node: &u64| cluster.iter().filter(|(leader, _)| leader == node).count();
                return (handed, nodes.iter().map(led).collect());
            }
            handed += all.len();
            for (cohort, to) in all {
                cluster[usize::try_from(cohort).unwrap() - 1].0 = to;
            }
        }
        panic!("it does not end: {cluster:?}");
    }

    fn difference(led: &[usize]) -> usize {
        led.iter().max().unwrap() - led.iter().min().unwrap()
    }

    /// [RANGE-23]
    #[test]
    fn a_node_that_came_back_leads_its_share_again_and_then_nothing_is_handed_over_any_more() {
        for ranges in [1, 2, 3, 7, 64, 1000] {
            let mut cluster: Cluster = (0..ranges).map(|it| (2 + it % 2, vec![1, 2, 3])).collect();
            let (handed, led) = settle(&mut cluster, &[1, 2, 3]);
            assert!(difference(&led) <= 1, "{ranges}: {led:?}");
            assert!(handed as u64 <= ranges / 3 + 1, "{ranges}: {handed}");
        }
    }

    /// [RANGE-23]
    #[test]
    fn where_nodes_hold_different_ranges_each_leads_about_as_large_a_part_of_them() {
        let nodes: Vec<u64> = (1..=10).collect();
        let on = |first: u64| (0..3).map(|it| (first + it * it) % 10 + 1).collect::<Vec<_>>();
        let mut cluster: Cluster = (0..200).map(|it| (on(it)[0], on(it))).collect();
        for (leader, replicas) in &mut cluster {
            *leader = *replicas.iter().min().unwrap();
        }
        let (_, led) = settle(&mut cluster, &nodes);
        assert!(difference(&led) <= 4, "{led:?}");
    }

    /// [RANGE-23]
    #[test]
    fn a_cohort_goes_only_to_a_node_that_may_lead_it() {
        let cluster: Cluster = vec![(1, vec![1, 2, 3]), (1, vec![1, 2]), (0, vec![1, 2, 3])];
        assert_eq!(wanted(1, &cluster, &[1, 2, 3]), Some((1, 2)), "to the one that leads less");
        assert_eq!(wanted(1, &cluster, &[1, 3]), None, "of what both hold, it leads one");
        assert_eq!(wanted(2, &cluster, &[1, 2, 3]), None, "it leads nothing");
        let held = held_by(1, &cluster);
        let both = [NodeId(2), NodeId(3)].into();
        let wanted = to_hand_over(NodeId(1), &held, &both, |cohort, _| cohort == CohortId(2));
        assert_eq!(wanted, Some((CohortId(2), NodeId(2))), "the first one cannot be taken now");
    }

    #[test]
    fn a_replica_that_is_far_behind_is_not_to_lead() {
        let replica = FakeReplica::new(1, 1);
        replica.lead(&[(1, 1_500), (2, 500), (3, 499)]);
        let status = ReplicaStatus { last: Lsn::new(1, 1_500), ..replica.status() };
        assert!(keeps_up(&status, NodeId(2)));
        assert!(!keeps_up(&status, NodeId(3)));
        assert!(!keeps_up(&status, NodeId(4)), "nothing is known of it");
    }

    /// [RANGE-23]
    #[tokio::test(start_paused = true)]
    async fn one_is_handed_over_after_the_other_once_it_has_been_so_for_long_enough() {
        let (began, delay) = (Instant::now(), Duration::from_secs(60));
        let at = |seconds| began + Duration::from_secs(seconds);
        let [one, two] = [1, 2].map(|cohort| Some((CohortId(cohort), NodeId(2))));
        let mut seen = Seen::default();
        assert_eq!(seen.take_in(at(0), delay, one, |_| true), None);
        assert_eq!(seen.take_in(at(59), delay, one, |_| true), None);
        assert_eq!(seen.take_in(at(60), delay, one, |_| true), one);
        assert_eq!(seen.take_in(at(61), delay, two, |_| false), two, "without waiting again");
        assert_eq!(seen.turn, Some(CohortId(2)));
        assert_eq!(seen.take_in(at(62), delay, one, |_| true), None, "the second did not go");
        assert_eq!(seen.take_in(at(121), delay, one, |_| true), None);
        assert_eq!(seen.take_in(at(122), delay, one, |_| true), one);
        assert_eq!(seen.take_in(at(123), delay, None, |_| false), None);
        assert_eq!(seen.take_in(at(124), delay, two, |_| true), None, "it begins anew");
    }
}
