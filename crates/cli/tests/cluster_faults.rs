//! What a cluster bears: links that lose or delay what is sent, a disk that stalls or fails, a
//! coordinator that is not reached.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::time::{Duration, Instant};

use serde_json::Value;
use trireme_client::{Client, ClientOptions};

use common::{Cluster, Disk, replication, until, until_ok};

/// How long a cluster may take to be as it should after a fault, or after its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The only cohort of these clusters.
const COHORT: u64 = 1;

/// How often a test is tried that shows nothing on a machine which is too busy.
const TRIES: usize = 3;

const FAULTY: [&str; 3] = ["--allow-faults", "--ranges", "1"];

/// Nobody can disturb a node that was not started to allow it, and a node that allows it remembers
/// neither that nor the way that it takes to its coordinator.
#[test]
fn faults_are_refused_unless_they_were_allowed() {
    let cluster = &mut Cluster::start(&["--ranges", "1"]);
    let fault = ["fault", "--node", "2", "--disk", "fail", "--to", "1", "--drop"];
    let refused = cluster.run(fault);
    let said = refused.error(1);
    assert!(said.contains("FailedPrecondition") && said.contains("--allow-faults"), "{said}");
    cluster.run(["put", "a", "1"]).out();
    cluster.wait_until_caught_up(PATIENCE);

    cluster.kill(2);
    let secure = ["--allow-faults", "--coordinator", "https://127.0.0.1:1"];
    let failed = cluster.node_fails(2, &secure);
    assert!(failed.error(1).contains("by http:// alone"), "{failed:?}");
    cluster.restart_node_with(2, &["--allow-faults"]);
    cluster.wait_until_caught_up(PATIENCE);
    let slow = ["fault", "--node", "2", "--disk", "slow:1ms", "--coordinator", "cut"];
    assert_eq!(cluster.run(slow).out(), "");
    assert_eq!(cluster.run(["fault", "--node", "2", "--heal"]).out(), "");
    let text = std::fs::read_to_string(cluster.node_folder(2).join("node.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(file["coordinator"][0], cluster.coordinator());

    cluster.kill(2);
    cluster.restart_node(2);
    cluster.wait_until_caught_up(PATIENCE);
    cluster.run(fault).error(1);
}

/// The others notice the silence and elect one of them; once it is healed, the old leader follows.
#[test]
fn a_leader_whose_messages_are_lost_is_replaced_and_follows_when_it_is_healed() {
    if replication().as_deref() == Some("pacifica") {
        // A primary that no secondary answers goes on without them: `cluster_pacifica` has it.
        return;
    }
    let cluster = &Cluster::start(&FAULTY);
    cluster.lead_everywhere(1);
    cluster.run(["put", "before", "1"]).out();
    cluster.cut_one_way(1, 2);
    cluster.cut_one_way(1, 3);
    let leader = until("another node leads", PATIENCE, || {
        let statuses = cluster.statuses().ok()?;
        statuses.leader(COHORT).map(|(node, _)| node).filter(|&node| node != 1)
    });
    cluster.run(["put", "meanwhile", "1"]).out();
    let statuses = cluster.statuses().unwrap();
    let (_, cut_off) = statuses.replicas(COHORT)[0];
    assert!(cut_off.applied.unwrap().seq < statuses.leader(COHORT).unwrap().1.last.unwrap().seq);
    cluster.heal(1);
    let healed = cluster.wait_until_caught_up(PATIENCE);
    let (node, replica) = healed.replicas(COHORT)[0];
    assert_eq!((node, &*replica.role), (1, "follower"), "led by {leader}");
    assert_eq!(cluster.rows().len(), 2);
}

/// A write makes one round trip from the leader to its followers: a delay of their links is added to
/// it once, however many writes are on their way.
#[test]
fn a_delay_of_the_leaders_links_is_added_to_every_write_about_once() {
    const DELAY: Duration = Duration::from_millis(100);

    let cluster = &Cluster::start(&FAULTY);
    cluster.lead_everywhere(1);
    let client = cluster.runtime.block_on(cluster.client(ClientOptions::default()));
    let put = || async {
        let began = Instant::now();
        client.put("key", "value").await.unwrap();
        began.elapsed()
    };
    let typical = || {
        let mut times = cluster.runtime.block_on(async {
            let mut times = Vec::new();
            for _ in 0..15 {
                times.push(put().await);
            }
            times
        });
        times.sort();
        times[times.len() / 2]
    };
    let before = typical();
    cluster.delay(1, DELAY.as_millis().try_into().unwrap());
    let delayed = typical();
    assert!(delayed >= DELAY, "{delayed:?}, and {before:?} without a delay");
    assert!(delayed < before + 4 * DELAY, "{delayed:?}, and {before:?} without a delay");

    // Many at once take no longer than one by one would if each waited for the ones before it.
    let began = Instant::now();
    cluster.runtime.block_on(futures::future::join_all((0..50).map(|_| put())));
    let all = began.elapsed();
    assert!(all < before + 10 * DELAY, "50 writes at once took {all:?}");
    assert_eq!(cluster.wait_for_leader(COHORT, PATIENCE), 1, "the delay has replaced the leader");
    cluster.heal_all();
    let healed = until_ok("writes are fast again", PATIENCE, || match typical() {
        fast if fast < DELAY / 2 + before => Ok(fast),
        slow => Err(slow),
    });
    show(&format!("{before:?}, delayed {delayed:?}, 50 at once {all:?}, healed {healed:?}\n"));
}

/// A follower whose disk stalls acknowledges nothing, and nobody waits for it.
#[test]
fn a_follower_whose_disk_stalls_holds_up_nobody_and_catches_up() {
    let cluster = &Cluster::start(&FAULTY);
    cluster.lead_everywhere(1);
    cluster.disk(2, Disk::Stall);
    let durable = |node: usize| {
        let statuses = cluster.statuses().unwrap();
        statuses.replicas(COHORT)[node - 1].1.durable.unwrap().seq
    };
    let stalled_at = durable(2);
    for key in 0..20 {
        cluster.run(["put", &format!("key-{key}"), "1"]).out();
    }
    // One force may have been under way when the stall began.
    assert!(durable(2) <= stalled_at + 1, "it has forced {} after {stalled_at}", durable(2));
    assert!(durable(1) >= stalled_at + 20);
    cluster.heal(2);
    cluster.wait_until_caught_up(PATIENCE);

    cluster.disk(2, Disk::Slow(50));
    cluster.disk(3, Disk::Slow(50));
    let began = Instant::now();
    cluster.run(["put", "slow", "1"]).out();
    assert!(began.elapsed() >= Duration::from_millis(50), "{:?}", began.elapsed());
    cluster.heal_all();
    assert_eq!(cluster.rows().len(), 21);
}

/// What a node has not forced it has not got: after a failed force it stops and says why, and the
/// others go on.
#[test]
fn a_node_whose_disk_fails_stops_and_says_why() {
    let cluster = &mut Cluster::start(&FAULTY);
    cluster.lead_everywhere(1);
    cluster.expect_error("the log failed and takes no more writes");
    cluster.expect_error("the node can no longer keep its promises");
    cluster.expect_error("node 2 has ended: exit status: 1");
    cluster.disk(2, Disk::Fail);
    cluster.run(["put", "a", "1"]).out();
    cluster.wait_for_the_end_of(2);
    until("up has said why", PATIENCE, || {
        let said = cluster.has_said("the node has failed: the shared log: ")
            && cluster.has_said("a fault that was asked for");
        said.then_some(())
    });
    cluster.run(["put", "b", "1"]).out();
    // Its disk is whole again, and so is the node.
    cluster.restart_node(2);
    cluster.wait_until_caught_up(PATIENCE);
    assert_eq!(cluster.rows().len(), 2);
}

/// A task that is gone leaves a node that others take for a healthy one: the whole node ends, and
/// says where and why, and the others go on.
#[test]
fn a_node_of_which_a_task_panics_ends_and_says_why() {
    let cluster = &mut Cluster::start(&FAULTY);
    cluster.lead_everywhere(1);
    cluster.expect_error("a panic: the process ends");
    cluster.expect_error("node 1 has ended: exit status: 101");
    assert_eq!(cluster.run(["fault", "--node", "1", "--panic"]).out(), "");
    cluster.wait_for_the_end_of(1);
    until("up has said why", PATIENCE, || {
        let said = cluster.has_said("a fault that was asked for")
            && cluster.has_said("server/src/faults/mod.rs")
            && cluster.has_said("node 1 has ended: exit status: 101");
        said.then_some(())
    });
    cluster.run(["put", "a", "1"]).out();
    cluster.restart_node(1);
    cluster.wait_until_caught_up(PATIENCE);
    assert_eq!(cluster.rows().len(), 1);
}

/// The coordinator is on the path of no read and no write: a leader that it has given up goes on,
/// and has a session again when it can be reached.
#[test]
fn a_leader_that_does_not_reach_the_coordinator_serves_on_and_comes_back() {
    let cluster = &mut Cluster::start(&FAULTY);
    let others = [cluster.address(2), cluster.address(3)];
    let client = cluster.runtime.block_on(Client::connect(others)).unwrap();
    let has_session = |cluster: &Cluster| {
        let routes = cluster.runtime.block_on(client.refresh_routes()).unwrap();
        routes.nodes.iter().find(|node| node.id.0 == 1).unwrap().alive
    };
    let mut writes = 0;
    // On a busy machine its followers may not answer it in time, whatever the coordinator does: it says
    // so when it gives up its lead for that, and then nothing was shown.
    let has_shown = (0..TRIES).any(|_| {
        cluster.lead_everywhere(1);
        assert!(has_session(cluster));
        cluster.cut_coordinator(1);
        until("its session has expired", PATIENCE, || {
            writes += 1;
            cluster.run(["put", &format!("key-{writes}"), "1"]).out();
            (!has_session(cluster)).then_some(())
        });
        for round in 0..5 {
            cluster.run(["put", &format!("after-{round}"), "1"]).out();
            assert_eq!(cluster.run(["get", &format!("after-{round}")]).out(), "1\n");
        }
        let leader = cluster.wait_for_leader(COHORT, PATIENCE);
        cluster.heal(1);
        until("it has a session again", PATIENCE, || has_session(cluster).then_some(()));
        assert!(leader == 1 || cluster.has_said("gives up its lead"), "n{leader} leads");
        leader == 1
    });
    assert!(has_shown, "it gave up its lead each time");
    assert_eq!(cluster.rows().len(), writes + 5);
    // The way to the coordinator is there until the session is closed.
    cluster.stop();
    assert!(!cluster.has_said("was left to expire"));
}

/// Tells what was measured; shown where tests are run with their output.
#[expect(clippy::print_stderr, reason = "a figure for whoever runs the test")]
fn show(report: &str) {
    eprint!("{report}");
}
