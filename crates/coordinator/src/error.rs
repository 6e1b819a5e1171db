//! What can go wrong between a node and its coordinator.

use crate::node::NodeVersion;

/// Why a request to the coordinator did not do what it was to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoordinatorError {
    /// Options that cannot be worked with.
    #[error("the coordinator's options are unusable: {0}")]
    InvalidOptions(String),
    /// A path or request that no coordinator could answer.
    #[error("'{path}' cannot be asked of the coordinator: {reason}")]
    InvalidRequest {
        /// The path.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The node to be created is there already.
    #[error("the node '{path}' exists")]
    NodeExists {
        /// The node.
        path: String,
        /// Its version.
        current: NodeVersion,
    },
    /// The node to be read or changed is not there.
    #[error("there is no node '{path}'")]
    NoNode {
        /// The node.
        path: String,
    },
    /// The node has been changed since the version that was expected of it.
    #[error("the node '{path}' is at version {current}, not {expected}")]
    WrongVersion {
        /// The node.
        path: String,
        /// The version that the request expected.
        expected: NodeVersion,
        /// The version that the node has.
        current: NodeVersion,
    },
    /// The session is over, and with it the right to own ephemeral nodes.
    #[error("the session with the coordinator has expired")]
    SessionExpired,
    /// The coordinator could not be asked. Nothing was changed.
    #[error("the coordinator cannot be reached: {0}")]
    Unavailable(String),
    /// The request may have been carried out or not, and may still be: what it was to change has
    /// to be read again (P4).
    #[error("the coordinator's answer is not known: {0}")]
    Ambiguous(String),
    /// The coordinator refused the request, and would refuse it again.
    #[error("the coordinator refused: {0}")]
    Refused(String),
    /// A node holds something other than what its recipe writes.
    #[error("the node '{path}' cannot be understood: {reason}")]
    Malformed {
        /// The node.
        path: String,
        /// What is wrong with its value.
        reason: String,
    },
}

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Nothing was changed; the same request may succeed later.
    Retry,
    /// Somebody else was first: read, decide anew.
    Conflict,
    /// What became of the request is not known: read before anything else is asked.
    Unknown,
    /// A new session is needed first.
    Expired,
    /// The request, the options or the stored state is wrong: a person must look.
    Invalid,
}

impl CoordinatorError {
    /// Returns what a caller can do about the error.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unavailable(_) => ErrorClass::Retry,
            Self::NodeExists { .. } | Self::NoNode { .. } | Self::WrongVersion { .. } => {
                ErrorClass::Conflict
            }
            Self::Ambiguous(_) => ErrorClass::Unknown,
            Self::SessionExpired => ErrorClass::Expired,
            Self::InvalidOptions(_)
            | Self::InvalidRequest { .. }
            | Self::Refused(_)
            | Self::Malformed { .. } => ErrorClass::Invalid,
        }
    }
}
