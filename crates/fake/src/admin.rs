//! What a fake node answers administrators.

use bytes::Bytes;
use tonic::{Request, Response, Status};
use trireme_proto::v1;
use trireme_proto::v1::admin_server::Admin;
use trireme_types::{CohortId, KeyRange, Lsn};

use super::{FakeNode, State};

#[tonic::async_trait]
impl Admin for FakeNode {
    async fn status(
        &self,
        _request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::NodeStatus>, Status> {
        Ok(Response::new(self.state.lock().node_status(self.id)))
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
        request: Request<v1::ChangeRangeRequest>,
    ) -> Result<Response<v1::ChangeRangeResponse>, Status> {
        let v1::ChangeRangeRequest { cohort, change } = request.into_inner();
        let mut state = self.state.lock();
        if state.map.of_cohort(CohortId(cohort)).is_none() {
            return Err(Status::invalid_argument(format!("there is no cohort c{cohort}")));
        }
        if state.leaders.get(&cohort) != Some(&self.id) {
            return Err(Status::failed_precondition("it does not lead"));
        }
        let cohorts = match change {
            Some(v1::change_range_request::Change::Split(at)) => state.cut(cohort, &at),
            Some(v1::change_range_request::Change::Merge(border)) => state.join(cohort, &border),
            _ => vec![cohort],
        };
        Ok(Response::new(v1::ChangeRangeResponse { cohorts }))
    }

    async fn set_faults(
        &self,
        request: Request<v1::SetFaultsRequest>,
    ) -> Result<Response<v1::SetFaultsResponse>, Status> {
        self.state.lock().asked_faults.insert(self.id, request.into_inner());
        Ok(Response::new(v1::SetFaultsResponse {}))
    }

    async fn set_draining(
        &self,
        _request: Request<v1::SetDrainingRequest>,
    ) -> Result<Response<v1::SetDrainingResponse>, Status> {
        Err(Status::unimplemented("its replicas stay where they are"))
    }

    async fn remove_node(
        &self,
        _request: Request<v1::RemoveNodeRequest>,
    ) -> Result<Response<v1::RemoveNodeResponse>, Status> {
        Err(Status::unimplemented("its nodes stay"))
    }

    async fn knowledge(
        &self,
        _request: Request<v1::KnowledgeRequest>,
    ) -> Result<Response<v1::KnowledgeResponse>, Status> {
        Err(Status::unimplemented("clients do not ask for it"))
    }
}

impl State {
    /// Cuts the range of a cohort in two, which the same node leads.
    fn cut(&mut self, cohort: u64, at: &Bytes) -> Vec<u64> {
        let whole = &self.map.of_cohort(CohortId(cohort)).unwrap().range;
        let lower = KeyRange { start: whole.start.clone(), end: Some(at.clone()) };
        let upper = KeyRange { start: at.clone(), end: whole.end.clone() };
        let next = self.leaders.keys().max().unwrap() + 1;
        let halves = [(lower, CohortId(next)), (upper, CohortId(next + 1))];
        self.map = self.map.replace(&[CohortId(cohort)], halves).unwrap().unwrap();
        for leaders in [&mut self.leaders, &mut self.told_leaders] {
            let leader = leaders[&cohort];
            leaders.extend([(next, leader), (next + 1, leader)]);
        }
        vec![next, next + 1]
    }

    /// Has the range of a cohort and the one above it be one, which the same node leads.
    fn join(&mut self, cohort: u64, border: &Bytes) -> Vec<u64> {
        let lower = self.map.of_cohort(CohortId(cohort)).unwrap().range.clone();
        let upper = self.map.find(border).clone();
        let next = self.leaders.keys().max().unwrap() + 1;
        let one = [(KeyRange { end: upper.range.end.clone(), ..lower }, CohortId(next))];
        self.map = self.map.replace(&[CohortId(cohort), upper.cohort], one).unwrap().unwrap();
        for leaders in [&mut self.leaders, &mut self.told_leaders] {
            let leader = leaders[&cohort];
            leaders.insert(next, leader);
        }
        vec![next]
    }

    /// Describes a node whose replicas are in epoch 3, and as many entries behind as its number is high.
    fn node_status(&self, node: u64) -> v1::NodeStatus {
        let replica = |range: &trireme_types::RangeDescriptor| {
            let leads = self.leaders.get(&range.cohort.0) == Some(&node);
            let at = |seq| Some(Lsn::new(3, seq).into());
            v1::ReplicaStatus {
                cohort: range.cohort.0,
                protocol: "raft".to_owned(),
                role: if leads { "leader" } else { "follower" }.to_owned(),
                epoch: 3,
                last: at(12),
                durable: at(12),
                committed: at(11),
                applied: at(12 - node),
                ..Default::default()
            }
        };
        v1::NodeStatus {
            cluster: 77,
            node,
            address: self.addresses[node as usize - 1].to_string(),
            version: "0.1.0".to_owned(),
            engine: "lsm".to_owned(),
            durability: "fsync".to_owned(),
            replicas: self.map.ranges().iter().map(replica).collect(),
            log: Some(v1::LogStatus { scans: 1, syncs: 40 + node, ..Default::default() }),
            ..Default::default()
        }
    }
}
