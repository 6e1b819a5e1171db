//! The map from keys to cohorts.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limits::{KEY_BYTES_MAX, RANGES_MAX};
use crate::{CohortId, KeyRange, printable};

/// One range and the cohort that serves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeDescriptor {
    /// The keys.
    pub range: KeyRange,
    /// The cohort that serves them.
    pub cohort: CohortId,
    /// Rises whenever the range's borders or its cohort change. A request names the epoch that
    /// it was routed by, and one routed by another epoch is answered with the newer route
    /// (C5; TiKV's region epoch).
    pub epoch: u64,
}

/// Every key's cohort: ranges in key order that leave no gap and never overlap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeMap {
    /// Rises with every change of the map.
    pub version: u64,
    ranges: Vec<RangeDescriptor>,
}

/// A list of ranges that is no map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeMapError {
    /// There is no range at all.
    #[error("a range map needs at least one range")]
    NoRange,
    /// More ranges than a map may hold.
    #[error("{0} ranges are more than the {RANGES_MAX} that a range map may hold")]
    TooMany(usize),
    /// A range that can hold no key.
    #[error("the range {0} holds no key: its start is not below its end")]
    EmptyRange(String),
    /// Two ranges hold the same keys.
    #[error("the ranges {0} and {1} overlap")]
    Overlap(String, String),
    /// Keys that no range holds.
    #[error("no range holds the keys {0}")]
    Gap(String),
    /// Split keys out of order, or one given twice.
    #[error("split keys must rise: '{}' is followed by '{}'", printable(.0), printable(.1))]
    SplitsOutOfOrder(Bytes, Bytes),
    /// An empty split key would make an empty first range.
    #[error("a split key must not be empty")]
    EmptySplit,
    /// A border longer than any key.
    #[error("the split key '{}...' is longer than {KEY_BYTES_MAX} bytes", printable(&.0[..16]))]
    SplitTooLong(Bytes),
}

impl RangeMap {
    /// Returns a map of these ranges, sorted, or says why they are none.
    pub fn new(version: u64, mut ranges: Vec<RangeDescriptor>) -> Result<Self, RangeMapError> {
        ranges.sort_by(|a, b| a.range.start.cmp(&b.range.start));
        validate(&ranges)?;
        Ok(Self { version, ranges })
    }

    /// Returns version 1 of the map that has a border at each of `splits`, with cohorts 1, 2, ...
    /// in key order.
    pub fn from_splits(splits: &[Bytes]) -> Result<Self, RangeMapError> {
        check_splits(splits)?;
        let starts = std::iter::once(Bytes::new()).chain(splits.iter().cloned());
        let ends = splits.iter().cloned().map(Some).chain(std::iter::once(None));
        let ranges = starts
            .zip(ends)
            .zip(1..)
            .map(|((start, end), id)| RangeDescriptor {
                range: KeyRange { start, end },
                cohort: CohortId(id),
                epoch: 1,
            })
            .collect();
        Self::new(1, ranges)
    }

    /// Returns the ranges in key order.
    pub fn ranges(&self) -> &[RangeDescriptor] {
        &self.ranges
    }

    /// Returns the range that holds `key`.
    pub fn find(&self, key: &[u8]) -> &RangeDescriptor {
        // The first range starts at the lowest key, so the partition point is at least 1.
        let after = self.ranges.partition_point(|entry| &entry.range.start[..] <= key);
        &self.ranges[after - 1]
    }

    /// Returns the range that `cohort` serves, if it serves one.
    pub fn of_cohort(&self, cohort: CohortId) -> Option<&RangeDescriptor> {
        self.ranges.iter().find(|entry| entry.cohort == cohort)
    }

    /// Returns the next version of the map, in which these ranges of these cohorts take the place of those
    /// of `ended`; `None` if one of those serves none. Their epochs are above its own, so that a client that
    /// was routed to it is answered with the newer route (C5).
    pub fn replace(
        &self,
        ended: &[CohortId],
        by: impl IntoIterator<Item = (KeyRange, CohortId)>,
    ) -> Option<Result<Self, RangeMapError>> {
        let of = |cohort: &CohortId| Some(self.of_cohort(*cohort)?.epoch);
        let epochs: Vec<_> = ended.iter().map(of).collect::<Option<_>>()?;
        let epoch = epochs.into_iter().max()?.saturating_add(1);
        let others = self.ranges.iter().filter(|entry| !ended.contains(&entry.cohort)).cloned();
        let new = by.into_iter().map(|(range, cohort)| RangeDescriptor { range, cohort, epoch });
        Some(Self::new(self.version.saturating_add(1), others.chain(new).collect()))
    }

    /// Checks a map that came from outside, from a disk or a network.
    pub fn validate(&self) -> Result<(), RangeMapError> {
        validate(&self.ranges)
    }
}

/// Returns the borders that cut the keys into `count` ranges, evenly by first letters from `a` to
/// `z`: a default for trying things out, since nothing is known yet about the keys to come.
pub fn even_splits(count: usize) -> Vec<Bytes> {
    const LETTERS: usize = 26;
    let cells = LETTERS * LETTERS * LETTERS;
    let count = count.clamp(1, cells);
    let letter = |digit: usize| b'a' + u8::try_from(digit % LETTERS).expect("a digit below 26");
    (1..count)
        .map(|i| {
            let cell = i * cells / count;
            let mut border =
                vec![letter(cell / LETTERS / LETTERS), letter(cell / LETTERS), letter(cell)];
            while border.len() > 1 && border.last() == Some(&b'a') {
                border.pop();
            }
            Bytes::from(border)
        })
        .collect()
}

/// Checks that there can be a border at a key.
pub fn check_split_key(key: &Bytes) -> Result<(), RangeMapError> {
    if key.len() > KEY_BYTES_MAX {
        return Err(RangeMapError::SplitTooLong(key.clone()));
    }
    if key.is_empty() { Err(RangeMapError::EmptySplit) } else { Ok(()) }
}

fn check_splits(splits: &[Bytes]) -> Result<(), RangeMapError> {
    splits.iter().try_for_each(check_split_key)?;
    match splits.windows(2).find(|pair| pair[0] >= pair[1]) {
        Some(pair) => Err(RangeMapError::SplitsOutOfOrder(pair[0].clone(), pair[1].clone())),
        None => Ok(()),
    }
}

fn validate(ranges: &[RangeDescriptor]) -> Result<(), RangeMapError> {
    if ranges.len() > RANGES_MAX {
        return Err(RangeMapError::TooMany(ranges.len()));
    }
    if let Some(empty) = ranges.iter().find(|entry| entry.range.is_empty()) {
        return Err(RangeMapError::EmptyRange(empty.range.to_string()));
    }
    let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
        return Err(RangeMapError::NoRange);
    };
    if !first.range.start.is_empty() {
        return Err(gap(&Bytes::new(), Some(&first.range.start)));
    }
    for pair in ranges.windows(2) {
        let (low, high) = (&pair[0].range, &pair[1].range);
        match &low.end {
            Some(end) if *end == high.start => {}
            Some(end) if *end < high.start => {
                return Err(gap(end, Some(&high.start)));
            }
            _ => return Err(RangeMapError::Overlap(low.to_string(), high.to_string())),
        }
    }
    match &last.range.end {
        Some(end) => Err(gap(end, None)),
        None => Ok(()),
    }
}

fn gap(start: &Bytes, end: Option<&Bytes>) -> RangeMapError {
    RangeMapError::Gap(KeyRange { start: start.clone(), end: end.cloned() }.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splits(keys: &[&str]) -> Vec<Bytes> {
        keys.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect()
    }

    fn descriptor(start: &str, end: Option<&str>, cohort: u64) -> RangeDescriptor {
        let range = KeyRange::new(start.to_owned(), end.map(str::to_owned));
        RangeDescriptor { range, cohort: CohortId(cohort), epoch: 1 }
    }

    #[test]
    fn every_key_has_exactly_one_cohort() {
        let map = RangeMap::from_splits(&splits(&["g", "n", "t"])).unwrap();
        for (key, cohort) in [("", 1), ("fzz", 1), ("g", 2), ("m\u{ff}", 2), ("t", 4), ("zz", 4)] {
            assert_eq!(map.find(key.as_bytes()).cohort, CohortId(cohort), "key {key:?}");
            let holders = map.ranges().iter().filter(|r| r.range.contains(key.as_bytes()));
            assert_eq!(holders.count(), 1, "key {key:?}");
        }
    }

    #[test]
    fn splits_that_do_not_rise_are_refused() {
        for bad in [&["m", "m"][..], &["t", "g"], &[""]] {
            assert!(RangeMap::from_splits(&splits(bad)).is_err(), "{bad:?} made a map");
        }
    }

    #[test]
    fn gaps_and_overlaps_are_named() {
        let gap = vec![descriptor("", Some("c"), 1), descriptor("d", None, 2)];
        assert!(matches!(RangeMap::new(1, gap), Err(RangeMapError::Gap(_))));
        let overlap = vec![descriptor("", Some("e"), 1), descriptor("d", None, 2)];
        assert!(matches!(RangeMap::new(1, overlap), Err(RangeMapError::Overlap(..))));
        let low = vec![descriptor("b", None, 1)];
        assert!(matches!(RangeMap::new(1, low), Err(RangeMapError::Gap(_))));
        let high = vec![descriptor("", Some("x"), 1)];
        assert!(matches!(RangeMap::new(1, high), Err(RangeMapError::Gap(_))));
        assert_eq!(RangeMap::new(1, vec![]), Err(RangeMapError::NoRange));
    }

    #[test]
    fn a_cohort_is_replaced_by_those_that_hold_its_range_and_no_others() {
        let map = RangeMap::from_splits(&splits(&["g", "n"])).unwrap();
        let whole = [(KeyRange::new("g", Some("n")), CohortId(9))];
        let replaced = map.replace(&[CohortId(2)], whole).unwrap().unwrap();
        assert_eq!((replaced.version, replaced.find(b"h").cohort), (2, CohortId(9)));
        assert_eq!((replaced.find(b"h").epoch, replaced.find(b"a").epoch), (2, 1));
        let half = [(KeyRange::new("g", Some("j")), CohortId(9))];
        assert!(matches!(map.replace(&[CohortId(2)], half), Some(Err(RangeMapError::Gap(_)))));
        assert_eq!(map.replace(&[CohortId(7)], []), None);
    }

    #[test]
    fn even_splits_always_make_a_map_of_that_many_ranges() {
        for count in [1, 2, 4, 16, 26, 100, 1000] {
            let map = RangeMap::from_splits(&even_splits(count)).unwrap();
            assert_eq!(map.ranges().len(), count);
        }
        assert_eq!(even_splits(4), splits(&["gn", "n", "tn"]));
    }
}
