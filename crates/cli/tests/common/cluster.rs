//! A cluster that `trireme up` started.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use trireme_client::{Client, ClientOptions};
use trireme_proto::v1::SetFaultsRequest;

use super::etcd::Etcd;
use super::process::{self, Ran, finish, run, trireme};
use super::seat::Seat;
use super::status::Statuses;
use super::until;

/// How long a cluster may take until it serves.
const READY_TIMEOUT: Duration = Duration::from_secs(90);

/// How long a cluster may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// How much of what each process said is shown when a test fails.
const TAIL_LINES: usize = 40;

/// The errors that `up` tells of when nothing is wrong: a test has killed or stopped a node.
const EXPECTED_ERRORS: [&str; 2] = ["has ended: signal: 9 (SIGKILL)", "has ended: exit status: 0"];

/// A cluster with a folder and ports of its own.
pub(crate) struct Cluster {
    pub(crate) runtime: Runtime,
    /// Dropped, and so killed, before its folder.
    pub(super) etcd: Option<Etcd>,
    /// Where etcd listens, if it was started.
    etcd_port: Option<u16>,
    folder: TempDir,
    seat: Arc<Seat>,
    port: u16,
    nodes: usize,
    /// `up`, or the coordinator of a cluster that was started by hand.
    pub(super) up: Option<Child>,
    /// The processes of nodes that run, by the nodes' numbers.
    pub(super) running: BTreeMap<usize, NodeProcess>,
    started: usize,
    /// What nodes were asked to suffer.
    pub(super) faults: Mutex<BTreeMap<usize, SetFaultsRequest>>,
    /// How often each node's process has ended, by the nodes' numbers.
    ends: Arc<Vec<AtomicU64>>,
    /// The errors that the test provokes.
    expected_errors: Vec<&'static str>,
}

pub(super) struct NodeProcess {
    pub(super) pid: u32,
    /// Unless it is a child of `up`.
    pub(super) child: Option<Child>,
}

impl Cluster {
    /// Starts three nodes.
    #[track_caller]
    pub(crate) fn start<A: AsRef<OsStr>>(arguments: &[A]) -> Self {
        Self::start_nodes(3, arguments)
    }

    /// Starts so many nodes.
    #[track_caller]
    pub(crate) fn start_nodes<A: AsRef<OsStr>>(nodes: usize, arguments: &[A]) -> Self {
        let mut cluster = Self::new(nodes, Arc::new(Seat::take()));
        cluster.run_first(arguments);
        cluster
    }

    /// Starts another cluster of three nodes within the same test's turn.
    #[track_caller]
    pub(crate) fn start_beside<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Self {
        let mut cluster = Self::new(3, Arc::clone(&self.seat));
        cluster.run_first(arguments);
        cluster
    }

    /// Returns a cluster of which nothing runs yet.
    pub(super) fn new(nodes: usize, seat: Arc<Seat>) -> Self {
        let port = seat.ports(u16::try_from(nodes).unwrap() + 1);
        Self {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
            etcd: None,
            etcd_port: None,
            folder: TempDir::new().unwrap(),
            seat,
            port,
            nodes,
            up: None,
            running: BTreeMap::new(),
            started: 0,
            faults: Mutex::default(),
            ends: Arc::new((0..=nodes).map(|_| AtomicU64::new(0)).collect()),
            expected_errors: EXPECTED_ERRORS.to_vec(),
        }
    }

    #[track_caller]
    fn run_first<A: AsRef<OsStr>>(&mut self, arguments: &[A]) {
        let mut command = up_command(&self.data(), self.port);
        command.args(["--nodes", &self.nodes.to_string()]).args(arguments);
        let is_said = arguments.iter().any(|argument| argument.as_ref() == "--replication");
        if !is_said && let Some(protocol) = replication() {
            command.args(["--replication", &protocol]);
        }
        if Etcd::is_chosen() {
            self.start_etcd();
            command.args(["--coordinator", &self.coordinator()]);
        }
        self.run_up(command);
    }

    /// Starts etcd, also again: one that runs makes room for the next first.
    pub(super) fn start_etcd(&mut self) {
        drop(self.etcd.take());
        let port = *self.etcd_port.get_or_insert_with(|| self.seat.ports(2));
        self.etcd = Some(Etcd::start(self.folder(), port));
    }

    /// Starts the cluster again, in which nothing runs.
    #[track_caller]
    pub(crate) fn up_again(&mut self) {
        self.up_again_with(&[]);
    }

    /// Starts the cluster again, with options.
    #[track_caller]
    pub(crate) fn up_again_with(&mut self, options: &[&str]) {
        assert!(self.up.is_none() && self.running.is_empty(), "it still runs");
        let mut command = trireme();
        command.arg("up").arg("--data").arg(self.data()).args(options);
        self.run_up(command);
    }

    #[track_caller]
    fn run_up(&mut self, mut command: Command) {
        // A node that is started is whole.
        self.faults.get_mut().unwrap().clear();
        spread_nothing(&mut command);
        command.stdout(Stdio::piped()).stderr(self.stderr_file("up"));
        let mut child = command.spawn().unwrap();
        let (send, lines) = mpsc::channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).for_each(|line| drop(send.send(line)));
        });
        self.up = Some(child);
        let ready = lines.recv_timeout(READY_TIMEOUT).expect("the cluster becomes ready");
        let pids = field(&ready, "pids").split(',').map(|pid| pid.parse().unwrap());
        self.running = (1..).zip(pids.map(|pid| NodeProcess { pid, child: None })).collect();
        assert_eq!(self.running.len(), self.nodes, "{ready}");
        assert_eq!(field(&ready, "endpoints"), self.endpoints());
    }

    /// Starts a node again as a user would, by its folder alone. Does not wait until it serves.
    pub(crate) fn restart_node(&mut self, node: usize) {
        self.restart_node_with(node, &[]);
    }

    /// Starts a node again, with options.
    pub(crate) fn restart_node_with(&mut self, node: usize, options: &[&str]) {
        assert!(!self.running.contains_key(&node), "node {node} still runs");
        self.faults.get_mut().unwrap().remove(&node);
        let mut command = self.node_command(node);
        command
            .args(options)
            .stdout(Stdio::null())
            .stderr(self.stderr_file(&format!("node-{node}")));
        spread_nothing(&mut command);
        let child = command.spawn().unwrap();
        self.running.insert(node, NodeProcess { pid: child.id(), child: Some(child) });
    }

    /// Runs a node in the foreground, expecting it to end.
    #[track_caller]
    pub(crate) fn node_fails(&self, node: usize, options: &[&str]) -> Ran {
        let mut command = self.node_command(node);
        command.args(options);
        finish(command)
    }

    pub(super) fn node_command(&self, node: usize) -> Command {
        let mut command = trireme();
        command.arg("node").arg("--data").arg(self.node_folder(node));
        command
    }

    /// Kills a node with SIGKILL, and returns when it is gone.
    pub(crate) fn kill(&mut self, node: usize) {
        let mut process = self.running.remove(&node).expect("the node runs");
        process::kill(process.pid);
        if let Some(child) = &mut process.child {
            child.wait().unwrap();
        }
        self.note_end(node);
    }

    /// Stops a node in order, and returns when it is gone.
    #[track_caller]
    pub(crate) fn stop_node(&mut self, node: usize) {
        let mut process = self.running.remove(&node).expect("the node runs");
        process::signal(process.pid, Signal::TERM);
        process::wait_until_gone(process.pid);
        if let Some(child) = &mut process.child {
            let status = child.wait().unwrap();
            assert!(status.success(), "node {node} ended with {status}");
        }
        self.note_end(node);
    }

    /// Notes that a node's process has ended, before another one may run.
    pub(super) fn note_end(&self, node: usize) {
        self.ends[node].fetch_add(1, Ordering::SeqCst);
    }

    /// Returns how often each node's process has ended, by the nodes' numbers.
    pub(crate) fn ends(&self) -> Arc<Vec<AtomicU64>> {
        Arc::clone(&self.ends)
    }

    /// Returns the numbers of all nodes.
    pub(crate) fn nodes(&self) -> RangeInclusive<usize> {
        1..=self.nodes
    }

    /// Returns the process of a node that runs.
    pub(crate) fn pid(&self, node: usize) -> u32 {
        self.running[&node].pid
    }

    /// Sends a signal to a node.
    pub(crate) fn signal(&self, node: usize, signal: Signal) {
        process::signal(self.running[&node].pid, signal);
    }

    /// Kills every node and then `up`, with SIGKILL and in one go: no node may find the time to
    /// see that `up` is gone and stop cleanly.
    pub(crate) fn kill_all(&mut self) {
        let up = self.up.as_ref().map(Child::id);
        let pids: Vec<u32> = self.running.values().map(|node| node.pid).chain(up).collect();
        for &pid in &pids {
            process::signal(pid, Signal::KILL);
        }
        for mut child in self.up.take().into_iter().chain(self.take_children()) {
            child.wait().unwrap();
        }
        pids.into_iter().for_each(process::wait_until_gone);
        self.nodes().for_each(|node| self.note_end(node));
    }

    /// Forgets the running nodes and returns those that are this process's children.
    fn take_children(&mut self) -> Vec<Child> {
        std::mem::take(&mut self.running).into_values().filter_map(|node| node.child).collect()
    }

    /// Stops the cluster as its user would, and checks that it ends well.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        process::signal(self.up.as_ref().expect("up runs").id(), Signal::TERM);
        let status = self.wait_for_the_end_of_up();
        assert!(status.success(), "up ended with {status}");
        let pids: Vec<u32> = self.running.values().map(|node| node.pid).collect();
        for mut child in self.take_children() {
            process::signal(child.id(), Signal::TERM);
            let status = until("a node has stopped", STOP_TIMEOUT, || child.try_wait().unwrap());
            assert!(status.success(), "a node ended with {status}");
        }
        pids.into_iter().for_each(process::wait_until_gone);
        self.nodes().for_each(|node| self.note_end(node));
    }

    /// Waits until `up` ends by itself, and returns how.
    #[track_caller]
    pub(crate) fn wait_for_the_end_of_up(&mut self) -> ExitStatus {
        let up = self.up.as_mut().expect("up runs");
        let status = until("up has ended", STOP_TIMEOUT, || up.try_wait().unwrap());
        self.up = None;
        status
    }

    /// Returns the numbers of the nodes that run.
    pub(crate) fn running(&self) -> Vec<usize> {
        self.running.keys().copied().collect()
    }

    /// Returns a folder for the test's own files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns a path for a file of the test's own, as text.
    pub(crate) fn file(&self, name: &str) -> String {
        self.folder().join(name).to_str().unwrap().to_owned()
    }

    /// Returns the cluster's data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder().join("data")
    }

    /// Returns a node's data folder.
    pub(crate) fn node_folder(&self, node: usize) -> PathBuf {
        self.data().join(format!("node-{node}"))
    }

    /// Returns the port that `up` was given.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns the ports that the cluster's clusters may be put on.
    pub(crate) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// Returns the coordinator's endpoint.
    pub(crate) fn coordinator(&self) -> String {
        format!("http://127.0.0.1:{}", self.etcd_port.unwrap_or(self.port))
    }

    /// Returns where a node listens.
    pub(crate) fn address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.port + u16::try_from(node).unwrap())
    }

    /// Returns every node's address, as `--endpoints` takes them.
    pub(crate) fn endpoints(&self) -> String {
        let addresses: Vec<String> = (1..=self.nodes).map(|node| self.address(node)).collect();
        addresses.join(",")
    }

    /// Runs a command against the cluster.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ran {
        run(&self.endpoints(), arguments)
    }

    /// Returns a client that asks the nodes that run.
    pub(crate) async fn client(&self, options: ClientOptions) -> Client {
        let addresses: Vec<String> = self.running.keys().map(|&node| self.address(node)).collect();
        Client::connect_with(addresses, options).await.unwrap()
    }

    /// Asks every running node how it is.
    pub(crate) fn statuses(&self) -> Result<Statuses, String> {
        let nodes = self.running.keys().map(|&node| (node, self.address(node)));
        self.runtime.block_on(Statuses::ask(nodes.collect()))
    }

    /// Asks some nodes how they are.
    pub(crate) fn statuses_of(&self, nodes: &[usize]) -> Result<Statuses, String> {
        let nodes = nodes.iter().map(|&node| (node, self.address(node)));
        self.runtime.block_on(Statuses::ask(nodes.collect()))
    }

    /// Removes all that a node has on disk, which must not run.
    pub(crate) fn wipe(&self, node: usize) {
        assert!(!self.running.contains_key(&node), "node {node} still runs");
        std::fs::remove_dir_all(self.node_folder(node)).unwrap();
    }

    pub(super) fn stderr_file(&mut self, who: &str) -> File {
        self.started += 1;
        File::create(self.folder().join(format!("{}-{who}.stderr", self.started))).unwrap()
    }

    #[expect(clippy::print_stderr, reason = "the test framework shows it with the failure")]
    fn show_tails(&self) {
        for (path, text) in self.all_stderr() {
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
            eprintln!("--- the end of {}:\n{}", path.display(), tail.join("\n"));
        }
    }

    /// Lets a process tell of errors with this text in them, which the test provokes.
    pub(crate) fn expect_error(&mut self, text: &'static str) {
        self.expected_errors.push(text);
    }

    /// Says whether a process has said something with this text in it.
    pub(crate) fn has_said(&self, text: &str) -> bool {
        self.all_stderr().iter().any(|(_, said)| said.contains(text))
    }

    /// Returns how many processes have said this.
    pub(crate) fn have_said(&self, text: &str) -> usize {
        self.all_stderr().iter().filter(|(_, said)| said.contains(text)).count()
    }

    /// Fails the test if a process has met what it should not have, though nobody noticed.
    fn check_stderr(&self) {
        for (path, text) in self.all_stderr() {
            let is_bad = |line: &&str| {
                line.contains("panicked at")
                    || (line.contains(" ERROR ")
                        && !self.expected_errors.iter().any(|e| line.contains(e)))
            };
            if let Some(line) = text.lines().find(is_bad) {
                panic!("{}: {line}", path.display());
            }
        }
    }

    fn all_stderr(&self) -> Vec<(PathBuf, String)> {
        let entries = std::fs::read_dir(self.folder()).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "stderr"));
        let read = |path: PathBuf| {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            (path, text)
        };
        paths.into_iter().map(read).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_tails();
        }
        let mut children = self.up.take().into_iter().collect::<Vec<Child>>();
        for node in std::mem::take(&mut self.running).into_values() {
            process::signal(node.pid, Signal::KILL);
            children.extend(node.child);
        }
        for mut child in children {
            // Nobody is left to tell if one cannot be killed.
            let _gone = child.kill();
            let _gone = child.wait();
        }
        if !std::thread::panicking() {
            self.check_stderr();
        }
    }
}

/// Returns the protocol that every cluster is to replicate by that does not say so itself: set by
/// `TRIREME_TEST_REPLICATION`, so that what holds for one protocol is seen to hold for all.
pub(crate) fn replication() -> Option<String> {
    std::env::var("TRIREME_TEST_REPLICATION").ok().filter(|protocol| !protocol.is_empty())
}

/// Has no replica move and no cohort be handed over by itself, unless that is what a test is about: others say
/// where they are to be.
pub(super) fn spread_nothing(command: &mut Command) {
    for option in ["--spread-delay", "--spread-leads-delay"] {
        if command.get_args().all(|argument| argument != option) {
            command.args([option, "off"]);
        }
    }
}

/// Returns `trireme up` in a folder and from a port on.
pub(crate) fn up_command(data: &Path, port: u16) -> Command {
    let mut command = trireme();
    command.arg("up").arg("--data").arg(data).args(["--port", &port.to_string()]);
    command
}

/// Runs `trireme up`, expecting it to end by itself before it is ready.
#[track_caller]
pub(crate) fn start_fails<A: AsRef<OsStr>>(data: &Path, port: u16, arguments: &[A]) -> Ran {
    let began = Instant::now();
    let mut command = up_command(data, port);
    command.args(arguments);
    let ran = finish(command);
    assert_ne!(ran.status, 0, "{ran:?} after {:?}", began.elapsed());
    ran
}

/// Returns a field of the line that `up` prints when it is ready.
fn field<'a>(ready: &'a str, name: &str) -> &'a str {
    let fields = ready.strip_prefix("ready ").expect("the line begins with ready").split(' ');
    fields
        .filter_map(|field| field.split_once('='))
        .find_map(|(found, value)| (found == name).then_some(value))
        .unwrap_or_else(|| panic!("no {name} in {ready}"))
}
