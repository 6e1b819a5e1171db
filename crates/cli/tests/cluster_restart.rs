//! Everything stops, by SIGKILL in the middle of an import or in order, and is started again on the
//! same folder: what was acknowledged is there.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::time::Duration;

use serde_json::Value;

use common::wire::{Wire, get};
use common::{Cluster, Import, Rows, assert_holds, sorted, split_keys, until_ok, words};

const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);

#[test]
fn all_nodes_killed_amid_an_import_come_back_with_what_they_acknowledged_lsm() {
    survives_the_death_of_all_nodes("lsm");
}

#[test]
fn all_nodes_killed_amid_an_import_come_back_with_what_they_acknowledged_sled() {
    survives_the_death_of_all_nodes("sled");
}

fn survives_the_death_of_all_nodes(engine: &str) {
    let words: Vec<_> = words().into_iter().step_by(2).collect();
    let rows = sorted(&words);
    let pairs = || words.iter().map(|(word, number)| (word, number));
    let splits = split_keys(&rows, 4);
    let cluster = &mut Cluster::start(&["--engine", engine, "--split-at", &splits]);

    let mut import = Import::start(cluster, pairs(), &[]);
    import.wait_for_acknowledged(words.len() / 8);
    cluster.kill_all();
    let acknowledged = import.abandon();
    cluster.up_again();
    assert_one_scan(cluster);
    let found = cluster.rows();
    assert_holds(&found, &acknowledged, &rows);
    assert!(found.len() < rows.len(), "the import was over before the nodes were killed");

    // Twice in a row, and the second time soon after a start.
    let mut import = Import::start(cluster, pairs().rev(), &[]);
    import.wait_for_acknowledged(acknowledged.len() + words.len() / 16);
    cluster.kill_all();
    let acknowledged = import.abandon();
    cluster.up_again();
    assert_holds(&cluster.rows(), &acknowledged, &rows);

    let summary = Import::start(cluster, pairs(), &[]).finish();
    assert!(summary.out().starts_with(&format!("imported {} rows, 0 errors", words.len())));
    assert!(cluster.rows() == rows, "an import that was run again is not complete");
    cluster.stop();
    cluster.up_again();
    assert_one_scan(cluster);
    assert!(cluster.rows() == rows, "a cluster that was stopped in order has lost rows");
}

/// M12: each node has read its log once, whatever the number of its cohorts.
#[track_caller]
fn assert_one_scan(cluster: &Cluster) {
    let statuses = cluster.wait_until_caught_up(CATCH_UP_TIMEOUT);
    for node in cluster.running() {
        let log = statuses.log(node);
        assert_eq!(log.scans, 1, "node {node}: {log:?}");
        assert!(log.scanned_bytes > 0, "node {node}: {log:?}");
    }
}

/// A node that was away while the others let go of the log that it needs is sent snapshots, of all
/// its cohorts, and then goes on from the log.
#[test]
fn a_node_that_missed_more_than_the_log_holds_catches_up_by_snapshot() {
    const SMALL_LOG: [&str; 4] = ["--segment-bytes", "1048576", "--log-bytes-max", "4194304"];
    const AWAY: usize = 3;

    let cluster = &mut Cluster::start_by_hand(&["g", "n", "t"], &SMALL_LOG);
    let mut rows = import(cluster, "before", 2_000, 100);
    let before = cluster.wait_until_caught_up(CATCH_UP_TIMEOUT);
    let had = |cohort| {
        let replicas = before.replicas(cohort);
        let (_, replica) = replicas.into_iter().find(|(node, _)| *node == AWAY).unwrap();
        replica.last.unwrap().seq
    };
    cluster.kill(AWAY);
    rows.extend(import(cluster, "away", 20_000, 1_000));
    until_ok("the log that the dead node needs is gone", CATCH_UP_TIMEOUT, || {
        let statuses = cluster.statuses()?;
        for cohort in before.cohorts() {
            let (_, leader) = statuses.leader(cohort).ok_or("no leader")?;
            if leader.purged.unwrap().seq <= had(cohort) {
                return Err(format!("cohort {cohort}: {leader:?}"));
            }
        }
        for node in cluster.running() {
            // The limit, the segment that is being written, and one that was begun meanwhile.
            if statuses.log(node).segments > 6 {
                return Err(format!("node {node}: {statuses:#?}"));
            }
        }
        Ok(())
    });

    cluster.restart_node_with(AWAY, &SMALL_LOG);
    let caught_up = cluster.wait_until_caught_up(CATCH_UP_TIMEOUT);
    for cohort in caught_up.cohorts() {
        let replicas = caught_up.replicas(cohort);
        let (_, replica) = replicas.into_iter().find(|(node, _)| *node == AWAY).unwrap();
        assert!(replica.purged.unwrap().seq > had(cohort), "not by snapshot: {replica:?}");
    }
    cluster.lead_everywhere(AWAY);
    assert_same(&cluster.rows(), &rows);

    // And so it is after a start from what the snapshots left on its disk.
    rows.extend(import(cluster, "after", 2_000, 100));
    cluster.kill(AWAY);
    cluster.restart_node_with(AWAY, &SMALL_LOG);
    cluster.wait_until_caught_up(CATCH_UP_TIMEOUT);
    cluster.lead_everywhere(AWAY);
    assert_same(&cluster.rows(), &rows);
}

/// Imports so many rows over all ranges, with values of so many bytes, and returns them.
#[track_caller]
fn import(cluster: &Cluster, name: &str, count: usize, value_bytes: usize) -> Rows {
    let row = |number: usize| {
        let letter = char::from(b'a' + u8::try_from(number % 26).unwrap());
        let value = format!("{name} {number} ").repeat(value_bytes);
        (format!("{letter}{name}{number:06}"), value[..value_bytes].to_owned())
    };
    let rows: Rows = (0..count).map(row).collect();
    let summary = Import::start(cluster, &rows, &[]).finish();
    assert!(summary.out().starts_with(&format!("imported {count} rows, 0 errors")), "{summary:?}");
    rows
}

/// What a cluster was started with goes on until something else is asked for, also where a node is
/// started by its folder alone; what would not go with it is refused, and changes nothing.
#[test]
fn the_periods_are_remembered_until_others_are_given() {
    let remembered = |cluster: &Cluster, path: &str| {
        let text = std::fs::read_to_string(cluster.data().join(path)).unwrap();
        let file: Value = serde_json::from_str(&text).unwrap();
        let periods = ["commit_period", "beacon_interval", "lease", "grace"].map(|name| {
            let period: Duration = serde_json::from_value(file["timing"][name].clone()).unwrap();
            u64::try_from(period.as_millis()).unwrap()
        });
        (periods, file["min_replicas_for_write"].as_u64().unwrap())
    };
    let lease = ["--lease", "2s", "--grace", "3s", "--min-replicas-for-write", "2"];
    let cluster = &mut Cluster::start(&lease);
    for path in ["cluster.json", "node-1/node.json", "node-3/node.json"] {
        assert_eq!(remembered(cluster, path), ([20, 100, 2000, 3000], 2), "{path}");
    }
    cluster.stop();
    cluster.up_again_with(&["--commit-period", "1.5s"]);
    for path in ["cluster.json", "node-1/node.json", "node-3/node.json"] {
        assert_eq!(remembered(cluster, path), ([1500, 100, 2000, 3000], 2), "{path}");
    }
    cluster.kill(3);
    let refused = cluster.node_fails(3, &["--lease", "2.9s"]);
    assert!(refused.error(2).contains("a grace of 3s must be at least 3.19s"), "{refused:?}");
    cluster.restart_node_with(3, &["--beacon-interval", "200ms"]);
    cluster.wait_until_caught_up(CATCH_UP_TIMEOUT);
    cluster.kill(3);
    cluster.restart_node(3);
    cluster.wait_until_caught_up(CATCH_UP_TIMEOUT);
    assert_eq!(remembered(cluster, "node-3/node.json"), ([1500, 200, 2000, 3000], 2));
}

/// A node that is stopped in order hands the ranges that it leads to others before it goes: when its
/// process has ended, the others know a leader already, and nobody waits for an election timeout.
#[test]
fn a_node_that_is_stopped_hands_over_what_it_leads_before_it_ends() {
    const STOPPED: usize = 2;

    let cluster = &mut Cluster::start(&["--ranges", "4"]);
    cluster.run(["put", "before", "1"]).out();
    cluster.lead_everywhere(STOPPED);
    cluster.wait_until_caught_up(CATCH_UP_TIMEOUT);
    cluster.stop_node(STOPPED);
    // Sooner than any follower can have noticed that it hears nothing from its leader.
    let after = cluster.statuses().unwrap();
    for cohort in after.cohorts() {
        for (node, replica) in after.replicas(cohort) {
            assert_ne!(replica.leader, STOPPED as u64, "node {node}: {replica:?}");
            assert_ne!(replica.leader, 0, "node {node}: {replica:?}");
        }
    }
    for key in ["apple", "grape", "melon", "zebra"] {
        cluster.run(["put", key, "1"]).out();
    }
    cluster.restart_node(STOPPED);
    cluster.wait_until_caught_up(CATCH_UP_TIMEOUT);
    assert_eq!(cluster.rows().len(), 5);
}

/// A node that is stopped in order ends its clients' streams in order, when it has answered all that they
/// asked: it does not wait for clients that are silent, and none of them finds a broken connection.
#[test]
fn a_node_that_is_stopped_ends_the_streams_of_its_clients() {
    const STOPPED: usize = 2;

    let cluster = &mut Cluster::start(&["--ranges", "1"]);
    cluster.lead_everywhere(3);
    let address = cluster.address(STOPPED);
    let mut stream = cluster.runtime.block_on(async {
        let mut stream = Wire::connect(&address).await.open().await;
        stream.send(1, 0, Some(get("a", None))).await;
        assert_eq!(stream.next().await.map(|(id, _)| id), Some(1));
        stream
    });
    cluster.stop_node(STOPPED);
    let ended = cluster.runtime.block_on(stream.next());
    assert!(ended.is_none(), "{ended:?}");
}

/// A node that leads is stopped in order in the middle of an import, which notices nothing.
#[test]
fn an_import_rides_out_the_stop_of_a_node() {
    const STOPPED: usize = 2;
    let words: Vec<_> = words().into_iter().step_by(2).collect();
    let rows = sorted(&words);
    let cluster = &mut Cluster::start(&["--split-at", &split_keys(&rows, 4)]);
    let pairs = words.iter().map(|(word, number)| (word, number));
    let mut import = Import::start(cluster, pairs, &["--jobs", "64"]);
    import.wait_for_acknowledged(words.len() / 8);
    cluster.stop_node(STOPPED);
    let summary = import.finish();
    assert!(summary.out().starts_with(&format!("imported {} rows, 0 errors", words.len())));
    assert!(cluster.rows() == rows, "rows are lost");
    cluster.restart_node(STOPPED);
    cluster.wait_until_caught_up(CATCH_UP_TIMEOUT);
}

/// `up` does not wait for ever for nodes that are all dead.
#[test]
fn up_ends_when_every_node_has_died() {
    let cluster = &mut Cluster::start(&["--ranges", "1"]);
    cluster.run(["put", "a", "1"]).out();
    (1..=3).for_each(|node| cluster.kill(node));
    assert_eq!(cluster.wait_for_the_end_of_up().code(), Some(1));
    cluster.up_again();
    assert_eq!(cluster.run(["get", "a"]).out(), "1\n");
}

#[track_caller]
fn assert_same(found: &Rows, expected: &Rows) {
    assert_eq!(found.len(), expected.len());
    let differing = found.iter().zip(expected).find(|(found, expected)| found != expected);
    assert_eq!(differing, None);
}
