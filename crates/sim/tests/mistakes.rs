//! Mistakes of what surrounds the replicas are found. An invariant that no run can
//! violate shows nothing.

#![allow(clippy::print_stdout, reason = "the test prints the table of what was found")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use trireme_sim::{Mistake, Setup, run};
use trireme_types::Protocol;
use trireme_types::Protocol::{Pacifica, Raft, Spinnaker};

/// A mistake, the invariant that finds it, and within how many seeds.
type Noticed = (Protocol, &'static str, &'static str, u64);

const MISTAKES: &[Noticed] = &[
    (Spinnaker, "lying-disk", "durable is kept", 5),
    (Raft, "lying-disk", "durable is kept", 5),
    (Pacifica, "lying-disk", "durable is kept", 5),
    (Spinnaker, "takes-unknown-for-done", "the history is linearizable", 10),
    (Spinnaker, "renames-retries", "the history is linearizable", 10),
];

/// Returns the first seed that finds the mistake, and what it said.
fn find(protocol: Protocol, mistake: Mistake, seeds: u64) -> Option<(u64, String)> {
    let (next, found) = (AtomicU64::new(0), AtomicBool::new(false));
    let first = Mutex::new(None);
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds || found.load(Ordering::Relaxed) {
            return;
        }
        if let Err(failure) = run(Setup { protocol, seed, mistake: Some(mistake) }) {
            found.store(true, Ordering::Relaxed);
            let mut first = first.lock().expect("no panic");
            if first.as_ref().is_none_or(|(before, _)| seed < *before) {
                *first = Some((seed, failure.reason.clone()));
            }
        }
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        (0..workers).for_each(|_| drop(scope.spawn(work)));
    });
    first.into_inner().expect("no panic")
}

#[test]
fn mistakes_are_found() {
    for (protocol, name, invariant, seeds) in MISTAKES {
        let mistake = name.parse().unwrap_or_else(|error| panic!("{error}"));
        let found = find(*protocol, mistake, *seeds);
        let (seed, reason) =
            found.unwrap_or_else(|| panic!("{protocol} {name}: not found within {seeds} seeds"));
        println!("{protocol} {name}: seed {seed}: {reason}");
        assert!(reason.starts_with(invariant), "{protocol} {name}: seed {seed}: {reason}");
    }
}
