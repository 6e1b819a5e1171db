//! What the commit period costs and saves (Spinnaker §5 and table 1): the more seldom a leader
//! tells its followers what is committed, the older is what timeline reads at them find, and the
//! more a new leader has to do before it serves.
//!
//! The leader is killed right before it would tell its followers the next time, when there is most
//! that they were not told.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use trireme_types::Protocol;

use super::{LeaderDeath, WHOLE_TIMEOUT, no_loss};
use crate::measure::{Summary, Trend, microseconds};
use crate::parse;
use crate::report::{Report, milliseconds, milliseconds_or_dash, progress};
use crate::timeline::Timeline;
use crate::writer::{Writer, impatient, lost};
use trireme_testbed::{Cluster, ClusterArgs};

/// The least time for which staleness is sampled, however short the period.
const SAMPLED_MIN: Duration = Duration::from_secs(2);

const HEADS: &[&str] = &[
    "PERIOD",
    "STALENESS P50",
    "STALENESS MAX",
    "TAKEOVER P50",
    "TAKEOVER MAX",
    "GAP P50",
    "GAP MAX",
];

/// Arguments of `trireme-lab commit-period`.
#[derive(Args)]
pub(crate) struct CommitPeriodArgs {
    /// The commit periods, each for clusters of its own.
    #[arg(
        long,
        value_name = "DURATION,...",
        value_delimiter = ',',
        default_value = "100ms,1s,5s,15s",
        value_parser = parse::duration
    )]
    periods: Vec<Duration>,
    /// How the range replicates: spinnaker, raft or pacifica.
    #[arg(long, value_name = "PROTOCOL", default_value = "spinnaker")]
    replication: Protocol,
    /// The bytes of each value.
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    value_bytes: usize,
    /// How many clusters each period is tried on.
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeats: u32,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Prints a JSON object.
    #[arg(long)]
    json: bool,
}

/// What one cluster showed.
struct Run {
    staleness: Vec<Duration>,
    death: LeaderDeath,
    /// How many puts were acknowledged before the leader was killed.
    puts: usize,
    lost: Option<String>,
}

/// What all clusters of one period showed.
struct Period {
    period: Duration,
    staleness: Summary,
    takeover: Option<Summary>,
    gap: Summary,
    runs: Vec<Run>,
}

impl CommitPeriodArgs {
    /// Runs the experiment and prints its table; fails if an acknowledged key is lost.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        if self.repeats == 0 || self.cluster.nodes() < 3 {
            bail!("it takes a repeat, and three nodes so that one may be dead");
        }
        self.periods.sort_unstable();
        let mut report = Report::new("commit-period", HEADS);
        report.setting("value_bytes", self.value_bytes);
        report.setting("repeats", self.repeats);
        let mut periods = Vec::new();
        let mut lost = None;
        for period in &self.periods {
            let mut runs = Vec::new();
            for repeat in 1..=self.repeats {
                let run = self.one(*period, &mut report).await;
                let run = run.with_context(|| format!("with a commit period of {period:?}"))?;
                let gap = milliseconds(run.death.gap.gap);
                let takeover = milliseconds_or_dash(run.death.takeover);
                progress(format_args!(
                    "period {period:?}, {repeat} of {}: {} puts, takeover {takeover}, gap {gap}",
                    self.repeats, run.puts
                ));
                lost = lost.or(run.lost.clone());
                runs.push(run);
            }
            let period = Period::of(*period, runs).context("no timeline read was sampled")?;
            report.row(period.cells(), "periods", period.json());
            periods.push(period);
        }
        tell_trends(&periods, &mut report);
        report.print(self.json)?;
        no_loss(lost)
    }

    /// Tries a period on one cluster.
    async fn one(&self, period: Duration, report: &mut Report) -> anyhow::Result<Run> {
        let typed = format!("{}ms", period.as_millis());
        let more = ["--commit-period", &typed];
        let mut cluster = Cluster::start(&self.cluster, self.replication, &more).await?;
        report.conditions(cluster.conditions().await?);
        let statuses = cluster.wait_until_all_follow(WHOLE_TIMEOUT).await?;
        let followers = statuses.followers();
        let readers: Vec<_> =
            followers.iter().map(|node| (*node, cluster.address(*node))).collect();
        let client = cluster.client(impatient()).await?;
        let writer = Writer::start(client.clone(), 0, self.value_bytes);
        let timeline = Timeline::start(&cluster.client(impatient()).await?, &readers)?;
        wait_until_most_is_untold(&timeline, period).await;
        let staleness = timeline.finish()?;
        let puts = writer.puts().len();
        let death = super::kill_leader(&mut cluster, &writer).await?;
        let acknowledged = writer.stop().await?;
        let lost = lost(&client, 0..acknowledged, self.value_bytes).await?;
        Ok(Run { staleness, death, puts, lost })
    }
}

/// Returns a bit more than a period later, and right before followers are told the next time.
async fn wait_until_most_is_untold(timeline: &Timeline, period: Duration) {
    tokio::time::sleep(SAMPLED_MIN.max(period.mul_f64(1.1))).await;
    if let Some(told) = timeline.advanced() {
        let untold = untold_at(told, period, Instant::now());
        tokio::time::sleep_until(untold.into()).await;
    }
}

/// Returns the first moment from `now` on that lies nine tenths of a period, or that and some
/// whole periods, after followers were told.
fn untold_at(told: Instant, period: Duration, now: Instant) -> Instant {
    let mut untold = told + period.mul_f64(0.9);
    while untold < now {
        untold += period;
    }
    untold
}

impl Period {
    fn of(period: Duration, runs: Vec<Run>) -> Option<Self> {
        let staleness = runs.iter().flat_map(|run| run.staleness.iter().copied());
        Some(Self {
            period,
            staleness: Summary::of(staleness.collect())?,
            takeover: Summary::of(runs.iter().filter_map(|run| run.death.takeover).collect()),
            gap: Summary::of(runs.iter().map(|run| run.death.gap.gap).collect())?,
            runs,
        })
    }

    fn cells(&self) -> Vec<String> {
        vec![
            format!("{:?}", self.period),
            milliseconds(self.staleness.p50),
            milliseconds(self.staleness.max),
            milliseconds_or_dash(self.takeover.map(|takeover| takeover.p50)),
            milliseconds_or_dash(self.takeover.map(|takeover| takeover.max)),
            milliseconds(self.gap.p50),
            milliseconds(self.gap.max),
        ]
    }

    fn json(&self) -> Value {
        let run = |run: &Run| {
            json!({
                "puts": run.puts,
                "takeover_us": run.death.takeover.map(microseconds),
                "gap_us": microseconds(run.death.gap.gap),
                "longest_pause_us": microseconds(run.death.gap.longest_pause),
                "lost": run.lost,
            })
        };
        json!({
            "period_us": microseconds(self.period),
            "staleness_us": self.staleness.json(),
            "takeover_us": self.takeover.map(|takeover| takeover.json()),
            "gap_us": self.gap.json(),
            "runs": self.runs.iter().map(run).collect::<Vec<Value>>(),
        })
    }
}

/// Returns one figure of a period.
type Part = fn(&Period) -> Option<Duration>;

/// Says whether the figures rose with the period.
fn tell_trends(periods: &[Period], report: &mut Report) {
    let parts: [(&str, Part); 2] = [
        ("staleness", |period| Some(period.staleness.p50)),
        ("takeover", |period| Some(period.takeover?.p50)),
    ];
    let mut line = Vec::new();
    for (name, part) in parts {
        let trend = Trend::of(&periods.iter().map(part).collect::<Vec<_>>());
        line.push(format!("{name} (p50) rose with the period: {}", trend.words()));
        report.result(&format!("{name}_rose"), trend.words());
    }
    report.line(line.join("; "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_is_untold_at_the_end_of_the_period_that_is_under_way() {
        let told = Instant::now();
        let at = |milliseconds| told + Duration::from_millis(milliseconds);
        let period = Duration::from_secs(1);
        assert_eq!(untold_at(told, period, at(100)), at(900));
        assert_eq!(untold_at(told, period, at(900)), at(900));
        assert_eq!(untold_at(told, period, at(901)), at(1900));
        assert_eq!(untold_at(told, period, at(5000)), at(5900));
    }
}
