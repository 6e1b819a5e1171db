//! The periods of the protocols, as `node` and `up` take them.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;
use trireme_types::{InvalidTiming, Timing, TimingChange};

use super::up::NODES_MAX;
use super::{UsageError, duration};

/// The options that say how patient cohorts are. What is given is remembered.
#[derive(Args, Clone, Copy)]
pub(crate) struct TimingArgs {
    /// How often a leader advertises its commit point to its followers (spinnaker, pacifica).
    /// [default: 20ms]
    #[arg(long, value_name = "DURATION", value_parser = duration::positive)]
    commit_period: Option<Duration>,
    /// Interval of the beacons by which a leader renews its lease, and of Raft's heartbeats.
    /// [default: 100ms]
    #[arg(long, value_name = "DURATION", value_parser = duration::positive)]
    beacon_interval: Option<Duration>,
    /// How long a leader may serve after the last acknowledged beacon; more than two beacon
    /// intervals (spinnaker, pacifica). [default: 800ms]
    #[arg(long, value_name = "DURATION", value_parser = duration::positive)]
    lease: Option<Duration>,
    /// How long a follower accepts no other leader after a beacon; at least 1.1 times the lease.
    /// Raft's lease and shortest election timeout are together as long. [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = duration::positive)]
    grace: Option<Duration>,
    /// Minimum number of replicas for a cohort to accept writes (pacifica). [default: 1]
    #[arg(long, value_name = "N", value_parser = replicas)]
    min_replicas_for_write: Option<NonZeroUsize>,
}

impl TimingArgs {
    /// Returns the periods that were asked for.
    pub(crate) fn change(&self) -> TimingChange {
        let Self { commit_period, beacon_interval, lease, grace, .. } = *self;
        TimingChange { commit_period, beacon_interval, lease, grace }
    }

    /// Returns the number of replicas that was asked for.
    pub(crate) fn min_replicas_for_write(&self) -> Option<usize> {
        self.min_replicas_for_write.map(NonZeroUsize::get)
    }
}

/// Reads a number of replicas. A node by itself does not know how many its cohorts have, but no cohort
/// has more than there are nodes in the largest cluster.
fn replicas(text: &str) -> Result<NonZeroUsize, String> {
    let replicas = text.parse::<NonZeroUsize>().ok().filter(|replicas| replicas.get() <= NODES_MAX);
    replicas.ok_or_else(|| format!("expected a number from 1 to {NODES_MAX}"))
}

/// Returns the arguments that ask for exactly this.
pub(crate) fn arguments(timing: &Timing, min_replicas_for_write: usize) -> [String; 10] {
    let Timing { commit_period, beacon_interval, lease, grace } = *timing;
    [
        "--commit-period".to_owned(),
        duration::text(commit_period),
        "--beacon-interval".to_owned(),
        duration::text(beacon_interval),
        "--lease".to_owned(),
        duration::text(lease),
        "--grace".to_owned(),
        duration::text(grace),
        "--min-replicas-for-write".to_owned(),
        min_replicas_for_write.to_string(),
    ]
}

/// Periods that cannot work together are wrong usage, wherever they are found.
impl From<InvalidTiming> for UsageError {
    fn from(error: InvalidTiming) -> Self {
        Self(error.to_string())
    }
}
