//! When each lease ends, by this process's monotonic clock.
//!
//! Deadlines are not persisted: a lease that a restart finds gets its whole time again, so that
//! it lives at least as long as it had left, as in etcd.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// The deadlines of the leases that the store holds.
#[derive(Debug, Default)]
pub(super) struct Lessor {
    leases: HashMap<i64, Term>,
    /// Leases whose end has been decided and waits to be applied. They cannot be kept alive.
    ending: HashSet<i64>,
}

#[derive(Clone, Copy, Debug)]
struct Term {
    ttl: i64,
    deadline: Instant,
}

impl Lessor {
    /// Starts a lease's time.
    pub(super) fn start(&mut self, id: i64, ttl: i64, now: Instant) {
        self.leases.insert(id, Term { ttl, deadline: now + seconds(ttl) });
    }

    /// Forgets a lease that the store holds no more.
    pub(super) fn remove(&mut self, id: i64) {
        self.leases.remove(&id);
        self.ending.remove(&id);
    }

    /// Gives a lease its whole time again and returns it; `None` if it has ended.
    pub(super) fn keep_alive(&mut self, id: i64, now: Instant) -> Option<i64> {
        if self.ending.contains(&id) {
            return None;
        }
        let term = self.leases.get_mut(&id).filter(|term| term.deadline > now)?;
        term.deadline = now + seconds(term.ttl);
        Some(term.ttl)
    }

    /// Returns the time that a lease has left, and its whole time in seconds.
    pub(super) fn remaining(&self, id: i64, now: Instant) -> Option<(Duration, i64)> {
        let term = self.leases.get(&id)?;
        Some((term.deadline.saturating_duration_since(now), term.ttl))
    }

    /// Returns the leases, those that end first in front.
    pub(super) fn by_deadline(&self) -> Vec<i64> {
        let mut leases: Vec<_> = self.leases.iter().map(|(&id, t)| (t.deadline, id)).collect();
        leases.sort_unstable();
        leases.into_iter().map(|(_, id)| id).collect()
    }

    /// Returns the leases that have ended by `now`, each of them once.
    pub(super) fn take_ended(&mut self, now: Instant) -> Vec<i64> {
        let ended = self.leases.iter().filter(|(_, term)| term.deadline <= now);
        let mut ended: Vec<i64> = ended.map(|(&id, _)| id).collect();
        ended.retain(|&id| self.ending.insert(id));
        ended.sort_unstable();
        ended
    }
}

fn seconds(ttl: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_lease_cannot_be_kept_alive() {
        let start = Instant::now();
        let mut lessor = Lessor::default();
        lessor.start(7, 2, start);
        assert_eq!(lessor.keep_alive(7, start + seconds(1)), Some(2));
        assert!(lessor.take_ended(start + seconds(2)).is_empty());
        assert_eq!(lessor.keep_alive(7, start + seconds(3)), None, "its time is over");
        assert_eq!(lessor.take_ended(start + seconds(3)), vec![7]);
        assert!(lessor.take_ended(start + seconds(3)).is_empty(), "told once");
        assert_eq!(lessor.keep_alive(7, start), None, "its end is decided");
        assert_eq!(lessor.keep_alive(8, start), None, "no such lease");
    }
}
