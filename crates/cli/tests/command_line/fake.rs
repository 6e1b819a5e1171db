//! A cluster in one process: nodes that share one map of rows, and that fail when a test says so.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use trireme_proto::convert;
use trireme_proto::v1::admin_server::{Admin, AdminServer};
use trireme_proto::v1::kv_server::{Kv, KvServer};
use trireme_proto::v1::request::Operation;
use trireme_proto::v1::{self, ErrorCode, response};
use trireme_types::{Condition, KeyRange, Lsn, RangeMap, Version};

/// Rows in a page, whatever is asked for, so that scans have many pages.
const PAGE_ROWS: usize = 10;

/// What the nodes hold and how they fail.
pub(crate) struct State {
    map: RangeMap,
    pub(crate) rows: BTreeMap<Bytes, (Bytes, u64)>,
    version: u64,
    /// Keys whose writes are refused for good.
    pub(crate) refused: Vec<Bytes>,
    /// How many more requests are turned away, to be tried again.
    pub(crate) unavailable: u64,
    /// Values whose puts are turned away this many more times, to be tried again.
    pub(crate) slow: HashMap<Bytes, u64>,
    /// Cohorts that have no leader.
    pub(crate) leaderless: Vec<u64>,
    /// Operations that were done, by kind.
    pub(crate) done: HashMap<&'static str, u64>,
    /// The faults that nodes were asked for.
    pub(crate) faults: BTreeMap<u64, v1::SetFaultsRequest>,
    addresses: Vec<SocketAddr>,
}

/// The cluster; dropping it stops its nodes.
pub(crate) struct Cluster {
    state: Arc<Mutex<State>>,
    runtimes: Vec<Option<Runtime>>,
}

#[derive(Clone)]
struct FakeNode {
    id: u64,
    state: Arc<Mutex<State>>,
}

impl Cluster {
    /// Starts nodes that all hold ranges cut at `splits`, the first of which leads all cohorts.
    pub(crate) fn start(nodes: u64, splits: &[&'static str]) -> Self {
        let splits: Vec<Bytes> = splits.iter().map(|s| Bytes::from_static(s.as_bytes())).collect();
        let state = State {
            map: RangeMap::from_splits(&splits).unwrap(),
            rows: BTreeMap::new(),
            version: 0,
            refused: Vec::new(),
            unavailable: 0,
            slow: HashMap::new(),
            leaderless: Vec::new(),
            done: HashMap::new(),
            faults: BTreeMap::new(),
            addresses: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let runtimes = (1..=nodes).map(|id| Some(start_node(id, &state))).collect();
        Self { state, runtimes }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Ends a node and all its connections at once.
    pub(crate) fn kill_node(&mut self, id: u64) {
        if let Some(runtime) = self.runtimes[id as usize - 1].take() {
            runtime.shutdown_background();
        }
    }

    /// Returns the endpoints as they are given to a command.
    pub(crate) fn endpoints(&self) -> String {
        let state = self.state();
        state.addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for id in 1..=self.runtimes.len() as u64 {
            self.kill_node(id);
        }
    }
}

fn start_node(id: u64, state: &Arc<Mutex<State>>) -> Runtime {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0))).unwrap();
    state.lock().addresses.push(listener.local_addr().unwrap());
    let node = FakeNode { id, state: Arc::clone(state) };
    let server = tonic::transport::Server::builder()
        .add_service(KvServer::new(node.clone()))
        .add_service(AdminServer::new(node));
    // Else answers wait for the acknowledgement of those before them.
    let connections = TcpListenerStream::new(listener)
        .map(|connection| connection.and_then(|c| c.set_nodelay(true).map(|()| c)));
    runtime.spawn(server.serve_with_incoming(connections));
    runtime
}

impl State {
    pub(crate) fn insert(&mut self, key: &'static [u8], value: &'static [u8]) {
        self.version += 1;
        self.rows.insert(key.into(), (value.into(), self.version));
    }

    fn answer(&mut self, operation: Operation) -> response::Result {
        if self.unavailable > 0 {
            self.unavailable -= 1;
            return error(ErrorCode::Unavailable);
        }
        match operation {
            Operation::Get(get) => self.get(&get),
            Operation::Put(put) => self.put(put),
            Operation::Delete(delete) => self.delete(&delete),
            Operation::Scan(scan) => self.scan(&scan),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    fn get(&mut self, get: &v1::GetRequest) -> response::Result {
        self.count("get");
        let row = self.rows.get(&get.key).map(|(value, version)| v1::Row {
            key: get.key.clone(),
            value: value.clone(),
            version: *version,
        });
        let timeline = get.consistency == i32::from(v1::Consistency::Timeline);
        let freshness = timeline
            .then(|| v1::Freshness { applied: Some(Lsn::new(2, 9).into()), age_ms: Some(7) });
        response::Result::Get(v1::GetResponse { row, freshness })
    }

    fn put(&mut self, put: v1::PutRequest) -> response::Result {
        use v1::put_response::Outcome;
        self.count("put");
        let (key, value) = (put.key.clone(), put.value.clone());
        if self.refused.contains(&key) {
            return error(ErrorCode::Invalid);
        }
        if let Some(left) = self.slow.get_mut(&value).filter(|left| **left > 0) {
            *left -= 1;
            return error(ErrorCode::Unavailable);
        }
        let command = convert::put_command(put).unwrap();
        let trireme_types::Operation::Put { condition, .. } = command.operation else {
            unreachable!("a put makes a put")
        };
        let outcome = if let Some(failed) = self.failed(&key, condition) {
            Outcome::ConditionFailed(failed)
        } else {
            self.version += 1;
            self.rows.insert(key, (value, self.version));
            Outcome::Version(self.version)
        };
        response::Result::Put(v1::PutResponse { outcome: Some(outcome) })
    }

    fn delete(&mut self, delete: &v1::DeleteRequest) -> response::Result {
        use v1::delete_response::Outcome;
        self.count("delete");
        let command = convert::delete_command(delete.clone()).unwrap();
        let trireme_types::Operation::Delete { key, condition } = command.operation else {
            unreachable!("a delete makes a delete")
        };
        let outcome = match self.failed(&key, condition) {
            Some(failed) => Outcome::ConditionFailed(failed),
            None => Outcome::Existed(self.rows.remove(&key).is_some()),
        };
        response::Result::Delete(v1::DeleteResponse { outcome: Some(outcome) })
    }

    fn failed(&self, key: &Bytes, condition: Condition) -> Option<v1::ConditionFailed> {
        let current = self.rows.get(key).map(|(_, version)| *version);
        let holds = match condition {
            Condition::None => true,
            Condition::Absent => current.is_none(),
            Condition::Version(Version(version)) => current == Some(version),
        };
        (!holds).then_some(v1::ConditionFailed { current })
    }

    fn scan(&mut self, scan: &v1::ScanRequest) -> response::Result {
        self.count("scan");
        let cohort = scan.route.map_or(0, |route| route.cohort);
        let range = self.map.of_cohort(trireme_types::CohortId(cohort)).unwrap().range.clone();
        let asked = KeyRange { start: scan.start.clone(), end: scan.end.clone() };
        let mut covered = range.intersection(&asked);
        let inside = self.rows.iter().filter(|(key, _)| covered.contains(key));
        let mut rows: Vec<v1::Row> = inside
            .map(|(key, (value, version))| v1::Row {
                key: key.clone(),
                value: value.clone(),
                version: *version,
            })
            .collect();
        if scan.reverse {
            rows.reverse();
        }
        let limit = PAGE_ROWS.min(scan.limit as usize);
        if rows.len() > limit {
            rows.truncate(limit);
            let last = rows[limit - 1].key.clone();
            if scan.reverse {
                covered.start = last;
            } else {
                covered.end = Some([&last[..], &[0]].concat().into());
            }
        }
        let (covered_start, covered_end) = (covered.start, covered.end);
        response::Result::Scan(v1::ScanResponse {
            rows,
            covered_start,
            covered_end,
            freshness: None,
        })
    }

    fn route_table(&self) -> v1::RouteTable {
        let nodes = 1..=self.addresses.len() as u64;
        let route = |range: &trireme_types::RangeDescriptor| v1::RangeRoute {
            cohort: range.cohort.0,
            epoch: range.epoch,
            start: range.range.start.clone(),
            end: range.range.end.clone(),
            protocol: "raft".to_owned(),
            replicas: nodes.clone().collect(),
            leader: u64::from(!self.leaderless.contains(&range.cohort.0)),
            session_start: 0,
        };
        v1::RouteTable {
            cluster: 77,
            version: 1,
            ranges: self.map.ranges().iter().map(route).collect(),
            nodes: nodes
                .clone()
                .zip(&self.addresses)
                .map(|(id, address)| v1::Node { id, address: address.to_string(), alive: true })
                .collect(),
        }
    }

    fn node_status(&self, node: u64) -> v1::NodeStatus {
        let replica = |range: &trireme_types::RangeDescriptor| {
            let leads = node == 1 && !self.leaderless.contains(&range.cohort.0);
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

fn error(code: ErrorCode) -> response::Result {
    let message = "on purpose".to_owned();
    response::Result::Error(v1::Error { code: code.into(), message, ..Default::default() })
}

fn unary<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("commands do not use it"))
}

#[tonic::async_trait]
impl Kv for FakeNode {
    type BatchStream = ReceiverStream<Result<v1::ResponseFrame, Status>>;

    async fn batch(
        &self,
        frames: Request<Streaming<v1::RequestFrame>>,
    ) -> Result<Response<Self::BatchStream>, Status> {
        let (answers, receiver) = mpsc::channel(64);
        let node = self.clone();
        let mut frames = frames.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = frames.next().await {
                let answer = |request: v1::Request| {
                    let operation = request.operation.expect("every request has an operation");
                    let result = node.state.lock().answer(operation);
                    v1::Response { id: request.id, result: Some(result) }
                };
                let responses = frame.requests.into_iter().map(answer).collect();
                if answers.send(Ok(v1::ResponseFrame { responses })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        unary()
    }

    async fn put(&self, _: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        unary()
    }

    async fn delete(
        &self,
        _: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        unary()
    }

    async fn scan(
        &self,
        _: Request<v1::ScanRequest>,
    ) -> Result<Response<v1::ScanResponse>, Status> {
        unary()
    }

    async fn routes(
        &self,
        _: Request<v1::RoutesRequest>,
    ) -> Result<Response<v1::RouteTable>, Status> {
        Ok(Response::new(self.state.lock().route_table()))
    }
}

#[tonic::async_trait]
impl Admin for FakeNode {
    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::NodeStatus>, Status> {
        Ok(Response::new(self.state.lock().node_status(self.id)))
    }

    async fn transfer_leader(
        &self,
        _: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        unary()
    }

    async fn change_range(
        &self,
        request: Request<v1::ChangeRangeRequest>,
    ) -> Result<Response<v1::ChangeRangeResponse>, Status> {
        match request.into_inner() {
            v1::ChangeRangeRequest { cohort: 1, .. } => {
                Ok(Response::new(v1::ChangeRangeResponse { cohorts: vec![1] }))
            }
            v1::ChangeRangeRequest { cohort, .. } => {
                Err(Status::invalid_argument(format!("there is no cohort c{cohort}")))
            }
        }
    }

    async fn knowledge(
        &self,
        _request: Request<v1::KnowledgeRequest>,
    ) -> Result<Response<v1::KnowledgeResponse>, Status> {
        unary()
    }

    async fn set_faults(
        &self,
        request: Request<v1::SetFaultsRequest>,
    ) -> Result<Response<v1::SetFaultsResponse>, Status> {
        self.state.lock().faults.insert(self.id, request.into_inner());
        Ok(Response::new(v1::SetFaultsResponse {}))
    }
}
