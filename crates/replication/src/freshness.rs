//! How old a replica's state is: what is known of which entry was the newest committed one, when.
//!
//! A leader adds to what it sends the moment, on its own clock, as of which the commit point in the
//! message was the newest: no write that was acknowledged before that moment lies behind the point.
//! It is the moment of sending as long as the point is the newest that the leader has and its lease
//! holds, and earlier otherwise. A follower brings that moment to its own clock ([`LeaderClock`])
//! and keeps it with the point ([`FreshnessLog`]). A state that includes the point includes all
//! that was acknowledged before the moment, so that its age is counted from there.

use std::collections::VecDeque;

use trireme_types::{Epoch, Lsn, NodeId};

use crate::core::Moment;

/// The most points that are kept. A table that applies slowly may be that many commit points behind
/// what was heard; further behind, its age is stated too high and never too low.
const POINTS_MAX: usize = 64;

/// By which part of the time that passes a leader's clock may run slower than this replica's before
/// ages are stated too high: a thousandth is ten times what a machine's clock is off.
const DRIFT_DIVISOR: i64 = 1000;

/// A leader's clock as its follower sees it: the two differ by the start of each, and what arrives
/// was on its way for a while. The message that was on its way for the shortest time gives the best
/// estimate of the difference, so that one which was held up (a delayed link, a process that stood
/// still) is taken for as old as it is. What the fastest message took is not seen: it comes on top
/// of an age.
#[derive(Debug, Default)]
pub(crate) struct LeaderClock {
    leader: Option<(NodeId, Epoch)>,
    /// How much this replica's clock is ahead of the leader's, in microseconds, at most.
    ahead: i64,
    /// When that was last looked at.
    at: Moment,
}

impl LeaderClock {
    /// Takes a message that `leader` sent in `epoch` at `sent` on its clock and that is received
    /// `now`, and returns the leader's `moment` on this replica's clock; `None` if that lies before
    /// the clock's start.
    pub(crate) fn local(
        &mut self,
        now: Moment,
        (leader, epoch): (NodeId, Epoch),
        sent: Moment,
        moment: Moment,
    ) -> Option<Moment> {
        let ahead = micros(now).saturating_sub(micros(sent));
        if self.leader == Some((leader, epoch)) {
            let drift = micros(now).saturating_sub(micros(self.at)) / DRIFT_DIVISOR;
            self.ahead = ahead.min(self.ahead.saturating_add(drift));
        } else {
            self.leader = Some((leader, epoch));
            self.ahead = ahead;
        }
        self.at = now;
        let local = micros(moment.min(sent)).saturating_add(self.ahead);
        let local = u64::try_from(local).ok()?;
        Some(Moment::after_start(std::time::Duration::from_micros(local)).min(now))
    }
}

fn micros(moment: Moment) -> i64 {
    i64::try_from(moment.since_start().as_micros()).unwrap_or(i64::MAX)
}

/// Commit points, each with the moment as of which it was the newest.
#[derive(Debug, Default)]
pub(crate) struct FreshnessLog {
    /// In ascending order of both.
    points: VecDeque<(Lsn, Moment)>,
}

impl FreshnessLog {
    /// Takes in that `point` was the newest commit point as of `as_of`. The table has come to
    /// `applied`.
    pub(crate) fn learn(&mut self, point: Lsn, as_of: Moment, applied: Lsn) {
        match self.points.back_mut() {
            Some(newest) if newest.0.seq >= point.seq => {
                if newest.0.seq == point.seq {
                    newest.1 = newest.1.max(as_of);
                }
                return;
            }
            // A state that includes this point includes the one before.
            Some(newest) => {
                let as_of = newest.1.max(as_of);
                self.points.push_back((point, as_of));
            }
            None => self.points.push_back((point, as_of)),
        }
        if self.points.len() > POINTS_MAX {
            if self.points[1].0.seq <= applied.seq {
                self.points.pop_front();
            } else {
                self.points.remove(self.points.len() - 2);
            }
        }
    }

    /// Returns the moment as of which a state that includes `applied` was the newest; `None` if
    /// that is not known.
    pub(crate) fn as_of(&self, applied: Lsn) -> Option<Moment> {
        let included = self.points.iter().rev().find(|(point, _)| point.seq <= applied.seq);
        included.map(|(_, as_of)| *as_of)
    }

    /// Takes back what was said of the time after `now`: a leader's lease has ended early.
    pub(crate) fn end(&mut self, now: Moment) {
        for (_, as_of) in &mut self.points {
            *as_of = (*as_of).min(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(milliseconds: u64) -> Moment {
        Moment::after_start(Duration::from_millis(milliseconds))
    }

    fn point(seq: u64) -> Lsn {
        Lsn::new(1, seq)
    }

    const LEADER: (NodeId, Epoch) = (NodeId(1), 3);

    #[test]
    fn a_message_that_was_held_up_is_as_old_as_it_is() {
        let mut clock = LeaderClock::default();
        assert_eq!(clock.local(at(10_000), LEADER, at(500), at(500)), Some(at(10_000)));
        assert_eq!(clock.local(at(10_100), LEADER, at(600), at(590)), Some(at(10_090)));
        // The process stood still for ten seconds, and reads what had arrived meanwhile.
        let resumed = clock.local(at(20_100), LEADER, at(700), at(700)).unwrap();
        assert_eq!(
            resumed,
            at(10_200 + 10_000 / DRIFT_DIVISOR.unsigned_abs()),
            "drift and no more"
        );
        let late = clock.local(at(20_100), LEADER, at(10_600), at(10_600)).unwrap();
        assert!(late >= at(20_095) && late <= at(20_100), "{late}");
    }

    #[test]
    fn another_leaders_clock_is_another_clock_and_a_moment_before_the_start_is_unknown() {
        let mut clock = LeaderClock::default();
        assert_eq!(clock.local(at(10_000), LEADER, at(9_000), at(9_000)), Some(at(10_000)));
        let other = (NodeId(2), 4);
        assert_eq!(clock.local(at(10_000), other, at(50_000), at(45_000)), Some(at(5_000)));
        assert_eq!(clock.local(at(10_000), other, at(50_000), at(30_000)), None);
    }

    #[test]
    fn a_state_is_as_old_as_the_newest_point_that_it_includes() {
        let mut log = FreshnessLog::default();
        assert_eq!(log.as_of(point(9)), None);
        log.learn(point(5), at(100), point(4));
        log.learn(point(7), at(200), point(4));
        assert_eq!(log.as_of(point(4)), None, "it has not applied what was the newest");
        assert_eq!(log.as_of(point(5)), Some(at(100)));
        assert_eq!(log.as_of(point(6)), Some(at(100)));
        assert_eq!(log.as_of(point(8)), Some(at(200)));
        log.learn(point(7), at(300), point(6));
        log.learn(point(6), at(900), point(6));
        assert_eq!(log.as_of(point(7)), Some(at(300)), "an older point changes nothing");
        log.end(at(250));
        assert_eq!(log.as_of(point(7)), Some(at(250)));
        assert_eq!(log.as_of(point(5)), Some(at(100)));
    }

    #[test]
    fn few_points_are_kept_and_what_is_left_never_makes_a_state_younger() {
        let mut log = FreshnessLog::default();
        for (seq, count) in (1..=1000).zip(1..) {
            log.learn(point(seq), at(seq), point(1));
            assert_eq!(log.points.len(), POINTS_MAX.min(count));
        }
        let mut oldest = log.points.iter().zip(1..).take(POINTS_MAX - 1);
        assert!(oldest.all(|((known, _), seq)| *known == point(seq)), "{log:?}");
        for seq in 1..=1000 {
            let as_of = log.as_of(point(seq)).expect("the table has come to the first");
            assert!(as_of <= at(seq), "{seq}: {as_of}");
        }
        assert_eq!(log.as_of(point(1000)), Some(at(1000)));
        log.learn(point(1001), at(1001), point(1000));
        assert_eq!(log.as_of(point(1001)), Some(at(1001)));
    }
}
