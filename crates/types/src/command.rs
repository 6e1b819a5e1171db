//! What is replicated: commands, in batches, and what became of them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::ClientId;
use crate::limits::{BATCH_COMMANDS_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// The version of a value: the number of the write that made it, counted through all writes of its
/// cohort. It rises with every write, also across the deletion of a key and its return, so that a
/// version once seen never comes back with another value (S13). 0 is no version.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Version(pub u64);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one write of one client, however often it is sent, so that it is applied once
/// (C1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// Whose write it is.
    pub client: ClientId,
    /// The client's number for it; never given to another write.
    pub sequence: u64,
    /// The lowest sequence whose answer the client still awaits: answers below it will never be
    /// asked for again.
    pub first_incomplete: u64,
}

/// What must hold of a key when a write is applied, or else the write does nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// Nothing is asked.
    #[default]
    None,
    /// The key has no value.
    Absent,
    /// The key has a value of this version.
    Version(Version),
}

/// A change to one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Gives the key this value.
    Put {
        /// The key.
        key: Bytes,
        /// Its value from now on.
        value: Bytes,
        /// What must hold first.
        condition: Condition,
    },
    /// Takes the key's value away, if it has one.
    Delete {
        /// The key.
        key: Bytes,
        /// What must hold first.
        condition: Condition,
    },
}

impl Operation {
    /// Returns the key that the operation changes.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// Returns how many bytes of keys and values the operation carries.
    pub fn size(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Delete { key, .. } => key.len(),
        }
    }
}

/// One client's write, as it stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Whose write it is; `None` where nobody will ever retry it.
    pub request: Option<RequestId>,
    /// The write.
    pub operation: Operation,
}

/// What became of a command when it was applied. Every replica comes to the same one, since it
/// follows from the log alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The key has the value, under this version.
    Put {
        /// The value's version.
        version: Version,
    },
    /// The key has no value any more.
    Deleted {
        /// Whether it had one before.
        existed: bool,
    },
    /// The condition did not hold, and nothing was changed.
    ConditionFailed {
        /// The version that the key had; `None` if it had no value.
        current: Option<Version>,
    },
    /// The key is not in the cohort's range any more, and nothing was changed: the range was
    /// changed while the command was on its way.
    WrongRange,
}

/// The commands of one log entry, applied in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandBatch {
    /// The commands.
    pub commands: Vec<Command>,
}

/// Bytes that should have been a [`CommandBatch`] and are not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchDecodeError {
    /// The first byte names a format that this build does not read.
    #[error("a command batch of format {0}; this build reads format {FORMAT}")]
    Format(u8),
    /// The bytes end too early or say something impossible.
    #[error("a command batch that cannot be read: {0}")]
    Malformed(#[from] postcard::Error),
    /// Bytes follow the last command.
    #[error("a command batch with {0} bytes too many")]
    TrailingBytes(usize),
    /// A limit that every writer keeps is passed.
    #[error("a command batch past the limit on {0}")]
    PastLimit(&'static str),
    /// No byte at all.
    #[error("an empty command batch")]
    Empty,
}

/// The format that [`CommandBatch::encode`] writes, which is its first byte.
const FORMAT: u8 = 1;

impl CommandBatch {
    /// Returns the bytes that stand for this batch in a log entry: a format byte, then the commands
    /// in postcard's encoding.
    pub fn encode(&self) -> Bytes {
        let size: usize = self.commands.iter().map(|command| command.operation.size() + 64).sum();
        let mut bytes = Vec::with_capacity(size + 8);
        bytes.push(FORMAT);
        let bytes = postcard::to_extend(&self.commands, bytes)
            .expect("commands hold nothing that postcard cannot write, and a Vec always grows");
        Bytes::from(bytes)
    }

    /// Reads what [`CommandBatch::encode`] wrote, and refuses everything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, BatchDecodeError> {
        let (&format, rest) = bytes.split_first().ok_or(BatchDecodeError::Empty)?;
        if format != FORMAT {
            return Err(BatchDecodeError::Format(format));
        }
        let (commands, rest) = postcard::take_from_bytes::<Vec<Command>>(rest)?;
        if !rest.is_empty() {
            return Err(BatchDecodeError::TrailingBytes(rest.len()));
        }
        check_limits(&commands)?;
        Ok(Self { commands })
    }
}

fn check_limits(commands: &[Command]) -> Result<(), BatchDecodeError> {
    if commands.len() > BATCH_COMMANDS_MAX {
        return Err(BatchDecodeError::PastLimit("commands"));
    }
    for Command { operation, .. } in commands {
        if operation.key().len() > KEY_BYTES_MAX {
            return Err(BatchDecodeError::PastLimit("key bytes"));
        }
        if matches!(operation, Operation::Put { value, .. } if value.len() > VALUE_BYTES_MAX) {
            return Err(BatchDecodeError::PastLimit("value bytes"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch() -> CommandBatch {
        let request = RequestId { client: ClientId(u128::MAX), sequence: 7, first_incomplete: 3 };
        let condition = Condition::Version(Version(9));
        let key = Bytes::from_static(b"key");
        let put = Operation::Put { key: key.clone(), value: Bytes::from_static(b"v"), condition };
        let delete = Operation::Delete { key, condition: Condition::Absent };
        CommandBatch {
            commands: vec![
                Command { request: Some(request), operation: put },
                Command { request: None, operation: delete },
            ],
        }
    }

    #[test]
    fn a_batch_reads_back_as_it_was_written() {
        assert_eq!(CommandBatch::decode(&batch().encode()), Ok(batch()));
        let empty = CommandBatch::default();
        assert_eq!(CommandBatch::decode(&empty.encode()), Ok(empty));
    }

    #[test]
    fn cut_lengthened_and_future_batches_are_refused() {
        let whole = batch().encode();
        for len in 0..whole.len() {
            assert!(CommandBatch::decode(&whole[..len]).is_err(), "cut to {len} bytes");
        }
        let longer = [&whole[..], b"x"].concat();
        assert_eq!(CommandBatch::decode(&longer), Err(BatchDecodeError::TrailingBytes(1)));
        let mut future = whole.to_vec();
        future[0] = FORMAT + 1;
        assert_eq!(CommandBatch::decode(&future), Err(BatchDecodeError::Format(FORMAT + 1)));
    }

    #[test]
    fn oversized_keys_and_values_are_refused() {
        let operation = Operation::Put {
            key: Bytes::from(vec![0; KEY_BYTES_MAX + 1]),
            value: Bytes::new(),
            condition: Condition::None,
        };
        let batch = CommandBatch { commands: vec![Command { request: None, operation }] };
        let refused = BatchDecodeError::PastLimit("key bytes");
        assert_eq!(CommandBatch::decode(&batch.encode()), Err(refused));
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let framed = [&[FORMAT][..], &bytes].concat();
            let _ignored = CommandBatch::decode(&framed);
        }
    }
}
