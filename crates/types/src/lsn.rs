//! Logical addresses in a cohort's log.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A generation of leadership in a cohort, which only grows: Spinnaker's epoch, Raft's term,
/// PacificA's configuration version.
pub type Epoch = u64;

/// The logical address of one entry in one cohort's log, ordered by epoch and then by sequence.
///
/// `seq` rises by one from entry to entry along the log that survives, in all three protocols;
/// the first entry has `seq` 1. [`Lsn::ZERO`] stands before every entry. An `Lsn` says nothing
/// about where an entry lies on disk.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Lsn {
    /// The epoch under which the entry was first proposed.
    pub epoch: Epoch,
    /// The entry's place in the cohort's log.
    pub seq: u64,
}

impl Lsn {
    /// The address before the first entry of every log.
    pub const ZERO: Self = Self { epoch: 0, seq: 0 };

    /// Returns the address of entry `seq`, proposed under `epoch`.
    pub const fn new(epoch: Epoch, seq: u64) -> Self {
        Self { epoch, seq }
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoch_orders_before_sequence() {
        assert!(Lsn::new(2, 1) > Lsn::new(1, 22));
        assert!(Lsn::new(1, 22) > Lsn::new(1, 21));
        assert!(Lsn::ZERO < Lsn::new(0, 1));
    }
}
