//! The services that an embedded coordinator speaks in part: Maintenance and Cluster, as far as
//! `etcdctl endpoint status`, `endpoint health`, `snapshot save` and `member list` ask, and the names
//! of what it does not speak.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use etcd_client::proto::{
    PbAlarmRequest, PbAlarmResponse, PbClusterService, PbDefragmentRequest, PbDefragmentResponse,
    PbDowngradeRequest, PbDowngradeResponse, PbHashKvRequest, PbHashKvResponse, PbHashRequest,
    PbHashResponse, PbMaintenanceService, PbMember, PbMemberAddRequest, PbMemberAddResponse,
    PbMemberListRequest, PbMemberListResponse, PbMemberPromoteRequest, PbMemberPromoteResponse,
    PbMemberRemoveRequest, PbMemberRemoveResponse, PbMemberUpdateRequest, PbMemberUpdateResponse,
    PbMoveLeaderRequest, PbMoveLeaderResponse, PbSnapshotRequest, PbSnapshotResponse,
    PbStatusRequest, PbStatusResponse,
};
use futures::Stream;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Request, Response, Status};

use super::counters::count;
use super::engine::Engine;

/// The version of etcd whose API is spoken, which clients ask for before they use newer parts.
const API_VERSION: &str = "3.4.0";

/// The bytes of a backup that one message carries, as in etcd.
const SNAPSHOT_PART_BYTES: usize = 32 * 1024;

/// The name that the only member has.
const MEMBER_NAME: &str = "trireme-embedded";

type Answer<T> = Result<Response<T>, Status>;

/// Refuses a method by its name.
pub(super) fn unimplemented(method: &str) -> Status {
    Status::unimplemented(format!("the embedded coordinator does not implement {method}"))
}

pub(super) struct MaintenanceService(pub(super) Arc<Engine>);

#[tonic::async_trait]
impl PbMaintenanceService for MaintenanceService {
    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<PbSnapshotResponse, Status>> + Send>>;

    /// Tells that no alarm is raised, which is all that `etcdctl endpoint health` asks.
    async fn alarm(&self, request: Request<PbAlarmRequest>) -> Answer<PbAlarmResponse> {
        count(&self.0.counters.others);
        if request.into_inner().action != 0 {
            return Err(unimplemented("etcdserverpb.Maintenance/Alarm beyond GET"));
        }
        let header = self.0.header(self.0.store().revision());
        Ok(Response::new(PbAlarmResponse { header, alarms: Vec::new() }))
    }

    async fn status(&self, _request: Request<PbStatusRequest>) -> Answer<PbStatusResponse> {
        count(&self.0.counters.others);
        let (revision, bytes) = {
            let store = self.0.store();
            (store.revision(), i64::try_from(store.bytes()).unwrap_or(i64::MAX))
        };
        let header = self.0.header(revision);
        let raft_term = header.as_ref().map_or(0, |header| header.raft_term);
        let index = self.0.last_index();
        Ok(Response::new(PbStatusResponse {
            header,
            version: API_VERSION.to_owned(),
            db_size: bytes,
            db_size_in_use: bytes,
            leader: self.0.identity().member,
            raft_index: index,
            raft_applied_index: index,
            raft_term,
            ..PbStatusResponse::default()
        }))
    }

    async fn defragment(&self, _: Request<PbDefragmentRequest>) -> Answer<PbDefragmentResponse> {
        Err(unimplemented("etcdserverpb.Maintenance/Defragment"))
    }

    async fn hash(&self, _: Request<PbHashRequest>) -> Answer<PbHashResponse> {
        Err(unimplemented("etcdserverpb.Maintenance/Hash"))
    }

    async fn hash_kv(&self, _: Request<PbHashKvRequest>) -> Answer<PbHashKvResponse> {
        Err(unimplemented("etcdserverpb.Maintenance/HashKV"))
    }

    /// Sends the whole state, as of one moment; see [`super::backup`].
    async fn snapshot(&self, _: Request<PbSnapshotRequest>) -> Answer<Self::SnapshotStream> {
        count(&self.0.counters.others);
        let engine = Arc::clone(&self.0);
        // Encoding takes as long as there is state, and must not keep others from being answered.
        let encoding = tokio::task::spawn_blocking(move || engine.backup());
        let encoded = encoding.await.map_err(|error| Status::internal(error.to_string()))?;
        let file = Bytes::from(encoded.map_err(|error| Status::internal(error.to_string()))?);
        let parts = (0..file.len()).step_by(SNAPSHOT_PART_BYTES).map(move |at| {
            let end = file.len().min(at + SNAPSHOT_PART_BYTES);
            Ok(PbSnapshotResponse {
                remaining_bytes: (file.len() - end) as u64,
                blob: file[at..end].to_vec(),
                ..PbSnapshotResponse::default()
            })
        });
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
    }

    async fn move_leader(&self, _: Request<PbMoveLeaderRequest>) -> Answer<PbMoveLeaderResponse> {
        Err(unimplemented("etcdserverpb.Maintenance/MoveLeader"))
    }

    async fn downgrade(&self, _: Request<PbDowngradeRequest>) -> Answer<PbDowngradeResponse> {
        Err(unimplemented("etcdserverpb.Maintenance/Downgrade"))
    }
}

pub(super) struct ClusterService {
    pub(super) engine: Arc<Engine>,
    pub(super) address: SocketAddr,
}

#[tonic::async_trait]
impl PbClusterService for ClusterService {
    async fn member_list(&self, _: Request<PbMemberListRequest>) -> Answer<PbMemberListResponse> {
        count(&self.engine.counters.others);
        let member = PbMember {
            id: self.engine.identity().member,
            name: MEMBER_NAME.to_owned(),
            client_ur_ls: vec![format!("http://{}", self.address)],
            ..PbMember::default()
        };
        let header = self.engine.header(self.engine.store().revision());
        Ok(Response::new(PbMemberListResponse { header, members: vec![member] }))
    }

    async fn member_add(&self, _: Request<PbMemberAddRequest>) -> Answer<PbMemberAddResponse> {
        Err(unimplemented("etcdserverpb.Cluster/MemberAdd"))
    }

    async fn member_remove(
        &self,
        _: Request<PbMemberRemoveRequest>,
    ) -> Answer<PbMemberRemoveResponse> {
        Err(unimplemented("etcdserverpb.Cluster/MemberRemove"))
    }

    async fn member_update(
        &self,
        _: Request<PbMemberUpdateRequest>,
    ) -> Answer<PbMemberUpdateResponse> {
        Err(unimplemented("etcdserverpb.Cluster/MemberUpdate"))
    }

    async fn member_promote(
        &self,
        _: Request<PbMemberPromoteRequest>,
    ) -> Answer<PbMemberPromoteResponse> {
        Err(unimplemented("etcdserverpb.Cluster/MemberPromote"))
    }
}

/// A service of etcd of which nothing is spoken: refuses each method by its name.
macro_rules! refusing_service {
    ($type:ident, $name:literal) => {
        #[derive(Clone, Copy, Debug)]
        pub(super) struct $type;

        impl NamedService for $type {
            const NAME: &'static str = $name;
        }

        impl Service<http::Request<Body>> for $type {
            type Response = http::Response<Body>;
            type Error = Infallible;
            type Future = Ready<Result<Self::Response, Infallible>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<Body>) -> Self::Future {
                let method = request.uri().path().trim_start_matches('/');
                ready(Ok(unimplemented(method).into_http()))
            }
        }
    };
}

refusing_service!(AuthService, "etcdserverpb.Auth");
refusing_service!(LockService, "v3lockpb.Lock");
refusing_service!(ElectionService, "v3electionpb.Election");
