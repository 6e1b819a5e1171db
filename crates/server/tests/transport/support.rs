//! Nodes that write down what reaches them, a proxy that can go silent, and a stranger that writes
//! what it likes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::{Condvar, Mutex};
use prost::Message;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::{Instant, sleep, timeout};
use trireme_proto::v1::{PeerFrame, PeerHello};
use trireme_replication::{Lane, SendError, Transport};
use trireme_server::transport::{
    ConnectionLane, PeerHandler, PeerState, PeerTransport, TransportOptions, is_peer,
};
use trireme_storage::StagedSnapshot;
use trireme_types::{ClusterId, CohortId, NodeId};

pub(crate) const CLUSTER: ClusterId = ClusterId(0xc1);

/// Long after everything should have happened.
const DEADLINE: Duration = Duration::from_secs(20);

/// How long each step of a slow installation takes.
pub(crate) const SNAPSHOT_STEP: Duration = Duration::from_millis(100);

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to this: {what}");
        sleep(Duration::from_millis(1)).await;
    }
}

/// A door that is open at first.
pub(crate) struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    /// Closes the door until the guard is dropped: also by a test that fails, whose runtime would
    /// else wait for those at the door.
    pub(crate) fn close(&self) -> ClosedGate<'_> {
        *self.is_open.lock() = false;
        ClosedGate(self)
    }

    fn pass(&self) {
        let mut is_open = self.is_open.lock();
        if *is_open {
            return;
        }
        // The worker's other duties, such as polling the sockets, go to another thread.
        block_in_place(|| self.opened.wait_while(&mut is_open, |is_open| !*is_open));
    }
}

/// Opens the door when it is dropped.
pub(crate) struct ClosedGate<'a>(&'a Gate);

impl Drop for ClosedGate<'_> {
    fn drop(&mut self) {
        *self.0.is_open.lock() = true;
        self.0.opened.notify_all();
    }
}

/// A message, as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) from: NodeId,
    pub(crate) cohort: CohortId,
    pub(crate) lane: Lane,
    pub(crate) payload: Bytes,
}

/// A handler that writes down what it is given.
pub(crate) struct Recorder {
    pub(crate) arrived: Mutex<Vec<Arrived>>,
    /// Blocks whoever brings a message on the data lane.
    pub(crate) data_gate: Gate,
    /// What was told of the peers: up is true.
    pub(crate) told: Mutex<Vec<(NodeId, bool)>>,
    pub(crate) folder: TempDir,
    /// The snapshots that came whole, with what came before them.
    pub(crate) snapshots: Mutex<Vec<(NodeId, CohortId, Bytes, StagedSnapshot)>>,
    /// What is said to a snapshot.
    pub(crate) snapshot_answer: Mutex<Result<Bytes, String>>,
    pub(crate) snapshots_begun: AtomicUsize,
    /// How many steps a snapshot's installation has, of [`SNAPSHOT_STEP`] each.
    pub(crate) snapshot_steps: AtomicUsize,
    /// Holds a snapshot's answer back while it has no permit.
    pub(crate) snapshot_gate: Semaphore,
}

impl Recorder {
    fn new() -> Self {
        Self {
            arrived: Mutex::default(),
            data_gate: Gate { is_open: Mutex::new(true), opened: Condvar::new() },
            told: Mutex::default(),
            folder: tempfile::tempdir().unwrap(),
            snapshots: Mutex::default(),
            snapshot_answer: Mutex::new(Ok(Bytes::from_static(b"taken"))),
            snapshots_begun: AtomicUsize::new(0),
            snapshot_steps: AtomicUsize::new(0),
            snapshot_gate: Semaphore::new(Semaphore::MAX_PERMITS),
        }
    }

    pub(crate) fn count(&self, lane: Lane) -> usize {
        self.arrived.lock().iter().filter(|arrived| arrived.lane == lane).count()
    }

    pub(crate) fn files(&self) -> usize {
        self.folder.path().read_dir().unwrap().count()
    }
}

#[async_trait]
impl PeerHandler for Recorder {
    fn message(&self, from: NodeId, cohort: CohortId, lane: Lane, payload: Bytes) {
        if lane == Lane::Data {
            self.data_gate.pass();
        }
        self.arrived.lock().push(Arrived { from, cohort, lane, payload });
    }

    fn snapshot_dir(&self) -> PathBuf {
        self.folder.path().to_owned()
    }

    async fn snapshot(
        &self,
        from: NodeId,
        cohort: CohortId,
        header: Bytes,
        staged: StagedSnapshot,
    ) -> Result<Bytes, String> {
        self.snapshots_begun.fetch_add(1, Ordering::Relaxed);
        let slow_steps = self.snapshot_steps.load(Ordering::Relaxed);
        for _ in 0..slow_steps {
            sleep(SNAPSHOT_STEP).await;
            staged.progress().step();
        }
        let _passed = self.snapshot_gate.acquire().await.unwrap();
        self.snapshots.lock().push((from, cohort, header, staged));
        self.snapshot_answer.lock().clone()
    }

    fn peer_up(&self, node: NodeId) {
        self.told.lock().push((node, true));
    }

    fn peer_down(&self, node: NodeId) {
        self.told.lock().push((node, false));
    }
}

/// A node: a transport, and the port that it is reached at.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) handler: Arc<Recorder>,
    pub(crate) transport: Arc<PeerTransport>,
    accepting: JoinHandle<()>,
}

impl Node {
    pub(crate) async fn start(id: u64) -> Self {
        Self::start_with(TransportOptions::new(CLUSTER, NodeId(id))).await
    }

    pub(crate) async fn start_with(options: TransportOptions) -> Self {
        Self::start_at(options, "127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_at(options: TransportOptions, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = Arc::new(Recorder::new());
        let id = options.node;
        let transport = PeerTransport::new(options, handler.clone(), Handle::current());
        let accepting = tokio::spawn(accept(listener, transport.clone()));
        Self { id, address, handler, transport, accepting }
    }

    /// Tells the node where another one is, and forgets all others.
    pub(crate) fn knows(&self, id: NodeId, address: SocketAddr) {
        self.transport.set_addresses(BTreeMap::from([(id, address.to_string())]));
    }

    pub(crate) fn state(&self) -> PeerState {
        self.transport.peer_state().pop().unwrap()
    }

    pub(crate) async fn connected(&self) {
        eventually("the peer is connected", || self.state().connected).await;
    }

    /// Sends, again and again while the queue is full.
    pub(crate) async fn send(&self, to: NodeId, cohort: u64, lane: Lane, payload: Bytes) {
        while let Err(error) = self.transport.send(to, CohortId(cohort), lane, payload.clone()) {
            assert_eq!(error, SendError::Full(to));
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Ends the node's connections and gives up its port.
    pub(crate) async fn stop(self) {
        self.transport.shutdown();
        self.accepting.abort();
        let _aborted = self.accepting.await;
    }
}

/// Two nodes that know each other.
pub(crate) async fn pair() -> (Node, Node) {
    let (one, two) = (Node::start(1).await, Node::start(2).await);
    one.knows(two.id, two.address);
    two.knows(one.id, one.address);
    one.connected().await;
    two.connected().await;
    (one, two)
}

async fn accept(listener: TcpListener, transport: Arc<PeerTransport>) {
    while let Ok((socket, _)) = listener.accept().await {
        let transport = transport.clone();
        tokio::spawn(async move {
            if is_peer(&socket).await.unwrap_or(false) {
                transport.serve(socket).await;
            }
        });
    }
}

/// Stands between two nodes and can stop passing on what they say, without closing anything.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    flows: watch::Sender<bool>,
}

impl Proxy {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let flows = watch::Sender::new(true);
        let gate = flows.subscribe();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(target).await else { continue };
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                tokio::spawn(pass_on(near_read, far_write, gate.clone()));
                tokio::spawn(pass_on(far_read, near_write, gate.clone()));
            }
        });
        Self { address, flows }
    }

    pub(crate) fn set_flowing(&self, flows: bool) {
        self.flows.send_replace(flows);
    }
}

async fn pass_on(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut flows: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if flows.wait_for(|flows| *flows).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _closed = to.shutdown().await;
}

/// Somebody who speaks to a node byte by byte.
pub(crate) struct Stranger {
    socket: TcpStream,
}

impl Stranger {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { socket: TcpStream::connect(address).await.unwrap() }
    }

    /// Comes as node `from` to node `to`, and awaits the answer.
    pub(crate) async fn come(
        address: SocketAddr,
        from: u64,
        to: u64,
        lane: ConnectionLane,
    ) -> Self {
        let mut stranger = Self::knock(address, from, to, lane).await;
        let answer: PeerHello = stranger.receive().await.unwrap();
        assert_eq!((answer.from, answer.to, answer.cluster), (to, from, CLUSTER.0));
        stranger
    }

    /// Comes as node `from` to node `to`, and awaits nothing.
    pub(crate) async fn knock(
        address: SocketAddr,
        from: u64,
        to: u64,
        lane: ConnectionLane,
    ) -> Self {
        let mut stranger = Self::connect(address).await;
        let lane = lane.into();
        stranger.write(b"TRIPEER1").await;
        stranger.send(&PeerHello { version: 1, cluster: CLUSTER.0, from, to, lane }).await;
        stranger
    }

    /// Takes a call, as the node that is called.
    pub(crate) async fn be_called(socket: TcpStream) -> (Self, ConnectionLane) {
        let mut called = Self { socket };
        let mut first = [0; 8];
        called.socket.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"TRIPEER1");
        let hello: PeerHello = called.receive().await.unwrap();
        called.send(&PeerHello { from: hello.to, to: hello.from, ..hello }).await;
        (called, hello.lane())
    }

    /// Writes bytes, whether or not anybody takes them.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let _lost = self.socket.write_all(bytes).await;
    }

    pub(crate) async fn send(&mut self, message: &impl Message) {
        let mut bytes = BytesMut::new();
        bytes.put_u32(u32::try_from(message.encoded_len()).unwrap());
        message.encode(&mut bytes).unwrap();
        self.write(&bytes).await;
    }

    /// Returns the next frame; `None` if the node closes instead.
    pub(crate) async fn receive<M: Message + Default>(&mut self) -> Option<M> {
        let reading = async {
            let mut length = [0; 4];
            self.socket.read_exact(&mut length).await.ok()?;
            let mut frame = vec![0; (&length[..]).get_u32() as usize];
            self.socket.read_exact(&mut frame).await.ok()?;
            Some(M::decode(&frame[..]).unwrap())
        };
        timeout(DEADLINE, reading).await.expect("neither a frame nor the end came")
    }

    pub(crate) async fn hears_nothing_for(&self, time: Duration) -> bool {
        timeout(time, self.socket.peek(&mut [0])).await.is_err()
    }

    /// Says whether the node closes the connection without another frame.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.receive::<PeerFrame>().await.is_none()
    }
}
