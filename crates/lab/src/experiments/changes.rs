//! What the changes of a range cost one client that writes to it: for how long no write went through while
//! the lead moved, the protocol changed, a replica moved to another node, the range was split, its halves merged.
//!
//! In the end every key that was acknowledged must be there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use futures::StreamExt;
use futures::stream;
use serde_json::json;
use trireme_client::{Client, Route};
use trireme_testbed::{Cluster, ClusterArgs};
use trireme_types::{NodeId, Protocol};

use super::{GAP_TIMEOUT, no_loss};
use crate::measure::{Summary, longest_pause};
use crate::report::{Report, milliseconds, progress};
use crate::writer::{Writer, impatient, key, lost, value};

/// The kinds of change, in the order in which they are tried in each round.
const CHANGES: [&str; 5] = ["leader", "protocol", "move", "split", "merge"];

const HEADS: &[&str] =
    &["CHANGE", "TIMES", "NO WRITE: MIN", "P50", "P90", "MAX", "IT TOOK: P50", "MAX"];

/// How many nodes hold a replica of the range at a time; another one is free.
const REPLICAS: u16 = 3;

/// The bytes of each row that is there before.
const ROW_BYTES: usize = 1024;

/// How many of them are put at once.
const FILLING: usize = 256;

/// Where the rows begin that are there before: the writer's keys are above all of them.
const FILL: &str = "fill-";

/// Arguments of `trireme-lab changes`.
#[derive(Args)]
pub(crate) struct ChangesArgs {
    /// How the range replicates at first: spinnaker, raft or pacifica.
    #[arg(long, value_name = "PROTOCOL")]
    replication: Protocol,
    /// How often each change is made.
    #[arg(long, value_name = "N", default_value_t = 10)]
    rounds: u32,
    /// How many MiB of rows the range has before the first change.
    #[arg(long, value_name = "MIB", default_value_t = 16)]
    fill_mib: u64,
    /// The bytes of each value that is written meanwhile.
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    value_bytes: usize,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Prints a JSON object.
    #[arg(long)]
    json: bool,
}

/// How long no write went through, and how long the change took, by the kind of change.
type Pauses = BTreeMap<&'static str, (Vec<Duration>, Vec<Duration>)>;

impl ChangesArgs {
    /// Runs the experiment and prints its table; fails if an acknowledged key is lost.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        if self.rounds == 0 || self.cluster.nodes() <= usize::from(REPLICAS) {
            bail!("it takes a round, and four nodes (--nodes 4) so that a replica can move");
        }
        self.cluster.replicas = Some(REPLICAS);
        let mut report = Report::new("changes", HEADS);
        let cluster = Cluster::start(&self.cluster, self.replication, &[]).await?;
        report.conditions(cluster.conditions().await?);
        report.setting("rounds", self.rounds);
        report.setting("fill_mib", self.fill_mib);
        let client = cluster.client(impatient()).await?;
        self.fill(&client).await?;
        let writer = Writer::start(cluster.client(impatient()).await?, 0, self.value_bytes);
        let mut pauses = Pauses::new();
        for round in 1..=self.rounds {
            for change in CHANGES {
                let (pause, took) = self.change(&client, &writer, change, round).await?;
                progress(format_args!("{change} {round} of {}: {pause:?}", self.rounds));
                let of_change = pauses.entry(change).or_default();
                of_change.0.push(pause);
                of_change.1.push(took);
            }
        }
        let acknowledged = writer.stop().await?;
        let lost = lost(&client, 0..acknowledged, self.value_bytes).await?;
        for change in CHANGES {
            let (pauses, took) = pauses.remove(change).unwrap_or_default();
            let (Some(pause), Some(took)) = (Summary::of(pauses), Summary::of(took)) else {
                continue;
            };
            let figures = [pause.min, pause.p50, pause.p90, pause.max, took.p50, took.max];
            let cells = [change.to_owned(), pause.count.to_string()].into_iter();
            let cells = cells.chain(figures.map(milliseconds)).collect();
            let figures = json!({ "no_write": pause.json(), "took": took.json() });
            report.row(cells, change, figures);
        }
        report.line(match &lost {
            Some(lost) => format!("LOST: {lost}"),
            None => format!("all {acknowledged} acknowledged keys are there with their values"),
        });
        report.print(self.json)?;
        no_loss(lost)
    }

    /// Puts the rows that are there before.
    async fn fill(&self, client: &Client) -> anyhow::Result<()> {
        let rows = self.fill_mib * 1024 * 1024 / ROW_BYTES as u64;
        let puts = stream::iter(0..rows).map(|row| async move {
            client.put(format!("{FILL}{row:012}"), value(row, ROW_BYTES)).await.map(drop)
        });
        let mut puts = puts.buffer_unordered(FILLING);
        while let Some(put) = puts.next().await {
            put.context("filling the range")?;
        }
        Ok(())
    }

    /// Makes a change, and returns for how long no write went through, and how long it took.
    async fn change(
        &self,
        client: &Client,
        writer: &Writer,
        change: &str,
        round: u32,
    ) -> anyhow::Result<(Duration, Duration)> {
        writer.begin_anew(GAP_TIMEOUT).await?;
        let route = written(client).await?;
        let begun = Instant::now();
        let ignore = |_: &str| {};
        match change {
            "leader" => {
                let to = another(&route)?;
                client.transfer_leader(route.cohort, to, ignore).await.map(drop)?;
            }
            "protocol" => {
                let all = [Protocol::Spinnaker, Protocol::Raft, Protocol::Pacifica];
                let at = all.iter().position(|it| it.name() == route.protocol).unwrap_or_default();
                let next = all[(at + 1) % all.len()];
                client.set_protocol(route.cohort, next, ignore).await.map(drop)?;
            }
            "move" => {
                let nodes = client.routes().nodes;
                let free = nodes.iter().find(|node| !route.replicas.contains(&node.id));
                let to = free.context("every node holds a replica")?.id;
                let from = route.replicas[round as usize % route.replicas.len()];
                client.move_replica(route.cohort, from, to, ignore).await.map(drop)?;
            }
            "split" => {
                // What is below has the rows that were there before.
                let at = key(u64::from(round) * 10);
                client.split_range(at, ignore).await.map(drop)?;
            }
            // The range that the last split began.
            _ => client.merge_ranges(route.range.start, ignore).await.map(drop)?,
        }
        let took = begun.elapsed();
        writer.wait_for_put_begun_after(Instant::now(), GAP_TIMEOUT).await?;
        let pause = longest_pause(&writer.puts(), begun).context("nothing was written")?;
        Ok((pause, took))
    }
}

/// Returns the route of the range that is written to: the last one.
async fn written(client: &Client) -> anyhow::Result<Route> {
    let table = client.refresh_routes().await?;
    table.ranges.last().cloned().context("there is no range")
}

/// Returns a node that holds a replica and does not lead.
fn another(route: &Route) -> anyhow::Result<NodeId> {
    let other = route.replicas.iter().find(|node| Some(**node) != route.leader);
    other.copied().context("there is no other replica")
}
