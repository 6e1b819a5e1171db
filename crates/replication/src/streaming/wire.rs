//! The bytes of addresses, entries and what precedes them, in the messages between replicas.
//!
//! Numbers are big-endian. An entry is its address, its kind, the length of its payload and the
//! payload. Nothing that comes in is trusted: what cannot be read is an error, never a panic.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use trireme_types::{Entry, EntryKind, Incarnation, Lsn, NodeId};

use super::{Beacon, Position, Preceding};
use crate::core::Moment;

/// Bytes that are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It ends before it says all that its kind says.
    #[error("the message ends too early")]
    Short,
    /// Its kind is unknown.
    #[error("no message has the kind {0}")]
    Kind(u8),
    /// An entry's kind is unknown.
    #[error("no entry has the kind {0}")]
    EntryKind(u8),
    /// Its entries do not follow one another.
    #[error("entry {found} does not follow {previous}")]
    Hole {
        /// The entry before.
        previous: Lsn,
        /// The entry that does not follow it.
        found: Lsn,
    },
    /// It goes on behind its end.
    #[error("{0} bytes follow the message")]
    TrailingBytes(usize),
}

/// Writes one message.
#[derive(Debug)]
pub(crate) struct Writer(BytesMut);

impl Writer {
    /// Begins a message of this kind.
    pub(crate) fn new(kind: u8) -> Self {
        let mut bytes = BytesMut::with_capacity(64);
        bytes.put_u8(kind);
        Self(bytes)
    }

    pub(crate) fn incarnation(self, incarnation: Incarnation) -> Self {
        self.number(incarnation.0)
    }

    pub(crate) fn number(mut self, number: u64) -> Self {
        self.0.put_u64(number);
        self
    }

    pub(crate) fn byte(mut self, byte: u8) -> Self {
        self.0.put_u8(byte);
        self
    }

    pub(crate) fn flag(mut self, flag: bool) -> Self {
        self.0.put_u8(u8::from(flag));
        self
    }

    pub(crate) fn lsn(self, lsn: Lsn) -> Self {
        self.number(lsn.epoch).number(lsn.seq)
    }

    pub(crate) fn moment(self, moment: Moment) -> Self {
        let micros = moment.since_start().as_micros();
        self.number(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    /// Writes a moment, such as that of a message that is acknowledged with support, or that there
    /// is none.
    pub(crate) fn supports(self, supports: Option<Moment>) -> Self {
        self.flag(supports.is_some()).moment(supports.unwrap_or_default())
    }

    /// Writes a node, or that there is none, as 0, which is no node.
    pub(crate) fn node(self, node: Option<NodeId>) -> Self {
        self.number(node.map_or(0, |node| node.0))
    }

    pub(crate) fn preceding(self, preceding: &Preceding) -> Self {
        let Preceding { epoch, previous, committed, sent, current_at } = *preceding;
        self.number(epoch).lsn(previous).lsn(committed).moment(sent).supports(current_at)
    }

    pub(crate) fn beacon(self, beacon: &Beacon) -> Self {
        let Beacon { epoch, committed, sent, current_at } = *beacon;
        self.number(epoch).lsn(committed).moment(sent).supports(current_at)
    }

    pub(crate) fn position(self, position: &Position) -> Self {
        let Position { committed, last, is_learner } = *position;
        self.lsn(committed).lsn(last).flag(is_learner)
    }

    /// Writes entries, which end the message.
    pub(crate) fn entries(mut self, entries: &[Entry]) -> Bytes {
        let bytes: usize = entries.iter().map(|entry| entry.payload.len() + 21).sum();
        self.0.reserve(bytes);
        for Entry { lsn, kind, payload } in entries {
            self = self.lsn(*lsn);
            self.0.put_u8(kind_number(*kind));
            self.0.put_u32(u32::try_from(payload.len()).expect("a log bounds its entries"));
            self.0.put_slice(payload);
        }
        self.0.freeze()
    }

    pub(crate) fn finish(self) -> Bytes {
        self.0.freeze()
    }
}

/// Reads one message.
#[derive(Debug)]
pub(crate) struct Reader(Bytes);

impl Reader {
    pub(crate) const fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, DecodeError> {
        self.0.try_get_u8().map_err(|_| DecodeError::Short)
    }

    pub(crate) fn number(&mut self) -> Result<u64, DecodeError> {
        self.0.try_get_u64().map_err(|_| DecodeError::Short)
    }

    pub(crate) fn incarnation(&mut self) -> Result<Incarnation, DecodeError> {
        Ok(Incarnation(self.number()?))
    }

    pub(crate) fn flag(&mut self) -> Result<bool, DecodeError> {
        Ok(self.byte()? != 0)
    }

    pub(crate) fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        Ok(Lsn::new(self.number()?, self.number()?))
    }

    pub(crate) fn moment(&mut self) -> Result<Moment, DecodeError> {
        Ok(Moment::after_start(Duration::from_micros(self.number()?)))
    }

    pub(crate) fn supports(&mut self) -> Result<Option<Moment>, DecodeError> {
        let supports = self.flag()?;
        let sent = self.moment()?;
        Ok(supports.then_some(sent))
    }

    pub(crate) fn node(&mut self) -> Result<Option<NodeId>, DecodeError> {
        Ok(Some(self.number()?).filter(|&id| id != 0).map(NodeId))
    }

    pub(crate) fn preceding(&mut self) -> Result<Preceding, DecodeError> {
        Ok(Preceding {
            epoch: self.number()?,
            previous: self.lsn()?,
            committed: self.lsn()?,
            sent: self.moment()?,
            current_at: self.supports()?,
        })
    }

    pub(crate) fn beacon(&mut self) -> Result<Beacon, DecodeError> {
        Ok(Beacon {
            epoch: self.number()?,
            committed: self.lsn()?,
            sent: self.moment()?,
            current_at: self.supports()?,
        })
    }

    pub(crate) fn position(&mut self) -> Result<Position, DecodeError> {
        Ok(Position { committed: self.lsn()?, last: self.lsn()?, is_learner: self.flag()? })
    }

    /// Reads entries until the message's end: each of the next sequence, behind `previous`.
    pub(crate) fn entries(mut self, mut previous: Lsn) -> Result<Vec<Entry>, DecodeError> {
        let mut entries = Vec::new();
        while self.0.has_remaining() {
            let lsn = self.lsn()?;
            if previous.seq.checked_add(1) != Some(lsn.seq) {
                return Err(DecodeError::Hole { previous, found: lsn });
            }
            let kind = match self.byte()? {
                1 => EntryKind::Commands,
                2 => EntryKind::NoOp,
                3 => EntryKind::Protocol,
                kind => return Err(DecodeError::EntryKind(kind)),
            };
            let len = self.0.try_get_u32().map_err(|_| DecodeError::Short)? as usize;
            if len > self.0.remaining() {
                return Err(DecodeError::Short);
            }
            entries.push(Entry { lsn, kind, payload: self.0.split_to(len) });
            previous = lsn;
        }
        Ok(entries)
    }

    /// Checks that the message ends here.
    pub(crate) fn finish<T>(self, message: T) -> Result<T, DecodeError> {
        match self.0.remaining() {
            0 => Ok(message),
            more => Err(DecodeError::TrailingBytes(more)),
        }
    }
}

const fn kind_number(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::Commands => 1,
        EntryKind::NoOp => 2,
        EntryKind::Protocol => 3,
    }
}

/// What a replica keeps on disk beside its log: the newest epoch that it promised itself to, whether
/// it is a learner, and which incarnation it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HardState {
    /// It accepts nothing from a leader of an older epoch (S2, P5).
    pub(crate) promised: u64,
    /// It has lost its data, or never was a member, and has not caught up since (S14).
    pub(crate) is_learner: bool,
    /// Which incarnation of the replica has this disk, where the protocol asks for it.
    pub(crate) incarnation: Option<Incarnation>,
}

/// The format of a hard state, which is its first byte, without an incarnation.
const HARD_STATE_FORMAT: u8 = 1;

/// The format of a hard state with an incarnation at its end.
const HARD_STATE_WITH_INCARNATION: u8 = 2;

impl HardState {
    pub(crate) fn encode(self) -> Bytes {
        let format = match self.incarnation {
            None => HARD_STATE_FORMAT,
            Some(_) => HARD_STATE_WITH_INCARNATION,
        };
        let writer = Writer::new(format).number(self.promised).flag(self.is_learner);
        match self.incarnation {
            None => writer.finish(),
            Some(incarnation) => writer.number(incarnation.0).finish(),
        }
    }

    /// Reads what `encode` wrote.
    pub(crate) fn decode(bytes: Bytes) -> Result<Self, String> {
        let mut reader = Reader::new(bytes);
        let format = reader.byte().map_err(|_| "the hard state is empty".to_owned())?;
        let has_incarnation = format == HARD_STATE_WITH_INCARNATION;
        if format != HARD_STATE_FORMAT && !has_incarnation {
            let reads = HARD_STATE_WITH_INCARNATION;
            return Err(format!(
                "the hard state has format {format}; this build reads up to {reads}"
            ));
        }
        let read = |reader: &mut Reader| {
            let (promised, is_learner) = (reader.number()?, reader.flag()?);
            let number = has_incarnation.then(|| reader.number()).transpose()?;
            let incarnation = number.map(Incarnation);
            Ok::<_, DecodeError>(Self { promised, is_learner, incarnation })
        };
        let state = read(&mut reader).and_then(|state| reader.finish(state));
        state.map_err(|error| format!("the hard state cannot be read: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use trireme_fuzz::{Fuzz, Verdict};

    use super::*;

    #[test]
    fn a_hard_state_reads_back_and_others_are_refused() {
        for incarnation in [None, Some(Incarnation(9))] {
            let state = HardState { promised: 7, is_learner: true, incarnation };
            let bytes = state.encode();
            assert_eq!(HardState::decode(bytes.clone()), Ok(state));
            for len in 0..bytes.len() {
                assert!(HardState::decode(bytes.slice(..len)).is_err(), "cut to {len} bytes");
            }
            let longer = Bytes::from([&bytes[..], b"x"].concat());
            assert!(HardState::decode(longer).unwrap_err().contains("1 bytes follow"));
            let mut future = bytes.to_vec();
            future[0] = HARD_STATE_WITH_INCARNATION + 1;
            assert!(HardState::decode(future.into()).unwrap_err().contains("format 3"));
        }
    }

    #[test]
    fn the_epoch_that_was_promised_is_found_in_a_hard_state() {
        let state = HardState { promised: 7, is_learner: false, incarnation: None };
        assert_eq!(super::super::promised_epoch(state.encode()), Some(7));
        assert_eq!(super::super::promised_epoch(Bytes::from_static(b"x")), None);
    }

    /// What 0.1.0 wrote, byte by byte, and what is written still where no incarnation is asked for.
    #[test]
    fn a_hard_state_without_an_incarnation_has_its_old_bytes() {
        let bytes = Bytes::from_static(&[1, 0, 0, 0, 0, 0, 0, 0, 7, 1]);
        let state = HardState { promised: 7, is_learner: true, incarnation: None };
        assert_eq!((HardState::decode(bytes.clone()), state.encode()), (Ok(state), bytes));
    }

    #[test]
    fn fuzz_hard_state() {
        let state = |incarnation| HardState { promised: 7, is_learner: true, incarnation };
        let valid = [None, Some(Incarnation(9))].map(|incarnation| state(incarnation).encode());
        Fuzz::new("fuzz_hard_state", valid).run(|bytes| {
            let decoded = HardState::decode(Bytes::copy_from_slice(bytes));
            if let Ok(state) = &decoded {
                assert_eq!(HardState::decode(state.encode()).as_ref(), Ok(state));
            }
            Verdict::from(&decoded)
        });
    }

    #[test]
    fn entries_with_a_hole_are_refused() {
        let entry = |seq| Entry {
            lsn: Lsn::new(1, seq),
            kind: EntryKind::NoOp,
            payload: Bytes::from_static(b"x"),
        };
        let read = |entries: &[Entry]| {
            let mut reader = Reader::new(Writer::new(9).entries(entries));
            reader.byte().expect("a kind was written");
            reader.entries(Lsn::new(1, 4))
        };
        assert_eq!(read(&[entry(5), entry(6)]), Ok(vec![entry(5), entry(6)]));
        assert!(matches!(read(&[entry(6)]), Err(DecodeError::Hole { .. })));
        assert!(matches!(read(&[entry(5), entry(7)]), Err(DecodeError::Hole { .. })));
    }
}
