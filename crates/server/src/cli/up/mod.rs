//! `trireme up`: a cluster on this machine, one process per node.

mod children;
mod cluster_file;
mod plan;

use std::fmt::Display;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use tokio::time::Instant;
use trireme_client::Client;
use trireme_coordinator::embedded::{EmbeddedOptions, EmbeddedServer};
use trireme_coordinator::recipes::catalog::{Catalog, CatalogState};
use trireme_coordinator::{Coordinator, CoordinatorOptions};
use trireme_server::{DISCARD_AFTER_DEFAULT, DataFolder, REPLACE_DELAY_DEFAULT};
use trireme_types::{Durability, Engine, NodeId, Protocol};

use self::children::{Children, NodeProcess};
use self::cluster_file::ClusterFile;
use self::plan::{Plan, RangeProtocol, Splits, range_protocol};
use super::node::stop_signal;
use super::rebuild::Remembered;
use super::timing::TimingArgs;
use super::{UsageError, duration, logging};

/// How long the cluster may take until every range has a leader.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a starting cluster is asked how far it is.
const READY_INTERVAL: Duration = Duration::from_millis(100);

/// Where everything listens: a local cluster is for one machine.
const HOST: &str = "127.0.0.1";

const NODES_DEFAULT: usize = 3;
const RANGES_DEFAULT: usize = 4;
const REPLICAS_DEFAULT: usize = 3;
const PORT_DEFAULT: u16 = 7100;

/// Options of `trireme up`. Started again on the same data folder, the cluster is as it was.
#[derive(Args)]
pub(crate) struct UpArgs {
    /// How ranges replicate: spinnaker, raft or pacifica. [default: raft]
    #[arg(long, value_name = "PROTOCOL")]
    replication: Option<Protocol>,
    /// How many nodes. [default: 3]
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// How many replicas each range has. [default: 3, or as many as there are nodes]
    #[arg(long, value_name = "N")]
    replicas: Option<usize>,
    /// How many ranges, split evenly by first letters from a to z. [default: 4]
    #[arg(long, value_name = "N", conflicts_with = "split_at")]
    ranges: Option<usize>,
    /// The keys at which ranges begin, in rising order.
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    split_at: Option<Vec<String>>,
    /// A range with a protocol of its own; may be given more than once.
    #[arg(long = "range", value_name = "START..END=PROTOCOL", value_parser = range_protocol)]
    protocols: Vec<RangeProtocol>,
    /// The folder for all data.
    #[arg(long, value_name = "DIR", default_value = "trireme-data")]
    data: PathBuf,
    /// The coordinator listens here and node I on the I-th port after it. [default: 7100]
    #[arg(long)]
    port: Option<u16>,
    /// `embedded`, or the endpoints of an etcd cluster. [default: embedded]
    #[arg(long, value_name = "embedded|URL,URL")]
    coordinator: Option<String>,
    /// The storage engine: lsm or sled. [default: lsm]
    #[arg(long)]
    engine: Option<Engine>,
    /// What an acknowledged write has survived: fsync, os or memory. [default: fsync]
    #[arg(long)]
    durability: Option<Durability>,
    #[command(flatten)]
    timing: TimingArgs,
    /// Bytes written to a node's tables after which they are flushed to files; counts for this
    /// start. [default: 64 MiB]
    #[arg(long, value_name = "BYTES", value_parser = super::node::memtable_bytes)]
    memtable_bytes: Option<usize>,
    /// Lets `trireme fault` cut, delay and stall the nodes. For tests; not remembered.
    #[arg(long)]
    allow_faults: bool,
    /// How long a replica must be missing from a range before its leader asks another node to hold
    /// one, for protocols that replace replicas; counts for this start. [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = duration::any)]
    replace_delay: Option<Duration>,
    /// How long what is left of a replica is kept that a node is not to hold any more; counts for
    /// this start. [default: 1d]
    #[arg(long, value_name = "DURATION", value_parser = duration::any)]
    discard_after: Option<Duration>,
}

impl UpArgs {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        logging::start();
        tokio::runtime::Runtime::new()?.block_on(self.up())
    }

    async fn up(self) -> anyhow::Result<()> {
        let stop = stop_signal(false)?;
        let plan = self.plan();
        check_plan(&plan)?;
        self.check_timing()?;
        let folder = DataFolder::open(&self.data)?;
        let file = self.cluster_file(&folder)?;
        let addresses = addresses(&file)?;
        // Not before the ports are known to be free: a start that failed decides nothing.
        file.write(folder.path())?;
        let embedded = start_embedded(&folder, &file).await?;
        let endpoints = match (&embedded, &file.coordinator) {
            (Some(server), _) => vec![server.endpoint()],
            (None, endpoints) => endpoints.clone().unwrap_or_default(),
        };
        let catalog = bootstrap(&endpoints, &plan, &file, folder.path()).await?;
        let mut children = Children::new();
        for (index, address) in addresses.iter().enumerate() {
            children.start(&NodeProcess {
                id: index + 1,
                data: &self.data.join(format!("node-{}", index + 1)),
                listen: address,
                coordinator: &endpoints,
                engine: file.engine,
                durability: file.durability,
                timing: file.timing,
                min_replicas_for_write: file.min_replicas_for_write,
                memtable_bytes: self.memtable_bytes,
                allow_faults: self.allow_faults,
                replace_delay: self.replace_delay.unwrap_or(REPLACE_DELAY_DEFAULT),
                discard_after: self.discard_after.unwrap_or(DISCARD_AFTER_DEFAULT),
            })?;
        }
        let started = tokio::select! {
            ready = wait_until_ready(&addresses, &catalog) => ready,
            (id, status) = children.ended() => Err(early_end(id, status)),
        };
        let outcome = match started {
            Ok(()) => {
                print_ready(&addresses, &endpoints, &file, &catalog, &children)?;
                watch_over(&mut children, &addresses, stop).await
            }
            failed => failed,
        };
        children.stop().await;
        if let Some(server) = embedded {
            server.stop().await?;
        }
        outcome
    }

    fn plan(&self) -> Plan {
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
    fn cluster_file(&self, folder: &DataFolder) -> anyhow::Result<ClusterFile> {
        let coordinator = match self.coordinator.as_deref() {
            None | Some("embedded") => None,
            Some(urls) => Some(urls.split(',').map(|url| url.trim().to_owned()).collect()),
        };
        let port = self.port.unwrap_or(PORT_DEFAULT);
        let Some(mut file) = ClusterFile::read(folder.path())? else {
            let plan = self.plan();
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

    /// Checks the periods that were asked for, with those that the folder remembers, before
    /// anything is made or held.
    fn check_timing(&self) -> anyhow::Result<()> {
        let existing = ClusterFile::read(&self.data)?;
        let timing = existing.as_ref().map(|file| file.timing).unwrap_or_default();
        self.timing.change().of(timing).map_err(UsageError::from)?;
        // A range of a new cluster has so many replicas; of an old one, at most as many as nodes.
        let replicas = existing.map_or(self.plan().replicas, |file| file.nodes);
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

/// Checks what can be checked before anything is written.
fn check_plan(plan: &Plan) -> anyhow::Result<()> {
    plan.spec(trireme_types::ClusterId(0)).map_err(UsageError)?;
    Ok(())
}

/// Returns where the nodes will listen, and checks that nobody listens there.
fn addresses(file: &ClusterFile) -> anyhow::Result<Vec<String>> {
    let last = usize::from(file.port) + file.nodes;
    if last > usize::from(u16::MAX) {
        let (port, nodes) = (file.port, file.nodes);
        bail!("there are not {nodes} ports after port {port}");
    }
    let ports = file.port + 1..=file.port + u16::try_from(file.nodes)?;
    let addresses: Vec<String> = ports.map(|port| format!("{HOST}:{port}")).collect();
    for address in &addresses {
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    }
    Ok(addresses)
}

async fn start_embedded(
    folder: &DataFolder,
    file: &ClusterFile,
) -> anyhow::Result<Option<EmbeddedServer>> {
    if file.coordinator.is_some() {
        return Ok(None);
    }
    let listen: SocketAddr = format!("{HOST}:{}", file.port).parse()?;
    let options = EmbeddedOptions::new(folder.path().join("coordinator"), listen);
    let server = EmbeddedServer::start(options).await.context("starting the coordinator")?;
    Ok(Some(server))
}

/// Creates the cluster at the coordinator, unless it is there already. What the nodes' folders know
/// counts for more than the plan, and for more than what an older coordinator knows.
async fn bootstrap(
    endpoints: &[String],
    plan: &Plan,
    file: &ClusterFile,
    folder: &Path,
) -> anyhow::Result<CatalogState> {
    let cluster = file.cluster()?;
    let context = || format!("the coordinator at {}", endpoints.join(","));
    let ids = (1..).map(NodeId).take(file.nodes);
    let folders = ids.map(|id| (id, folder.join(format!("node-{id}", id = id.0))));
    let remembered = Remembered::of_folders(folders)?;
    let coordinator = Coordinator::connect(CoordinatorOptions::new(endpoints.to_vec()))
        .await
        .with_context(context)?;
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

/// Waits until every node answers and every range has a leader.
async fn wait_until_ready(addresses: &[String], catalog: &CatalogState) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        match is_ready(addresses, catalog).await {
            Ok(true) => return Ok(()),
            unready if Instant::now() >= deadline => {
                unready.context("the cluster did not become ready")?;
                let reason = what_it_waits_for(addresses).await;
                bail!("the cluster did not become ready: some range has no leader{reason}");
            }
            _ => tokio::time::sleep(READY_INTERVAL).await,
        }
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

async fn is_ready(addresses: &[String], catalog: &CatalogState) -> anyhow::Result<bool> {
    let client = Client::connect(addresses.to_vec()).await?;
    let mut led = 0;
    for address in addresses {
        let status = client.node_status(address).await?;
        led += status.replicas.iter().filter(|replica| replica.leader == status.node).count();
    }
    Ok(led == catalog.map.ranges().len())
}

fn print_ready(
    addresses: &[String],
    endpoints: &[String],
    file: &ClusterFile,
    catalog: &CatalogState,
    children: &Children,
) -> anyhow::Result<()> {
    let pids: Vec<String> = children.pids().iter().map(u32::to_string).collect();
    let mut stdout = std::io::stdout().lock();
    writeln!(
        stdout,
        "ready endpoints={} coordinator={} replication={} ranges={} pids={}",
        addresses.join(","),
        endpoints.join(","),
        file.replication,
        catalog.map.ranges().len(),
        pids.join(",")
    )?;
    Ok(stdout.flush()?)
}

/// Reports nodes that end, until `stop` resolves or none is left.
async fn watch_over(
    children: &mut Children,
    addresses: &[String],
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return Ok(()),
            (id, status) = children.ended() => {
                tracing::error!("{}", early_end(id, status));
                // A node that was started again by itself is no child of this process, and needs
                // the coordinator in it all the same.
                if children.is_empty() && !somebody_listens(addresses).await {
                    bail!("no node is left");
                }
            }
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
