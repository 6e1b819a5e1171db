//! Rows as lines of text: tab-separated, or as JSON.
//!
//! A tab-separated line is a key, a tab and a value, both escaped as [`super::escape`]
//! says. A JSON line is an object with `key` and `value`, each a string, or with `key_base64` and
//! `value_base64` for bytes that are no text. Both forms give any bytes back as they were.

use bytes::Bytes;
use clap::ValueEnum;
use serde_json::{Map, Value};

use super::escape::{self, EscapeError};
use super::json;

/// How rows are written as lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Key, tab, value; tabs, line ends and backslashes in them are escaped.
    #[default]
    Tsv,
    /// One JSON object per line, with "key" and "value".
    Jsonl,
}

/// One row of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileRow {
    /// Key.
    pub(crate) key: Bytes,
    /// Value.
    pub(crate) value: Bytes,
}

/// How the lines of a file are to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LineReader {
    /// The form of the lines.
    pub(crate) format: Format,
    /// What stands between a key and its value in a tab-separated line: a tab, or another byte.
    pub(crate) separator: u8,
    /// Whether a line is a key alone, whose value is empty.
    pub(crate) key_only: bool,
}

/// A line that is no row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RowError {
    /// Nothing at all.
    #[error("the line is empty")]
    Empty,
    /// A line with a key alone.
    #[error("there is no {} between a key and a value", name_of(*.0))]
    NoSeparator(u8),
    /// A broken escape.
    #[error(transparent)]
    Escape(#[from] EscapeError),
    /// No JSON object with a key and a value.
    #[error("{0}")]
    Json(String),
}

impl LineReader {
    /// Reads a line, which comes without its line end.
    pub(crate) fn read(&self, line: &[u8]) -> Result<FileRow, RowError> {
        // An exported row never ends in a bare carriage return: this is the line end of a file
        // that was made on another system.
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self.format {
            // The empty key is a key like any other, and its line has nothing in it.
            Format::Tsv if line.is_empty() && self.key_only => self.read_tsv(line),
            _ if line.is_empty() => Err(RowError::Empty),
            Format::Tsv => self.read_tsv(line),
            Format::Jsonl => self.read_json(line),
        }
    }

    fn read_tsv(&self, line: &[u8]) -> Result<FileRow, RowError> {
        let (key, value) = if self.key_only {
            (line, &[][..])
        } else {
            let at = line.iter().position(|byte| *byte == self.separator);
            let at = at.ok_or(RowError::NoSeparator(self.separator))?;
            (&line[..at], &line[at + 1..])
        };
        let key = escape::unescape(key)?.into();
        Ok(FileRow { key, value: escape::unescape(value)?.into() })
    }

    fn read_json(&self, line: &[u8]) -> Result<FileRow, RowError> {
        let mut object: Map<String, Value> = serde_json::from_slice(line)
            .map_err(|error| RowError::Json(format!("not a JSON object: {error}")))?;
        let mut take = |name: &str| json::take_bytes(&mut object, name).map_err(RowError::Json);
        let missing = |name: &str| RowError::Json(format!("there is no \"{name}\""));
        let key = take("key")?.ok_or_else(|| missing("key"))?.into();
        let value = match take("value")? {
            _ if self.key_only => Bytes::new(),
            Some(value) => value.into(),
            None => return Err(missing("value")),
        };
        Ok(FileRow { key, value })
    }
}

/// The mark that programs of other systems put at the start of a text: no part of its first row.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Returns the first line of a file without the mark that may stand before it.
pub(crate) fn without_mark(line: &[u8]) -> &[u8] {
    line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line)
}

/// Appends a row as a tab-separated line; a row without a value as its key alone.
pub(crate) fn write_tsv(text: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) {
    let rest = match key.strip_prefix(&BYTE_ORDER_MARK[..1]) {
        // Escaped, or the key would lose the mark if it was read as the first of a file.
        Some(rest) if key.starts_with(BYTE_ORDER_MARK) => {
            text.extend_from_slice(br"\xef");
            rest
        }
        _ => key,
    };
    escape::escape_into(text, rest);
    if let Some(value) = value {
        text.push(b'\t');
        escape::escape_into(text, value);
    }
    text.push(b'\n');
}

/// Appends a row as a line of JSON, with the value's version.
pub(crate) fn write_json(text: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>, version: u64) {
    let mut object = Map::new();
    json::set_bytes(&mut object, "key", key);
    if let Some(value) = value {
        json::set_bytes(&mut object, "value", value);
    }
    object.insert("version".to_owned(), version.into());
    text.extend_from_slice(Value::Object(object).to_string().as_bytes());
    text.push(b'\n');
}

fn name_of(separator: u8) -> String {
    match separator {
        b'\t' => "tab".to_owned(),
        other => format!("'{}'", other.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TSV: LineReader = LineReader { format: Format::Tsv, separator: b'\t', key_only: false };
    const JSONL: LineReader = LineReader { format: Format::Jsonl, ..TSV };

    fn row(key: &'static [u8], value: &'static [u8]) -> FileRow {
        FileRow { key: key.into(), value: value.into() }
    }

    #[test]
    fn a_tab_separates_key_and_value() {
        assert_eq!(TSV.read(b"k\tv"), Ok(row(b"k", b"v")));
        assert_eq!(TSV.read(b"k\tv\r"), Ok(row(b"k", b"v")));
        assert_eq!(TSV.read(b"k\tv\tw"), Ok(row(b"k", b"v\tw")));
        assert_eq!(TSV.read(b"\t"), Ok(row(b"", b"")));
        assert_eq!(TSV.read(br"k\tv"), Err(RowError::NoSeparator(b'\t')));
        assert_eq!(TSV.read(b"\r"), Err(RowError::Empty));
        assert_eq!(TSV.read(b"k\t\\"), Err(RowError::Escape(EscapeError::AtEnd)));
    }

    #[test]
    fn the_separator_and_the_value_are_choices() {
        let comma = LineReader { separator: b',', ..TSV };
        assert_eq!(comma.read(b"k,v,w"), Ok(row(b"k", b"v,w")));
        assert_eq!(comma.read(br"a\x2cb,v"), Ok(row(b"a,b", b"v")));
        let refused = comma.read(b"k\tv").unwrap_err().to_string();
        assert_eq!(refused, "there is no ',' between a key and a value");
        let key_only = LineReader { key_only: true, ..TSV };
        assert_eq!(key_only.read(b"k\tv"), Ok(row(b"k\tv", b"")));
        assert_eq!(key_only.read(b""), Ok(row(b"", b"")));
        let key_only = LineReader { key_only: true, ..JSONL };
        assert_eq!(key_only.read(b""), Err(RowError::Empty));
        assert_eq!(key_only.read(br#"{"key":"k"}"#), Ok(row(b"k", b"")));
    }

    #[test]
    fn a_mark_at_the_start_of_a_file_is_no_part_of_a_key_and_a_key_keeps_its_own() {
        assert_eq!(without_mark(b"\xef\xbb\xbfapple\t1"), b"apple\t1");
        assert_eq!(without_mark(b"\xef\xbbapple"), b"\xef\xbbapple");
        let key = b"\xef\xbb\xbfapple\t";
        let line = line_of(Format::Tsv, key, b"1");
        assert_eq!(line, b"\\xef\xbb\xbfapple\\t\t1");
        let read = TSV.read(without_mark(&line));
        assert_eq!(read, Ok(FileRow { key: key[..].into(), value: "1".into() }));
    }

    #[test]
    fn a_json_line_has_a_key_and_a_value() {
        let line = br#"{"value":"v","other":[1],"key_base64":"/w=="}"#;
        assert_eq!(JSONL.read(line), Ok(row(b"\xff", b"v")));
        for line in [&b"5"[..], b"{", br#"{"key":"k"}"#, br#"{"value":"v"}"#, b"{} {}"] {
            assert!(matches!(JSONL.read(line), Err(RowError::Json(_))));
        }
    }

    fn line_of(format: Format, key: &[u8], value: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        match format {
            Format::Tsv => write_tsv(&mut text, key, Some(value)),
            Format::Jsonl => write_json(&mut text, key, Some(value), 7),
        }
        assert_eq!(text.pop(), Some(b'\n'));
        text
    }

    proptest! {
        #[test]
        fn any_row_comes_back(key: Vec<u8>, value: Vec<u8>, text: String) {
            for (key, value) in [(&key[..], &value[..]), (text.as_bytes(), &value[..])] {
                for reader in [TSV, JSONL] {
                    let line = line_of(reader.format, key, value);
                    prop_assert!(!line.contains(&b'\n'));
                    let row = reader.read(without_mark(&line)).unwrap();
                    prop_assert_eq!((&row.key[..], &row.value[..]), (key, value));
                }
            }
        }
    }
}
