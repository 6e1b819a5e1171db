//! From storage and a place in the cluster to a node that serves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use trireme_coordinator::recipes::catalog::{Catalog, CatalogState};
use trireme_coordinator::recipes::invitations::Invitations;
use trireme_coordinator::{Coordinator, CoordinatorError};
use trireme_proto::v1;
use trireme_replication::pulse::{PulseFaults, Pulses};
use trireme_storage::fs::{Fs, RealFs};
use trireme_storage::{LogIdentity, LogOptions, SharedLog, TableOptions, Tables};

use super::membership::{DirectoryUpdates, info, keep_registered};
use super::{Node, NodeError, NodeOptions};
use crate::answers::NodeAnswers;
use crate::backpressure::Backpressure;
use crate::clients::{ClientConnection, Clients};
use crate::continuity::{Continuity, Remembered};
use crate::data_folder::{DataFolder, NodeFile};
use crate::descriptors::Descriptors;
use crate::draining::Leaves;
use crate::faults::Faults;
use crate::hosting::{Hosting, Opener};
use crate::listener::{Accepting, ClientSocket};
use crate::maintenance::{LogLimits, Maintenance, Progress};
use crate::peers::Peers;
use crate::protocols::SharedCoordinator;
use crate::readers::Readers;
use crate::replacement::Replacement;
use crate::routes::{NodeDirectory, Router};
use crate::services::{AdminService, KvService, NodeDescription, SliceBodies};
use crate::splitting::Splitting;
use crate::spreading::{LeadSpreading, ReplicaSpreading};
use crate::succession::{Changes, Succession};
use crate::transport::{PeerTransport, TransportOptions};

/// The longest frame that a client may send.
const REQUEST_FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The bytes of a client's requests that may be under way in the network; HTTP/2's default of
/// 64 KiB would make large batches wait for it.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;

/// How often a client's connection is asked for a sign of life.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// How long it may take to give one.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// The most calls and streams of one connection at once; further ones wait at the client. HTTP/2
/// advises no less than this.
const CONNECTION_STREAMS_MAX: u32 = 100;

/// The most client connections that wait to be served.
const CLIENTS_WAITING_MAX: usize = 64;

pub(super) fn open_storage(
    folder: &DataFolder,
    file: &NodeFile,
    catalog: &CatalogState,
    options: &NodeOptions,
    descriptors: Descriptors,
    faults: Option<&Faults>,
) -> Result<(SharedLog, Tables), NodeError> {
    let identity = LogIdentity { cluster: catalog.cluster, node: file.node };
    let log_options = LogOptions {
        durability: file.durability,
        segment_bytes: options.segment_bytes,
        // A segment is made longer for a block that does not fit, and the log's limit is counted in
        // segments; a block of a part of one leaves little room unused at a segment's end.
        block_bytes_max: LogOptions::default()
            .block_bytes_max
            .min(usize::try_from(options.segment_bytes / 8).unwrap_or(usize::MAX)),
        ..LogOptions::default()
    };
    let fs = faults.map_or_else(|| Arc::new(RealFs) as Arc<dyn Fs>, Faults::fs);
    let log = SharedLog::open(fs, &folder.log(), identity, log_options)?;
    let table_options = TableOptions {
        engine: file.engine,
        memtable_bytes: options.memtable_bytes,
        open_files_max: descriptors.table_files,
        ..TableOptions::default()
    };
    let tables = Tables::open(&folder.tables(), table_options)?;
    log.protect(&tables);
    std::fs::create_dir_all(folder.incoming())?;
    Ok((log, tables))
}

/// A node that has its storage and its place in the cluster, and does nothing yet.
pub(super) struct Starting {
    pub(super) file: NodeFile,
    pub(super) catalog: CatalogState,
    pub(super) coordinator: Coordinator,
    pub(super) log: SharedLog,
    pub(super) tables: Tables,
    pub(super) folder: DataFolder,
    pub(super) address: SocketAddr,
    pub(super) descriptors: Descriptors,
    pub(super) faults: Option<Arc<Faults>>,
}

impl Starting {
    pub(super) async fn run(
        self,
        listener: std::net::TcpListener,
        remembered: Remembered,
        options: &NodeOptions,
        consensus: &Handle,
    ) -> Result<Node, NodeError> {
        let (fail, failed) = watch::channel(None);
        let fail = Arc::new(move |reason: String| {
            tracing::error!(reason, "the node can no longer keep its promises");
            fail.send_if_modified(|first| first.is_none() && first.replace(reason).is_none());
        });
        self.watch_storage(&fail);
        let limits = LogLimits::new(options.log_bytes_max, options.segment_bytes)?;
        let backpressure = Backpressure::new(limits.under_way_max());
        let peers = Peers::new(self.folder.incoming(), backpressure.clone());
        let transport_options = TransportOptions {
            connections_max: self.descriptors.peers,
            faults: self.faults.as_ref().map(|faults| faults.links()),
            ..TransportOptions::new(self.catalog.cluster, self.file.node)
        };
        let transport = PeerTransport::new(transport_options, peers.clone(), consensus.clone());
        let pulses = {
            let _entered = consensus.enter();
            Pulses::start(transport.clone(), self.file.timing, PulseFaults::default())
        };
        peers.set_pulses(pulses.clone());
        let directory = Arc::<NodeDirectory>::default();
        let mut updates =
            DirectoryUpdates::new(&self.coordinator, directory.clone(), transport.clone())
                .map_err(|source| self.refused(source))?;
        updates.first().await.map_err(|source| self.refused(source))?;

        let record = info(&self.file, &self.folder)?;
        let continuity = Continuity::new(
            self.file.node,
            self.coordinator.clone(),
            remembered,
            self.log.clone(),
            directory.clone(),
            record.clone(),
        );
        let stopping = CancellationToken::new();
        let (shared, stops) = (continuity.clone(), stopping.clone());
        let coordinator = SharedCoordinator::start(&self.coordinator, shared, stops)
            .map_err(|source| self.refused(source))?;
        let (end, ended) = watch::channel(());
        self.tables.on_seal(Box::new(move |_| {
            end.send_replace(());
        }));
        let shared = (&continuity, &backpressure, coordinator.clone(), ended.clone());
        let ways = (&directory, &transport, pulses);
        let opener = self.opener(ways, shared, options, &fail, consensus)?;
        let hosting = Hosting::start(opener, peers, self.catalog.clone()).await?;
        let router = hosting.router();

        let maintenance = Maintenance {
            log: self.log.clone(),
            tables: self.tables.clone(),
            router: router.clone(),
            backpressure,
            limits,
            progress: Progress::default(),
        };
        let changes = Changes {
            node: self.file.node,
            router: router.clone(),
            directory,
            invitations: Invitations::new(&self.coordinator),
        };
        let replacement = Replacement { changes: changes.clone(), delay: options.replace_delay };
        let splitting =
            options.split_bytes.map(|bytes_max| Splitting { changes: changes.clone(), bytes_max });
        let replica_spreading =
            options.spread_delay.map(|delay| ReplicaSpreading { changes: changes.clone(), delay });
        let lead_spreading = options.spread_leads_delay.map(|delay| LeadSpreading {
            changes: changes.clone(),
            transport: transport.clone(),
            delay,
        });
        let succession = Succession {
            node: self.file.node,
            router: router.clone(),
            catalog: Catalog::new(&self.coordinator),
            coordinator,
            continuity: continuity.clone(),
            ended,
        };
        let (clients, accepted) = mpsc::channel(CLIENTS_WAITING_MAX);
        let accepting = Accepting {
            listener,
            transport: transport.clone(),
            clients,
            seats: Clients::new(self.descriptors.clients),
            silent_max: self.descriptors.silent,
        };
        let accepting = accepting.run();
        let announcing = {
            let peers = transport.clone();
            let nodes = move || peers.peer_state().into_iter().map(|peer| peer.node).collect();
            maintenance.backpressure.clone().announce(transport.clone(), nodes)
        };
        let on_accept_failure = fail.clone();
        let mut tasks = vec![
            consensus.spawn(async move {
                if let Err(error) = accepting.await {
                    on_accept_failure(format!("the port cannot be served: {error}"));
                }
            }),
            tokio::spawn(maintenance.run()),
            consensus.spawn(announcing),
            tokio::spawn(replacement.run()),
            tokio::spawn(succession.run()),
            tokio::spawn(updates.run()),
        ];
        tasks.extend(splitting.map(|splitting| tokio::spawn(splitting.run())));
        tasks.extend(replica_spreading.map(|spreading| tokio::spawn(spreading.run())));
        tasks.extend(lead_spreading.map(|spreading| tokio::spawn(spreading.run())));
        tasks.push(tokio::spawn(continuity.clone().run()));
        let registered = (self.file.node, record);
        let keeping = keep_registered(self.coordinator.clone(), registered, fail.clone());
        tasks.push(tokio::spawn(keeping));
        let hosting = hosting.run(self.coordinator.clone(), stopping.clone());
        let hosting = tokio::spawn(hosting);
        let stop_serving = CancellationToken::new();
        let admin = self.admin(changes, &transport, continuity, options);
        let server = Self::serve(router.clone(), admin, accepted, stop_serving.clone(), fail);
        Ok(Node {
            id: self.file.node,
            address: self.address,
            coordinator: self.coordinator,
            transport,
            router,
            hosting: Some(hosting),
            stopping,
            log: self.log,
            tables: self.tables,
            failed,
            stop_serving,
            server: Some(server),
            tasks,
            _faults: self.faults,
            _folder: self.folder,
        })
    }

    fn refused(&self, source: CoordinatorError) -> NodeError {
        NodeError::Coordinator { endpoints: self.file.coordinator.join(","), source }
    }

    fn watch_storage(&self, fail: &Arc<impl Fn(String) + Send + Sync + 'static>) {
        let on_log = fail.clone();
        self.log.on_failure(move |error| on_log(format!("the shared log: {error}")));
        let on_tables = fail.clone();
        self.tables.on_failure(Box::new(move |error| on_tables(format!("the tables: {error}"))));
    }

    fn opener(
        &self,
        (directory, transport, pulses): (&Arc<NodeDirectory>, &Arc<PeerTransport>, Arc<Pulses>),
        (continuity, backpressure, coordinator, ended): (
            &Arc<Continuity>,
            &Arc<Backpressure>,
            Arc<SharedCoordinator>,
            watch::Receiver<()>,
        ),
        options: &NodeOptions,
        fail: &Arc<impl Fn(String) + Send + Sync + 'static>,
        consensus: &Handle,
    ) -> Result<Opener, NodeError> {
        Ok(Opener {
            node: self.file.node,
            rejoins: self.file.rejoins,
            discard_after: options.discard_after,
            continuity: continuity.clone(),
            timing: self.file.timing,
            min_replicas_for_write: self.file.min_replicas_for_write,
            mistakes: options.mistakes,
            log: self.log.clone(),
            tables: self.tables.clone(),
            transport: transport.clone(),
            pulses,
            directory: directory.clone(),
            coordinator,
            ended,
            backpressure: backpressure.clone(),
            fail: fail.clone(),
            readers: Readers::start()?,
            consensus: consensus.clone(),
            applying: Default::default(),
        })
    }

    fn admin(
        &self,
        changes: Changes,
        transport: &Arc<PeerTransport>,
        continuity: Arc<Continuity>,
        options: &NodeOptions,
    ) -> AdminService {
        let description = NodeDescription {
            node: self.file.node,
            cluster: self.catalog.cluster,
            address: self.file.reached_at().to_owned(),
            engine: self.file.engine,
            durability: self.file.durability,
        };
        AdminService {
            description,
            router: changes.router.clone(),
            leaves: Leaves::new(&self.coordinator),
            changes,
            log: self.log.clone(),
            transport: transport.clone(),
            continuity,
            discard_after: options.discard_after,
            faults: self.faults.clone(),
        }
    }

    /// Serves clients until `stopped` is cancelled, and then what they have asked.
    fn serve(
        router: Arc<Router>,
        admin: AdminService,
        accepted: mpsc::Receiver<ClientSocket>,
        stopped: CancellationToken,
        fail: Arc<impl Fn(String) + Send + Sync + 'static>,
    ) -> JoinHandle<()> {
        let answers = Arc::<NodeAnswers>::default();
        let kv =
            v1::kv_server::KvServer::new(KvService::new(router, answers.clone(), stopped.clone()))
                .max_decoding_message_size(REQUEST_FRAME_BYTES_MAX);
        let admin = v1::admin_server::AdminServer::new(admin);
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .expect("the descriptors were made with the code");
        let sockets =
            ReceiverStream::new(accepted).map(|(socket, seat)| ClientConnection::new(socket, seat));
        tokio::spawn(async move {
            let (reporter, health) = tonic_health::server::health_reporter();
            reporter.set_serving::<v1::kv_server::KvServer<KvService>>().await;
            reporter.set_serving::<v1::admin_server::AdminServer<AdminService>>().await;
            let server = Server::builder()
                .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
                .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
                .max_concurrent_streams(CONNECTION_STREAMS_MAX)
                .layer(SliceBodies { answers })
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(STREAM_WINDOW)
                .add_service(kv)
                .add_service(admin)
                .add_service(health)
                .add_service(reflection)
                .serve_with_incoming_shutdown(sockets, stopped.cancelled_owned());
            if let Err(error) = server.await {
                fail(format!("clients cannot be served: {error}"));
            }
        })
    }
}
