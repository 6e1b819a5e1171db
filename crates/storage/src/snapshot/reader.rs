//! The sending end.

use bytes::{Bytes, BytesMut};

use crate::snapshot::chunk::{Chunk, PAYLOAD_BYTES_MAX, Totals};
use crate::snapshot::{Record, SnapshotHeader, record};
use crate::table::keys::PREFIX_BYTES;
use crate::table::{TableError, View};

/// Reads a table's state as of one moment, chunk by chunk. The table goes on meanwhile; the files
/// that the state lies in are kept until the reader is dropped.
pub struct SnapshotReader {
    header: SnapshotHeader,
    sessions: View,
    rows: View,
    /// The part of the stream that has been read and not handed out.
    pending: BytesMut,
    /// What has been read so far.
    records: u64,
    /// What has been handed out so far.
    bytes: u64,
    checksum: crc32fast::Hasher,
    index: u32,
    is_read: bool,
    is_done: bool,
}

impl SnapshotReader {
    pub(crate) fn new(header: SnapshotHeader, sessions: View, rows: View) -> Self {
        let mut pending = BytesMut::new();
        record::write_header(&header, &mut pending);
        Self {
            header,
            sessions,
            rows,
            pending,
            records: 0,
            bytes: 0,
            checksum: crc32fast::Hasher::new(),
            index: 0,
            is_read: false,
            is_done: false,
        }
    }

    /// Returns where the table stood.
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// Returns the next chunk, of at most [`crate::snapshot::CHUNK_BYTES_MAX`] bytes; `None` after
    /// the last one.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, TableError> {
        if self.is_done {
            return Ok(None);
        }
        while self.pending.len() < PAYLOAD_BYTES_MAX && !self.is_read {
            self.read_record()?;
        }
        let index = self.index;
        self.index += 1;
        if self.pending.is_empty() {
            self.is_done = true;
            let checksum = self.checksum.clone().finalize();
            let totals = Totals { records: self.records, bytes: self.bytes, checksum };
            return Ok(Some(Chunk::End(totals).encode(index)));
        }
        let payload = self.pending.split_to(self.pending.len().min(PAYLOAD_BYTES_MAX));
        self.bytes += payload.len() as u64;
        self.checksum.update(&payload);
        Ok(Some(Chunk::Data(&payload).encode(index)))
    }

    fn read_record(&mut self) -> Result<(), TableError> {
        let (kind, row) = match self.sessions.next() {
            Some(session) => (Record::SESSION, session?),
            None => match self.rows.next() {
                Some(row) => (Record::ROW, row?),
                None => {
                    self.is_read = true;
                    return Ok(());
                }
            },
        };
        let (key, value) = row;
        // The views hold no key shorter than its prefix.
        let key = key.get(PREFIX_BYTES..).unwrap_or_default();
        record::write_record(kind, key, &value, &mut self.pending);
        self.records += 1;
        Ok(())
    }
}
