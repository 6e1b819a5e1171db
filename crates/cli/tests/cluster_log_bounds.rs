//! Many cohorts share each node's log, and are written as fast as the cluster accepts it: the log
//! stays within its limit and two segments, and the nodes are back soon after SIGKILL.
//!
//! By default this is a short run that fits among the other tests. The figures of docs/log-pointers.md
//! come from longer ones; each prints the cohorts, the limit, the longest log of any node, and the
//! time of the restart:
//!
//! ```text
//! TRIREME_TEST_COHORTS=64,256,1000 TRIREME_TEST_SECONDS=60 TRIREME_TEST_LOG_BYTES=67108864 \
//!     TRIREME_TEST_SEGMENT_BYTES=4194304 \
//!     cargo test --release -p trireme-cli --test cluster_log_bounds -- --nocapture
//! ```
//!
//! A number of cohorts that a protocol does not support is lowered to the most that it does.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use trireme_types::Protocol;
use trireme_types::limits::{RANGES_MAX_PACIFICA, RANGES_MAX_RAFT, RANGES_MAX_SPINNAKER};

use common::{Cluster, until_ok};

const NODES: usize = 3;

/// How often the log's files are looked at. A segment of 1 MiB takes longer to write.
const SAMPLED_EVERY: Duration = Duration::from_millis(5);

/// How long the nodes may take to serve again before the test gives up.
const RESTART_TIMEOUT: Duration = Duration::from_secs(60);

/// The oldest segment of a node's log, in the node's folder, until it is given up.
const FIRST_SEGMENT: &str = "log/00000000000000000001.log";

/// The letters that decide to which range one of the benchmark's keys belongs.
const PLACES: u32 = 3;

#[test]
fn the_log_of_many_cohorts_stays_within_its_limit_raft_lsm() {
    stays_within_its_limit(Protocol::Raft, "lsm");
}

#[test]
fn the_log_of_many_cohorts_stays_within_its_limit_raft_sled() {
    stays_within_its_limit(Protocol::Raft, "sled");
}

#[test]
fn the_log_of_many_cohorts_stays_within_its_limit_spinnaker_lsm() {
    stays_within_its_limit(Protocol::Spinnaker, "lsm");
}

#[test]
fn the_log_of_many_cohorts_stays_within_its_limit_spinnaker_sled() {
    stays_within_its_limit(Protocol::Spinnaker, "sled");
}

#[test]
fn the_log_of_many_cohorts_stays_within_its_limit_pacifica_lsm() {
    stays_within_its_limit(Protocol::Pacifica, "lsm");
}

#[test]
fn the_log_of_many_cohorts_stays_within_its_limit_pacifica_sled() {
    stays_within_its_limit(Protocol::Pacifica, "sled");
}

#[test]
fn the_log_of_large_values_stays_within_its_limit_raft() {
    stays_within_its_limit_with_large_values(Protocol::Raft);
}

#[test]
fn the_log_of_large_values_stays_within_its_limit_spinnaker() {
    stays_within_its_limit_with_large_values(Protocol::Spinnaker);
}

#[test]
fn the_log_of_large_values_stays_within_its_limit_pacifica() {
    stays_within_its_limit_with_large_values(Protocol::Pacifica);
}

/// Values that are large against the limit: what is allowed in is counted by its bytes.
fn stays_within_its_limit_with_large_values(protocol: Protocol) {
    let mib = 1024 * 1024;
    // So few that none waits for so long that its client asks again.
    let callers = 8;
    let plan = Plan { seconds: 4, limit: 4 * mib, segment: mib, value: 1_000_000, callers };
    run(protocol, "lsm", 4, &plan);
}

/// What a run is made of: the default is short, and the environment asks for more.
struct Plan {
    seconds: u64,
    limit: u64,
    segment: u64,
    value: usize,
    callers: usize,
}

fn stays_within_its_limit(protocol: Protocol, engine: &str) {
    let most = match protocol {
        Protocol::Raft => RANGES_MAX_RAFT,
        Protocol::Spinnaker => RANGES_MAX_SPINNAKER,
        Protocol::Pacifica => RANGES_MAX_PACIFICA,
    };
    let mib = 1024 * 1024;
    let plan = Plan {
        seconds: setting("TRIREME_TEST_SECONDS").unwrap_or(3),
        limit: setting("TRIREME_TEST_LOG_BYTES").unwrap_or(2 * mib),
        segment: setting("TRIREME_TEST_SEGMENT_BYTES").unwrap_or(mib / 4),
        value: setting("TRIREME_TEST_VALUE_BYTES").unwrap_or(4096),
        callers: 64,
    };
    let text = std::env::var("TRIREME_TEST_COHORTS").unwrap_or_else(|_| "16".to_owned());
    let mut counts: Vec<usize> =
        text.split(',').map(|count| count.parse::<usize>().unwrap().min(most)).collect();
    counts.dedup();
    for cohorts in counts {
        run(protocol, engine, cohorts, &plan);
    }
}

#[expect(clippy::print_stderr, reason = "the figures are for reading by hand")]
fn run(protocol: Protocol, engine: &str, cohorts: usize, plan: &Plan) {
    let (limit, segment) = (plan.limit.to_string(), plan.segment.to_string());
    let options = ["--engine", engine, "--durability", "os"];
    let limits = ["--log-bytes-max", &limit, "--segment-bytes", &segment];
    let options = [options, limits].concat();
    let cluster = &mut Cluster::start_by_hand_split(protocol, &splits(cohorts), &options);
    let folders = cluster.nodes().map(|node| cluster.node_folder(node).join("log")).collect();
    let watch = Watch::start(folders);
    let (value, callers) = (plan.value.to_string(), plan.callers.to_string());
    let value = ["--value-bytes", &value, "--callers", &callers];
    let mut load = cluster.load(&format!("{}s", plan.seconds), &value);
    let ran = load.output().unwrap();
    let largest = watch.end();
    let firsts = cluster.nodes().map(|node| cluster.node_folder(node).join(FIRST_SEGMENT));
    let has_given_up = firsts.map(|first| first.exists()).all(|is_there| !is_there);
    cluster.kill_all();
    let began = Instant::now();
    cluster.start_coordinator();
    for node in cluster.nodes() {
        cluster.restart_node_with(node, &limits);
    }
    until_ok("every range has a leader again", RESTART_TIMEOUT, || {
        let statuses = cluster.statuses()?;
        let led = statuses.cohorts().into_iter().filter(|&id| statuses.leader(id).is_some());
        let led = led.count();
        if led == cohorts { Ok(()) } else { Err(format!("{led} of {cohorts} have one")) }
    });
    let restart = began.elapsed();
    eprintln!(
        "{protocol} {engine}: {cohorts} cohorts, limit {} KiB, segment {} KiB, {} s of puts, \
         largest log {:?} KiB, restart {restart:.1?}",
        plan.limit / 1024,
        plan.segment / 1024,
        plan.seconds,
        largest.iter().map(|bytes| bytes / 1024).collect::<Vec<_>>(),
    );
    assert!(ran.status.success(), "{ran:?}");
    assert!(has_given_up, "too little was written for every node to have to give up anything");
    for (node, bytes) in (1..).zip(largest) {
        // One is begun meanwhile, and one file is kept ready for the next. Each node may have one entry
        // under way that is larger than its part of the limit.
        let is_large = plan.value as u64 > plan.limit / 8;
        let entries = if is_large { NODES as u64 * plan.value as u64 } else { 0 };
        let most = plan.limit + 2 * plan.segment + entries;
        assert!(bytes <= most, "node {node} had {bytes} bytes of log, and at most {most} are due");
    }
}

/// Returns the borders of ranges of equal width, as the benchmark spreads its keys.
fn splits(cohorts: usize) -> Vec<Bytes> {
    let (all, cohorts) = (26_u64.pow(PLACES), cohorts as u64);
    let border = |index: u64| {
        let place = index * all / cohorts;
        let letter = |power: u32| b'a' + u8::try_from(place / 26_u64.pow(power) % 26).unwrap();
        Bytes::from((0..PLACES).rev().map(letter).collect::<Vec<u8>>())
    };
    (1..cohorts).map(border).collect()
}

fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Watches how long the logs become.
struct Watch {
    is_over: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
    largest: Arc<[AtomicU64; NODES]>,
}

impl Watch {
    fn start(folders: Vec<PathBuf>) -> Self {
        let (is_over, largest) =
            (Arc::<AtomicBool>::default(), Arc::<[AtomicU64; NODES]>::default());
        let (ends, found) = (Arc::clone(&is_over), Arc::clone(&largest));
        let thread = thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                for (folder, largest) in folders.iter().zip(found.iter()) {
                    largest.fetch_max(bytes_of(folder), Ordering::Relaxed);
                }
                thread::sleep(SAMPLED_EVERY);
            }
        });
        Self { is_over, thread, largest }
    }

    /// Returns the longest that each node's log was.
    fn end(self) -> [u64; NODES] {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        [0, 1, 2].map(|node| self.largest[node].load(Ordering::Relaxed))
    }
}

/// Returns the bytes of the files in a log's folder. One that is removed meanwhile counts nothing.
fn bytes_of(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).unwrap();
    files.filter_map(|file| file.ok()?.metadata().ok()).map(|file| file.len()).sum()
}
