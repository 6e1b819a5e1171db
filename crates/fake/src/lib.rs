//! A cluster in one process that does what real nodes may do to a client: it moves leaders and
//! ranges, is busy, breaks streams, loses answers and dies, when a test asks for it. Its rows are one
//! map, and it applies a write once however often it is sent, as real cohorts do. For tests of the
//! client and of the commands.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "it is a part of tests, with a few nodes"
)]

mod admin;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use trireme_proto::convert;
use trireme_proto::v1::admin_server::AdminServer;
use trireme_proto::v1::kv_server::{Kv, KvServer};
use trireme_proto::v1::request::Operation;
use trireme_proto::v1::{self, ErrorCode, response};
use trireme_types::limits::SESSION_OUTCOMES_MAX;
use trireme_types::{
    CohortId, Condition, Consistency, KeyRange, NodeId, RangeMap, Version, first_after,
};

/// What a node does to one request instead of answering it properly.
#[allow(clippy::large_enum_variant, reason = "a few in a test")]
#[derive(Clone, Debug)]
pub enum Fault {
    /// Refuses it with this code.
    Refuse(ErrorCode),
    /// Refuses it as busy.
    Busy {
        /// After how many milliseconds the client is to try again.
        retry_after_ms: u64,
    },
    /// Does it or not, and answers that the outcome is unknown.
    Ambiguous {
        /// Whether it is done.
        apply: bool,
    },
    /// Does it or not, and breaks the stream.
    Break {
        /// Whether it is done.
        apply: bool,
    },
    /// Does it or not, and never answers.
    Lose {
        /// Whether it is done.
        apply: bool,
    },
    /// Does it and answers late.
    Delay(Duration),
    /// Answers with nothing, or with something of another kind.
    Nonsense(Option<response::Result>),
}

/// What the nodes hold and what a test may change about it.
pub struct State {
    /// The ranges.
    pub map: RangeMap,
    /// Who leads each cohort; the cohort's number is the key.
    pub leaders: HashMap<u64, u64>,
    /// Who leads each cohort, as those are answered who ask for the routes.
    pub told_leaders: HashMap<u64, u64>,
    /// How many more requests are turned away as `UNAVAILABLE`, by whatever node.
    pub unavailable: u64,
    /// Values whose puts are turned away this many more times as `UNAVAILABLE`.
    pub slow: HashMap<Bytes, u64>,
    /// Keys whose puts are refused for good.
    pub refused: Vec<Bytes>,
    /// Operations that were begun, by kind.
    pub done: HashMap<&'static str, u64>,
    /// The faults that nodes were asked to suffer, by [`v1::SetFaultsRequest`].
    pub asked_faults: BTreeMap<u64, v1::SetFaultsRequest>,
    /// Whether a node that is asked for what it does not lead names the leader.
    pub hints: bool,
    /// What a node's timeline reads name, where it is not what is true: the sequence that they
    /// include, and their age.
    pub timelines: HashMap<u64, (u64, Option<u64>)>,
    /// Clients whose sessions are gone, and the moment at which new ones are to start.
    pub gone: HashMap<Bytes, u64>,
    /// The clients of all writes that came, each with its start.
    pub clients: BTreeMap<Bytes, Option<u64>>,
    /// What happens to the next requests of each node.
    pub faults: HashMap<u64, VecDeque<Fault>>,
    /// Nodes that take requests and never answer.
    pub silent: Vec<u64>,
    /// What nodes answer to those who ask for the routes, where it is not what is true.
    pub older_routes: HashMap<u64, v1::RouteTable>,
    /// The rows, each with its value and version.
    pub rows: BTreeMap<Bytes, (Bytes, u64)>,
    /// The most rows in a page, whatever is asked for.
    pub page_rows: usize,
    /// Moves each cohort's leader before every so many-th request.
    pub move_leaders_every: Option<u64>,
    version: u64,
    /// The outcome of every write by its name.
    outcomes: HashMap<(Bytes, u64), response::Result>,
    first_incomplete: HashMap<Bytes, u64>,
    /// What a client did that no client may do.
    pub violations: Vec<String>,
    /// Writes that were done.
    pub applied: u64,
    /// Writes that came again after they were done.
    pub repeats: u64,
    /// Frames that came.
    pub frames: u64,
    /// Requests that came.
    pub requests: u64,
    /// How often the routes were asked for.
    pub route_questions: u64,
    /// Gets that each node answered.
    pub reads_by_node: HashMap<u64, u64>,
    /// The time that each request had.
    pub timeouts_ms: Vec<u64>,
    addresses: Vec<SocketAddr>,
}

/// The cluster; dropping it stops its nodes.
pub struct Cluster {
    state: Arc<Mutex<State>>,
    runtimes: Vec<Option<Runtime>>,
}

#[derive(Clone)]
struct FakeNode {
    id: u64,
    state: Arc<Mutex<State>>,
}

/// What a node does with a request, once decided.
enum Reply {
    Now(response::Result),
    Empty,
    Later(response::Result, Duration),
    Never,
    Break,
}

impl Cluster {
    /// Starts `nodes` nodes with ranges cut at `splits`; every node holds every range, and the
    /// leaders are spread over them.
    pub fn start(nodes: u64, splits: &[&'static str]) -> Self {
        let splits: Vec<Bytes> = splits.iter().map(|s| Bytes::from_static(s.as_bytes())).collect();
        let map = RangeMap::from_splits(&splits).unwrap();
        let leaders: HashMap<u64, u64> = (map.ranges().iter())
            .map(|range| (range.cohort.0, (range.cohort.0 - 1) % nodes + 1))
            .collect();
        let state = State {
            map,
            told_leaders: leaders.clone(),
            leaders,
            unavailable: 0,
            slow: HashMap::new(),
            refused: Vec::new(),
            done: HashMap::new(),
            asked_faults: BTreeMap::new(),
            hints: true,
            timelines: HashMap::new(),
            gone: HashMap::new(),
            clients: BTreeMap::new(),
            faults: HashMap::new(),
            older_routes: HashMap::new(),
            silent: Vec::new(),
            rows: BTreeMap::new(),
            page_rows: 7,
            move_leaders_every: None,
            version: 0,
            outcomes: HashMap::new(),
            first_incomplete: HashMap::new(),
            violations: Vec::new(),
            applied: 0,
            repeats: 0,
            frames: 0,
            requests: 0,
            route_questions: 0,
            reads_by_node: HashMap::new(),
            timeouts_ms: Vec::new(),
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 0)); nodes as usize],
        };
        let mut cluster = Self {
            state: Arc::new(Mutex::new(state)),
            runtimes: (0..nodes).map(|_| None).collect(),
        };
        for id in 1..=nodes {
            cluster.start_node(id);
        }
        cluster
    }

    /// Starts a node, at its former address if it had one.
    pub fn start_node(&mut self, id: u64) {
        let index = id as usize - 1;
        let address = self.state().addresses[index];
        let listener = bind(address);
        self.state().addresses[index] = listener.local_addr().unwrap();
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let node = FakeNode { id, state: Arc::clone(&self.state) };
        runtime.spawn(async move {
            listener.set_nonblocking(true).unwrap();
            // Else answers wait for the acknowledgement of those before them.
            let connections = TcpListenerStream::new(TcpListener::from_std(listener).unwrap())
                .map(|connection| connection.and_then(|c| c.set_nodelay(true).map(|()| c)));
            let server = Server::builder()
                .add_service(KvServer::new(node.clone()))
                .add_service(AdminServer::new(node));
            server.serve_with_incoming(connections).await.unwrap();
        });
        self.runtimes[index] = Some(runtime);
    }

    /// Ends a node and all its connections at once.
    pub fn kill_node(&mut self, id: u64) {
        if let Some(runtime) = self.runtimes[id as usize - 1].take() {
            runtime.shutdown_background();
        }
    }

    /// Returns what the nodes hold, which stays as it is while the caller keeps it.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Returns the nodes' addresses.
    pub fn endpoints(&self) -> Vec<String> {
        self.state().addresses.iter().map(SocketAddr::to_string).collect()
    }

    /// Has these faults happen to the next requests of a node.
    pub fn inject(&self, node: u64, faults: impl IntoIterator<Item = Fault>) {
        self.state().faults.entry(node).or_default().extend(faults);
    }

    /// Makes a node the leader of a cohort, also in the routes.
    pub fn lead(&self, cohort: u64, node: u64) {
        let mut state = self.state();
        state.leaders.insert(cohort, node);
        state.told_leaders.insert(cohort, node);
    }

    /// Asserts that no client broke a rule that cohorts rely on.
    pub fn assert_no_violation(&self) {
        assert_eq!(self.state().violations, Vec::<String>::new());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for id in 1..=self.runtimes.len() as u64 {
            self.kill_node(id);
        }
    }
}

impl State {
    /// Adds a row.
    pub fn insert(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.version += 1;
        let row = (Bytes::copy_from_slice(value.as_ref()), self.version);
        self.rows.insert(Bytes::copy_from_slice(key.as_ref()), row);
    }

    /// Cuts the keys at `splits` instead, into new cohorts whose leaders are spread over the nodes.
    pub fn split(&mut self, splits: &[&str]) {
        let splits: Vec<Bytes> =
            splits.iter().map(|split| Bytes::copy_from_slice(split.as_bytes())).collect();
        let nodes = self.addresses.len() as u64;
        let lowest = self.leaders.keys().max().copied().unwrap_or(0) + 1;
        let map = RangeMap::from_splits(&splits).unwrap();
        let mut ranges = map.ranges().to_vec();
        for (range, cohort) in ranges.iter_mut().zip(lowest..) {
            range.cohort = CohortId(cohort);
            self.leaders.insert(cohort, cohort % nodes + 1);
            self.told_leaders.insert(cohort, cohort % nodes + 1);
        }
        self.map = RangeMap::new(self.map.version + 1, ranges).unwrap();
    }

    fn handle(&mut self, node: u64, request: v1::Request) -> Reply {
        self.requests += 1;
        self.timeouts_ms.push(request.timeout_ms);
        let operation = request.operation.expect("every request has an operation");
        if self.silent.contains(&node) {
            return Reply::Never;
        }
        if let Some(refusal) = self.turn_away(&operation) {
            return Reply::Now(refusal);
        }
        if self.move_leaders_every.is_some_and(|every| self.requests.is_multiple_of(every)) {
            let nodes = self.addresses.len() as u64;
            self.leaders.values_mut().for_each(|leader| *leader = *leader % nodes + 1);
        }
        let fault = self.faults.get_mut(&node).and_then(VecDeque::pop_front);
        let apply = !matches!(
            fault,
            Some(
                Fault::Refuse(_)
                    | Fault::Busy { .. }
                    | Fault::Nonsense(_)
                    | Fault::Ambiguous { apply: false }
                    | Fault::Break { apply: false }
                    | Fault::Lose { apply: false }
            )
        );
        let proper = apply.then(|| self.execute(node, operation));
        match (fault, proper) {
            (None, Some(result)) => Reply::Now(result),
            (Some(Fault::Delay(time)), Some(result)) => Reply::Later(result, time),
            (Some(Fault::Refuse(code)), _) => Reply::Now(refusal(code)),
            (Some(Fault::Busy { retry_after_ms }), _) => {
                let error = v1::Error { retry_after_ms, ..error(ErrorCode::Busy) };
                Reply::Now(response::Result::Error(error))
            }
            (Some(Fault::Ambiguous { .. }), _) => Reply::Now(refusal(ErrorCode::Ambiguous)),
            (Some(Fault::Break { .. }), _) => Reply::Break,
            (Some(Fault::Lose { .. }), _) => Reply::Never,
            (Some(Fault::Nonsense(result)), _) => result.map_or(Reply::Empty, Reply::Now),
            (None | Some(Fault::Delay(_)), None) => unreachable!("these are executed"),
        }
    }

    /// Counts an operation, and returns what it is turned away with, if it is.
    fn turn_away(&mut self, operation: &Operation) -> Option<response::Result> {
        if self.unavailable > 0 {
            self.unavailable -= 1;
            return Some(refusal(ErrorCode::Unavailable));
        }
        let kind = match operation {
            Operation::Get(_) => "get",
            Operation::Put(_) => "put",
            Operation::Delete(_) => "delete",
            Operation::Scan(_) => "scan",
        };
        *self.done.entry(kind).or_default() += 1;
        let Operation::Put(put) = operation else { return None };
        if self.refused.contains(&put.key) {
            return Some(refusal(ErrorCode::Invalid));
        }
        let left = self.slow.get_mut(&put.value).filter(|left| **left > 0)?;
        *left -= 1;
        Some(refusal(ErrorCode::Unavailable))
    }

    fn execute(&mut self, node: u64, operation: Operation) -> response::Result {
        let (route, position, strong) = match &operation {
            Operation::Get(get) => (&get.route, get.key.clone(), is_strong(get.consistency)),
            Operation::Put(put) => (&put.route, put.key.clone(), true),
            Operation::Delete(delete) => (&delete.route, delete.key.clone(), true),
            Operation::Scan(scan) => (&scan.route, scan.start.clone(), is_strong(scan.consistency)),
        };
        let route = route.expect("the client routes every request");
        let is_scan = matches!(operation, Operation::Scan(_));
        let range = self.map.ranges().iter().find(|range| range.cohort.0 == route.cohort);
        let range = range.filter(|range| range.epoch == route.epoch);
        let Some(range) = range.filter(|r| is_scan || r.range.contains(&position)).cloned() else {
            let error = v1::Error {
                route: Some(self.route(self.map.find(&position))),
                ..error(ErrorCode::StaleRoute)
            };
            return response::Result::Error(error);
        };
        let leader = self.leaders.get(&route.cohort).copied().unwrap_or(0);
        if strong && leader != node {
            let leader = (self.hints && leader > 0).then(|| self.node(leader));
            let error = v1::Error { leader, ..error(ErrorCode::NotLeader) };
            return response::Result::Error(error);
        }
        let truth = (self.version, Some(if leader == node { 0 } else { 12 }));
        let (seq, age_ms) = self.timelines.get(&node).copied().unwrap_or(truth);
        let freshness =
            (!strong).then_some(v1::Freshness { applied: Some(v1::Lsn { epoch: 1, seq }), age_ms });
        match operation {
            Operation::Get(get) => {
                *self.reads_by_node.entry(node).or_default() += 1;
                let row = self.row(&get.key);
                response::Result::Get(v1::GetResponse { row, freshness })
            }
            Operation::Scan(scan) => {
                response::Result::Scan(self.scan(&range.range, scan, freshness))
            }
            Operation::Put(put) => {
                let id = put.write_id.clone().expect("the client names every write");
                self.once(id, |state| state.put(put))
            }
            Operation::Delete(delete) => {
                let id = delete.write_id.clone().expect("the client names every write");
                self.once(id, |state| state.delete(delete))
            }
        }
    }

    /// Does a write the first time that it comes, and checks what cohorts rely on.
    fn once(
        &mut self,
        id: v1::WriteId,
        write: impl FnOnce(&mut Self) -> response::Result,
    ) -> response::Result {
        self.clients.insert(id.client.clone(), id.start);
        if let Some(&session_start) = self.gone.get(&id.client) {
            let error = v1::Error { session_start, ..error(ErrorCode::SessionGone) };
            return response::Result::Error(error);
        }
        let first = self.first_incomplete.entry(id.client.clone()).or_default();
        *first = id.first_incomplete.max(*first);
        let first = *first;
        if id.sequence >= id.first_incomplete + SESSION_OUTCOMES_MAX as u64 {
            self.violations.push(format!("{id:?} is too far ahead"));
        }
        if let Some(outcome) = self.outcomes.get(&(id.client.clone(), id.sequence)) {
            self.repeats += 1;
            return outcome.clone();
        }
        if id.sequence < first {
            self.violations.push(format!("{id:?} is new, after {first} was the first incomplete"));
        }
        self.applied += 1;
        let outcome = write(self);
        self.outcomes.insert((id.client, id.sequence), outcome.clone());
        outcome
    }

    fn put(&mut self, put: v1::PutRequest) -> response::Result {
        use v1::put_response::Outcome;
        let command = convert::put_command(put.clone()).unwrap();
        let trireme_types::Operation::Put { key, value, condition } = command.operation else {
            unreachable!("a put makes a put")
        };
        let outcome = match self.failed(&key, condition) {
            Some(failed) => Outcome::ConditionFailed(failed),
            None => {
                self.version += 1;
                self.rows.insert(key, (value, self.version));
                Outcome::Version(self.version)
            }
        };
        response::Result::Put(v1::PutResponse { outcome: Some(outcome) })
    }

    fn delete(&mut self, delete: v1::DeleteRequest) -> response::Result {
        use v1::delete_response::Outcome;
        let command = convert::delete_command(delete).unwrap();
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

    fn scan(
        &self,
        range: &KeyRange,
        scan: v1::ScanRequest,
        freshness: Option<v1::Freshness>,
    ) -> v1::ScanResponse {
        let mut covered = range.intersection(&KeyRange { start: scan.start, end: scan.end });
        let inside = |row: &v1::Row| covered.contains(&row.key);
        let rows = self.rows.keys().filter_map(|key| self.row(key)).filter(inside);
        let limit = match scan.limit as usize {
            0 => self.page_rows,
            limit => limit.min(self.page_rows),
        };
        let mut rows: Vec<v1::Row> = rows.collect();
        if scan.reverse {
            rows.reverse();
        }
        if rows.len() > limit {
            rows.truncate(limit);
            let last = rows[limit - 1].key.clone();
            if scan.reverse {
                covered.start = last;
            } else {
                covered.end = Some(first_after(&last));
            }
        }
        v1::ScanResponse { rows, covered_start: covered.start, covered_end: covered.end, freshness }
    }

    fn row(&self, key: &Bytes) -> Option<v1::Row> {
        let (value, version) = self.rows.get(key)?;
        Some(v1::Row { key: key.clone(), value: value.clone(), version: *version })
    }

    fn node(&self, id: u64) -> v1::Node {
        v1::Node {
            id,
            address: self.addresses[id as usize - 1].to_string(),
            alive: true,
            draining: false,
        }
    }

    fn route(&self, range: &trireme_types::RangeDescriptor) -> v1::RangeRoute {
        v1::RangeRoute {
            cohort: range.cohort.0,
            epoch: range.epoch,
            start: range.range.start.clone(),
            end: range.range.end.clone(),
            protocol: "raft".to_owned(),
            replicas: (1..=self.addresses.len() as u64).collect(),
            leader: self.told_leaders.get(&range.cohort.0).copied().unwrap_or(0),
            session_start: 0,
            config_version: 1,
        }
    }

    /// Returns what a node answers who asks for the routes.
    pub fn route_table(&self) -> v1::RouteTable {
        v1::RouteTable {
            cluster: 77,
            version: self.map.version,
            ranges: self.map.ranges().iter().map(|range| self.route(range)).collect(),
            nodes: (1..=self.addresses.len() as u64).map(|id| self.node(id)).collect(),
        }
    }
}

type BatchStream = ReceiverStream<Result<v1::ResponseFrame, Status>>;

#[tonic::async_trait]
impl Kv for FakeNode {
    type BatchStream = BatchStream;

    async fn batch(
        &self,
        frames: Request<Streaming<v1::RequestFrame>>,
    ) -> Result<Response<BatchStream>, Status> {
        let (answers, receiver) = mpsc::channel(64);
        let node = self.clone();
        let mut frames = frames.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = frames.next().await {
                if !node.frame(frame, &answers).await {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn get(
        &self,
        _request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        Err(Status::unimplemented("the client does not use it"))
    }

    async fn put(
        &self,
        _request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        Err(Status::unimplemented("the client does not use it"))
    }

    async fn delete(
        &self,
        _request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        Err(Status::unimplemented("the client does not use it"))
    }

    async fn scan(
        &self,
        _request: Request<v1::ScanRequest>,
    ) -> Result<Response<v1::ScanResponse>, Status> {
        Err(Status::unimplemented("the client does not use it"))
    }

    async fn routes(
        &self,
        _request: Request<v1::RoutesRequest>,
    ) -> Result<Response<v1::RouteTable>, Status> {
        let silent = self.state.lock().silent.contains(&self.id);
        if silent {
            std::future::pending::<()>().await;
        }
        let mut state = self.state.lock();
        state.route_questions += 1;
        let older = state.older_routes.get(&self.id).cloned();
        Ok(Response::new(older.unwrap_or_else(|| state.route_table())))
    }
}

impl FakeNode {
    /// Answers a frame; `false` if the stream is to break.
    async fn frame(
        &self,
        frame: v1::RequestFrame,
        answers: &mpsc::Sender<Result<v1::ResponseFrame, Status>>,
    ) -> bool {
        self.state.lock().frames += 1;
        let mut responses = Vec::new();
        let mut breaks = false;
        for request in frame.requests {
            let id = request.id;
            let reply = self.state.lock().handle(self.id, request);
            match reply {
                Reply::Now(result) => responses.push(v1::Response { id, result: Some(result) }),
                Reply::Empty => responses.push(v1::Response { id, result: None }),
                Reply::Later(result, time) => {
                    let answers = answers.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(time).await;
                        let responses = vec![v1::Response { id, result: Some(result) }];
                        drop(answers.send(Ok(v1::ResponseFrame { responses })).await);
                    });
                }
                Reply::Never => {}
                Reply::Break => {
                    breaks = true;
                    break;
                }
            }
        }
        if breaks {
            drop(answers.send(Err(Status::unavailable("broken on purpose"))).await);
            return false;
        }
        responses.is_empty() || answers.send(Ok(v1::ResponseFrame { responses })).await.is_ok()
    }
}

/// Takes an address, which a node that was killed a moment ago may still hold.
fn bind(address: SocketAddr) -> std::net::TcpListener {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match std::net::TcpListener::bind(address) {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < deadline, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Names a node as the client's types do.
pub const fn node(id: u64) -> NodeId {
    NodeId(id)
}

fn is_strong(consistency: i32) -> bool {
    convert::consistency(consistency) == Ok(Consistency::Strong)
}

fn error(code: ErrorCode) -> v1::Error {
    v1::Error { code: code.into(), message: "on purpose".to_owned(), ..Default::default() }
}

fn refusal(code: ErrorCode) -> response::Result {
    response::Result::Error(error(code))
}
