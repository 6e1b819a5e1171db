//! Nodes that leave: one drains, which its cohorts' leaders see to ([`crate::replacement`]), and is removed.

use trireme_coordinator::recipes::catalog::{Catalog, CatalogState};
use trireme_coordinator::recipes::membership::{Member, Membership};
use trireme_coordinator::{Coordinator, CoordinatorError};
use trireme_types::{CohortConfig, NodeId};

/// Has nodes drain, and removes them. What this node knows may be older than what was done through another
/// one just before, so the coordinator is asked.
pub(crate) struct Leaves {
    catalog: Catalog,
    membership: Membership,
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
    pub(crate) fn new(coordinator: &Coordinator) -> Self {
        Self { catalog: Catalog::new(coordinator), membership: Membership::new(coordinator) }
    }

    /// Has a node hold no replica, or may it hold some again. Safe to repeat.
    pub(crate) async fn set_draining(&self, node: NodeId, drains: bool) -> Result<(), LeaveError> {
        let members = self.membership.list().await?;
        if !members.iter().any(|member| member.id == node) {
            return Err(LeaveError::Invalid(format!("there is no node {node}")));
        }
        if drains {
            let stay = members.iter().filter(|it| !it.is_draining && it.id != node);
            let stay: Vec<_> = stay.map(Member::is_alive).collect();
            check_enough_stay(&self.serving().await?, &stay)?;
        }
        Ok(self.membership.set_draining(node, drains).await?)
    }

    /// Removes a node that holds no replica and does not run. Safe to repeat.
    pub(crate) async fn remove(&self, node: NodeId) -> Result<(), LeaveError> {
        let serving = self.serving().await?;
        let held = serving.iter().filter(|config| config.replicas.contains(&node)).count();
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

    /// Returns the configurations of the cohorts that serve the ranges.
    async fn serving(&self) -> Result<Vec<CohortConfig>, CoordinatorError> {
        // Without a catalog there are no ranges.
        let Some(CatalogState { map, mut configs, .. }) = self.catalog.load().await? else {
            return Ok(Vec::new());
        };
        Ok(map.ranges().iter().filter_map(|entry| configs.remove(&entry.cohort)).collect())
    }
}

/// Refuses if too few nodes stay for the replicas of some range. Of each it is known whether it lives: one that
/// does not may be back soon, as all may be when the coordinator was away.
fn check_enough_stay(serving: &[CohortConfig], stay: &[bool]) -> Result<(), LeaveError> {
    let wanted = serving.iter().map(CohortConfig::replicas_wanted).max().unwrap_or_default();
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
