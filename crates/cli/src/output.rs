//! Standard output.

use std::io::{self, BufWriter, StdoutLock, Write};

use serde::Serialize;

/// Bytes gathered before they are written out.
const BUFFER_BYTES: usize = 64 * 1024;

/// Standard output, buffered. [`Output::finish`] must be called, or what is left is lost.
pub(crate) struct Output(BufWriter<StdoutLock<'static>>);

/// Standard output could not be written.
#[derive(Debug, thiserror::Error)]
#[error("writing standard output")]
pub(crate) struct OutputError(#[from] io::Error);

impl OutputError {
    /// Returns true if the reader at the other end of a pipe has gone.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

impl Output {
    /// Takes standard output for this process's one result.
    pub(crate) fn new() -> Self {
        Self(BufWriter::with_capacity(BUFFER_BYTES, io::stdout().lock()))
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), OutputError> {
        Ok(self.0.write_all(bytes)?)
    }

    /// Writes out what is gathered.
    pub(crate) fn finish(mut self) -> Result<(), OutputError> {
        Ok(self.0.flush()?)
    }
}

/// Prints a text and a line end.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<(), OutputError> {
    let mut output = Output::new();
    output.write(format!("{text}\n").as_bytes())?;
    output.finish()
}

/// Prints the line with which a process says that it serves. If the reader has gone, as after
/// `| head -1` or `| true`, the process serves all the same.
pub(crate) fn announce(text: impl std::fmt::Display) -> Result<(), OutputError> {
    match line(text) {
        Err(error) if error.is_broken_pipe() => {
            tracing::warn!("standard output has no reader any more");
            Ok(())
        }
        printed => printed,
    }
}

/// Prints a value as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(serde_json::to_string(value)?)?)
}
