//! A history of reads and writes, judged while it happens.
//!
//! Each key holds a counter that only rises and has one writer. So what a read may return is known
//! at once, without looking for an order of all operations: not less than the newest number that was
//! certain when the read began, and not more than the newest one that was attempted when it ended.
//! Certain is a number whose write was acknowledged, and one that a strong read returned.
//!
//! Strong reads are made through the client crate, and straight to every node, which may refuse but
//! not lie: that shows a leader of the past that still answers. Timeline reads are made at every
//! node, and go back in time at no process.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::Endpoint;
use trireme_client::{Client, ClientError, ClientOptions, ErrorClass};
use trireme_proto::v1;
use trireme_proto::v1::kv_client::KvClient;

use super::cluster::Cluster;
use super::until_ok;

/// How long a write or a read through the client may take. A leader that dies is replaced within
/// that; a cohort that cannot serve gives some ambiguous writes.
const DEADLINE: Duration = Duration::from_secs(4);

/// How long an answer to a direct read is waited for: longer than a test stops a process, so that
/// what it was asked meanwhile is answered when it goes on.
const DIRECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The pauses between the operations of a task: much to see, little to do for the machine.
const WRITE_PAUSE: Duration = Duration::from_millis(10);
const READ_PAUSE: Duration = Duration::from_millis(20);
const DIRECT_PAUSE: Duration = Duration::from_millis(60);

/// The most direct reads of one key that one node has not answered.
const OUTSTANDING_MAX: usize = 128;

/// The most violations that are told.
const VIOLATIONS_MAX: usize = 10;

/// The most refused numbers that are remembered of one key.
const REFUSED_MAX: usize = 10_000;

/// How long a cluster that is whole may take to acknowledge the next writes.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is known of one key.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    attempted: AtomicU64,
    acknowledged: AtomicU64,
    /// The highest number that was acknowledged, or that a strong read returned.
    certain: AtomicU64,
    /// Numbers of which the writer was told that nothing was done.
    refused: Mutex<BTreeSet<u64>>,
}

impl Ledger {
    /// Returns the next number to write.
    fn attempt(&self) -> u64 {
        self.attempted.fetch_add(1, Ordering::SeqCst) + 1
    }

    fn acknowledge(&self, number: u64) {
        self.acknowledged.fetch_max(number, Ordering::SeqCst);
        self.certain.fetch_max(number, Ordering::SeqCst);
    }

    fn refuse(&self, number: u64) {
        let mut refused = self.refused.lock();
        if refused.len() < REFUSED_MAX {
            refused.insert(number);
        }
    }

    /// Returns what a strong read that begins now must return at least.
    fn floor(&self) -> u64 {
        self.certain.load(Ordering::SeqCst)
    }

    /// Judges a strong read that began when `floor` was certain.
    fn judge_strong(&self, floor: u64, found: u64) -> Result<(), String> {
        self.judge_existence(found)?;
        if found < floor {
            return Err(format!("STALE: {found}, when {floor} was certain before the read"));
        }
        self.certain.fetch_max(found, Ordering::SeqCst);
        Ok(())
    }

    /// Judges a timeline read at a process that has shown `seen` before.
    fn judge_timeline(&self, seen: u64, found: u64) -> Result<(), String> {
        self.judge_existence(found)?;
        if found < seen {
            return Err(format!("BACKWARDS: {found}, after {seen} at the same process"));
        }
        Ok(())
    }

    fn judge_existence(&self, found: u64) -> Result<(), String> {
        let attempted = self.attempted.load(Ordering::SeqCst);
        if found > attempted {
            return Err(format!("INVENTED: {found}, when only {attempted} were attempted"));
        }
        if self.refused.lock().contains(&found) {
            return Err(format!("REFUSED, and yet done: {found}"));
        }
        Ok(())
    }
}

/// The longest time without an acknowledged write.
#[derive(Debug)]
struct Gap {
    last: Instant,
    longest: Duration,
}

impl Gap {
    fn note(&mut self) {
        self.longest = self.longest.max(self.last.elapsed());
        self.last = Instant::now();
    }
}

#[derive(Debug)]
struct Key {
    name: String,
    ledger: Ledger,
    gap: Mutex<Gap>,
}

/// What the tasks share.
struct Shared {
    keys: Vec<Key>,
    addresses: BTreeMap<usize, String>,
    /// How often each node's process has ended.
    ends: Arc<Vec<AtomicU64>>,
    is_over: AtomicBool,
    violations: Mutex<Vec<String>>,
    writes: AtomicU64,
    ambiguous: AtomicU64,
    refused: AtomicU64,
    client_reads: AtomicU64,
    direct_reads: BTreeMap<usize, AtomicU64>,
    timeline_reads: BTreeMap<usize, AtomicU64>,
}

/// A history that happens.
pub(crate) struct History {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// What a history came to.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) writes: u64,
    pub(crate) ambiguous: u64,
    pub(crate) refused: u64,
    pub(crate) client_reads: u64,
    /// Strong reads that each node answered itself.
    pub(crate) direct_reads: BTreeMap<usize, u64>,
    pub(crate) timeline_reads: BTreeMap<usize, u64>,
    /// The longest time without an acknowledged write of some key.
    pub(crate) longest_gap: Duration,
}

impl History {
    /// Starts to write and to read these keys; there should be one in each range.
    pub(crate) fn start(cluster: &Cluster, keys: &[&str]) -> Self {
        let key = |name: &&str| Key {
            name: (*name).to_owned(),
            ledger: Ledger::default(),
            gap: Mutex::new(Gap { last: Instant::now(), longest: Duration::ZERO }),
        };
        let nodes = || cluster.nodes();
        let shared = Arc::new(Shared {
            keys: keys.iter().map(key).collect(),
            addresses: nodes().map(|node| (node, cluster.address(node))).collect(),
            ends: cluster.ends(),
            is_over: AtomicBool::new(false),
            violations: Mutex::default(),
            writes: AtomicU64::new(0),
            ambiguous: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            client_reads: AtomicU64::new(0),
            direct_reads: nodes().map(|node| (node, AtomicU64::new(0))).collect(),
            timeline_reads: nodes().map(|node| (node, AtomicU64::new(0))).collect(),
        });
        let mut tasks = Vec::new();
        for key in 0..keys.len() {
            tasks.push(cluster.runtime.spawn(write(Arc::clone(&shared), key)));
            tasks.push(cluster.runtime.spawn(read(Arc::clone(&shared), key)));
            for node in nodes() {
                tasks.push(cluster.runtime.spawn(read_directly(Arc::clone(&shared), key, node)));
                tasks.push(cluster.runtime.spawn(read_timeline(Arc::clone(&shared), key, node)));
            }
        }
        let history = Self { shared, tasks };
        history.wait_for_writes(1);
        history
    }

    /// Returns the newest acknowledged number of each key.
    pub(crate) fn acknowledged(&self) -> Vec<u64> {
        let keys = self.shared.keys.iter();
        keys.map(|key| key.ledger.acknowledged.load(Ordering::SeqCst)).collect()
    }

    /// Returns how many strong reads a node has answered itself.
    pub(crate) fn answered_by(&self, node: usize) -> u64 {
        self.shared.direct_reads[&node].load(Ordering::SeqCst)
    }

    /// Returns how many timeline reads a node has answered.
    pub(crate) fn timeline_reads_at(&self, node: usize) -> u64 {
        self.shared.timeline_reads[&node].load(Ordering::SeqCst)
    }

    /// Waits until so many further writes of each key are acknowledged.
    #[track_caller]
    pub(crate) fn wait_for_writes(&self, count: u64) {
        self.wait_for_writes_within(count, PATIENCE);
    }

    /// Waits until so many further writes of each key, begun from now on, are acknowledged.
    #[track_caller]
    pub(crate) fn wait_for_writes_within(&self, count: u64, patience: Duration) {
        let keys = self.shared.keys.iter();
        let before: Vec<_> = keys.map(|key| key.ledger.attempted.load(Ordering::SeqCst)).collect();
        until_ok("writes are acknowledged", patience, || {
            self.check();
            let now = self.acknowledged();
            let is_done = before.iter().zip(&now).all(|(before, now)| *now >= before + count);
            is_done.then_some(()).ok_or((&before, now))
        });
    }

    /// Lets the history go on for a time.
    #[track_caller]
    pub(crate) fn hold(&self, time: Duration) {
        std::thread::sleep(time);
        self.check();
    }

    /// Returns the longest time without an acknowledged write of some key since this was asked last.
    pub(crate) fn take_gap(&self) -> Duration {
        let gaps = self.shared.keys.iter().map(|key| {
            let mut gap = key.gap.lock();
            gap.longest.max(gap.last.elapsed()).max(std::mem::take(&mut gap.longest))
        });
        gaps.max().unwrap_or_default()
    }

    /// Fails the test if something was seen that must not be.
    #[track_caller]
    pub(crate) fn check(&self) {
        let violations = self.shared.violations.lock().clone();
        assert!(violations.is_empty(), "{violations:#?}");
    }

    /// Ends the history, of which everything must be healed, and judges it.
    #[track_caller]
    pub(crate) fn finish(mut self, cluster: &Cluster) -> Report {
        let longest_gap = self.take_gap();
        self.shared.is_over.store(true, Ordering::SeqCst);
        for task in std::mem::take(&mut self.tasks) {
            cluster.runtime.block_on(task).expect("a task of the history ends well");
        }
        self.check();
        let client = cluster.runtime.block_on(
            cluster.client(ClientOptions { deadline: PATIENCE, ..ClientOptions::default() }),
        );
        for Key { name, ledger, .. } in &self.shared.keys {
            let floor = ledger.floor();
            let found = cluster.runtime.block_on(client.get(name.clone())).unwrap();
            let found = number(found.map(|value| value.value)).unwrap();
            ledger.judge_strong(floor, found).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let counts = |counters: &BTreeMap<usize, AtomicU64>| {
            counters.iter().map(|(node, counter)| (*node, count(counter))).collect()
        };
        Report {
            writes: count(&self.shared.writes),
            ambiguous: count(&self.shared.ambiguous),
            refused: count(&self.shared.refused),
            client_reads: count(&self.shared.client_reads),
            direct_reads: counts(&self.shared.direct_reads),
            timeline_reads: counts(&self.shared.timeline_reads),
            longest_gap,
        }
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn take_in(&self, who: impl FnOnce() -> String, judged: Result<(), String>) {
        if let Err(wrong) = judged {
            let mut violations = self.violations.lock();
            if violations.len() < VIOLATIONS_MAX {
                violations.push(format!("{}: {wrong}", who()));
            }
        }
    }

    /// Returns a client, as soon as a node answers.
    async fn client(&self) -> Option<Client> {
        let options = ClientOptions { deadline: DEADLINE, ..ClientOptions::default() };
        while !self.is_over() {
            let addresses = self.addresses.values().cloned();
            match Client::connect_with(addresses, options.clone()).await {
                Ok(client) => return Some(client),
                Err(_) => tokio::time::sleep(READ_PAUSE).await,
            }
        }
        None
    }

    fn node(&self, node: usize) -> KvClient<tonic::transport::Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.addresses[&node])).unwrap();
        KvClient::new(endpoint.timeout(DIRECT_TIMEOUT).connect_lazy())
    }
}

async fn write(shared: Arc<Shared>, key: usize) {
    let Some(client) = shared.client().await else { return };
    let key = &shared.keys[key];
    while !shared.is_over() {
        let number = key.ledger.attempt();
        match client.put(key.name.clone(), number.to_string()).await {
            Ok(_) => {
                key.ledger.acknowledge(number);
                shared.writes.fetch_add(1, Ordering::SeqCst);
                key.gap.lock().note();
            }
            Err(ClientError::Ambiguous { .. }) => {
                shared.ambiguous.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => {
                shared.refused.fetch_add(1, Ordering::SeqCst);
                key.ledger.refuse(number);
                shared.take_in(|| format!("a write of {number} to {}", key.name), fair(&error));
            }
        }
        tokio::time::sleep(WRITE_PAUSE).await;
    }
}

async fn read(shared: Arc<Shared>, key: usize) {
    let Some(client) = shared.client().await else { return };
    let key = &shared.keys[key];
    while !shared.is_over() {
        let floor = key.ledger.floor();
        let judged = match client.get(key.name.clone()).await {
            Ok(found) => {
                shared.client_reads.fetch_add(1, Ordering::SeqCst);
                number(found.map(|value| value.value))
                    .and_then(|found| key.ledger.judge_strong(floor, found))
            }
            Err(error) => fair(&error),
        };
        shared.take_in(|| format!("a client's read of {}", key.name), judged);
        tokio::time::sleep(READ_PAUSE).await;
    }
}

/// Reads at one node, and begins further reads before it answers.
async fn read_directly(shared: Arc<Shared>, key: usize, node: usize) {
    let kv = shared.node(node);
    let mut reads = JoinSet::new();
    while !shared.is_over() {
        while reads.try_join_next().is_some() {}
        if reads.len() < OUTSTANDING_MAX {
            let (shared, mut kv) = (Arc::clone(&shared), kv.clone());
            reads.spawn(async move {
                let Key { name, ledger, .. } = &shared.keys[key];
                let floor = ledger.floor();
                let Ok(answer) = get(&mut kv, name, v1::Consistency::Strong).await else { return };
                shared.direct_reads[&node].fetch_add(1, Ordering::SeqCst);
                let judged = answer.and_then(|found| ledger.judge_strong(floor, found));
                shared.take_in(|| format!("a strong read of {name} at node {node}"), judged);
            });
        }
        tokio::time::sleep(DIRECT_PAUSE).await;
    }
    while reads.join_next().await.is_some() {}
}

async fn read_timeline(shared: Arc<Shared>, key: usize, node: usize) {
    let mut kv = shared.node(node);
    let Key { name, ledger, .. } = &shared.keys[key];
    let ends = || shared.ends[node].load(Ordering::SeqCst);
    let (mut process, mut seen) = (ends(), 0);
    while !shared.is_over() {
        if process != ends() {
            (process, seen) = (ends(), 0);
        }
        if let Ok(answer) = get(&mut kv, name, v1::Consistency::Timeline).await
            && process == ends()
        {
            shared.timeline_reads[&node].fetch_add(1, Ordering::SeqCst);
            let judged = answer.and_then(|found| {
                let judged = ledger.judge_timeline(seen, found);
                seen = seen.max(found);
                judged
            });
            shared.take_in(|| format!("a timeline read of {name} at node {node}"), judged);
        }
        tokio::time::sleep(DIRECT_PAUSE).await;
    }
}

/// Asks one node: an error if it refuses, and within what it answers one if that is no number.
fn get(
    kv: &mut KvClient<tonic::transport::Channel>,
    key: &str,
    consistency: v1::Consistency,
) -> impl Future<Output = Result<Result<u64, String>, tonic::Status>> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let request = v1::GetRequest { key, consistency: consistency.into(), ..Default::default() };
    async move {
        let answer = kv.get(request).await?.into_inner();
        Ok(number(answer.row.map(|row| row.value)))
    }
}

/// Returns the number that a key's value stands for.
fn number(value: Option<Bytes>) -> Result<u64, String> {
    let Some(value) = value else { return Ok(0) };
    let text = std::str::from_utf8(&value).map_err(|error| error.to_string())?;
    text.parse().map_err(|_| format!("'{text}' was never written"))
}

/// Says whether an error is one that a cluster with faults may answer with.
fn fair(error: &ClientError) -> Result<(), String> {
    match error.class() {
        ErrorClass::Retry | ErrorClass::Unknown => Ok(()),
        ErrorClass::Invalid | ErrorClass::Fatal => Err(error.to_string()),
    }
}

/// Says whether the judge knows a bad history from a good one.
pub(crate) fn check_the_judge() {
    let ledger = Ledger::default();
    for number in 1..=3 {
        assert_eq!(ledger.attempt(), number);
        ledger.acknowledge(number);
    }
    let before = ledger.floor();
    assert_eq!(before, 3);
    assert_eq!(ledger.attempt(), 4);
    // While a write is under way, a read may or may not see it.
    ledger.judge_strong(before, 3).unwrap();
    assert!(ledger.judge_strong(before, 2).unwrap_err().starts_with("STALE: 2, when 3"));
    assert!(ledger.judge_strong(before, 5).unwrap_err().starts_with("INVENTED: 5"));
    // What one read has seen, no later one may miss, though nobody has acknowledged it.
    ledger.judge_strong(before, 4).unwrap();
    assert!(ledger.judge_strong(ledger.floor(), 3).unwrap_err().starts_with("STALE: 3, when 4"));
    // A read that began before may have been answered before, too.
    ledger.judge_strong(before, 3).unwrap();

    ledger.judge_timeline(1, 1).unwrap();
    ledger.judge_timeline(1, 2).unwrap();
    assert!(ledger.judge_timeline(2, 1).unwrap_err().starts_with("BACKWARDS: 1, after 2"));
    assert!(ledger.judge_timeline(2, 9).unwrap_err().starts_with("INVENTED: 9"));

    let refused = ledger.attempt();
    ledger.refuse(refused);
    assert!(ledger.judge_strong(4, refused).unwrap_err().starts_with("REFUSED"));
    number(Some(Bytes::from_static(b"four"))).unwrap_err();
    assert_eq!(number(None), Ok(0));
}
