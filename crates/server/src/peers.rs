//! What the node does with what its peers send: hands it to the replicas.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use trireme_replication::{Lane, Replica};
use trireme_storage::StagedSnapshot;
use trireme_types::{CohortId, NodeId};

use crate::transport::PeerHandler;

/// The node's replicas, as the transport reaches them.
pub(crate) struct Peers {
    replicas: ArcSwap<BTreeMap<CohortId, Arc<dyn Replica>>>,
    incoming: PathBuf,
}

impl Peers {
    /// Returns a handler without replicas: what arrives for them is dropped, as on any network.
    pub(crate) fn new(incoming: PathBuf) -> Arc<Self> {
        Arc::new(Self { replicas: ArcSwap::default(), incoming })
    }

    /// Gives it the node's replicas.
    pub(crate) fn set(&self, replicas: BTreeMap<CohortId, Arc<dyn Replica>>) {
        self.replicas.store(Arc::new(replicas));
    }
}

#[async_trait]
impl PeerHandler for Peers {
    fn message(&self, from: NodeId, cohort: CohortId, lane: Lane, payload: Bytes) {
        match self.replicas.load().get(&cohort) {
            Some(replica) => replica.deliver(from, lane, payload),
            None => tracing::debug!(%from, %cohort, "a message for a cohort that is not here"),
        }
    }

    fn snapshot_dir(&self) -> PathBuf {
        self.incoming.clone()
    }

    async fn snapshot(
        &self,
        from: NodeId,
        cohort: CohortId,
        header: Bytes,
        staged: StagedSnapshot,
    ) -> Result<Bytes, String> {
        let replica = self.replicas.load().get(&cohort).cloned();
        let replica = replica.ok_or_else(|| format!("{cohort} has no replica here"))?;
        replica.install_snapshot(from, header, staged).await.map_err(|error| error.to_string())
    }

    fn peer_up(&self, node: NodeId) {
        tracing::info!(%node, "a peer is there");
    }

    fn peer_down(&self, node: NodeId) {
        tracing::info!(%node, "a peer is gone");
    }
}
