//! A node: one data folder, one shared log, one set of tables, and the replicas on them.

mod hand_over;
mod membership;
mod settings;
mod starting;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use trireme_coordinator::recipes::knowledge::BringForwardError;
use trireme_coordinator::recipes::membership::RegisterError;
use trireme_coordinator::{Coordinator, CoordinatorError};
use trireme_replication::{Replica, ReplicaError};
use trireme_storage::{LogError, LogOptions, SharedLog, TableError, TableOptions, Tables};
use trireme_types::{CohortId, Durability, Engine, InvalidTiming, Lsn, NodeId, TimingChange};

use self::hand_over::hand_over;
use self::membership::register;
use self::settings::Settings;
use self::starting::{Starting, open_storage};
use crate::continuity::Remembered;
use crate::data_folder::{DataFolder, DataFolderError};
use crate::descriptors::{Descriptors, TooFewDescriptors};
use crate::faults::{Faults, ForwarderError};
use crate::listener;
use crate::maintenance::{InvalidLogLimit, LogLimits};
use crate::memory::MemoryError;
use crate::protocols::Mistakes;
use crate::routes::Router;
use crate::transport::PeerTransport;

/// How long a stopping node waits for its clients' streams to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a replica is missing before it is replaced, unless something else is asked for: several
/// times what a restart takes. (Pegasus waits for ten minutes.)
pub const REPLACE_DELAY_DEFAULT: Duration = Duration::from_secs(10);

/// How large the rows of a range are before it is cut in two, by default.
pub const SPLIT_BYTES_DEFAULT: u64 = 512 * 1024 * 1024;

/// How long the replicas are spread unevenly before one moves, by default.
pub const SPREAD_DELAY_DEFAULT: Duration = Duration::from_mins(1);

/// How long a node leads more than another one before it hands a cohort over, by default.
pub const SPREAD_LEADS_DELAY_DEFAULT: Duration = Duration::from_mins(1);

/// How long a stopping node tries to end its session at the coordinator. A coordinator that is gone,
/// as that of a killed `up` is, must not keep the node's port and folder from its successor; the
/// session then ends by itself.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long what is left of a replica is kept after the catalog has stopped to list its node, unless
/// something else is asked for: time to notice that this was a mistake.
pub const DISCARD_AFTER_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a stopping node waits for a replica that is being opened or closed.
const HOSTING_TIMEOUT: Duration = Duration::from_secs(3);

/// What a node is started with. What an existing data folder knows need not be said.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// The data folder; made if it is not there.
    pub data: PathBuf,
    /// The node's number; needed for a new folder.
    pub node: Option<NodeId>,
    /// The address to listen on, host:port; needed for a new folder.
    pub listen: Option<String>,
    /// The address at which others reach the node, host:port, if it is another than the one that it
    /// listens on.
    pub advertise: Option<String>,
    /// The coordinator's endpoints; needed for a new folder.
    pub coordinator: Option<Vec<String>>,
    /// The storage engine of a new folder.
    pub engine: Option<Engine>,
    /// What an acknowledged write has survived.
    pub durability: Option<Durability>,
    /// The bytes of log past which the oldest segments are to go.
    pub log_bytes_max: u64,
    /// The bytes of one segment of the log.
    pub segment_bytes: u64,
    /// Bytes written to the tables after which they are flushed. More means fewer and larger files,
    /// more memory, and more of the log to apply again after a crash.
    pub memtable_bytes: usize,
    /// The periods of Spinnaker and PacificA, where they are to be others than the folder's.
    pub timing: TimingChange,
    /// How many replicas a PacificA cohort must have to take writes (P10).
    pub min_replicas_for_write: Option<usize>,
    /// How long a replica must be missing from a cohort before its leader asks another node to hold
    /// one (M52). Shorter makes up for a dead node sooner; longer bears longer absences without
    /// copying the rows that the node still has (P13).
    pub replace_delay: Duration,
    /// How large the rows of a range that is led here may be, in bytes, before it is cut in two; `None` has
    /// none cut by itself.
    pub split_bytes: Option<u64>,
    /// How long the replicas must be spread unevenly over the nodes before one moves; `None` has none move
    /// by itself. The living node of the lowest number goes by its own.
    pub spread_delay: Option<Duration>,
    /// How long this node must lead more than another one, of what both hold, before it hands a cohort
    /// over to it; `None` has it hand none over by itself.
    pub spread_leads_delay: Option<Duration>,
    /// How long what is left of a replica is kept that the node is not to hold any more. Shorter frees
    /// its room sooner; longer leaves more time to notice a mistake.
    pub discard_after: Duration,
    /// Whether a caller may have the node suffer faults. Never remembered.
    pub allow_faults: bool,
    /// What the node's replicas do wrong, for tests of what judges them. Never remembered.
    pub mistakes: Mistakes,
}

impl NodeOptions {
    /// Returns the options that everything but the folder is default in.
    pub fn new(data: PathBuf) -> Self {
        Self {
            data,
            node: None,
            listen: None,
            advertise: None,
            coordinator: None,
            engine: None,
            durability: None,
            log_bytes_max: 1024 * 1024 * 1024,
            segment_bytes: LogOptions::default().segment_bytes,
            memtable_bytes: TableOptions::default().memtable_bytes,
            timing: TimingChange::default(),
            min_replicas_for_write: None,
            replace_delay: REPLACE_DELAY_DEFAULT,
            split_bytes: Some(SPLIT_BYTES_DEFAULT),
            spread_delay: Some(SPREAD_DELAY_DEFAULT),
            spread_leads_delay: Some(SPREAD_LEADS_DELAY_DEFAULT),
            discard_after: DISCARD_AFTER_DEFAULT,
            allow_faults: false,
            mistakes: Mistakes::default(),
        }
    }
}

/// Why a node did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data folder cannot be used.
    #[error(transparent)]
    Folder(#[from] DataFolderError),
    /// The periods that were asked for do not go with each other, or with those of the folder.
    #[error(transparent)]
    Timing(#[from] InvalidTiming),
    /// The process may have too few files open.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    /// The log cannot be kept as short as it is to be.
    #[error(transparent)]
    LogLimit(#[from] InvalidLogLimit),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Misused(String),
    /// The way to the coordinator cannot be made one that can be cut.
    #[error(transparent)]
    Forwarder(#[from] ForwarderError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The log cannot be used.
    #[error("the shared log: {0}")]
    Log(#[from] LogError),
    /// The tables cannot be used.
    #[error("the tables: {0}")]
    Tables(#[from] TableError),
    /// The coordinator did not do its part.
    #[error("the coordinator at {endpoints}: {source}")]
    Coordinator {
        /// Where it was sought.
        endpoints: String,
        /// What it said.
        source: CoordinatorError,
    },
    /// The coordinator knows no cluster.
    #[error("the coordinator at {0} knows no cluster; create one with `trireme up`")]
    NoCluster(String),
    /// The coordinator knows no cluster, and the folder belongs to one.
    #[error(
        "the coordinator at {endpoints} has lost what it knew of the cluster that {path} belongs to; \
         bring it back with `trireme coordinator rebuild`"
    )]
    LostCluster {
        /// Where it was sought.
        endpoints: String,
        /// The folder.
        path: PathBuf,
    },
    /// Another process is this node.
    #[error(transparent)]
    AlreadyAlive(RegisterError),
    /// The coordinator knows the node with other data.
    #[error(
        "node {node} is known with other data than what is in {path}: its disk may hold writes \
         that this folder does not have"
    )]
    OtherData {
        /// The node.
        node: NodeId,
        /// The folder that was to be its data.
        path: PathBuf,
    },
    /// The coordinator says something that contradicts what the node knows, or the disk did not take
    /// what it says.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The coordinator knows less than the node, and cannot be brought forward.
    #[error(
        "the coordinator is older than what this node knows, and cannot be brought forward: {0}"
    )]
    BringForward(#[from] BringForwardError),
    /// A cohort's rows are gone from the tables, and its log does not reach back far enough to
    /// bring them again.
    #[error(
        "cohort {cohort}: the tables include its log up to {applied}, and the log begins after \
         {purged}: rows are lost, and the node must be replaced"
    )]
    LostRows {
        /// The cohort.
        cohort: CohortId,
        /// The newest entry that the tables include.
        applied: Lsn,
        /// The entry after which the log begins.
        purged: Lsn,
    },
    /// A replica cannot be opened.
    #[error("cohort {cohort}: {source}")]
    Replica {
        /// Its cohort.
        cohort: CohortId,
        /// Why.
        source: ReplicaError,
    },
    /// The node stopped itself, since it can no longer keep its promises.
    #[error("the node has failed: {0}")]
    Failed(String),
    /// The operating system refused something else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A running node.
pub struct Node {
    id: NodeId,
    address: SocketAddr,
    coordinator: Coordinator,
    transport: Arc<PeerTransport>,
    router: Arc<Router>,
    hosting: Option<JoinHandle<()>>,
    /// Cancelled when the node stops in order: no replica is opened any more, and none taken out.
    stopping: CancellationToken,
    log: SharedLog,
    tables: Tables,
    failed: watch::Receiver<Option<String>>,
    stop_serving: CancellationToken,
    server: Option<JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
    /// Held until the session is closed: the way to the coordinator may lead through it.
    _faults: Option<Arc<Faults>>,
    /// Held until everything else is closed.
    _folder: DataFolder,
}

impl Node {
    /// Starts a node. Client requests are served by the current runtime; consensus, and all that
    /// must not wait behind them, runs on `consensus`.
    pub async fn start(options: NodeOptions, consensus: &Handle) -> Result<Self, NodeError> {
        Settings::check(&options)?;
        let log_limits = LogLimits::new(options.log_bytes_max, options.segment_bytes)?;
        let descriptors = Descriptors::reserve(log_limits.files())?;
        let folder = DataFolder::open(&options.data)?;
        let settings = Settings::settle(&folder, &options)?;
        // Held from here on, so that two nodes cannot both believe that the address is theirs.
        let listener = listener::bind(&settings.listen)
            .map_err(|source| NodeError::Listen { address: settings.listen.clone(), source })?;
        let address = listener.local_addr()?;
        let faults = options.allow_faults.then(Faults::new);
        let (coordinator, catalog) = settings.connect(&folder, faults.as_deref()).await?;
        let mut file = settings.adopt(&folder, &catalog, address)?;
        register(&coordinator, &mut file, &folder).await?;
        folder.check_log(&file)?;
        // Before there is a log: a node that has one remembers the cluster.
        let remembered = Remembered::start(&folder, file.node, &coordinator, catalog).await?;
        let catalog = remembered.catalog.clone();
        let (log, tables) =
            open_storage(&folder, &file, &catalog, &options, descriptors, faults.as_deref())?;
        if !file.has_log {
            file.has_log = true;
            folder.write(&file)?;
        }
        let started = Starting {
            file,
            catalog,
            coordinator,
            log,
            tables,
            folder,
            address,
            descriptors,
            faults,
        };
        started.run(listener, remembered, &options, consensus).await
    }

    /// Returns the address that the node listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` resolves, or until the node can no longer keep its promises.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        let failed = async {
            match self.failed.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                // Every sender lives as long as the node's parts do.
                Err(_) => std::future::pending().await,
            }
        };
        let failure = tokio::select! {
            () = stop => None,
            reason = failed => Some(reason),
        };
        match failure {
            // What the disk holds now is what a restart will find: nothing more is written.
            Some(reason) => Err(NodeError::Failed(reason)),
            None => self.stop().await,
        }
    }

    async fn stop(&mut self) -> Result<(), NodeError> {
        tracing::info!("stopping");
        self.stop_hosting().await;
        let replicas: Vec<_> =
            self.router.routes().hosted.values().map(|hosted| hosted.replica.clone()).collect();
        // Before the clients are turned away: until then they can be redirected to the new leader.
        self.hand_over(&replicas).await;
        self.stop_serving.cancel();
        if let Some(server) = self.server.take() {
            let abort = server.abort_handle();
            if tokio::time::timeout(DRAIN_TIMEOUT, server).await.is_err() {
                abort.abort();
            }
        }
        hand_over::close(&replicas).await;
        self.transport.shutdown();
        self.tasks.iter().for_each(JoinHandle::abort);
        let (tables, log) = (self.tables.clone(), self.log.clone());
        let closed = tokio::task::spawn_blocking(move || -> Result<(), NodeError> {
            tables.close()?;
            Ok(log.close()?)
        });
        closed.await.map_err(io::Error::other)??;
        let closing = tokio::time::timeout(LEAVE_TIMEOUT, self.coordinator.clone().close());
        let left = match closing.await {
            Ok(closed) => closed.map_err(|error| error.to_string()),
            Err(_elapsed) => Err(format!("no answer within {LEAVE_TIMEOUT:?}")),
        };
        if let Err(reason) = left {
            tracing::warn!(reason, "the session at the coordinator was left to expire");
        }
        Ok(())
    }

    /// Has no replica opened or closed any more.
    async fn stop_hosting(&mut self) {
        self.stopping.cancel();
        if let Some(hosting) = self.hosting.take() {
            let abort = hosting.abort_handle();
            if tokio::time::timeout(HOSTING_TIMEOUT, hosting).await.is_err() {
                tracing::warn!("a replica is still being opened or closed");
                abort.abort();
            }
        }
    }

    async fn hand_over(&self, replicas: &[Arc<dyn Replica>]) {
        let is_connected = |node| {
            self.transport.peer_state().iter().any(|peer| peer.node == node && peer.connected)
        };
        hand_over(self.id, replicas.to_vec(), is_connected).await;
    }
}
