//! What a follower owes the leader that it supports.

use std::time::Duration;

use crate::core::Moment;

/// A follower's promise to help no other replica to lead, for the grace after it last heard from the
/// leader that it supports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Support {
    grace: Duration,
    until: Moment,
}

impl Support {
    /// Returns the promise of a replica that starts at `now`. A replica that `may_have_promised`
    /// before it stopped keeps what it may have promised at its last moment.
    pub(crate) fn starting(now: Moment, grace: Duration, may_have_promised: bool) -> Self {
        Self { grace, until: if may_have_promised { now + grace } else { now } }
    }

    /// Promises anew: a message of the supported leader was received at `now` (P1).
    pub(crate) fn renew(&mut self, now: Moment) {
        self.until = self.until.max(now + self.grace);
    }

    /// Is freed by the leader itself, which no longer reads under any follower's promise.
    pub(crate) fn release(&mut self, now: Moment) {
        self.until = now;
    }

    /// Stays bound until `until` at least.
    pub(crate) fn hold(&mut self, until: Moment) {
        self.until = self.until.max(until);
    }

    /// Returns when the replica is free to help another.
    pub(crate) const fn until(&self) -> Moment {
        self.until
    }
}
