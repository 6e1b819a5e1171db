//! Scans: rows in key order, over as many pages and ranges as they lie in.

use std::ops::{Range, RangeFrom, RangeFull, RangeTo};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use trireme_proto::v1;
use trireme_proto::v1::response;
use trireme_types::limits::{KEY_BYTES_MAX, SCAN_ROWS_MAX};
use trireme_types::{Consistency, KeyRange, Version};

use crate::ClientError;
use crate::client::{Client, Freshness, freshness};
use crate::request::Request;

/// The keys that a scan reads: an interval of keys, of which any type that is one may be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanRange(KeyRange);

/// One key and its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The value's version.
    pub version: Version,
}

/// Rows that were read together, in one moment of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The rows, in the order of the scan. May be none.
    pub rows: Vec<Row>,
    /// The keys that the page covers: the rows are all that it holds.
    pub covered: KeyRange,
    /// How old the state is that was read; only of timeline scans.
    pub freshness: Option<Freshness>,
}

/// A scan on its way. First say how, then take rows: one by one ([`Scan::next`]), page by page
/// ([`Scan::next_page`]), all at once ([`Scan::collect`]), or as a stream ([`Scan::rows`],
/// [`Scan::pages`]).
///
/// Each page is what its replica held in one moment; a scan of several pages is not one moment's
/// picture: a row that is written meanwhile may be met in its old or its new state. A row that is
/// not written meanwhile is met exactly once.
///
/// After an error the scan stands where it stood, and going on tries the same page again.
#[derive(Clone, Debug)]
pub struct Scan {
    client: Client,
    /// What is left to cover; empty once the scan is complete.
    left: KeyRange,
    /// How many more rows are wanted; `None` is all.
    rows_left: Option<usize>,
    page_rows: usize,
    reverse: bool,
    consistency: Consistency,
    deadline: Option<Duration>,
    /// The rows of the page at hand that [`Scan::next`] has not returned yet.
    page: std::vec::IntoIter<Row>,
}

impl Scan {
    pub(crate) fn new(client: Client, range: ScanRange) -> Self {
        Self {
            client,
            left: range.0,
            rows_left: None,
            page_rows: SCAN_ROWS_MAX,
            reverse: false,
            consistency: Consistency::Strong,
            deadline: None,
            page: Vec::new().into_iter(),
        }
    }

    /// Ends the scan after this many rows.
    #[must_use]
    pub fn limit(mut self, rows: usize) -> Self {
        self.rows_left = Some(rows);
        self
    }

    /// Returns the highest key first.
    #[must_use]
    pub fn reverse(mut self) -> Self {
        self.reverse = true;
        self
    }

    /// Says which state may be read. Default: strong.
    #[must_use]
    pub fn consistency(mut self, consistency: Consistency) -> Self {
        self.consistency = consistency;
        self
    }

    /// Asks for at most this many rows a page; 0 counts as 1, and a server may return fewer.
    /// Default: [`SCAN_ROWS_MAX`], the most that a server returns.
    #[must_use]
    pub fn page_rows(mut self, rows: usize) -> Self {
        self.page_rows = rows.clamp(1, SCAN_ROWS_MAX);
        self
    }

    /// Says how long each page may take. Default: the client's deadline.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Returns the next row; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Row>, ClientError> {
        loop {
            if let Some(row) = self.page.next() {
                return Ok(Some(row));
            }
            match self.next_page().await? {
                Some(page) => self.page = page.rows.into_iter(),
                None => return Ok(None),
            }
        }
    }

    /// Returns the next page, which may hold no row; `None` after the last. Rows of an earlier
    /// page that [`Scan::next`] has not returned are passed over.
    pub async fn next_page(&mut self) -> Result<Option<Page>, ClientError> {
        self.page = Vec::new().into_iter();
        if self.left.is_empty() || self.rows_left == Some(0) {
            return Ok(None);
        }
        let limit = self.rows_left.map_or(self.page_rows, |left| left.min(self.page_rows));
        let request = Request::Scan {
            start: self.left.start.clone(),
            end: self.left.end.clone(),
            limit: u32::try_from(limit).expect("at most SCAN_ROWS_MAX"),
            reverse: self.reverse,
            consistency: self.consistency,
        };
        let response::Result::Scan(answer) = self.client.run(&request, self.deadline).await? else {
            return Err(self.client.meaningless(&request, "it is none to a scan".to_owned()));
        };
        let page = self.page(answer, limit);
        let page = page.map_err(|reason| self.client.meaningless(&request, reason.to_owned()))?;
        self.advance(&page);
        Ok(Some(page))
    }

    /// Returns all rows that are left.
    pub async fn collect(mut self) -> Result<Vec<Row>, ClientError> {
        let mut rows: Vec<Row> = self.page.by_ref().collect();
        while let Some(page) = self.next_page().await? {
            rows.extend(page.rows);
        }
        Ok(rows)
    }

    /// Returns the rows as a stream, which ends after the first error.
    pub fn rows(self) -> impl Stream<Item = Result<Row, ClientError>> + Send {
        self.pages().map_ok(|page| stream::iter(page.rows).map(Ok)).try_flatten()
    }

    /// Returns the pages as a stream, which ends after the first error.
    pub fn pages(self) -> impl Stream<Item = Result<Page, ClientError>> + Send {
        stream::try_unfold(self, |mut scan| async move {
            Ok(scan.next_page().await?.map(|page| (page, scan)))
        })
    }

    /// Checks an answer: it must go on where the scan stands, cover some key, and hold rows of the
    /// covered keys only, in order. Else the scan could miss or repeat rows, or never end.
    fn page(&self, answer: v1::ScanResponse, limit: usize) -> Result<Page, &'static str> {
        let told = KeyRange { start: answer.covered_start, end: answer.covered_end };
        let goes_on = if self.reverse {
            match (&told.end, &self.left.end) {
                (None, _) => true,
                (Some(told), Some(left)) => told >= left,
                (Some(_), None) => false,
            }
        } else {
            told.start <= self.left.start
        };
        let covered = told.intersection(&self.left);
        if !goes_on || covered.is_empty() {
            return Err("a page that covers none of the next keys");
        }
        if answer.rows.len() > limit {
            return Err("more rows than were asked for");
        }
        if !answer.rows.iter().all(|row| covered.contains(&row.key)) {
            return Err("a row outside the keys that the page covers");
        }
        let in_order = |pair: &[v1::Row]| (pair[0].key < pair[1].key) != self.reverse;
        let distinct = |pair: &[v1::Row]| pair[0].key != pair[1].key;
        if !answer.rows.windows(2).all(|pair| in_order(pair) && distinct(pair)) {
            return Err("rows out of order");
        }
        let rows = answer
            .rows
            .into_iter()
            .map(|row| Row { key: row.key, value: row.value, version: Version(row.version) })
            .collect();
        Ok(Page { rows, covered, freshness: answer.freshness.map(freshness) })
    }

    fn advance(&mut self, page: &Page) {
        if let Some(left) = &mut self.rows_left {
            *left = left.saturating_sub(page.rows.len());
        }
        if self.reverse {
            // With the start as its end, what is left is empty once the page reached the start.
            self.left.end = Some(page.covered.start.clone());
        } else {
            match page.covered.end.as_ref().and_then(lowest_key_from) {
                Some(start) => self.left.start = start,
                None => self.left.end = Some(self.left.start.clone()),
            }
        }
    }
}

impl ScanRange {
    /// Returns every key.
    pub const fn all() -> Self {
        Self(KeyRange::all())
    }

    /// Returns the keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = first_past_prefix(&start);
        Self(KeyRange { start, end })
    }
}

impl From<KeyRange> for ScanRange {
    fn from(range: KeyRange) -> Self {
        Self(range)
    }
}

impl From<RangeFull> for ScanRange {
    fn from(_all: RangeFull) -> Self {
        Self::all()
    }
}

impl<K: Into<Bytes>> From<Range<K>> for ScanRange {
    fn from(range: Range<K>) -> Self {
        Self(KeyRange::new(range.start, Some(range.end)))
    }
}

impl<K: Into<Bytes>> From<RangeFrom<K>> for ScanRange {
    fn from(range: RangeFrom<K>) -> Self {
        Self(KeyRange { start: range.start.into(), end: None })
    }
}

impl<K: Into<Bytes>> From<RangeTo<K>> for ScanRange {
    fn from(range: RangeTo<K>) -> Self {
        Self(KeyRange { start: Bytes::new(), end: Some(range.end.into()) })
    }
}

/// Returns the first key past all those that begin with `prefix`: its last byte raised, after the
/// bytes that cannot be raised are taken off. `None` if no key lies past them.
fn first_past_prefix(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut past = prefix[..=last].to_vec();
    past[last] += 1;
    Some(Bytes::from(past))
}

/// Returns the lowest key that is not below `border` and no longer than keys may be. A border may
/// be one byte longer, where a page ends right after the longest possible key.
fn lowest_key_from(border: &Bytes) -> Option<Bytes> {
    match border.get(..KEY_BYTES_MAX) {
        // No key begins with these bytes and has more of them.
        Some(longest) if border.len() > KEY_BYTES_MAX => first_past_prefix(longest),
        _ => Some(border.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_the_interval_of_the_keys_that_begin_with_it() {
        for (prefix, end) in [
            (&b"ab"[..], Some(&b"ac"[..])),
            (b"a\xff", Some(b"b")),
            (b"\xff\xff", None),
            (b"", None),
        ] {
            let range = ScanRange::prefix(Bytes::copy_from_slice(prefix)).0;
            assert_eq!((&range.start[..], range.end.as_deref()), (prefix, end));
        }
    }

    #[test]
    fn a_scan_goes_on_past_the_longest_possible_key() {
        let longest = vec![7; KEY_BYTES_MAX];
        let border = Bytes::from([&longest[..], &[0]].concat());
        let next = lowest_key_from(&border).unwrap();
        assert!(next.len() == KEY_BYTES_MAX && next > border && next[KEY_BYTES_MAX - 1] == 8);
        let highest = Bytes::from(vec![u8::MAX; KEY_BYTES_MAX + 1]);
        assert_eq!(lowest_key_from(&highest), None);
        assert_eq!(lowest_key_from(&Bytes::from(longest.clone())), Some(longest.into()));
    }

    #[test]
    fn every_kind_of_interval_is_a_scan_range() {
        let ab = KeyRange::new("a", Some("b"));
        assert_eq!(ScanRange::from("a".."b").0, ab);
        assert_eq!(ScanRange::from("a"..).0, KeyRange::new("a", None::<&str>));
        assert_eq!(ScanRange::from(.."b").0, KeyRange::new("", Some("b")));
        assert_eq!(ScanRange::from(..).0, KeyRange::all());
    }
}
