//! What can go wrong with an operation, and what its caller may do about it.

use std::fmt;

use trireme_types::{CohortId, NodeId};

/// Why an operation did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The request can never succeed as it is, for instance because a limit is passed. Nothing was
    /// done.
    #[error("invalid request: {0}")]
    Invalid(String),
    /// No endpoint answered, within the deadline, when the client was made.
    #[error("no endpoint answers: {0}")]
    Connect(String),
    /// The deadline passed, and every answer until then was a refusal. Nothing was done.
    #[error("{place} is unavailable: {reason}")]
    Unavailable {
        /// The replica that last gave a reason; if none did, the one that was last tried.
        place: Place,
        /// What was said; if nothing was, what the last try met.
        reason: String,
    },
    /// The deadline passed before the operation was done. Nothing was changed.
    #[error("the deadline passed while waiting for {place}")]
    DeadlineExceeded {
        /// Where the last try went.
        place: Place,
    },
    /// The deadline passed while a write was, or may have been, in a server's hands; or the cohort
    /// had forgotten the client before it was asked again
    /// ([`SESSION_LIFETIME`](trireme_types::limits::SESSION_LIFETIME)). It was applied once, or will
    /// be, or never will; a read can tell, later.
    #[error("the outcome of the write is unknown: {place}: {reason}")]
    Ambiguous {
        /// The replica that last gave a reason; if none did, the one that was last tried.
        place: Place,
        /// What was said; if nothing was, what the last try met.
        reason: String,
    },
    /// A server answered with something that means nothing. Nothing was changed.
    #[error("a meaningless answer from {place}: {reason}")]
    Malformed {
        /// Who answered.
        place: Place,
        /// What is wrong with the answer.
        reason: String,
    },
    /// A node is not yet as it was asked to be. What was begun goes on.
    #[error("{node} is not yet as it was asked to be: {reason}")]
    Unfinished {
        /// The node.
        node: NodeId,
        /// What is left to be done, or what the last try met.
        reason: String,
    },
    /// A node did not do what an administrator asked it.
    #[error("{address}: {reason}")]
    Admin {
        /// The node's address.
        address: String,
        /// What it said, or why it could not be asked.
        reason: String,
    },
}

/// What a caller may conclude from an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Nothing was done, and the same call may succeed later.
    Retry,
    /// A write was applied once, will be applied once, or never will: it is not known which. A call
    /// that repeats it is another write.
    Unknown,
    /// Nothing was done, and the same call can never succeed.
    Invalid,
    /// A server breaks the rules; trying again does not help.
    Fatal,
}

impl ClientError {
    /// Returns what a caller may conclude.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Invalid(_) => ErrorClass::Invalid,
            Self::Connect(_)
            | Self::Unavailable { .. }
            | Self::DeadlineExceeded { .. }
            | Self::Unfinished { .. }
            | Self::Admin { .. } => ErrorClass::Retry,
            Self::Ambiguous { .. } => ErrorClass::Unknown,
            Self::Malformed { .. } => ErrorClass::Fatal,
        }
    }
}

/// Which cohort, and which of its nodes, an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The cohort that serves the key.
    pub cohort: CohortId,
    /// The node that was asked last; `None` if none could be.
    pub node: Option<NodeId>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.node {
            Some(node) => write!(f, "cohort {} at node {node}", self.cohort),
            None => write!(f, "cohort {}", self.cohort),
        }
    }
}
