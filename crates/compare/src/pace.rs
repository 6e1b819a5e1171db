//! The open loop: operations are due at a rate, however fast the answers come.
//!
//! A closed loop asks a slow system less often, and so measures few of the operations that would have
//! been slow. Here each operation has the moment at which it is due, its latency counts from there,
//! and a caller that is free late begins late.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc};

/// Operations that may be due and wait for a caller. With more, the next become due all the same, and
/// keep their moments.
const WAITING_MAX: usize = 1024;

/// Hands out the moments at which operations are due, to any number of callers.
#[derive(Clone)]
pub struct Pace {
    due: Arc<Mutex<mpsc::Receiver<Instant>>>,
}

impl Pace {
    /// Begins now: so many operations are due in a second, evenly, until `end`.
    ///
    /// # Errors
    ///
    /// If the thread that keeps the time cannot be started.
    ///
    /// # Panics
    ///
    /// If the rate is 0.
    pub fn start(per_second: u32, end: Instant) -> std::io::Result<Self> {
        assert!(per_second > 0, "a pace has a rate");
        let (sender, due) = mpsc::channel(WAITING_MAX);
        // A thread of its own, since the runtime's timer counts in milliseconds.
        let start = Instant::now();
        thread::Builder::new().name("pace".to_owned()).spawn(move || {
            let moments = (0_u64..).map(|number| start + nth(number, per_second));
            for moment in moments.take_while(|moment| *moment < end) {
                if let Some(wait) = moment.checked_duration_since(Instant::now()) {
                    thread::sleep(wait);
                }
                if sender.blocking_send(moment).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { due: Arc::new(Mutex::new(due)) })
    }

    /// Waits until the next operation is due and returns its moment, which may have passed; `None` if
    /// there are no more.
    pub async fn next(&self) -> Option<Instant> {
        self.due.lock().await.recv().await
    }

    /// Returns how many operations are due that no caller was free for, once the time is over.
    pub async fn left(&self) -> u64 {
        let mut left = 0;
        while self.next().await.is_some() {
            left += 1;
        }
        left
    }
}

/// Returns when an operation is due after the first.
fn nth(number: u64, per_second: u32) -> Duration {
    let (seconds, rest) = (number / u64::from(per_second), number % u64::from(per_second));
    Duration::from_secs(seconds)
        + Duration::from_nanos(rest * 1_000_000_000 / u64::from(per_second))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_due_evenly() {
        assert_eq!(nth(0, 3), Duration::ZERO);
        assert_eq!(nth(1, 1000), Duration::from_millis(1));
        assert_eq!(nth(7, 2), Duration::from_millis(3500));
        assert_eq!(nth(1 << 40, 1), Duration::from_secs(1 << 40));
    }

    /// A caller that was held up gets every moment that has passed meanwhile.
    #[tokio::test]
    async fn a_late_caller_skips_no_operation() {
        let begun = Instant::now();
        let pace = Pace::start(1000, begun + Duration::from_millis(50)).unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut due = Vec::new();
        while let Some(moment) = pace.next().await {
            due.push(moment);
        }
        assert!((49..=50).contains(&due.len()), "{}", due.len());
        let gaps = due.windows(2).map(|two| two[1] - two[0]);
        assert!(gaps.into_iter().all(|gap| gap == Duration::from_millis(1)));
        assert_eq!(pace.left().await, 0);
    }

    #[tokio::test]
    async fn what_no_caller_was_free_for_is_counted() {
        let pace = Pace::start(100_000, Instant::now() + Duration::from_millis(20)).unwrap();
        assert!(pace.next().await.is_some());
        let left = pace.left().await;
        assert!(
            (WAITING_MAX as u64 + 1..2000).contains(&left),
            "more than the channel holds: {left}"
        );
    }
}
