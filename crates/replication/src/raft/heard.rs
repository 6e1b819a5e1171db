//! How old a replica's table is: what its leaders said of the commit points that they sent.

use std::sync::OnceLock;
use std::time::Duration;

use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::instant::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{RaftMetrics, ServerState};
use parking_lot::Mutex;
use tokio::time::Instant;
use trireme_proto::v1;
use trireme_types::{Epoch, Lsn, NodeId};

use super::types::TypeConfig;
use crate::core::Moment;
use crate::freshness::{FreshnessLog, LeaderClock};

/// What openraft says of a replica, whenever that changes.
pub(super) type Metrics = WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>;

/// How a replica is, once it runs.
pub(super) struct Attached {
    pub(super) metrics: Metrics,
    /// Returns what its table includes now: all that the replica has acknowledged, and maybe more.
    pub(super) applied: Box<dyn Fn() -> Lsn + Send + Sync>,
    /// Returns the state that it rests in, and as of when that is known to be the newest.
    pub(super) rested: Box<dyn Fn() -> Option<(Lsn, Instant)> + Send + Sync>,
}

/// What a replica knows of the age of commit points: its own as a leader, and those that leaders
/// sent it.
///
/// A Raft leader holds no lease here. What it knows is when it sent what a majority has
/// acknowledged last: nobody else had committed anything by then, so that its commit point, once it
/// is of its own term, includes all that was acknowledged before. The commit point that an append names
/// may be an older one: openraft makes a heartbeat when it is due, and sends it when the one before has
/// been answered or given up. So it also remembers how far its table had come when.
pub(super) struct Heard {
    start: Instant,
    replica: OnceLock<Attached>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the last append arrived, of whatever leader, and its term.
    addressed: Option<(Instant, Epoch)>,
    /// The newest term that a leader was heard in.
    term: Epoch,
    clock: LeaderClock,
    log: FreshnessLog,
    /// What this replica's table included at the moments at which it sent appends.
    applied: FreshnessLog,
}

impl Heard {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), replica: OnceLock::new(), state: Mutex::default() }
    }

    /// Names the replica that this is about.
    pub(super) fn attach(&self, replica: Attached) {
        // It is named once.
        let _named = self.replica.set(replica);
    }

    /// Adds to an append that this replica sends as of when its commit point is the newest.
    pub(super) fn stamp(&self, append: &mut v1::RaftAppend) {
        let now = self.moment(Instant::now());
        append.sent_us = micros(now);
        let Some(Attached { metrics, applied, .. }) = self.replica.get() else { return };
        // What was acknowledged before `now` is in the table by now.
        let applied = applied();
        let mut state = self.state.lock();
        state.applied.learn(applied, now, applied);
        let term = append.vote.as_ref().map(|vote| vote.term);
        let point = append.leader_commit.map(Lsn::from);
        let Some(point) = point.filter(|point| Some(point.epoch) == term) else { return };
        let included = state.applied.as_of(point);
        drop(state);
        let acked = led_until(&metrics.borrow_watched(), point.epoch);
        let current_at = acked.zip(included).map(|(acked, at)| self.moment(acked).min(at));
        append.current_at_us = current_at.map(micros);
    }

    /// Takes in what an append says of its commit point. It holds whether or not the append is
    /// taken: what was true at its leader's time stays true.
    pub(super) fn note(&self, from: NodeId, append: &v1::RaftAppend, applied: Lsn) {
        let Some(term) = append.vote.as_ref().map(|vote| vote.term) else { return };
        let now = self.moment(Instant::now());
        let mut state = self.state.lock();
        state.addressed = Some((Instant::now(), term));
        // A leader of the past would have the clock begin anew with a message that may be old.
        if term < state.term {
            return;
        }
        state.term = term;
        let sent = from_micros(append.sent_us);
        let current_at = append.current_at_us.map(from_micros);
        let local = state.clock.local(now, (from, term), sent, current_at.unwrap_or(sent));
        let point = append.leader_commit.map(Lsn::from);
        if let (Some(_), Some(as_of), Some(point)) = (current_at, local, point) {
            state.log.learn(point, as_of, applied);
        }
    }

    /// Takes in what a replica that has rested missed: its leader was there, and `point` was the newest
    /// commit point as of `at`.
    pub(super) fn rested(&self, point: Lsn, at: Instant, applied: Lsn) {
        let mut state = self.state.lock();
        state.addressed = Some((Instant::now(), point.epoch));
        if let Some(as_of) = self.checked_moment(at) {
            state.log.learn(point, as_of, applied);
        }
    }

    /// Returns when a leader last addressed this replica; `None` if none has.
    pub(super) fn last_addressed(&self) -> Option<Instant> {
        self.state.lock().addressed.map(|(at, _)| at)
    }

    /// Returns when a leader last addressed this replica, if it was the one of this term.
    pub(super) fn last_addressed_in(&self, term: Epoch) -> Option<Instant> {
        self.state.lock().addressed.filter(|(_, of)| *of == term).map(|(at, _)| at)
    }

    /// Returns the age at `at` of a state that includes `applied`; `None` if it is not known.
    pub(super) fn age(
        &self,
        metrics: &RaftMetrics<TypeConfig>,
        applied: Lsn,
        at: Instant,
    ) -> Option<Duration> {
        // All that this leader has acknowledged is in its table.
        let led = led_until(metrics, applied.epoch).map(|acked| self.moment(acked));
        let heard = self.state.lock().log.as_of(applied);
        let rested = self.replica.get().and_then(|replica| (replica.rested)());
        let rested = rested.filter(|(point, _)| point.seq <= applied.seq);
        let rested = rested.and_then(|(_, as_of)| self.checked_moment(as_of));
        led.max(heard).max(rested).map(|as_of| self.moment(at).since(as_of))
    }

    /// Returns `None` before the start.
    fn checked_moment(&self, instant: Instant) -> Option<Moment> {
        instant.checked_duration_since(self.start).map(Moment::after_start)
    }

    fn moment(&self, instant: Instant) -> Moment {
        Moment::after_start(instant.saturating_duration_since(self.start))
    }
}

/// Returns until when this replica is known to have led in `term`.
fn led_until(metrics: &RaftMetrics<TypeConfig>, term: Epoch) -> Option<Instant> {
    if metrics.state != ServerState::Leader || metrics.current_term != term {
        return None;
    }
    // A majority of one acknowledges without a message.
    if metrics.membership_config.voter_ids().all(|voter| voter == metrics.id) {
        return Some(Instant::now());
    }
    // Taken first, so that the difference is no later than what it stands for.
    let now = Instant::now();
    metrics.last_quorum_acked.and_then(|acked| now.checked_sub(acked.elapsed()))
}

fn micros(moment: Moment) -> u64 {
    u64::try_from(moment.since_start().as_micros()).unwrap_or(u64::MAX)
}

const fn from_micros(micros: u64) -> Moment {
    Moment::after_start(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use openraft::alias::WatchOf;
    use openraft::async_runtime::watch::{Watch as _, WatchSender as _};
    use openraft_rt_tokio::TokioInstant;

    use super::*;
    use crate::raft::types::{RaftId, RaftMembership, StoredMembership};

    const TERM: Epoch = 3;

    /// Returns how replica n1 of a cohort is that leads in [`TERM`] and was acknowledged by a majority
    /// last when it sent something just now.
    fn leading(voters: u64) -> RaftMetrics<TypeConfig> {
        let voters = (1..=voters).map(|node| RaftId::first(NodeId(node))).collect();
        let membership = RaftMembership::new_with_defaults(vec![voters], []);
        let mut metrics = RaftMetrics::new_initial(RaftId::first(NodeId(1)));
        metrics.state = ServerState::Leader;
        metrics.current_term = TERM;
        metrics.membership_config = Arc::new(StoredMembership::new(None, membership));
        metrics.last_quorum_acked = Some(TokioInstant::now().into());
        metrics
    }

    fn age(heard: &Heard, metrics: &RaftMetrics<TypeConfig>, term: Epoch) -> Option<Duration> {
        heard.age(metrics, Lsn::new(term, 9), Instant::now())
    }

    /// Returns an append of [`TERM`] with this commit point.
    fn append(committed: Lsn) -> v1::RaftAppend {
        v1::RaftAppend {
            vote: Some(v1::RaftVote { term: TERM, ..Default::default() }),
            leader_commit: Some(committed.into()),
            ..Default::default()
        }
    }

    fn attached(metrics: Metrics, applied: impl Fn() -> Lsn + Send + Sync + 'static) -> Attached {
        Attached { metrics, applied: Box::new(applied), rested: Box::new(|| None) }
    }

    async fn wait(milliseconds: u64) -> Duration {
        let time = Duration::from_millis(milliseconds);
        tokio::time::advance(time).await;
        time
    }

    /// A leader that is cut off leads on until it notices, and another may lead and commit meanwhile.
    #[tokio::test(start_paused = true)]
    async fn what_a_leader_has_is_as_old_as_what_a_majority_acknowledged_last() {
        let heard = Heard::new();
        wait(100).await;
        let mut metrics = leading(3);
        assert_eq!(age(&heard, &metrics, TERM), Some(Duration::ZERO));
        let passed = wait(700).await;
        assert_eq!(age(&heard, &metrics, TERM), Some(passed), "none has answered since");
        assert_eq!(age(&heard, &metrics, TERM - 1), None, "it lacks what others had committed");
        metrics.last_quorum_acked = None;
        assert_eq!(age(&heard, &metrics, TERM), None, "none has answered at all");
        metrics = RaftMetrics { state: ServerState::Follower, ..leading(3) };
        assert_eq!(age(&heard, &metrics, TERM), None, "it leads no more");
        metrics = leading(1);
        wait(700).await;
        assert_eq!(age(&heard, &metrics, TERM), Some(Duration::ZERO), "it is the majority");
    }

    /// What a leader says with its appends is no younger than what it would say of itself.
    #[tokio::test(start_paused = true)]
    async fn a_leader_that_is_not_answered_makes_no_follower_younger() {
        let (leader, follower) = (Heard::new(), Heard::new());
        wait(100).await;
        let (sender, metrics) = WatchOf::<TypeConfig>::channel(leading(3));
        let acknowledged = micros(leader.moment(Instant::now()));
        leader.attach(attached(metrics, || Lsn::new(TERM, 9)));
        wait(700).await;
        let mut late = append(Lsn::new(TERM, 9));
        leader.stamp(&mut late);
        assert_eq!(late.current_at_us, Some(acknowledged));
        let mut early = append(Lsn::new(TERM - 1, 9));
        leader.stamp(&mut early);
        assert_eq!(early.current_at_us, None, "it does not know how far the others had come");
        follower.note(NodeId(1), &late, Lsn::ZERO);
        let following = RaftMetrics { state: ServerState::Follower, ..leading(3) };
        assert_eq!(age(&follower, &following, TERM), Some(Duration::from_millis(700)));
        drop(sender);
    }

    /// A heartbeat waits until the one before has been given up, and names what was committed when it
    /// was due.
    #[tokio::test(start_paused = true)]
    async fn a_commit_point_that_was_sent_late_is_as_old_as_what_is_newer() {
        let leader = Heard::new();
        wait(100).await;
        let (sender, metrics) = WatchOf::<TypeConfig>::channel(leading(3));
        let table = Arc::new(Mutex::new(Lsn::new(TERM, 9)));
        let applied = Arc::clone(&table);
        leader.attach(attached(metrics, move || *applied.lock()));
        let current_at = |seq| {
            let mut append = append(Lsn::new(TERM, seq));
            sender.send(leading(3)).expect("the leader looks at it");
            leader.stamp(&mut append);
            append.current_at_us
        };
        let now = || micros(leader.moment(Instant::now()));
        assert_eq!(current_at(8), None, "how long ago 9 was not acknowledged is not known");
        assert_eq!(current_at(9), Some(now()));
        wait(30).await;
        assert_eq!(current_at(9), Some(now()), "nothing was acknowledged since");
        let before = now();
        wait(40).await;
        *table.lock() = Lsn::new(TERM, 10);
        assert_eq!(current_at(9), Some(before), "10 may have been acknowledged since");
        assert_eq!(current_at(10), Some(now()));
        wait(10).await;
        assert_eq!(current_at(9), Some(before));
        assert_eq!(current_at(11), Some(now()), "committed, and nothing of it acknowledged");
    }
}
