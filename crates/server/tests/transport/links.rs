//! Connections: how they come, break and come back.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::time::Instant;
use trireme_proto::v1::PeerFrame;
use trireme_replication::{Lane, SendError, Transport};
use trireme_server::transport::{ConnectionLane, Fate, LinkFaults, TransportOptions};
use trireme_types::{CohortId, NodeId};

use crate::support::{CLUSTER, Node, Proxy, Stranger, eventually, pair};

fn send(node: &Node, to: NodeId) -> Result<(), SendError> {
    node.transport.send(to, CohortId(1), Lane::Data, Bytes::from_static(b"message"))
}

#[tokio::test]
async fn nodes_that_nobody_named_and_nodes_that_do_not_listen_cannot_be_reached() {
    let one = Node::start(1).await;
    assert_eq!(send(&one, NodeId(9)), Err(SendError::Unreachable(NodeId(9))));
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    one.knows(NodeId(2), nobody);
    let unreachable = Err(SendError::Unreachable(NodeId(2)));
    eventually("the first connection has failed", || send(&one, NodeId(2)) == unreachable).await;
    assert_eq!(one.state().queued_bytes, 0);
    assert!(one.handler.told.lock().is_empty());
}

#[tokio::test]
async fn messages_wait_for_the_first_connection() {
    let (one, two) = (Node::start(1).await, Node::start(2).await);
    one.knows(two.id, two.address);
    // Nothing else has run on this thread, so there is no connection yet.
    assert!(!one.state().connected);
    assert_eq!(send(&one, two.id), Ok(()));
    eventually("it arrived", || two.handler.count(Lane::Data) == 1).await;
}

#[tokio::test]
async fn a_peer_that_starts_again_at_its_address_is_reached_again() {
    let (one, two) = pair().await;
    let address = two.address;
    two.stop().await;
    let two = NodeId(2);
    eventually("it is gone", || send(&one, two) == Err(SendError::Unreachable(two))).await;
    eventually("that was told", || *one.handler.told.lock() == [(two, true), (two, false)]).await;
    assert_eq!(one.state().queued_bytes, 0);
    let two = Node::start_at(TransportOptions::new(CLUSTER, two), address).await;
    one.connected().await;
    assert_eq!(send(&one, two.id), Ok(()));
    eventually("it arrived", || two.handler.count(Lane::Data) == 1).await;
    let told = [(two.id, true), (two.id, false), (two.id, true)];
    assert_eq!(*one.handler.told.lock(), told);
}

#[tokio::test]
async fn a_peer_that_moves_is_followed() {
    let (one, two) = pair().await;
    let moved = Node::start(2).await;
    one.knows(moved.id, moved.address);
    eventually("the message arrives at the other place", || {
        let _unreachable = send(&one, moved.id);
        moved.handler.count(Lane::Data) > 0
    })
    .await;
    one.transport.set_addresses(BTreeMap::new());
    eventually("it is forgotten", || send(&one, two.id).is_err()).await;
    assert!(one.transport.peer_state().is_empty());
    eventually("its end was told", || one.handler.told.lock().last() == Some(&(two.id, false)))
        .await;
    let told = one.handler.told.lock();
    assert!(told.chunks(2).all(|pair| pair == [(two.id, true), (two.id, false)]), "{told:?}");
}

#[tokio::test]
async fn a_peer_that_falls_silent_is_noticed_and_comes_back() {
    let silence_max = Duration::from_millis(400);
    let options = TransportOptions { silence_max, ..TransportOptions::new(CLUSTER, NodeId(1)) };
    let (one, two) = (Node::start_with(options).await, Node::start(2).await);
    let proxy = Proxy::start(two.address).await;
    one.knows(two.id, proxy.address);
    one.connected().await;
    assert_eq!(*one.handler.told.lock(), [(two.id, true)]);
    eventually("a round trip is measured", || one.state().round_trip.is_some()).await;
    proxy.set_flowing(false);
    let silent_since = Instant::now();
    let told = [(two.id, true), (two.id, false)];
    eventually("it is noticed", || *one.handler.told.lock() == told).await;
    // A busy machine may be late, by less than another such time.
    assert!(silent_since.elapsed() < 2 * silence_max, "{:?}", silent_since.elapsed());
    let unreachable = Err(SendError::Unreachable(two.id));
    assert_eq!(send(&one, two.id), unreachable);
    eventually("the data connection ended too", || !one.state().connected).await;
    proxy.set_flowing(true);
    one.connected().await;
    let before = two.handler.count(Lane::Data);
    assert_eq!(send(&one, two.id), Ok(()));
    eventually("a message arrives", || two.handler.count(Lane::Data) == before + 1).await;
}

#[tokio::test]
async fn a_data_connection_that_stalls_is_replaced() {
    let stall_max = Duration::from_millis(300);
    let options = TransportOptions { stall_max, ..TransportOptions::new(CLUSTER, NodeId(1)) };
    let faults = Arc::new(Cuts::default());
    let other = TransportOptions {
        faults: Some(faults.clone()),
        ..TransportOptions::new(CLUSTER, NodeId(2))
    };
    let (one, two) = (Node::start_with(options).await, Node::start_with(other).await);
    one.knows(two.id, two.address);
    one.connected().await;
    faults.cut(one.id, ConnectionLane::Data);
    eventually("the data lane ends", || send(&one, two.id).is_err()).await;
    faults.mend();
    one.connected().await;
    assert_eq!(*one.handler.told.lock(), [(two.id, true)], "the heartbeats were not touched");
}

#[tokio::test]
async fn a_cut_in_one_direction_is_noticed_at_both_ends() {
    let faults = Arc::new(Cuts::default());
    let silence_max = Duration::from_millis(400);
    let options =
        |id| TransportOptions { silence_max, ..TransportOptions::new(CLUSTER, NodeId(id)) };
    let cutting = TransportOptions { faults: Some(faults.clone()), ..options(1) };
    let (one, two) = (Node::start_with(cutting).await, Node::start_with(options(2)).await);
    one.knows(two.id, two.address);
    two.knows(one.id, one.address);
    one.connected().await;
    two.connected().await;
    for lane in [ConnectionLane::Data, ConnectionLane::Heartbeat, ConnectionLane::Snapshot] {
        faults.cut(two.id, lane);
    }
    for (node, other) in [(&one, two.id), (&two, one.id)] {
        let gone = || node.handler.told.lock().last() == Some(&(other, false));
        eventually("the cut is noticed", gone).await;
        eventually("nothing goes", || send(node, other).is_err()).await;
    }
    faults.mend();
    one.connected().await;
    two.connected().await;
}

#[tokio::test]
async fn a_delay_that_is_asked_for_shows_in_the_round_trip() {
    struct Slow;

    impl LinkFaults for Slow {
        fn fate(&self, _: NodeId, lane: ConnectionLane) -> Fate {
            match lane {
                ConnectionLane::Heartbeat => Fate::Delay(Duration::from_millis(30)),
                _ => Fate::Pass,
            }
        }
    }

    let options = TransportOptions {
        faults: Some(Arc::new(Slow)),
        ..TransportOptions::new(CLUSTER, NodeId(1))
    };
    let (one, two) = (Node::start_with(options).await, Node::start(2).await);
    one.knows(two.id, two.address);
    let slow = || one.transport.peer_state()[0].round_trip >= Some(Duration::from_millis(30));
    eventually("the delay is measured", slow).await;
}

/// Delays what goes to any node, on one lane.
struct Late(ConnectionLane, Duration);

impl LinkFaults for Late {
    fn fate(&self, _: NodeId, lane: ConnectionLane) -> Fate {
        if lane == self.0 { Fate::Delay(self.1) } else { Fate::Pass }
    }
}

/// A delay once held up each frame until the one before it had left, so that twenty frames took
/// twenty delays.
#[tokio::test]
async fn a_delay_holds_up_no_frame_behind_another() {
    const MESSAGES: u64 = 20;
    const DELAY: Duration = Duration::from_millis(200);
    let faults: Arc<dyn LinkFaults> = Arc::new(Late(ConnectionLane::Data, DELAY));
    let options =
        TransportOptions { faults: Some(faults), ..TransportOptions::new(CLUSTER, NodeId(1)) };
    let (one, two) = (Node::start_with(options).await, Node::start(2).await);
    one.knows(two.id, two.address);
    one.connected().await;
    let began = Instant::now();
    for number in 0..MESSAGES {
        one.send(two.id, number, Lane::Data, Bytes::new()).await;
        eventually("it has left the queue", || one.state().queued_bytes == 0).await;
        assert!(began.elapsed() > DELAY || two.handler.count(Lane::Data) == 0, "it came early");
    }
    let all = usize::try_from(MESSAGES).unwrap();
    eventually("all arrived", || two.handler.count(Lane::Data) == all).await;
    let took = began.elapsed();
    assert!(took >= DELAY && took < 5 * DELAY, "{MESSAGES} delayed frames took {took:?}");
    let arrived: Vec<u64> = two.handler.arrived.lock().iter().map(|one| one.cohort.0).collect();
    assert_eq!(arrived, (0..MESSAGES).collect::<Vec<_>>());
    assert!(one.state().data.frames >= MESSAGES, "they went as one frame");
}

/// A node whose answers to pings were delayed once read nothing until each had left.
#[tokio::test]
async fn a_delay_of_answers_holds_up_nothing_that_comes_in() {
    const DELAY: Duration = Duration::from_millis(500);
    let asking = TransportOptions {
        ping_interval: Duration::from_millis(20),
        silence_max: Duration::from_secs(60),
        ..TransportOptions::new(CLUSTER, NodeId(1))
    };
    let faults: Arc<dyn LinkFaults> = Arc::new(Late(ConnectionLane::Heartbeat, DELAY));
    let late =
        TransportOptions { faults: Some(faults), ..TransportOptions::new(CLUSTER, NodeId(2)) };
    let (one, two) = (Node::start_with(asking).await, Node::start_with(late).await);
    one.knows(two.id, two.address);
    one.connected().await;
    let began = Instant::now();
    eventually("a round trip is measured", || one.state().round_trip >= Some(DELAY)).await;
    // Some 25 pings have been asked by now.
    one.send(two.id, 1, Lane::Heartbeat, Bytes::new()).await;
    eventually("it arrived", || two.handler.count(Lane::Heartbeat) == 1).await;
    assert!(began.elapsed() < 4 * DELAY, "{:?}", began.elapsed());
}

/// A connection has no gaps: what is sent after something was lost comes on a later one.
#[tokio::test]
async fn what_follows_a_loss_comes_on_another_connection() {
    let cuts = Arc::new(Cuts::default());
    let options = TransportOptions {
        faults: Some(cuts.clone()),
        silence_max: Duration::from_secs(60),
        stall_max: Duration::from_secs(60),
        ..TransportOptions::new(CLUSTER, NodeId(1))
    };
    let (one, two) = (Node::start_with(options).await, NodeId(2));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    one.knows(two, listener.local_addr().unwrap());
    let mut called = Vec::new();
    for _ in 0..2 {
        called.push(Stranger::be_called(listener.accept().await.unwrap().0).await);
    }
    let at = called.iter().position(|(_, lane)| *lane == ConnectionLane::Data).unwrap();
    let (mut data, _) = called.remove(at);
    one.connected().await;
    cuts.cut(two, ConnectionLane::Data);
    assert_eq!(send(&one, two), Ok(()));
    eventually("it is lost", || one.state().queued_bytes == 0).await;
    cuts.mend();
    while let Some(frame) = data.receive::<PeerFrame>().await {
        assert!(frame.messages.is_empty(), "{frame:?} came after a gap");
    }
    let (mut later, lane) = Stranger::be_called(listener.accept().await.unwrap().0).await;
    assert_eq!(lane, ConnectionLane::Data);
    one.connected().await;
    assert_eq!(send(&one, two), Ok(()));
    while later.receive::<PeerFrame>().await.unwrap().messages.is_empty() {}
}

#[tokio::test]
async fn after_shutdown_nobody_is_reached_and_nothing_is_told() {
    let (one, two) = pair().await;
    one.transport.shutdown();
    assert_eq!(send(&one, two.id), Err(SendError::Unreachable(two.id)));
    one.knows(two.id, two.address);
    assert!(one.transport.peer_state().is_empty());
    eventually("the other end notices", || !two.state().connected).await;
    assert_eq!(*one.handler.told.lock(), [(two.id, true)]);
}

/// Loses everything that goes to some nodes on some lanes.
#[derive(Default)]
struct Cuts {
    cuts: Mutex<HashSet<(NodeId, ConnectionLane)>>,
}

impl Cuts {
    fn cut(&self, to: NodeId, lane: ConnectionLane) {
        self.cuts.lock().insert((to, lane));
    }

    fn mend(&self) {
        self.cuts.lock().clear();
    }
}

impl LinkFaults for Cuts {
    fn fate(&self, to: NodeId, lane: ConnectionLane) -> Fate {
        if self.cuts.lock().contains(&(to, lane)) { Fate::Drop } else { Fate::Pass }
    }
}
