//! What timeline reads say of themselves is true: the age is a bound, `applied` names the state that
//! was read, and a replica that lost what it had does not pass its gaps off as the rows' absence.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tonic::Code;
use trireme_client::ClientOptions;
use trireme_proto::v1;
use trireme_types::Lsn;

use common::wire::Wire;
use common::{Cluster, until};

const PATIENCE: Duration = Duration::from_secs(30);

/// A range of each protocol.
const RANGES: [&str; 6] =
    ["--range", "..f=raft", "--range", "f..p=spinnaker", "--range", "p..=pacifica"];

/// A key of each range.
const KEYS: [&str; 3] = ["c", "i", "s"];

/// By how much an age may be too small: what the fastest message between two processes takes, and
/// what passes between an acknowledgement and the moment that a test takes for it.
const SLACK: Duration = Duration::from_millis(25);

/// How long a leader of each range may state no age after it was cut off: its lease, by default. One of Raft
/// has none, and counts from what a majority acknowledged last.
const LEASES: [Duration; 3] =
    [Duration::ZERO, Duration::from_millis(800), Duration::from_millis(800)];

/// An age that a leader which is cut off states before it gives up, at the latest.
const SEEN_TO_GROW: Duration = Duration::from_millis(200);

/// The versions of one key that were acknowledged, each with the moment when that was known.
#[derive(Clone, Default)]
struct Acknowledged(Arc<Mutex<Vec<(u64, Instant)>>>);

impl Acknowledged {
    fn push(&self, version: u64) {
        self.0.lock().unwrap().push((version, Instant::now()));
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Checks what a timeline read that began at `began` said.
    #[track_caller]
    fn check(&self, began: Instant, read: &TimelineRead) {
        let all = self.0.lock().unwrap();
        let newer = all.iter().find(|(version, _)| read.version.is_none_or(|v| *version > v));
        let Some(&(newer, at)) = newer.filter(|(_, at)| *at < began) else { return };
        let least = began.duration_since(at);
        match read.age {
            Some(age) => assert!(
                age + SLACK >= least,
                "{read:?}, though version {newer} was acknowledged {least:?} before"
            ),
            // A state of unknown age may be old; one without the key is a lost one.
            None => assert!(
                read.version.is_some(),
                "no value and no age, {least:?} after version {newer}: {read:?}"
            ),
        }
    }
}

/// What a timeline read was answered with.
#[derive(Debug)]
struct TimelineRead {
    version: Option<u64>,
    age: Option<Duration>,
    applied: Lsn,
}

/// Reads a key at one node; `None` if it passed the read on.
async fn read(wire: &mut Wire, key: &str) -> Option<TimelineRead> {
    let key = key.as_bytes().to_vec().into();
    let consistency = v1::Consistency::Timeline.into();
    let request = v1::GetRequest { key, consistency, ..Default::default() };
    match wire.kv.get(request).await {
        Ok(answer) => {
            let v1::GetResponse { row, freshness } = answer.into_inner();
            let freshness = freshness.unwrap();
            Some(TimelineRead {
                version: row.map(|row| row.version),
                age: freshness.age_ms.map(Duration::from_millis),
                applied: freshness.applied.unwrap().into(),
            })
        }
        Err(status) => {
            let passes_on = [Code::Unavailable, Code::FailedPrecondition];
            assert!(passes_on.contains(&status.code()), "{status:?}");
            None
        }
    }
}

/// Writers of some keys, one write at a time each, until they are dropped.
struct Writers {
    keys: Vec<(&'static str, Acknowledged)>,
    done: Arc<AtomicBool>,
}

impl Writers {
    fn start(cluster: &Cluster, keys: &[&'static str]) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let client = cluster.runtime.block_on(cluster.client(ClientOptions::default()));
        let keys: Vec<_> = keys.iter().map(|&key| (key, Acknowledged::default())).collect();
        for (key, acknowledged) in keys.clone() {
            let (client, done) = (client.clone(), Arc::clone(&done));
            cluster.runtime.spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    if let Ok(version) = client.put(key, "value").await {
                        acknowledged.push(version.0);
                    }
                }
            });
        }
        Self { keys, done }
    }

    fn wait_for_writes(&self, count: usize) {
        for (key, acknowledged) in &self.keys {
            let enough = acknowledged.count() + count;
            until(key, PATIENCE, || (acknowledged.count() >= enough).then_some(()));
        }
    }

    /// Reads the keys at one node for a time, and checks every answer; returns how many there were,
    /// and how many had an age.
    fn read_at(&self, cluster: &Cluster, node: usize, time: Duration) -> (usize, usize) {
        let address = cluster.address(node);
        let listens = || std::net::TcpStream::connect(&address).ok();
        until("the node listens", PATIENCE, listens);
        cluster.runtime.block_on(async {
            let mut wire = Wire::connect(&address).await;
            let (mut answers, mut aged) = (0, 0);
            let until = Instant::now() + time;
            while Instant::now() < until {
                for (key, acknowledged) in &self.keys {
                    let began = Instant::now();
                    if let Some(read) = read(&mut wire, key).await {
                        acknowledged.check(began, &read);
                        answers += 1;
                        aged += usize::from(read.age.is_some());
                    }
                }
            }
            (answers, aged)
        })
    }
}

impl Writers {
    /// Reads the keys at node 1 for a time, which led all ranges when it was cut off, and checks every
    /// answer; returns the greatest age of each key.
    #[track_caller]
    fn read_at_one_cut_off(
        &self,
        cluster: &Cluster,
        cut: Instant,
        time: Duration,
    ) -> [Duration; 3] {
        let mut ages = KEYS.map(|_| Duration::ZERO);
        cluster.runtime.block_on(async {
            let mut wire = Wire::connect(&cluster.address(1)).await;
            let end = Instant::now() + time;
            while Instant::now() < end {
                for (at, (key, acknowledged)) in self.keys.iter().enumerate() {
                    let began = Instant::now();
                    let Some(read) = read(&mut wire, key).await else { continue };
                    acknowledged.check(began, &read);
                    let Some(age) = read.age else { continue };
                    let least = began.duration_since(cut).saturating_sub(LEASES[at]);
                    assert!(age + SLACK >= least, "{key}, {least:?} after the cut: {read:?}");
                    ages[at] = ages[at].max(age);
                }
            }
        });
        ages
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Followers that are told of commits every three seconds say how old what they have is, not when
/// they last heard their leader. [SPIN-70] [PAC-70]
#[test]
fn with_a_long_commit_period_ages_grow_with_what_followers_are_not_told() {
    let cluster = &Cluster::start(&[&RANGES[..], &["--commit-period", "3s"]].concat());
    let client = cluster.runtime.block_on(cluster.client(ClientOptions::default()));
    let (mut stale, mut fresh) = (0, 0);
    cluster.runtime.block_on(async {
        let mut wires = Vec::new();
        for node in cluster.nodes() {
            wires.push(Wire::connect(&cluster.address(node)).await);
        }
        let keys = KEYS.map(|key| (key, Acknowledged::default()));
        let end = Instant::now() + Duration::from_secs(9);
        let mut next_write = Instant::now();
        while Instant::now() < end {
            if Instant::now() >= next_write {
                next_write = Instant::now() + Duration::from_millis(700);
                for (key, acknowledged) in &keys {
                    acknowledged.push(client.put(*key, "value").await.unwrap().0);
                }
            }
            for wire in &mut wires {
                for (key, acknowledged) in &keys {
                    let began = Instant::now();
                    let Some(read) = read(wire, key).await else { continue };
                    acknowledged.check(began, &read);
                    stale += usize::from(read.age.is_some_and(|age| age > Duration::from_secs(1)));
                    fresh += usize::from(read.age.is_some_and(|age| age < Duration::from_secs(1)));
                }
            }
        }
    });
    assert!(stale > 0 && fresh > 0, "{stale} old answers, {fresh} new ones");
}

/// A replica that comes back says nothing of an age that it does not know, and soon knows it.
#[test]
fn a_replica_that_comes_back_or_stood_still_states_no_age_too_small() {
    let cluster = &mut Cluster::start(&RANGES);
    cluster.lead_everywhere(1);
    let writers = Writers::start(cluster, &KEYS);
    writers.wait_for_writes(20);
    for _ in 0..2 {
        cluster.kill(3);
        writers.wait_for_writes(100);
        cluster.restart_node(3);
        until("it learns its age again", PATIENCE, || {
            let (_, aged) = writers.read_at(cluster, 3, Duration::from_secs(1));
            (aged > 0).then_some(())
        });
    }
    // Long enough for what waits at its end to be old, and short enough for its links to live on.
    cluster.signal(3, Signal::STOP);
    std::thread::sleep(Duration::from_millis(700));
    cluster.signal(3, Signal::CONT);
    writers.read_at(cluster, 3, Duration::from_secs(2));
    cluster.wait_until_caught_up(PATIENCE);
    let (answers, aged) = writers.read_at(cluster, 3, Duration::from_secs(1));
    assert!(answers > 0 && aged == answers, "{aged} of {answers} answers have an age");
}

/// A leader that is cut off, and the coordinator with it, leads on until it notices, and the others write
/// what it lacks meanwhile. What it has is no younger than the cut, or, under a lease, than the end of
/// that. [SPIN-70] [PAC-70]
#[test]
fn a_leader_that_is_cut_off_gets_older_while_the_others_write() {
    let cluster = &Cluster::start(&[&RANGES[..], &["--allow-faults"]].concat());
    let mut oldest = KEYS.map(|_| Duration::ZERO);
    // A test that did not run for a moment may have missed that the leader led on.
    for _ in 0..5 {
        cluster.wait_until_caught_up(PATIENCE);
        cluster.lead_everywhere(1);
        let writers = Writers::start(cluster, &KEYS);
        writers.wait_for_writes(20);
        cluster.cut_coordinator(1);
        cluster.isolate(1);
        let cut = Instant::now();
        let ages = writers.read_at_one_cut_off(cluster, cut, Duration::from_secs(3));
        for (oldest, age) in oldest.iter_mut().zip(ages) {
            *oldest = age.max(*oldest);
        }
        writers.wait_for_writes(20);
        writers.read_at_one_cut_off(cluster, cut, Duration::from_millis(500));
        drop(writers);
        cluster.heal_all();
        if oldest.iter().all(|age| *age >= SEEN_TO_GROW) {
            break;
        }
    }
    assert!(oldest.iter().all(|age| *age >= SEEN_TO_GROW), "{oldest:?}");
    cluster.wait_until_caught_up(PATIENCE);
}

/// A replica that lost its disk never says that what it lost is not there.
#[test]
fn a_wiped_replica_never_says_that_a_row_is_not_there() {
    let ranges = ["--range", "..p=spinnaker", "--range", "p..=pacifica"];
    let cluster = &mut Cluster::start(&ranges);
    cluster.lead_everywhere(1);
    let writers = Writers::start(cluster, &["i", "s"]);
    writers.wait_for_writes(200);
    cluster.kill(3);
    writers.wait_for_writes(50);
    cluster.wipe(3);
    cluster.start_new_node(3, &[]);
    // It may have to wait until the session of the process before it has ended.
    until("the wiped replica serves again", PATIENCE, || {
        let (_, aged) = writers.read_at(cluster, 3, Duration::from_secs(1));
        (aged > 0).then_some(())
    });
}

/// One writer, one row: each write raises the version and the log's sequence by one, so that their
/// difference shows a read whose row and `applied` are of two states.
#[test]
fn applied_is_the_state_that_was_read() {
    for engine in ["lsm", "sled"] {
        let cluster = &Cluster::start(&[&RANGES[..], &["--engine", engine]].concat());
        cluster.lead_everywhere(1);
        let writers = Writers::start(cluster, &KEYS);
        writers.wait_for_writes(20);
        cluster.runtime.block_on(async {
            for node in cluster.nodes() {
                let mut wire = Wire::connect(&cluster.address(node)).await;
                for (key, _) in &writers.keys {
                    let mut first = None;
                    for _ in 0..500 {
                        let Some(read) = read(&mut wire, key).await else { continue };
                        let ahead = read.applied.seq - read.version.unwrap();
                        let (epoch, expected) = *first.get_or_insert((read.applied.epoch, ahead));
                        // A new leader adds an entry of its own, which is no write.
                        if epoch == read.applied.epoch {
                            assert_eq!(ahead, expected, "{key} at node {node}: {read:?}");
                        }
                    }
                    assert!(first.is_some(), "{key} at node {node} is never answered");
                }
            }
        });
    }
}
