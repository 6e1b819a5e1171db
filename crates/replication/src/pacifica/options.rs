//! What a PacificA replica is started with.

use trireme_types::{Incarnation, Timing};

/// What a PacificA replica is started with. Who is in the cohort is the configuration manager's to
/// say.
#[derive(Clone, Debug)]
pub struct PacificaOptions {
    /// The periods.
    pub timing: Timing,
    /// How many replicas the configuration must have for a write to be taken, and to be acknowledged
    /// (P10). What is in the log already is committed with fewer, since a new primary has to; whoever
    /// waits for it learns that its fate is not known.
    pub min_replicas_for_write: usize,
    /// The replica's disk was lost and is empty now: what the replica once acknowledged is not known
    /// here any more (S14).
    pub rejoins: bool,
    /// A number that no other replica was started with, drawn at random: the replica's incarnation if
    /// its disk knows of none.
    pub incarnation: Incarnation,
    /// Mistakes to make, so that tests can show that they would be noticed.
    pub faults: PacificaFaults,
}

impl PacificaOptions {
    /// Returns the defaults, for a replica that becomes this incarnation if it is a new one.
    pub fn new(incarnation: Incarnation) -> Self {
        Self {
            timing: Timing::default(),
            min_replicas_for_write: 1,
            rejoins: false,
            incarnation,
            faults: PacificaFaults::default(),
        }
    }
}

/// The mistakes that break naive versions of the protocol, each off. Only tests make one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacificaFaults {
    /// The primary counts its lease from when an acknowledgement arrives (P1).
    pub leases_from_receipt: bool,
    /// The lease of a majority of the secondaries is enough (P2).
    pub lease_of_majority: bool,
    /// The primary goes on serving while it has a secondary removed whose lease has ended (P3).
    pub serves_while_removing: bool,
    /// A replica takes proposals of older configurations than it has adopted (P5).
    pub takes_old_versions: bool,
    /// A candidate need not acknowledge while it is being added (P6).
    pub adds_without_waiting: bool,
    /// A primary that restarts in its own configuration goes on in it (P7).
    pub resumes_its_version: bool,
    /// A replica that comes back drops what it does not know to be committed, though it may have
    /// acknowledged it to a primary that is adding it (P8).
    pub drops_its_tail: bool,
    /// A new primary serves before everything it has prepared is committed (P9).
    pub serves_before_reconciling: bool,
    /// How many replicas a write needs is judged when it is taken, and not when it is committed (P10).
    pub judges_the_minimum_early: bool,
}
