//! Messages: their order, their lanes, and what happens when they are too many.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};
use trireme_proto::v1::{PeerFrame, PeerMessage};
use trireme_replication::{Lane, SendError, Transport};
use trireme_server::transport::{ConnectionLane, TransportOptions};
use trireme_types::{CohortId, NodeId};

use crate::support::{CLUSTER, Node, Stranger, eventually, pair};

fn numbered(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_many_cohorts_keep_their_order_and_share_writes() {
    const MESSAGES: u64 = 100_000;
    const COHORTS: u64 = 64;
    let (one, two) = pair().await;
    for number in 0..MESSAGES {
        one.send(two.id, 1 + number % COHORTS, Lane::Data, numbered(number)).await;
    }
    let all = usize::try_from(MESSAGES).unwrap();
    eventually("all arrived", || two.handler.count(Lane::Data) >= all).await;
    let arrived = two.handler.arrived.lock();
    assert_eq!(arrived.len(), all);
    for (number, message) in (0..).zip(arrived.iter()) {
        assert_eq!((message.from, &message.payload), (one.id, &numbered(number)));
        assert_eq!(message.cohort, CohortId(1 + number % COHORTS));
    }
    let state = one.state();
    assert_eq!(state.data.messages, MESSAGES);
    assert!(state.data.frames < MESSAGES / 4, "{} writes", state.data.frames);
    assert!(state.data.bytes > MESSAGES * numbered(0).len() as u64, "{:?}", state.data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_and_empty_messages_arrive_unchanged() {
    let (one, two) = pair().await;
    let large = Bytes::from(vec![7; 15 * 1024 * 1024]);
    for payload in [large.clone(), Bytes::new(), large] {
        one.send(two.id, 1, Lane::Data, payload.clone()).await;
        eventually("it arrived", || {
            two.handler.arrived.lock().pop().is_some_and(|arrived| arrived.payload == payload)
        })
        .await;
    }
    let too_large = Bytes::from(vec![7; 16 * 1024 * 1024]);
    let refused = one.transport.send(two.id, CohortId(1), Lane::Data, too_large);
    assert_eq!(refused, Err(SendError::Full(two.id)));
    assert!(one.state().connected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_data_lane_that_is_held_up_does_not_hold_up_heartbeats() {
    let (one, two) = pair().await;
    let closed = two.handler.data_gate.close();
    for number in 0..100 {
        one.send(two.id, 1, Lane::Data, numbered(number)).await;
        one.send(two.id, 1, Lane::Heartbeat, numbered(number)).await;
    }
    eventually("the heartbeats arrived", || two.handler.count(Lane::Heartbeat) == 100).await;
    assert_eq!(two.handler.count(Lane::Data), 0);
    assert!(one.state().connected && one.state().round_trip.is_some());
    drop(closed);
    eventually("the data arrived", || two.handler.count(Lane::Data) == 100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_full_queue_says_so_and_takes_messages_again_later() {
    const QUEUE_BYTES: usize = 4 * 1024 * 1024;
    const MESSAGE_BYTES: usize = 64 * 1024;
    // What may be under way beside the queue: frames at both ends, and the sockets' buffers.
    const UNDER_WAY_BYTES: usize = 32 * 1024 * 1024;
    let options = TransportOptions {
        queue_bytes_max: QUEUE_BYTES,
        ..TransportOptions::new(CLUSTER, NodeId(1))
    };
    let (one, two) = (Node::start_with(options).await, Node::start(2).await);
    one.knows(two.id, two.address);
    one.connected().await;
    let closed = two.handler.data_gate.close();
    let mut sent: usize = 0;
    let mut last_taken = Instant::now();
    // The queue is full for good once it stays full for a while.
    while last_taken.elapsed() < Duration::from_millis(200) {
        let payload = Bytes::from(vec![u8::try_from(sent % 251).unwrap(); MESSAGE_BYTES]);
        match one.transport.send(two.id, CohortId(1), Lane::Data, payload) {
            Ok(()) => (sent, last_taken) = (sent + 1, Instant::now()),
            Err(error) => {
                assert_eq!(error, SendError::Full(two.id));
                sleep(Duration::from_millis(1)).await;
            }
        }
        assert!(one.state().queued_bytes <= QUEUE_BYTES);
        assert!(sent * MESSAGE_BYTES < QUEUE_BYTES + UNDER_WAY_BYTES, "it takes ever more");
    }
    assert!(sent * MESSAGE_BYTES >= QUEUE_BYTES / 2, "the queue was full too early");
    drop(closed);
    one.send(two.id, 1, Lane::Data, Bytes::new()).await;
    eventually("all that was taken arrived", || two.handler.count(Lane::Data) == sent + 1).await;
    let arrived = two.handler.arrived.lock();
    for (number, message) in arrived[..sent].iter().enumerate() {
        assert_eq!(usize::from(message.payload[0]), number % 251);
    }
    assert_eq!(one.state().queued_bytes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_later_connection_waits_until_the_earlier_one_has_handed_over_its_messages() {
    let two = Node::start(2).await;
    let frame = |number| {
        let messages = vec![PeerMessage { cohort: 1, payload: numbered(number) }];
        PeerFrame { messages, ping: number + 1, pong: 0 }
    };
    let closed = two.handler.data_gate.close();
    let mut earlier = Stranger::come(two.address, 1, 2, ConnectionLane::Data).await;
    earlier.send(&frame(1)).await;
    // The answer to the ping says that the frame is being handed over, and held up.
    assert_eq!(earlier.receive::<PeerFrame>().await.unwrap().pong, 2);
    let mut later = Stranger::knock(two.address, 1, 2, ConnectionLane::Data).await;
    later.send(&frame(2)).await;
    // Others are welcome meanwhile; this one is not.
    let _other = Stranger::come(two.address, 3, 2, ConnectionLane::Data).await;
    assert!(later.hears_nothing_for(Duration::from_millis(50)).await);
    drop(closed);
    eventually("both arrived", || two.handler.count(Lane::Data) == 2).await;
    let arrived = two.handler.arrived.lock();
    assert_eq!([&arrived[0].payload, &arrived[1].payload], [&numbered(1), &numbered(2)]);
}
