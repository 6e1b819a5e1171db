//! A write is applied once, however late it comes again and however many other clients came between.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::time::Duration;

use trireme_proto::v1::request::Operation;
use trireme_proto::v1::response::Result as Answer;
use trireme_proto::v1::{self, ErrorCode, put_response};

use common::Cluster;
use common::wire::{Wire, error_of, get, put, route_of};

const PATIENCE: Duration = Duration::from_secs(30);

/// A range of each protocol.
const RANGES: [&str; 6] =
    ["--range", "..f=raft", "--range", "f..p=spinnaker", "--range", "p..=pacifica"];

/// A key of each range.
const KEYS: [&str; 3] = ["c", "i", "s"];

/// More clients than a cohort of 0.1.0 remembered.
const OTHERS: u64 = 4_200;

/// Returns the first write of a client.
fn first_put(key: &str, value: &str, client: u64, start: Option<u64>) -> Operation {
    let Operation::Put(put) = put(key, value, None) else { unreachable!("it is a put") };
    let client = u128::from(client).to_be_bytes().to_vec().into();
    let write_id = v1::WriteId { client, sequence: 1, first_incomplete: 1, start };
    Operation::Put(v1::PutRequest { write_id: Some(write_id), ..put })
}

fn version(answer: Answer) -> u64 {
    match answer {
        Answer::Put(v1::PutResponse { outcome: Some(put_response::Outcome::Version(version)) }) => {
            version
        }
        other => panic!("not done: {other:?}"),
    }
}

#[test]
fn a_late_retry_is_recognised_however_many_other_clients_came() {
    let cluster = &Cluster::start(&RANGES);
    cluster.lead_everywhere(1);
    cluster.wait_until_caught_up(PATIENCE);
    cluster.runtime.block_on(async {
        let mut wire = Wire::connect(&cluster.address(1)).await;
        for key in KEYS {
            // One client that says when it started, and one that does not.
            for (client, start) in [(1_000_000, Some(0)), (2_000_000, None)] {
                let early = || first_put(key, "early", client, start);
                let first = version(wire.call(early()).await);
                let newer = version(wire.call(put(key, "newer", None)).await);
                let mut stream = wire.open().await;
                for batch in 0..OTHERS / 60 {
                    for other in 1..=60 {
                        let other = client + batch * 60 + other;
                        stream.send(other, 0, Some(first_put(key, "newer", other, start))).await;
                    }
                    for _ in 0..60 {
                        let (_, answer) = stream.next().await.unwrap();
                        assert!(version(answer) > newer);
                    }
                }
                assert_eq!(version(wire.call(early()).await), first, "{key}: applied twice");
                let Answer::Get(found) = wire.call(get(key, None)).await else { panic!("{key}") };
                assert_eq!(found.row.unwrap().value, "newer");
            }
        }
    });
}

/// What a cohort cannot tell from a write of a client that it has forgotten, it refuses, and names
/// the moment from which the client can go on.
#[test]
fn a_client_that_cannot_be_known_is_refused_and_told_how_to_go_on() {
    let cluster = &Cluster::start(&RANGES);
    cluster.lead_everywhere(1);
    cluster.wait_until_caught_up(PATIENCE);
    cluster.runtime.block_on(async {
        let mut wire = Wire::connect(&cluster.address(1)).await;
        for key in KEYS {
            let strange = Some(u64::MAX);
            let refused = error_of(wire.call(first_put(key, "value", 7, strange)).await);
            assert_eq!(refused.code(), ErrorCode::SessionGone, "{refused:?}");
            let Answer::Get(found) = wire.call(get(key, None)).await else { panic!("{key}") };
            assert_eq!(found.row, None, "{key}");
            let start = Some(refused.session_start);
            let done = version(wire.call(first_put(key, "value", 8, start)).await);
            assert_eq!(version(wire.call(first_put(key, "value", 8, start)).await), done);
            // The clock goes on with the writes, and the routes name it.
            tokio::time::sleep(Duration::from_millis(50)).await;
            version(wire.call(put(key, "value", None)).await);
            let table = wire.routes().await;
            let named = route_of(&table, key.as_bytes()).session_start;
            assert!(named >= refused.session_start + 50, "{named}, {refused:?}");
            assert!(named < refused.session_start + 60_000, "{named}, {refused:?}");
        }
    });
}
