//! Random faults for PacificA.

use trireme_replication::Role;
use trireme_replication::pacifica::Pacifica;
use trireme_types::NodeId;

use crate::script::Runner;
use crate::script::random::{
    Lasting, Numbers, Shape, Trial, notices, run_script_from_elsewhere, try_seeds,
};

impl Trial for Pacifica {
    /// Two, three or four replicas; in two of three runs one or two more nodes are free. In some, writes
    /// need two replicas.
    fn cluster(numbers: &mut Numbers) -> (u64, Vec<(String, String)>) {
        let replicas = [3, 3, 3, 2, 4][usize::try_from(numbers.below(5)).expect("a small number")];
        let free = numbers.below(3);
        let mut options = vec![("replicas".to_owned(), replicas.to_string())];
        if numbers.below(4) == 0 {
            options.push(("min".into(), "2".into()));
        }
        (replicas + free, options)
    }

    /// The manager answers nobody, or one of the two ways between it and a node is cut, or a node is
    /// told the newest configuration again.
    fn trouble(node: u64, which: u64) -> String {
        match which {
            0 => "hold".into(),
            1 => format!("deaf {node}"),
            2 => format!("mute {node}"),
            _ => format!("tell {node}"),
        }
    }

    /// As hosting has it: a node that is not in the configuration holds a replica only while one is
    /// missing.
    fn displaced(runner: &Runner<Self>) -> Vec<NodeId> {
        let config = runner.coordinator().config();
        let is_full = config.replicas_missing() == 0;
        let is_displaced = |node: &NodeId| is_full && !config.replicas.contains(node);
        runner.nodes().filter(is_displaced).collect()
    }

    fn depose(leader: u64) -> Vec<String> {
        vec![format!("cut {leader}")]
    }

    fn relief(_node: u64) -> String {
        "step".into()
    }

    /// What leaves fewer nodes than writes need replicas is not borne. Nor is a break between two
    /// replicas that are both needed, since neither can tell which of them is cut off. All else is.
    fn bears(cluster: &Shape<'_>, fault: Lasting, _is_leaders: bool) -> bool {
        let needed = cluster.option("min").unwrap_or(1);
        let cuts = matches!(fault, Lasting::Partition | Lasting::Deaf(_) | Lasting::Mute(_));
        let is_pair = needed > 1 && cluster.option("replicas") == Some(2);
        fault == Lasting::Coordinator || (cluster.nodes() > needed && !(cuts && is_pair))
    }

    /// One replica of the newest configuration must keep its disk, with all that is committed, and know
    /// that it does: one that has never acted cannot tell that it has lost nothing [PAC-45].
    fn bears_loss_of(runner: &Runner<Self>, node: NodeId) -> bool {
        let is_kept =
            |other: &NodeId| *other != node && runner.is_intact(*other) && runner.has_acted(*other);
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
    for fault in ["P2", "P7", "P9"] {
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
