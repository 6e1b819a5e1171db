//! Callers, in a closed loop or at the rate of an open one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::task::JoinSet;
use trireme_client::{Client, ClientError, Consistency, ReadOptions, Value};
use trireme_compare::keys::Keys as Numbers;
use trireme_compare::pace::Pace;
use trireme_compare::suite::{self, Action, KeyChoice};

use super::Workload;
use super::keys::{Keys, mixed};

/// Digits that a recorded latency keeps.
const LATENCY_DIGITS: u8 = 3;

/// Values are cut out of this many more bytes than they have, so that they differ.
const VALUE_VARIETY: u64 = 64 * 1024;

/// What callers do, and to which cluster.
#[derive(Clone)]
pub(super) struct Load {
    pub(super) client: Client,
    pub(super) keys: Keys,
    /// Random bytes that values are cut out of.
    pub(super) values: Bytes,
    pub(super) value_bytes: u64,
    pub(super) workload: Workload,
    pub(super) consistency: Consistency,
    pub(super) seed: u64,
    /// How many operations are due in a second; `None` for a closed loop.
    pub(super) rate: Option<u32>,
}

/// What the callers of a run measured.
pub(super) struct Measured {
    /// From call to answer, in microseconds, of all operations that ended well after the warm-up.
    pub(super) latencies: Histogram<u64>,
    /// How many of them ended within the measured time.
    pub(super) operations: u64,
    /// How long the measured time was.
    pub(super) time: Duration,
    /// Operations that failed after the warm-up.
    pub(super) errors: u64,
    /// Gets that found no value.
    pub(super) missing: u64,
    /// Operations that were due while no caller was free, and never began.
    pub(super) not_begun: u64,
    /// Why the first operation failed that did.
    pub(super) first_error: Option<String>,
}

/// The time of a run that is measured.
#[derive(Clone, Copy)]
struct Window {
    start: Instant,
    end: Instant,
}

/// Returns the random bytes that values are cut out of.
pub(super) fn value_bytes(value_bytes: u64, seed: u64) -> Bytes {
    let length = usize::try_from(value_bytes + VALUE_VARIETY).expect("values are of limited size");
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes.into()
}

impl Load {
    /// Has this many callers at work, and measures them for `duration` after `warm_up`.
    pub(super) async fn run(
        self,
        callers: u64,
        warm_up: Duration,
        duration: Duration,
    ) -> anyhow::Result<Measured> {
        let start = Instant::now() + warm_up;
        let window = Window { start, end: start + duration };
        let pace = self.rate.map(|rate| Pace::start(rate, window.end)).transpose()?;
        let mut running = JoinSet::new();
        let keys = Numbers::new(self.keys.count());
        for number in 0..callers {
            let caller = self.caller((number, callers), keys.clone());
            running.spawn(caller.call(window, pace.clone()));
        }
        let mut all = Measured::new(duration);
        while let Some(measured) = running.join_next().await {
            all.add(measured.expect("callers do not panic and are not aborted"));
        }
        if let Some(pace) = pace {
            all.not_begun = pace.left().await;
        }
        Ok(all)
    }

    /// Puts every key once; fails with the first put that does.
    pub(super) async fn put_every_key(self, callers: u64) -> Result<(), ClientError> {
        let next = Arc::new(AtomicU64::new(0));
        let mut running = JoinSet::new();
        for _ in 0..callers.min(self.keys.count()) {
            let (load, next) = (self.clone(), Arc::clone(&next));
            running.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= load.keys.count() {
                        return Ok(());
                    }
                    load.client.put(load.keys.key(number), load.value(mixed(number))).await?;
                }
            });
        }
        while let Some(ended) = running.join_next().await {
            ended.expect("callers do not panic and are not aborted")?;
        }
        Ok(())
    }

    fn caller(&self, number: (u64, u64), numbers: Numbers) -> Caller {
        let choices = self.workload.choices();
        let weights = choices.mix.iter().map(|(_, weight)| *weight);
        Caller {
            number,
            random: StdRng::seed_from_u64(mixed(self.seed) ^ number.0),
            mix: WeightedIndex::new(weights).expect("the comparison adds up every mix"),
            choices,
            numbers,
            load: self.clone(),
        }
    }

    fn value(&self, choice: u64) -> Bytes {
        let start = usize::try_from(choice % VALUE_VARIETY).expect("64 KiB at most");
        let length = usize::try_from(self.value_bytes).expect("values are of limited size");
        self.values.slice(start..start + length)
    }
}

/// A caller at work.
struct Caller {
    /// Its number, and how many callers there are.
    number: (u64, u64),
    random: StdRng,
    choices: suite::Workload,
    mix: WeightedIndex<u32>,
    /// The keys by their numbers, those included that callers have added.
    numbers: Numbers,
    load: Load,
}

impl Caller {
    /// Does one operation after the other until the window ends. The one that is outstanding then
    /// is waited for, and adds no operation but its latency or its failure: a cluster that stands
    /// still must not look idle.
    async fn call(mut self, window: Window, pace: Option<Pace>) -> Measured {
        let mut measured = Measured::new(window.end - window.start);
        let mut begun = Instant::now();
        while begun < window.end {
            if let Some(pace) = &pace {
                let Some(due) = pace.next().await else { break };
                begun = due;
            }
            let done = self.operate().await;
            let ended = Instant::now();
            if ended >= window.start {
                measured.operations += u64::from(done.is_ok() && ended < window.end);
                measured.record(ended - begun, done);
            }
            begun = ended;
        }
        measured
    }

    /// Does one operation. Returns true if it found what it must find.
    async fn operate(&mut self) -> Result<bool, ClientError> {
        let (action, _) = self.choices.mix[self.mix.sample(&mut self.random)];
        let number = match action {
            Action::Insert => self.numbers.add(),
            _ => self.numbers.choose(self.choices.keys, self.number, &mut self.random),
        };
        let key = self.load.keys.key(number);
        match action {
            Action::Get(_) => {
                let is_there = self.get(key).await?.is_some();
                // Of the newest keys, some are being put.
                Ok(is_there || self.choices.keys == KeyChoice::Latest)
            }
            Action::Put | Action::Insert => {
                let value = self.value();
                self.load.client.put(key, value).await?;
                Ok(true)
            }
            Action::Modify | Action::PutIf => {
                let Some(found) = self.get(key.clone()).await? else { return Ok(false) };
                let value = self.value();
                // That another caller was faster is an answer like any other.
                let _is_done = self.load.client.put_if_version(key, value, found.version).await?;
                Ok(true)
            }
            Action::Scan => {
                let rows = self.random.random_range(1..=suite::SCAN_ROWS_MAX);
                let rows = usize::try_from(rows).expect("few");
                let scan = self.load.client.scan(key..).consistency(self.load.consistency);
                Ok(!scan.limit(rows).collect().await?.is_empty())
            }
        }
    }

    async fn get(&self, key: Bytes) -> Result<Option<Value>, ClientError> {
        let options = ReadOptions { consistency: self.load.consistency, deadline: None };
        Ok(self.load.client.get_with(key, options).await?.value)
    }

    fn value(&mut self) -> Bytes {
        let choice = self.random.random();
        self.load.value(choice)
    }
}

impl Measured {
    fn new(time: Duration) -> Self {
        let latencies = Histogram::new(LATENCY_DIGITS).expect("3 digits are supported");
        Self {
            latencies,
            operations: 0,
            time,
            errors: 0,
            missing: 0,
            not_begun: 0,
            first_error: None,
        }
    }

    fn record(&mut self, latency: Duration, done: Result<bool, ClientError>) {
        match done {
            Ok(found) => {
                self.missing += u64::from(!found);
                let microseconds = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
                self.latencies.record(microseconds).expect("the histogram grows as needed");
            }
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert_with(|| error.to_string());
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.latencies.add(&other.latencies).expect("the histogram grows as needed");
        self.operations += other.operations;
        self.errors += other.errors;
        self.missing += other.missing;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}
