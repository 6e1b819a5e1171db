//! How long a silent leader is borne.

use std::time::Duration;

use trireme_types::{Protocol, Timing};

/// Whose periods the clusters have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timeouts {
    /// The same for all, so that what differs after a death is what the protocols do.
    #[default]
    Same,
    /// Each protocol's own, as its source has them, in the faults.
    Native,
}

impl Timeouts {
    /// Returns the periods of a protocol's clusters in the faults.
    pub fn of(self, protocol: Protocol) -> Timing {
        let (beacon_interval, lease, grace) = match (self, protocol) {
            (Self::Same, _) => return Timing::default(),
            // Its coordinator notices a death after 2 s (section 7.2, appendix D.1). The paper has no
            // lease.
            (Self::Native, Protocol::Spinnaker) => (500, 1800, 2000),
            // openraft's own defaults: heartbeats of 50 ms, a lease of 300 ms, and 200 ms of its
            // election timeouts of 150 to 300 ms.
            (Self::Native, Protocol::Raft) => (50, 400, 500),
            // Section 5 of the report; of beacons it gives no interval, so Pegasus'.
            (Self::Native, Protocol::Pacifica) => (3000, 10_000, 15_000),
        };
        Timing {
            beacon_interval: Duration::from_millis(beacon_interval),
            lease: Duration::from_millis(lease),
            grace: Duration::from_millis(grace),
            ..Timing::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_can_be_started_with_them() {
        for protocol in [Protocol::Spinnaker, Protocol::Raft, Protocol::Pacifica] {
            assert_eq!(Timeouts::Same.of(protocol), Timing::default());
            assert_eq!(Timeouts::Native.of(protocol).validate(), Ok(()), "{protocol}");
        }
    }
}
