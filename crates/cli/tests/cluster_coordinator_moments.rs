//! At moments by chance, in a run with kills, the coordinator loses all that it knew, or is put back
//! to what it knew earlier. After the steps that docs/coordinator.md names, every acknowledged write
//! is there, and no replica has served an older state meanwhile.
//!
//! `TRIREME_TEST_ROUNDS` has more moments than two, `TRIREME_TEST_SEED` the same ones again, and
//! `TRIREME_TEST_COORDINATOR=etcd` a real etcd.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use trireme_types::Protocol;

use common::{Cluster, History, Import, Rows, assert_holds, finish, trireme, until_ok};

/// How long the cluster may take to acknowledge further writes once everything runs. Sessions of
/// killed processes have to expire first, and a PacificA cohort waits for all its replicas.
const PATIENCE: Duration = Duration::from_secs(60);

/// The keys of the history: one in each range.
const KEYS: [&str; 2] = ["a-counter", "s-counter"];

/// The rows of one round, more than are acknowledged before it is over.
const ROUND_ROWS: usize = 50_000;

#[test]
fn a_coordinator_lost_or_put_back_at_any_moment_loses_nothing_raft() {
    survives(Protocol::Raft);
}

#[test]
fn a_coordinator_lost_or_put_back_at_any_moment_loses_nothing_spinnaker() {
    survives(Protocol::Spinnaker);
}

#[test]
fn a_coordinator_lost_or_put_back_at_any_moment_loses_nothing_pacifica() {
    survives(Protocol::Pacifica);
}

fn survives(protocol: Protocol) {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let seed = number("TRIREME_TEST_SEED").unwrap_or_else(rand::random);
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = &mut Cluster::start_by_hand_as(protocol, &["n"], &[]);
    let history = History::start(cluster, &KEYS);
    let (mut rows, mut acknowledged) = (Rows::new(), Vec::new());
    for round in 1..=number("TRIREME_TEST_ROUNDS").unwrap_or(2) {
        show(&format!("{protocol}, seed {seed}, round {round}"));
        let new = rows_of(round);
        rows.extend(new.clone());
        let mut import = Import::start(cluster, &new, &["--jobs", "16", "--deadline", "3m"]);
        import.wait_for_acknowledged(acknowledged.len() + 1);
        // Two rounds have both, in one order or the other.
        if (round + seed) % 2 == 0 {
            is_put_back(cluster, &mut random);
        } else {
            is_lost(cluster, &mut random);
        }
        for node in stopped(cluster) {
            cluster.restart_node(node);
        }
        history.wait_for_writes_within(5, PATIENCE);
        acknowledged = import.abandon();
    }
    cluster.wait_until_caught_up(PATIENCE);
    show(&format!("{protocol}, seed {seed}: {:?}", history.finish(cluster)));
    let mut found = cluster.rows();
    KEYS.iter().for_each(|key| drop(found.remove(*key)));
    assert_holds(&found, &acknowledged, &rows);
}

/// The coordinator is kept, things change, and it is put back.
fn is_put_back(cluster: &mut Cluster, random: &mut StdRng) {
    pause(random);
    cluster.keep_coordinator("kept");
    for _ in 0..random.random_range(1..=3) {
        kill_or_restart(cluster, random);
    }
    cluster.kill_coordinator();
    pause(random);
    if random.random_bool(0.5) {
        kill_one(cluster, random);
    }
    cluster.put_coordinator_back("kept");
    std::fs::remove_dir_all(cluster.folder().join("kept")).unwrap();
    cluster.start_coordinator();
}

/// The coordinator loses all, and is rebuilt from what the nodes know: those that run are asked, and
/// the folders of the others are read.
fn is_lost(cluster: &mut Cluster, random: &mut StdRng) {
    for _ in 0..random.random_range(0..=2) {
        kill_or_restart(cluster, random);
    }
    // A node that starts and finds that the coordinator knows no cluster ends.
    until_ok("every node answers", PATIENCE, || cluster.statuses().map(drop));
    cluster.kill_coordinator();
    pause(random);
    if random.random_bool(0.5) {
        kill_one(cluster, random);
    }
    cluster.lose_coordinator();
    cluster.start_coordinator();
    pause(random);
    until_ok("the coordinator is rebuilt", PATIENCE, || {
        let from = |node: usize| match cluster.running().contains(&node) {
            true => cluster.address(node),
            false => cluster.node_folder(node).to_str().unwrap().to_owned(),
        };
        let from: Vec<String> = cluster.nodes().map(from).collect();
        let mut rebuild = trireme();
        rebuild.args(["coordinator", "rebuild", "--from", &from.join(",")]);
        rebuild.args(["--coordinator", &cluster.coordinator()]);
        let ran = finish(rebuild);
        if ran.status == 0 { Ok(ran) } else { Err(ran) }
    });
}

/// Kills a node, or starts one again that was killed.
fn kill_or_restart(cluster: &mut Cluster, random: &mut StdRng) {
    match stopped(cluster)[..] {
        [node, ..] => cluster.restart_node(node),
        [] => kill_one(cluster, random),
    }
    pause(random);
}

fn kill_one(cluster: &mut Cluster, random: &mut StdRng) {
    let running = cluster.running();
    cluster.kill(running[random.random_range(0..running.len())]);
}

fn stopped(cluster: &Cluster) -> Vec<usize> {
    let running = cluster.running();
    cluster.nodes().filter(|node| !running.contains(node)).collect()
}

/// Up to longer than sessions and leases last, so that elections and changes of configurations happen
/// before, within and after it.
fn pause(random: &mut StdRng) {
    std::thread::sleep(Duration::from_millis(random.random_range(0..5_000)));
}

fn rows_of(round: u64) -> Rows {
    let row = |number: usize| {
        // In both ranges.
        let letter = if number.is_multiple_of(2) { 'b' } else { 't' };
        (format!("{letter}-{round:03}-{number:06}"), format!("{round} {number}"))
    };
    (0..ROUND_ROWS).map(row).collect()
}

#[expect(clippy::print_stderr, reason = "shown where the test fails: the seed repeats it")]
fn show(text: &str) {
    eprintln!("{text}");
}
