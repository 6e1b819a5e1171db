//! Where a cohort's rows lie: under its own number, or where the cohorts had them that it goes on from.

use std::sync::Arc;

use trireme_types::{CohortId, KeyRange};

use crate::table::keys::{self, Place};
use crate::table::{Span, TableError};

/// The most parts that a cohort's rows may lie in for it to be merged with another. All of them are written
/// with every batch that is applied.
pub(crate) const PARTS_MAX: usize = 64;

/// Where a cohort's rows lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Under its own number, in the generation in force: all that are there.
    #[default]
    Own,
    /// Under other cohorts' numbers. There is at least one part, and together they are the range.
    Elsewhere(Arc<[Part]>),
}

/// A part of a cohort's rows, under another cohort's number. Other rows of that place are others'
/// (RANGE-12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The place.
    pub(crate) place: Place,
    /// Which of the rows there.
    pub(crate) range: KeyRange,
}

impl Part {
    /// Returns the span of its rows.
    pub(crate) fn span(&self) -> Span {
        self.place.rows(&self.range)
    }
}

impl Rows {
    /// Returns the rows that lie in these parts, in key order.
    pub(crate) fn elsewhere(parts: Vec<Part>) -> Self {
        let mut joined: Vec<Part> = Vec::with_capacity(parts.len());
        for part in parts {
            match joined.last_mut() {
                // Two halves that are one again.
                Some(last)
                    if last.place == part.place
                        && last.range.end == Some(part.range.start.clone()) =>
                {
                    last.range.end = part.range.end;
                }
                _ => joined.push(part),
            }
        }
        Self::Elsewhere(joined.into())
    }

    /// Returns the parts that lie under other cohorts' numbers.
    pub(crate) fn parts(&self) -> &[Part] {
        match self {
            Self::Own => &[],
            Self::Elsewhere(parts) => parts,
        }
    }

    /// Returns where the row of a key lies, of the cohort whose own place is `own`.
    pub(crate) fn place_of(&self, own: Place, key: &[u8]) -> Place {
        match self {
            Self::Own => own,
            Self::Elsewhere(parts) => {
                let above = parts.partition_point(|part| &part.range.start[..] <= key);
                parts[above.max(1) - 1].place
            }
        }
    }

    /// Returns the parts that lie in `range`, in key order, of the cohort whose own place is `own`.
    pub(crate) fn within(&self, own: Place, range: &KeyRange) -> Vec<Part> {
        match self {
            Self::Own => vec![Part { place: own, range: range.clone() }],
            Self::Elsewhere(parts) => {
                let cut = parts
                    .iter()
                    .map(|part| Part { place: part.place, range: part.range.intersection(range) });
                cut.filter(|part| !part.range.is_empty()).collect()
            }
        }
    }

    /// Returns the spans of the rows in `range`, in the order in which they are to be read.
    pub(crate) fn spans(&self, own: Place, range: &KeyRange, reverse: bool) -> Vec<Span> {
        let parts = self.within(own, range);
        let mut spans: Vec<_> = parts.iter().map(|part| Span { reverse, ..part.span() }).collect();
        if reverse {
            spans.reverse();
        }
        spans
    }

    /// Returns the spans of those rows that are under the number of `cohort`, another one.
    pub(crate) fn under(&self, cohort: CohortId) -> impl Iterator<Item = Span> {
        let there = self.parts().iter().filter(move |part| part.place.cohort == cohort);
        there.map(Part::span)
    }

    /// Appends what a meta row says of the parts: how many, if they are several, and then each.
    pub(crate) fn encode(&self, mut bytes: Vec<u8>) -> Vec<u8> {
        if let count @ 2.. = self.parts().len() {
            bytes.extend_from_slice(&(count as u64).to_be_bytes());
        }
        for Part { place, range } in self.parts() {
            bytes.extend_from_slice(&place.cohort.0.to_be_bytes());
            bytes.extend_from_slice(&place.generation.to_be_bytes());
            bytes = postcard::to_extend(range, bytes)
                .expect("a range holds nothing that postcard cannot write, and a Vec always grows");
        }
        bytes
    }

    /// Reads what [`Rows::encode`] wrote of one part, or of several.
    pub(crate) fn decode(
        cohort: CohortId,
        what: &'static str,
        mut bytes: &[u8],
        are_several: bool,
    ) -> Result<Self, TableError> {
        let corrupt = |reason: &str| keys::corrupt(cohort, what, reason.to_owned());
        let mut count = 1;
        if are_several {
            let (first, rest) =
                bytes.split_first_chunk().ok_or_else(|| corrupt("its count of parts is cut"))?;
            (count, bytes) = (u64::from_be_bytes(*first), rest);
        }
        let mut parts: Vec<Part> = Vec::new();
        for _ in 0..count {
            let place = keys::place_of(bytes).ok_or_else(|| corrupt("a part of it is cut"))?;
            let malformed = |error: postcard::Error| corrupt(&error.to_string());
            let (range, rest): (KeyRange, _) =
                postcard::take_from_bytes(&bytes[keys::PLACE_BYTES..]).map_err(malformed)?;
            if place.generation == 0 {
                return Err(corrupt("its rows lie in generation 0"));
            }
            let is_behind =
                |last: &Part| last.range.end.as_ref().is_some_and(|end| *end == range.start);
            if !parts.last().is_none_or(is_behind) {
                return Err(corrupt("the parts of its rows do not follow one another"));
            }
            parts.push(Part { place, range });
            bytes = rest;
        }
        if !bytes.is_empty() || are_several == (count <= 1) {
            return Err(corrupt("it has other parts than it says"));
        }
        Ok(Self::Elsewhere(parts.into()))
    }
}
