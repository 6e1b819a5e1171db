//! Members killed, clients stopped, connections stalled: no change is lost, and no node has two
//! owners at once by their own clocks.

#![allow(clippy::unwrap_used, reason = "in a test, what cannot be unwrapped is a failure")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::etcd::Etcd;
use support::proxy::{Proxy, Way};
use support::{Embedded, PATIENCE, connect, eventually, fresh_options};
use tokio::time::{sleep, timeout};
use trireme_coordinator::recipes::catalog::{Catalog, ClusterSpec, CompareAndSet};
use trireme_coordinator::recipes::election::{Campaign, Election};
use trireme_coordinator::{
    Coordinator, CoordinatorError, CoordinatorOptions, CreateMode, SessionState,
};
use trireme_types::{ClusterId, CohortConfig, CohortId, Lsn, NodeId, Protocol, RangeMap};

const REPLICAS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

/// Each replica takes part in round after round, whatever becomes of the servers, and returns the
/// epochs that it led.
async fn elect(coordinator: Coordinator, node: NodeId, stop: Arc<AtomicBool>) -> Vec<u64> {
    let election = Election::new(&coordinator, CohortId(1), node);
    let mut led = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        coordinator.renew().await.ok();
        let Ok(state) = election.state().await else { continue };
        let round = state.round();
        let campaign = election.campaign(round, Lsn::new(round, node.0), &REPLICAS);
        // Everything else than being elected is another round's beginning.
        if let Ok(Ok(Campaign::Elected(leader))) = timeout(Duration::from_secs(2), campaign).await {
            assert_eq!((leader.node, leader.epoch), (node, round));
            led.push(leader.epoch);
        }
    }
    led
}

/// Proposes successors for as long as the test runs, and returns the versions that were its own.
async fn propose(coordinator: Coordinator, node: NodeId, stop: Arc<AtomicBool>) -> Vec<u64> {
    let catalog = Catalog::new(&coordinator);
    let mut installed = Vec::new();
    let mut at = 1;
    while !stop.load(Ordering::Relaxed) {
        coordinator.renew().await.ok();
        let replicas = vec![node];
        let protocol = Protocol::Pacifica;
        let config = CohortConfig {
            cohort: CohortId(1),
            version: at + 1,
            protocol,
            replicas,
            replicas_wanted: 0,
            incarnations: [].into(),
            origin: None,
        };
        match catalog.compare_and_set_cohort(config).await {
            Ok(CompareAndSet::Installed(config)) => {
                installed.push(config.version);
                at = config.version;
            }
            Ok(CompareAndSet::Superseded(newest)) => at = newest.version,
            // P4: what became of it is found out by reading.
            Err(_) => match catalog.cohort(CohortId(1)).await {
                Ok(Some(newest)) => at = newest.version,
                _ => sleep(Duration::from_millis(20)).await,
            },
        }
    }
    installed
}

fn assert_rising_and_distinct(what: &str, mut all: Vec<u64>) {
    let total = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), total, "two had the same {what}");
    assert!(total > 10, "only {total} times a {what}");
}

/// Each member of an etcd of three is killed and comes back, while replicas elect leaders and
/// propose configurations: no epoch has two leaders, and no version is installed twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elections_and_configurations_bear_the_death_of_members() {
    if !support::etcd::available() {
        return;
    }
    let mut etcd = Etcd::start(3);
    let options = fresh_options(&etcd.endpoints());
    let coordinator =
        eventually("etcd", || async { Coordinator::connect(options.clone()).await.ok() }).await;
    let map = RangeMap::from_splits(&[]).unwrap();
    let (cohort, protocol) = (CohortId(1), Protocol::Pacifica);
    let first = CohortConfig {
        cohort,
        version: 1,
        protocol,
        replicas: REPLICAS.to_vec(),
        replicas_wanted: 0,
        incarnations: [].into(),
        origin: None,
    };
    let spec = ClusterSpec { cluster: ClusterId(1), map, configs: vec![first] };
    Catalog::bootstrap(&coordinator, spec).await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let (mut electing, mut proposing) = (Vec::new(), Vec::new());
    for node in REPLICAS {
        let own = connect(&options).await;
        electing.push(tokio::spawn(elect(own.clone(), node, Arc::clone(&stop))));
        proposing.push(tokio::spawn(propose(own, node, Arc::clone(&stop))));
    }
    for member in 0..etcd.len() {
        sleep(Duration::from_millis(700)).await;
        etcd.kill_member(member);
        sleep(Duration::from_millis(2500)).await;
        etcd.start_member(member);
    }
    sleep(Duration::from_secs(2)).await;
    stop.store(true, Ordering::Relaxed);
    let (mut epochs, mut versions) = (Vec::new(), Vec::new());
    for task in electing {
        epochs.extend(timeout(PATIENCE, task).await.unwrap().unwrap());
    }
    for task in proposing {
        versions.extend(timeout(PATIENCE, task).await.unwrap().unwrap());
    }
    assert_rising_and_distinct("led epoch", epochs);
    assert_rising_and_distinct("installed version", versions);
}

/// Contenders for one ephemeral node lose their connections at bad moments. By the clock that
/// they share here, no two of them ever believe to own it at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ephemeral_node_has_one_owner_at_a_time() {
    let server = Embedded::start().await;
    let mut options = fresh_options(&server.endpoints());
    options.session_timeout = Duration::from_secs(2);
    options.request_timeout = Duration::from_secs(1);
    let mut contenders = Vec::new();
    for number in 0..3 {
        let proxy = Proxy::start(server.address).await;
        let mut options = options.clone();
        options.endpoints = proxy.endpoints();
        contenders.push(tokio::spawn(contend(options, proxy, number)));
    }
    let mut owned = Vec::new();
    for contender in contenders {
        owned.extend(timeout(4 * PATIENCE, contender).await.unwrap().unwrap());
    }
    owned.sort_unstable();
    assert!(owned.len() >= 3, "owned only {} times", owned.len());
    for pair in owned.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "two owners at once: {pair:?}");
    }
}

/// Owns the node twice, loses it by a stalled connection each time, and returns from when to when
/// it believed to own it.
async fn contend(
    options: CoordinatorOptions,
    proxy: Proxy,
    number: usize,
) -> Vec<(Instant, Instant)> {
    let coordinator = connect(&options).await;
    let mut owned = Vec::new();
    while owned.len() < 2 {
        if coordinator.renew().await.is_err() {
            continue;
        }
        let value = number.to_string();
        match coordinator.create("/owner", value.as_bytes(), CreateMode::Ephemeral).await {
            Ok(_) => {
                let from = Instant::now();
                proxy.set(Way::Held, Way::Held);
                coordinator.session_expired().await;
                owned.push((from, Instant::now()));
                proxy.set(Way::Open, Way::Open);
                proxy.cut();
            }
            Err(CoordinatorError::NodeExists { .. }) => sleep(Duration::from_millis(5)).await,
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
    }
    owned
}

/// Names the endpoint and the namespace that a child process is to use.
const CHILD: &str = "TRIREME_TEST_CHILD_SESSION";

/// Not a test of its own: the process that is stopped. It asks again and again whether its session
/// lives, and says so before and after asking.
#[test]
#[expect(clippy::print_stdout, reason = "this is how the child tells what it believes")]
fn a_child_tells_what_it_believes() {
    let Ok(setting) = std::env::var(CHILD) else { return };
    let (endpoint, namespace) = setting.split_once(' ').unwrap();
    let mut options = CoordinatorOptions::new([endpoint]);
    options.namespace = namespace.to_owned();
    options.session_timeout = Duration::from_secs(2);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let coordinator = runtime.block_on(connect(&options));
    let created = coordinator.create("/e", b"", CreateMode::Ephemeral);
    runtime.block_on(created).unwrap();
    loop {
        println!("asks");
        let state = match coordinator.session() {
            SessionState::Live { .. } => "live",
            SessionState::Expired => "expired",
        };
        println!("{state}");
        if std::io::stdout().flush().is_err() || state == "expired" {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// S5: a client that is stopped for longer than its session finds it over with the first question
/// that it asks when it runs on, before anything has reached it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_client_finds_its_session_over_at_once() {
    let server = Embedded::start().await;
    let options = fresh_options(&server.endpoints());
    let witness = connect(&options).await;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["a_child_tells_what_it_believes", "--exact", "--nocapture"])
        .env(CHILD, format!("{} {}", server.endpoints()[0], options.namespace))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_child(&child);
    let output = BufReader::new(child.stdout.take().unwrap());
    let (lines, mut told) = tokio::sync::mpsc::channel(1024);
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    while told.recv().await.expect("a living child") != "live" {}
    kill_process(pid, Signal::STOP).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while witness.exists("/e").await.unwrap() {
        assert!(Instant::now() < deadline, "the stopped client's node stays");
        // What was told before the stop is of no interest.
        while told.try_recv().is_ok() {}
        sleep(Duration::from_millis(10)).await;
    }
    kill_process(pid, Signal::CONT).unwrap();
    // An answer that was found before the stop may be told after it; a question may not.
    while timeout(PATIENCE, told.recv()).await.unwrap().expect("a living child") != "asks" {}
    let answer = timeout(PATIENCE, told.recv()).await.unwrap();
    child.kill().ok();
    child.wait().unwrap();
    assert_eq!(answer.as_deref(), Some("expired"));
}
