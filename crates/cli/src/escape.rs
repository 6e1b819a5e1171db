//! Any bytes as text without tabs and line ends, and back.
//!
//! A tab is written `\t`, a line end `\n`, a carriage return `\r` and a backslash `\\`; every other
//! byte stands for itself. `\xNN`, with two hexadecimal digits, is read as well, for bytes that are
//! hard to type.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use bytes::Bytes;
use clap::Args;

use super::UsageError;

/// How keys and values on the command line are to be read.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct EscapeArgs {
    /// Interpret \t, \n, \r, \\ and \xNN in keys and values.
    #[arg(long)]
    escaped: bool,
}

/// A text that breaks the rules of escapes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EscapeError {
    /// A backslash before something that it cannot stand before.
    #[error(r"'\{0}' is no escape: only \t, \n, \r, \\ and \xNN are")]
    Unknown(String),
    /// A backslash with nothing behind it.
    #[error(r"a single \ at the end: a backslash is written \\")]
    AtEnd,
    /// Something else than two digits behind `\x`.
    #[error(r"\x must have two hexadecimal digits behind it")]
    Digits,
}

impl EscapeArgs {
    /// Returns the bytes that an argument stands for.
    pub(crate) fn read(self, argument: OsString) -> Result<Bytes, UsageError> {
        let given = argument.into_vec();
        if !self.escaped {
            return Ok(given.into());
        }
        match unescape(&given) {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => Err(UsageError(format!("'{}': {error}", given.escape_ascii()))),
        }
    }
}

/// Appends the text that stands for these bytes.
pub(crate) fn escape_into(text: &mut Vec<u8>, bytes: &[u8]) {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| letter_of(*byte).is_some()) {
        text.extend_from_slice(&rest[..at]);
        text.extend(std::iter::once(b'\\').chain(letter_of(rest[at])));
        rest = &rest[at + 1..];
    }
    text.extend_from_slice(rest);
}

/// Returns the bytes that a text stands for.
pub(crate) fn unescape(text: &[u8]) -> Result<Vec<u8>, EscapeError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        bytes.extend_from_slice(&rest[..at]);
        let (byte, length) = read_escape(&rest[at + 1..])?;
        bytes.push(byte);
        rest = &rest[at + 1 + length..];
    }
    bytes.extend_from_slice(rest);
    Ok(bytes)
}

/// Returns the byte that the text right behind a backslash stands for, and how long that text is.
fn read_escape(text: &[u8]) -> Result<(u8, usize), EscapeError> {
    match text {
        [] => Err(EscapeError::AtEnd),
        [b't', ..] => Ok((b'\t', 1)),
        [b'n', ..] => Ok((b'\n', 1)),
        [b'r', ..] => Ok((b'\r', 1)),
        [b'\\', ..] => Ok((b'\\', 1)),
        [b'x', high, low, ..] => match (digit(*high), digit(*low)) {
            (Some(high), Some(low)) => Ok((high << 4 | low, 3)),
            _ => Err(EscapeError::Digits),
        },
        [b'x', ..] => Err(EscapeError::Digits),
        [other, ..] => Err(EscapeError::Unknown(other.escape_ascii().to_string())),
    }
}

/// Returns the letter that a byte is escaped with, if it must be escaped.
const fn letter_of(byte: u8) -> Option<u8> {
    match byte {
        b'\t' => Some(b't'),
        b'\n' => Some(b'n'),
        b'\r' => Some(b'r'),
        b'\\' => Some(b'\\'),
        _ => None,
    }
}

const fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escapes_stand_for_their_bytes() {
        let mut text = Vec::new();
        escape_into(&mut text, b"a\tb\nc\rd\\e\xff");
        assert_eq!(text, b"a\\tb\\nc\\rd\\\\e\xff");
        assert_eq!(unescape(br"\x00\xfF\x5c\x5Cn"), Ok(b"\x00\xff\\\\n".to_vec()));
    }

    #[test]
    fn broken_escapes_are_named() {
        assert_eq!(unescape(br"a\q"), Err(EscapeError::Unknown("q".to_owned())));
        assert_eq!(unescape(br"a\"), Err(EscapeError::AtEnd));
        for text in [&br"\x"[..], br"\x1", br"\xg0", br"\x0g"] {
            assert_eq!(unescape(text), Err(EscapeError::Digits));
        }
    }

    #[test]
    fn arguments_are_taken_as_they_are_unless_told_otherwise() {
        let read = |escaped, text: &str| EscapeArgs { escaped }.read(text.into());
        assert_eq!(read(false, r"a\tb").unwrap(), r"a\tb");
        assert_eq!(read(true, r"a\tb").unwrap(), "a\tb");
        assert!(read(true, r"\q").unwrap_err().to_string().contains(r"no escape"));
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes: Vec<u8>) {
            let mut text = Vec::new();
            escape_into(&mut text, &bytes);
            prop_assert!(!text.iter().any(|byte| b"\t\n\r".contains(byte)));
            prop_assert_eq!(unescape(&text), Ok(bytes));
        }

        #[test]
        fn no_text_is_too_strange_to_judge(text: Vec<u8>) {
            let _judged = unescape(&text);
        }
    }
}
