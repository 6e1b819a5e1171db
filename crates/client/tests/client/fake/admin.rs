//! What a fake node says to administrators.

use tonic::{Request, Response, Status};
use trireme_proto::v1;
use trireme_proto::v1::admin_server::Admin;

use super::FakeNode;

#[tonic::async_trait]
impl Admin for FakeNode {
    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::NodeStatus>, Status> {
        Ok(Response::new(v1::NodeStatus { node: self.id, ..Default::default() }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let v1::TransferLeaderRequest { cohort, to } = request.into_inner();
        let mut state = self.state.lock();
        if state.leaders.get(&cohort) != Some(&self.id) {
            return Err(Status::failed_precondition("it does not lead"));
        }
        state.leaders.insert(cohort, to);
        state.told_leaders.insert(cohort, to);
        Ok(Response::new(v1::TransferLeaderResponse {}))
    }

    async fn change_range(
        &self,
        _request: Request<v1::ChangeRangeRequest>,
    ) -> Result<Response<v1::ChangeRangeResponse>, Status> {
        Err(Status::unimplemented("its ranges stay as they are"))
    }

    async fn set_faults(
        &self,
        _request: Request<v1::SetFaultsRequest>,
    ) -> Result<Response<v1::SetFaultsResponse>, Status> {
        Err(Status::failed_precondition("no faults here"))
    }

    async fn knowledge(
        &self,
        _request: Request<v1::KnowledgeRequest>,
    ) -> Result<Response<v1::KnowledgeResponse>, Status> {
        Err(Status::unimplemented("clients do not ask for it"))
    }
}
