//! What a PacificA replica is started with.

use trireme_types::{Incarnation, Timing};

use crate::streaming::{StreamingFaults, deliberate_faults};

/// What a PacificA replica is started with. Who is in the cohort is the configuration manager's to
/// say.
#[derive(Clone, Debug)]
pub struct PacificaOptions {
    /// The periods.
    pub timing: Timing,
    /// How many replicas the configuration must have for a write to be taken, and to be acknowledged
    /// (P10). What is in the log already is committed with fewer, since a new primary has to; the
    /// caller that waits for it learns that its fate is not known.
    pub min_replicas_for_write: usize,
    /// The replica's disk was lost and is empty now: what the replica once acknowledged is not known
    /// here any more (S14).
    pub rejoins: bool,
    /// The replica's node is invited: it asks to be brought up to date also while no replica is missing.
    pub is_invited: bool,
    /// A number that no other replica was started with, drawn at random: the replica's incarnation if
    /// its disk knows of none.
    pub incarnation: Incarnation,
    /// Mistakes to make, so that tests can show that they would be noticed.
    pub faults: PacificaFaults,
    /// Mistakes to make in what it does as Spinnaker does.
    pub streaming_faults: StreamingFaults,
}

impl PacificaOptions {
    /// Returns the defaults, for a replica that becomes this incarnation if it is a new one.
    pub fn new(incarnation: Incarnation) -> Self {
        Self {
            timing: Timing::default(),
            min_replicas_for_write: 1,
            rejoins: false,
            is_invited: false,
            incarnation,
            faults: PacificaFaults::default(),
            streaming_faults: StreamingFaults::default(),
        }
    }
}

deliberate_faults! {
    /// The mistakes that break naive versions of the protocol, each off: with the feature
    /// `deliberate-faults` a test can switch one on.
    PacificaFaults {
        /// The primary counts its lease from when an acknowledgement arrives (P1).
        leases_from_receipt,
        /// The lease of a majority of the secondaries is enough (P2).
        lease_of_majority,
        /// The primary goes on serving while it has a secondary removed whose lease has ended (P3).
        serves_while_removing,
        /// A replica takes proposals of older configurations than it has adopted (P5).
        takes_old_versions,
        /// A candidate need not acknowledge while it is being added (P6).
        adds_without_waiting,
        /// A primary that restarts in its own configuration goes on in it (P7).
        resumes_its_version,
        /// A replica that comes back drops what it does not know to be committed, though it may have
        /// acknowledged it to a primary that is adding it (P8).
        drops_its_tail,
        /// A new primary serves before everything it has prepared is committed (P9).
        serves_before_reconciling,
        /// How many replicas a write needs is judged when it is taken, and not when it is committed (P10).
        judges_the_minimum_early,
        /// A replica that lost its disk is taken for the one that it was, by itself and by its primary
        /// (S14, PAC-45, PAC-46).
        trusts_an_empty_disk,
        /// A new primary drops what it has prepared and does not know to be committed (PAC-30).
        drops_what_it_prepared,
    }
}
