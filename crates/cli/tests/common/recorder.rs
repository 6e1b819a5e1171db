//! Clients that read, write and write under conditions, each answer of which is recorded and judged
//! in the end: is there one order that explains them all?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use trireme_checker::history::Answer;
use trireme_checker::kv::{Input, KvOperation, Output, Text};
use trireme_checker::search::Limits;
use trireme_checker::{Verdict, check};
use trireme_client::{Client, ClientError, ClientOptions, Conditional, ErrorClass, Value};

use super::cluster::Cluster;

/// How long one operation may take before its outcome counts as unknown.
const DEADLINE: Duration = Duration::from_secs(10);

/// The clients. More at once make the search for an order longer.
const CLIENTS: u64 = 5;

/// The pause between the operations of a client.
const PAUSE: Duration = Duration::from_millis(8);

/// What the clients share.
struct Shared {
    keys: Vec<Text>,
    began: Instant,
    is_over: AtomicBool,
    values: AtomicU64,
    done: Mutex<Vec<KvOperation>>,
    /// When a write was acknowledged last, and the longest time without one.
    gap: Mutex<(Instant, Duration)>,
}

/// A history that is recorded.
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Recorder {
    /// Starts clients of these keys, which no one else writes.
    pub(crate) fn start(cluster: &Cluster, keys: &[&str]) -> Self {
        let shared = Arc::new(Shared {
            keys: keys.iter().map(|key| Text::from(*key)).collect(),
            began: Instant::now(),
            is_over: AtomicBool::new(false),
            values: AtomicU64::new(0),
            done: Mutex::default(),
            gap: Mutex::new((Instant::now(), Duration::ZERO)),
        });
        let options = ClientOptions { deadline: DEADLINE, ..ClientOptions::default() };
        let tasks = (0..CLIENTS).map(|client| {
            let connected = cluster.runtime.block_on(cluster.client(options.clone()));
            cluster.runtime.spawn(Arc::clone(&shared).run(client, connected))
        });
        Self { tasks: tasks.collect(), shared }
    }

    /// Returns the longest time without an acknowledged write since this was asked last.
    pub(crate) fn take_gap(&self) -> Duration {
        let mut gap = self.shared.gap.lock();
        let longest = gap.1.max(gap.0.elapsed());
        gap.1 = Duration::ZERO;
        longest
    }

    /// Ends the history and judges it. Returns how many operations it has, and of how many of them the
    /// outcome is unknown.
    #[track_caller]
    pub(crate) fn finish(mut self, cluster: &Cluster) -> (usize, usize) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        for task in std::mem::take(&mut self.tasks) {
            cluster.runtime.block_on(task).expect("a client ends well");
        }
        let history = std::mem::take(&mut *self.shared.done.lock());
        let unknown = history.iter().filter(|operation| operation.answer.is_none()).count();
        let count = history.len();
        match check(history, &Limits::default()) {
            Verdict::Linearizable => (count, unknown),
            Verdict::NotLinearizable(example) => {
                let stuck = &example.part[example.stuck];
                panic!("no order explains {stuck:?}\n{}", trireme_checker::timeline::label(stuck));
            }
            Verdict::Unknown(bound) => panic!("{count} operations cannot be judged: {bound:?}"),
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    async fn run(self: Arc<Self>, client: u64, connected: Client) {
        let mut turn = client;
        while !self.is_over.load(Ordering::SeqCst) {
            turn += 1;
            let key = self.keys[usize::try_from(turn).unwrap() % self.keys.len()].clone();
            match turn % 4 {
                0 => drop(self.get(client, &connected, key).await),
                1 => self.put(client, &connected, key).await,
                _ => self.compare_and_set(client, &connected, key).await,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap()
    }

    /// Records an operation whose outcome is known or not; what is known not to have been done is left
    /// out.
    fn record(&self, client: u64, called: u64, input: Input, answer: Result<Output, &ClientError>) {
        let answer = match answer {
            Ok(output) => {
                let is_write = !matches!(output, Output::Found(_));
                if is_write {
                    let mut gap = self.gap.lock();
                    *gap = (Instant::now(), gap.1.max(gap.0.elapsed()));
                }
                Some(Answer { at: self.now(), output })
            }
            Err(error) if error.class() == ErrorClass::Unknown => None,
            Err(_) => return,
        };
        self.done.lock().push(KvOperation { client, input, called, answer });
    }

    async fn get(&self, client: u64, connected: &Client, key: Text) -> Option<Option<Value>> {
        let called = self.now();
        let got = connected.get(key.to_string()).await;
        let text = |value: &Value| Text::from(std::str::from_utf8(&value.value).unwrap());
        let output = got.as_ref().map(|found| Output::Found(found.as_ref().map(text)));
        self.record(client, called, Input::Get { key }, output);
        got.ok()
    }

    fn next_value(&self) -> Text {
        Text::from(self.values.fetch_add(1, Ordering::SeqCst).to_string().as_str())
    }

    async fn put(&self, client: u64, connected: &Client, key: Text) {
        let (called, value) = (self.now(), self.next_value());
        let put = connected.put(key.to_string(), value.to_string()).await;
        let output = put.as_ref().map(|_| Output::Done);
        self.record(client, called, Input::Put { key, value }, output);
    }

    /// Replaces what it has read, if that is still there.
    async fn compare_and_set(&self, client: u64, connected: &Client, key: Text) {
        let Some(found) = self.get(client, connected, key.clone()).await else { return };
        let (called, value) = (self.now(), self.next_value());
        let (name, new) = (key.to_string(), value.to_string());
        let expected = found.as_ref().map(|it| Text::from(std::str::from_utf8(&it.value).unwrap()));
        let set = match &found {
            Some(found) => connected.put_if_version(name, new, found.version).await,
            None => connected.put_if_absent(name, new).await,
        };
        let output = set.as_ref().map(|set| match set {
            Conditional::Done(_) => Output::Done,
            Conditional::Failed { .. } => Output::Refused,
        });
        self.record(client, called, Input::CompareAndSet { key, expected, value }, output);
    }
}
