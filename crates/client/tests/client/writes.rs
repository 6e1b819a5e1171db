//! Writes are done once, and their callers learn the truth about them.

use std::time::{Duration, Instant};

use futures::future::join_all;
use trireme_client::{Bytes, Client, ClientError, ClientOptions, Conditional, ErrorClass};
use trireme_proto::v1::ErrorCode;

use crate::failures::{assert_in_time, hasty};
use trireme_fake::{Cluster, Fault};

/// Waits until `holds`, which must be soon.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(5), "not within 5 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Every kind of trouble at once: leaders move, streams break before and after the write was done,
/// answers are lost, ranges change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_concurrent_puts_amid_moves_and_breaks_are_done_once_each() {
    let cluster = Cluster::start(3, &["3", "6"]);
    let options =
        ClientOptions { attempt_timeout: Duration::from_millis(200), ..ClientOptions::default() };
    let client = Client::connect_with(cluster.endpoints(), options).await.unwrap();
    cluster.state().move_leaders_every = Some(150);
    for id in 1..=3 {
        for apply in [true, false] {
            let calm = || (0..40).map(|_| Fault::Delay(Duration::from_millis(1)));
            cluster.inject(id, [Fault::Break { apply }, Fault::Ambiguous { apply }]);
            cluster.inject(id, calm());
            cluster.inject(id, [Fault::Lose { apply }, Fault::Refuse(ErrorCode::Unavailable)]);
            cluster.inject(id, calm());
            cluster.inject(id, [Fault::Break { apply }, Fault::Busy { retry_after_ms: 3 }]);
        }
    }
    let puts = (0..1000).map(|i| {
        let client = client.clone();
        tokio::spawn(async move { client.put_if_absent(format!("{i:03}"), format!("{i}")).await })
    });
    let puts: Vec<_> = puts.collect();
    for (i, put) in puts.into_iter().enumerate() {
        // Were a put done twice, the second time its key would not be absent.
        assert!(put.await.unwrap().unwrap().is_done(), "put {i} was done twice");
    }
    let state = cluster.state();
    assert_eq!((state.applied, state.rows.len()), (1000, 1000));
    for i in 0..1000 {
        assert_eq!(state.rows[&Bytes::from(format!("{i:03}"))].0, format!("{i}"));
    }
    assert!(state.repeats > 0, "no write was sent again");
    drop(state);
    cluster.assert_no_violation();
}

#[tokio::test]
async fn a_write_that_is_sent_again_is_answered_as_the_first_time() {
    let cluster = Cluster::start(1, &[]);
    let options =
        ClientOptions { attempt_timeout: Duration::from_millis(50), ..ClientOptions::default() };
    let client = Client::connect_with(cluster.endpoints(), options).await.unwrap();
    let troubles = [
        Fault::Break { apply: true },
        Fault::Lose { apply: true },
        Fault::Ambiguous { apply: true },
        Fault::Break { apply: false },
        Fault::Lose { apply: false },
        Fault::Ambiguous { apply: false },
    ];
    for (i, trouble) in (1..).zip(troubles) {
        let key = format!("{i}");
        cluster.inject(1, [trouble.clone()]);
        let put = client.put_if_absent(key.clone(), "v").await.unwrap();
        let Conditional::Done(version) = put else { panic!("{trouble:?} had it done twice") };
        assert_eq!(client.get(key.clone()).await.unwrap().unwrap().version, version);
        assert_eq!(cluster.state().applied, 2 * i - 1);
        cluster.inject(1, [trouble.clone()]);
        assert!(client.delete(key).await.unwrap(), "{trouble:?} had it deleted twice");
        assert_eq!(cluster.state().applied, 2 * i);
    }
    cluster.assert_no_violation();
}

#[tokio::test]
async fn a_write_without_a_definite_answer_is_ambiguous() {
    let cluster = Cluster::start(1, &[]);
    for apply in [true, false] {
        for trouble in [
            vec![Fault::Lose { apply }],
            vec![Fault::Break { apply }],
            vec![Fault::Ambiguous { apply }],
            // What is refused later says nothing about the copy that was sent first.
            vec![Fault::Lose { apply }, Fault::Refuse(ErrorCode::Invalid)],
        ] {
            let client = Client::connect_with(cluster.endpoints(), hasty()).await.unwrap();
            cluster.inject(1, trouble.clone());
            cluster.inject(1, (0..200).map(|_| Fault::Refuse(ErrorCode::Unavailable)));
            let error = client.put("k", "v").await.unwrap_err();
            assert!(matches!(error, ClientError::Ambiguous { .. }), "{trouble:?}: {error}");
            assert_eq!(error.class(), ErrorClass::Unknown);
            cluster.state().faults.clear();
        }
    }
}

#[tokio::test]
async fn a_write_that_was_never_taken_is_definitely_not_done() {
    let mut cluster = Cluster::start(1, &[]);
    // Only what was answered is known not to be done: none is sent right before the deadline.
    let deadline = hasty().deadline;
    let options = ClientOptions {
        attempt_timeout: deadline,
        backoff_min: 2 * deadline,
        backoff_max: 2 * deadline,
        ..hasty()
    };
    let client = Client::connect_with(cluster.endpoints(), options).await.unwrap();
    for code in [ErrorCode::Unavailable, ErrorCode::Expired, ErrorCode::NotLeader] {
        cluster.inject(1, (0..200).map(|_| Fault::Refuse(code)));
        let started = Instant::now();
        let error = client.put("k", "v").await.unwrap_err();
        assert_in_time(started, hasty().deadline);
        assert!(matches!(error, ClientError::Unavailable { .. }), "{error}");
        cluster.state().faults.clear();
    }
    cluster.inject(1, (0..50).map(|_| Fault::Busy { retry_after_ms: 30 }));
    let error = client.put("k", "v").await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Retry, "{error}");
    // A client that has no stream yet, of a node that is gone.
    let client = Client::connect_with(cluster.endpoints(), hasty()).await.unwrap();
    cluster.kill_node(1);
    let started = Instant::now();
    let error = client.put("k", "v").await.unwrap_err();
    assert_in_time(started, hasty().deadline);
    assert!(matches!(error, ClientError::Unavailable { .. }), "{error}");
    assert_eq!(cluster.state().applied, 0);
}

#[tokio::test]
async fn a_write_that_waits_for_its_turn_was_not_sent() {
    let cluster = Cluster::start(1, &[]);
    let options = ClientOptions { in_flight_max: 2, ..hasty() };
    let client = Client::connect_with(cluster.endpoints(), options).await.unwrap();
    cluster.state().silent.push(1);
    let errors = join_all((0..5).map(|i| client.put(format!("{i}"), "v"))).await;
    let classes = errors.into_iter().map(|error| error.unwrap_err().class());
    let (unknown, definite): (Vec<_>, Vec<_>) =
        classes.partition(|class| *class == ErrorClass::Unknown);
    assert_eq!((unknown.len(), definite), (2, vec![ErrorClass::Retry; 3]));
}

/// One cohort without a leader must not hold up the writes to the others.
#[tokio::test]
async fn a_cohort_in_trouble_does_not_block_another() {
    let cluster = Cluster::start(2, &["m"]);
    let options = ClientOptions { in_flight_max: 4, ..ClientOptions::default() };
    let client = Client::connect_with(cluster.endpoints(), options).await.unwrap();
    cluster.state().silent.push(1);
    let stuck: Vec<_> = (0..4)
        .map(|i| {
            let client = client.clone();
            tokio::spawn(async move { client.put(format!("a{i}"), "v").await })
        })
        .collect();
    until("the writes are stuck", || cluster.state().requests >= 4).await;
    for i in 0..100 {
        client.put(format!("z{i}"), "v").await.unwrap();
    }
    cluster.state().silent.clear();
    for write in stuck {
        write.await.unwrap().unwrap();
    }
    cluster.assert_no_violation();
}

#[tokio::test]
async fn a_dropped_write_leaves_nothing_behind() {
    let cluster = Cluster::start(1, &[]);
    let options =
        ClientOptions { in_flight_max: 3, unanswered_calls_max: 3, ..ClientOptions::default() };
    let client = Client::connect_with(cluster.endpoints(), options).await.unwrap();
    client.put("before", "v").await.unwrap();
    for round in 0..4 {
        cluster.state().silent.push(1);
        let before = cluster.state().requests;
        let writes: Vec<_> = (0..3)
            .map(|i| {
                let client = client.clone();
                tokio::spawn(async move { client.put(format!("{round}/{i}"), "v").await })
            })
            .collect();
        until("the writes have arrived", || cluster.state().requests == before + 3).await;
        writes.iter().for_each(tokio::task::JoinHandle::abort);
        join_all(writes).await;
        cluster.state().silent.clear();
        // All three places are free again: in the window of numbers, and on the stream.
        let puts = join_all((0..3).map(|i| client.put(format!("after{i}"), "v"))).await;
        assert!(puts.into_iter().all(|put| put.is_ok()));
    }
    cluster.assert_no_violation();
}

#[tokio::test]
async fn a_write_dropped_before_it_was_sent_never_is() {
    let cluster = Cluster::start(1, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    // Polled once, a put waits for the stream to take it, which has had no chance to run.
    let mut put = Box::pin(client.put("k", "v"));
    assert!(futures::poll!(put.as_mut()).is_pending());
    drop(put);
    client.put("other", "v").await.unwrap();
    assert_eq!(client.get("k").await.unwrap(), None);
    assert_eq!(cluster.state().requests, 2);
}
