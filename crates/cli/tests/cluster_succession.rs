//! Ranges change their protocol while they serve: a cohort ends, and another one goes on from exactly
//! the state that it ended with.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::collections::BTreeMap;
use std::process::Child;
use std::time::{Duration, Instant};

use trireme_types::Protocol;

use common::{Cluster, History, Recorder, trireme, until_ok};

/// How long the cluster may take to be as it should after a change or a fault.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a change may take, with all that befalls it.
const CHANGE_DEADLINE: &str = "90s";

/// One after the other, from Raft on, these take every way from one protocol to another.
const ALL_WAYS: [Protocol; 6] = [
    Protocol::Spinnaker,
    Protocol::Pacifica,
    Protocol::Raft,
    Protocol::Pacifica,
    Protocol::Spinnaker,
    Protocol::Raft,
];

/// A change of a protocol that is being asked for.
fn begin(cluster: &Cluster, cohort: u64, protocol: Protocol) -> Child {
    let mut command = trireme();
    command.env("TRIREME_ENDPOINTS", cluster.endpoints());
    command.args(["--deadline", CHANGE_DEADLINE, "range", "protocol"]);
    command.args([&format!("c{cohort}"), protocol.name()]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    command.spawn().unwrap()
}

/// Has the range of a cohort replicated by the protocol, and returns the cohort that serves it then.
#[track_caller]
fn change(cluster: &Cluster, cohort: u64, protocol: Protocol) -> u64 {
    let name = format!("c{cohort}");
    let change = ["--deadline", CHANGE_DEADLINE, "range", "protocol", &name, protocol.name()];
    let ran = cluster.run(change.into_iter().chain(["--json"]));
    let answer: serde_json::Value = serde_json::from_str(ran.out()).unwrap();
    assert_eq!(answer["protocol"], protocol.name());
    answer["cohort"].as_u64().unwrap()
}

/// Waits until nothing is left of what has ended: each node that runs holds replicas of `cohort` alone,
/// which have all that their leader has.
#[track_caller]
fn wait_until_alone(cluster: &Cluster, cohort: u64) {
    until_ok("nothing is left of what has ended", PATIENCE, || {
        let statuses = cluster.statuses()?;
        let is_over = statuses.cohorts() == [cohort].into()
            && statuses.0.values().all(|node| node.successions.is_empty());
        is_over.then_some(()).ok_or_else(|| format!("{statuses:?}"))
    });
    cluster.wait_until_caught_up(PATIENCE);
}

/// [RANGE-1] [RANGE-5] [RANGE-6] [RANGE-9] [RANGE-10]
#[test]
fn a_range_goes_from_each_protocol_to_each_other_under_load() {
    let cluster = &mut Cluster::start(&["--ranges", "1", "--replication", "raft"]);
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &["counter"]);
    let mut cohort = 1;
    for protocol in ALL_WAYS {
        history.wait_for_writes(10);
        history.take_gap();
        let next = change(cluster, cohort, protocol);
        history.wait_for_writes(10);
        show(&format!("c{cohort} to c{next} ({protocol}): no write for {:?}", history.take_gap()));
        assert_eq!(next, cohort + 1);
        // To ask again, by either name, changes nothing.
        assert_eq!(change(cluster, cohort, protocol), next);
        assert_eq!(change(cluster, next, protocol), next);
        wait_until_alone(cluster, next);
        let listed = cluster.run(["range", "list"]).out().to_owned();
        assert!(
            listed.contains(protocol.name()) && listed.contains(&format!("c{next}")),
            "{listed}"
        );
        cohort = next;
    }
    // All that is there, is there after the death of everything.
    cluster.kill_all();
    cluster.up_again();
    history.wait_for_writes(10);
    cluster.wait_until_caught_up(PATIENCE);
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
    let gone = cluster.run(["range", "protocol", "c99", "raft"]);
    assert!(gone.error(1).trim_end().ends_with("there is no cohort c99"), "{gone:?}");
}

/// A node is dead when the range changes. If it comes back soon, it takes what it has along; if the
/// others have given up the cohort that has ended by then, they bring it up to date. [RANGE-7]
#[test]
fn a_node_that_was_dead_when_a_range_changed_is_brought_up_to_date() {
    let cluster = &mut Cluster::start(&["--ranges", "1", "--replication", "raft"]);
    let history = History::start(cluster, &["counter"]);
    let mut cohort = 1;
    for protocol in [Protocol::Spinnaker, Protocol::Raft] {
        let leader = cluster.wait_for_leader(cohort, PATIENCE);
        let victim = leader % 3 + 1;
        cluster.kill(victim);
        let next = change(cluster, cohort, protocol);
        history.wait_for_writes(20);
        if protocol == Protocol::Raft {
            wait_until_alone(cluster, next);
        }
        cluster.restart_node(victim);
        wait_until_alone(cluster, next);
        cohort = next;
    }
    cluster.lead_everywhere(3);
    history.wait_for_writes(10);
    show(&format!("{:?}", history.finish(cluster)));
}

/// The leader dies at some moment of the change, a later one each time: the change ends done.
/// [RANGE-5] [RANGE-8]
#[test]
fn a_change_whose_leader_dies_ends_done() {
    let cluster = &mut Cluster::start(&["--ranges", "1", "--replication", "raft"]);
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &["counter"]);
    let mut cohort = 1;
    for (round, protocol) in (0_u32..).zip(ALL_WAYS) {
        let leader = cluster.wait_for_leader(cohort, PATIENCE);
        let mut changing = begin(cluster, cohort, protocol);
        // The command itself takes some ten milliseconds until it asks.
        std::thread::sleep(Duration::from_millis(15) * round + Duration::from_millis(10));
        cluster.kill(leader);
        history.wait_for_writes_within(5, PATIENCE);
        // By then a cohort of PacificA may go on without it, and one that lacks a replica is not changed.
        cluster.restart_node(leader);
        assert!(changing.wait().unwrap().success(), "the change to {protocol} failed");
        let next = change(cluster, cohort, protocol);
        assert_eq!(next, cohort + 1);
        wait_until_alone(cluster, next);
        cohort = next;
    }
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
}

/// The coordinator dies at some moment of the change and comes back: the change ends done. [RANGE-5]
#[test]
fn a_change_whose_coordinator_dies_ends_done() {
    let cluster = &mut Cluster::start_by_hand_as(Protocol::Raft, &[], &[]);
    let history = History::start(cluster, &["counter"]);
    let mut cohort = 1;
    for (round, protocol) in (0_u32..).zip(ALL_WAYS) {
        let mut changing = begin(cluster, cohort, protocol);
        std::thread::sleep(Duration::from_millis(15) * round + Duration::from_millis(10));
        cluster.kill_coordinator();
        std::thread::sleep(Duration::from_millis(300));
        cluster.start_coordinator();
        assert!(changing.wait().unwrap().success(), "the change to {protocol} failed");
        history.wait_for_writes_within(5, PATIENCE);
        let next = change(cluster, cohort, protocol);
        assert_eq!(next, cohort + 1);
        wait_until_alone(cluster, next);
        cohort = next;
    }
    show(&format!("{:?}", history.finish(cluster)));
}

/// Everything dies when another cohort has gone on, before anything of that is on the disk but its log:
/// its rows come back from the log of the one that ended. [RANGE-8]
#[test]
fn what_a_cohort_began_with_survives_the_death_of_everything() {
    let cluster = &mut Cluster::start(&["--ranges", "1", "--replication", "raft"]);
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &["counter"]);
    let mut cohort = 1;
    for protocol in [Protocol::Spinnaker, Protocol::Pacifica] {
        // As long as a node is missing, what has ended is kept, and the tables are not flushed.
        let victim = cluster.wait_for_leader(cohort, PATIENCE) % 3 + 1;
        cluster.kill(victim);
        let next = change(cluster, cohort, protocol);
        history.wait_for_writes(20);
        let statuses = cluster.statuses().unwrap();
        let is_kept =
            statuses.0.values().all(|node| node.successions.iter().any(|it| it.is_sealed));
        assert!(is_kept, "{statuses:?}");
        cluster.kill_all();
        cluster.up_again();
        history.wait_for_writes_within(5, PATIENCE);
        wait_until_alone(cluster, next);
        assert!(cluster.has_said("applying what another cohort began with"), "nothing was missing");
        cohort = next;
    }
    // Whatever is done at the moment of the death, it is done or not.
    for (round, protocol) in (1_u32..).zip([Protocol::Raft, Protocol::Spinnaker, Protocol::Raft]) {
        let mut changing = begin(cluster, cohort, protocol);
        std::thread::sleep(Duration::from_millis(25) * round);
        cluster.kill_all();
        drop(changing.kill());
        changing.wait().unwrap();
        cluster.up_again();
        cohort = change(cluster, cohort, protocol);
        history.wait_for_writes_within(5, PATIENCE);
        wait_until_alone(cluster, cohort);
    }
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown"));
    show(&format!("{:?}", history.finish(cluster)));
}

/// Measures for how long writes stop, `TRIREME_TEST_ROUNDS` times for each way from one protocol to another
/// and for a split by each protocol, and prints one table.
#[test]
#[ignore = "a measurement"]
fn how_long_writes_stop() {
    let rounds = std::env::var("TRIREME_TEST_ROUNDS").map_or(20, |text| text.parse().unwrap());
    let mut gaps = BTreeMap::new();
    let cluster = &mut Cluster::start(&["--ranges", "1", "--replication", "raft"]);
    let mut cohort = 1;
    let mut before = Protocol::Raft;
    let ways = ALL_WAYS.into_iter().cycle().take(ALL_WAYS.len() * rounds);
    measure(cluster, &mut gaps, ways, |cluster, protocol| {
        cohort = change(cluster, cohort, protocol);
        let way = format!("{before} to {protocol}");
        before = protocol;
        way
    });
    for protocol in [Protocol::Raft, Protocol::Spinnaker, Protocol::Pacifica] {
        let cluster = &mut Cluster::start(&["--ranges", "1", "--replication", protocol.name()]);
        // Each border lies above the one before and below all keys, so that they all are in what is split.
        measure(cluster, &mut gaps, 0..rounds, |cluster, round| {
            let border = format!("border-{round:04}");
            cluster.run(["--deadline", CHANGE_DEADLINE, "range", "split", &border]).out();
            format!("split of {protocol}")
        });
    }
    show("writes stop for: median, longest (ms)");
    for (way, mut gaps) in gaps {
        gaps.sort_unstable();
        let [median, longest] = [gaps.len() / 2, gaps.len() - 1].map(|at| gaps[at].as_millis());
        show(&format!("{way:<24} {median:>5} {longest:>5}, of {}", gaps.len()));
    }
}

/// Makes changes under load, one after the other, and adds to `gaps`, under the name that `change` returns,
/// for how long writes stopped meanwhile.
fn measure<T>(
    cluster: &Cluster,
    gaps: &mut BTreeMap<String, Vec<Duration>>,
    changes: impl Iterator<Item = T>,
    mut change: impl FnMut(&Cluster, T) -> String,
) {
    let recorder = Recorder::start(cluster);
    let mut made = Vec::new();
    for asked in changes {
        let began = Instant::now();
        let way = change(cluster, asked);
        // What the clients do last of it comes after the command.
        std::thread::sleep(Duration::from_millis(700));
        made.push((way, began, Instant::now()));
        until_ok("nothing is left of what has ended", PATIENCE, || {
            let statuses = cluster.statuses()?;
            let is_over = statuses.0.values().all(|node| node.successions.is_empty());
            is_over.then_some(()).ok_or_else(|| format!("{statuses:?}"))
        });
    }
    let judged = recorder.finish(cluster);
    for (way, began, ended) in made {
        gaps.entry(way).or_default().push(judged.longest_gap(began, ended));
    }
}

#[expect(clippy::print_stderr, reason = "a figure for those who run the test")]
fn show(text: &str) {
    eprintln!("{text}");
}
