//! What the embedded server has answered is there after kill -9, whole, and leases live on.

#![allow(clippy::unwrap_used, reason = "in a test, what cannot be unwrapped is a failure")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use parking_lot::Mutex;
use support::{Embedded, PATIENCE, any_port, eventually};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use trireme_embedded::{EmbeddedError, EmbeddedOptions, EmbeddedServer};

/// Names the folder that a child process is to serve.
const CHILD: &str = "TRIREME_TEST_CHILD_FOLDER";

/// The line with which a child tells its address.
const SERVES: &str = "serves on ";

/// A server in a process of its own.
struct Victim {
    process: Child,
    endpoint: String,
}

impl Victim {
    fn start(folder: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().expect("this test's binary"))
            .args(["a_child_serves_until_it_is_killed", "--exact", "--nocapture"])
            .env(CHILD, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child process");
        let output = BufReader::new(process.stdout.take().expect("its output"));
        let line = output
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.split_once(SERVES).map(|(_, address)| address.to_owned()));
        let endpoint = format!("http://{}", line.expect("a child that serves"));
        Self { process, endpoint }
    }

    fn kill(mut self) {
        self.process.kill().expect("kill -9");
        self.process.wait().expect("its end");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Not a test of its own: the process that the others kill.
#[test]
#[expect(clippy::print_stdout, reason = "this is how the child tells its address")]
fn a_child_serves_until_it_is_killed() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut options = EmbeddedOptions::new(folder, any_port());
    // Small, so that the killing meets snapshots and compactions, too.
    options.snapshot_log_bytes = 20_000;
    options.history_revisions = 200;
    let server = runtime.block_on(EmbeddedServer::start(options)).expect("a server");
    println!("\n{SERVES}{}", server.address());
    // The parent holds the other end of standard input: with it gone, nobody needs this process.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
}

/// Writers add to their own pairs of keys, each pair in one transaction, until the server dies.
async fn write(endpoint: String, writer: usize, acked: Arc<Mutex<BTreeMap<usize, u64>>>) {
    let mut client = Client::connect([endpoint], None).await.unwrap();
    let mut next = acked.lock().get(&writer).map_or(1, |last| last + 1);
    loop {
        let value = next.to_string();
        let both = [
            TxnOp::put(format!("left/{writer}"), value.clone(), None),
            TxnOp::put(format!("right/{writer}"), value.clone(), None),
            TxnOp::put(format!("all/{writer}/{next}"), "", None),
        ];
        let unseen = Compare::create_revision(format!("all/{writer}/{next}"), CompareOp::Equal, 0);
        match client.txn(Txn::new().when([unseen]).and_then(both)).await {
            Ok(_) => acked.lock().insert(writer, next),
            Err(_) => return,
        };
        next += 1;
    }
}

async fn value(client: &mut Client, key: String) -> u64 {
    let found = client.get(key, None).await.unwrap();
    found.kvs().first().map_or(0, |kv| kv.value_str().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_transaction_survives_kill_9_and_no_half_one() {
    const WRITERS: usize = 6;
    let folder = TempDir::new().unwrap();
    let acked = Arc::new(Mutex::new(BTreeMap::new()));
    let mut last_revision = 0;
    for round in 0..8_u64 {
        let victim = Victim::start(folder.path());
        let mut client = Client::connect([victim.endpoint.clone()], None).await.unwrap();
        for writer in 0..WRITERS {
            let left = value(&mut client, format!("left/{writer}")).await;
            let right = value(&mut client, format!("right/{writer}")).await;
            assert_eq!(left, right, "half a transaction of writer {writer} in round {round}");
            let known = acked.lock().get(&writer).copied().unwrap_or(0);
            assert!(left >= known, "writer {writer} lost {known}; {left} is left");
            let prefix = GetOptions::new().with_prefix().with_count_only();
            let all = client.get(format!("all/{writer}/"), Some(prefix)).await.unwrap();
            assert_eq!(all.count().unsigned_abs(), left, "writer {writer} in round {round}");
            // What was carried out and not acknowledged counts from now on.
            acked.lock().insert(writer, left);
        }
        let revision = client.get("x", None).await.unwrap().header().unwrap().revision();
        assert!(revision >= last_revision, "the revision went back");
        let writers: Vec<_> = (0..WRITERS)
            .map(|w| tokio::spawn(write(victim.endpoint.clone(), w, Arc::clone(&acked))))
            .collect();
        sleep(Duration::from_millis(40 + 37 * round)).await;
        let header = client.get("x", None).await.unwrap().take_header().unwrap();
        last_revision = header.revision();
        victim.kill();
        for writer in writers {
            writer.await.unwrap();
        }
    }
    let total: u64 = acked.lock().values().sum();
    assert!(total > 100, "only {total} transactions were tried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_lives_on_after_kill_9_and_still_ends() {
    let folder = TempDir::new().unwrap();
    let victim = Victim::start(folder.path());
    let mut client = Client::connect([victim.endpoint.clone()], None).await.unwrap();
    let long = client.lease_grant(3600, None).await.unwrap().id();
    let short = client.lease_grant(2, None).await.unwrap().id();
    let with = |lease| Some(PutOptions::new().with_lease(lease));
    client.put("long", "", with(long)).await.unwrap();
    client.put("short", "", with(short)).await.unwrap();
    victim.kill();
    let victim = Victim::start(folder.path());
    let mut client = Client::connect([victim.endpoint.clone()], None).await.unwrap();
    let left = client.lease_time_to_live(long, None).await.unwrap();
    assert!(left.ttl() > 3500 && left.granted_ttl() == 3600, "{left:?}");
    assert_eq!(client.get("short", None).await.unwrap().count(), 1, "it lives its time at least");
    eventually("the end of the short lease", || {
        let mut client = client.clone();
        async move { (client.get("short", None).await.unwrap().count() == 0).then_some(()) }
    })
    .await;
    assert_eq!(client.get("long", None).await.unwrap().count(), 1);
    victim.kill();
}

/// A watch of the coordinator goes on over the end and the return of the server, even one that
/// was away for longer than its session; a session that is longer than the absence lives on, and
/// keeps its ephemeral node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_lose_nothing_over_restarts() {
    let mut server = Embedded::start().await;
    let mut options = support::fresh_options(&server.endpoints());
    options.session_timeout = Duration::from_secs(2);
    let coordinator = support::connect(&options).await;
    let mode = trireme_coordinator::CreateMode::Persistent;
    coordinator.create("/w/n", b"0", mode).await.unwrap();
    let mut watch = coordinator.watch("/w", trireme_coordinator::Scope::Children).expect("a watch");
    let mut seen = 0;
    support::next(&mut watch).await;
    let patient_options = trireme_coordinator::CoordinatorOptions {
        session_timeout: Duration::from_secs(30),
        ..options.clone()
    };
    let patient = support::connect(&patient_options).await;
    let ephemeral = trireme_coordinator::CreateMode::Ephemeral;
    patient.create("/patient", b"", ephemeral).await.unwrap();
    for (round, away) in [0, 1, 4, 10].into_iter().enumerate() {
        server.stop().await;
        sleep(Duration::from_secs(away)).await;
        server.start_again().await;
        if coordinator.session() == trireme_coordinator::SessionState::Expired {
            assert!(away >= 2, "the session did not bear {away} s");
        }
        assert_ne!(patient.session(), trireme_coordinator::SessionState::Expired, "{away} s");
        eventually("the long session's node", || async {
            let node = patient.get("/patient").await.ok()??;
            (node.owner == Some(patient.session_id())).then_some(())
        })
        .await;
        for step in 1..=5 {
            let value = (round * 5 + step).to_string();
            eventually("a write", || async {
                if coordinator.renew().await.is_err() {
                    return None;
                }
                coordinator.set("/w/n", value.as_bytes(), None).await.ok()
            })
            .await;
        }
        while seen < (round + 1) * 5 {
            let event = support::next(&mut watch).await;
            // A server that was started again is read anew: its state includes every change so far.
            let (node, is_next) = match &event {
                trireme_coordinator::WatchEvent::State(state) => (&state.nodes[0], false),
                trireme_coordinator::WatchEvent::Changes { changes, .. } => match &changes[0] {
                    trireme_coordinator::NodeChange::Put(node) => (node, true),
                    other => panic!("nothing was deleted: {other:?}"),
                },
            };
            let value: usize = String::from_utf8(node.value.clone()).unwrap().parse().unwrap();
            assert!(
                if is_next { value == seen + 1 } else { value >= seen },
                "{value} after {seen}"
            );
            seen = value;
        }
    }
}

#[tokio::test]
async fn a_folder_serves_one_process() {
    let server = Embedded::start().await;
    let second = EmbeddedServer::start(EmbeddedOptions::new(server.folder.path(), any_port()));
    assert!(matches!(second.await, Err(EmbeddedError::InUse(_))));
}

/// A server whose disk took nothing more answered reads and keep-alives as before, ended no lease,
/// and looked healthy. It stops now, says why, and can be started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_disk_fails_stops_and_says_so() {
    let mut server = Embedded::start_with(|options| options.snapshot_log_bytes = 2_000).await;
    let mut client = Client::connect(server.endpoints(), None).await.unwrap();
    client.lease_grant(2, None).await.unwrap();
    client.put("before", "1", None).await.unwrap();
    // The next snapshot is written to a disk that is always full.
    std::os::unix::fs::symlink("/dev/full", server.folder.path().join("snapshot.new")).unwrap();
    let mut acknowledged = 0;
    while client.put("counter", (acknowledged + 1).to_string(), None).await.is_ok() {
        acknowledged += 1;
        assert!(acknowledged < 10_000, "the disk never failed");
    }
    let reason = timeout(PATIENCE, server.running().failed()).await.expect("it says so");
    assert!(reason.contains("No space left on device"), "{reason}");
    eventually("the port is closed", || async {
        tokio::net::TcpStream::connect(server.address).await.is_err().then_some(())
    })
    .await;
    let stopped = server.server.take().unwrap().stop().await;
    assert!(stopped.is_err(), "it did not tell what it ended with");

    std::fs::remove_file(server.folder.path().join("snapshot.new")).unwrap();
    server.start_again().await;
    let mut client = Client::connect(server.endpoints(), None).await.unwrap();
    assert!(value(&mut client, "counter".to_owned()).await >= acknowledged);
    eventually("the lease ends", || async {
        client.clone().leases().await.unwrap().leases().is_empty().then_some(())
    })
    .await;
}

/// What a backup holds is the state of one moment, and a folder that is made from it goes on from
/// there: as another server, so that no watch goes on where the first one stood.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_can_be_restored_into_a_new_folder() {
    let server = Embedded::start().await;
    let mut client = Client::connect(server.endpoints(), None).await.unwrap();
    let lease = client.lease_grant(3600, None).await.unwrap().id();
    client.put("leased", "1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    let large = "v".repeat(100_000);
    client.put("large", large.clone(), None).await.unwrap();
    let saved = client.get("large", None).await.unwrap().take_header().unwrap();
    let mut backup = Vec::new();
    let mut parts = client.snapshot().await.unwrap();
    while let Some(part) = parts.message().await.unwrap() {
        backup.extend_from_slice(part.blob());
    }
    client.put("after", "1", None).await.unwrap();

    let folder = support::quick_folder();
    let options = EmbeddedOptions::new(folder.path().join("new"), any_port());
    let cut = EmbeddedServer::restore(backup[..backup.len() - 1].to_vec(), options.clone()).await;
    assert!(matches!(cut, Err(EmbeddedError::Backup(_))), "{cut:?}");
    EmbeddedServer::restore(backup.clone(), options.clone()).await.unwrap();
    let restored = EmbeddedServer::start(options.clone()).await.unwrap();
    let mut client = Client::connect([restored.endpoint()], None).await.unwrap();
    let found = client.get("large", None).await.unwrap();
    assert_eq!(found.kvs()[0].value_str().unwrap(), large);
    let header = found.header().unwrap();
    assert_eq!(header.revision(), saved.revision());
    assert_ne!(header.cluster_id(), saved.cluster_id());
    assert_eq!(client.get("after", None).await.unwrap().count(), 0);
    let left = client.lease_time_to_live(lease, None).await.unwrap();
    assert!(left.ttl() > 3500, "{left:?}");
    client.put("more", "1", None).await.unwrap();
    restored.stop().await.unwrap();

    // It never replaces what is there.
    let again = EmbeddedServer::restore(backup, options.clone()).await;
    assert!(
        matches!(&again, Err(EmbeddedError::Backup(why)) if why.contains("already")),
        "{again:?}"
    );
    let restored = EmbeddedServer::start(options).await.unwrap();
    let mut client = Client::connect([restored.endpoint()], None).await.unwrap();
    assert_eq!(client.get("more", None).await.unwrap().count(), 1);
}

/// The history is bounded, and its bound is a compaction like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_is_compacted_by_itself() {
    let server = Embedded::start_with(|options| options.history_revisions = 50).await;
    let mut client = Client::connect(server.endpoints(), None).await.unwrap();
    for round in 0..200 {
        client.put("k", round.to_string(), None).await.unwrap();
    }
    let old = client.get("k", Some(GetOptions::new().with_revision(5))).await.unwrap_err();
    assert!(old.to_string().contains("required revision has been compacted"), "{old}");
    let recent = client.get("k", Some(GetOptions::new().with_revision(170))).await.unwrap();
    assert_eq!(recent.kvs()[0].value_str().unwrap(), "168");
}
