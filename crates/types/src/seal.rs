//! The last entry of a cohort, which names its successors.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limits::{KEY_BYTES_MAX, SUCCESSORS_MAX};
use crate::{BatchDecodeError, CohortId, KeyRange, Lsn, NodeId, Protocol};

/// The first byte of an encoded seal. Formats of [`crate::CommandBatch`] lie below.
const FORMAT: u8 = 128;

/// The first byte of an encoded seal that names a merge.
const FORMAT_WITH_MERGE: u8 = 129;

/// What ends a cohort. It is an entry of the cohort's log like any other; once it is applied, nothing
/// behind it is, and the successors go on from exactly that state (RANGE-1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The successors, in the order of their ranges, which together are the cohort's.
    pub successors: Vec<Successor>,
    /// What is to go on in their place from this cohort and its neighbour, if that ends with the same wish
    /// (RANGE-20).
    pub merge: Option<Box<Merge>>,
}

/// The wish that two neighbours go on as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Merge {
    /// The neighbour.
    pub with: CohortId,
    /// What goes on from both.
    pub successor: Successor,
}

/// A cohort that goes on from exactly the state that another ended with. It gets its id from the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Successor {
    /// The keys that it serves.
    pub range: KeyRange,
    /// How it replicates.
    pub protocol: Protocol,
    /// The nodes of its replicas; the first is to lead at first.
    pub replicas: Vec<NodeId>,
    /// How many replicas it should have.
    pub replicas_wanted: usize,
}

/// What a log entry of kind [`crate::EntryKind::Commands`] has as its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Commands.
    Commands(crate::CommandBatch),
    /// The cohort's end.
    Seal(Seal),
}

impl Seal {
    /// Returns a seal of a cohort that goes on by itself.
    pub const fn new(successors: Vec<Successor>) -> Self {
        Self { successors, merge: None }
    }

    /// Returns the bytes that stand for the seal in a log entry: a format byte, then postcard's
    /// encoding.
    pub fn encode(&self) -> Bytes {
        let bytes = match &self.merge {
            None => postcard::to_extend(&self.successors, vec![FORMAT]),
            Some(merge) => postcard::to_extend(&(&self.successors, merge), vec![FORMAT_WITH_MERGE]),
        };
        let bytes =
            bytes.expect("a seal holds nothing that postcard cannot write, and a Vec always grows");
        Bytes::from(bytes)
    }

    /// Reads what [`Seal::encode`] wrote, and refuses everything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, BatchDecodeError> {
        let (&format, rest) = bytes.split_first().ok_or(BatchDecodeError::Empty)?;
        let (seal, rest) = match format {
            FORMAT => {
                let (successors, rest) = postcard::take_from_bytes(rest)?;
                (Self::new(successors), rest)
            }
            FORMAT_WITH_MERGE => {
                let ((successors, merge), rest) = postcard::take_from_bytes(rest)?;
                (Self { successors, merge: Some(Box::new(merge)) }, rest)
            }
            _ => return Err(BatchDecodeError::Format(format)),
        };
        if !rest.is_empty() {
            return Err(BatchDecodeError::TrailingBytes(rest.len()));
        }
        let ends =
            |range: &KeyRange| range.start.len().max(range.end.as_ref().map_or(0, Bytes::len));
        if seal.successors.len() > SUCCESSORS_MAX {
            return Err(BatchDecodeError::PastLimit("successors"));
        }
        let merged = seal.merge.iter().map(|merge| &merge.successor);
        if seal.successors.iter().chain(merged).any(|it| ends(&it.range) > KEY_BYTES_MAX) {
            return Err(BatchDecodeError::PastLimit("key bytes"));
        }
        Ok(seal)
    }
}

impl Payload {
    /// Reads a payload, whichever it is, also one of 0.1.0.
    pub fn decode(bytes: &[u8]) -> Result<Self, BatchDecodeError> {
        match bytes.first() {
            Some(&(FORMAT | FORMAT_WITH_MERGE)) => Seal::decode(bytes).map(Self::Seal),
            _ => crate::CommandBatch::decode(bytes).map(Self::Commands),
        }
    }
}

/// Where a cohort comes from that another one's seal named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The cohort that ended; of two that became one, that of the lower keys.
    pub cohort: CohortId,
    /// Its seal.
    pub seal: Lsn,
    /// Whether the successor needs nothing of what ended any more (RANGE-9).
    #[serde(default)]
    pub is_settled: bool,
    /// The other one, of two that became one (RANGE-20).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<Upper>,
}

/// Of two cohorts that became one, that of the upper keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upper {
    /// The cohort.
    pub cohort: CohortId,
    /// Its seal.
    pub seal: Lsn,
    /// The first key that it served.
    pub start: Bytes,
}

impl Origin {
    /// Returns the entry behind which the successor's log begins. It is of an epoch below every one of
    /// the successor's own, and no log that holds nothing ends there (RANGE-6).
    pub fn base(&self) -> Lsn {
        let upper = self.upper.as_ref().map_or(0, |upper| upper.seal.seq);
        Lsn { epoch: 0, seq: self.seal.seq.max(upper) }
    }

    /// Returns the cohorts that ended and their seals, in key order.
    pub fn seals(&self) -> impl Iterator<Item = (CohortId, Lsn)> {
        let upper = self.upper.as_ref().map(|upper| (upper.cohort, upper.seal));
        std::iter::once((self.cohort, self.seal)).chain(upper)
    }

    /// Returns true if `cohort` is one of those that ended.
    pub fn is_from(&self, cohort: CohortId) -> bool {
        self.seals().any(|(ended, _)| ended == cohort)
    }

    /// Returns the part that `cohort`, one of those that ended, served of what the one that goes on does.
    pub fn part(&self, cohort: CohortId, whole: &KeyRange) -> KeyRange {
        match &self.upper {
            Some(upper) if upper.cohort == cohort => {
                KeyRange { start: upper.start.clone(), ..whole.clone() }
            }
            Some(upper) => KeyRange { end: Some(upper.start.clone()), ..whole.clone() },
            None => whole.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::CommandBatch;

    fn seal() -> Seal {
        let successor = |start: &'static str, end: Option<&'static str>| Successor {
            range: KeyRange::new(start, end),
            protocol: Protocol::Raft,
            replicas: vec![NodeId(2), NodeId(1)],
            replicas_wanted: 3,
        };
        Seal::new(vec![successor("a", Some("m")), successor("m", None)])
    }

    fn seal_with_merge() -> Seal {
        let merge = Merge { with: CohortId(8), successor: seal().successors[1].clone() };
        Seal { merge: Some(Box::new(merge)), ..seal() }
    }

    #[test]
    fn a_seal_reads_back_as_it_was_written() {
        for seal in [seal(), seal_with_merge()] {
            assert_eq!(Seal::decode(&seal.encode()), Ok(seal.clone()));
            assert_eq!(Payload::decode(&seal.encode()), Ok(Payload::Seal(seal)));
        }
        let batch = CommandBatch { clock: 7, ..CommandBatch::default() };
        assert_eq!(Payload::decode(&batch.encode()), Ok(Payload::Commands(batch)));
    }

    #[test]
    fn cut_lengthened_and_oversized_seals_are_refused() {
        for whole in [seal().encode(), seal_with_merge().encode()] {
            for len in 0..whole.len() {
                assert!(Payload::decode(&whole[..len]).is_err(), "cut to {len} bytes");
            }
            let longer = [&whole[..], b"x"].concat();
            assert_eq!(Payload::decode(&longer), Err(BatchDecodeError::TrailingBytes(1)));
        }
        let mut wide = seal();
        wide.successors[1].range.start = Bytes::from(vec![0; KEY_BYTES_MAX + 1]);
        let refused = BatchDecodeError::PastLimit("key bytes");
        assert_eq!(Seal::decode(&wide.encode()), Err(refused.clone()));
        let mut wide = seal_with_merge();
        wide.merge.as_mut().unwrap().successor.range.end =
            Some(Bytes::from(vec![0; KEY_BYTES_MAX + 1]));
        assert_eq!(Seal::decode(&wide.encode()), Err(refused));
        let many = Seal::new(vec![seal().successors[0].clone(); SUCCESSORS_MAX + 1]);
        let refused = BatchDecodeError::PastLimit("successors");
        assert_eq!(Seal::decode(&many.encode()), Err(refused));
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ignored = Payload::decode(&[&[FORMAT][..], &bytes].concat());
            let _ignored = Payload::decode(&[&[FORMAT_WITH_MERGE][..], &bytes].concat());
        }
    }
}
