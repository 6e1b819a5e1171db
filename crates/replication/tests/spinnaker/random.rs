//! Random faults for Spinnaker.

use trireme_replication::spinnaker::Spinnaker;
use trireme_types::NodeId;

use crate::script::Runner;
use crate::script::random::{Numbers, Trial, notices, run_script_from_elsewhere, try_seeds};

impl Trial for Spinnaker {
    fn cluster(numbers: &mut Numbers) -> (u64, Vec<(String, String)>) {
        let nodes = [3, 3, 3, 3, 5, 5, 4, 7];
        let nodes = nodes[usize::try_from(numbers.below(8)).expect("a small number")];
        let base = (numbers.below(2) == 0).then(|| ("base".to_owned(), "1".to_owned()));
        (nodes, base.into_iter().collect())
    }

    fn late(node: u64, how: u64) -> Option<String> {
        let word = ["lag", "tell", "unlag"][usize::try_from(how).expect("a small number")];
        Some(format!("{word} {node}"))
    }

    fn trouble(node: u64, _which: u64) -> String {
        format!("expire {node}")
    }

    fn depose(leader: u64) -> Vec<String> {
        vec![format!("cut {leader}"), format!("expire {leader}"), "step".into()]
    }

    fn relief(node: u64) -> String {
        format!("expire {node}")
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

/// The mistakes that need no rare sequence are found by chance; the others have scenarios of their own.
#[test]
fn random_faults_find_mistakes() {
    for fault in ["S3", "S14"] {
        assert!(notices::<Spinnaker>(fault), "{fault} is not noticed");
    }
}

#[test]
fn a_script_from_elsewhere() {
    run_script_from_elsewhere::<Spinnaker>();
}

#[test]
fn whatever_happens_the_invariants_hold() {
    try_seeds::<Spinnaker>();
}
