//! How rows of all cohorts lie in one keyspace.
//!
//! ```text
//! cohort: u64 | generation: u32 | kind: u8 | the rest, by kind        (integers big-endian)
//! ```
//!
//! Generation 0 holds only the cohort's meta row, which names the generation that is in force.
//! Every other generation belongs to a snapshot that was installed, is being installed or was
//! replaced by a later one.
//!
//! Rows need not lie under their own cohort: a successor has its rows where the cohorts that ended had
//! them, until it installs a snapshot. Its meta row says where, and which of them are
//! its own ([`Rows`]).

use bytes::Bytes;
use trireme_types::{ClientId, CohortId, KeyRange, Lsn, Seal, Version};

use crate::table::rows::Rows;
use crate::table::{Span, TableError};

/// A cohort's meta row, in generation 0.
pub(crate) const KIND_META: u8 = 1;
/// The newest protocol entry.
pub(crate) const KIND_PROTOCOL: u8 = 2;
/// One client's session.
pub(crate) const KIND_SESSION: u8 = 3;
/// One user row.
pub(crate) const KIND_ROW: u8 = 4;
/// What ended the cohort.
pub(crate) const KIND_SEAL: u8 = 5;

/// The length of a place at the beginning of a key.
pub(crate) const PLACE_BYTES: usize = 12;

/// The length of everything before the part of a key that depends on its kind.
pub(crate) const PREFIX_BYTES: usize = 13;

/// The format of rows, meta rows, protocol rows and sessions; the first byte of each.
pub(crate) const FORMAT: u8 = 1;

/// The bytes of a row's value before the user's value: format and version.
pub(crate) const ROW_HEADER_BYTES: usize = 9;

/// The format of meta rows of cohorts whose rows lie under their own number. In format 1, that of
/// 0.1.0, there is no clock.
const META_FORMAT: u8 = 2;

/// The format of meta rows of cohorts whose rows lie under another one's number.
const META_FORMAT_ELSEWHERE: u8 = 3;

/// The format of meta rows of cohorts whose rows lie under the numbers of several others.
const META_FORMAT_IN_PARTS: u8 = 4;

const META_BYTES: usize = 37;
/// The header of what is kept beside the rows with its place in the log: the protocol row, the seal.
const LSN_HEADER_BYTES: usize = 17;

/// The part of the keyspace that one generation of one cohort fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) cohort: CohortId,
    pub(crate) generation: u32,
}

impl Place {
    /// Returns what every key of this kind begins with.
    pub(crate) fn prefix(self, kind: u8) -> [u8; PREFIX_BYTES] {
        let mut prefix = [0; PREFIX_BYTES];
        prefix[..8].copy_from_slice(&self.cohort.0.to_be_bytes());
        prefix[8..12].copy_from_slice(&self.generation.to_be_bytes());
        prefix[12] = kind;
        prefix
    }

    /// Returns the engine key of a user key.
    pub(crate) fn row_key(self, key: &[u8]) -> Vec<u8> {
        [&self.prefix(KIND_ROW)[..], key].concat()
    }

    /// Returns the engine key of a client's session.
    pub(crate) fn session_key(self, client: ClientId) -> Vec<u8> {
        [&self.prefix(KIND_SESSION)[..], &client.0.to_be_bytes()].concat()
    }

    /// Returns the span of the rows whose user keys lie in `range`.
    pub(crate) fn rows(self, range: &KeyRange) -> Span {
        let end = match &range.end {
            Some(end) => self.row_key(end),
            None => self.prefix(KIND_ROW + 1).to_vec(),
        };
        Span::new(self.row_key(&range.start), end)
    }

    /// Returns the span of everything of one kind.
    pub(crate) fn kind(self, kind: u8) -> Span {
        Span::new(self.prefix(kind).to_vec(), self.prefix(kind + 1).to_vec())
    }

    /// Returns the span of the whole generation.
    pub(crate) fn all(self) -> Span {
        let end = match self.generation.checked_add(1) {
            Some(generation) => Self { generation, ..self }.prefix(0).to_vec(),
            None => cohort_span(self.cohort).end,
        };
        Span::new(self.prefix(0).to_vec(), end)
    }
}

/// Returns the span of everything that a cohort has, its meta row included.
pub(crate) fn cohort_span(cohort: CohortId) -> Span {
    let end = match cohort.0.checked_add(1) {
        Some(next) => next.to_be_bytes().to_vec(),
        None => END_OF_KEYS.to_vec(),
    };
    Span::new(cohort.0.to_be_bytes().to_vec(), end)
}

/// A key above every key of every cohort.
pub(crate) const END_OF_KEYS: [u8; PREFIX_BYTES + 1] = [0xff; PREFIX_BYTES + 1];

/// Returns the engine key of a cohort's meta row.
pub(crate) fn meta_key(cohort: CohortId) -> [u8; PREFIX_BYTES] {
    Place { cohort, generation: 0 }.prefix(KIND_META)
}

/// Reads the place that an engine key begins with; `None` if it is too short to have one.
pub(crate) fn place_of(key: &[u8]) -> Option<Place> {
    let (cohort, rest) = key.split_first_chunk::<8>()?;
    let (generation, _) = rest.split_first_chunk::<4>()?;
    Some(Place {
        cohort: CohortId(u64::from_be_bytes(*cohort)),
        generation: u32::from_be_bytes(*generation),
    })
}

/// A cohort's meta row: where its table stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    /// The generation in force; at least 1.
    pub(crate) generation: u32,
    /// The last entry that was applied.
    pub(crate) applied: Lsn,
    /// The version of the last write.
    pub(crate) writes: u64,
    /// The cohort's clock.
    pub(crate) clock: u64,
    /// Where its rows lie.
    pub(crate) rows: Rows,
}

impl Meta {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; META_BYTES];
        bytes[1..5].copy_from_slice(&self.generation.to_be_bytes());
        bytes[5..13].copy_from_slice(&self.applied.epoch.to_be_bytes());
        bytes[13..21].copy_from_slice(&self.applied.seq.to_be_bytes());
        bytes[21..29].copy_from_slice(&self.writes.to_be_bytes());
        bytes[29..].copy_from_slice(&self.clock.to_be_bytes());
        bytes[0] = match self.rows.parts().len() {
            0 => META_FORMAT,
            1 => META_FORMAT_ELSEWHERE,
            _ => META_FORMAT_IN_PARTS,
        };
        self.rows.encode(bytes)
    }

    pub(crate) fn decode(cohort: CohortId, bytes: &[u8]) -> Result<Self, TableError> {
        let what = "the meta row";
        let is_elsewhere =
            matches!(bytes.first(), Some(&(META_FORMAT_ELSEWHERE | META_FORMAT_IN_PARTS)));
        let has_clock = is_elsewhere || bytes.first() == Some(&META_FORMAT);
        let rest = match bytes {
            [META_FORMAT | META_FORMAT_ELSEWHERE | META_FORMAT_IN_PARTS, rest @ ..] => rest,
            _ => check_format(cohort, what, bytes)?,
        };
        let (generation, rest) =
            rest.split_first_chunk().ok_or_else(|| cut(cohort, what, bytes))?;
        let (epoch, rest) = rest.split_first_chunk().ok_or_else(|| cut(cohort, what, bytes))?;
        let (seq, rest) = rest.split_first_chunk().ok_or_else(|| cut(cohort, what, bytes))?;
        let (writes, rest) = rest.split_first_chunk().ok_or_else(|| cut(cohort, what, bytes))?;
        let (clock, rest) = match rest {
            [] if !has_clock => (0, rest),
            rest if has_clock => {
                let (clock, rest) =
                    rest.split_first_chunk().ok_or_else(|| cut(cohort, what, bytes))?;
                (u64::from_be_bytes(*clock), rest)
            }
            _ => return Err(cut(cohort, what, bytes)),
        };
        let rows = match rest {
            [] if !is_elsewhere => Rows::Own,
            rest if is_elsewhere => {
                Rows::decode(cohort, what, rest, bytes[0] == META_FORMAT_IN_PARTS)?
            }
            _ => return Err(cut(cohort, what, bytes)),
        };
        let generation = u32::from_be_bytes(*generation);
        if generation == 0 {
            return Err(corrupt(cohort, what, "it names generation 0".to_owned()));
        }
        let applied = Lsn::new(u64::from_be_bytes(*epoch), u64::from_be_bytes(*seq));
        Ok(Self { generation, applied, writes: u64::from_be_bytes(*writes), clock, rows })
    }
}

/// Returns what a row's value begins with.
pub(crate) fn row_header(version: Version) -> [u8; ROW_HEADER_BYTES] {
    let mut header = [0; ROW_HEADER_BYTES];
    header[0] = FORMAT;
    header[1..].copy_from_slice(&version.0.to_be_bytes());
    header
}

/// Reads the version of a row's value.
pub(crate) fn row_version(cohort: CohortId, bytes: &[u8]) -> Result<Version, TableError> {
    let what = "a row";
    let rest = check_format(cohort, what, bytes)?;
    let (version, _) = rest.split_first_chunk().ok_or_else(|| cut(cohort, what, bytes))?;
    Ok(Version(u64::from_be_bytes(*version)))
}

/// Reads a row's version and value, without copying the value.
pub(crate) fn decode_row(cohort: CohortId, bytes: &Bytes) -> Result<(Version, Bytes), TableError> {
    let version = row_version(cohort, bytes)?;
    Ok((version, bytes.slice(ROW_HEADER_BYTES..)))
}

/// Returns what the value of a row begins with that stands for an entry of the log.
pub(crate) fn lsn_header(lsn: Lsn) -> [u8; LSN_HEADER_BYTES] {
    let mut header = [0; LSN_HEADER_BYTES];
    header[0] = FORMAT;
    header[1..9].copy_from_slice(&lsn.epoch.to_be_bytes());
    header[9..].copy_from_slice(&lsn.seq.to_be_bytes());
    header
}

/// Reads the protocol row.
pub(crate) fn decode_protocol(cohort: CohortId, bytes: &Bytes) -> Result<(Lsn, Bytes), TableError> {
    decode_with_lsn(cohort, "the protocol row", bytes)
}

/// Reads the row of what ended the cohort.
pub(crate) fn decode_seal(cohort: CohortId, bytes: &Bytes) -> Result<(Lsn, Seal), TableError> {
    let (lsn, bytes) = decode_with_lsn(cohort, "the seal", bytes)?;
    let seal = Seal::decode(&bytes);
    Ok((lsn, seal.map_err(|error| corrupt(cohort, "the seal", error.to_string()))?))
}

fn decode_with_lsn(
    cohort: CohortId,
    what: &'static str,
    bytes: &Bytes,
) -> Result<(Lsn, Bytes), TableError> {
    let rest = check_format(cohort, what, bytes)?;
    let (epoch, rest) = rest.split_first_chunk().ok_or_else(|| cut(cohort, what, bytes))?;
    let (seq, _) = rest.split_first_chunk().ok_or_else(|| cut(cohort, what, bytes))?;
    let lsn = Lsn::new(u64::from_be_bytes(*epoch), u64::from_be_bytes(*seq));
    Ok((lsn, bytes.slice(LSN_HEADER_BYTES..)))
}

/// Returns what follows the format byte, if the format is the one that this build reads.
pub(crate) fn check_format<'a>(
    cohort: CohortId,
    what: &'static str,
    bytes: &'a [u8],
) -> Result<&'a [u8], TableError> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => Ok(rest),
        Some((&found, _)) => {
            Err(TableError::Format { what, found: found.into(), known: FORMAT.into() })
        }
        None => Err(cut(cohort, what, bytes)),
    }
}

/// Returns the error for something on disk that is not what was written there.
pub(crate) fn corrupt(cohort: CohortId, what: &'static str, reason: String) -> TableError {
    TableError::Corrupt { what, cohort, reason }
}

fn cut(cohort: CohortId, what: &'static str, bytes: &[u8]) -> TableError {
    corrupt(cohort, what, format!("it cannot be {} bytes long", bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::rows::Part;

    const COHORT: CohortId = CohortId(7);

    #[test]
    fn spans_hold_their_own_keys_and_no_others() {
        let place = Place { cohort: COHORT, generation: 3 };
        let inside = |span: &Span, key: &[u8]| key >= &span.start[..] && key < &span.end[..];
        let rows = place.rows(&KeyRange::all());
        assert!(inside(&rows, &place.row_key(b"")) && inside(&rows, &place.row_key(&[0xff; 99])));
        assert!(!inside(&rows, &place.session_key(ClientId(u128::MAX))));
        let part = place.rows(&KeyRange::new("b", Some("d")));
        assert!(inside(&part, &place.row_key(b"c")) && !inside(&part, &place.row_key(b"d")));
        assert!(inside(&place.all(), &place.row_key(&[0xff; 99])));
        let next = Place { generation: 4, ..place };
        assert!(!inside(&place.all(), &next.prefix(0)));
        assert!(!inside(&place.all(), &meta_key(COHORT)));
        assert!(inside(&cohort_span(COHORT), &meta_key(COHORT)));
        assert!(inside(&cohort_span(COHORT), &next.row_key(&[0xff; 99])));
        assert!(!inside(&cohort_span(COHORT), &meta_key(CohortId(8))));
        let last = Place { cohort: CohortId(u64::MAX), generation: u32::MAX };
        assert!(inside(&last.all(), &last.row_key(&[0xff; 3])));
    }

    #[test]
    fn meta_rows_read_back_and_damaged_ones_are_refused() {
        let applied = Lsn::new(5, 1 << 40);
        let rows = Rows::Own;
        let meta = Meta { generation: 2, applied, writes: u64::MAX, clock: 1 << 50, rows };
        let part = |cohort, start: &'static str, end: Option<&'static str>| Part {
            place: Place { cohort: CohortId(cohort), generation: 9 },
            range: KeyRange::new(start, end),
        };
        let parted = vec![part(5, "a", Some("m")), part(4, "m", Some("n")), part(5, "n", None)];
        for parts in [vec![part(5, "a", None)], vec![part(5, "a", Some("m"))], parted] {
            let elsewhere = Meta { rows: Rows::elsewhere(parts), ..meta.clone() };
            let bytes = elsewhere.encode();
            assert_eq!(Meta::decode(COHORT, &bytes).unwrap(), elsewhere);
            for len in 0..bytes.len() {
                assert!(Meta::decode(COHORT, &bytes[..len]).is_err(), "cut to {len} bytes");
            }
            assert!(Meta::decode(COHORT, &[&bytes[..], &[0]].concat()).is_err());
        }
        let bytes = meta.encode();
        assert_eq!(Meta::decode(COHORT, &bytes).unwrap(), meta);
        for len in 0..bytes.len() {
            assert!(Meta::decode(COHORT, &bytes[..len]).is_err(), "cut to {len} bytes");
        }
        assert!(Meta::decode(COHORT, &[&bytes[..], &[0]].concat()).is_err());
        let mut future = bytes.clone();
        future[0] = META_FORMAT_IN_PARTS + 1;
        let refused = Meta::decode(COHORT, &future).unwrap_err();
        assert!(matches!(refused, TableError::Format { found: 5, .. }), "{refused}");
        // What 0.1.0 wrote.
        let mut old = bytes[..29].to_vec();
        old[0] = FORMAT;
        assert_eq!(Meta::decode(COHORT, &old).unwrap(), Meta { clock: 0, ..meta });
        assert!(Meta::decode(COHORT, &old[..28]).is_err());
        old.extend_from_slice(&[0; 8]);
        assert!(Meta::decode(COHORT, &old).is_err());
    }

    #[test]
    fn rows_read_back_and_damaged_ones_are_refused() {
        let bytes = Bytes::from([&row_header(Version(9))[..], b"value"].concat());
        let row = decode_row(COHORT, &bytes).unwrap();
        assert_eq!(row, (Version(9), Bytes::from_static(b"value")));
        for len in 0..ROW_HEADER_BYTES {
            assert!(decode_row(COHORT, &bytes.slice(..len)).is_err(), "cut to {len} bytes");
        }
        let lsn = Lsn::new(3, 4);
        let bytes = Bytes::from([&lsn_header(lsn)[..], b"x"].concat());
        assert_eq!(decode_protocol(COHORT, &bytes).unwrap(), (lsn, Bytes::from_static(b"x")));
        assert!(decode_protocol(COHORT, &bytes.slice(..16)).is_err());
    }
}
