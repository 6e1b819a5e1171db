//! JSON files with a checksum.
//!
//! A checked file is one JSON object whose last member is the CRC-32 of every byte before the line that
//! it stands in:
//!
//! ```text
//! {
//!   "format": 2,
//!   ...
//!   "checksum": "8d1f00c4"
//! }
//! ```
//! So it is read, searched and shown as any other, and a byte of it that became another is found.
//! Format 1 of each of these files, that of 0.1.0, has no checksum.

use serde::de::Error;
use serde::{Deserialize, Serialize};

/// The first format of these files that has a checksum.
const FIRST_CHECKED: u32 = 2;

/// What begins the last line but one.
const CHECKSUM: &[u8] = b"  \"checksum\": \"";

/// What ends a checked file, behind the checksum's 8 hexadecimal digits.
const END: &[u8] = b"\"\n}\n";

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum UnreadableJson {
    /// It was written by a later version.
    #[error("it has format {0}, which a later version has written")]
    Future(u32),
    /// It is not what was written.
    #[error(transparent)]
    Damaged(#[from] serde_json::Error),
}

/// Returns the file that holds `content`, which must be an object with at least one member.
pub fn to_checked_json<T: Serialize>(content: &T) -> serde_json::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(content)?;
    let Some(whole) = bytes.strip_suffix(b"\n}").map(<[u8]>::len) else {
        return Err(serde::ser::Error::custom("only an object with members can be checked"));
    };
    bytes.truncate(whole);
    bytes.extend_from_slice(b",\n");
    let checksum = format!("{:08x}", crc32fast::hash(&bytes));
    for part in [CHECKSUM, checksum.as_bytes(), END] {
        bytes.extend_from_slice(part);
    }
    Ok(bytes)
}

/// Reads a file whose formats go up to `newest`: what [`to_checked_json`] returned, or one of a format
/// without checksums.
pub fn from_checked_json<T: for<'de> Deserialize<'de>>(
    bytes: &[u8],
    newest: u32,
) -> Result<T, UnreadableJson> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
        checksum: Option<serde_json::Value>,
    }
    // The format is read by itself first: a later one may hold what this version cannot read.
    let Head { format, checksum } = serde_json::from_slice(bytes)?;
    if format > newest {
        return Err(UnreadableJson::Future(format));
    }
    if (format >= FIRST_CHECKED || checksum.is_some()) && !is_whole(bytes) {
        return Err(serde_json::Error::custom("it does not match its checksum").into());
    }
    Ok(serde_json::from_slice(bytes)?)
}

/// Returns true if a file has a checksum that matches.
fn is_whole(bytes: &[u8]) -> bool {
    let checked = bytes.strip_suffix(END).and_then(|bytes| bytes.split_last_chunk::<8>());
    checked.is_some_and(|(bytes, checksum)| {
        bytes.strip_suffix(CHECKSUM).is_some_and(|content| {
            checksum == format!("{:08x}", crc32fast::hash(content)).as_bytes()
        })
    })
}

/// Makes a file's checksum right, if it has one.
#[cfg(test)]
pub(crate) fn repair(bytes: &mut [u8]) {
    let tail = CHECKSUM.len() + 8 + END.len();
    let Some(content) = bytes.len().checked_sub(tail) else { return };
    if bytes[content..].starts_with(CHECKSUM) && bytes.ends_with(END) {
        let checksum = format!("{:08x}", crc32fast::hash(&bytes[..content]));
        let at = content + CHECKSUM.len();
        bytes[at..at + 8].copy_from_slice(checksum.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Content {
        format: u32,
        number: u64,
        list: Vec<String>,
    }

    fn content() -> Content {
        Content { format: 2, number: 137, list: vec!["a".to_owned(), "b".to_owned()] }
    }

    fn read(bytes: &[u8]) -> Result<Content, UnreadableJson> {
        from_checked_json(bytes, 2)
    }

    #[test]
    fn a_file_is_json_and_reads_as_what_was_written() {
        let bytes = to_checked_json(&content()).unwrap();
        assert_eq!(read(&bytes).unwrap(), content());
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["number"], 137);
    }

    /// A digit that became another made a file that looks as whole as the right one.
    #[test]
    fn every_byte_that_became_any_other_is_found() {
        let whole = to_checked_json(&content()).unwrap();
        for place in 0..whole.len() {
            for byte in (0..=u8::MAX).filter(|byte| *byte != whole[place]) {
                let mut bytes = whole.clone();
                bytes[place] = byte;
                let read = read(&bytes);
                assert!(read.is_err(), "{byte:#x} at {place} gave {read:?}");
            }
        }
        for len in 0..whole.len() {
            assert!(read(&whole[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn a_file_of_the_first_format_needs_no_checksum_and_one_of_the_future_is_called_that() {
        let old = r#"{"format":1,"number":1,"list":[]}"#;
        assert_eq!(read(old.as_bytes()).unwrap().number, 1);
        let stripped = r#"{"format":2,"number":1,"list":[]}"#;
        assert!(matches!(read(stripped.as_bytes()), Err(UnreadableJson::Damaged(_))));
        let future = r#"{"format":3}"#;
        assert!(matches!(read(future.as_bytes()), Err(UnreadableJson::Future(3))));
        let checked = to_checked_json(&Content { format: 3, ..content() }).unwrap();
        assert!(matches!(read(&checked), Err(UnreadableJson::Future(3))));
    }
}
