//! Messages that come before the replica that they are for.
//!
//! When ranges are made or changed, their replicas are opened on all nodes at about the same time, and
//! the first of each cohort speaks at once. What it says would be lost where the others are a moment
//! later, and be said again only after a timeout, while the range does not serve. So it is kept for that
//! moment. To a replica, such a message is one that the network has delayed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use trireme_replication::Lane;
use trireme_types::{CohortId, NodeId};

/// How long a message is kept: about as long as a node may take to open as many replicas as another
/// one has opened already. What is said again later than that needs no keeping.
const LIFETIME: Duration = Duration::from_secs(2);

/// The most messages that are kept for one cohort: more than its replicas say before the last of them
/// is there. One that says more takes no room from the others.
const COHORT_MESSAGES_MAX: usize = 32;

/// The most bytes of payload that are kept for one cohort.
const COHORT_BYTES_MAX: usize = 256 * 1024;

/// The most bytes that are kept of all cohorts together, with what each message takes besides: enough for
/// the first votes of ten thousand cohorts.
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a message takes besides its payload.
const OVERHEAD_BYTES: usize = 128;

/// How many places in the order there may be of messages that are gone, beside as many as there are
/// messages.
const GONE_MAX: usize = 64;

/// A message and who it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EarlyMessage {
    pub(crate) from: NodeId,
    pub(crate) cohort: CohortId,
    pub(crate) lane: Lane,
    pub(crate) payload: Bytes,
}

impl EarlyMessage {
    const fn bytes(&self) -> usize {
        self.payload.len() + OVERHEAD_BYTES
    }
}

/// The messages that are kept.
#[derive(Debug, Default)]
pub(crate) struct EarlyMessages {
    cohorts: BTreeMap<CohortId, Kept>,
    /// The cohort of each message and its number, the oldest first. Those that were taken stay until it
    /// is their turn.
    order: VecDeque<(Instant, CohortId, u64)>,
    next: u64,
    messages: usize,
    bytes: usize,
}

/// What is kept for one cohort, the oldest first, each with its number.
#[derive(Debug, Default)]
struct Kept {
    messages: VecDeque<(u64, EarlyMessage)>,
    bytes: usize,
}

impl Kept {
    fn pop(&mut self) -> usize {
        let bytes = self.messages.pop_front().map_or(0, |(_, message)| message.bytes());
        self.bytes -= bytes;
        bytes
    }
}

impl EarlyMessages {
    /// Keeps a message; the oldest ones go if there are too many, first those of its cohort. One that
    /// alone is too large is not kept.
    pub(crate) fn keep(&mut self, now: Instant, message: EarlyMessage) {
        let (cohort, bytes) = (message.cohort, message.bytes());
        if bytes > COHORT_BYTES_MAX {
            return;
        }
        // A payload is a slice of its frame, which must not be kept for it.
        let message = EarlyMessage { payload: Bytes::copy_from_slice(&message.payload), ..message };
        let kept = self.cohorts.entry(cohort).or_default();
        kept.messages.push_back((self.next, message));
        kept.bytes += bytes;
        self.bytes += bytes;
        self.messages += 1;
        while kept.messages.len() > COHORT_MESSAGES_MAX || kept.bytes > COHORT_BYTES_MAX {
            self.bytes -= kept.pop();
            self.messages -= 1;
        }
        self.order.push_back((now, cohort, self.next));
        self.next += 1;
        self.drop_oldest(now);
        if self.order.len() > 2 * self.messages + GONE_MAX {
            let first = |cohort: &CohortId| Some(self.cohorts.get(cohort)?.messages.front()?.0);
            self.order.retain(|(_, of, number)| first(of).is_some_and(|first| first <= *number));
        }
    }

    /// Takes out the messages for a cohort, in the order in which they came, without those that are too old.
    pub(crate) fn take(&mut self, now: Instant, cohort: CohortId) -> Vec<EarlyMessage> {
        self.drop_oldest(now);
        let Some(kept) = self.cohorts.remove(&cohort) else { return Vec::new() };
        self.bytes -= kept.bytes;
        self.messages -= kept.messages.len();
        kept.messages.into_iter().map(|(_, message)| message).collect()
    }

    /// Drops what is too old, and the oldest of what is too much.
    fn drop_oldest(&mut self, now: Instant) {
        while let Some(&(at, cohort, number)) = self.order.front() {
            let kept = self.cohorts.get_mut(&cohort);
            // It may have been taken, and others of its cohort have come since.
            let kept = kept.filter(|kept| kept.messages.front().is_some_and(|it| it.0 == number));
            let Some(kept) = kept else {
                self.order.pop_front();
                continue;
            };
            if now.duration_since(at) <= LIFETIME && self.bytes <= BYTES_MAX {
                return;
            }
            self.order.pop_front();
            self.bytes -= kept.pop();
            self.messages -= 1;
            if kept.messages.is_empty() {
                self.cohorts.remove(&cohort);
            }
        }
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
        assert_eq!(early.bytes, message(1, "e").bytes(), "what is too old takes no room");
        assert_eq!(early.take(late, CohortId(1)), [message(1, "e")]);
        assert_eq!((early.bytes, early.cohorts.len()), (0, 0));
    }

    /// The first votes of most of a thousand cohorts were lost, since all cohorts had room for a thousand
    /// messages together, and each got its leader only after a timeout.
    #[test]
    fn a_thousand_cohorts_have_their_first_messages_kept() {
        let mut early = EarlyMessages::default();
        let now = Instant::now();
        for payload in ["vote", "vote of another", "beacon"] {
            (1..=1000).for_each(|cohort| early.keep(now, message(cohort, payload)));
        }
        for cohort in 1..=1000 {
            let expected = ["vote", "vote of another", "beacon"].map(|it| message(cohort, it));
            assert_eq!(early.take(now, CohortId(cohort)), expected);
        }
        assert_eq!(early.bytes, 0);
    }

    #[test]
    fn of_too_many_messages_the_oldest_go_and_first_those_of_the_same_cohort() {
        let mut early = EarlyMessages::default();
        let now = Instant::now();
        early.keep(now, message(2, "of another"));
        for number in 0..COHORT_MESSAGES_MAX + 5 {
            early.keep(now, message(1, number.to_string()));
        }
        let kept = early.take(now, CohortId(1));
        assert_eq!((kept.len(), &kept[0]), (COHORT_MESSAGES_MAX, &message(1, "5")));
        for _ in 0..5 {
            early.keep(now, message(1, vec![0; COHORT_BYTES_MAX / 3]));
        }
        assert_eq!(early.take(now, CohortId(1)).len(), 2);
        early.keep(now, message(1, "small"));
        early.keep(now, message(1, vec![0; COHORT_BYTES_MAX]));
        assert_eq!(early.take(now, CohortId(1)), [message(1, "small")], "one is too large itself");
        assert_eq!(early.take(now, CohortId(2)), [message(2, "of another")]);
        assert_eq!(early.bytes, 0);

        let large = vec![0; COHORT_BYTES_MAX - OVERHEAD_BYTES];
        let most = u64::try_from(BYTES_MAX / COHORT_BYTES_MAX).unwrap();
        (1..=most + 3).for_each(|cohort| early.keep(now, message(cohort, large.clone())));
        let kept = (1..=most + 3).filter(|it| !early.take(now, CohortId(*it)).is_empty());
        assert_eq!(kept.collect::<Vec<_>>(), (4..=most + 3).collect::<Vec<_>>());
        early.keep(now, message(1, "x"));
        assert_eq!(early.order.len(), 1, "nothing is remembered of what was taken");
        for number in 0..10_000 {
            early.keep(now, message(2, number.to_string()));
        }
        assert_eq!(early.messages, COHORT_MESSAGES_MAX + 1);
        assert!(early.order.len() <= 2 * early.messages + GONE_MAX, "{}", early.order.len());
    }
}
