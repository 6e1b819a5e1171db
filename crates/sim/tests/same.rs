//! The same seed gives the same run, event for event.

use trireme_sim::{PROTOCOLS, Setup, run};

/// How many seeds of each protocol are run twice.
const SEEDS: u64 = 1;

#[test]
fn two_runs_of_a_seed_have_the_same_trace() {
    for (protocol, seed) in PROTOCOLS.into_iter().flat_map(|it| (0..SEEDS).map(move |n| (it, n))) {
        let setup = Setup { protocol, seed, mistake: None };
        let traces: Vec<(u64, u64)> = (0..2)
            .map(|_| match run(setup) {
                Ok(summary) => (summary.trace, summary.events.values().sum()),
                Err(failure) => panic!("{failure}"),
            })
            .collect();
        assert_eq!(traces[0], traces[1], "{protocol} with seed {seed}");
    }
}
