//! Faults that a running node suffers on request: links to other nodes that
//! lose or delay what is sent, a coordinator that is not reached, a disk that stalls or fails, a task
//! that panics.
//!
//! Only a node that was started to allow them has any of this; on every other, nothing stands
//! between it and its peers, its coordinator and its disk. Faults are never remembered: a node that
//! is started again is whole.

mod forwarder;
mod links;
mod request;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use trireme_storage::fs::{DiskFaults, FaultyFs, Fs, RealFs};

use self::forwarder::Forwarder;
pub use self::forwarder::ForwarderError;
use self::links::LinkTable;
pub(crate) use self::request::FaultSet;
use crate::transport::LinkFaults;

/// How long after a panic is asked for it comes, so that the answer to the request leaves first.
const PANIC_DELAY: Duration = Duration::from_millis(100);

/// What can go wrong with a node on request.
pub(crate) struct Faults {
    links: Arc<LinkTable>,
    is_coordinator_cut: watch::Sender<bool>,
    disk: DiskFaults,
}

impl Faults {
    /// Returns a node's faults, none of which it suffers yet.
    pub(crate) fn new() -> Arc<Self> {
        let (links, disk) = (Arc::default(), DiskFaults::default());
        Arc::new(Self { links, is_coordinator_cut: watch::Sender::new(false), disk })
    }

    /// Has the node suffer these faults and no others.
    pub(crate) fn set(&self, faults: FaultSet) {
        tracing::warn!(?faults, "faults that were asked for");
        let FaultSet { links, is_coordinator_cut, disk, panics } = faults;
        self.links.set(links);
        self.is_coordinator_cut.send_if_modified(|is_cut| {
            let was_cut = std::mem::replace(is_cut, is_coordinator_cut);
            was_cut != is_coordinator_cut
        });
        self.disk.set(disk);
        if panics {
            tokio::spawn(async {
                tokio::time::sleep(PANIC_DELAY).await;
                panic!("a fault that was asked for");
            });
        }
    }

    /// Returns what disturbs the links to other nodes.
    pub(crate) fn links(&self) -> Arc<dyn LinkFaults> {
        self.links.clone()
    }

    /// Returns the file system of the shared log.
    pub(crate) fn fs(&self) -> Arc<dyn Fs> {
        Arc::new(FaultyFs::new(Arc::new(RealFs), self.disk.clone()))
    }

    /// Returns endpoints that lead to the coordinator's as long as the way is not cut.
    pub(crate) async fn forward(
        &self,
        endpoints: &[String],
    ) -> Result<Vec<String>, ForwarderError> {
        let mut forwarded = Vec::new();
        for endpoint in endpoints {
            let forwarder = Forwarder::bind(endpoint).await?;
            forwarded.push(forwarder.endpoint()?);
            tokio::spawn(forwarder.run(self.is_coordinator_cut.subscribe()));
        }
        Ok(forwarded)
    }
}
