//! Nodes that leave: one drains, which its cohorts' leaders see to ([`crate::replacement`]), and is removed.

use std::sync::Arc;

use trireme_coordinator::CoordinatorError;
use trireme_coordinator::recipes::membership::Membership;
use trireme_types::{CohortConfig, NodeId};

use crate::routes::{NodeDirectory, Router, Routes};

/// Has nodes drain, and removes them.
pub(crate) struct Leaves {
    pub(crate) router: Arc<Router>,
    pub(crate) directory: Arc<NodeDirectory>,
    pub(crate) membership: Membership,
}

/// Why a node does not leave.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaveError {
    /// It cannot.
    #[error("{0}")]
    Invalid(String),
    /// It cannot now.
    #[error("{0}")]
    NotNow(String),
    /// The coordinator could not be asked, or it is not known whether it did it.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
}

impl Leaves {
    /// Has a node hold no replica, or may it hold some again. Safe to repeat.
    pub(crate) async fn set_draining(&self, node: NodeId, drains: bool) -> Result<(), LeaveError> {
        if self.directory.node(node).is_none() {
            return Err(LeaveError::Invalid(format!("there is no node {node}")));
        }
        if drains {
            let all = self.directory.all().into_iter();
            let stay = all.filter(|it| !it.draining && it.id != node.0).map(|it| it.alive);
            check_enough_stay(&self.router.routes(), &stay.collect::<Vec<_>>())?;
        }
        Ok(self.membership.set_draining(node, drains).await?)
    }

    /// Removes a node that holds no replica and does not run. Safe to repeat.
    pub(crate) async fn remove(&self, node: NodeId) -> Result<(), LeaveError> {
        let routes = self.router.routes();
        let held = serving(&routes).filter(|config| config.replicas.contains(&node)).count();
        if held > 0 {
            let reason = format!("{node} holds replicas of {held} ranges: let it drain first");
            return Err(LeaveError::Invalid(reason));
        }
        if !self.membership.remove(node).await? {
            return Err(LeaveError::Invalid(format!("{node} runs: stop it first")));
        }
        tracing::info!(%node, "the node is removed");
        Ok(())
    }
}

/// Refuses if too few nodes stay for the replicas of some range. Of each it is known whether it lives: one that
/// does not may be back soon, as all may be when the coordinator was away.
fn check_enough_stay(routes: &Routes, stay: &[bool]) -> Result<(), LeaveError> {
    let wanted = serving(routes).map(CohortConfig::replicas_wanted).max().unwrap_or_default();
    let (all, alive) = (stay.len(), stay.iter().filter(|lives| **lives).count());
    if all < wanted {
        let reason = format!("{all} nodes would be left for ranges with {wanted} replicas");
        return Err(LeaveError::Invalid(reason));
    }
    if alive < wanted {
        let reason = format!(
            "of the nodes that would be left, {alive} live, and ranges have {wanted} replicas"
        );
        return Err(LeaveError::NotNow(reason));
    }
    Ok(())
}

/// Returns the configurations of the cohorts that serve the ranges.
fn serving(routes: &Routes) -> impl Iterator<Item = &CohortConfig> {
    routes.map.ranges().iter().filter_map(|entry| routes.configs.get(&entry.cohort))
}
