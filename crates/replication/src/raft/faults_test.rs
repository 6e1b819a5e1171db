//! What a Raft cohort does about messages that are lost one way, and about disks that lost something.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use openraft::{ChangeMembers, RaftMetrics};
use trireme_storage::fs::{Crash, DiskFault, DiskFaults, FaultyFs, MemFs};
use trireme_storage::{LogErrorClass, LogIdentity, LogOptions, LogWrite, SharedLog};
use trireme_types::{ClusterId, CohortId, NodeId};

use super::log_store::RaftLogStore;
use super::replica_test::{
    Cohort, Member, NODES, PATIENCE, PAUSE, QUEUE_BYTES_MAX, batch, batch_of,
};
use super::types::{RaftId, TypeConfig, Vote, vote_message};
use crate::replica::{Replica, Role};
use crate::transport::Lane;

/// Within what a leader is replaced that others hear and that gets nothing done: a second until it
/// gives up or is given up, and an election. It was five seconds once.
const REPLACED_WITHIN: Duration = Duration::from_millis(3500);

/// What of the leader's traffic is lost.
#[derive(Clone, Copy)]
enum Lost {
    FromLeader(Lane),
    ToLeader(Lane),
}

fn disks() -> [MemFs; 3] {
    [MemFs::new(), MemFs::new(), MemFs::new()]
}

impl Cohort {
    fn leader(&self) -> Option<NodeId> {
        let leads = |member: &&Member| member.replica.status().role == Role::Leader;
        let leading = self.members.iter().filter(leads).map(|member| member.replica.status());
        leading.max_by_key(|status| status.epoch).map(|status| status.node)
    }

    fn member(&self, node: NodeId) -> &Member {
        self.members.iter().find(|member| member.replica.status().node == node).unwrap()
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            let statuses = self.members.iter().map(|it| it.replica.status().to_string());
            let statuses: Vec<String> = statuses.collect();
            assert!(Instant::now() < deadline, "never came: {what}: {statuses:#?}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits for a leader that has served.
    async fn serves(&self) -> NodeId {
        self.put("first").await;
        self.until("a leader", |cohort| cohort.leader().is_some()).await;
        self.leader().unwrap()
    }

    fn cut(&self, leader: NodeId, lost: &[Lost]) {
        let mut cut = self.network.cut.lock();
        for other in NODES.into_iter().filter(|node| *node != leader) {
            for lost in lost {
                cut.insert(match *lost {
                    Lost::FromLeader(lane) => (leader, other, lane),
                    Lost::ToLeader(lane) => (other, leader, lane),
                });
            }
        }
    }

    fn heal(&self) {
        self.network.cut.lock().clear();
    }

    /// Stops a node's replica, and opens it again on a disk.
    async fn reopen(&mut self, node: NodeId, disk: &MemFs, lost_disk: bool) {
        let at = self.members.iter().position(|it| it.replica.status().node == node).unwrap();
        self.members[at].replica.shutdown().await;
        self.members[at] = Member::open_as(node, disk, &self.network, lost_disk).await;
    }

    /// Waits until another one leads, whatever the old leader believes.
    async fn others_lead(&self, old: NodeId) {
        self.until("another leader", |cohort| {
            cohort.members.iter().any(|member| {
                let status = member.replica.status();
                status.node != old && status.role == Role::Leader
            })
        })
        .await;
    }

    /// Has what a leader needs lost, and checks that another one leads and serves while it is, about
    /// as soon as if the leader had died. The best of three counts: a busy machine makes one late.
    async fn is_replaced_when(&self, lost: &[Lost]) {
        let mut took = Vec::new();
        for _ in 0..3 {
            took.push(self.replacement(lost).await);
        }
        assert!(took.iter().min() < Some(&REPLACED_WITHIN), "{took:?}");
    }

    /// Cuts what a leader needs while it has something to write, and returns once another one leads
    /// and serves; returns how long it took until one led.
    async fn replacement(&self, lost: &[Lost]) -> Duration {
        let leader = self.serves().await;
        // An entry must be pending: what does not flow shows only then.
        let pending = self.member(leader).replica.clone();
        self.cut(leader, lost);
        let cut = Instant::now();
        let stuck = tokio::spawn(async move { pending.propose(batch("stuck")).await });
        self.others_lead(leader).await;
        let took = cut.elapsed();
        self.heal();
        let written = tokio::time::timeout(PATIENCE, async {
            for member in self.members.iter().cycle() {
                if member.replica.propose(batch("after")).await.is_ok() {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        written.await.unwrap();
        stuck.abort();
        took
    }
}

/// What was lost on the data lane was asked again only when its answer's time was up, after three
/// seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_messages_are_sent_again_when_the_lane_works_again() {
    let cohort = Cohort::open(&disks()).await;
    let leader = cohort.serves().await;
    for lost in [Lost::FromLeader(Lane::Data), Lost::ToLeader(Lane::Data)] {
        cohort.cut(leader, &[lost]);
        let replica = cohort.member(leader).replica.clone();
        let put = tokio::spawn(async move { replica.propose(batch("lost")).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!put.is_finished(), "nothing of it can have been acknowledged");
        let healed = Instant::now();
        cohort.heal();
        put.await.unwrap().unwrap();
        let took = healed.elapsed();
        assert!(took < Duration::from_millis(1500), "{took:?}");
    }
    assert_eq!(cohort.leader(), Some(leader), "so short a cut deposes nobody");
    cohort.shutdown().await;
}

/// Its heartbeats kept its followers from electing another leader, whose answers it did not hear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hears_nobody_is_replaced() {
    let cohort = Cohort::open(&disks()).await;
    cohort.is_replaced_when(&[Lost::ToLeader(Lane::Data), Lost::ToLeader(Lane::Heartbeat)]).await;
    cohort.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_nobody_hears_is_replaced() {
    let cohort = Cohort::open(&disks()).await;
    let lost = [Lost::FromLeader(Lane::Data), Lost::FromLeader(Lane::Heartbeat)];
    cohort.is_replaced_when(&lost).await;
    cohort.shutdown().await;
}

/// Small messages passed and large ones did not: it led for ever and committed nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_entries_reach_nobody_is_replaced_though_its_heartbeats_arrive() {
    let cohort = Cohort::open(&disks()).await;
    cohort.is_replaced_when(&[Lost::FromLeader(Lane::Data)]).await;
    cohort.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hears_no_acknowledgement_is_replaced_though_heartbeats_are_answered() {
    let cohort = Cohort::open(&disks()).await;
    cohort.is_replaced_when(&[Lost::ToLeader(Lane::Data)]).await;
    cohort.shutdown().await;
}

/// A full queue, which refuses writes for the moment, ended the node: other cohorts may have filled
/// it, and a disk that stalls for a while fills it, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_of_the_log_is_waited_for() {
    let faults = DiskFaults::default();
    let fs = Arc::new(FaultyFs::new(Arc::new(MemFs::new()), faults.clone()));
    let identity = LogIdentity { cluster: ClusterId(1), node: NodeId(1) };
    let options =
        LogOptions { block_bytes_max: 4096, queue_bytes_max: 4096, ..LogOptions::default() };
    let log = SharedLog::open(fs, Path::new("/log"), identity, options).unwrap();
    let (mine, other) = (log.cohort(CohortId(1)), log.cohort(CohortId(2)));
    let mut store = RaftLogStore::new(mine.clone(), 0);
    faults.set(DiskFault::Stall);
    let filler = || LogWrite::HardState(Bytes::from(vec![0; 1024]));
    while other.submit(filler()).is_ok() {}
    assert_eq!(other.submit(filler()).unwrap_err().error.class(), LogErrorClass::Retry);

    let vote = Vote::new(7, RaftId::first(NodeId(1)));
    let saving = tokio::spawn(async move { store.save_vote(&vote).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!saving.is_finished(), "it neither fails nor is done");
    faults.set(DiskFault::None);
    tokio::time::timeout(PATIENCE, saving).await.unwrap().unwrap().unwrap();
    let stored = RaftLogStore::new(mine, 0).read_vote().await.unwrap();
    assert_eq!(stored, Some(vote));
}

/// A leader commits on its followers' disks while its own stalls, until its log's queue is full. Then
/// it leads no more; once its disk goes on, it follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_log_takes_no_more_is_replaced_and_follows_when_it_does() {
    let cohort = Cohort::open(&disks()).await;
    let leader = cohort.serves().await;
    cohort.member(leader).disk.set(DiskFault::Stall);
    let replica = cohort.member(leader).replica.clone();
    let filling = tokio::spawn(async move {
        while replica.propose(batch_of("large", QUEUE_BYTES_MAX / 8)).await.is_ok() {}
    });
    cohort.others_lead(leader).await;
    cohort.member(leader).disk.set(DiskFault::None);
    cohort
        .until("the old leader to follow", |cohort| {
            let Some(leads) = cohort.leader().filter(|it| *it != leader) else { return false };
            let status = cohort.member(leader).replica.status();
            let committed = cohort.member(leads).replica.status().committed;
            status.role == Role::Follower && status.applied == committed
        })
        .await;
    filling.abort();
    cohort.shutdown().await;
}

/// Checks that a follower counts again: with the other follower gone, its copy makes the majority.
///
/// It is a follower only once the change of membership that brought it back is over: in a joint
/// membership its predecessor, which is gone for good, counts as a voter that is away, and the cohort
/// cannot lose another.
async fn counts(mut cohort: Cohort, node: NodeId) {
    cohort
        .until("the follower to count, and to have caught up", |cohort| {
            let Some(leader) = cohort.leader() else { return false };
            let leads = cohort.member(leader).replica.status();
            let follows = cohort.member(node).replica.status();
            follows.role == Role::Follower && follows.applied == leads.committed
        })
        .await;
    let leader = cohort.leader().unwrap();
    let other = NODES.into_iter().find(|it| *it != leader && *it != node).unwrap();
    let at = cohort.members.iter().position(|it| it.replica.status().node == other).unwrap();
    let gone = cohort.members.remove(at);
    gone.replica.shutdown().await;
    tokio::time::timeout(PATIENCE, cohort.put("with two")).await.unwrap();
    let statuses = cohort.members.iter().map(|member| member.replica.status().replicas);
    assert!(statuses.into_iter().all(|replicas| replicas == NODES), "three are members as before");
    cohort.shutdown().await;
}

/// The follower acknowledged more than it had, the leader kept to that, and never sent it again what
/// it lacked; a build with assertions failed on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_whose_disk_came_back_older_is_brought_up_to_date_and_counts() {
    let disks = disks();
    let mut cohort = Cohort::open(&disks).await;
    let leader = cohort.serves().await;
    let node = NODES.into_iter().find(|node| *node != leader).unwrap();
    let at = NODES.into_iter().position(|it| it == node).unwrap();
    cohort
        .until("the follower to have the first write", |cohort| {
            cohort.member(node).table.applied() == cohort.member(leader).table.applied()
        })
        .await;
    let older = disks[at].crash_with(Crash::LoseUnsynced);
    for key in ["a", "b", "c", "d"] {
        cohort.put(key).await;
    }
    cohort
        .until("the follower to have acknowledged all", |cohort| {
            let status = cohort.member(leader).replica.status();
            status.progress.iter().any(|(it, last)| *it == node && *last == status.last)
        })
        .await;
    cohort.reopen(node, &older, false).await;
    cohort.put("e").await;
    counts(cohort, node).await;
}

/// It was refused for ever, and the next death left the range without a majority.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_lost_its_disk_comes_back_as_a_learner_and_counts_again() {
    let mut cohort = Cohort::open(&disks()).await;
    let leader = cohort.serves().await;
    let node = NODES.into_iter().find(|node| *node != leader).unwrap();
    cohort.reopen(node, &MemFs::new(), true).await;
    let role = cohort.member(node).replica.status().role;
    assert_eq!(role, Role::Learner, "it has no vote until it has what it had");
    cohort.put("e").await;
    counts(cohort, node).await;
}

/// Nobody addresses the replica that the old disk holds, and it takes itself for a voter: it finds out
/// that another one has taken its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_disk_that_comes_back_after_its_replica_was_replaced_is_another_replica() {
    let disks = disks();
    let mut cohort = Cohort::open(&disks).await;
    let leader = cohort.serves().await;
    let node = NODES.into_iter().find(|node| *node != leader).unwrap();
    let at = NODES.into_iter().position(|it| it == node).unwrap();
    cohort
        .until("the follower to have the first write", |cohort| {
            cohort.member(node).table.applied() == cohort.member(leader).table.applied()
        })
        .await;
    let old = disks[at].crash_with(Crash::LoseUnsynced);
    cohort.reopen(node, &MemFs::new(), true).await;
    cohort.put("a").await;
    cohort
        .until("the newcomer to be a voter", |cohort| {
            cohort.member(node).replica.status().role == Role::Follower
        })
        .await;
    cohort.reopen(node, &old, false).await;
    cohort.put("b").await;
    counts(cohort, node).await;
}

/// openraft lets the leader that proposed a joint membership propose the final one, and no other: a
/// leader that died in between left the cohort with a joint membership for ever, in which a replica
/// that is no more counted, and the one in its place stayed a learner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_membership_that_was_left_half_done_is_completed() {
    let cohort = Cohort::open(&disks()).await;
    let leader = cohort.serves().await;
    let removed = NODES.into_iter().find(|node| *node != leader).unwrap();
    let raft = cohort.member(leader).replica.handle();
    let change = ChangeMembers::RemoveVoters([RaftId::first(removed)].into());
    // The joint membership is in force before it is committed, which the second step waits for.
    let joint = raft.wait(Some(PATIENCE));
    tokio::select! {
        biased;
        is_joint = joint.metrics(is_joint, "a joint membership") => drop(is_joint.unwrap()),
        changed = raft.change_membership(change, false) => panic!("in one step: {changed:?}"),
    }
    cohort
        .until("the final membership", |cohort| {
            let status = cohort.member(leader).replica.status();
            !status.replicas.contains(&removed)
        })
        .await;
    cohort.shutdown().await;
}

fn is_joint(metrics: &RaftMetrics<TypeConfig>) -> bool {
    metrics.membership_config.membership().get_joint_config().len() > 1
}

/// After another leader had replaced the end of a replica's log, its status named as durable an entry
/// that was not in the log any more: the log's progress goes on naming it until the new end is forced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_leader_has_replaced_is_not_durable_any_more() {
    use Lost::{FromLeader, ToLeader};
    let cohort = Cohort::open(&disks()).await;
    let old = cohort.serves().await;
    let member = cohort.member(old);
    cohort.cut(old, &[FromLeader(Lane::Data), FromLeader(Lane::Heartbeat)]);
    cohort.cut(old, &[ToLeader(Lane::Data), ToLeader(Lane::Heartbeat)]);
    let before = member.replica.status().last;
    let pending = member.replica.clone();
    let stuck = tokio::spawn(async move { pending.propose(batch("stuck")).await });
    cohort
        .until("an entry that only the old leader has", |_| {
            let status = member.replica.status();
            status.last > before && status.durable == status.last
        })
        .await;
    cohort.others_lead(old).await;
    // It hears of the new leader first, and of what that has written only once nothing is forced.
    cohort.network.cut.lock().retain(|(from, _, lane)| *from != old && *lane == Lane::Data);
    let replaced = member.replica.status().durable;
    cohort
        .until("the new leader is known", |_| member.replica.status().epoch > replaced.epoch)
        .await;
    member.disk.set(DiskFault::Stall);
    cohort.heal();
    cohort
        .until("the end is replaced", |_| member.replica.status().last.epoch > replaced.epoch)
        .await;
    let status = member.replica.status();
    assert_ne!(member.log.lsn_at(replaced.seq), Some(replaced), "{status}");
    assert_eq!(member.log.lsn_at(status.durable.seq), Some(status.durable), "{status}");
    member.disk.set(DiskFault::None);
    cohort
        .until("it has caught up", |_| {
            let status = member.replica.status();
            status.durable == status.last && status.applied == status.last
        })
        .await;
    stuck.abort();
    cohort.shutdown().await;
}

/// What a replica has on its disk stays there when it votes: its status named nothing as durable from
/// then on until it was sent another entry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_durable_stays_so_when_a_replica_votes() {
    use Lost::{FromLeader, ToLeader};
    let cohort = Cohort::open(&disks()).await;
    let leader = cohort.serves().await;
    let follower = NODES.into_iter().find(|node| *node != leader).unwrap();
    let last = cohort.member(leader).replica.status().last;
    let voter = cohort.member(follower);
    cohort.until("the follower has it all", |_| voter.replica.status().durable == last).await;
    // Alone, it votes for itself and is sent nothing.
    cohort.cut(follower, &[FromLeader(Lane::Data), FromLeader(Lane::Heartbeat)]);
    cohort.cut(follower, &[ToLeader(Lane::Data), ToLeader(Lane::Heartbeat)]);
    let (raft, epoch) = (voter.replica.handle(), voter.replica.status().epoch);
    raft.trigger().elect(false).await.unwrap();
    cohort
        .until("its vote is on disk", |_| {
            let flushed = raft.watch_log_progress().get();
            flushed.is_some_and(|flushed| vote_message(&flushed.vote).term > epoch)
        })
        .await;
    assert_eq!(voter.replica.status().durable, last);
    cohort.heal();
    cohort.shutdown().await;
}
