//! status, range list and node list.

use serde_json::{Value, json};

use crate::command::run;
use crate::fake::Cluster;

fn cells(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn status_shows_every_node_and_every_replica() {
    let cluster = Cluster::start(3, &["m"]);
    let ran = run(&cluster, ["status"]);
    let lines: Vec<&str> = ran.out().lines().collect();
    assert_eq!(lines.len(), 1 + 3 + 1 + 1 + 2 * 3, "{}", ran.out());
    let address = cluster.endpoints();
    let address = address.split(',').nth(1).unwrap();
    let node = ["n2", address, "yes", "lsm", "fsync", "0", "0", "42", "0", "1", "0", "0"];
    assert_eq!(cells(lines[2]), node);
    assert_eq!(cells(lines[5])[..3], ["COHORT", "RANGE", "PROTOCOL"]);
    let leader = ["c1", "[..m)", "raft", "n1", "3", "n1", "leader", "3.12", "3.12", "3.11", "3.11"];
    assert_eq!(cells(lines[6]), [&leader[..], &["0"]].concat());
    assert_eq!(cells(lines[8]), ["n3", "follower", "3.12", "3.12", "3.11", "3.9", "2"]);
    assert_eq!(cells(lines[9])[..2], ["c2", "[m..)"]);
    assert!(lines.iter().all(|line| *line == line.trim_end()));
}

#[test]
fn status_names_nodes_that_do_not_answer() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.kill_node(3);
    let ran = run(&cluster, ["status"]);
    let lines: Vec<&str> = ran.out().lines().collect();
    assert_eq!(cells(lines[3])[2..4], ["unreachable", "-"]);
    assert_eq!(cells(lines[8])[..3], ["n3", "unreachable", "-"]);
    assert!(lines[10].starts_with("n3 cannot be asked: "), "{}", ran.out());
    let status = run(&cluster, ["status", "--json"]).json();
    assert_eq!(status["nodes"][2]["reachable"], false);
    assert_eq!(status["nodes"][2]["log"], Value::Null);
    assert_eq!(status["cohorts"][0]["replicas"][2], json!({"node": 3, "role": "unreachable"}));
}

#[test]
fn a_cohort_without_a_leader_is_a_failure() {
    let cluster = Cluster::start(2, &["g", "m"]);
    [2, 3].into_iter().for_each(|cohort| cluster.leave_without_leader(cohort));
    let ran = run(&cluster, ["status"]);
    assert_eq!(ran.error(1), "no leader is to be found of c2, c3");
    let ran = run(&cluster, ["status", "--json"]);
    assert_eq!(ran.status, 1);
    let status: Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(status["cluster"], "000000000000004d");
    assert_eq!(status["nodes"][0]["log"]["syncs"], 41);
    assert_eq!(status["nodes"][1]["durability"], "fsync");
    let (first, second) = (&status["cohorts"][0], &status["cohorts"][1]);
    assert_eq!((&first["leader"], &first["end"]), (&json!(1), &json!("g")));
    assert_eq!(first["replicas"][1]["applied"], json!({"epoch": 3, "seq": 10}));
    assert_eq!((&first["replicas"][1]["lag"], &first["epoch"]), (&json!(1), &json!(3)));
    assert_eq!((&second["leader"], &second["replicas"][0]["lag"]), (&Value::Null, &Value::Null));
    assert_eq!(status["cohorts"][2]["end"], Value::Null);
}

#[test]
fn ranges_and_nodes_are_listed() {
    let cluster = Cluster::start(2, &["m"]);
    cluster.leave_without_leader(2);
    let ran = run(&cluster, ["range", "list"]);
    let lines: Vec<&str> = ran.out().lines().collect();
    assert_eq!(cells(lines[0]), ["RANGE", "COHORT", "EPOCH", "PROTOCOL", "REPLICAS", "LEADER"]);
    assert_eq!(cells(lines[1]), ["[..m)", "c1", "1", "raft", "n1,n2", "n1"]);
    assert_eq!(cells(lines[2]), ["[m..)", "c2", "1", "raft", "n1,n2", "-"]);
    let ranges = run(&cluster, ["range", "list", "--json"]).json();
    let last = json!({
        "start": "m", "end": null, "cohort": 2, "range_epoch": 1, "protocol": "raft",
        "replicas": [1, 2], "leader": null,
    });
    assert_eq!(ranges[1], last);

    let address = cluster.endpoints();
    let address = address.split(',').next().unwrap();
    let nodes = run(&cluster, ["node", "list"]);
    assert_eq!(cells(nodes.out().lines().nth(1).unwrap()), ["n1", address, "yes", "no"]);
    let nodes = run(&cluster, ["node", "list", "--json"]).json();
    let first = json!({"node": 1, "address": address, "alive": true, "draining": false});
    assert_eq!(nodes[0], first);
}

#[test]
fn a_range_that_is_replicated_so_already_is_one_line() {
    let cluster = Cluster::start(3, &["m"]);
    let ran = run(&cluster, ["range", "protocol", "c2", "raft"]);
    assert!(ran.out().starts_with("c2 serves the range by raft, led by n"), "{}", ran.out());
    let answer = run(&cluster, ["range", "protocol", "2", "raft", "--json"]).json();
    assert_eq!((&answer["cohort"], &answer["protocol"]), (&json!(2), &json!("raft")));
    let ran = run(&cluster, ["range", "protocol", "c9", "raft"]);
    assert_eq!(ran.error(1), "invalid request: there is no cohort c9");
    let ran = run(&cluster, ["range", "protocol", "c1", "paxos"]);
    assert_eq!(ran.status, 2);
}

#[test]
fn a_range_is_merged_with_the_one_above_it() {
    let cluster = Cluster::start(3, &["g", "m\t", "t"]);
    let merged = run(&cluster, ["range", "merge", "a", "--json"]).json();
    let expected = json!({
        "border": "g",
        "were_one": false,
        "start": "",
        "end": "m\t",
        "cohort": 5,
        "leader": 1
    });
    assert_eq!(merged, expected);
    let again = run(&cluster, ["range", "merge", "a", "--border", "g"]);
    assert_eq!(again.out(), "g is no border: c5 serves [..m\\t), led by n1\n");
    let next = run(&cluster, ["range", "merge", "a", "--border", "m\\t", "--escaped"]);
    assert_eq!(next.out(), "m\\t is no border any more: c6 serves [..t), led by n1\n");
    let not_next = run(&cluster, ["range", "merge", "a", "--border", "z"]);
    assert_eq!(not_next.error(2), "z is not the upper end of [..t), which holds a");
    let last = run(&cluster, ["range", "merge", "z"]);
    assert_eq!(last.error(2), "no range is above [t..), which holds z");
}

#[test]
fn a_range_is_split_at_a_key_once() {
    let cluster = Cluster::start(3, &["m"]);
    let split = run(&cluster, ["range", "split", "t\\xff", "--escaped", "--json"]).json();
    let upper = json!({"start_base64": "dP8=", "end": null, "cohort": 4, "leader": 1});
    assert_eq!((&split["key_base64"], &split["was_border"]), (&json!("dP8="), &json!(false)));
    assert_eq!((&split["ranges"][0]["cohort"], &split["ranges"][1]), (&json!(3), &upper));
    let again = run(&cluster, ["range", "split", "t\\xff", "--escaped"]);
    let halves = "c3 serves [m..t\\xff), led by n1; c4 serves [t\\xff..), led by n1";
    assert_eq!(again.out(), format!("t\\xff is a border already: {halves}\n"));
    let new = run(&cluster, ["range", "split", "p"]);
    let halves = "c5 serves [m..p), led by n1; c6 serves [p..t\\xff), led by n1";
    assert_eq!(new.out(), format!("p is a border: {halves}\n"));
    let first = run(&cluster, ["range", "split", "m"]);
    assert!(first.out().starts_with("m is a border already: c1 serves [..m)"), "{first:?}");
    let empty = run(&cluster, ["range", "split", ""]);
    assert_eq!(empty.error(1), "invalid request: a split key must not be empty");
    let long = run(&cluster, ["range", "split", &"k".repeat(4097)]);
    assert!(long.error(1).ends_with("is longer than 4096 bytes"), "{long:?}");
}
