//! The log of acknowledged rows, for checks that nothing acknowledged is lost.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::rows;

/// A file that holds a key per line. Each line is handed to the operating system with one write
/// when the row is acknowledged, so that it survives the death of this process.
pub(super) struct AcknowledgedLog {
    path: PathBuf,
    file: File,
    line: Vec<u8>,
}

impl AcknowledgedLog {
    /// Opens the log, to append to it.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { path: path.to_owned(), file, line: Vec::new() })
    }

    /// Appends a key.
    pub(super) fn append(&mut self, key: &[u8]) -> anyhow::Result<()> {
        self.line.clear();
        rows::write_tsv(&mut self.line, key, None);
        let written = self.file.write_all(&self.line);
        written.with_context(|| format!("writing {}", self.path.display()))
    }
}
