//! The operations, as they are sent and sent again.

use bytes::Bytes;
use trireme_proto::v1::request::Operation;
use trireme_proto::v1::response;
use trireme_proto::{convert, v1};
use trireme_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use trireme_types::{Condition, Consistency};

use crate::ClientError;
use crate::routes::Position;

/// What a caller asks for, in the form that requests are made from, one for each try.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// Reads a key.
    Get { key: Bytes, consistency: Consistency },
    /// Sets a key.
    Put { key: Bytes, value: Bytes, condition: Condition },
    /// Deletes a key.
    Delete { key: Bytes, condition: Condition },
    /// Reads one page of rows.
    Scan { start: Bytes, end: Option<Bytes>, limit: u32, reverse: bool, consistency: Consistency },
}

impl Request {
    /// Checks the limits that every server checks as well.
    pub(crate) fn validate(&self) -> Result<(), ClientError> {
        match self {
            Self::Get { key, .. } | Self::Delete { key, .. } => check_key(key),
            Self::Put { key, value, .. } => {
                check_key(key)?;
                if value.len() > VALUE_BYTES_MAX {
                    return Err(ClientError::Invalid(format!(
                        "a value of {} bytes; the limit is {VALUE_BYTES_MAX}",
                        value.len()
                    )));
                }
                Ok(())
            }
            Self::Scan { start, end, .. } => {
                check_key(start)?;
                check_key(end.as_deref().unwrap_or_default())
            }
        }
    }

    /// Returns true if the request changes anything.
    pub(crate) const fn is_write(&self) -> bool {
        match self {
            Self::Put { .. } | Self::Delete { .. } => true,
            Self::Get { .. } | Self::Scan { .. } => false,
        }
    }

    /// Returns true if any replica may answer.
    pub(crate) fn suits_any_replica(&self) -> bool {
        match self {
            Self::Get { consistency, .. } | Self::Scan { consistency, .. } => {
                *consistency == Consistency::Timeline
            }
            Self::Put { .. } | Self::Delete { .. } => false,
        }
    }

    /// Returns where the request belongs.
    pub(crate) fn position(&self) -> Position<'_> {
        match self {
            Self::Get { key, .. } | Self::Put { key, .. } | Self::Delete { key, .. } => {
                Position::At(key)
            }
            Self::Scan { end, reverse: true, .. } => Position::Below(end.as_deref()),
            Self::Scan { start, .. } => Position::At(start),
        }
    }

    /// Returns the request for one try.
    pub(crate) fn operation(&self, route: v1::Route, write_id: Option<v1::WriteId>) -> Operation {
        let route = Some(route);
        match self.clone() {
            Self::Get { key, consistency } => Operation::Get(v1::GetRequest {
                route,
                key,
                consistency: convert::consistency_number(consistency),
            }),
            Self::Put { key, value, condition } => Operation::Put(v1::PutRequest {
                route,
                write_id,
                key,
                value,
                condition: convert::condition_message(condition),
            }),
            Self::Delete { key, condition } => Operation::Delete(v1::DeleteRequest {
                route,
                write_id,
                key,
                condition: convert::condition_message(condition),
            }),
            Self::Scan { start, end, limit, reverse, consistency } => {
                Operation::Scan(v1::ScanRequest {
                    route,
                    start,
                    end,
                    limit,
                    reverse,
                    consistency: convert::consistency_number(consistency),
                })
            }
        }
    }

    /// Returns true if an answer is one to this kind of request.
    pub(crate) const fn is_answered_by(&self, answer: &response::Result) -> bool {
        matches!(
            (self, answer),
            (Self::Get { .. }, response::Result::Get(_))
                | (Self::Put { .. }, response::Result::Put(_))
                | (Self::Delete { .. }, response::Result::Delete(_))
                | (Self::Scan { .. }, response::Result::Scan(_))
        )
    }
}

fn check_key(key: &[u8]) -> Result<(), ClientError> {
    convert::check_key(key).map_err(|_| {
        let length = key.len();
        ClientError::Invalid(format!("a key of {length} bytes; the limit is {KEY_BYTES_MAX}"))
    })
}
