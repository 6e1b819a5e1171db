//! Key ranges.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A contiguous interval of keys `[start, end)`, in the order of their bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyRange {
    /// The first key that the range may hold; empty means the lowest key of all.
    pub start: Bytes,
    /// The first key past the range; `None` means that the range has no upper end.
    pub end: Option<Bytes>,
}

impl KeyRange {
    /// Returns the range that holds every key.
    pub const fn all() -> Self {
        Self { start: Bytes::new(), end: None }
    }

    /// Returns the range `[start, end)`.
    pub fn new(start: impl Into<Bytes>, end: Option<impl Into<Bytes>>) -> Self {
        Self { start: start.into(), end: end.map(Into::into) }
    }

    /// Says whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.is_below_end(key)
    }

    /// Says whether no key lies in the range.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }

    /// Returns the keys that both ranges hold.
    pub fn intersection(&self, other: &Self) -> Self {
        let start = self.start.clone().max(other.start.clone());
        let end = match (&self.end, &other.end) {
            (Some(a), Some(b)) => Some(a.clone().min(b.clone())),
            (Some(end), None) | (None, Some(end)) => Some(end.clone()),
            (None, None) => None,
        };
        Self { start, end }
    }

    fn is_below_end(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_none_or(|end| key < &end[..])
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.end.as_ref().map(|end| printable(end)).unwrap_or_default();
        write!(f, "[{}..{end})", printable(&self.start))
    }
}

/// Returns the first key after `key`: `key` with a zero byte behind it.
pub fn first_after(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

/// Returns `key` as a person may read it: bytes outside printable ASCII are escaped.
pub fn printable(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_its_start_and_not_its_end() {
        let range = KeyRange::new("b", Some("d"));
        assert!(range.contains(b"b") && range.contains(b"c\xff"));
        assert!(!range.contains(b"a\xff") && !range.contains(b"d"));
        assert!(KeyRange::all().contains(b"") && KeyRange::all().contains(&[0xff; 9]));
    }

    #[test]
    fn no_key_lies_between_one_and_the_first_after_it() {
        let after = first_after(b"b");
        assert!(b"b"[..] < after[..] && after[..] < b"b\x00\x00"[..] && after[..] < b"b\x01"[..]);
        assert_eq!(first_after(b""), b"\x00"[..]);
    }

    #[test]
    fn intersections_take_the_inner_ends() {
        let inner = KeyRange::new("b", Some("d"));
        assert_eq!(KeyRange::all().intersection(&inner), inner);
        let upper = KeyRange::new("c", None::<&str>);
        assert_eq!(inner.intersection(&upper), KeyRange::new("c", Some("d")));
        assert!(inner.intersection(&KeyRange::new("d", None::<&str>)).is_empty());
    }
}
