//! One cluster with a range of each protocol: what befalls its nodes befalls all three at once, and
//! each bears it.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::time::Duration;

use common::{Cluster, History, Import, Report, sorted, words};

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

/// Tells what was measured; shown where tests are run with their output.
#[expect(clippy::print_stderr, reason = "a figure for whoever runs the test")]
fn show(what: &str, report: &Report) {
    eprintln!("{what}: {report:?}");
}
