//! Replicas that rest, and what wakes them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::RaftOptions;
use super::replica_test::{Cohort, Member, NODES, PATIENCE, PAUSE, batch};
use crate::replica::{Replica, Role};
use crate::transport::Lane;

/// For so long nothing must be sent in a cohort for it to rest: an awake leader sends five heartbeats.
const SILENCE: Duration = Duration::from_millis(500);

/// The highest age of a state that rests, on a machine that is busy besides: what is known is as old as
/// half a lease and one pulse, and at first as old as a lease and some pulses.
const AGE_MAX: Duration = Duration::from_secs(2);

/// How many writes come at once to a leader that rests.
const WRITES: usize = 16;

impl Cohort {
    async fn come_to_rest(&self) {
        loop {
            let before = self.network.messages.load(Ordering::Relaxed);
            tokio::time::sleep(SILENCE).await;
            if self.network.messages.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }

    fn leading(&self) -> Option<&Member> {
        self.members.iter().find(|member| member.replica.status().role == Role::Leader)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cohort_at_rest_takes_the_first_writes_and_reads_that_come() {
    let cohort = Cohort::open_resting().await;
    let work = async {
        cohort.put("a").await;
        cohort.come_to_rest().await;
        let leader = cohort.leading().expect("it rests under one");
        let writes: Vec<_> = (0..WRITES)
            .map(|_| {
                let replica = leader.replica.clone();
                tokio::spawn(async move { replica.propose(batch("b")).await })
            })
            .collect();
        for write in writes {
            write.await.expect("no panic").expect("the lead was renewed before");
        }
        cohort.come_to_rest().await;
        let permit = leader.replica.read_barrier().await.expect("a majority answers");
        assert!(leader.table.get(b"b").unwrap().is_some());
        permit.validate().unwrap();
    };
    tokio::time::timeout(PATIENCE, work).await.unwrap();
    cohort.shutdown().await;
}

/// Nothing is sent from which a follower could learn how old its state is, but pulses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_age_of_a_state_that_rests_is_known() {
    let cohort = Cohort::open_resting().await;
    let work = async {
        cohort.put("a").await;
        cohort.come_to_rest().await;
        let before = cohort.network.messages.load(Ordering::Relaxed);
        let rested = Instant::now();
        while rested.elapsed() < AGE_MAX + SILENCE {
            tokio::time::sleep(PAUSE).await;
            for member in &cohort.members {
                let now = Instant::now();
                let freshness = member.replica.freshness(member.table.applied(), now).unwrap();
                let age = freshness.age.expect("it is known");
                assert!(age < AGE_MAX, "{age:?} after {:?}", rested.elapsed());
            }
        }
        assert_eq!(cohort.network.messages.load(Ordering::Relaxed), before, "it woke for that");
    };
    tokio::time::timeout(PATIENCE, work).await.unwrap();
    cohort.shutdown().await;
}

/// A follower that wakes has not had a heartbeat for as long as it rested.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_that_wake_let_their_leader_lead_on() {
    let cohort = Cohort::open_resting().await;
    let work = async {
        cohort.put("a").await;
        cohort.come_to_rest().await;
        tokio::time::sleep(RaftOptions::default().election_timeout_max * 2).await;
        let led = cohort.leading().expect("it rests under one").replica.status();
        for node in NODES.into_iter().filter(|node| *node != led.node) {
            // As if the connection had broken, and was there again at once.
            cohort.network.pulses(node).expect("it has pulses").peer_lost(led.node);
        }
        let before = cohort.network.messages.load(Ordering::Relaxed);
        while cohort.network.messages.load(Ordering::Relaxed) == before {
            tokio::time::sleep(PAUSE).await;
        }
        cohort.come_to_rest().await;
        let leads = cohort.leading().expect("it rests under one").replica.status();
        assert_eq!((leads.node, leads.epoch), (led.node, led.epoch));
    };
    tokio::time::timeout(PATIENCE, work).await.unwrap();
    cohort.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cohort_at_rest_that_loses_its_leader_elects_another() {
    let cohort = Cohort::open_resting().await;
    let work = async {
        cohort.put("a").await;
        cohort.come_to_rest().await;
        let lost = cohort.leading().expect("it rests under one").replica.status();
        let others = NODES.into_iter().filter(|node| *node != lost.node);
        let ways = others.flat_map(|node| [(node, lost.node), (lost.node, node)]);
        let lanes = [Lane::Data, Lane::Heartbeat];
        let ways = ways.flat_map(|(from, to)| lanes.map(|lane| (from, to, lane)));
        cohort.network.cut.lock().extend(ways);
        let is_next = |member: &&Member| {
            let status = member.replica.status();
            status.role == Role::Leader && status.epoch > lost.epoch
        };
        while !cohort.members.iter().any(|member| is_next(&member)) {
            tokio::time::sleep(PAUSE).await;
        }
        let next = cohort.members.iter().find(is_next).expect("it leads on");
        // One that has only just been elected takes no writes before the other one has answered it.
        while next.replica.propose(batch("b")).await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
        cohort.network.cut.lock().clear();
        // The one that led rests under the new leader.
        cohort.come_to_rest().await;
        let epochs = cohort.members.iter().map(|member| member.replica.status().epoch);
        let next_epoch = next.replica.status().epoch;
        assert!(epochs.into_iter().all(|epoch| epoch == next_epoch));
    };
    tokio::time::timeout(PATIENCE, work).await.unwrap();
    cohort.shutdown().await;
}
