//! When a replica last heard from each of the others.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use trireme_types::NodeId;

/// The moments of the last appends, by sender: what a timeline read says of its age.
#[derive(Default)]
pub(super) struct Heard {
    last: Mutex<BTreeMap<NodeId, Instant>>,
}

impl Heard {
    pub(super) fn note(&self, from: NodeId) {
        self.last.lock().insert(from, Instant::now());
    }

    /// Returns the time since the last append of `from`.
    pub(super) fn age(&self, from: NodeId) -> Option<Duration> {
        self.last.lock().get(&from).map(Instant::elapsed)
    }

    /// Returns the time since the last append of anyone.
    pub(super) fn least_age(&self) -> Option<Duration> {
        self.last.lock().values().max().map(Instant::elapsed)
    }
}
