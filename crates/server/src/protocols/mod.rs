//! The one place that knows which protocols there are: how a replica of each is opened, and how
//! the protocols of our own work with the coordinator.

mod configuration;
mod election;
mod election_feed;
mod mistakes;
mod pending_request;
mod shared;

use std::sync::Arc;

use bytes::Bytes;
use trireme_replication::core::{Core, Recovered};
use trireme_replication::driver::{Coordination, CoreReplica, DriverOptions, Wiring};
use trireme_replication::pacifica::{Pacifica, PacificaOptions};
use trireme_replication::pulse::Pulses;
use trireme_replication::raft::{self, RaftOptions, RaftParts, RaftReplica};
use trireme_replication::spinnaker::{Spinnaker, SpinnakerOptions};
use trireme_replication::{Replica, ReplicaError, Transport};
use trireme_storage::{CohortLog, CohortTable, Tables};
use trireme_types::{CohortConfig, Incarnation, NodeId, Protocol, Timing};

use self::configuration::configure;
use self::election::elect;
pub use self::mistakes::Mistakes;
use self::pending_request::PendingRequest;
pub(crate) use self::shared::SharedCoordinator;

/// What every replica is made of, whatever its protocol.
pub(crate) struct ReplicaParts {
    pub(crate) node: NodeId,
    pub(crate) config: CohortConfig,
    pub(crate) log: CohortLog,
    pub(crate) tables: Tables,
    pub(crate) table: CohortTable,
    pub(crate) transport: Arc<dyn Transport>,
    /// What a replica of a protocol of our own rests by while nothing happens.
    pub(crate) pulses: Arc<Pulses>,
    pub(crate) timing: Timing,
    pub(crate) min_replicas_for_write: usize,
    pub(crate) mistakes: Mistakes,
    /// The coordinator, for the protocols that elect or change configurations through it.
    pub(crate) coordinator: Arc<SharedCoordinator>,
    /// Whether the node once lost its disk, with what its replicas had acknowledged (S14): one that
    /// finds nothing here must first be brought up to date before it counts.
    pub(crate) rejoins: bool,
    pub(crate) on_failure: Arc<dyn Fn(String) + Send + Sync>,
}

impl ReplicaParts {
    /// Returns true if the replica must be brought up to date before it counts.
    fn lost_disk(&self) -> bool {
        self.rejoins && !self.mistakes.trusts_an_empty_disk()
    }
}

/// Returns true if a cohort of the protocol admits replicas by itself, for those that it removed.
pub(crate) fn admits_replicas(protocol: Protocol) -> bool {
    match protocol {
        Protocol::Pacifica => true,
        Protocol::Spinnaker | Protocol::Raft => false,
    }
}

/// Returns what a cohort keeps beside its rows for its protocol that does not begin with an empty log.
pub(crate) fn first_state(config: &CohortConfig) -> Option<Bytes> {
    match config.protocol {
        Protocol::Raft => Some(raft::first_state(&config.replicas)),
        Protocol::Spinnaker | Protocol::Pacifica => None,
    }
}

/// Opens a replica of the protocol that its cohort's configuration names. To be called within the
/// runtime that the replica is to run on.
pub(crate) async fn open_replica(parts: ReplicaParts) -> Result<Arc<dyn Replica>, ReplicaError> {
    match parts.config.protocol {
        Protocol::Spinnaker => open_spinnaker(parts),
        Protocol::Raft => open_raft(parts).await,
        Protocol::Pacifica => open_pacifica(parts),
    }
}

async fn open_raft(parts: ReplicaParts) -> Result<Arc<dyn Replica>, ReplicaError> {
    let lost_disk = parts.lost_disk();
    let options = RaftOptions::with_timing(&parts.timing);
    let ReplicaParts { node, config, log, tables, table, transport, pulses, on_failure, .. } =
        parts;
    let parts = RaftParts {
        node,
        config,
        log,
        tables,
        table,
        transport,
        pulses: Some(pulses),
        options,
        lost_disk,
        on_failure,
    };
    Ok(RaftReplica::open(parts).await?)
}

fn open_spinnaker(parts: ReplicaParts) -> Result<Arc<dyn Replica>, ReplicaError> {
    let (node, coordinator) = (parts.node, parts.coordinator.clone());
    let CohortConfig { cohort, replicas, .. } = parts.config.clone();
    let options = SpinnakerOptions {
        timing: parts.timing,
        rejoins: parts.lost_disk(),
        is_invited: !replicas.contains(&node),
        base: replicas.first().copied(),
        ..SpinnakerOptions::new(replicas.clone())
    };
    let request = PendingRequest::new();
    let make = |recovered: Recovered| Spinnaker::new(&recovered, options);
    let replica = start(parts, request.clone(), make)?;
    elect(coordinator, (cohort, node), replicas, &request, &replica);
    Ok(replica)
}

fn open_pacifica(parts: ReplicaParts) -> Result<Arc<dyn Replica>, ReplicaError> {
    let (cohort, coordinator) = (parts.config.cohort, parts.coordinator.clone());
    let options = PacificaOptions {
        timing: parts.timing,
        min_replicas_for_write: parts.min_replicas_for_write,
        rejoins: parts.lost_disk(),
        is_invited: !parts.config.replicas.contains(&parts.node),
        // A replica that finds nothing on its disk is none that was here before.
        ..PacificaOptions::new(Incarnation(rand::random()))
    };
    let request = PendingRequest::new();
    let make = |recovered: Recovered| Pacifica::new(&recovered, options);
    let replica = start(parts, request.clone(), make)?;
    configure(coordinator, cohort, &request, &replica);
    Ok(replica)
}

/// Starts a replica of a protocol of our own.
fn start<C: Core>(
    parts: ReplicaParts,
    coordination: Arc<dyn Coordination<C>>,
    make: impl FnOnce(Recovered) -> Result<C, String>,
) -> Result<Arc<CoreReplica<C>>, ReplicaError> {
    let ReplicaParts { node, log, table, transport, pulses, on_failure, .. } = parts;
    let on_failure = Box::new(move |error: &ReplicaError| on_failure(error.to_string()));
    let pulses = Some(pulses);
    let wiring = Wiring { log, table, transport, coordination, pulses, on_failure };
    CoreReplica::start(node, wiring, DriverOptions::default(), make)
        .map(Arc::new)
        .map_err(|error| ReplicaError::Invalid(error.to_string()))
}
