//! Random faults for PacificA.

use trireme_replication::Role;
use trireme_replication::pacifica::Pacifica;
use trireme_types::NodeId;

use crate::script::Runner;
use crate::script::invariants::{
    ACKNOWLEDGED_IS_READ, ANSWERED_ONCE, APPLIED_ONCE, ENDS_ALIKE, LISTED_HAVE_ALL, LOGS_MATCH,
    NEVER_GOES_BACK, NO_GHOST, NO_READ_AFTER_THE_END, NOT_TOO_MANY, NOTHING_BEHIND_THE_SEAL,
    ON_ENOUGH_DISKS, ON_THE_LEAST_DISKS, ONE_READER, POINTERS_ARE_ORDERED, READS_END_FIRST,
    READS_WHAT_IT_NAMES, REFUSED_IS_NOT_READ,
};
use crate::script::random::{
    Lasting, Noticed, Numbers, Shape, THE_REST_SERVES, Trial, check_mistakes,
    run_script_from_elsewhere, try_seeds,
};

/// How many nodes are at fault at the same time at the most.
const FAULTS_MAX: u64 = 2;

impl Trial for Pacifica {
    const DISCARDS: bool = true;

    /// Two to seven replicas; in two of three runs one or two more nodes are free. In some, writes need two
    /// replicas.
    fn cluster(numbers: &mut Numbers) -> (u64, Vec<(String, String)>) {
        let replicas =
            [3, 3, 3, 3, 2, 4, 5, 7][usize::try_from(numbers.below(8)).expect("a small number")];
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

    /// A node that lags may be sent the newest configuration meanwhile, and learns of older ones then.
    fn late(node: u64, how: u64) -> String {
        let word = ["lag", "pass", "unlag"][usize::try_from(how).expect("a small number")];
        format!("{word} {node}")
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

    /// Those without which as many nodes are left as writes need replicas.
    fn minority(cluster: &Shape<'_>) -> u64 {
        let needed = cluster.option("min").unwrap_or(1);
        cluster.nodes().saturating_sub(needed).min(FAULTS_MAX)
    }

    /// One of the replicas, which alone have everything, and as many as writes need: a primary that is
    /// left with fewer cannot tell that it is not the one at fault, and lets the others be first.
    fn survives(runner: &Runner<Self>, at_fault: &[NodeId]) -> bool {
        let config = runner.coordinator().config();
        let left = config.replicas.iter().filter(|replica| !at_fault.contains(replica));
        left.count() as u64 >= runner.option("min").unwrap_or(1)
    }

    /// A break between two replicas that are both needed is not borne, since neither can tell which of
    /// them is cut off. All else is.
    fn bears(cluster: &Shape<'_>, fault: Lasting) -> bool {
        let needed = cluster.option("min").unwrap_or(1);
        let cuts = matches!(fault, Lasting::Partition | Lasting::Deaf(_) | Lasting::Mute(_));
        let is_pair = needed > 1 && cluster.option("replicas") == Some(2);
        !(cuts && is_pair)
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

/// Mistakes, which invariant each violates, and within how many seeds that is seen. Those that take a
/// rarer sequence have scenarios of their own (`faults`).
const MISTAKES: &[Noticed] = &[
    ("mistake", "each-wins", LOGS_MATCH, 20),
    ("mistake", "applies-ahead", POINTERS_ARE_ORDERED, 20),
    ("mistake", "answers-twice", ANSWERED_ONCE, 20),
    ("mistake", "lists-one-more", NOT_TOO_MANY, 50),
    ("mistake", "lying-disk", LISTED_HAVE_ALL, 200),
    ("mistake", "lying-disk", ON_ENOUGH_DISKS, 50),
    ("mistake", "forgets-seal", ENDS_ALIKE, 200),
    ("mistake", "forgets-seal", NOTHING_BEHIND_THE_SEAL, 200),
    ("mistake", "reads-while-sealing", NO_READ_AFTER_THE_END, 300),
    ("mistake", "names-committed", READS_WHAT_IT_NAMES, 100),
    ("mistake", "takes-older", NEVER_GOES_BACK, 300),
    ("mistake", "unknown-is-refused", REFUSED_IS_NOT_READ, 200),
    ("mistake", "forgets-requests", APPLIED_ONCE, 200),
    ("mistake", "ignores-end-of-reads", ONE_READER, 1500),
    ("fault", "P2", THE_REST_SERVES, 50),
    ("fault", "P3", READS_END_FIRST, 1000),
    ("fault", "P7", LOGS_MATCH, 1000),
    ("fault", "P9", ACKNOWLEDGED_IS_READ, 1500),
    ("fault", "P9", NO_GHOST, 1500),
    ("fault", "P10", ON_THE_LEAST_DISKS, 1000),
];

#[test]
fn random_faults_find_mistakes() {
    check_mistakes::<Pacifica>(MISTAKES);
}

#[test]
fn a_script_from_elsewhere() {
    run_script_from_elsewhere::<Pacifica>();
}

#[test]
fn whatever_happens_the_invariants_hold() {
    try_seeds::<Pacifica>();
}
