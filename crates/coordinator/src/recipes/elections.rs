//! The elections of all cohorts, in one watch.
//!
//! A node has a replica of many cohorts, which would each have a stream of its own at the
//! coordinator. One watch of everything that elections are about brings the same, and a change costs
//! what it costs one cohort.

use std::collections::{BTreeMap, BTreeSet};

use trireme_types::{CohortId, Epoch};

use super::election::{ElectionNodes, ElectionState, ROOT, cohort_of, root_of};
use crate::{Coordinator, CoordinatorError, Line, Nodes, Scope, Watch, WatchEvent};

/// A watch of the elections of all cohorts. Dropping it ends it.
#[derive(Debug)]
pub struct ElectionsWatch {
    watch: Watch,
    elections: Elections,
}

/// Reads the epoch of every cohort's newest leader; a cohort that is not there never had one.
pub async fn epochs(
    coordinator: &Coordinator,
) -> Result<BTreeMap<CohortId, Epoch>, CoordinatorError> {
    let mut elections = Elections::default();
    let cohorts = elections.apply(WatchEvent::State(coordinator.subtree(ROOT).await?));
    cohorts.into_iter().map(|cohort| Ok((cohort, elections.state(cohort)?.epoch))).collect()
}

/// The elections of all cohorts at one moment.
#[derive(Debug, Default)]
struct Elections {
    line: Line,
    nodes: BTreeMap<CohortId, ElectionNodes>,
}

impl ElectionsWatch {
    /// Watches all elections.
    pub fn new(coordinator: &Coordinator) -> Result<Self, CoordinatorError> {
        let watch = coordinator.watch(ROOT, Scope::Subtree)?;
        Ok(Self { watch, elections: Elections::default() })
    }

    /// Returns the cohorts whose election may have changed: at first all of which there is
    /// anything, then those that changes have arrived of. `None` once the coordinator is closed. Can
    /// be cancelled.
    pub async fn next(&mut self) -> Option<BTreeSet<CohortId>> {
        let mut changed = self.elections.apply(self.watch.next().await?);
        while let Some(event) = self.watch.try_next() {
            changed.append(&mut self.elections.apply(event));
        }
        Some(changed)
    }

    /// Returns the line that the coordinator was in at the last change.
    pub fn line(&self) -> Line {
        self.elections.line
    }

    /// Returns the election of a cohort as it was at the last change.
    pub fn state(&self, cohort: CohortId) -> Result<ElectionState, CoordinatorError> {
        self.elections.state(cohort)
    }
}

impl Elections {
    /// Applies an event and returns the cohorts that it is about.
    fn apply(&mut self, event: WatchEvent) -> BTreeSet<CohortId> {
        match event {
            WatchEvent::State(Nodes { line, nodes, .. }) => {
                self.line = line;
                // Of a cohort that has nothing any more, that is the change.
                let mut changed: BTreeSet<_> = self.nodes.keys().copied().collect();
                self.nodes.clear();
                for node in nodes {
                    let Some(cohort) = cohort_of(&node.path) else { continue };
                    self.nodes.entry(cohort).or_default().0.insert(node.path.clone(), node);
                }
                changed.extend(self.nodes.keys());
                changed
            }
            WatchEvent::Changes { changes, .. } => {
                let mut changed = BTreeSet::new();
                for change in changes {
                    let Some(cohort) = cohort_of(change.path()) else { continue };
                    self.nodes.entry(cohort).or_default().apply(change);
                    changed.insert(cohort);
                }
                changed
            }
        }
    }

    fn state(&self, cohort: CohortId) -> Result<ElectionState, CoordinatorError> {
        match self.nodes.get(&cohort) {
            Some(nodes) => nodes.state(&root_of(cohort)),
            None => ElectionNodes::default().state(&root_of(cohort)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Node, NodeChange, NodeVersion};

    fn epoch(cohort: u64, epoch: u64) -> Node {
        Node {
            path: format!("/cohorts/{cohort}/epoch"),
            value: format!(r#"{{"format":1,"epoch":{epoch}}}"#).into_bytes(),
            version: NodeVersion(1),
            sequence: 1,
            changes: 1,
            owner: None,
        }
    }

    fn state(nodes: Vec<Node>) -> WatchEvent {
        WatchEvent::State(Nodes { line: Line::default(), revision: 1, nodes })
    }

    #[test]
    fn each_change_is_of_its_own_cohort_alone() {
        let mut elections = Elections::default();
        let all = |ids: &[u64]| ids.iter().copied().map(CohortId).collect::<BTreeSet<_>>();
        let epoch_of = |elections: &Elections, id| elections.state(CohortId(id)).unwrap().epoch;
        assert_eq!(elections.apply(state(vec![epoch(1, 4), epoch(12, 7)])), all(&[1, 12]));
        assert_eq!([1, 12, 2].map(|id| epoch_of(&elections, id)), [4, 7, 0]);
        let changes = vec![NodeChange::Put(epoch(1, 5)), NodeChange::Put(epoch(3, 1))];
        let changes = WatchEvent::Changes { revision: 2, changes };
        assert_eq!(elections.apply(changes), all(&[1, 3]));
        assert_eq!([1, 12, 3].map(|id| epoch_of(&elections, id)), [5, 7, 1]);
        // The state is read again after a loss of changes, and one of them was a deletion.
        assert_eq!(elections.apply(state(vec![epoch(12, 8)])), all(&[1, 3, 12]));
        assert_eq!([1, 12, 3].map(|id| epoch_of(&elections, id)), [0, 8, 0]);
    }

    /// What cannot be read of one cohort keeps no other from its election.
    #[test]
    fn a_malformed_node_is_an_error_of_its_own_cohort() {
        let mut elections = Elections::default();
        let mut bad = epoch(2, 1);
        bad.value = b"{}".to_vec();
        elections.apply(state(vec![epoch(1, 4), bad]));
        assert_eq!(elections.state(CohortId(1)).unwrap().epoch, 4);
        assert!(elections.state(CohortId(2)).is_err());
    }
}
