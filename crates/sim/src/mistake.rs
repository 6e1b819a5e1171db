//! Mistakes that are made on purpose, so that a test can show that they are found.

use std::fmt;
use std::str::FromStr;

use trireme_replication::driver::DriverFaults;
use trireme_replication::pacifica::PacificaFaults;
use trireme_replication::pulse::PulseFaults;
use trireme_replication::raft::RaftFaults;
use trireme_replication::spinnaker::SpinnakerFaults;
use trireme_replication::streaming::StreamingFaults;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A log reports what it has not forced as durable.
    LyingDisk,
    /// A node that lost its disk does not know that it did.
    ForgetsLoss,
    /// A table that a crash took back to its last flush names one entry more than it holds.
    NamesOneMore,
    /// A node whose log is damaged goes on with what lies before the damage.
    DropsDamaged,
    /// Damage to a log leaves its checksums right, as if nothing compared them.
    ForgesChecksums,
    /// A task of a node panics a while after its start.
    Panics,
    /// The coordinator has each who wants to lead believe that it does.
    EachWins,
    /// A node takes a coordinator that was put back to an older state for what it was.
    TrustsAnyCoordinator,
    /// A node's clock runs at a fifth of the speed of the others'.
    SlowClock,
    /// A client takes a write whose outcome is ambiguous for one that was done.
    TakesUnknownForDone,
    /// A client sends a write again under a new name.
    RenamesRetries,
    /// A timeline read names the newest committed entry in place of the one that its state includes.
    NamesCommitted,
    /// A timeline read claims to be new.
    ClaimsToBeNew,
    /// What is cut off when the faults end stays so.
    StaysCut,
    /// When the cluster is whole again, all its disks stall.
    StallsAgain,
    /// When the cluster takes writes again, all its processes stand still.
    HangsAgain,
    /// One of a replica's own, by the name of its switch.
    Own(&'static str),
}

/// Those of what surrounds the replicas.
const AROUND: [(&str, Mistake); 16] = [
    ("lying-disk", Mistake::LyingDisk),
    ("forgets-loss", Mistake::ForgetsLoss),
    ("names-one-more", Mistake::NamesOneMore),
    ("drops-damaged", Mistake::DropsDamaged),
    ("forges-checksums", Mistake::ForgesChecksums),
    ("panics", Mistake::Panics),
    ("each-wins", Mistake::EachWins),
    ("trusts-any-coordinator", Mistake::TrustsAnyCoordinator),
    ("slow-clock", Mistake::SlowClock),
    ("takes-unknown-for-done", Mistake::TakesUnknownForDone),
    ("renames-retries", Mistake::RenamesRetries),
    ("names-committed", Mistake::NamesCommitted),
    ("claims-to-be-new", Mistake::ClaimsToBeNew),
    ("stays-cut", Mistake::StaysCut),
    ("stalls-again", Mistake::StallsAgain),
    ("hangs-again", Mistake::HangsAgain),
];

/// Those of replicas, which are there only in tests.
const OWN: [&[&str]; 6] = [
    SpinnakerFaults::NAMES,
    PacificaFaults::NAMES,
    StreamingFaults::NAMES,
    RaftFaults::NAMES,
    DriverFaults::NAMES,
    PulseFaults::NAMES,
];

impl Mistake {
    /// Returns the name of the replica's own mistake; of none, if it is another's.
    pub(crate) const fn own(self) -> &'static str {
        match self {
            Self::Own(name) => name,
            _ => "",
        }
    }
}

impl FromStr for Mistake {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if let Some((_, mistake)) = AROUND.iter().find(|(known, _)| *known == name) {
            return Ok(*mistake);
        }
        let switch = name.replace('-', "_");
        let own = OWN.into_iter().flatten().find(|known| **known == switch);
        own.map(|known| Self::Own(known)).ok_or_else(|| format!("no mistake is called {name}"))
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(name) => f.write_str(&name.replace('_', "-")),
            other => {
                let known = AROUND.iter().find(|(_, mistake)| mistake == other);
                f.write_str(known.map_or("", |(name, _)| name))
            }
        }
    }
}
