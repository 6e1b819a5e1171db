//! etcd's Lease service.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesRequest, PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse,
    PbLeaseService, PbLeaseStatus, PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
};
use futures::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::command::{Command, Outcome};
use super::counters::count;
use super::engine::Engine;
use super::fault::Refusal;
use super::kv::mismatch;

/// The longest time to live, in seconds, as in etcd.
const LEASE_TTL_MAX: i64 = 9_000_000_000;

/// The most answers to keep-alives that wait for their stream to be read.
const KEEP_ALIVE_ANSWERS_MAX: usize = 16;

pub(super) struct LeaseService {
    pub(super) engine: Arc<Engine>,
    pub(super) stopping: watch::Receiver<bool>,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl PbLeaseService for LeaseService {
    type LeaseKeepAliveStream =
        Pin<Box<dyn Stream<Item = Result<PbLeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Answer<PbLeaseGrantResponse> {
        count(&self.engine.counters.lease_requests);
        let mut request = request.into_inner();
        if request.ttl > LEASE_TTL_MAX {
            return Err(Refusal::LeaseTtlTooLarge.into());
        }
        request.ttl = request.ttl.max(self.engine.options().lease_ttl_min);
        if request.id == 0 {
            request.id = self.engine.free_lease_id();
        }
        match self.engine.submit(Command::Grant(request)).await? {
            Outcome::Granted { id, ttl, revision } => {
                let header = self.engine.header(revision);
                Ok(Response::new(PbLeaseGrantResponse { header, id, ttl, error: String::new() }))
            }
            other => Err(mismatch(&other)),
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Answer<PbLeaseRevokeResponse> {
        count(&self.engine.counters.lease_requests);
        match self.engine.submit(Command::Revoke(request.into_inner())).await? {
            Outcome::Revoked { revision, .. } => {
                Ok(Response::new(PbLeaseRevokeResponse { header: self.engine.header(revision) }))
            }
            other => Err(mismatch(&other)),
        }
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Answer<Self::LeaseKeepAliveStream> {
        let (answers, stream) = mpsc::channel(KEEP_ALIVE_ANSWERS_MAX);
        let requests = request.into_inner();
        let engine = Arc::clone(&self.engine);
        tokio::spawn(keep_alive(engine, requests, answers, self.stopping.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Answer<PbLeaseTimeToLiveResponse> {
        count(&self.engine.counters.lease_requests);
        let PbLeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let store = self.engine.store();
        let header = self.engine.header(store.revision());
        let remaining = self.engine.lessor().lock().remaining(id, Instant::now());
        let mut response =
            PbLeaseTimeToLiveResponse { header, id, ttl: -1, granted_ttl: 0, keys: Vec::new() };
        if let (Some(lease), Some((left, granted))) = (store.leases().get(&id), remaining) {
            response.ttl = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            response.granted_ttl = granted;
            if keys {
                response.keys = lease.keys.iter().map(|key| key.to_vec()).collect();
            }
        }
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        _request: Request<PbLeaseLeasesRequest>,
    ) -> Answer<PbLeaseLeasesResponse> {
        count(&self.engine.counters.lease_requests);
        let header = self.engine.header(self.engine.store().revision());
        let leases = self.engine.lessor().lock().by_deadline();
        let leases = leases.into_iter().map(|id| PbLeaseStatus { id }).collect();
        Ok(Response::new(PbLeaseLeasesResponse { header, leases }))
    }
}

/// Answers the keep-alives of one stream until it ends or the server stops.
async fn keep_alive(
    engine: Arc<Engine>,
    mut requests: Streaming<PbLeaseKeepAliveRequest>,
    answers: mpsc::Sender<Result<PbLeaseKeepAliveResponse, Status>>,
    mut stopping: watch::Receiver<bool>,
) {
    loop {
        let request = tokio::select! {
            request = requests.message() => request,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        let Ok(Some(PbLeaseKeepAliveRequest { id })) = request else { return };
        count(&engine.counters.keep_alives);
        let revision = engine.store().revision();
        // A time of 0 is etcd's way of saying that there is no such lease.
        let ttl = engine.lessor().lock().keep_alive(id, Instant::now()).unwrap_or(0);
        let header = engine.header(revision);
        let answer = PbLeaseKeepAliveResponse { header, id, ttl };
        if answers.send(Ok(answer)).await.is_err() {
            return;
        }
    }
}
