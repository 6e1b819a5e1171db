//! Bad input is answered with a clear message and exit status, and harms nothing.
//!
//! Status 2 tells that the command was called wrongly, and nothing is made then; status 1 that it
//! could not be done.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use trireme_client::{ClientError, ClientOptions};
use trireme_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

use common::{Cluster, Import, Ran, Rows, Seat, start_fails};

const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);

/// How many rows a test starts with.
const KEYS: usize = 2_000;

#[test]
fn a_cluster_that_cannot_be_is_refused_before_anything_is_made() {
    let seat = Seat::take();
    let port = seat.ports(8);
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    let cases: &[(&[&str], &str)] = &[
        (&["--replication", "paxos"], "unknown protocol 'paxos'"),
        (&["--range", "a..m=paxos"], "unknown protocol 'paxos'"),
        (&["--range", "a..m"], "START..END=PROTOCOL"),
        (&["--range", "m..a=raft"], "no key lies in"),
        (&["--range", "a..m=raft", "--range", "k..z=raft"], "overlap"),
        (&["--range", "a..m=raft", "--range", "a..m=raft"], "overlap"),
        (&["--split-at", "t,g"], "split keys must rise: 't' is followed by 'g'"),
        (&["--split-at", "g,n,n"], "split keys must rise: 'n' is followed by 'n'"),
        (&["--split-at", ""], "empty"),
        (&["--split-at", "g,,t"], "empty"),
        (&["--split-at", &long], "4096"),
        (&["--split-at", "g", "--ranges", "2"], "cannot be used with"),
        (&["--ranges", "0"], "at least one range"),
        (&["--ranges", "10001"], "10000"),
        (&["--ranges", "1001"], "1001 by raft, of which it can have 1000"),
        (&["--ranges", "1001", "--replication", "pacifica"], "of which it can have 1000"),
        (&["--ranges", "1001", "--replication", "spinnaker"], "of which it can have 1000"),
        (&["--nodes", "2", "--replicas", "3"], "there are 2"),
        (&["--nodes", "0"], "at least one node"),
        (&["--replicas", "0"], "at least 1"),
        (&["--engine", "rocks"], "unknown engine 'rocks'"),
        (&["--durability", "hope"], "unknown durability 'hope'"),
        (&["--port", "70000"], "70000"),
        (&["--nodes", "many"], "many"),
        (&["--no-such-option"], "--no-such-option"),
        (&["--min-replicas-for-write", "4"], "cannot need 4 replicas where there are 3"),
        (&["--memtable-bytes", "0"], "at least 1048576"),
        (&["--memtable-bytes", "18446744073709551615"], "at most 17179869184"),
        (&["--min-replicas-for-write", "0"], "from 1 to 100"),
        (&["--min-replicas-for-write", "1000000"], "from 1 to 100"),
        (&["--lease", "200ms"], "longer than two beacon intervals"),
        (&["--grace", "800ms"], "at least 880ms"),
    ];
    for (arguments, expected) in cases {
        let ran = match arguments {
            // The helper names a port itself.
            ["--port", port] => {
                let mut command = common::trireme();
                command.arg("up").arg("--data").arg(&data).args(["--port", port]);
                common::finish(command)
            }
            _ => start_fails(&data, port, arguments),
        };
        assert!(ran.error(2).contains(expected), "{arguments:?}: {ran:?}");
        assert!(!data.exists(), "{arguments:?} has made something");
    }
}

#[test]
fn a_port_in_use_is_named() {
    let seat = Seat::take();
    let port = seat.ports(8);
    let folder = TempDir::new().unwrap();
    for taken in [port, port + 2] {
        let listener = TcpListener::bind(("127.0.0.1", taken)).unwrap();
        let ran = start_fails(&folder.path().join("data"), port, &["--nodes", "3"]);
        assert!(ran.error(1).contains(&taken.to_string()), "{ran:?}");
        drop(listener);
    }
}

#[test]
fn a_folder_belongs_to_one_process_and_to_one_cluster() {
    let mut first = Cluster::start(&["--ranges", "4"]);
    let rows = fill(&first);
    let second = first.start_beside(&["--ranges", "4"]);
    second.run(["put", "apple", "of another cluster"]).out();

    let port = first.seat().ports(4);
    let ran = start_fails(&first.data(), port, &["--nodes", "3"]);
    assert!(ran.error(1).contains("in use"), "{ran:?}");
    assert!(ran.stderr.contains(first.data().to_str().unwrap()), "{ran:?}");
    let ran = first.node_fails(1, &[]);
    assert!(ran.error(1).contains("in use"), "{ran:?}");
    assert_eq!(first.rows(), rows);

    // What the cluster was made with stays what it is.
    first.stop();
    for (arguments, expected) in
        [(["--nodes", "5"], "nodes 3, not 5"), (["--engine", "sled"], "engine lsm, not sled")]
    {
        let ran = start_fails(&first.data(), first.port(), &arguments);
        assert!(ran.error(1).contains(expected), "{arguments:?}: {ran:?}");
    }
    let description = first.data().join("cluster.json");
    let whole = fs::read(&description).unwrap();
    fs::write(&description, br#"{"format": 3, "nodes": "unreadable"}"#).unwrap();
    let ran = start_fails(&first.data(), first.port(), &["--nodes", "3"]);
    assert!(ran.error(1).contains("cluster.json has format 3"), "{ran:?}");
    fs::write(&description, whole).unwrap();

    let coordinator = second.coordinator();
    let ran = first.node_fails(1, &["--coordinator", &coordinator]);
    assert!(ran.error(1).contains("holds data of cluster"), "{ran:?}");
    let description = first.node_folder(1).join("node.json");
    assert!(ran.stderr.contains(first.node_folder(1).to_str().unwrap()), "{ran:?}");
    assert!(!fs::read_to_string(description).unwrap().contains(&coordinator), "it was changed");
    let ran = start_fails(&first.data(), first.port(), &["--coordinator", &coordinator]);
    assert!(ran.error(1).contains("cluster"), "{ran:?}");
    // Nothing of all this has harmed either.
    first.up_again_with(&["--coordinator", "embedded"]);
    assert_eq!(first.rows(), rows);
    assert_eq!(second.run(["get", "apple"]).out(), "of another cluster\n");
}

/// Damages one node's folder in every way that a node must refuse; each time the other nodes
/// serve, and the node is as it was when its folder is.
#[test]
fn a_folder_that_is_not_what_it_was_is_refused_and_the_others_serve() {
    const NODE: usize = 2;
    let cluster = &mut Cluster::start(&["--ranges", "4"]);
    let rows = fill(cluster);
    cluster.wait_until_caught_up(CATCH_UP_TIMEOUT);
    cluster.kill(NODE);
    let folder = cluster.node_folder(NODE);

    // Its description is of a later version, or damaged.
    let description = folder.join("node.json");
    let whole = fs::read(&description).unwrap();
    let mut json: Value = serde_json::from_slice(&whole).unwrap();
    json["format"] = 3.into();
    let future = serde_json::to_vec(&json).unwrap();
    assert_refused(cluster, NODE, &[], &description, &future, &["node.json", "format 3"]);
    assert_refused(cluster, NODE, &[], &description, &whole[..40], &["node.json", "damaged"]);

    // Another engine, or another node, than it was made with.
    let ran = cluster.node_fails(NODE, &["--engine", "sled"]);
    assert!(ran.error(1).contains("engine lsm, not sled"), "{ran:?}");
    let ran = cluster.node_fails(NODE, &["--id", "1"]);
    assert!(ran.error(1).contains("node n2, not n1"), "{ran:?}");

    // The table folder is of a later version.
    let format = folder.join("tables").join("FORMAT");
    assert_refused(cluster, NODE, &[], &format, b"trireme-table 2 lsm\n", &["tables", "2"]);

    // An early block of its log has rotted.
    let segment = folder.join("log").join("00000000000000000001.log");
    let mut rotten = fs::read(&segment).unwrap();
    rotten[512 + 60] ^= 1;
    assert_refused(cluster, NODE, &[], &segment, &rotten, &["01.log is corrupt at byte 512"]);
    let mut future = fs::read(&segment).unwrap();
    future[8..12].copy_from_slice(&2u32.to_le_bytes());
    assert_refused(cluster, NODE, &[], &segment, &future, &["01.log"]);

    // With its folder as it was it comes back, and has everything.
    cluster.restart_node(NODE);
    cluster.wait_until_caught_up(CATCH_UP_TIMEOUT);
    cluster.kill(1);
    assert_eq!(cluster.rows(), rows);
}

/// Puts other bytes into a file of a node, checks that the node names what is wrong while the
/// others serve, and puts the file back.
#[track_caller]
fn assert_refused(
    cluster: &Cluster,
    node: usize,
    options: &[&str],
    file: &Path,
    bytes: &[u8],
    expected: &[&str],
) {
    let whole = fs::read(file).unwrap();
    fs::write(file, bytes).unwrap();
    let ran = cluster.node_fails(node, options);
    for part in expected {
        assert!(ran.error(1).contains(part), "'{part}' is not in: {}", ran.stderr);
    }
    assert_eq!(fs::read(file).unwrap(), bytes, "what was refused was changed");
    fs::write(file, whole).unwrap();
    assert_serves(cluster);
}

#[track_caller]
fn assert_serves(cluster: &Cluster) {
    for key in ["apple", "grape", "melon", "zebra"] {
        cluster.run(["put", key, "served"]).out();
        assert_eq!(cluster.run(["get", key]).out(), "served\n");
    }
}

/// A cluster of which one node's log has rotted does not start half; the file and the place are
/// named, and with the file as it was everything is there.
#[test]
fn a_cluster_with_a_rotten_log_names_the_file_and_the_place() {
    let cluster = &mut Cluster::start(&["--ranges", "4"]);
    let rows = fill(cluster);
    cluster.wait_until_caught_up(CATCH_UP_TIMEOUT);
    cluster.stop();
    for node in 1..=3 {
        let segment = only_segment(&cluster.node_folder(node));
        let whole = fs::read(&segment).unwrap();
        let mut rotten = whole.clone();
        let at = 512 * (8 + node);
        rotten[at..at + 8].iter_mut().for_each(|byte| *byte ^= 0x55);
        fs::write(&segment, &rotten).unwrap();
        let ran = start_fails(&cluster.data(), cluster.port(), &["--nodes", "3"]);
        let said = ran.error(1);
        let place = said.split_once("is corrupt at byte ").map(|(_, place)| place).unwrap();
        let place: String = place.chars().take_while(char::is_ascii_digit).collect();
        let place: usize = place.parse().unwrap();
        assert!(place <= at && at < place + 64 * 1024, "{place} for {at}: {said}");
        assert!(said.contains(segment.to_str().unwrap()), "{said}");
        assert!(said.contains(&format!("node {node} has ended")), "{said}");
        fs::write(&segment, &whole).unwrap();
    }
    cluster.up_again();
    assert_eq!(cluster.rows(), rows);
}

fn only_segment(node: &Path) -> PathBuf {
    let segment = node.join("log").join("00000000000000000001.log");
    assert!(segment.exists() && !segment.with_file_name("00000000000000000002.log").exists());
    segment
}

/// The limits are those of `trireme_types::limits`; what is just within them is stored.
#[test]
fn an_oversized_key_or_value_is_refused_with_the_limit() {
    let cluster = Cluster::start(&["--ranges", "4"]);
    let (key, value) = ("k".repeat(KEY_BYTES_MAX), "v".repeat(VALUE_BYTES_MAX));
    let (long_key, long_value) = (format!("{key}k"), format!("{value}v"));
    let told = |ran: Ran, limit: usize| {
        assert!(ran.status != 0 && ran.stderr.contains(&limit.to_string()), "{ran:?}");
    };
    told(cluster.run(["put", &long_key, "v"]), KEY_BYTES_MAX);
    told(cluster.run(["get", &long_key]), KEY_BYTES_MAX);
    told(cluster.run(["delete", &long_key]), KEY_BYTES_MAX);
    let file = cluster.file("large.tsv");
    fs::write(&file, format!("{key}\t{value}\nlarge\t{long_value}\n{long_key}\tv\nz\t1\n"))
        .unwrap();
    let ran = cluster.run(["import", &file]);
    assert!(ran.status == 1 && ran.stdout.starts_with("imported 2 rows, 2 errors"), "{ran:?}");
    assert!(ran.stderr.contains("line 2") && ran.stderr.contains("line 3"), "{ran:?}");

    cluster.runtime.block_on(async {
        let client = cluster.client(ClientOptions::default()).await;
        for refused in [
            client.put(long_key.clone(), "v").await.map(drop),
            client.put("large", long_value.clone()).await.map(drop),
        ] {
            assert!(matches!(refused, Err(ClientError::Invalid(_))), "{refused:?}");
        }
        let read = client.get(key.clone()).await.unwrap().expect("the largest row is there");
        assert!(read.value == value, "the largest value has changed");
        assert_eq!(client.get("large").await.unwrap(), None);
    });
    assert_eq!(cluster.run(["scan", "--keys-only"]).out(), format!("{key}\nz\n"));
}

/// Puts rows into all four ranges.
#[track_caller]
fn fill(cluster: &Cluster) -> Rows {
    let row = |number: usize| {
        let letter = char::from(b'a' + u8::try_from(number % 26).unwrap());
        (format!("{letter}-{number:05}"), format!("value {number}"))
    };
    let mut rows: Rows = (0..KEYS).map(row).collect();
    // The keys that tests write again.
    rows.extend(["apple", "grape", "melon", "zebra"].map(|key| (key.into(), "served".into())));
    let summary = Import::start(cluster, &rows, &[]).finish();
    assert!(summary.out().contains(" 0 errors"), "{summary:?}");
    rows
}
