//! Starts that fail, are cut short, or follow a killed one; what a signal ends; and an embedded
//! coordinator whose disk fails.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use tempfile::TempDir;
use trireme_coordinator::{Coordinator, CoordinatorOptions};
use trireme_server::DataFolder;

use common::{Cluster, Seat, run, start_fails, until, until_ok, up_command};

/// How long a cluster may take until it serves, or stops.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long a process may take to end that was asked to while it started: far less than what a start
/// waits for.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// An `up` of a test, killed with it. Its nodes stop when it is gone.
struct Up {
    process: Child,
    lines: mpsc::Receiver<String>,
    errors: mpsc::Receiver<String>,
}

impl Up {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let lines = lines_of(process.stdout.take().unwrap());
        let errors = lines_of(process.stderr.take().unwrap());
        Self { process, lines, errors }
    }

    #[track_caller]
    fn ready(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the cluster becomes ready")
    }

    /// Waits until a line of stderr has this in it, and returns the line.
    #[track_caller]
    fn says(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.errors.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("it did not say '{text}' in {PATIENCE:?}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().cast_signed()).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits until it has ended well.
    #[track_caller]
    fn ends_well(&mut self) {
        let status = until("up has ended", PATIENCE, || self.process.try_wait().unwrap());
        assert!(status.success(), "up ended with {status}");
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

fn lines_of(pipe: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (send, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let all = BufReader::new(pipe).lines().map_while(Result::ok);
        all.for_each(|line| drop(send.send(line)));
    });
    lines
}

fn endpoints(port: u16, nodes: u16) -> String {
    let addresses = (1..=nodes).map(|node| format!("127.0.0.1:{}", port + node));
    addresses.collect::<Vec<_>>().join(",")
}

#[track_caller]
fn wait_until_nobody_listens(port: u16, nodes: u16) {
    until_ok("every port is free", PATIENCE, || {
        (port..=port + nodes).try_for_each(|port| TcpListener::bind(("127.0.0.1", port)).map(drop))
    });
}

/// A first start that failed left a cluster's choices and a coordinator's folder behind, and the next
/// one with other choices was refused because of them.
#[test]
fn a_first_start_that_fails_leaves_every_choice_to_the_next() {
    let seat = Seat::take();
    let port = seat.ports(5);
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let assert_undecided = || {
        assert!(!data.join("cluster.json").exists(), "it has decided something");
        assert!(!data.join("coordinator").exists(), "a coordinator was left behind");
    };
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let failed = start_fails(&data, port, &["--replication", "raft", "--engine", "lsm"]);
    assert!(failed.error(1).contains("cannot listen on"), "{failed:?}");
    assert_undecided();
    drop(taken);
    let nowhere = seat.ports(1);
    let elsewhere = format!("http://127.0.0.1:{nowhere}");
    let failed = start_fails(&data, port, &["--nodes", "2", "--coordinator", &elsewhere]);
    assert!(failed.error(1).contains("cannot be reached"), "{failed:?}");
    assert_undecided();

    let others = ["--replication", "pacifica", "--nodes", "4", "--engine", "sled"];
    let mut command = up_command(&data, port);
    command.args(others);
    let mut up = Up::start(command);
    assert!(up.ready().contains("replication=pacifica"));
    up.signal(Signal::TERM);
    up.ends_well();

    // Nor does a later start that fails change where the coordinator is sought from then on.
    let failed = start_fails(&data, port, &["--coordinator", &elsewhere]);
    assert!(failed.error(1).contains("cannot be reached"), "{failed:?}");
    let mut up = Up::start(up_command(&data, port));
    up.ready();
    up.signal(Signal::TERM);
    up.ends_well();
}

/// A start that was not ready heard no signal; its nodes are stopped with it at any moment.
#[test]
fn a_start_that_is_cut_short_takes_its_nodes_with_it_and_the_next_one_works() {
    let seat = Seat::take();
    let port = seat.ports(4);
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    // Ever later in the start; each of these is said when signals are heard already.
    for (moment, signal) in [
        ("recovered the coordinator's state", Signal::INT),
        ("the embedded coordinator serves", Signal::TERM),
        ("the node serves", Signal::HUP),
    ] {
        let mut up = Up::start(up_command(&data, port));
        up.says(moment);
        up.signal(signal);
        up.ends_well();
        wait_until_nobody_listens(port, 3);
    }
    let mut up = Up::start(up_command(&data, port));
    up.ready();
    run(&endpoints(port, 3), ["put", "k", "v"]).out();
    // The end of the terminal stops the cluster in order, too.
    up.signal(Signal::HUP);
    up.ends_well();
    wait_until_nobody_listens(port, 3);
}

/// A start may wait for a leader for as long as it comes further, and hears a signal meanwhile.
#[test]
fn a_start_that_waits_for_a_leader_ends_when_it_is_asked_to() {
    let seat = Seat::take();
    let port = seat.ports(4);
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let mut command = up_command(&data, port);
    command.args(["--replication", "spinnaker", "--ranges", "1"]);
    let mut up = Up::start(command);
    up.ready();
    up.signal(Signal::TERM);
    up.ends_well();
    for signal in [Signal::INT, Signal::TERM] {
        let mut command = up_command(&data, port);
        // A replica that comes back stands for election after a grace: none leads before.
        command.args(["--lease", "1h", "--grace", "2h"]);
        let mut up = Up::start(command);
        up.says("3 of 3 nodes answer; 0 of 1 ranges have a leader");
        up.signal(signal);
        let status = until("it has ended", END_TIMEOUT, || up.process.try_wait().unwrap());
        assert!(status.success(), "{signal:?}: {status}");
        assert!(up.lines.try_recv().is_err(), "it was ready");
        // A node holds its folder until its process is gone.
        for node in 1..=3 {
            let folder = data.join(format!("node-{node}"));
            assert!(!DataFolder::is_in_use(&folder).unwrap(), "{signal:?}: node {node} runs");
        }
        wait_until_nobody_listens(port, 3);
    }
    let mut command = up_command(&data, port);
    command.args(["--lease", "800ms", "--grace", "1s"]);
    let mut up = Up::start(command);
    up.ready();
    up.signal(Signal::TERM);
    up.ends_well();
}

/// `up | true` killed its nodes; `up | head -1` and it serve alike.
#[test]
fn a_cluster_serves_whoever_has_stopped_reading_what_it_prints() {
    let seat = Seat::take();
    let port = seat.ports(4);
    let folder = TempDir::new().unwrap();
    let mut command = up_command(&folder.path().join("data"), port);
    let stderr = std::fs::File::create(folder.path().join("stderr")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    let mut process = command.spawn().unwrap();
    drop(process.stdout.take());
    let (_, lines) = mpsc::channel();
    let (_, errors) = mpsc::channel();
    let mut up = Up { process, lines, errors };
    // The command waits for the cluster by itself.
    run(&endpoints(port, 3), ["--deadline", "90s", "put", "k", "v"]).out();
    until("it has found that the reader is gone", PATIENCE, || {
        let said = std::fs::read_to_string(folder.path().join("stderr")).unwrap();
        said.contains("standard output has no reader any more").then_some(())
    });
    assert_eq!(run(&endpoints(port, 3), ["get", "k"]).out(), "v\n");
    up.signal(Signal::TERM);
    up.ends_well();
}

/// The nodes of an `up` that was killed need a moment to stop. The next one found their ports and
/// folders taken, and gave up.
#[test]
fn a_cluster_whose_up_was_killed_can_be_started_again_at_once() {
    let seat = Seat::take();
    let port = seat.ports(4);
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let up = Up::start(up_command(&data, port));
    up.ready();
    run(&endpoints(port, 3), ["put", "k", "v"]).out();
    drop(up);
    let mut up = Up::start(up_command(&data, port));
    up.ready();
    assert_eq!(run(&endpoints(port, 3), ["get", "k"]).out(), "v\n");
    up.signal(Signal::TERM);
    up.ends_well();
}

/// The terminal of an `up` was closed, and the next one found its folder in use, and gave up.
#[test]
fn a_start_waits_for_an_up_that_is_ending_to_leave_the_folder() {
    let seat = Seat::take();
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let ending = DataFolder::open(&data).unwrap();
    let mut up = Up::start(up_command(&data, seat.ports(4)));
    up.says("waiting for another process to leave the folder");
    drop(ending);
    up.ready();
    up.signal(Signal::TERM);
    up.ends_well();
}

/// Files that say what they said before were written anew at each start, which a full disk forbids.
#[test]
fn a_start_that_changes_nothing_writes_no_more_than_that_it_was_there() {
    let cluster = &mut Cluster::start(&["--ranges", "1"]);
    let inode =
        |cluster: &Cluster| std::fs::metadata(cluster.data().join("cluster.json")).unwrap().ino();
    let node = |cluster: &Cluster| -> serde_json::Value {
        let file = std::fs::read(cluster.node_folder(1).join("node.json")).unwrap();
        let mut file: serde_json::Value = serde_json::from_slice(&file).unwrap();
        // It is of all the rest.
        assert!(file.as_object_mut().unwrap().remove("checksum").is_some(), "{file}");
        file
    };
    let (before, mut node_before) = (inode(cluster), node(cluster));
    cluster.stop();
    cluster.up_again();
    assert_eq!(inode(cluster), before);
    // A folder that counts fewer starts than its node had is an older copy.
    assert_eq!((&node_before["starts"], &node(cluster)["starts"]), (&1.into(), &2.into()));
    node_before["starts"] = 2.into();
    assert_eq!(node(cluster), node_before);
    cluster.stop();
    cluster.up_again_with(&["--commit-period", "30ms"]);
    assert_ne!(inode(cluster), before, "what was asked for is not remembered");
}

/// Nodes name to others the address at which they are to be reached, not the one they listen on.
#[test]
fn a_node_that_listens_everywhere_is_found_where_it_says() {
    let mut cluster = Cluster::start(&["--ranges", "1", "--replication", "raft"]);
    cluster.run(["put", "k", "v"]).out();
    for (node, everywhere) in [(1, "0.0.0.0"), (2, "[::]")] {
        let port = cluster.port() + node;
        let (listen, name) = (format!("{everywhere}:{port}"), format!("localhost:{port}"));
        let node = usize::from(node);
        cluster.stop_node(node);
        let refused = cluster.node_fails(node, &["--listen", &listen]);
        assert!(refused.error(2).contains("--advertise"), "{refused:?}");
        cluster.restart_node_with(node, &["--listen", &listen, "--advertise", &name]);
        cluster.wait_until_caught_up(PATIENCE);
        let list = cluster.run(["node", "list"]);
        assert!(list.out().contains(&name) && !list.out().contains(&listen), "{list:?}");
        // It is remembered.
        cluster.stop_node(node);
        cluster.restart_node(node);
        cluster.wait_until_caught_up(PATIENCE);
        assert!(cluster.run(["node", "list"]).out().contains(&name));
    }
    // Strangers, and peers, reach them by those names alone: two of three nodes have them.
    cluster.kill(3);
    cluster.run(["put", "k", "w"]).out();
}

/// Each replica that ever stood left a candidate at the coordinator, for as long as its node lived.
#[test]
fn candidates_of_rounds_that_are_over_are_removed() {
    let cluster = &mut Cluster::start(&["--replication", "spinnaker", "--ranges", "1"]);
    let election = |cluster: &Cluster| {
        cluster.runtime.block_on(async {
            let options = CoordinatorOptions::new([cluster.coordinator()]);
            let coordinator = Coordinator::connect(options).await.unwrap();
            let nodes = coordinator.subtree("/cohorts").await.unwrap().nodes;
            coordinator.close().await.unwrap();
            let epoch = nodes.iter().find(|node| node.path.ends_with("/epoch")).unwrap();
            let epoch: serde_json::Value = serde_json::from_slice(&epoch.value).unwrap();
            let rounds = nodes.iter().filter_map(|node| {
                let (round, _) = node.path.split_once("/rounds/")?.1.split_once('/')?;
                round.parse::<u64>().ok()
            });
            (epoch["epoch"].as_u64().unwrap(), rounds.collect::<Vec<_>>())
        })
    };
    let (first, _) = election(cluster);
    // Nodes that live on have stood in each of these rounds.
    for _ in 0..2 {
        let (led, _) = cluster.statuses().unwrap().leader(1).unwrap();
        cluster.kill(led);
        until_ok("another node leads", PATIENCE, || match cluster.statuses()?.leader(1) {
            Some(_) => Ok(()),
            None => Err("none does".to_owned()),
        });
        cluster.restart_node(led);
        cluster.wait_until_caught_up(PATIENCE);
    }
    until_ok("no candidate of an old round is left", PATIENCE, || {
        let (epoch, rounds) = election(cluster);
        assert!(epoch >= first + 2, "there were no elections");
        match rounds.iter().find(|round| **round <= epoch) {
            None => Ok(()),
            Some(round) => Err(format!("one of round {round} in epoch {epoch}")),
        }
    });
}

/// A coordinator whose disk was full lived on as if nothing were wrong, ended no lease and committed
/// no election, and there was no way back but to stop the whole cluster.
#[test]
fn a_coordinator_whose_disk_is_full_says_so_and_comes_back_when_there_is_room() {
    let seat = Seat::take();
    let port = seat.ports(4);
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    // A file that may not grow fails its writes, if the signal that comes with that is ignored.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_trireme")]);
    command.env_remove("TRIREME_ENDPOINTS");
    command.arg("up").arg("--data").arg(&data).args(["--port", &port.to_string()]);
    command.args(["--replication", "spinnaker", "--ranges", "1"]);
    let mut up = Up::start(command);
    let ready = up.ready();
    let endpoints = endpoints(port, 3);
    run(&endpoints, ["put", "k", "1"]).out();
    // The nodes have limits of their own, and room.
    limit_files(&up, Some(log_bytes(&data)));
    let pids = ready.rsplit_once("pids=").unwrap().1;
    let pids: Vec<i32> = pids.split(',').map(|pid| pid.parse().unwrap()).collect();
    let leader = leader(&endpoints);
    kill_process(Pid::from_raw(pids[leader - 1]).unwrap(), Signal::KILL).unwrap();
    let said = up.says("the coordinator has failed");
    assert!(said.contains("File too large"), "{said}");
    // No leader is elected without it, and it does not pretend to be there.
    wait_until_nobody_listens(port, 0);
    limit_files(&up, None);
    up.says("the coordinator serves again");
    run(&endpoints, ["--deadline", "90s", "put", "k", "2"]).out();
    assert_eq!(run(&endpoints, ["get", "k"]).out(), "2\n");
    up.signal(Signal::TERM);
    up.ends_well();
}

/// Returns how long the coordinator's newest log is.
fn log_bytes(data: &Path) -> u64 {
    let entries = std::fs::read_dir(data.join("coordinator")).unwrap().flatten();
    let logs = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("log-"));
    logs.map(|log| log.metadata().unwrap().len()).max().unwrap()
}

/// Lets the files of a process grow to this size, or as they like.
fn limit_files(up: &Up, bytes: Option<u64>) {
    let limit = Rlimit { current: bytes, maximum: None };
    prlimit(Some(up.pid()), Resource::Fsize, limit).unwrap();
}

/// Returns the node that leads the only cohort.
fn leader(endpoints: &str) -> usize {
    let status = run(endpoints, ["status", "--json"]).json();
    usize::try_from(status["cohorts"][0]["leader"].as_u64().unwrap()).unwrap()
}
