//! What an embedded coordinator can be told.

use std::net::SocketAddr;
use std::path::PathBuf;

/// How an embedded coordinator is started. [`EmbeddedOptions::new`] gives the defaults.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// The folder that holds its state. Created if need be; locked while in use.
    pub data: PathBuf,
    /// Where it listens. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// The revisions of history that are kept for watchers that come back. Past twice as many,
    /// the oldest are compacted away; a watcher that was gone for longer reads anew. etcd keeps
    /// everything until it is told otherwise. Default 10,000.
    pub history_revisions: usize,
    /// Roughly the bytes of history that are kept. Past twice as many, the oldest are compacted
    /// away. Default 64 MiB.
    pub history_bytes: usize,
    /// Roughly the bytes that all keys and values may take in memory. Past it, nothing can be
    /// put until something was deleted and compacted. Default 512 MiB.
    pub quota_bytes: usize,
    /// The bytes of log after which a snapshot is written and the log begins anew; recovery reads
    /// about this much. A snapshot that is itself larger than this raises it to its own size.
    /// Default 16 MiB.
    pub snapshot_log_bytes: u64,
    /// The shortest time to live of a lease, in seconds: shorter ones are raised to it. Default 2,
    /// which is what etcd's default election timeout gives.
    pub lease_ttl_min: i64,
}

impl EmbeddedOptions {
    /// Returns the defaults for a coordinator on this folder and address.
    pub fn new(data: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            data: data.into(),
            listen,
            history_revisions: 10_000,
            history_bytes: 64 * 1024 * 1024,
            quota_bytes: 512 * 1024 * 1024,
            snapshot_log_bytes: 16 * 1024 * 1024,
            lease_ttl_min: 2,
        }
    }
}
