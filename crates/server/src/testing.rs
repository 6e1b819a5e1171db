//! What the crate's own tests share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;
use trireme_coordinator::{Coordinator, CoordinatorOptions};
use trireme_embedded::{EmbeddedOptions, EmbeddedServer};
use trireme_replication::{
    Freshness, Lane, Measures, ReadPermit, Replica, ReplicaError, ReplicaStatus, Role,
};
use trireme_storage::{CohortLog, LogWrite, StagedSnapshot};
use trireme_types::{CohortId, CommandBatch, Lsn, NodeId, Outcome, Protocol, Seal};

/// A coordinator in this process, with a folder of its own.
pub(crate) struct EmbeddedCoordinator {
    server: EmbeddedServer,
    _folder: TempDir,
}

impl EmbeddedCoordinator {
    /// Starts one on any free port.
    pub(crate) async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let options = EmbeddedOptions::new(folder.path(), SocketAddr::from(([127, 0, 0, 1], 0)));
        Self { server: EmbeddedServer::start(options).await.unwrap(), _folder: folder }
    }

    /// Returns where it listens.
    pub(crate) fn endpoint(&self) -> String {
        self.server.endpoint()
    }

    /// Opens a session.
    pub(crate) async fn connect(&self) -> Coordinator {
        Coordinator::connect(CoordinatorOptions::new(vec![self.endpoint()])).await.unwrap()
    }
}

/// A replica that replicates nothing: it records what it hears, and gives the prepared answers.
pub(crate) struct FakeReplica {
    status: Mutex<ReplicaStatus>,
    heard: Mutex<Vec<(u64, bool)>>,
    asked: Mutex<Vec<u64>>,
    received: Mutex<Vec<Bytes>>,
    /// The log that it gives up as it is asked to, if it has one.
    log: Mutex<Option<CohortLog>>,
    /// Whether a transfer of leadership is obeyed at once.
    pub(crate) obeys: bool,
    is_closed: Mutex<bool>,
}

/// How long a stubborn replica takes to close: as long as one that waits for a quorum that does not
/// come.
pub(crate) const STUBBORN_CLOSES_IN: Duration = Duration::from_secs(1);

impl FakeReplica {
    /// Returns a follower that knows no leader.
    pub(crate) fn new(node: u64, cohort: u64) -> Arc<Self> {
        Self::with(node, cohort, true)
    }

    /// Returns a replica that takes no notice when it is to hand over leadership, and its time to close.
    pub(crate) fn stubborn(node: u64, cohort: u64) -> Arc<Self> {
        Self::with(node, cohort, false)
    }

    fn with(node: u64, cohort: u64, obeys: bool) -> Arc<Self> {
        let status = ReplicaStatus {
            node: NodeId(node),
            cohort: CohortId(cohort),
            protocol: Protocol::Raft,
            role: Role::Follower,
            leader: None,
            epoch: 1,
            last: Lsn::ZERO,
            durable: Lsn::ZERO,
            committed: Lsn::ZERO,
            applied: Lsn::ZERO,
            purged: Lsn::ZERO,
            replicas: vec![NodeId(1), NodeId(2), NodeId(3)],
            progress: Vec::new(),
            measures: Measures::default(),
        };
        let status = Mutex::new(status);
        let (heard, asked, log) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (received, is_closed) = (Mutex::default(), Mutex::default());
        Arc::new(Self { status, heard, asked, received, log, obeys, is_closed })
    }

    /// Has it give up this log as it is asked to.
    pub(crate) fn keep_log(&self, log: CohortLog) {
        *self.log.lock() = Some(log);
    }

    /// Makes it the leader, with this view of how far the others have come.
    pub(crate) fn lead(&self, progress: &[(u64, u64)]) {
        let mut status = self.status.lock();
        status.role = Role::Leader;
        status.leader = Some(status.node);
        status.progress =
            progress.iter().map(|&(node, seq)| (NodeId(node), Lsn::new(1, seq))).collect();
    }

    /// Returns the nodes that it heard of, with whether they were up.
    pub(crate) fn heard(&self) -> Vec<(u64, bool)> {
        self.heard.lock().clone()
    }

    /// Returns what other replicas have sent it.
    pub(crate) fn received(&self) -> Vec<Bytes> {
        self.received.lock().clone()
    }

    /// Returns true if it was closed.
    pub(crate) fn is_closed(&self) -> bool {
        *self.is_closed.lock()
    }

    /// Returns the nodes that it was to hand leadership to.
    pub(crate) fn asked(&self) -> Vec<u64> {
        self.asked.lock().clone()
    }
}

#[async_trait]
impl Replica for FakeReplica {
    async fn propose(&self, _batch: CommandBatch) -> Result<Vec<Outcome>, ReplicaError> {
        Err(ReplicaError::NotLeader { leader: self.leader() })
    }

    async fn seal(&self, _seal: &Seal) -> Result<(), ReplicaError> {
        Err(ReplicaError::NotLeader { leader: self.leader() })
    }

    async fn read_barrier(&self) -> Result<ReadPermit, ReplicaError> {
        if self.status.lock().role == Role::Leader {
            return Ok(ReadPermit::lasting());
        }
        Err(ReplicaError::NotLeader { leader: self.leader() })
    }

    fn freshness(
        &self,
        applied: Lsn,
        _at: tokio::time::Instant,
    ) -> Result<Freshness, ReplicaError> {
        Ok(Freshness { applied, age: None })
    }

    fn deliver(&self, _from: NodeId, _lane: Lane, payload: Bytes) {
        self.received.lock().push(payload);
    }

    async fn install_snapshot(
        &self,
        _from: NodeId,
        _header: Bytes,
        _snapshot: StagedSnapshot,
    ) -> Result<Bytes, ReplicaError> {
        Err(ReplicaError::Invalid("it takes no snapshot".into()))
    }

    fn peer_alive(&self, node: NodeId) {
        self.heard.lock().push((node.0, true));
    }

    fn peer_lost(&self, node: NodeId) {
        self.heard.lock().push((node.0, false));
    }

    async fn transfer_leader(&self, to: NodeId) -> Result<(), ReplicaError> {
        self.asked.lock().push(to.0);
        if self.obeys {
            let mut status = self.status.lock();
            status.role = Role::Follower;
            status.leader = Some(to);
        }
        Ok(())
    }

    async fn release_log(&self, upto: u64) -> Result<(), ReplicaError> {
        if let Some(log) = &*self.log.lock()
            && let Some(upto) = log.lsn_at(upto)
        {
            log.submit(LogWrite::Purge { upto }).expect("it is asked for what is on disk");
        }
        Ok(())
    }

    fn leader(&self) -> Option<NodeId> {
        self.status.lock().leader
    }

    fn status(&self) -> ReplicaStatus {
        self.status.lock().clone()
    }

    async fn shutdown(&self) {
        if !self.obeys {
            tokio::time::sleep(STUBBORN_CLOSES_IN).await;
        }
        *self.is_closed.lock() = true;
    }
}
