//! etcd's own command line works on the embedded server.

#![allow(clippy::unwrap_used, reason = "in a test, what cannot be unwrapped is a failure")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use support::Embedded;

struct Etcdctl {
    endpoint: String,
}

impl Etcdctl {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint]).args(args);
        command
    }

    /// Runs a command that must succeed and returns what it printed.
    fn run(&self, args: &[&str], input: &str) -> String {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {args:?}: {error}");
        let text = format!("{}{error}", String::from_utf8_lossy(&output.stdout));
        text.trim().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_works_on_the_embedded_server() {
    if !support::etcd::available() {
        return;
    }
    let server = Embedded::start().await;
    let etcdctl = Etcdctl { endpoint: server.address.to_string() };
    tokio::task::spawn_blocking(move || drive(&etcdctl)).await.unwrap();
}

fn drive(etcdctl: &Etcdctl) {
    assert_eq!(etcdctl.run(&["put", "a/1", "x"], ""), "OK");
    assert_eq!(etcdctl.run(&["put", "a/2", "y"], ""), "OK");
    assert_eq!(etcdctl.run(&["get", "--prefix", "a/"], ""), "a/1\nx\na/2\ny");
    assert_eq!(etcdctl.run(&["get", "a/1", "--print-value-only"], ""), "x");
    assert_eq!(etcdctl.run(&["del", "--prefix", "a/", "--prev-kv"], ""), "2\na/1\nx\na/2\ny");
    let txn = "create(\"t\") = \"0\"\n\nput t made\nget t\n\nget t\n\n";
    assert_eq!(etcdctl.run(&["txn"], txn), "SUCCESS\n\nOK\n\nt\nmade");
    assert_eq!(etcdctl.run(&["txn"], txn), "FAILURE\n\nt\nmade");

    let granted = etcdctl.run(&["lease", "grant", "600"], "");
    let lease = granted.split_whitespace().nth(1).unwrap();
    assert!(granted.ends_with("granted with TTL(600s)"), "{granted}");
    etcdctl.run(&["put", "leased", "v", "--lease", lease], "");
    let left = etcdctl.run(&["lease", "timetolive", lease, "--keys"], "");
    assert!(left.contains("attached keys([leased])"), "{left}");
    assert!(etcdctl.run(&["lease", "list"], "").contains(lease));
    let kept = etcdctl.run(&["lease", "keep-alive", "--once", lease], "");
    assert!(kept.contains("keepalived with TTL(600)"), "{kept}");
    etcdctl.run(&["lease", "revoke", lease], "");
    assert_eq!(etcdctl.run(&["get", "leased"], ""), "");

    watch(etcdctl);

    let status = etcdctl.run(&["endpoint", "status", "-w", "json"], "");
    assert!(status.contains("\"leader\":") && status.contains("\"version\":\"3.4"), "{status}");
    assert!(etcdctl.run(&["endpoint", "health"], "").contains("is healthy"));
    assert!(etcdctl.run(&["member", "list"], "").contains("trireme-embedded"));
    etcdctl.run(&["compaction", "5"], "");
    let folder = tempfile::TempDir::new().unwrap();
    let backup = folder.path().join("backup");
    let saved = etcdctl.run(&["snapshot", "save", backup.to_str().unwrap()], "");
    assert!(saved.contains("Snapshot saved at"), "{saved}");
    let magic = std::fs::read(&backup).unwrap();
    assert!(magic.starts_with(b"TRMCBAK1"));

    // What is not spoken is refused by its name.
    for (args, name) in [
        (["user", "list"].as_slice(), "etcdserverpb.Auth/UserList"),
        (&["defrag"], "etcdserverpb.Maintenance/Defragment"),
    ] {
        let refused = etcdctl.command(args).output().unwrap();
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success(), "etcdctl {args:?} was answered");
        assert!(text.contains(name), "{text}");
    }
}

fn watch(etcdctl: &Etcdctl) {
    etcdctl.run(&["put", "w", "0"], "");
    let mut command = etcdctl.command(&["watch", "w", "--prev-kv", "--rev", "1"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    etcdctl.run(&["put", "w", "1"], "");
    etcdctl.run(&["del", "w"], "");
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let told: Vec<_> = lines.take(11).map(Result::unwrap).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(told, ["PUT", "w", "0", "PUT", "w", "0", "w", "1", "DELETE", "w", "1"]);
}
