//! put, get and delete.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde_json::json;

use crate::command::run;
use crate::fake::Cluster;

#[test]
fn a_value_that_is_put_is_found_until_it_is_deleted() {
    let cluster = Cluster::start(3, &["m"]);
    assert_eq!(run(&cluster, ["put", "ship", "argo"]).out(), "1\n");
    assert_eq!(run(&cluster, ["get", "ship"]).out(), "argo\n");
    assert_eq!(run(&cluster, ["get", "ship", "--raw"]).out(), "argo");
    assert_eq!(run(&cluster, ["delete", "ship"]).out(), "deleted\n");
    let gone = run(&cluster, ["get", "ship"]);
    assert_eq!(gone.error(1), "'ship' has no value");
    assert_eq!(gone.stdout, b"");
    let gone = run(&cluster, ["delete", "ship"]);
    assert_eq!(gone.error(1), "'ship' has no value");
    assert_eq!(gone.stdout, b"");
}

#[test]
fn an_empty_value_is_a_value() {
    let cluster = Cluster::start(1, &[]);
    run(&cluster, ["put", "k", ""]).out();
    assert_eq!(run(&cluster, ["get", "k"]).out(), "\n");
    assert_eq!(run(&cluster, ["get", "k", "--raw"]).out(), "");
}

#[test]
fn a_condition_that_does_not_hold_changes_nothing_and_tells_the_version() {
    let cluster = Cluster::start(1, &[]);
    assert_eq!(run(&cluster, ["put", "k", "a", "--if-absent"]).out(), "1\n");
    let refused = run(&cluster, ["put", "k", "b", "--if-absent"]);
    assert_eq!(refused.error(1), "nothing was changed: the current version of 'k' is 1");
    assert_eq!(refused.stdout, b"");
    assert_eq!(run(&cluster, ["put", "k", "b", "--if-version", "1"]).out(), "2\n");
    let refused = run(&cluster, ["put", "k", "c", "--if-version", "1", "--json"]);
    assert_eq!(refused.error(1), "nothing was changed: the current version of 'k' is 2");
    assert_eq!(refused.stdout, b"{\"current_version\":2,\"done\":false}\n");
    let refused = run(&cluster, ["delete", "k", "--if-version", "1"]);
    assert_eq!(refused.error(1), "nothing was changed: the current version of 'k' is 2");
    assert_eq!(run(&cluster, ["delete", "k", "--if-version", "2"]).out(), "deleted\n");
    let refused = run(&cluster, ["delete", "k", "--if-version", "2"]);
    assert_eq!(refused.error(1), "nothing was changed: 'k' has no value");
}

#[test]
fn programs_get_json() {
    let cluster = Cluster::start(1, &[]);
    assert_eq!(
        run(&cluster, ["put", "k", "v", "--json"]).json(),
        json!({"done": true, "version": 1})
    );
    let found = json!({"key": "k", "value": "v", "version": 1});
    assert_eq!(run(&cluster, ["get", "k", "--json"]).json(), found);
    let found = json!({
        "key": "k", "value": "v", "version": 1,
        "freshness": {"applied": {"epoch": 1, "seq": 9}, "age_ms": 7},
    });
    let read = run(&cluster, ["get", "k", "--json", "--consistency", "timeline"]);
    assert_eq!(read.json(), found);
    assert_eq!(run(&cluster, ["delete", "k", "--json"]).json(), json!({"done": true}));
}

#[test]
fn keys_and_values_are_bytes() {
    let cluster = Cluster::start(1, &[]);
    let put = [OsStr::new("put"), OsStr::from_bytes(b"\xff"), OsStr::from_bytes(b"\xfe\\n")];
    run(&cluster, put).out();
    assert_eq!(run(&cluster, ["get", "--escaped", r"\xff", "--raw"]).stdout, b"\xfe\\n");
    let found = json!({"key_base64": "/w==", "value_base64": "/lxu", "version": 1});
    assert_eq!(run(&cluster, ["get", "--escaped", r"\xFF", "--json"]).json(), found);
    run(&cluster, ["put", "--escaped", r"\\t\t", r"\x00\n"]).out();
    assert_eq!(cluster.state().rows[&b"\\t\t"[..]].0, &b"\x00\n"[..]);
    let misused = run(&cluster, ["get", "--escaped", r"a\q"]);
    assert!(misused.error(2).contains("is no escape"), "{misused:?}");
}

#[test]
fn a_cluster_that_recovers_in_time_is_waited_for() {
    let cluster = Cluster::start(3, &[]);
    cluster.state().unavailable = 3;
    run(&cluster, ["put", "k", "v"]).out();
    cluster.state().unavailable = u64::MAX;
    let failed = run(&cluster, ["get", "k", "--deadline", "300ms"]);
    assert!(failed.error(1).contains("unavailable"), "{failed:?}");
    assert_eq!(failed.stdout, b"");
}
