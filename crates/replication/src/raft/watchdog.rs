//! When a leader must give up its lead although its heartbeats arrive (P14).
//!
//! Followers elect another leader once they miss its heartbeats. A leader that can be heard and
//! cannot hear, whose data are lost while heartbeats pass, or whose own table stands still, would
//! lead for ever and commit nothing, or answer nobody. Nobody but the leader can see that, so it
//! watches itself and hands over once it is sure. Three things are watched:
//!
//! - **answers**: a majority has acknowledged something within a lease. A leader without cannot
//!   commit, and its followers' leases keep them from electing another;
//! - **the data lane**: while entries are pending and the commit point stands still, a majority
//!   answers probes on the lane that carries the entries. Probes do not wait for disks, so that slow
//!   disks depose nobody;
//! - **the table**: it has not moved for [`BEHIND_MAX`] although a follower has applied more. That
//!   includes a disk that no longer takes the log, once the log's queue is full.
//!
//! Each is believed only at several looks in a row that came in time: a process that stood still
//! finds everything late and everybody silent, and knows nothing yet.

use std::time::Duration;

use tokio::time::Instant;

/// How long a leader's table may stand still while a follower's has gone further. Many times what a
/// flush of the table takes; with the time that the others need for an election, writes flow again
/// within two seconds.
const BEHIND_MAX: Duration = Duration::from_secs(1);

/// At how many looks in a row a leader must find itself in trouble. One look may fall into a pause
/// of the process.
const LOOKS_MIN: u32 = 3;

/// A look that comes later than this many intervals after the one before says nothing.
const PUNCTUAL_INTERVALS: u32 = 3;

/// Why a leader gives up its lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No majority has answered within a lease.
    Unanswered,
    /// What is pending does not reach a majority, or its answers do not come back.
    DataLane,
    /// Its table stands still.
    Behind,
}

/// What a leader sees of itself at one look.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) now: Instant,
    /// The time since which no majority has answered.
    pub(super) unanswered_for: Duration,
    /// Whether a majority, with the leader, answers on the data lane; true if nothing is asked.
    pub(super) data_flow: bool,
    /// The newest entry in its table.
    pub(super) applied: u64,
    /// The newest entry that a follower is known to have in its table.
    pub(super) follower_applied: u64,
}

/// Watches one leader.
pub(super) struct Watchdog {
    /// A leader's lease.
    lease: Duration,
    /// How often a leader looks.
    interval: Duration,
    last_look: Option<Instant>,
    /// At how many looks in a row there was trouble.
    troubled: u32,
    /// What was applied when a follower was first seen to be ahead, and when that was.
    behind: Option<(u64, Instant)>,
}

impl Watchdog {
    pub(super) const fn new(lease: Duration, interval: Duration) -> Self {
        Self { lease, interval, last_look: None, troubled: 0, behind: None }
    }

    /// Forgets what was seen, as when another lead begins.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.lease, self.interval);
    }

    /// Returns why the leader is to give up its lead, if it is.
    pub(super) fn look(&mut self, view: View) -> Option<Trouble> {
        let last = self.last_look.replace(view.now);
        let is_punctual =
            last.is_none_or(|last| view.now - last <= self.interval * PUNCTUAL_INTERVALS);
        if !is_punctual {
            (self.troubled, self.behind) = (0, None);
            return None;
        }
        let Some(trouble) = self.trouble(view) else {
            self.troubled = 0;
            return None;
        };
        self.troubled += 1;
        (self.troubled >= LOOKS_MIN).then_some(trouble)
    }

    fn trouble(&mut self, view: View) -> Option<Trouble> {
        let is_behind = self.is_behind(view);
        if view.unanswered_for > self.lease {
            Some(Trouble::Unanswered)
        } else if !view.data_flow {
            Some(Trouble::DataLane)
        } else {
            is_behind.then_some(Trouble::Behind)
        }
    }

    fn is_behind(&mut self, view: View) -> bool {
        if view.follower_applied <= view.applied {
            self.behind = None;
            return false;
        }
        match self.behind {
            Some((applied, since)) if applied == view.applied => view.now - since > BEHIND_MAX,
            _ => {
                self.behind = Some((view.applied, view.now));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(700);
    const INTERVAL: Duration = Duration::from_millis(50);

    /// Looks again and again, and returns what is found at last and after how long.
    fn watch(
        looks: u32,
        every: Duration,
        view: impl Fn(Duration) -> View,
    ) -> Option<(Trouble, Duration)> {
        let mut watchdog = Watchdog::new(LEASE, INTERVAL);
        (0..looks)
            .map(|look| every * look)
            .find_map(|after| watchdog.look(view(after)).map(|trouble| (trouble, after)))
    }

    fn healthy(now: Instant) -> View {
        let unanswered_for = Duration::ZERO;
        View { now, unanswered_for, data_flow: true, applied: 9, follower_applied: 9 }
    }

    #[test]
    fn a_leader_that_works_leads_on() {
        let start = Instant::now();
        assert_eq!(watch(100, INTERVAL, |after| healthy(start + after)), None);
    }

    #[test]
    fn a_leader_that_nobody_answers_gives_up_soon_after_its_lease() {
        let start = Instant::now();
        let deaf = |after| View { unanswered_for: after, ..healthy(start + after) };
        let (trouble, after) = watch(100, INTERVAL, deaf).unwrap();
        assert_eq!(trouble, Trouble::Unanswered);
        assert!(after > LEASE && after < LEASE + INTERVAL * 4, "{after:?}");
    }

    #[test]
    fn a_leader_whose_data_do_not_flow_gives_up_although_it_is_answered() {
        let start = Instant::now();
        let cut = |after| View { data_flow: false, ..healthy(start + after) };
        assert_eq!(watch(100, INTERVAL, cut).unwrap().0, Trouble::DataLane);
        let wavering = |after: Duration| View {
            data_flow: after.as_millis().is_multiple_of(100),
            ..healthy(start + after)
        };
        assert_eq!(watch(100, INTERVAL, wavering), None);
    }

    #[test]
    fn a_leader_whose_table_stands_still_gives_up_if_a_followers_does_not() {
        let start = Instant::now();
        let ahead = |after| View { follower_applied: 12, ..healthy(start + after) };
        let (trouble, after) = watch(100, INTERVAL, ahead).unwrap();
        assert_eq!(trouble, Trouble::Behind);
        assert!(after > BEHIND_MAX && after < BEHIND_MAX + INTERVAL * 5, "{after:?}");
        let slow = |after: Duration| View {
            applied: u64::try_from(after.as_millis()).unwrap() / 400,
            follower_applied: 1000,
            ..healthy(start + after)
        };
        assert_eq!(watch(100, INTERVAL, slow), None, "slow is not stuck");
    }

    /// A process that was stopped for a while, or that gets no processor, finds everybody silent.
    #[test]
    fn a_leader_that_looks_too_seldom_gives_up_nothing() {
        let start = Instant::now();
        let deaf = |after| View {
            unanswered_for: Duration::from_secs(9),
            data_flow: false,
            follower_applied: 12,
            ..healthy(start + after)
        };
        assert_eq!(watch(100, INTERVAL * 4, deaf), None);
    }
}
