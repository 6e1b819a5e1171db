//! Reading lines of bounded length, on a thread of their own.

use std::io::{self, BufRead, BufReader, Read};

use tokio::sync::mpsc;
use trireme_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

use crate::rows::{self, FileRow, LineReader};

/// The most bytes in a line: the largest row fits even if each of its bytes is written in the
/// longest way, `\u00NN` in JSON, with room for what surrounds it.
const LINE_BYTES_MAX: usize = 6 * (KEY_BYTES_MAX + VALUE_BYTES_MAX) + 64 * 1024;

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 256 * 1024;

/// One line of the input, or what ended it.
#[derive(Debug)]
pub(super) enum Input {
    /// A line and the row that it holds, or what is wrong with it.
    Line {
        /// Its number, from 1.
        number: u64,
        /// How many bytes of the input it takes.
        bytes: u64,
        /// What it holds.
        row: Result<FileRow, String>,
    },
    /// The input cannot be read any further.
    Broken(io::Error),
}

/// Sends every line of the input on, until it ends or its receiver is gone.
pub(super) fn read_all(input: impl Read, reader: LineReader, lines: &mpsc::Sender<Input>) {
    let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
    let mut line = Vec::new();
    for number in 1.. {
        let next = match read_line(&mut input, &mut line, LINE_BYTES_MAX) {
            Ok(0) => return,
            Ok(bytes) if line.len() > LINE_BYTES_MAX => {
                let row = Err(format!("the line is longer than {LINE_BYTES_MAX} bytes"));
                Input::Line { number, bytes, row }
            }
            Ok(bytes) => {
                let text = if number == 1 { rows::without_mark(&line) } else { &line };
                let row = reader.read(text).map_err(|error| error.to_string());
                Input::Line { number, bytes, row }
            }
            Err(error) => Input::Broken(error),
        };
        let is_last = matches!(next, Input::Broken(_));
        if lines.blocking_send(next).is_err() || is_last {
            return;
        }
    }
}

/// Reads the next line without its end into `line`, and returns how many bytes of the input it
/// takes; 0 at the end. Of a line longer than `longest`, `longest + 1` bytes are kept.
fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>, longest: usize) -> io::Result<u64> {
    line.clear();
    let mut taken = 0;
    loop {
        let available = match input.fill_buf() {
            Ok(available) => available,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = available.iter().position(|byte| *byte == b'\n');
        let content = &available[..end.unwrap_or(available.len())];
        let room = (longest + 1).saturating_sub(line.len());
        line.extend_from_slice(&content[..content.len().min(room)]);
        let used = end.map_or(available.len(), |end| end + 1);
        input.consume(used);
        taken += used as u64;
        if end.is_some() || used == 0 {
            return Ok(taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Format;

    fn lines_of(text: &str, longest: usize, buffer: usize) -> Vec<(String, u64)> {
        let mut input = BufReader::with_capacity(buffer, text.as_bytes());
        let mut line = Vec::new();
        let mut lines = Vec::new();
        loop {
            match read_line(&mut input, &mut line, longest).unwrap() {
                0 => return lines,
                bytes => lines.push((String::from_utf8(line.clone()).unwrap(), bytes)),
            }
        }
    }

    #[test]
    fn lines_are_cut_at_their_ends_whatever_the_buffer() {
        for buffer in 1..12 {
            let lines = lines_of("ab\n\nabcdefgh\nxyz", 4, buffer);
            let expected = [("ab", 3), ("", 1), ("abcde", 9), ("xyz", 3)];
            assert_eq!(lines, expected.map(|(line, bytes)| (line.to_owned(), bytes)));
        }
        assert_eq!(lines_of("", 4, 8), []);
    }

    #[test]
    fn lines_are_numbered_and_a_broken_input_is_told() {
        struct Breaks;
        impl Read for Breaks {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("on purpose"))
            }
        }
        let reader = LineReader { format: Format::Tsv, separator: b'\t', key_only: false };
        let (sender, mut receiver) = mpsc::channel(8);
        read_all((&b"a\t1\nb\nc\t3\n"[..]).chain(Breaks), reader, &sender);
        drop(sender);
        let mut seen = Vec::new();
        while let Some(input) = receiver.blocking_recv() {
            seen.push(match input {
                Input::Line { number, row, .. } => (number, row.is_ok()),
                Input::Broken(_) => (0, false),
            });
        }
        assert_eq!(seen, [(1, true), (2, false), (3, true), (0, false)]);
    }
}
