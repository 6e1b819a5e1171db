//! What a rolling restart costs clients that do not know of it: every node is stopped in order and started
//! again, one after the other, each once all replicas have caught up, while callers put and get with the
//! options that a client has by default.
//!
//! No request may fail, and in the end every key that was acknowledged must be there.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use futures::future::{join_all, try_join_all};
use parking_lot::Mutex;
use serde_json::json;
use trireme_client::{Client, ClientOptions};
use trireme_testbed::{Cluster, ClusterArgs};
use trireme_types::{NodeId, Protocol};

use super::{GAP_TIMEOUT, WHOLE_TIMEOUT, no_loss};
use crate::measure::{Put, Summary, microseconds};
use crate::report::{Report, milliseconds, progress};
use crate::writer::{Writer, key, lost, value};

/// How many numbers one caller has for its keys.
const KEYS_EACH: u64 = 1_000_000_000;

/// How long a node may take to stop in order.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// How many of its newest keys a caller reads.
const READ_BACK: u64 = 100;

/// Arguments of `trireme-lab rolling`.
#[derive(Args)]
pub(crate) struct RollingArgs {
    /// How the range replicates: spinnaker, raft or pacifica.
    #[arg(long, value_name = "PROTOCOL")]
    replication: Protocol,
    /// How often all nodes are restarted.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: u32,
    /// How many callers put, and as many get; all share one client.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=900))]
    callers: u64,
    /// The bytes of each value.
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    value_bytes: usize,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Prints a JSON object.
    #[arg(long)]
    json: bool,
}

/// One node's restart.
struct Restart {
    node: NodeId,
    /// Until its process was gone.
    stop: Duration,
    /// From then until all replicas had caught up.
    whole: Duration,
}

impl RollingArgs {
    /// Runs the experiment and prints its table; fails if a request fails, or an acknowledged key is lost.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        if self.rounds == 0 || self.cluster.nodes() < 3 {
            bail!("it takes a round, and three nodes so that one may be away");
        }
        let mut report = Report::new("rolling", &["RESTART", "NODE", "STOPPED", "WHOLE AGAIN"]);
        let mut cluster = Cluster::start(&self.cluster, self.replication, &[]).await?;
        report.conditions(cluster.conditions().await?);
        report.setting("rounds", self.rounds);
        report.setting("callers", self.callers);
        report.setting("value_bytes", self.value_bytes);
        let client = cluster.client(ClientOptions::default()).await?;
        let firsts: Vec<u64> = (0..self.callers).map(|caller| caller * KEYS_EACH).collect();
        let start = |first: &u64| Writer::start(client.clone(), *first, self.value_bytes);
        let writers: Vec<_> = firsts.iter().map(start).collect();
        let gets = Mutex::new(Vec::new());
        let readers = writers.iter().zip(&firsts);
        let readers = readers.map(|(writer, first)| self.read(&client, writer, *first, &gets));
        let restarts = tokio::select! {
            restarts = self.roll(&mut cluster, &writers) => restarts?,
            failed = try_join_all(readers) => bail!("the readers have ended: {failed:?}"),
        };
        for (restart, number) in restarts.iter().zip(1_u32..) {
            report.row(restart.cells(number), "restarts", restart.json());
        }
        let puts = writers.iter().flat_map(Writer::puts).map(Put::took).collect();
        let acknowledged = join_all(writers.into_iter().map(Writer::stop)).await;
        tell("puts", puts, &mut report)?;
        tell("gets", gets.into_inner(), &mut report)?;
        let mut missing = None;
        for (first, next) in firsts.into_iter().zip(acknowledged) {
            missing = missing.or(lost(&client, first..next?, self.value_bytes).await?);
        }
        report.line(match &missing {
            Some(missing) => format!("LOST: {missing}"),
            None => "no request failed, and all acknowledged keys are there".to_owned(),
        });
        report.result("lost", json!(missing));
        report.print(self.json)?;
        no_loss(missing)
    }

    /// Restarts every node, again and again.
    async fn roll(
        &self,
        cluster: &mut Cluster,
        writers: &[Writer],
    ) -> anyhow::Result<Vec<Restart>> {
        let mut restarts = Vec::new();
        cluster.wait_until_whole(WHOLE_TIMEOUT).await?;
        for round in 1..=self.rounds {
            for node in (1..=u64::from(self.cluster.nodes)).map(NodeId) {
                let begun = Instant::now();
                cluster.stop(node, STOP_TIMEOUT).await?;
                let stop = begun.elapsed();
                cluster.restart(node)?;
                cluster.wait_until_whole(WHOLE_TIMEOUT).await?;
                let whole = begun.elapsed() - stop;
                for writer in writers {
                    writer.wait_for_put_begun_after(Instant::now(), GAP_TIMEOUT).await?;
                }
                progress(format_args!("round {round} of {}: {node}", self.rounds));
                restarts.push(Restart { node, stop, whole });
            }
        }
        Ok(restarts)
    }

    /// Reads what a writer has put, until a read fails.
    async fn read(
        &self,
        client: &Client,
        writer: &Writer,
        first: u64,
        gets: &Mutex<Vec<Duration>>,
    ) -> anyhow::Result<Infallible> {
        writer.wait_for_put_begun_after(Instant::now(), GAP_TIMEOUT).await?;
        for turn in 0.. {
            let newest = writer.next() - 1;
            let number = newest.saturating_sub(turn % READ_BACK).max(first);
            let begun = Instant::now();
            let read = client.get(key(number)).await;
            gets.lock().push(begun.elapsed());
            let read = read.with_context(|| format!("the get of key {number} failed"))?;
            if read.is_none_or(|read| read.value != value(number, self.value_bytes)) {
                bail!("LOST: key {number} was acknowledged and is not there");
            }
        }
        bail!("there are no more turns")
    }
}

impl Restart {
    fn cells(&self, number: u32) -> Vec<String> {
        let Self { node, stop, whole } = self;
        let times = [*stop, *whole].map(milliseconds);
        [number.to_string(), node.to_string()].into_iter().chain(times).collect()
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "node": self.node.0,
            "stop_us": microseconds(self.stop),
            "whole_us": microseconds(self.whole),
        })
    }
}

/// Adds how long requests of a kind took to the report.
fn tell(kind: &str, took: Vec<Duration>, report: &mut Report) -> anyhow::Result<()> {
    let summary = Summary::of(took).with_context(|| format!("there were no {kind}"))?;
    let Summary { count, p50, p99, p999, max, .. } = summary;
    let [p50, p99, p999, max] = [p50, p99, p999, max].map(milliseconds);
    report.line(format!("{count} {kind}: p50 {p50}, p99 {p99}, p99.9 {p999}, max {max}"));
    report.result(kind, summary.json());
    Ok(())
}
