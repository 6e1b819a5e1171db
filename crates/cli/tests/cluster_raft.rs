//! Raft on real processes whose links work one way or on one lane, whose disks stall, are lost or
//! come back older, while every read is judged.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use trireme_client::ClientOptions;
use trireme_proto::v1::Lane;
use trireme_types::Protocol;

use common::{Cluster, Disk, History, until, until_ok};

/// How long a cluster may take to be as it should after a fault, or after its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How soon a leader serves again when one is gone, on a busy machine.
const FAILOVER_MAX: Duration = Duration::from_secs(15);

/// How long messages are lost in a short loss: less than any timeout, and enough for some to be.
const LOST_FOR: Duration = Duration::from_millis(100);

/// The cohort of clusters that have one.
const COHORT: u64 = 1;

const ONE: [&str; 5] = ["--replication", "raft", "--allow-faults", "--ranges", "1"];
const KEY: [&str; 1] = ["melon"];

/// Has a fault strike the leader and last, and checks that another node leads and writes flow
/// before it ends.
fn is_replaced_while(fault: impl FnOnce(&Cluster)) {
    let cluster = &Cluster::start(&ONE);
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    history.wait_for_writes(20);
    fault(cluster);
    until("another node leads", FAILOVER_MAX, || {
        let statuses = cluster.statuses().ok()?;
        statuses.leader(COHORT).map(|(node, _)| node).filter(|node| *node != 1)
    });
    history.wait_for_writes_within(20, FAILOVER_MAX);
    cluster.heal_all();
    cluster.wait_until_caught_up(PATIENCE);
    history.finish(cluster);
}

/// Its heartbeats arrived and kept the others from electing one that hears.
#[test]
fn a_leader_that_hears_nobody_is_replaced() {
    is_replaced_while(|cluster| {
        cluster.cut_one_way(2, 1);
        cluster.cut_one_way(3, 1);
    });
}

/// Heartbeats passed and entries did not: it led for ever and wrote nothing.
#[test]
fn a_leader_whose_entries_are_lost_is_replaced_though_its_heartbeats_arrive() {
    is_replaced_while(|cluster| {
        cluster.cut_lane(1, 2, Lane::Data);
        cluster.cut_lane(1, 3, Lane::Data);
    });
}

#[test]
fn a_leader_that_hears_no_acknowledgements_is_replaced_though_it_hears_heartbeats_answered() {
    is_replaced_while(|cluster| {
        cluster.cut_lane(2, 1, Lane::Data);
        cluster.cut_lane(3, 1, Lane::Data);
    });
}

/// Raft had timeouts of its own, whatever the nodes were started with.
#[test]
fn a_dead_leader_is_waited_for_as_long_as_the_options_say() {
    const GRACE: Duration = Duration::from_secs(4);

    let cluster = &mut Cluster::start(&[&ONE[..], &["--lease", "3s", "--grace", "4s"]].concat());
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    history.wait_for_writes(20);
    cluster.kill(1);
    let killed = Instant::now();
    history.wait_for_writes_within(20, FAILOVER_MAX + GRACE);
    // The last heartbeat was at most a beacon interval before.
    assert!(killed.elapsed() > GRACE.mul_f64(0.9), "{:?}", killed.elapsed());
    cluster.restart_node(1);
    cluster.wait_until_caught_up(PATIENCE);
    history.finish(cluster);
}

/// A leader whose disk stalls commits on its followers' disks. Its log's queue takes what it can; the
/// node neither ends nor stops to serve.
#[test]
fn a_leader_whose_disk_stalls_stops_no_write() {
    let cluster = &Cluster::start(&ONE);
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    history.wait_for_writes(20);
    cluster.disk(1, Disk::Stall);
    history.wait_for_writes_within(50, FAILOVER_MAX);
    cluster.heal_all();
    history.wait_for_writes_within(20, FAILOVER_MAX);
    cluster.wait_until_caught_up(PATIENCE);
    history.finish(cluster);
}

/// What was lost was asked again after three seconds.
#[test]
fn a_short_loss_of_messages_deposes_nobody_and_is_soon_made_up_for() {
    let cluster = &Cluster::start(&ONE);
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    history.wait_for_writes(20);
    let mut gaps: Vec<Duration> = Vec::new();
    for _ in 0..5 {
        history.take_gap();
        cluster.cut_lane(1, 2, Lane::Data);
        cluster.cut_lane(1, 3, Lane::Data);
        history.hold(LOST_FOR);
        cluster.heal_all();
        history.wait_for_writes_within(20, FAILOVER_MAX);
        gaps.push(history.take_gap());
    }
    gaps.sort();
    // Half of them, since a busy machine may add a pause of its own to some.
    assert!(gaps[gaps.len() / 2] < Duration::from_secs(2), "{gaps:?}");
    assert_eq!(cluster.wait_for_leader(COHORT, PATIENCE), 1);
    history.finish(cluster);
}

/// Checks that a node's replica counts: with another one dead, it makes the majority.
fn counts(cluster: &mut Cluster, node: usize, history: &History) {
    cluster.wait_for_role(COHORT, node, "follower", PATIENCE);
    cluster.wait_until_caught_up(PATIENCE);
    let leader = cluster.wait_for_leader(COHORT, PATIENCE);
    let other = (1..=3).find(|it| *it != node && *it != leader).unwrap();
    cluster.kill(other);
    history.wait_for_writes_within(20, FAILOVER_MAX);
    cluster.restart_node(other);
    cluster.wait_until_caught_up(PATIENCE);
    let statuses = cluster.statuses().unwrap();
    let (_, leads) = statuses.leader(COHORT).unwrap();
    assert_eq!(leads.replicas, [1, 2, 3], "the cohort is as large as it was");
}

/// It was refused for ever, since an empty voter would vote again in terms in which it had voted.
#[test]
fn a_node_that_lost_its_disk_comes_back_as_a_learner_and_counts_again() {
    let cluster = &mut Cluster::start_by_hand_as(Protocol::Raft, &[], &[]);
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    for key in 0..20 {
        cluster.run(["put", &format!("key-{key}"), "1"]).out();
    }
    for _ in 0..2 {
        cluster.kill(3);
        cluster.wipe(3);
        cluster.start_new_node(3, &[]);
        counts(cluster, 3, &history);
    }
    // What it has is enough.
    cluster.lead_everywhere(3);
    cluster.kill(1);
    history.wait_for_writes_within(10, FAILOVER_MAX);
    assert!(cluster.rows().len() >= 21);
    cluster.restart_node(1);
    cluster.wait_until_caught_up(PATIENCE);
    history.finish(cluster);
}

/// What it lost reaches further back than the others' logs: it is sent a snapshot, and follows from
/// the log that comes after it.
#[test]
fn a_node_that_lost_its_disk_gets_a_snapshot_where_the_log_is_gone() {
    const SMALL_LOG: [&str; 4] = ["--segment-bytes", "1048576", "--log-bytes-max", "3145728"];
    const ROWS: usize = 400;

    let cluster = &mut Cluster::start_by_hand_as(Protocol::Raft, &[], &SMALL_LOG);
    cluster.lead_everywhere(1);
    let client = cluster.runtime.block_on(cluster.client(ClientOptions::default()));
    cluster.runtime.block_on(async {
        for row in 0..ROWS {
            client.put(format!("row-{row:04}"), vec![7; 32 * 1024]).await.unwrap();
        }
    });
    until("the leader's log to begin later", PATIENCE, || {
        let statuses = cluster.statuses().ok()?;
        let (_, leads) = statuses.leader(COHORT)?;
        leads.purged.is_some_and(|purged| purged.seq > 10).then_some(())
    });
    cluster.kill(3);
    cluster.wipe(3);
    cluster.start_new_node(3, &SMALL_LOG);
    let history = History::start(cluster, &KEY);
    counts(cluster, 3, &history);
    cluster.lead_everywhere(3);
    assert!(cluster.rows().len() > ROWS);
    history.finish(cluster);
}

/// A majority that lost its disks may have lost acknowledged writes: what is left serves nothing.
#[test]
fn a_cohort_that_lost_the_disks_of_a_majority_serves_nothing() {
    let cluster = &mut Cluster::start_by_hand_as(Protocol::Raft, &[], &[]);
    cluster.lead_everywhere(1);
    cluster.run(["put", "a", "1"]).out();
    for node in [2, 3] {
        cluster.kill(node);
        cluster.wipe(node);
    }
    for node in [2, 3] {
        cluster.start_new_node(node, &[]);
        cluster.wait_for_role(COHORT, node, "learner", PATIENCE);
    }
    cluster.run(["put", "a", "2", "--deadline", "5s"]).error(1);
    cluster.run(["get", "a", "--deadline", "5s"]).error(1);
    for node in [2, 3] {
        cluster.wait_for_role(COHORT, node, "learner", PATIENCE);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// The leader kept to what the follower had acknowledged and never sent it what it lacked: it stayed
/// behind for ever, and the next death left the range without a majority.
#[test]
fn a_node_whose_disk_came_back_older_is_brought_up_to_date_and_counts() {
    let cluster = &mut Cluster::start(&ONE);
    cluster.expect_error("the folder is an older copy");
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    history.wait_for_writes(20);
    cluster.stop_node(3);
    let aside = cluster.folder().join("aside");
    copy(&cluster.node_folder(3), &aside);
    cluster.restart_node(3);
    history.wait_for_writes(50);
    cluster.wait_until_caught_up(PATIENCE);
    cluster.kill(3);
    cluster.wipe(3);
    copy(&aside, &cluster.node_folder(3));
    cluster.restart_node(3);
    until("the replica to have begun anew and been admitted", PATIENCE, || {
        cluster.has_said("takes its predecessor's place").then_some(())
    });
    counts(cluster, 3, &history);
    history.finish(cluster);
}

/// In memory alone, what a follower has acknowledged goes with its process.
#[test]
fn a_follower_that_acknowledged_from_memory_and_crashed_is_brought_up_to_date() {
    const MEMORY: [&str; 2] = ["--durability", "memory"];

    let cluster = &mut Cluster::start(&[&ONE[..], &MEMORY].concat());
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    for _ in 0..5 {
        // Many callers, so that there is something to lose.
        let mut load = cluster.load("2s", &["--keys", "1000", "--value-bytes", "2000"]);
        let mut load = load.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        history.hold(Duration::from_secs(1));
        cluster.kill(3);
        cluster.restart_node_with(3, &MEMORY);
        load.wait().unwrap();
        until_ok("the follower to count and to have caught up", PATIENCE, || {
            let statuses = cluster.statuses()?;
            let (_, leads) = statuses.leader(COHORT).ok_or("nobody leads")?;
            let (_, follows) = statuses.replicas(COHORT)[2];
            if follows.role != "follower" {
                return Err(format!("n3 is a {}", follows.role));
            }
            let seq = |lsn: Option<trireme_proto::v1::Lsn>| lsn.map_or(0, |lsn| lsn.seq);
            let (applied, committed) = (seq(follows.applied), seq(leads.committed));
            // Writes go on.
            if applied + 100 < committed {
                Err(format!("{applied} of {committed}"))
            } else {
                Ok(())
            }
        });
    }
    history.finish(cluster);
}
