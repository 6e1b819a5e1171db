//! Has clusters suffer faults while callers write and read, and draws what came of it over time.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use trireme_client::ClientOptions;
use trireme_testbed::{ALLOW_FAULTS, Cluster, Frozen, Lost, Statuses, Suffering};
use trireme_types::{NodeId, Timing};

use super::{Contender, Run, Steps};
use crate::keys::Keys;
use crate::load::{Done, Load, Recorded, longest_gap, nanoseconds};
use crate::report::{FaultReport, Role, Suffered};
use crate::store::Store;
use crate::suite::{self, FAULT_CALLERS, Fault, FaultKind, SLOW_BY, Setting, Sizes};

/// The time line is cut into pieces of this length.
const PIECE: Duration = Duration::from_millis(100);

/// How many pieces in a row must reach a part of the former throughput for it to count as reached.
const PIECES_REACHED: usize = 5;

/// How long a caller waits for one node before it asks again, and for an operation in all. Short,
/// so that what is measured is the cluster's outage and not the client's wait.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(200);

/// See [`ATTEMPT_TIMEOUT`].
pub(super) const DEADLINE: Duration = Duration::from_secs(1);

/// How many keys callers write and read meanwhile.
const KEYS: u64 = 200;

/// How long is waited for what depends on how long a silent leader is borne.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// How long a healed cluster may take until it serves and all its replicas follow.
    whole: Duration,
    /// How far apart two replicas are lost: long enough for a configuration to be changed.
    second_loss_after: Duration,
    /// How long two nodes may take to run again: one that has lost its disk waits for its
    /// predecessor's session to end.
    restart: Duration,
    /// How long two nodes have to elect a leader, if they do what they must not.
    chance: Duration,
}

impl Patience {
    /// Returns how long is waited with a grace: what is enough with one of a second, and more by as
    /// much as the grace is longer.
    fn of(grace: Duration) -> Self {
        let longer = grace.saturating_sub(Duration::from_secs(1));
        Self {
            whole: Duration::from_secs(40) + 4 * longer,
            second_loss_after: Duration::from_secs(2) + 2 * longer,
            restart: Duration::from_secs(30) + 2 * longer,
            chance: Duration::from_secs(3) + longer,
        }
    }
}

/// Returns about how long one system takes with one fault.
pub(super) fn run_s(sizes: &Sizes) -> f64 {
    (sizes.before + sizes.during + sizes.after).as_secs_f64() + 4.0
}

/// Has a cluster of each protocol suffer a fault.
pub(super) async fn run(
    run: &Run,
    contenders: &[Contender],
    fault: Fault,
    sizes: &Sizes,
    steps: &mut Steps,
) -> anyhow::Result<()> {
    let from = sizes.before.as_secs_f64();
    let mut report = FaultReport {
        name: fault.name.to_owned(),
        description: fault.description.to_owned(),
        from_s: from,
        to_s: from + sizes.during.as_secs_f64(),
        systems: Vec::new(),
    };
    for contender in contenders.iter().filter(|it| it.system.role == Role::Protocol) {
        let name = &contender.system.name;
        steps.begin(format!("{}: {name}", fault.name), run_s(sizes));
        let suffered = match suffer(run, contender, fault, sizes).await {
            Ok(suffered) => suffered,
            // A run that could not be carried out is shown as such, and the others go on.
            Err(error) => Suffered { error: Some(format!("{error:#}")), ..Suffered::default() },
        };
        report.systems.push(Suffered { system: name.clone(), ..suffered });
    }
    run.report.lock().faults.push(report);
    Ok(())
}

async fn suffer(
    run: &Run,
    contender: &Contender,
    fault: Fault,
    sizes: &Sizes,
) -> anyhow::Result<Suffered> {
    let Timing { beacon_interval, lease, grace, .. } = contender.timing;
    let periods = [beacon_interval, lease, grace].map(|it| format!("{}ms", it.as_millis()));
    let options =
        ["--beacon-interval", &periods[0], "--lease", &periods[1], "--grace", &periods[2]];
    let mut cluster = run.start_as(contender, Setting::PLAIN, 0, &options).await?;
    let patience = Patience::of(grace);
    let options = ClientOptions {
        deadline: DEADLINE,
        attempt_timeout: ATTEMPT_TIMEOUT,
        ..ClientOptions::default()
    };
    let store = Store::Trireme(cluster.client(options).await?);
    let workload = suite::half_reads_by(fault.name, FAULT_CALLERS);
    let (keys, value_bytes, seed) = (Keys::new(KEYS), sizes.value_bytes, run.options.seed);
    let (tag, epoch) = (fault.name.to_owned(), Instant::now());
    let load = Load { store, workload, keys, value_bytes, seed, tag, epoch, handicap_percent: 0 };
    let filled = load.fill().await?;
    cluster.wait_until_whole(patience.whole).await?;

    let start = Instant::now();
    let (begin, end) = (start + sizes.before, start + sizes.before + sizes.during);
    let stop = CancellationToken::new();
    let injecting = async {
        // However it ends, the callers end with it.
        let _stop = stop.clone().drop_guard();
        sleep_until(begin.into()).await;
        let mut victims = Victims::default();
        let mistakes = &run.options.mistakes;
        let begun = inflict(&mut cluster, fault.kind, patience, &mut victims, mistakes).await?;
        sleep_until(end.into()).await;
        heal(&mut cluster, fault.kind, victims).await?;
        sleep(sizes.after).await;
        Ok::<_, anyhow::Error>(begun)
    };
    let (done, injected) = tokio::join!(load.run_until_stopped(stop.clone()), injecting);
    let (done, begun) = (done?, injected.context("the fault could not be inflicted")?);
    // Also what never becomes whole again is judged.
    let is_whole = cluster.wait_until_whole(patience.whole).await;
    let last = load.read_all().await?;
    let suffered = measure(&done, (epoch, start, begun), sizes);
    drop(cluster);
    let operations = [filled.operations, done.operations].concat();
    run.judge(format!("{}, {}", contender.system.name, fault.name), operations, last.operations)
        .await?;
    is_whole.context("after the fault")?;
    if last.failed > 0 {
        let why = last.first_error.unwrap_or_default();
        anyhow::bail!("{} keys could not be read after the fault: {why}", last.failed);
    }
    Ok(suffered)
}

/// Whom a fault has hit, until it is healed.
#[derive(Default)]
struct Victims {
    killed: Vec<NodeId>,
    frozen: Option<Frozen>,
}

/// Has the cluster suffer, and returns when that began.
async fn inflict(
    cluster: &mut Cluster,
    kind: FaultKind,
    patience: Patience,
    victims: &mut Victims,
    mistakes: &[String],
) -> anyhow::Result<Instant> {
    let statuses = cluster.statuses().await?;
    let (leader, _) = statuses.leader().context("no replica leads")?;
    let follower = follower(&statuses)?;
    let begun = Instant::now();
    match kind {
        FaultKind::LeaderKill => kill(cluster, leader, victims).await?,
        FaultKind::FollowerKill => kill(cluster, follower, victims).await?,
        FaultKind::LeaderPause => victims.frozen = Some(cluster.freeze(leader)?),
        FaultKind::LeaderCut => {
            cluster.suffer(leader, Suffering::links(Lost::BothWays, false)).await?;
        }
        FaultKind::LeaderMute => {
            cluster.suffer(leader, Suffering::links(Lost::FromLeader, false)).await?;
        }
        FaultKind::SlowFollower => cluster.delay_all_from(follower, SLOW_BY).await?,
        FaultKind::PartialCut => cluster.cut_between(leader, follower).await?,
        FaultKind::SlowDisk => cluster.suffer(leader, Suffering::SlowDisk(SLOW_BY)).await?,
        FaultKind::StalledDisk => cluster.suffer(leader, Suffering::StalledDisk).await?,
        FaultKind::CoordinatorDown => cluster.cut_coordinator().await?,
        FaultKind::CoordinatorDownLeaderKill => {
            cluster.cut_coordinator().await?;
            kill(cluster, leader, victims).await?;
        }
        FaultKind::RollingRestart => {
            for node in cluster.processes().into_keys() {
                cluster.kill(node).await?;
                cluster.restart(node)?;
                cluster.wait_until_whole(patience.whole).await?;
            }
        }
        FaultKind::TwoLost => {
            kill(cluster, leader, victims).await?;
            sleep_until((begun + patience.second_loss_after).into()).await;
            // The replica that leads now is kept: what is asked is whether one replica is enough.
            let led = cluster.statuses().await?.leader().map(|(node, _)| node);
            let second = cluster.processes().into_keys().find(|node| Some(*node) != led);
            kill(cluster, second.context("no second replica runs")?, victims).await?;
        }
        FaultKind::LostInTurn => {
            cluster.kill(follower).await?;
            sleep_until((begun + patience.second_loss_after).into()).await;
            let led = cluster.statuses().await?.leader().map(|(node, _)| node);
            anyhow::ensure!(led == Some(leader), "the death of a follower has changed the leader");
            let second = cluster.processes().into_keys().find(|node| *node != leader);
            let second = second.context("no second replica runs")?;
            cluster.kill(second).await?;
            kill(cluster, leader, victims).await?;
            cluster.restart(follower)?;
            let allow = std::iter::once(ALLOW_FAULTS.to_owned());
            let mistakes = mistakes.iter().flat_map(|it| ["--mistake".to_owned(), it.clone()]);
            cluster.restart_wiped(second, &allow.chain(mistakes).collect::<Vec<_>>())?;
            // Only when both run do they have the chance to go on without the leader.
            cluster.wait_until_answered(patience.restart).await?;
            sleep(patience.chance).await;
        }
    }
    Ok(begun)
}

async fn kill(cluster: &mut Cluster, node: NodeId, victims: &mut Victims) -> anyhow::Result<()> {
    cluster.kill(node).await?;
    victims.killed.push(node);
    Ok(())
}

fn follower(statuses: &Statuses) -> anyhow::Result<NodeId> {
    statuses.followers().first().copied().context("there is no follower")
}

async fn heal(cluster: &mut Cluster, kind: FaultKind, victims: Victims) -> anyhow::Result<()> {
    if let Some(frozen) = victims.frozen {
        frozen.thaw()?;
    }
    if kind.is_within_nodes() {
        cluster.heal_all().await?;
    }
    victims.killed.into_iter().try_for_each(|node| cluster.restart(node))
}

/// Returns the time line of a run, and what can be read off it.
fn measure(
    done: &Done,
    (epoch, start, begun): (Instant, Instant, Instant),
    sizes: &Sizes,
) -> Suffered {
    let zero = nanoseconds(start - epoch);
    let all = sizes.before + sizes.during + sizes.after;
    let pieces = usize::try_from(all.as_millis() / PIECE.as_millis()).unwrap_or(usize::MAX);
    let at = |returned: u64| {
        let piece = returned.checked_sub(zero)? / nanoseconds(PIECE);
        usize::try_from(piece).ok().filter(|piece| *piece < pieces)
    };
    let (mut writes, mut reads) = (vec![0_u32; pieces], vec![0_u32; pieces]);
    let mut latencies: Vec<Vec<u64>> = vec![Vec::new(); pieces];
    let mut acknowledged = Vec::new();
    for operation in &done.operations {
        let Some(returned) = operation.returned() else { continue };
        let Some(piece) = at(returned) else { continue };
        if operation.is_write() {
            writes[piece] += 1;
            latencies[piece].push((returned - operation.called) / 1000);
            acknowledged.push(returned);
        } else {
            reads[piece] += 1;
        }
    }
    acknowledged.sort_unstable();
    let fault = nanoseconds(begun - epoch);
    let first = usize::try_from((fault - zero) / nanoseconds(PIECE)).unwrap_or(0).min(pieces);
    let end = usize::try_from((sizes.before + sizes.during).as_millis() / PIECE.as_millis());
    let end = end.unwrap_or(pieces).min(pieces);
    let before_per_s = per_second(&writes[..first]);
    let after = |part: f64| reached_after(&writes[first..], before_per_s * part);
    let late = end.saturating_sub(10);
    let middle = usize::midpoint(first, end);
    Suffered {
        system: String::new(),
        write_p50_us: latencies.iter().map(|piece| median(piece.clone())).collect(),
        longest_outage_ms: longest_gap(&acknowledged, fault, zero + nanoseconds(all)) as f64 / 1e6,
        half_after_ms: after(0.5),
        nine_tenths_after_ms: after(0.9),
        nearly_all_after_ms: after(0.99),
        before_per_s,
        late_in_fault_per_s: per_second(&writes[late..end]),
        write_p50_before_us: median(latencies[..first].concat()),
        write_p50_in_fault_us: median(latencies[middle..end].concat()),
        writes,
        reads,
        failed: done.failed,
        unknown: done.operations.iter().filter(is_unknown).count() as u64,
        error: None,
    }
}

fn is_unknown(operation: &&Recorded) -> bool {
    operation.answer.is_none()
}

/// Returns how many there were in a second.
fn per_second(pieces: &[u32]) -> f64 {
    let sum: f64 = pieces.iter().copied().map(f64::from).sum();
    let seconds = PIECE.as_secs_f64() * pieces.len() as f64;
    if pieces.is_empty() { 0.0 } else { sum / seconds }
}

/// Returns after how many milliseconds a throughput was reached, and kept for half a second on
/// average.
fn reached_after(pieces: &[u32], throughput: f64) -> Option<f64> {
    let at = pieces.windows(PIECES_REACHED).position(|few| per_second(few) >= throughput)?;
    Some(at as f64 * PIECE.as_secs_f64() * 1000.0)
}

fn median(mut latencies: Vec<u64>) -> f64 {
    latencies.sort_unstable();
    latencies.get(latencies.len() / 2).map_or(0.0, |latency| *latency as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throughput_is_reached_when_it_is_kept() {
        let pieces = [0, 0, 9, 0, 0, 10, 10, 10, 10, 10, 10];
        assert_eq!(reached_after(&pieces, 100.0), Some(500.0));
        assert_eq!(reached_after(&pieces, 101.0), None);
        assert!((per_second(&pieces[5..]) - 100.0).abs() < 1e-9);
    }
}
