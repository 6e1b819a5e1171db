//! The settings of Raft cohorts.

use std::time::Duration;

use openraft::{Config, ConfigError, SnapshotPolicy};
use trireme_types::Timing;

use crate::streaming::deliberate_faults;

/// The shortest grace that election timeouts are made from: with less, not even heartbeats of a
/// millisecond fit into them.
const GRACE_MIN: Duration = Duration::from_millis(10);

/// How Raft cohorts elect and replicate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftOptions {
    /// How often a leader shows that it is there. Shorter finds a dead leader sooner only if the
    /// election timeout shrinks with it; longer costs fewer messages. Default 100 ms.
    pub heartbeat_interval: Duration,
    /// Once a leader's lease has run out, a follower waits for a time between this and
    /// `election_timeout_max`, and then seeks to lead. Default 400 ms: several heartbeats, so that
    /// one late one starts no election; with the lease, a follower waits for a silent leader for
    /// one second, as those of the other protocols do (their grace).
    pub election_timeout_min: Duration,
    /// See `election_timeout_min`; also a leader's lease, the time after each heartbeat in which
    /// nobody votes for another. Default 600 ms: a leader is replaced between 1.0 and 1.2 seconds
    /// after its last heartbeat. More only makes that later; with less, two followers more often
    /// stand at once, split the vote, and wait once more for a time between the two.
    pub election_timeout_max: Duration,
    /// The most entries in one append; the append's bytes are bounded besides. Default 256.
    pub append_entries_max: u64,
    /// How far behind, in entries, a follower is sent a snapshot although the leader's log still
    /// reaches back far enough. Default 1,000,000: the log is nearly always the cheaper way.
    pub snapshot_lag: u64,
    /// Mistakes to make, so that tests can show that they would be noticed.
    pub faults: RaftFaults,
}

deliberate_faults! {
    /// The mistakes that break naive ways to use Raft, each off: with the feature
    /// `deliberate-faults` a test can switch one on.
    RaftFaults {
        /// The log reports entries as flushed before the disk has them.
        flushes_from_memory,
        /// A follower acknowledges entries that it has not even looked at.
        acknowledges_unseen,
        /// A vote is given and not stored.
        forgets_votes,
        /// A vote is given to any candidate, however short its log is (Raft §5.4.1).
        grants_every_vote,
        /// The log is given up as far as the table has applied it, on the disk or not (S10).
        purges_unflushed,
        /// A leader answers strong reads without asking whether it still leads.
        reads_without_majority,
        /// A replica that lost its disk is taken for the one that it was (S14).
        trusts_an_empty_disk,
        /// A newcomer asks only the replica that it takes for the leader to admit it.
        asks_one_leader,
        /// A replica that has rested is not given its ticks back.
        keeps_its_ticks_off,
    }
}

impl Default for RaftOptions {
    fn default() -> Self {
        Self::with_timing(&Timing::default())
    }
}

impl RaftOptions {
    /// Returns options by which a silent leader is borne for as long as the other protocols bear
    /// one with these periods: heartbeats are beacons, and a leader's lease and the shortest
    /// election timeout are together the grace.
    pub fn with_timing(timing: &Timing) -> Self {
        // openraft counts in milliseconds, and wants heartbeat < shortest < longest timeout.
        let grace = timing.grace.max(GRACE_MIN);
        let election_timeout_min = grace * 2 / 5;
        Self {
            // Whatever the beacon interval: several heartbeats fit into an election timeout.
            heartbeat_interval: timing
                .beacon_interval
                .clamp(Duration::from_millis(1), election_timeout_min / 2),
            election_timeout_min,
            election_timeout_max: grace - election_timeout_min,
            append_entries_max: 256,
            snapshot_lag: 1_000_000,
            faults: RaftFaults::default(),
        }
    }

    /// Returns openraft's configuration, or says what is wrong with the options.
    pub(super) fn config(&self, name: String) -> Result<Config, ConfigError> {
        let config = Config {
            cluster_name: name,
            heartbeat_interval: millis(self.heartbeat_interval),
            election_timeout_min: millis(self.election_timeout_min),
            election_timeout_max: millis(self.election_timeout_max),
            max_payload_entries: self.append_entries_max,
            replication_lag_threshold: self.snapshot_lag,
            // The node decides when the log may go, from the table's flushes: `release_log`.
            snapshot_policy: SnapshotPolicy::Never,
            // And how much of it: a snapshot by itself lets go of nothing.
            max_in_snapshot_log_to_keep: u64::MAX,
            enable_pre_vote: Some(true),
            // A leader that came back in its old term would judge strong reads by a commit point
            // that may be older than what it acknowledged (`replica_test`).
            enable_leader_restore: Some(false),
            // A node that comes back is found soon: the first retries, then the longest pause. To
            // try costs nothing while there is no connection.
            backoff: "10ms 20ms 40ms ...100ms".to_owned(),
            ..Config::default()
        };
        config.validate()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// The protocols are compared by what they do once a leader is silent, not by how long they wait:
    /// the earliest election is a lease and the shortest election timeout after its last heartbeat.
    #[test]
    fn a_silent_leader_is_borne_for_as_long_as_in_the_other_protocols() {
        for grace in [ms(880), ms(1000), ms(15_000)] {
            let options = RaftOptions::with_timing(&Timing { grace, ..Timing::default() });
            let RaftOptions { election_timeout_min, election_timeout_max, .. } = options;
            assert_eq!(election_timeout_max + election_timeout_min, grace);
            assert_eq!(options.heartbeat_interval, Timing::default().beacon_interval);
        }
    }

    #[test]
    fn whatever_periods_the_other_protocols_can_have_openraft_takes_what_is_made_of_them() {
        let day = ms(24 * 60 * 60 * 1000);
        for (beacon_interval, lease, grace) in [
            (Duration::from_nanos(1), Duration::from_nanos(3), Duration::from_nanos(4)),
            (ms(1), ms(3), ms(4)),
            (ms(100), ms(201), ms(222)),
            (ms(3000), ms(10_000), ms(15_000)),
            (ms(100), ms(201), day),
        ] {
            let timing = Timing { beacon_interval, lease, grace, ..Timing::default() };
            assert_eq!(timing.validate(), Ok(()));
            let config = RaftOptions::with_timing(&timing).config("c1".to_owned());
            assert!(config.is_ok(), "{timing:?}: {config:?}");
        }
    }

    #[test]
    fn the_defaults_are_valid_and_an_election_timeout_within_a_heartbeat_is_not() {
        assert!(RaftOptions::default().config("c1".to_owned()).is_ok());
        let hasty = RaftOptions { election_timeout_min: ms(50), ..RaftOptions::default() };
        assert!(hasty.config("c1".to_owned()).is_err());
    }
}
