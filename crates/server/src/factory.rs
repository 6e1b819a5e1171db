//! The one place that knows which protocols there are.

use std::sync::Arc;

use trireme_coordinator::Coordinator;
use trireme_replication::raft::{RaftOptions, RaftParts, RaftReplica};
use trireme_replication::{Replica, ReplicaError, Transport};
use trireme_storage::{CohortLog, CohortTable, Tables};
use trireme_types::{CohortConfig, NodeId, Protocol};

/// What every replica is made of, whatever its protocol.
pub(crate) struct ReplicaParts {
    pub(crate) node: NodeId,
    pub(crate) config: CohortConfig,
    pub(crate) log: CohortLog,
    pub(crate) tables: Tables,
    pub(crate) table: CohortTable,
    pub(crate) transport: Arc<dyn Transport>,
    /// The coordinator, for the protocols that elect or change configurations through it.
    #[expect(dead_code, reason = "Raft does without; the protocols of our own will not")]
    pub(crate) coordinator: Coordinator,
    /// Whether the node once lost its disk, with what its replicas had acknowledged (S14): one that
    /// finds nothing here must first be brought up to date before it counts.
    #[expect(dead_code, reason = "a node with Raft cohorts is not let in then")]
    pub(crate) rejoins: bool,
    pub(crate) on_failure: Arc<dyn Fn(String) + Send + Sync>,
}

/// Says whether this build can run cohorts of a protocol, and why not if it cannot.
pub fn check_protocol(protocol: Protocol) -> Result<(), String> {
    match protocol {
        Protocol::Raft => Ok(()),
        Protocol::Spinnaker | Protocol::Pacifica => {
            Err(format!("this version cannot replicate by {protocol} yet; raft is what there is"))
        }
    }
}

/// Says whether a cohort of the protocol takes in replicas by itself, for those that it removed.
pub(crate) fn admits_replicas(protocol: Protocol) -> bool {
    match protocol {
        Protocol::Pacifica => true,
        Protocol::Spinnaker | Protocol::Raft => false,
    }
}

/// Says whether a replica of the protocol that has lost what it acknowledged can come back under
/// its name and be brought up to date before it counts (S14).
pub(crate) fn takes_back_without_data(protocol: Protocol) -> bool {
    match protocol {
        Protocol::Spinnaker | Protocol::Pacifica => true,
        // An empty voter would vote again in terms in which it has voted.
        Protocol::Raft => false,
    }
}

/// Opens a replica of the protocol that its cohort's configuration names.
pub(crate) async fn open_replica(parts: ReplicaParts) -> Result<Arc<dyn Replica>, ReplicaError> {
    let protocol = parts.config.protocol;
    check_protocol(protocol).map_err(ReplicaError::Invalid)?;
    let ReplicaParts { node, config, log, tables, table, transport, on_failure, .. } = parts;
    let options = RaftOptions::default();
    let parts = RaftParts { node, config, log, tables, table, transport, options, on_failure };
    Ok(RaftReplica::open(parts).await?)
}
