//! Which cohorts serve the ranges, and whether anything is left of those that did.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::cluster::Cluster;
use super::poll::until_ok;

impl Cluster {
    /// Returns what `range list` says, in key order.
    pub(crate) fn ranges(&self) -> Vec<Value> {
        self.run(["range", "list", "--json"]).json().as_array().unwrap().clone()
    }

    /// Returns the cohorts that serve the ranges, in key order.
    pub(crate) fn serving(&self) -> Vec<u64> {
        self.ranges().iter().map(|range| range["cohort"].as_u64().unwrap()).collect()
    }

    /// Returns the cohort whose range holds the key.
    pub(crate) fn cohort_of(&self, key: &str) -> u64 {
        let ranges = self.ranges();
        let holds = |range: &&Value| range["start"].as_str().unwrap() <= key;
        ranges.iter().rfind(holds).unwrap()["cohort"].as_u64().unwrap()
    }

    /// Waits until nothing is left of what has ended: each node that runs holds replicas of those cohorts
    /// alone that serve, which have all that their leaders have.
    #[track_caller]
    pub(crate) fn wait_until_alone(&self, patience: Duration) {
        until_ok("nothing is left of what has ended", patience, || {
            let (statuses, serving) = (self.statuses()?, self.serving());
            let is_over = statuses.cohorts() == serving.iter().copied().collect::<BTreeSet<_>>()
                && statuses.0.values().all(|node| node.successions.is_empty());
            is_over.then_some(()).ok_or_else(|| format!("{statuses:?}"))
        });
        self.wait_until_caught_up(patience);
    }
}
