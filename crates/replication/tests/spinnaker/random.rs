//! Random faults for Spinnaker.

use trireme_replication::spinnaker::Spinnaker;
use trireme_types::NodeId;

use crate::script::Runner;
use crate::script::invariants::{
    ACKNOWLEDGED_IS_READ, ANSWERED_ONCE, APPLIED_ONCE, COMMITTED_NEVER_CHANGES, CORE_IS_VALID,
    ENDS_ALIKE, LOGS_MATCH, NEVER_GOES_BACK, NO_GHOST, NO_READ_AFTER_THE_END,
    NOTHING_BEHIND_THE_SEAL, ON_ENOUGH_DISKS, ONE_LEADER, ONE_READER, READS_END_FIRST,
    READS_WHAT_IT_NAMES, REFUSED_IS_NOT_READ,
};
use crate::script::random::{
    Noticed, Numbers, Shape, THE_REST_SERVES, Trial, check_mistakes, run_script_from_elsewhere,
    try_seeds,
};

impl Trial for Spinnaker {
    const DISCARDS: bool = false;

    fn cluster(numbers: &mut Numbers) -> (u64, Vec<(String, String)>) {
        let nodes = [3, 3, 3, 4, 5, 5, 6, 7];
        let nodes: u64 = nodes[usize::try_from(numbers.below(8)).expect("a small number")];
        let base = (numbers.below(2) == 0).then(|| ("base".to_owned(), "1".to_owned()));
        // One or two are invited.
        let invited = [0, 0, 1, 2][usize::try_from(numbers.below(4)).expect("a small number")];
        let replicas = (invited > 0).then(|| ("replicas".to_owned(), nodes.to_string()));
        (nodes + invited, base.into_iter().chain(replicas).collect())
    }

    fn late(node: u64, how: u64) -> String {
        let word = ["lag", "tell", "unlag"][usize::try_from(how).expect("a small number")];
        format!("{word} {node}")
    }

    /// The session of a node ends, or what it asks for is lost, or what it is told.
    fn trouble(node: u64, which: u64) -> String {
        match which {
            0 => format!("mute {node}"),
            1 => format!("deaf {node}"),
            _ => format!("expire {node}"),
        }
    }

    fn depose(leader: u64) -> Vec<String> {
        vec![format!("cut {leader}"), format!("expire {leader}"), "step".into()]
    }

    fn relief(node: u64) -> String {
        format!("expire {node}")
    }

    fn minority(cluster: &Shape<'_>) -> u64 {
        (cluster.option("replicas").unwrap_or_else(|| cluster.nodes()) - 1) / 2
    }

    /// Another disk is lost only when all that were lost before count again.
    fn bears_loss_of(runner: &Runner<Self>, _node: NodeId) -> bool {
        runner.learners() == 0
    }

    fn missing(runner: &Runner<Self>) -> Option<String> {
        let learners = runner.learners();
        (learners > 0).then(|| format!("{learners} replicas have not caught up"))
    }
}

/// Mistakes, which invariant each violates, and within how many seeds that is seen. Those that take a
/// rarer sequence have scenarios of their own (`faults`).
const MISTAKES: &[Noticed] = &[
    ("mistake", "each-wins", ONE_LEADER, 20),
    ("mistake", "mixes-entries", LOGS_MATCH, 20),
    ("mistake", "applies-ahead", CORE_IS_VALID, 20),
    ("mistake", "answers-twice", ANSWERED_ONCE, 20),
    ("mistake", "lying-disk", ON_ENOUGH_DISKS, 100),
    ("mistake", "unknown-is-refused", REFUSED_IS_NOT_READ, 100),
    ("mistake", "forgets-seal", ENDS_ALIKE, 200),
    ("mistake", "forgets-seal", NOTHING_BEHIND_THE_SEAL, 200),
    ("mistake", "reads-while-sealing", NO_READ_AFTER_THE_END, 300),
    ("mistake", "names-committed", READS_WHAT_IT_NAMES, 100),
    ("mistake", "takes-older", NEVER_GOES_BACK, 300),
    ("mistake", "forgets-requests", APPLIED_ONCE, 300),
    ("mistake", "ignores-end-of-reads", ONE_READER, 1000),
    ("fault", "S1", ACKNOWLEDGED_IS_READ, 1000),
    ("fault", "S1", NO_GHOST, 3000),
    ("fault", "S3", THE_REST_SERVES, 300),
    ("fault", "S5", READS_END_FIRST, 1000),
    ("fault", "S14", COMMITTED_NEVER_CHANGES, 1500),
    ("fault", "SPIN-48", ON_ENOUGH_DISKS, 300),
];

#[test]
fn random_faults_find_mistakes() {
    check_mistakes::<Spinnaker>(MISTAKES);
}

#[test]
fn a_script_from_elsewhere() {
    run_script_from_elsewhere::<Spinnaker>();
}

#[test]
fn whatever_happens_the_invariants_hold() {
    try_seeds::<Spinnaker>();
}
