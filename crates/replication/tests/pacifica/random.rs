//! Random faults for PacificA.

use trireme_replication::Role;
use trireme_replication::pacifica::Pacifica;
use trireme_types::NodeId;

use crate::script::Runner;
use crate::script::Way;
use crate::script::random::{
    Lasting, Numbers, Trial, notices, run_script_from_elsewhere, try_seeds,
};

impl Trial for Pacifica {
    /// Two, three or four replicas; in half of all runs one more node is free.
    fn cluster(numbers: &mut Numbers) -> (u64, Vec<(String, String)>) {
        let replicas = [3, 3, 3, 2, 4][usize::try_from(numbers.below(5)).expect("a small number")];
        let free = numbers.below(2);
        (replicas + free, vec![("replicas".into(), replicas.to_string())])
    }

    /// A primary whose disk, table or data lane hangs stays one as long as its beacons are answered.
    fn bears(_nodes: u64, fault: Lasting, _is_leaders: bool) -> bool {
        let hangs = [Lasting::Disk, Lasting::Table];
        let hangs_by_data = |way: Option<Way>| way == Some(Way::Data);
        match fault {
            Lasting::Deaf(way) | Lasting::Mute(way) => !hangs_by_data(way),
            other => !hangs.contains(&other),
        }
    }

    fn trouble(_node: u64) -> String {
        "hold".into()
    }

    fn depose(leader: u64) -> Vec<String> {
        vec![format!("cut {leader}")]
    }

    fn relief(_node: u64) -> String {
        "step".into()
    }

    /// One replica of the newest configuration must keep its disk, with all that is committed.
    fn bears_loss_of(runner: &Runner<Self>, node: NodeId) -> bool {
        let is_kept = |other: &NodeId| *other != node && runner.is_intact(*other);
        runner.coordinator().possible().all(|config| config.replicas.iter().any(is_kept))
    }

    /// The cohort has its full number of replicas again, and all of them have everything.
    fn missing(runner: &Runner<Self>) -> Option<String> {
        let config = runner.coordinator().config();
        if config.replicas_missing() > 0 {
            return Some(format!("{:?} are not enough replicas", config.replicas));
        }
        let behind = config.replicas.iter().find_map(|id| {
            let status = runner.status(*id)?;
            (status.role == Role::Learner || !runner.is_intact(*id)).then_some(status)
        });
        behind.map(|status| format!("{status} lacks something"))
    }
}

/// The mistakes that need no rare sequence are found by chance; the others have scenarios of their own.
#[test]
fn random_faults_find_mistakes() {
    for fault in ["P2", "P5", "P7", "P9"] {
        assert!(notices::<Pacifica>(fault), "{fault} is not noticed");
    }
}

#[test]
fn a_script_from_elsewhere() {
    run_script_from_elsewhere::<Pacifica>();
}

#[test]
fn whatever_happens_the_invariants_hold() {
    try_seeds::<Pacifica>();
}
