//! Ranges are cut in two while they serve: a cohort ends, and two others go on from exactly the state that
//! it ended with, each on its part of the rows.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::process::{Child, Stdio};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use trireme_types::Protocol;

use common::{Cluster, History, Import, Recorder, Rows, Scanner, finish, trireme, until_ok};

/// How long the cluster may take to be as it should after a change or a fault.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a change may take, with all that befalls it.
const CHANGE_DEADLINE: &str = "90s";

/// The keys of the histories: below and above every border.
const KEYS: [&str; 2] = ["a-counter", "z-counter"];

/// Where ranges are cut: between the keys of a recorder, and around them.
const BORDERS: [&str; 7] =
    ["user00000002", "user00000001", "user00000003", "h", "user00000000x", "v", "user00000002x"];

/// The moments at which something dies that a change needs, counted from when its command starts, which
/// takes some ten milliseconds until it asks.
const MOMENTS: [u64; 6] = [10, 25, 40, 55, 70, 85];

/// Returns the command that asks for a border.
fn splitting(cluster: &Cluster, at: &str) -> std::process::Command {
    let mut command = trireme();
    command.env("TRIREME_ENDPOINTS", cluster.endpoints());
    command.args(["--deadline", CHANGE_DEADLINE, "range", "split", at, "--json"]);
    command
}

/// A split that is being asked for.
fn begin(cluster: &Cluster, at: &str) -> Child {
    let mut command = splitting(cluster, at);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Has a border at the key, and returns the two cohorts there.
#[track_caller]
fn split(cluster: &Cluster, at: &str) -> [u64; 2] {
    let ran = finish(splitting(cluster, at));
    let answer: serde_json::Value = serde_json::from_str(ran.out()).unwrap();
    let ranges = &answer["ranges"];
    assert_eq!((&ranges[0]["end"], &ranges[1]["start"]), (&at.into(), &at.into()), "{answer}");
    [0, 1].map(|half| ranges[half]["cohort"].as_u64().unwrap())
}

/// One range becomes eight under load, one half at a time, and a scan that is under way meets each row
/// once. Then one of the eight alone gets another protocol. [RANGE-1] [RANGE-5] [RANGE-6] [RANGE-10]
/// [RANGE-12]
fn becomes_eight(protocol: Protocol) {
    let cluster = &mut Cluster::start(&["--ranges", "1", "--replication", protocol.name()]);
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &KEYS);
    let scanner = Scanner::start(cluster, &BORDERS);
    for at in BORDERS {
        history.wait_for_writes(3);
        history.take_gap();
        let halves = split(cluster, at);
        history.wait_for_writes(5);
        show(&format!("{protocol}, {at}: {halves:?}, no write for {:?}", history.take_gap()));
        assert_eq!(split(cluster, at), halves, "to ask again changes nothing");
    }
    show(&format!("{} scans", scanner.finish(cluster)));
    cluster.wait_until_alone(PATIENCE);
    let before = cluster.serving();
    let other = if protocol == Protocol::Raft { Protocol::Pacifica } else { Protocol::Raft };
    let changed = ["--deadline", CHANGE_DEADLINE, "range", "protocol", &before[4].to_string()];
    cluster.run(changed.into_iter().chain([other.name()])).out();
    cluster.wait_until_alone(PATIENCE);
    let mut after = cluster.serving();
    assert_ne!(std::mem::replace(&mut after[4], before[4]), before[4]);
    assert_eq!(after, before, "the others stay as they are");

    let rows = cluster.rows().len();
    cluster.kill_all();
    cluster.up_again();
    history.wait_for_writes(5);
    cluster.wait_until_caught_up(PATIENCE);
    assert_eq!(cluster.rows().len(), rows);
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
}

#[test]
fn one_range_becomes_eight_under_load_raft() {
    becomes_eight(Protocol::Raft);
}

#[test]
fn one_range_becomes_eight_under_load_spinnaker() {
    becomes_eight(Protocol::Spinnaker);
}

#[test]
fn one_range_becomes_eight_under_load_pacifica() {
    becomes_eight(Protocol::Pacifica);
}

/// A range that has grown too large is cut in two, and its halves again, while it is written and read.
/// [RANGE-24]
fn is_cut_as_it_grows(protocol: Protocol) {
    const SPLIT_BYTES: usize = 1024 * 1024;
    // Rows that no file takes less for.
    const ROWS: usize = 1_500;
    let options = ["--ranges", "1", "--split-bytes", "1048576", "--memtable-bytes", "1048576"];
    let options = options.into_iter().chain(["--replication", protocol.name()]);
    let cluster = &mut Cluster::start(&options.collect::<Vec<_>>());
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &KEYS);
    let mut random = StdRng::seed_from_u64(24);
    let mut value = || (0..4096).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect();
    let rows: Rows = (0..ROWS).map(|row| (format!("row{row:06}"), value())).collect();
    Import::start(cluster, &rows, &[]).finish().out();
    until_ok("no range is much larger than it may be", PATIENCE, || {
        let found = cluster.rows();
        let missing = rows.iter().find(|(key, value)| found.get(*key) != Some(value));
        assert_eq!(missing, None, "it was acknowledged");
        let mut sizes = Vec::new();
        for range in cluster.ranges() {
            let (start, end) = (range["start"].as_str().unwrap(), range["end"].as_str());
            let is_in = |key: &str| key >= start && end.is_none_or(|end| key < end);
            let of_range = found.iter().filter(|(key, _)| is_in(key));
            sizes.push(of_range.map(|(key, value)| key.len() + value.len()).sum::<usize>());
        }
        // What is in memory alone does not count yet.
        let is_small = sizes.iter().all(|bytes| *bytes <= 2 * SPLIT_BYTES);
        if is_small && sizes.len() >= 4 { Ok(()) } else { Err(sizes) }
    });
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
}

#[test]
fn a_range_is_cut_as_it_grows_raft() {
    is_cut_as_it_grows(Protocol::Raft);
}

#[test]
fn a_range_is_cut_as_it_grows_spinnaker() {
    is_cut_as_it_grows(Protocol::Spinnaker);
}

#[test]
fn a_range_is_cut_as_it_grows_pacifica() {
    is_cut_as_it_grows(Protocol::Pacifica);
}

/// The leader dies at some moment of the split, a later one each time: the split ends done. [RANGE-5]
/// [RANGE-8]
fn survives_the_death_of_the_leader(protocol: Protocol) {
    let cluster = &mut Cluster::start(&["--ranges", "1", "--replication", protocol.name()]);
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &KEYS);
    for (moment, at) in MOMENTS.into_iter().zip(BORDERS) {
        let cohort = cluster.cohort_of(at);
        let leader = cluster.wait_for_leader(cohort, PATIENCE);
        let mut splitting = begin(cluster, at);
        std::thread::sleep(Duration::from_millis(moment));
        cluster.kill(leader);
        history.wait_for_writes_within(3, PATIENCE);
        // By then a cohort of PacificA may go on without it, and one that lacks a replica is not changed.
        cluster.restart_node(leader);
        assert!(splitting.wait().unwrap().success(), "the split at {at} failed");
        split(cluster, at);
        cluster.wait_until_alone(PATIENCE);
    }
    assert_eq!(cluster.serving().len(), MOMENTS.len() + 1);
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
}

#[test]
fn a_split_whose_leader_dies_ends_done_raft() {
    survives_the_death_of_the_leader(Protocol::Raft);
}

#[test]
fn a_split_whose_leader_dies_ends_done_spinnaker() {
    survives_the_death_of_the_leader(Protocol::Spinnaker);
}

#[test]
fn a_split_whose_leader_dies_ends_done_pacifica() {
    survives_the_death_of_the_leader(Protocol::Pacifica);
}

/// The coordinator dies at some moment of the split and comes back: the split ends done. Then it is put
/// back to what it knew before the last split, and brought forward; and it is rebuilt from the nodes while
/// another split is under way. [RANGE-5]
fn survives_the_death_of_the_coordinator(protocol: Protocol) {
    let cluster = &mut Cluster::start_by_hand_as(protocol, &[], &[]);
    let history = History::start(cluster, &KEYS);
    let (last, borders) = BORDERS.split_last().unwrap();
    for (moment, at) in MOMENTS.into_iter().zip(borders) {
        if moment == MOMENTS[5] {
            cluster.keep_coordinator("kept");
        }
        let mut splitting = begin(cluster, at);
        std::thread::sleep(Duration::from_millis(moment));
        cluster.kill_coordinator();
        std::thread::sleep(Duration::from_millis(300));
        cluster.start_coordinator();
        assert!(splitting.wait().unwrap().success(), "the split at {at} failed");
        history.wait_for_writes_within(3, PATIENCE);
        split(cluster, at);
        cluster.wait_until_alone(PATIENCE);
    }
    let before = cluster.serving();
    cluster.kill_coordinator();
    cluster.put_coordinator_back("kept");
    cluster.start_coordinator();
    // The nodes serve without it; they know better once they have compared.
    until_ok("the coordinator is brought forward", PATIENCE, || {
        cluster.has_said("and was brought forward").then_some(()).ok_or("it is older yet")
    });
    history.wait_for_writes_within(3, PATIENCE);
    cluster.wait_until_alone(PATIENCE);
    assert_eq!(cluster.serving(), before);

    let mut splitting = begin(cluster, last);
    std::thread::sleep(Duration::from_millis(MOMENTS[1]));
    cluster.kill_coordinator();
    cluster.lose_coordinator();
    cluster.start_coordinator();
    until_ok("the coordinator is rebuilt", PATIENCE, || {
        let from: Vec<_> = cluster.nodes().map(|node| cluster.address(node)).collect();
        let mut rebuild = trireme();
        rebuild.args(["coordinator", "rebuild", "--from", &from.join(",")]);
        rebuild.args(["--coordinator", &cluster.coordinator()]);
        let ran = finish(rebuild);
        if ran.status == 0 { Ok(()) } else { Err(ran) }
    });
    assert!(splitting.wait().unwrap().success(), "the split at {last} failed");
    history.wait_for_writes_within(3, PATIENCE);
    split(cluster, last);
    cluster.wait_until_alone(PATIENCE);
    assert_eq!(cluster.serving().len(), BORDERS.len() + 1);
    show(&format!("{:?}", history.finish(cluster)));
}

#[test]
fn a_split_whose_coordinator_dies_ends_done_raft() {
    survives_the_death_of_the_coordinator(Protocol::Raft);
}

#[test]
fn a_split_whose_coordinator_dies_ends_done_spinnaker() {
    survives_the_death_of_the_coordinator(Protocol::Spinnaker);
}

#[test]
fn a_split_whose_coordinator_dies_ends_done_pacifica() {
    survives_the_death_of_the_coordinator(Protocol::Pacifica);
}

/// Everything dies when two halves have gone on, before anything of that is on the disk but their logs:
/// the rows of both come back from the log of the one that ended. And a node that was dead meanwhile is
/// brought up to date in both. [RANGE-7] [RANGE-8]
fn survives_the_death_of_everything(protocol: Protocol) {
    let cluster = &mut Cluster::start(&["--ranges", "1", "--replication", protocol.name()]);
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &KEYS);
    let mut times = 0;
    // One of PacificA goes on without a node that is dead, and lacks a replica then.
    let takes_turns = protocol != Protocol::Pacifica;
    for at in BORDERS[..2].iter().filter(|_| takes_turns) {
        let cohort = cluster.cohort_of(at);
        // As long as a node is missing, what has ended is kept, and the tables are not flushed.
        let victim = cluster.wait_for_leader(cohort, PATIENCE) % 3 + 1;
        cluster.kill(victim);
        split(cluster, at);
        history.wait_for_writes(10);
        let statuses = cluster.statuses().unwrap();
        let is_kept =
            statuses.0.values().all(|node| node.successions.iter().any(|it| it.is_sealed));
        assert!(is_kept, "{statuses:?}");
        cluster.kill_all();
        cluster.up_again();
        history.wait_for_writes_within(3, PATIENCE);
        cluster.wait_until_alone(PATIENCE);
        let again = cluster.have_said("applying what another cohort began with");
        assert!(again > times, "nothing was missing");
        times = again;
    }
    // Whatever is done at the moment of the death, it is done or not.
    for (moment, at) in MOMENTS.into_iter().skip(1).step_by(2).zip(&BORDERS[2..]) {
        let mut splitting = begin(cluster, at);
        std::thread::sleep(Duration::from_millis(moment));
        cluster.kill_all();
        drop(splitting.kill());
        splitting.wait().unwrap();
        cluster.up_again();
        split(cluster, at);
        history.wait_for_writes_within(3, PATIENCE);
        cluster.wait_until_alone(PATIENCE);
    }
    // A node that is dead, and stays so until the others have given up what has ended.
    if takes_turns {
        let at = BORDERS[5];
        let cohort = cluster.cohort_of(at);
        let victim = cluster.wait_for_leader(cohort, PATIENCE) % 3 + 1;
        cluster.kill(victim);
        split(cluster, at);
        cluster.wait_until_alone(PATIENCE);
        cluster.restart_node(victim);
        cluster.wait_until_alone(PATIENCE);
        cluster.lead_everywhere(victim);
        history.wait_for_writes(5);
    }
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
}

#[test]
fn what_two_halves_began_with_survives_the_death_of_everything_raft() {
    survives_the_death_of_everything(Protocol::Raft);
}

#[test]
fn what_two_halves_began_with_survives_the_death_of_everything_spinnaker() {
    survives_the_death_of_everything(Protocol::Spinnaker);
}

#[test]
fn what_two_halves_began_with_survives_the_death_of_everything_pacifica() {
    survives_the_death_of_everything(Protocol::Pacifica);
}

#[expect(clippy::print_stderr, reason = "a figure for those who run the test")]
fn show(text: &str) {
    eprintln!("{text}");
}
