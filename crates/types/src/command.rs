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
    /// A moment of the cohort's clock before which the client sent it nothing, by which a new client
    /// is known from one that the cohort has forgotten; `None` from clients that do not say.
    pub start: Option<u64>,
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
    /// The cohort does not know the client, and it may be one that it has forgotten; nothing was
    /// changed.
    SessionGone {
        /// The cohort's clock, as the start of the client's next session.
        clock: u64,
    },
    /// There is no room to recognise the write if it comes again; nothing was changed.
    SessionsFull,
}

/// The commands of one log entry, applied in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandBatch {
    /// The commands.
    pub commands: Vec<Command>,
    /// The cohort's clock, in milliseconds, as of when its leader gathered them: how the replicas
    /// come to agree on the time. It may stand still and go back; the highest counts.
    pub clock: u64,
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
const FORMAT: u8 = 2;

/// The format of 0.1.0: without the clock, and requests without a start.
const FORMAT_1: u8 = 1;

/// A [`Command`] of format 1.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct CommandOfFormat1 {
    request: Option<RequestIdOfFormat1>,
    operation: Operation,
}

/// A [`RequestId`] of format 1.
#[derive(Deserialize)]
#[cfg_attr(test, derive(Serialize))]
struct RequestIdOfFormat1 {
    client: ClientId,
    sequence: u64,
    first_incomplete: u64,
}

impl From<CommandOfFormat1> for Command {
    fn from(command: CommandOfFormat1) -> Self {
        let request = command.request.map(|request| {
            let RequestIdOfFormat1 { client, sequence, first_incomplete } = request;
            RequestId { client, sequence, first_incomplete, start: None }
        });
        Self { request, operation: command.operation }
    }
}

impl CommandBatch {
    /// Returns the bytes that stand for this batch in a log entry: a format byte, then the clock and
    /// the commands in postcard's encoding.
    pub fn encode(&self) -> Bytes {
        let size: usize = self.commands.iter().map(|command| command.operation.size() + 64).sum();
        let mut bytes = Vec::with_capacity(size + 8);
        bytes.push(FORMAT);
        let bytes = postcard::to_extend(&(self.clock, &self.commands), bytes)
            .expect("commands hold nothing that postcard cannot write, and a Vec always grows");
        Bytes::from(bytes)
    }

    /// Reads what [`CommandBatch::encode`] wrote, also that of 0.1.0, and refuses everything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, BatchDecodeError> {
        let (&format, rest) = bytes.split_first().ok_or(BatchDecodeError::Empty)?;
        let (clock, commands, rest) = match format {
            FORMAT => {
                let ((clock, commands), rest) = postcard::take_from_bytes(rest)?;
                (clock, commands, rest)
            }
            FORMAT_1 => {
                let (commands, rest) = postcard::take_from_bytes::<Vec<CommandOfFormat1>>(rest)?;
                (0, commands.into_iter().map(Command::from).collect::<Vec<_>>(), rest)
            }
            _ => return Err(BatchDecodeError::Format(format)),
        };
        if !rest.is_empty() {
            return Err(BatchDecodeError::TrailingBytes(rest.len()));
        }
        check_limits(&commands)?;
        Ok(Self { commands, clock })
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
        let (client, start) = (ClientId(u128::MAX), Some(5));
        let request = RequestId { client, sequence: 7, first_incomplete: 3, start };
        let condition = Condition::Version(Version(9));
        let key = Bytes::from_static(b"key");
        let put = Operation::Put { key: key.clone(), value: Bytes::from_static(b"v"), condition };
        let delete = Operation::Delete { key, condition: Condition::Absent };
        CommandBatch {
            commands: vec![
                Command { request: Some(request), operation: put },
                Command { request: None, operation: delete },
            ],
            clock: 1 << 40,
        }
    }

    #[test]
    fn a_batch_reads_back_as_it_was_written() {
        assert_eq!(CommandBatch::decode(&batch().encode()), Ok(batch()));
        let empty = CommandBatch::default();
        assert_eq!(CommandBatch::decode(&empty.encode()), Ok(empty));
    }

    /// What 0.1.0 wrote, byte by byte.
    #[test]
    fn a_batch_of_format_1_is_read() {
        let request =
            Some(RequestIdOfFormat1 { client: ClientId(7), sequence: 3, first_incomplete: 2 });
        let operation = Operation::Delete { key: "k".into(), condition: Condition::None };
        let rest = postcard::to_stdvec(&vec![CommandOfFormat1 { request, operation }]).unwrap();
        assert_eq!(rest, [1, 1, 7, 3, 2, 1, 1, b'k', 0]);
        let batch = CommandBatch::decode(&[&[1][..], &rest].concat()).unwrap();
        let request = batch.commands[0].request.unwrap();
        assert_eq!(
            (request.client, request.sequence, request.first_incomplete),
            (ClientId(7), 3, 2)
        );
        assert_eq!((request.start, batch.clock, batch.commands.len()), (None, 0, 1));
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
        let commands = vec![Command { request: None, operation }];
        let batch = CommandBatch { commands, clock: 0 };
        let refused = BatchDecodeError::PastLimit("key bytes");
        assert_eq!(CommandBatch::decode(&batch.encode()), Err(refused));
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for format in [FORMAT_1, FORMAT] {
                let framed = [&[format][..], &bytes].concat();
                let _ignored = CommandBatch::decode(&framed);
            }
        }
    }
}
