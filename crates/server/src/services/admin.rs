//! The service that operators and tools use.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};
use trireme_coordinator::recipes::succession::successors;
use trireme_proto::v1;
use trireme_replication::{Measures, ReplicaError, ReplicaStatus};
use trireme_storage::SharedLog;
use trireme_types::{CohortId, Durability, Engine, NodeId, UnknownName, check_split_key};

use crate::cohort::HostedCohort;
use crate::continuity::Continuity;
use crate::draining::{LeaveError, Leaves};
use crate::faults::{FaultSet, Faults};
use crate::moving::Move;
use crate::routes::{Router, Routes};
use crate::succession::{Change, Changes, Refused};
use crate::transport::{PeerState, PeerTransport, Sent};

/// What a node says of itself besides its replicas.
pub(crate) struct NodeDescription {
    pub(crate) node: NodeId,
    pub(crate) cluster: trireme_types::ClusterId,
    pub(crate) address: String,
    pub(crate) engine: Engine,
    pub(crate) durability: Durability,
}

/// The admin service of one node.
pub(crate) struct AdminService {
    pub(crate) description: NodeDescription,
    pub(crate) router: Arc<Router>,
    pub(crate) changes: Changes,
    pub(crate) leaves: Leaves,
    pub(crate) log: SharedLog,
    pub(crate) transport: Arc<PeerTransport>,
    pub(crate) continuity: Arc<Continuity>,
    /// How long what is set aside is kept.
    pub(crate) discard_after: Duration,
    /// `None` unless the node was started to allow them.
    pub(crate) faults: Option<Arc<Faults>>,
}

impl AdminService {
    fn set_aside(&self) -> Vec<v1::SetAside> {
        let kept_ms = u64::try_from(self.discard_after.as_millis()).unwrap_or(u64::MAX);
        let memory = self.continuity.memory().get();
        let set_aside = memory.set_aside.iter().map(|(cohort, &since_ms)| v1::SetAside {
            cohort: cohort.0,
            since_ms,
            deleted_ms: since_ms.saturating_add(kept_ms),
        });
        set_aside.collect()
    }

    fn log_status(&self, commands: u64) -> v1::LogStatus {
        let metrics = self.log.metrics();
        v1::LogStatus {
            scans: metrics.scans,
            scanned_bytes: metrics.scanned_bytes,
            segments: metrics.segments,
            entries: metrics.entries_appended,
            commands,
            blocks: metrics.blocks,
            syncs: metrics.syncs,
            written_bytes: metrics.written_bytes,
        }
    }
}

#[tonic::async_trait]
impl v1::admin_server::Admin for AdminService {
    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::NodeStatus>, Status> {
        let routes = self.router.routes();
        let commands = routes.hosted.values().map(|cohort| cohort.commands()).sum();
        let NodeDescription { node, cluster, address, engine, durability } = &self.description;
        Ok(Response::new(v1::NodeStatus {
            cluster: cluster.0,
            node: node.0,
            address: address.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: engine.to_string(),
            durability: durability.to_string(),
            replicas: routes.hosted.values().map(|cohort| replica_status(cohort)).collect(),
            log: Some(self.log_status(commands)),
            set_aside: self.set_aside(),
            waits_for: self.continuity.waits_for().unwrap_or_default(),
            peers: self.transport.peer_state().into_iter().map(peer_status).collect(),
            successions: successions(&routes),
        }))
    }

    async fn knowledge(
        &self,
        _request: Request<v1::KnowledgeRequest>,
    ) -> Result<Response<v1::KnowledgeResponse>, Status> {
        let json = serde_json::to_vec(&self.continuity.knowledge());
        let json = json.map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(v1::KnowledgeResponse { json: json.into() }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let v1::TransferLeaderRequest { cohort, to } = request.into_inner();
        let routes = self.router.routes();
        let (id, to_node) = (CohortId(cohort), NodeId(to));
        let Some(cohort) = routes.hosted.get(&id) else {
            return Err(Status::not_found(format!("cohort {id} has no replica here")));
        };
        if !routes.configs.get(&id).is_some_and(|config| config.replicas.contains(&to_node)) {
            return Err(Status::invalid_argument(format!("node n{to} has no replica of it")));
        }
        cohort.replica.transfer_leader(to_node).await.map_err(replica_status_error)?;
        Ok(Response::new(v1::TransferLeaderResponse {}))
    }

    async fn change_range(
        &self,
        request: Request<v1::ChangeRangeRequest>,
    ) -> Result<Response<v1::ChangeRangeResponse>, Status> {
        let v1::ChangeRangeRequest { cohort, change } = request.into_inner();
        let change =
            match change {
                Some(v1::change_range_request::Change::Protocol(name)) => {
                    let protocol = name.parse();
                    Change::Protocol(protocol.map_err(|error: UnknownName| {
                        Status::invalid_argument(error.to_string())
                    })?)
                }
                Some(v1::change_range_request::Change::Split(at)) => {
                    check_split_key(&at)
                        .map_err(|error| Status::invalid_argument(error.to_string()))?;
                    Change::Split(at)
                }
                Some(v1::change_range_request::Change::Move(v1::MoveReplica { from, to })) => {
                    Change::Move(Move { from: NodeId(from), to: NodeId(to) })
                }
                Some(v1::change_range_request::Change::Merge(border)) => {
                    check_split_key(&border)
                        .map_err(|error| Status::invalid_argument(error.to_string()))?;
                    Change::Merge(border)
                }
                None => return Err(Status::invalid_argument("the request names no change")),
            };
        let cohorts = self.changes.change(CohortId(cohort), &change).await;
        let cohorts = cohorts.map_err(|refused| match &refused {
            Refused::Invalid(reason) => Status::invalid_argument(reason),
            Refused::NotNow(reason) => Status::failed_precondition(reason),
            Refused::Unknown(reason) => Status::unavailable(reason),
        })?;
        let cohorts = cohorts.into_iter().map(|cohort| cohort.0).collect();
        Ok(Response::new(v1::ChangeRangeResponse { cohorts }))
    }

    async fn set_draining(
        &self,
        request: Request<v1::SetDrainingRequest>,
    ) -> Result<Response<v1::SetDrainingResponse>, Status> {
        let v1::SetDrainingRequest { node, draining } = request.into_inner();
        self.leaves.set_draining(NodeId(node), draining).await.map_err(leave_status)?;
        Ok(Response::new(v1::SetDrainingResponse {}))
    }

    async fn remove_node(
        &self,
        request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        let v1::RemoveNodeRequest { node } = request.into_inner();
        self.leaves.remove(NodeId(node)).await.map_err(leave_status)?;
        Ok(Response::new(v1::RemoveNodeResponse {}))
    }

    async fn set_faults(
        &self,
        request: Request<v1::SetFaultsRequest>,
    ) -> Result<Response<v1::SetFaultsResponse>, Status> {
        let Some(faults) = &self.faults else {
            let reason = "the node was not started with --allow-faults";
            return Err(Status::failed_precondition(reason));
        };
        let asked = FaultSet::read(self.description.node, request.into_inner());
        faults.set(asked.map_err(Status::invalid_argument)?);
        Ok(Response::new(v1::SetFaultsResponse {}))
    }
}

/// Describes the cohorts here that have ended or have successors.
fn successions(routes: &Routes) -> Vec<v1::Succession> {
    let known = |cohort| -> Vec<u64> {
        successors(&routes.configs, cohort).into_iter().map(|config| config.cohort.0).collect()
    };
    let here = routes.hosted.iter().map(|(&cohort, hosted)| v1::Succession {
        cohort: cohort.0,
        is_sealed: hosted.table.is_sealed(),
        successors: known(cohort),
    });
    here.filter(|it| it.is_sealed || !it.successors.is_empty()).collect()
}

fn peer_status(peer: PeerState) -> v1::PeerStatus {
    let lane = |sent: Sent| {
        Some(v1::LaneStatus { frames: sent.frames, messages: sent.messages, bytes: sent.bytes })
    };
    v1::PeerStatus {
        node: peer.node.0,
        connected: peer.connected,
        round_trip_us: peer
            .round_trip
            .map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        queued_bytes: peer.queued_bytes as u64,
        data: lane(peer.data),
        heartbeat: lane(peer.heartbeat),
    }
}

fn replica_status(cohort: &HostedCohort) -> v1::ReplicaStatus {
    let status: ReplicaStatus = cohort.replica.status();
    let range = cohort.descriptor.range.clone();
    v1::ReplicaStatus {
        cohort: status.cohort.0,
        protocol: status.protocol.name().to_owned(),
        start: range.start,
        end: range.end,
        role: status.role.to_string(),
        leader: status.leader.map_or(0, |node| node.0),
        epoch: status.epoch,
        last: Some(status.last.into()),
        durable: Some(status.durable.into()),
        committed: Some(status.committed.into()),
        applied: Some(status.applied.into()),
        purged: Some(status.purged.into()),
        replicas: status.replicas.into_iter().map(|node| node.0).collect(),
        progress: status
            .progress
            .into_iter()
            .map(|(node, lsn)| v1::Progress { node: node.0, matched: Some(lsn.into()) })
            .collect(),
        measures: Some(measures(status.measures)),
    }
}

fn measures(measures: Measures) -> v1::Measures {
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    v1::Measures {
        takeovers: measures.takeovers,
        last_takeover_us: measures.last_takeover.map(micros),
        catch_ups: measures.catch_ups,
        longest_write_stall_us: measures.longest_write_stall.map(micros),
        beacons: measures.beacons,
    }
}

fn leave_status(error: LeaveError) -> Status {
    match error {
        LeaveError::Invalid(reason) => Status::invalid_argument(reason),
        LeaveError::NotNow(reason) => Status::failed_precondition(reason),
        LeaveError::Coordinator(error) => Status::unavailable(error.to_string()),
    }
}

fn replica_status_error(error: ReplicaError) -> Status {
    Status::failed_precondition(error.to_string())
}
