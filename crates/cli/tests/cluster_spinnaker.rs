//! Spinnaker on real processes that die, freeze, lose messages and lose their disks, while every
//! read is judged.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::time::{Duration, Instant};

use rustix::process::Signal;
use trireme_types::Protocol;

use common::{Cluster, History, Report, check_the_judge, finish, until, until_ok};

/// How long a cluster may take to be as it should after a fault, or after its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How soon a leader serves again when one is gone: a grace, an election and a takeover, on a busy
/// machine.
const FAILOVER_MAX: Duration = Duration::from_secs(15);

/// The session timeout at the coordinator, and more.
const LONGER_THAN_A_SESSION: Duration = Duration::from_secs(8);

/// The cohort of clusters that have one.
const COHORT: u64 = 1;

const ONE: [&str; 5] = ["--replication", "spinnaker", "--allow-faults", "--ranges", "1"];
const KEY: [&str; 1] = ["melon"];

#[test]
fn the_judge_of_histories_knows_a_bad_one() {
    check_the_judge();
}

/// A majority is enough, whoever the dead were: two of five replicas die, each while it leads.
#[test]
fn five_replicas_bear_the_death_of_two_leaders_in_a_row() {
    let options = ["--replication", "spinnaker", "--replicas", "5", "--ranges", "2"];
    let cluster = &mut Cluster::start_nodes(5, &options);
    let history = History::start(cluster, &["apple", "zebra"]);
    let mut victims = Vec::new();
    for _ in 0..2 {
        let victim = cluster.wait_for_leader(COHORT, PATIENCE);
        cluster.kill(victim);
        victims.push(victim);
        history.wait_for_writes_within(10, FAILOVER_MAX);
    }
    for victim in victims {
        cluster.restart_node(victim);
    }
    cluster.wait_until_caught_up(PATIENCE);
    show("two of five leaders died", &history.finish(cluster));
}

#[test]
fn a_leader_dies_and_a_follower_and_nothing_is_lost_lsm() {
    bears_the_death_of_a_leader_and_of_a_follower("lsm");
}

#[test]
fn a_leader_dies_and_a_follower_and_nothing_is_lost_sled() {
    bears_the_death_of_a_leader_and_of_a_follower("sled");
}

fn bears_the_death_of_a_leader_and_of_a_follower(engine: &str) {
    let options = ["--replication", "spinnaker", "--ranges", "1", "--engine", engine];
    let cluster = &mut Cluster::start(&options);
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    cluster.kill(1);
    history.wait_for_writes_within(10, FAILOVER_MAX);
    cluster.restart_node(1);
    cluster.wait_until_caught_up(PATIENCE);

    let leader = cluster.wait_for_leader(COHORT, PATIENCE);
    let follower = leader % 3 + 1;
    history.take_gap();
    cluster.kill(follower);
    history.wait_for_writes(50);
    let gap = history.take_gap();
    assert!(gap < Duration::from_secs(2), "the death of a follower held up writes for {gap:?}");
    cluster.restart_node(follower);
    cluster.wait_until_caught_up(PATIENCE);
    show(engine, &history.finish(cluster));
}

/// What was acknowledged is on disks: all nodes and the coordinator die at once, twice.
#[test]
fn everything_dies_amid_a_load_and_comes_back() {
    let cluster = &mut Cluster::start(&["--replication", "spinnaker", "--ranges", "3"]);
    let history = History::start(cluster, &["apple", "melon", "zebra"]);
    for _ in 0..2 {
        history.wait_for_writes(20);
        cluster.kill_all();
        cluster.up_again();
        history.wait_for_writes(20);
    }
    cluster.wait_until_caught_up(PATIENCE);
    show("everything died twice", &history.finish(cluster));
}

/// S5: a process that was stopped does not know for how long. What it is asked meanwhile it may
/// answer, but never from the past: its lease has ended, and another node leads.
#[test]
fn a_leader_that_was_stopped_answers_nothing_stale() {
    let cluster = &Cluster::start(&ONE);
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    cluster.signal(1, Signal::STOP);
    let leader = cluster.wait_for_another_leader(COHORT, 1, FAILOVER_MAX);
    history.wait_for_writes(50);
    assert!(history.answered_by(leader) > 0);
    cluster.signal(1, Signal::CONT);
    cluster.wait_for_role(COHORT, 1, "follower", PATIENCE);
    history.check();

    // Stops around the lease of 800 ms and the grace of a second, where it is close.
    for stop_ms in [700, 850, 950, 1_050, 1_150, 1_400] {
        cluster.wait_until_caught_up(PATIENCE);
        let leader = cluster.wait_for_leader(COHORT, PATIENCE);
        cluster.signal(leader, Signal::STOP);
        history.hold(Duration::from_millis(stop_ms));
        cluster.signal(leader, Signal::CONT);
        history.wait_for_writes(10);
    }
    cluster.wait_until_caught_up(PATIENCE);
    show("leaders were stopped", &history.finish(cluster));
}

/// The others elect another one, and the old one learns of it when it is healed.
#[test]
fn a_leader_cut_off_from_its_followers_is_replaced() {
    replaces_a_leader_that_is_cut_off("both ways", |cluster| cluster.isolate(1));
}

/// The followers hear nothing and elect another one, though the old one hears that.
#[test]
fn a_leader_that_is_not_heard_is_replaced() {
    replaces_a_leader_that_is_cut_off("sends", |cluster| {
        cluster.cut_one_way(1, 2);
        cluster.cut_one_way(1, 3);
    });
}

/// The followers hear a leader that does not hear them: it gives up by itself.
#[test]
fn a_leader_that_hears_nobody_is_replaced() {
    replaces_a_leader_that_is_cut_off("hears", |cluster| {
        cluster.cut_one_way(2, 1);
        cluster.cut_one_way(3, 1);
    });
}

fn replaces_a_leader_that_is_cut_off(how: &str, cut: impl FnOnce(&Cluster)) {
    let cluster = &Cluster::start(&ONE);
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    cut(cluster);
    cluster.wait_for_another_leader(COHORT, 1, FAILOVER_MAX);
    history.wait_for_writes_within(20, FAILOVER_MAX);
    history.hold(Duration::from_secs(4));
    history.wait_for_writes_within(20, FAILOVER_MAX);
    cluster.heal_all();
    cluster.wait_until_caught_up(PATIENCE);
    history.wait_for_writes(20);
    show(how, &history.finish(cluster));
}

/// S5: it is cut off from everybody, the coordinator included, so that nothing tells it that another one
/// leads. All that keeps it from answering is its own clock, whether its process runs on or is stopped
/// meanwhile.
#[test]
fn a_leader_that_nobody_tells_of_its_successor_answers_nothing_stale() {
    let cluster = &Cluster::start(&ONE);
    let history = History::start(cluster, &KEY);
    for stop_ms in [0, 0, 1_300, 1_500, 1_700, 3_000] {
        cluster.lead_everywhere(1);
        history.wait_for_writes(10);
        cluster.isolate(1);
        cluster.cut_coordinator(1);
        if stop_ms > 0 {
            cluster.signal(1, Signal::STOP);
            history.hold(Duration::from_millis(stop_ms));
            cluster.signal(1, Signal::CONT);
        }
        cluster.wait_for_another_leader(COHORT, 1, FAILOVER_MAX);
        history.wait_for_writes_within(20, FAILOVER_MAX);
        history.hold(Duration::from_secs(1));
        cluster.heal_all();
        cluster.wait_until_caught_up(PATIENCE);
    }
    show("nobody told", &history.finish(cluster));
}

/// SPIN-27: its session ends. Until it is clear whether it comes back, it may lead on, or another one
/// takes over.
#[test]
fn a_leader_cut_off_from_the_coordinator_alone_does_no_harm() {
    let cluster = &Cluster::start(&ONE);
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    cluster.cut_coordinator(1);
    let began = Instant::now();
    while began.elapsed() < LONGER_THAN_A_SESSION + Duration::from_secs(4) {
        history.wait_for_writes_within(1, FAILOVER_MAX);
    }
    cluster.heal_all();
    cluster.wait_until_caught_up(PATIENCE);
    history.wait_for_writes(20);
    show("the leader had no coordinator", &history.finish(cluster));
}

/// M19: the coordinator is on the path of no write and no read, as long as nobody dies. When the
/// leader dies then, nobody else can become it, and that is told; old rows can be read on.
#[test]
fn without_a_coordinator_writes_go_on_until_the_leader_dies() {
    let cluster = &mut Cluster::start(&ONE);
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    cut_all(cluster);
    history.take_gap();
    history.hold(LONGER_THAN_A_SESSION);
    let gap = history.take_gap();
    assert!(gap < Duration::from_secs(3), "writes were held up for {gap:?}");
    let reads = history.answered_by(1);
    history.wait_for_writes(5);
    until("strong reads go on", PATIENCE, || (history.answered_by(1) > reads).then_some(()));
    cluster.heal_all();
    history.wait_for_writes(20);
    let statuses = cluster.wait_until_caught_up(PATIENCE);
    let replicas = statuses.replicas(COHORT);
    let leaders = replicas.iter().filter(|(_, replica)| replica.role == "leader");
    assert_eq!(leaders.count(), 1, "{statuses:?}");

    let (leader, _) = statuses.leader(COHORT).unwrap();
    cut_all(cluster);
    cluster.kill(leader);
    let refused = cluster.run(["put", "other", "1", "--deadline", "4s"]);
    let said = refused.error(1);
    assert!(said.contains("unavailable") || said.contains("unknown"), "{said}");
    let before = history.acknowledged();
    for node in cluster.running() {
        let reads = history.timeline_reads_at(node);
        until("timeline reads go on", PATIENCE, || {
            (history.timeline_reads_at(node) > reads + 5).then_some(())
        });
    }
    assert_eq!(history.acknowledged(), before, "somebody leads without the coordinator's word");
    cluster.heal_all();
    history.wait_for_writes_within(10, FAILOVER_MAX + LONGER_THAN_A_SESSION);
    cluster.restart_node_with(leader, &["--allow-faults"]);
    cluster.wait_until_caught_up(PATIENCE);
    show("nobody had a coordinator", &history.finish(cluster));
}

/// The coordinator's process dies for longer than sessions live, and comes back with what it knew.
#[test]
fn the_coordinator_dies_and_comes_back_and_nothing_stops() {
    let cluster = &mut Cluster::start_by_hand_as(Protocol::Spinnaker, &["n"], &[]);
    let history = History::start(cluster, &["apple", "zebra"]);
    cluster.kill_coordinator();
    history.take_gap();
    history.hold(LONGER_THAN_A_SESSION);
    cluster.start_coordinator();
    history.wait_for_writes(20);
    let gap = history.take_gap();
    assert!(gap < Duration::from_secs(3), "writes were held up for {gap:?}");
    let victim = cluster.wait_for_leader(COHORT, PATIENCE);
    until("the dead leader is replaced", PATIENCE, || cluster.statuses().ok());
    cluster.kill(victim);
    history.wait_for_writes_within(10, FAILOVER_MAX + LONGER_THAN_A_SESSION);
    cluster.restart_node(victim);
    cluster.wait_until_caught_up(PATIENCE);
    show("the coordinator died", &history.finish(cluster));
}

/// S14, M23: a follower that comes back without its disk knows nothing of what it once acknowledged.
/// It is a learner until it has all that the leader had when it came.
#[test]
fn a_follower_that_lost_its_disk_comes_back_as_a_learner_and_gets_all_rows() {
    let cluster = &mut Cluster::start_by_hand_as(Protocol::Spinnaker, &[], &["--allow-faults"]);
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    for key in 0..20 {
        cluster.run(["put", &format!("key-{key}"), "1"]).out();
    }
    cluster.kill(3);
    cluster.wipe(3);
    // It cannot hear its leader at first, and so stays what it is.
    cluster.cut_one_way(1, 3);
    cluster.start_new_node(3, &["--allow-faults"]);
    cluster.wait_for_role(COHORT, 3, "learner", PATIENCE);
    history.wait_for_writes(20);

    // It makes no majority with the leader, so that without the other follower writes wait.
    cluster.kill(2);
    let refused = cluster.run(["put", "other", "1", "--deadline", "3s"]);
    refused.error(1);
    let before = history.acknowledged();
    history.hold(Duration::from_secs(1));
    assert_eq!(history.acknowledged(), before, "a learner was counted");
    cluster.restart_node_with(2, &["--allow-faults"]);
    cluster.heal_all();
    history.wait_for_writes_within(10, FAILOVER_MAX);
    cluster.wait_for_role(COHORT, 3, "follower", PATIENCE);
    cluster.wait_until_caught_up(PATIENCE);

    // What it has is enough.
    cluster.lead_everywhere(3);
    cluster.kill(1);
    history.wait_for_writes_within(10, FAILOVER_MAX);
    assert!(cluster.rows().len() >= 21);
    cluster.restart_node_with(1, &["--allow-faults"]);
    cluster.wait_until_caught_up(PATIENCE);
    show("a disk was lost", &history.finish(cluster));
}

/// The disks of a majority are gone, and with them perhaps acknowledged writes: nobody may pretend
/// otherwise, and least of all serve what is left as if it were all.
#[test]
fn a_cohort_that_lost_the_disks_of_a_majority_serves_nothing() {
    let cluster = &mut Cluster::start_by_hand_as(Protocol::Spinnaker, &[], &[]);
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    history.wait_for_writes(20);
    for node in [2, 3] {
        cluster.kill(node);
        cluster.wipe(node);
    }
    // A leader that still holds its lease has every acknowledged write, and may rightly take them
    // back one by one. So they come when it has given up.
    until("the leader has given up", PATIENCE, || {
        cluster.statuses().ok()?.leader(COHORT).is_none().then_some(())
    });
    for node in [2, 3] {
        cluster.start_new_node(node, &[]);
        cluster.wait_for_role(COHORT, node, "learner", PATIENCE);
    }
    history.hold(Duration::from_secs(1));
    let answered = || [1, 2, 3].map(|node| history.answered_by(node));
    let (writes, before) = (history.acknowledged(), answered());
    history.hold(LONGER_THAN_A_SESSION);
    assert_eq!((history.acknowledged(), answered()), (writes, before));
}

/// M21, M22: it is sent what it missed while writes go on; only for the last of it they wait, and
/// not for long.
#[test]
fn a_follower_that_missed_ten_thousand_writes_catches_up_from_the_log() {
    const SMALL: [&str; 2] = ["--value-bytes", "32"];

    let cluster = &mut Cluster::start(&["--replication", "spinnaker", "--ranges", "1"]);
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    cluster.kill(3);
    until_ok("ten thousand writes", PATIENCE, || {
        finish(cluster.load("3s", &SMALL)).out();
        let written = cluster.statuses().unwrap().log(1).commands;
        if written > 10_000 { Ok(()) } else { Err(written) }
    });
    history.take_gap();
    let more = cluster.load("4s", &SMALL);
    let more = std::thread::spawn(move || finish(more));
    cluster.restart_node(3);
    more.join().unwrap().out();
    cluster.wait_until_caught_up(PATIENCE);
    let gap = history.take_gap();
    let statuses = cluster.statuses().unwrap();
    let (_, leader) = statuses.leader(COHORT).unwrap();
    let measures = leader.measures.unwrap();
    assert!(measures.catch_ups >= 1, "{measures:?}");
    let block = measures.longest_write_stall_us;
    // The promise is 50 ms; a machine that is busy may wake the leader later.
    assert!(block.is_none_or(|block| block < 150_000), "{measures:?}");
    cluster.assert_has_the_same_rows(3, KEY[0]);
    let report = history.finish(cluster);
    show(&format!("behind: block {block:?} us, gap {gap:?}"), &report);
}

fn last(cluster: &Cluster) -> u64 {
    let statuses = cluster.statuses().unwrap();
    statuses.leader(COHORT).unwrap().1.last.unwrap().seq
}

/// M23: the leader has let go of the log that the follower needs, and sends its rows instead.
#[test]
fn a_follower_that_missed_more_than_the_log_holds_comes_back_by_snapshot() {
    const SMALL_LOG: [&str; 4] = ["--segment-bytes", "1048576", "--log-bytes-max", "3145728"];

    let cluster = &mut Cluster::start_by_hand_as(Protocol::Spinnaker, &[], &SMALL_LOG);
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    cluster.kill(3);
    let had = last(cluster);
    until_ok("the log is gone that the dead node needs", PATIENCE, || {
        finish(cluster.load("2s", &["--keys", "2000", "--value-bytes", "2000"])).out();
        let statuses = cluster.statuses()?;
        let purged = statuses.leader(COHORT).ok_or("no leader")?.1.purged.unwrap();
        if purged.seq > had { Ok(()) } else { Err(format!("{purged:?} of {had}")) }
    });
    cluster.restart_node_with(3, &SMALL_LOG);
    let statuses = cluster.wait_until_caught_up(PATIENCE);
    let (_, replica) = statuses.replicas(COHORT)[2];
    assert!(replica.purged.unwrap().seq > had, "not by snapshot: {replica:?}");
    cluster.assert_has_the_same_rows(3, KEY[0]);
    show("a snapshot", &history.finish(cluster));
}

/// SPIN-46: nobody has to wait for promises to run out that the leader gives back.
#[test]
fn the_lead_is_handed_over_in_a_fraction_of_the_grace() {
    let grace = ["--lease", "4s", "--grace", "5s"];
    let cluster = &mut Cluster::start(&[&ONE[..], &grace].concat());
    cluster.lead_everywhere(1);
    let history = History::start(cluster, &KEY);
    let mut gaps = Vec::new();
    for node in [2, 3, 1, 2] {
        history.take_gap();
        cluster.lead_everywhere(node);
        history.wait_for_writes(5);
        gaps.push(history.take_gap());
    }
    let longest = gaps.iter().max().unwrap();
    assert!(*longest < Duration::from_millis(2_500), "{gaps:?}");
    // And so it is when a node stops in order.
    history.take_gap();
    cluster.stop_node(2);
    history.wait_for_writes(5);
    let stopped = history.take_gap();
    assert!(stopped < Duration::from_millis(2_500), "{stopped:?}");
    cluster.restart_node(2);
    cluster.wait_until_caught_up(PATIENCE);
    let report = history.finish(cluster);
    show(&format!("handed over in {gaps:?}, stopping in {stopped:?}"), &report);
}

fn cut_all(cluster: &Cluster) {
    for node in cluster.running() {
        cluster.cut_coordinator(node);
    }
}

/// Tells what was measured; shown where tests are run with their output.
#[expect(clippy::print_stderr, reason = "a figure for whoever runs the test")]
fn show(what: &str, report: &Report) {
    eprintln!("{what}: {report:?}");
}
