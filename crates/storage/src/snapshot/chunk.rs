//! The chunks that a snapshot travels in.
//!
//! ```text
//! format: u8 | kind: u8 | index: u32 | payload ... | crc32 of all before: u32      (big-endian)
//! ```
//!
//! The payload of the last chunk: number of sessions and rows u64, bytes of the stream u64, crc32
//! of the stream u32.

use bytes::{BufMut, Bytes, BytesMut};

use crate::snapshot::SnapshotError;

/// The most bytes in one chunk. Small enough to pass between other messages on a stream, large
/// enough that a chunk's overhead does not count.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;

/// The most bytes of the stream that one chunk carries.
pub(crate) const PAYLOAD_BYTES_MAX: usize = CHUNK_BYTES_MAX - HEADER_BYTES - CHECKSUM_BYTES;

const HEADER_BYTES: usize = 6;
const CHECKSUM_BYTES: usize = 4;
const END_BYTES: usize = 20;

const FORMAT: u8 = 1;
const KIND_DATA: u8 = 1;
const KIND_END: u8 = 2;

/// What a chunk carries.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Chunk<'a> {
    Data(&'a [u8]),
    End(Totals),
}

/// What the whole stream must come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Sessions and rows.
    pub(crate) records: u64,
    /// Bytes of all payloads.
    pub(crate) bytes: u64,
    /// Checksum of all payloads.
    pub(crate) checksum: u32,
}

impl Chunk<'_> {
    /// Returns the bytes of the chunk with this number.
    pub(crate) fn encode(&self, index: u32) -> Bytes {
        let payload_bytes = match self {
            Self::Data(payload) => payload.len(),
            Self::End(_) => END_BYTES,
        };
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + payload_bytes + CHECKSUM_BYTES);
        bytes.put_u8(FORMAT);
        bytes.put_u8(if matches!(self, Self::End(_)) { KIND_END } else { KIND_DATA });
        bytes.put_u32(index);
        match self {
            Self::Data(payload) => bytes.put_slice(payload),
            Self::End(totals) => {
                bytes.put_u64(totals.records);
                bytes.put_u64(totals.bytes);
                bytes.put_u32(totals.checksum);
            }
        }
        bytes.put_u32(crc32fast::hash(&bytes));
        bytes.freeze()
    }
}

/// Reads the chunk that must have the number `index`.
pub(crate) fn decode(bytes: &[u8], index: u32) -> Result<Chunk<'_>, SnapshotError> {
    let damaged = |reason| SnapshotError::Damaged { index, reason };
    if bytes.len() > CHUNK_BYTES_MAX {
        return Err(damaged("it is too long"));
    }
    let (checked, checksum) =
        bytes.split_last_chunk::<CHECKSUM_BYTES>().ok_or_else(|| damaged("it is too short"))?;
    let (header, payload) =
        checked.split_first_chunk::<HEADER_BYTES>().ok_or_else(|| damaged("it is too short"))?;
    let [format, kind, number @ ..] = *header;
    if format != FORMAT {
        return Err(SnapshotError::Format { found: format, known: FORMAT });
    }
    if crc32fast::hash(checked) != u32::from_be_bytes(*checksum) {
        return Err(damaged("its checksum does not match"));
    }
    let found = u32::from_be_bytes(number);
    if found != index {
        return Err(SnapshotError::Order { expected: index, found });
    }
    match kind {
        KIND_DATA => Ok(Chunk::Data(payload)),
        KIND_END => {
            let payload: &[u8; END_BYTES] =
                payload.try_into().map_err(|_| damaged("its totals are cut"))?;
            let [r0, r1, r2, r3, r4, r5, r6, r7, b0, b1, b2, b3, b4, b5, b6, b7, checksum @ ..] =
                *payload;
            Ok(Chunk::End(Totals {
                records: u64::from_be_bytes([r0, r1, r2, r3, r4, r5, r6, r7]),
                bytes: u64::from_be_bytes([b0, b1, b2, b3, b4, b5, b6, b7]),
                checksum: u32::from_be_bytes(checksum),
            }))
        }
        _ => Err(damaged("it is of no known kind")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_read_back_and_any_changed_byte_is_noticed() {
        let totals = Totals { records: 5, bytes: u64::MAX, checksum: 7 };
        for chunk in [Chunk::Data(b"payload"), Chunk::Data(b""), Chunk::End(totals)] {
            let bytes = chunk.encode(3);
            assert_eq!(decode(&bytes, 3).unwrap(), chunk);
            assert!(matches!(decode(&bytes, 4), Err(SnapshotError::Order { .. })));
            for index in 0..bytes.len() {
                let mut changed = bytes.to_vec();
                changed[index] ^= 0x10;
                assert!(decode(&changed, 3).is_err(), "byte {index} changed");
                assert!(decode(&bytes[..index], 3).is_err(), "cut to {index} bytes");
            }
        }
    }
}
