//! Ranges change at random, while they are read and written and nodes die, stand still and are cut off:
//! every answer is judged, and every change ends done or undone.
//!
//! By default this is a short run of one seed, which fits among the other tests. A longer one:
//!
//! ```text
//! TRIREME_TEST_CHANGES=200 TRIREME_TEST_SEED=7 \
//!     cargo test --release -p trireme-cli --test cluster_changes -- --nocapture
//! ```
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;
use trireme_types::Protocol;

use common::{Cluster, History, Recorder, finish, trireme, until_ok};

/// How long the cluster may take to be as it should after a change and a fault.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long a change may take, with all that befalls it.
const CHANGE_DEADLINE: &str = "60s";

const NODES: usize = 4;

/// The most ranges that there are to be.
const RANGES_MAX: usize = 10;

/// The keys of the histories: in the first range and in the last.
const KEYS: [&str; 2] = ["apple", "zebra"];

const PROTOCOLS: [&str; 3] = ["spinnaker", "raft", "pacifica"];

/// A change that is asked for.
#[derive(Clone, Debug)]
enum Change {
    Split(String),
    Merge { below: String, border: String },
    Protocol(u64, &'static str),
    Move { cohort: u64, from: u64, to: u64 },
    Leader(u64, u64),
    Drain(u64),
    Undrain(u64),
}

/// What befalls a node, or the coordinator, meanwhile.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Nothing,
    Kill(usize),
    StandStill(usize),
    CutOff(usize),
    KillCoordinator,
}

impl Change {
    fn name(&self) -> &'static str {
        match self {
            Self::Split(_) => "split",
            Self::Merge { .. } => "merge",
            Self::Protocol(..) => "protocol",
            Self::Move { .. } => "move",
            Self::Leader(..) => "leader",
            Self::Drain(_) => "drain",
            Self::Undrain(_) => "undrain",
        }
    }

    fn command(&self, cluster: &Cluster) -> Command {
        let mut command = trireme();
        command.env("TRIREME_ENDPOINTS", cluster.endpoints());
        command.args(["--deadline", CHANGE_DEADLINE]);
        match self {
            Self::Split(at) => command.args(["range", "split", at]),
            Self::Merge { below, border } => {
                command.args(["range", "merge", below, "--border", border])
            }
            Self::Protocol(cohort, name) => {
                command.args(["range", "protocol", &cohort.to_string(), name])
            }
            Self::Move { cohort, from, to } => {
                command.args(["range", "move", &cohort.to_string()]);
                command.args(["--from", &from.to_string(), "--to", &to.to_string()])
            }
            Self::Leader(cohort, node) => {
                command.args(["range", "leader", &cohort.to_string(), &node.to_string()])
            }
            Self::Drain(node) => command.args(["node", "drain", &node.to_string()]),
            Self::Undrain(node) => command.args(["node", "drain", &node.to_string(), "--undo"]),
        };
        command
    }

    /// Chooses one that makes sense now.
    fn choose(cluster: &Cluster, draining: Option<u64>, rng: &mut StdRng) -> Self {
        let ranges = cluster.ranges();
        let range = &ranges[rng.random_range(0..ranges.len())];
        let border = range["end"].as_str();
        let cohort = range["cohort"].as_u64().unwrap();
        let members: Vec<u64> =
            range["replicas"].as_array().unwrap().iter().map(|it| it.as_u64().unwrap()).collect();
        let member = members[rng.random_range(0..members.len())];
        let free: Vec<u64> = (1..=NODES as u64)
            .filter(|node| !members.contains(node) && Some(*node) != draining)
            .collect();
        match (rng.random_range(0..11), draining) {
            (0, None) => Self::Drain(rng.random_range(1..=NODES as u64)),
            (0 | 1, Some(node)) => Self::Undrain(node),
            (0..=3, _) if !free.is_empty() => {
                let to = free[rng.random_range(0..free.len())];
                Self::Move { cohort, from: member, to }
            }
            (4 | 5, _) if ranges.len() < RANGES_MAX => {
                // Of the recorder's keys some lie below, and some above.
                Self::Split(format!("user{:08}", rng.random_range(0..40)))
            }
            (6, _) => Self::Leader(cohort, member),
            (7, _) if border.is_some() => Self::Merge {
                below: range["start"].as_str().unwrap().to_owned(),
                border: border.unwrap().to_owned(),
            },
            _ => Self::Protocol(cohort, PROTOCOLS[rng.random_range(0..PROTOCOLS.len())]),
        }
    }
}

impl Fault {
    fn choose(rng: &mut StdRng) -> Self {
        let node = rng.random_range(1..=NODES);
        match rng.random_range(0..8) {
            0 | 1 => Self::Kill(node),
            2 | 3 => Self::StandStill(node),
            4 | 5 => Self::CutOff(node),
            6 => Self::KillCoordinator,
            _ => Self::Nothing,
        }
    }

    /// Lets it befall for a while.
    fn befall(self, cluster: &mut Cluster, lasts: Duration) {
        match self {
            Self::Nothing => {}
            Self::Kill(node) => {
                cluster.kill(node);
                thread::sleep(lasts);
                cluster.restart_node_with(node, &["--allow-faults"]);
            }
            Self::StandStill(node) => {
                cluster.signal(node, Signal::STOP);
                thread::sleep(lasts);
                cluster.signal(node, Signal::CONT);
            }
            Self::CutOff(node) => {
                cluster.isolate(node);
                thread::sleep(lasts);
                cluster.heal(node);
            }
            Self::KillCoordinator => {
                cluster.kill_coordinator();
                thread::sleep(lasts);
                cluster.start_coordinator();
            }
        }
    }
}

/// Changes of every kind at random, each with a fault in its midst. [RANGE-2] [RANGE-5] [RANGE-17]
fn changes_at_random(protocol: Protocol) {
    let number = |name: &str| Some(std::env::var(name).ok()?.parse::<u64>().unwrap());
    let seed = number("TRIREME_TEST_SEED").unwrap_or(1);
    let changes = number("TRIREME_TEST_CHANGES").unwrap_or(8);
    show(&format!("{protocol}: TRIREME_TEST_SEED={seed} TRIREME_TEST_CHANGES={changes}"));
    let mut rng = StdRng::seed_from_u64(seed);
    let options = ["--allow-faults", "--replace-delay", "3s"];
    let cluster = &mut Cluster::start_by_hand_with_free(1, protocol, &["n"], &options);
    let recorder = Recorder::start(cluster);
    let history = History::start(cluster, &KEYS);
    let (mut done, mut draining) = (BTreeMap::<_, (u32, u32)>::new(), None);
    for _ in 0..changes {
        let change = Change::choose(cluster, draining, &mut rng);
        let fault = Fault::choose(&mut rng);
        let begins = Duration::from_millis(rng.random_range(0..1500));
        let lasts = Duration::from_millis(rng.random_range(100..2500));
        let mut command = change.command(cluster);
        let running = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        thread::sleep(begins);
        fault.befall(cluster, lasts);
        let ran = running.wait_with_output().unwrap();
        let is_done = ran.status.success();
        let count = done.entry(change.name()).or_default();
        (count.0, count.1) = (count.0 + 1, count.1 + u32::from(!is_done));
        let said = String::from_utf8(ran.stderr).unwrap();
        let said = if is_done { "done" } else { said.lines().last().unwrap_or_default() };
        show(&format!("{change:?}, {fault:?} after {begins:?} for {lasts:?}: {said}"));
        match change {
            Change::Drain(node) => draining = Some(node),
            Change::Undrain(_) => draining = None,
            _ => {}
        }
        history.wait_for_writes_within(3, PATIENCE);
        wait_until_whole(cluster);
    }
    if let Some(node) = draining {
        finish(Change::Undrain(node).command(cluster)).out();
    }
    // Nothing is left half done: every range can be changed again.
    for cohort in cluster.serving() {
        until_ok("a range can be changed", PATIENCE, || {
            let ran = finish(Change::Protocol(cohort, protocol.name()).command(cluster));
            if ran.status == 0 { Ok(()) } else { Err(ran) }
        });
    }
    wait_until_whole(cluster);
    cluster.wait_until_alone(PATIENCE);
    let rows = cluster.rows().len();
    cluster.kill_all();
    cluster.start_coordinator();
    (1..=NODES).for_each(|node| cluster.restart_node(node));
    history.wait_for_writes_within(3, PATIENCE);
    cluster.wait_until_caught_up(PATIENCE);
    assert_eq!(cluster.rows().len(), rows);
    let (operations, unknown) = recorder.finish(cluster).counts();
    show(&format!("{done:?}: how many, and how many of them were not done"));
    show(&format!("{operations} operations, {unknown} unknown; {:?}", history.finish(cluster)));
}

/// Waits until every range has three replicas that follow its leader.
#[track_caller]
fn wait_until_whole(cluster: &Cluster) {
    until_ok("every range is whole", PATIENCE, || {
        let (ranges, statuses) = (cluster.ranges(), cluster.statuses()?);
        for range in ranges {
            let cohort = range["cohort"].as_u64().unwrap();
            let members: Vec<_> = range["replicas"].as_array().unwrap().clone();
            let replicas = statuses.replicas(cohort);
            let counts = replicas.iter().filter(|(node, replica)| {
                let is_member = members.contains(&(*node as u64).into());
                is_member && (replica.role == "leader" || replica.role == "follower")
            });
            if members.len() != 3 || counts.count() != 3 || statuses.leader(cohort).is_none() {
                return Err(format!("{range}: {replicas:?}"));
            }
        }
        Ok(())
    });
}

#[test]
fn changes_at_random_with_faults_lose_nothing_raft() {
    changes_at_random(Protocol::Raft);
}

#[test]
fn changes_at_random_with_faults_lose_nothing_spinnaker() {
    changes_at_random(Protocol::Spinnaker);
}

#[test]
fn changes_at_random_with_faults_lose_nothing_pacifica() {
    changes_at_random(Protocol::Pacifica);
}

#[expect(clippy::print_stderr, reason = "a figure for those who run the test")]
fn show(text: &str) {
    eprintln!("{text}");
}
