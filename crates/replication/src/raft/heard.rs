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

type Metrics = WatchReceiverOf<TypeConfig, RaftMetrics<TypeConfig>>;

/// What a replica knows of the age of commit points: its own as a leader, and those that leaders
/// sent it.
///
/// A Raft leader holds no lease here. What it knows is when it sent what a majority has
/// acknowledged last: nobody else had committed anything by then, so that its commit point, once it
/// is of its own term, includes all that was acknowledged before.
pub(super) struct Heard {
    start: Instant,
    /// How the replica is, once it runs.
    metrics: OnceLock<Metrics>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When the last append arrived, of whatever leader.
    addressed: Option<Instant>,
    /// The newest term that a leader was heard in.
    term: Epoch,
    clock: LeaderClock,
    log: FreshnessLog,
}

impl Heard {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), metrics: OnceLock::new(), state: Mutex::default() }
    }

    /// Names the replica that this is about.
    pub(super) fn attach(&self, metrics: Metrics) {
        // It is named once.
        let _named = self.metrics.set(metrics);
    }

    /// Adds to an append that this replica sends as of when its commit point is the newest.
    pub(super) fn stamp(&self, append: &mut v1::RaftAppend) {
        append.sent_us = micros(self.moment(Instant::now()));
        let term = append.vote.as_ref().map(|vote| vote.term);
        let commits_own = append.leader_commit.as_ref().map(|lsn| lsn.epoch) == term;
        if let Some(metrics) = self.metrics.get().filter(|_| commits_own) {
            let acked = term.and_then(|term| led_until(&metrics.borrow_watched(), term));
            append.current_at_us = acked.map(|acked| micros(self.moment(acked)));
        }
    }

    /// Takes in what an append says of its commit point. It holds whether or not the append is
    /// taken: what was true at its leader's time stays true.
    pub(super) fn note(&self, from: NodeId, append: &v1::RaftAppend, applied: Lsn) {
        let Some(term) = append.vote.as_ref().map(|vote| vote.term) else { return };
        let now = self.moment(Instant::now());
        let mut state = self.state.lock();
        state.addressed = Some(Instant::now());
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

    /// Returns when a leader last addressed this replica; `None` if none has.
    pub(super) fn last_addressed(&self) -> Option<Instant> {
        self.state.lock().addressed
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
        led.max(heard).map(|as_of| self.moment(at).since(as_of))
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
    use openraft::async_runtime::watch::Watch as _;
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
        leader.attach(metrics);
        let append = |committed| v1::RaftAppend {
            vote: Some(v1::RaftVote { term: TERM, ..Default::default() }),
            leader_commit: Some(Lsn::new(committed, 9).into()),
            ..Default::default()
        };
        wait(700).await;
        let mut late = append(TERM);
        leader.stamp(&mut late);
        assert_eq!(late.current_at_us, Some(acknowledged));
        let mut early = append(TERM - 1);
        leader.stamp(&mut early);
        assert_eq!(early.current_at_us, None, "it does not know how far the others had come");
        follower.note(NodeId(1), &late, Lsn::ZERO);
        let following = RaftMetrics { state: ServerState::Follower, ..leading(3) };
        assert_eq!(age(&follower, &following, TERM), Some(Duration::from_millis(700)));
        drop(sender);
    }
}
