//! Kills a leader for each value of a setting: the experiments of the papers on what a takeover takes.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use trireme_client::ClientOptions;
use trireme_testbed::Cluster;
use trireme_types::{NodeId, Protocol};

use super::experiments::paper;
use super::faults::{ATTEMPT_TIMEOUT, DEADLINE};
use super::{Contender, Run, Steps};
use crate::keys::Keys;
use crate::load::{Done, Load, longest_gap, nanoseconds};
use crate::report::{ExperimentReport, Point, Role};
use crate::store::Store;
use crate::suite::{Setting, Sweep, writes_by};

/// How many keys are written meanwhile.
const KEYS: u64 = 200;

/// How many callers write.
const CALLERS: u64 = 4;

/// The bytes of a value while the commit period is varied, as in the paper's experiment.
const VALUE_BYTES: usize = 4096;

/// The bytes of a value that makes the log longer.
const LONG_VALUE_BYTES: usize = 64 * 1024;

/// A mebibyte.
const MIB: f64 = 1024.0 * 1024.0;

/// The bytes of memtables at which they are flushed while the log's length is varied: never.
const MEMTABLE_BYTES: &str = "4294967296";

/// How long a new leader may take until it serves.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long writes go on before a leader with a long log is killed, and after it.
const AROUND: Duration = Duration::from_secs(1);

/// See [`AROUND`].
const AFTER: Duration = Duration::from_secs(6);

/// How often a follower is asked what it knows to be committed.
const INTERVAL: Duration = Duration::from_millis(20);

/// Returns about how long a sweep takes.
pub(super) fn run_s(sweep: Sweep, values: &[f64]) -> f64 {
    let each = |value: &f64| match sweep {
        Sweep::CommitPeriod => 4.0 + value * 1.5,
        // Of three protocols; some 20 MiB are written in a second.
        Sweep::LogSize => 3.0 * (12.0 + value / 20.0),
    };
    values.iter().map(each).sum()
}

/// Kills a leader for each value of a setting, and measures how long the next one takes until it
/// serves.
pub(super) async fn run(
    run: &Run,
    contenders: &[Contender],
    sweep: Sweep,
    values: &[f64],
    steps: &mut Steps,
) -> anyhow::Result<()> {
    let is_taking_part = |it: &&Contender| {
        let has_setting = sweep != Sweep::CommitPeriod || it.protocol == Protocol::Spinnaker;
        has_setting && it.system.role == Role::Protocol
    };
    let mut report = ExperimentReport {
        name: sweep.name().to_owned(),
        description: sweep.description().to_owned(),
        source: sweep.source().to_owned(),
        setting: sweep.setting().to_owned(),
        quantity: sweep.quantity().to_owned(),
        points: Vec::new(),
        paper: paper(sweep.paper()),
    };
    for contender in contenders.iter().filter(is_taking_part) {
        for value in values {
            let name = &contender.system.name;
            steps.begin(format!("{}: {name}, {value}", sweep.name()), run_s(sweep, &[*value]));
            let measured = match sweep {
                Sweep::CommitPeriod => {
                    takeover(run, contender, Duration::from_secs_f64(*value)).await
                }
                Sweep::LogSize => outage(run, contender, *value).await,
            };
            let (y, error) = match measured {
                Ok(took) => (took.as_secs_f64() * 1e3, None),
                Err(error) => (0.0, Some(format!("{error:#}"))),
            };
            let (system, series) = (name.clone(), String::new());
            report.points.push(Point { system, series, x: *value, y, error });
        }
    }
    if !report.points.is_empty() {
        run.report.lock().experiments.push(report);
    }
    Ok(())
}

/// Kills the leader right before it would advertise its commit point again, when there is most that
/// its followers do not know to be committed. Returns how long the next leader's takeover took, as
/// it measured that itself: without the time in which the death was noticed.
async fn takeover(
    run: &Run,
    contender: &Contender,
    commit_period: Duration,
) -> anyhow::Result<Duration> {
    let milliseconds = format!("{}ms", commit_period.as_millis());
    let options = ["--commit-period", &milliseconds];
    let mut cluster = run.start_as(contender, Setting::PLAIN, KEYS, &options).await?;
    let load = load(run, &cluster, ClientOptions::default(), VALUE_BYTES, "period").await?;
    let filled = load.fill().await?;
    let statuses = cluster.statuses().await?;
    let (leader, leading) = statuses.leader().context("no replica leads")?;
    let epoch = leading.epoch;
    let follower = *statuses.followers().first().context("there is no follower")?;
    let stop = CancellationToken::new();
    let driving = load.run_until_stopped(stop.clone());
    let killing = async {
        // However it ends, the callers end with it.
        let _stop = stop.drop_guard();
        let advertised = advertised(&cluster, follower, commit_period).await?;
        sleep_until(advertised + commit_period.mul_f64(0.9)).await;
        cluster.kill(leader).await?;
        taken_over(&cluster, epoch).await
    };
    let (done, takeover) = tokio::join!(driving, killing);
    let (done, takeover) = (done?, takeover?);
    let what = format!("{}, commit period of {commit_period:?}", contender.system.name);
    judge(run, what, &load, [filled, done]).await?;
    Ok(takeover)
}

/// Fills the log with so many MiB that no table file has, kills the leader, and returns the longest
/// time without an acknowledged write.
async fn outage(run: &Run, contender: &Contender, log_mib: f64) -> anyhow::Result<Duration> {
    let options = ["--memtable-bytes", MEMTABLE_BYTES];
    let mut cluster = run.start_as(contender, Setting::PLAIN, KEYS, &options).await?;
    let options = ClientOptions {
        deadline: DEADLINE,
        attempt_timeout: ATTEMPT_TIMEOUT,
        ..ClientOptions::default()
    };
    let load = load(run, &cluster, options, LONG_VALUE_BYTES, "log").await?;
    let mut done = load.fill().await?;
    for round in 1.. {
        if written(&cluster).await? >= log_mib * MIB {
            break;
        }
        let again = Load { tag: format!("log{round}"), ..load.clone() };
        done.add(again.fill().await?);
    }
    cluster.wait_until_whole(TAKEOVER_TIMEOUT).await?;
    let (leader, _) = cluster.statuses().await?.leader().context("no replica leads")?;
    let begun = std::time::Instant::now();
    let end = begun + AROUND + AFTER;
    let short = Load { value_bytes: VALUE_BYTES, tag: "short".to_owned(), ..load.clone() };
    let killing = async {
        sleep(AROUND).await;
        let killed = cluster.kill(leader).await?;
        Ok::<_, anyhow::Error>(killed.at)
    };
    let (driven, killed) = tokio::join!(short.run_until(end), killing);
    let (driven, killed) = (driven?, killed?);
    let writes = driven.operations.iter().filter(|operation| operation.is_write());
    let mut acknowledged: Vec<u64> = writes.filter_map(crate::load::Recorded::returned).collect();
    acknowledged.sort_unstable();
    let at = |moment: std::time::Instant| nanoseconds(moment - load.epoch);
    let gap = longest_gap(&acknowledged, at(killed), at(end));
    anyhow::ensure!(
        acknowledged.last().is_some_and(|last| *last > at(killed)),
        "no write was acknowledged after the leader's death"
    );
    let what = format!("{}, log of {log_mib} MiB", contender.system.name);
    judge(run, what, &load, [done, driven]).await?;
    Ok(Duration::from_nanos(gap))
}

async fn load(
    run: &Run,
    cluster: &Cluster,
    options: ClientOptions,
    value_bytes: usize,
    tag: &str,
) -> anyhow::Result<Load> {
    Ok(Load {
        store: Store::Trireme(cluster.client(options).await?),
        workload: writes_by("write", CALLERS),
        keys: Keys::new(KEYS),
        value_bytes,
        seed: run.options.seed,
        tag: tag.to_owned(),
        epoch: std::time::Instant::now(),
        handicap_percent: 0,
    })
}

/// Reads every key once more and judges all that was done.
async fn judge(run: &Run, what: String, load: &Load, done: [Done; 2]) -> anyhow::Result<()> {
    let last = load.read_all().await?;
    let operations = done.map(|done| done.operations).concat();
    run.judge(what, operations, last.operations).await
}

/// Returns how many bytes the leader's node has written to its log.
async fn written(cluster: &Cluster) -> anyhow::Result<f64> {
    let statuses = cluster.statuses().await?;
    let (leader, _) = statuses.leader().context("no replica leads")?;
    let log = statuses.node(leader).and_then(|status| status.log);
    Ok(log.context("the leader says nothing of its log")?.written_bytes as f64)
}

/// Waits until the leader of a later epoch serves, and returns how long its takeover took.
async fn taken_over(cluster: &Cluster, epoch: u64) -> anyhow::Result<Duration> {
    let until = Instant::now() + TAKEOVER_TIMEOUT;
    while Instant::now() < until {
        // A leader that does not serve yet does not know how long it will have taken.
        if let Some(takeover) = cluster.takeover_after(epoch, TAKEOVER_TIMEOUT).await? {
            return Ok(takeover);
        }
        sleep(INTERVAL).await;
    }
    anyhow::bail!("no other leader serves")
}

/// Waits until a follower learns of a newer commit point, and returns when.
async fn advertised(
    cluster: &Cluster,
    follower: NodeId,
    period: Duration,
) -> anyhow::Result<Instant> {
    let committed = async || {
        let statuses = cluster.statuses().await?;
        let status = statuses.nodes().iter().find(|status| status.node == follower.0);
        let replica = status.and_then(|status| status.replicas.first());
        Ok::<_, anyhow::Error>(replica.and_then(|replica| replica.committed))
    };
    let (first, until) = (committed().await?, Instant::now() + period * 2 + TAKEOVER_TIMEOUT);
    while Instant::now() < until {
        if committed().await? != first {
            return Ok(Instant::now());
        }
        sleep(INTERVAL).await;
    }
    anyhow::bail!("no follower learns what is committed")
}
