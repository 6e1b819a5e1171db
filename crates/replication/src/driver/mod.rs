//! Runs a [`Core`] on a real log, a real table and a real network: [`CoreReplica`].
//!
//! # How it works
//!
//! One task per cohort owns the core. It takes whatever waits in its mailbox, tells the core one
//! event after the other, and then performs everything that the core wants done, in order: that is
//! the batch. While it does, the next one gathers; nothing waits for a timer.
//!
//! ```text
//!   callers, peers, coordinator             ┌────────── log's writer: "durable up to n" ◄──┐
//!        │                                  ▼                                              │
//!        └──────────────────────────────► mailbox ──► task: core.handle*, drain ──► Persist┘
//!                                           ▲           │        │          │
//!        long reads: LogSent, SnapshotSent ─┘           │        │          └─► Send ──► network
//!                                                       │        └─► SendLog ─► network, or a task
//!                  Applied, with outcomes ◄── table, or a thread ◄──── Commit
//! ```
//!
//! * **Conditions.** An effect whose condition holds is performed at once; the others wait in two
//!   queues, one for the disk and one for the table, and leave in the core's order (M13).
//! * **Nothing waits on the task.** What it sends and applies is in memory nearly always, and is sent
//!   and applied at once; what may have to wait for a disk goes to threads that may.
//! * **Applying** beside the task goes in bounded steps, one at a time, and whatever was committed
//!   meanwhile is in the next. Nothing is applied before it is on this replica's own disk, so that a
//!   table never runs ahead of its log (S8).
//! * **Reads** that wait together share one ticket, and so one round of whatever the protocol does.
//! * **Failure.** If the log or the table fails, or the core contradicts its log, the replica is
//!   over: who waits is told, the node is told once, and everything after is refused.
//!
//! # Why nothing blocks for ever
//!
//! The task waits for the log's queue alone, and the log's writer waits for nobody: what it calls
//! only sets a number in the mailbox. Callers are refused when there is no room, messages are lost.
//!
//! # What is left out
//!
//! A message to several replicas is encoded once for each. A core that asks for more than one
//! `SendLog` or `SendSnapshot` to one replica at a time gets them, in any order.

mod apply;
mod callers;
mod clock;
mod mailbox;
mod options;
mod outgoing;
mod published;
mod storage;
mod task;

use std::convert::Infallible;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument as _;
use trireme_types::{CohortId, CommandBatch, Lsn, NodeId, Outcome, Seal};

pub use self::options::{DriverFaults, DriverOptions, InvalidDriverOption};

use self::apply::Applier;
use self::clock::Clock;
use self::mailbox::{Answer, Control, Mailbox, Phase};
use self::outgoing::Sender;
use self::published::Published;
use self::storage::{CohortLog, CohortTable, StagedSnapshot};
use self::task::{State, Task};
use crate::core::{Core, Recovered};
use crate::pulse::{Pulses, RestWatch, Sleeper};
use crate::replica::{Freshness, ReadPermit, Replica, ReplicaError, ReplicaStatus};
use crate::simulation;
use crate::transport::{Lane, Transport};

/// The pause before an event is passed again to a replica whose queue was full.
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Called once, if the replica fails for good.
pub type FailureListener = Box<dyn FnOnce(&ReplicaError) + Send>;

/// Carries a core's requests to the coordinator. What the coordinator says comes back through
/// [`CoreReplica::coordination`].
pub trait Coordination<C: Core>: Send + Sync + 'static {
    /// Takes a request. Never waits; what becomes of it is told later, or, as over any network,
    /// never.
    fn request(&self, request: C::CoordinatorRequest);
}

/// No coordinator, for a protocol that asks nothing of one.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCoordination;

impl<C: Core<CoordinatorRequest = Infallible>> Coordination<C> for NoCoordination {
    fn request(&self, request: Infallible) {
        match request {}
    }
}

/// Why a replica cannot start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// An option of the driver makes no sense.
    #[error(transparent)]
    Option(#[from] InvalidDriverOption),
    /// The protocol cannot begin with what is on the disk, or with its options.
    #[error("{0}")]
    Core(String),
}

/// What a replica is connected to.
pub struct Wiring<C: Core> {
    /// The cohort's log, which nobody else writes to.
    pub log: CohortLog,
    /// The cohort's table, to which nobody else applies.
    pub table: CohortTable,
    /// The network.
    pub transport: Arc<dyn Transport>,
    /// The coordinator.
    pub coordination: Arc<dyn Coordination<C>>,
    /// Where the replica rests while nothing happens; `None` if it never does.
    pub pulses: Option<Arc<Pulses>>,
    /// Whom to tell if the replica fails for good: its node must stop.
    pub on_failure: FailureListener,
}

/// A replica whose protocol is a [`Core`].
///
/// Dropping it stops it at once; [`Replica::shutdown`] is the orderly end.
pub struct CoreReplica<C: Core> {
    node: NodeId,
    cohort: CohortId,
    table: CohortTable,
    mailbox: Arc<Mailbox<C>>,
    published: Arc<Published>,
    rest: RestWatch,
    clock: Clock,
    /// What the log knew to be committed at the start.
    recovered: Lsn,
    /// Turns true when the task has ended.
    ended: watch::Receiver<bool>,
}

impl<C: Core> CoreReplica<C> {
    /// Starts a replica of `table`'s cohort on `node`. `make` makes the core from what was found on
    /// the disk, or says why it cannot. Must be called within a tokio runtime with time.
    pub fn start(
        node: NodeId,
        wiring: Wiring<C>,
        options: DriverOptions,
        make: impl FnOnce(Recovered) -> Result<C, String>,
    ) -> Result<Self, StartError> {
        options.validate()?;
        let Wiring { log, table, transport, coordination, pulses, on_failure } = wiring;
        let recovered = storage::recover(node, &log, &table);
        let (cohort, last, applied) = (recovered.cohort, recovered.log.last(), recovered.applied);
        let commit_point = recovered.commit_point;
        let DriverOptions { send_log_bytes_max, apply_bytes_max, drain_timeout, faults, .. } =
            options;
        let core = make(recovered).map_err(StartError::Core)?;
        let mailbox = Arc::new(Mailbox::new(options));
        let published = Arc::new(Published::new(core.status()));
        let applier = Applier::new(log.clone(), table.clone(), apply_bytes_max);
        let sender = Sender {
            cohort,
            transport,
            log: log.clone(),
            table: table.clone(),
            mailbox: Arc::clone(&mailbox),
            send_log_bytes_max,
            tasks: JoinSet::new(),
        };
        let clock = Clock::start();
        let sleeper = Sleeper::new(cohort, pulses);
        let rest = sleeper.watch();
        let task = Task {
            sleeper,
            core,
            clock,
            mailbox: Arc::clone(&mailbox),
            published: Arc::clone(&published),
            log,
            sender,
            coordination,
            applier,
            on_failure,
            drain_timeout,
            faults,
            state: State::new(last.seq, applied),
        };
        let (end, ended) = watch::channel(false);
        let span = tracing::info_span!("replica", %node, %cohort);
        let run = async move {
            task.run().await;
            // Nobody may be waiting for the end.
            end.send_replace(true);
        };
        simulation::spawn(run.instrument(span));
        let recovered = commit_point;
        Ok(Self { node, cohort, table, mailbox, published, rest, clock, recovered, ended })
    }

    /// Passes an event of the coordinator to a replica that others keep alive, however full its queue
    /// is. Returns false if the replica has ended.
    pub async fn notify(replica: &Weak<Self>, event: C::CoordinatorEvent) -> bool
    where
        C::CoordinatorEvent: Clone,
    {
        loop {
            let Some(replica) = replica.upgrade() else { return false };
            match replica.coordination(event.clone()) {
                Err(ReplicaError::Busy) => {}
                _ => return true,
            }
            drop(replica);
            tokio::time::sleep(BUSY_PAUSE).await;
        }
    }

    /// Hands the core an event of the coordinator. [`ReplicaError::Busy`] means that it was not
    /// accepted and must be passed again.
    pub fn coordination(&self, event: C::CoordinatorEvent) -> Result<(), ReplicaError> {
        self.mailbox.coordination(event)
    }

    /// Puts a request into the mailbox and waits for its answer.
    async fn ask<T>(
        &self,
        put: impl FnOnce(Answer<T>) -> Result<(), ReplicaError>,
    ) -> Result<T, ReplicaError> {
        let (answer, answered) = oneshot::channel();
        put(answer)?;
        let lost = || ReplicaError::Ambiguous("the replica's task ended without an answer".into());
        answered.await.unwrap_or_else(|_| Err(lost()))
    }

    async fn control<T>(
        &self,
        control: impl FnOnce(Answer<T>) -> Control,
    ) -> Result<T, ReplicaError> {
        self.ask(|answer| self.mailbox.control(control(answer))).await
    }
}

impl<C: Core> Drop for CoreReplica<C> {
    fn drop(&mut self) {
        let refusal = ReplicaError::Unavailable("the replica was dropped".into());
        self.mailbox.close(Phase::Closed, refusal);
    }
}

#[async_trait]
impl<C: Core> Replica for CoreReplica<C> {
    async fn propose(&self, batch: CommandBatch) -> Result<Vec<Outcome>, ReplicaError> {
        self.ask(|answer| self.mailbox.propose(batch.encode(), answer)).await
    }

    async fn seal(&self, seal: &Seal) -> Result<(), ReplicaError> {
        self.ask(|answer| self.mailbox.propose(seal.encode(), answer)).await.map(drop)
    }

    async fn read_barrier(&self) -> Result<ReadPermit, ReplicaError> {
        self.ask(|answer| self.mailbox.read(answer)).await
    }

    fn freshness(&self, applied: Lsn, at: Instant) -> Result<Freshness, ReplicaError> {
        let (role, as_of) = self.published.as_of(applied);
        let rested = self.rest.as_of().filter(|(point, _)| point.seq <= applied.seq);
        let as_of = as_of.max(rested.map(|(_, as_of)| self.clock.moment(as_of)));
        let age = as_of.map(|as_of| self.clock.moment(at).since(as_of));
        Freshness::checked(applied, age, role, self.recovered)
    }

    fn deliver(&self, from: NodeId, _lane: Lane, payload: Bytes) {
        if !self.mailbox.message(from, payload) {
            tracing::debug!(node = %self.node, cohort = %self.cohort, %from, "dropped a message");
        }
    }

    async fn install_snapshot(
        &self,
        from: NodeId,
        header: Bytes,
        snapshot: StagedSnapshot,
    ) -> Result<Bytes, ReplicaError> {
        self.control(|answer| Control::Snapshot { from, header, snapshot, answer }).await
    }

    fn peer_alive(&self, node: NodeId) {
        self.mailbox.peer(node, true);
    }

    fn peer_lost(&self, node: NodeId) {
        self.mailbox.peer(node, false);
    }

    async fn transfer_leader(&self, to: NodeId) -> Result<(), ReplicaError> {
        self.control(|answer| Control::TransferLeader { to, answer }).await
    }

    async fn release_log(&self, upto: u64) -> Result<(), ReplicaError> {
        // A core knows nothing of its table's disk, and the log refuses what goes past it.
        let upto = upto.min(self.table.persisted().seq);
        self.control(|answer| Control::ReleaseLog { upto, answer }).await
    }

    fn leader(&self) -> Option<NodeId> {
        self.published.leader()
    }

    fn status(&self) -> ReplicaStatus {
        let status = self.published.get();
        ReplicaStatus {
            node: self.node,
            cohort: self.cohort,
            protocol: C::PROTOCOL,
            role: status.role,
            leader: status.leader,
            epoch: status.epoch,
            last: status.last,
            durable: status.durable,
            committed: status.committed,
            applied: self.table.applied(),
            purged: status.purged,
            replicas: status.replicas,
            progress: status.progress,
            measures: status.measures,
        }
    }

    async fn shutdown(&self) {
        let refusal = ReplicaError::Unavailable("the replica is shutting down".into());
        self.mailbox.close(Phase::Draining, refusal);
        // An error means that the task is gone, with its runtime: that is an end too.
        let mut ended = self.ended.clone();
        drop(ended.wait_for(|has_ended| *has_ended).await);
    }
}
