//! One cluster with a range of each protocol: what befalls its nodes befalls all three at once, and
//! each bears it.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::fmt::Write;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;

use common::{Cluster, Disk, History, Import, Report, sorted, until_ok, words};

/// How long a cluster may take to be as it should after a fault, or after its end.
const PATIENCE: Duration = Duration::from_secs(30);

/// How soon every range serves again when a node is gone.
const FAILOVER_MAX: Duration = Duration::from_secs(15);

/// A range of each protocol, each with about a third of the words.
const RANGES: [&str; 6] =
    ["--range", "..f=raft", "--range", "f..p=spinnaker", "--range", "p..=pacifica"];

/// A key of each range, in the order of the cohorts, that is no word.
const KEYS: [&str; 3] = ["c-counter", "i-counter", "s-counter"];

/// While rows are imported into all ranges, the leader of each dies in its turn; the imports are told
/// of no error. Then everything dies, and every row is there.
#[test]
fn ranges_of_all_protocols_bear_the_death_of_each_leader_and_of_everything() {
    let words = words();
    let cluster = &mut Cluster::start(&RANGES);
    let listed = cluster.run(["range", "list"]).out().to_owned();
    for protocol in ["raft", "spinnaker", "pacifica"] {
        assert!(listed.contains(protocol), "{listed}");
    }
    let history = History::start(cluster, &KEYS);
    let mut imported = Vec::new();
    for cohort in [1, 2, 3] {
        let part: Vec<_> = words.iter().skip(cohort).step_by(12).cloned().collect();
        let pairs = part.iter().map(|(word, number)| (word, number));
        let mut import = Import::start(cluster, pairs, &["--jobs", "16"]);
        import.wait_for_acknowledged(imported.len() + part.len() / 8);
        let victim = cluster.wait_for_leader(cohort as u64, PATIENCE);
        cluster.kill(victim);
        history.wait_for_writes_within(10, FAILOVER_MAX);
        let ack_log = import.ack_log().to_owned();
        let summary = import.finish();
        let all = format!("imported {} rows, 0 errors", part.len());
        assert!(summary.out().starts_with(&all), "{summary:?}");
        imported.extend(part);
        assert_eq!(std::fs::read_to_string(ack_log).unwrap().lines().count(), imported.len());
        cluster.restart_node(victim);
        cluster.wait_until_caught_up(PATIENCE);
    }

    cluster.kill_all();
    cluster.up_again();
    history.wait_for_writes(20);
    cluster.wait_until_caught_up(PATIENCE);
    show("all protocols", &history.finish(cluster));
    let mut found = cluster.rows();
    KEYS.iter().for_each(|key| drop(found.remove(*key)));
    assert!(found == sorted(&imported), "{} rows of {}", found.len(), imported.len());
}

/// The processes are stopped in order, one after the other, and started again: each hands over what
/// it leads, whatever the protocol.
#[test]
fn ranges_of_all_protocols_bear_that_every_node_is_stopped_and_started() {
    let cluster = &mut Cluster::start(&RANGES);
    let history = History::start(cluster, &KEYS);
    for node in [1, 2, 3] {
        cluster.lead_everywhere(node);
        cluster.stop_node(node);
        history.wait_for_writes_within(10, FAILOVER_MAX);
        cluster.restart_node(node);
        cluster.wait_until_caught_up(PATIENCE);
    }
    // The coordinator is the last to stop, so that nobody waits for it.
    for node in [1, 2, 3] {
        cluster.stop_node(node);
    }
    cluster.stop();
    cluster.up_again();
    history.wait_for_writes(20);
    cluster.wait_until_caught_up(PATIENCE);
    show("stopped and started", &history.finish(cluster));
}

/// Each range is led by each node in turn, while it is written, and only by one that holds a replica.
#[test]
fn any_node_that_holds_a_replica_can_be_had_to_lead_whatever_the_protocol() {
    let cluster = &mut Cluster::start(&RANGES);
    let history = History::start(cluster, &KEYS);
    for cohort in [1, 2, 3] {
        for node in [1, 2, 3, 1] {
            let (cohort_name, node_name) = (format!("c{cohort}"), format!("n{node}"));
            let led = cluster.run(["range", "leader", &cohort_name, &node_name, "--json"]).json();
            assert_eq!((&led["cohort"], &led["leader"]), (&cohort.into(), &node.into()), "{led}");
            assert_eq!(cluster.wait_for_leader(cohort, PATIENCE), node);
            history.wait_for_writes_within(3, FAILOVER_MAX);
        }
    }
    let again = cluster.run(["range", "leader", "c1", "n1"]);
    assert!(again.out().starts_with("n1 leads c1"), "{again:?}");
    for (arguments, reason) in [
        (["range", "leader", "c1", "n9"], "n9 holds no replica of cohort c1: n1, n2, n3 do"),
        (["range", "leader", "c9", "n1"], "cohort c9 serves no range"),
    ] {
        let refused = cluster.run(arguments);
        assert!(refused.error(1).contains(reason), "{refused:?}");
    }
    show("led by each", &history.finish(cluster));
}

/// Faults by chance, one or two at a time and for as long as chance has it, around the lease, the grace
/// and the session timeout. `TRIREME_TEST_SEED` has them befall the nodes again in the same order, and
/// `TRIREME_TEST_ROUNDS` more of them.
#[test]
fn ranges_of_all_protocols_bear_faults_by_chance() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let seed = number("TRIREME_TEST_SEED").unwrap_or_else(rand::random);
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = &mut Cluster::start(&[&RANGES[..], &["--allow-faults"]].concat());
    let history = History::start(cluster, &KEYS);
    let mut done = format!("seed {seed}:");
    for round in 1..=number("TRIREME_TEST_ROUNDS").unwrap_or(5) {
        for _ in 0..random.random_range(1..=2) {
            let fault = befall(cluster, &mut random);
            write!(done, " {fault};").unwrap();
            std::thread::sleep(Duration::from_millis(random.random_range(100..2_500)));
        }
        show_text(&format!("round {round}: {done}"));
        history.check();
        for node in cluster.running() {
            cluster.signal(node, Signal::CONT);
        }
        for node in cluster.nodes() {
            if !cluster.running().contains(&node) {
                cluster.restart_node_with(node, &["--allow-faults"]);
            }
        }
        until_ok("every node answers", PATIENCE, || cluster.statuses().map(drop));
        cluster.heal_all();
        history.wait_for_writes(5);
        done.clear();
    }
    cluster.wait_until_caught_up(PATIENCE);
    show(&format!("seed {seed}"), &history.finish(cluster));
}

/// Has a node suffer by chance, and tells how.
fn befall(cluster: &mut Cluster, random: &mut StdRng) -> String {
    let running = cluster.running();
    let node = running[random.random_range(0..running.len())];
    let others: Vec<usize> = running.iter().copied().filter(|&other| other != node).collect();
    let other = others[random.random_range(0..others.len())];
    // A node that does not run, or not on, takes no faults.
    if cluster.statuses().is_err() || running.len() < 3 {
        return "nothing".to_owned();
    }
    let all = running.clone();
    let how = match random.random_range(0..9) {
        0 => {
            cluster.kill(node);
            "is killed"
        }
        1 => {
            cluster.signal(node, Signal::STOP);
            "is stopped"
        }
        2 => {
            cluster.cut(node, other);
            "and another do not hear each other"
        }
        3 => {
            cluster.cut_one_way(node, other);
            "is not heard by another"
        }
        4 => {
            others.iter().for_each(|&other| cluster.cut_one_way(node, other));
            "is not heard"
        }
        5 => {
            others.iter().for_each(|&other| cluster.cut_one_way(other, node));
            "hears nobody"
        }
        6 => {
            cluster.cut_coordinator(node);
            "does not reach the coordinator"
        }
        7 => {
            all.iter().for_each(|&node| cluster.cut_coordinator(node));
            "and all others do not reach the coordinator"
        }
        _ => {
            cluster.disk(node, Disk::Stall);
            "has a disk that stalls"
        }
    };
    format!("node {node} {how} ({other})")
}

/// Tells what was measured; shown where tests are run with their output.
#[expect(clippy::print_stderr, reason = "a figure for whoever runs the test")]
fn show_text(text: &str) {
    eprintln!("{text}");
}

fn show(what: &str, report: &Report) {
    show_text(&format!("{what}: {report:?}"));
}
