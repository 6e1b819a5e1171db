//! Starts clusters, takes turns among them, and fills the report.

mod experiments;
mod faults;
mod path;
mod sweeps;
mod workloads;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use parking_lot::Mutex;
use trireme_testbed::{ALLOW_FAULTS, Cluster, ClusterArgs};
use trireme_types::{Durability, Engine, Protocol, Timing};

use crate::claims;
use crate::report::{Checks, Handicap, Machine, Report, Role, SCHEMA, System, WorkloadReport};
use crate::suite::{Fault, Setting, Sizes, Suite, Sweep, Timeouts, Workload};
use crate::{load, machine, predictions};

/// What is compared, how, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `trireme` program.
    pub program: PathBuf,
    /// The protocols, in the order of the report.
    pub protocols: Vec<Protocol>,
    /// How long everything takes.
    pub suite: Suite,
    /// The workloads; empty for those of the suite.
    pub workloads: Vec<Workload>,
    /// The faults; empty for those of the suite.
    pub faults: Vec<Fault>,
    /// Whether no workload, or no fault, is wanted rather than the suite's.
    pub without: Without,
    /// How long a silent leader is borne.
    pub timeouts: Timeouts,
    /// Systems whose callers are slowed down in the workloads.
    pub handicaps: Vec<Handicap>,
    /// Whether a cluster of etcd's is driven beside them.
    pub against_etcd: bool,
    /// Mistakes that nodes make on purpose once they have lost their disk, to see whether the report
    /// shows it; only in programs that are built for tests.
    pub mistakes: Vec<String>,
    /// What all choices are made from.
    pub seed: u64,
    /// The storage engine.
    pub engine: Engine,
    /// What an acknowledged write has survived.
    pub durability: Durability,
    /// Where the clusters' folders are made; `None` for the system's temporary folder.
    pub folder: Option<PathBuf>,
}

/// What of the suite is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Without {
    /// No workload is driven.
    pub workloads: bool,
    /// No fault is suffered.
    pub faults: bool,
}

/// A comparison that goes on. What it has found so far can be fetched at any time.
#[derive(Clone)]
pub struct Run {
    options: Arc<Options>,
    report: Arc<Mutex<Report>>,
    progress: Arc<dyn Fn(Progress) + Send + Sync>,
}

/// How far a comparison has come.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// What is being done.
    pub what: String,
    /// Which part of the whole is done, by the time that it takes.
    pub part: f64,
    /// About how many seconds are left.
    pub left_s: f64,
}

/// One of the systems that are compared, with what its clusters are started with.
#[derive(Clone, Debug)]
struct Contender {
    system: System,
    /// What its nodes replicate by.
    protocol: Protocol,
    /// Its periods under the faults.
    timing: Timing,
}

/// While a fault lasts, two replicas in turn can be found dead and be replaced, in so many graces.
const GRACES_OF_A_FAULT: u32 = 4;

impl Run {
    /// Returns a comparison that is yet to run. `progress` is called whenever a step begins.
    pub fn new(options: Options, progress: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let report = Report {
            schema: SCHEMA,
            trireme: env!("CARGO_PKG_VERSION").to_owned(),
            suite: options.suite.name().to_owned(),
            seed: options.seed,
            began_s: began.as_secs(),
            machine: Machine::this(),
            handicaps: options.handicaps.clone(),
            ..Report::default()
        };
        let (options, report) = (Arc::new(options), Arc::new(Mutex::new(report)));
        Self { options, report, progress: Arc::new(progress) }
    }

    /// Returns what was found so far.
    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }

    /// Runs everything. Dropped, it stops its clusters and leaves the report as far as it came.
    pub async fn run(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        let contenders = self.contenders();
        let sizes = self.sizes(&contenders);
        let (workloads, faults) = (self.workloads(), self.faults());
        let mut steps = Steps::new(self, &contenders, &workloads, &faults);
        self.probe_disk()?;
        self.report.lock().systems = contenders.iter().map(|it| it.system.clone()).collect();
        if !workloads.is_empty() {
            workloads::run(self, &contenders, &workloads, &sizes, &mut steps).await?;
        }
        for fault in faults {
            faults::run(self, &contenders, fault, &sizes, &mut steps).await?;
        }
        if self.is_whole() {
            path::run(self, &contenders, &mut steps).await?;
        }
        for (sweep, values) in self.sweeps() {
            sweeps::run(self, &contenders, sweep, &values, &mut steps).await?;
        }
        let mut report = self.report.lock();
        let drawn = experiments::drawn_from(&report);
        report.experiments.extend(drawn);
        report.claims = claims::judge(&report);
        report.predictions = predictions::judge(&report);
        report.took_s = began.elapsed().as_secs_f64();
        report.is_complete = true;
        Ok(())
    }

    /// Returns how long the parts of the suite take.
    fn sizes(&self, contenders: &[Contender]) -> Sizes {
        let sizes = self.options.suite.sizes();
        let grace = contenders.iter().map(|it| it.timing.grace).max().unwrap_or_default();
        match self.options.timeouts {
            Timeouts::Same => sizes,
            Timeouts::Native => {
                Sizes { during: sizes.during.max(grace * GRACES_OF_A_FAULT), ..sizes }
            }
        }
    }

    fn workloads(&self) -> Vec<Workload> {
        match self.options.workloads.as_slice() {
            _ if self.options.without.workloads => Vec::new(),
            [] => self.options.suite.workloads(),
            chosen => chosen.to_vec(),
        }
    }

    fn faults(&self) -> Vec<Fault> {
        match self.options.faults.as_slice() {
            _ if self.options.without.faults => Vec::new(),
            [] => self.options.suite.faults(),
            chosen => chosen.to_vec(),
        }
    }

    /// Whether the whole suite is run, and not only what was named.
    fn is_whole(&self) -> bool {
        let Options { workloads, faults, without, .. } = &*self.options;
        workloads.is_empty() && faults.is_empty() && *without == Without::default()
    }

    /// Returns the suite's sweeps, unless something else was asked for.
    fn sweeps(&self) -> Vec<(Sweep, Vec<f64>)> {
        if self.is_whole() { self.options.suite.sweeps() } else { Vec::new() }
    }

    /// Returns what an acknowledged write has survived in a setting.
    fn durability(&self, setting: Setting) -> Durability {
        if setting.in_memory { Durability::Memory } else { self.options.durability }
    }

    /// Returns the protocols, one replica without any, and the first protocol once more: two clusters
    /// that do not differ show how much two figures differ by chance.
    fn contenders(&self) -> Vec<Contender> {
        let system = |name: &str, protocol: Protocol, nodes, description: &str, role| {
            let timing = self.options.timeouts.of(protocol);
            let under_faults =
                |period: Duration| (role == Role::Protocol).then_some(period.as_secs_f64() * 1e3);
            let system = System {
                name: name.into(),
                protocol: protocol.name().into(),
                nodes,
                description: description.into(),
                role,
                beacon_interval_ms: under_faults(timing.beacon_interval),
                grace_ms: under_faults(timing.grace),
            };
            Contender { system, protocol, timing }
        };
        let of = |protocol: Protocol| {
            system(protocol.name(), protocol, 3, description(protocol), Role::Protocol)
        };
        let mut contenders: Vec<_> = self.options.protocols.iter().copied().map(of).collect();
        let alone = "One replica, which waits for its own disk alone: what the machine can do \
                     without replication.";
        contenders.push(system("none", Protocol::Raft, 1, alone, Role::None));
        if let Some(first) = self.options.protocols.first() {
            let name = format!("{} again", first.name());
            let again = "The first protocol once more: where it differs from itself, so do the \
                         others by chance.";
            contenders.push(system(&name, *first, 3, again, Role::Control));
        }
        if self.options.against_etcd {
            let etcd = "Three members with etcd's defaults, through its own client, which asks them \
                        in turn. A majority forces each write.";
            contenders.push(system("etcd", Protocol::Raft, 3, etcd, Role::Reference));
        }
        contenders
    }

    /// Returns where the clusters' folders are made.
    fn folder(&self) -> PathBuf {
        self.options.folder.clone().unwrap_or_else(std::env::temp_dir)
    }

    fn probe_disk(&self) -> anyhow::Result<()> {
        let folder = tempfile::tempdir_in(self.folder()).context("making a folder")?;
        let times = machine::forced_writes(folder.path())?;
        let at = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100).max(1);
            times[rank - 1].as_secs_f64() * 1e6
        };
        let durability = &mut self.report.lock().durability;
        (durability.forced_write_p50_us, durability.forced_write_p99_us) = (at(50), at(99));
        Ok(())
    }

    /// Starts a cluster of a contender.
    async fn start(&self, contender: &Contender) -> anyhow::Result<Cluster> {
        self.start_as(contender, Setting::PLAIN, 0, &[]).await
    }

    /// Starts a cluster of a contender in a setting, for so many keys, with more options of `up` than
    /// others.
    async fn start_as(
        &self,
        contender: &Contender,
        setting: Setting,
        keys: u64,
        options: &[&str],
    ) -> anyhow::Result<Cluster> {
        let Options { program, engine, folder, .. } = &*self.options;
        let args = ClusterArgs {
            nodes: contender.system.nodes,
            engine: *engine,
            durability: self.durability(setting),
            borders: load::borders(keys, setting.ranges),
            folder: folder.clone(),
            ..ClusterArgs::of(program.clone())
        };
        let options = [&[ALLOW_FAULTS], options].concat();
        let cluster = Cluster::start(&args, contender.protocol, &options).await;
        let cluster = cluster.with_context(|| format!("starting {}", contender.system.name))?;
        if !setting.in_memory {
            let conditions = cluster.conditions().await?;
            let found = &mut self.report.lock().durability;
            found.setting = conditions.durability;
            found.engine = conditions.engine;
            found.is_in_memory = conditions.in_memory;
        }
        Ok(cluster)
    }

    /// Reports the workloads from the one of index `at` on anew.
    fn replace_workloads(&self, at: usize, workloads: Vec<WorkloadReport>) {
        let mut report = self.report.lock();
        report.workloads.truncate(at);
        report.workloads.extend(workloads);
    }

    /// Judges a history away from the runtime's threads, and keeps what was found.
    async fn judge(
        &self,
        what: String,
        operations: Vec<load::Recorded>,
        last: Vec<load::Recorded>,
    ) -> anyhow::Result<()> {
        let mut checks: Checks = self.report.lock().checks.clone();
        let judged = tokio::task::spawn_blocking(move || {
            crate::judge::judge(&what, &operations, &last, &mut checks);
            checks
        });
        self.report.lock().checks = judged.await.context("judging a history")?;
        Ok(())
    }
}

/// Returns what a protocol is, for a reader who knows none.
const fn description(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Spinnaker => {
            "A leader forces each write on a majority; a coordinator elects the leader. Strong reads \
             are answered by the leader alone, under a lease."
        }
        Protocol::Raft => {
            "A leader forces each write on a majority; the replicas elect it among themselves. \
             Strong reads ask a majority first."
        }
        Protocol::Pacifica => {
            "A primary forces each write on all replicas of the configuration; a replica that does \
             not answer is removed through a configuration manager. Strong reads are answered by the \
             primary alone, under leases."
        }
    }
}

/// The steps of a run, each with the seconds that it is expected to take.
struct Steps {
    progress: Arc<dyn Fn(Progress) + Send + Sync>,
    done: f64,
    all: f64,
}

/// About how long it takes to start a cluster, or to judge what was done to one, in seconds.
const START_S: f64 = 2.0;

impl Steps {
    fn new(run: &Run, contenders: &[Contender], workloads: &[Workload], faults: &[Fault]) -> Self {
        let sizes = run.sizes(contenders);
        let systems = |faulty: bool| {
            let taken = contenders.iter().filter(|it| !faulty || it.system.role == Role::Protocol);
            taken.count() as f64
        };
        let round = workloads::round_s(&sizes) * sizes.rounds as f64;
        let driven: f64 = workloads.len() as f64 * systems(false) * round;
        let settings = workloads::settings(workloads).len() as f64;
        let clusters = settings * systems(false) * sizes.rounds as f64;
        let starts = clusters * 2.0 * START_S + systems(false) * sizes.idle.as_secs_f64();
        let suffered = faults.len() as f64 * systems(true) * faults::run_s(&sizes);
        let sweeps = run.sweeps();
        let swept: f64 = sweeps.iter().map(|(sweep, values)| sweeps::run_s(*sweep, values)).sum();
        let followed = if run.is_whole() { systems(true) * path::RUN_S } else { 0.0 };
        Self {
            progress: Arc::clone(&run.progress),
            done: 0.0,
            all: (driven + starts + suffered + swept + followed).max(1.0),
        }
    }

    /// Says that a step of about so many seconds begins.
    fn begin(&mut self, what: String, seconds: f64) {
        let (part, left_s) = ((self.done / self.all).min(1.0), (self.all - self.done).max(0.0));
        (self.progress)(Progress { what, part, left_s });
        self.done += seconds;
    }
}
