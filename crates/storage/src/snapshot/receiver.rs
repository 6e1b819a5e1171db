//! The receiving end.

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use crate::snapshot::chunk::{self, Chunk, Totals};
use crate::snapshot::{Records, SnapshotError, SnapshotHeader, SnapshotProgress, record};

/// Checks chunks as they come and keeps what they carry in a file without a name.
pub struct SnapshotReceiver {
    file: BufWriter<File>,
    /// The number of the chunk that is due.
    index: u32,
    bytes: u64,
    checksum: crc32fast::Hasher,
    /// What the last chunk said, once it has come.
    totals: Option<Totals>,
}

/// A snapshot that came whole, ready for [`crate::CohortTable::install`]. Its file is gone when it
/// is dropped.
pub struct StagedSnapshot {
    header: Box<SnapshotHeader>,
    /// Stands right after the header.
    file: BufReader<File>,
    records: u64,
    progress: SnapshotProgress,
}

impl SnapshotReceiver {
    /// Begins to receive a snapshot, whose bytes are kept on the disk of the folder `dir`.
    pub fn new(dir: &Path) -> Result<Self, SnapshotError> {
        let file = tempfile::tempfile_in(dir).map_err(SnapshotError::io("begin to keep"))?;
        Ok(Self {
            file: BufWriter::new(file),
            index: 0,
            bytes: 0,
            checksum: crc32fast::Hasher::new(),
            totals: None,
        })
    }

    /// Takes the next chunk. A chunk that is refused has changed nothing: the right one may follow.
    pub fn push(&mut self, chunk: &[u8]) -> Result<(), SnapshotError> {
        if self.totals.is_some() {
            return Err(SnapshotError::PastEnd);
        }
        match chunk::decode(chunk, self.index)? {
            Chunk::Data(payload) => {
                self.file.write_all(payload).map_err(SnapshotError::io("keep"))?;
                self.bytes += payload.len() as u64;
                self.checksum.update(payload);
            }
            Chunk::End(totals) => {
                let found = (self.bytes, self.checksum.clone().finalize());
                if found != (totals.bytes, totals.checksum) {
                    let reason = "the totals are not those of what came before";
                    return Err(SnapshotError::Damaged { index: self.index, reason });
                }
                self.totals = Some(totals);
            }
        }
        self.index += 1;
        Ok(())
    }

    /// Returns the snapshot if all of it has come.
    pub fn finish(self) -> Result<StagedSnapshot, SnapshotError> {
        let totals = self.totals.ok_or(SnapshotError::Truncated { chunks: self.index })?;
        let file = self.file.into_inner().map_err(|e| e.into_error());
        let mut file = file.map_err(SnapshotError::io("keep"))?;
        file.seek(SeekFrom::Start(0)).map_err(SnapshotError::io("read"))?;
        let mut file = BufReader::new(file);
        let header = Box::new(record::read_header(&mut file)?);
        let progress = SnapshotProgress::default();
        Ok(StagedSnapshot { header, file, records: totals.records, progress })
    }
}

impl StagedSnapshot {
    /// Returns where the table stood.
    pub fn header(&self) -> &SnapshotHeader {
        &self.header
    }

    /// Returns what shows how far the snapshot's installation is, whoever has the snapshot by then.
    pub fn progress(&self) -> SnapshotProgress {
        self.progress.clone()
    }

    /// Returns the header and what reads the sessions and rows.
    pub(crate) fn into_records(self) -> (SnapshotHeader, Records<BufReader<File>>) {
        (*self.header, Records::new(self.file, self.records, self.progress))
    }
}
