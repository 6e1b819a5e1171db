//! What the coordinator promises, checked on every server that it works over: the embedded one,
//! a single etcd, and an etcd of three. One list of cases, the same expectations.

#![allow(clippy::unwrap_used, reason = "in a test, what cannot be unwrapped is a failure")]

mod cases;
mod support;

use std::time::Duration;

use support::{Embedded, PATIENCE, eventually, fresh_options};
use trireme_coordinator::Coordinator;

/// Runs every case against servers that are all up, each in a namespace of its own.
async fn run(server: &str, endpoints: Vec<String>) {
    // A freshly started etcd needs a moment before it answers.
    let options = fresh_options(&endpoints);
    eventually("the server", || async { Coordinator::connect(options.clone()).await.ok() }).await;
    let mut failed = Vec::new();
    run_together(cases::together(), &endpoints, &mut failed).await;
    for alone in cases::alone() {
        run_together(vec![alone], &endpoints, &mut failed).await;
    }
    assert!(failed.is_empty(), "on {server}, failed: {failed:#?}");
}

async fn run_together(
    cases: Vec<(&'static str, cases::Case)>,
    endpoints: &[String],
    failed: &mut Vec<String>,
) {
    let mut running = Vec::new();
    for (name, case) in cases {
        let options = fresh_options(endpoints);
        running.push((name, tokio::spawn(case(options))));
    }
    for (name, task) in running {
        let abort = task.abort_handle();
        match tokio::time::timeout(2 * PATIENCE, task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => failed.push(format!("{name}: {error}")),
            Err(_) => {
                abort.abort();
                failed.push(format!("{name}: still running after {:?}", 2 * PATIENCE));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_server_conforms() {
    let server = Embedded::start().await;
    run("the embedded server", server.endpoints()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_etcd_conforms() {
    if !support::etcd::available() {
        return;
    }
    let etcd = support::etcd::Etcd::start(1);
    run("a single etcd", etcd.endpoints()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_of_three_conforms() {
    if !support::etcd::available() {
        return;
    }
    let etcd = support::etcd::Etcd::start(3);
    run("an etcd of three", etcd.endpoints()).await;
}

/// A cluster that nobody works on asks nothing of the coordinator but keep-alives (M19, M33), as
/// both sides count it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_node_sends_one_kind_of_request_only() {
    let server = Embedded::start().await;
    let options = fresh_options(&server.endpoints());
    let coordinator = support::connect(&options).await;
    let mut watches: Vec<_> = (0..5)
        .map(|n| {
            let path = format!("/watched-{n}");
            coordinator.watch(&path, trireme_coordinator::Scope::Children).expect("a watch")
        })
        .collect();
    for watch in &mut watches {
        support::next(watch).await;
    }
    // The watches are set when the server has counted them.
    eventually("the watches", || async {
        (server.running().counters().watch_requests >= 5).then_some(())
    })
    .await;
    let (ours, theirs) = (coordinator.counters(), server.running().counters());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (ours_later, theirs_later) = (coordinator.counters(), server.running().counters());
    let sent = ours_later.keep_alives - ours.keep_alives;
    assert!((1..=4).contains(&sent), "{sent} keep-alives in one session timeout");
    let mut steady = ours;
    steady.keep_alives = ours_later.keep_alives;
    assert_eq!(steady, ours_later, "an idle node asked for something");
    let mut steady = theirs;
    steady.keep_alives = theirs_later.keep_alives;
    assert_eq!(steady, theirs_later, "the server was asked for something");
}
