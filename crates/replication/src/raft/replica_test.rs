//! The replicas of one cohort, on disks that can crash and a network within the process.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::{Semaphore, watch};
use trireme_storage::fs::{Crash, DiskFaults, FaultyFs, MemFs};
use trireme_storage::{
    CohortLog, CohortTable, LogIdentity, LogOptions, SharedLog, SnapshotReader, SnapshotReceiver,
    TableOptions, Tables,
};
use trireme_types::{
    ClusterId, CohortConfig, CohortId, Command, CommandBatch, Condition, KeyRange, NodeId,
    Operation, Protocol, Timing,
};

use super::{RaftOptions, RaftParts, RaftReplica};
use crate::pulse::{PULSE_COHORT, PulseFaults, Pulses};
use crate::replica::{ErrorClass, Replica, Role};
use crate::transport::{Lane, SendError, Transport};

pub(super) const COHORT: CohortId = CohortId(1);
pub(super) const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

/// The most bytes that wait for the log of a node, so that a test can fill its queue.
pub(super) const QUEUE_BYTES_MAX: usize = 256 * 1024;

/// How long everything together may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// How long to wait before asking the next member.
pub(super) const PAUSE: Duration = Duration::from_millis(2);

/// A network that delivers at once to the replicas that are there.
#[derive(Default)]
pub(super) struct Network {
    replicas: Mutex<BTreeMap<NodeId, Arc<RaftReplica>>>,
    /// Those of the nodes whose replicas rest while nothing happens.
    pulses: Mutex<BTreeMap<NodeId, Arc<Pulses>>>,
    /// How many messages were sent that are no pulses.
    pub(super) messages: AtomicU64,
    /// The lanes, from one node to another, on which everything is lost.
    pub(super) cut: Mutex<HashSet<(NodeId, NodeId, Lane)>>,
    /// Snapshots that are sent wait here.
    pub(super) snapshots: SnapshotGate,
}

impl Network {
    pub(super) fn pulses(&self, node: NodeId) -> Option<Arc<Pulses>> {
        self.pulses.lock().get(&node).cloned()
    }
}

/// Where snapshots wait until they are let through, each once.
pub(super) struct SnapshotGate {
    /// How many have been sent.
    pub(super) sent: watch::Sender<u64>,
    pub(super) let_through: Semaphore,
}

impl Default for SnapshotGate {
    fn default() -> Self {
        Self { sent: watch::Sender::new(0), let_through: Semaphore::new(0) }
    }
}

/// One node's end of the network.
struct NetworkEnd {
    node: NodeId,
    network: Arc<Network>,
}

#[async_trait]
impl Transport for NetworkEnd {
    fn send(&self, to: NodeId, of: CohortId, lane: Lane, bytes: Bytes) -> Result<(), SendError> {
        if self.network.cut.lock().contains(&(self.node, to, lane)) {
            return Ok(());
        }
        if of == PULSE_COHORT {
            let pulses = self.network.pulses(to);
            pulses.ok_or(SendError::Unreachable(to))?.deliver(self.node, bytes);
            return Ok(());
        }
        self.network.messages.fetch_add(1, Ordering::Relaxed);
        let replica = self.network.replicas.lock().get(&to).cloned();
        replica.ok_or(SendError::Unreachable(to))?.deliver(self.node, lane, bytes);
        Ok(())
    }

    async fn send_snapshot(
        &self,
        to: NodeId,
        _: CohortId,
        header: Bytes,
        mut snapshot: SnapshotReader,
    ) -> Result<Bytes, SendError> {
        let gate = &self.network.snapshots;
        gate.sent.send_modify(|sent| *sent += 1);
        gate.let_through.acquire().await.unwrap().forget();
        let folder = tempfile::tempdir().unwrap();
        let mut receiver = SnapshotReceiver::new(folder.path()).unwrap();
        while let Some(chunk) = snapshot.next_chunk().unwrap() {
            receiver.push(&chunk).unwrap();
        }
        let replica = self.network.replicas.lock().get(&to).cloned();
        let replica = replica.ok_or(SendError::Unreachable(to))?;
        let answer = replica.install_snapshot(self.node, header, receiver.finish().unwrap()).await;
        answer.map_err(|_| SendError::Unreachable(to))
    }
}

/// A replica on a disk that can crash, with a table that holds nothing yet.
pub(super) struct Member {
    pub(super) replica: Arc<RaftReplica>,
    pub(super) table: CohortTable,
    /// What becomes of each force of its log.
    pub(super) disk: DiskFaults,
    pub(super) log: CohortLog,
    tables: Tables,
    _folder: TempDir,
}

impl Member {
    async fn open(node: NodeId, disk: &MemFs, network: &Arc<Network>) -> Self {
        Self::open_as(node, disk, network, false).await
    }

    /// Opens a replica on a node that once lost its disk, or did not.
    pub(super) async fn open_as(
        node: NodeId,
        disk: &MemFs,
        network: &Arc<Network>,
        lost_disk: bool,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = LogIdentity { cluster: ClusterId(1), node };
        let options = LogOptions {
            segment_bytes: 1024 * 1024,
            block_bytes_max: QUEUE_BYTES_MAX,
            queue_bytes_max: QUEUE_BYTES_MAX,
            ..LogOptions::default()
        };
        let faults = DiskFaults::default();
        let fs = Arc::new(FaultyFs::new(Arc::new(disk.clone()), faults.clone()));
        let log = SharedLog::open(fs, Path::new("/log"), identity, options).unwrap();
        let tables = Tables::open(folder.path(), TableOptions::default()).unwrap();
        let table = tables.cohort(COHORT, KeyRange::all()).unwrap();
        let (protocol, replicas) = (Protocol::Raft, NODES.to_vec());
        let parts = RaftParts {
            node,
            config: CohortConfig {
                cohort: COHORT,
                version: 1,
                protocol,
                replicas,
                replicas_wanted: 0,
                incarnations: [].into(),
                origin: None,
            },
            log: log.cohort(COHORT),
            tables: tables.clone(),
            table: table.clone(),
            transport: Arc::new(NetworkEnd { node, network: network.clone() }),
            pulses: network.pulses(node),
            options: RaftOptions::default(),
            lost_disk,
            on_failure: Arc::new(|reason| panic!("the replica failed: {reason}")),
        };
        let replica = RaftReplica::open(parts).await.unwrap();
        network.replicas.lock().insert(node, replica.clone());
        Self { replica, table, disk: faults, log: log.cohort(COHORT), tables, _folder: folder }
    }
}

/// Returns a put of an empty value.
pub(super) fn batch(key: &'static str) -> CommandBatch {
    batch_of(key, 0)
}

/// Returns a put of a value of so many bytes.
pub(super) fn batch_of(key: &'static str, value_bytes: usize) -> CommandBatch {
    let operation = Operation::Put {
        key: Bytes::from_static(key.as_bytes()),
        value: Bytes::from(vec![0; value_bytes]),
        condition: Condition::None,
    };
    CommandBatch { commands: vec![Command { request: None, operation }], clock: 0 }
}

/// All members of a cohort.
pub(super) struct Cohort {
    pub(super) members: Vec<Member>,
    pub(super) network: Arc<Network>,
}

impl Cohort {
    pub(super) async fn open(disks: &[MemFs]) -> Self {
        Self::open_on(disks, Arc::default()).await
    }

    /// Opens a cohort that rests while nothing happens.
    pub(super) async fn open_resting() -> Self {
        let network = Arc::<Network>::default();
        for node in NODES {
            let end = Arc::new(NetworkEnd { node, network: network.clone() });
            let pulses = Pulses::start(end, Timing::default(), PulseFaults::default());
            network.pulses.lock().insert(node, pulses);
        }
        Self::open_on(&[MemFs::new(), MemFs::new(), MemFs::new()], network).await
    }

    async fn open_on(disks: &[MemFs], network: Arc<Network>) -> Self {
        let mut members = Vec::new();
        for (node, disk) in NODES.into_iter().zip(disks) {
            members.push(Member::open(node, disk, &network).await);
        }
        Self { members, network }
    }

    /// Writes at whoever leads.
    pub(super) async fn put(&self, key: &'static str) {
        let batch = batch(key);
        for member in self.members.iter().cycle() {
            match member.replica.propose(batch.clone()).await {
                Ok(_) => return,
                Err(error) => assert_ne!(error.class(), ErrorClass::Unknown, "{error}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Makes the first strong read that any member does not refuse.
    pub(super) async fn strong_get(&self, key: &str) -> bool {
        for member in self.members.iter().cycle() {
            if let Ok(permit) = member.replica.read_barrier().await {
                let found = member.table.get(key.as_bytes()).unwrap().is_some();
                permit.validate().unwrap();
                return found;
            }
            tokio::time::sleep(PAUSE).await;
        }
        unreachable!("the members are gone through again and again")
    }

    pub(super) async fn shutdown(self) {
        for member in &self.members {
            member.replica.shutdown().await;
        }
    }
}

/// The commit point on disk is not forced, so after a crash it may be behind what was acknowledged.
/// A leader that came back as the leader that it was, in its old term, took it for the truth: its
/// first strong reads missed acknowledged writes. So it does not come back as a leader (C4): it
/// begins a new term, and answers once that term's first entry is committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_strong_read_after_a_crash_sees_what_was_acknowledged() {
    let disks = [MemFs::new(), MemFs::new(), MemFs::new()];
    let before = Cohort::open(&disks).await;
    let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
    tokio::time::timeout(PATIENCE, async {
        for key in keys {
            before.put(key).await;
        }
    })
    .await
    .unwrap();
    let left = disks.each_ref().map(|disk| disk.crash_with(Crash::LoseUnsynced));
    before.shutdown().await;

    let after = Cohort::open(&left).await;
    for key in keys.iter().rev() {
        let found = tokio::time::timeout(PATIENCE, after.strong_get(key)).await.unwrap();
        assert!(found, "the acknowledged write of '{key}' is not read");
    }
    after.shutdown().await;
}

/// A log is let go of up to where it was asked for and no further: the rest is what brings a replica
/// that was away up to date without a snapshot. openraft, left to its own policy, let go of all
/// that the table had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_much_of_the_log_is_released_as_was_asked_for() {
    let cohort = Cohort::open(&[MemFs::new(), MemFs::new(), MemFs::new()]).await;
    let work = async {
        for key in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            cohort.put(key).await;
        }
        let member = &cohort.members[0];
        while member.table.applied().seq < 8 {
            tokio::time::sleep(PAUSE).await;
        }
        member.tables.flush().unwrap();
        for upto in [3, 5] {
            member.replica.release_log(upto).await.unwrap();
            while member.replica.status().purged.seq < upto {
                tokio::time::sleep(PAUSE).await;
            }
            assert_eq!(member.replica.status().purged.seq, upto);
        }
    };
    tokio::time::timeout(PATIENCE, work).await.unwrap();
    cohort.shutdown().await;
}

/// A follower that had been sent a snapshot needed another one when it had installed it, since the
/// log behind it was gone, and under writes never caught up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_behind_a_snapshot_stays_until_the_follower_has_installed_it() {
    let cohort = Cohort::open(&[MemFs::new(), MemFs::new(), MemFs::new()]).await;
    let work = async {
        cohort.put("a").await;
        let leads = |member: &&Member| member.replica.status().role == Role::Leader;
        let leader = cohort.members.iter().find(leads).unwrap();
        let behind = cohort.members.iter().find(|member| !leads(member)).unwrap();
        let (from, to) = (leader.replica.status().node, behind.replica.status().node);
        let lanes = [Lane::Data, Lane::Heartbeat];
        cohort.network.cut.lock().extend(lanes.map(|lane| (from, to, lane)));
        let release_all = async |keys: [&'static str; 4]| {
            for key in keys {
                cohort.put(key).await;
            }
            let last = leader.replica.status().last;
            while leader.table.applied() < last {
                tokio::time::sleep(PAUSE).await;
            }
            leader.tables.flush().unwrap();
            leader.replica.release_log(last.seq).await.unwrap();
            last.seq
        };
        let snapshot = release_all(["b", "c", "d", "e"]).await;
        while leader.replica.status().purged.seq < snapshot {
            tokio::time::sleep(PAUSE).await;
        }
        cohort.network.cut.lock().clear();
        let mut sent = cohort.network.snapshots.sent.subscribe();
        sent.wait_for(|sent| *sent == 1).await.unwrap();

        let last = release_all(["f", "g", "h", "i"]).await;
        // Whatever goes, goes at once: another write passes the log behind it.
        cohort.put("j").await;
        assert!(last > snapshot);
        assert_eq!(leader.replica.status().purged.seq, snapshot, "the rest is kept");
        cohort.network.snapshots.let_through.add_permits(1);
        while behind.table.applied() < leader.table.applied() {
            tokio::time::sleep(PAUSE).await;
        }
        assert_eq!(*sent.borrow(), 1, "it goes on from the log");
    };
    tokio::time::timeout(PATIENCE, work).await.unwrap();
    cohort.shutdown().await;
}
