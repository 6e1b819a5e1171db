//! Messages that come before the replica that they are for.
//!
//! When a range changes, its successors' replicas are opened on all nodes at about the same time, and the
//! first of them speaks at once. What it says would be lost where the others are a moment later, and be
//! said again only after a timeout, while the range does not serve. So it is kept for that moment. To a
//! replica, such a message is one that the network has delayed.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use trireme_replication::Lane;
use trireme_types::{CohortId, NodeId};

/// How long a message is kept: about as long as a node may take to open replicas that another one has
/// opened already. What is said again later than that needs no keeping.
const LIFETIME: Duration = Duration::from_millis(500);

/// The most bytes of payload that are kept: enough for what replicas say before any of them serves.
const BYTES_MAX: usize = 256 * 1024;

/// The most messages that are kept.
const MESSAGES_MAX: usize = 1024;

/// A message and who it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EarlyMessage {
    pub(crate) from: NodeId,
    pub(crate) cohort: CohortId,
    pub(crate) lane: Lane,
    pub(crate) payload: Bytes,
}

/// The messages that are kept, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct EarlyMessages {
    kept: VecDeque<(Instant, EarlyMessage)>,
    bytes: usize,
}

impl EarlyMessages {
    /// Keeps a message; the oldest ones go if there are too many.
    pub(crate) fn keep(&mut self, now: Instant, message: EarlyMessage) {
        self.bytes += message.payload.len();
        self.kept.push_back((now, message));
        let is_over = |(at, _): &(Instant, EarlyMessage)| now.duration_since(*at) > LIFETIME;
        while self.kept.front().is_some_and(is_over)
            || self.kept.len() > MESSAGES_MAX
            || self.bytes > BYTES_MAX
        {
            let Some((_, gone)) = self.kept.pop_front() else { return };
            self.bytes -= gone.payload.len();
        }
    }

    /// Takes out the messages for a cohort, in the order in which they came, without those that are too old.
    pub(crate) fn take(&mut self, now: Instant, cohort: CohortId) -> Vec<EarlyMessage> {
        let is_its = |(_, message): &(Instant, EarlyMessage)| message.cohort == cohort;
        if !self.kept.iter().any(is_its) {
            return Vec::new();
        }
        let (its, others) = std::mem::take(&mut self.kept).into_iter().partition(is_its);
        self.kept = others;
        self.bytes = self.kept.iter().map(|(_, message)| message.payload.len()).sum();
        let its: VecDeque<_> = its;
        let fresh = its.into_iter().filter(|(at, _)| now.duration_since(*at) <= LIFETIME);
        fresh.map(|(_, message)| message).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(cohort: u64, payload: impl Into<Bytes>) -> EarlyMessage {
        let (cohort, payload) = (CohortId(cohort), payload.into());
        EarlyMessage { from: NodeId(2), cohort, lane: Lane::Data, payload }
    }

    #[test]
    fn messages_are_kept_in_order_for_a_moment_each_for_its_cohort() {
        let mut early = EarlyMessages::default();
        let now = Instant::now();
        for (cohort, payload) in [(1, "a"), (2, "b"), (1, "c")] {
            early.keep(now, message(cohort, payload));
        }
        assert_eq!(early.take(now + LIFETIME, CohortId(1)), [message(1, "a"), message(1, "c")]);
        assert_eq!(early.take(now, CohortId(1)), []);
        let late = now + LIFETIME + Duration::from_millis(1);
        assert_eq!(early.take(late, CohortId(2)), []);
        early.keep(now, message(1, "d"));
        early.keep(late, message(1, "e"));
        assert_eq!((early.kept.len(), early.bytes), (1, 1), "what is too old takes no room");
    }

    #[test]
    fn of_too_many_messages_the_oldest_go() {
        let mut early = EarlyMessages::default();
        let now = Instant::now();
        for number in 0..MESSAGES_MAX + 5 {
            early.keep(now, message(1, number.to_string()));
        }
        let kept = early.take(now, CohortId(1));
        assert_eq!((kept.len(), &kept[0]), (MESSAGES_MAX, &message(1, "5")));
        for _ in 0..5 {
            early.keep(now, message(1, vec![0; BYTES_MAX / 2]));
        }
        assert_eq!(early.take(now, CohortId(1)).len(), 2);
        early.keep(now, message(1, vec![0; BYTES_MAX + 1]));
        assert_eq!((early.take(now, CohortId(1)).len(), early.bytes), (0, 0));
    }
}
