//! The entries of a cohort's log.

use bytes::Bytes;

use crate::Lsn;

/// What an entry of a cohort's log means to those who apply it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// The payload is an encoded [`crate::CommandBatch`].
    Commands,
    /// Changes nothing: a leader's first entry, which commits those of its predecessors.
    NoOp,
    /// The payload is the protocol's own, such as a membership: applying it keeps the newest one
    /// beside the data.
    Protocol,
}

/// One entry of a cohort's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its address.
    pub lsn: Lsn,
    /// What the payload means.
    pub kind: EntryKind,
    /// The content, opaque to the log.
    pub payload: Bytes,
}
