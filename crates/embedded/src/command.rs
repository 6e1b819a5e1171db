//! What the log records: the commands that change the store, in the order they are applied.
//!
//! A command is the client's request itself. Applying one is deterministic, so that replaying the
//! log makes the store that the answers were given from. Commands that are refused when applied
//! are in the log as well: replay refuses them again.

use etcd_client::proto::{
    PbCompactionRequest, PbDeleteRequest, PbDeleteResponse, PbLeaseGrantRequest,
    PbLeaseRevokeRequest, PbPutRequest, PbPutResponse, PbTxnRequest, PbTxnResponse,
};
use prost::Message;

use super::fault::Refusal;
use super::requests;
use super::store::Store;

/// A change of the store.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Command {
    Put(PbPutRequest),
    Delete(PbDeleteRequest),
    Txn(PbTxnRequest),
    Compact(PbCompactionRequest),
    /// The identifier is chosen, and the time to live settled, before it is logged.
    Grant(PbLeaseGrantRequest),
    Revoke(PbLeaseRevokeRequest),
}

/// What became of a command. The revisions are those after it was applied.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    Put(PbPutResponse),
    Delete(PbDeleteResponse),
    Txn(PbTxnResponse),
    Compacted { revision: i64 },
    Granted { id: i64, ttl: i64, revision: i64 },
    Revoked { id: i64, revision: i64 },
}

mod kind {
    pub(super) const PUT: u8 = 1;
    pub(super) const DELETE: u8 = 2;
    pub(super) const TXN: u8 = 3;
    pub(super) const COMPACT: u8 = 4;
    pub(super) const GRANT: u8 = 5;
    pub(super) const REVOKE: u8 = 6;
}

impl Command {
    /// Applies the command to the store.
    pub(super) fn apply(self, store: &mut Store) -> Result<Outcome, Refusal> {
        match self {
            Self::Put(request) => requests::put(store, request).map(Outcome::Put),
            Self::Delete(request) => Ok(Outcome::Delete(requests::delete(store, &request))),
            Self::Txn(request) => requests::txn(store, request).map(Outcome::Txn),
            Self::Compact(request) => {
                store.compact(request.revision)?;
                Ok(Outcome::Compacted { revision: store.revision() })
            }
            Self::Grant(PbLeaseGrantRequest { id, ttl }) => {
                store.grant(id, ttl)?;
                Ok(Outcome::Granted { id, ttl, revision: store.revision() })
            }
            Self::Revoke(PbLeaseRevokeRequest { id }) => {
                store.revoke(id)?;
                Ok(Outcome::Revoked { id, revision: store.revision() })
            }
        }
    }

    /// Returns how many bytes the command's encoding takes.
    pub(super) fn encoded_len(&self) -> usize {
        1 + match self {
            Self::Put(request) => delimited(request),
            Self::Delete(request) => delimited(request),
            Self::Txn(request) => delimited(request),
            Self::Compact(request) => delimited(request),
            Self::Grant(request) => delimited(request),
            Self::Revoke(request) => delimited(request),
        }
    }

    /// Appends the command's encoding: a byte for its kind, then the request in protobuf, led by
    /// its length.
    pub(super) fn encode(&self, buffer: &mut Vec<u8>) {
        match self {
            Self::Put(request) => encode_as(kind::PUT, request, buffer),
            Self::Delete(request) => encode_as(kind::DELETE, request, buffer),
            Self::Txn(request) => encode_as(kind::TXN, request, buffer),
            Self::Compact(request) => encode_as(kind::COMPACT, request, buffer),
            Self::Grant(request) => encode_as(kind::GRANT, request, buffer),
            Self::Revoke(request) => encode_as(kind::REVOKE, request, buffer),
        }
    }

    /// Reads one command from the front of `bytes` and moves them past it.
    pub(super) fn decode(bytes: &mut &[u8]) -> Result<Self, String> {
        let (&kind, rest) = bytes.split_first().ok_or("a command is missing")?;
        *bytes = rest;
        let command = match kind {
            kind::PUT => Self::Put(decode_as(bytes)?),
            kind::DELETE => Self::Delete(decode_as(bytes)?),
            kind::TXN => Self::Txn(decode_as(bytes)?),
            kind::COMPACT => Self::Compact(decode_as(bytes)?),
            kind::GRANT => Self::Grant(decode_as(bytes)?),
            kind::REVOKE => Self::Revoke(decode_as(bytes)?),
            other => return Err(format!("a command of the unknown kind {other}")),
        };
        Ok(command)
    }
}

fn delimited(message: &impl Message) -> usize {
    let len = message.encoded_len();
    prost::length_delimiter_len(len) + len
}

fn encode_as(kind: u8, message: &impl Message, buffer: &mut Vec<u8>) {
    buffer.push(kind);
    message.encode_length_delimited(buffer).expect("a Vec always grows");
}

fn decode_as<M: Message + Default>(bytes: &mut &[u8]) -> Result<M, String> {
    M::decode_length_delimited(bytes).map_err(|error| format!("an unreadable command: {error}"))
}
