//! What one slow follower does to puts (M54): a majority need not wait for it, a primary that
//! waits for all of its secondaries does.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use trireme_client::ClientOptions;
use trireme_types::{NodeId, Protocol};

use super::WHOLE_TIMEOUT;
use crate::load::Load;
use crate::measure::Summary;
use crate::parse;
use crate::report::{Report, milliseconds, progress};
use trireme_testbed::{ALLOW_FAULTS, Cluster, ClusterArgs};

/// How long callers are at work before a phase is measured.
const WARM_UP: Duration = Duration::from_secs(1);

const HEADS: &[&str] = &[
    "PROTOCOL",
    "P50 BEFORE",
    "P50 SLOW",
    "P50 HEALED",
    "P50 SLOW/BEFORE",
    "P99 BEFORE",
    "P99 SLOW",
    "P99 HEALED",
    "P99 SLOW/BEFORE",
    "LAG BEFORE",
    "LAG SLOW",
];

/// Arguments of `trireme-lab slow-replica`.
#[derive(Args)]
pub(crate) struct SlowReplicaArgs {
    /// How ranges replicate: spinnaker, raft, pacifica, or all; each in a cluster of its own.
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',', required = true)]
    replication: Vec<String>,
    /// How much later all leaves that the follower sends to the others.
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = parse::duration)]
    delay: Duration,
    /// How many callers put at once.
    #[arg(long, value_name = "N", default_value_t = 8)]
    callers: u64,
    /// The bytes of each value.
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    value_bytes: usize,
    /// How long each phase is measured.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse::duration)]
    duration: Duration,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Prints a JSON object.
    #[arg(long)]
    json: bool,
}

/// How long puts took with one protocol.
struct Phases {
    before: Phase,
    slow: Phase,
    healed: Phase,
}

/// What one phase showed.
struct Phase {
    latencies: Summary,
    /// How many entries of the leader's the follower was not known to have in the middle of the
    /// phase: whether it is slow indeed.
    lag: Option<u64>,
}

impl SlowReplicaArgs {
    /// Runs the experiment and prints its table.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        if self.cluster.nodes() < 3 {
            bail!("it takes three nodes so that a majority can do without the slow one");
        }
        let protocols = parse::protocols(&self.replication).map_err(anyhow::Error::msg)?;
        let mut report = Report::new("slow-replica", HEADS);
        report.setting("delay", format!("{:?}", self.delay));
        report.setting("callers", self.callers);
        report.setting("value_bytes", self.value_bytes);
        report.setting("duration", format!("{:?}", self.duration));
        let mut failed = Vec::new();
        for protocol in protocols {
            progress(format_args!("{protocol}"));
            match self.measure(protocol, &mut report).await {
                Ok(phases) => {
                    report.row(phases.cells(protocol), "protocols", phases.json(protocol))
                }
                // What the other protocols did is told nonetheless.
                Err(error) => failed.push(format!("{protocol}: {error:#}")),
            }
        }
        if !report.is_empty() {
            report
                .line("LAG: entries that the leader did not know the follower to have, half way.");
            report.print(self.json)?;
        }
        if failed.is_empty() { Ok(()) } else { bail!("{}", failed.join("\n")) }
    }

    async fn measure(&self, protocol: Protocol, report: &mut Report) -> anyhow::Result<Phases> {
        let cluster = Cluster::start(&self.cluster, protocol, &[ALLOW_FAULTS]).await?;
        report.conditions(cluster.conditions().await?);
        let client = cluster.client(ClientOptions::default()).await?;
        let load = Load { client, callers: self.callers, value_bytes: self.value_bytes };
        let statuses = cluster.wait_until_whole(WHOLE_TIMEOUT).await?;
        let slow_node = statuses.followers().pop().context("nobody follows")?;
        let before = self.phase(&cluster, slow_node, &load, "before").await?;
        cluster.delay_all_from(slow_node, self.delay).await?;
        let slow = self.phase(&cluster, slow_node, &load, "with one slow follower").await?;
        let leads = cluster.statuses().await?.leader().map(|(node, _)| node);
        if leads == Some(slow_node) {
            bail!("{slow_node} was to be the slow follower, and leads now");
        }
        cluster.heal(slow_node).await?;
        cluster.wait_until_whole(WHOLE_TIMEOUT).await?;
        let healed = self.phase(&cluster, slow_node, &load, "healed").await?;
        Ok(Phases { before, slow, healed })
    }

    async fn phase(
        &self,
        cluster: &Cluster,
        slow_node: NodeId,
        load: &Load,
        name: &str,
    ) -> anyhow::Result<Phase> {
        let lag = async {
            tokio::time::sleep(WARM_UP + self.duration / 2).await;
            Ok(cluster.statuses().await?.lag(slow_node))
        };
        let measured = tokio::try_join!(load.latencies(WARM_UP, self.duration), lag);
        let (latencies, lag) = measured.with_context(|| format!("the phase '{name}'"))?;
        let latencies = Summary::of(latencies).context("no put was acknowledged")?;
        let (count, p50) = (latencies.count, milliseconds(latencies.p50));
        progress(format_args!("{name}: {count} puts, p50 {p50}"));
        Ok(Phase { latencies, lag })
    }
}

impl Phases {
    fn cells(&self, protocol: Protocol) -> Vec<String> {
        let mut cells = vec![protocol.to_string()];
        let parts: [fn(&Summary) -> Duration; 2] = [|summary| summary.p50, |summary| summary.p99];
        for part in parts {
            let phases = [&self.before, &self.slow, &self.healed];
            let [before, slow, healed] = phases.map(|phase| part(&phase.latencies));
            cells.extend([before, slow, healed].map(milliseconds));
            cells.push(format!("{:.2}", ratio(slow, before)));
        }
        let entries = |lag: Option<u64>| lag.map_or_else(|| "-".to_owned(), |lag| lag.to_string());
        cells.extend([self.before.lag, self.slow.lag].map(entries));
        cells
    }

    fn json(&self, protocol: Protocol) -> Value {
        json!({
            "protocol": protocol.name(),
            "before": self.before.json(),
            "slow": self.slow.json(),
            "healed": self.healed.json(),
            "p50_ratio": ratio(self.slow.latencies.p50, self.before.latencies.p50),
            "p99_ratio": ratio(self.slow.latencies.p99, self.before.latencies.p99),
        })
    }
}

impl Phase {
    fn json(&self) -> Value {
        json!({ "latency_us": self.latencies.json(), "lag_entries": self.lag })
    }
}

fn ratio(slow: Duration, before: Duration) -> f64 {
    slow.as_secs_f64() / before.as_secs_f64()
}
