//! Clients: they put, delete, put on conditions and read, send again what was not answered, and
//! record what they saw.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use trireme_checker::history::{Answer, Operation as Recorded};
use trireme_checker::kv::{Input, KvOperation, Output, Text};
use trireme_replication::{ErrorClass, ReplicaError};
use trireme_types::{
    ClientId, Command, CommandBatch, Condition, NodeId, Operation, Outcome, RequestId, Version,
};

use crate::chance::Chance;
use crate::invariants::TimelineRead;
use crate::mistake::Mistake;
use crate::node::Running;
use crate::world::World;

/// How long a client waits for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a client tries before it gives an operation up.
const TRIES_FOR: Duration = Duration::from_secs(4);

/// The pauses between two tries, in milliseconds.
const PAUSE: (u64, u64) = (5, 100);

/// The pause between two reads in a lull.
const LULL_PAUSE: Duration = Duration::from_millis(150);

/// The pauses between two tries of the client that reads what was written last, in milliseconds: short,
/// so that it asks a new leader before this one may answer.
const READER_PAUSE: (u64, u64) = (1, 10);

/// The longest pause of that client between two reads, in milliseconds.
const READER_THINKS: u64 = 20;

/// What the clients saw.
#[derive(Default)]
pub(crate) struct History {
    operations: Mutex<Vec<KvOperation>>,
    counts: Mutex<Counts>,
    /// The key of the last write that was acknowledged.
    newest: Mutex<Option<Bytes>>,
}

/// How much was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) written: u64,
    pub(crate) refused: u64,
    pub(crate) read: u64,
    pub(crate) timeline_reads: u64,
    pub(crate) ambiguous: u64,
}

impl History {
    pub(crate) fn take(&self) -> Vec<KvOperation> {
        std::mem::take(&mut self.operations.lock())
    }

    pub(crate) fn counts(&self) -> Counts {
        *self.counts.lock()
    }

    fn record(&self, client: u64, input: Input, called: u64, answer: Option<Answer<Output>>) {
        let mut counts = self.counts.lock();
        match answer.as_ref().map(|answer| &answer.output) {
            Some(Output::Found(_) | Output::Rows(_)) => counts.read += 1,
            Some(Output::Done) => counts.written += 1,
            Some(Output::Refused) => counts.refused += 1,
            None => counts.ambiguous += 1,
        }
        self.operations.lock().push(Recorded { client, input, called, answer });
    }
}

/// Why there is no answer.
enum NoAnswer {
    /// Nothing was done.
    Refused,
    /// It may have been done.
    Lost,
}

/// One client.
pub(crate) struct Client {
    world: Arc<World>,
    number: u64,
    chance: Chance,
    leader: Option<NodeId>,
    sequence: u64,
    /// The values that it has seen or written, by their versions.
    known: BTreeMap<Bytes, (Option<Text>, u64)>,
    /// The pauses between two tries, in milliseconds.
    pause: (u64, u64),
}

/// A write, as it is sent and as it is judged.
struct Write {
    operation: Operation,
    input: Input,
}

impl Client {
    pub(crate) fn new(world: Arc<World>, number: u64) -> Self {
        let chance = world.fork();
        let (known, pause) = (BTreeMap::new(), PAUSE);
        Self { world, number, chance, leader: None, sequence: 0, known, pause }
    }

    /// Works until `end` is true, and gives up nothing that it has begun.
    pub(crate) async fn run(mut self, end: Arc<AtomicBool>) {
        while !end.load(Ordering::Relaxed) {
            let pause = self.chance.millis(0, self.world.plan.think);
            sleep(pause).await;
            let key = self.key();
            if self.world.is_in_lull.load(Ordering::Relaxed) {
                // What is read at rest must know its age, too.
                self.read_timeline(key).await;
                sleep(LULL_PAUSE).await;
                continue;
            }
            match self.chance.below(10) {
                0..6 => {
                    let write = self.pick_write(key);
                    self.write(write).await;
                }
                6..9 => self.read(key).await,
                _ => self.read_timeline(key).await,
            }
        }
    }

    /// Reads what was written last, again and again, as it is or as some node has it: most is at stake
    /// there when the lead moves, and a node that begins to serve is asked at once.
    pub(crate) async fn read_newest(mut self, end: Arc<AtomicBool>) {
        self.pause = READER_PAUSE;
        while !end.load(Ordering::Relaxed) {
            let pause = self.chance.millis(0, READER_THINKS);
            sleep(pause).await;
            let newest = self.world.history.newest.lock().clone();
            if let Some(key) = newest {
                if self.chance.one_in(2) {
                    self.read_timeline(key).await;
                } else {
                    self.read(key).await;
                }
            }
        }
    }

    /// Reads every key, each until it is answered: what the cluster has in the end.
    pub(crate) async fn read_all(mut self) {
        for key in 0..self.world.plan.keys {
            let before = self.world.history.counts().read;
            self.read(Bytes::from(format!("k{key}"))).await;
            if self.world.history.counts().read == before {
                let reason = format!("when all faults are over the cluster serves: k{key}");
                self.world.trace.fail(reason);
                return;
            }
        }
    }

    /// Writes one key, until it is answered.
    pub(crate) async fn write_once(mut self) {
        let before = self.world.history.counts().written;
        let write = self.put(self.key_at(0), Condition::None, None);
        self.write(write).await;
        if self.world.history.counts().written == before {
            self.world.trace.fail("when all faults are over the cluster takes writes".into());
        }
    }

    fn key(&mut self) -> Bytes {
        let key = self.chance.below(self.world.plan.keys);
        self.key_at(key)
    }

    fn key_at(&self, key: u64) -> Bytes {
        Bytes::from(format!("k{key}"))
    }

    fn pick_write(&mut self, key: Bytes) -> Write {
        match self.chance.below(10) {
            0 => Write {
                input: Input::Delete { key: text(&key) },
                operation: Operation::Delete { key, condition: Condition::None },
            },
            1..5 => match self.known.get(&key).cloned() {
                Some((Some(value), version)) => {
                    self.put(key, Condition::Version(Version(version)), Some(Some(value)))
                }
                _ => self.put(key, Condition::Absent, Some(None)),
            },
            _ => self.put(key, Condition::None, None),
        }
    }

    /// Returns a put of a value that no other put has.
    fn put(&self, key: Bytes, condition: Condition, expected: Option<Option<Text>>) -> Write {
        let value = format!("{}.{}", self.number, self.sequence + 1);
        let input = match expected {
            None => Input::Put { key: text(&key), value: value.as_str().into() },
            Some(expected) => {
                let (key, value) = (text(&key), value.as_str().into());
                Input::CompareAndSet { key, expected, value }
            }
        };
        let operation = Operation::Put { key, value: Bytes::from(value), condition };
        Write { operation, input }
    }

    async fn write(&mut self, Write { operation, input }: Write) {
        let world = Arc::clone(&self.world);
        self.sequence += 1;
        world.trace.note("call", format_args!("c{} {input:?}", self.number));
        let called = world.trace.moment();
        let mut is_ambiguous = false;
        let deadline = Instant::now() + TRIES_FOR;
        while Instant::now() < deadline {
            if is_ambiguous && world.setup.mistake == Some(Mistake::RenamesRetries) {
                self.sequence += 1;
            }
            let request = RequestId {
                client: ClientId(u128::from(self.number)),
                sequence: self.sequence,
                first_incomplete: self.sequence,
                start: Some(0),
            };
            let command = Command { request: Some(request), operation: operation.clone() };
            let clock = world.trace.now();
            let answer = self
                .ask(|running| async move {
                    let clock = clock.max(running.table.clock());
                    let batch = CommandBatch { commands: vec![command], clock };
                    running.replica.propose(batch).await
                })
                .await;
            let outcome = match answer {
                Ok(outcomes) => outcomes[0],
                Err(NoAnswer::Refused) => continue,
                Err(NoAnswer::Lost) => {
                    is_ambiguous = true;
                    if world.setup.mistake == Some(Mistake::TakesUnknownForDone) {
                        let mut observer = world.observer.lock();
                        observer.acknowledged.record(self.number, self.sequence, None);
                        let answer = Answer { at: world.trace.moment(), output: Output::Done };
                        world.history.record(self.number, input, called, Some(answer));
                        return;
                    }
                    continue;
                }
            };
            world.trace.note("answer", format_args!("c{} {outcome:?}", self.number));
            let at = world.trace.moment();
            let key = operation.key().clone();
            *world.history.newest.lock() = Some(key.clone());
            let given = Some(outcome);
            world.observer.lock().acknowledged.record(self.number, self.sequence, given);
            let output = match outcome {
                Outcome::Put { version } => {
                    if let Operation::Put { value, .. } = &operation {
                        self.known.insert(key.clone(), (Some(text(value)), version.0));
                    }
                    let mut observer = world.observer.lock();
                    observer.timelines.acknowledged(key, world.trace.now(), version.0);
                    Output::Done
                }
                Outcome::Deleted { .. } => {
                    self.known.remove(&key);
                    Output::Done
                }
                Outcome::ConditionFailed { .. } => {
                    self.known.remove(&key);
                    Output::Refused
                }
                other => {
                    world.trace.fail(format!("a write is answered by {other:?}"));
                    return;
                }
            };
            world.history.record(self.number, input, called, Some(Answer { at, output }));
            world.observe();
            return;
        }
        // What was refused every time was not done; it explains nothing and need not be explained.
        if is_ambiguous {
            world.history.record(self.number, input, called, None);
        }
    }

    /// Asks one node for strong reads for a while, whether it leads or not.
    pub(crate) async fn ask_for(mut self, node: NodeId, lasts: Duration) {
        let end = Instant::now() + lasts;
        while Instant::now() < end {
            self.leader = Some(node);
            let key = self.key();
            self.read_within(key, Duration::from_nanos(1)).await;
        }
    }

    async fn read(&mut self, key: Bytes) {
        self.read_within(key, TRIES_FOR).await;
    }

    /// Reads a key, and tries again until `lasts` is over.
    async fn read_within(&mut self, key: Bytes, lasts: Duration) {
        let world = Arc::clone(&self.world);
        world.trace.note("call", format_args!("c{} get {key:?}", self.number));
        let called = world.trace.moment();
        let deadline = Instant::now() + lasts;
        while Instant::now() < deadline {
            let (asked, slow) = (key.clone(), self.chance.millis(0, 3));
            let weak = Arc::downgrade(&world);
            let answer = self
                .ask(|running| async move {
                    let permit = running.replica.read_barrier().await?;
                    // If it leads no more, the permit is not valid any more.
                    let epoch = running.replica.status().epoch;
                    let row = running.table.get(&asked);
                    let row = row.map_err(|error| ReplicaError::Failed(error.to_string()))?;
                    // The rows may lie on the disk.
                    sleep(slow).await;
                    permit.validate()?;
                    if let Some(world) = weak.upgrade() {
                        world.serves(running.node, epoch);
                    }
                    Ok(row)
                })
                .await;
            let Ok(row) = answer else { continue };
            let found = row.as_ref().map(|row| text(&row.value));
            world.trace.note("answer", format_args!("c{} {found:?}", self.number));
            let version = row.map_or(0, |row| row.version.0);
            self.known.insert(key.clone(), (found.clone(), version));
            let answer = Answer { at: world.trace.moment(), output: Output::Found(found) };
            let input = Input::Get { key: text(&key) };
            world.history.record(self.number, input, called, Some(answer));
            return;
        }
    }

    /// Reads what any node has.
    async fn read_timeline(&mut self, key: Bytes) {
        let world = Arc::clone(&self.world);
        let node = self.chance.pick(&world.plan.nodes);
        let Some(running) = world.running(node).filter(|running| running.process.runs()) else {
            return;
        };
        let began = world.trace.now();
        let at = Instant::now();
        let Ok((row, applied)) = running.table.get_with_applied(&key) else { return };
        let Ok(freshness) = running.replica.freshness(applied, at) else { return };
        let found = row.map(|row| (row.value, row.version.0));
        let (age, mut applied) = (freshness.age, applied.seq);
        let age = match world.setup.mistake {
            Some(Mistake::ClaimsToBeNew) => age.map(|_| Duration::ZERO),
            _ => age,
        };
        if world.setup.mistake == Some(Mistake::NamesCommitted) {
            applied = running.replica.status().committed.seq;
        }
        let fastest = world.slack(node);
        let read = TimelineRead { node, key, found, applied, age, fastest, began };
        world.history.counts.lock().timeline_reads += 1;
        let judged = world.observer.lock().timeline(&read);
        if let Err(reason) = judged {
            world.trace.fail(reason);
        }
    }

    /// Asks the node that is believed to lead, or any, once.
    async fn ask<T, F>(&mut self, act: impl FnOnce(Arc<Running>) -> F) -> Result<T, NoAnswer>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ReplicaError>> + Send + 'static,
    {
        let node = match self.leader.take() {
            Some(leader) => leader,
            None => self.chance.pick(&self.world.plan.nodes),
        };
        sleep(self.chance.millis(1, 3)).await;
        let (loses_answer, back) = (self.chance.one_in(100), self.chance.millis(1, 3));
        let pause = self.chance.millis(self.pause.0, self.pause.1);
        let Some(running) = self.world.running(node) else {
            sleep(pause).await;
            return Err(NoAnswer::Refused);
        };
        let (answer, answered) = oneshot::channel();
        let asked = act(Arc::clone(&running));
        tokio::spawn(running.process.task(async move {
            // The client may have given up.
            let _nobody = answer.send(asked.await);
        }));
        drop(running);
        let result = match timeout(ANSWER_TIMEOUT, answered).await {
            Ok(Ok(_)) if loses_answer => return Err(NoAnswer::Lost),
            Ok(Ok(result)) => result,
            // The node died, or is silent.
            Ok(Err(_)) | Err(_) => return Err(NoAnswer::Lost),
        };
        sleep(back).await;
        match result {
            Ok(value) => {
                self.leader = Some(node);
                Ok(value)
            }
            Err(error) => {
                let refused = match error.class() {
                    ErrorClass::Redirect(leader) => {
                        self.leader = leader;
                        NoAnswer::Refused
                    }
                    ErrorClass::Retry => NoAnswer::Refused,
                    ErrorClass::Unknown | ErrorClass::Fatal => NoAnswer::Lost,
                    ErrorClass::Invalid => {
                        self.world.trace.fail(format!("a request is refused for good: {error}"));
                        NoAnswer::Refused
                    }
                };
                sleep(pause).await;
                Err(refused)
            }
        }
    }
}

fn text(bytes: &Bytes) -> Text {
    String::from_utf8_lossy(bytes).as_ref().into()
}
