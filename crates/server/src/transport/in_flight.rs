//! What has been handed over and is still on its way, because a fault delays it.

use std::collections::VecDeque;
use std::future::pending;

use tokio::time::{Instant, sleep_until};

/// Things in the order in which they were handed over, each with the time from which it may leave.
/// Nothing leaves before what was handed over earlier, so many can be on their way at once and none
/// overtakes another: a delay is one of latency and holds up nothing else.
pub(super) struct InFlight<T> {
    things: VecDeque<Thing<T>>,
    bytes: usize,
}

struct Thing<T> {
    due: Instant,
    bytes: usize,
    thing: T,
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self { things: VecDeque::new(), bytes: 0 }
    }
}

impl<T> InFlight<T> {
    /// Takes a thing of so many bytes, which may leave from `due` on.
    pub(super) fn push(&mut self, due: Instant, bytes: usize, thing: T) {
        self.bytes += bytes;
        self.things.push_back(Thing { due, bytes, thing });
    }

    /// Returns the next thing, if it may leave now.
    pub(super) fn pop(&mut self) -> Option<T> {
        let Thing { bytes, thing, .. } =
            self.things.pop_front_if(|first| first.due <= Instant::now())?;
        self.bytes -= bytes;
        Some(thing)
    }

    /// Returns when the next thing may leave; `None` if there is none.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.things.front().map(|first| first.due)
    }

    /// Returns once a thing may leave; never if there is none.
    pub(super) async fn wait(&self) {
        match self.next_due() {
            Some(due) => sleep_until(due).await,
            None => pending().await,
        }
    }

    /// Returns how many things are on their way.
    pub(super) fn len(&self) -> usize {
        self.things.len()
    }

    /// Returns the bytes of all that is on its way.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_is_delayed_leaves_together_and_what_follows_leaves_after_it() {
        let began = Instant::now();
        let delay = Duration::from_millis(100);
        let mut in_flight = InFlight::default();
        for thing in 0..3 {
            in_flight.push(began + delay, 10, thing);
        }
        in_flight.push(began, 5, 3);
        assert_eq!((in_flight.pop(), in_flight.len(), in_flight.bytes()), (None, 4, 35));
        in_flight.wait().await;
        assert!(began.elapsed() >= delay);
        let left: Vec<i32> = std::iter::from_fn(|| in_flight.pop()).collect();
        assert_eq!((left, in_flight.bytes()), (vec![0, 1, 2, 3], 0));
        assert_eq!(in_flight.next_due(), None);
    }
}
