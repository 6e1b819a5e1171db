//! `trireme bench`.
//!
//! A caller is a task with one operation outstanding on a client that all callers share: a closed
//! loop, in which a slow cluster is asked less often. With `--rate` the loop is open: operations are
//! due at that rate, and their latencies count from when they were due. An operation counts to the
//! throughput if it ends within the measured time. Latencies are the caller's, to the answer, retries
//! included; those of operations that are outstanding when the measured time ends count, too.

mod callers;
mod keys;
mod report;
mod surroundings;

use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum, value_parser};
use trireme_client::{Client, ClientOptions};
use trireme_compare::suite;
use trireme_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

use super::cluster::ClusterArgs;
use super::get::ReadArgs;
use super::progress::Progress;
use super::{UsageError, duration, output};

use callers::{Load, Measured};
use keys::Keys;
use report::Report;
use surroundings::Surroundings;

/// The most callers of one run.
const CALLERS_MAX: u64 = 10_000;

/// The most callers that put the keys before they are read.
const LOADING_CALLERS_MAX: u64 = 256;

/// The most bytes of values that they have under way: few enough that a slow disk has taken each
/// within the deadline of its put.
const LOADING_BYTES_MAX: u64 = 16 << 20;

/// The longest run, and the longest warm-up of one: long enough for any measurement, and short enough that
/// its end is a point in time.
const RUN_MAX: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Arguments of `trireme bench`.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Number of distinct keys, spread evenly over first letters from a to z.
    #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u64).range(1..))]
    keys: u64,
    /// Size of a key in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 16,
        value_parser = value_parser!(u64).range(1..=KEY_BYTES_MAX as u64))]
    key_bytes: u64,
    /// Size of a value in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 256,
        value_parser = value_parser!(u64).range(0..=VALUE_BYTES_MAX as u64))]
    value_bytes: u64,
    /// Number of callers, each with one operation outstanding; one run per number.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256",
        value_parser = value_parser!(u64).range(1..=CALLERS_MAX))]
    callers: Vec<u64>,
    /// Operations that are due in each second, of all callers together: their latencies count from
    /// when they were due. Without it a caller asks again when it was answered.
    #[arg(long, value_name = "PER-SECOND", value_parser = value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Duration of each measurement.
    #[arg(long, default_value = "10s", value_parser = run_duration)]
    duration: Duration,
    /// Warm-up before each measurement.
    #[arg(long, default_value = "2s", value_parser = warm_up)]
    warm_up: Duration,
    /// Operations of the callers; one run per workload and number of callers.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "put,get")]
    workload: Vec<Workload>,
    #[command(flatten)]
    read: ReadArgs,
    /// Number of streams to each node.
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u64).range(1..=64))]
    streams: u64,
    /// Seed of the keys and values.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

/// Reads how long a run is to be.
fn run_duration(text: &str) -> Result<Duration, String> {
    duration::positive(text).and_then(at_most_the_longest)
}

/// Reads how long a run is to go before it is measured.
fn warm_up(text: &str) -> Result<Duration, String> {
    duration::any(text).and_then(at_most_the_longest)
}

fn at_most_the_longest(asked: Duration) -> Result<Duration, String> {
    if asked > RUN_MAX { Err("must be at most 720h".to_owned()) } else { Ok(asked) }
}

/// What the callers of a run do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Workload {
    /// Puts.
    Put,
    /// Gets of keys that were put before.
    Get,
    /// Half puts, half gets.
    Mixed,
    /// YCSB A: half gets, half puts; a few keys most of the time, as in the others of YCSB.
    YcsbA,
    /// YCSB B: 95 gets to 5 puts.
    YcsbB,
    /// YCSB C: gets.
    YcsbC,
    /// YCSB D: 95 gets, of the newest keys most of the time, to 5 new keys.
    YcsbD,
    /// YCSB E: 95 scans of 1 to 100 rows to 5 new keys.
    YcsbE,
    /// YCSB F: half gets, half gets that are followed by a conditional put of the same key.
    YcsbF,
}

impl Workload {
    const fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed => "mixed",
            Self::YcsbA => "ycsb-a",
            Self::YcsbB => "ycsb-b",
            Self::YcsbC => "ycsb-c",
            Self::YcsbD => "ycsb-d",
            Self::YcsbE => "ycsb-e",
            Self::YcsbF => "ycsb-f",
        }
    }

    /// Returns what is done with which weight, and to which keys: what `trireme compare` has under
    /// another name or the same.
    fn choices(self) -> suite::Workload {
        let name = match self {
            Self::Put => "write",
            Self::Get => "read-strong",
            Self::Mixed => "writes-50",
            ycsb => ycsb.name(),
        };
        suite::workload(name).expect("a test looks each up")
    }

    const fn reads(self) -> bool {
        !matches!(self, Self::Put)
    }
}

impl BenchArgs {
    /// Runs every workload with every number of callers, and prints what was measured.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let keys = Keys::new(self.keys, self.key_bytes, self.seed).ok_or_else(|| {
            let (keys, bytes) = (self.keys, self.key_bytes);
            UsageError(format!("there are no {keys} different keys of {bytes} letters"))
        })?;
        let streams_per_node = usize::try_from(self.streams).expect("at most 64");
        let options = ClientOptions { streams_per_node, ..ClientOptions::default() };
        let client = cluster.connect_with(options).await?;
        let surroundings = Surroundings::of(&client, &cluster.endpoints()?).await?;
        let mut report = Report::new(&self, surroundings);
        if !self.json {
            output::line(report.head())?;
        }
        let mut progress = Progress::start(None);
        let measured = self.measure_all(&client, &keys, &mut progress, &mut report).await;
        progress.end();
        measured?;
        if self.json {
            output::json(&report.json())?;
        } else {
            output::line(report.table())?;
        }
        match report.failures() {
            None => Ok(()),
            Some(failures) => bail!(failures),
        }
    }

    async fn measure_all(
        &self,
        client: &Client,
        keys: &Keys,
        progress: &mut Progress,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let load = |workload| Load {
            client: client.clone(),
            keys: keys.clone(),
            values: callers::value_bytes(self.value_bytes, self.seed),
            value_bytes: self.value_bytes,
            workload,
            consistency: self.read.consistency,
            seed: self.seed,
            rate: self.rate,
        };
        if self.workload.iter().any(|workload| workload.reads()) {
            progress.note(&format!("trireme: putting {} keys", self.keys));
            let callers = loading_callers(self.value_bytes);
            let putting = load(Workload::Put).put_every_key(callers);
            watched(putting, "putting the keys", progress)
                .await
                .context("putting the keys that are to be read")?;
        }
        for workload in &self.workload {
            for callers in &self.callers {
                let text = format!("{} with {callers} callers", workload.name());
                let running = load(*workload).run(*callers, self.warm_up, self.duration);
                let measured: Measured = watched(running, &text, progress).await?;
                report.add(*workload, *callers, measured);
            }
        }
        Ok(())
    }
}

/// Returns how many callers put the keys before they are read.
fn loading_callers(value_bytes: u64) -> u64 {
    (LOADING_BYTES_MAX / value_bytes.max(1)).clamp(1, LOADING_CALLERS_MAX)
}

/// Waits for work and shows that it goes on.
async fn watched<T>(work: impl Future<Output = T>, text: &str, progress: &mut Progress) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = progress.due() => progress.show(0, text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_has_something_to_do() {
        for workload in Workload::value_variants() {
            assert!(!workload.choices().mix.is_empty(), "{}", workload.name());
        }
    }

    #[test]
    fn what_is_put_before_the_reads_is_bounded_in_bytes() {
        assert_eq!(loading_callers(0), LOADING_CALLERS_MAX);
        assert_eq!(loading_callers(256), LOADING_CALLERS_MAX);
        assert_eq!(loading_callers(VALUE_BYTES_MAX as u64), 16);
    }
}
