//! etcd's KV service.

use std::pin::Pin;
use std::sync::Arc;

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService,
    PbPutRequest, PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse,
    PbResponseHeader, PbTxnRequest, PbTxnResponse,
};
use futures::Stream;
use tonic::{Request, Response, Status};

use super::command::{Command, Outcome};
use super::counters::count;
use super::engine::Engine;
use super::requests;

pub(super) struct KvService(pub(super) Arc<Engine>);

type Answer<T> = Result<Response<T>, Status>;

impl KvService {
    /// Says who answers. The revision is already what the request saw.
    fn sign(&self, header: &mut Option<PbResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = self.0.header(revision);
    }
}

#[tonic::async_trait]
impl PbKvService for KvService {
    type RangeStreamStream =
        Pin<Box<dyn Stream<Item = Result<PbRangeStreamResponse, Status>> + Send>>;

    async fn range(&self, request: Request<PbRangeRequest>) -> Answer<PbRangeResponse> {
        count(&self.0.counters.ranges);
        let request = request.into_inner();
        requests::check_range(&request)?;
        let store = self.0.store();
        let mut response = requests::range(&store, &request, store.revision())?;
        drop(store);
        self.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn range_stream(
        &self,
        _request: Request<PbRangeRequest>,
    ) -> Answer<Self::RangeStreamStream> {
        Err(super::others::unimplemented("etcdserverpb.KV/RangeStream"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Answer<PbPutResponse> {
        count(&self.0.counters.writes);
        let request = request.into_inner();
        requests::check_put(&request)?;
        match self.0.submit(Command::Put(request)).await? {
            Outcome::Put(mut response) => {
                self.sign(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(mismatch(&other)),
        }
    }

    async fn delete_range(&self, request: Request<PbDeleteRequest>) -> Answer<PbDeleteResponse> {
        count(&self.0.counters.writes);
        let request = request.into_inner();
        requests::check_delete(&request)?;
        match self.0.submit(Command::Delete(request)).await? {
            Outcome::Delete(mut response) => {
                self.sign(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(mismatch(&other)),
        }
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Answer<PbTxnResponse> {
        let request = request.into_inner();
        requests::check_txn(&request)?;
        let mut response = if requests::is_read_only(&request) {
            count(&self.0.counters.ranges);
            requests::read_only_txn(&self.0.store(), &request)?
        } else {
            count(&self.0.counters.writes);
            match self.0.submit(Command::Txn(request)).await? {
                Outcome::Txn(response) => response,
                other => return Err(mismatch(&other)),
            }
        };
        self.sign(&mut response.header);
        Ok(Response::new(response))
    }

    async fn compact(&self, request: Request<PbCompactionRequest>) -> Answer<PbCompactionResponse> {
        count(&self.0.counters.writes);
        match self.0.submit(Command::Compact(request.into_inner())).await? {
            Outcome::Compacted { revision } => {
                Ok(Response::new(PbCompactionResponse { header: self.0.header(revision) }))
            }
            other => Err(mismatch(&other)),
        }
    }
}

/// An outcome of another kind than the command: a fault in this server, told to the client
/// rather than bringing everybody down.
pub(super) fn mismatch(outcome: &Outcome) -> Status {
    Status::internal(format!("the coordinator answered another command: {outcome:?}"))
}
