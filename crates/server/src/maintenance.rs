//! Keeps the node's shared log within its limit.
//!
//! Segments of the log go oldest first, and one entry that still counts holds its segment and all
//! later ones (S10). When the log has grown past a part of its limit, the node does this, whenever
//! another segment begins and once a second:
//!
//! 1. **Flush.** If the tables lack on disk what the older half of the log holds, they are flushed:
//!    once, for all cohorts.
//! 2. **Release.** Every cohort with entries in the segments that are to go is asked to give them up,
//!    all at once. A follower that lacks them is sent a snapshot. If some of them are to be moved, as
//!    many more segments are to go behind them.
//! 3. **Move.** What is held still, by cohorts without a quorum or without a replica here, is written
//!    again at the head of the log, and its segments go. That pays as long as enough of the log is of
//!    no use any more.
//! 4. **Backpressure.** Batches under way have a bounded number of bytes together, since what is under
//!    way cannot be given up. While the log is at its limit, new batches wait; entries of other nodes
//!    do not, since what they wait for holds the logs of those. A cohort that applies nothing
//!    any more, and fills more than its share with writes that are not applied, has its new writes
//!    refused, and is named in a warning, so that it cannot hold up the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use trireme_storage::{LogHolder, SharedLog, Tables};
use trireme_types::CohortId;

use crate::backpressure::Backpressure;
use crate::cohort::HostedCohort;
use crate::routes::Router;

/// How often the log's length is looked at if it does not grow.
const INTERVAL: Duration = Duration::from_secs(1);

/// How often it is while writes wait for it to become shorter. What is under way is applied meanwhile.
const PAUSED_INTERVAL: Duration = Duration::from_millis(50);

/// How many cohorts are asked to give up their log at a time: enough that a thousand are asked in a
/// fraction of a second, and few enough that clients hardly notice.
const RELEASES_MAX: usize = 64;

/// How long one cohort may take over giving up its log, before the node goes on without it.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often one round asks and moves: what is moved leaves segments at the front whose cohorts have
/// not been asked yet.
const PASSES_MAX: usize = 4;

/// The bytes of entries that are moved with one write: few enough that other writes, which share the
/// disk with it, wait for a few milliseconds more.
const MOVE_BYTES: u64 = 1024 * 1024;

/// How long a cohort must have applied nothing before what it has not applied counts against it. A
/// write that a quorum has is applied far sooner, also while tables are flushed; until then a cohort
/// has no more under way than its batches.
const STUCK_AFTER: Duration = Duration::from_secs(3);

/// How long the node's log may be, and what is done at which length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogLimits {
    max: u64,
    segment: u64,
}

/// Why a log cannot be kept within its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLogLimit {
    /// A segment has to fit into the limit.
    #[error(
        "--segment-bytes of {segment} is more than the whole log may have: --log-bytes-max is {max}"
    )]
    SegmentPastLimit {
        /// The bytes of a segment.
        segment: u64,
        /// The bytes of the log.
        max: u64,
    },
    /// Less does not carry the largest writes.
    #[error("{option} of {bytes} is too little: it must be at least {least}")]
    TooSmall {
        /// The option.
        option: &'static str,
        /// What it was to be.
        bytes: u64,
        /// What it must be at least.
        least: u64,
    },
    /// More does not fit the log's format.
    #[error("--segment-bytes of {bytes} is too much: it must be at most {most}")]
    TooLarge {
        /// The bytes of a segment.
        bytes: u64,
        /// The most that it may have.
        most: u64,
    },
}

/// The least bytes of a segment. In a smaller one, what every segment repeats of each cohort would
/// be most of it.
pub const SEGMENT_BYTES_MIN: u64 = 64 * 1024;

/// The most bytes of a segment, by the log's format.
pub const SEGMENT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The least bytes of a log: the largest value is as long, and with less the node would flush its
/// tables for every few writes.
pub const LOG_BYTES_MIN: u64 = 1024 * 1024;

impl LogLimits {
    /// Returns the limits, or why they cannot be kept.
    pub(crate) fn new(max: u64, segment: u64) -> Result<Self, InvalidLogLimit> {
        let too_small = |option, bytes, least| InvalidLogLimit::TooSmall { option, bytes, least };
        if segment < SEGMENT_BYTES_MIN {
            return Err(too_small("--segment-bytes", segment, SEGMENT_BYTES_MIN));
        }
        if segment > SEGMENT_BYTES_MAX {
            return Err(InvalidLogLimit::TooLarge { bytes: segment, most: SEGMENT_BYTES_MAX });
        }
        if max < LOG_BYTES_MIN {
            return Err(too_small("--log-bytes-max", max, LOG_BYTES_MIN));
        }
        if segment > max {
            return Err(InvalidLogLimit::SegmentPastLimit { segment, max });
        }
        Ok(Self { max, segment })
    }

    /// Returns the most files that the log has, all of which are open.
    pub(crate) fn files(self) -> usize {
        // One is being written, and one is made ready.
        usize::try_from(self.max.div_ceil(self.segment)).unwrap_or(usize::MAX).saturating_add(2)
    }

    /// The length past which the tables are flushed, so that the older half can go without a wait.
    fn flush_above(self) -> u64 {
        self.max / 2
    }

    /// The length past which the oldest segments go. A quarter of the limit is left for what is
    /// written meanwhile; the rest lets followers that were away catch up from the log.
    fn release_above(self) -> u64 {
        (self.max - self.max / 4).max(self.segment)
    }

    /// The length past which new batches wait: one more segment may begin with what is under way.
    fn pause_above(self) -> u64 {
        self.max.saturating_sub(self.segment).max(self.segment)
    }

    /// The most bytes that the batches of this node may have under way. What is under way cannot be
    /// given up, and other nodes' batches come on top: with as much of three nodes, the log is still
    /// within its limit and a segment.
    pub(crate) fn under_way_max(self) -> u64 {
        self.max / 8
    }

    /// The most bytes of entries that cannot be given up with which moving them pays. The log is cut at
    /// three quarters of its limit; with at most two thirds of that held, each byte of room costs two
    /// bytes of moving.
    fn move_below(self) -> u64 {
        self.max / 2
    }

    /// The bytes that all cohorts together may hold with what is not applied before those that hold
    /// more than an equal share of it are held up.
    fn unapplied_max(self) -> u64 {
        self.max / 4
    }
}

/// How long the log has been longer than it should be.
#[derive(Default)]
struct Excess {
    since: Option<Instant>,
}

impl Excess {
    /// Returns the length past which new batches wait, after the log was made as short as it can be
    /// now. What is under way holds the log only until it is applied, and is waited for; what cannot be
    /// made shorter for longer than that must not stop the ranges that can work.
    fn pause_above(&mut self, size: u64, limits: LogLimits, now: Instant) -> u64 {
        let above = limits.pause_above();
        self.since = (size > above).then(|| self.since.unwrap_or(now));
        let is_stuck =
            self.since.is_some_and(|since| now.saturating_duration_since(since) >= STUCK_AFTER);
        if is_stuck { size } else { above }
    }
}

/// What the upkeep of one node needs.
pub(crate) struct Maintenance {
    pub(crate) log: SharedLog,
    pub(crate) tables: Tables,
    pub(crate) router: Arc<Router>,
    pub(crate) backpressure: Arc<Backpressure>,
    pub(crate) limits: LogLimits,
    pub(crate) progress: Progress,
}

/// Since when each cohort has applied nothing.
pub(crate) struct Progress {
    stuck_after: Duration,
    /// The applied point of each cohort with entries that are not applied, and when it was first seen.
    seen: Mutex<BTreeMap<CohortId, (u64, Instant)>>,
}

impl Default for Progress {
    fn default() -> Self {
        Self { stuck_after: STUCK_AFTER, seen: Mutex::default() }
    }
}

impl Progress {
    /// Keeps those of `held` that have applied nothing for too long. `applied` returns their points.
    fn retain_stuck(&self, held: &mut BTreeMap<CohortId, u64>, applied: impl Fn(CohortId) -> u64) {
        let now = Instant::now();
        let mut seen = self.seen.lock();
        seen.retain(|cohort, _| held.contains_key(cohort));
        held.retain(|&cohort, _| {
            let applied = applied(cohort);
            let (point, since) = seen.entry(cohort).or_insert((applied, now));
            if *point != applied {
                (*point, *since) = (applied, now);
            }
            now.saturating_duration_since(*since) >= self.stuck_after
        });
    }
}

impl Maintenance {
    /// Runs until its task is aborted.
    pub(crate) async fn run(self) {
        let pause_above = Arc::new(AtomicU64::new(self.limits.pause_above()));
        let grown = Arc::new(Notify::new());
        self.log.on_growth({
            let (grown, pause_above) = (Arc::clone(&grown), Arc::clone(&pause_above));
            let backpressure = Arc::clone(&self.backpressure);
            move |size| {
                if size > pause_above.load(Ordering::Relaxed) {
                    backpressure.pause(true);
                }
                grown.notify_one();
            }
        });
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut excess = Excess::default();
        let mut is_paused = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = grown.notified() => {}
                () = tokio::time::sleep(PAUSED_INTERVAL), if is_paused => {}
            }
            self.shorten().await;
            let above = excess.pause_above(self.log.size(), self.limits, Instant::now());
            pause_above.store(above, Ordering::Relaxed);
            is_paused = self.log.size() > above;
            self.backpressure.pause(is_paused);
        }
    }

    /// Makes the log as short as it should be, as far as that can be done.
    pub(crate) async fn shorten(&self) {
        let limits = self.limits;
        if self.log.size() > limits.flush_above() {
            self.flush(limits.flush_above()).await;
        }
        for _ in 0..PASSES_MAX {
            let size = self.log.size();
            if size <= limits.release_above() {
                break;
            }
            let reach = self.reach(limits.release_above());
            if reach < limits.flush_above() {
                self.flush(reach).await;
            }
            self.release(reach).await;
            self.move_on(limits.release_above(), reach).await;
            if self.log.size() >= size {
                break;
            }
        }
        self.hold_up();
    }

    /// Flushes the tables if that lets a cohort give up more of what is past this length.
    async fn flush(&self, target_bytes: u64) {
        let routes = self.router.routes();
        let is_behind = |holder: &LogHolder| {
            routes.hosted.get(&holder.cohort).is_some_and(|hosted| {
                let (persisted, applied) = (hosted.table.persisted(), hosted.table.applied());
                persisted.seq < holder.upto.min(applied.seq)
            })
        };
        if !self.log.holders(target_bytes).iter().any(is_behind) {
            return;
        }
        let tables = self.tables.clone();
        match tokio::task::spawn_blocking(move || tables.flush()).await {
            Ok(Ok(())) => {}
            // The node hears of it from the tables themselves.
            Ok(Err(error)) => tracing::warn!(%error, "the log cannot be shortened"),
            Err(error) => tracing::warn!(%error, "the log cannot be shortened"),
        }
    }

    /// Returns the length past which cohorts are asked to give up what they can, for the log to become
    /// as short as `target_bytes`. What is not applied in the segments that are to go is moved to the
    /// head of the log, where it takes its room again, so as much more has to go behind it. Without
    /// that, a cohort that fills the oldest segments alone would keep the log as it is.
    fn reach(&self, target_bytes: u64) -> u64 {
        if self.unapplied().values().sum::<u64>() > self.limits.move_below() {
            return target_bytes;
        }
        let mut reach = target_bytes;
        loop {
            let stays: u64 = self.log.holders(reach).iter().map(|held| self.stays(held)).sum();
            let next = target_bytes.saturating_sub(stays);
            if next >= reach {
                return reach;
            }
            reach = next;
        }
    }

    /// Returns the bytes of a cohort's entries up to `holder.upto` that no flush lets go.
    fn stays(&self, holder: &LogHolder) -> u64 {
        let routes = self.router.routes();
        let hosted = routes.hosted.get(&holder.cohort);
        let applied = hosted.map_or(0, |hosted| hosted.table.applied().seq);
        let after = |seq| self.log.bytes_after(holder.cohort, seq);
        after(applied).saturating_sub(after(holder.upto))
    }

    /// Asks every cohort that keeps the log longer than this to give up what it can.
    async fn release(&self, target_bytes: u64) {
        let routes = self.router.routes();
        // One that is not served yet, or not any more, is Hosting's: it may be opening, and need its
        // log, or about to be discarded.
        let asked = self.log.holders(target_bytes).into_iter().filter_map(|holder| {
            let hosted = routes.hosted.get(&holder.cohort)?;
            Some((Arc::clone(hosted), holder))
        });
        let releases = stream::iter(asked).map(|(hosted, holder)| release(hosted, holder));
        releases.buffer_unordered(RELEASES_MAX).collect::<()>().await;
        self.written().await;
    }

    /// Waits until everything that was submitted to the log is written.
    async fn written(&self) {
        let (written, is_written) = oneshot::channel();
        let done = move |_| {
            // Who waited may have gone.
            let _gone = written.send(());
        };
        if self.log.after_all(done).is_ok() {
            // An error means that the log has failed, of which the node hears by itself.
            drop(is_written.await);
        }
    }

    /// Moves what is left in the segments that keep the log longer than `reach`, if that makes it
    /// shorter, until it is as short as `target_bytes`.
    async fn move_on(&self, target_bytes: u64, reach: u64) {
        if self.unapplied().values().sum::<u64>() > self.limits.move_below() {
            return;
        }
        // What was moved is behind everything else, and is not to be moved again.
        let held = self.log.holders(reach);
        let mut budget: u64 = held.iter().map(|holder| holder.bytes).sum();
        while budget > 0 && self.log.size() > target_bytes && self.has_gaps() {
            let (written, is_written) = oneshot::channel();
            let log = self.log.clone();
            let done = move |_| {
                // Who waited may have gone.
                let _gone = written.send(());
            };
            let moving = tokio::task::spawn_blocking(move || log.move_oldest(MOVE_BYTES, done));
            let moved = match moving.await {
                Ok(Ok(moved)) => moved,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "what holds the oldest segments cannot be moved");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "what holds the oldest segments cannot be moved");
                    return;
                }
            };
            budget = budget.saturating_sub(moved);
            if moved == 0 || is_written.await.is_err() {
                return;
            }
        }
    }

    /// Returns true if a segment goes when what counts in the closed segments is moved together.
    fn has_gaps(&self) -> bool {
        let held: u64 = self.log.holders(0).iter().map(|holder| holder.bytes).sum();
        let closed = self.log.size().saturating_sub(self.limits.segment);
        closed >= held + self.limits.segment
    }

    /// Returns the bytes of entries that no flush lets go, by cohort: those that are not applied, and
    /// all of a cohort without a replica here.
    fn unapplied(&self) -> BTreeMap<CohortId, u64> {
        let routes = self.router.routes();
        let unapplied = self.log.holders(0).into_iter().map(|LogHolder { cohort, .. }| {
            let hosted = routes.hosted.get(&cohort);
            let applied = hosted.map_or(0, |hosted| hosted.table.applied().seq);
            (cohort, self.log.bytes_after(cohort, applied))
        });
        unapplied.filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// Refuses new writes of the cohorts that apply nothing any more and fill more than their share of
    /// the log with what is not applied, if all of them together fill too much.
    fn hold_up(&self) {
        if self.log.size() <= self.limits.flush_above() {
            return self.backpressure.hold_up(BTreeMap::new());
        }
        let routes = self.router.routes();
        let mut stuck = self.unapplied();
        let hosted = |cohort| routes.hosted.get(&cohort);
        let applied = |cohort| hosted(cohort).map_or(0, |hosted| hosted.table.applied().seq);
        self.progress.retain_stuck(&mut stuck, applied);
        let mut held_up = past_their_share(stuck, self.limits.unapplied_max());
        held_up.retain(|cohort, _| routes.hosted.contains_key(cohort));
        for (cohort, bytes) in &held_up {
            if !self.backpressure.is_held_up(*cohort) {
                tracing::warn!(
                    %cohort,
                    bytes,
                    "the cohort's writes are refused: it fills more than its share of the log with \
                     writes that are not applied; has it lost its quorum?"
                );
            }
        }
        self.backpressure.hold_up(held_up);
    }
}

async fn release(hosted: Arc<HostedCohort>, holder: LogHolder) {
    let LogHolder { cohort, upto, bytes } = holder;
    let upto = upto.min(hosted.table.persisted().seq);
    match tokio::time::timeout(RELEASE_TIMEOUT, hosted.replica.release_log(upto)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%cohort, upto, bytes, %error, "a cohort's log could not be shortened");
        }
        Err(_) => tracing::warn!(%cohort, upto, bytes, "a cohort's log is not shortened in time"),
    }
}

/// Returns those that hold more than an equal share of `max`, if all together hold more than it.
fn past_their_share(held: BTreeMap<CohortId, u64>, max: u64) -> BTreeMap<CohortId, u64> {
    if held.values().sum::<u64>() <= max {
        return BTreeMap::new();
    }
    let share = max / (held.len() as u64).max(1);
    held.into_iter().filter(|(_, bytes)| *bytes > share).collect()
}

#[cfg(test)]
mod tests;
