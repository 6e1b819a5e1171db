//! As what a replica could rest, while nothing happens in its cohort.

use trireme_types::{Epoch, Lsn, NodeId};

/// What all replicas of a cohort agree on while it rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The leader's epoch.
    pub epoch: Epoch,
    /// The newest entry, which is committed.
    pub committed: Lsn,
}

/// As what a replica could rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It leads.
    Leads {
        /// Under what.
        terms: Terms,
        /// All other replicas, which have all that it has.
        followers: Vec<NodeId>,
    },
    /// It follows.
    Follows {
        /// Under what.
        terms: Terms,
        /// Whom.
        leader: NodeId,
    },
}
