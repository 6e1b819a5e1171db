//! Neighbouring ranges become one while they serve: two cohorts end, and one goes on from exactly the states
//! that they ended with.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use trireme_types::Protocol;

use common::{Cluster, History, Recorder, Scanner, finish, trireme, until_ok};

/// How long the cluster may take to be as it should after a change or a fault.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a change may take, with all that befalls it.
const CHANGE_DEADLINE: &str = "90s";

/// The keys of the histories: below and above every border.
const KEYS: [&str; 2] = ["a-counter", "z-counter"];

/// The borders of the eight ranges that there are at first, some between the keys of a recorder, in the order in
/// which they go.
const BORDERS: [&str; 7] =
    ["user00000001", "v", "user00000002x", "h", "user00000003", "user00000000x", "user00000002"];

/// The moments at which something dies that a change needs, counted from when its command starts, which
/// takes some ten milliseconds until it asks.
const MOMENTS: [u64; 6] = [10, 25, 40, 55, 70, 85];

/// Starts a cluster of eight ranges whose leaders are spread.
fn start(protocol: Protocol) -> Cluster {
    let mut borders = BORDERS;
    borders.sort_unstable();
    Cluster::start(&["--split-at", &borders.join(","), "--replication", protocol.name()])
}

/// Returns the command that has a border go.
fn merging(cluster: &Cluster, border: &str) -> Command {
    // A key below it, and above the border before it.
    let (low, last) = border.split_at(border.len() - 1);
    let below = format!("{low}{}~", char::from(last.as_bytes()[0] - 1));
    let mut command = trireme();
    command.env("TRIREME_ENDPOINTS", cluster.endpoints());
    command.args(["--deadline", CHANGE_DEADLINE, "range", "merge", &below, "--json"]);
    command.args(["--border", border]);
    command
}

/// A merge that is being asked for.
fn begin(cluster: &Cluster, border: &str) -> Child {
    let mut command = merging(cluster, border);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until a merge that was asked for has ended.
#[track_caller]
fn has_ended(running: Child, border: &str) {
    let ran = running.wait_with_output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success(), "the merge at {border} failed: {said}");
}

/// Has a border go, and returns the cohort that serves there, and whether there was none.
#[track_caller]
fn merge(cluster: &Cluster, border: &str) -> (u64, bool) {
    let ran = finish(merging(cluster, border));
    let answer: serde_json::Value = serde_json::from_str(ran.out()).unwrap();
    let start = answer["start"].as_str().unwrap();
    let end = answer["end"].as_str();
    assert!(start < border && end.is_none_or(|end| end > border), "{answer}");
    (answer["cohort"].as_u64().unwrap(), answer["were_one"].as_bool().unwrap())
}

/// Eight ranges become one under load, and a scan that is under way meets each row once. What was merged is
/// cut again, elsewhere, and once more merged. [RANGE-20] [RANGE-21] [RANGE-6] [RANGE-10] [RANGE-12]
fn become_one(protocol: Protocol) {
    let cluster = &mut start(protocol);
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &KEYS);
    let scanner = Scanner::start(cluster, &BORDERS);
    for border in BORDERS {
        history.wait_for_writes(3);
        history.take_gap();
        let (cohort, _) = merge(cluster, border);
        history.wait_for_writes(5);
        show(&format!("{protocol}, {border}: {cohort}, no write for {:?}", history.take_gap()));
        assert_eq!(merge(cluster, border), (cohort, true), "to ask again changes nothing");
    }
    show(&format!("{} scans", scanner.finish(cluster)));
    cluster.wait_until_alone(PATIENCE);
    assert_eq!(cluster.serving().len(), 1);

    let rows = cluster.rows().len();
    cluster.kill_all();
    cluster.up_again();
    history.wait_for_writes(5);
    let at = "user00000001x";
    cluster.run(["--deadline", CHANGE_DEADLINE, "range", "split", at]).out();
    cluster.wait_until_alone(PATIENCE);
    cluster.kill_all();
    cluster.up_again();
    history.wait_for_writes(5);
    merge(cluster, at);
    cluster.wait_until_alone(PATIENCE);
    cluster.wait_until_caught_up(PATIENCE);
    assert_eq!(cluster.rows().len(), rows);
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
}

#[test]
fn eight_ranges_become_one_under_load_raft() {
    become_one(Protocol::Raft);
}

#[test]
fn eight_ranges_become_one_under_load_spinnaker() {
    become_one(Protocol::Spinnaker);
}

#[test]
fn eight_ranges_become_one_under_load_pacifica() {
    become_one(Protocol::Pacifica);
}

/// The leader of the lower range or of the upper one dies at some moment of the merge, a later one each time:
/// the merge ends done. [RANGE-8] [RANGE-20] [RANGE-21]
fn survives_the_death_of_a_leader(protocol: Protocol) {
    let cluster = &mut start(protocol);
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &KEYS);
    for (turn, (moment, border)) in MOMENTS.into_iter().zip(BORDERS).enumerate() {
        let lower = format!("{}~", &border[..border.len() - 1]);
        let cohort = cluster.cohort_of(if turn % 2 == 0 { border } else { &lower });
        let leader = cluster.wait_for_leader(cohort, PATIENCE);
        let running = begin(cluster, border);
        std::thread::sleep(Duration::from_millis(moment));
        cluster.kill(leader);
        history.wait_for_writes_within(3, PATIENCE);
        // By then a cohort of PacificA may go on without it, and one that lacks a replica is not changed.
        cluster.restart_node(leader);
        has_ended(running, border);
        merge(cluster, border);
        cluster.wait_until_alone(PATIENCE);
    }
    assert_eq!(cluster.serving().len(), BORDERS.len() + 1 - MOMENTS.len());
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
}

#[test]
fn a_merge_whose_leader_dies_ends_done_raft() {
    survives_the_death_of_a_leader(Protocol::Raft);
}

#[test]
fn a_merge_whose_leader_dies_ends_done_spinnaker() {
    survives_the_death_of_a_leader(Protocol::Spinnaker);
}

#[test]
fn a_merge_whose_leader_dies_ends_done_pacifica() {
    survives_the_death_of_a_leader(Protocol::Pacifica);
}

/// Every process dies at some moment of the merge, the coordinator's too: it is done or undone, and can be
/// asked for again. [RANGE-8] [RANGE-20]
fn survives_the_death_of_everything(protocol: Protocol) {
    let cluster = &mut start(protocol);
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &KEYS);
    for (moment, border) in MOMENTS.into_iter().zip(BORDERS) {
        let mut running = begin(cluster, border);
        std::thread::sleep(Duration::from_millis(moment));
        cluster.kill_all();
        drop(running.kill());
        running.wait().unwrap();
        cluster.up_again();
        merge(cluster, border);
        history.wait_for_writes_within(3, PATIENCE);
        cluster.wait_until_alone(PATIENCE);
    }
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
}

#[test]
fn what_one_began_with_survives_the_death_of_everything_raft() {
    survives_the_death_of_everything(Protocol::Raft);
}

#[test]
fn what_one_began_with_survives_the_death_of_everything_spinnaker() {
    survives_the_death_of_everything(Protocol::Spinnaker);
}

#[test]
fn what_one_began_with_survives_the_death_of_everything_pacifica() {
    survives_the_death_of_everything(Protocol::Pacifica);
}

/// The lower one's protocol counts, and the other's writes are known to it.
#[test]
fn ranges_of_unlike_protocols_become_one() {
    let cluster = &mut start(Protocol::Raft);
    let history = History::start(cluster, &KEYS);
    let change = |key: &str, protocol: Protocol| {
        let cohort = cluster.cohort_of(key).to_string();
        let command = ["--deadline", CHANGE_DEADLINE, "range", "protocol", &cohort];
        cluster.run(command.into_iter().chain([protocol.name()])).out();
    };
    change("b", Protocol::Pacifica);
    change("v", Protocol::Spinnaker);
    let protocols = [("h", "pacifica"), ("user00000000x", "pacifica"), ("v", "raft")];
    for (border, protocol) in protocols {
        let (cohort, _) = merge(cluster, border);
        let ranges = cluster.ranges();
        let range = ranges.iter().find(|range| range["cohort"] == cohort).unwrap();
        assert_eq!(range["protocol"], protocol, "{range}");
        history.wait_for_writes(3);
    }
    cluster.wait_until_alone(PATIENCE);
    show(&format!("{:?}", history.finish(cluster)));
}

#[test]
fn a_merge_that_cannot_be_is_refused() {
    let cluster = &mut Cluster::start_nodes(4, &["--split-at", "m", "--replication", "raft"]);
    let merge = |args: &[&str]| {
        cluster.run(["--deadline", "2s", "range", "merge"].iter().chain(args).copied())
    };
    let last = merge(&["z"]);
    assert!(last.error(2).contains("no range is above"), "{last:?}");
    let other = merge(&["a", "--border", "n"]);
    assert!(other.error(2).contains("is not the upper end"), "{other:?}");
    until_ok("the replicas are on unlike nodes", PATIENCE, || {
        let ran = merge(&["a"]);
        if ran.stderr.contains("move them first") { Ok(()) } else { Err(ran) }
    });
    assert_eq!(cluster.serving().len(), 2);
}

#[expect(clippy::print_stderr, reason = "a figure for those who run the test")]
fn show(text: &str) {
    eprintln!("{text}");
}
