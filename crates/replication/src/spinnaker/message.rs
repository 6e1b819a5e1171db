//! What Spinnaker's replicas say to each other, and its bytes.

use std::fmt;

use bytes::Bytes;
use trireme_types::{Entry, Epoch, Lsn, NodeId};

use crate::core::{Message, Moment};
use crate::streaming::wire::{DecodeError, Reader, Writer};
use crate::streaming::{Beacon, Position, Preceding};

/// A message between replicas. `docs/protocols/spinnaker.md` has the table of who sends which, when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpinnakerMessage {
    /// Leader to follower: these entries follow. Without any it is the commit message (§5).
    Propose {
        /// What comes before them.
        preceding: Preceding,
        /// The entries.
        entries: Vec<Entry>,
    },
    /// Follower to leader: my log is yours up to here, on my disk.
    Ack {
        /// The leader's epoch.
        epoch: Epoch,
        /// The newest entry that is the same.
        upto: Lsn,
        /// The time in the message that is acknowledged, if the follower supports the leader.
        supports: Option<Moment>,
    },
    /// Leader to follower: I am here.
    Beacon(Beacon),
    /// Follower to leader: I have heard you, whatever my disk does.
    BeaconAck {
        /// The leader's epoch.
        epoch: Epoch,
        /// The time in the beacon, if the follower supports the leader.
        supports: Option<Moment>,
        /// Whether the follower counts in no majority.
        is_learner: bool,
        /// Whether something waits for the follower's disk: what it does not acknowledge then says
        /// nothing about the way between the two.
        awaits_disk: bool,
    },
    /// Follower to leader: this is where I stand; send what I lack.
    ReportPosition {
        /// The leader's epoch.
        epoch: Epoch,
        /// Where it stands.
        position: Position,
    },
    /// Leader to follower: you count again if your log reaches up to here, since then you have all
    /// that you may ever have acknowledged (S14).
    Readmit {
        /// The leader's epoch.
        epoch: Epoch,
        /// An entry of the leader's log.
        upto: Lsn,
    },
    /// To a leader of the past: I have promised myself to this epoch (S2).
    RejectStaleEpoch {
        /// The epoch.
        epoch: Epoch,
    },
    /// Leader to follower, with a snapshot.
    Snapshot {
        /// The leader's epoch.
        epoch: Epoch,
    },
    /// To all others: I have no leader that I would support.
    SuspectLeader {
        /// The newest epoch of which the sender knows a leader.
        epoch: Epoch,
    },
    /// Leader to followers: I lead no more, and no promise to me holds.
    Resign {
        /// The leader's epoch.
        epoch: Epoch,
        /// The replica that should stand first.
        successor: Option<NodeId>,
    },
}

impl Message for SpinnakerMessage {
    type DecodeError = DecodeError;

    fn encode(&self) -> Bytes {
        match self {
            Self::Propose { preceding, entries } => {
                Writer::new(11).preceding(preceding).entries(entries)
            }
            Self::Ack { epoch, upto, supports } => {
                Writer::new(2).number(*epoch).lsn(*upto).supports(*supports).finish()
            }
            Self::Beacon(beacon) => Writer::new(12).beacon(beacon).finish(),
            Self::BeaconAck { epoch, supports, is_learner, awaits_disk } => {
                let bits = u8::from(*is_learner) | (u8::from(*awaits_disk) << 1);
                Writer::new(4).number(*epoch).byte(bits).supports(*supports).finish()
            }
            Self::ReportPosition { epoch, position } => {
                Writer::new(5).number(*epoch).position(position).finish()
            }
            Self::Readmit { epoch, upto } => Writer::new(6).number(*epoch).lsn(*upto).finish(),
            Self::RejectStaleEpoch { epoch } => Writer::new(7).number(*epoch).finish(),
            Self::Snapshot { epoch } => Writer::new(8).number(*epoch).finish(),
            Self::SuspectLeader { epoch } => Writer::new(9).number(*epoch).finish(),
            Self::Resign { epoch, successor } => {
                Writer::new(10).number(*epoch).node(*successor).finish()
            }
        }
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        // 1 and 3 were what 11 and 12 are, without the moment of the commit point.
        let message = match reader.byte()? {
            11 => {
                let preceding = reader.preceding()?;
                let entries = reader.entries(preceding.previous)?;
                return Ok(Self::Propose { preceding, entries });
            }
            2 => {
                let (epoch, upto) = (reader.number()?, reader.lsn()?);
                Self::Ack { epoch, upto, supports: reader.supports()? }
            }
            12 => Self::Beacon(reader.beacon()?),
            4 => {
                let (epoch, bits) = (reader.number()?, reader.byte()?);
                let (is_learner, awaits_disk) = (bits & 1 != 0, bits & 2 != 0);
                Self::BeaconAck { epoch, is_learner, awaits_disk, supports: reader.supports()? }
            }
            5 => Self::ReportPosition { epoch: reader.number()?, position: reader.position()? },
            6 => Self::Readmit { epoch: reader.number()?, upto: reader.lsn()? },
            7 => Self::RejectStaleEpoch { epoch: reader.number()? },
            8 => Self::Snapshot { epoch: reader.number()? },
            9 => Self::SuspectLeader { epoch: reader.number()? },
            10 => Self::Resign { epoch: reader.number()?, successor: reader.node()? },
            kind => return Err(DecodeError::Kind(kind)),
        };
        reader.finish(message)
    }
}

impl fmt::Display for SpinnakerMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Propose { preceding, entries } if entries.is_empty() => {
                write!(f, "commit {preceding}")
            }
            Self::Propose { preceding, entries } => {
                let lsns: Vec<_> = entries.iter().map(|entry| entry.lsn.to_string()).collect();
                write!(f, "propose [{}] {preceding}", lsns.join(" "))
            }
            Self::Ack { epoch, upto, supports } => {
                write!(f, "ack {upto} e{epoch}{}", without_support(*supports))
            }
            Self::Beacon(Beacon { epoch, committed, .. }) => {
                write!(f, "beacon committed={committed} e{epoch}")
            }
            Self::BeaconAck { epoch, supports, is_learner, awaits_disk } => {
                let learner = if *is_learner { " learner" } else { "" };
                let disk = if *awaits_disk { " awaits disk" } else { "" };
                write!(f, "beacon ack e{epoch}{learner}{disk}{}", without_support(*supports))
            }
            Self::ReportPosition { epoch, position } => {
                let Position { committed, last, is_learner } = position;
                let learner = if *is_learner { " learner" } else { "" };
                write!(f, "report position committed={committed} last={last}{learner} e{epoch}")
            }
            Self::Readmit { epoch, upto } => write!(f, "readmit with {upto} e{epoch}"),
            Self::RejectStaleEpoch { epoch } => write!(f, "reject stale epoch e{epoch}"),
            Self::Snapshot { epoch } => write!(f, "snapshot e{epoch}"),
            Self::SuspectLeader { epoch } => write!(f, "suspect leader e{epoch}"),
            Self::Resign { epoch, successor: Some(successor) } => {
                write!(f, "resign to {successor} e{epoch}")
            }
            Self::Resign { epoch, successor: None } => write!(f, "resign e{epoch}"),
        }
    }
}

const fn without_support(supports: Option<Moment>) -> &'static str {
    if supports.is_some() { "" } else { " without support" }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use trireme_fuzz::{Fuzz, Verdict};
    use trireme_types::EntryKind;

    use super::*;

    fn messages() -> Vec<SpinnakerMessage> {
        let (epoch, sent) = (3, Moment::after_start(Duration::from_micros(17)));
        let (previous, committed) = (Lsn::new(2, 4), Lsn::new(2, 3));
        let current_at = Some(sent);
        let preceding = Preceding { epoch, previous, committed, sent, current_at };
        let entry = |seq| Entry {
            lsn: Lsn::new(3, seq),
            kind: EntryKind::Commands,
            payload: Bytes::from_static(b"payload"),
        };
        let position = Position { committed, last: previous, is_learner: true };
        vec![
            SpinnakerMessage::Propose { preceding, entries: vec![entry(5), entry(6)] },
            SpinnakerMessage::Propose { preceding, entries: vec![] },
            SpinnakerMessage::Ack { epoch, upto: previous, supports: Some(sent) },
            SpinnakerMessage::Ack { epoch, upto: previous, supports: None },
            SpinnakerMessage::Beacon(Beacon { epoch, committed, sent, current_at: None }),
            SpinnakerMessage::BeaconAck {
                epoch,
                supports: Some(sent),
                is_learner: true,
                awaits_disk: true,
            },
            SpinnakerMessage::ReportPosition { epoch, position },
            SpinnakerMessage::Readmit { epoch, upto: previous },
            SpinnakerMessage::RejectStaleEpoch { epoch },
            SpinnakerMessage::Snapshot { epoch },
            SpinnakerMessage::SuspectLeader { epoch },
            SpinnakerMessage::Resign { epoch, successor: Some(NodeId(2)) },
            SpinnakerMessage::Resign { epoch, successor: None },
        ]
    }

    #[test]
    fn every_message_reads_back_and_no_part_of_it_is_taken_for_another() {
        for message in messages() {
            let bytes = message.encode();
            assert_eq!(SpinnakerMessage::decode(bytes.clone()), Ok(message.clone()));
            for len in 0..bytes.len() {
                let cut = SpinnakerMessage::decode(bytes.slice(..len));
                let is_shorter = matches!(&cut, Ok(SpinnakerMessage::Propose { .. }));
                assert!(cut.is_err() || is_shorter, "{message} cut to {len} bytes: {cut:?}");
            }
        }
    }

    #[test]
    fn an_acknowledgement_without_support_says_so() {
        let (epoch, upto) = (3, Lsn::new(2, 4));
        let shown = |supports| SpinnakerMessage::Ack { epoch, upto, supports }.to_string();
        assert_eq!(shown(Some(Moment::START)), "ack 2.4 e3");
        assert_eq!(shown(None), "ack 2.4 e3 without support");
    }

    #[test]
    fn fuzz_spinnaker_message() {
        let valid = messages().into_iter().map(|message| message.encode());
        Fuzz::new("fuzz_spinnaker_message", valid).run(|bytes| {
            let decoded = SpinnakerMessage::decode(Bytes::copy_from_slice(bytes));
            if let Ok(message) = &decoded {
                assert_eq!(SpinnakerMessage::decode(message.encode()).as_ref(), Ok(message));
            }
            Verdict::from(&decoded)
        });
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ignored = SpinnakerMessage::decode(bytes.into());
        }
    }
}
