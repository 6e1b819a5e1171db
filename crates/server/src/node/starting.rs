//! From storage and a place in the cluster to a node that serves.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use trireme_coordinator::recipes::catalog::CatalogState;
use trireme_coordinator::{Coordinator, CoordinatorError};
use trireme_proto::v1;
use trireme_storage::fs::RealFs;
use trireme_storage::{LogIdentity, LogOptions, SharedLog, TableOptions, Tables};
use trireme_types::CohortId;

use super::membership::{News, keep_registered};
use super::{Node, NodeError, NodeOptions};
use crate::cohort::HostedCohort;
use crate::data_folder::{DataFolder, NodeFile};
use crate::factory::{ReplicaParts, open_replica};
use crate::listener::{self, ClientSocket};
use crate::maintenance::Maintenance;
use crate::peers::Peers;
use crate::routes::{NodeDirectory, Router, Routes};
use crate::services::{AdminService, KvService, NodeDescription};
use crate::transport::{PeerTransport, TransportOptions};

/// The longest frame that a client may send.
const REQUEST_FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The bytes of a client's requests that may be under way in the network; HTTP/2's default of
/// 64 KiB would make large batches wait for it.
const STREAM_WINDOW: u32 = 4 * 1024 * 1024;

/// The most client connections that wait to be served.
const CLIENTS_WAITING_MAX: usize = 64;

pub(super) fn open_storage(
    folder: &DataFolder,
    file: &NodeFile,
    catalog: &CatalogState,
    options: &NodeOptions,
) -> Result<(SharedLog, Tables), NodeError> {
    let identity = LogIdentity { cluster: catalog.cluster, node: file.node };
    let log_options = LogOptions {
        durability: file.durability,
        segment_bytes: options.segment_bytes,
        ..LogOptions::default()
    };
    let log = SharedLog::open(Arc::new(RealFs), &folder.log(), identity, log_options)?;
    let table_options = TableOptions { engine: file.engine, ..TableOptions::default() };
    let tables = Tables::open(&folder.tables(), table_options)?;
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
}

impl Starting {
    pub(super) async fn run(
        self,
        listener: std::net::TcpListener,
        options: &NodeOptions,
        consensus: &Handle,
    ) -> Result<Node, NodeError> {
        let (fail, failed) = watch::channel(None);
        let fail = Arc::new(move |reason: String| {
            tracing::error!(reason, "the node can no longer keep its promises");
            fail.send_if_modified(|first| first.is_none() && first.replace(reason).is_none());
        });
        self.watch_storage(&fail);
        let peers = Peers::new(self.folder.incoming());
        let transport = PeerTransport::new(
            TransportOptions::new(self.catalog.cluster, self.file.node),
            peers.clone(),
            consensus.clone(),
        );
        let directory = Arc::<NodeDirectory>::default();
        let mut news = News::new(&self.coordinator, directory.clone(), transport.clone())
            .map_err(|source| self.refused(source))?;
        news.first().await.map_err(|source| self.refused(source))?;

        let hosted = self.open_cohorts(&directory, &transport, &fail, consensus).await?;
        let replicas = |hosted: &BTreeMap<CohortId, Arc<HostedCohort>>| {
            hosted.iter().map(|(&id, cohort)| (id, cohort.replica.clone())).collect()
        };
        peers.set(replicas(&hosted));
        let all = hosted.values().map(|cohort| cohort.replica.clone()).collect();
        let CatalogState { map, configs, .. } = self.catalog.clone();
        let routes = Routes { map, configs, hosted };
        let router = Arc::new(Router::new(self.catalog.cluster, directory, routes));

        let maintenance = Maintenance {
            log: self.log.clone(),
            tables: self.tables.clone(),
            router: router.clone(),
            log_bytes_max: options.log_bytes_max,
        };
        let (clients, accepted) = mpsc::channel(CLIENTS_WAITING_MAX);
        let accepting = listener::accept(listener, transport.clone(), clients);
        let on_accept_failure = fail.clone();
        let mut tasks = vec![
            consensus.spawn(async move {
                if let Err(error) = accepting.await {
                    on_accept_failure(format!("the port cannot be served: {error}"));
                }
            }),
            tokio::spawn(maintenance.run()),
            tokio::spawn(news.run()),
        ];
        tasks.push(tokio::spawn(keep_registered(self.coordinator.clone(), self.file.clone())));
        let (stop_serving, stopped) = oneshot::channel();
        let server = self.serve(router, accepted, stopped, fail);
        Ok(Node {
            id: self.file.node,
            address: self.address,
            coordinator: self.coordinator,
            transport,
            replicas: all,
            log: self.log,
            tables: self.tables,
            failed,
            stop_serving: Some(stop_serving),
            server: Some(server),
            tasks,
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

    /// Opens the replicas that the catalog places on this node.
    async fn open_cohorts(
        &self,
        directory: &Arc<NodeDirectory>,
        transport: &Arc<PeerTransport>,
        fail: &Arc<impl Fn(String) + Send + Sync + 'static>,
        consensus: &Handle,
    ) -> Result<BTreeMap<CohortId, Arc<HostedCohort>>, NodeError> {
        let mut hosted = BTreeMap::new();
        for (&cohort, config) in &self.catalog.configs {
            let descriptor = self.catalog.map.of_cohort(cohort).cloned();
            let Some(descriptor) = descriptor.filter(|_| config.replicas.contains(&self.file.node))
            else {
                continue;
            };
            let table = self.tables.cohort(cohort, descriptor.range.clone())?;
            let (applied, purged) = (table.applied(), self.log.cohort(cohort).bounds().purged);
            if applied.seq < purged.seq {
                return Err(NodeError::LostRows { cohort, applied, purged });
            }
            let on_failure = fail.clone();
            let parts = ReplicaParts {
                node: self.file.node,
                config: config.clone(),
                log: self.log.cohort(cohort),
                tables: self.tables.clone(),
                table: table.clone(),
                transport: transport.clone(),
                coordinator: self.coordinator.clone(),
                rejoins: false,
                on_failure: Arc::new(move |reason| on_failure(format!("{cohort}: {reason}"))),
            };
            let opened = consensus.spawn(open_replica(parts)).await.map_err(io::Error::other)?;
            let replica = opened.map_err(|source| NodeError::Replica { cohort, source })?;
            let config = config.clone();
            let started =
                HostedCohort::start(descriptor, config, replica, table, directory.clone());
            hosted.insert(cohort, started);
        }
        Ok(hosted)
    }

    /// Serves clients until `stopped` resolves.
    fn serve(
        &self,
        router: Arc<Router>,
        accepted: mpsc::Receiver<ClientSocket>,
        stopped: oneshot::Receiver<()>,
        fail: Arc<impl Fn(String) + Send + Sync + 'static>,
    ) -> JoinHandle<()> {
        let description = NodeDescription {
            node: self.file.node,
            cluster: self.catalog.cluster,
            address: self.file.listen.clone(),
            engine: self.file.engine,
            durability: self.file.durability,
        };
        let kv = v1::kv_server::KvServer::new(KvService::new(router.clone()))
            .max_decoding_message_size(REQUEST_FRAME_BYTES_MAX);
        let admin = AdminService::new(description, router, self.log.clone());
        let admin = v1::admin_server::AdminServer::new(admin);
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .expect("the descriptors were made with the code");
        let sockets = ReceiverStream::new(accepted).map(tokio::net::TcpStream::from_std);
        tokio::spawn(async move {
            let (reporter, health) = tonic_health::server::health_reporter();
            reporter.set_serving::<v1::kv_server::KvServer<KvService>>().await;
            reporter.set_serving::<v1::admin_server::AdminServer<AdminService>>().await;
            let server = Server::builder()
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(STREAM_WINDOW)
                .add_service(kv)
                .add_service(admin)
                .add_service(health)
                .add_service(reflection)
                .serve_with_incoming_shutdown(sockets, async {
                    let _gone = stopped.await;
                });
            if let Err(error) = server.await {
                fail(format!("clients cannot be served: {error}"));
            }
        })
    }
}
