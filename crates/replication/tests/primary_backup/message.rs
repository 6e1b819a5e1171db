//! What primary and backups say to each other, and its bytes.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use trireme_replication::core::Message;
use trireme_types::{Entry, EntryKind, Epoch, Lsn};

/// A message between replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PbMessage {
    /// Primary to backup: these entries follow `previous`. Without entries it only tells the
    /// commit point.
    Append { context: AppendContext, entries: Vec<Entry> },
    /// Backup to primary: my log is yours up to here, on disk.
    Ack { epoch: Epoch, upto: Lsn },
    /// Backup to primary: I lack what comes before; send what follows this.
    Gap { epoch: Epoch, committed: Lsn },
    /// Primary to backup: with a snapshot.
    Snapshot { epoch: Epoch },
}

/// What an append says besides its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AppendContext {
    /// The primary's epoch.
    pub(crate) epoch: Epoch,
    /// The entry before the first one.
    pub(crate) previous: Lsn,
    /// The primary's commit point.
    pub(crate) committed: Lsn,
}

impl PbMessage {
    /// Returns the epoch in which it was sent.
    pub(crate) fn epoch(&self) -> Epoch {
        match self {
            Self::Append { context, .. } => context.epoch,
            Self::Ack { epoch, .. } | Self::Gap { epoch, .. } | Self::Snapshot { epoch } => *epoch,
        }
    }
}

/// Bytes that are no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PbDecodeError {
    #[error("the message ends too early")]
    Short,
    #[error("no message has the kind {0}")]
    Kind(u8),
    #[error("no entry has the kind {0}")]
    EntryKind(u8),
    #[error("{0} bytes follow the message")]
    TrailingBytes(usize),
}

impl Message for PbMessage {
    type DecodeError = PbDecodeError;

    fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        match self {
            Self::Append { context, entries } => {
                bytes.put_u8(1);
                bytes.put_u64(context.epoch);
                put_lsn(&mut bytes, context.previous);
                put_lsn(&mut bytes, context.committed);
                for entry in entries {
                    put_lsn(&mut bytes, entry.lsn);
                    bytes.put_u8(kind_number(entry.kind));
                    bytes.put_u32(u32::try_from(entry.payload.len()).expect("a bounded payload"));
                    bytes.put_slice(&entry.payload);
                }
            }
            Self::Ack { epoch, upto } => put_pair(&mut bytes, 2, *epoch, *upto),
            Self::Gap { epoch, committed } => put_pair(&mut bytes, 3, *epoch, *committed),
            Self::Snapshot { epoch } => {
                bytes.put_u8(4);
                bytes.put_u64(*epoch);
            }
        }
        bytes.freeze()
    }

    fn decode(mut bytes: Bytes) -> Result<Self, PbDecodeError> {
        let bytes = &mut bytes;
        let kind = bytes.try_get_u8().map_err(|_| PbDecodeError::Short)?;
        let epoch = bytes.try_get_u64().map_err(|_| PbDecodeError::Short)?;
        let message = match kind {
            1 => {
                let (previous, committed) = (get_lsn(bytes)?, get_lsn(bytes)?);
                let mut entries = Vec::new();
                while bytes.has_remaining() {
                    entries.push(get_entry(bytes)?);
                }
                let context = AppendContext { epoch, previous, committed };
                Self::Append { context, entries }
            }
            2 => Self::Ack { epoch, upto: get_lsn(bytes)? },
            3 => Self::Gap { epoch, committed: get_lsn(bytes)? },
            4 => Self::Snapshot { epoch },
            kind => return Err(PbDecodeError::Kind(kind)),
        };
        match bytes.remaining() {
            0 => Ok(message),
            more => Err(PbDecodeError::TrailingBytes(more)),
        }
    }
}

impl fmt::Display for PbMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Append { context, entries } => {
                let lsns: Vec<_> = entries.iter().map(|entry| entry.lsn.to_string()).collect();
                write!(f, "append [{}] {context}", lsns.join(" "))
            }
            Self::Ack { epoch, upto } => write!(f, "ack {upto} e{epoch}"),
            Self::Gap { epoch, committed } => write!(f, "gap after {committed} e{epoch}"),
            Self::Snapshot { epoch } => write!(f, "snapshot e{epoch}"),
        }
    }
}

impl fmt::Display for AppendContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {} committed={} e{}", self.previous, self.committed, self.epoch)
    }
}

fn put_pair(bytes: &mut BytesMut, kind: u8, epoch: Epoch, lsn: Lsn) {
    bytes.put_u8(kind);
    bytes.put_u64(epoch);
    put_lsn(bytes, lsn);
}

fn put_lsn(bytes: &mut BytesMut, lsn: Lsn) {
    bytes.put_u64(lsn.epoch);
    bytes.put_u64(lsn.seq);
}

fn get_lsn(bytes: &mut Bytes) -> Result<Lsn, PbDecodeError> {
    let mut number = || bytes.try_get_u64().map_err(|_| PbDecodeError::Short);
    Ok(Lsn::new(number()?, number()?))
}

fn get_entry(bytes: &mut Bytes) -> Result<Entry, PbDecodeError> {
    let lsn = get_lsn(bytes)?;
    let kind = match bytes.try_get_u8().map_err(|_| PbDecodeError::Short)? {
        1 => EntryKind::Commands,
        2 => EntryKind::NoOp,
        3 => EntryKind::Protocol,
        kind => return Err(PbDecodeError::EntryKind(kind)),
    };
    let len = bytes.try_get_u32().map_err(|_| PbDecodeError::Short)? as usize;
    if len > bytes.remaining() {
        return Err(PbDecodeError::Short);
    }
    Ok(Entry { lsn, kind, payload: bytes.split_to(len) })
}

fn kind_number(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::Commands => 1,
        EntryKind::NoOp => 2,
        EntryKind::Protocol => 3,
    }
}
