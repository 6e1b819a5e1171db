//! How a replica of each protocol is opened.

use std::sync::{Arc, Weak};

use trireme_replication::driver::{CoreReplica, DriverFaults, DriverOptions, Wiring};
use trireme_replication::pacifica::{Pacifica, PacificaFaults, PacificaOptions};
use trireme_replication::pulse::Pulses;
use trireme_replication::raft::{RaftFaults, RaftOptions, RaftParts, RaftReplica};
use trireme_replication::spinnaker::{Spinnaker, SpinnakerFaults, SpinnakerOptions};
use trireme_replication::streaming::StreamingFaults;
use trireme_replication::{Replica, ReplicaError, Transport};
use trireme_storage::{CohortLog, CohortTable, Tables};
use trireme_types::{Incarnation, NodeId, Protocol};

use crate::coordinator::{self, Recipe, Requests};
use crate::mistake::Mistake;
use crate::node;
use crate::world::World;

/// What a replica is made of.
pub(crate) struct Parts {
    pub(crate) world: Weak<World>,
    pub(crate) node: NodeId,
    pub(crate) start: u64,
    pub(crate) rejoins: bool,
    pub(crate) log: CohortLog,
    pub(crate) tables: Tables,
    pub(crate) table: CohortTable,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) pulses: Arc<Pulses>,
}

/// Opens a replica of the world's protocol, as a task of its node.
pub(crate) async fn open(parts: Parts) -> Result<Arc<dyn Replica>, ReplicaError> {
    let world = parts.world.upgrade().expect("a node starts in a world");
    let (timing, mistake) = (world.plan.timing, world.setup.mistake);
    let rejoins = parts.rejoins && mistake != Some(Mistake::ForgetsLoss);
    let own = mistake.map_or("", Mistake::own);
    let streaming_faults = StreamingFaults::named(own).unwrap_or_default();
    let replicas = world.plan.config(world.setup.protocol).replicas;
    match world.setup.protocol {
        Protocol::Spinnaker => {
            let base = replicas.first().copied();
            let faults = SpinnakerFaults::named(own).unwrap_or_default();
            let options = SpinnakerOptions {
                base,
                timing,
                rejoins,
                faults,
                streaming_faults,
                ..SpinnakerOptions::new(replicas)
            };
            start(parts, |recovered| Spinnaker::new(&recovered, options))
        }
        Protocol::Pacifica => {
            let options = PacificaOptions {
                timing,
                rejoins,
                min_replicas_for_write: world.plan.min_replicas_for_write,
                faults: PacificaFaults::named(own).unwrap_or_default(),
                streaming_faults,
                ..PacificaOptions::new(Incarnation(world.draw()))
            };
            start(parts, |recovered| Pacifica::new(&recovered, options))
        }
        Protocol::Raft => {
            let on_failure = node::on_failure(parts.world, parts.node, parts.start);
            let parts = RaftParts {
                node: parts.node,
                config: world.plan.config(Protocol::Raft),
                log: parts.log,
                tables: parts.tables,
                table: parts.table,
                transport: parts.transport,
                pulses: Some(parts.pulses),
                options: RaftOptions {
                    faults: RaftFaults::named(own).unwrap_or_default(),
                    ..RaftOptions::with_timing(&world.plan.timing)
                },
                lost_disk: rejoins,
                on_failure: Arc::new(on_failure),
            };
            drop(world);
            Ok(RaftReplica::open(parts).await?)
        }
    }
}

fn start<C>(
    parts: Parts,
    make: impl FnOnce(trireme_replication::core::Recovered) -> Result<C, String>,
) -> Result<Arc<dyn Replica>, ReplicaError>
where
    C: Recipe<CoordinatorRequest: Clone + Send + Sync, CoordinatorEvent: Clone>,
{
    let Parts { world, node, start, log, table, transport, pulses, .. } = parts;
    let mistake = world.upgrade().and_then(|world| world.setup.mistake);
    let faults = DriverFaults::named(mistake.map_or("", Mistake::own)).unwrap_or_default();
    let options = DriverOptions { faults, ..DriverOptions::default() };
    let requests = Requests::new();
    let failed = node::on_failure(world.clone(), node, start);
    let wiring = Wiring {
        log,
        table,
        transport,
        coordination: requests.clone(),
        pulses: Some(pulses),
        on_failure: Box::new(move |error| failed(error.to_string())),
    };
    let replica = CoreReplica::start(node, wiring, options, make);
    let replica = Arc::new(replica.map_err(|error| ReplicaError::Invalid(error.to_string()))?);
    let process = trireme_replication::simulation::SimulatedNode::current();
    let process = process.expect("a replica starts as a task of its node");
    let weak = Arc::downgrade(&replica);
    tokio::spawn(process.task(coordinator::continuity::ask(world.clone(), node)));
    tokio::spawn(process.task(coordinator::keep_session(world.clone(), node, start)));
    tokio::spawn(process.task(coordinator::serve(world.clone(), node, requests, weak.clone())));
    tokio::spawn(process.task(coordinator::watch(world, node, weak)));
    Ok(replica)
}
