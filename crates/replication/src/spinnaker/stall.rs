//! A leader that is alive and brings nothing to an end (P14): when it is the one to blame, and how
//! it lets the others be first then.
//!
//! A leader whose disk or table hangs, or whose messages on the data lane do not arrive, is supported
//! all the same: beacons travel apart from data so that a full lane does not end a lease. So the
//! leader itself looks at what waits. If nothing was committed, or applied, for a grace though
//! something should have been, it asks why:
//!
//! * Its followers have on their disks what its own has not: its disk hangs.
//! * What is committed is not applied: its table hangs.
//! * So many followers say nothing new on the data lane that the others are no majority, and do not
//!   say either that they wait for their disks: the ways between them and the leader are dead. That
//!   one says again where it stands shows the opposite of progress: it receives nothing.
//!
//! Then it resigns. A slow machine does not look like any of it: slow disks everywhere leave the
//! followers no further than the leader, a follower's slow disk is reported with each beacon, and an
//! entry or a piece of a log at a time is progress enough. With the default periods a leader that
//! hangs costs as much as one that dies: a second, and then an election.

use std::time::Duration;

use trireme_types::Timing;

use super::Shared;
use super::leader::Leader;
use crate::core::Moment;
use crate::streaming::Leading;

/// The most graces for which a replica lets others be first that has failed to lead again and again.
/// It bounds how often a cohort changes its epoch in vain, and how long one waits that can be led by
/// this replica alone.
const STEP_BACK_GRACES_MAX: u32 = 16;

/// How a leader gets on, as of the last batch.
#[derive(Debug, Default)]
pub(super) struct Stall {
    /// The newest sequence that was committed, and since when newer entries have waited for that.
    committed: Waiting,
    /// The newest sequence that was applied, and since when newer committed ones have waited.
    applied: Waiting,
    /// The newest sequence on the leader's own disk, and since when a majority of the followers has
    /// had more.
    durable: Waiting,
}

/// Which part of the time for which its connections last a leader leaves its resignation to arrive in: of
/// 900 ms, with the default periods, 50.
const DATA_LIMIT_DIVISOR: u32 = 18;

/// A number that should rise, and since when it has not.
#[derive(Debug, Default)]
struct Waiting {
    reached: u64,
    since: Option<Moment>,
}

impl Waiting {
    fn note(&mut self, now: Moment, reached: u64, wanted: u64) {
        let has_moved = reached > self.reached;
        self.reached = reached;
        if reached >= wanted {
            self.since = None;
        } else if has_moved || self.since.is_none() {
            self.since = Some(now);
        }
    }

    fn is_overdue(&self, now: Moment, limit: Duration) -> bool {
        self.since.is_some_and(|since| now >= since + limit)
    }
}

impl Stall {
    /// Returns when what waits has waited for too long; what is overdue and not the leader's
    /// fault is examined again whenever something happens.
    pub(super) fn due(&self, timing: Timing, now: Moment) -> Option<Moment> {
        let limits = [timing.grace, timing.grace, data_limit(timing)];
        let waiting = [&self.durable, &self.applied, &self.committed].into_iter().zip(limits);
        let due = waiting.filter_map(|(waiting, limit)| waiting.since.map(|at| at + limit));
        due.filter(|at| *at > now).min()
    }
}

/// Returns for how long data may not get through: less than a grace by a beacon interval, and some.
/// Nodes give up the connections on which nothing has come for a second, the default grace. A leader that
/// receives nothing has received a beacon's answer at most an interval before its data ceased to get
/// through; it must have resigned by the time that its connections end, or the followers that it still
/// reaches do not receive its resignation and are bound to it for a grace more. With a longer grace they
/// are.
fn data_limit(Timing { beacon_interval, grace, .. }: Timing) -> Duration {
    let connected = grace.saturating_sub(beacon_interval);
    connected - connected / DATA_LIMIT_DIVISOR
}

/// How a replica that failed to lead lets the others be first.
#[derive(Debug, Default)]
pub(super) struct StepBack {
    until: Moment,
    /// How often in a row it led and did not serve.
    failures: u32,
}

impl StepBack {
    /// Lets the others be first for a grace, and for twice as long after each failure to serve.
    pub(super) fn begin(&mut self, now: Moment, grace: Duration) {
        let graces = 1_u32.checked_shl(self.failures).unwrap_or(STEP_BACK_GRACES_MAX);
        self.until = now + grace * graces.min(STEP_BACK_GRACES_MAX);
        self.failures += 1;
    }

    /// Forgets earlier failures.
    pub(super) const fn has_served(&mut self) {
        self.failures = 0;
    }

    /// Returns from when on it may stand.
    pub(super) const fn until(&self) -> Moment {
        self.until
    }
}

impl Leader {
    /// Records how far the leader has come.
    pub(super) fn note_progress(&mut self, cx: &Shared) {
        let (now, needed) = (cx.now, cx.followers_needed());
        let (last, committed) = (cx.journal.last().seq, cx.journal.committed().seq);
        let durable = cx.journal.durable().seq;
        let matched = self.leading.matched_by(needed).unwrap_or_default();
        self.stall.committed.note(now, committed, last);
        self.stall.applied.note(now, cx.applied.seq, committed);
        self.stall.durable.note(now, durable, matched.min(last));
    }

    /// Returns what keeps the leader from making progress, if it is the leader's own fault (SPIN-47).
    pub(super) fn stalled(&mut self, cx: &Shared) -> Option<&'static str> {
        self.note_progress(cx);
        let (now, needed, limit) = (cx.now, cx.followers_needed(), cx.timing.grace);
        // Without followers there is no replica that could do better.
        if needed == 0 {
            return None;
        }
        if self.stall.durable.is_overdue(now, limit) {
            return Some("its followers' disks are ahead of its own");
        }
        if self.stall.applied.is_overdue(now, limit) {
            return Some("its table does not apply what is committed");
        }
        let (last, limit) = (cx.journal.last().seq, data_limit(cx.timing));
        let is_overdue = self.stall.committed.is_overdue(now, limit);
        if is_overdue && reachable(&self.leading, now, limit, last) < needed {
            return Some("its data does not get through");
        }
        None
    }
}

/// Counts the followers whose data lanes work both ways, or that owe nothing.
fn reachable(leading: &Leading, now: Moment, limit: Duration, last: u64) -> usize {
    let followers = leading.followers.values().filter(|follower| follower.is_voter());
    followers
        .filter(|follower| follower.match_lsn().seq >= last || follower.is_reached(now, limit))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::after_start(Duration::from_secs(seconds))
    }

    #[test]
    fn what_comes_further_or_has_come_to_its_end_is_not_overdue() {
        let limit = Duration::from_secs(2);
        let mut waiting = Waiting::default();
        waiting.note(at(1), 3, 3);
        assert!(!waiting.is_overdue(at(9), limit), "there is nothing to wait for");
        for (second, reached) in [(10, 3), (11, 4), (12, 5)] {
            waiting.note(at(second), reached, 9);
        }
        waiting.note(at(13), 5, 9);
        assert!(!waiting.is_overdue(at(13), limit), "it came further a second ago");
        assert!(waiting.is_overdue(at(14), limit));
        waiting.note(at(15), 9, 9);
        assert!(!waiting.is_overdue(at(99), limit));
    }

    #[test]
    fn failures_in_a_row_are_waited_out_longer_and_longer_until_one_serves() {
        let grace = Duration::from_secs(1);
        let mut step_back = StepBack::default();
        let mut waits = || {
            step_back.begin(at(100), grace);
            step_back.until().since(at(100)).as_secs()
        };
        assert_eq!([waits(), waits(), waits(), waits(), waits(), waits()], [1, 2, 4, 8, 16, 16]);
        step_back.has_served();
        step_back.begin(at(200), grace);
        assert_eq!(step_back.until(), at(201));
    }
}
