//! The driver on real logs and tables, with a protocol just large enough.

mod cluster;
mod primary_backup;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cluster::{Cluster, Gate, Setup, put, rows, until};
use tokio::time::Instant;
use trireme_replication::driver::DriverOptions;
use trireme_replication::{ErrorClass, Lane, Replica, ReplicaError};
use trireme_storage::LogOptions;
use trireme_storage::fs::FsOperation;
use trireme_types::{Lsn, NodeId, Outcome};

fn start(nodes: u64) -> Cluster {
    Cluster::start(nodes, Setup::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_pipelined_proposals_make_equal_tables_in_few_blocks() {
    const TASKS: u64 = 100;
    const EACH: u64 = 10;
    let cluster = start(3);
    let before: Vec<_> = cluster.nodes.iter().map(|node| node.log.metrics().blocks).collect();
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let replica = Arc::clone(&cluster.primary().replica);
        tasks.push(tokio::spawn(async move {
            let mut versions = Vec::new();
            for number in 0..EACH {
                let batch = put(&format!("key-{task}-{number}"), "value");
                let outcomes = replica.propose(batch).await.expect("the cluster is well");
                let [Outcome::Put { version }] = outcomes[..] else {
                    panic!("one put had the outcomes {outcomes:?}");
                };
                versions.push(version);
            }
            versions
        }));
    }
    let mut versions = Vec::new();
    for task in tasks {
        versions.extend(task.await.expect("no task panics"));
    }
    versions.sort();
    versions.dedup();
    assert_eq!(versions.len() as u64, TASKS * EACH, "every write has a version of its own");
    cluster.converge().await;
    assert_eq!(rows(&cluster.primary().table).len() as u64, TASKS * EACH);
    for (node, before) in cluster.nodes.iter().zip(before) {
        let blocks = node.log.metrics().blocks - before;
        assert!(blocks < TASKS * EACH / 2, "{} wrote {blocks} blocks", node.id);
    }
    cluster.shutdown().await;
}

/// What is in memory needs no thread that may wait for a disk: neither to be sent nor to be applied.
#[test]
fn writes_in_memory_replicate_while_no_thread_is_free_that_may_wait() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .expect("a runtime starts");
    runtime.block_on(async {
        let cluster = start(3);
        let (finish, is_finished) = std::sync::mpsc::channel::<()>();
        let (begin, has_begun) = tokio::sync::oneshot::channel();
        let occupied = tokio::task::spawn_blocking(move || {
            begin.send(()).expect("the test waits");
            is_finished.recv().expect("the test ends it");
        });
        has_begun.await.expect("the thread is there");
        for number in 0..20 {
            let outcomes =
                cluster.primary().replica.propose(put(&format!("key-{number}"), "value"));
            outcomes.await.expect("the cluster is well");
        }
        cluster.converge().await;
        finish.send(()).expect("the thread waits");
        occupied.await.expect("no task panics");
        cluster.shutdown().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_network_loses_and_delays_arrives_in_the_end() {
    let cluster = start(3);
    let count = AtomicU64::new(0);
    cluster.net.set_fate(Box::new(move |_, _, _| {
        match count.fetch_add(1, Ordering::Relaxed) % 7 {
            0 => None,
            delay => Some(Duration::from_millis(delay % 3)),
        }
    }));
    let proposals = (0..60).map(|number| {
        let replica = Arc::clone(&cluster.primary().replica);
        tokio::spawn(async move { replica.propose(put(&format!("key-{number}"), "value")).await })
    });
    for proposal in proposals.collect::<Vec<_>>() {
        proposal.await.expect("no task panics").expect("a lost message is sent again");
    }
    // A commit point that was lost is told again with the next write (M43).
    cluster.net.set_fate(Box::new(|_, _, _| Some(Duration::ZERO)));
    let last = cluster.primary().replica.propose(put("last", "value")).await;
    last.expect("the network is well again");
    cluster.converge().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_disk_stops_acknowledgements_and_nothing_else() {
    let cluster = start(3);
    let primary = Arc::clone(&cluster.primary().replica);
    primary.propose(put("a", "1")).await.expect("the cluster is well");
    cluster.nodes[1].gate.close();
    let waiting = tokio::spawn({
        let primary = Arc::clone(&primary);
        async move { primary.propose(put("b", "2")).await }
    });
    // The other backup has it, the stalled one has received it, and nobody was answered.
    until("both backups have the entry", || {
        cluster.nodes[1..].iter().all(|node| node.replica.status().last.seq == 2)
    })
    .await;
    until("the other backup has forced it", || cluster.nodes[2].replica.status().durable.seq == 2)
        .await;
    let status = primary.status();
    assert_eq!(status.progress[0].1.seq, 1, "the stalled backup acknowledged: {status}");
    assert!(!waiting.is_finished());
    assert_eq!(cluster.nodes[1].replica.status().durable.seq, 1);
    // Reads of what was committed go on.
    primary.read_barrier().await.expect("reads go on").validate().expect("the permit holds");
    cluster.nodes[1].gate.open();
    waiting.await.expect("no panic").expect("the disk goes on");
    cluster.converge().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_disk_of_the_primary_stops_commits() {
    let cluster = start(2);
    let primary = Arc::clone(&cluster.primary().replica);
    primary.propose(put("a", "1")).await.expect("the cluster is well");
    cluster.primary().gate.close();
    let waiting = tokio::spawn({
        let primary = Arc::clone(&primary);
        async move { primary.propose(put("b", "2")).await }
    });
    until("the backup has forced it", || cluster.nodes[1].replica.status().durable.seq == 2).await;
    until("the backup has acknowledged it", || primary.status().progress[0].1.seq == 2).await;
    assert_eq!(cluster.primary().table.applied().seq, 1);
    cluster.primary().gate.open();
    waiting.await.expect("no panic").expect("the disk goes on");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_disk_fails_the_replica_for_good() {
    let cluster = start(2);
    let node = cluster.primary();
    node.replica.propose(put("a", "1")).await.expect("the cluster is well");
    node.fs.fail_nth(FsOperation::Sync, 1);
    // What was sent may be committed by others, so its fate is not known.
    let unlucky = node.replica.propose(put("b", "2")).await.expect_err("the disk failed");
    assert!(matches!(unlucky, ReplicaError::Ambiguous(_)), "{unlucky}");
    until("the node is told", || node.failure.lock().is_some()).await;
    for error in [
        node.replica.propose(put("c", "3")).await.expect_err("the replica failed"),
        node.replica.read_barrier().await.expect_err("the replica failed"),
        node.replica.release_log(1).await.expect_err("the replica failed"),
    ] {
        assert_eq!(error.class(), ErrorClass::Fatal, "{error}");
    }
    // Messages to it are as good as lost, and stopping it still ends.
    node.replica.deliver(NodeId(2), Lane::Data, Bytes::from_static(b"anything"));
    cluster.shutdown().await;
    let after = node.replica.read_barrier().await.expect_err("the replica failed");
    assert_eq!(after.class(), ErrorClass::Fatal, "{after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_finishes_what_is_under_way() {
    let cluster = start(3);
    let proposals: Vec<_> = (0..50)
        .map(|number| {
            let replica = Arc::clone(&cluster.primary().replica);
            let batch = put(&format!("key-{number}"), "value");
            tokio::spawn(async move { replica.propose(batch).await })
        })
        .collect();
    until("some are under way", || cluster.primary().replica.status().last.seq > 0).await;
    cluster.primary().replica.shutdown().await;
    let mut done = 0;
    for proposal in proposals {
        match proposal.await.expect("no task panics") {
            Ok(_) => done += 1,
            // It came after the shutdown had begun, and nothing was done.
            Err(error) => assert_eq!(error.class(), ErrorClass::Retry, "{error}"),
        }
    }
    assert!(done > 0);
    assert_eq!(rows(&cluster.primary().table).len(), done);
    let late = cluster.primary().replica.propose(put("late", "1")).await;
    assert_eq!(late.expect_err("it has stopped").class(), ErrorClass::Retry);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_does_not_wait_for_a_quorum_for_ever() {
    let driver =
        DriverOptions { drain_timeout: Duration::from_millis(50), ..DriverOptions::default() };
    let cluster = Cluster::start(3, Setup { driver, ..Setup::default() });
    cluster.net.set_fate(Box::new(|_, _, _| None));
    let primary = Arc::clone(&cluster.primary().replica);
    let stuck = tokio::spawn({
        let primary = Arc::clone(&primary);
        async move { primary.propose(put("a", "1")).await }
    });
    until("it is under way", || primary.status().last.seq == 1).await;
    primary.shutdown().await;
    let error = stuck.await.expect("no panic").expect_err("nobody acknowledged it");
    assert_eq!(error.class(), ErrorClass::Unknown, "{error}");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_proposals_are_refused_as_busy() {
    let driver = DriverOptions { proposals_max: 8, ..DriverOptions::default() };
    let cluster = Cluster::start(2, Setup { driver, ..Setup::default() });
    cluster.net.set_fate(Box::new(|_, _, _| None));
    let primary = Arc::clone(&cluster.primary().replica);
    let mut waiting = Vec::new();
    for number in 0..8 {
        let primary = Arc::clone(&primary);
        let batch = put(&format!("key-{number}"), "value");
        waiting.push(tokio::spawn(async move { primary.propose(batch).await }));
    }
    until("all are under way", || primary.status().last.seq == 8).await;
    assert_eq!(primary.propose(put("more", "1")).await, Err(ReplicaError::Busy));
    // Room comes back with the answers.
    cluster.net.set_fate(Box::new(|_, _, _| Some(Duration::ZERO)));
    for proposal in waiting {
        proposal.await.expect("no panic").expect("the network is back");
    }
    primary.propose(put("more", "1")).await.expect("there is room");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_brings_back_everything_and_answers_go_on() {
    let mut cluster = start(3);
    for number in 0..20 {
        let batch = put(&format!("key-{number}"), "value");
        cluster.primary().replica.propose(batch).await.expect("the cluster is well");
    }
    for index in [1, 0] {
        cluster.restart(index, false).await;
        let batch = put(&format!("after-{index}"), "value");
        cluster.primary().replica.propose(batch).await.expect("the node is back");
        cluster.converge().await;
    }
    assert_eq!(rows(&cluster.primary().table).len(), 22);
    assert!(cluster.primary().replica.status().epoch >= 2);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_behind_the_log_is_sent_the_table() {
    let mut cluster = start(2);
    for number in 0..20 {
        let batch = put(&format!("key-{number}"), "value");
        cluster.primary().replica.propose(batch).await.expect("the cluster is well");
    }
    // Only what the table has on disk can be given up.
    cluster.primary().tables.flush().expect("the table is flushed");
    cluster.primary().replica.release_log(15).await.expect("it is under way");
    cluster.restart(1, true).await;
    let after = cluster.primary().replica.propose(put("after", "value")).await;
    after.expect("the replica was brought up to date");
    cluster.converge().await;
    assert!(cluster.net.snapshots_sent.load(Ordering::Relaxed) > 0);
    assert!(cluster.nodes[1].replica.status().purged.seq >= 15);
    cluster.shutdown().await;
}

/// What a backup lacks may have to be read from the disk: a replica does its other work meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_wait_for_the_disk_hold_nothing_up() {
    // The newest few are in memory.
    let log = LogOptions { cache_bytes: 16 << 10, ..LogOptions::default() };
    let mut cluster = Cluster::start(2, Setup { log, ..Setup::default() });
    for number in 0..32 {
        let batch = put(&format!("key-{number}"), &"x".repeat(4096));
        cluster.primary().replica.propose(batch).await.expect("the cluster is well");
    }
    let (gate, asked) = (Gate::default(), Arc::new(AtomicU64::new(0)));
    gate.close();
    let (reads, counts) = (gate.clone(), Arc::clone(&asked));
    cluster.primary().fs.observe(move |call| {
        if call.operation == FsOperation::Read {
            counts.fetch_add(1, Ordering::Relaxed);
            reads.pass();
        }
        Ok(())
    });
    cluster.restart(1, true).await;
    until("the primary reads its log", || asked.load(Ordering::Relaxed) > 0).await;
    let read = cluster.primary().replica.read_barrier();
    let read = tokio::time::timeout(Duration::from_secs(10), read).await;
    let received = cluster.nodes[1].replica.status().last.seq;
    // Before anything can fail: no runtime ends while a thread of it waits.
    gate.open();
    read.expect("the primary does not wait for the disk").expect("it leads");
    assert_eq!(received, 0, "the disk has not answered");
    cluster.converge().await;
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_cannot_be_read_change_nothing() {
    let cluster = start(2);
    for payload in [&b""[..], b"\xff\xff\xff", b"\x01\0\0"] {
        cluster.primary().replica.deliver(NodeId(2), Lane::Data, Bytes::from_static(payload));
    }
    cluster.primary().replica.propose(put("a", "1")).await.expect("the cluster is well");
    let follower = &cluster.nodes[1].replica;
    let refused = follower.propose(put("a", "1")).await.expect_err("it does not lead");
    assert_eq!(refused.class(), ErrorClass::Redirect(Some(NodeId(1))));
    assert_eq!(follower.leader(), Some(NodeId(1)));
    let age = || follower.freshness(cluster.nodes[1].table.applied(), Instant::now()).unwrap().age;
    until("the backup knows its age", || age().is_some()).await;
    cluster.shutdown().await;
}

/// The log's queue holds a few entries: the replica waits for it, and is none the worse.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_of_the_log_holds_a_replica_up_and_loses_nothing() {
    let log =
        LogOptions { block_bytes_max: 4 << 10, queue_bytes_max: 4 << 10, ..LogOptions::default() };
    let cluster = Cluster::start(2, Setup { log, ..Setup::default() });
    cluster.primary().gate.close();
    let proposals: Vec<_> = (0..40)
        .map(|number| {
            let replica = Arc::clone(&cluster.primary().replica);
            let batch = put(&format!("key-{number}"), &"x".repeat(1000));
            tokio::spawn(async move { replica.propose(batch).await })
        })
        .collect();
    until("the queue is full", || cluster.primary().log.queued_bytes() > 4 << 10).await;
    cluster.primary().gate.open();
    for proposal in proposals {
        proposal.await.expect("no task panics").expect("the disk goes on");
    }
    cluster.converge().await;
    cluster.shutdown().await;
}

/// In virtual time, with logs that are stepped: 50 seconds in which every message is lost pass in
/// no time, with one attempt in each period.
#[tokio::test(start_paused = true)]
async fn time_is_the_time_of_the_runtime() {
    let cluster = Cluster::start(2, Setup { is_stepped: true, ..Setup::default() });
    let lost = Arc::new(AtomicU64::new(0));
    let losing = Arc::clone(&lost);
    cluster.net.set_fate(Box::new(move |from, _, _| {
        losing.fetch_add(u64::from(from == NodeId(1)), Ordering::Relaxed);
        None
    }));
    let primary = Arc::clone(&cluster.primary().replica);
    let write = tokio::spawn({
        let primary = Arc::clone(&primary);
        async move { primary.propose(put("a", "1")).await }
    });
    tokio::time::sleep(Duration::from_secs(50)).await;
    let periods = Duration::from_secs(50).as_millis() / primary_backup::RESEND_PERIOD.as_millis();
    let attempts = u128::from(lost.load(Ordering::Relaxed));
    assert!((periods - 1..=periods + 1).contains(&attempts), "{attempts} attempts");
    cluster.net.set_fate(Box::new(|_, _, _| Some(Duration::from_millis(1))));
    write.await.expect("no panic").expect("the network is back");
    cluster.converge().await;
    let backup = &cluster.nodes[1].replica;
    let applied = cluster.nodes[1].table.applied();
    let freshness = || backup.freshness(applied, Instant::now()).expect("it answers");
    let age = freshness().age.expect("it has heard the primary");
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(freshness().age >= Some(age + Duration::from_secs(7)));
    let unknown = backup.freshness(Lsn::ZERO, Instant::now() - Duration::from_secs(7));
    assert!(unknown.is_ok_and(|older| older.age >= freshness().age.map(|age| age - Duration::from_secs(7))));
    cluster.shutdown().await;
}
