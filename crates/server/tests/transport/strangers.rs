//! Whoever should not be served, and is not.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use trireme_proto::v1::{PeerFrame, PeerHello, PeerMessage};
use trireme_replication::{Lane, Transport};
use trireme_server::transport::{ConnectionLane, TransportOptions, is_peer};
use trireme_types::{ClusterId, CohortId, NodeId};

use crate::support::{CLUSTER, Node, Stranger, eventually, pair};

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Collects what this thread logs as long as the guard lives.
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn warnings(&self, with: &str) -> usize {
        let text = String::from_utf8(self.0.lock().clone()).unwrap();
        text.lines().filter(|line| line.contains("WARN") && line.contains(with)).count()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets a node call another one that should refuse it, for several attempts.
async fn is_refused(one: &Node, two: &Node, called: NodeId) {
    one.knows(called, two.address);
    let unreachable = || one.transport.send(called, CohortId(1), Lane::Data, Bytes::new()).is_err();
    eventually("the first attempt has failed", unreachable).await;
    // Long enough for several more attempts, each of which must fail.
    for _ in 0..20 {
        sleep(Duration::from_millis(10)).await;
        assert!(unreachable() && !one.state().connected);
    }
    assert!(one.handler.told.lock().is_empty());
    assert!(two.handler.arrived.lock().is_empty());
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_with_one_warning_at_each_end() {
    let (log, _guard) = Log::start();
    let other = TransportOptions::new(ClusterId(0xc2), NodeId(2));
    let (one, two) = (Node::start(1).await, Node::start_with(other).await);
    is_refused(&one, &two, two.id).await;
    let (ours, theirs) = (CLUSTER, ClusterId(0xc2));
    let seen = |theirs: ClusterId, ours: ClusterId| {
        format!("it belongs to cluster {theirs}, and this node to cluster {ours}")
    };
    assert_eq!(log.warnings(&seen(theirs, ours)), 1, "by the caller");
    assert_eq!(log.warnings(&seen(ours, theirs)), 1, "by the called");
}

#[tokio::test]
async fn a_node_that_is_another_one_is_refused_with_one_warning_at_each_end() {
    let (log, _guard) = Log::start();
    let (one, two) = (Node::start(1).await, Node::start(2).await);
    is_refused(&one, &two, NodeId(3)).await;
    assert_eq!(log.warnings("it is n2 where n3 was expected"), 1);
    assert_eq!(log.warnings("it means to reach n3, and this node is n2"), 1);
}

#[tokio::test]
async fn hellos_that_say_something_impossible_are_refused() {
    let two = Node::start(2).await;
    let good = PeerHello { version: 1, cluster: CLUSTER.0, from: 1, to: 2, lane: 0 };
    let bad = [
        PeerHello { version: 2, ..good },
        PeerHello { version: 0, ..good },
        PeerHello { from: 0, ..good },
        PeerHello { from: 2, ..good },
        PeerHello { lane: 17, ..good },
    ];
    for hello in bad {
        let mut stranger = Stranger::connect(two.address).await;
        stranger.write(b"TRIPEER1").await;
        stranger.send(&hello).await;
        let answer: PeerHello = stranger.receive().await.expect("a refused caller is answered");
        assert_eq!((answer.version, answer.from), (1, 2));
        assert!(stranger.is_closed().await, "{hello:?}");
    }
}

#[tokio::test]
async fn garbage_ends_its_connection_and_nothing_else() {
    let (log, _guard) = Log::start();
    let (one, two) = pair().await;
    let huge = (17 * 1024 * 1024_u32).to_be_bytes();
    for garbage in [&[0xff; 64][..], &huge, b"\0\0\0\x04abcd", b"\0\0\0\x02\x0a\x7f"] {
        let mut before_hello = Stranger::connect(two.address).await;
        before_hello.write(b"TRIPEER1").await;
        before_hello.write(garbage).await;
        assert!(before_hello.is_closed().await);
        for lane in [ConnectionLane::Data, ConnectionLane::Heartbeat, ConnectionLane::Snapshot] {
            let mut after_hello = Stranger::come(two.address, 7, 2, lane).await;
            after_hello.write(garbage).await;
            assert!(after_hello.is_closed().await, "{garbage:?} on {lane:?}");
        }
    }
    assert!(log.warnings("a frame that cannot be taken") >= 1);
    assert!(log.warnings("a frame that cannot be read") >= 1);
    one.send(two.id, 1, Lane::Data, Bytes::from_static(b"still here")).await;
    eventually("others are served", || two.handler.count(Lane::Data) == 1).await;
    assert_eq!(*two.handler.told.lock(), [(one.id, true)]);
    assert_eq!(two.handler.files(), 0);
}

#[tokio::test]
async fn an_opener_that_is_sent_messages_hangs_up() {
    let one = Node::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.knows(NodeId(2), listener.local_addr().unwrap());
    let message = PeerMessage { cohort: 1, payload: Bytes::new() };
    let bad = PeerFrame { messages: vec![message], ping: 0, pong: 1 };
    for _ in 0..4 {
        let (socket, _) = listener.accept().await.unwrap();
        let (mut called, _) = Stranger::be_called(socket).await;
        called.send(&bad).await;
        while called.receive::<PeerFrame>().await.is_some() {}
    }
    assert!(one.handler.arrived.lock().is_empty());
}

#[tokio::test]
async fn the_first_byte_that_differs_tells_a_client_from_a_peer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    for bytes in [&b"PRI * HTTP/2.0\r\n"[..], b"TRIPEER1", b"TRIPEER2"] {
        let mut caller = TcpStream::connect(address).await.unwrap();
        caller.set_nodelay(true).unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let asked = tokio::spawn(async move { is_peer(&socket).await });
        for byte in bytes {
            // Fails once the other side has decided and closed.
            let _closed = caller.write_all(&[*byte]).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(asked.await.unwrap().unwrap(), bytes == b"TRIPEER1");
    }
}

#[tokio::test]
async fn a_connection_that_closes_before_it_says_anything_is_no_peer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    drop(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
    let (socket, _) = listener.accept().await.unwrap();
    assert_eq!(is_peer(&socket).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}
