//! From wire messages to the shared types and back.

use bytes::Bytes;
use trireme_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use trireme_types::{
    ClientId, CohortId, Command, Condition, Consistency, KeyRange, Lsn, NodeId, Operation, Outcome,
    RangeDescriptor, RangeMap, RangeMapError, RequestId, Version,
};

use crate::v1;

/// A wire message that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A part that must be there is not.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A key longer than any may be.
    #[error("a key of {0} bytes; the limit is {KEY_BYTES_MAX}")]
    KeyTooLong(usize),
    /// A value longer than any may be.
    #[error("a value of {0} bytes; the limit is {VALUE_BYTES_MAX}")]
    ValueTooLong(usize),
    /// A client id that is not 16 bytes long.
    #[error("a client id of {0} bytes; it has 16")]
    ClientId(usize),
    /// A number that stands for none of its choices.
    #[error("{what} {number} is unknown")]
    Unknown {
        /// What it should have been.
        what: &'static str,
        /// The number.
        number: i32,
    },
    /// Ranges that make no map.
    #[error("a route table that cannot be: {0}")]
    RangeMap(#[from] RangeMapError),
}

impl From<Lsn> for v1::Lsn {
    fn from(lsn: Lsn) -> Self {
        Self { epoch: lsn.epoch, seq: lsn.seq }
    }
}

impl From<v1::Lsn> for Lsn {
    fn from(lsn: v1::Lsn) -> Self {
        Self { epoch: lsn.epoch, seq: lsn.seq }
    }
}

/// Returns the write that a put asks for.
pub fn put_command(put: v1::PutRequest) -> Result<Command, ConvertError> {
    check_key(&put.key)?;
    if put.value.len() > VALUE_BYTES_MAX {
        return Err(ConvertError::ValueTooLong(put.value.len()));
    }
    let condition = condition(put.condition)?;
    let operation = Operation::Put { key: put.key, value: put.value, condition };
    Ok(Command { request: request_id(put.write_id)?, operation })
}

/// Returns the write that a delete asks for.
pub fn delete_command(delete: v1::DeleteRequest) -> Result<Command, ConvertError> {
    check_key(&delete.key)?;
    let condition = condition(delete.condition)?;
    let operation = Operation::Delete { key: delete.key, condition };
    Ok(Command { request: request_id(delete.write_id)?, operation })
}

/// Checks that a key is no longer than keys may be.
pub fn check_key(key: &[u8]) -> Result<(), ConvertError> {
    if key.len() > KEY_BYTES_MAX {
        return Err(ConvertError::KeyTooLong(key.len()));
    }
    Ok(())
}

/// Returns the consistency that a read asks for.
pub fn consistency(number: i32) -> Result<Consistency, ConvertError> {
    match v1::Consistency::try_from(number) {
        Ok(v1::Consistency::Strong) => Ok(Consistency::Strong),
        Ok(v1::Consistency::Timeline) => Ok(Consistency::Timeline),
        Err(_) => Err(ConvertError::Unknown { what: "consistency", number }),
    }
}

/// Returns the wire's number for a consistency.
pub fn consistency_number(consistency: Consistency) -> i32 {
    let consistency = match consistency {
        Consistency::Strong => v1::Consistency::Strong,
        Consistency::Timeline => v1::Consistency::Timeline,
    };
    consistency.into()
}

/// Returns the wire's form of a condition; absent for [`Condition::None`].
pub fn condition_message(condition: Condition) -> Option<v1::Condition> {
    use v1::condition::Condition as Wire;
    let condition = match condition {
        Condition::None => return None,
        Condition::Absent => Wire::Absent(true),
        Condition::Version(version) => Wire::Version(version.0),
    };
    Some(v1::Condition { condition: Some(condition) })
}

/// Returns the wire's form of a request id.
pub fn write_id_message(request: RequestId) -> v1::WriteId {
    v1::WriteId {
        client: client_bytes(request.client),
        sequence: request.sequence,
        first_incomplete: request.first_incomplete,
        start: request.start,
    }
}

/// Returns the wire's form of a client id.
pub fn client_bytes(client: ClientId) -> Bytes {
    Bytes::copy_from_slice(&client.0.to_be_bytes())
}

/// Returns the keys that a scan asks for.
pub fn scan_range(scan: &v1::ScanRequest) -> Result<KeyRange, ConvertError> {
    check_key(&scan.start)?;
    check_key(scan.end.as_deref().unwrap_or_default())?;
    Ok(KeyRange { start: scan.start.clone(), end: scan.end.clone() })
}

/// Returns the answer to a put; `None` if the outcome is none of a put, or is one that the client
/// is told as an error.
pub fn put_response(outcome: Outcome) -> Option<v1::PutResponse> {
    use v1::put_response::Outcome as Wire;
    let outcome = match outcome {
        Outcome::Put { version } => Wire::Version(version.0),
        Outcome::ConditionFailed { current } => Wire::ConditionFailed(condition_failed(current)),
        Outcome::Deleted { .. }
        | Outcome::WrongRange
        | Outcome::SessionGone { .. }
        | Outcome::SessionsFull => return None,
    };
    Some(v1::PutResponse { outcome: Some(outcome) })
}

/// Returns the answer to a delete; `None` if the outcome is none of a delete, or is one that the
/// client is told as an error.
pub fn delete_response(outcome: Outcome) -> Option<v1::DeleteResponse> {
    use v1::delete_response::Outcome as Wire;
    let outcome = match outcome {
        Outcome::Deleted { existed } => Wire::Existed(existed),
        Outcome::ConditionFailed { current } => Wire::ConditionFailed(condition_failed(current)),
        Outcome::Put { .. }
        | Outcome::WrongRange
        | Outcome::SessionGone { .. }
        | Outcome::SessionsFull => return None,
    };
    Some(v1::DeleteResponse { outcome: Some(outcome) })
}

/// Returns the outcome that an answer to a put stands for.
pub fn put_outcome(response: v1::PutResponse) -> Result<Outcome, ConvertError> {
    use v1::put_response::Outcome as Wire;
    match response.outcome.ok_or(ConvertError::Missing("the outcome of a put"))? {
        Wire::Version(version) => Ok(Outcome::Put { version: Version(version) }),
        Wire::ConditionFailed(failed) => Ok(failed_outcome(failed)),
    }
}

/// Returns the outcome that an answer to a delete stands for.
pub fn delete_outcome(response: v1::DeleteResponse) -> Result<Outcome, ConvertError> {
    use v1::delete_response::Outcome as Wire;
    match response.outcome.ok_or(ConvertError::Missing("the outcome of a delete"))? {
        Wire::Existed(existed) => Ok(Outcome::Deleted { existed }),
        Wire::ConditionFailed(failed) => Ok(failed_outcome(failed)),
    }
}

/// Returns the range map that a route table holds, checked.
pub fn range_map(table: &v1::RouteTable) -> Result<RangeMap, ConvertError> {
    let ranges = table.ranges.iter().map(range_descriptor).collect();
    Ok(RangeMap::new(table.version, ranges)?)
}

/// Returns the range that a route leads to.
pub fn range_descriptor(route: &v1::RangeRoute) -> RangeDescriptor {
    RangeDescriptor {
        range: KeyRange { start: route.start.clone(), end: route.end.clone() },
        cohort: CohortId(route.cohort),
        epoch: route.epoch,
    }
}

/// Returns the node that a wire number names; 0 names none.
pub fn node_id(number: u64) -> Option<NodeId> {
    (number > 0).then_some(NodeId(number))
}

fn condition(message: Option<v1::Condition>) -> Result<Condition, ConvertError> {
    use v1::condition::Condition as Wire;
    let Some(message) = message else { return Ok(Condition::None) };
    match message.condition {
        Some(Wire::Absent(true)) => Ok(Condition::Absent),
        Some(Wire::Version(version)) => Ok(Condition::Version(Version(version))),
        Some(Wire::Absent(false)) | None => Err(ConvertError::Missing("what the condition asks")),
    }
}

fn request_id(message: Option<v1::WriteId>) -> Result<Option<RequestId>, ConvertError> {
    let Some(message) = message else { return Ok(None) };
    let length = message.client.len();
    let client =
        <[u8; 16]>::try_from(&message.client[..]).map_err(|_| ConvertError::ClientId(length))?;
    if message.sequence == 0 {
        return Err(ConvertError::Missing("the sequence of a write"));
    }
    Ok(Some(RequestId {
        client: ClientId(u128::from_be_bytes(client)),
        sequence: message.sequence,
        // A client that awaits this answer cannot have finished with it.
        first_incomplete: message.first_incomplete.min(message.sequence),
        start: message.start,
    }))
}

fn condition_failed(current: Option<Version>) -> v1::ConditionFailed {
    v1::ConditionFailed { current: current.map(|version| version.0) }
}

fn failed_outcome(failed: v1::ConditionFailed) -> Outcome {
    Outcome::ConditionFailed { current: failed.current.map(Version) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put() -> v1::PutRequest {
        v1::PutRequest {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            ..Default::default()
        }
    }

    #[test]
    fn a_put_keeps_its_condition_and_its_request_id() {
        let (client, start) = (ClientId(5), Some(77));
        let request = RequestId { client, sequence: 9, first_incomplete: 4, start };
        let message = v1::PutRequest {
            write_id: Some(write_id_message(request)),
            condition: condition_message(Condition::Version(Version(3))),
            ..put()
        };
        let command = put_command(message).unwrap();
        assert_eq!(command.request, Some(request));
        let Operation::Put { condition, .. } = command.operation else { panic!("not a put") };
        assert_eq!(condition, Condition::Version(Version(3)));
    }

    #[test]
    fn what_passes_a_limit_is_refused() {
        let long = v1::PutRequest { key: vec![0; KEY_BYTES_MAX + 1].into(), ..put() };
        assert_eq!(put_command(long), Err(ConvertError::KeyTooLong(KEY_BYTES_MAX + 1)));
        let large = v1::PutRequest { value: vec![0; VALUE_BYTES_MAX + 1].into(), ..put() };
        assert_eq!(put_command(large), Err(ConvertError::ValueTooLong(VALUE_BYTES_MAX + 1)));
        let longest = v1::PutRequest { key: vec![0; KEY_BYTES_MAX].into(), ..put() };
        assert!(put_command(longest).is_ok());
    }

    #[test]
    fn malformed_ids_and_conditions_are_refused() {
        let write_id = v1::WriteId { client: Bytes::from_static(b"short"), ..Default::default() };
        let message = v1::PutRequest { write_id: Some(write_id), ..put() };
        assert_eq!(put_command(message), Err(ConvertError::ClientId(5)));
        let message =
            v1::PutRequest { condition: Some(v1::Condition { condition: None }), ..put() };
        assert!(matches!(put_command(message), Err(ConvertError::Missing(_))));
        assert!(consistency(7).is_err());
    }

    #[test]
    fn outcomes_survive_the_wire() {
        let failed = Outcome::ConditionFailed { current: Some(Version(3)) };
        for outcome in [Outcome::Put { version: Version(8) }, failed] {
            assert_eq!(put_outcome(put_response(outcome).unwrap()), Ok(outcome));
        }
        for outcome in [Outcome::Deleted { existed: true }, failed] {
            assert_eq!(delete_outcome(delete_response(outcome).unwrap()), Ok(outcome));
        }
        assert_eq!(put_response(Outcome::WrongRange), None);
    }
}
