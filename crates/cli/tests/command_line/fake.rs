//! A cluster in the test's process as commands are given it: one node leads everything, so that a test
//! may end the others, and pages are short.

use parking_lot::MutexGuard;
use trireme_fake::State;

/// Rows in a page, whatever is asked for, so that scans have many pages.
const PAGE_ROWS: usize = 10;

/// The entry that timeline reads include, and their age in milliseconds.
const TIMELINE: (u64, Option<u64>) = (9, Some(7));

/// The cluster; dropping it stops its nodes.
pub(crate) struct Cluster(trireme_fake::Cluster);

impl Cluster {
    /// Starts nodes that all hold ranges cut at `splits`, the first of which leads all cohorts.
    pub(crate) fn start(nodes: u64, splits: &[&'static str]) -> Self {
        let cluster = trireme_fake::Cluster::start(nodes, splits);
        for cohort in 1..=splits.len() as u64 + 1 {
            cluster.lead(cohort, 1);
        }
        {
            let mut state = cluster.state();
            state.page_rows = PAGE_ROWS;
            state.timelines = (1..=nodes).map(|node| (node, TIMELINE)).collect();
        }
        Self(cluster)
    }

    /// Has a cohort have no leader.
    pub(crate) fn leave_without_leader(&self, cohort: u64) {
        self.0.lead(cohort, 0);
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.state()
    }

    /// Ends a node and all its connections at once.
    pub(crate) fn kill_node(&mut self, id: u64) {
        self.0.kill_node(id);
    }

    /// Returns the endpoints as they are given to a command.
    pub(crate) fn endpoints(&self) -> String {
        self.0.endpoints().join(",")
    }
}
