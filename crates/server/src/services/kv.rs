//! The service that applications use.

use std::sync::Arc;

use prost::Message;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};
use trireme_proto::v1::request::Operation;
use trireme_proto::v1::response::Result as Answer;
use trireme_proto::{convert, v1};
use trireme_types::Command;
use trireme_types::limits::SCAN_ROWS_MAX;

use crate::answers::{AnswerFrames, NodeAnswers, REQUESTS_AT_ONCE, Stall, StreamAnswers};
use crate::cohort::{PendingRead, PendingWrite, Read};
use crate::refusal;
use crate::request::{ReplyTo, TIMEOUT_MAX, deadline};
use crate::routes::Router;

/// The key-value service of one node.
pub(crate) struct KvService {
    router: Arc<Router>,
    answers: Arc<NodeAnswers>,
    /// Cancelled when no more requests are taken.
    stopped: CancellationToken,
}

impl KvService {
    pub(crate) fn new(
        router: Arc<Router>,
        answers: Arc<NodeAnswers>,
        stopped: CancellationToken,
    ) -> Self {
        Self { router, answers, stopped }
    }

    /// Makes one request of a unary call.
    async fn call(&self, operation: Operation) -> Result<Answer, Status> {
        let (caller, answer) = oneshot::channel();
        let reply = ReplyTo::Call { caller, node: self.answers.clone() };
        dispatch(&self.router, operation, deadline(Instant::now(), 0), reply);
        match tokio::time::timeout(TIMEOUT_MAX, answer).await {
            Ok(Ok(Answer::Error(error))) => Err(status(&error)),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Status::unavailable("the node is stopping")),
            Err(_) => Err(Status::deadline_exceeded("the request took too long")),
        }
    }
}

#[tonic::async_trait]
impl v1::kv_server::Kv for KvService {
    type BatchStream = AnswerFrames;

    async fn batch(
        &self,
        request: Request<Streaming<v1::RequestFrame>>,
    ) -> Result<Response<AnswerFrames>, Status> {
        let (answers, frames) = StreamAnswers::new(self.answers.clone());
        let taking = take_requests(self.router.clone(), request.into_inner(), answers);
        // The stream ends when all that it has taken is answered.
        tokio::spawn(self.stopped.clone().run_until_cancelled_owned(taking));
        Ok(Response::new(frames))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        match self.call(Operation::Get(request.into_inner())).await? {
            Answer::Get(response) => Ok(Response::new(response)),
            _ => Err(wrong_answer()),
        }
    }

    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        match self.call(Operation::Put(request.into_inner())).await? {
            Answer::Put(response) => Ok(Response::new(response)),
            _ => Err(wrong_answer()),
        }
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        match self.call(Operation::Delete(request.into_inner())).await? {
            Answer::Delete(response) => Ok(Response::new(response)),
            _ => Err(wrong_answer()),
        }
    }

    async fn scan(
        &self,
        request: Request<v1::ScanRequest>,
    ) -> Result<Response<v1::ScanResponse>, Status> {
        match self.call(Operation::Scan(request.into_inner())).await? {
            Answer::Scan(response) => Ok(Response::new(response)),
            _ => Err(wrong_answer()),
        }
    }

    async fn routes(
        &self,
        _request: Request<v1::RoutesRequest>,
    ) -> Result<Response<v1::RouteTable>, Status> {
        Ok(Response::new(self.router.table()))
    }
}

/// Takes the requests of one stream until it ends, no more at once than may be under way, and none
/// while the client leaves too many answers where they are.
async fn take_requests(
    router: Arc<Router>,
    mut frames: Streaming<v1::RequestFrame>,
    answers: Arc<StreamAnswers>,
) {
    let mut stall = Stall::new();
    loop {
        if !answers.wait_for_room(&mut stall).await {
            return;
        }
        let frame = tokio::select! {
            frame = frames.message() => frame,
            () = stall.wait(&answers) => continue,
        };
        let Ok(Some(frame)) = frame else { return };
        let mut requests = frame.requests.into_iter();
        while requests.len() > 0 {
            if !answers.wait_for_room(&mut stall).await {
                return;
            }
            let count = requests.len().min(REQUESTS_AT_ONCE);
            answers.begin(count);
            let now = Instant::now();
            for request in requests.by_ref().take(count) {
                let reply = ReplyTo::Stream { id: request.id, answers: answers.clone() };
                match request.operation {
                    Some(operation) => {
                        let deadline = deadline(now, request.timeout_ms);
                        dispatch(&router, operation, deadline, reply);
                    }
                    None => reply.refuse(refusal::invalid("a request without an operation")),
                }
            }
        }
    }
}

/// Sends a request to the queue of its cohort, or refuses it.
fn dispatch(router: &Router, operation: Operation, deadline: Instant, reply: ReplyTo) {
    match operation {
        Operation::Get(get) => dispatch_get(router, get, deadline, reply),
        Operation::Scan(scan) => dispatch_scan(router, scan, deadline, reply),
        Operation::Put(mut put) => {
            let route = put.route.take();
            dispatch_write(router, route, convert::put_command(put), deadline, reply);
        }
        Operation::Delete(mut delete) => {
            let route = delete.route.take();
            dispatch_write(router, route, convert::delete_command(delete), deadline, reply);
        }
    }
}

fn dispatch_write(
    router: &Router,
    route: Option<v1::Route>,
    command: Result<Command, convert::ConvertError>,
    deadline: Instant,
    reply: ReplyTo,
) {
    let command = match command {
        Ok(command) => command,
        Err(error) => return reply.refuse(refusal::invalid(error)),
    };
    match router.cohort_of(command.operation.key(), route.as_ref()) {
        Ok(cohort) => cohort.write(PendingWrite { command, deadline, reply }),
        Err(error) => reply.refuse(*error),
    }
}

fn dispatch_get(router: &Router, get: v1::GetRequest, deadline: Instant, reply: ReplyTo) {
    let consistency = match check_get(&get) {
        Ok(consistency) => consistency,
        Err(error) => return reply.refuse(refusal::invalid(error)),
    };
    match router.cohort_of(&get.key, get.route.as_ref()) {
        Ok(cohort) => {
            cohort.read(PendingRead { read: Read::Get(get.key), consistency, deadline, reply });
        }
        Err(error) => reply.refuse(*error),
    }
}

fn check_get(get: &v1::GetRequest) -> Result<trireme_types::Consistency, convert::ConvertError> {
    convert::check_key(&get.key)?;
    convert::consistency(get.consistency)
}

fn dispatch_scan(router: &Router, scan: v1::ScanRequest, deadline: Instant, reply: ReplyTo) {
    let asked = convert::scan_range(&scan)
        .and_then(|range| Ok((range, convert::consistency(scan.consistency)?)));
    let (asked, consistency) = match asked {
        Ok(asked) => asked,
        Err(error) => return reply.refuse(refusal::invalid(error)),
    };
    if asked.is_empty() {
        return reply.refuse(refusal::invalid(format!("no key lies in {asked}")));
    }
    match find_scan(router, &scan, &asked) {
        Ok(cohort) => {
            let range = asked.intersection(&cohort.descriptor.range);
            let limit = match scan.limit {
                0 => SCAN_ROWS_MAX,
                limit => usize::try_from(limit).unwrap_or(SCAN_ROWS_MAX).min(SCAN_ROWS_MAX),
            };
            let read = Read::Scan { range, limit, reverse: scan.reverse };
            cohort.read(PendingRead { read, consistency, deadline, reply });
        }
        Err(error) => reply.refuse(*error),
    }
}

/// Finds the cohort in whose range a scan begins: at its first key, or, in reverse, at its last.
fn find_scan(
    router: &Router,
    scan: &v1::ScanRequest,
    asked: &trireme_types::KeyRange,
) -> Result<Arc<crate::cohort::HostedCohort>, Box<v1::Error>> {
    if !scan.reverse {
        return router.cohort_of(&asked.start, scan.route.as_ref());
    }
    let routes = router.routes();
    let last = match &asked.end {
        // The last range that begins below the scan's end holds its highest key.
        Some(end) => routes.map.ranges().iter().rev().find(|entry| entry.range.start < *end),
        None => routes.map.ranges().last(),
    };
    let start = last.map(|entry| entry.range.start.clone()).unwrap_or_default();
    router.cohort_of(&start, scan.route.as_ref())
}

/// Returns an error as a gRPC status, with the error's message as details.
fn status(error: &v1::Error) -> Status {
    let code = match error.code() {
        v1::ErrorCode::Invalid => Code::InvalidArgument,
        v1::ErrorCode::StaleRoute | v1::ErrorCode::NotLeader | v1::ErrorCode::SessionGone => {
            Code::FailedPrecondition
        }
        v1::ErrorCode::Busy => Code::ResourceExhausted,
        v1::ErrorCode::Unavailable => Code::Unavailable,
        v1::ErrorCode::Expired => Code::DeadlineExceeded,
        v1::ErrorCode::Ambiguous => Code::Unknown,
        v1::ErrorCode::Internal | v1::ErrorCode::Unspecified => Code::Internal,
    };
    Status::with_details(code, error.message.clone(), error.encode_to_vec().into())
}

fn wrong_answer() -> Status {
    Status::internal("the node answered another question")
}
