//! Every key has one cohort, every cohort one leader, and a request that takes another way is told
//! the right one. Spoken here without the client crate, in the wire format alone.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use trireme_proto::v1::request::Operation;
use trireme_proto::v1::response::Result as Answer;
use trireme_proto::v1::{self, ErrorCode};
use trireme_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

use common::wire::{Wire, error_of, get, put, put_if_absent, route_of, scan};
use common::{
    Cluster, Import, Statuses, assert_holds, replication, sorted, split_keys, until, words,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// One key in each of the default four ranges.
const KEYS: [&str; 4] = ["apple", "grape", "pear", "zebra"];

#[test]
fn an_old_route_is_answered_with_the_newer_one_and_a_follower_names_the_leader() {
    let cluster = Cluster::start(&["--ranges", "4"]);
    let statuses = cluster.wait_until_caught_up(PATIENCE);
    cluster.runtime.block_on(async {
        let mut nodes = wires(&cluster).await;
        let table = nodes.get_mut(&1).unwrap().routes().await;
        for key in KEYS {
            let route = route_of(&table, key.as_bytes()).clone();
            let leader = statuses.leader(route.cohort).unwrap().0;
            for (&node, wire) in &mut nodes {
                stale_routes_are_refused(wire, key, &table).await;
                let error = match wire.call(put(key, "value", Some(&route))).await {
                    Answer::Error(error) if node != leader => error,
                    Answer::Put(_) if node == leader => continue,
                    other => panic!("node {node}, led by {leader}: {other:?}"),
                };
                assert_eq!(error.code(), ErrorCode::NotLeader, "{error:?}");
                let named = error.leader.expect("the leader is known");
                assert_eq!(named.address, cluster.address(leader));
                let mut named = Wire::connect(&named.address).await;
                assert!(matches!(named.call(put(key, "value", None)).await, Answer::Put(_)));
                let strong = wire.call(get(key, None)).await;
                assert_eq!(error_of(strong).code(), ErrorCode::NotLeader);
            }
        }
    });
    assert_eq!(cluster.rows().len(), KEYS.len());
}

/// Asks for a key by routes that are not its range's, of the past, the future and a neighbour.
async fn stale_routes_are_refused(wire: &mut Wire, key: &str, table: &v1::RouteTable) {
    let current = route_of(table, key.as_bytes());
    let neighbour = table.ranges.iter().find(|range| range.cohort != current.cohort).unwrap();
    for (cohort, epoch) in [
        (current.cohort, current.epoch - 1),
        (current.cohort, current.epoch + 1),
        (neighbour.cohort, neighbour.epoch),
        (99, 1),
    ] {
        let taken = v1::RangeRoute { cohort, epoch, ..current.clone() };
        let refused = [
            put_if_absent(key, "by a stale route", Some(&taken)),
            get(key, Some(&taken)),
            scan(key, Some(&taken)),
            Operation::Delete(v1::DeleteRequest {
                route: Some(v1::Route { cohort, epoch }),
                key: key.as_bytes().to_vec().into(),
                ..Default::default()
            }),
        ];
        for operation in refused {
            let error = error_of(wire.call(operation).await);
            assert_eq!(error.code(), ErrorCode::StaleRoute, "{cohort} {epoch}: {error:?}");
            let newer = error.route.expect("the newer route is told");
            assert_eq!((newer.cohort, newer.epoch), (current.cohort, current.epoch));
            assert_eq!((newer.start, newer.end), (current.start.clone(), current.end.clone()));
        }
    }
}

#[test]
fn unary_calls_health_and_reflection_answer() {
    let cluster = Cluster::start(&["--ranges", "4"]);
    let statuses = cluster.wait_until_caught_up(PATIENCE);
    cluster.runtime.block_on(async {
        for key in KEYS {
            let mut wire = leader_of(&cluster, &statuses, key).await;
            unary_calls(&mut wire, key).await;
        }
        for node in 1..=3 {
            let wire = Wire::connect(&cluster.address(node)).await;
            let mut health = HealthClient::new(wire.channel.clone());
            for service in ["", "trireme.v1.Kv", "trireme.v1.Admin"] {
                let request = HealthCheckRequest { service: service.to_owned() };
                let told = health.check(request).await.unwrap().into_inner();
                assert_eq!(told.status().as_str_name(), "SERVING", "{service}");
            }
            let unknown = HealthCheckRequest { service: "no.such.Service".to_owned() };
            assert_eq!(health.check(unknown).await.unwrap_err().code(), Code::NotFound);
            let services = wire.reflected_services().await;
            for service in ["trireme.v1.Kv", "trireme.v1.Admin", "grpc.health.v1.Health"] {
                assert!(services.iter().any(|found| found == service), "{services:?}");
            }
        }
    });
}

async fn unary_calls(wire: &mut Wire, key: &str) {
    let kv = &mut wire.kv;
    let bytes = || key.as_bytes().to_vec().into();
    let request = v1::PutRequest { key: bytes(), value: "one".into(), ..Default::default() };
    let put = kv.put(request.clone()).await.unwrap().into_inner();
    let Some(v1::put_response::Outcome::Version(version)) = put.outcome else { panic!("{put:?}") };
    let condition = Some(v1::condition::Condition::Version(version + 1));
    let condition = Some(v1::Condition { condition });
    let refused = kv.put(v1::PutRequest { condition, ..request }).await.unwrap().into_inner();
    let failed = v1::ConditionFailed { current: Some(version) };
    assert_eq!(refused.outcome, Some(v1::put_response::Outcome::ConditionFailed(failed)));

    let request = v1::GetRequest { key: bytes(), ..Default::default() };
    let row = v1::Row { key: bytes(), value: "one".into(), version };
    let got = kv.get(request.clone()).await.unwrap().into_inner();
    assert_eq!((got.row.as_ref(), got.freshness), (Some(&row), None));
    let timeline = v1::Consistency::Timeline.into();
    let timeline = v1::GetRequest { consistency: timeline, ..request.clone() };
    let freshness = kv.get(timeline).await.unwrap().into_inner().freshness.unwrap();
    // A leader counts from when it is last known to have been one.
    assert!(freshness.age_ms.is_some_and(|age| age < 10_000), "{freshness:?}");
    assert!(freshness.applied.unwrap().seq > 0);

    let scan = v1::ScanRequest { start: bytes(), limit: 1, ..Default::default() };
    let page = kv.scan(scan).await.unwrap().into_inner();
    assert_eq!((page.rows, page.covered_start), (vec![row], bytes()));

    let delete = v1::DeleteRequest { key: bytes(), ..Default::default() };
    for existed in [true, false] {
        let deleted = kv.delete(delete.clone()).await.unwrap().into_inner();
        assert_eq!(deleted.outcome, Some(v1::delete_response::Outcome::Existed(existed)));
    }
    assert_eq!(kv.get(request).await.unwrap().into_inner().row, None);
}

#[test]
fn requests_that_can_never_succeed_are_invalid_and_do_nothing() {
    let cluster = Cluster::start(&["--ranges", "4"]);
    let statuses = cluster.wait_until_caught_up(PATIENCE);
    cluster.runtime.block_on(async {
        let mut wire = leader_of(&cluster, &statuses, "kk").await;
        let long_key = "k".repeat(KEY_BYTES_MAX + 1);
        let long_value = "v".repeat(VALUE_BYTES_MAX + 1);
        let with_id = |client: usize, sequence: u64| {
            let Operation::Put(put) = put("k", "v", None) else { unreachable!() };
            let client = vec![7; client].into();
            let write_id = v1::WriteId { client, sequence, first_incomplete: 1, start: None };
            Operation::Put(v1::PutRequest { write_id: Some(write_id), ..put })
        };
        let Operation::Get(get_k) = get("k", None) else { unreachable!() };
        let backwards =
            v1::ScanRequest { start: "n".into(), end: Some("k".into()), ..Default::default() };
        for (what, operation) in [
            ("a long key", put(&long_key, "v", None)),
            ("a long key", get(&long_key, None)),
            ("a long value", put("k", &long_value, None)),
            ("a short client", with_id(15, 1)),
            ("no sequence", with_id(16, 0)),
            ("an unknown level", Operation::Get(v1::GetRequest { consistency: 9, ..get_k })),
            ("an interval without a key", Operation::Scan(backwards)),
        ] {
            let error = error_of(wire.call(operation).await);
            assert_eq!(error.code(), ErrorCode::Invalid, "{what}: {error:?}");
            assert!(!error.message.is_empty());
        }
        let error = error_of(wire.send(1, 0, None).await);
        assert_eq!(error.code(), ErrorCode::Invalid, "no operation: {error:?}");
        // And the stream goes on.
        assert!(matches!(
            wire.call(get("k", None)).await,
            Answer::Get(v1::GetResponse { row: None, .. })
        ));
    });
    assert!(cluster.rows().is_empty());
}

/// A leader without a majority takes writes and cannot commit them. What is then answered
/// EXPIRED was never done; what is answered AMBIGUOUS or not yet may be done, once; and a write
/// that is sent again under its name is not done again.
#[test]
fn an_expired_write_is_never_done_and_a_repeated_one_never_twice() {
    // One batch holds two such values, and four batches replicate at once; the rest waits.
    const VALUE_BYTES: usize = 600_000;
    const WRITES: usize = 24;
    const TIMEOUT_MS: u64 = 300;

    let cluster = Cluster::start(&["--ranges", "1"]);
    let statuses = cluster.wait_until_caught_up(PATIENCE);
    let leader = statuses.leader(1).unwrap().0;
    let others: Vec<usize> = (1..=3).filter(|&node| node != leader).collect();
    let numbers = || 1..=WRITES as u64;
    let key = |write: u64| format!("key-{write:02}");
    let value = "v".repeat(VALUE_BYTES);
    let write = |write: u64| put_once(&key(write), &value, write);

    let answers: BTreeMap<u64, Answer> = cluster.runtime.block_on(async {
        let mut wire = Wire::connect(&cluster.address(leader)).await;
        others.iter().for_each(|&node| cluster.signal(node, Signal::STOP));
        let mut stream = wire.open().await;
        for number in numbers() {
            stream.send(number, TIMEOUT_MS, Some(write(number))).await;
        }
        // What the test needs here is that time passes: the requests' own.
        tokio::time::sleep(Duration::from_millis(2 * TIMEOUT_MS)).await;
        others.iter().for_each(|&node| cluster.signal(node, Signal::CONT));
        let mut answers = BTreeMap::new();
        while answers.len() < WRITES {
            let (number, answer) = stream.next().await.expect("every request is answered");
            assert!(answers.insert(number, answer).is_none(), "{number} was answered twice");
        }
        answers
    });
    let mut expired = 0;
    let mut versions = BTreeMap::new();
    let rows = cluster.rows();
    for (&number, answer) in &answers {
        let is_there = rows.contains_key(&key(number));
        match answer {
            Answer::Put(_) => assert!(is_there, "{number} was acknowledged and is not there"),
            Answer::Error(error) => match error.code() {
                ErrorCode::Expired => {
                    expired += 1;
                    assert!(!is_there, "{number} had expired and was done");
                }
                ErrorCode::Unavailable | ErrorCode::NotLeader | ErrorCode::Busy => {
                    assert!(!is_there, "{number} was refused and was done: {error:?}");
                }
                ErrorCode::Ambiguous => {}
                _ => panic!("{number}: {error:?}"),
            },
            other => panic!("{number}: {other:?}"),
        }
    }
    assert!(expired > 0, "nothing has expired: the test tests nothing");

    // Every write is sent twice more: each has one version in the end.
    for _ in 0..2 {
        let statuses = cluster.wait_until_caught_up(PATIENCE);
        cluster.runtime.block_on(async {
            let mut wire = leader_of(&cluster, &statuses, "key").await;
            for number in numbers() {
                let Answer::Put(answer) = wire.call(write(number)).await else {
                    panic!("{number} was not done")
                };
                let seen = versions.entry(number).or_insert(answer);
                assert_eq!(*seen, answer, "{number} was done twice");
                if let Some(Answer::Put(first)) = answers.get(&number) {
                    assert_eq!(*first, answer, "{number} was done twice");
                }
            }
        });
    }
    assert_eq!(cluster.rows().len(), WRITES);
}

/// Returns a put that its cohort does once, however often it is sent.
fn put_once(key: &str, value: &str, sequence: u64) -> Operation {
    let Operation::Put(put) = put(key, value, None) else { unreachable!() };
    let client = vec![42; 16].into();
    let write_id = Some(v1::WriteId { client, sequence, first_incomplete: 1, start: None });
    Operation::Put(v1::PutRequest { write_id, ..put })
}

/// M7: the keys at and around every border.
#[test]
fn a_key_at_a_border_is_served_by_exactly_one_cohort() {
    let cluster = Cluster::start(&["--split-at", "g,gg,n,t"]);
    let statuses = cluster.wait_until_caught_up(PATIENCE);
    assert_eq!(statuses.cohorts().len(), 5);
    for (below, at, above) in
        [("f~", "g", "g!"), ("gf~", "gg", "gg!"), ("m~", "n", "n!"), ("s~", "t", "t!")]
    {
        let cohorts = [below, at, above].map(|key| cohorts_of(&statuses, key));
        cohorts.iter().for_each(|serving| assert_eq!(serving.len(), 1, "{serving:?}"));
        assert_ne!(cohorts[0], cohorts[1], "a range does not hold its end");
        assert_eq!(cohorts[1], cohorts[2], "a range holds its start");
        cluster.runtime.block_on(async {
            for key in [below, at, above] {
                let mut wire = leader_of(&cluster, &statuses, key).await;
                let Answer::Put(_) = wire.call(put(key, key, None)).await else {
                    panic!("{key} is not served")
                };
                let table = wire.routes().await;
                let cohort = route_of(&table, key.as_bytes()).cohort;
                assert_eq!(cohorts_of(&statuses, key), [cohort]);
                // No other cohort takes it, whichever node is asked.
                for other in table.ranges.iter().filter(|range| range.cohort != cohort) {
                    for node in 1..=3 {
                        let mut wire = Wire::connect(&cluster.address(node)).await;
                        let refused = wire.call(put(key, "elsewhere", Some(other))).await;
                        assert_eq!(error_of(refused).code(), ErrorCode::StaleRoute);
                    }
                }
            }
        });
    }
    let rows = cluster.rows();
    assert!(rows.len() == 12 && rows.iter().all(|(key, value)| key == value), "{rows:?}");
}

/// Returns the cohorts that replicas claim a key for.
fn cohorts_of(statuses: &Statuses, key: &str) -> Vec<u64> {
    let claims = |cohort: u64| {
        let replicas = statuses.replicas(cohort);
        let holds = |replica: &v1::ReplicaStatus| {
            replica.start[..] <= *key.as_bytes()
                && replica.end.as_ref().is_none_or(|end| *key.as_bytes() < end[..])
        };
        let claiming = replicas.iter().filter(|(_, replica)| holds(replica)).count();
        assert!(claiming == 0 || claiming == replicas.len(), "the replicas of {cohort} differ");
        claiming > 0
    };
    statuses.cohorts().into_iter().filter(|&cohort| claims(cohort)).collect()
}

#[test]
fn handing_leadership_over_loses_nothing_and_fails_nobody() {
    let words = words();
    let rows = sorted(&words);
    let cluster = Cluster::start(&["--split-at", &split_keys(&rows, 4)]);
    let mut import = Import::start(&cluster, words.iter().map(|(w, n)| (w, n)), &[]);
    import.wait_for_acknowledged(words.len() / 50);
    let mut moved = 0;
    for round in 0..2 {
        for cohort in 1..=4 {
            let leader = cluster.wait_for_leader(cohort, PATIENCE);
            let to = leader % 3 + 1;
            let asked = cluster.runtime.block_on(async {
                Wire::connect(&cluster.address(leader)).await.transfer(cohort, to as u64).await
            });
            asked.unwrap_or_else(|error| panic!("round {round}: {error}"));
            until("the other node leads", PATIENCE, || {
                (cluster.wait_for_leader(cohort, PATIENCE) != leader).then_some(())
            });
            moved += 1;
        }
    }
    assert_eq!(moved, 8);
    let acknowledged = import.acknowledged();
    assert_holds(&cluster.rows(), &acknowledged, &rows);
    let summary = import.finish();
    assert!(summary.out().contains(" 0 errors"), "{summary:?}");
    assert!(cluster.rows() == rows);
    cluster.runtime.block_on(async {
        let mut wire = Wire::connect(&cluster.address(1)).await;
        assert_eq!(wire.transfer(99, 1).await.unwrap_err().code(), Code::NotFound);
        assert_eq!(wire.transfer(1, 9).await.unwrap_err().code(), Code::InvalidArgument);
    });
}

/// M8 and M9: five nodes, three replicas each. Every node is in as many cohorts as the chained
/// placement says, and the death of one leader does not concern the cohorts that others lead.
#[test]
fn five_nodes_share_the_cohorts_and_one_death_leaves_the_other_leaders_alone() {
    const NODES: usize = 5;
    let cluster = &mut Cluster::start_nodes(NODES, &["--ranges", "5", "--replicas", "3"]);
    let statuses = cluster.wait_until_caught_up(PATIENCE);
    for (node, status) in &statuses.0 {
        let cohorts: Vec<u64> = status.replicas.iter().map(|replica| replica.cohort).collect();
        assert_eq!(cohorts.len(), 3, "node {node} has {cohorts:?}");
    }
    for cohort in 1..=NODES {
        let mut expected: Vec<usize> = (0..3).map(|i| (cohort - 1 + i) % NODES + 1).collect();
        expected.sort_unstable();
        let replicas = statuses.replicas(cohort as u64);
        let found: Vec<usize> = replicas.iter().map(|(node, _)| *node).collect();
        assert_eq!(found, expected, "cohort {cohort}");
    }
    let leaders = |statuses: &Statuses| -> BTreeMap<u64, (usize, u64)> {
        let cohorts = statuses.cohorts().into_iter();
        cohorts
            .filter_map(|cohort| {
                let (node, replica) = statuses.leader(cohort)?;
                Some((cohort, (node, replica.epoch)))
            })
            .collect()
    };
    let before = leaders(&statuses);
    let table =
        cluster.runtime.block_on(async { Wire::connect(&cluster.address(1)).await.routes().await });
    let victim = before[&1].0;
    cluster.kill(victim);
    cluster.runtime.block_on(async {
        for (cohort, &(leader, _)) in before.iter().filter(|(_, (node, _))| *node != victim) {
            // Asked of the leader itself, once: a cohort that had to elect would refuse.
            let route = table.ranges.iter().find(|range| range.cohort == *cohort).unwrap();
            let key = format!("{}-key", String::from_utf8(route.start.to_vec()).unwrap());
            let mut wire = Wire::connect(&cluster.address(leader)).await;
            let answer = wire.call(put(&key, "value", Some(route))).await;
            assert!(matches!(answer, Answer::Put(_)), "cohort {cohort}: {answer:?}");
            let answer = wire.call(get(&key, Some(route))).await;
            assert!(matches!(answer, Answer::Get(_)), "cohort {cohort}: {answer:?}");
        }
    });
    for key in ["aardvark", "fig", "lemon", "quince", "yam"] {
        cluster.run(["put", key, "value"]).out();
        assert_eq!(cluster.run(["get", key]).out(), "value\n");
    }
    let after = leaders(&cluster.wait_until_caught_up(PATIENCE));
    // A primary goes on under another version without its secondary.
    let counts_versions = replication().as_deref() == Some("pacifica");
    for (cohort, before) in before.iter().filter(|(_, (node, _))| *node != victim) {
        let same =
            if counts_versions { after[cohort].0 == before.0 } else { after[cohort] == *before };
        assert!(same, "cohort {cohort} had no reason to elect: {before:?}, {:?}", after[cohort]);
    }
    cluster.restart_node(victim);
    cluster.wait_until_caught_up(Duration::from_secs(60));
}

async fn wires(cluster: &Cluster) -> BTreeMap<usize, Wire> {
    let mut wires = BTreeMap::new();
    for node in cluster.running() {
        wires.insert(node, Wire::connect(&cluster.address(node)).await);
    }
    wires
}

/// Connects to the node that leads a key's cohort.
async fn leader_of(cluster: &Cluster, statuses: &Statuses, key: &str) -> Wire {
    let cohorts = cohorts_of(statuses, key);
    let (node, _) = statuses.leader(cohorts[0]).expect("the cohort has a leader");
    Wire::connect(&cluster.address(node)).await
}
