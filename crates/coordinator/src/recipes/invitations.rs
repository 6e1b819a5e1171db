//! Invitations: by them the leader of a cohort asks a node to hold a replica, in place of one that is missing
//! (M52) or of one that is to go (RANGE-17).
//!
//! ```text
//! /invitations/<cohort>    the node that is asked, the configuration as it was then, and who is to go
//! ```
//! A cohort has one invitation at most, which changes by compare-and-set on what was read, so that
//! of two leaders, the old and the new one, no two nodes are asked unawares. It outlives the
//! leader that made it: the next leader sees it, and withdraws it when the node is in the
//! configuration or asks another when it does not come. To be invited is to be allowed to try:
//! who is in a cohort is decided in the catalog alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use trireme_types::{CohortId, NodeId};

use super::{decode, encode, malformed};
use crate::{
    Coordinator, CoordinatorError, CreateMode, Node, NodeChange, NodeVersion, Nodes, Op, Scope,
    Watch, WatchEvent,
};

const ROOT: &str = "/invitations";

/// Who is asked to hold a replica of a cohort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// The node.
    pub node: NodeId,
    /// The version of the configuration when the node was asked.
    pub at: u64,
    /// The member whose place it is to take; if none, that of one that is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaving: Option<Leaving>,
}

/// A member of a cohort whose place another node is to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// The member's node.
    pub node: NodeId,
    /// Why.
    pub why: Why,
}

/// Why a member is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// That was asked for.
    Asked,
    /// Its node is draining, and moot once it is not any more.
    Draining,
    /// Its node is gone, and moot once it is back.
    Gone,
    /// Its node holds more replicas than its share.
    Spread,
}

/// An invitation as it stands at the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What it says.
    pub invitation: Invitation,
    /// What a change of it is compared with.
    pub version: NodeVersion,
}

/// All invitations of a cluster at one moment.
pub type AllInvitations = BTreeMap<CohortId, Standing>;

/// The invitations of the cluster that a coordinator's namespace belongs to.
#[derive(Clone, Debug)]
pub struct Invitations {
    coordinator: Coordinator,
}

impl Invitations {
    /// Returns the invitations at this coordinator.
    pub fn new(coordinator: &Coordinator) -> Self {
        Self { coordinator: coordinator.clone() }
    }

    /// Invites a node in place of whom `before` invites, or of no node. Returns whether that was
    /// what stood: if not, nothing was changed, and somebody else was first.
    pub async fn invite(
        &self,
        cohort: CohortId,
        before: Option<Standing>,
        invitation: Invitation,
    ) -> Result<bool, CoordinatorError> {
        let (path, value) = (path(cohort), encode(&invitation));
        self.change(match before {
            None => Op::Create { path, value, mode: CreateMode::Persistent },
            Some(before) => Op::Set { path, value, expected: Some(before.version) },
        })
        .await
    }

    /// Withdraws the invitation that stands, if it is this one. Returns whether it was.
    pub async fn withdraw(
        &self,
        cohort: CohortId,
        standing: Standing,
    ) -> Result<bool, CoordinatorError> {
        self.change(Op::Delete { path: path(cohort), expected: Some(standing.version) }).await
    }

    /// Returns all invitations.
    pub async fn all(&self) -> Result<AllInvitations, CoordinatorError> {
        let Nodes { nodes, .. } = self.coordinator.children(ROOT).await?;
        nodes.iter().map(standing).collect()
    }

    /// Watches the invitations.
    pub fn watch(&self) -> Result<InvitationsWatch, CoordinatorError> {
        let watch = self.coordinator.watch(ROOT, Scope::Children)?;
        Ok(InvitationsWatch { watch, nodes: BTreeMap::new() })
    }

    async fn change(&self, op: Op) -> Result<bool, CoordinatorError> {
        match self.coordinator.multi(vec![op]).await {
            Ok(_) => Ok(true),
            Err(
                CoordinatorError::NodeExists { .. }
                | CoordinatorError::WrongVersion { .. }
                | CoordinatorError::NoNode { .. },
            ) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A watch of the invitations. Dropping it ends it.
#[derive(Debug)]
pub struct InvitationsWatch {
    watch: Watch,
    nodes: BTreeMap<String, Node>,
}

impl InvitationsWatch {
    /// Returns all invitations: at first as they are, then whenever they have changed. `None` once
    /// the coordinator is closed. Can be cancelled.
    pub async fn next(&mut self) -> Option<Result<AllInvitations, CoordinatorError>> {
        match self.watch.next().await? {
            WatchEvent::State(Nodes { nodes, .. }) => {
                self.nodes = nodes.into_iter().map(|node| (node.path.clone(), node)).collect();
            }
            WatchEvent::Changes { changes, .. } => {
                for change in changes {
                    match change {
                        NodeChange::Put(node) => self.nodes.insert(node.path.clone(), node),
                        NodeChange::Deleted { path } => self.nodes.remove(&path),
                    };
                }
            }
        }
        Some(self.nodes.values().map(standing).collect())
    }
}

fn standing(node: &Node) -> Result<(CohortId, Standing), CoordinatorError> {
    let cohort = CohortId(node.name().parse().map_err(|error| malformed(node, error))?);
    Ok((cohort, Standing { invitation: decode(node)?, version: node.version }))
}

fn path(cohort: CohortId) -> String {
    format!("{ROOT}/{}", cohort.0)
}
