//! Callers, each with one operation under way, who record every operation: in a closed loop, or at
//! the rate of an open one.
//!
//! What a caller does depends on the seed, the workload and its own number: every system is asked
//! the same, in the same order by each caller, for as far as it gets in the time. Two things depend
//! on how far all have come: which number a new key gets, and which keys are the newest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use trireme_client::Consistency;

use crate::keys::Keys;
use crate::pace::Pace;
use crate::store::{Failure, Row, Store};
use crate::suite::{Action, SCAN_ROWS_MAX, Workload};

/// A caller that is slowed down waits once it owes this much: shorter waits would be too long, since
/// the runtime's timer counts in milliseconds.
const HANDICAP_MIN: Duration = Duration::from_millis(10);

/// How long callers that wait to be stopped are given operations at a rate.
const STOPPED_WITHIN: Duration = Duration::from_secs(24 * 60 * 60);

/// What separates a value's name from the bytes that fill it up.
const FILLER: u8 = b'.';

/// What keys begin with, before their number.
const KEY_PREFIX: &str = "user";

/// An operation that a caller asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The caller.
    pub caller: u64,
    /// The key's number; the first key's, of a scan.
    pub key: u64,
    /// What was asked.
    pub asked: Asked,
    /// When it was due, in nanoseconds of the run's clock: in a closed loop, when it was asked.
    pub due: u64,
    /// When it was asked.
    pub called: u64,
    /// The answer; `None` if it never came, or said that the outcome is unknown.
    pub answer: Option<Answer>,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To put this value.
    Put(Arc<str>),
    /// To put a value on condition that the key has the one that was expected.
    PutIf {
        /// The value to put.
        value: Arc<str>,
        /// The value that the key must have.
        expected: Arc<str>,
    },
    /// To read, and what the read must see.
    Get(Consistency),
    /// To read so many rows, strongly.
    Scan(u64),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// When it came.
    pub at: u64,
    /// What it was.
    pub outcome: Outcome,
}

/// What an answer was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write was done.
    Done,
    /// The write's condition did not hold, and nothing was done.
    Refused,
    /// What a read found, if the key has a value.
    Found(Option<Found>),
    /// What a scan found: keys' numbers and their values, in order.
    Rows(Vec<(u64, Found)>),
}

/// What a read found: the value's name and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value, without what fills it up.
    pub value: Arc<str>,
    /// Its version.
    pub version: u64,
}

impl Recorded {
    /// Returns when the answer came, if it did.
    pub fn returned(&self) -> Option<u64> {
        self.answer.as_ref().map(|answer| answer.at)
    }

    /// Returns true if it was to write.
    pub const fn is_write(&self) -> bool {
        matches!(self.asked, Asked::Put(_) | Asked::PutIf { .. })
    }
}

/// Callers, before they begin.
#[derive(Clone)]
pub struct Load {
    /// The store that all callers ask.
    pub store: Store,
    /// What they do.
    pub workload: Workload,
    /// Which keys there are.
    pub keys: Keys,
    /// Bytes of a value, unless the workload says otherwise.
    pub value_bytes: usize,
    /// What the callers' choices are made from.
    pub seed: u64,
    /// Tells values of this run from those of others on the same cluster.
    pub tag: String,
    /// The run's clock counts from here.
    pub epoch: Instant,
    /// Which part of an operation's latency a caller waits after it, in percent: 0, unless callers
    /// are slowed down on purpose.
    pub handicap_percent: u32,
}

/// What callers did.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Every operation, those of a caller in order. Operations that failed without effect are not
    /// among them.
    pub operations: Vec<Recorded>,
    /// How many failed without effect.
    pub failed: u64,
    /// Why the first operation failed that did.
    pub first_error: Option<String>,
}

impl Load {
    /// Puts every key once.
    pub async fn fill(&self) -> anyhow::Result<Done> {
        let mut running = JoinSet::new();
        let callers = 32.min(self.keys.filled());
        for number in 0..callers {
            let mut caller = self.caller(number);
            running.spawn(async move {
                let keys = number..caller.load.keys.filled();
                for key in keys.step_by(usize::try_from(callers).unwrap_or(1)) {
                    let name = format!("{}-fill-{key}", caller.load.tag);
                    caller.put(caller.load.now(), key, name).await;
                }
                caller.done
            });
        }
        let done = collect(running).await?;
        match done.first_error {
            Some(error) => anyhow::bail!("a key could not be put: {error}"),
            None => Ok(done),
        }
    }

    /// Has the callers at work until `end`.
    pub async fn run_until(&self, end: Instant) -> anyhow::Result<Done> {
        let pace = self.workload.rate.map(|rate| Pace::start(rate, end)).transpose()?;
        self.run(move || Instant::now() >= end, pace).await
    }

    /// Has the callers at work until they are stopped, for a day (`STOPPED_WITHIN`) at the most.
    pub async fn run_until_stopped(&self, stop: CancellationToken) -> anyhow::Result<Done> {
        let end = Instant::now() + STOPPED_WITHIN;
        let pace = self.workload.rate.map(|rate| Pace::start(rate, end)).transpose()?;
        self.run(move || stop.is_cancelled(), pace).await
    }

    async fn run(
        &self,
        is_over: impl Fn() -> bool + Clone + Send + 'static,
        pace: Option<Pace>,
    ) -> anyhow::Result<Done> {
        let mut running = JoinSet::new();
        for number in 0..self.workload.callers {
            running.spawn(self.caller(number).call_until(is_over.clone(), pace.clone()));
        }
        collect(running).await
    }

    /// Reads every key once, strongly.
    pub async fn read_all(&self) -> anyhow::Result<Done> {
        let mut caller = self.caller(0);
        for key in 0..self.keys.count() {
            caller.get(self.now(), key, Consistency::Strong).await;
        }
        Ok(caller.done)
    }

    fn caller(&self, number: u64) -> Caller {
        let random = StdRng::seed_from_u64(self.seed ^ (number + 1).wrapping_mul(0x9e37_79b9));
        let weights = self.workload.mix.iter().map(|(_, weight)| *weight);
        Caller {
            number,
            random,
            mix: WeightedIndex::new(weights).expect("a test adds up every workload's weights"),
            load: self.clone(),
            writes: 0,
            known: BTreeMap::new(),
            done: Done::default(),
        }
    }

    fn now(&self) -> u64 {
        nanoseconds(self.epoch.elapsed())
    }
}

/// A caller at work.
struct Caller {
    number: u64,
    random: StdRng,
    mix: WeightedIndex<u32>,
    load: Load,
    /// How many values it has named.
    writes: u64,
    /// What it knows its own keys to hold, for conditional writes.
    known: BTreeMap<u64, Found>,
    done: Done,
}

impl Caller {
    async fn call_until(mut self, is_over: impl Fn() -> bool, pace: Option<Pace>) -> Done {
        let mut owed = Duration::ZERO;
        while !is_over() {
            let due = match &pace {
                None => self.load.now(),
                Some(pace) => match pace.next().await {
                    Some(due) => nanoseconds(due.saturating_duration_since(self.load.epoch)),
                    None => break,
                },
            };
            let (action, _) = self.load.workload.mix[self.mix.sample(&mut self.random)];
            let begun = Instant::now();
            self.act(action, due).await;
            owed += begun.elapsed() * self.load.handicap_percent / 100;
            if owed >= HANDICAP_MIN {
                let begun = Instant::now();
                tokio::time::sleep(owed).await;
                owed = owed.saturating_sub(begun.elapsed());
            }
        }
        self.done
    }

    async fn act(&mut self, action: Action, due: u64) {
        match action {
            Action::Get(consistency) => {
                let key = self.choose();
                self.get(due, key, consistency).await;
            }
            Action::Put => {
                let (key, name) = (self.choose(), self.name());
                self.put(due, key, name).await;
            }
            Action::PutIf => {
                let key = self.choose();
                let known = match self.known.remove(&key) {
                    Some(known) => Some(known),
                    None => self.get(due, key, Consistency::Strong).await,
                };
                if let Some(known) = known
                    && let Some(written) = self.put_if(due, key, known).await
                {
                    self.known.insert(key, written);
                }
            }
            Action::Modify => {
                let key = self.choose();
                if let Some(found) = self.get(due, key, Consistency::Strong).await {
                    self.put_if(self.load.now(), key, found).await;
                }
            }
            Action::Insert => {
                let (key, name) = (self.load.keys.add(), self.name());
                self.put(due, key, name).await;
            }
            Action::Scan => {
                let (key, rows) = (self.choose(), self.random.random_range(1..=SCAN_ROWS_MAX));
                self.scan(due, key, rows).await;
            }
        }
    }

    /// Chooses a key.
    fn choose(&mut self) -> u64 {
        let Load { keys, workload, .. } = &self.load;
        keys.choose(workload.keys, (self.number, workload.callers), &mut self.random)
    }

    /// Returns a name for a value that no other value has.
    fn name(&mut self) -> String {
        self.writes += 1;
        format!("{}-{}-{}", self.load.tag, self.number, self.writes)
    }

    fn value(&self, name: &str) -> Bytes {
        assert!(!name.as_bytes().contains(&FILLER), "{name} would be read as less");
        filled(name, self.load.workload.value_bytes.unwrap_or(self.load.value_bytes))
    }

    async fn put(&mut self, due: u64, key: u64, name: String) {
        let value = self.value(&name);
        let called = self.load.now();
        let answer = self.load.store.put(key_of(key), value).await;
        let outcome = answer.map(|_version| Outcome::Done);
        self.record(key, Asked::Put(name.into()), (due, called), outcome);
    }

    /// Writes a key if it holds what the caller found, and returns what it holds then.
    async fn put_if(&mut self, due: u64, key: u64, known: Found) -> Option<Found> {
        let name: Arc<str> = self.name().into();
        let value = self.value(&name);
        let called = self.load.now();
        let answer = self.load.store.put_if(key_of(key), value, known.version).await;
        let written = answer.as_ref().ok().copied().flatten();
        let outcome = answer.map(|version| match version {
            Some(_) => Outcome::Done,
            None => Outcome::Refused,
        });
        let asked = Asked::PutIf { value: Arc::clone(&name), expected: known.value };
        self.record(key, asked, (due, called), outcome);
        written.map(|version| Found { value: name, version })
    }

    async fn get(&mut self, due: u64, key: u64, consistency: Consistency) -> Option<Found> {
        let called = self.load.now();
        let answer = self.load.store.get(key_of(key), consistency).await;
        let answer = answer.map(|row| row.as_ref().map(found));
        let read = answer.as_ref().ok().cloned().flatten();
        self.record(key, Asked::Get(consistency), (due, called), answer.map(Outcome::Found));
        read
    }

    async fn scan(&mut self, due: u64, key: u64, rows: u64) {
        let called = self.load.now();
        let count = usize::try_from(rows).expect("at most SCAN_ROWS_MAX");
        let answer = self.load.store.scan(key_of(key), count).await;
        let numbered = |row: &Row| Some((number_of(&row.key)?, found(row)));
        let outcome =
            answer.map(|found| Outcome::Rows(found.iter().filter_map(numbered).collect()));
        self.record(key, Asked::Scan(rows), (due, called), outcome);
    }

    fn record(
        &mut self,
        key: u64,
        asked: Asked,
        (due, called): (u64, u64),
        outcome: Result<Outcome, Failure>,
    ) {
        let at = self.load.now();
        let caller = self.number;
        let recorded = |answer| Recorded { caller, key, asked, due, called, answer };
        let recorded = match outcome {
            Ok(outcome) => Some(recorded(Some(Answer { at, outcome }))),
            Err(Failure { is_ambiguous, reason }) => {
                self.done.first_error.get_or_insert(reason);
                self.done.failed += u64::from(!is_ambiguous);
                is_ambiguous.then(|| recorded(None))
            }
        };
        self.done.operations.extend(recorded);
    }
}

impl Done {
    /// Adds what others did.
    pub fn add(&mut self, other: Self) {
        self.operations.extend(other.operations);
        self.failed += other.failed;
        self.first_error = self.first_error.take().or(other.first_error);
    }
}

/// Returns a duration in whole nanoseconds.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the longest time, in nanoseconds, without one of these moments between the last one before
/// `from` and `end`. They are in order.
pub fn longest_gap(moments: &[u64], from: u64, end: u64) -> u64 {
    let first = moments.partition_point(|at| *at < from).saturating_sub(1);
    let mut last = moments.get(first).map_or(from, |at| *at.min(&from));
    let mut longest = 0;
    for &at in moments[first.min(moments.len())..].iter().take_while(|at| **at < end).chain([&end])
    {
        longest = longest.max(at.saturating_sub(last));
        last = last.max(at);
    }
    longest
}

/// Returns the key of a number. Keys are in the order of their numbers.
pub fn key_of(number: u64) -> Bytes {
    format!("{KEY_PREFIX}{number:08}").into()
}

/// Returns where so many ranges meet that hold about as many of the keys each.
pub(crate) fn borders(keys: u64, ranges: u64) -> Vec<String> {
    let border = |at: u64| format!("{KEY_PREFIX}{:08}", at * keys / ranges);
    (1..ranges).map(border).collect()
}

fn number_of(key: &[u8]) -> Option<u64> {
    std::str::from_utf8(key).ok()?.strip_prefix(KEY_PREFIX)?.parse().ok()
}

fn filled(name: &str, bytes: usize) -> Bytes {
    let mut value = name.as_bytes().to_vec();
    value.resize(value.len().max(bytes), FILLER);
    value.into()
}

fn found(row: &Row) -> Found {
    Found { value: name_of(&row.value), version: row.version }
}

fn name_of(value: &[u8]) -> Arc<str> {
    let end = value.iter().position(|byte| *byte == FILLER).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into()
}

async fn collect(mut running: JoinSet<Done>) -> anyhow::Result<Done> {
    let mut all = Done::default();
    while let Some(ended) = running.join_next().await {
        all.add(ended?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_filled_up_and_keeps_its_name() {
        let value = filled("a-1-2", 20);
        assert_eq!((value.len(), &*name_of(&value)), (20, "a-1-2"));
        assert_eq!(&*name_of(&filled("long-name", 3)), "long-name");
    }

    #[test]
    fn a_key_keeps_its_number() {
        assert_eq!(number_of(&key_of(0)), Some(0));
        assert_eq!(number_of(&key_of(123_456_789)), Some(123_456_789));
        assert_eq!((number_of(b"user"), number_of(b"other1")), (None, None));
        assert!(key_of(99) < key_of(100));
    }

    #[test]
    fn the_longest_gap_begins_before_its_time_or_in_it() {
        let acknowledged = [10, 20, 500, 510];
        assert_eq!(longest_gap(&acknowledged, 25, 520), 480);
        assert_eq!(longest_gap(&acknowledged, 505, 520), 10);
        assert_eq!(longest_gap(&acknowledged, 505, 900), 390);
        assert_eq!(longest_gap(&acknowledged, 12, 18), 8, "what comes after it is no part of it");
        assert_eq!(longest_gap(&[], 100, 300), 200);
    }

    #[test]
    fn ranges_meet_at_keys() {
        assert_eq!(borders(1000, 1), [""; 0]);
        assert_eq!(borders(1000, 4), ["user00000250", "user00000500", "user00000750"]);
    }
}
