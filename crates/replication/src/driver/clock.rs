//! The driver's clock.

use tokio::time::Instant;

use crate::core::Moment;
use crate::simulation::{self, ClockRate};

/// A monotonic clock that starts when it is made. It is the runtime's clock, which a test can stop
/// and turn, and whose rate a simulator decides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
    rate: ClockRate,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { start: Instant::now(), rate: simulation::clock_rate() }
    }

    /// Returns when it was started.
    pub(super) const fn started(self) -> Instant {
        self.start
    }

    pub(super) fn now(self) -> Moment {
        Moment::after_start(self.rate.local(self.start.elapsed()))
    }

    /// Returns the moment of an instant of the runtime's clock; the start for one before it.
    pub(super) fn moment(self, instant: Instant) -> Moment {
        Moment::after_start(self.rate.local(instant.saturating_duration_since(self.start)))
    }

    /// Returns the moment on the runtime's clock; far in the future for one past its end.
    pub(super) fn instant(self, moment: Moment) -> Instant {
        let elapsed = self.rate.time(moment.since_start());
        self.start.checked_add(elapsed).unwrap_or_else(|| self.start + FAR)
    }
}

/// A hundred years, which no replica lives.
const FAR: std::time::Duration = std::time::Duration::from_secs(100 * 365 * 24 * 60 * 60);
