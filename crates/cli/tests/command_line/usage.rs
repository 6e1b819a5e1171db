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

/// M38: periods that cannot work together are refused before anything is made.
#[test]
fn periods_that_cannot_work_together_are_a_wrong_call_that_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let node = ["node", "--id", "1", "--listen", "127.0.0.1:0", "--coordinator", "http://[::1]:1"];
    let leases = ["--lease", "800ms", "--grace", "800ms"];
    for (timing, reason) in [
        (&leases[..], "a grace of 800ms must be at least 880ms"),
        (&["--beacon-interval", "400ms"], "must be longer than two beacon intervals of 400ms"),
        (&["--grace", "500ms"], "a lease of 800ms and a tenth"),
    ] {
        for starts in [&["up"][..], &node] {
            let mut command = trireme();
            command.args(starts).arg("--data").arg(&data).args(timing);
            let ran = finish(command, b"");
            assert!(ran.error(2).contains(reason), "{ran:?}");
            assert!(!data.exists(), "{starts:?} {timing:?} made a folder");
        }
    }
    for wrong in [&["--lease", "0s"][..], &["--lease", "1"], &["--min-replicas-for-write", "0"]] {
        let mut command = trireme();
        command.arg("up").arg("--data").arg(&data).args(wrong);
        assert_eq!(finish(command, b"").status, 2, "{wrong:?}");
    }
    assert!(!data.exists());
}

#[test]
fn help_says_what_there_is() {
    let mut command = trireme();
    command.arg("--help");
    let help = finish(command, b"");
    for word in [
        "up", "node", "put", "get", "delete", "scan", "import", "export", "status", "fault",
        "bench",
    ] {
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
