//! The periods of the two protocols of our own, as a node is started with them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How far two monotonic clocks may run apart, and how late a thread may look at its own, as a part
/// of a lease: a grace must outlast a lease by at least this share of it.
const DRIFT_DIVISOR: u32 = 10;

/// The longest period that makes sense: with a longer grace, a dead leader is never replaced. It
/// also keeps every sum of periods and points in time within what a clock can hold.
pub const PERIOD_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// The periods of Spinnaker and PacificA. Every node of a cluster should be started with the same;
/// safety asks only that no node's `grace` is shorter than another node's `lease`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timing {
    /// How long a leader waits before it tells its followers how far the log is committed; it rides
    /// on proposals where there are any. Longer saves messages and forced commit points; shorter
    /// keeps timeline reads fresher and makes a takeover shorter (Spinnaker §5, §D.1).
    pub commit_period: Duration,
    /// How often a leader asks its followers for their support (PacificA's beacon interval). What
    /// it sends anyway counts too.
    pub beacon_interval: Duration,
    /// How long a leader may serve after it sent the last beacon that was acknowledged, counted at
    /// the leader (PacificA §2.3; S5, P1). Longer bears longer pauses; shorter ends a stall sooner.
    pub lease: Duration,
    /// How long a follower that acknowledged a beacon supports no other leader, counted from when
    /// it received the beacon. It bounds from below how soon a dead leader is replaced.
    pub grace: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            commit_period: Duration::from_millis(20),
            beacon_interval: Duration::from_millis(100),
            lease: Duration::from_millis(800),
            grace: Duration::from_millis(1000),
        }
    }
}

/// The periods that somebody asks for; those that are `None` stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimingChange {
    /// See [`Timing::commit_period`].
    pub commit_period: Option<Duration>,
    /// See [`Timing::beacon_interval`].
    pub beacon_interval: Option<Duration>,
    /// See [`Timing::lease`].
    pub lease: Option<Duration>,
    /// See [`Timing::grace`].
    pub grace: Option<Duration>,
}

impl TimingChange {
    /// Returns the periods with the change made, unless they cannot work together then.
    pub fn of(self, timing: Timing) -> Result<Timing, InvalidTiming> {
        let changed = Timing {
            commit_period: self.commit_period.unwrap_or(timing.commit_period),
            beacon_interval: self.beacon_interval.unwrap_or(timing.beacon_interval),
            lease: self.lease.unwrap_or(timing.lease),
            grace: self.grace.unwrap_or(timing.grace),
        };
        changed.validate().map(|()| changed)
    }
}

/// Periods that cannot work together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidTiming(String);

impl Timing {
    /// Checks `grace > lease > 2 x beacon interval` (M38), with room for clocks that do not run
    /// alike (P1).
    pub fn validate(&self) -> Result<(), InvalidTiming> {
        let Self { commit_period, beacon_interval, lease, grace } = *self;
        let refuse = |reason: String| Err(InvalidTiming(reason));
        for (name, period) in [
            ("commit period", commit_period),
            ("beacon interval", beacon_interval),
            ("lease", lease),
            ("grace", grace),
        ] {
            if period > PERIOD_MAX {
                return refuse(format!(
                    "the {name} of {period:?} must be at most {PERIOD_MAX:?}, which is a day"
                ));
            }
        }
        if commit_period.is_zero() || beacon_interval.is_zero() {
            return refuse("the commit period and the beacon interval must not be zero".into());
        }
        if lease <= 2 * beacon_interval {
            return refuse(format!(
                "a lease of {lease:?} must be longer than two beacon intervals of {beacon_interval:?}"
            ));
        }
        let least = lease + lease / DRIFT_DIVISOR;
        if grace < least {
            return refuse(format!(
                "a grace of {grace:?} must be at least {least:?}: a lease of {lease:?} and a tenth"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// M38: what breaks `grace > lease > 2 x beacon` is refused.
    #[test]
    fn periods_that_break_the_order_of_lease_and_grace_are_refused() {
        let timing = Timing::default();
        assert_eq!(timing.validate(), Ok(()));
        assert!(Timing { grace: timing.lease, ..timing }.validate().is_err());
        assert!(Timing { grace: ms(879), ..timing }.validate().is_err(), "no room for drift");
        assert_eq!(Timing { grace: ms(880), ..timing }.validate(), Ok(()));
        assert!(Timing { beacon_interval: ms(400), ..timing }.validate().is_err());
        assert!(Timing { commit_period: ms(0), ..timing }.validate().is_err());
        assert!(Timing { beacon_interval: ms(0), ..timing }.validate().is_err());
    }

    /// Periods whose sums pass the largest duration were a panic, and ones just below it were
    /// remembered and then ended the replicas' tasks.
    #[test]
    fn no_period_is_too_long_to_be_refused() {
        let timing = Timing::default();
        for long in
            [PERIOD_MAX + ms(1), Duration::from_secs(9_000_000_000_000_000_000), Duration::MAX]
        {
            for timing in [
                Timing { commit_period: long, ..timing },
                Timing { beacon_interval: long, ..timing },
                Timing { lease: long, grace: long, ..timing },
                Timing { grace: long, ..timing },
            ] {
                let refused = timing.validate().unwrap_err().to_string();
                assert!(refused.contains("which is a day"), "{refused}");
            }
        }
        let longest = Timing { lease: PERIOD_MAX / 2, grace: PERIOD_MAX, ..timing };
        assert_eq!(longest.validate(), Ok(()));
    }

    #[test]
    fn a_change_leaves_alone_what_it_does_not_name_and_is_judged_with_it() {
        let timing = Timing::default();
        assert_eq!(TimingChange::default().of(timing), Ok(timing));
        let grace = Some(ms(2000));
        let longer = Timing { grace: ms(2000), ..timing };
        assert_eq!(TimingChange { grace, ..TimingChange::default() }.of(timing), Ok(longer));
        let lease = TimingChange { lease: Some(ms(1500)), ..TimingChange::default() };
        assert!(lease.of(timing).is_err(), "the grace is too short for it");
        assert_eq!(lease.of(longer), Ok(Timing { lease: ms(1500), ..longer }));
    }
}
