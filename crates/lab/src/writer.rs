//! One caller that puts one key after the other without a pause, and what became of the keys.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use trireme_client::{Client, ClientOptions};

use crate::measure::Put;

/// How long one put may take, retries included: many times what a cohort needs to find a new
/// leader, so that a put that fails says that none was found.
const PUT_DEADLINE: Duration = Duration::from_secs(60);

/// How often the writer is looked at by who waits for it. The moments that are measured are the
/// writer's own.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Where the keys begin.
const KEYS: &str = "lab-";

/// How many lost keys are named.
const EXAMPLES_MAX: usize = 5;

/// The options of a client whose gaps are measured. It asks again much sooner than an application
/// should, so that a gap is known to within ten milliseconds.
pub(crate) fn impatient() -> ClientOptions {
    ClientOptions {
        deadline: PUT_DEADLINE,
        attempt_timeout: Duration::from_millis(200),
        connect_timeout: Duration::from_millis(500),
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(10),
        ..ClientOptions::default()
    }
}

/// A task that puts numbered keys. Dropped, it ends.
pub(crate) struct Writer {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// The puts that were acknowledged since they were last forgotten.
    puts: Vec<Put>,
    /// The number of the next key: those below it were acknowledged.
    next: u64,
    /// Why the writer stopped by itself.
    failure: Option<String>,
}

impl Writer {
    /// Starts to put keys from the number `first` on.
    pub(crate) fn start(client: Client, first: u64, value_bytes: usize) -> Self {
        let shared = Arc::new(Shared::default());
        shared.progress.lock().next = first;
        let task = tokio::spawn(Arc::clone(&shared).write(client, value_bytes));
        Self { shared, task }
    }

    /// Forgets the puts until now, and returns once some further ones were acknowledged.
    pub(crate) async fn begin_anew(&self, patience: Duration) -> anyhow::Result<()> {
        self.shared.progress.lock().puts.clear();
        self.wait_for_put_begun_after(Instant::now(), patience).await
    }

    /// Waits until a put was acknowledged that was begun after `moment`.
    pub(crate) async fn wait_for_put_begun_after(
        &self,
        moment: Instant,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            {
                let progress = self.shared.progress.lock();
                if progress.puts.last().is_some_and(|put| put.begun > moment) {
                    return Ok(());
                }
                if let Some(failure) = &progress.failure {
                    bail!("the writer stopped: {failure}");
                }
            }
            if Instant::now() >= deadline {
                bail!("no put was acknowledged for {patience:?}");
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Returns the puts since they were last forgotten.
    pub(crate) fn puts(&self) -> Vec<Put> {
        self.shared.progress.lock().puts.clone()
    }

    /// Returns the number below which every key was acknowledged.
    pub(crate) fn next(&self) -> u64 {
        self.shared.progress.lock().next
    }

    /// Has the writer stop after the put that is under way, and returns the number below which
    /// every key was acknowledged.
    pub(crate) async fn stop(mut self) -> anyhow::Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        (&mut self.task).await.context("the writer has failed")?;
        let progress = self.shared.progress.lock();
        match &progress.failure {
            Some(failure) => bail!("the writer stopped: {failure}"),
            None => Ok(progress.next),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    async fn write(self: Arc<Self>, client: Client, value_bytes: usize) {
        let mut number = self.progress.lock().next;
        while !self.stop.load(Ordering::Relaxed) {
            // Made before the clock is read: it is no part of the put.
            let (key, value) = (key(number), value(number, value_bytes));
            let begun = Instant::now();
            let put = client.put(key, value).await;
            let acknowledged = Instant::now();
            let mut progress = self.progress.lock();
            match put {
                Ok(_version) => progress.puts.push(Put { begun, acknowledged }),
                Err(error) => {
                    progress.failure = Some(format!("the put of key {number} failed: {error}"));
                    return;
                }
            }
            number += 1;
            progress.next = number;
        }
    }
}

/// Returns the key of a number. Keys are in the order of their numbers.
pub(crate) fn key(number: u64) -> Bytes {
    format!("{KEYS}{number:012}").into()
}

/// Returns the value of a number's key: random bytes that only this number has.
pub(crate) fn value(number: u64, bytes: usize) -> Bytes {
    let mut value = vec![0; bytes];
    StdRng::seed_from_u64(number).fill_bytes(&mut value);
    value.into()
}

/// Says, after a strong scan, which of the keys of these numbers are not there with their values, if
/// any.
pub(crate) async fn lost(
    client: &Client,
    numbers: Range<u64>,
    value_bytes: usize,
) -> anyhow::Result<Option<String>> {
    let mut scan = client.scan(key(numbers.start)..key(numbers.end));
    let mut found = Found { next: numbers.start, ..Found::default() };
    while let Some(row) = scan.next().await.context("scanning what was written")? {
        found.row(&row.key, &row.value, numbers.end, value_bytes);
    }
    found.skip_to(numbers.end);
    Ok(found.verdict(numbers.end - numbers.start))
}

/// What a scan has met so far.
#[derive(Debug, Default)]
struct Found {
    /// The number whose key is to come next.
    next: u64,
    lost: u64,
    examples: Vec<String>,
}

impl Found {
    fn row(&mut self, found: &[u8], held: &[u8], end: u64, value_bytes: usize) {
        let digits = found.strip_prefix(KEYS.as_bytes()).and_then(|d| std::str::from_utf8(d).ok());
        let number: Option<u64> = digits.and_then(|digits| digits.parse().ok());
        // A put whose answer nobody waited for may have been done.
        let Some(number) = number.filter(|number| (self.next..end).contains(number)) else {
            return;
        };
        self.skip_to(number);
        if held != value(number, value_bytes) {
            self.lose(number, "has another value");
        }
        self.next = number + 1;
    }

    fn skip_to(&mut self, number: u64) {
        for missing in self.next..number {
            self.lose(missing, "is missing");
        }
        self.next = self.next.max(number);
    }

    fn lose(&mut self, number: u64, how: &str) {
        self.lost += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(format!("key {number} {how}"));
        }
    }

    fn verdict(self, count: u64) -> Option<String> {
        let Self { lost, examples, .. } = self;
        let lost_any = lost > 0;
        lost_any.then(|| format!("{lost} of {count} acknowledged keys: {}", examples.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(rows: &[(u64, u64)]) -> Option<String> {
        let mut found = Found::default();
        for (number, of) in rows {
            found.row(&key(*number), &value(*of, 16), 4, 16);
        }
        found.skip_to(4);
        found.verdict(4)
    }

    #[test]
    fn nothing_is_lost_if_every_key_has_its_value() {
        assert_eq!(verdict(&[(0, 0), (1, 1), (2, 2), (3, 3)]), None);
        assert_eq!(verdict(&[(0, 0), (1, 1), (2, 2), (3, 3), (4, 9)]), None, "4 is beyond");
    }

    #[test]
    fn a_missing_key_and_a_wrong_value_are_lost() {
        let told = verdict(&[(1, 1), (2, 1)]).unwrap();
        assert_eq!(
            told,
            "3 of 4 acknowledged keys: key 0 is missing, key 2 has another value, key 3 is missing"
        );
    }

    #[test]
    fn values_differ_and_keys_are_in_order() {
        assert_ne!(value(1, 4096), value(2, 4096));
        assert_eq!(value(7, 100).len(), 100);
        assert!(key(9) < key(10) && key(10) < key(999_999));
    }
}
