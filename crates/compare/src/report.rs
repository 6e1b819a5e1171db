//! What a comparison found: `report.json`. `docs/report-schema.md` documents it.
//!
//! Times are in microseconds where a field ends in `_us`, in milliseconds where it ends in `_ms`, and in
//! seconds where it ends in `_s`.

use serde::{Deserialize, Serialize};

/// The version of the schema. It rises whenever a field changes its meaning or goes.
pub const SCHEMA: u32 = 2;

/// A whole comparison.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The program's version.
    pub trireme: String,
    /// The suite's name.
    pub suite: String,
    /// What all choices were made from.
    pub seed: u64,
    /// When it began, in seconds of Unix time.
    pub began_s: u64,
    /// How long it took.
    pub took_s: f64,
    /// False if it was interrupted: what was not run is missing.
    pub is_complete: bool,
    /// Where it ran.
    pub machine: Machine,
    /// What an acknowledged write had survived.
    pub durability: Durability,
    /// Whose callers were slowed down on purpose, to see whether the report shows it.
    pub handicaps: Vec<Handicap>,
    /// What was compared.
    pub systems: Vec<System>,
    /// What each workload measured.
    pub workloads: Vec<WorkloadReport>,
    /// What a write cost, and what the protocols predict.
    pub predictions: Vec<Prediction>,
    /// What each system uses while it is asked for nothing.
    pub idle: Vec<Idle>,
    /// What each fault did.
    pub faults: Vec<FaultReport>,
    /// One write on its way through each protocol.
    pub paths: Vec<PathReport>,
    /// What the papers' experiments measured.
    pub experiments: Vec<ExperimentReport>,
    /// What is claimed, and what this run says of it.
    pub claims: Vec<Claim>,
    /// Whether every history can be explained and nothing was lost.
    pub checks: Checks,
}

/// The machine that everything ran on: nodes, coordinators and callers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub processor: String,
    /// How many cores can be used.
    pub cores: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Whether the program was built with optimizations.
    pub is_optimized: bool,
}

/// What an acknowledged write had survived, by what was asked for and by what a forced write took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Durability {
    /// `fsync`, `os` or `memory`, as the nodes say.
    pub setting: String,
    /// The storage engine, as the nodes say.
    pub engine: String,
    /// Whether the folders lie in memory, where a forced write forces nothing.
    pub is_in_memory: bool,
    /// What a forced write of 4 KiB took in the folder of the clusters, at the median.
    pub forced_write_p50_us: f64,
    /// The same at the 99th percentile.
    pub forced_write_p99_us: f64,
}

/// What was compared: a protocol, or a control.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct System {
    /// Its name everywhere in the report.
    pub name: String,
    /// The protocol that it replicates by.
    pub protocol: String,
    /// How many nodes, each with a replica.
    pub nodes: u16,
    /// What it is, in plain words.
    pub description: String,
    /// What it is compared for.
    pub role: Role,
    /// How often its leader shows under the faults that it is there; absent if it suffers none.
    #[serde(default)]
    pub beacon_interval_ms: Option<f64>,
    /// For how long its replicas bear a silent leader then; absent if it suffers none.
    #[serde(default)]
    pub grace_ms: Option<f64>,
}

/// What a system is compared for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It is one of the protocols.
    #[default]
    Protocol,
    /// One replica: what the machine can do without replication.
    None,
    /// The first protocol once more: what differs by chance.
    Control,
    /// Another store, which stands beside the protocols in the workloads. Of its costs, only
    /// processor time is known.
    Reference,
}

/// A mean with its 95 % confidence interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean of the rounds.
    pub mean: f64,
    /// The interval's lower end; absent if there was one round.
    pub low: Option<f64>,
    /// The interval's upper end; absent if there was one round.
    pub high: Option<f64>,
}

/// What a workload measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkloadReport {
    /// Its name.
    pub name: String,
    /// What it is.
    pub description: String,
    /// How many callers there were.
    pub callers: u64,
    /// How many operations were due in a second, with latencies from when they were due; absent if
    /// a caller asked again when it was answered.
    pub rate: Option<u32>,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// How many keys there were at its start.
    pub keys: u64,
    /// How many ranges the keys lay in.
    pub ranges: u64,
    /// What an acknowledged write had survived: `fsync`, `os` or `memory`.
    pub durability: String,
    /// What each system did.
    pub systems: Vec<Measured>,
    /// What can be said of the throughput: which is highest, or that no difference was shown.
    pub finding: String,
}

/// What a system did under a workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The system's name.
    pub system: String,
    /// Operations per second of each round; every round has a cluster of its own.
    pub rounds: Vec<f64>,
    /// Operations per second.
    pub throughput: Interval,
    /// Latency at the median, of each round in which an operation ended.
    #[serde(default)]
    pub p50_rounds_us: Vec<f64>,
    /// Latency at the median.
    pub p50_us: Interval,
    /// Latency at the 99th percentile, of each round in which an operation ended.
    #[serde(default)]
    pub p99_rounds_us: Vec<f64>,
    /// Latency at the 99th percentile.
    pub p99_us: Interval,
    /// Latency at the 99.9th percentile of all rounds together.
    pub p999_us: f64,
    /// Operations that were measured, of all rounds.
    pub operations: u64,
    /// Operations that failed without effect.
    pub failed: u64,
    /// Operations of which the outcome is unknown.
    pub unknown: u64,
    /// Latencies of all rounds: at each of these, which part of the operations was faster.
    pub cdf: Vec<(f64, f64)>,
    /// What an operation cost.
    pub cost: Cost,
}

/// What an operation cost, of all nodes together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Processor time of all nodes, in microseconds.
    pub processor_us: f64,
    /// The same of the node that used most.
    pub busiest_node_us: f64,
    /// Forced writes of all nodes.
    pub forced_writes: f64,
    /// Bytes written to logs by all nodes.
    pub log_bytes: f64,
    /// Entries appended to logs by all nodes.
    pub log_entries: f64,
    /// Messages between nodes, without heartbeats: several may share a frame.
    pub messages: f64,
    /// Bytes between nodes, without heartbeats and snapshots.
    pub network_bytes: f64,
    /// Messages on the lane of heartbeats: those of the background, and those by which Raft asks
    /// whether its leader still leads.
    pub heartbeats: f64,
}

/// A system whose callers wait after each operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handicap {
    /// The system's name.
    pub system: String,
    /// Which part of the operation's latency they wait, in percent.
    pub percent: u32,
}

/// What a protocol predicts that a write by a single caller costs, and what it cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The system's name.
    pub system: String,
    /// `messages` or `forced writes`, of all nodes together.
    pub quantity: String,
    /// What is predicted.
    pub predicted: f64,
    /// What was measured.
    pub measured: f64,
    /// Whether the two differ by at most a tenth.
    pub agrees: bool,
    /// Why so much is predicted.
    pub why: String,
}

/// What a system uses while it is asked for nothing, all nodes together, for its one range.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Idle {
    /// The system's name.
    pub system: String,
    /// Messages between nodes in a second, without heartbeats.
    pub messages_per_s: f64,
    /// Heartbeats in a second.
    pub heartbeats_per_s: f64,
    /// Forced writes in a second.
    pub forced_writes_per_s: f64,
    /// Which part of one core.
    pub processor_part: f64,
}

/// What a fault did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FaultReport {
    /// Its name.
    pub name: String,
    /// What happened.
    pub description: String,
    /// When the fault began, from the start of the time line.
    pub from_s: f64,
    /// When it ended.
    pub to_s: f64,
    /// What each system did.
    pub systems: Vec<Suffered>,
}

/// What a system did under a fault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Suffered {
    /// The system's name.
    pub system: String,
    /// Writes that were acknowledged, in each tenth of a second.
    pub writes: Vec<u32>,
    /// Strong reads that were answered, in each tenth of a second.
    pub reads: Vec<u32>,
    /// The median latency of writes that were acknowledged, in each tenth of a second; 0 if none was.
    pub write_p50_us: Vec<f64>,
    /// The longest time without an acknowledged write, from the fault on.
    pub longest_outage_ms: f64,
    /// From the fault on, until half of the former throughput of writes was reached again for half
    /// a second; absent if it never was.
    pub half_after_ms: Option<f64>,
    /// The same of nine tenths.
    pub nine_tenths_after_ms: Option<f64>,
    /// The same of 99 hundredths.
    pub nearly_all_after_ms: Option<f64>,
    /// Writes acknowledged per second before the fault.
    pub before_per_s: f64,
    /// Writes acknowledged per second in the last second of the fault.
    pub late_in_fault_per_s: f64,
    /// Median latency of writes before the fault, and in its second half; 0 if there were none.
    pub write_p50_before_us: f64,
    /// See `write_p50_before_us`.
    pub write_p50_in_fault_us: f64,
    /// Operations that failed without effect.
    pub failed: u64,
    /// Writes of which the outcome is unknown.
    pub unknown: u64,
    /// What went wrong with the run itself, which then says nothing about the system.
    pub error: Option<String>,
}

/// One write on its way through a protocol, with nothing else to do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PathReport {
    /// The system's name.
    pub system: String,
    /// The node that led.
    pub leader: u64,
    /// How long the write took, by the clock of the client.
    pub took_us: f64,
    /// What the nodes did, in order.
    pub hops: Vec<Hop>,
    /// What went wrong with the run itself, which then says nothing about the system.
    pub error: Option<String>,
}

/// What a node did for a write.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Hop {
    /// The node.
    pub node: u64,
    /// When, from the moment when the client asked.
    pub at_us: f64,
    /// `asked`, `sent`, `received`, `forced` (a forced write ended), `applied` or `answered`.
    pub what: String,
    /// Whom it sent to or received from; absent of what it did by itself.
    pub peer: Option<u64>,
    /// The message, in short.
    pub message: String,
    /// How long a forced write took.
    pub took_us: Option<f64>,
}

/// What an experiment of a paper measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExperimentReport {
    /// Its name.
    pub name: String,
    /// What is varied and what is measured.
    pub description: String,
    /// The paper and its table or figure.
    pub source: String,
    /// What is drawn from left to right, with its unit.
    pub setting: String,
    /// What is measured, with its unit.
    pub quantity: String,
    /// What this run measured.
    pub points: Vec<Point>,
    /// What the paper measured. Its machines were others: what can be compared is the shape.
    pub paper: Vec<PaperPoint>,
}

/// What an experiment measured at one place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The system's name.
    pub system: String,
    /// Which of the experiment's series it belongs to.
    pub series: String,
    /// From left to right.
    pub x: f64,
    /// What was measured.
    pub y: f64,
    /// What went wrong with the run itself, which then says nothing about the system.
    pub error: Option<String>,
}

/// What a paper measured at one place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PaperPoint {
    /// Which of the experiment's series it belongs to.
    pub series: String,
    /// From left to right.
    pub x: f64,
    /// What was measured.
    pub y: f64,
}

/// What is claimed of the protocols, and what this run says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The claim.
    pub claim: String,
    /// Who claims it.
    pub source: String,
    /// What this run says of it.
    pub verdict: Verdict,
    /// The figures by which it was judged.
    pub evidence: String,
}

/// What a run says of a claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// The figures are as claimed.
    #[serde(rename = "holds")]
    Holds,
    /// They are not.
    #[serde(rename = "does not hold")]
    DoesNotHold,
    /// The run did not measure it, or the difference is within what chance makes.
    #[default]
    #[serde(rename = "not shown")]
    NotShown,
}

impl Verdict {
    /// Returns it in words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::DoesNotHold => "does not hold",
            Self::NotShown => "not shown",
        }
    }
}

/// What the judge found in all histories.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checks {
    /// Histories that were judged.
    pub histories: u64,
    /// Operations in them.
    pub operations: u64,
    /// Histories that cannot be explained: a read was stale, or a write was lost or done twice.
    pub not_linearizable: u64,
    /// Histories on which the checker reached a bound.
    pub undecided: u64,
    /// Acknowledged writes that a later read of everything did not find.
    pub lost_writes: u64,
    /// Timeline reads that found a value that was never written, or an older one than the same
    /// caller had seen before.
    pub wrong_timeline_reads: u64,
    /// What was wrong, in words, with the system and the run.
    pub findings: Vec<String>,
}

impl Report {
    /// Returns what could not be run, and why.
    pub fn errors(&self) -> Vec<String> {
        let faults = self
            .faults
            .iter()
            .flat_map(|fault| fault.systems.iter().map(|it| (&fault.name, &it.system, &it.error)));
        let points = self
            .experiments
            .iter()
            .flat_map(|of| of.points.iter().map(|it| (&of.name, &it.system, &it.error)));
        let path = "path of a write".to_owned();
        let paths = self.paths.iter().map(|it| (&path, &it.system, &it.error));
        let failed = faults.chain(points).chain(paths).filter_map(|(run, system, error)| {
            error.as_ref().map(|error| format!("{system}, {run}: {error}"))
        });
        failed.collect()
    }
}

impl Checks {
    /// Returns true if something was wrong.
    pub const fn has_failed(&self) -> bool {
        self.not_linearizable + self.lost_writes + self.wrong_timeline_reads > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The documentation has a row for each field, in the order of this file.
    #[test]
    fn every_field_is_documented() {
        let documented: Vec<&str> = include_str!("../../../docs/report-schema.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .collect();
        let fields: Vec<&str> = include_str!("report.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("    pub ")?.split_once(": "))
            .map(|(name, _)| name)
            .filter(|name| !name.contains('('))
            .collect();
        assert_eq!(documented, fields);
    }

    #[test]
    fn what_could_not_be_run_is_listed_with_its_reason() {
        let failed = |system: &str, error: Option<&str>| Suffered {
            system: system.to_owned(),
            error: error.map(str::to_owned),
            ..Suffered::default()
        };
        let fault = FaultReport {
            name: "two-lost".to_owned(),
            systems: vec![failed("raft", None), failed("pacifica", Some("no replica leads"))],
            ..FaultReport::default()
        };
        let report = Report { faults: vec![fault], ..Report::default() };
        assert_eq!(report.errors(), ["pacifica, two-lost: no replica leads"]);
        assert!(Report::default().errors().is_empty());
    }
}
