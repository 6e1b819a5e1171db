//! What the death of a node costs one client: a node is killed again and again, and the time is
//! measured for which no write went through.
//!
//! Between two kills the cluster becomes whole: the node is started again, and every replica has
//! applied what the leader knows to be committed. In the end every key that was acknowledged must
//! be there.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use trireme_types::{NodeId, Protocol};

use super::{GAP_TIMEOUT, LeaderDeath, WHOLE_TIMEOUT, no_loss};
use crate::measure::{Summary, microseconds};
use crate::report::{Report, milliseconds, milliseconds_or_dash, progress};
use crate::writer::{Writer, impatient, lost};
use trireme_testbed::{Cluster, ClusterArgs, Statuses};

/// Arguments of `trireme-lab kills`.
#[derive(Args)]
pub(crate) struct KillsArgs {
    /// How the range replicates: spinnaker, raft or pacifica.
    #[arg(long, value_name = "PROTOCOL")]
    replication: Protocol,
    /// Which node is killed.
    #[arg(long, value_enum)]
    victim: Victim,
    /// How often.
    #[arg(long, value_name = "N", default_value_t = 20)]
    kills: u32,
    /// The bytes of each value.
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    value_bytes: usize,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Prints a JSON object.
    #[arg(long)]
    json: bool,
}

/// Which node is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Victim {
    /// The one that leads.
    Leader,
    /// One that does not lead, another one each time.
    Follower,
}

impl Victim {
    const fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
        }
    }
}

/// The deaths, and whether all that was acknowledged outlived them.
struct Outcome {
    deaths: Vec<LeaderDeath>,
    acknowledged: u64,
    lost: Option<String>,
}

impl KillsArgs {
    /// Runs the experiment and prints its table; fails if an acknowledged key is lost.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        if self.kills == 0 || self.cluster.nodes() < 3 {
            bail!("it takes a kill, and three nodes so that one may be dead");
        }
        let mut report =
            Report::new("kills", &["KILL", "NODE", "GAP", "LONGEST PAUSE", "TAKEOVER"]);
        let mut cluster = Cluster::start(&self.cluster, self.replication, &[]).await?;
        report.conditions(cluster.conditions().await?);
        report.setting("victim", self.victim.name());
        report.setting("kills", self.kills);
        report.setting("value_bytes", self.value_bytes);
        let outcome = self.kill_again_and_again(&mut cluster).await?;
        let lost = outcome.lost.clone();
        outcome.tell(&mut report);
        report.print(self.json)?;
        no_loss(lost)
    }

    async fn kill_again_and_again(&self, cluster: &mut Cluster) -> anyhow::Result<Outcome> {
        let client = cluster.client(impatient()).await?;
        let writer = Writer::start(client.clone(), 0, self.value_bytes);
        let mut deaths = Vec::new();
        for round in 1..=self.kills {
            let whole = cluster.wait_until_whole(WHOLE_TIMEOUT).await?;
            writer.begin_anew(GAP_TIMEOUT).await?;
            let death = self.kill_once(cluster, &writer, &whole, round).await?;
            let gap = milliseconds(death.gap.gap);
            progress(format_args!("kill {round} of {}: {}, gap {gap}", self.kills, death.node));
            cluster.restart(death.node)?;
            deaths.push(death);
        }
        cluster.wait_until_whole(WHOLE_TIMEOUT).await?;
        let acknowledged = writer.stop().await?;
        let lost = lost(&client, 0..acknowledged, self.value_bytes).await?;
        Ok(Outcome { deaths, acknowledged, lost })
    }

    async fn kill_once(
        &self,
        cluster: &mut Cluster,
        writer: &Writer,
        whole: &Statuses,
        round: u32,
    ) -> anyhow::Result<LeaderDeath> {
        match self.victim {
            Victim::Leader => super::kill_leader(cluster, writer).await,
            Victim::Follower => {
                let node = follower(&whole.followers(), round)?;
                let gap = super::kill(cluster, node, writer).await?;
                Ok(LeaderDeath { node, gap, takeover: None })
            }
        }
    }
}

/// Returns one figure of a death.
type Part = fn(&LeaderDeath) -> Option<Duration>;

impl Outcome {
    fn tell(self, report: &mut Report) {
        for (death, number) in self.deaths.iter().zip(1_u32..) {
            report.row(death.cells(number), "kills", death.json());
        }
        let parts: [(&str, &str, Part); 3] = [
            ("gap", "gap_us", |death| Some(death.gap.gap)),
            ("longest pause", "longest_pause_us", |death| Some(death.gap.longest_pause)),
            ("takeover", "takeover_us", |death| death.takeover),
        ];
        for (words, name, part) in parts {
            if let Some(summary) = Summary::of(self.deaths.iter().filter_map(part).collect()) {
                report.line(line(words, &summary));
                report.result(name, summary.json());
            }
        }
        let count = self.acknowledged;
        report.line(match &self.lost {
            Some(lost) => format!("LOST: {lost}"),
            None => format!("all {count} acknowledged keys are there with their values"),
        });
        report.result("acknowledged", count);
        report.result("lost", json!(self.lost));
    }
}

impl LeaderDeath {
    fn cells(&self, number: u32) -> Vec<String> {
        vec![
            number.to_string(),
            self.node.to_string(),
            milliseconds(self.gap.gap),
            milliseconds(self.gap.longest_pause),
            milliseconds_or_dash(self.takeover),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "node": self.node.0,
            "gap_us": microseconds(self.gap.gap),
            "longest_pause_us": microseconds(self.gap.longest_pause),
            "takeover_us": self.takeover.map(microseconds),
        })
    }
}

fn line(words: &str, summary: &Summary) -> String {
    let Summary { min, p50, p90, max, .. } = *summary;
    let [min, p50, p90, max] = [min, p50, p90, max].map(milliseconds);
    format!("{words}: min {min}, p50 {p50}, p90 {p90}, max {max}")
}

/// Returns which of the followers is killed in a round: each in turn.
fn follower(followers: &[NodeId], round: u32) -> anyhow::Result<NodeId> {
    let turns = followers.iter().cycle();
    let turn = usize::try_from(round).context("there are not so many rounds")?;
    turns.copied().nth(turn % followers.len().max(1)).context("nobody follows")
}
