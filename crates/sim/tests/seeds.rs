//! Seeds of every protocol: whatever happens, the invariants hold and the cluster heals.
//!
//! `SEED=n` runs one, and with `TRACE=file` writes every event; `FROM=n SEEDS=m` runs others. With
//! `MISTAKE=name` a mistake is made (`mistakes.rs`).

#![allow(clippy::print_stdout, reason = "the test prints what the runs have done")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use trireme_sim::{Setup, Summary, run_into};
use trireme_types::Protocol;

/// How many seeds of each protocol are a part of the test command.
const SEEDS: u64 = 200;

/// The events that are faults, or come of them; and the pulses of cohorts that rest.
const FAULTS: [&str; 21] = [
    "kill",
    "leader falls",
    "wipe",
    "pause",
    "cut",
    "storm",
    "power",
    "disk stalls",
    "disk is slow",
    "disk full",
    "sync fails",
    "coordinator down",
    "coordinator put back",
    "coordinator cut",
    "session ends",
    "hand over",
    "snapshot",
    "lull",
    "late",
    "dropped",
    "pulse",
];

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

fn try_seeds(protocol: Protocol) {
    let (from, seeds) = match number("SEED") {
        Some(seed) => (seed, 1),
        None => (number("FROM").unwrap_or(0), number("SEEDS").unwrap_or(SEEDS)),
    };
    let mistake = std::env::var("MISTAKE").ok();
    let mistake = mistake.map(|name| name.parse().unwrap_or_else(|error| panic!("{error}")));
    let (next, done) = (AtomicU64::new(from), Mutex::new(Vec::<(u64, Summary)>::new()));
    let failures = Mutex::new(Vec::new());
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= from + seeds {
            return;
        }
        // One seed alone may be looked at event by event.
        let sink = std::env::var("TRACE").ok().filter(|_| seeds == 1);
        let sink = sink.map(|path| {
            let file = File::create(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            Box::new(BufWriter::new(file)) as Box<dyn Write + Send>
        });
        match run_into(Setup { protocol, seed, mistake }, sink) {
            Ok(summary) => done.lock().expect("no panic").push((seed, summary)),
            Err(failure) => failures.lock().expect("no panic").push((seed, failure)),
        }
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (0..workers).for_each(|_| drop(scope.spawn(work)));
    });
    let done = done.into_inner().expect("no panic");
    let sum = |of: fn(&Summary) -> u64| done.iter().map(|(_, summary)| of(summary)).sum::<u64>();
    let mut faults = BTreeMap::<&str, u64>::new();
    for (kind, count) in done.iter().flat_map(|(_, summary)| &summary.events) {
        if FAULTS.contains(kind) {
            *faults.entry(kind).or_default() += count;
        }
    }
    let faults: Vec<_> = faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    println!(
        "{protocol}: {} seeds from {from} on, {:.2} virtual hours, {} writes, {} refused, {} \
         ambiguous, {} reads, {} timeline reads, {} epochs; {}",
        done.len(),
        Duration::from_millis(sum(|it| it.millis)).as_secs_f64() / 3600.0,
        sum(|it| it.written),
        sum(|it| it.refused),
        sum(|it| it.ambiguous),
        sum(|it| it.read),
        sum(|it| it.timeline_reads),
        sum(|it| it.epochs),
        faults.join(", "),
    );
    let mut failures = failures.into_inner().expect("no panic");
    failures.sort_by_key(|(seed, _)| *seed);
    if let Some((_, failure)) = failures.first() {
        let seeds: Vec<u64> = failures.iter().map(|(seed, _)| *seed).collect();
        panic!("{failure}\nof the seeds {seeds:?}");
    }
}

#[test]
fn spinnaker() {
    try_seeds(Protocol::Spinnaker);
}

#[test]
fn pacifica() {
    try_seeds(Protocol::Pacifica);
}

#[test]
fn raft() {
    try_seeds(Protocol::Raft);
}

/// The seeds of worlds with lulls that are looked at, and how many pulses there must be in them: a cohort
/// that does not come to rest has a few, by which its leader asks whether it may.
const LULLS: [u64; 4] = [3, 7, 11, 15];
const PULSES_MIN: u64 = 100;

/// Where clients ask for nothing for a while, cohorts come to rest, or the seeds would show nothing of
/// that.
#[test]
fn cohorts_rest_in_lulls() {
    for protocol in [Protocol::Spinnaker, Protocol::Pacifica, Protocol::Raft] {
        let pulses = LULLS.map(|seed| {
            let summary = run_into(Setup { protocol, seed, mistake: None }, None);
            let summary = summary.unwrap_or_else(|failure| panic!("{failure}"));
            summary.events.get("pulse").copied().unwrap_or_default()
        });
        assert!(pulses.iter().sum::<u64>() > PULSES_MIN, "{protocol}: {pulses:?} pulses");
    }
}
