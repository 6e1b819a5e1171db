//! Every invariant is violated by a mistake that is made on purpose, and finds it within so many seeds,
//! in each protocol where it can be made. An invariant that no run can violate shows nothing.
//!
//! `EVERY=1 cargo test --release -p trireme-sim --test mistakes -- --nocapture` prints the table. Without
//! `EVERY` those are left out that take many seeds.

#![allow(clippy::print_stdout, reason = "the test prints the table of what was found")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use trireme_sim::{Mistake, Setup, run};
use trireme_types::Protocol;
use trireme_types::Protocol::{Pacifica, Raft, Spinnaker};

/// An invariant, a mistake that violates it, and within how many seeds it is seen in each protocol.
struct Row {
    invariant: &'static str,
    mistake: &'static str,
    within: &'static [(Protocol, u64)],
}

/// What takes more seeds than this is left out, unless `EVERY` is set: it takes too long for a test that
/// is always run.
const QUICK: u64 = 10;

const ROWS: &[Row] = &[
    Row { invariant: "one leader per epoch", mistake: "each-wins", within: &[(Spinnaker, 5)] },
    Row { invariant: "one leader per epoch", mistake: "forgets-votes", within: &[(Raft, 10)] },
    Row { invariant: "a configuration is one", mistake: "each-wins", within: &[(Pacifica, 10)] },
    Row {
        invariant: "committed never changes",
        mistake: "acknowledges-unseen",
        within: &[(Raft, 10)],
    },
    Row {
        invariant: "committed never changes",
        mistake: "commits-by-number",
        within: &[(Spinnaker, 10), (Pacifica, 40)],
    },
    Row {
        invariant: "committed is durable",
        mistake: "acknowledges-from-memory",
        within: &[(Spinnaker, 5), (Pacifica, 5)],
    },
    Row {
        invariant: "committed is durable",
        mistake: "adds-without-waiting",
        within: &[(Pacifica, 40)],
    },
    Row { invariant: "committed is durable", mistake: "acknowledges-unseen", within: &[(Raft, 5)] },
    Row {
        invariant: "durable is kept",
        mistake: "lying-disk",
        within: &[(Spinnaker, 5), (Pacifica, 5), (Raft, 5)],
    },
    Row { invariant: "durable is kept", mistake: "flushes-from-memory", within: &[(Raft, 5)] },
    Row {
        invariant: "durable is kept",
        mistake: "drops-damaged",
        within: &[(Spinnaker, 40), (Pacifica, 10), (Raft, 40)],
    },
    Row { invariant: "damage is found", mistake: "forges-checksums", within: &[(Spinnaker, 100)] },
    Row {
        invariant: "a leader has what is committed",
        mistake: "trusts-an-empty-disk",
        within: &[(Spinnaker, 60), (Pacifica, 100), (Raft, 40)],
    },
    Row {
        invariant: "a configuration has what is committed",
        mistake: "drops-what-it-prepared",
        within: &[(Pacifica, 10)],
    },
    Row {
        invariant: "a configuration has what is committed",
        mistake: "adds-without-waiting",
        within: &[(Pacifica, 60)],
    },
    Row {
        invariant: "a leader has what is committed",
        mistake: "forgets-loss",
        within: &[(Spinnaker, 100)],
    },
    Row {
        invariant: "a leader has what is committed",
        mistake: "grants-every-vote",
        within: &[(Raft, 10)],
    },
    Row {
        invariant: "one serves at a time",
        mistake: "serves-while-removing",
        within: &[(Pacifica, 60)],
    },
    Row {
        invariant: "one serves at a time",
        mistake: "leases-from-receipt",
        within: &[(Pacifica, 60)],
    },
    Row {
        invariant: "one serves at a time",
        mistake: "slow-clock",
        within: &[(Spinnaker, 60), (Pacifica, 60)],
    },
    Row {
        invariant: "one serves at a time",
        mistake: "forgets-pulses",
        within: &[(Spinnaker, 60), (Pacifica, 100)],
    },
    Row {
        invariant: "one serves at a time",
        mistake: "acknowledges-for-all",
        within: &[(Spinnaker, 10), (Pacifica, 10)],
    },
    Row {
        invariant: "one serves at a time",
        mistake: "leases-from-answers",
        within: &[(Spinnaker, 40), (Pacifica, 60)],
    },
    Row {
        invariant: "pointers are ordered",
        mistake: "applies-uncommitted",
        within: &[(Spinnaker, 10), (Pacifica, 5)],
    },
    Row {
        invariant: "pointers are ordered",
        mistake: "applies-unforced",
        within: &[(Spinnaker, 5), (Pacifica, 5)],
    },
    Row {
        invariant: "states follow from the log",
        mistake: "names-one-more",
        within: &[(Spinnaker, 5), (Pacifica, 5), (Raft, 5)],
    },
    Row {
        invariant: "states follow from the log",
        mistake: "resumes-its-version",
        within: &[(Pacifica, 40)],
    },
    Row {
        invariant: "exactly once",
        mistake: "renames-retries",
        within: &[(Spinnaker, 5), (Pacifica, 5), (Raft, 5)],
    },
    Row {
        invariant: "acknowledged is never lost",
        mistake: "takes-unknown-for-done",
        within: &[(Spinnaker, 5), (Pacifica, 5), (Raft, 5)],
    },
    Row {
        invariant: "timeline reads are prefixes",
        mistake: "names-committed",
        within: &[(Spinnaker, 10)],
    },
    Row {
        invariant: "timeline reads know their age",
        mistake: "claims-to-be-new",
        within: &[(Spinnaker, 10), (Pacifica, 10), (Raft, 10)],
    },
    Row {
        invariant: "the history is linearizable",
        mistake: "commits-older-epochs",
        within: &[(Spinnaker, 60)],
    },
    Row {
        invariant: "the history is linearizable",
        mistake: "serves-before-reconciling",
        within: &[(Pacifica, 40)],
    },
    Row {
        invariant: "the history is linearizable",
        mistake: "reads-without-majority",
        within: &[(Raft, 60)],
    },
    Row {
        invariant: "no replica fails by itself",
        mistake: "publishes-without-fence",
        within: &[(Spinnaker, 10)],
    },
    Row {
        invariant: "no task panics",
        mistake: "panics",
        within: &[(Spinnaker, 1), (Pacifica, 1), (Raft, 1)],
    },
    Row {
        invariant: "when all faults are over the cluster heals",
        mistake: "trusts-any-coordinator",
        within: &[(Pacifica, 100)],
    },
    Row {
        invariant: "when all faults are over the cluster heals",
        mistake: "stays-cut",
        within: &[(Spinnaker, 1), (Pacifica, 1), (Raft, 1)],
    },
    Row {
        invariant: "when all faults are over the cluster heals",
        mistake: "keeps-its-ticks-off",
        within: &[(Raft, 20)],
    },
    Row {
        invariant: "when all faults are over the cluster takes writes",
        mistake: "stalls-writes-for-good",
        within: &[(Spinnaker, 40), (Pacifica, 5)],
    },
    Row {
        invariant: "when all faults are over the cluster takes writes",
        mistake: "stalls-again",
        within: &[(Spinnaker, 1), (Pacifica, 1), (Raft, 1)],
    },
    Row {
        invariant: "when all faults are over the cluster serves",
        mistake: "hangs-again",
        within: &[(Spinnaker, 1), (Pacifica, 1), (Raft, 1)],
    },
];

/// Returns the first seed, of so many, in which a mistake violates an invariant, and how.
fn find(
    protocol: Protocol,
    mistake: Mistake,
    (invariant, seeds): (&str, u64),
) -> Option<(u64, String)> {
    let (next, found) = (AtomicU64::new(0), AtomicBool::new(false));
    let first = Mutex::new(None);
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds || found.load(Ordering::Relaxed) {
            return;
        }
        let failed = run(Setup { protocol, seed, mistake: Some(mistake) }).err();
        if let Some(failure) = failed.filter(|it| it.reason.starts_with(invariant)) {
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
fn each_invariant_finds_a_mistake() {
    println!("{:44} {:28} {:10} {:>4} {:>6}", "invariant", "mistake", "protocol", "seed", "within");
    let mut missed = Vec::new();
    for Row { invariant, mistake: name, within } in ROWS {
        let mistake = name.parse().unwrap_or_else(|error| panic!("{error}"));
        let every = std::env::var_os("EVERY").is_some();
        for (protocol, seeds) in within.iter().filter(|(_, seeds)| every || *seeds <= QUICK) {
            let found = find(*protocol, mistake, (invariant, *seeds));
            let seed = found.map_or("none".to_owned(), |(seed, _)| seed.to_string());
            println!("{invariant:44} {name:28} {protocol:10} {seed:>4} {seeds:>6}");
            if seed == "none" {
                missed.push(format!("{protocol} {name}: {invariant}"));
            }
        }
    }
    assert!(missed.is_empty(), "not found: {missed:#?}");
}

/// A mistake is made where it is asked for, and nowhere else.
#[test]
fn a_mistake_has_a_name_and_is_in_the_command_that_replays_it() {
    for name in ROWS.iter().map(|row| row.mistake) {
        let mistake: Mistake = name.parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(mistake.to_string(), name);
    }
    assert!("none-such".parse::<Mistake>().is_err());
    let setup = Setup { protocol: Raft, seed: 0, mistake: "lying-disk".parse().ok() };
    let failure = run(setup).expect_err("it is found").to_string();
    let command = "replay: SEED=0 MISTAKE=lying-disk cargo test -p trireme-sim --test seeds raft";
    assert!(failure.contains(command), "{failure}");
}
