//! What many ranges cost: until they serve, while they are idle, when a node dies, and until the nodes
//! have stopped.
//!
//! Each number of ranges has a cluster of its own. One key lies in each range; that every range
//! serves is seen by a put of each of these keys.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use trireme_client::{Client, ClientOptions};
use trireme_types::{NodeId, Protocol};

use crate::measure::microseconds;
use crate::parse;
use crate::report::{Report, progress};
use crate::writer::impatient;
use trireme_testbed::{Cluster, ClusterArgs, own_memory, processor_time};

/// How long a cluster may take until it serves: what is to be seen is how long it takes.
const READY_TIMEOUT: Duration = Duration::from_secs(600);

/// How long it may take until a put to each range is acknowledged.
const SERVES_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the nodes may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a cluster is left alone before it counts as idle.
const SETTLES_FOR: Duration = Duration::from_secs(10);

/// How many puts are under way at once while it is seen whether all ranges serve. Enough that a range
/// that does not serve yet holds up few others.
const PUTS_AT_ONCE: usize = 256;

/// The node that dies.
const VICTIM: NodeId = NodeId(1);

const HEADS: &[&str] = &[
    "PROTOCOL",
    "RANGES",
    "START",
    "IDLE: NODES",
    "COORDINATOR",
    "A REPLICA",
    "DEATH",
    "BACK",
    "STOP",
    "FAILURE",
];

/// Arguments of `trireme-lab many-ranges`.
#[derive(Args)]
pub(crate) struct ManyRangesArgs {
    /// How ranges replicate: spinnaker, raft, pacifica, or all; each in a cluster of its own.
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',', required = true)]
    replication: Vec<String>,
    /// How many ranges; each number in a cluster of its own.
    #[arg(long, value_name = "N", value_delimiter = ',', required = true)]
    ranges: Vec<usize>,
    /// For how long the idle cluster is watched.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse::duration)]
    idle: Duration,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Prints a JSON object.
    #[arg(long)]
    json: bool,
}

/// What so many ranges have cost, as far as it was measured.
#[derive(Clone, Copy, Debug, Default)]
struct Costs {
    /// From the start of the processes until a put to each range was acknowledged.
    start: Option<Duration>,
    /// The processor time of all nodes, as a part of one core.
    nodes: Option<f64>,
    /// That of the coordinator.
    coordinator: Option<f64>,
    /// The memory of all nodes.
    memory: Option<u64>,
    /// From `kill -9` of a node until a put to each range, begun after it, was acknowledged.
    death: Option<Duration>,
    /// From the node's next start until a put to each range was acknowledged.
    back: Option<Duration>,
    /// From the signal to stop until all nodes were gone.
    stop: Option<Duration>,
}

impl ManyRangesArgs {
    /// Runs the experiment and prints its table; fails if a cluster did not get through it.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        if self.ranges.contains(&0) || self.cluster.nodes() < 3 {
            bail!("it takes a range, and three nodes so that one may be dead");
        }
        let protocols = parse::protocols(&self.replication).map_err(anyhow::Error::msg)?;
        let mut report = Report::new("many-ranges", HEADS);
        report.setting("idle", format!("{:?}", self.idle));
        let mut failed = Vec::new();
        for protocol in protocols {
            let base = self.memory_of_one(protocol).await?;
            for &ranges in &self.ranges {
                let mut costs = Costs::default();
                let measured = self.measure(protocol, ranges, &mut costs, &mut report).await;
                let failure = measured.err().map(|error| format!("{error:#}"));
                self.add_row(protocol, ranges, costs, base, failure.as_deref(), &mut report);
                failed.extend(failure.map(|it| format!("{protocol}, {ranges} ranges: {it}")));
            }
        }
        report.print(self.json)?;
        if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
    }

    /// Starts a cluster of so many ranges, and returns it with a key of each.
    async fn start(
        &self,
        protocol: Protocol,
        ranges: usize,
    ) -> anyhow::Result<(Cluster, Arc<[String]>)> {
        let keys: Arc<[String]> = (0..ranges).map(|range| format!("r{range:06}")).collect();
        let args = ClusterArgs {
            borders: keys[1..].to_vec(),
            ready_within: Some(READY_TIMEOUT),
            ..self.cluster.clone()
        };
        Ok((Cluster::start(&args, protocol, &[]).await?, keys))
    }

    /// Returns the memory that the nodes take with a single range.
    async fn memory_of_one(&self, protocol: Protocol) -> anyhow::Result<u64> {
        let (cluster, keys) = self.start(protocol, 1).await?;
        put_each(&cluster.client(patient()).await?, &keys).await?;
        tokio::time::sleep(SETTLES_FOR).await;
        memory(&cluster)
    }

    /// Has one cluster start, be idle, lose a node, get it back and stop. What was measured before a
    /// failure counts.
    async fn measure(
        &self,
        protocol: Protocol,
        ranges: usize,
        costs: &mut Costs,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        let (mut cluster, keys) = self.start(protocol, ranges).await?;
        let client = cluster.client(patient()).await?;
        put_each(&client, &keys).await.context("after the start")?;
        costs.start = Some(begun.elapsed());
        progress(format_args!("{protocol}, {ranges} ranges: started, {:?}", begun.elapsed()));
        report.conditions(cluster.conditions().await?);

        tokio::time::sleep(SETTLES_FOR).await;
        let before = (processor_times(&cluster)?, Instant::now());
        tokio::time::sleep(self.idle).await;
        let (after, elapsed) = (processor_times(&cluster)?, before.1.elapsed());
        let part = |after: Duration, before: Duration| {
            after.saturating_sub(before).as_secs_f64() / elapsed.as_secs_f64()
        };
        costs.nodes = Some(part(after.0, before.0.0));
        costs.coordinator = Some(part(after.1, before.0.1));
        costs.memory = Some(memory(&cluster)?);

        let killed = cluster.kill(VICTIM).await?;
        put_each(&client, &keys).await.context("after a death")?;
        costs.death = Some(killed.at.elapsed());
        progress(format_args!("{protocol}, {ranges} ranges: death, {:?}", killed.at.elapsed()));

        let restarted = Instant::now();
        cluster.restart(VICTIM)?;
        cluster.wait_until_answered(SERVES_TIMEOUT).await?;
        put_each(&client, &keys).await.context("after a node's return")?;
        costs.back = Some(restarted.elapsed());

        let stopped = Instant::now();
        cluster.stop_nodes(STOP_TIMEOUT).await.context("stopping the nodes")?;
        costs.stop = Some(stopped.elapsed());
        Ok(())
    }

    fn add_row(
        &self,
        protocol: Protocol,
        ranges: usize,
        costs: Costs,
        base: u64,
        failure: Option<&str>,
        report: &mut Report,
    ) {
        let replicas = ranges.saturating_sub(1) * self.cluster.nodes();
        let replica = costs.memory.and_then(|it| a_replica(it.saturating_sub(base), replicas));
        let cells = vec![
            protocol.to_string(),
            ranges.to_string(),
            seconds(costs.start),
            percent(costs.nodes),
            percent(costs.coordinator),
            replica.map_or_else(dash, |bytes| format!("{} KiB", bytes / 1024)),
            seconds(costs.death),
            seconds(costs.back),
            seconds(costs.stop),
            if failure.is_some() { "yes, see below".to_owned() } else { dash() },
        ];
        let of =
            |duration: Option<Duration>| duration.map_or(Value::Null, |it| microseconds(it).into());
        let object = json!({
            "protocol": protocol.name(),
            "ranges": ranges,
            "start_us": of(costs.start),
            "idle_nodes_cores": costs.nodes,
            "idle_coordinator_cores": costs.coordinator,
            "replica_bytes": replica,
            "nodes_bytes": costs.memory,
            "death_us": of(costs.death),
            "back_us": of(costs.back),
            "stop_us": of(costs.stop),
            "failure": failure,
        });
        report.row(cells, "many_ranges", object);
    }
}

/// Returns the options of a client that waits for every range until it serves.
fn patient() -> ClientOptions {
    ClientOptions { deadline: SERVES_TIMEOUT, ..impatient() }
}

/// Puts every key, and returns when all puts were acknowledged.
async fn put_each(client: &Client, keys: &Arc<[String]>) -> anyhow::Result<()> {
    let room = Arc::new(Semaphore::new(PUTS_AT_ONCE));
    let mut puts = JoinSet::new();
    for at in 0..keys.len() {
        let permit = Arc::clone(&room).acquire_owned().await?;
        let (client, keys) = (client.clone(), Arc::clone(keys));
        puts.spawn(async move {
            let key = keys[at].clone();
            let put = client.put(key.clone(), "served").await;
            drop(permit);
            put.map(drop).with_context(|| format!("the put of {key}"))
        });
    }
    while let Some(put) = puts.join_next().await {
        put.context("a put has failed")??;
    }
    Ok(())
}

/// Returns the processor time of all nodes that run, and that of the coordinator.
fn processor_times(cluster: &Cluster) -> anyhow::Result<(Duration, Duration)> {
    let nodes = cluster.processes().into_values().map(processor_time);
    Ok((nodes.sum::<anyhow::Result<Duration>>()?, processor_time(cluster.coordinator_process())?))
}

/// Returns the memory of all nodes that run.
fn memory(cluster: &Cluster) -> anyhow::Result<u64> {
    cluster.processes().into_values().map(own_memory).sum()
}

/// Returns what each of so many replicas takes; `None` of none.
fn a_replica(bytes: u64, replicas: usize) -> Option<u64> {
    bytes.checked_div(u64::try_from(replicas).unwrap_or(u64::MAX))
}

fn seconds(duration: Option<Duration>) -> String {
    duration.map_or_else(dash, |duration| format!("{:.2} s", duration.as_secs_f64()))
}

fn percent(part: Option<f64>) -> String {
    part.map_or_else(dash, |part| format!("{:.1} %", part * 100.0))
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_a_dash() {
        assert_eq!((seconds(None), percent(None)), (dash(), dash()));
        assert_eq!(seconds(Some(Duration::from_millis(1234))), "1.23 s");
        assert_eq!(percent(Some(0.0374)), "3.7 %");
        assert_eq!((a_replica(3000, 3), a_replica(3000, 0)), (Some(1000), None));
    }
}
