//! Three replicas in one process: real logs over file systems in memory, real tables on disk, and a
//! network that loses and delays what it is told to.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex, RwLock};
use tempfile::TempDir;
use trireme_replication::driver::{CoreReplica, DriverOptions, NoCoordination, Wiring};
use trireme_replication::{Lane, Replica, ReplicaError, SendError, Transport};
use trireme_storage::fs::{Fs, FsOperation, MemFs};
use trireme_storage::{
    CohortTable, LogIdentity, LogOptions, SharedLog, SnapshotReader, SnapshotReceiver,
    TableOptions, Tables,
};
use trireme_types::{
    ClusterId, CohortId, Command, CommandBatch, Condition, KeyRange, NodeId, Operation, first_after,
};

use crate::primary_backup::PrimaryBackup;

/// The one cohort.
pub(crate) const COHORT: CohortId = CohortId(1);

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the network does to a message: lose it, or deliver it after a while.
pub(crate) type Fate = Box<dyn Fn(NodeId, NodeId, Lane) -> Option<Duration> + Send + Sync>;

/// The network.
pub(crate) struct Net {
    replicas: RwLock<BTreeMap<NodeId, Weak<CoreReplica<PrimaryBackup>>>>,
    fate: RwLock<Fate>,
    snapshots: TempDir,
    pub(crate) snapshots_sent: AtomicU64,
}

impl Net {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            replicas: RwLock::default(),
            fate: RwLock::new(Box::new(|_, _, _| Some(Duration::ZERO))),
            snapshots: TempDir::new().expect("a temporary folder can be made"),
            snapshots_sent: AtomicU64::new(0),
        })
    }

    pub(crate) fn set_fate(&self, fate: Fate) {
        *self.fate.write() = fate;
    }

    fn replica(&self, node: NodeId) -> Option<Arc<CoreReplica<PrimaryBackup>>> {
        self.replicas.read().get(&node).and_then(Weak::upgrade)
    }
}

/// One node's end of the network.
struct Link {
    from: NodeId,
    net: Arc<Net>,
}

#[async_trait]
impl Transport for Link {
    fn send(
        &self,
        to: NodeId,
        _cohort: CohortId,
        lane: Lane,
        payload: Bytes,
    ) -> Result<(), SendError> {
        let target = self.net.replica(to).ok_or(SendError::Unreachable(to))?;
        let from = self.from;
        match (self.net.fate.read())(from, to, lane) {
            None => {}
            Some(Duration::ZERO) => target.deliver(from, lane, payload),
            Some(delay) => {
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    target.deliver(from, lane, payload);
                });
            }
        }
        Ok(())
    }

    async fn send_snapshot(
        &self,
        to: NodeId,
        _cohort: CohortId,
        header: Bytes,
        mut snapshot: SnapshotReader,
    ) -> Result<Bytes, SendError> {
        self.net.snapshots_sent.fetch_add(1, Ordering::Relaxed);
        let target = self.net.replica(to).ok_or(SendError::Unreachable(to))?;
        let refused = |reason: String| SendError::Refused { node: to, reason };
        let mut receiver =
            SnapshotReceiver::new(self.net.snapshots.path()).map_err(|e| refused(e.to_string()))?;
        while let Some(chunk) = snapshot.next_chunk().map_err(|e| refused(e.to_string()))? {
            receiver.push(&chunk).map_err(|e| refused(e.to_string()))?;
        }
        let staged = receiver.finish().map_err(|e| refused(e.to_string()))?;
        let installed = target.install_snapshot(self.from, header, staged).await;
        installed.map_err(|error| refused(error.to_string()))
    }
}

/// A disk of which some calls, such as its syncs, can be held back.
#[derive(Clone, Default)]
pub(crate) struct Gate {
    state: Arc<(Mutex<bool>, Condvar)>,
}

impl Gate {
    /// Holds back every such call from now on.
    pub(crate) fn close(&self) {
        *self.state.0.lock() = true;
    }

    /// Lets all of them go.
    pub(crate) fn open(&self) {
        *self.state.0.lock() = false;
        self.state.1.notify_all();
    }

    /// Waits as a call does.
    pub(crate) fn pass(&self) {
        let mut is_closed = self.state.0.lock();
        while *is_closed {
            self.state.1.wait(&mut is_closed);
        }
    }
}

/// One node.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) fs: MemFs,
    pub(crate) gate: Gate,
    pub(crate) log: SharedLog,
    pub(crate) tables: Tables,
    pub(crate) table: CohortTable,
    pub(crate) replica: Arc<CoreReplica<PrimaryBackup>>,
    /// Why the replica failed, if it has.
    pub(crate) failure: Arc<Mutex<Option<ReplicaError>>>,
    folder: TempDir,
}

/// How a cluster's nodes are set up.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    pub(crate) driver: DriverOptions,
    pub(crate) log: LogOptions,
    /// Has the logs written by a task in virtual time instead of by threads.
    pub(crate) is_stepped: bool,
}

/// A cluster whose node 1 is the primary.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) net: Arc<Net>,
    setup: Setup,
}

impl Cluster {
    /// Starts a cluster with empty disks.
    pub(crate) fn start(nodes: u64, setup: Setup) -> Self {
        let net = Net::new();
        let ids: Vec<_> = (1..=nodes).map(NodeId).collect();
        let start = |id: &NodeId| {
            let folder = TempDir::new().expect("a temporary folder can be made");
            Node::start(*id, &ids, MemFs::new(), folder, &net, &setup)
        };
        let nodes = ids.iter().map(start).collect();
        Self { nodes, net, setup }
    }

    pub(crate) fn primary(&self) -> &Node {
        &self.nodes[0]
    }

    /// Stops a node in an orderly way and starts it from its disks; or, with `wiped`, from new ones.
    pub(crate) async fn restart(&mut self, index: usize, wiped: bool) {
        let ids: Vec<_> = self.nodes.iter().map(|node| node.id).collect();
        let node = self.nodes.remove(index);
        node.replica.shutdown().await;
        let Node { id, fs, log, tables, table, replica, folder, .. } = node;
        drop((replica, table));
        log.close().expect("the log closes");
        tables.close().expect("the tables close");
        drop((log, tables));
        let (fs, folder) = if wiped {
            (MemFs::new(), TempDir::new().expect("a temporary folder can be made"))
        } else {
            (fs, folder)
        };
        let node = Node::start(id, &ids, fs, folder, &self.net, &self.setup);
        self.nodes.insert(index, node);
        for other in &self.nodes {
            other.replica.peer_alive(id);
        }
    }

    /// Waits until all tables include everything that the primary has committed, and says that they
    /// hold the same rows.
    pub(crate) async fn converge(&self) {
        until("all replicas apply the same", || {
            let last = self.primary().replica.status().last;
            self.nodes.iter().all(|node| node.table.applied() == last)
        })
        .await;
        let first = rows(&self.primary().table);
        for node in &self.nodes[1..] {
            assert_eq!(rows(&node.table), first, "{} holds other rows", node.id);
        }
    }

    /// Stops every replica.
    pub(crate) async fn shutdown(&self) {
        for node in &self.nodes {
            node.gate.open();
            node.replica.shutdown().await;
        }
    }
}

impl Drop for Cluster {
    /// Lets the disks go, so that a test that failed ends too.
    fn drop(&mut self) {
        self.nodes.iter().for_each(|node| node.gate.open());
    }
}

impl Node {
    fn start(
        id: NodeId,
        ids: &[NodeId],
        fs: MemFs,
        folder: TempDir,
        net: &Arc<Net>,
        setup: &Setup,
    ) -> Self {
        let gate = Gate::default();
        let passing = gate.clone();
        fs.observe(move |call| {
            if call.operation == FsOperation::Sync {
                passing.pass();
            }
            Ok::<(), io::Error>(())
        });
        let identity = LogIdentity { cluster: ClusterId(1), node: id };
        let options = LogOptions { segment_bytes: 1 << 20, ..setup.log.clone() };
        let shared: Arc<dyn Fs> = Arc::new(fs.clone());
        let open = if setup.is_stepped { SharedLog::open_stepped } else { SharedLog::open };
        let log = open(shared, Path::new("/log"), identity, options).expect("the log opens");
        if setup.is_stepped {
            tokio::spawn(step_for_ever(log.clone()));
        }
        let tables = Tables::open(&folder.path().join("tables"), TableOptions::default())
            .expect("the tables open");
        let table = tables.cohort(COHORT, KeyRange::all()).expect("the table opens");
        let failure = Arc::new(Mutex::new(None));
        let failed = Arc::clone(&failure);
        let wiring = Wiring {
            log: log.cohort(COHORT),
            table: table.clone(),
            transport: Arc::new(Link { from: id, net: Arc::clone(net) }),
            coordination: Arc::new(NoCoordination),
            pulses: None,
            on_failure: Box::new(move |error| *failed.lock() = Some(error.clone())),
        };
        let make = |recovered| Ok(PrimaryBackup::new(recovered, ids, NodeId(1)));
        let replica = CoreReplica::start(id, wiring, setup.driver.clone(), make)
            .expect("the options make sense");
        let replica = Arc::new(replica);
        net.replicas.write().insert(id, Arc::downgrade(&replica));
        Self { id, fs, gate, log, tables, table, replica, failure, folder }
    }
}

/// Stands in for the log's writer: a disk that takes a millisecond of virtual time for every block.
async fn step_for_ever(log: SharedLog) {
    loop {
        log.step();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Returns a batch that puts one value.
pub(crate) fn put(key: &str, value: &str) -> CommandBatch {
    let operation = Operation::Put {
        key: Bytes::from(key.to_owned()),
        value: Bytes::from(value.to_owned()),
        condition: Condition::None,
    };
    CommandBatch { commands: vec![Command { request: None, operation }], clock: 0 }
}

/// Returns every row of a table: key, value, version.
pub(crate) fn rows(table: &CohortTable) -> Vec<(Bytes, Bytes, u64)> {
    let mut rows = Vec::new();
    let mut range = KeyRange::all();
    loop {
        let page = table.scan(&range, usize::MAX, false).expect("the table reads");
        rows.extend(page.rows.into_iter().map(|row| (row.key, row.value, row.version.0)));
        let Some(last) = page.last else { return rows };
        range.start = first_after(&last);
    }
}

/// Waits until something holds, and fails loudly if it does not come to.
pub(crate) async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "gave up waiting until {what}");
}
