//! Time, as a core sees it.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment on the replica's monotonic clock, as the time since some start that all moments of one
/// replica share. It means nothing on another replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(Duration);

impl Moment {
    /// The clock's start.
    pub const START: Self = Self(Duration::ZERO);

    /// A moment that never comes: a hundred years after the clock's start.
    pub const FAR: Self = Self(Duration::from_secs(100 * 365 * 24 * 60 * 60));

    /// Returns the moment this long after the clock's start.
    pub const fn after_start(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// Returns the time since the clock's start.
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// Returns the time since `earlier`; zero if that is not earlier.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    /// Returns the moment this much later; past the end of time, the end of time.
    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;

    /// Returns the moment this much earlier; before the clock's start, its start.
    fn sub(self, earlier: Duration) -> Self {
        Self(self.0.saturating_sub(earlier))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_end_where_time_does() {
        let second = Duration::from_secs(1);
        let moment = Moment::after_start(3 * second);
        assert_eq!((moment + second).since_start(), 4 * second);
        assert_eq!((moment - second).since_start(), 2 * second);
        assert_eq!(moment - 4 * second, Moment::START);
        assert_eq!((moment + Duration::MAX).since_start(), Duration::MAX);
        assert_eq!(moment.since(Moment::START + second), 2 * second);
        assert_eq!(Moment::START.since(moment), Duration::ZERO);
        assert!(Moment::FAR.since_start().as_secs() > 99 * 365 * 24 * 3600);
        assert_eq!(moment.to_string(), "3s");
    }
}
