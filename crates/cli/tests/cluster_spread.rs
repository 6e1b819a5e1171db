//! Replicas move by themselves to nodes that hold fewer, and cohorts are handed over to nodes that lead fewer,
//! whatever the protocol.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::time::Duration;

use trireme_types::Protocol;

use common::{Cluster, History, Recorder, until_ok};

/// How long the cluster may take to be as it should.
const PATIENCE: Duration = Duration::from_secs(90);

const NODES: u64 = 4;

/// Returns how many replicas each node holds.
fn held(cluster: &Cluster) -> Vec<usize> {
    let ranges = cluster.ranges();
    let held = |node: u64| {
        let holds = |range: &&serde_json::Value| {
            range["replicas"].as_array().unwrap().contains(&node.into())
        };
        ranges.iter().filter(holds).count()
    };
    (1..=NODES).map(held).collect()
}

/// Returns how many of so many ranges each of three nodes leads, or what is not so yet.
fn led(cluster: &Cluster, count: usize) -> Result<Vec<usize>, String> {
    let ranges = cluster.ranges();
    let led = |node: u64| ranges.iter().filter(|range| range["leader"] == node).count();
    let led: Vec<_> = (1..=3).map(led).collect();
    if led.iter().sum::<usize>() == count { Ok(led) } else { Err(format!("{led:?}")) }
}

#[track_caller]
fn until_held(cluster: &Cluster, what: &str, is_so: impl Fn(&[usize]) -> bool) {
    until_ok(what, PATIENCE, || {
        let held = held(cluster);
        if is_so(&held) { Ok(()) } else { Err(held) }
    });
}

/// A node without replicas gets its share under load, also if the node that decides dies meanwhile. [RANGE-22]
fn gets_its_share(protocol: Protocol) {
    let options = ["--ranges", "8", "--spread-delay", "1s", "--replication", protocol.name()];
    let cluster = &mut Cluster::start_nodes(4, &options);
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &["apple", "zebra"]);
    assert_eq!(held(cluster), [6; 4]);
    cluster.run(["--deadline", "90s", "node", "drain", "4"]).out();
    until_held(cluster, "the node is empty, and the others are even", |held| held == [8, 8, 8, 0]);
    cluster.run(["node", "drain", "4", "--undo"]).out();
    until_held(cluster, "a replica moves by itself", |held| held[3] > 0);
    cluster.kill(1);
    history.wait_for_writes_within(5, PATIENCE);
    cluster.restart_node_with(1, &["--spread-delay", "1s"]);
    until_held(cluster, "each node holds its share", |held| held == [6; 4]);
    cluster.wait_until_alone(PATIENCE);
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
}

#[test]
fn a_node_without_replicas_gets_its_share_spinnaker() {
    gets_its_share(Protocol::Spinnaker);
}

#[test]
fn a_node_without_replicas_gets_its_share_raft() {
    gets_its_share(Protocol::Raft);
}

#[test]
fn a_node_without_replicas_gets_its_share_pacifica() {
    gets_its_share(Protocol::Pacifica);
}

/// A node that was away leads its share again under load, and then nothing is handed over any more. [RANGE-23]
fn leads_its_share(protocol: Protocol) {
    const RANGES: usize = 9;
    let options = ["--ranges", "9", "--spread-leads-delay", "1s", "--replication", protocol.name()];
    let cluster = &mut Cluster::start(&options);
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &["apple", "zebra"]);
    cluster.kill(2);
    until_ok("the others lead all", PATIENCE, || match led(cluster, RANGES)? {
        led if led[1] == 0 => Ok(()),
        led => Err(format!("{led:?}")),
    });
    history.wait_for_writes_within(5, PATIENCE);
    history.take_gap();
    cluster.restart_node_with(2, &["--spread-leads-delay", "1s"]);
    until_ok("each leads its share", PATIENCE, || match led(cluster, RANGES)? {
        led if led == [3; 3] => Ok(()),
        led => Err(format!("{led:?}")),
    });
    show(&format!("no write for {:?} while what it leads came back", history.take_gap()));
    for _ in 0..30 {
        history.wait_for_writes(1);
        assert_eq!(led(cluster, RANGES), Ok(vec![3; 3]));
    }
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
}

#[test]
fn a_node_that_was_away_leads_its_share_again_spinnaker() {
    leads_its_share(Protocol::Spinnaker);
}

#[test]
fn a_node_that_was_away_leads_its_share_again_raft() {
    leads_its_share(Protocol::Raft);
}

#[test]
fn a_node_that_was_away_leads_its_share_again_pacifica() {
    leads_its_share(Protocol::Pacifica);
}

#[expect(clippy::print_stderr, reason = "a figure for those who run the test")]
fn show(text: &str) {
    eprintln!("{text}");
}
