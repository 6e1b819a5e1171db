//! Whether it costs anything that much was written before a leader died (M56; PacificA §4.3 and
//! figure 6): a new primary has applied almost all of it already, so that its takeover should not
//! depend on how much that was.
//!
//! A node that is started again has to apply again what its tables had not flushed; how long it
//! takes until it is back is told beside.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use trireme_client::ClientOptions;
use trireme_types::{NodeId, Protocol};

use super::{GAP_TIMEOUT, LeaderDeath, WHOLE_TIMEOUT, no_loss};
use crate::load::Load;
use crate::measure::microseconds;
use crate::parse::{self, Size};
use crate::report::{Report, megabytes, milliseconds, milliseconds_or_dash, progress};
use crate::writer::{Writer, impatient, lost};
use trireme_testbed::{Cluster, ClusterArgs};

/// How many callers fill the range.
const FILLERS: u64 = 64;

/// How long one put may take while the range is filled.
const FILL_DEADLINE: Duration = Duration::from_secs(60);

const HEADS: &[&str] =
    &["SIZE", "LOG", "UNFLUSHED", "TABLE FILES", "GAP", "LONGEST PAUSE", "TAKEOVER", "BACK AFTER"];

/// Arguments of `trireme-lab log-size`.
#[derive(Args)]
pub(crate) struct LogSizeArgs {
    /// How the range replicates: spinnaker, raft or pacifica.
    #[arg(long, value_name = "PROTOCOL", default_value = "pacifica")]
    replication: Protocol,
    /// How many bytes of values are written before the leader is killed, each in a cluster of its
    /// own.
    #[arg(
        long,
        value_name = "SIZE,...",
        value_delimiter = ',',
        default_value = "25MB,100MB,400MB",
        value_parser = parse::size
    )]
    sizes: Vec<Size>,
    /// The bytes of each value.
    #[arg(long, value_name = "BYTES", default_value_t = 4096)]
    value_bytes: usize,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Prints a JSON object.
    #[arg(long)]
    json: bool,
}

/// What one cluster showed.
struct Run {
    /// What the follower that had the least log had written to it.
    log_bytes: u64,
    /// What the same follower's tables had on disk.
    table_bytes: u64,
    death: LeaderDeath,
    /// From when the killed node was started again until its replica had caught up.
    back_after: Duration,
    lost: Option<String>,
}

impl LogSizeArgs {
    /// Runs the experiment and prints its table; fails if an acknowledged key is lost.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        if self.value_bytes == 0 || self.cluster.nodes() < 3 {
            bail!("it takes values of some bytes, and three nodes so that one may be dead");
        }
        let mut report = Report::new("log-size", HEADS);
        report.setting("value_bytes", self.value_bytes);
        let mut lost = None;
        for size in &self.sizes {
            let run = self.one(size, &mut report).await;
            let run = run.with_context(|| format!("with {} written", size.text))?;
            report.row(run.cells(size), "sizes", run.json(size));
            lost = lost.or(run.lost);
        }
        report
            .line("LOG, UNFLUSHED and TABLE FILES are of the follower with the shorter log, right");
        report.line("before the kill. The tables were given room to flush nothing.");
        report.print(self.json)?;
        no_loss(lost)
    }

    /// Fills one cluster with so many bytes, and kills its leader.
    async fn one(&self, size: &Size, report: &mut Report) -> anyhow::Result<Run> {
        let memtable = format!("--memtable-bytes={}", MEMTABLE_ROOM * size.bytes + MEMTABLE_LEAST);
        let mut cluster = Cluster::start(&self.cluster, self.replication, &[&memtable]).await?;
        report.conditions(cluster.conditions().await?);
        let count = size.bytes.div_ceil(u64::try_from(self.value_bytes)?);
        self.fill(&cluster, count).await?;
        let whole = cluster.wait_until_whole(WHOLE_TIMEOUT).await?;
        let log_bytes = |node: &NodeId| {
            let log = whole.node(*node).and_then(|status| status.log);
            log.unwrap_or_default().written_bytes
        };
        let shortest = whole.followers().into_iter().min_by_key(log_bytes);
        let shortest = shortest.context("nobody follows")?;
        let log_bytes = log_bytes(&shortest);
        let table_bytes = bytes_below(&cluster.node_folder(shortest).join(TABLES));

        let client = cluster.client(impatient()).await?;
        let writer = Writer::start(client.clone(), count, self.value_bytes);
        writer.begin_anew(GAP_TIMEOUT).await?;
        let death = super::kill_leader(&mut cluster, &writer).await?;
        let gap = milliseconds(death.gap.gap);
        progress(format_args!("{}: {} killed, gap {gap}", size.text, death.node));
        let restarted = Instant::now();
        cluster.restart(death.node)?;
        cluster.wait_until_whole(WHOLE_TIMEOUT).await?;
        let back_after = restarted.elapsed();
        let acknowledged = writer.stop().await?;
        let lost = lost(&client, acknowledged, self.value_bytes).await?;
        Ok(Run { log_bytes, table_bytes, death, back_after, lost })
    }

    async fn fill(&self, cluster: &Cluster, count: u64) -> anyhow::Result<()> {
        let options = ClientOptions { deadline: FILL_DEADLINE, ..ClientOptions::default() };
        let client = cluster.client(options).await?;
        let load = Load { client, callers: FILLERS, value_bytes: self.value_bytes };
        let began = Instant::now();
        load.fill(0..count).await?;
        let took = began.elapsed().as_secs_f64();
        progress(format_args!("{count} values of {} bytes in {took:.1} s", self.value_bytes));
        Ok(())
    }
}

impl Run {
    /// Returns what is known of how much of the log was not in table files.
    fn unflushed(&self) -> String {
        let most = megabytes(self.log_bytes);
        if self.table_bytes < TABLE_BYTES_MIN { most } else { format!("<= {most}") }
    }

    fn cells(&self, size: &Size) -> Vec<String> {
        vec![
            size.text.clone(),
            megabytes(self.log_bytes),
            self.unflushed(),
            megabytes(self.table_bytes),
            milliseconds(self.death.gap.gap),
            milliseconds(self.death.gap.longest_pause),
            milliseconds_or_dash(self.death.takeover),
            milliseconds(self.back_after),
        ]
    }

    fn json(&self, size: &Size) -> Value {
        json!({
            "value_bytes_written": size.bytes,
            "log_bytes": self.log_bytes,
            "table_file_bytes": self.table_bytes,
            "unflushed_bytes_at_most": self.log_bytes,
            "gap_us": microseconds(self.death.gap.gap),
            "longest_pause_us": microseconds(self.death.gap.longest_pause),
            "takeover_us": self.death.takeover.map(microseconds),
            "back_after_us": microseconds(self.back_after),
            "lost": self.lost,
        })
    }
}

/// Returns how many bytes the files at and below a folder hold. A file that goes meanwhile counts
/// nothing.
fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_gone) => 0,
    };
    entries.map(bytes).sum()
}

/// The folder of the tables within a node's.
const TABLES: &str = "tables";

/// Table files with fewer bytes hold no rows worth counting: an engine's own files are small.
const TABLE_BYTES_MIN: u64 = 1_000_000;

/// How much larger a memtable may grow than the values that are written.
const MEMTABLE_ROOM: u64 = 2;

/// The least that a memtable may grow to, in bytes: what a node has without being told.
const MEMTABLE_LEAST: u64 = 64 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_folder_are_those_of_all_files_below() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("below")).unwrap();
        std::fs::write(folder.path().join("a"), [0; 10]).unwrap();
        std::fs::write(folder.path().join("below/b"), [0; 5]).unwrap();
        assert_eq!(bytes_below(folder.path()), 15);
        assert_eq!(bytes_below(&folder.path().join("absent")), 0);
    }
}
