//! The routes, as applications see them.

use trireme_types::{ClusterId, CohortId, KeyRange, NodeId};

/// Which cohort serves which keys, and where its replicas are, as nodes sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTable {
    /// The cluster.
    pub cluster: ClusterId,
    /// Rises with every change of the ranges.
    pub version: u64,
    /// The ranges in key order, without gap or overlap.
    pub ranges: Vec<Route>,
    /// The nodes.
    pub nodes: Vec<Node>,
}

/// One range and the cohort that serves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The keys.
    pub range: KeyRange,
    /// The cohort that serves them.
    pub cohort: CohortId,
    /// Rises whenever the range's borders or its cohort change.
    pub epoch: u64,
    /// The name of the cohort's protocol: spinnaker, raft, pacifica, or one that this build does
    /// not know.
    pub protocol: String,
    /// The nodes that hold a replica.
    pub replicas: Vec<NodeId>,
    /// The node that leads, as far as is known.
    pub leader: Option<NodeId>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// The node.
    pub id: NodeId,
    /// Where its client service listens, `host:port`.
    pub address: String,
    /// Whether the coordinator held a live session of it when the routes were made.
    pub alive: bool,
    /// Whether it is to hold no replica.
    pub draining: bool,
}
