//! A node bears what comes from outside: answers that are not read, connections that say nothing,
//! scans over what was deleted. Its memory stays bounded, and other clients are served meanwhile.
//!
//! Each case prints the latency of another client and by how much the node's memory grew. The
//! defaults suit a busy machine and a debug build. The figures of docs/performance.md were taken with:
//!
//! ```text
//! TRIREME_TEST_DELETED=1000000 TRIREME_TEST_LATENCY_MS=50 \
//!     cargo test --release -p trireme-cli --test cluster_pressure -- --nocapture --test-threads 1
//! ```
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use futures::StreamExt;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::sync::mpsc as queue;
use tokio_stream::wrappers::ReceiverStream;
use trireme_client::{Client, ClientOptions};
use trireme_proto::v1;
use trireme_proto::v1::request::Operation;
use trireme_types::limits::VALUE_BYTES_MAX;

use common::wire::Wire;
use common::{Cluster, Seat, finish, until};

/// What the memory of a node may grow by.
const GROWTH_MAX: u64 = 64 * 1024 * 1024;

/// What nearly all requests of another client may take. It is some milliseconds, and was seconds
/// where requests waited for each other; test machines are slow and busy.
/// `TRIREME_TEST_LATENCY_MS` asks for another bound.
const LATENCY_MAX: Duration = Duration::from_millis(400);

/// The rows that are deleted before they are scanned, unless `TRIREME_TEST_DELETED` asks for more.
const DELETED: usize = 60_000;

/// How long a cluster may take to start.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How long another client is watched.
const WATCHED: Duration = Duration::from_secs(5);

/// Calls that fill and empty a table at once.
const CALLS: usize = 512;

#[test]
fn large_answers_that_are_not_read_are_bounded() {
    const KEYS: usize = 160;
    // Small memtables: what is in files is copied for each answer, what is in memory is not.
    let cluster = one_node(&["--memtable-bytes", "1048576", "--engine", "lsm"]);
    cluster.runtime.block_on(async {
        let client = cluster.client(ClientOptions::default()).await;
        let value = vec![b'v'; VALUE_BYTES_MAX];
        let keys: Vec<String> = (0..KEYS).map(|key| format!("k{key:03}")).collect();
        each(&keys, 4, |key| client.put(key, value.clone())).await;
        client.put("small", "value").await.unwrap();
        // Twice, so that what the node keeps for reads is there before its memory is looked at.
        for _ in 0..2 {
            each(&keys, 4, |key| client.get(key)).await;
        }
        let requests = (0..4000).map(|number| timeline_get(number, &keys[number % KEYS]));
        check_unread(&cluster, &client, requests.collect()).await;
    });
}

#[test]
fn many_small_answers_that_are_not_read_are_bounded() {
    let cluster = one_node(&["--engine", "lsm"]);
    cluster.runtime.block_on(async {
        let client = cluster.client(ClientOptions::default()).await;
        client.put("small", "value").await.unwrap();
        let requests = (0..600_000).map(|number| timeline_get(number, "small"));
        check_unread(&cluster, &client, requests.collect()).await;
    });
}

#[test]
fn scans_over_deleted_rows_hold_nobody_up() {
    let deleted = setting("TRIREME_TEST_DELETED").unwrap_or(DELETED);
    let cluster = one_node(&["--engine", "lsm"]);
    cluster.runtime.block_on(async {
        let client = cluster.client(ClientOptions::default()).await;
        client.put("small", "value").await.unwrap();
        let keys: Vec<String> = (0..deleted).map(|key| format!("m{key:07}")).collect();
        each(&keys, CALLS, |key| client.put(key, "1")).await;
        each(&keys, CALLS, |key| client.delete(key)).await;
        let before = resident(&cluster);
        let done = Arc::new(AtomicBool::new(false));
        // Another client, so that the scans do not share its connection.
        let scanner = cluster.client(ClientOptions::default()).await;
        let scans: Vec<_> = (0..64)
            .map(|number| {
                let (scanner, done) = (scanner.clone(), Arc::clone(&done));
                tokio::spawn(async move {
                    while !done.load(Ordering::Relaxed) {
                        let scan = scanner.scan("m".."n").limit(1);
                        let scan = if number % 2 == 0 { scan.reverse() } else { scan };
                        let rows = scan.collect().await.unwrap();
                        assert!(rows.is_empty());
                    }
                })
            })
            .collect();
        let latency = latency(&client).await;
        let growth = resident(&cluster).saturating_sub(before);
        done.store(true, Ordering::Relaxed);
        for scan in scans {
            scan.await.unwrap();
        }
        report("scans over deleted rows", latency, growth);
    });
}

#[test]
fn silent_connections_keep_neither_clients_nor_peers_out() {
    raise_limit();
    let mut cluster = Cluster::start(&["--ranges", "1"]);
    cluster.run(["put", "key", "value"]).out();
    cluster.stop_node(3);
    let before = resident_of(cluster.pid(1));
    // A peer that comes back must get through to the nodes that these are at.
    let silent = silence([1, 2].map(|node| cluster.address(node)));
    let began = Instant::now();
    assert_eq!(cluster.run(["get", "key"]).out(), "value\n");
    assert!(began.elapsed() < Duration::from_secs(3), "a client waited {:?}", began.elapsed());
    cluster.restart_node(3);
    cluster.wait_until_caught_up(Duration::from_secs(30));
    let latency = cluster.runtime.block_on(async {
        let client = cluster.client(ClientOptions::default()).await;
        client.put("small", "value").await.unwrap();
        latency(&client).await
    });
    let growth = resident_of(cluster.pid(1)).saturating_sub(before);
    report("silent connections", latency, growth);
    drop(silent);
}

#[test]
fn a_node_with_few_descriptors_keeps_its_log_and_tables() {
    raise_limit();
    let seat = Seat::take();
    let (port, folder) = (seat.ports(2), tempfile::TempDir::new().unwrap());
    let data = folder.path().join("data");
    let mut limited = Limited::start("256", &data, port, &["--memtable-bytes", "1048576"]);
    let node = format!("127.0.0.1:{}", port + 1);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        // One that was there before, and one that comes while there is no room.
        let client = Client::connect([node.clone()]).await.unwrap();
        client.put("key", "value").await.unwrap();
        let idle: Vec<TcpStream> = (0..400).map(|number| idle_client(&node, number)).collect();
        let keys: Vec<String> = (0..12_000).map(|key| format!("k{key:05}")).collect();
        each(&keys, 64, |key| client.put(key, vec![b'v'; 1024])).await;
        let newcomer = Client::connect([node.clone()]).await.unwrap();
        assert_eq!(newcomer.get("key").await.unwrap().unwrap().value, "value");
        drop(idle);
    });
    limited.stop();
}

#[test]
fn a_limit_that_is_too_low_is_refused_at_the_start() {
    let seat = Seat::take();
    let (port, folder) = (seat.ports(2), tempfile::TempDir::new().unwrap());
    let mut command = with_limit("100");
    command.arg("up").arg("--data").arg(folder.path().join("data"));
    command.args(["--nodes", "1", "--port", &port.to_string()]);
    let ran = finish(command);
    assert_ne!(ran.status, 0);
    assert!(ran.stderr.contains("100 open files") && ran.stderr.contains("ulimit -n"), "{ran:?}");
}

/// Starts one node with one range, which does not wait for the disk.
fn one_node(arguments: &[&str]) -> Cluster {
    let fixed = ["--ranges", "1", "--durability", "os"];
    Cluster::start_nodes(1, &[&fixed[..], arguments].concat())
}

/// Makes a call for each key, several at once.
async fn each<T, F>(keys: &[String], at_once: usize, call: impl Fn(String) -> F)
where
    F: Future<Output = Result<T, trireme_client::ClientError>>,
{
    let calls = futures::stream::iter(keys.to_vec()).map(call);
    calls.buffer_unordered(at_once).for_each(|made| async { drop(made.unwrap()) }).await;
}

/// Sends requests and reads no answer: the node's memory must not grow, nor other clients wait.
async fn check_unread(cluster: &Cluster, client: &Client, requests: Vec<v1::Request>) {
    let before = resident(cluster);
    let mut wire = Wire::connect(&cluster.address(1)).await;
    let (frames, sent) = queue::channel(1);
    let unread = wire.kv.batch(ReceiverStream::new(sent)).await.unwrap().into_inner();
    let sending = tokio::spawn(async move {
        for part in requests.chunks(200) {
            // The node takes no more once enough answers wait.
            let _gone = frames.send(v1::RequestFrame { requests: part.to_vec() }).await;
        }
        frames
    });
    let latency = latency(client).await;
    let growth = resident(cluster).saturating_sub(before);
    sending.abort();
    drop(unread);
    report("answers that are not read", latency, growth);
}

fn timeline_get(number: usize, key: &str) -> v1::Request {
    let get = v1::GetRequest {
        key: key.as_bytes().to_vec().into(),
        consistency: v1::Consistency::Timeline.into(),
        ..v1::GetRequest::default()
    };
    v1::Request { id: number as u64 + 1, timeout_ms: 60_000, operation: Some(Operation::Get(get)) }
}

/// Returns how long the slowest of a hundred gets and puts of a client takes, while it makes them.
async fn latency(client: &Client) -> Duration {
    let (began, mut latencies) = (Instant::now(), Vec::new());
    while began.elapsed() < WATCHED {
        let call = Instant::now();
        assert_eq!(client.get("small").await.unwrap().unwrap().value, "value");
        latencies.push(call.elapsed());
        let call = Instant::now();
        client.put("another", "value").await.unwrap();
        latencies.push(call.elapsed());
    }
    latencies.sort_unstable();
    latencies[latencies.len() * 99 / 100]
}

/// Returns what the environment asks for, if it does.
fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[expect(clippy::print_stderr, reason = "the figures are for reading by hand")]
fn report(what: &str, latency: Duration, growth: u64) {
    eprintln!("{what}: p99 {latency:?}, the node grew by {} KiB", growth / 1024);
    let most = setting("TRIREME_TEST_LATENCY_MS").map_or(LATENCY_MAX, Duration::from_millis);
    assert!(latency < most, "another client waited {latency:?}");
    assert!(growth < GROWTH_MAX, "the node grew by {growth} bytes");
}

/// Lets this process have as many connections as it may.
fn raise_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Returns the memory of a cluster's only node.
fn resident(cluster: &Cluster) -> u64 {
    resident_of(cluster.pid(1))
}

fn resident_of(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Opens connections to nodes that say nothing: to each far more than may be silent at a time, if it
/// accepts them within a second. A node that let them wait would not drop them so soon.
fn silence(addresses: [String; 2]) -> Vec<TcpStream> {
    let connecting = addresses.map(|address| {
        thread::spawn(move || {
            let (address, began, mut silent) = (address.parse().unwrap(), Instant::now(), vec![]);
            while silent.len() < 500 && began.elapsed() < Duration::from_secs(1) {
                // One that finds the queue of the system full would wait for a second by itself.
                silent.extend(TcpStream::connect_timeout(&address, Duration::from_millis(50)));
            }
            silent
        })
    });
    connecting.into_iter().flat_map(|connecting| connecting.join().unwrap()).collect()
}

/// Opens a connection that says that it is a client, and perhaps no more than that.
fn idle_client(node: &str, number: usize) -> TcpStream {
    let mut socket = TcpStream::connect(node).unwrap();
    if number.is_multiple_of(2) {
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    }
    socket
}

/// Returns the command of `trireme`, run with a limit on open files.
fn with_limit(limit: &str) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_trireme")]);
    command.env_remove("TRIREME_ENDPOINTS").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// A cluster of one node that runs with a limit on open files.
struct Limited(Child);

impl Limited {
    fn start(limit: &str, data: &std::path::Path, port: u16, arguments: &[&str]) -> Self {
        let mut command = with_limit(limit);
        command.arg("up").arg("--data").arg(data).args(arguments);
        command.args(["--nodes", "1", "--ranges", "1", "--port", &port.to_string()]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let limited = Self(child);
        let (send, ready) = mpsc::channel();
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).for_each(|line| drop(send.send(line)));
        });
        ready.recv_timeout(READY_TIMEOUT).expect("the cluster becomes ready");
        limited
    }

    /// Stops the cluster as its user would, and checks that it ends well.
    #[track_caller]
    fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        let status = until("it has stopped", READY_TIMEOUT, || self.0.try_wait().unwrap());
        assert!(status.success(), "it ended with {status}");
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
