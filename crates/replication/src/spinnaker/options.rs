//! What a Spinnaker replica is started with.

use trireme_types::{NodeId, Timing};

use crate::streaming::{StreamingFaults, deliberate_faults};

/// What a Spinnaker replica is started with.
#[derive(Clone, Debug)]
pub struct SpinnakerOptions {
    /// The members of the cohort, this replica among them unless it is invited.
    pub replicas: Vec<NodeId>,
    /// The replica is no member: it learns for as long as it is here, and neither stands nor counts.
    pub is_invited: bool,
    /// The replica that the others let stand first in a new cohort's first election, so that leaders
    /// spread over nodes as ranges do; if none, the one that is first is first.
    pub base: Option<NodeId>,
    /// The periods.
    pub timing: Timing,
    /// The replica's disk was lost and is empty now: what the replica once acknowledged or promised
    /// is not known here any more (S14).
    pub rejoins: bool,
    /// Mistakes to make, so that tests can show that they would be noticed.
    pub faults: SpinnakerFaults,
    /// Mistakes to make in what it does as PacificA does.
    pub streaming_faults: StreamingFaults,
}

impl SpinnakerOptions {
    /// Returns the defaults for a cohort of these replicas.
    pub fn new(replicas: Vec<NodeId>) -> Self {
        let (timing, faults) = (Timing::default(), SpinnakerFaults::default());
        let streaming_faults = StreamingFaults::default();
        let (is_invited, base, rejoins) = (false, None, false);
        Self { replicas, is_invited, base, timing, rejoins, faults, streaming_faults }
    }
}

deliberate_faults! {
    /// The mistakes that break naive versions of the protocol, each off: with the feature
    /// `deliberate-faults` a test can switch one on.
    SpinnakerFaults {
        /// Entries of older epochs count as committed by themselves, and with the last of them strong
        /// reads begin (S1, S16).
        commits_older_epochs,
        /// A candidate publishes its log's end without a promise, and goes on acknowledging (S2).
        publishes_without_fence,
        /// Candidates of any round are counted (S3).
        counts_old_candidates,
        /// Strong reads are answered without a lease (S5).
        reads_without_lease,
        /// A replica that lost its disk is taken for the one that it was (S14).
        trusts_an_empty_disk,
        /// What a replica acknowledges counts that is no member (SPIN-48).
        counts_the_invited,
    }
}
