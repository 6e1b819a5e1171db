//! Reads histories. The first line says which format a file has:
//!
//! - `{"format":"trireme-history",...}`: this project's own, [`native`].
//! - `{:process ...}`: maps in EDN, one event a line, [`edn`].
//! - anything else: the log of Jepsen's register test on etcd, [`jepsen`].
//!
//! In the two formats of others, the order of the lines is the order in real time.

pub mod edn;
pub mod jepsen;
pub mod native;
mod pending;

use std::io::{self, BufRead, Read as _};

use crate::kv::KvOperation;

/// The most operations of one history: some gigabytes of memory.
pub const OPERATIONS_MAX: usize = 10_000_000;

/// Why a history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// It could not be read at all.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line is not what its format asks for.
    #[error("line {line}: {problem}")]
    Line {
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The history has more operations than [`OPERATIONS_MAX`].
    #[error("the history has more than {OPERATIONS_MAX} operations")]
    TooLong,
    /// There is nothing in it.
    #[error("the history is empty")]
    Empty,
}

/// Reads a history in any of the known formats.
pub fn read(mut input: impl BufRead) -> Result<Vec<KvOperation>, FormatError> {
    let mut first = String::new();
    while first.trim().is_empty() {
        first.clear();
        if input.read_line(&mut first)? == 0 {
            return Err(FormatError::Empty);
        }
    }
    let all = first.as_bytes().chain(input);
    let start = first.trim_start();
    let history = if start.starts_with("{:") {
        edn::read(all)
    } else if start.starts_with('{') {
        native::read(all)
    } else {
        jepsen::read(all)
    }?;
    if history.len() > OPERATIONS_MAX {
        return Err(FormatError::TooLong);
    }
    Ok(history)
}

/// Returns the lines that are not empty, with their numbers.
fn lines(input: impl BufRead) -> impl Iterator<Item = Result<(usize, String), FormatError>> {
    let lines = input.lines().zip(1..).map(|(text, line)| Ok((line, text?)));
    lines.filter(|line| line.as_ref().map_or(true, |(_, text)| !text.trim().is_empty()))
}
