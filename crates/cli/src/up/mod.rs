//! `trireme up`: a cluster on this machine, one process per node.

mod children;
mod cluster_file;
mod coordinating;
mod first_start;
mod plan;
mod progress;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{SocketAddr, TcpListener};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use futures::future::join_all;
use tokio::time::Instant;
use trireme_client::{Client, ClientOptions};
use trireme_coordinator::recipes::catalog::{Catalog, CatalogState};
use trireme_coordinator::{Coordinator, CoordinatorError, CoordinatorOptions, ErrorClass};
use trireme_embedded::EmbeddedOptions;
use trireme_server::{DataFolder, panics};
use trireme_types::{CohortId, Durability, Engine, NodeId, Protocol};

use self::children::{Children, NodeProcess};
use self::cluster_file::ClusterFile;
use self::coordinating::LocalCoordinator;
use self::first_start::FirstStart;
use self::plan::{Plan, RangeProtocol, Splits, range_protocol};
use self::progress::{Patience, Stage, Work};
use super::output::announce;
use super::rebuild::Remembered;
use super::stopping::stop_signal;
use super::timing::TimingArgs;
use super::upkeep::UpkeepArgs;
use super::{UsageError, address, logging, predecessor};

/// How long a starting cluster may stand still before it is given up. However long it takes, it is
/// not as long as it comes further: see [`progress`].
const STANDSTILL_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a starting cluster is asked how far it is.
const READY_INTERVAL: Duration = Duration::from_millis(100);

/// How often a start that takes long says how far it is.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// How long one look at a starting cluster may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an earlier start that is ending may take, or its nodes if it was killed: they hand over
/// what they lead, drain their clients and flush their tables first.
const PREDECESSORS_TIMEOUT: Duration = Duration::from_secs(20);

/// Where everything listens: a local cluster is for one machine.
const HOST: &str = "127.0.0.1";

/// The most nodes that one machine is asked to run: each is a process with a log, an engine and a
/// dozen of threads.
pub(crate) const NODES_MAX: usize = 100;

const NODES_DEFAULT: usize = 3;
const RANGES_DEFAULT: usize = 4;
const REPLICAS_DEFAULT: usize = 3;
const PORT_DEFAULT: u16 = 7100;

/// Options of `trireme up`. Started again on the same data folder, the cluster is as it was.
#[derive(Args)]
pub(crate) struct UpArgs {
    /// Replication protocol of the ranges: spinnaker, raft or pacifica. [default: raft]
    #[arg(long, value_name = "PROTOCOL")]
    replication: Option<Protocol>,
    /// Number of nodes. [default: 3]
    #[arg(long, value_name = "N", value_parser = nodes)]
    nodes: Option<usize>,
    /// Number of replicas of each range. [default: 3, or the number of nodes if that is less]
    #[arg(long, value_name = "N")]
    replicas: Option<usize>,
    /// Number of ranges, split evenly by first letter from a to z. [default: 4]
    #[arg(long, value_name = "N", conflicts_with = "split_at")]
    ranges: Option<usize>,
    /// Keys at which ranges begin, in ascending order.
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    split_at: Option<Vec<String>>,
    /// A range with its own protocol; may be given more than once.
    #[arg(long = "range", value_name = "START..END=PROTOCOL", value_parser = range_protocol)]
    protocols: Vec<RangeProtocol>,
    /// Data folder of the cluster.
    #[arg(long, value_name = "DIR", default_value = "trireme-data")]
    data: PathBuf,
    /// Port of the coordinator; node I listens on this port plus I. [default: 7100]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// `embedded`, or the endpoints of an etcd cluster. [default: embedded]
    #[arg(long, value_name = "embedded|URL,URL", value_parser = coordinator_choice)]
    coordinator: Option<CoordinatorChoice>,
    /// Storage engine: lsm or sled. [default: lsm]
    #[arg(long)]
    engine: Option<Engine>,
    /// What an acknowledged write survives: fsync (power loss on all nodes), os (the death of all
    /// processes) or memory (as long as enough of its replicas run). [default: fsync]
    #[arg(long)]
    durability: Option<Durability>,
    #[command(flatten)]
    timing: TimingArgs,
    /// Size of a node's memtables in bytes at which they are flushed to files; not remembered.
    /// [default: 64 MiB]
    #[arg(long, value_name = "BYTES", value_parser = super::node::memtable_bytes)]
    memtable_bytes: Option<usize>,
    /// Allow `trireme fault` on the nodes. For tests; not remembered.
    #[arg(long)]
    allow_faults: bool,
    #[command(flatten)]
    upkeep: UpkeepArgs,
}

/// Which coordinator a cluster has.
#[derive(Clone, Debug)]
enum CoordinatorChoice {
    Embedded,
    At(Vec<String>),
}

/// What runs, and what it runs in.
#[derive(Default)]
struct Running {
    children: Children,
    coordinator: Option<LocalCoordinator>,
    /// What is to be taken back unless the start gets further.
    undo: Option<FirstStart>,
    /// Held until everything else has stopped.
    folder: Option<DataFolder>,
}

impl Running {
    /// Stops the nodes, and then the coordinator that they take leave of.
    async fn stop(self) -> anyhow::Result<()> {
        self.children.stop().await;
        let stopped = match self.coordinator {
            Some(coordinator) => coordinator.stop().await.context("stopping the coordinator"),
            None => Ok(()),
        };
        if let Some(undo) = self.undo {
            undo.undo();
        }
        stopped
    }
}

impl UpArgs {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        logging::start();
        panics::end_process_on_panic();
        let runtime = tokio::runtime::Runtime::new()?;
        let outcome = runtime.block_on(self.up());
        // What a start was cut short in must not keep the process from ending.
        panics::disarm();
        runtime.shutdown_background();
        outcome
    }

    async fn up(self) -> anyhow::Result<()> {
        let stop = stop_signal(false)?;
        let plan = self.plan()?;
        self.check_existing()?;
        let mut running = Running::default();
        // A signal ends the start at any moment, as it ends the cluster that serves.
        let outcome = tokio::select! {
            biased;
            () = stop => Ok(()),
            outcome = self.start_and_watch(&plan, &mut running) => outcome,
        };
        let stopped = running.stop().await;
        outcome.and(stopped)
    }

    /// Starts everything and watches over it; returns why it has ended by itself.
    async fn start_and_watch(&self, plan: &Plan, running: &mut Running) -> anyhow::Result<()> {
        // One that is there still is named by the opening.
        predecessor::wait_for(&self.data, Instant::now() + PREDECESSORS_TIMEOUT).await?;
        let folder = running.folder.insert(DataFolder::open(&self.data)?);
        let is_missing = ClusterFile::read(folder.path())?.is_none();
        let existing = ClusterFile::read_or_recover(folder.path())?;
        if let Some(recovered) = existing.as_ref().filter(|_| is_missing) {
            tracing::warn!("cluster.json is missing: it is made again from the nodes' folders");
            recovered.write(folder.path())?;
        }
        let file = self.cluster_file(existing.as_ref())?;
        wait_for_predecessors(&self.data, file.nodes).await?;
        let addresses = addresses(&file)?;
        if existing.is_none() {
            if let Some(advice) = plan.advice() {
                tracing::warn!("{advice}");
            }
            running.undo = Some(FirstStart::in_folder(folder.path()));
        }
        running.coordinator = start_embedded(folder, &file).await?;
        let endpoints = match (&running.coordinator, &file.coordinator) {
            (Some(server), _) => vec![server.endpoint()],
            (None, endpoints) => endpoints.clone().unwrap_or_default(),
        };
        let coordinator = connect(&endpoints).await?;
        if let Some(undo) = &mut running.undo {
            // The coordinator must not know a cluster that the folder does not know: not even if
            // this process ends before it learns what the coordinator did.
            file.write(folder.path())?;
            undo.keep_description(running.coordinator.is_none());
        }
        let catalog = match bootstrap(coordinator, &endpoints, plan, &file, folder.path()).await {
            Ok(catalog) => catalog,
            Err(error) => {
                if let Some(undo) = &mut running.undo {
                    undo.keep_description(running.coordinator.is_none() && is_unknown(&error));
                }
                return Err(error);
            }
        };
        // From here on the cluster exists; before, a start that failed decided nothing.
        if running.undo.take().is_none() && existing.as_ref() != Some(&file) {
            file.write(folder.path())?;
        }
        self.start_nodes(&file, &addresses, &endpoints, &mut running.children)?;
        let children = &mut running.children;
        let pids = children.pids();
        let serving = async {
            tokio::select! {
                ready = wait_until_ready(&addresses, &catalog, &pids) => {
                    announce(ready_line(&addresses, &endpoints, &file, ready?.ranges, &pids))?;
                }
                (id, status) = children.ended() => return Err(early_end(id, status)),
            }
            watch_over(children, &addresses).await
        };
        match &mut running.coordinator {
            None => serving.await,
            Some(coordinator) => tokio::select! {
                outcome = serving => outcome,
                never = coordinator.keep_running() => match never {},
            },
        }
    }

    fn start_nodes(
        &self,
        file: &ClusterFile,
        addresses: &[String],
        endpoints: &[String],
        children: &mut Children,
    ) -> anyhow::Result<()> {
        for (index, address) in addresses.iter().enumerate() {
            let data = &node_folder(&self.data, index + 1);
            // One that was rebuilt by hand may have another engine than the cluster began with.
            let made = DataFolder::describe(data)?;
            children.start(&NodeProcess {
                id: index + 1,
                data,
                listen: address,
                coordinator: endpoints,
                engine: made.map_or(file.engine, |node| node.engine),
                durability: file.durability,
                timing: file.timing,
                min_replicas_for_write: file.min_replicas_for_write,
                memtable_bytes: self.memtable_bytes,
                allow_faults: self.allow_faults,
                upkeep: self.upkeep,
            })?;
        }
        Ok(())
    }

    /// Returns what a new cluster is to look like, after checking what can be checked before
    /// anything is made.
    fn plan(&self) -> anyhow::Result<Plan> {
        let plan = self.unchecked_plan();
        plan.spec(trireme_types::ClusterId(0)).map_err(UsageError)?;
        Ok(plan)
    }

    fn unchecked_plan(&self) -> Plan {
        let nodes = self.nodes.unwrap_or(NODES_DEFAULT);
        let splits = match (&self.split_at, self.ranges) {
            (Some(keys), _) => Some(Splits::At(keys.iter().cloned().map(Bytes::from).collect())),
            (None, Some(count)) => Some(Splits::Even(count)),
            (None, None) if self.protocols.is_empty() => Some(Splits::Even(RANGES_DEFAULT)),
            (None, None) => None,
        };
        Plan {
            nodes,
            replicas: self.replicas.unwrap_or(REPLICAS_DEFAULT.min(nodes)),
            replication: self.replication.unwrap_or(Protocol::Raft),
            splits,
            protocols: self.protocols.clone(),
        }
    }

    /// Returns what the folder says of its cluster, with what was asked for now; for a new folder,
    /// what it is to say.
    fn cluster_file(&self, existing: Option<&ClusterFile>) -> anyhow::Result<ClusterFile> {
        let coordinator = match &self.coordinator {
            None | Some(CoordinatorChoice::Embedded) => None,
            Some(CoordinatorChoice::At(endpoints)) => Some(endpoints.clone()),
        };
        let port = self.port.unwrap_or(PORT_DEFAULT);
        let Some(mut file) = existing.cloned() else {
            let plan = self.unchecked_plan();
            let mut file = ClusterFile::new(
                plan.nodes,
                plan.replication,
                self.engine.unwrap_or_default(),
                self.durability.unwrap_or_default(),
                port,
                coordinator,
            );
            self.change_timing(&mut file)?;
            return Ok(file);
        };
        let shape = self.replicas.is_some()
            || self.ranges.is_some()
            || self.split_at.is_some()
            || !self.protocols.is_empty();
        self.check_same("nodes", file.nodes, self.nodes)?;
        self.check_same("replication", file.replication, self.replication)?;
        self.check_same("engine", file.engine, self.engine)?;
        if shape {
            tracing::warn!("the cluster exists: its ranges and replicas stay as they are");
        }
        // What may change: where it listens, how durable writes are from now on, and the periods.
        file.port = self.port.unwrap_or(file.port);
        file.durability = self.durability.unwrap_or(file.durability);
        if self.coordinator.is_some() {
            file.coordinator = coordinator;
        }
        self.change_timing(&mut file)?;
        Ok(file)
    }

    /// Checks the ports and periods that were asked for, with what the folder remembers, before
    /// anything is made or held.
    fn check_existing(&self) -> anyhow::Result<()> {
        let existing = ClusterFile::read_or_recover(&self.data)?;
        let port = existing.as_ref().map_or(PORT_DEFAULT, |file| file.port);
        let nodes = existing.as_ref().map_or(self.unchecked_plan().nodes, |file| file.nodes);
        node_ports(self.port.unwrap_or(port), nodes).map_err(UsageError)?;
        let timing = existing.as_ref().map(|file| file.timing).unwrap_or_default();
        self.timing.change().of(timing).map_err(UsageError::from)?;
        if existing.is_none() {
            self.unchecked_plan().check_count().map_err(UsageError)?;
        }
        // A range of a new cluster has so many replicas; of an old one, at most as many as nodes.
        let replicas = existing.map_or(self.unchecked_plan().replicas, |file| file.nodes);
        let least = self.timing.min_replicas_for_write().unwrap_or(1);
        if least > replicas {
            let reason = format!("writes cannot need {least} replicas where there are {replicas}");
            return Err(UsageError(reason).into());
        }
        Ok(())
    }

    fn change_timing(&self, file: &mut ClusterFile) -> anyhow::Result<()> {
        file.timing = self.timing.change().of(file.timing).map_err(UsageError::from)?;
        if let Some(least) = self.timing.min_replicas_for_write() {
            file.min_replicas_for_write = least;
        }
        Ok(())
    }

    fn check_same<T: PartialEq + Display>(
        &self,
        what: &str,
        found: T,
        asked: Option<T>,
    ) -> anyhow::Result<()> {
        match asked {
            Some(asked) if asked != found => {
                let data = self.data.display();
                bail!("{data} holds a cluster with {what} {found}, not {asked}")
            }
            _ => Ok(()),
        }
    }
}

/// Reads how many nodes a cluster is to have.
fn nodes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("a cluster needs at least one node".to_owned()),
        Ok(nodes @ 1..=NODES_MAX) => Ok(nodes),
        _ => Err(format!("expected a number from 1 to {NODES_MAX}")),
    }
}

/// Reads which coordinator a cluster is to have.
fn coordinator_choice(text: &str) -> Result<CoordinatorChoice, String> {
    if text == "embedded" {
        return Ok(CoordinatorChoice::Embedded);
    }
    let endpoints = text.split(',').map(address::coordinator_endpoint);
    let endpoints = endpoints.collect::<Result<_, _>>();
    endpoints.map(CoordinatorChoice::At).map_err(|error| format!("{error}, or 'embedded'"))
}

/// Returns the ports of the nodes of a cluster that begins at `port`.
fn node_ports(port: u16, nodes: usize) -> Result<RangeInclusive<u16>, String> {
    let last = u16::try_from(nodes).ok().and_then(|nodes| port.checked_add(nodes));
    let last = last.ok_or_else(|| format!("there are not {nodes} ports after port {port}"))?;
    // A first port that has no successor has no node after it either.
    Ok(port.saturating_add(1)..=last)
}

/// Returns the addresses of the nodes, and checks that they are free.
fn addresses(file: &ClusterFile) -> anyhow::Result<Vec<String>> {
    let ports = node_ports(file.port, file.nodes).map_err(UsageError)?;
    let addresses: Vec<String> = ports.map(|port| format!("{HOST}:{port}")).collect();
    for address in &addresses {
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    }
    Ok(addresses)
}

fn node_folder(data: &Path, node: usize) -> PathBuf {
    data.join(format!("node-{node}"))
}

fn coordinator_folder(data: &Path) -> PathBuf {
    data.join("coordinator")
}

/// Waits for the nodes of an earlier start to end. When their `up` is killed they stop by
/// themselves, which takes them a moment.
async fn wait_for_predecessors(data: &Path, nodes: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + PREDECESSORS_TIMEOUT;
    for node in 1..=nodes {
        let folder = node_folder(data, node);
        if predecessor::wait_for(&folder, deadline).await? {
            bail!("node {node} runs already: {} is in use by another process", folder.display());
        }
    }
    Ok(())
}

async fn start_embedded(
    folder: &DataFolder,
    file: &ClusterFile,
) -> anyhow::Result<Option<LocalCoordinator>> {
    if file.coordinator.is_some() {
        return Ok(None);
    }
    let listen: SocketAddr = format!("{HOST}:{}", file.port).parse()?;
    let options = EmbeddedOptions::new(coordinator_folder(folder.path()), listen);
    LocalCoordinator::start(options).await.map(Some)
}

async fn connect(endpoints: &[String]) -> anyhow::Result<Coordinator> {
    Coordinator::connect(CoordinatorOptions::new(endpoints.to_vec()))
        .await
        .with_context(|| coordinator_at(endpoints))
}

fn coordinator_at(endpoints: &[String]) -> String {
    format!("the coordinator at {}", endpoints.join(","))
}

/// Creates the cluster at the coordinator, unless it is there already. What the nodes' folders know
/// counts for more than the plan, and for more than what an older coordinator knows.
async fn bootstrap(
    coordinator: Coordinator,
    endpoints: &[String],
    plan: &Plan,
    file: &ClusterFile,
    folder: &Path,
) -> anyhow::Result<CatalogState> {
    let cluster = file.cluster()?;
    let context = || coordinator_at(endpoints);
    let ids = (1..).map(NodeId).take(file.nodes);
    let folders = ids.zip(1..).map(|(id, node)| (id, node_folder(folder, node)));
    let remembered = Remembered::of_folders(folders)?;
    let found = Catalog::new(&coordinator).load().await.with_context(context)?;
    if let Some(found) = &found
        && found.cluster != cluster
    {
        let (found, at) = (found.cluster, endpoints.join(","));
        bail!("the coordinator at {at} holds cluster {found}, and this folder cluster {cluster}");
    }
    if remembered.has_served() {
        remembered.check_cluster(cluster)?;
        let lost = found.is_none();
        remembered.bring_back(&coordinator, &[]).await.with_context(context)?;
        if lost {
            tracing::warn!(
                "the coordinator had lost the cluster: it is back from the nodes' folders"
            );
        }
    } else if found.is_none() {
        let spec = plan.spec(cluster).map_err(UsageError)?;
        Catalog::bootstrap(&coordinator, spec).await.with_context(context)?;
    }
    let state = Catalog::new(&coordinator).load().await.with_context(context)?;
    let state = state.with_context(|| format!("{} knows no cluster", context()))?;
    coordinator.close().await.with_context(context)?;
    if state.cluster != cluster {
        let (found, at) = (state.cluster, endpoints.join(","));
        bail!("the coordinator at {at} holds cluster {found}, and this folder cluster {cluster}");
    }
    Ok(state)
}

/// Returns true if the coordinator may have done what the error says it did not answer.
fn is_unknown(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<CoordinatorError>();
    cause.is_some_and(|cause| cause.class() == ErrorClass::Unknown)
}

/// Waits until every node answers and every range has a leader, and returns how it is then.
async fn wait_until_ready(
    addresses: &[String],
    catalog: &CatalogState,
    pids: &[u32],
) -> anyhow::Result<Stage> {
    let mut patience = Patience::new(STANDSTILL_TIMEOUT, Instant::now());
    let mut report_at = Instant::now() + REPORT_INTERVAL;
    loop {
        let stage = stage(addresses, catalog, pids).await;
        if stage.is_ready() {
            return Ok(stage);
        }
        let now = Instant::now();
        if patience.is_over(&stage, now) {
            let reason = what_it_waits_for(addresses).await;
            bail!("the cluster did not become ready: {stage}{reason}");
        }
        if now >= report_at {
            tracing::info!("starting: {stage}");
            report_at = now + REPORT_INTERVAL;
        }
        tokio::time::sleep(READY_INTERVAL).await;
    }
}

/// Returns what nodes say that they wait for, as the end of a sentence.
async fn what_it_waits_for(addresses: &[String]) -> String {
    let Ok(client) = Client::connect(addresses.to_vec()).await else { return String::new() };
    for address in addresses {
        if let Ok(status) = client.node_status(address).await
            && !status.waits_for.is_empty()
        {
            return format!("; node {}: {}", status.node, status.waits_for);
        }
    }
    String::new()
}

/// Returns how far a starting cluster is. As long as no node answers, the ranges are those of the catalog that
/// it was started with: what was decided before everything ended changes them while it starts.
async fn stage(addresses: &[String], catalog: &CatalogState, pids: &[u32]) -> Stage {
    let mut stage = Stage { nodes: addresses.len(), ..Stage::default() };
    let options = ClientOptions { deadline: LOOK_TIMEOUT, ..ClientOptions::default() };
    let client = Client::connect_with(addresses.to_vec(), options).await;
    let statuses = addresses.iter().map(async |address| match &client {
        Ok(client) => client.node_status(address).await,
        Err(error) => Err(error.clone()),
    });
    // A former leader may not know its successor yet: each range counts once.
    let mut led = BTreeSet::new();
    for (index, status) in join_all(statuses).await.into_iter().enumerate() {
        match status {
            Ok(status) => {
                let own = status.replicas.iter().filter(|replica| replica.leader == status.node);
                led.extend(own.map(|replica| CohortId(replica.cohort)));
            }
            Err(error) => {
                stage.silent.insert(index + 1, error.to_string());
                let work = pids.get(index).map(|&pid| Work::of(pid));
                stage.work.insert(index + 1, work.unwrap_or_default());
            }
        }
    }
    let cohorts: Vec<CohortId> = match &client {
        Ok(client) => client.routes().ranges.iter().map(|route| route.cohort).collect(),
        Err(_) => catalog.map.ranges().iter().map(|entry| entry.cohort).collect(),
    };
    stage.count(&cohorts, &led);
    stage
}

fn ready_line(
    addresses: &[String],
    endpoints: &[String],
    file: &ClusterFile,
    ranges: usize,
    pids: &[u32],
) -> String {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    format!(
        "ready endpoints={} coordinator={} replication={} ranges={ranges} pids={}",
        addresses.join(","),
        endpoints.join(","),
        file.replication,
        pids.join(",")
    )
}

/// Reports nodes that end, until none is left.
async fn watch_over(children: &mut Children, addresses: &[String]) -> anyhow::Result<()> {
    loop {
        let (id, status) = children.ended().await;
        tracing::error!("{}", early_end(id, status));
        // A node that was started again by itself is no child of this process, and needs the
        // coordinator in it all the same.
        if children.is_empty() && !somebody_listens(addresses).await {
            bail!("no node is left");
        }
    }
}

async fn somebody_listens(addresses: &[String]) -> bool {
    for address in addresses {
        if tokio::net::TcpStream::connect(address).await.is_ok() {
            return true;
        }
    }
    false
}

fn early_end(id: usize, status: std::io::Result<std::process::ExitStatus>) -> anyhow::Error {
    match status {
        Ok(status) => anyhow::anyhow!("node {id} has ended: {status}"),
        Err(error) => anyhow::anyhow!("node {id} has ended: {error}"),
    }
}
