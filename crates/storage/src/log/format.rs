//! The bytes of a segment: its header, its blocks and their records. `docs/storage-format.md` has
//! the same as tables. All numbers are little-endian.

use bytes::{BufMut, Bytes};
use crc32fast::Hasher;
use trireme_types::{ClusterId, CohortId, EntryKind, Lsn, NodeId};

use super::LogIdentity;
use crate::fs::SECTOR_BYTES;

/// The format that this build writes, and the highest that it reads.
pub(super) const FORMAT: u32 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"TRIRELOG";
const BLOCK_MAGIC: u32 = u32::from_le_bytes(*b"TBLK");

/// Where a segment's first block starts: after the sector that holds its header.
pub(super) const FIRST_BLOCK: u64 = SECTOR_BYTES as u64;

/// The bytes of a block's header; its records follow.
pub(super) const BLOCK_HEADER_BYTES: usize = 48;

/// The bytes of a record before its payload.
pub(super) const RECORD_HEADER_BYTES: usize = 36;

/// The largest body that a reader believes in: far above what any writer makes, and small enough
/// that every position in a block fits into 32 bits.
pub(super) const BLOCK_BODY_MAX: usize = 1 << 30;

/// Returns the bytes that a block with such a body takes in its segment.
pub(super) fn block_bytes(body: usize) -> usize {
    (BLOCK_HEADER_BYTES + body).next_multiple_of(SECTOR_BYTES)
}

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) identity: LogIdentity,
    /// The segment's own number, which is also its file's name.
    pub(super) number: u64,
    /// The file's length in bytes.
    pub(super) len: u64,
    /// The number of the first block in it: every block below it is in an older segment.
    pub(super) first_block: u64,
}

/// Why a sector is no segment header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    /// It does not start as every segment does.
    NotASegment,
    /// Its checksum is wrong.
    Checksum,
    /// It is of a later format.
    Future(u32),
}

impl SegmentHeader {
    /// Returns the sector that says this. The magic, the format and the checksum over the whole
    /// sector keep their places in every later format, so that any build can name the format.
    pub(super) fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut sector = [0; SECTOR_BYTES];
        sector[0..8].copy_from_slice(&SEGMENT_MAGIC);
        sector[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        sector[16..24].copy_from_slice(&self.identity.cluster.0.to_le_bytes());
        sector[24..32].copy_from_slice(&self.identity.node.0.to_le_bytes());
        sector[32..40].copy_from_slice(&self.number.to_le_bytes());
        sector[40..48].copy_from_slice(&self.len.to_le_bytes());
        sector[48..56].copy_from_slice(&self.first_block.to_le_bytes());
        let checksum = crc32fast::hash(&sector);
        sector[12..16].copy_from_slice(&checksum.to_le_bytes());
        sector
    }

    pub(super) fn decode(sector: &[u8; SECTOR_BYTES]) -> Result<Self, HeaderError> {
        if sector[0..8] != SEGMENT_MAGIC {
            return Err(HeaderError::NotASegment);
        }
        let mut unsigned = *sector;
        unsigned[12..16].fill(0);
        if crc32fast::hash(&unsigned) != u32_at(sector, 12) {
            return Err(HeaderError::Checksum);
        }
        let format = u32_at(sector, 8);
        if format != FORMAT {
            return Err(HeaderError::Future(format));
        }
        let cluster = ClusterId(u64_at(sector, 16));
        let node = NodeId(u64_at(sector, 24));
        Ok(Self {
            identity: LogIdentity { cluster, node },
            number: u64_at(sector, 32),
            len: u64_at(sector, 40),
            first_block: u64_at(sector, 48),
        })
    }
}

/// Where a block stands. It goes into the header's checksum, so that a block's bytes are a block at
/// their own place only: not in another log, and not at a place where an application's value that
/// happens to be the copy of a block has come to lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockPlace {
    pub(super) identity: LogIdentity,
    pub(super) segment: u64,
    pub(super) position: u64,
}

/// What a block's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockHeader {
    /// Rises by one from block to block through the whole log.
    pub(super) number: u64,
    /// Every block up to this one was known to be on disk when this one was written.
    pub(super) synced: u64,
    /// How often the log had been opened when the block was written: never lower than in the block
    /// before it.
    pub(super) opening: u64,
    /// The bytes of all records.
    pub(super) body_bytes: u32,
    pub(super) body_checksum: u32,
    pub(super) records: u32,
    /// Whether the log was closed cleanly after everything before this block.
    pub(super) is_end: bool,
}

const FLAG_END: u32 = 1;

impl BlockHeader {
    /// Completes `block`, which holds room for the header and then the body, into whole sectors.
    pub(super) fn seal(mut self, block: &mut Vec<u8>, place: BlockPlace) {
        let body = block.len() - BLOCK_HEADER_BYTES;
        self.body_bytes = u32::try_from(body).expect("the writer keeps a block far below 4 GiB");
        block.resize(block_bytes(body), 0);
        self.body_checksum = crc32fast::hash(&block[BLOCK_HEADER_BYTES..]);
        let flags = if self.is_end { FLAG_END } else { 0 };
        block[0..4].copy_from_slice(&BLOCK_MAGIC.to_le_bytes());
        block[8..16].copy_from_slice(&self.number.to_le_bytes());
        block[16..24].copy_from_slice(&self.synced.to_le_bytes());
        block[24..32].copy_from_slice(&self.opening.to_le_bytes());
        block[32..36].copy_from_slice(&self.body_bytes.to_le_bytes());
        block[36..40].copy_from_slice(&self.body_checksum.to_le_bytes());
        block[40..44].copy_from_slice(&self.records.to_le_bytes());
        block[44..48].copy_from_slice(&flags.to_le_bytes());
        let checksum = header_checksum(&block[8..BLOCK_HEADER_BYTES], place);
        block[4..8].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Returns the header that these bytes start with, if they are one for this place.
    pub(super) fn decode(bytes: &[u8], place: BlockPlace) -> Option<Self> {
        if bytes.len() < BLOCK_HEADER_BYTES || u32_at(bytes, 0) != BLOCK_MAGIC {
            return None;
        }
        if u32_at(bytes, 4) != header_checksum(&bytes[8..BLOCK_HEADER_BYTES], place) {
            return None;
        }
        Some(Self {
            number: u64_at(bytes, 8),
            synced: u64_at(bytes, 16),
            opening: u64_at(bytes, 24),
            body_bytes: u32_at(bytes, 32),
            body_checksum: u32_at(bytes, 36),
            records: u32_at(bytes, 40),
            is_end: u32_at(bytes, 44) & FLAG_END != 0,
        })
    }

    /// Returns the bytes that the block takes in its segment.
    pub(super) fn block_bytes(&self) -> usize {
        block_bytes(self.body_bytes as usize)
    }

    /// Says whether `block`, which has [`Self::block_bytes`], is whole.
    pub(super) fn is_whole(&self, block: &[u8]) -> bool {
        crc32fast::hash(&block[BLOCK_HEADER_BYTES..]) == self.body_checksum
    }
}

fn header_checksum(fields: &[u8], place: BlockPlace) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(fields);
    hasher.update(&place.identity.cluster.0.to_le_bytes());
    hasher.update(&place.identity.node.0.to_le_bytes());
    hasher.update(&place.segment.to_le_bytes());
    hasher.update(&place.position.to_le_bytes());
    hasher.finalize()
}

/// What a cohort's log was, at the place where a segment starts: what older segments hold beyond it
/// is only entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Restatement {
    pub(super) purged: Lsn,
    pub(super) last: u64,
    pub(super) commit_point: Lsn,
    pub(super) hard_state: Option<Bytes>,
}

const RESTATEMENT_BYTES: usize = 25;

impl Restatement {
    /// Returns the bytes of the record that says this.
    pub(super) fn record_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + RESTATEMENT_BYTES + self.hard_state.as_ref().map_or(0, Bytes::len)
    }
}

/// What a record does to its cohort's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RecordBody {
    Entry(EntryKind, Lsn),
    HardState,
    /// The last entry that stays.
    TruncateAfter(Lsn),
    Purge(Lsn),
    CommitPoint(Lsn),
    Forget,
    Restatement(Restatement),
}

/// A record as it lies in a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) cohort: CohortId,
    pub(super) body: RecordBody,
    pub(super) payload: &'a [u8],
}

const KIND_ENTRY: u8 = 1;
const KIND_HARD_STATE: u8 = 2;
const KIND_TRUNCATE_AFTER: u8 = 3;
const KIND_PURGE: u8 = 4;
const KIND_COMMIT_POINT: u8 = 5;
const KIND_FORGET: u8 = 6;
const KIND_RESTATEMENT: u8 = 7;

/// Writes a record behind what `block` holds. The payload of a restatement is made here; other
/// records bring theirs.
pub(super) fn encode_record(block: &mut Vec<u8>, cohort: CohortId, body: &RecordBody, load: &[u8]) {
    let (kind, detail, lsn) = match body {
        RecordBody::Entry(kind, lsn) => (KIND_ENTRY, entry_kind_code(*kind), *lsn),
        RecordBody::HardState => (KIND_HARD_STATE, 0, Lsn::ZERO),
        RecordBody::TruncateAfter(kept) => (KIND_TRUNCATE_AFTER, 0, *kept),
        RecordBody::Purge(upto) => (KIND_PURGE, 0, *upto),
        RecordBody::CommitPoint(point) => (KIND_COMMIT_POINT, 0, *point),
        RecordBody::Forget => (KIND_FORGET, 0, Lsn::ZERO),
        RecordBody::Restatement(state) => (KIND_RESTATEMENT, 0, state.purged),
    };
    let start = block.len();
    block.put_bytes(0, 8);
    block.put_u8(kind);
    block.put_u8(detail);
    block.put_u16_le(0);
    block.put_u64_le(cohort.0);
    block.put_u64_le(lsn.epoch);
    block.put_u64_le(lsn.seq);
    match body {
        RecordBody::Restatement(state) => {
            block.put_u64_le(state.last);
            block.put_u64_le(state.commit_point.epoch);
            block.put_u64_le(state.commit_point.seq);
            block.put_u8(u8::from(state.hard_state.is_some()));
            block.put_slice(state.hard_state.as_deref().unwrap_or_default());
        }
        _ => block.put_slice(load),
    }
    let load_bytes = block.len() - start - RECORD_HEADER_BYTES;
    let load_bytes = u32::try_from(load_bytes).expect("payloads are refused above a few MiB");
    block[start + 4..start + 8].copy_from_slice(&load_bytes.to_le_bytes());
    let checksum = crc32fast::hash(&block[start + 4..]);
    block[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
}

/// Reads the record that `bytes` start with, and returns it with the number of bytes that it takes;
/// or says why it is none.
pub(super) fn decode_record(bytes: &[u8]) -> Result<(Record<'_>, usize), &'static str> {
    if bytes.len() < RECORD_HEADER_BYTES {
        return Err("a record is cut off");
    }
    let len = RECORD_HEADER_BYTES + u32_at(bytes, 4) as usize;
    let Some(record) = bytes.get(..len) else {
        return Err("a record reaches past the end of its block");
    };
    if crc32fast::hash(&record[4..]) != u32_at(record, 0) {
        return Err("a record's checksum is wrong");
    }
    let lsn = Lsn::new(u64_at(record, 20), u64_at(record, 28));
    let payload = &record[RECORD_HEADER_BYTES..];
    let body = match record[8] {
        KIND_ENTRY => RecordBody::Entry(entry_kind(record[9]).ok_or("an unknown entry kind")?, lsn),
        KIND_HARD_STATE => RecordBody::HardState,
        KIND_TRUNCATE_AFTER => RecordBody::TruncateAfter(lsn),
        KIND_PURGE => RecordBody::Purge(lsn),
        KIND_COMMIT_POINT => RecordBody::CommitPoint(lsn),
        KIND_FORGET => RecordBody::Forget,
        KIND_RESTATEMENT => RecordBody::Restatement(decode_restatement(lsn, payload)?),
        _ => return Err("an unknown kind of record"),
    };
    Ok((Record { cohort: CohortId(u64_at(record, 12)), body, payload }, len))
}

fn decode_restatement(purged: Lsn, payload: &[u8]) -> Result<Restatement, &'static str> {
    let Some((fixed, hard_state)) = payload.split_at_checked(RESTATEMENT_BYTES) else {
        return Err("a restatement is cut off");
    };
    Ok(Restatement {
        purged,
        last: u64_at(fixed, 0),
        commit_point: Lsn::new(u64_at(fixed, 8), u64_at(fixed, 16)),
        hard_state: (fixed[24] != 0).then(|| Bytes::copy_from_slice(hard_state)),
    })
}

/// Returns the byte that stands for this kind of entry.
pub(super) fn entry_kind_code(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::Commands => 0,
        EntryKind::NoOp => 1,
        EntryKind::Protocol => 2,
    }
}

fn entry_kind(code: u8) -> Option<EntryKind> {
    match code {
        0 => Some(EntryKind::Commands),
        1 => Some(EntryKind::NoOp),
        2 => Some(EntryKind::Protocol),
        _ => None,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were taken"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were taken"))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity() -> LogIdentity {
        LogIdentity { cluster: ClusterId(7), node: NodeId(2) }
    }

    fn place() -> BlockPlace {
        BlockPlace { identity: identity(), segment: 4, position: 1024 }
    }

    /// Returns a record of each kind, with its payload.
    pub(in crate::log) fn bodies() -> Vec<(RecordBody, &'static [u8])> {
        let lsn = Lsn::new(3, 9);
        let restatement = |hard_state| {
            RecordBody::Restatement(Restatement {
                purged: lsn,
                last: 12,
                commit_point: Lsn::new(4, 11),
                hard_state,
            })
        };
        vec![
            (RecordBody::Entry(EntryKind::Commands, lsn), b"commands"),
            (RecordBody::Entry(EntryKind::NoOp, lsn), b""),
            (RecordBody::Entry(EntryKind::Protocol, lsn), b"members"),
            (RecordBody::HardState, b"vote"),
            (RecordBody::TruncateAfter(lsn), b""),
            (RecordBody::Purge(lsn), b""),
            (RecordBody::CommitPoint(lsn), b""),
            (RecordBody::Forget, b""),
            (restatement(None), b""),
            (restatement(Some(Bytes::new())), b""),
            (restatement(Some(Bytes::from_static(b"vote"))), b""),
        ]
    }

    #[test]
    fn records_read_back_as_they_were_written() {
        let mut bytes = Vec::new();
        for (body, payload) in bodies() {
            encode_record(&mut bytes, CohortId(5), &body, payload);
        }
        let mut at = 0;
        for (body, payload) in bodies() {
            let (record, len) = decode_record(&bytes[at..]).unwrap();
            assert_eq!((record.cohort, &record.body), (CohortId(5), &body));
            if let RecordBody::Restatement(state) = &body {
                assert_eq!(state.record_bytes(), len);
            } else {
                assert_eq!((record.payload, len), (payload, RECORD_HEADER_BYTES + payload.len()));
            }
            at += len;
        }
        assert_eq!(at, bytes.len());
    }

    #[test]
    fn no_flipped_bit_of_a_record_goes_unseen() {
        for (body, payload) in bodies() {
            let mut bytes = Vec::new();
            encode_record(&mut bytes, CohortId(5), &body, payload);
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(decode_record(&bytes).is_err(), "bit {bit} of {body:?}");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn a_block_counts_at_its_own_place_only() {
        let mut block = vec![0; BLOCK_HEADER_BYTES];
        encode_record(&mut block, CohortId(5), &RecordBody::HardState, &[1; 600]);
        let header = BlockHeader {
            number: 8,
            synced: 7,
            opening: 2,
            body_bytes: 0,
            body_checksum: 0,
            records: 1,
            is_end: false,
        };
        header.seal(&mut block, place());
        assert_eq!(block.len(), 1024);
        let read = BlockHeader::decode(&block, place()).unwrap();
        assert_eq!((read.number, read.synced, read.opening, read.records), (8, 7, 2, 1));
        assert!(read.is_whole(&block));
        for elsewhere in [
            BlockPlace { position: 512, ..place() },
            BlockPlace { segment: 5, ..place() },
            BlockPlace { identity: LogIdentity { node: NodeId(3), ..identity() }, ..place() },
        ] {
            assert_eq!(BlockHeader::decode(&block, elsewhere), None);
        }
        let last = block.len() - 1;
        block[last] = 1;
        assert!(!read.is_whole(&block), "the filling of the last sector is checked too");
    }

    #[test]
    fn segment_headers_read_back_and_no_flipped_bit_goes_unseen() {
        let header = SegmentHeader { identity: identity(), number: 4, len: 8192, first_block: 17 };
        let mut sector = header.encode();
        assert_eq!(SegmentHeader::decode(&sector), Ok(header));
        for bit in 0..sector.len() * 8 {
            sector[bit / 8] ^= 1 << (bit % 8);
            let error = SegmentHeader::decode(&sector).unwrap_err();
            assert!(!matches!(error, HeaderError::Future(_)), "bit {bit}");
            sector[bit / 8] ^= 1 << (bit % 8);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _refused = decode_record(&bytes);
            let _none = BlockHeader::decode(&bytes, place());
            // The same with a checksum that fits, so that what is behind it is reached.
            let mut signed = bytes;
            if signed.len() >= RECORD_HEADER_BYTES {
                let load = u32::try_from(signed.len() - RECORD_HEADER_BYTES).unwrap();
                signed[4..8].copy_from_slice(&load.to_le_bytes());
                signed[8] %= 9;
                let checksum = crc32fast::hash(&signed[4..]);
                signed[..4].copy_from_slice(&checksum.to_le_bytes());
                let _either = decode_record(&signed);
            }
        }
    }
}
