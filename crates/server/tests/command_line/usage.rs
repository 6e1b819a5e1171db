//! Commands that are called wrongly, and clusters that are not there.

use std::net::TcpListener;

use crate::command::{finish, run, trireme};
use crate::fake::Cluster;

#[test]
fn what_makes_no_sense_ends_with_status_2() {
    let cluster = Cluster::start(1, &[]);
    for arguments in [
        &["sail"][..],
        &["put", "k"],
        &["put", "k", "v", "--if-absent", "--if-version", "1"],
        &["get", "k", "--consistency", "eventual"],
        &["get", "k", "--raw", "--json"],
        &["get", "k", "--endpoints", "nowhere"],
        &["get", "k", "--deadline", "soon"],
        &["scan", "a", "b", "--prefix", "c"],
        &["import", "f", "--format", "csv"],
        &["import", "f", "--jobs", "0"],
        &["import", "f", "--separator", "::"],
        &["bench", "--callers", "0"],
        &["bench", "--keys", "27", "--key-bytes", "1"],
        &["range"],
    ] {
        let ran = run(&cluster, arguments);
        assert_eq!(ran.status, 2, "{arguments:?}: {ran:?}");
        assert!(ran.stdout.is_empty() && !ran.stderr.is_empty(), "{arguments:?}: {ran:?}");
    }
    assert!(cluster.state().done.is_empty());
}

#[test]
fn help_says_what_there_is() {
    let mut command = trireme();
    command.arg("--help");
    let help = finish(command, b"");
    for word in
        ["up", "node", "put", "get", "delete", "scan", "import", "export", "status", "bench"]
    {
        assert!(help.out().contains(&format!("\n  {word} ")), "no {word} in {}", help.out());
    }
}

#[test]
fn no_cluster_is_one_clear_line() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    for arguments in [&["get", "k"][..], &["status"], &["range", "list"], &["node", "list"]] {
        let mut command = trireme();
        command.args(["--endpoints", &address]).args(arguments);
        let ran = finish(command, b"");
        let said = ran.error(1);
        assert!(said.starts_with("no endpoint answers") && said.contains(&address), "{said}");
        assert!(ran.stdout.is_empty());
    }
}

#[test]
fn one_endpoint_that_answers_is_enough() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.kill_node(2);
    cluster.kill_node(3);
    run(&cluster, ["put", "k", "v"]).out();
    let endpoints = cluster.endpoints();
    let mut command = trireme();
    command.args(["get", "k", "--endpoints", &endpoints]);
    assert_eq!(finish(command, b"").out(), "v\n");
}
