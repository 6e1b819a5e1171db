//! A node of the world: what lasts of it, and one start of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use trireme_replication::pulse::{PulseFaults, Pulses};
use trireme_replication::simulation::SimulatedNode;
use trireme_replication::{Replica, ReplicaError};
use trireme_storage::fs::MemFs;
use trireme_storage::{
    CohortLog, CohortTable, LogIdentity, LogOptions, SharedLog, TableError, TableOptions, Tables,
};
use trireme_types::{ClusterId, Durability, Entry, EntryKind, KeyRange, NodeId};

use crate::coordinator::continuity::{Continuity, Memory};
use crate::damage::LOG;
use crate::disk::{self, Disk};
use crate::invariants::Seen;
use crate::mistake::Mistake;
use crate::network::{self, Link};
use crate::protocol::{self, Parts};
use crate::setup::COHORT;
use crate::world::World;

/// When the task panics that does so by mistake: once its node serves.
const PANICS_AFTER: Duration = Duration::from_secs(1);

/// What of a node outlives its processes.
pub(crate) struct Slot {
    pub(crate) running: Option<Arc<Running>>,
    pub(crate) is_starting: bool,
    /// How often it was started.
    pub(crate) starts: u64,
    /// The log's disk, of a node that does not run.
    pub(crate) fs: MemFs,
    /// The folder of the tables, which only the present process changes.
    pub(crate) tables: PathBuf,
    /// What it remembers of the coordinator.
    pub(crate) memory: Option<Memory>,
    /// The damaged segments of its log, and those after them, until it has started.
    pub(crate) damaged: Option<Vec<PathBuf>>,
    /// It once lost its disk.
    pub(crate) rejoins: bool,
    /// The longest that a process of it has stood still, in milliseconds.
    pub(crate) stood_still: u64,
    /// It has lost its disk and has not caught up with what was committed then.
    pub(crate) lacks: Option<u64>,
}

/// One start of a node.
pub(crate) struct Running {
    pub(crate) node: NodeId,
    pub(crate) start: u64,
    pub(crate) process: SimulatedNode,
    pub(crate) disk: Arc<Disk>,
    pub(crate) log: CohortLog,
    pub(crate) tables: Tables,
    pub(crate) table: CohortTable,
    pub(crate) replica: Arc<dyn Replica>,
    pub(crate) pulses: Arc<Pulses>,
    pub(crate) continuity: Mutex<Continuity>,
}

impl Running {
    /// Returns the node as it is now.
    pub(crate) fn seen(&self) -> Seen<'_> {
        let status = self.replica.status();
        Seen { node: self.node, start: self.start, status, log: &self.log, table: &self.table }
    }
}

impl Slot {
    pub(crate) fn new(tables: PathBuf) -> Self {
        let (running, fs) = (None, MemFs::new());
        Self {
            running,
            is_starting: false,
            starts: 0,
            fs,
            tables,
            memory: None,
            damaged: None,
            rejoins: false,
            stood_still: 0,
            lacks: None,
        }
    }
}

/// Starts a node on what its slot has.
pub(crate) async fn start(
    world: &Arc<World>,
    node: NodeId,
    start: u64,
    (fs, tables_folder, rejoins): (MemFs, PathBuf, bool),
) -> Result<Arc<Running>, String> {
    let mut chance = world.fork();
    let process = SimulatedNode::with_clock(chance.next(), world.clock_rate(node));
    let plan = &world.plan;
    let disk = Arc::new(Disk::new(fs.clone(), chance.fork(), plan.disk_delay));
    let identity = LogIdentity { cluster: ClusterId(1), node };
    let lies = world.setup.mistake == Some(Mistake::LyingDisk);
    let options = LogOptions {
        segment_bytes: plan.segment_bytes,
        cache_bytes: plan.cache_bytes,
        durability: if lies { Durability::Memory } else { Durability::Fsync },
        ..LogOptions::default()
    };
    let open = SharedLog::open_stepped(Arc::new(fs), Path::new(LOG), identity, options);
    let shared = open.map_err(|error| format!("the log does not open: {error}"))?;
    let options = TableOptions { cache_bytes: 1 << 20, ..TableOptions::default() };
    let tables = Tables::open_stepped(&tables_folder, &options)
        .map_err(|error| format!("the tables do not open: {error}"))?;
    shared.protect(&tables);
    let table = tables
        .cohort(COHORT, KeyRange::all())
        .map_err(|error| format!("the table does not open: {error}"))?;
    let log = shared.cohort(COHORT);
    // As in the server, a log that fails ends the node, whatever its replicas make of it.
    let failed = on_failure(Arc::downgrade(world), node, start);
    shared.on_failure(move |error| failed(format!("the log failed: {error}")));
    let weak = Arc::downgrade(world);
    tokio::spawn(process.task(disk::write(weak.clone(), node, Arc::clone(&disk), shared)));
    let transport = Arc::new(Link { world: weak.clone(), from: node });
    let own = world.setup.mistake.map_or("", Mistake::own);
    let faults = PulseFaults::named(own).unwrap_or_default();
    let pulses = process.within(|| Pulses::start(transport.clone(), plan.timing, faults));
    let parts = Parts {
        world: weak.clone(),
        node,
        start,
        rejoins,
        log: log.clone(),
        tables: tables.clone(),
        table: table.clone(),
        transport,
        pulses: Arc::clone(&pulses),
    };
    let replica = process.task(protocol::open(parts)).await;
    let replica = replica.map_err(|error: ReplicaError| format!("no replica: {error}"))?;
    tokio::spawn(process.task(network::ping(weak, node)));
    if world.setup.mistake == Some(Mistake::Panics) {
        tokio::spawn(process.task(panic_later()));
    }
    let continuity = Mutex::default();
    Ok(Arc::new(Running {
        node,
        start,
        process,
        disk,
        log,
        tables,
        table,
        replica,
        pulses,
        continuity,
    }))
}

/// The mistake of a task that panics, of which nothing but the watch for panics hears.
async fn panic_later() {
    tokio::time::sleep(PANICS_AFTER).await;
    panic!("a mistake that is made on purpose");
}

/// Hears that a replica has failed, which ends its node.
pub(crate) fn on_failure(
    world: Weak<World>,
    node: NodeId,
    start: u64,
) -> impl Fn(String) + Send + Sync {
    move |reason| {
        if let Some(world) = world.upgrade() {
            world.replica_failed(node, start, reason);
        }
    }
}

/// Has a table, as a crash has left it, name one entry more than it holds, if that is a committed one
/// that is on the disk of its node.
pub(crate) fn name_one_more(tables: &Path, dead: &Running) -> Result<(), TableError> {
    let tables = Tables::open_stepped(tables, &TableOptions::default())?;
    let table = tables.cohort(COHORT, KeyRange::all())?;
    let status = dead.replica.status();
    let next = dead.log.lsn_at(table.applied().seq + 1);
    if let Some(lsn) = next.filter(|lsn| lsn.seq <= status.committed.min(status.durable).seq) {
        table.apply(&[Entry { lsn, kind: EntryKind::NoOp, payload: Bytes::new() }])?;
        tables.flush()?;
    }
    tables.close()
}

/// Copies a folder of files and folders.
pub(crate) fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_folder(&path, &copy)?;
        } else {
            fs::copy(&path, &copy)?;
        }
    }
    Ok(())
}
