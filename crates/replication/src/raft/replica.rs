//! [`RaftReplica`]: what the server holds of a Raft cohort.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{
    ClientWriteError, Fatal, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError,
};
use openraft::storage::Snapshot;
use openraft::{RaftMetrics, ReadPolicy, ServerState};
use parking_lot::{Mutex, RwLock};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::Instant;
use trireme_storage::{CohortLog, CohortTable, StagedSnapshot, Tables};
use trireme_types::{CohortConfig, CommandBatch, Lsn, NodeId, Outcome, Protocol, Seal};

use super::admission::{Admission, is_newcomer};
use super::calls::Calls;
use super::forming::{form_cohort, lead_at_first};
use super::heard::{Attached, Heard};
use super::inbound::{Event, Inbound, RaftHandle};
use super::log_holds::LogHolds;
use super::log_store::{OnDisk, RaftLogStore};
use super::network::RaftNetworkMaker;
use super::rest::Ticks;
use super::state_machine::{RaftTable, SnapshotData};
use super::tending::Tending;
use super::types::{Proposal, RaftId, RaftMembership, TypeConfig, lsn_or_zero};
use super::{RaftOptions, wire};
use crate::pulse::{Pulses, Sleeper};
use crate::queue::{Receiver, Sender, queue};
use crate::replica::{Freshness, Measures, ReadPermit, Replica, ReplicaError, ReplicaStatus, Role};
use crate::simulation;
use crate::transport::{Lane, Transport};

/// How long a strong read waits for a majority to confirm the leader.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// How long giving up the log waits for the table to be on disk.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

/// How many events wait to be taken at most; what finds no room is reported again.
const EVENTS_MAX: usize = 64;

/// After how long without a leader's append a voter believes that another incarnation has taken its
/// place, if it sees appends to that one. Longer than an election takes.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3);

/// How long giving up the log waits for Raft to do it.
const PURGE_TIMEOUT: Duration = Duration::from_millis(500);

/// What a Raft replica is made of.
pub struct RaftParts {
    /// The node that the replica is on.
    pub node: NodeId,
    /// The cohort, as the coordinator knows it: its first members.
    pub config: CohortConfig,
    /// The cohort's log.
    pub log: CohortLog,
    /// The node's tables.
    pub tables: Tables,
    /// The cohort's table, one of them.
    pub table: CohortTable,
    /// The way to the other replicas.
    pub transport: Arc<dyn Transport>,
    /// Where the replica rests while nothing happens; `None` if it never does.
    pub pulses: Option<Arc<Pulses>>,
    /// The settings.
    pub options: RaftOptions,
    /// Whether the node once lost its disk: a replica that finds nothing here has lost what it
    /// acknowledged and begins under a new incarnation (S14).
    pub lost_disk: bool,
    /// Called if the replica fails for good; the node must stop then.
    pub on_failure: Arc<dyn Fn(String) + Send + Sync>,
}

/// A replica of a Raft cohort.
pub struct RaftReplica {
    kept: Kept,
    running: RwLock<Arc<Running>>,
    /// Held while another incarnation begins; whether the replica was closed.
    is_closed: tokio::sync::Mutex<bool>,
}

/// What outlives an incarnation of the replica.
struct Kept {
    node: NodeId,
    config: CohortConfig,
    log: CohortLog,
    tables: Tables,
    table: CohortTable,
    transport: Arc<dyn Transport>,
    pulses: Option<Arc<Pulses>>,
    options: RaftOptions,
    on_failure: Arc<dyn Fn(String) + Send + Sync>,
    /// How much of the log is on disk; at first all that was opened.
    on_disk: Arc<Mutex<OnDisk>>,
    /// Where what arrives reports what concerns the replica itself.
    events: Sender<Event>,
}

/// One incarnation of the replica at work.
struct Running {
    id: RaftId,
    raft: RaftHandle,
    inbound: Inbound,
    heard: Arc<Heard>,
    holds: Arc<LogHolds>,
    admission: Arc<Admission>,
    ticks: Arc<Ticks>,
    since: Instant,
    tasks: Vec<AbortHandle>,
}

impl RaftReplica {
    /// Opens the replica on what its log and table hold, and lets it take part. Must be called
    /// within a tokio runtime of several threads, which it runs on from then on.
    pub async fn open(parts: RaftParts) -> Result<Arc<Self>, ReplicaError> {
        let RaftParts {
            node,
            config,
            log,
            tables,
            table,
            transport,
            pulses,
            options,
            lost_disk,
            on_failure,
        } = parts;
        let on_disk = Arc::new(Mutex::new(OnDisk::up_to(log.bounds().last)));
        let lost_disk = lost_disk && !options.faults.trusts_an_empty_disk();
        // One that is invited is none that a member ever counted on.
        let begins_anew = lost_disk || !config.replicas.contains(&node);
        let incarnation = incarnation(&log, begins_anew).await.map_err(|e| failed(&e))?;
        let (events, reported) = queue(EVENTS_MAX);
        let kept = Kept {
            node,
            config,
            log,
            tables,
            table,
            transport,
            pulses,
            options,
            on_failure,
            on_disk,
            events,
        };
        let running = RwLock::new(Arc::new(kept.start(incarnation).await?));
        let is_closed = tokio::sync::Mutex::new(false);
        let replica = Arc::new(Self { kept, running, is_closed });
        simulation::spawn(take_events(Arc::downgrade(&replica), reported));
        Ok(replica)
    }

    async fn write(&self, payload: Bytes) -> Result<Vec<Outcome>, ReplicaError> {
        let running = self.running();
        running.ticks.stir_to_write().await;
        match running.raft.client_write(Proposal(payload)).await {
            Ok(written) => Ok(written.data),
            Err(RaftError::APIError(error)) => Err(write_error(error)),
            // Whether the entry was in the log before Raft stopped cannot be told.
            Err(RaftError::Fatal(fatal)) => Err(ReplicaError::Ambiguous(fatal.to_string())),
        }
    }

    fn running(&self) -> Arc<Running> {
        self.running.read().clone()
    }

    /// Returns openraft's handle on the present incarnation.
    #[cfg(test)]
    pub(super) fn handle(&self) -> RaftHandle {
        self.running().raft.clone()
    }

    async fn take_event(&self, event: Event) {
        let running = self.running();
        running.ticks.stir();
        match event {
            Event::Join(newcomer) => {
                // A change of membership waits for a majority, which nothing else must wait for.
                let cohort = self.kept.config.cohort;
                simulation::spawn(async move {
                    running.admission.step(&running.raft, cohort, newcomer).await;
                });
            }
            Event::Lost { vote, acknowledged } => {
                // A leader of another term may ask for what has rightly been replaced since.
                let is_leaders = running.raft.metrics().borrow_watched().vote == vote;
                let (log, seq) = (&self.kept.log, acknowledged.seq);
                if is_leaders
                    && seq > log.bounds().purged.seq
                    && log.lsn_at(seq) != Some(acknowledged)
                {
                    self.begin_anew(&running, "what it had acknowledged is lost").await;
                }
            }
            Event::Replaced { term } => {
                if running.is_forgotten(term) {
                    self.begin_anew(&running, "another incarnation has taken its place").await;
                }
            }
        }
    }

    /// Goes on under another incarnation, whose promises are none of the one that ends. Log and
    /// table stay: what was applied was committed, and where the log differs from the leader's, the
    /// leader's replaces it.
    async fn begin_anew(&self, ended: &Arc<Running>, reason: &str) {
        let is_closed = self.is_closed.lock().await;
        if *is_closed || !Arc::ptr_eq(ended, &self.running()) {
            return;
        }
        let incarnation = draw_incarnation();
        tracing::warn!(
            cohort = %self.kept.config.cohort, replica = %ended.id, reason,
            "the replica begins anew, as a learner"
        );
        ended.stop().await;
        let begun = async {
            let adopted = RaftLogStore::adopt(&self.kept.log, incarnation).await;
            adopted.map_err(|error| failed(&error))?;
            self.kept.start(incarnation).await
        };
        match begun.await {
            Ok(running) => *self.running.write() = Arc::new(running),
            Err(error) => (self.kept.on_failure)(error.to_string()),
        }
    }
}

impl Kept {
    async fn start(&self, incarnation: u64) -> Result<Running, ReplicaError> {
        let (cohort, options) = (self.config.cohort, &self.options);
        let settings =
            options.config(cohort.to_string()).map_err(|e| ReplicaError::Invalid(e.to_string()))?;
        let id = RaftId { node: self.node.0, incarnation };
        let heard = Arc::new(Heard::new());
        let calls = Calls::new(cohort, id, self.transport.clone(), heard.clone());
        let holds = Arc::<LogHolds>::default();
        let raft = RaftHandle::new(
            id,
            Arc::new(settings),
            RaftNetworkMaker::new(calls.clone(), holds.clone()),
            RaftLogStore::new(self.log.clone(), incarnation)
                .recording(self.on_disk.clone())
                .with_faults(options.faults),
            RaftTable::new(self.tables.clone(), self.table.clone()).with_faults(options.faults),
        )
        .await
        .map_err(|error| ReplicaError::Failed(error.to_string()))?;
        let admission = Arc::<Admission>::default();
        let sleeper = Sleeper::new(cohort, self.pulses.clone());
        let rest = sleeper.watch();
        let ticks = Ticks::new(raft.clone(), heard.clone(), self.table.clone(), sleeper, options);
        let tending = Tending {
            ticks: ticks.clone(),
            raft: raft.clone(),
            admission: admission.clone(),
            calls: calls.clone(),
            table: self.table.clone(),
            nodes: self.config.replicas.clone(),
            options: options.clone(),
        };
        let watch = watch_for_failure(raft.clone(), self.on_failure.clone());
        let mut tasks = vec![simulation::spawn(tending.run()), simulation::spawn(watch)];
        let is_first = self.config.replicas.first() == Some(&self.node);
        match &self.config.origin {
            _ if incarnation != 0 => {}
            None => {
                let forming = form_cohort(raft.clone(), id, self.config.clone(), options.clone());
                tasks.push(simulation::spawn(forming));
            }
            // It begins with a membership.
            Some(_) if is_first => {
                tasks.push(simulation::spawn(lead_at_first(raft.clone(), options.clone())));
            }
            Some(_) => {}
        }
        let applied = self.table.clone();
        heard.attach(Attached {
            metrics: raft.metrics(),
            applied: Box::new(move || applied.applied()),
            rested: Box::new(move || rest.unleased_as_of()),
        });
        let (table, events) = (self.table.clone(), self.events.clone());
        Ok(Running {
            id,
            inbound: Inbound::new(raft.clone(), ticks.clone(), calls, heard.clone(), table, events)
                .with_faults(options.faults),
            heard,
            raft,
            holds,
            admission,
            ticks,
            since: Instant::now(),
            tasks: tasks.iter().map(JoinHandle::abort_handle).collect(),
        })
    }
}

impl Running {
    async fn stop(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        // Nothing is acknowledged for it any more.
        self.ticks.stir();
        self.inbound.close();
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(replica = %self.id, %error, "Raft did not stop cleanly");
        }
    }

    /// Returns true if the replica takes itself for a voter, and for long no leader has addressed
    /// it, while the leader of `term`, which is no older one than it knows, addresses another
    /// incarnation: that has taken its place while it was away.
    fn is_forgotten(&self, term: u64) -> bool {
        let addressed = self.heard.last_addressed();
        let is_addressed = addressed.is_some_and(|at| at.elapsed() < FORGOTTEN_AFTER);
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let is_voter = metrics.membership_config.voter_ids().any(|voter| voter == self.id);
        let follows = metrics.state != ServerState::Leader && term >= metrics.current_term;
        is_voter && follows && !is_addressed && self.since.elapsed() > FORGOTTEN_AFTER
    }
}

#[async_trait]
impl Replica for RaftReplica {
    async fn propose(&self, batch: CommandBatch) -> Result<Vec<Outcome>, ReplicaError> {
        self.write(batch.encode()).await
    }

    async fn seal(&self, seal: &Seal) -> Result<(), ReplicaError> {
        self.write(seal.encode()).await.map(drop)
    }

    async fn read_barrier(&self) -> Result<ReadPermit, ReplicaError> {
        let running = self.running();
        if self.kept.options.faults.reads_without_majority()
            && self.leader() == Some(running.id.node())
        {
            return Ok(ReadPermit::lasting());
        }
        running.ticks.stir();
        let exchange = async {
            let linearizer = running.raft.get_read_linearizer(ReadPolicy::ReadIndex).await;
            linearizer.map_err(read_error)?.await_ready(&running.raft).await.map_err(fatal)
        };
        let late = "no majority confirmed the leader in time";
        let confirmed = tokio::time::timeout(READ_TIMEOUT, exchange).await;
        confirmed.map_err(|_| ReplicaError::Unavailable(late.into()))??;
        // A majority confirmed the leader after the read was asked for, and the table has come as
        // far as the log had then: no later event can make that state too old.
        Ok(ReadPermit::lasting())
    }

    fn freshness(&self, applied: Lsn, at: Instant) -> Result<Freshness, ReplicaError> {
        let running = self.running();
        let metrics = running.raft.metrics();
        let metrics = metrics.borrow_watched();
        let age = running.heard.age(&metrics, applied, at);
        // What the log knew to be committed was applied before the replica was open.
        Freshness::checked(applied, age, role(metrics.state), Lsn::ZERO)
    }

    fn deliver(&self, from: NodeId, lane: Lane, payload: Bytes) {
        self.running().inbound.deliver(from, lane, payload);
    }

    async fn install_snapshot(
        &self,
        from: NodeId,
        header: Bytes,
        snapshot: StagedSnapshot,
    ) -> Result<Bytes, ReplicaError> {
        let invalid = |error: std::io::Error| ReplicaError::Invalid(error.to_string());
        let (vote, meta, to_incarnation) = wire::parse_snapshot_header(&header).map_err(invalid)?;
        let running = self.running();
        if to_incarnation != running.id.incarnation {
            let reason = format!("the replica is {} now", running.id);
            return Err(ReplicaError::Unavailable(reason));
        }
        tracing::info!(%from, cohort = %self.kept.config.cohort, snapshot = %meta, "a snapshot arrived");
        let _asked = running.ticks.ask();
        let snapshot = Snapshot { meta, snapshot: SnapshotData::Incoming(snapshot) };
        let reply = running.raft.install_full_snapshot(vote, snapshot).await.map_err(fatal)?;
        Ok(wire::snapshot_reply(&reply).into())
    }

    async fn transfer_leader(&self, to: NodeId) -> Result<(), ReplicaError> {
        let running = self.running();
        running.ticks.stir();
        let raft = &running.raft;
        let membership = raft.metrics().borrow_watched().membership_config.clone();
        let successor = successor(membership.membership(), to);
        let successor = successor.map_err(ReplicaError::Unavailable)?;
        raft.trigger().transfer_leader(successor).await.map_err(fatal)
    }

    async fn release_log(&self, upto: u64) -> Result<(), ReplicaError> {
        let running = self.running();
        let raft = &running.raft;
        let purges_unflushed = self.kept.options.faults.purges_unflushed();
        let table = &self.kept.table;
        let kept = if purges_unflushed { table.applied() } else { table.persisted() };
        let upto = running.not_held(upto.min(kept.seq));
        if upto <= self.kept.log.bounds().purged.seq {
            return Ok(());
        }
        let index = upto - 1;
        if snapshot_index(raft) < Some(index) {
            raft.trigger().snapshot().await.map_err(fatal)?;
            let wait = raft.wait(Some(RELEASE_TIMEOUT));
            let is_built = |metrics: &RaftMetrics<TypeConfig>| {
                metrics.snapshot.is_some_and(|id| id.index >= index)
            };
            let built = wait.metrics(is_built, "the table to be on disk").await;
            built.map_err(|error| ReplicaError::Unavailable(error.to_string()))?;
        }
        raft.trigger().purge_log(index).await.map_err(fatal)?;
        let is_gone =
            |metrics: &RaftMetrics<TypeConfig>| metrics.purged.is_some_and(|id| id.index >= index);
        // Raft puts it off while a follower is being sent what is to go.
        let wait = raft.wait(Some(PURGE_TIMEOUT));
        if let Err(error) = wait.metrics(is_gone, "the log to be shorter").await {
            tracing::debug!(cohort = %self.kept.config.cohort, %error, "the log is given up later");
        }
        Ok(())
    }

    fn leader(&self) -> Option<NodeId> {
        self.running().raft.metrics().borrow_watched().current_leader.map(RaftId::node)
    }

    fn status(&self) -> ReplicaStatus {
        let running = self.running();
        let metrics = running.raft.metrics().borrow_watched().clone();
        // Before the log's end is looked at, which only grows in between, or is cut off.
        let on_disk = self.kept.on_disk.lock().last;
        let bounds = self.kept.log.bounds();
        let is_in_log = self.kept.log.lsn_at(on_disk.seq) == Some(on_disk);
        let durable = if is_in_log { bounds.purged.max(on_disk) } else { bounds.purged };
        let committed = metrics.local_committed;
        let role = match role(metrics.state) {
            Role::Follower if is_newcomer(running.id, &metrics.membership_config, committed) => {
                Role::Learner
            }
            role => role,
        };
        // While a replica is replaced by its next incarnation, both are members; a node is told once,
        // with what it really has.
        let mut progress = BTreeMap::new();
        for (id, last) in metrics.replication.unwrap_or_default() {
            let known = progress.entry(id.node()).or_insert(Lsn::ZERO);
            *known = (*known).max(lsn_or_zero(last));
        }
        let voters: BTreeSet<NodeId> =
            metrics.membership_config.voter_ids().map(RaftId::node).collect();
        ReplicaStatus {
            node: self.kept.node,
            cohort: self.kept.config.cohort,
            protocol: Protocol::Raft,
            role,
            leader: metrics.current_leader.map(RaftId::node),
            epoch: metrics.current_term,
            last: bounds.last,
            durable,
            committed: lsn_or_zero(committed),
            applied: self.kept.table.applied(),
            purged: bounds.purged,
            replicas: voters.into_iter().collect(),
            progress: progress.into_iter().collect(),
            measures: Measures::default(),
        }
    }

    async fn shutdown(&self) {
        let mut is_closed = self.is_closed.lock().await;
        *is_closed = true;
        self.running().stop().await;
    }
}

impl Running {
    /// Returns how much of the log may go, up to `upto`, without a follower's losing what it is
    /// about to follow from.
    fn not_held(&self, upto: u64) -> u64 {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let committed = metrics.local_committed.map_or(0, |id| id.index + 1);
        let matched = |id: RaftId| {
            let known = metrics.replication.as_ref()?.get(&id)?;
            Some(lsn_or_zero(*known).seq)
        };
        self.holds.limit(upto, committed, Instant::now(), matched)
    }
}

/// Takes what arrives for the replica itself, until the replica is gone.
async fn take_events(replica: Weak<RaftReplica>, mut events: Receiver<Event>) {
    while let Some(event) = events.recv().await {
        let Some(replica) = replica.upgrade() else { return };
        replica.take_event(event).await;
    }
}

/// Returns the incarnation that a replica opens under. One that has lost what it stored, or never was a
/// member, draws a new one, which is on disk before it takes part.
async fn incarnation(log: &CohortLog, begins_anew: bool) -> std::io::Result<u64> {
    match RaftLogStore::stored_incarnation(log)? {
        Some(incarnation) => Ok(incarnation),
        None if begins_anew && log.bounds().last == Lsn::ZERO => {
            let drawn = draw_incarnation();
            RaftLogStore::adopt(log, drawn).await?;
            Ok(drawn)
        }
        None => Ok(0),
    }
}

fn draw_incarnation() -> u64 {
    simulation::random().max(1)
}

/// Returns the identity under which a node's replica can take the lead, or why it cannot. While another
/// replica of the node takes the place of one that lost its data, the one that counts is not there any
/// more: it would not answer, and the lead would be given up for nothing.
fn successor(membership: &RaftMembership, node: NodeId) -> Result<RaftId, String> {
    let mut known = membership.nodes().map(|(id, _)| *id).filter(|id| id.node() == node);
    match (known.next(), known.next()) {
        (None, _) => Err(format!("{node} has no replica of the cohort")),
        (Some(id), None) if membership.voter_ids().any(|voter| voter == id) => Ok(id),
        (Some(_), _) => Err(format!("the replica of {node} does not count yet")),
    }
}

fn failed(error: &std::io::Error) -> ReplicaError {
    ReplicaError::Failed(error.to_string())
}

async fn watch_for_failure(raft: RaftHandle, on_failure: Arc<dyn Fn(String) + Send + Sync>) {
    let mut metrics = raft.metrics();
    loop {
        let state = metrics.borrow_watched().running_state.clone();
        match state {
            Ok(()) => {}
            Err(Fatal::Stopped) => return,
            Err(fatal) => return on_failure(fatal.to_string()),
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

fn role(state: ServerState) -> Role {
    match state {
        ServerState::Leader => Role::Leader,
        ServerState::Candidate => Role::Candidate,
        ServerState::Follower => Role::Follower,
        ServerState::Learner | ServerState::Shutdown => Role::Learner,
    }
}

fn snapshot_index(raft: &RaftHandle) -> Option<u64> {
    raft.metrics().borrow_watched().snapshot.map(|id| id.index)
}

fn write_error(error: ClientWriteError<TypeConfig>) -> ReplicaError {
    match error {
        ClientWriteError::ForwardToLeader(forward) => forward_error(forward),
        ClientWriteError::LogEntryDiscarded(_) => ReplicaError::Ambiguous(
            "another leader took over before the write was committed".into(),
        ),
        other => ReplicaError::Invalid(other.to_string()),
    }
}

fn read_error(error: RaftError<TypeConfig, LinearizableReadError<TypeConfig>>) -> ReplicaError {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
            forward_error(forward)
        }
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(missing)) => {
            let confirmed = missing.got.len();
            ReplicaError::Unavailable(format!(
                "no majority confirms the leader: {confirmed} of its replicas did, itself included"
            ))
        }
        RaftError::Fatal(error) => fatal(error),
    }
}

fn forward_error(forward: ForwardToLeader<TypeConfig>) -> ReplicaError {
    match forward.reason {
        ForwardReason::LeaseExpired => {
            ReplicaError::Unavailable("the leader has lost touch with its majority".into())
        }
        ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => {
            ReplicaError::NotLeader { leader: forward.leader_id.map(RaftId::node) }
        }
    }
}

fn fatal(error: Fatal<TypeConfig>) -> ReplicaError {
    match error {
        Fatal::Stopped => ReplicaError::Unavailable("the replica has stopped".into()),
        Fatal::StorageError(_) | Fatal::Panicked => ReplicaError::Failed(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A leader that was asked again and again to hand over to one that had lost its disk gave its lead
    /// up each time, and the newcomer never came to count.
    #[test]
    fn only_a_replica_that_counts_and_has_not_been_replaced_can_take_the_lead() {
        let first = |node| RaftId::first(NodeId(node));
        let newcomer = RaftId { node: 2, incarnation: 7 };
        let all = BTreeSet::from([first(1), first(2), first(3)]);
        let replaced = BTreeSet::from([first(1), newcomer, first(3)]);
        let in_force = |configs: Vec<BTreeSet<RaftId>>, learners: &[RaftId]| {
            RaftMembership::new_with_defaults(configs, learners.to_vec())
        };
        let of_two = |membership: &RaftMembership| successor(membership, NodeId(2));
        assert_eq!(of_two(&in_force(vec![all.clone()], &[])), Ok(first(2)));
        assert!(of_two(&in_force(vec![all.clone()], &[newcomer])).is_err(), "it is a learner");
        assert!(of_two(&in_force(vec![all.clone(), replaced.clone()], &[])).is_err());
        assert_eq!(of_two(&in_force(vec![replaced], &[])), Ok(newcomer));
        assert!(successor(&in_force(vec![all], &[first(4)]), NodeId(4)).is_err());
    }
}
