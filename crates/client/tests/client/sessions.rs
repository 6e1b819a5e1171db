//! Sessions that a cohort has forgotten, and timeline reads that must not go back.

use std::time::Duration;

use trireme_client::{Client, ClientError, ClientOptions, ReadOptions};
use trireme_proto::v1::ErrorCode;
use trireme_types::Consistency;

use trireme_fake::{Cluster, Fault};

const TIMELINE: ReadOptions =
    ReadOptions { consistency: Consistency::Timeline, deadline: Some(Duration::from_secs(2)) };

fn forget_all_clients(cluster: &Cluster, start: u64) {
    let mut state = cluster.state();
    let known: Vec<_> = state.clients.keys().cloned().collect();
    state.gone.extend(known.into_iter().map(|client| (client, start)));
}

#[tokio::test]
async fn a_client_that_was_idle_goes_on_in_a_new_session() {
    let cluster = Cluster::start(3, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    client.put("k", "1").await.unwrap();
    forget_all_clients(&cluster, 777);
    let writes = (0..50).map(|_| client.put("k", "2"));
    for done in futures::future::join_all(writes).await {
        done.unwrap();
    }
    let state = cluster.state();
    assert_eq!((state.applied, state.repeats), (51, 0));
    let starts: Vec<_> = state.clients.values().copied().collect();
    assert_eq!(starts.len(), 2, "one new session for all: {starts:?}");
    assert!(starts.contains(&Some(0)) && starts.contains(&Some(777)), "{starts:?}");
}

/// Whether the copy that was lost was applied, nobody can tell any more: to send the write under
/// another name would apply it twice.
#[tokio::test]
async fn a_write_in_doubt_whose_session_is_gone_is_ambiguous() {
    let cluster = Cluster::start(1, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    client.put("k", "1").await.unwrap();
    forget_all_clients(&cluster, 777);
    cluster.inject(1, [Fault::Ambiguous { apply: false }]);
    let error = client.put("k", "2").await.unwrap_err();
    assert!(matches!(error, ClientError::Ambiguous { .. }), "{error:?}");
    assert_eq!(cluster.state().applied, 1);
    client.put("k", "3").await.expect("other writes go on");
}

#[tokio::test]
async fn timeline_reads_of_a_client_never_go_back() {
    let cluster = Cluster::start(3, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    for _ in 0..9 {
        client.put("k", "v").await.unwrap();
    }
    let newest = client.get_with("k", TIMELINE).await.unwrap().freshness.unwrap().applied;
    // Both followers fall behind what was read; one comes back from a restart besides.
    cluster.state().timelines.extend([(2, (newest.seq - 3, Some(5))), (3, (1, None))]);
    for _ in 0..12 {
        let read = client.clone().get_with("k", TIMELINE).await.unwrap();
        assert!(read.freshness.unwrap().applied >= newest, "{read:?}");
    }
    let mut scan = client.scan(..).consistency(Consistency::Timeline);
    let page = scan.next_page().await.unwrap().unwrap();
    assert!(page.freshness.unwrap().applied >= newest);

    cluster.state().timelines.insert(1, (newest.seq - 1, Some(0)));
    let error = client.get_with("k", TIMELINE).await.unwrap_err();
    let ClientError::Unavailable { reason, .. } = &error else { panic!("{error:?}") };
    assert!(reason.contains("older than one read before"), "{reason}");
    // Another client has read nothing that it could go back behind.
    let other = Client::connect(cluster.endpoints()).await.unwrap();
    other.get_with("k", TIMELINE).await.unwrap();
}

/// What was read when no replica knew how old its state was did not count as read.
#[tokio::test]
async fn timeline_reads_never_go_back_behind_a_state_of_unknown_age() {
    let cluster = Cluster::start(3, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    for _ in 0..9 {
        client.put("k", "v").await.unwrap();
    }
    cluster.state().timelines.extend([1, 2, 3].map(|node| (node, (9, None))));
    let read = client.get_with("k", TIMELINE).await.unwrap().freshness.unwrap();
    assert_eq!((read.applied.seq, read.age), (9, None));
    cluster.state().timelines.extend([1, 2, 3].map(|node| (node, (7, Some(0)))));
    let error = client.get_with("k", TIMELINE).await.unwrap_err();
    let ClientError::Unavailable { reason, .. } = &error else { panic!("{error:?}") };
    assert!(reason.contains("older than one read before"), "{reason}");
}

#[tokio::test]
async fn a_state_of_unknown_age_is_the_answer_only_if_no_replica_knows_more() {
    let cluster = Cluster::start(3, &[]);
    let client = Client::connect(cluster.endpoints()).await.unwrap();
    client.put("k", "v").await.unwrap();
    let version = client.get_with("k", TIMELINE).await.unwrap().freshness.unwrap().applied.seq;
    cluster.state().timelines.extend([(1, (version, None)), (3, (version, None))]);
    for _ in 0..9 {
        let read = client.get_with("k", TIMELINE).await.unwrap();
        assert!(read.freshness.unwrap().age.is_some(), "{read:?}");
    }
    cluster.state().timelines.insert(2, (version, None));
    let read = client.get_with("k", TIMELINE).await.unwrap();
    assert_eq!(read.freshness.unwrap().age, None);
    assert_eq!(read.value.unwrap().value, "v");
    // The replicas that know more are gone.
    let options = ClientOptions { deadline: Duration::from_secs(5), ..ClientOptions::default() };
    let client = Client::connect_with(cluster.endpoints(), options).await.unwrap();
    cluster.state().timelines.remove(&2);
    for fault in [Fault::Refuse(ErrorCode::Unavailable), Fault::Break { apply: false }] {
        cluster.inject(2, vec![fault; 20]);
    }
    let read = client.get_with("k", TIMELINE).await.unwrap();
    assert_eq!(read.freshness.unwrap().age, None);
}
