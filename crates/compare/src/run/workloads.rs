//! Drives the workloads: every round drives every system, in clusters that are as old as the round,
//! before the next round begins. What a cluster happens to be like, such as which of its nodes leads,
//! differs from start to start; so it is in the intervals over the rounds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use trireme_client::ClientOptions;
use trireme_testbed::{Cluster, EtcdCluster, processor_time};
use trireme_types::{Consistency, NodeId};

use super::{Contender, Run, START_S, Steps};
use crate::etcd::EtcdStore;
use crate::keys::Keys;
use crate::load::{Load, Recorded, nanoseconds};
use crate::report::{Cost, Idle, Measured, Role, System, WorkloadReport};
use crate::statistics::{interval, ratio, shows_difference};
use crate::store::Store;
use crate::suite::{Action, Setting, Sizes, Workload, writes_by};

/// The digits that a latency keeps.
const LATENCY_DIGITS: u8 = 3;

/// At how many points a distribution of latencies is drawn.
const CDF_POINTS: u32 = 60;

/// How long a system is left alone before a round, for what the round before has left it to do.
const PAUSE: Duration = Duration::from_millis(100);

/// A cluster that is driven, with everything that was done to it.
struct Driven {
    system: System,
    cluster: Processes,
    store: Store,
    keys: Keys,
    epoch: Instant,
    operations: Vec<Recorded>,
    handicap_percent: u32,
}

/// What is driven, by what it is made of.
enum Processes {
    Trireme(Cluster),
    Etcd(EtcdCluster),
}

/// What all systems that take part did under one workload so far.
struct Table {
    /// Which of the workloads it is.
    index: usize,
    workload: Workload,
    /// How many keys there were when the last round began.
    keys: u64,
    /// The systems by their names, in the order in which they take turns.
    systems: Vec<(String, Rounds)>,
}

/// What a system did under one workload so far.
struct Rounds {
    throughput: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    all: Histogram<u64>,
    failed: u64,
    unknown: u64,
    costs: Usage,
    /// The processor time of the node that used most, in each round.
    busiest: Duration,
    costed: u64,
}

/// What all nodes of a cluster have used.
#[derive(Clone, Debug, Default)]
struct Usage {
    processor: BTreeMap<NodeId, Duration>,
    syncs: u64,
    log_bytes: u64,
    entries: u64,
    messages: u64,
    network_bytes: u64,
    heartbeats: u64,
}

/// Returns about how long a round of one system takes.
pub(super) fn round_s(sizes: &Sizes) -> f64 {
    (PAUSE + sizes.warm_up + sizes.measured).as_secs_f64()
}

/// Drives all workloads at all systems: those of each setting at clusters of their own.
pub(super) async fn run(
    run: &Run,
    contenders: &[Contender],
    workloads: &[Workload],
    sizes: &Sizes,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    for setting in settings(workloads) {
        // The control is driven in the first workload of all: it shows what differs by chance.
        let has_control = workloads.first().is_some_and(|first| first.setting == setting);
        let contenders = contenders.iter().filter(|it| match it.system.role {
            Role::Control => has_control,
            Role::Reference => setting == Setting::PLAIN,
            Role::Protocol | Role::None => true,
        });
        let contenders: Vec<_> = contenders.collect();
        let mut tables: Vec<_> = (0..)
            .zip(workloads)
            .filter(|(_, it)| it.setting == setting)
            .map(|(index, workload)| Table::new(index, *workload, &contenders))
            .collect();
        let before = run.report.lock().workloads.len();
        for round in 0..sizes.rounds {
            let mut driven = Vec::new();
            for contender in &contenders {
                steps.begin(format!("starting {}", contender.system.name), START_S);
                driven.push(start(run, contender, setting, sizes).await?);
            }
            if has_control && round == 0 {
                for driven in &driven {
                    steps.begin(format!("{}, idle", driven.system.name), sizes.idle.as_secs_f64());
                    let idle = idle(driven, sizes.idle).await?;
                    run.report.lock().idle.push(idle);
                }
            }
            for table in &mut tables {
                table.drive_all(run, &mut driven, round, sizes, steps).await?;
            }
            // The rounds so far are what an interrupted run keeps.
            let reports = tables.iter().map(|table| table.report(run, sizes)).collect();
            run.replace_workloads(before, reports);
            for driven in driven {
                judge(run, driven, (setting, round), sizes, steps).await?;
            }
        }
    }
    Ok(())
}

/// Returns the settings that workloads have, in the order in which they come first.
pub(super) fn settings(workloads: &[Workload]) -> Vec<Setting> {
    let mut settings = Vec::new();
    for workload in workloads {
        if !settings.contains(&workload.setting) {
            settings.push(workload.setting);
        }
    }
    settings
}

impl Table {
    /// Returns the table of a workload, yet without a round.
    fn new(index: usize, workload: Workload, contenders: &[&Contender]) -> Self {
        let takes_part = |it: &&&Contender| takes_part_in(it.system.role, index, &workload);
        let taking_part = contenders.iter().filter(takes_part);
        let systems = taking_part.map(|it| (it.system.name.clone(), Rounds::new())).collect();
        Self { index, workload, keys: 0, systems }
    }

    /// Drives a round at all systems that take part.
    async fn drive_all(
        &mut self,
        run: &Run,
        driven: &mut [Driven],
        round: usize,
        sizes: &Sizes,
        steps: &mut Steps,
    ) -> anyhow::Result<()> {
        let workload = self.workload;
        self.keys = driven.iter().map(|it| it.keys.count()).max().unwrap_or_default();
        for turn in 0..self.systems.len() {
            // Each round begins with another system, so that none always comes first.
            let at = (turn + round) % self.systems.len();
            let (name, rounds) = &mut self.systems[at];
            steps.begin(format!("{}: {name}, round {}", workload.name, round + 1), round_s(sizes));
            let tag = format!("{}-{round}", self.index);
            let seed = run.options.seed ^ ((self.index as u64) << 32 | round as u64);
            let driven = driven.iter_mut().find(|it| it.system.name == *name);
            let driven = driven.with_context(|| format!("{name} was not started"))?;
            drive(driven, workload, sizes, (seed, tag), rounds).await?;
        }
        Ok(())
    }

    /// Returns what the rounds so far have measured.
    fn report(&self, run: &Run, sizes: &Sizes) -> WorkloadReport {
        let workload = &self.workload;
        let measured = self.systems.iter().map(|(name, rounds)| rounds.measured(name.clone()));
        let mut report = WorkloadReport {
            name: workload.name.to_owned(),
            description: workload.description.to_owned(),
            callers: workload.callers,
            rate: workload.rate,
            value_bytes: workload.value_bytes.unwrap_or(sizes.value_bytes),
            keys: self.keys,
            ranges: workload.setting.ranges,
            durability: run.durability(workload.setting).name().to_owned(),
            systems: measured.collect(),
            finding: String::new(),
        };
        report.finding = finding(run, &report);
        report
    }
}

/// Returns true if a system of a role is driven with a workload, by the workload's index. The control
/// is driven in the first workload of all alone. Another store promises nothing of timeline reads.
fn takes_part_in(role: Role, index: usize, workload: &Workload) -> bool {
    let is_timeline =
        |(action, _): &(Action, u32)| matches!(action, Action::Get(Consistency::Timeline));
    match role {
        Role::Control => index == 0,
        Role::Reference => !workload.mix.iter().any(is_timeline),
        Role::Protocol | Role::None => true,
    }
}

/// Reads every key, stops the cluster, and judges all that was done to it.
async fn judge(
    run: &Run,
    driven: Driven,
    (setting, round): (Setting, usize),
    sizes: &Sizes,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    let name = driven.system.name.clone();
    steps.begin(format!("judging what {name} answered"), START_S);
    let load = driven.load(writes_by("reading", 1), sizes, (0, String::new()));
    let last = load.read_all().await?;
    let Driven { operations, cluster, .. } = driven;
    drop(cluster);
    let driven = match (setting.ranges, setting.in_memory) {
        (1, false) => "workloads".to_owned(),
        (1, true) => "workloads in memory".to_owned(),
        (ranges, _) => format!("workloads over {ranges} ranges"),
    };
    let what = format!("{name}, {driven}, round {}", round + 1);
    run.judge(what, operations, last.operations).await
}

async fn start(
    run: &Run,
    contender: &Contender,
    setting: Setting,
    sizes: &Sizes,
) -> anyhow::Result<Driven> {
    let (cluster, store) = if contender.system.role == Role::Reference {
        let etcd = EtcdCluster::start(&run.folder()).await?;
        let store = EtcdStore::connect(etcd.endpoints()).await?;
        (Processes::Etcd(etcd), Store::Etcd(Box::new(store)))
    } else {
        let cluster = run.start_as(contender, setting, sizes.keys, &[]).await?;
        let client = cluster.client(ClientOptions::default()).await?;
        (Processes::Trireme(cluster), Store::Trireme(client))
    };
    let handicap = run.options.handicaps.iter().find(|it| it.system == contender.system.name);
    let mut driven = Driven {
        system: contender.system.clone(),
        cluster,
        store,
        keys: Keys::new(sizes.keys),
        epoch: Instant::now(),
        operations: Vec::new(),
        handicap_percent: handicap.map_or(0, |it| it.percent),
    };
    let load = driven.load(writes_by("filling", 1), sizes, (0, "f".to_owned()));
    driven.operations.extend(load.fill().await?.operations);
    Ok(driven)
}

async fn drive(
    driven: &mut Driven,
    workload: Workload,
    sizes: &Sizes,
    choices: (u64, String),
    rounds: &mut Rounds,
) -> anyhow::Result<()> {
    tokio::time::sleep(PAUSE).await;
    let load = driven.load(workload, sizes, choices);
    let start = Instant::now() + sizes.warm_up;
    let end = start + sizes.measured;
    let driving = load.run_until(end);
    let before = async {
        tokio::time::sleep_until(start.into()).await;
        usage(&driven.cluster).await
    };
    let (done, before) = tokio::join!(driving, before);
    let (done, before, after) = (done?, before?, usage(&driven.cluster).await?);
    let from = nanoseconds(start - driven.epoch);
    let window = from..nanoseconds(end - driven.epoch);
    rounds.add(&done.operations, &window, sizes.measured, done.failed);
    // Operations that ended after the window used the nodes too, as did those that began before it.
    let costed = done.operations.iter().filter_map(Recorded::returned);
    rounds.costed += costed.filter(|returned| *returned >= from).count() as u64;
    let mut used = Usage::default();
    used.add(&before, &after);
    rounds.busiest += used.busiest();
    rounds.costs.add(&before, &after);
    driven.operations.extend(done.operations);
    Ok(())
}

/// Returns what a cluster uses while it is asked for nothing.
async fn idle(driven: &Driven, time: Duration) -> anyhow::Result<Idle> {
    let (before, begun) = (usage(&driven.cluster).await?, Instant::now());
    tokio::time::sleep(time).await;
    let (after, seconds) = (usage(&driven.cluster).await?, begun.elapsed().as_secs_f64());
    let mut used = Usage::default();
    used.add(&before, &after);
    Ok(Idle {
        system: driven.system.name.clone(),
        messages_per_s: used.messages as f64 / seconds,
        heartbeats_per_s: used.heartbeats as f64 / seconds,
        forced_writes_per_s: used.syncs as f64 / seconds,
        processor_part: used.processor().as_secs_f64() / seconds,
    })
}

/// Asks what all nodes have used so far.
async fn usage(cluster: &Processes) -> anyhow::Result<Usage> {
    let mut usage = Usage::default();
    let cluster = match cluster {
        Processes::Trireme(cluster) => cluster,
        Processes::Etcd(etcd) => {
            for (member, pid) in (1..).zip(etcd.processes()) {
                usage.processor.insert(NodeId(member), processor_time(pid)?);
            }
            return Ok(usage);
        }
    };
    for (node, pid) in cluster.processes() {
        let used =
            processor_time(pid).with_context(|| format!("{node} has ended{}", cluster.said()));
        usage.processor.insert(node, used?);
    }
    for status in cluster.statuses().await?.nodes() {
        let log = status.log.unwrap_or_default();
        usage.syncs += log.syncs;
        usage.log_bytes += log.written_bytes;
        usage.entries += log.entries;
        for peer in &status.peers {
            let (data, heartbeat) =
                (peer.data.unwrap_or_default(), peer.heartbeat.unwrap_or_default());
            usage.messages += data.messages;
            usage.network_bytes += data.bytes;
            usage.heartbeats += heartbeat.messages;
        }
    }
    Ok(usage)
}

/// Returns what can be said of the protocols' throughput: only differences that chance does not
/// explain.
fn finding(run: &Run, report: &WorkloadReport) -> String {
    if report.rate.is_some() {
        // All did as many as were due.
        return String::new();
    }
    let is_protocol = |name: &str| run.options.protocols.iter().any(|it| it.name() == name);
    let mut systems: Vec<_> = report.systems.iter().filter(|it| is_protocol(&it.system)).collect();
    systems.sort_by(|a, b| b.throughput.mean.total_cmp(&a.throughput.mean));
    let [first, others @ ..] = systems.as_slice() else { return String::new() };
    let shown: Vec<String> = others
        .iter()
        .filter_map(|other| {
            let ratio = ratio(&first.rounds, &other.rounds).filter(shows_difference)?;
            let (low, high) = (ratio.low?, ratio.high?);
            let (name, mean) = (&other.system, ratio.mean);
            Some(format!("{mean:.2} times as many as {name} (95 %: {low:.2} to {high:.2})"))
        })
        .collect();
    match (others.len(), shown.as_slice()) {
        (0, _) => String::new(),
        (_, []) => "No difference in throughput was shown.".to_owned(),
        (_, shown) => {
            format!("Operations per second: {} did {}.", first.system, shown.join(" and "))
        }
    }
}

impl Driven {
    fn load(&self, workload: Workload, sizes: &Sizes, choices: (u64, String)) -> Load {
        let (seed, tag) = choices;
        let (store, keys) = (self.store.clone(), self.keys.clone());
        let (value_bytes, epoch) = (sizes.value_bytes, self.epoch);
        let handicap_percent = self.handicap_percent;
        Load { store, workload, keys, value_bytes, seed, tag, epoch, handicap_percent }
    }
}

impl Usage {
    /// Returns the processor time of all nodes.
    fn processor(&self) -> Duration {
        self.processor.values().sum()
    }

    /// Returns the processor time of the node that used most.
    fn busiest(&self) -> Duration {
        self.processor.values().max().copied().unwrap_or_default()
    }

    /// Adds what was used between two moments.
    fn add(&mut self, before: &Self, after: &Self) {
        for (node, after) in &after.processor {
            let before = before.processor.get(node).copied().unwrap_or_default();
            *self.processor.entry(*node).or_default() += after.saturating_sub(before);
        }
        self.syncs += after.syncs.saturating_sub(before.syncs);
        self.log_bytes += after.log_bytes.saturating_sub(before.log_bytes);
        self.entries += after.entries.saturating_sub(before.entries);
        self.messages += after.messages.saturating_sub(before.messages);
        self.network_bytes += after.network_bytes.saturating_sub(before.network_bytes);
        self.heartbeats += after.heartbeats.saturating_sub(before.heartbeats);
    }
}

impl Rounds {
    fn new() -> Self {
        Self {
            throughput: Vec::new(),
            p50: Vec::new(),
            p99: Vec::new(),
            all: Histogram::new(LATENCY_DIGITS).expect("3 digits are supported"),
            failed: 0,
            unknown: 0,
            costs: Usage::default(),
            busiest: Duration::ZERO,
            costed: 0,
        }
    }

    /// Adds a round: what ended within the window counts.
    fn add(
        &mut self,
        operations: &[Recorded],
        window: &std::ops::Range<u64>,
        measured: Duration,
        failed: u64,
    ) {
        let mut latencies: Histogram<u64> =
            Histogram::new(LATENCY_DIGITS).expect("3 digits are supported");
        for operation in operations {
            match operation.returned() {
                Some(returned) if window.contains(&returned) => {
                    let microseconds = (returned - operation.due) / 1000;
                    latencies.record(microseconds).expect("the histogram grows as needed");
                }
                Some(_) => {}
                None => self.unknown += u64::from(operation.is_write()),
            }
        }
        self.failed += failed;
        self.throughput.push(latencies.len() as f64 / measured.as_secs_f64());
        if !latencies.is_empty() {
            self.p50.push(latencies.value_at_quantile(0.5) as f64);
            self.p99.push(latencies.value_at_quantile(0.99) as f64);
        }
        self.all.add(&latencies).expect("the histogram grows as needed");
    }

    fn measured(&self, system: String) -> Measured {
        let each = |sum: f64| if self.costed == 0 { 0.0 } else { sum / self.costed as f64 };
        let points =
            (0..=CDF_POINTS).map(|at| 1.0 - 0.001_f64.powf(f64::from(at) / f64::from(CDF_POINTS)));
        let cdf = points.map(|part| (self.all.value_at_quantile(part) as f64, part)).collect();
        Measured {
            system,
            rounds: self.throughput.clone(),
            throughput: interval(&self.throughput).unwrap_or_default(),
            p50_rounds_us: self.p50.clone(),
            p50_us: interval(&self.p50).unwrap_or_default(),
            p99_rounds_us: self.p99.clone(),
            p99_us: interval(&self.p99).unwrap_or_default(),
            p999_us: self.all.value_at_quantile(0.999) as f64,
            operations: self.all.len(),
            failed: self.failed,
            unknown: self.unknown,
            cdf,
            cost: Cost {
                processor_us: each(self.costs.processor().as_secs_f64() * 1e6),
                busiest_node_us: each(self.busiest.as_secs_f64() * 1e6),
                forced_writes: each(self.costs.syncs as f64),
                log_bytes: each(self.costs.log_bytes as f64),
                log_entries: each(self.costs.entries as f64),
                messages: each(self.costs.messages as f64),
                network_bytes: each(self.costs.network_bytes as f64),
                heartbeats: each(self.costs.heartbeats as f64),
            },
        }
    }
}
