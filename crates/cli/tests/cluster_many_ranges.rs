//! Many ranges on three nodes: all of them serve soon after every node was stopped or killed, and soon
//! after one node's death.
//!
//! By default this is a short run. The figures of docs/performance.md come from longer ones; each
//! prints the ranges and the times:
//!
//! ```text
//! TRIREME_TEST_RANGES=64,250,500 \
//!     cargo test --release -p trireme-cli --test cluster_many_ranges -- --nocapture
//! ```
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::time::{Duration, Instant};

use common::{Cluster, until_ok};

/// How long it may take until all ranges take writes. A machine that does other work too has each
/// replica's share of it wait for that; the old way took minutes, or did not end.
const SERVES_WITHIN: Duration = Duration::from_secs(30);

const RANGES: usize = 64;

#[test]
fn many_ranges_serve_soon_after_a_stop_and_a_death_pacifica() {
    serve_soon("pacifica");
}

#[test]
fn many_ranges_serve_soon_after_a_stop_and_a_death_spinnaker() {
    serve_soon("spinnaker");
}

#[test]
fn many_ranges_serve_soon_after_a_stop_and_a_death_raft() {
    serve_soon("raft");
}

fn serve_soon(protocol: &str) {
    let text = std::env::var("TRIREME_TEST_RANGES").unwrap_or_else(|_| RANGES.to_string());
    for ranges in text.split(',') {
        run(protocol, ranges.parse().unwrap());
    }
}

#[expect(clippy::print_stderr, reason = "the figures are for reading by hand")]
fn run(protocol: &str, ranges: usize) {
    let began = Instant::now();
    let options = ["--replication", protocol, "--ranges", &ranges.to_string()];
    let cluster = &mut Cluster::start(&options);
    let mut times = Vec::new();
    let mut note = |cluster: &Cluster, what: &str, began: Instant| {
        writes_to_all(cluster, ranges);
        times.push(format!("{what} {:.1?}", began.elapsed()));
    };
    note(cluster, "first start", began);
    cluster.stop();
    let began = Instant::now();
    cluster.up_again();
    note(cluster, "start after a stop", began);
    cluster.kill_all();
    let began = Instant::now();
    cluster.up_again();
    note(cluster, "start after SIGKILL of all", began);
    wait_until_whole(cluster);
    cluster.kill(1);
    note(cluster, "death of a node", Instant::now());
    eprintln!("{protocol}: {ranges} ranges: {}", times.join(", "));
}

/// Waits until every range has all its replicas. On a busy machine nodes start one after the other, and
/// PacificA goes on with those that are there: with one, perhaps, which is about to die.
#[track_caller]
fn wait_until_whole(cluster: &Cluster) {
    until_ok("every range has all its replicas", SERVES_WITHIN, || {
        let statuses = cluster.statuses()?;
        let replicas = |cohort: &u64| statuses.leader(*cohort).map_or(0, |it| it.1.replicas.len());
        match statuses.cohorts().iter().find(|cohort| replicas(cohort) < 3) {
            Some(cohort) => Err(format!("cohort {cohort} has {}", replicas(cohort))),
            None => Ok(()),
        }
    });
}

/// Waits until every range takes a write.
#[track_caller]
fn writes_to_all(cluster: &Cluster, ranges: usize) {
    let rows = cluster.file("rows.tsv");
    let began = Instant::now();
    // Each range has some of the keys of three letters: it is split evenly by them.
    let statuses = until_ok("the nodes answer", SERVES_WITHIN, || cluster.statuses());
    assert_eq!(statuses.cohorts().len(), ranges);
    std::fs::write(&rows, keys(ranges)).unwrap();
    let deadline = format!("{}s", SERVES_WITHIN.as_secs());
    let imported = cluster.run(["--deadline", &deadline, "import", &rows]);
    assert_eq!(imported.status, 0, "after {:?}: {imported:?}", began.elapsed());
}

/// Returns rows of which every range has one.
fn keys(ranges: usize) -> String {
    let letters = || b'a'..=b'z';
    let all = letters().flat_map(|a| letters().map(move |b| [a, b].map(char::from)));
    let rows = all.map(|[a, b]| format!("{a}{b}n\tvalue\n"));
    assert!(ranges <= 26 * 26, "the keys are too few for {ranges} ranges");
    rows.collect()
}
