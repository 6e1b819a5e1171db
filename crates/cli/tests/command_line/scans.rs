//! scan.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::command::{run, trireme};
use crate::fake::Cluster;

fn filled() -> Cluster {
    let cluster = Cluster::start(2, &["20", "50"]);
    for number in 0..100 {
        let key = format!("{number:02}").into_bytes().leak();
        cluster.state().insert(key, b"v");
    }
    cluster
}

fn keys(out: &str) -> Vec<&str> {
    out.lines().map(|line| line.strip_suffix("\tv").unwrap()).collect()
}

#[test]
fn rows_come_in_key_order_over_all_ranges() {
    let cluster = filled();
    let all: Vec<String> = (0..100).map(|number| format!("{number:02}")).collect();
    assert_eq!(keys(run(&cluster, ["scan"]).out()), all);
    assert_eq!(keys(run(&cluster, ["scan", "15", "61"]).out()), all[15..61]);
    assert_eq!(keys(run(&cluster, ["scan", "95"]).out()), all[95..]);
    assert_eq!(keys(run(&cluster, ["scan", "--prefix", "4"]).out()), all[40..50]);
    assert_eq!(keys(run(&cluster, ["scan", "15", "--limit", "12"]).out()), all[15..27]);
    let reverse = run(&cluster, ["scan", "--reverse", "--limit", "3"]);
    assert_eq!(keys(reverse.out()), ["99", "98", "97"]);
    assert_eq!(run(&cluster, ["scan", "--keys-only", "98"]).out(), "98\n99\n");
    assert_eq!(run(&cluster, ["scan", "x"]).out(), "");
}

#[test]
fn rows_are_lines_whatever_bytes_they_hold() {
    let cluster = Cluster::start(1, &[]);
    cluster.state().insert(b"a\tb", b"1\n2\\");
    cluster.state().insert(b"c", b"\xff");
    assert_eq!(run(&cluster, ["scan"]).stdout, b"a\\tb\t1\\n2\\\\\nc\t\xff\n");
    let rows: Vec<Value> = run(&cluster, ["scan", "--json"])
        .out()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let first = json!({"key": "a\tb", "value": "1\n2\\", "version": 1});
    assert_eq!(rows, [first, json!({"key": "c", "value_base64": "/w==", "version": 2})]);
    let keys = run(&cluster, ["scan", "--json", "--keys-only", "--limit", "1"]);
    assert_eq!(keys.json(), json!({"key": "a\tb", "version": 1}));
}

/// `trireme scan | head -1` must end without a complaint.
#[test]
fn a_reader_that_has_enough_ends_the_scan() {
    let cluster = Cluster::start(1, &[]);
    for number in 0..500 {
        let key = format!("{number:04}").into_bytes().leak();
        cluster.state().insert(key, vec![b'v'; 4096].leak());
    }
    let mut command = trireme();
    command.env("TRIREME_ENDPOINTS", cluster.endpoints()).arg("scan");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(line.starts_with("0000\tv"));
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
