//! Clusters of processes on this machine, for experiments: each is started by `trireme up` in a
//! folder of its own, does not outlive its owner, and can be given faults.

mod etcd;
mod faults;
mod health;
mod hosts;
mod ports;
mod process;
mod ready;
mod usage;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use tempfile::TempDir;
use tokio::sync::oneshot;
use trireme_client::{Client, ClientOptions};
use trireme_types::{Durability, Engine, NodeId, Protocol};

use self::ports::{PORTS_MAX, Ports};
use self::process::GONE_TIMEOUT;
use self::ready::Ready;

pub use self::etcd::EtcdCluster;
pub use self::faults::{ALLOW as ALLOW_FAULTS, Frozen, Lost, Suffering};
pub use self::health::{Conditions, Statuses};
pub use self::hosts::{Disk, Ended, Host, Hosts, Network, NodeFaults};
pub use self::usage::{own_memory, processor_time};

/// How long a cluster may take until it serves.
const READY_TIMEOUT: Duration = Duration::from_secs(90);

/// How long one question to a node or to the cluster may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// How many lines of what `up` and its nodes said are shown when they fail.
const TAIL_LINES: usize = 15;

/// What every experiment's clusters are started with.
#[derive(Args, Clone, Debug)]
pub struct ClusterArgs {
    /// The `trireme` program. [default: beside this program]
    #[arg(long, value_name = "PATH")]
    pub trireme: Option<PathBuf>,
    /// How many nodes.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub nodes: u16,
    /// The storage engine: lsm or sled.
    #[arg(long, default_value_t)]
    pub engine: Engine,
    /// What an acknowledged write has survived: fsync, os or memory.
    #[arg(long, default_value_t)]
    pub durability: Durability,
    /// How many of the nodes hold a replica, if not all do.
    #[arg(skip)]
    pub replicas: Option<u16>,
    /// Where its ranges meet; there is one more than these keys.
    #[arg(skip)]
    pub borders: Vec<String>,
    /// How long a cluster may take until it serves, if not as long as one of a few ranges.
    #[arg(skip)]
    pub ready_within: Option<Duration>,
    /// One more argument for `trireme up`, as it stands; may be given more than once.
    #[arg(long = "up", value_name = "ARGUMENT", allow_hyphen_values = true)]
    pub more: Vec<String>,
    /// The folder that each cluster's own is made in. [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// Keep the clusters' folders, and say where they are.
    #[arg(long)]
    pub keep: bool,
}

/// A running cluster. Dropped, it is killed.
pub struct Cluster {
    program: PathBuf,
    engine: Engine,
    durability: Durability,
    /// Where the coordinator listens.
    coordinator_url: String,
    addresses: BTreeMap<NodeId, String>,
    up: Child,
    /// The coordinator, which outlives `up`: that ends when none of the nodes runs that it started.
    coordinator: Child,
    /// The processes of the nodes that run.
    running: BTreeMap<NodeId, NodeProcess>,
    /// How many processes were started again, so that each has a file for what it says.
    restarts: usize,
    /// Asks nodes how they are, apart from the clients that are measured.
    observer: Client,
    protocol: Protocol,
    folder: TempDir,
    _ports: Ports,
}

struct NodeProcess {
    pid: u32,
    /// Unless it is a child of `up`. Its standard input is held open: the node stops when that
    /// ends, as it does when this program is gone, however it went.
    child: Option<Child>,
}

/// The end of a node.
#[derive(Clone, Copy, Debug)]
pub struct Killed {
    /// Right before the signal was sent.
    pub at: Instant,
    /// When the process was seen to be gone. What was begun after it was not begun at this node.
    pub gone: Instant,
}

impl ClusterArgs {
    /// Returns what clusters of three nodes are started with by default, with this program.
    pub fn of(program: PathBuf) -> Self {
        Self {
            trireme: Some(program),
            nodes: 3,
            engine: Engine::default(),
            durability: Durability::default(),
            replicas: None,
            borders: Vec::new(),
            ready_within: None,
            more: Vec::new(),
            folder: None,
            keep: false,
        }
    }

    /// Returns how many nodes a cluster has.
    pub fn nodes(&self) -> usize {
        usize::from(self.nodes)
    }

    /// Makes the folder of one cluster.
    fn new_folder(&self) -> anyhow::Result<TempDir> {
        let parent = self.folder.clone().unwrap_or_else(std::env::temp_dir);
        let made = TempDir::with_prefix_in("trireme-lab-", &parent);
        let mut folder =
            made.with_context(|| format!("making a temporary folder in {}", parent.display()))?;
        if self.keep {
            folder.disable_cleanup(true);
            // There is nowhere left to say that stderr cannot be written.
            let _unwritten =
                writeln!(io::stderr(), "the cluster's folder is {}", folder.path().display());
        }
        Ok(folder)
    }

    /// Returns the arguments of `up` that every cluster is started with.
    fn up_arguments(&self, protocol: Protocol, port: u16) -> Vec<String> {
        let ranges = if self.borders.is_empty() {
            ("--ranges", "1".to_owned())
        } else {
            ("--split-at", self.borders.join(","))
        };
        let named = [
            ranges,
            ("--replication", protocol.to_string()),
            ("--nodes", self.nodes.to_string()),
            ("--replicas", self.replicas.unwrap_or(self.nodes).to_string()),
            ("--port", port.to_string()),
            ("--engine", self.engine.to_string()),
            ("--durability", self.durability.to_string()),
        ];
        named.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }

    /// Returns the program to start.
    fn program(&self) -> anyhow::Result<PathBuf> {
        let (path, hint) = match &self.trireme {
            Some(path) => (path.clone(), ""),
            None => {
                let own = std::env::current_exe().context("finding this program")?;
                let hint = "; build it with `cargo build -p trireme-cli` (with `--release` if \
                            this program was), or name it with --trireme";
                (own.with_file_name("trireme"), hint)
            }
        };
        if !path.is_file() {
            bail!("there is no program at {}{hint}", path.display());
        }
        path.canonicalize().with_context(|| format!("finding {}", path.display()))
    }
}

impl Cluster {
    /// Starts a cluster, with these arguments of `up` besides what the command line
    /// gave, and returns when it serves.
    pub async fn start(
        args: &ClusterArgs,
        protocol: Protocol,
        more: &[&str],
    ) -> anyhow::Result<Self> {
        if args.nodes == 0 || args.nodes >= PORTS_MAX {
            bail!("a cluster has 1 to {} nodes, not {}", PORTS_MAX - 1, args.nodes);
        }
        let program = args.program()?;
        let folder = args.new_folder()?;
        let ports = Ports::take()?;
        let coordinator = spawn_coordinator(&program, ports.first(), folder.path())?;
        let mut starting = Starting { up: None, coordinator: Some(coordinator) };
        let mut command = trireme(&program);
        command.arg("up").arg("--data").arg(folder.path().join("data"));
        let coordinator_url = format!("http://{}", loopback(ports.first()));
        command.args(["--coordinator", &coordinator_url]);
        command.args(args.up_arguments(protocol, ports.first())).args(more).args(&args.more);
        starting.up = Some(spawn_up(&mut command, folder.path())?);
        let patience = args.ready_within.unwrap_or(READY_TIMEOUT);
        let ready = starting.ready(folder.path(), patience).await?;
        let options = ClientOptions { deadline: ASK_TIMEOUT, ..ClientOptions::default() };
        let observer = Client::connect_with(ready.endpoints.clone(), options).await?;
        let numbers = || (1..).map(NodeId);
        let nodes = ready.pids.into_iter().map(|pid| NodeProcess { pid, child: None });
        Ok(Self {
            program,
            engine: args.engine,
            durability: args.durability,
            coordinator_url,
            addresses: numbers().zip(ready.endpoints).collect(),
            running: numbers().zip(nodes).collect(),
            up: starting.up.take().context("up was started")?,
            coordinator: starting.coordinator.take().context("the coordinator was started")?,
            restarts: 0,
            observer,
            protocol,
            folder,
            _ports: ports,
        })
    }

    /// Connects a client to the nodes that run.
    pub async fn client(&self, options: ClientOptions) -> anyhow::Result<Client> {
        let addresses = self.running.keys().map(|node| self.addresses[node].clone());
        Ok(Client::connect_with(addresses, options).await?)
    }

    /// Kills a node with SIGKILL, and returns when it is gone.
    pub async fn kill(&mut self, node: NodeId) -> anyhow::Result<Killed> {
        let Some(mut process) = self.running.remove(&node) else { bail!("{node} does not run") };
        if !process.runs(self.folder.path()) {
            bail!("{node} has ended by itself{}", self.said());
        }
        let at = Instant::now();
        process::kill(process.pid);
        process::wait_until_gone(process.pid, GONE_TIMEOUT).await?;
        let gone = Instant::now();
        if let Some(child) = &mut process.child {
            child.wait().with_context(|| format!("waiting for {node}"))?;
        }
        Ok(Killed { at, gone })
    }

    /// Starts a node again as a user would, by its folder alone. Does not wait until it serves.
    pub fn restart(&mut self, node: NodeId) -> anyhow::Result<()> {
        self.restart_logging(node, None).map(|_said| ())
    }

    /// Starts a node again, with another filter of what it logs, and returns the file that it logs
    /// to.
    pub fn restart_logging(
        &mut self,
        node: NodeId,
        filter: Option<&str>,
    ) -> anyhow::Result<PathBuf> {
        self.spawn_node(node, &[], filter)
    }

    /// Starts a node that does not run on an empty disk: what its folder held is lost. It gets these
    /// arguments of `node` besides those that it had at first. Does not wait until it serves.
    pub fn restart_wiped(&mut self, node: NodeId, more: &[String]) -> anyhow::Result<()> {
        let folder = self.node_folder(node);
        if !self.running.contains_key(&node) {
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("removing {}", folder.display()))?;
        }
        let first = [
            ("--id", node.0.to_string()),
            ("--listen", self.address(node).to_owned()),
            ("--coordinator", self.coordinator_url.clone()),
            ("--engine", self.engine.to_string()),
            ("--durability", self.durability.to_string()),
        ];
        let first = first.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        let arguments: Vec<String> = first.chain(more.iter().cloned()).collect();
        self.spawn_node(node, &arguments, None).map(drop)
    }

    fn spawn_node(
        &mut self,
        node: NodeId,
        arguments: &[String],
        filter: Option<&str>,
    ) -> anyhow::Result<PathBuf> {
        if self.running.contains_key(&node) {
            bail!("{node} runs already");
        }
        self.restarts += 1;
        let said = self.folder.path().join(format!("{}-{node}.stderr", self.restarts));
        let mut command = trireme(&self.program);
        command.arg("node").arg("--data").arg(self.node_folder(node)).arg("--stop-at-stdin-end");
        command.args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(File::create(&said)?);
        command.envs(filter.map(|filter| ("TRIREME_LOG", filter)));
        let child = command.spawn().with_context(|| format!("starting {node} again"))?;
        self.running.insert(node, NodeProcess { pid: child.id(), child: Some(child) });
        Ok(said)
    }

    /// Returns the processes of the nodes that run.
    pub fn processes(&self) -> BTreeMap<NodeId, u32> {
        self.running.iter().map(|(node, process)| (*node, process.pid)).collect()
    }

    /// Returns the process of the coordinator.
    pub fn coordinator_process(&self) -> u32 {
        self.coordinator.id()
    }

    /// Has a node stop in order, and returns when it is gone.
    pub async fn stop(&mut self, node: NodeId, patience: Duration) -> anyhow::Result<()> {
        self.stop_all([node].into(), patience).await
    }

    /// Has the nodes that run stop in order, all at once, and returns when they are gone.
    pub async fn stop_nodes(&mut self, patience: Duration) -> anyhow::Result<()> {
        self.stop_all(self.running.keys().copied().collect(), patience).await
    }

    async fn stop_all(&mut self, nodes: Vec<NodeId>, patience: Duration) -> anyhow::Result<()> {
        for node in &nodes {
            let Some(process) = self.running.get_mut(node) else { bail!("{node} does not run") };
            if !process.runs(self.folder.path()) {
                bail!("{node} has ended by itself{}", tail(self.folder.path()));
            }
            process::terminate(process.pid).with_context(|| format!("stopping {node}"))?;
        }
        for node in nodes {
            let Some(mut process) = self.running.remove(&node) else { continue };
            process::wait_until_gone(process.pid, patience).await?;
            if let Some(child) = &mut process.child {
                child.wait().with_context(|| format!("waiting for {node}"))?;
            }
        }
        Ok(())
    }

    /// Returns where a node listens.
    pub fn address(&self, node: NodeId) -> &str {
        &self.addresses[&node]
    }

    /// Returns a node's data folder.
    pub fn node_folder(&self, node: NodeId) -> PathBuf {
        self.folder.path().join("data").join(format!("node-{}", node.0))
    }

    /// Returns the folder of everything that the cluster writes.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the end of what `up` and its nodes said, to be put behind an error.
    pub fn said(&self) -> String {
        tail(self.folder.path())
    }
}

impl NodeProcess {
    /// Says whether the process runs still, given the folder of its cluster.
    fn runs(&mut self, folder: &Path) -> bool {
        match &mut self.child {
            Some(child) => has_not_ended(child),
            None => process::runs_in(self.pid, folder),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // What has ended may have left its number to another program.
        let mut pids = Vec::new();
        for child in [&mut self.up, &mut self.coordinator] {
            if has_not_ended(child) {
                pids.push(child.id());
            }
        }
        for node in self.running.values_mut() {
            if node.runs(self.folder.path()) {
                pids.push(node.pid);
            }
        }
        pids.iter().for_each(|pid| process::kill(*pid));
        process::wait_for_all(&pids);
        let nodes = std::mem::take(&mut self.running).into_values();
        for mut child in nodes.filter_map(|node| node.child) {
            // Nobody is left to tell if one cannot be waited for.
            let _ended = child.wait();
        }
        let _ended = (self.up.wait(), self.coordinator.wait());
    }
}

/// A cluster that is not ready. Dropped, it is killed, and so are the nodes that it has started.
struct Starting {
    up: Option<Child>,
    coordinator: Option<Child>,
}

impl Starting {
    /// Waits for the line that `up` prints when its cluster serves.
    async fn ready(&mut self, folder: &Path, patience: Duration) -> anyhow::Result<Ready> {
        let up = self.up.as_mut().context("up was started")?;
        let stdout = BufReader::new(up.stdout.take().context("the output of up is piped")?);
        let (send, first_line) = oneshot::channel();
        std::thread::spawn(move || {
            let mut lines = stdout.lines().map_while(Result::ok);
            if let Some(line) = lines.next() {
                // Whoever waited may have given up.
                let _unwanted = send.send(line);
            }
            // The pipe is read to its end, so that `up` never waits for room in it.
            lines.for_each(drop);
        });
        match tokio::time::timeout(patience, first_line).await {
            Ok(Ok(line)) => line.parse().with_context(|| format!("`trireme up` said: {line}")),
            Ok(Err(_ended)) => {
                let status = up.wait().context("waiting for `trireme up`")?;
                bail!("`trireme up` ended with {status} before it was ready{}", tail(folder))
            }
            Err(_elapsed) => {
                bail!("the cluster was not ready after {patience:?}{}", tail(folder))
            }
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let mut pids = Vec::new();
        if let Some(up) = &mut self.up
            && has_not_ended(up)
        {
            pids.extend(process::children(up.id()));
            pids.push(up.id());
        }
        pids.extend(self.coordinator.as_ref().map(Child::id));
        pids.iter().for_each(|pid| process::kill(*pid));
        process::wait_for_all(&pids);
        for mut child in [self.up.take(), self.coordinator.take()].into_iter().flatten() {
            let _ended = child.wait();
        }
    }
}

/// Says whether a child runs, whose number is its own until this has said that it does not.
fn has_not_ended(child: &mut Child) -> bool {
    matches!(child.try_wait(), Ok(None))
}

fn loopback(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

/// Starts a coordinator that stops when this process is gone, however it went. `up` waits until it
/// answers.
fn spawn_coordinator(program: &Path, port: u16, folder: &Path) -> anyhow::Result<Child> {
    let said = File::create(folder.join("0-coordinator.stderr"));
    let mut command = trireme(program);
    command.arg("coordinator").arg("--data").arg(folder.join("coordinator"));
    command.args(["--listen", &loopback(port), "--stop-at-stdin-end"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    command.stderr(said.context("making a file for stderr")?);
    command.spawn().context("starting the coordinator")
}

fn spawn_up(command: &mut Command, folder: &Path) -> anyhow::Result<Child> {
    let said = File::create(folder.join("0-up.stderr")).context("making a file for stderr")?;
    command.stdout(Stdio::piped()).stderr(said);
    command.spawn().context("starting `trireme up`")
}

/// Returns a command of the program that does not depend on this process's surroundings.
fn trireme(program: &Path) -> Command {
    let mut command = Command::new(program);
    isolate(&mut command);
    command
}

/// Has a command not depend on this process's surroundings.
fn isolate(command: &mut Command) {
    command.env_remove("TRIREME_ENDPOINTS").env_remove("RUST_LOG").stdin(Stdio::null());
    // A terminal's Ctrl-C goes to this process alone, which ends the cluster in its own way.
    command.process_group(0);
}

/// Returns the last lines of what the processes of a cluster said, newest process last.
fn tail(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "stderr"));
    paths.sort();
    let texts = paths.iter().map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let text: String = texts.collect();
    let lines: Vec<&str> = text.lines().collect();
    let end = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if end.is_empty() { String::new() } else { format!("; it said:\n{}", end.join("\n")) }
}
