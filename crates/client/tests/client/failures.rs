//! What a client makes of a cluster in trouble: it finds the way, or says truthfully how far it
//! came.

use std::time::{Duration, Instant};

use futures::future::join_all;
use trireme_client::{Client, ClientError, ClientOptions, Consistency, ErrorClass, ReadOptions};
use trireme_proto::v1::{self, ErrorCode, response};

use trireme_fake::{Cluster, Fault, node};

/// Options of a client that soon gives up.
pub(crate) fn hasty() -> ClientOptions {
    ClientOptions {
        deadline: Duration::from_millis(400),
        attempt_timeout: Duration::from_millis(100),
        ..ClientOptions::default()
    }
}

/// Asserts that an operation took about as long as its deadline allows.
pub(crate) fn assert_in_time(started: Instant, deadline: Duration) {
    let took = started.elapsed();
    let slack = Duration::from_millis(600);
    assert!(took >= deadline && took < deadline + slack, "{took:?} of {deadline:?}");
}

#[tokio::test]
async fn a_redirect_is_followed_and_remembered() {
    let cluster = Cluster::start(3, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    // Those who tell the routes do not know yet: only the redirect does.
    cluster.state().leaders.insert(1, 3);
    client.put("k", "v").await.unwrap();
    assert_eq!(cluster.state().requests, 2);
    assert_eq!(client.routes().ranges[0].leader, Some(node(3)));
    client.get("k").await.unwrap();
    assert_eq!(cluster.state().requests, 3);
}

#[tokio::test]
async fn a_leader_that_nobody_names_is_found() {
    let cluster = Cluster::start(3, &[]);
    cluster.state().told_leaders.clear();
    cluster.state().hints = false;
    cluster.state().leaders.insert(1, 2);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    for _ in 0..5 {
        client.put("k", "v").await.unwrap();
    }
    // Once more, with a former leader that all the routes still name.
    cluster.state().told_leaders.insert(1, 2);
    cluster.state().leaders.insert(1, 3);
    client.put("k", "v").await.unwrap();
}

#[tokio::test]
async fn a_stale_route_is_replaced() {
    let cluster = Cluster::start(2, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    client.put("a", "1").await.unwrap();
    cluster.state().split(&["h", "p"]);
    client.put("z", "2").await.unwrap();
    assert_eq!(client.get("a").await.unwrap().unwrap().value, "1");
    assert_eq!(client.routes().version, 2);
    assert_eq!(client.routes().ranges.len(), 3);
}

#[tokio::test]
async fn outdated_routes_never_replace_newer_ones() {
    let cluster = Cluster::start(2, &[]);
    cluster.state().split(&["m"]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let newer = cluster.state().map.clone();
    cluster.state().map = trireme_types::RangeMap::from_splits(&[]).unwrap();
    assert_eq!(client.refresh_routes().await.unwrap().ranges.len(), 2);
    cluster.state().map = newer;
    client.put("z", "v").await.unwrap();
}

/// A node learns of a change a moment after the one through which it was made.
#[tokio::test]
async fn the_newest_routes_are_those_of_the_node_that_knows_most() {
    let cluster = Cluster::start(3, &[]);
    let mut fewer = cluster.state().route_table();
    cluster.state().split(&["h", "p"]);
    let newest = cluster.state().route_table();
    let mut away = newest.clone();
    away.ranges[0].replicas = vec![1, 2];
    away.ranges[0].config_version = 0;
    fewer.ranges[0].leader = 0;
    cluster.state().older_routes = [(1, fewer), (2, away)].into();
    for _ in 0..16 {
        let client = Client::connect(cluster.endpoints()).await.unwrap();
        let routes = client.newest_routes().await.unwrap();
        let replicas: Vec<_> = routes.ranges.iter().map(|route| route.replicas.len()).collect();
        assert_eq!((routes.version, replicas), (newest.version, vec![3, 3, 3]));
    }

    // Those that do not answer are not waited for longer than a moment.
    cluster.state().silent = vec![1, 2];
    let client = Client::connect(&cluster.endpoints()[2..]).await.unwrap();
    assert_eq!(client.newest_routes().await.unwrap().version, newest.version);
    cluster.state().silent = vec![1, 2, 3];
    let error = client.newest_routes().await.unwrap_err().to_string();
    assert!(error.contains("no answer within 1s"), "{error}");
}

#[tokio::test]
async fn a_busy_node_is_given_the_time_that_it_asks_for() {
    let cluster = Cluster::start(1, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    cluster.inject(1, [Fault::Busy { retry_after_ms: 60 }, Fault::Busy { retry_after_ms: 40 }]);
    let started = Instant::now();
    client.put("k", "v").await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(100));
    assert_eq!(cluster.state().requests, 3);
}

#[tokio::test]
async fn refusals_are_outlived() {
    let cluster = Cluster::start(1, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let codes = [ErrorCode::Unavailable, ErrorCode::Internal, ErrorCode::Expired];
    cluster.inject(1, codes.map(Fault::Refuse));
    client.put("k", "v").await.unwrap();
    cluster.inject(1, codes.map(Fault::Refuse));
    cluster.inject(1, [Fault::Break { apply: false }]);
    assert!(client.get("k").await.unwrap().is_some());
    assert_eq!(cluster.state().applied, 1);
}

#[tokio::test]
async fn a_node_that_died_is_left_and_found_again() {
    let mut cluster = Cluster::start(3, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    client.put("k", "1").await.unwrap();
    cluster.kill_node(1);
    cluster.lead(1, 2);
    let started = Instant::now();
    client.put("k", "2").await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    let timeline = ReadOptions { consistency: Consistency::Timeline, deadline: None };
    let reads = join_all((0..20).map(|_| client.get_with("k", timeline))).await;
    assert!(reads.into_iter().all(|read| read.unwrap().value.unwrap().value == "2"));
    cluster.start_node(1);
    cluster.lead(1, 1);
    client.put("k", "3").await.unwrap();
    cluster.assert_no_violation();
}

#[tokio::test]
async fn a_leader_that_fell_silent_is_left_for_its_successor() {
    let cluster = Cluster::start(3, &[]);
    let options =
        ClientOptions { attempt_timeout: Duration::from_millis(100), ..ClientOptions::default() };
    let client = Client::connect_with(cluster.endpoints(), options).await.unwrap();
    client.put("k", "1").await.unwrap();
    cluster.state().silent.push(1);
    cluster.lead(1, 2);
    let started = Instant::now();
    let writes = join_all((0..50).map(|i| client.put(format!("{i}"), "2"))).await;
    assert!(writes.into_iter().all(|write| write.is_ok()));
    assert!(client.get("k").await.unwrap().is_some());
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(cluster.state().applied, 51);
}

/// A client that had asked a silent leader a few times waited for it for longer than the outage lasted.
#[tokio::test]
async fn a_silent_leaders_answer_is_not_waited_for_once_another_leads() {
    let cluster = Cluster::start(3, &[]);
    let attempt_timeout = Duration::from_millis(200);
    let options = ClientOptions { attempt_timeout, ..ClientOptions::default() };
    let client = Client::connect_with(cluster.endpoints(), options).await.unwrap();
    client.put("k", "1").await.unwrap();
    cluster.state().silent.push(1);
    let before = cluster.state().requests;
    let put = tokio::spawn(async move { client.put("k", "2").await });
    // It and another are asked in turn: the fourth time it would be waited for for 1.6 s.
    while cluster.state().requests < before + 7 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cluster.lead(1, 2);
    let moved = Instant::now();
    put.await.unwrap().unwrap();
    assert!(moved.elapsed() < Duration::from_secs(1), "{:?}", moved.elapsed());
    cluster.assert_no_violation();
}

#[tokio::test]
async fn many_callers_in_the_same_trouble_ask_for_the_routes_once() {
    let cluster = Cluster::start(2, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let before = cluster.state().route_questions;
    cluster.state().split(&["5"]);
    let puts = join_all((0..1000).map(|i| client.put(format!("{i}"), "v"))).await;
    assert!(puts.into_iter().all(|put| put.is_ok()));
    let questions = cluster.state().route_questions - before;
    assert!(questions <= 20, "{questions} questions for the routes");
}

#[tokio::test]
async fn a_deadline_holds_for_reads_and_is_told_to_the_server() {
    let cluster = Cluster::start(1, &[]);
    let client = Client::connect_with(cluster.endpoints(), hasty()).await.unwrap();
    cluster.state().silent.push(1);
    let started = Instant::now();
    let error = client.get("k").await.unwrap_err();
    assert_in_time(started, hasty().deadline);
    assert!(matches!(error, ClientError::DeadlineExceeded { .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Retry);
    let options =
        ReadOptions { deadline: Some(Duration::from_millis(50)), ..ReadOptions::default() };
    let started = Instant::now();
    client.get_with("k", options).await.unwrap_err();
    assert_in_time(started, Duration::from_millis(50));
    let told = cluster.state().timeouts_ms.clone();
    assert!(told.len() >= 2 && told.iter().all(|time| (1..=400).contains(time)), "{told:?}");
    assert!(told.windows(2).all(|pair| pair[1] < pair[0]), "{told:?}");
}

/// Whether the last try is under way when the deadline comes is chance.
#[tokio::test]
async fn what_the_deadline_cuts_short_does_not_hide_why_the_one_before_it_failed() {
    let cluster = Cluster::start(1, &[]);
    let options = ClientOptions { attempt_timeout: hasty().deadline, ..hasty() };
    let client = Client::connect_with(cluster.endpoints(), options).await.unwrap();
    cluster.inject(1, [Fault::Break { apply: false }, Fault::Lose { apply: false }]);
    let error = client.get("k").await.unwrap_err();
    assert!(matches!(error, ClientError::Unavailable { .. }), "{error}");
    assert_eq!(cluster.state().requests, 2);
}

#[tokio::test]
async fn refusals_until_the_deadline_are_told_with_their_reason() {
    let mut cluster = Cluster::start(1, &[]);
    let client = Client::connect_with(cluster.endpoints(), hasty()).await.unwrap();
    cluster.inject(1, (0..200).map(|_| Fault::Refuse(ErrorCode::Unavailable)));
    let started = Instant::now();
    let error = client.get("k").await.unwrap_err();
    assert_in_time(started, hasty().deadline);
    let text = error.to_string();
    assert!(text.contains("c1") && text.contains("n1") && text.contains("on purpose"), "{text}");
    let requests = cluster.state().requests;
    assert!(requests < 30, "{requests} tries within 400 ms");
    cluster.kill_node(1);
    let started = Instant::now();
    let error = client.get("k").await.unwrap_err();
    assert_in_time(started, hasty().deadline);
    assert!(matches!(error, ClientError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn meaningless_answers_are_errors_and_no_panics() {
    let cluster = Cluster::start(1, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    let deletion = response::Result::Delete(v1::DeleteResponse { outcome: None });
    for answer in [None, Some(deletion.clone())] {
        cluster.inject(1, [Fault::Nonsense(answer.clone())]);
        let error = client.get("k").await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Fatal, "{error}");
        cluster.inject(1, [Fault::Nonsense(answer)]);
        assert_eq!(client.put("k", "v").await.unwrap_err().class(), ErrorClass::Unknown);
    }
    cluster.inject(1, [Fault::Nonsense(Some(deletion))]);
    assert_eq!(client.delete("k").await.unwrap_err().class(), ErrorClass::Unknown);
    cluster.inject(1, [Fault::Refuse(ErrorCode::Unspecified)]);
    client.put("k", "v").await.unwrap();
    cluster.inject(1, [Fault::Refuse(ErrorCode::Invalid)]);
    assert_eq!(client.get("k").await.unwrap_err().class(), ErrorClass::Invalid);
}

/// One replica knows why the cohort does not serve; another one's node is gone. What is reported is
/// what the first one said, whichever was asked last.
#[tokio::test]
async fn what_a_replica_said_is_told_rather_than_that_another_one_was_not_there() {
    let cluster = Cluster::start(2, &[]);
    let client = Client::connect_with(cluster.endpoints(), hasty()).await.unwrap();
    cluster.inject(1, [Fault::Refuse(ErrorCode::Unavailable)]);
    cluster.state().told_leaders.clear();
    cluster.state().hints = false;
    // From now on nobody leads, and each says so when it is asked.
    cluster.state().leaders.insert(1, 9);
    cluster.inject(2, (0..200).map(|_| Fault::Break { apply: false }));
    let error = client.get("k").await.unwrap_err();
    assert!(error.to_string().contains("UNAVAILABLE"), "{error}");
    assert_eq!(error.class(), ErrorClass::Retry);
}
