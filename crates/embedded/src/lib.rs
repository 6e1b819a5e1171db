//! A coordinator that needs nothing installed: a single-node server of the part of etcd's v3 API
//! that Trireme uses, with its state on disk.
//!
//! # What it guarantees
//!
//! It answers as a single-node etcd 3.4 answers, revisions and error texts included: KV (ranges
//! with sorting, limits, filters and old revisions; puts; deletions; transactions with all
//! compare targets, ranges and nesting; compaction), Lease (grant, revoke, keep-alive, time to
//! live, list), Watch (keys and ranges, start revision, previous values, filters, progress,
//! cancellation), and as much of Maintenance and Cluster as `etcdctl endpoint status`, `endpoint
//! health`, `snapshot save` and `member list` ask. Everything else is refused as unimplemented, by name.
//!
//! What it has answered survives the death of its process and of the machine. A lease that a
//! restart finds has its whole time again. Damage on disk is named and never skipped. A server
//! whose disk fails stops serving and says so ([`EmbeddedServer::failed`]); it can be started again
//! when the disk takes writes.
//!
//! # How it works
//!
//! All state is in memory: `store` keeps every key's versions down to the compaction. One
//! thread (`engine`) takes all commands that wait, writes them to the log as one frame, syncs
//! it, applies them in order and answers: one sync for all that wait, and no reader ever sees
//! what a crash could take back. From time to time a snapshot replaces the log (`journal`).
//! Watchers are places in the history and own no queue (`watch`).
//!
//! The server runs on a runtime of its own, so that neither its users' load can starve it nor its
//! own end can leave tasks behind in theirs.
//!
//! # What is left out
//!
//! Replication (for that there is etcd), TLS and users, fragmented watch responses, streamed
//! ranges, and a history without bounds: see [`EmbeddedOptions::history_revisions`].

mod backup;
mod command;
mod counters;
mod engine;
mod error;
mod fault;
#[cfg(test)]
mod fuzz;
mod journal;
mod kv;
mod lease;
mod lessor;
mod options;
mod others;
mod requests;
mod store;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{
    PbClusterServer, PbKvServer, PbLeaseServer, PbMaintenanceServer, PbWatchServer,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch::{Receiver, Sender};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

pub use counters::EmbeddedCounters;
pub use error::EmbeddedError;
pub use options::EmbeddedOptions;

use engine::{Engine, REQUEST_BYTES_MAX, Writer};

/// The most bytes of a message that the transport takes in, as in etcd: a little more than a
/// request may have, so that one that is too large is refused in etcd's words.
const MESSAGE_BYTES_MAX: usize = REQUEST_BYTES_MAX + 512 * 1024;

/// How long a stopping server waits for the answers under way.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A running embedded coordinator. Dropping it ends it at once, as a crash would: what was
/// answered is on disk.
#[derive(Debug)]
pub struct EmbeddedServer {
    address: SocketAddr,
    engine: Arc<Engine>,
    writer: Option<Writer>,
    stopping: Sender<bool>,
    /// `None` once stopped.
    runtime: Option<Runtime>,
}

impl EmbeddedServer {
    /// Recovers the state of the options' folder, or makes a new one, and serves it.
    pub async fn start(options: EmbeddedOptions) -> Result<Self, EmbeddedError> {
        let starting = tokio::task::spawn_blocking(move || Self::start_blocking(options));
        starting.await.unwrap_or_else(|error| {
            Err(EmbeddedError::Poisoned(format!("its start was cut short: {error}")))
        })
    }

    /// Makes the options' folder, which must hold no state yet, begin with what a backup holds: the
    /// file that `etcdctl snapshot save` wrote.
    pub async fn restore(backup: Vec<u8>, options: EmbeddedOptions) -> Result<(), EmbeddedError> {
        let restoring = tokio::task::spawn_blocking(move || Engine::restore(&backup, &options));
        restoring.await.unwrap_or_else(|error| {
            Err(EmbeddedError::Poisoned(format!("its restoration was cut short: {error}")))
        })
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address as a coordinator's endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns how often each kind of request was answered.
    pub fn counters(&self) -> EmbeddedCounters {
        self.engine.counters.read()
    }

    /// Returns why its disk has failed, once it has: from then on it serves no request, and
    /// the address is free. Its user stops it, and may start it again when the disk takes writes.
    pub async fn failed(&self) -> String {
        let mut failure = self.engine.failure();
        match failure.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // The sender lives as long as the engine, which `self` holds.
            Err(_) => std::future::pending().await,
        }
    }

    /// Stops after the answers under way. When it returns, address and folder are free, and what
    /// the writer had to say about its end is told.
    pub async fn stop(mut self) -> Result<(), EmbeddedError> {
        self.stopping.send_replace(true);
        self.engine.stop().await;
        let writer = self.writer.take();
        let ended = tokio::task::spawn_blocking(move || writer.map(Writer::join)).await;
        if let Some(runtime) = self.runtime.take() {
            let down = move || runtime.shutdown_timeout(STOP_TIMEOUT);
            // The runtime is gone either way.
            tokio::task::spawn_blocking(down).await.ok();
        }
        match ended {
            Ok(Some(Ok(result))) => result,
            _ => Err(EmbeddedError::Poisoned("its writer ended in a panic".to_owned())),
        }
    }

    fn start_blocking(options: EmbeddedOptions) -> Result<Self, EmbeddedError> {
        let asked = options.listen;
        let data = options.data.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("trireme-coordinator")
            .enable_all()
            .build()
            .map_err(|source| EmbeddedError::Io { action: "start", path: data, source })?;
        // Before anything is made: a start that fails for its address leaves no folder behind.
        let listen_error = |source| EmbeddedError::Listen { address: asked, source };
        let listener = runtime.block_on(TcpListener::bind(asked)).map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let (engine, writer) = Engine::start(options)?;
        let stopping = Sender::new(false);
        runtime.spawn(stop_at_failure(engine.failure(), stopping.clone()));
        runtime.spawn(serve(Arc::clone(&engine), listener, address, stopping.clone()));
        runtime.spawn(Arc::clone(&engine).end_leases());
        tracing::info!(%address, "the embedded coordinator serves");
        Ok(Self { address, engine, writer: Some(writer), stopping, runtime: Some(runtime) })
    }
}

impl Drop for EmbeddedServer {
    fn drop(&mut self) {
        self.stopping.send_replace(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.engine.halt();
    }
}

/// Ends the service when the disk has failed. A server that can make nothing durable can end no
/// lease: as long as it answers, a node that it names as alive may be long dead.
async fn stop_at_failure(mut failure: Receiver<Option<String>>, stopping: Sender<bool>) {
    if failure.wait_for(Option::is_some).await.is_ok() {
        stopping.send_replace(true);
    }
}

async fn serve(
    engine: Arc<Engine>,
    listener: TcpListener,
    address: SocketAddr,
    stopping: Sender<bool>,
) {
    let kv = PbKvServer::new(kv::KvService(Arc::clone(&engine)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX);
    let leases =
        lease::LeaseService { engine: Arc::clone(&engine), stopping: stopping.subscribe() };
    let watches =
        watch::WatchService { engine: Arc::clone(&engine), stopping: stopping.subscribe() };
    let cluster = others::ClusterService { engine: Arc::clone(&engine), address };
    let mut stop = stopping.subscribe();
    let stopped = async move {
        stop.wait_for(|stopping| *stopping).await.ok();
    };
    // Answers are small: held back to be sent with others, each would cost 40 ms.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = Server::builder()
        .add_service(kv)
        .add_service(PbLeaseServer::new(leases))
        .add_service(PbWatchServer::new(watches))
        .add_service(PbMaintenanceServer::new(others::MaintenanceService(engine)))
        .add_service(PbClusterServer::new(cluster))
        .add_service(others::AuthService)
        .add_service(others::LockService)
        .add_service(others::ElectionService)
        .serve_with_incoming_shutdown(incoming, stopped)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the embedded coordinator's listener failed");
    }
}

/// The README's example is compiled with the other examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
