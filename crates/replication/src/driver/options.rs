//! The limits of a replica's driver.

use std::time::Duration;

use trireme_types::limits::BATCH_BYTES_MAX;

use crate::streaming::deliberate_faults;

/// The limits of a replica's driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverOptions {
    /// The bytes of proposals that may be under way at once, from their arrival to their answer;
    /// past it they are refused as busy. It bounds what a cohort without a quorum or with a stalled
    /// disk keeps in memory. Larger lets more clients wait; smaller tells them sooner. 16 MiB is a
    /// few times what a disk forces and a network carries in the time of one round.
    pub proposal_bytes_max: usize,
    /// The proposals that may be under way at once.
    pub proposals_max: usize,
    /// The reads that may wait at once. Waiting reads share one round, so many cost little.
    pub reads_max: usize,
    /// The bytes of messages from other replicas that may wait to be handled; past it they are
    /// lost. Enough for a few pieces of a log from every replica.
    pub message_bytes_max: usize,
    /// The messages that may wait to be handled.
    pub messages_max: usize,
    /// The events that are handled before effects are drained. Larger batches cost less for each
    /// event; smaller ones let the first write leave sooner.
    pub batch_events_max: usize,
    /// The bytes of entries that one message takes from the log, unless a single entry has more.
    pub send_log_bytes_max: usize,
    /// The bytes of entries that are applied in one step, unless a single entry has more.
    pub apply_bytes_max: usize,
    /// How long a replica that stops waits for what is under way to be answered. What is not by
    /// then may need a quorum that will not come.
    pub drain_timeout: Duration,
    /// Mistakes to make, so that tests can show that they would be noticed.
    pub faults: DriverFaults,
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self {
            proposal_bytes_max: 16 * 1024 * 1024,
            proposals_max: 16 * 1024,
            reads_max: 64 * 1024,
            message_bytes_max: 32 * 1024 * 1024,
            messages_max: 16 * 1024,
            batch_events_max: 1024,
            send_log_bytes_max: 1024 * 1024,
            apply_bytes_max: 1024 * 1024,
            drain_timeout: Duration::from_secs(1),
            faults: DriverFaults::default(),
        }
    }
}

deliberate_faults! {
    /// The mistakes that a naive driver makes, each off: with the feature `deliberate-faults` a test
    /// can switch one on.
    DriverFaults {
        /// What is on the disk is applied, committed or not.
        applies_uncommitted,
        /// What says that this replica's disk has something is sent before it does (SPIN-4, PAC-4).
        acknowledges_from_memory,
        /// What is committed is applied, on this replica's disk or not (S8).
        applies_unforced,
    }
}

/// Options that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the driver's option {option}: {reason}")]
pub struct InvalidDriverOption {
    /// Which.
    pub option: &'static str,
    /// Why not.
    pub reason: &'static str,
}

impl DriverOptions {
    /// Says which option makes no sense, if one does.
    pub fn validate(&self) -> Result<(), InvalidDriverOption> {
        let counts = [
            ("proposals_max", self.proposals_max),
            ("reads_max", self.reads_max),
            ("messages_max", self.messages_max),
            ("batch_events_max", self.batch_events_max),
            ("send_log_bytes_max", self.send_log_bytes_max),
            ("apply_bytes_max", self.apply_bytes_max),
        ];
        if let Some((option, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(InvalidDriverOption { option, reason: "must be at least 1" });
        }
        // A batch's encoding is larger than the keys and values that its limit counts.
        for (option, bytes) in [
            ("proposal_bytes_max", self.proposal_bytes_max),
            ("message_bytes_max", self.message_bytes_max),
        ] {
            if bytes < 2 * BATCH_BYTES_MAX {
                return Err(InvalidDriverOption { option, reason: "must hold the largest batch" });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_make_sense_and_nonsense_is_named() {
        assert_eq!(DriverOptions::default().validate(), Ok(()));
        let none = DriverOptions { batch_events_max: 0, ..DriverOptions::default() };
        assert_eq!(none.validate().unwrap_err().option, "batch_events_max");
        let small = DriverOptions { proposal_bytes_max: 1024, ..DriverOptions::default() };
        assert_eq!(small.validate().unwrap_err().option, "proposal_bytes_max");
    }
}
