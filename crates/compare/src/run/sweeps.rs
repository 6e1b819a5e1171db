//! Varies one setting of the nodes and measures what it changes: the experiments of the papers.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep, sleep_until};
use trireme_client::ClientOptions;
use trireme_testbed::Cluster;
use trireme_types::{NodeId, Protocol};

use super::{Contender, Run, Steps};
use crate::load::Load;
use crate::report::{Role, SweepPoint, SweepReport};
use crate::suite::{Sweep, WORKLOADS};

/// How many keys are written meanwhile.
const KEYS: u64 = 200;

/// The bytes of a value, as in the paper's experiment.
const VALUE_BYTES: usize = 4096;

/// How many callers write.
const CALLERS: u64 = 4;

/// How long a new leader may take until it serves.
const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a follower is asked what it knows to be committed.
const INTERVAL: Duration = Duration::from_millis(20);

/// Returns about how long one value takes.
pub(super) fn value_s(value: Duration) -> f64 {
    4.0 + value.as_secs_f64() * 1.5
}

/// Kills a leader for each value of a setting, and measures how long the next one takes until it
/// serves.
pub(super) async fn run(
    run: &Run,
    contenders: &[Contender],
    sweep: Sweep,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    let is_taking_part =
        |it: &&Contender| it.protocol == Protocol::Spinnaker && it.system.role == Role::Protocol;
    let Some(contender) = contenders.iter().find(is_taking_part) else { return Ok(()) };
    let mut report = SweepReport {
        name: sweep.name.to_owned(),
        description: sweep.description.to_owned(),
        source: sweep.source.to_owned(),
        setting: sweep.setting.to_owned(),
        paper: sweep.paper.to_vec(),
        points: Vec::new(),
    };
    for value in run.options.suite.sweep_values() {
        steps.begin(format!("{}: {value:?}", sweep.name), value_s(*value));
        let measured = takeover(run, contender, sweep, *value).await;
        let (takeover_ms, error) = match measured {
            Ok(takeover) => (takeover.as_secs_f64() * 1e3, None),
            Err(error) => (0.0, Some(format!("{error:#}"))),
        };
        let system = contender.system.name.clone();
        report.points.push(SweepPoint { system, value_s: value.as_secs_f64(), takeover_ms, error });
    }
    run.report.lock().sweeps.push(report);
    Ok(())
}

/// Kills the leader right before it would advertise its commit point again, when there is most that
/// its followers do not know to be committed. Returns how long the next leader's takeover took, as
/// it measured that itself: without the time in which the death was noticed.
async fn takeover(
    run: &Run,
    contender: &Contender,
    sweep: Sweep,
    value: Duration,
) -> anyhow::Result<Duration> {
    let value_ms = format!("{}ms", value.as_millis());
    let mut cluster = run.start_with(contender, &[sweep.option, &value_ms]).await?;
    let client = cluster.client(ClientOptions::default()).await?;
    let epoch = std::time::Instant::now();
    let mut workload = WORKLOADS[0];
    workload.callers = CALLERS;
    let (tag, seed) = (sweep.name.to_owned(), run.options.seed);
    let load = Load {
        client,
        workload,
        keys: KEYS,
        value_bytes: VALUE_BYTES,
        seed,
        tag,
        epoch,
        handicap_percent: 0,
    };
    let filled = load.fill().await?;
    let statuses = cluster.statuses().await?;
    let (leader, leading) = statuses.leader().context("no replica leads")?;
    let epoch = leading.epoch;
    let follower = *statuses.followers().first().context("there is no follower")?;
    let stop = tokio_util::sync::CancellationToken::new();
    let driving = load.run_until_stopped(stop.clone());
    let killing = async {
        // However it ends, the callers end with it.
        let _stop = stop.drop_guard();
        let advertised = advertised(&cluster, follower, value).await?;
        sleep_until(advertised + value.mul_f64(0.9)).await;
        cluster.kill(leader).await?;
        taken_over(&cluster, epoch).await
    };
    let (done, takeover) = tokio::join!(driving, killing);
    let (done, takeover) = (done?, takeover?);
    let last = load.read_all().await?;
    let operations = [filled.operations, done.operations].concat();
    let what = format!("{}, {} {value:?}", contender.system.name, sweep.name);
    run.judge(what, operations, last.operations).await?;
    Ok(takeover)
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
