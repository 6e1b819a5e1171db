//! The errors that clients get.

use trireme_proto::v1::{Error, ErrorCode, Node, RangeRoute};
use trireme_replication::ReplicaError;

/// How long a client that found a queue full should wait.
const RETRY_AFTER_MS: u64 = 20;

pub(crate) fn invalid(message: impl ToString) -> Error {
    error(ErrorCode::Invalid, message)
}

pub(crate) fn stale_route(route: RangeRoute) -> Error {
    let message = format!("the key belongs to cohort c{}", route.cohort);
    Error { route: Some(route), ..error(ErrorCode::StaleRoute, message) }
}

/// The error for a request whose key the cohort does not serve any more; who does may not be known
/// here yet.
pub(crate) fn moved() -> Error {
    error(ErrorCode::StaleRoute, "the range was changed while the request was on its way")
}

pub(crate) fn not_leader(leader: Option<Node>) -> Error {
    let message = match &leader {
        Some(leader) => format!("node n{} at {} leads the cohort", leader.id, leader.address),
        None => "the cohort's leader is not known here".to_owned(),
    };
    Error { leader, ..error(ErrorCode::NotLeader, message) }
}

pub(crate) fn busy(message: impl ToString) -> Error {
    Error { retry_after_ms: RETRY_AFTER_MS, ..error(ErrorCode::Busy, message) }
}

pub(crate) fn expired() -> Error {
    error(ErrorCode::Expired, "the request's time was up before it was begun")
}

pub(crate) fn ambiguous(message: impl ToString) -> Error {
    error(ErrorCode::Ambiguous, message)
}

pub(crate) fn unavailable(message: impl ToString) -> Error {
    error(ErrorCode::Unavailable, message)
}

pub(crate) fn session_gone(clock: u64) -> Error {
    let message = "the cohort does not know the client, and may have forgotten it";
    Error { session_start: clock, ..error(ErrorCode::SessionGone, message) }
}

pub(crate) fn internal(message: impl ToString) -> Error {
    error(ErrorCode::Internal, message)
}

/// Returns what a client gets for a replica's error; `node` describes a node that leads.
pub(crate) fn of_replica(
    refused: &ReplicaError,
    node: impl Fn(trireme_types::NodeId) -> Option<Node>,
) -> Error {
    match refused {
        ReplicaError::NotLeader { leader } => not_leader(leader.and_then(node)),
        ReplicaError::Unavailable(_) => unavailable(refused),
        ReplicaError::Busy => busy(refused),
        ReplicaError::Ambiguous(_) => ambiguous(refused),
        ReplicaError::Invalid(_) => invalid(refused),
        ReplicaError::Failed(_) => internal(refused),
    }
}

fn error(code: ErrorCode, message: impl ToString) -> Error {
    Error { code: code.into(), message: message.to_string(), ..Error::default() }
}
