//! The size of a range as it is typed.

use std::fmt;

/// Below this, more would be borders than rows.
const BYTES_MIN: u64 = 1024 * 1024;

/// How large a range may be before it is cut in two; `None` has none cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SplitBytes(pub(crate) Option<u64>);

/// Reads a number of bytes, or `off`.
pub(crate) fn split_bytes(text: &str) -> Result<SplitBytes, String> {
    if text == "off" {
        return Ok(SplitBytes(None));
    }
    let bytes = text.parse().map_err(|_| "expected a number of bytes, or off".to_owned())?;
    if bytes < BYTES_MIN {
        return Err(format!("must be at least {BYTES_MIN}"));
    }
    Ok(SplitBytes(Some(bytes)))
}

impl fmt::Display for SplitBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or_else(|| "off".to_owned(), |bytes| bytes.to_string()).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_of_bytes_or_off() {
        for bytes in [None, Some(1_048_576), Some(u64::MAX)] {
            let size = SplitBytes(bytes);
            assert_eq!(split_bytes(&size.to_string()), Ok(size));
        }
        for text in ["", "1048575", "0", "-1", "1MiB", "on", "18446744073709551616"] {
            assert!(split_bytes(text).is_err(), "{text:?} was taken");
        }
    }
}
