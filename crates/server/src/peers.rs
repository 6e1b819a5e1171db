//! What the node does with what its peers send: hands it to the replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use trireme_replication::pulse::{PULSE_COHORT, Pulses};
use trireme_replication::{Lane, Replica};
use trireme_storage::StagedSnapshot;
use trireme_types::{CohortId, NodeId};

use crate::backpressure::{Backpressure, NO_COHORT};
use crate::early::{EarlyMessage, EarlyMessages};
use crate::transport::PeerHandler;

/// The replicas of one node.
pub(crate) type Replicas = BTreeMap<CohortId, Arc<dyn Replica>>;

/// The node's replicas, as the transport reaches them.
pub(crate) struct Peers {
    replicas: ArcSwap<Replicas>,
    /// The nodes that answer. Held while replicas are notified of them or replaced, so that each
    /// replica hears every up and down, in order.
    up: Mutex<BTreeSet<NodeId>>,
    /// What has come for replicas that are not here yet.
    early: Mutex<EarlyMessages>,
    incoming: PathBuf,
    backpressure: Arc<Backpressure>,
    /// What the replicas rest by, once there is one.
    pulses: OnceLock<Arc<Pulses>>,
}

impl Peers {
    /// Returns a handler without replicas: what arrives for them is kept for a moment, and then dropped, as
    /// on any network.
    pub(crate) fn new(incoming: PathBuf, backpressure: Arc<Backpressure>) -> Arc<Self> {
        let (replicas, up, early) = (ArcSwap::default(), Mutex::default(), Mutex::default());
        let pulses = OnceLock::new();
        Arc::new(Self { replicas, up, early, incoming, backpressure, pulses })
    }

    /// Has pulses go here from now on. To be called once.
    pub(crate) fn set_pulses(&self, pulses: Arc<Pulses>) {
        let is_first = self.pulses.set(pulses).is_ok();
        debug_assert!(is_first, "a node has its pulses once");
    }

    /// Gives it the node's replicas. Those that it did not have before hear which nodes are up, and get what
    /// has come for them already, before anything that comes later.
    pub(crate) fn set(&self, replicas: Replicas) {
        let up = self.up.lock();
        let mut early = self.early.lock();
        let before = self.replicas.load_full();
        for (cohort, replica) in &replicas {
            let is_known = before.get(cohort).is_some_and(|known| Arc::ptr_eq(known, replica));
            if !is_known {
                up.iter().for_each(|&node| replica.peer_alive(node));
                for EarlyMessage { from, lane, payload, .. } in early.take(Instant::now(), *cohort)
                {
                    replica.deliver(from, lane, payload);
                }
            }
        }
        self.replicas.store(Arc::new(replicas));
    }
}

#[async_trait]
impl PeerHandler for Peers {
    fn message(&self, from: NodeId, cohort: CohortId, lane: Lane, payload: Bytes) {
        if cohort == NO_COHORT {
            return self
                .backpressure
                .peer_log(from, payload.first().is_some_and(|is_full| *is_full != 0));
        }
        if cohort == PULSE_COHORT {
            if let Some(pulses) = self.pulses.get() {
                pulses.deliver(from, payload);
            }
            return;
        }
        if let Some(replica) = self.replicas.load().get(&cohort) {
            return replica.deliver(from, lane, payload);
        }
        let mut early = self.early.lock();
        // It may have come meanwhile, and have been given what was kept.
        if let Some(replica) = self.replicas.load().get(&cohort) {
            return replica.deliver(from, lane, payload);
        }
        tracing::debug!(%from, %cohort, "a message for a cohort that is not here");
        early.keep(Instant::now(), EarlyMessage { from, cohort, lane, payload });
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
        let mut up = self.up.lock();
        up.insert(node);
        self.replicas.load().values().for_each(|replica| replica.peer_alive(node));
    }

    fn peer_down(&self, node: NodeId) {
        tracing::info!(%node, "a peer is gone");
        let mut up = self.up.lock();
        up.remove(&node);
        if let Some(pulses) = self.pulses.get() {
            pulses.peer_lost(node);
        }
        self.replicas.load().values().for_each(|replica| replica.peer_lost(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakeReplica;

    fn replicas(of: &[(u64, &Arc<FakeReplica>)]) -> Replicas {
        let dynamic = |replica: &Arc<FakeReplica>| Arc::clone(replica) as Arc<dyn Replica>;
        of.iter().map(|&(cohort, replica)| (CohortId(cohort), dynamic(replica))).collect()
    }

    /// A replica that is opened later learns of a node that was up before it: no further news of
    /// that node may ever come.
    #[test]
    fn replicas_hear_of_nodes_and_those_opened_later_of_nodes_that_are_up() {
        let peers = Peers::new(PathBuf::new(), Backpressure::new(u64::MAX));
        let (early, late) = (FakeReplica::new(1, 1), FakeReplica::new(1, 2));
        peers.set(replicas(&[(1, &early)]));
        peers.peer_up(NodeId(2));
        peers.peer_up(NodeId(3));
        peers.peer_down(NodeId(3));
        peers.set(replicas(&[(1, &early), (2, &late)]));
        assert_eq!(early.heard(), [(2, true), (3, true), (3, false)]);
        assert_eq!(late.heard(), [(2, true)]);
        peers.peer_down(NodeId(2));
        assert_eq!(late.heard(), [(2, true), (2, false)]);

        // One that was closed hears nothing; opened again it is another replica.
        peers.peer_up(NodeId(3));
        let again = FakeReplica::new(1, 1);
        peers.set(replicas(&[(1, &again)]));
        peers.peer_down(NodeId(3));
        assert_eq!(again.heard(), [(3, true), (3, false)]);
        assert_eq!(late.heard(), [(2, true), (2, false), (3, true)]);
    }

    /// The replicas of a successor are opened on all nodes at about the same time: what one of them said
    /// before another one was there was lost, and the range did not serve until it was said again.
    #[test]
    fn a_replica_gets_what_came_just_before_it() {
        let peers = Peers::new(PathBuf::new(), Backpressure::new(u64::MAX));
        let send = |payload| {
            let payload = Bytes::from_static(payload);
            peers.message(NodeId(2), CohortId(1), Lane::Data, payload);
        };
        send(b"a");
        send(b"b");
        let replica = FakeReplica::new(1, 1);
        peers.set(replicas(&[(1, &replica)]));
        send(b"c");
        assert_eq!(replica.received(), ["a", "b", "c"]);
        // It gets nothing twice.
        peers.set(replicas(&[(1, &replica)]));
        assert_eq!(replica.received().len(), 3);
    }
}
