//! Clients that read and write throughout, each of its own session: registers with conditional puts
//! and deletes, sets of keys that are added once, and lists that are appended to.
//!
//! Every value is written once only, so that a value names the write that made it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use trireme_checker::kv::{Input, Output, Text};
use trireme_client::{Client, ClientOptions, Conditional, Consistency, Page, ReadOptions, Value};

use super::record::{Became, Clock, Recorded, TimelineRead, text};

/// Operations of all clients after which they go on to other keys: a key with a longer history, and
/// more writes of unknown outcome, is harder to judge.
const WINDOW_MICROS: u64 = 4_000_000;

/// Registers and lists in one window.
const REGISTERS: u32 = 5;
const LISTS: u32 = 2;

/// The bytes of a long value. It fills logs and tables, so that logs are shortened and replicas that
/// were away need snapshots.
const LONG_BYTES: usize = 4096;

/// Every so many clients, one only reads.
const READER_EVERY: u64 = 4;

/// The pause of a client between two operations: the nodes, and other programs, have the processor
/// too.
const PAUSE_MS: std::ops::Range<u64> = 0..8;

/// How long one operation may take, retries included.
const DEADLINE: Duration = Duration::from_secs(4);

/// Returns the options of the clients.
pub(crate) fn options() -> ClientOptions {
    ClientOptions {
        deadline: DEADLINE,
        attempt_timeout: Duration::from_millis(400),
        connect_timeout: Duration::from_millis(500),
        ..ClientOptions::default()
    }
}

/// Where a round's keys begin.
pub(crate) fn prefix(round: u32) -> String {
    format!("r{round:05}/")
}

/// Clients at work.
pub(crate) struct Workers {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Recorded>>,
}

impl Workers {
    /// Has the clients start on the keys of a round.
    pub(crate) fn start(clients: &[Client], clock: Clock, seed: u64, round: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let begun = clock.now();
        let tasks = clients.iter().zip(1_u64..).map(|(client, number)| {
            let worker = Worker {
                client: client.clone(),
                number,
                clock,
                round,
                begun,
                rng: StdRng::seed_from_u64(seed ^ u64::from(round) << 32 ^ number << 16),
                written: 0,
                recorded: Recorded::default(),
            };
            tokio::spawn(worker.work(Arc::clone(&stop)))
        });
        let tasks = tasks.collect();
        Self { stop, tasks }
    }

    /// Has the clients end what is under way, and returns what they recorded.
    pub(crate) async fn finish(mut self) -> anyhow::Result<Recorded> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Recorded::default();
        for task in &mut self.tasks {
            all.merge(task.await?);
        }
        Ok(all)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

struct Worker {
    client: Client,
    number: u64,
    clock: Clock,
    round: u32,
    begun: u64,
    rng: StdRng,
    written: u64,
    recorded: Recorded,
}

impl Worker {
    async fn work(mut self, stop: Arc<AtomicBool>) -> Recorded {
        while !stop.load(Ordering::Relaxed) {
            // A client that only reads does not look for another leader as long as one answers.
            let is_reader = self.number.is_multiple_of(READER_EVERY);
            match self.rng.random_range(if is_reader { 0..25 } else { 5..100 }) {
                5..25 => {
                    let key = self.register();
                    self.get(&key).await;
                }
                0..5 => self.timeline().await,
                25..35 => self.put().await,
                35..47 => self.change().await,
                47..50 => self.delete().await,
                50..53 => self.scan().await,
                53..63 => self.timeline().await,
                63..82 => self.add().await,
                _ => self.append().await,
            }
            let pause = self.rng.random_range(PAUSE_MS);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        self.recorded
    }

    async fn get(&mut self, key: &Text) -> Option<Option<Value>> {
        let called = self.clock.now();
        let result = self.client.get(key.to_string()).await;
        let times = (called, self.clock.now());
        let input = Input::Get { key: key.clone() };
        let became = self.recorded.operation(self.number, input, times, result, |found| {
            Output::Found(found.as_ref().map(|found| text(&found.value)))
        });
        let Became::Answered(found) = became else { return None };
        if let Some(found) = &found {
            self.recorded.version(key, found.version, &text(&found.value));
        }
        Some(found)
    }

    async fn put(&mut self) {
        let (key, value) = (self.register(), self.value());
        let called = self.clock.now();
        let result = self.client.put(key.to_string(), value.to_string()).await;
        let returned = self.clock.now();
        let input = Input::Put { key: key.clone(), value: value.clone() };
        let became =
            self.recorded
                .operation(self.number, input, (called, returned), result, |_| Output::Done);
        if let Became::Answered(version) = became {
            self.recorded.version(&key, version, &value);
            self.recorded.puts.push((key, version.0, returned));
        }
    }

    /// Reads a register, and gives it another value if it has that one still.
    async fn change(&mut self) {
        let key = self.register();
        let Some(found) = self.get(&key).await else { return };
        let value = self.value();
        self.change_from(&key, found, value).await;
    }

    async fn change_from(&mut self, key: &Text, found: Option<Value>, value: Text) -> Became<bool> {
        let called = self.clock.now();
        let put = (key.to_string(), value.to_string());
        let result = match &found {
            Some(found) => self.client.put_if_version(put.0, put.1, found.version).await,
            None => self.client.put_if_absent(put.0, put.1).await,
        };
        let times = (called, self.clock.now());
        let expected = found.as_ref().map(|found| text(&found.value));
        let input = Input::CompareAndSet { key: key.clone(), expected, value: value.clone() };
        let became = self.recorded.operation(self.number, input, times, result, |became| {
            if became.is_done() { Output::Done } else { Output::Refused }
        });
        match became {
            Became::Answered(Conditional::Done(version)) => {
                self.recorded.version(key, version, &value);
                Became::Answered(true)
            }
            Became::Answered(Conditional::Failed { .. }) => Became::Answered(false),
            Became::Ambiguous => Became::Ambiguous,
            Became::Refused => Became::Refused,
        }
    }

    async fn delete(&mut self) {
        let key = self.register();
        let called = self.clock.now();
        let result = self.client.delete(key.to_string()).await;
        let times = (called, self.clock.now());
        let input = Input::Delete { key };
        let _became = self.recorded.operation(self.number, input, times, result, |_| Output::Done);
    }

    /// Reads two registers in one moment. Scans join keys, so that they are of every fourth window.
    async fn scan(&mut self) {
        if !self.window().is_multiple_of(4) {
            return;
        }
        let prefix = format!("{}{}/", prefix(self.round), self.window());
        let (start, end) = (format!("{prefix}reg0"), format!("{prefix}reg2"));
        let called = self.clock.now();
        let mut scan = self.client.scan(start.clone()..end.clone()).page_rows(16);
        let mut pages: Vec<Page> = Vec::new();
        let result = loop {
            match scan.next_page().await {
                Ok(Some(page)) => pages.push(page),
                Ok(None) => break Ok(pages),
                Err(error) => break Err(error),
            }
        };
        let times = (called, self.clock.now());
        // Only a page is one moment.
        if result.as_ref().is_ok_and(|pages| pages.len() != 1) {
            return;
        }
        let rows = |pages: &Vec<Page>| {
            let rows = pages.iter().flat_map(|page| &page.rows);
            rows.map(|row| (text(&row.key), text(&row.value))).collect()
        };
        let input = Input::Scan { start: start.into(), end: Some(end.into()) };
        let became = self
            .recorded
            .operation(self.number, input, times, result, |pages| Output::Rows(rows(pages)));
        if let Became::Answered(pages) = became {
            for row in pages.iter().flat_map(|page| &page.rows) {
                self.recorded.version(&text(&row.key), row.version, &text(&row.value));
            }
        }
    }

    async fn timeline(&mut self) {
        let key = self.register();
        let options = ReadOptions { consistency: Consistency::Timeline, ..Default::default() };
        let called = self.clock.now();
        let Ok(read) = self.client.get_with(key.to_string(), options).await else { return };
        let Some(freshness) = read.freshness else {
            self.recorded.broken.push(format!("a timeline read of {key} names no state"));
            return;
        };
        let version = read.value.as_ref().map(|value| value.version.0);
        if let Some(value) = &read.value {
            self.recorded.version(&key, value.version, &text(&value.value));
        }
        let applied = (freshness.applied.epoch, freshness.applied.seq);
        let (client, age) = (self.number, freshness.age);
        self.recorded.timeline.push(TimelineRead { client, called, key, version, applied, age });
    }

    /// Adds a key that no other client names.
    async fn add(&mut self) {
        self.written += 1;
        let key = format!("{}set/{}-{:06}", prefix(self.round), self.number, self.written);
        let (key, value) = (Text::from(key), self.value());
        match self.change_from(&key, None, value.clone()).await {
            Became::Answered(true) => drop(self.recorded.added.insert(key, value)),
            Became::Answered(false) => {
                self.recorded.broken.push(format!("{key} was there before it was added"));
            }
            Became::Ambiguous => drop(self.recorded.perhaps_added.insert(key)),
            Became::Refused => drop(self.recorded.never_added.insert(key)),
        }
    }

    /// Appends an element to a list, which is read and changed for that.
    async fn append(&mut self) {
        let list = self.rng.random_range(0..LISTS);
        let key = Text::from(format!("{}{}/list{list}", prefix(self.round), self.window()));
        let Some(found) = self.get(&key).await else { return };
        self.written += 1;
        let element = Text::from(format!("{}-{}", self.number, self.written));
        let before = found.as_ref().map(|found| text(&found.value));
        let value = match before {
            Some(before) => format!("{before} {element}"),
            None => element.to_string(),
        };
        let recorded = match self.change_from(&key, found, value.into()).await {
            Became::Answered(true) => &mut self.recorded.appended,
            Became::Ambiguous => &mut self.recorded.perhaps_appended,
            Became::Answered(false) | Became::Refused => return,
        };
        recorded.entry(key).or_default().insert(element);
    }

    fn register(&mut self) -> Text {
        let register = self.rng.random_range(0..REGISTERS);
        format!("{}{}/reg{register}", prefix(self.round), self.window()).into()
    }

    fn value(&mut self) -> Text {
        self.written += 1;
        let mut value = format!("{}.{}.{}", self.round, self.number, self.written);
        if self.rng.random_ratio(1, 6) {
            value.push(' ');
            value.extend(std::iter::repeat_n('x', LONG_BYTES));
        }
        value.into()
    }

    fn window(&self) -> u64 {
        (self.clock.now() - self.begun) / WINDOW_MICROS
    }
}
