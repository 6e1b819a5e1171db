//! A log that is kept far shorter than what is written, and nodes that die of SIGKILL all at once
//! again and again: what was acknowledged is there, and the log stays within its limit.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::fs;
use std::time::Duration;

use trireme_types::Protocol;

use common::{Cluster, Import, Rows, assert_holds, until_ok};

/// A limit as short as it can be: every segment that begins has the node flush its tables and give
/// up the one before.
const SMALL_LOG: [&str; 4] = ["--segment-bytes", "1048576", "--log-bytes-max", "1048576"];

const SEGMENT: u64 = 1024 * 1024;

/// The rows of one round, more than are acknowledged before the nodes are killed.
const ROUND_ROWS: usize = 20_000;

/// The bytes of a value. A few thousand rows fill several segments.
const VALUE_BYTES: usize = 1_000;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_short_log_loses_nothing_when_all_nodes_are_killed_raft_lsm() {
    survives_rounds_of_kills(Protocol::Raft, "lsm");
}

#[test]
fn a_short_log_loses_nothing_when_all_nodes_are_killed_raft_sled() {
    survives_rounds_of_kills(Protocol::Raft, "sled");
}

#[test]
fn a_short_log_loses_nothing_when_all_nodes_are_killed_spinnaker_lsm() {
    survives_rounds_of_kills(Protocol::Spinnaker, "lsm");
}

#[test]
fn a_short_log_loses_nothing_when_all_nodes_are_killed_spinnaker_sled() {
    survives_rounds_of_kills(Protocol::Spinnaker, "sled");
}

#[test]
fn a_short_log_loses_nothing_when_all_nodes_are_killed_pacifica_lsm() {
    survives_rounds_of_kills(Protocol::Pacifica, "lsm");
}

#[test]
fn a_short_log_loses_nothing_when_all_nodes_are_killed_pacifica_sled() {
    survives_rounds_of_kills(Protocol::Pacifica, "sled");
}

/// Two rounds for each protocol and engine, or `TRIREME_TEST_ROUNDS`.
fn survives_rounds_of_kills(protocol: Protocol, engine: &str) {
    let options = [&SMALL_LOG[..], &["--engine", engine]].concat();
    let cluster = &mut Cluster::start_by_hand_as(protocol, &[], &options);
    let mut rows = Rows::new();
    let mut acknowledged: Vec<String> = Vec::new();
    let rounds = std::env::var("TRIREME_TEST_ROUNDS").map_or(2, |text| text.parse().unwrap());
    for round in 1..=rounds {
        let new = rows_of(round);
        rows.extend(new.clone());
        let mut import = Import::start(cluster, &new, &[]);
        // Another place in the life of a segment each time.
        import.wait_for_acknowledged(3_000 + round * 677 % 1_000);
        cluster.kill_all();
        acknowledged.extend(import.abandon());
        for node in cluster.nodes() {
            // The limit, a segment that was begun meanwhile and the file that is ready for the next;
            // and as much again for a follower whose flush takes longer than its leader's.
            let bytes = log_bytes(cluster, node);
            assert!(bytes <= 6 * SEGMENT, "node {node}, round {round}: {bytes}");
        }
        cluster.start_coordinator();
        for node in cluster.nodes() {
            cluster.restart_node_with(node, &SMALL_LOG);
        }
        until_ok("the cluster serves", PATIENCE, || {
            let ran = cluster.run(["put", "probe", "1"]);
            if ran.stdout.is_empty() { Err(ran) } else { Ok(()) }
        });
        cluster.wait_until_caught_up(PATIENCE);
        rows.insert("probe".to_owned(), "1".to_owned());
        assert_holds(&cluster.rows(), &acknowledged, &rows);
    }
}

fn rows_of(round: usize) -> Rows {
    let row = |number: usize| {
        let value = format!("{round} {number} ").repeat(VALUE_BYTES);
        (format!("r{round:03}-{number:06}"), value[..VALUE_BYTES].to_owned())
    };
    (0..ROUND_ROWS).map(row).collect()
}

/// Returns the bytes of the files of a node's log.
fn log_bytes(cluster: &Cluster, node: usize) -> u64 {
    let files = fs::read_dir(cluster.node_folder(node).join("log")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

/// Values that make no sense together are a wrong call, and nothing is made.
#[test]
fn limits_of_the_log_that_cannot_be_kept_are_a_wrong_call() {
    let cluster = &mut Cluster::start(&["--ranges", "1"]);
    let cases: [(&[&str], &str); 4] = [
        (
            &["--segment-bytes", "2097152", "--log-bytes-max", "1048576"],
            "more than the whole log may have",
        ),
        (&["--log-bytes-max", "1000"], "--log-bytes-max of 1000 is too little"),
        (&["--segment-bytes", "512"], "--segment-bytes of 512 is too little"),
        (&["--segment-bytes", "99999999999", "--log-bytes-max", "999999999999"], "too much"),
    ];
    cluster.kill(3);
    for (options, expected) in cases {
        let refused = cluster.node_fails(3, options);
        assert!(refused.error(2).contains(expected), "{refused:?}");
    }
    cluster.restart_node(3);
    cluster.wait_until_caught_up(PATIENCE);
}
