//! Replicas move to other nodes while their ranges serve, and the replicas of a node that is gone for good
//! are made again elsewhere, whatever the protocol.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use trireme_types::Protocol;

use common::{Cluster, History, Recorder, finish, trireme, until_ok};

/// How long the cluster may take to be as it should after a change or a fault.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a move may take, with all that befalls it.
const MOVE_DEADLINE: &str = "90s";

const NODES: u64 = 4;

/// The keys of the histories.
const KEYS: [&str; 2] = ["apple", "zebra"];

/// A log so small that a replica that begins with nothing is sent a snapshot.
const SMALL_LOG: [&str; 4] = ["--segment-bytes", "262144", "--log-bytes-max", "1048576"];

/// The moments at which something dies that a move needs, counted from when its command starts, which
/// takes some ten milliseconds until it asks. The invited node is looked after twice a second.
const MOMENTS: [u64; 6] = [20, 60, 250, 500, 750, 1000];

/// A move of a replica of a range's cohort.
#[derive(Clone, Copy, Debug)]
struct Move {
    cohort: u64,
    from: u64,
    to: u64,
}

impl Move {
    fn command(self, cluster: &Cluster) -> Command {
        let Self { cohort, from, to } = self;
        let mut command = trireme();
        command.env("TRIREME_ENDPOINTS", cluster.endpoints());
        command.args(["--deadline", MOVE_DEADLINE, "range", "move", &cohort.to_string()]);
        command.args(["--from", &from.to_string(), "--to", &to.to_string(), "--json"]);
        command
    }

    fn begin(self, cluster: &Cluster) -> Child {
        self.command(cluster).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Has the replica moved, and returns the cohort that serves the range then. PacificA goes on without a
    /// member that is silent, be it the one that got the replica, and has it back when it is up to date.
    #[track_caller]
    fn finish(self, cluster: &Cluster) -> u64 {
        until_ok("the replica has moved, and there are three", PATIENCE, || {
            let ran = finish(self.command(cluster));
            let answer: serde_json::Value = serde_json::from_str(ran.out()).unwrap();
            let replicas = answer["replicas"].as_array().unwrap();
            let replicas: Vec<_> = replicas.iter().map(|it| it.as_u64().unwrap()).collect();
            let is_done = replicas.contains(&self.to) && !replicas.contains(&self.from);
            let cohort = answer["cohort"].as_u64().unwrap();
            if is_done && replicas.len() == 3 { Ok(cohort) } else { Err(answer) }
        })
    }
}

/// Returns the nodes that hold a replica of a cohort, and the one that leads it first.
#[track_caller]
fn members(cluster: &Cluster, cohort: u64) -> Vec<u64> {
    let leader = cluster.wait_for_leader(cohort, PATIENCE) as u64;
    let ranges = cluster.ranges();
    let range = ranges.iter().find(|range| range["cohort"] == cohort).unwrap();
    let replicas = range["replicas"].as_array().unwrap();
    let mut replicas: Vec<_> = replicas.iter().map(|node| node.as_u64().unwrap()).collect();
    replicas.sort_by_key(|node| (*node != leader, *node));
    replicas
}

/// Returns how many rows there are.
fn keys(cluster: &Cluster) -> usize {
    cluster.run(["scan", "--keys-only"]).out().lines().count()
}

/// Returns a move of the replica on the leader's node, or on another one, to the node that is free.
#[track_caller]
fn next_move(cluster: &Cluster, key: &str, moves_leader: bool) -> Move {
    let cohort = cluster.cohort_of(key);
    let members = members(cluster, cohort);
    let to = (1..=NODES).find(|node| !members.contains(node)).unwrap();
    Move { cohort, from: members[usize::from(!moves_leader)], to }
}

/// Every replica of a range comes to another node and on to the next under load, of leaders and of followers,
/// with the log and with a snapshot: nothing is lost, and no read is too old. [RANGE-17] [RANGE-18]
/// [RANGE-19]
fn goes_round(protocol: Protocol) {
    let options = ["--ranges", "2", "--replication", protocol.name()];
    let cluster = &mut Cluster::start_nodes(4, &options);
    // One stays, and with it the coordinator.
    for node in 1..=3 {
        cluster.kill(node);
        cluster.restart_node_with(node, &SMALL_LOG);
    }
    cluster.wait_until_caught_up(PATIENCE);
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &KEYS);
    finish(cluster.load("1s", &["--value-bytes", "512"])).out();
    let rows = keys(cluster);
    for turn in 0..6 {
        history.wait_for_writes(3);
        history.take_gap();
        let moving = next_move(cluster, KEYS[turn % 2], turn % 3 != 1);
        let successor = moving.finish(cluster);
        history.wait_for_writes(5);
        show(&format!("{protocol}, {moving:?}: no write for {:?}", history.take_gap()));
        assert_eq!(moving.finish(cluster), successor, "to ask again changes nothing");
        cluster.wait_until_alone(PATIENCE);
    }
    assert!(keys(cluster) >= rows, "{rows} rows were there");
    cluster.kill_all();
    cluster.up_again();
    history.wait_for_writes(5);
    cluster.wait_until_caught_up(PATIENCE);
    assert!(keys(cluster) >= rows);
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
}

#[test]
fn every_replica_of_a_range_moves_under_load_raft() {
    goes_round(Protocol::Raft);
}

#[test]
fn every_replica_of_a_range_moves_under_load_spinnaker() {
    goes_round(Protocol::Spinnaker);
}

#[test]
fn every_replica_of_a_range_moves_under_load_pacifica() {
    goes_round(Protocol::Pacifica);
}

/// The leader, the node that is to get the replica, or the coordinator dies at some moment of the move, a
/// later one each time: the move ends done. Or the new node has a replica in the place of a member that died
/// meanwhile, with PacificA, and the one that is back gets the one that was to move. [RANGE-5] [RANGE-17]
fn survives_deaths(protocol: Protocol) {
    let options = ["--replication", protocol.name(), "--replace-delay", "1h"];
    let cluster = &mut Cluster::start_nodes(4, &[&options[..], &["--ranges", "1"]].concat());
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &KEYS[..1]);
    for (turn, moment) in MOMENTS.into_iter().enumerate() {
        let moving = next_move(cluster, KEYS[0], turn % 4 > 1);
        let victim = match turn % 2 {
            0 => members(cluster, moving.cohort)[0],
            _ => moving.to,
        };
        let running = moving.begin(cluster);
        thread::sleep(Duration::from_millis(moment));
        cluster.kill(usize::try_from(victim).unwrap());
        history.wait_for_writes_within(3, PATIENCE);
        cluster.restart_node(usize::try_from(victim).unwrap());
        let ran = running.wait_with_output().unwrap();
        let said = String::from_utf8(ran.stderr).unwrap();
        if ran.status.success() {
            moving.finish(cluster);
        } else {
            // Its place was that of the one that died, before the move was prepared.
            let is_taken_in = said.contains(&format!("n{} holds a replica", moving.to));
            assert!(protocol == Protocol::Pacifica && is_taken_in, "{moving:?} failed: {said}");
            show(&format!("{moving:?}: {said}"));
            let from_missing = next_move(cluster, KEYS[0], false);
            Move { from: moving.from, ..from_missing }.finish(cluster);
        }
        cluster.wait_until_alone(PATIENCE);
    }
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
}

#[test]
fn a_move_in_which_a_node_dies_ends_done_raft() {
    survives_deaths(Protocol::Raft);
}

#[test]
fn a_move_in_which_a_node_dies_ends_done_spinnaker() {
    survives_deaths(Protocol::Spinnaker);
}

#[test]
fn a_move_in_which_a_node_dies_ends_done_pacifica() {
    survives_deaths(Protocol::Pacifica);
}

/// M52: the replicas of a node that is gone for good are made again on the one that is free, and then
/// another of the first three can go. [RANGE-17]
fn replaces_a_lost_node(protocol: Protocol) {
    let options = ["--ranges", "3", "--replication", protocol.name(), "--replace-delay", "1s"];
    let cluster = &mut Cluster::start_nodes(4, &options);
    let history = History::start(cluster, &KEYS);
    finish(cluster.load("1s", &["--value-bytes", "32"])).out();
    let rows = keys(cluster);
    let has_replicas_elsewhere = |cluster: &Cluster, gone: u64| {
        let there: BTreeSet<_> = (1..=NODES).filter(|node| *node != gone).collect();
        until_ok("every range has three replicas", PATIENCE, || {
            for range in cluster.ranges() {
                let replicas = range["replicas"].as_array().unwrap();
                let replicas: BTreeSet<_> =
                    replicas.iter().map(|it| it.as_u64().unwrap()).collect();
                if replicas != there {
                    return Err(range);
                }
            }
            Ok(())
        });
        cluster.wait_until_caught_up(PATIENCE);
    };
    cluster.kill(2);
    has_replicas_elsewhere(cluster, 2);
    history.wait_for_writes_within(5, PATIENCE);
    cluster.kill(3);
    history.wait_for_writes_within(20, PATIENCE);
    assert!(keys(cluster) >= rows, "{rows} rows were there");
    // One that is back finds that its place is taken, or takes that of the next one.
    cluster.restart_node(2);
    has_replicas_elsewhere(cluster, 3);
    cluster.restart_node(3);
    cluster.wait_until_alone(PATIENCE);
    history.wait_for_writes_within(5, PATIENCE);
    assert!(keys(cluster) >= rows);
    show(&format!("{protocol}: {:?}", history.finish(cluster)));
}

#[test]
fn the_replicas_of_a_lost_node_are_made_again_elsewhere_raft() {
    replaces_a_lost_node(Protocol::Raft);
}

#[test]
fn the_replicas_of_a_lost_node_are_made_again_elsewhere_spinnaker() {
    replaces_a_lost_node(Protocol::Spinnaker);
}

#[test]
fn the_replicas_of_a_lost_node_are_made_again_elsewhere_pacifica() {
    replaces_a_lost_node(Protocol::Pacifica);
}

/// The coordinator dies at some moment of the move and comes back: the move ends done. [RANGE-19]
fn survives_the_death_of_the_coordinator(protocol: Protocol) {
    let cluster = &mut Cluster::start_by_hand_with_free(1, protocol, &[], &[]);
    let history = History::start(cluster, &KEYS[..1]);
    for moment in MOMENTS {
        let moving = next_move(cluster, KEYS[0], true);
        let mut running = moving.begin(cluster);
        thread::sleep(Duration::from_millis(moment));
        cluster.kill_coordinator();
        thread::sleep(Duration::from_millis(300));
        cluster.start_coordinator();
        assert!(running.wait().unwrap().success(), "{moving:?} failed");
        history.wait_for_writes_within(3, PATIENCE);
        moving.finish(cluster);
        cluster.wait_until_alone(PATIENCE);
    }
    show(&format!("{protocol}: {:?}", history.finish(cluster)));
}

#[test]
fn a_move_whose_coordinator_dies_ends_done_raft() {
    survives_the_death_of_the_coordinator(Protocol::Raft);
}

#[test]
fn a_move_whose_coordinator_dies_ends_done_spinnaker() {
    survives_the_death_of_the_coordinator(Protocol::Spinnaker);
}

#[test]
fn a_move_whose_coordinator_dies_ends_done_pacifica() {
    survives_the_death_of_the_coordinator(Protocol::Pacifica);
}

/// A node is invited again while what it gave away is not settled: its replica learns on what it had there,
/// and asks to be brought up to date all the same.
fn comes_back_at_once(protocol: Protocol) {
    let options = ["--ranges", "1", "--replication", protocol.name(), "--replace-delay", "1h"];
    let cluster = &mut Cluster::start_nodes(4, &options);
    let history = History::start(cluster, &KEYS[..1]);
    let away = next_move(cluster, KEYS[0], false);
    let members = members(cluster, away.cohort);
    let third = members.into_iter().rfind(|node| *node != away.from).unwrap();
    cluster.kill(usize::try_from(third).unwrap());
    let successor = away.finish(cluster);
    let back = Move { cohort: successor, from: away.to, to: away.from };
    let mut running = back.begin(cluster);
    history.wait_for_writes_within(5, PATIENCE);
    cluster.restart_node(usize::try_from(third).unwrap());
    assert!(running.wait().unwrap().success(), "{back:?} failed");
    back.finish(cluster);
    cluster.wait_until_alone(PATIENCE);
    show(&format!("{protocol}: {:?}", history.finish(cluster)));
}

#[test]
fn a_node_that_gave_a_replica_away_gets_one_back_at_once_raft() {
    comes_back_at_once(Protocol::Raft);
}

#[test]
fn a_node_that_gave_a_replica_away_gets_one_back_at_once_spinnaker() {
    comes_back_at_once(Protocol::Spinnaker);
}

/// A node drains under load, of ranges of every protocol, and is removed; one that is to hold replicas
/// again is chosen when the next one drains.
#[test]
fn a_node_drains_and_is_removed() {
    let cluster = &mut Cluster::start_nodes(4, &["--ranges", "6", "--replication", "raft"]);
    for (cohort, protocol) in [(2, "spinnaker"), (3, "pacifica"), (5, "spinnaker"), (6, "pacifica")]
    {
        cluster.run(["range", "protocol", &cohort.to_string(), protocol]).out();
    }
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &KEYS);
    let of = |cluster: &Cluster, node: u64| {
        let holds = |range: &serde_json::Value| {
            range["replicas"].as_array().unwrap().contains(&node.into())
        };
        cluster.ranges().iter().filter(|range| holds(range)).count()
    };
    // Each node learns for itself what has changed, and any may be asked.
    let wait_until_held = |cluster: &Cluster, nodes: [(u64, usize); 2]| {
        until_ok("each node lists the replicas where they are", PATIENCE, || {
            let held = nodes.map(|(node, _)| (node, of(cluster, node)));
            if held == nodes { Ok(()) } else { Err(held) }
        });
        cluster.wait_until_alone(PATIENCE);
    };
    let drain = |cluster: &Cluster, node: u64| {
        let mut command = trireme();
        command.env("TRIREME_ENDPOINTS", cluster.endpoints());
        command.args(["--deadline", MOVE_DEADLINE, "node", "drain", &node.to_string()]);
        finish(command)
    };
    let before = of(cluster, 3);
    assert!(before > 0);
    let early = cluster.run(["node", "remove", "3"]);
    assert!(early.error(1).contains("let it drain first"), "{early:?}");
    assert_eq!(drain(cluster, 3).out(), format!("n3 holds no replica; it had {before}\n"));
    wait_until_held(cluster, [(3, 0), (2, 6)]);
    assert_eq!(drain(cluster, 3).out(), "n3 holds no replica; it had 0\n");
    let too_many = drain(cluster, 2);
    assert!(too_many.error(1).contains("2 nodes would be left"), "{too_many:?}");
    let moved = cluster.cohort_of("apple").to_string();
    let leader = members(cluster, cluster.cohort_of("apple"))[0].to_string();
    let there = cluster.run(["range", "move", &moved, "--from", &leader, "--to", "3"]);
    assert!(there.error(1).contains("n3 is draining"), "{there:?}");
    let runs = cluster.run(["node", "remove", "3"]);
    assert!(runs.error(1).contains("stop it first"), "{runs:?}");

    cluster.run(["node", "drain", "3", "--undo"]).out();
    assert!(drain(cluster, 2).out().starts_with("n2 holds no replica"));
    wait_until_held(cluster, [(2, 0), (3, 6)]);
    cluster.kill(2);
    until_ok("node 2 is removed", PATIENCE, || {
        let removed = cluster.run(["node", "remove", "2"]);
        if removed.status == 0 { Ok(()) } else { Err(removed) }
    });
    let listed = cluster.run(["node", "list"]);
    assert!(!listed.out().contains("n2 "), "{listed:?}");
    history.wait_for_writes_within(5, PATIENCE);
    // One that comes by that name later is another node.
    cluster.wipe(2);
    cluster.start_new_node(2, &[]);
    until_ok("node 2 is there", PATIENCE, || {
        let listed = cluster.run(["node", "list"]);
        if listed.out().contains("n2 ") { Ok(()) } else { Err(listed) }
    });
    assert!(drain(cluster, 1).out().starts_with("n1 holds no replica"));
    wait_until_held(cluster, [(1, 0), (2, 6)]);
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
}

/// What cannot be is refused with the reason, and nothing is changed.
#[test]
fn a_move_that_cannot_be_is_refused() {
    let cluster = &Cluster::start_nodes(4, &["--ranges", "1", "--replication", "raft"]);
    let cohort = cluster.serving()[0];
    let held = members(cluster, cohort);
    let free = (1..=NODES).find(|node| !held.contains(node)).unwrap();
    let refused = |cohort, from, to| {
        let ran = finish(Move { cohort, from, to }.command(cluster));
        ran.error(1).to_owned()
    };
    let no_replica = refused(cohort, free, 9);
    assert!(no_replica.contains(&format!("n{free} holds no replica of c{cohort}")), "{no_replica}");
    let twice = refused(cohort, held[0], held[1]);
    assert!(
        twice.contains(&format!("n{} holds a replica of c{cohort} already", held[1])),
        "{twice}"
    );
    let unknown = refused(cohort, held[0], 9);
    assert!(unknown.contains("there is no node n9"), "{unknown}");
    let no_cohort = refused(77, held[0], free);
    assert!(no_cohort.contains("there is no cohort c77"), "{no_cohort}");
    assert_eq!(members(cluster, cohort), held);
}

#[expect(clippy::print_stderr, reason = "a figure for those who run the test")]
fn show(text: &str) {
    eprintln!("{text}");
}
