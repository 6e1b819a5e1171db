//! Callers, each with one operation under way, who record every operation: in a closed loop, or at
//! the rate of an open one.
//!
//! What a caller does depends on the seed, the workload and its own number alone: every system is
//! asked the same, in the same order by each caller, for as far as it gets in the time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::distr::Distribution;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::Zipf;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use trireme_client::{Client, ClientError, Consistency, ReadOptions};

use crate::pace::Pace;
use crate::suite::Workload;

/// The exponent of the zipfian choice, as YCSB has it.
const ZIPF_EXPONENT: f64 = 0.99;

/// A caller that is slowed down waits once it owes this much: shorter waits would be too long, since
/// the runtime's timer counts in milliseconds.
const HANDICAP_MIN: Duration = Duration::from_millis(10);

/// What separates a value's name from the bytes that fill it up.
const FILLER: u8 = b'.';

/// An operation that a caller asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The caller.
    pub caller: u64,
    /// The key's number.
    pub key: u64,
    /// What was asked.
    pub asked: Asked,
    /// When it was due, in nanoseconds of the run's clock: in a closed loop, when it was asked.
    pub due: u64,
    /// When it was asked.
    pub called: u64,
    /// When the answer came; `None` if it never did, or said that the outcome is unknown.
    pub returned: Option<u64>,
    /// What a read found.
    pub found: Option<Found>,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To put this value.
    Put(Arc<str>),
    /// To read, and what the read must see.
    Get(Consistency),
}

/// What a read found: the value's name and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The value, without what fills it up.
    pub value: Arc<str>,
    /// Its version.
    pub version: u64,
}

/// Callers, before they begin.
#[derive(Clone)]
pub struct Load {
    /// The client that all callers share.
    pub client: Client,
    /// What they do.
    pub workload: Workload,
    /// How many keys there are.
    pub keys: u64,
    /// Bytes of a value.
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
        let callers = 32.min(self.keys);
        for caller in 0..callers {
            let load = self.clone();
            running.spawn(async move {
                let mut done = Done::default();
                for key in (caller..load.keys).step_by(usize::try_from(callers).unwrap_or(1)) {
                    let name = format!("{}-fill-{key}", load.tag);
                    load.put((caller, load.now()), key, name, &mut done).await;
                }
                done
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

    /// Has the callers at work until they are stopped.
    pub async fn run_until_stopped(&self, stop: CancellationToken) -> anyhow::Result<Done> {
        self.run(move || stop.is_cancelled(), None).await
    }

    async fn run(
        &self,
        is_over: impl Fn() -> bool + Clone + Send + 'static,
        pace: Option<Pace>,
    ) -> anyhow::Result<Done> {
        let mut running = JoinSet::new();
        for caller in 0..self.workload.callers {
            running.spawn(self.clone().call_until(caller, is_over.clone(), pace.clone()));
        }
        collect(running).await
    }

    /// Reads every key once, strongly.
    pub async fn read_all(&self) -> anyhow::Result<Done> {
        let mut done = Done::default();
        for key in 0..self.keys {
            self.get((0, self.now()), key, Consistency::Strong, &mut done).await;
        }
        Ok(done)
    }

    async fn call_until(self, caller: u64, is_over: impl Fn() -> bool, pace: Option<Pace>) -> Done {
        let mut random = StdRng::seed_from_u64(self.seed ^ (caller + 1).wrapping_mul(0x9e37_79b9));
        let keys = u32::try_from(self.keys).map_or(f64::from(u32::MAX), f64::from);
        let zipf = Zipf::new(keys, ZIPF_EXPONENT).expect("there is at least one key");
        let mut done = Done::default();
        let mut number = 0_u64;
        let mut owed = Duration::ZERO;
        while !is_over() {
            let due = match &pace {
                None => self.now(),
                Some(pace) => match pace.next().await {
                    Some(due) => nanoseconds(due.saturating_duration_since(self.epoch)),
                    None => break,
                },
            };
            let key = if self.workload.zipfian {
                spread(zipf.sample(&mut random), self.keys)
            } else {
                random.random_range(0..self.keys)
            };
            let begun = Instant::now();
            if random.random_bool(self.workload.reads) {
                self.get((caller, due), key, self.workload.consistency, &mut done).await;
            } else {
                number += 1;
                let name = format!("{}-{caller}-{number}", self.tag);
                self.put((caller, due), key, name, &mut done).await;
            }
            owed += begun.elapsed() * self.handicap_percent / 100;
            if owed >= HANDICAP_MIN {
                let begun = Instant::now();
                tokio::time::sleep(owed).await;
                owed = owed.saturating_sub(begun.elapsed());
            }
        }
        done
    }

    async fn put(&self, (caller, due): (u64, u64), key: u64, name: String, done: &mut Done) {
        assert!(!name.as_bytes().contains(&FILLER), "{name} would be read as less");
        let value = filled(&name, self.value_bytes);
        let called = self.now();
        let answer = self.client.put(key_of(key), value).await;
        let returned = self.now();
        let operation = |returned| Recorded {
            caller,
            key,
            asked: Asked::Put(name.as_str().into()),
            due,
            called,
            returned,
            found: None,
        };
        match answer {
            Ok(_) => done.operations.push(operation(Some(returned))),
            Err(error) => {
                if matches!(error, ClientError::Ambiguous { .. }) {
                    done.operations.push(operation(None));
                } else {
                    done.failed += 1;
                }
                done.first_error.get_or_insert_with(|| error.to_string());
            }
        }
    }

    async fn get(
        &self,
        (caller, due): (u64, u64),
        key: u64,
        consistency: Consistency,
        done: &mut Done,
    ) {
        let called = self.now();
        let options = ReadOptions { consistency, deadline: None };
        match self.client.get_with(key_of(key), options).await {
            Ok(read) => {
                let found = read
                    .value
                    .map(|value| Found { value: name_of(&value.value), version: value.version.0 });
                let (returned, asked) = (Some(self.now()), Asked::Get(consistency));
                done.operations.push(Recorded { caller, key, asked, due, called, returned, found });
            }
            Err(error) => {
                done.failed += 1;
                done.first_error.get_or_insert_with(|| error.to_string());
            }
        }
    }

    fn now(&self) -> u64 {
        nanoseconds(self.epoch.elapsed())
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

/// Returns the key of a number.
pub fn key_of(number: u64) -> Bytes {
    format!("user{number:08}").into()
}

/// Spreads the keys that are asked for most over all keys, as YCSB's scrambled choice does.
fn spread(rank: f64, keys: u64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at least 1")]
    let rank = rank as u64;
    rank.wrapping_mul(0x9e37_79b9_7f4a_7c15) % keys
}

fn filled(name: &str, bytes: usize) -> Bytes {
    let mut value = name.as_bytes().to_vec();
    value.resize(value.len().max(bytes), FILLER);
    value.into()
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
    fn the_zipfian_choice_stays_within_the_keys() {
        for rank in 1..1000_u32 {
            assert!(spread(f64::from(rank), 100) < 100);
        }
    }
}
