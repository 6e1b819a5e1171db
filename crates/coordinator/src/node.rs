//! Nodes, as the coordinator's users see them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::path;

/// The version of a node: a number that the coordinator has never given to another change, and
/// that rises from change to change, over all nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeVersion(pub i64);

impl fmt::Display for NodeVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a session. The coordinator gives no two sessions the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub i64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// How a node lives and is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateMode {
    /// Lives until it is deleted.
    Persistent,
    /// Lives until it is deleted or its owner's session ends.
    Ephemeral,
    /// Persistent; the path given is the beginning of its name, which is made unique.
    Sequential,
    /// Ephemeral; the path given is the beginning of its name, which is made unique.
    EphemeralSequential,
}

impl CreateMode {
    pub(crate) fn is_ephemeral(self) -> bool {
        matches!(self, Self::Ephemeral | Self::EphemeralSequential)
    }

    pub(crate) fn is_sequential(self) -> bool {
        matches!(self, Self::Sequential | Self::EphemeralSequential)
    }
}

/// A node that was created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its path; of a sequential node, with the end that made it unique.
    pub path: String,
    /// Its place among all nodes ever created: a node created later has a higher one.
    pub sequence: u64,
    /// Its first version.
    pub version: NodeVersion,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its path.
    pub path: String,
    /// Its value.
    pub value: Vec<u8>,
    /// Its version.
    pub version: NodeVersion,
    /// Its place among all nodes ever created: a node created later has a higher one.
    pub sequence: u64,
    /// How often it was changed, its creation included.
    pub changes: u64,
    /// The session that it ends with, if it is ephemeral.
    pub owner: Option<SessionId>,
}

impl Node {
    /// Returns the last part of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// One unbroken run of the coordinator's history, as the answers name it: revisions of one line can
/// be compared. A new leader of an etcd cluster begins a new line, as does every start of the embedded
/// server. Two answers of one line come from one history; of another line's it is not known, since a
/// coordinator that was put back to an older state begins a new line too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Line {
    /// The identity of the etcd cluster.
    pub cluster: u64,
    /// The term that its leader was elected in.
    pub term: u64,
}

/// Some nodes at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nodes {
    /// The line that they were read from.
    pub line: Line,
    /// The moment: the newest change of the coordinator that the nodes can show.
    pub revision: i64,
    /// The nodes, in the order in which they were created.
    pub nodes: Vec<Node>,
}

/// One step of an atomic [`crate::Coordinator::multi`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Creates a node, which must not exist.
    Create {
        /// Its path, or the beginning of it for a sequential node.
        path: String,
        /// Its value.
        value: Vec<u8>,
        /// How it lives.
        mode: CreateMode,
    },
    /// Gives a node, which must exist, a value. An ephemeral node stays its owner's.
    Set {
        /// The node.
        path: String,
        /// Its value from now on.
        value: Vec<u8>,
        /// The version that it must have; `None` for any.
        expected: Option<NodeVersion>,
    },
    /// Gives a node of this version a value and makes it an ephemeral node of this session.
    Claim {
        /// The node.
        path: String,
        /// Its value from now on.
        value: Vec<u8>,
        /// The version that it must have.
        expected: NodeVersion,
    },
    /// Deletes a node, which must exist.
    Delete {
        /// The node.
        path: String,
        /// The version that it must have; `None` for any.
        expected: Option<NodeVersion>,
    },
    /// Changes nothing, and lets the others happen only if the node has this version.
    Check {
        /// The node.
        path: String,
        /// The version that it must have.
        expected: NodeVersion,
    },
    /// Changes nothing, and lets the others happen only if there is no such node.
    CheckAbsent {
        /// The node.
        path: String,
    },
}

impl Op {
    /// Returns the path that the step is about.
    pub fn path(&self) -> &str {
        match self {
            Self::Create { path, .. }
            | Self::Set { path, .. }
            | Self::Claim { path, .. }
            | Self::Delete { path, .. }
            | Self::Check { path, .. }
            | Self::CheckAbsent { path } => path,
        }
    }
}

/// What an atomic [`crate::Coordinator::multi`] has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultiDone {
    /// The version that everything it created or set now has.
    pub version: NodeVersion,
    /// The nodes that it created, in the order of its steps.
    pub created: Vec<Created>,
}

/// Which nodes a watch is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The node alone.
    Node,
    /// The nodes directly below it, and their values.
    Children,
    /// All nodes below it, and their values.
    Subtree,
}

impl Scope {
    /// Returns true if a watch of `root` in this scope is about `path`.
    pub(crate) fn covers(self, root: &str, path: &str) -> bool {
        match self {
            Self::Node => path == root,
            Self::Children => path::is_child(&path::below(root), path),
            Self::Subtree => path.starts_with(&path::below(root)),
        }
    }
}
