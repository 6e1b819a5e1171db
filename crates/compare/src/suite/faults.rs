//! What clusters suffer.

use std::time::Duration;

use super::Suite;

/// What a cluster suffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The leader's process is killed; it is started again when the fault ends.
    LeaderKill,
    /// A follower's process is killed; it is started again when the fault ends.
    FollowerKill,
    /// The leader's process stands still.
    LeaderPause,
    /// No message passes between the leader and the others.
    LeaderCut,
    /// Messages from the leader are lost; those to it arrive.
    LeaderMute,
    /// No message passes between the leader and one follower; the other follower reaches both.
    PartialCut,
    /// All that one follower sends is late.
    SlowFollower,
    /// The leader's forced writes take longer.
    SlowDisk,
    /// The leader's forced writes wait.
    StalledDisk,
    /// No node reaches the coordinator.
    CoordinatorDown,
    /// No node reaches the coordinator, and then the leader is killed.
    CoordinatorDownLeaderKill,
    /// Each node is killed and started again, one after the other.
    RollingRestart,
    /// Two of three replicas are lost, one after the other.
    TwoLost,
    /// A follower is away, the other one loses its disk, and then the leader dies: what was
    /// acknowledged last is on the dead leader's disk alone.
    LostInTurn,
}

impl FaultKind {
    /// Returns true if nodes are asked to suffer, and to stop suffering; false if what happens
    /// happens to their processes and folders.
    pub(crate) const fn is_within_nodes(self) -> bool {
        match self {
            Self::LeaderCut
            | Self::LeaderMute
            | Self::PartialCut
            | Self::SlowFollower
            | Self::SlowDisk
            | Self::StalledDisk
            | Self::CoordinatorDown
            | Self::CoordinatorDownLeaderKill => true,
            Self::LeaderKill
            | Self::FollowerKill
            | Self::LeaderPause
            | Self::RollingRestart
            | Self::TwoLost
            | Self::LostInTurn => false,
        }
    }
}

/// A fault with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its name on the command line and in the report.
    pub name: &'static str,
    /// What happens, in a few plain words.
    pub description: &'static str,
    /// What happens.
    pub kind: FaultKind,
}

/// How late the messages of a slow follower are, and how much longer a slow disk takes.
pub const SLOW_BY: Duration = Duration::from_millis(40);

/// How many callers write and read while a fault goes on.
pub const FAULT_CALLERS: u64 = 8;

/// Every fault; the quick suite has the first [`QUICK`].
const FAULTS: [Fault; 14] = [
    Fault {
        name: "leader-kill",
        description: "the leader's process is killed, and started again when the fault ends",
        kind: FaultKind::LeaderKill,
    },
    Fault {
        name: "follower-kill",
        description: "a follower's process is killed, and started again when the fault ends",
        kind: FaultKind::FollowerKill,
    },
    Fault {
        name: "slow-follower",
        description: "all that one follower sends is 40 ms late",
        kind: FaultKind::SlowFollower,
    },
    Fault {
        name: "coordinator-down-leader-kill",
        description: "no node reaches the coordinator, and then the leader is killed",
        kind: FaultKind::CoordinatorDownLeaderKill,
    },
    Fault {
        name: "two-lost",
        description: "two of the three replicas are killed, one after the other; both are started \
                      again when the fault ends",
        kind: FaultKind::TwoLost,
    },
    Fault {
        name: "coordinator-down",
        description: "no node reaches the coordinator",
        kind: FaultKind::CoordinatorDown,
    },
    Fault {
        name: "rolling-restart",
        description: "each node is killed and started again, one after the other; the next when all \
                      replicas have caught up",
        kind: FaultKind::RollingRestart,
    },
    Fault {
        name: "leader-pause",
        description: "the leader's process stands still, and goes on when the fault ends",
        kind: FaultKind::LeaderPause,
    },
    Fault {
        name: "leader-cut",
        description: "no message passes between the leader and the others",
        kind: FaultKind::LeaderCut,
    },
    Fault {
        name: "leader-mute",
        description: "messages from the leader are lost, those to it arrive",
        kind: FaultKind::LeaderMute,
    },
    Fault {
        name: "partial-cut",
        description: "no message passes between the leader and one follower; the other follower \
                      reaches both",
        kind: FaultKind::PartialCut,
    },
    Fault {
        name: "slow-disk",
        description: "each forced write of the leader takes 40 ms longer",
        kind: FaultKind::SlowDisk,
    },
    Fault {
        name: "stalled-disk",
        description: "the leader's forced writes wait",
        kind: FaultKind::StalledDisk,
    },
    Fault {
        name: "lost-in-turn",
        description: "a follower is killed; then the other one loses its disk, and the leader is \
                      killed; both followers are started again, and the leader when the fault ends: \
                      meanwhile its disk alone has what was acknowledged last",
        kind: FaultKind::LostInTurn,
    },
];

/// See [`FAULTS`].
const QUICK: usize = 5;

/// What the PacificA report has its replicas suffer.
const PACIFICA: [&str; 4] = ["leader-kill", "follower-kill", "slow-follower", "two-lost"];

impl Suite {
    /// Returns the faults that its clusters suffer.
    pub fn faults(self) -> Vec<Fault> {
        match self {
            Self::Tiny => FAULTS[..1].to_vec(),
            Self::Quick => FAULTS[..QUICK].to_vec(),
            Self::Standard | Self::Full => FAULTS.to_vec(),
            Self::Spinnaker => Vec::new(),
            Self::Pacifica => {
                PACIFICA.map(|name| fault(name).expect("a test looks each up")).to_vec()
            }
        }
    }
}

/// Returns the fault of a name.
///
/// # Errors
///
/// If there is none; the error lists those that there are.
pub fn fault(name: &str) -> Result<Fault, String> {
    super::named(&FAULTS, |fault| fault.name, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_others_are_refused_with_those_that_there_are() {
        assert_eq!(fault("two-lost").unwrap().kind, FaultKind::TwoLost);
        assert!(fault("flood").unwrap_err().contains("leader-kill, follower-kill"));
    }

    #[test]
    fn every_suite_has_what_it_names() {
        assert_eq!(Suite::Pacifica.faults().len(), PACIFICA.len());
        assert_eq!(Suite::Quick.faults().last().unwrap().name, "two-lost");
    }
}
