//! What an application does with a healthy cluster.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use futures::future::join_all;
use trireme_client::{
    Bytes, Client, ClientError, ClientOptions, Conditional, Consistency, ErrorClass, ReadOptions,
    Version,
};
use trireme_types::CohortId;
use trireme_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

use trireme_fake::{Cluster, node};

#[tokio::test]
async fn values_are_put_found_and_deleted_in_every_range() {
    let cluster = Cluster::start(3, &["g", "p"]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    for key in ["a", "g", "zebra", ""] {
        assert_eq!(client.get(key).await.unwrap(), None);
        let version = client.put(key, "one").await.unwrap();
        let found = client.get(key).await.unwrap().unwrap();
        assert_eq!((found.value, found.version), (Bytes::from("one"), version));
        assert!(client.put(key, Bytes::new()).await.unwrap() > version);
        assert_eq!(client.get(key).await.unwrap().unwrap().value, Bytes::new());
        assert!(client.delete(key).await.unwrap());
        assert!(!client.delete(key).await.unwrap());
        assert_eq!(client.get(key).await.unwrap(), None);
    }
    cluster.assert_no_violation();
}

#[tokio::test]
async fn a_condition_that_does_not_hold_is_an_answer() {
    let cluster = Cluster::start(1, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let first = client.put_if_absent("k", "1").await.unwrap().done().unwrap();
    let refused = Conditional::Failed { current: Some(first) };
    assert_eq!(client.put_if_absent("k", "2").await.unwrap(), refused);
    let second = client.put_if_version("k", "2", first).await.unwrap().done().unwrap();
    assert!(second > first);
    let refused = Conditional::Failed { current: Some(second) };
    assert_eq!(client.put_if_version("k", "3", first).await.unwrap(), refused);
    assert!(!client.delete_if_version("k", first).await.unwrap().is_done());
    assert!(client.delete_if_version("k", second).await.unwrap().is_done());
    let refused = Conditional::Failed { current: None };
    assert_eq!(client.put_if_version("k", "3", second).await.unwrap(), refused);
}

#[tokio::test]
async fn timeline_reads_are_spread_over_the_replicas_and_say_how_old_they_are() {
    let cluster = Cluster::start(3, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    client.put("k", "v").await.unwrap();
    let options = ReadOptions { consistency: Consistency::Timeline, deadline: None };
    let mut ages = Vec::new();
    for _ in 0..30 {
        let read = client.get_with("k", options).await.unwrap();
        assert_eq!(read.value.unwrap().value, "v");
        ages.push(read.freshness.unwrap().age.unwrap());
    }
    assert!(ages.contains(&Duration::ZERO) && ages.contains(&Duration::from_millis(12)));
    let reads = cluster.state().reads_by_node.clone();
    assert!((1..=3).all(|id| reads.get(&id) == Some(&10)), "{reads:?}");
    assert_eq!(client.get_with("k", ReadOptions::default()).await.unwrap().freshness, None);
}

#[tokio::test]
async fn one_living_endpoint_is_enough() {
    let cluster = Cluster::start(2, &["m"]);
    // A port that is taken and answers nothing, and one that nobody listens on.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoints = [
        mute.local_addr().unwrap().to_string(),
        closed.to_string(),
        format!("http://{}", cluster.endpoints()[1]),
    ];
    let started = Instant::now();
    let client = Client::connect(endpoints).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(1), "waited for the mute endpoint");
    client.put("a", "1").await.unwrap();
    client.put("z", "2").await.unwrap();
    assert_eq!(client.routes().nodes.len(), 2);
}

#[tokio::test]
async fn no_living_endpoint_is_a_clear_error() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let options =
        ClientOptions { deadline: Duration::from_millis(300), ..ClientOptions::default() };
    let started = Instant::now();
    let error = Client::connect_with([closed.clone()], options).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(5), "the deadline has passed");
    assert_eq!(error.class(), ErrorClass::Retry);
    assert!(error.to_string().contains(&closed), "{error}");
    let error = Client::connect(Vec::<String>::new()).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Invalid);
    let error = Client::connect(["nonsense"]).await.unwrap_err();
    assert!(error.to_string().contains("nonsense"), "{error}");
}

/// A client that was made while its cluster was being started again failed at once, whatever time
/// it had.
#[tokio::test]
async fn a_cluster_that_comes_back_within_the_deadline_is_found() {
    let cluster = Cluster::start(2, &["m"]);
    let behind = cluster.endpoints()[0].clone();
    // Connections are refused until something listens there again.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let connecting = tokio::spawn(Client::connect([address.to_string()]));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!connecting.is_finished(), "it gave up at once");
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let passing = tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut node = tokio::net::TcpStream::connect(&behind).await.unwrap();
            tokio::spawn(async move {
                tokio::io::copy_bidirectional(&mut client, &mut node).await.ok();
            });
        }
    });
    let client = connecting.await.unwrap().unwrap();
    client.put("a", "1").await.unwrap();
    passing.abort();
}

#[tokio::test]
async fn what_passes_a_limit_never_leaves_the_client() {
    let cluster = Cluster::start(1, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let long = vec![b'k'; KEY_BYTES_MAX + 1];
    let errors = [
        client.put(long.clone(), "v").await.unwrap_err(),
        client.put("k", vec![0; VALUE_BYTES_MAX + 1]).await.unwrap_err(),
        client.get(long.clone()).await.unwrap_err(),
        client.delete(long.clone()).await.unwrap_err(),
        client.scan(long.clone()..).next().await.unwrap_err(),
        client.scan("a".into()..Bytes::from(long)).next().await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(&error, ClientError::Invalid(why) if why.contains("limit")), "{error}");
        assert_eq!(error.class(), ErrorClass::Invalid);
    }
    assert_eq!(cluster.state().requests, 0);
    // The largest row that is allowed goes through.
    let (key, value) = (vec![b'k'; KEY_BYTES_MAX], vec![0; VALUE_BYTES_MAX]);
    client.put(key.clone(), value.clone()).await.unwrap();
    assert_eq!(client.get(key).await.unwrap().unwrap().value, value);
}

#[tokio::test]
async fn concurrent_calls_share_frames() {
    let cluster = Cluster::start(1, &["m"]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let puts = (0..1000).map(|i| client.put(format!("{i}"), "v"));
    assert!(join_all(puts).await.into_iter().all(|put| put.is_ok()));
    let gets = (0..1000).map(|i| client.get(format!("{i}")));
    assert!(join_all(gets).await.into_iter().all(|got| got.unwrap().is_some()));
    let state = cluster.state();
    assert_eq!(state.requests, 2000);
    assert!(state.frames <= 100, "{} requests in {} frames", state.requests, state.frames);
}

#[tokio::test]
async fn frames_keep_their_bounds() {
    let cluster = Cluster::start(1, &[]);
    let options =
        ClientOptions { frame_calls_max: 10, queue_calls_max: 3, ..ClientOptions::default() };
    let client = Client::connect_with(cluster.endpoints(), options).await.unwrap();
    let puts = (0..200).map(|i| client.put(format!("{i}"), "v"));
    assert!(join_all(puts).await.into_iter().all(|put| put.is_ok()));
    let frames = cluster.state().frames;
    assert!(frames >= 20, "{frames} frames");
    // Ten values of a mebibyte do not fit the four mebibytes that a server takes as one message.
    let large = Bytes::from(vec![7; VALUE_BYTES_MAX]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let puts = (0..10).map(|i| client.put(format!("{i}"), large.clone()));
    assert!(join_all(puts).await.into_iter().all(|put| put.is_ok()));
}

#[tokio::test]
async fn several_streams_serve_as_one_does() {
    let cluster = Cluster::start(2, &["5"]);
    let options = ClientOptions { streams_per_node: 3, ..ClientOptions::default() };
    let client = Client::connect_with(cluster.endpoints(), options).await.unwrap();
    let puts = (0..300).map(|i| client.put(format!("{i}"), "v"));
    assert!(join_all(puts).await.into_iter().all(|put| put.is_ok()));
    assert_eq!(cluster.state().rows.len(), 300);
    cluster.assert_no_violation();
}

#[tokio::test]
async fn the_routes_and_the_nodes_can_be_looked_at() {
    let cluster = Cluster::start(3, &["h"]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let table = client.routes();
    assert_eq!((table.cluster.0, table.version, table.ranges.len()), (77, 1, 2));
    assert_eq!(table.ranges[1].range.start, "h");
    assert_eq!(table.ranges[1].leader, Some(node(2)));
    assert_eq!(table.ranges[1].protocol, "raft");
    for did_lead in [false, true] {
        let led = client.transfer_leader(CohortId(2), node(3), |_: &str| ()).await;
        assert_eq!(led.unwrap(), did_lead);
        assert_eq!(client.refresh_routes().await.unwrap().ranges[1].leader, Some(node(3)));
    }
    for (cohort, to) in [(9, 3), (2, 9)] {
        let refused = client.transfer_leader(CohortId(cohort), node(to), |_: &str| ()).await;
        assert_eq!(refused.unwrap_err().class(), ErrorClass::Invalid);
    }
    let status = client.node_status(&table.nodes[2].address).await.unwrap();
    assert_eq!(status.node, 3);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = client.node_status(&closed).await.unwrap_err();
    assert!(matches!(&error, ClientError::Admin { address, .. } if *address == closed), "{error}");
}

#[tokio::test]
async fn versions_can_be_kept_and_compared() {
    let cluster = Cluster::start(1, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let mut last = Version(0);
    for _ in 0..5 {
        let version = client.put("k", "v").await.unwrap();
        assert!(version > last);
        last = version;
        client.delete("k").await.unwrap();
    }
}
