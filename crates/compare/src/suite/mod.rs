//! What is run: workloads, faults, and for how long.

use std::time::Duration;

use clap::ValueEnum;
use trireme_types::Consistency;

/// How thorough a comparison is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Seconds: shows that everything works, and measures nothing that means anything.
    Tiny,
    /// At most five minutes on two cores.
    Quick,
    /// About half an hour: all workloads and faults, five rounds.
    Standard,
}

/// How long the parts of a suite take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// How many keys there are before anything is measured.
    pub keys: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// How long a cluster is left alone to see what it uses when idle.
    pub idle: Duration,
    /// How often each workload is driven at each system.
    pub rounds: usize,
    /// How long a round goes before it is measured.
    pub warm_up: Duration,
    /// How long a round is measured.
    pub measured: Duration,
    /// How long a fault run goes before the fault, under it, and after it.
    pub before: Duration,
    /// How long the fault lasts.
    pub during: Duration,
    /// How long it goes on after the fault was healed.
    pub after: Duration,
}

/// What callers do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// Its name on the command line and in the report.
    pub name: &'static str,
    /// What it is, in a few plain words.
    pub description: &'static str,
    /// How many callers there are, each with one operation under way.
    pub callers: u64,
    /// Which part of the operations are reads.
    pub reads: f64,
    /// What a read must see.
    pub consistency: Consistency,
    /// Whether a few keys are asked for most of the time (YCSB's zipfian choice), rather than all
    /// alike.
    pub zipfian: bool,
    /// How many operations are due in a second, however fast the answers come; `None` for a closed
    /// loop, in which a caller asks again when it was answered.
    pub rate: Option<u32>,
}

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
    /// All that one follower sends is late.
    SlowFollower,
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
    /// Whether the quick suite has it.
    pub is_quick: bool,
}

/// An experiment of a paper in which one setting of the nodes is varied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sweep {
    /// Its name in the report.
    pub name: &'static str,
    /// What is varied and what is measured.
    pub description: &'static str,
    /// The paper and its table.
    pub source: &'static str,
    /// The setting, in words.
    pub setting: &'static str,
    /// The nodes' option.
    pub option: &'static str,
    /// What the paper measured: seconds of the setting, milliseconds of the takeover.
    pub paper: &'static [(f64, f64)],
}

/// Every sweep.
pub const SWEEPS: [Sweep; 1] = [Sweep {
    name: "commit-period",
    description: "how long a new leader's takeover takes, without the time in which the death of \
                  the former is noticed, by how seldom followers learn what is committed",
    source: "Spinnaker, table 1",
    setting: "commit period",
    option: "--commit-period",
    paper: &[(1.0, 400.0), (5.0, 1500.0), (10.0, 2600.0), (15.0, 4000.0)],
}];

/// How late the messages of a slow follower are.
pub const SLOW_BY: Duration = Duration::from_millis(40);

/// How many callers write and read while a fault goes on.
pub const FAULT_CALLERS: u64 = 8;

/// Every workload. The first of them is the one that is driven at the control too.
pub const WORKLOADS: [Workload; 10] = [
    Workload {
        name: "write",
        description: "only writes, all keys alike",
        callers: 16,
        reads: 0.0,
        consistency: Consistency::Strong,
        zipfian: false,
        rate: None,
    },
    Workload {
        name: "write-1",
        description: "only writes, by one caller: the time that one write takes",
        callers: 1,
        reads: 0.0,
        consistency: Consistency::Strong,
        zipfian: false,
        rate: None,
    },
    Workload {
        name: "mixed-paced",
        description: "half reads and half writes, 1,000 due in each second however fast the \
                      answers come; latency from when they were due",
        callers: 64,
        reads: 0.5,
        consistency: Consistency::Strong,
        zipfian: true,
        rate: Some(1000),
    },
    Workload {
        name: "ycsb-a",
        description: "half reads and half writes, few keys asked for most (YCSB A)",
        callers: 16,
        reads: 0.5,
        consistency: Consistency::Strong,
        zipfian: true,
        rate: None,
    },
    Workload {
        name: "read-strong",
        description: "only strong (linearizable) reads",
        callers: 16,
        reads: 1.0,
        consistency: Consistency::Strong,
        zipfian: false,
        rate: None,
    },
    Workload {
        name: "read-timeline",
        description: "only timeline reads, which may be a little old and may come from any replica",
        callers: 16,
        reads: 1.0,
        consistency: Consistency::Timeline,
        zipfian: false,
        rate: None,
    },
    Workload {
        name: "write-64",
        description: "only writes, by 64 callers at once",
        callers: 64,
        reads: 0.0,
        consistency: Consistency::Strong,
        zipfian: false,
        rate: None,
    },
    Workload {
        name: "write-256",
        description: "only writes, by 256 callers at once",
        callers: 256,
        reads: 0.0,
        consistency: Consistency::Strong,
        zipfian: false,
        rate: None,
    },
    Workload {
        name: "ycsb-b",
        description: "95 reads to 5 writes, few keys asked for most (YCSB B)",
        callers: 16,
        reads: 0.95,
        consistency: Consistency::Strong,
        zipfian: true,
        rate: None,
    },
    Workload {
        name: "ycsb-c",
        description: "only strong reads, few keys asked for most (YCSB C)",
        callers: 64,
        reads: 1.0,
        consistency: Consistency::Strong,
        zipfian: true,
        rate: None,
    },
];

/// How many of [`WORKLOADS`] the quick suite has.
const QUICK_WORKLOADS: usize = 6;

/// Every fault.
pub const FAULTS: [Fault; 11] = [
    Fault {
        name: "leader-kill",
        description: "the leader's process is killed, and started again when the fault ends",
        kind: FaultKind::LeaderKill,
        is_quick: true,
    },
    Fault {
        name: "follower-kill",
        description: "a follower's process is killed, and started again when the fault ends",
        kind: FaultKind::FollowerKill,
        is_quick: true,
    },
    Fault {
        name: "slow-follower",
        description: "all that one follower sends is 40 ms late",
        kind: FaultKind::SlowFollower,
        is_quick: true,
    },
    Fault {
        name: "coordinator-down-leader-kill",
        description: "no node reaches the coordinator, and then the leader is killed",
        kind: FaultKind::CoordinatorDownLeaderKill,
        is_quick: true,
    },
    Fault {
        name: "two-lost",
        description: "two of the three replicas are killed, one after the other; both are started \
                      again when the fault ends",
        kind: FaultKind::TwoLost,
        is_quick: true,
    },
    Fault {
        name: "coordinator-down",
        description: "no node reaches the coordinator",
        kind: FaultKind::CoordinatorDown,
        is_quick: false,
    },
    Fault {
        name: "rolling-restart",
        description: "each node is killed and started again, one after the other; the next when all \
                      replicas have caught up",
        kind: FaultKind::RollingRestart,
        is_quick: false,
    },
    Fault {
        name: "leader-pause",
        description: "the leader's process stands still, and goes on when the fault ends",
        kind: FaultKind::LeaderPause,
        is_quick: false,
    },
    Fault {
        name: "leader-cut",
        description: "no message passes between the leader and the others",
        kind: FaultKind::LeaderCut,
        is_quick: false,
    },
    Fault {
        name: "leader-mute",
        description: "messages from the leader are lost, those to it arrive",
        kind: FaultKind::LeaderMute,
        is_quick: false,
    },
    Fault {
        name: "stalled-disk",
        description: "the leader's forced writes wait",
        kind: FaultKind::StalledDisk,
        is_quick: false,
    },
];

impl Suite {
    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Quick => "quick",
            Self::Standard => "standard",
        }
    }

    /// Returns how long its parts take.
    pub const fn sizes(self) -> Sizes {
        let ms = Duration::from_millis;
        match self {
            Self::Tiny => Sizes {
                keys: 100,
                value_bytes: 100,
                idle: ms(500),
                rounds: 3,
                warm_up: ms(100),
                measured: ms(300),
                before: ms(1000),
                during: ms(3000),
                after: ms(2000),
            },
            Self::Quick => Sizes {
                keys: 1000,
                value_bytes: 1000,
                idle: ms(1000),
                rounds: 5,
                warm_up: ms(200),
                measured: ms(700),
                before: ms(1500),
                during: ms(5000),
                after: ms(2000),
            },
            Self::Standard => Sizes {
                keys: 1000,
                value_bytes: 1000,
                idle: ms(5000),
                rounds: 5,
                warm_up: ms(1000),
                measured: ms(5000),
                before: ms(3000),
                during: ms(8000),
                after: ms(7000),
            },
        }
    }

    /// Returns the workloads that it drives.
    pub fn workloads(self) -> Vec<Workload> {
        let count = match self {
            Self::Tiny => 1,
            Self::Quick => QUICK_WORKLOADS,
            Self::Standard => WORKLOADS.len(),
        };
        WORKLOADS[..count].to_vec()
    }

    /// Returns the values that the setting of a sweep takes.
    pub const fn sweep_values(self) -> &'static [Duration] {
        const QUICK: [Duration; 3] =
            [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(4)];
        const STANDARD: [Duration; 4] = [
            Duration::from_millis(100),
            Duration::from_secs(1),
            Duration::from_secs(5),
            Duration::from_secs(15),
        ];
        match self {
            Self::Tiny => &[],
            Self::Quick => &QUICK,
            Self::Standard => &STANDARD,
        }
    }

    /// Returns the faults that its clusters suffer.
    pub fn faults(self) -> Vec<Fault> {
        match self {
            Self::Tiny => FAULTS[..1].to_vec(),
            Self::Quick => FAULTS.into_iter().filter(|fault| fault.is_quick).collect(),
            Self::Standard => FAULTS.to_vec(),
        }
    }
}

/// Returns the workload of a name.
pub fn workload(name: &str) -> Result<Workload, String> {
    named(&WORKLOADS, |workload| workload.name, name)
}

/// Returns the fault of a name.
pub fn fault(name: &str) -> Result<Fault, String> {
    named(&FAULTS, |fault| fault.name, name)
}

fn named<T: Copy>(all: &[T], name_of: fn(&T) -> &'static str, name: &str) -> Result<T, String> {
    let found = all.iter().find(|item| name_of(item) == name).copied();
    found.ok_or_else(|| {
        let names: Vec<_> = all.iter().map(name_of).collect();
        format!("there is no '{name}'; there are {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_others_are_refused_with_those_that_there_are() {
        assert_eq!(workload("ycsb-a").unwrap().callers, 16);
        assert_eq!(fault("two-lost").unwrap().kind, FaultKind::TwoLost);
        assert!(fault("flood").unwrap_err().contains("leader-kill, follower-kill"));
    }

    #[test]
    fn no_two_have_one_name() {
        let mut names: Vec<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
        names.extend(FAULTS.iter().map(|fault| fault.name));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
