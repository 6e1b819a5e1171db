//! [`RaftReplica`]: what the server holds of a Raft cohort.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{
    ClientWriteError, Fatal, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError,
};
use openraft::storage::Snapshot;
use openraft::{EmptyNode, RaftMetrics, ReadPolicy, ServerState};
use tokio::task::AbortHandle;
use trireme_storage::{CohortLog, CohortTable, StagedSnapshot, Tables};
use trireme_types::{CohortConfig, CohortId, CommandBatch, Lsn, NodeId, Outcome, Protocol};

use super::calls::Calls;
use super::heard::Heard;
use super::inbound::{Inbound, RaftHandle};
use super::log_store::RaftLogStore;
use super::network::RaftNetworkMaker;
use super::state_machine::{RaftTable, SnapshotData};
use super::types::{Proposal, TypeConfig, lsn_or_zero};
use super::{RaftOptions, wire};
use crate::replica::{Freshness, Measures, ReadPermit, Replica, ReplicaError, ReplicaStatus, Role};
use crate::transport::{Lane, Transport};

/// How long a strong read waits for a majority to confirm the leader.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// How long giving up the log waits for the table to be on disk.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// The settings.
    pub options: RaftOptions,
    /// Called if the replica fails for good; the node must stop then.
    pub on_failure: Arc<dyn Fn(String) + Send + Sync>,
}

/// A replica of a Raft cohort.
pub struct RaftReplica {
    node: NodeId,
    cohort: CohortId,
    log: CohortLog,
    /// The newest entry that was on the disk at the start.
    recovered: Lsn,
    table: CohortTable,
    raft: RaftHandle,
    inbound: Inbound,
    heard: Arc<Heard>,
    tasks: Vec<AbortHandle>,
}

impl RaftReplica {
    /// Opens the replica on what its log and table hold, and lets it take part. Must be called
    /// within a tokio runtime of several threads, which it runs on from then on.
    pub async fn open(parts: RaftParts) -> Result<Arc<Self>, ReplicaError> {
        let RaftParts { node, config, log, tables, table, transport, options, on_failure } = parts;
        let cohort = config.cohort;
        let settings =
            options.config(cohort.to_string()).map_err(|e| ReplicaError::Invalid(e.to_string()))?;
        let recovered = log.bounds().last;
        let calls = Calls::new(cohort, node, transport);
        let raft = RaftHandle::new(
            node.0,
            Arc::new(settings),
            RaftNetworkMaker::new(calls.clone()),
            RaftLogStore::new(log.clone()),
            RaftTable::new(tables, table.clone()),
        )
        .await
        .map_err(|error| ReplicaError::Failed(error.to_string()))?;
        let first = tokio::spawn(form_cohort(raft.clone(), node, config, options));
        let watch = tokio::spawn(watch_for_failure(raft.clone(), on_failure));
        let heard = Arc::new(Heard::default());
        Ok(Arc::new(Self {
            node,
            cohort,
            log,
            recovered,
            table,
            inbound: Inbound::new(raft.clone(), calls, heard.clone()),
            heard,
            raft,
            tasks: vec![first.abort_handle(), watch.abort_handle()],
        }))
    }
}

#[async_trait]
impl Replica for RaftReplica {
    async fn propose(&self, batch: CommandBatch) -> Result<Vec<Outcome>, ReplicaError> {
        match self.raft.client_write(Proposal(batch.encode())).await {
            Ok(written) => Ok(written.data),
            Err(RaftError::APIError(error)) => Err(write_error(error)),
            // Whether the entry was in the log before Raft stopped cannot be told.
            Err(RaftError::Fatal(fatal)) => Err(ReplicaError::Ambiguous(fatal.to_string())),
        }
    }

    async fn read_barrier(&self) -> Result<ReadPermit, ReplicaError> {
        let exchange = async {
            let linearizer = self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await;
            linearizer.map_err(read_error)?.await_ready(&self.raft).await.map_err(fatal)
        };
        let late = "no majority confirmed the leader in time";
        let confirmed = tokio::time::timeout(READ_TIMEOUT, exchange).await;
        confirmed.map_err(|_| ReplicaError::Unavailable(late.into()))??;
        // A majority confirmed the leader after the read was asked for, and the table has come as
        // far as the log had then: no later event can make that state too old.
        Ok(ReadPermit::lasting())
    }

    fn freshness(&self) -> Freshness {
        let leader = self.leader();
        let age = match leader {
            Some(leader) if leader == self.node => Some(Duration::ZERO),
            Some(leader) => self.heard.age(leader),
            None => self.heard.least_age(),
        };
        Freshness { applied: self.table.applied(), age }
    }

    fn deliver(&self, from: NodeId, lane: Lane, payload: Bytes) {
        self.inbound.deliver(from, lane, payload);
    }

    async fn install_snapshot(
        &self,
        from: NodeId,
        header: Bytes,
        snapshot: StagedSnapshot,
    ) -> Result<Bytes, ReplicaError> {
        let invalid = |error: std::io::Error| ReplicaError::Invalid(error.to_string());
        let (vote, meta) = wire::parse_snapshot_header(&header).map_err(invalid)?;
        tracing::info!(%from, cohort = %self.cohort, snapshot = %meta, "a snapshot arrived");
        let snapshot = Snapshot { meta, snapshot: SnapshotData::Incoming(snapshot) };
        let reply = self.raft.install_full_snapshot(vote, snapshot).await.map_err(fatal)?;
        Ok(wire::snapshot_reply(&reply).into())
    }

    async fn reconfigure(&self, config: CohortConfig) -> Result<(), ReplicaError> {
        let members: BTreeSet<u64> = config.replicas.iter().map(|node| node.0).collect();
        for &member in &members {
            // A new member is brought up to date before it counts in a majority.
            let added = self.raft.add_learner(member, EmptyNode::default(), true).await;
            added.map_err(change_error)?;
        }
        self.raft.change_membership(members, false).await.map_err(change_error)?;
        Ok(())
    }

    async fn transfer_leader(&self, to: NodeId) -> Result<(), ReplicaError> {
        self.raft.trigger().transfer_leader(to.0).await.map_err(fatal)
    }

    async fn release_log(&self, upto: u64) -> Result<(), ReplicaError> {
        let upto = upto.min(self.table.persisted().seq);
        if upto <= self.log.bounds().purged.seq {
            return Ok(());
        }
        let index = upto - 1;
        if snapshot_index(&self.raft) < Some(index) {
            self.raft.trigger().snapshot().await.map_err(fatal)?;
            let wait = self.raft.wait(Some(RELEASE_TIMEOUT));
            let is_built = |metrics: &RaftMetrics<TypeConfig>| {
                metrics.snapshot.is_some_and(|id| id.index >= index)
            };
            let built = wait.metrics(is_built, "the table to be on disk").await;
            built.map_err(|error| ReplicaError::Unavailable(error.to_string()))?;
        }
        self.raft.trigger().purge_log(index).await.map_err(fatal)?;
        let is_gone =
            |metrics: &RaftMetrics<TypeConfig>| metrics.purged.is_some_and(|id| id.index >= index);
        // Raft puts it off while a follower is being sent what is to go.
        let wait = self.raft.wait(Some(PURGE_TIMEOUT));
        if let Err(error) = wait.metrics(is_gone, "the log to be shorter").await {
            tracing::debug!(cohort = %self.cohort, %error, "the log is given up later");
        }
        Ok(())
    }

    fn leader(&self) -> Option<NodeId> {
        self.raft.metrics().borrow_watched().current_leader.map(NodeId)
    }

    fn status(&self) -> ReplicaStatus {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let bounds = self.log.bounds();
        let durable = self.raft.watch_log_progress().get().and_then(|point| point.last_log_id);
        let progress = metrics.replication.unwrap_or_default().into_iter();
        ReplicaStatus {
            node: self.node,
            cohort: self.cohort,
            protocol: Protocol::Raft,
            role: role(metrics.state),
            leader: metrics.current_leader.map(NodeId),
            epoch: metrics.current_term,
            last: bounds.last,
            durable: lsn_or_zero(durable).max(self.recovered.min(bounds.last)),
            committed: lsn_or_zero(metrics.local_committed),
            applied: self.table.applied(),
            purged: bounds.purged,
            replicas: metrics.membership_config.voter_ids().map(NodeId).collect(),
            progress: progress.map(|(node, id)| (NodeId(node), lsn_or_zero(id))).collect(),
            measures: Measures::default(),
        }
    }

    async fn shutdown(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        self.inbound.close();
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(cohort = %self.cohort, %error, "Raft did not stop cleanly");
        }
    }
}

/// Writes the cohort's first membership, unless its log already begins with one. Every member may
/// do so, since all would write the same; the range's base node does it at once, so that it leads
/// at first, and the others only if it does not come.
async fn form_cohort(raft: RaftHandle, node: NodeId, config: CohortConfig, options: RaftOptions) {
    if config.replicas.first() != Some(&node) {
        tokio::time::sleep(options.election_timeout_max * 3).await;
    }
    let members: BTreeMap<u64, EmptyNode> =
        config.replicas.iter().map(|node| (node.0, EmptyNode::default())).collect();
    match raft.initialize(members).await {
        Ok(()) => tracing::info!(cohort = %config.cohort, "the cohort was formed"),
        Err(error) => tracing::debug!(cohort = %config.cohort, %error, "the cohort exists"),
    }
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

fn change_error(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ReplicaError {
    match error {
        RaftError::APIError(error) => write_error(error),
        RaftError::Fatal(fatal) => ReplicaError::Failed(fatal.to_string()),
    }
}

fn read_error(error: RaftError<TypeConfig, LinearizableReadError<TypeConfig>>) -> ReplicaError {
    match error {
        RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
            forward_error(forward)
        }
        RaftError::APIError(LinearizableReadError::QuorumNotEnough(missing)) => {
            ReplicaError::Unavailable(missing.to_string())
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
            ReplicaError::NotLeader { leader: forward.leader_id.map(NodeId) }
        }
    }
}

fn fatal(error: Fatal<TypeConfig>) -> ReplicaError {
    match error {
        Fatal::Stopped => ReplicaError::Unavailable("the replica has stopped".into()),
        Fatal::StorageError(_) | Fatal::Panicked => ReplicaError::Failed(error.to_string()),
    }
}
