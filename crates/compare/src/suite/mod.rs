//! What is run: workloads, faults and experiments, and for how long.

mod experiments;
mod faults;
mod timeouts;
mod workloads;

use std::time::Duration;

use clap::ValueEnum;

pub use self::experiments::{Axis, EXPERIMENTS, Experiment, PaperSeries, Series, Sweep};
pub use self::faults::{FAULT_CALLERS, Fault, FaultKind, SLOW_BY, fault};
pub use self::timeouts::Timeouts;
pub use self::workloads::{Action, KeyChoice, SCAN_ROWS_MAX, Setting, Workload, workload};
pub(crate) use self::workloads::{half_reads_by, writes_by};

/// How thorough a comparison is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Seconds: shows that everything works, and measures nothing that means anything.
    Tiny,
    /// At most five minutes on two cores.
    Quick,
    /// About 50 minutes: workloads of every kind and all faults.
    Standard,
    /// Hours: all there is.
    Full,
    /// The experiments of the Spinnaker paper.
    Spinnaker,
    /// The experiments of the PacificA report.
    Pacifica,
}

/// How long the parts of a suite take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// How many keys there are before anything is measured.
    pub keys: u64,
    /// Bytes of a value, unless the workload says otherwise.
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

impl Suite {
    /// Returns its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Quick => "quick",
            Self::Standard => "standard",
            Self::Full => "full",
            Self::Spinnaker => "spinnaker",
            Self::Pacifica => "pacifica",
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
                warm_up: ms(150),
                measured: ms(600),
                before: ms(1200),
                during: ms(4500),
                after: ms(1800),
            },
            Self::Standard | Self::Spinnaker | Self::Pacifica => Sizes {
                keys: 1000,
                value_bytes: 1000,
                idle: ms(5000),
                rounds: 5,
                warm_up: ms(500),
                measured: ms(3000),
                before: ms(3000),
                during: ms(8000),
                after: ms(7000),
            },
            Self::Full => Sizes {
                keys: 10_000,
                value_bytes: 1000,
                idle: ms(10_000),
                rounds: 7,
                warm_up: ms(1000),
                measured: ms(5000),
                before: ms(5000),
                during: ms(15_000),
                after: ms(10_000),
            },
        }
    }
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
    fn no_two_have_one_name() {
        let mut names: Vec<_> = Suite::Full.workloads().iter().map(|it| it.name).collect();
        names.extend(Suite::Full.faults().iter().map(|fault| fault.name));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
