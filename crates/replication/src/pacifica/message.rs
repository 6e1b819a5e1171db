//! What PacificA's replicas say to each other, and its bytes.

use std::fmt;

use bytes::Bytes;
use trireme_types::{Entry, Epoch, Incarnation, Lsn};

use crate::core::{Message, Moment};
use crate::streaming::wire::{DecodeError, Reader, Writer};
use crate::streaming::{Beacon, Position, Preceding};

/// A message between replicas. `docs/protocols/pacifica.md` has the table of who sends which, when.
/// An epoch is the version of the configuration in which the sender acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PacificaMessage {
    /// Primary to secondary or candidate: prepare these entries. Without any it carries the committed
    /// point.
    Prepare {
        /// What comes before them.
        preceding: Preceding,
        /// The entries.
        entries: Vec<Entry>,
    },
    /// Secondary to primary: my prepared list is yours up to here, on my disk.
    Prepared {
        /// The configuration's version.
        epoch: Epoch,
        /// The newest entry that is the same.
        upto: Lsn,
        /// The time in the message that is acknowledged, if that extends the primary's lease.
        supports: Option<Moment>,
        /// Which incarnation of the replica acknowledges.
        incarnation: Incarnation,
    },
    /// Primary to secondary: I am here.
    Beacon(Beacon),
    /// Secondary to primary: I have heard you, whatever my disk does.
    BeaconAck {
        /// The configuration's version.
        epoch: Epoch,
        /// The time in the beacon, if that extends the primary's lease.
        supports: Option<Moment>,
        /// Which incarnation of the replica acknowledges.
        incarnation: Incarnation,
    },
    /// Secondary or candidate to primary: this is where I stand; send what I lack.
    ReportPosition {
        /// The newest version that the sender knows.
        epoch: Epoch,
        /// Where it stands.
        position: Position,
        /// Which incarnation of the replica stands there.
        incarnation: Incarnation,
    },
    /// To a primary of the past: this version has been installed.
    RejectStaleEpoch {
        /// The version.
        epoch: Epoch,
    },
    /// Primary to secondary: I serve no more in this version; take my place.
    StepDown {
        /// The version.
        epoch: Epoch,
    },
    /// Primary to secondary or candidate, with a snapshot.
    Snapshot {
        /// The configuration's version.
        epoch: Epoch,
    },
}

impl Message for PacificaMessage {
    type DecodeError = DecodeError;

    fn encode(&self) -> Bytes {
        match self {
            Self::Prepare { preceding, entries } => {
                Writer::new(11).preceding(preceding).entries(entries)
            }
            Self::Prepared { epoch, upto, supports, incarnation } => {
                let writer = Writer::new(2).number(*epoch).lsn(*upto).supports(*supports);
                writer.incarnation(*incarnation).finish()
            }
            Self::Beacon(beacon) => Writer::new(12).beacon(beacon).finish(),
            Self::BeaconAck { epoch, supports, incarnation } => {
                let writer = Writer::new(4).number(*epoch).supports(*supports);
                writer.incarnation(*incarnation).finish()
            }
            Self::ReportPosition { epoch, position, incarnation } => {
                let writer = Writer::new(5).number(*epoch).position(position);
                writer.incarnation(*incarnation).finish()
            }
            Self::RejectStaleEpoch { epoch } => Writer::new(6).number(*epoch).finish(),
            Self::Snapshot { epoch } => Writer::new(7).number(*epoch).finish(),
            Self::StepDown { epoch } => Writer::new(13).number(*epoch).finish(),
        }
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        // 1 and 3 were what 11 and 12 are, without the moment of the commit point.
        let message = match reader.byte()? {
            11 => {
                let preceding = reader.preceding()?;
                let entries = reader.entries(preceding.previous)?;
                return Ok(Self::Prepare { preceding, entries });
            }
            2 => {
                let (epoch, upto, supports) = (reader.number()?, reader.lsn()?, reader.supports()?);
                Self::Prepared { epoch, upto, supports, incarnation: reader.incarnation()? }
            }
            12 => Self::Beacon(reader.beacon()?),
            4 => {
                let (epoch, supports) = (reader.number()?, reader.supports()?);
                Self::BeaconAck { epoch, supports, incarnation: reader.incarnation()? }
            }
            5 => {
                let (epoch, position) = (reader.number()?, reader.position()?);
                Self::ReportPosition { epoch, position, incarnation: reader.incarnation()? }
            }
            6 => Self::RejectStaleEpoch { epoch: reader.number()? },
            7 => Self::Snapshot { epoch: reader.number()? },
            13 => Self::StepDown { epoch: reader.number()? },
            kind => return Err(DecodeError::Kind(kind)),
        };
        reader.finish(message)
    }
}

impl fmt::Display for PacificaMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let without = |supports: &Option<Moment>| match supports {
            Some(_) => "",
            None => " without support",
        };
        match self {
            Self::Prepare { preceding, entries } if entries.is_empty() => {
                write!(f, "commit {preceding}")
            }
            Self::Prepare { preceding, entries } => {
                let lsns: Vec<_> = entries.iter().map(|entry| entry.lsn.to_string()).collect();
                write!(f, "prepare [{}] {preceding}", lsns.join(" "))
            }
            Self::Prepared { epoch, upto, supports, .. } => {
                write!(f, "prepared {upto} e{epoch}{}", without(supports))
            }
            Self::Beacon(Beacon { epoch, committed, .. }) => {
                write!(f, "beacon committed={committed} e{epoch}")
            }
            Self::BeaconAck { epoch, supports, .. } => {
                write!(f, "beacon ack e{epoch}{}", without(supports))
            }
            Self::ReportPosition { epoch, position, incarnation } => {
                let Position { committed, last, is_learner } = position;
                let candidate = if *is_learner { " candidate" } else { "" };
                write!(
                    f,
                    "report position committed={committed} last={last}{candidate} {incarnation} e{epoch}"
                )
            }
            Self::RejectStaleEpoch { epoch } => write!(f, "reject stale epoch e{epoch}"),
            Self::StepDown { epoch } => write!(f, "step down e{epoch}"),
            Self::Snapshot { epoch } => write!(f, "snapshot e{epoch}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use trireme_fuzz::{Fuzz, Verdict};
    use trireme_types::EntryKind;

    use super::*;

    fn messages() -> Vec<PacificaMessage> {
        let (epoch, sent) = (3, Moment::after_start(Duration::from_micros(17)));
        let (previous, committed) = (Lsn::new(2, 4), Lsn::new(2, 3));
        let current_at = Some(sent);
        let preceding = Preceding { epoch, previous, committed, sent, current_at };
        let entry = |seq| Entry {
            lsn: Lsn::new(3, seq),
            kind: EntryKind::Commands,
            payload: Bytes::from_static(b"payload"),
        };
        let position = Position { committed, last: previous, is_learner: false };
        let incarnation = Incarnation(u64::MAX - 1);
        vec![
            PacificaMessage::Prepare { preceding, entries: vec![entry(5), entry(6)] },
            PacificaMessage::Prepare { preceding, entries: vec![] },
            PacificaMessage::Prepared { epoch, upto: previous, supports: Some(sent), incarnation },
            PacificaMessage::Prepared { epoch, upto: previous, supports: None, incarnation },
            PacificaMessage::Beacon(Beacon { epoch, committed, sent, current_at: None }),
            PacificaMessage::BeaconAck { epoch, supports: Some(sent), incarnation },
            PacificaMessage::ReportPosition { epoch, position, incarnation },
            PacificaMessage::RejectStaleEpoch { epoch },
            PacificaMessage::StepDown { epoch },
            PacificaMessage::Snapshot { epoch },
        ]
    }

    #[test]
    fn every_message_reads_back_and_no_part_of_it_is_taken_for_another() {
        for message in messages() {
            let bytes = message.encode();
            assert_eq!(PacificaMessage::decode(bytes.clone()), Ok(message.clone()));
            for len in 0..bytes.len() {
                let cut = PacificaMessage::decode(bytes.slice(..len));
                let is_shorter = matches!(&cut, Ok(PacificaMessage::Prepare { .. }));
                assert!(cut.is_err() || is_shorter, "{message} cut to {len} bytes: {cut:?}");
            }
        }
    }

    #[test]
    fn fuzz_pacifica_message() {
        let valid = messages().into_iter().map(|message| message.encode());
        Fuzz::new("fuzz_pacifica_message", valid).run(|bytes| {
            let decoded = PacificaMessage::decode(Bytes::copy_from_slice(bytes));
            if let Ok(message) = &decoded {
                assert_eq!(PacificaMessage::decode(message.encode()).as_ref(), Ok(message));
            }
            Verdict::from(&decoded)
        });
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ignored = PacificaMessage::decode(bytes.into());
        }
    }
}
