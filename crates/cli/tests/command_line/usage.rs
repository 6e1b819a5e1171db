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
        &["import", "f", "--separator", "x"],
        &["import", "f", "--separator", "7"],
        &["bench", "--duration", "10000000000000000000s"],
        &["bench", "--warm-up", "10000000000000000000s"],
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
        (&["--beacon-interval", "10000000000000000000s"], "must be at most 86400s"),
        (
            &["--lease", "17000000000000000000s", "--grace", "18000000000000000000s"],
            "must be at most 86400s",
        ),
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

/// Numbers and addresses that cannot be were tried, and ended in a panic or in a folder that
/// remembered them.
#[test]
fn what_cannot_be_started_is_a_wrong_call_that_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let coordinator = ["--coordinator", "http://127.0.0.1:1"];
    let new_node = [&["node", "--id", "1"], &coordinator[..]].concat();
    for (starts, wrong) in [
        (&["up"][..], &["--nodes", "18446744073709551615"][..]),
        (&["up"], &["--nodes", "1000000000000"]),
        (&["up"], &["--nodes", "0"]),
        (&["up"], &["--ranges", "18446744073709551615"]),
        (&["up"], &["--replicas", "18446744073709551615"]),
        (&["up"], &["--port", "0"]),
        (&["up"], &["--port", "65533", "--nodes", "3"]),
        (&["up"], &["--coordinator", "foo"]),
        (&["up"], &["--coordinator", ""]),
        (&["up"], &["--coordinator", ","]),
        (&["up"], &["--coordinator", "http://127.0.0.1:2379,"]),
        (&new_node, &["--listen", "0.0.0.0:7101"]),
        (&new_node, &["--listen", "[::]:7101"]),
        (&new_node, &["--listen", "127.0.0.1"]),
        (&new_node, &["--listen", "127.0.0.1:0", "--advertise", "n1:0"]),
        (&["node", "--id", "1", "--listen", "127.0.0.1:0"], &["--coordinator", "foo"]),
        (&["coordinator"], &["--listen", "localhost"]),
    ] {
        let mut command = trireme();
        command.args(starts).arg("--data").arg(&data).args(wrong);
        let ran = finish(command, b"");
        assert_eq!(ran.status, 2, "{starts:?} {wrong:?}: {ran:?}");
        assert!(!ran.stderr.contains("panicked"), "{ran:?}");
        assert!(!data.exists(), "{starts:?} {wrong:?} made a folder");
    }
}

/// An empty variable was taken for an endpoint, also by commands that speak to no cluster.
#[test]
fn the_variable_of_the_endpoints_may_be_empty_or_hold_empty_elements() {
    let cluster = Cluster::start(1, &[]);
    let with = |variable: &str, arguments: &[&str]| {
        let mut command = trireme();
        command.env("TRIREME_ENDPOINTS", variable).args(arguments);
        finish(command, b"")
    };
    for variable in ["", ",", " "] {
        with(variable, &["put", "k", "v", "--endpoints", &cluster.endpoints()]).out();
        let ran =
            with(variable, &["get", "k", "--deadline", "100ms", "--endpoints", "127.0.0.1:1"]);
        assert!(ran.error(1).starts_with("no endpoint answers"), "{ran:?}");
    }
    for variable in [format!("{},", cluster.endpoints()), format!(",{}", cluster.endpoints())] {
        assert_eq!(with(&variable, &["get", "k"]).out(), "v\n");
    }
    let ran = with("a b", &["get", "k"]);
    assert_eq!(ran.error(2), "'a b' in TRIREME_ENDPOINTS: expected HOST:PORT");
    // What needs no cluster does not look at it.
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let ran = with("a b", &["up", "--data", data, "--port", "0"]);
    assert!(ran.status == 2 && ran.stderr.contains("--port"), "{ran:?}");
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
        command.args(["--endpoints", &address, "--deadline", "200ms"]).args(arguments);
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
