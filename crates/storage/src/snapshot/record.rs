//! What the stream inside the chunks is made of.
//!
//! ```text
//! header length: u32 | header: format byte, then postcard
//! and any number of times: kind: u8 | key length: u32 | value length: u32 | key | value
//! ```

use std::io::{self, Read};

use bytes::{BufMut, BytesMut};
use trireme_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

use crate::snapshot::{SnapshotError, SnapshotHeader, SnapshotProgress};

/// The most bytes of a header that is read: the protocol state, which is a membership, and two
/// keys.
const HEADER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The most bytes of a record's value that are read: a user's value and what the table puts
/// before it. A session with all its outcomes is far smaller.
const RECORD_VALUE_BYTES_MAX: usize = VALUE_BYTES_MAX + 64;

/// The format of the header that is written.
const FORMAT: u8 = 2;

/// The format of 0.1.0: without the clock, which ends the header.
const FORMAT_1: u8 = 1;

/// A session or a row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: u8,
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

impl Record {
    /// A client's session: the client's 16 bytes, and its row as the table keeps it.
    pub(crate) const SESSION: u8 = 1;
    /// A row: the user's key, and the value as the table keeps it.
    pub(crate) const ROW: u8 = 2;
}

/// Adds the header to the stream.
pub(crate) fn write_header(header: &SnapshotHeader, stream: &mut BytesMut) {
    let bytes = postcard::to_stdvec(header)
        .expect("a header holds nothing that postcard cannot write, and a Vec always grows");
    stream.put_u32(length(bytes.len() + 1));
    stream.put_u8(FORMAT);
    stream.put_slice(&bytes);
}

/// Adds a session or a row to the stream.
pub(crate) fn write_record(kind: u8, key: &[u8], value: &[u8], stream: &mut BytesMut) {
    stream.put_u8(kind);
    stream.put_u32(length(key.len()));
    stream.put_u32(length(value.len()));
    stream.put_slice(key);
    stream.put_slice(value);
}

/// Reads the header from the beginning of the stream.
pub(crate) fn read_header(stream: &mut impl Read) -> Result<SnapshotHeader, SnapshotError> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).map_err(cut)?;
    let bytes = read_part(stream, u32::from_be_bytes(len) as usize, HEADER_BYTES_MAX)?;
    match bytes.split_first() {
        Some((&FORMAT, rest)) => match postcard::take_from_bytes(rest) {
            Ok((header, [])) => Ok(header),
            Ok(_) => Err(SnapshotError::Malformed("its header is too long".to_owned())),
            Err(error) => Err(SnapshotError::Malformed(format!("its header: {error}"))),
        },
        // The clock that is not there is 0, as postcard writes it.
        Some((&FORMAT_1, rest)) => match postcard::from_bytes(&[rest, &[0]].concat()) {
            Ok(header) => Ok(header),
            Err(error) => Err(SnapshotError::Malformed(format!("its header: {error}"))),
        },
        Some((&found, _)) => Err(SnapshotError::Format { found, known: FORMAT }),
        None => Err(SnapshotError::Malformed("its header is empty".to_owned())),
    }
}

/// The records that follow the header.
pub(crate) struct Records<R> {
    stream: R,
    rest: u64,
    progress: SnapshotProgress,
}

impl<R: Read> Records<R> {
    /// Reads `count` records from the stream, after which it must end.
    pub(crate) fn new(stream: R, count: u64, progress: SnapshotProgress) -> Self {
        Self { stream, rest: count, progress }
    }

    /// Returns the next record; `None` at the end.
    pub(crate) fn next_record(&mut self) -> Result<Option<Record>, SnapshotError> {
        let mut header = [0; 9];
        if self.rest == 0 {
            return match self.stream.read(&mut header[..1]).map_err(cut)? {
                0 => Ok(None),
                _ => Err(SnapshotError::Malformed("it holds more rows than it says".to_owned())),
            };
        }
        self.rest -= 1;
        self.progress.step();
        self.stream.read_exact(&mut header).map_err(cut)?;
        let [kind, k0, k1, k2, k3, value_len @ ..] = header;
        let key_len = u32::from_be_bytes([k0, k1, k2, k3]) as usize;
        let key = read_part(&mut self.stream, key_len, KEY_BYTES_MAX)?;
        let value_len = u32::from_be_bytes(value_len) as usize;
        let value = read_part(&mut self.stream, value_len, RECORD_VALUE_BYTES_MAX)?;
        Ok(Some(Record { kind, key, value }))
    }
}

fn read_part(stream: &mut impl Read, len: usize, max: usize) -> Result<Vec<u8>, SnapshotError> {
    if len > max {
        return Err(SnapshotError::Malformed(format!("{len} bytes where {max} are the most")));
    }
    let mut part = vec![0; len];
    stream.read_exact(&mut part).map_err(cut)?;
    Ok(part)
}

fn cut(error: io::Error) -> SnapshotError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            SnapshotError::Malformed("it ends amid a record".to_owned())
        }
        _ => SnapshotError::Io { doing: "read", source: error },
    }
}

fn length(len: usize) -> u32 {
    u32::try_from(len).expect("keys, values and payloads are limited far below 4 GiB")
}
