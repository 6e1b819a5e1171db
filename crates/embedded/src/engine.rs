//! The one writer: gathers the commands that wait, makes them durable together, applies them.
//!
//! A command is applied after it is durable and answered after it is applied. So every reader
//! sees durable state only, and everything that was answered before the reader asked.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use etcd_client::proto::{PbCompactionRequest, PbLeaseRevokeRequest, PbResponseHeader};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use super::backup;
use super::command::{Command, Outcome};
use super::counters::{CounterCells, count};
use super::error::EmbeddedError;
use super::fault::Refusal;
use super::journal::{self, Journal};
use super::lessor::Lessor;
use super::options::EmbeddedOptions;
use super::store::Store;

/// The most commands that wait to be made durable; further requests wait at the door.
const QUEUE_COMMANDS_MAX: usize = 1024;

/// The most bytes of commands in one frame of the log; the rest takes the next one.
const FRAME_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The most bytes in one request, as in etcd.
pub(super) const REQUEST_BYTES_MAX: usize = 3 * 512 * 1024;

/// How long the expiry of leases may lag behind at most.
const LEASE_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The format of a snapshot's payload, its first byte.
const SNAPSHOT_FORMAT: u8 = 1;

/// Who the server says it is: drawn when the folder was created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub cluster: u64,
    pub member: u64,
}

/// What the services work on.
#[derive(Debug)]
pub(super) struct Engine {
    options: EmbeddedOptions,
    identity: Identity,
    /// The term that headers name: drawn at each start. There is no election, and between two
    /// starts the folder may have been put back to what it was earlier, so that a client that compares what
    /// it knows of two starts must see that they are two.
    term: u64,
    store: RwLock<Store>,
    lessor: Mutex<Lessor>,
    queue: mpsc::Sender<Job>,
    /// The store's revision, for those who wait for it to change.
    revision: watch::Sender<i64>,
    last_index: AtomicU64,
    next_lease: AtomicU64,
    halted: AtomicBool,
    /// Why the writer has ended, once its disk has failed.
    failed: watch::Sender<Option<String>>,
    pub counters: CounterCells,
}

#[derive(Debug)]
enum Job {
    Apply(Command, oneshot::Sender<Result<Outcome, Refusal>>),
    Stop,
}

/// The writer's thread, to be joined.
pub(super) type Writer = thread::JoinHandle<Result<(), EmbeddedError>>;

impl Engine {
    /// Recovers the state of the options' folder and starts the writer.
    ///
    /// An empty frame is made durable first: a server whose disk takes no writes could serve reads
    /// and keep sessions alive, but could end no lease and commit no election.
    pub(super) fn start(options: EmbeddedOptions) -> Result<(Arc<Self>, Writer), EmbeddedError> {
        let (mut journal, recovered) = Journal::open(&options.data)?;
        let (identity, mut store) = match recovered.snapshot {
            Some(payload) => decode_snapshot(&payload, &options)?,
            None => {
                let identity = Identity { cluster: random_id(), member: random_id() };
                let store = Store::default();
                journal.install_snapshot(&encode_snapshot(identity, &store)?)?;
                (identity, store)
            }
        };
        for command in recovered.commands {
            // A command that was refused when it was new is refused again.
            command.apply(&mut store).ok();
        }
        journal.append(&[])?;
        let now = Instant::now();
        let mut lessor = Lessor::default();
        store.leases().iter().for_each(|(&id, lease)| lessor.start(id, lease.ttl, now));
        tracing::info!(
            data = %options.data.display(),
            revision = store.revision(),
            leases = store.leases().len(),
            "recovered the coordinator's state"
        );
        let (queue, jobs) = mpsc::channel(QUEUE_COMMANDS_MAX);
        let engine = Arc::new(Self {
            identity,
            term: random_id(),
            revision: watch::Sender::new(store.revision()),
            store: RwLock::new(store),
            lessor: Mutex::new(lessor),
            queue,
            last_index: AtomicU64::new(journal.last_index()),
            next_lease: AtomicU64::new(random_id()),
            halted: AtomicBool::new(false),
            failed: watch::Sender::new(None),
            counters: CounterCells::default(),
            options,
        });
        let writer = spawn_writer(Arc::clone(&engine), journal, jobs)?;
        Ok((engine, writer))
    }

    /// Writes the state that a backup holds into the options' folder, which must hold none yet. It is
    /// another server from then on: who watched the one that was saved reads everything anew.
    pub(super) fn restore(file: &[u8], options: &EmbeddedOptions) -> Result<(), EmbeddedError> {
        let refused = |reason: &str| EmbeddedError::Backup(reason.to_owned());
        let (index, payload) = backup::unpack(file).map_err(refused)?;
        let (_, store) = decode_snapshot(payload, options)?;
        let identity = Identity { cluster: random_id(), member: random_id() };
        journal::create(&options.data, index, &encode_snapshot(identity, &store)?)
    }

    /// Returns the whole state as a backup.
    pub(super) fn backup(&self) -> Result<Vec<u8>, EmbeddedError> {
        // What is applied while the two are read is in the store, or not: the index only has to be
        // no lower than any index that the store has seen.
        let store = self.store.read();
        let payload = encode_snapshot(self.identity, &store)?;
        Ok(backup::pack(self.last_index(), &payload))
    }

    /// Makes a command durable, applies it and returns what became of it.
    pub(super) async fn submit(&self, command: Command) -> Result<Outcome, Refusal> {
        if command.encoded_len() > REQUEST_BYTES_MAX {
            return Err(Refusal::RequestTooLarge);
        }
        let grows = matches!(command, Command::Put(_) | Command::Txn(_));
        if grows && self.store.read().bytes() > self.options.quota_bytes {
            return Err(Refusal::NoSpace);
        }
        let (reply, outcome) = oneshot::channel();
        let job = Job::Apply(command, reply);
        self.queue.send(job).await.map_err(|_| Refusal::Stopped)?;
        outcome.await.map_err(|_| Refusal::Stopped)?
    }

    /// Tells the writer to end after what waits.
    pub(super) async fn stop(&self) {
        // A writer that has ended already needs no telling.
        self.queue.send(Job::Stop).await.ok();
    }

    /// Tells the writer to end, without waiting for room to tell it.
    pub(super) fn halt(&self) {
        self.halted.store(true, Ordering::Release);
        // A full queue wakes the writer as well.
        self.queue.try_send(Job::Stop).ok();
    }

    pub(super) fn store(&self) -> RwLockReadGuard<'_, Store> {
        self.store.read()
    }

    pub(super) fn lessor(&self) -> &Mutex<Lessor> {
        &self.lessor
    }

    pub(super) fn options(&self) -> &EmbeddedOptions {
        &self.options
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Returns the index of the last command made durable.
    pub(super) fn last_index(&self) -> u64 {
        self.last_index.load(Ordering::Acquire)
    }

    /// Returns why the disk has failed, once it has.
    pub(super) fn failure(&self) -> watch::Receiver<Option<String>> {
        self.failed.subscribe()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<i64> {
        self.revision.subscribe()
    }

    /// Returns a header that names this server and `revision`.
    pub(super) fn header(&self, revision: i64) -> Option<PbResponseHeader> {
        let Identity { cluster, member } = self.identity;
        let raft_term = self.term;
        Some(PbResponseHeader { cluster_id: cluster, member_id: member, revision, raft_term })
    }

    /// Returns an identifier that no lease has.
    pub(super) fn free_lease_id(&self) -> i64 {
        let store = self.store.read();
        loop {
            let drawn = self.next_lease.fetch_add(1, Ordering::Relaxed) & (u64::MAX >> 1);
            let id = i64::try_from(drawn).unwrap_or(1);
            if id != 0 && !store.leases().contains_key(&id) {
                return id;
            }
        }
    }

    /// Revokes leases as they end, for as long as the server runs.
    pub(super) async fn end_leases(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(LEASE_CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let ended = self.lessor.lock().take_ended(Instant::now());
            for id in ended {
                tracing::debug!(lease = id, "a lease has ended");
                // A lease that was revoked meanwhile is as gone as it should be.
                self.submit(Command::Revoke(PbLeaseRevokeRequest { id })).await.ok();
            }
        }
    }

    /// Applies commands that are durable.
    fn apply(&self, commands: Vec<Command>) -> (Vec<Result<Outcome, Refusal>>, Option<Command>) {
        let mut store = self.store.write();
        let now = Instant::now();
        let mut outcomes = Vec::with_capacity(commands.len());
        for command in commands {
            let outcome = command.apply(&mut store);
            match &outcome {
                Ok(Outcome::Granted { id, ttl, .. }) => self.lessor.lock().start(*id, *ttl, now),
                Ok(Outcome::Revoked { id, .. }) => self.lessor.lock().remove(*id),
                _ => {}
            }
            outcomes.push(outcome);
        }
        let revision = store.revision();
        let compaction = self.compaction_due(&store);
        drop(store);
        self.revision.send_if_modified(|current| {
            let changed = *current != revision;
            *current = revision;
            changed
        });
        (outcomes, compaction)
    }

    fn compaction_due(&self, store: &Store) -> Option<Command> {
        let (revisions, bytes) = (self.options.history_revisions, self.options.history_bytes);
        let due = store.history_len() > 2 * revisions || store.history_bytes() > 2 * bytes;
        let revision = due.then(|| store.compaction_due(revisions, bytes)).flatten()?;
        Some(Command::Compact(PbCompactionRequest { revision, physical: false }))
    }
}

fn spawn_writer(
    engine: Arc<Engine>,
    journal: Journal,
    jobs: mpsc::Receiver<Job>,
) -> Result<Writer, EmbeddedError> {
    let data = engine.options.data.clone();
    let threshold = engine.options.snapshot_log_bytes;
    let writer = WriterLoop { engine, journal, jobs, snapshot_at: threshold, compaction: None };
    let name = "trireme-coordinator".to_owned();
    let engine = Arc::clone(&writer.engine);
    let spawned = thread::Builder::new().name(name).spawn(move || {
        let ended = writer.run();
        if let Err(error) = &ended {
            tracing::error!(%error, "the coordinator's log failed; it stops");
            engine.failed.send_replace(Some(error.to_string()));
        }
        ended
    });
    let action = "start the writer of";
    spawned.map_err(|source| EmbeddedError::Io { action, path: data, source })
}

struct WriterLoop {
    engine: Arc<Engine>,
    journal: Journal,
    jobs: mpsc::Receiver<Job>,
    /// The bytes of log at which the next snapshot is due.
    snapshot_at: u64,
    /// A compaction that the history's bounds ask for.
    compaction: Option<Command>,
}

impl WriterLoop {
    /// Works until it is told to stop, or until the disk fails: then every waiting and later
    /// request is told that the server stopped, since what is durable is not known any more.
    fn run(mut self) -> Result<(), EmbeddedError> {
        loop {
            let Some(job) = self.jobs.blocking_recv() else { return Ok(()) };
            let mut commands = Vec::new();
            let mut replies = Vec::new();
            let goes_on = self.gather(job, &mut commands, &mut replies);
            if !commands.is_empty() {
                self.commit(commands, replies)?;
            }
            if self.engine.halted.load(Ordering::Acquire) {
                return Ok(());
            }
            if !goes_on {
                // Every frame with commands has one behind it now, so that none of them that is damaged
                // later is taken for one that a crash cut short.
                return self.journal.append(&[]);
            }
        }
    }

    /// Takes what waits; returns whether to go on after it.
    fn gather(
        &mut self,
        first: Job,
        commands: &mut Vec<Command>,
        replies: &mut Vec<oneshot::Sender<Result<Outcome, Refusal>>>,
    ) -> bool {
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(job) = next {
            let Job::Apply(command, reply) = job else { return false };
            bytes += command.encoded_len();
            commands.push(command);
            replies.push(reply);
            let is_full = bytes >= FRAME_BYTES_MAX || commands.len() >= QUEUE_COMMANDS_MAX;
            next = if is_full { None } else { self.jobs.try_recv().ok() };
        }
        true
    }

    fn commit(
        &mut self,
        mut commands: Vec<Command>,
        replies: Vec<oneshot::Sender<Result<Outcome, Refusal>>>,
    ) -> Result<(), EmbeddedError> {
        // The compaction goes last, where it has no reply to be matched with.
        commands.extend(self.compaction.take());
        self.journal.append(&commands.iter().collect::<Vec<_>>())?;
        count(&self.engine.counters.syncs);
        self.engine.last_index.store(self.journal.last_index(), Ordering::Release);
        let (outcomes, compaction) = self.engine.apply(commands);
        self.compaction = compaction;
        for (reply, outcome) in replies.into_iter().zip(outcomes) {
            // A caller that has gone away needs no answer.
            reply.send(outcome).ok();
        }
        if self.journal.log_bytes() >= self.snapshot_at {
            self.snapshot()?;
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<(), EmbeddedError> {
        let payload = encode_snapshot(self.engine.identity, &self.engine.store.read())?;
        self.journal.install_snapshot(&payload)?;
        // A log as long as the snapshot keeps the bytes written within twice the bytes logged.
        self.snapshot_at = self.engine.options.snapshot_log_bytes.max(payload.len() as u64);
        Ok(())
    }
}

pub(super) fn encode_snapshot(identity: Identity, store: &Store) -> Result<Vec<u8>, EmbeddedError> {
    postcard::to_extend(&(identity, store), vec![SNAPSHOT_FORMAT])
        .map_err(|error| EmbeddedError::Poisoned(format!("the state cannot be encoded: {error}")))
}

pub(super) fn decode_snapshot(
    payload: &[u8],
    options: &EmbeddedOptions,
) -> Result<(Identity, Store), EmbeddedError> {
    let damaged = |reason: String| {
        let path = options.data.clone();
        EmbeddedError::Damaged { path, position: 0, reason }
    };
    match payload.split_first() {
        Some((&SNAPSHOT_FORMAT, rest)) => postcard::from_bytes(rest)
            .map_err(|error| damaged(format!("the snapshot cannot be decoded: {error}"))),
        Some((format, _)) => Err(damaged(format!("a snapshot of the unknown format {format}"))),
        None => Err(damaged("the snapshot is empty".to_owned())),
    }
}

/// Returns 64 bits that no other server draws: the standard library seeds each hasher at random.
fn random_id() -> u64 {
    RandomState::new().build_hasher().finish() | 1
}
