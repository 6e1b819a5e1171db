//! One node, spoken to in the wire format alone.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use trireme_proto::v1;
use trireme_proto::v1::admin_client::AdminClient;
use trireme_proto::v1::kv_client::KvClient;
use trireme_proto::v1::request::Operation;
use trireme_proto::v1::response::Result as Answer;

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Requests that may wait to be sent.
const QUEUE: usize = 64;

/// A connection to one node.
pub(crate) struct Wire {
    pub(crate) channel: Channel,
    pub(crate) kv: KvClient<Channel>,
}

/// An open stream of requests and answers.
pub(crate) struct WireStream {
    requests: mpsc::Sender<v1::RequestFrame>,
    answers: Streaming<v1::ResponseFrame>,
    waiting: Vec<v1::Response>,
}

impl Wire {
    pub(crate) async fn connect(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.timeout(ANSWER_TIMEOUT).connect().await.unwrap();
        Self { kv: KvClient::new(channel.clone()), channel }
    }

    /// Makes one request on a stream of its own.
    pub(crate) async fn call(&mut self, operation: Operation) -> Answer {
        self.send(1, 0, Some(operation)).await
    }

    /// Makes one request on a stream of its own, as it stands.
    pub(crate) async fn send(
        &mut self,
        id: u64,
        timeout_ms: u64,
        operation: Option<Operation>,
    ) -> Answer {
        let mut stream = self.open().await;
        stream.send(id, timeout_ms, operation).await;
        let (answered, answer) = stream.next().await.expect("the request is answered");
        assert_eq!(answered, id);
        answer
    }

    pub(crate) async fn open(&mut self) -> WireStream {
        let (requests, queue) = mpsc::channel(QUEUE);
        let answers = self.kv.batch(ReceiverStream::new(queue)).await.unwrap().into_inner();
        WireStream { requests, answers, waiting: Vec::new() }
    }

    pub(crate) async fn routes(&mut self) -> v1::RouteTable {
        self.kv.routes(v1::RoutesRequest {}).await.unwrap().into_inner()
    }

    pub(crate) async fn transfer(&mut self, cohort: u64, to: u64) -> Result<(), Status> {
        let request = v1::TransferLeaderRequest { cohort, to };
        AdminClient::new(self.channel.clone()).transfer_leader(request).await.map(drop)
    }

    /// Returns the names of the services that the node tells of by reflection.
    pub(crate) async fn reflected_services(&self) -> Vec<String> {
        let mut client = ServerReflectionClient::new(self.channel.clone());
        let message_request = Some(MessageRequest::ListServices(String::new()));
        let request = ServerReflectionRequest { host: String::new(), message_request };
        let asked = client.server_reflection_info(tokio_stream::iter([request])).await;
        let answer = asked.unwrap().into_inner().message().await.unwrap().unwrap();
        match answer.message_response {
            Some(MessageResponse::ListServicesResponse(list)) => {
                list.service.into_iter().map(|service| service.name).collect()
            }
            other => panic!("{other:?}"),
        }
    }
}

impl WireStream {
    /// Sends a request in a frame of its own.
    pub(crate) async fn send(&self, id: u64, timeout_ms: u64, operation: Option<Operation>) {
        let requests = vec![v1::Request { id, timeout_ms, operation }];
        self.requests.send(v1::RequestFrame { requests }).await.unwrap();
    }

    /// Returns the next answer and the number of its request; `None` once the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<(u64, Answer)> {
        while self.waiting.is_empty() {
            let frame = tokio::time::timeout(ANSWER_TIMEOUT, self.answers.message()).await;
            self.waiting = frame.expect("an answer in time").unwrap()?.responses;
        }
        let response = self.waiting.remove(0);
        Some((response.id, response.result.unwrap()))
    }
}

pub(crate) fn put(key: &str, value: &str, route: Option<&v1::RangeRoute>) -> Operation {
    Operation::Put(v1::PutRequest {
        route: route.map(taken),
        key: key.as_bytes().to_vec().into(),
        value: value.as_bytes().to_vec().into(),
        ..Default::default()
    })
}

pub(crate) fn put_if_absent(key: &str, value: &str, route: Option<&v1::RangeRoute>) -> Operation {
    let Operation::Put(put) = put(key, value, route) else { unreachable!("it is a put") };
    let condition = Some(v1::condition::Condition::Absent(true));
    Operation::Put(v1::PutRequest { condition: Some(v1::Condition { condition }), ..put })
}

pub(crate) fn get(key: &str, route: Option<&v1::RangeRoute>) -> Operation {
    let key = key.as_bytes().to_vec().into();
    Operation::Get(v1::GetRequest { route: route.map(taken), key, ..Default::default() })
}

pub(crate) fn scan(start: &str, route: Option<&v1::RangeRoute>) -> Operation {
    let start = start.as_bytes().to_vec().into();
    Operation::Scan(v1::ScanRequest { route: route.map(taken), start, ..Default::default() })
}

fn taken(route: &v1::RangeRoute) -> v1::Route {
    v1::Route { cohort: route.cohort, epoch: route.epoch }
}

/// Returns the error that a request was answered with.
#[track_caller]
pub(crate) fn error_of(answer: Answer) -> v1::Error {
    match answer {
        Answer::Error(error) => error,
        other => panic!("not refused: {other:?}"),
    }
}

/// Returns the one range that holds a key.
#[track_caller]
pub(crate) fn route_of<'a>(table: &'a v1::RouteTable, key: &[u8]) -> &'a v1::RangeRoute {
    let holds = |range: &&v1::RangeRoute| {
        range.start[..] <= *key && range.end.as_ref().is_none_or(|end| *key < end[..])
    };
    let mut holding = table.ranges.iter().filter(holds);
    let found = holding.next().expect("a range holds the key");
    assert_eq!(holding.next(), None, "two ranges hold the key");
    found
}
