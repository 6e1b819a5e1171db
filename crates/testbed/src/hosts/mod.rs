//! A cluster whose processes are started one by one, each on a host of its own as far as the network
//! goes: nodes and coordinator can be killed, frozen, started again, cut off from each other and
//! wiped apart from each other.

mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::future::join_all;
use tempfile::TempDir;
use tokio::time::timeout;
use trireme_client::faults::{
    DiskFault, FailedDisk, LinkFault, LostOnTheWay, SetFaultsRequest, StalledDisk, disk_fault,
    link_fault,
};
use trireme_client::{Client, ClientOptions};
use trireme_coordinator::recipes::catalog::{Catalog, ClusterSpec};
use trireme_coordinator::{Coordinator, CoordinatorOptions};
use trireme_types::{ClusterId, CohortConfig, NodeId, Protocol, RangeMap};

pub use self::network::{Host, Network};

use self::network::Namespaces;
use crate::health::{Conditions, Statuses};
use crate::ports::{PORTS_MAX, Ports};
use crate::process::GONE_TIMEOUT;
use crate::{ClusterArgs, TAIL_LINES, has_not_ended, isolate, process, tail};

/// How long the processes may take until they serve.
const READY_TIMEOUT: Duration = Duration::from_secs(90);

/// How often something is looked at that is waited for.
const INTERVAL: Duration = Duration::from_millis(50);

/// How long one question to a node may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a process that was asked to end may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// A running cluster of one range with a replica on every node. Dropped, it is killed.
pub struct Hosts {
    program: PathBuf,
    protocol: Protocol,
    wiring: Wiring,
    /// The arguments of every node.
    options: Vec<String>,
    addresses: BTreeMap<Host, String>,
    running: BTreeMap<Host, Child>,
    /// What each host's latest process says.
    said_by: BTreeMap<Host, PathBuf>,
    /// What each node is to suffer, whether its process suffers it already or not.
    faults: BTreeMap<NodeId, NodeFaults>,
    cuts: BTreeSet<(Host, Host)>,
    /// The nodes whose processes do not suffer what they are to suffer yet.
    behind: BTreeSet<NodeId>,
    /// How many processes were started, so that each has a file for what it says.
    started: usize,
    /// Asks nodes how they are, and to suffer faults, once they serve.
    observer: Option<Client>,
    folder: TempDir,
}

/// What a node does to itself: what no network and no signal can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeFaults {
    /// All that it sends to other nodes leaves so much later.
    pub delay: Option<Duration>,
    /// What becomes of the forces of its log.
    pub disk: Option<Disk>,
}

/// What becomes of each force of a node's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// It waits.
    Stalled,
    /// It takes so much longer.
    Slow(Duration),
    /// It fails, which stops the node.
    Failing,
}

enum Wiring {
    Namespaces(Namespaces),
    Loopback { _ports: Ports },
}

/// A process that has ended though nothing made it.
#[derive(Debug)]
pub struct Ended {
    /// Where it ran.
    pub host: Host,
    /// How it ended.
    pub status: ExitStatus,
    /// The end of what it said.
    pub said: String,
}

impl Hosts {
    /// Starts a coordinator and nodes with these options, and returns when the cluster is whole.
    pub async fn start(
        args: &ClusterArgs,
        protocol: Protocol,
        network: Network,
        options: &[&str],
    ) -> anyhow::Result<Self> {
        let nodes: Vec<NodeId> = (1..=u64::from(args.nodes)).map(NodeId).collect();
        let (wiring, addresses) = wire(network, &nodes)?;
        let mut own = vec!["--allow-faults".to_owned()];
        own.extend(["--engine".to_owned(), args.engine.to_string()]);
        own.extend(["--durability".to_owned(), args.durability.to_string()]);
        own.extend(options.iter().map(|option| (*option).to_owned()));
        let mut hosts = Self {
            program: args.program()?,
            protocol,
            wiring,
            options: own,
            addresses,
            running: BTreeMap::new(),
            said_by: BTreeMap::new(),
            faults: BTreeMap::new(),
            cuts: BTreeSet::new(),
            behind: BTreeSet::new(),
            started: 0,
            observer: None,
            folder: args.new_folder()?,
        };
        hosts.start_process(Host::Coordinator)?;
        bootstrap(&hosts.coordinator(), protocol, &nodes).await?;
        for node in &nodes {
            hosts.start_process(Host::Node(*node))?;
        }
        let options = ClientOptions { deadline: READY_TIMEOUT, ..ClientOptions::default() };
        hosts.observer = Some(hosts.client(options).await?);
        hosts.wait_until_whole(READY_TIMEOUT).await?;
        Ok(hosts)
    }

    /// Returns the nodes, whether they run or not.
    pub fn nodes(&self) -> Vec<NodeId> {
        let node = |host: &Host| if let Host::Node(node) = host { Some(*node) } else { None };
        self.addresses.keys().filter_map(node).collect()
    }

    /// Returns true if the host's process runs, also if it stands still.
    pub fn is_running(&self, host: Host) -> bool {
        self.running.contains_key(&host)
    }

    /// Connects a client.
    pub async fn client(&self, options: ClientOptions) -> anyhow::Result<Client> {
        Ok(Client::connect_with(self.endpoints(), options).await?)
    }

    /// Returns the folder of everything that the cluster writes.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the data folder of a host's process.
    pub fn data(&self, host: Host) -> PathBuf {
        let name = match host {
            Host::Node(node) => format!("node-{}", node.0),
            Host::Coordinator => "coordinator".to_owned(),
            Host::Clients => "clients".to_owned(),
        };
        self.folder.path().join(name)
    }

    /// Keeps the cluster's folder, and returns it.
    pub fn keep(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    /// Kills a host's process with SIGKILL, and returns when it is gone.
    pub async fn kill(&mut self, host: Host) -> anyhow::Result<()> {
        let Some(mut child) = self.running.remove(&host) else { return Ok(()) };
        process::kill(child.id());
        process::wait_until_gone(child.id(), GONE_TIMEOUT).await?;
        child.wait().with_context(|| format!("waiting for {host:?}"))?;
        Ok(())
    }

    /// Kills the processes of all nodes at the same time.
    pub async fn kill_all_nodes(&mut self) -> anyhow::Result<()> {
        let nodes = self.running.iter().filter(|(host, _)| matches!(host, Host::Node(_)));
        nodes.for_each(|(_, child)| process::kill(child.id()));
        for node in self.nodes() {
            self.kill(Host::Node(node)).await?;
        }
        Ok(())
    }

    /// Asks a host's process to end in order, and returns when it has.
    pub async fn stop(&mut self, host: Host) -> anyhow::Result<()> {
        let Some(mut child) = self.running.remove(&host) else { return Ok(()) };
        // It stops when its standard input ends.
        drop(child.stdin.take());
        let deadline = Instant::now() + STOP_TIMEOUT;
        while has_not_ended(&mut child) {
            if Instant::now() >= deadline {
                process::kill(child.id());
                process::wait_until_gone(child.id(), GONE_TIMEOUT).await?;
                child.wait().with_context(|| format!("waiting for {host:?}"))?;
                bail!("{host:?} did not stop within {STOP_TIMEOUT:?}{}", self.said());
            }
            tokio::time::sleep(INTERVAL).await;
        }
        Ok(())
    }

    /// Has a host's process stand still.
    pub fn freeze(&mut self, host: Host) -> anyhow::Result<()> {
        let child = self.running.get(&host).with_context(|| format!("{host:?} does not run"))?;
        process::stop(child.id()).with_context(|| format!("freezing {host:?}"))
    }

    /// Has a host's process go on, which may be gone.
    pub fn thaw(&mut self, host: Host) {
        if let Some(child) = self.running.get(&host) {
            let _gone = process::go_on(child.id());
        }
    }

    /// Starts a host's process, if it does not run. Does not wait until it serves.
    pub fn start_process(&mut self, host: Host) -> anyhow::Result<()> {
        if self.running.contains_key(&host) {
            return Ok(());
        }
        self.started += 1;
        let said = self.folder.path().join(format!("{:05}-{host:?}.stderr", self.started));
        let mut command = match &self.wiring {
            Wiring::Namespaces(_) => Namespaces::command(host, &self.program),
            Wiring::Loopback { .. } => Command::new(&self.program),
        };
        isolate(&mut command);
        command.arg(if host == Host::Coordinator { "coordinator" } else { "node" });
        command.arg("--data").arg(self.data(host)).args(["--listen", &self.addresses[&host]]);
        command.arg("--stop-at-stdin-end");
        if let Host::Node(node) = host {
            command.args(["--id", &node.0.to_string(), "--coordinator", &self.coordinator()]);
            command.args(&self.options);
            // What is measured is what was asked for.
            command.args(["--spread-delay", "off", "--spread-leads-delay", "off"]);
            command.args(["--split-bytes", "off"]);
            // Its process has no fault yet.
            self.behind.insert(node);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(File::create(&said)?);
        self.said_by.insert(host, said);
        let child = command.spawn().with_context(|| format!("starting {host:?}"))?;
        self.running.insert(host, child);
        Ok(())
    }

    /// Removes all data of a host whose process does not run.
    pub fn wipe(&mut self, host: Host) -> anyhow::Result<()> {
        if self.is_running(host) {
            bail!("{host:?} runs");
        }
        fs::remove_dir_all(self.data(host)).with_context(|| format!("wiping {host:?}"))
    }

    /// Copies the data of a host whose process does not run.
    pub fn copy(&self, host: Host, to: &Path) -> anyhow::Result<()> {
        copy_folder(&self.data(host), to).with_context(|| format!("copying {host:?}"))
    }

    /// Puts the data of a host back to an earlier copy; its process does not run.
    pub fn put_back(&mut self, host: Host, from: &Path) -> anyhow::Result<()> {
        self.wipe(host)?;
        copy_folder(from, &self.data(host)).with_context(|| format!("putting {host:?} back"))
    }

    /// Has a coordinator that has lost its data learn from the nodes that run, and from the folders of
    /// those that do not, what it knew (`trireme coordinator rebuild`). Returns what the command reports.
    pub async fn rebuild_coordinator(&self) -> anyhow::Result<String> {
        let from: Vec<String> = self
            .nodes()
            .into_iter()
            .map(Host::Node)
            .map(|host| match self.is_running(host) {
                true => self.addresses[&host].clone(),
                false => self.data(host).display().to_string(),
            })
            .collect();
        let mut command = Command::new(&self.program);
        command.args(["coordinator", "rebuild", "--coordinator", &self.coordinator()]);
        command.arg("--from").arg(from.join(","));
        isolate(&mut command);
        let output = tokio::task::spawn_blocking(move || command.output()).await?;
        let output = output.context("running trireme coordinator rebuild")?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("trireme coordinator rebuild ended with {}: {error}", output.status);
        }
        Ok(said)
    }

    /// Has exactly these ways between hosts be cut: what the first would send to the second is lost.
    /// On the loopback interface, the way of clients cannot be cut, and a node that is cut off from the
    /// coordinator one way is cut off both ways.
    pub async fn set_cuts(&mut self, cuts: BTreeSet<(Host, Host)>) -> anyhow::Result<()> {
        match &mut self.wiring {
            Wiring::Namespaces(network) => network.set_cuts(&cuts)?,
            Wiring::Loopback { .. } => {
                let nodes = self.nodes();
                self.behind.extend(nodes.into_iter().filter(|node| {
                    let of = |cuts: &BTreeSet<(Host, Host)>| links(*node, cuts);
                    of(&cuts) != of(&self.cuts)
                }));
            }
        }
        self.cuts = cuts;
        self.tell_nodes().await;
        Ok(())
    }

    /// Has a node suffer exactly this.
    pub async fn set_faults(&mut self, node: NodeId, faults: NodeFaults) {
        if self.faults.get(&node).copied().unwrap_or_default() != faults {
            self.faults.insert(node, faults);
            self.behind.insert(node);
        }
        self.tell_nodes().await;
    }

    /// Has the processes suffer what their nodes are to suffer, as far as they can be asked. To be
    /// called again and again: a process may not serve yet, or stand still.
    pub async fn tell_nodes(&mut self) {
        let Some(observer) = self.observer.clone() else { return };
        for node in self.behind.clone() {
            if !self.is_running(Host::Node(node)) {
                continue;
            }
            let faults = self.faults.get(&node).copied().unwrap_or_default();
            let request = request(node, &self.nodes(), faults, &self.loopback_cuts());
            let asked = observer.set_faults(&self.addresses[&Host::Node(node)], request);
            if let Ok(Ok(())) = timeout(ASK_TIMEOUT / 4, asked).await {
                self.behind.remove(&node);
            }
        }
    }

    /// Returns true if every process that runs suffers what it is to suffer.
    pub fn all_suffer(&self) -> bool {
        self.behind.iter().all(|node| !self.is_running(Host::Node(*node)))
    }

    /// Returns the processes that have ended though nothing made them, which then do not run any
    /// more. A node whose disk fails has a reason.
    pub fn ended(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        for host in self.running.keys().copied().collect::<Vec<_>>() {
            let Some(child) = self.running.get_mut(&host) else { continue };
            let Ok(Some(status)) = child.try_wait() else { continue };
            self.running.remove(&host);
            let said = self.said_by.get(&host).map(fs::read_to_string);
            let said = said.and_then(Result::ok).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            let said = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
            ended.push(Ended { host, status, said });
        }
        ended
    }

    /// Asks every node that runs how it is; those that do not answer are left out.
    pub async fn statuses(&self) -> Statuses {
        let Some(observer) = &self.observer else { return Statuses::of(Vec::new()) };
        let running = self.nodes().into_iter().filter(|node| self.is_running(Host::Node(*node)));
        let asked = running.map(|node| async move {
            let asked = observer.node_status(&self.addresses[&Host::Node(node)]);
            timeout(ASK_TIMEOUT, asked).await.ok()?.ok()
        });
        Statuses::of(join_all(asked).await.into_iter().flatten().collect())
    }

    /// Returns what the cluster lacks to be whole, if anything: every node's replica follows one
    /// leader and has applied all entries up to this one.
    pub async fn lacks(&self, upto: u64) -> Result<Statuses, String> {
        let statuses = self.statuses().await;
        statuses.lacks_members(self.nodes().len())?;
        statuses.lacks_entries(upto)?;
        Ok(statuses)
    }

    /// Waits until every node's replica follows one leader and has applied all that the leader knew
    /// to be committed when that came to be so.
    pub async fn wait_until_whole(&mut self, patience: Duration) -> anyhow::Result<Statuses> {
        let deadline = Instant::now() + patience;
        let mut upto = None;
        loop {
            self.tell_nodes().await;
            let missing = match self.lacks(upto.unwrap_or(0)).await {
                Ok(statuses) if upto.is_some() => return Ok(statuses),
                Ok(statuses) => {
                    let committed = statuses.leader().and_then(|(_, leader)| leader.committed);
                    upto = Some(committed.unwrap_or_default().seq);
                    continue;
                }
                Err(missing) => missing,
            };
            if let Some(ended) = self.ended().into_iter().next() {
                bail!("{:?} has ended by itself: {}\n{}", ended.host, ended.status, ended.said);
            }
            if Instant::now() >= deadline {
                bail!("the cluster is not whole after {patience:?}: {missing}{}", self.said());
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Returns what the cluster's figures depend on.
    pub async fn conditions(&self) -> anyhow::Result<Conditions> {
        self.statuses().await.conditions(self.protocol, self.folder())
    }

    fn endpoints(&self) -> Vec<String> {
        self.nodes().into_iter().map(|node| self.addresses[&Host::Node(node)].clone()).collect()
    }

    fn coordinator(&self) -> String {
        format!("http://{}", self.addresses[&Host::Coordinator])
    }

    fn loopback_cuts(&self) -> BTreeSet<(Host, Host)> {
        match self.wiring {
            Wiring::Namespaces(_) => BTreeSet::new(),
            Wiring::Loopback { .. } => self.cuts.clone(),
        }
    }

    fn said(&self) -> String {
        tail(self.folder.path())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let pids: Vec<u32> = self.running.values().map(Child::id).collect();
        pids.iter().for_each(|pid| process::kill(*pid));
        for child in self.running.values_mut() {
            // There is nothing left to report it to if one cannot be waited for.
            let _ended = child.wait();
        }
    }
}

/// Makes the network, and says where each host's process listens.
fn wire(network: Network, nodes: &[NodeId]) -> anyhow::Result<(Wiring, BTreeMap<Host, String>)> {
    let hosts = nodes.iter().copied().map(Host::Node).chain([Host::Coordinator]);
    match network {
        Network::Namespaces => {
            let addresses = hosts.map(|host| (host, host.address())).collect();
            Ok((Wiring::Namespaces(Namespaces::new(nodes)?), addresses))
        }
        Network::Loopback => {
            if nodes.len() >= usize::from(PORTS_MAX) {
                bail!("a cluster has at most {} nodes", PORTS_MAX - 1);
            }
            let ports = Ports::take()?;
            let addresses = hosts.zip(ports.first()..);
            let addresses = addresses.map(|(host, port)| (host, format!("127.0.0.1:{port}")));
            let addresses = addresses.collect();
            Ok((Wiring::Loopback { _ports: ports }, addresses))
        }
    }
}

/// Has the coordinator know a cluster of one range with a replica on every node.
async fn bootstrap(endpoint: &str, protocol: Protocol, nodes: &[NodeId]) -> anyhow::Result<()> {
    let map = RangeMap::from_splits(&[])?;
    let cohort = map.ranges().first().map(|range| range.cohort).context("a map has a range")?;
    let config = CohortConfig {
        cohort,
        version: 1,
        protocol,
        replicas: nodes.to_vec(),
        replicas_wanted: nodes.len(),
        incarnations: [].into(),
        origin: None,
    };
    let spec = ClusterSpec { cluster: ClusterId(rand::random()), map, configs: vec![config] };
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let done = async {
            let options = CoordinatorOptions::new(vec![endpoint.to_owned()]);
            let coordinator = Coordinator::connect(options).await?;
            Catalog::bootstrap(&coordinator, spec.clone()).await?;
            coordinator.close().await
        };
        match done.await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).context("giving the coordinator the new cluster");
            }
            Err(_) => tokio::time::sleep(INTERVAL).await,
        }
    }
}

/// Returns what a node is asked to suffer.
fn request(
    node: NodeId,
    nodes: &[NodeId],
    faults: NodeFaults,
    cuts: &BTreeSet<(Host, Host)>,
) -> SetFaultsRequest {
    let (lost, coordinator_cut) = links(node, cuts);
    let link = |to: NodeId, fate| LinkFault { to: to.0, lane: None, fate: Some(fate) };
    let delayed = faults.delay.iter().flat_map(|delay| {
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        let others = nodes.iter().filter(|other| **other != node);
        others.map(move |to| link(*to, link_fault::Fate::DelayMs(delay_ms)))
    });
    // Of two faults of one link the later one counts.
    let lost = lost.into_iter().map(|to| link(to, link_fault::Fate::Drop(LostOnTheWay {})));
    let disk = faults.disk.map(|disk| DiskFault {
        fault: Some(match disk {
            Disk::Stalled => disk_fault::Fault::Stall(StalledDisk {}),
            Disk::Slow(more) => {
                disk_fault::Fault::SlowMs(u64::try_from(more.as_millis()).unwrap_or(u64::MAX))
            }
            Disk::Failing => disk_fault::Fault::Fail(FailedDisk {}),
        }),
    });
    let links = delayed.chain(lost).collect();
    SetFaultsRequest { links, coordinator_cut, disk, ..Default::default() }
}

/// Returns the nodes that a node's messages do not reach, and whether it is cut off from the
/// coordinator, as the node's own hooks have it.
fn links(node: NodeId, cuts: &BTreeSet<(Host, Host)>) -> (Vec<NodeId>, bool) {
    let lost = cuts.iter().filter_map(|(from, to)| match (from, to) {
        (Host::Node(from), Host::Node(to)) if *from == node => Some(*to),
        _ => None,
    });
    let of_coordinator = |(from, to): &(Host, Host)| {
        let pair = [*from, *to];
        pair.contains(&Host::Node(node)) && pair.contains(&Host::Coordinator)
    };
    (lost.collect(), cuts.iter().any(of_coordinator))
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hooks_of_a_node_have_its_own_ways_alone() {
        let node = |number| Host::Node(NodeId(number));
        let cuts = [(node(1), node(2)), (node(3), node(1)), (Host::Coordinator, node(2))];
        let cuts = BTreeSet::from(cuts);
        assert_eq!(links(NodeId(1), &cuts), (vec![NodeId(2)], false));
        assert_eq!(links(NodeId(2), &cuts), (vec![], true));
        assert_eq!(links(NodeId(3), &cuts), (vec![NodeId(1)], false));
    }

    #[test]
    fn a_link_that_is_cut_is_not_merely_slow() {
        let node = |number| Host::Node(NodeId(number));
        let faults = NodeFaults { delay: Some(Duration::from_millis(30)), disk: None };
        let nodes = [1, 2, 3].map(NodeId);
        let asked = request(NodeId(1), &nodes, faults, &BTreeSet::from([(node(1), node(3))]));
        // Of two faults of one link the later one counts.
        let last = |to| asked.links.iter().rfind(|link| link.to == to).and_then(|link| link.fate);
        assert_eq!(last(2), Some(link_fault::Fate::DelayMs(30)));
        assert_eq!(last(3), Some(link_fault::Fate::Drop(LostOnTheWay {})));
    }
}
