//! Cuts ranges in two that have grown larger than they are to be, as if it had been asked for
//! ([`crate::succession`]).
//!
//! The leader of each cohort does. It reads the rows of a range only once they may be too large, by what the
//! files take that they are in and what has been written since, so that most ranges are never read for it, and
//! one near its limit is not read over and over. What the rows take is counted in keys and values as they are.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{MissedTickBehavior, interval, sleep};
use trireme_storage::{CohortTable, TableError};
use trireme_types::limits::SCAN_ROWS_MAX;
use trireme_types::{CohortId, KeyRange, RangeDescriptor};

use crate::cohort::HostedCohort;
use crate::routes::Routes;
use crate::succession::{Change, Changes};

/// How often is looked whether a range has grown too large.
const INTERVAL: Duration = Duration::from_secs(5);

/// Which part of the limit must have been written to a range at the least before its rows are counted again: what is
/// written may replace what is there.
const WRITTEN_DIVISOR: u64 = 8;

/// How long is waited after each page of rows (at most 1 MiB), so that reading them takes a small part of what a
/// disk can do.
const PAGE_PAUSE: Duration = Duration::from_millis(20);

/// The most keys of a range that are remembered as places where it could be cut.
const PLACES_MAX: usize = 128;

/// Who sees to it that no range that is led here stays larger than it is to be.
pub(crate) struct Splitting {
    pub(crate) changes: Changes,
    /// How large the rows of a range may be, in bytes.
    pub(crate) bytes_max: u64,
}

impl Splitting {
    /// Runs until its task is aborted.
    pub(crate) async fn run(self) {
        let mut seen = BTreeMap::new();
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let routes = self.changes.router.routes();
            for entry in routes.map.ranges() {
                match self.may_split(&routes, entry) {
                    Some(hosted) => self.look(entry, hosted, &mut seen).await,
                    // Another leader may have had the rows exchanged before this one leads again.
                    None => drop(seen.remove(&entry.cohort)),
                }
            }
            seen.retain(|cohort, _| routes.map.of_cohort(*cohort).is_some());
        }
    }

    /// Returns the replica of a cohort that is led here and has nothing else to change into.
    fn may_split<'a>(
        &self,
        routes: &'a Routes,
        entry: &RangeDescriptor,
    ) -> Option<&'a Arc<HostedCohort>> {
        let hosted = routes.hosted.get(&entry.cohort)?;
        let config = routes.configs.get(&entry.cohort)?;
        let is_settled = config.replicas_missing() == 0
            && !routes.invitations.contains_key(&entry.cohort)
            && !hosted.table.is_sealed();
        let leads = hosted.replica.leader() == Some(self.changes.node);
        (is_settled && leads).then_some(hosted)
    }

    async fn look(
        &self,
        entry: &RangeDescriptor,
        hosted: &HostedCohort,
        seen: &mut BTreeMap<CohortId, Seen>,
    ) {
        //= RANGE-24
        let (cohort, written) = (entry.cohort, hosted.table.written_bytes());
        let known = match seen.entry(cohort) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let Ok(bytes) = hosted.table.file_bytes() else { return };
                unknown.insert(Seen { bytes, is_counted: false, written, split_at: None })
            }
        };
        if known.are_to_be_counted(written, self.bytes_max) {
            match survey(&hosted.table, &entry.range, self.bytes_max).await {
                Ok(Some(survey)) => *known = Seen::of(&survey, written, self.bytes_max),
                Ok(None) => return,
                Err(error) => return tracing::warn!(%cohort, %error, "the rows cannot be read"),
            }
            tracing::debug!(%cohort, bytes = known.bytes, "what the rows of the range take");
        }
        let Some(at) = known.split_at.clone() else { return };
        let bytes = known.bytes;
        tracing::info!(%cohort, bytes, at = %at.escape_ascii(), "splitting: the range is too large");
        if let Err(reason) = self.changes.change(cohort, &Change::Split(at)).await {
            tracing::info!(%cohort, %reason, "not split yet");
        }
    }
}

/// What is known of the size of a range.
#[derive(Clone, Debug)]
struct Seen {
    /// What its rows take; until they were counted, what the files take that they are in.
    bytes: u64,
    is_counted: bool,
    /// What had been written to the table by then.
    written: u64,
    /// Where it is to be split, if it was too large. It is asked for until the cohort has ended.
    split_at: Option<Bytes>,
}

impl Seen {
    fn of(survey: &Survey, written: u64, bytes_max: u64) -> Self {
        let split_at = if survey.bytes > bytes_max { survey.middle() } else { None };
        Self { bytes: survey.bytes, is_counted: true, written, split_at }
    }

    /// Decides whether the rows are to be counted (again), by what has been written by now.
    fn are_to_be_counted(&self, written: u64, bytes_max: u64) -> bool {
        let since = written.saturating_sub(self.written);
        let may_be_too_large = self.bytes.saturating_add(since) > bytes_max;
        let is_due = !self.is_counted || since >= bytes_max / WRITTEN_DIVISOR;
        may_be_too_large && is_due && self.split_at.is_none()
    }
}

/// Reads all rows of a range, a page at a time; returns `None` if the node stops meanwhile.
async fn survey(
    table: &CohortTable,
    range: &KeyRange,
    bytes_max: u64,
) -> Result<Option<Survey>, TableError> {
    let mut survey = Survey::new(bytes_max);
    let mut rest = range.clone();
    loop {
        let (table, from) = (table.clone(), rest.clone());
        let page = tokio::task::spawn_blocking(move || table.scan(&from, SCAN_ROWS_MAX, false));
        let Ok(page) = page.await else { return Ok(None) };
        let page = page?;
        for row in &page.rows {
            survey.take_in(&row.key, (row.key.len() + row.value.len()) as u64);
        }
        let Some(last) = page.last.filter(|_| page.more) else { return Ok(Some(survey)) };
        rest.start = [&last[..], &[0]].concat().into();
        sleep(PAGE_PAUSE).await;
    }
}

/// What the rows of a range take, and where it could be cut.
#[derive(Debug, Default)]
struct Survey {
    bytes: u64,
    /// Keys, each with what is below it.
    places: Vec<(u64, Bytes)>,
    /// How many bytes lie between two places at the least.
    apart: u64,
}

impl Survey {
    fn new(bytes_max: u64) -> Self {
        Self { apart: bytes_max / PLACES_MAX as u64, ..Self::default() }
    }

    /// Counts a row; rows come in the order of their keys.
    fn take_in(&mut self, key: &[u8], bytes: u64) {
        let due = self.places.last().map_or(0, |(below, _)| below + self.apart);
        // Nothing is below the first row.
        if self.bytes > 0 && self.bytes >= due {
            if self.places.len() == PLACES_MAX {
                self.thin_out();
            }
            // What the row was read with stays in memory no longer than the page.
            self.places.push((self.bytes, Bytes::copy_from_slice(key)));
        }
        self.bytes += bytes;
    }

    fn thin_out(&mut self) {
        let mut is_odd = false;
        self.places.retain(|_| {
            is_odd = !is_odd;
            is_odd
        });
        self.apart *= 2;
    }

    /// Returns the key at which both halves are most alike; `None` if there is one row at the most.
    fn middle(&self) -> Option<Bytes> {
        let half = self.bytes / 2;
        let nearest = self.places.iter().min_by_key(|(below, _)| below.abs_diff(half));
        nearest.map(|(_, key)| key.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn surveyed(rows: u64, bytes: u64, bytes_max: u64) -> Survey {
        let mut survey = Survey::new(bytes_max);
        for row in 0..rows {
            survey.take_in(format!("{row:08}").as_bytes(), bytes);
        }
        survey
    }

    /// [RANGE-24]
    #[test]
    fn a_range_is_cut_in_its_middle_whatever_its_size() {
        for (rows, bytes, bytes_max) in
            [(2, 1, MIB), (1_000, 2_000, MIB), (100_000, 64, MIB), (300_000, 1_000, MIB)]
        {
            let survey = surveyed(rows, bytes, bytes_max);
            assert_eq!(survey.bytes, rows * bytes);
            assert!(survey.places.len() <= PLACES_MAX, "{}", survey.places.len());
            let middle = survey.middle().expect("it has two rows");
            let below: u64 = std::str::from_utf8(&middle).unwrap().parse().unwrap();
            assert!(below.abs_diff(rows / 2) <= rows / 50, "{rows}: at {below}");
        }
    }

    /// [RANGE-24]
    #[test]
    fn a_range_of_one_row_is_not_cut() {
        assert_eq!(surveyed(1, 9 * MIB, MIB).middle(), None);
        assert_eq!(surveyed(0, 0, MIB).middle(), None);
        assert_eq!(surveyed(2, 9 * MIB, MIB).middle(), Some("00000001".into()));
    }

    /// [RANGE-24]
    #[test]
    fn rows_are_counted_only_when_they_may_be_too_large() {
        let of_files = |bytes| Seen { bytes, is_counted: false, written: 7, split_at: None };
        assert!(of_files(MIB + 1).are_to_be_counted(7, MIB), "others may have rows in them");
        assert!(!of_files(MIB).are_to_be_counted(7, MIB));
        assert!(of_files(MIB).are_to_be_counted(8, MIB));

        let half = Seen::of(&surveyed(2, MIB / 4, MIB), 7, MIB);
        assert!(!half.are_to_be_counted(7 + MIB / 2, MIB));
        assert!(half.are_to_be_counted(8 + MIB / 2, MIB));
        let nearly = Seen::of(&surveyed(2, MIB / 2, MIB), 7, MIB);
        assert!(!nearly.are_to_be_counted(6 + MIB / 8, MIB), "it may have replaced what is there");
        assert!(nearly.are_to_be_counted(7 + MIB / 8, MIB));
    }

    /// A split that comes to nothing is asked for again, though nothing is written any more. [RANGE-24]
    #[test]
    fn a_range_that_is_too_large_is_split_where_it_was_counted() {
        let large = Seen::of(&surveyed(3, MIB / 2, MIB), 7, MIB);
        assert_eq!(large.split_at, Some("00000001".into()));
        assert!(!large.are_to_be_counted(7 + MIB, MIB), "it is known where");
        assert_eq!(Seen::of(&surveyed(2, MIB / 2, MIB), 7, MIB).split_at, None);
        let one_row = Seen::of(&surveyed(1, 2 * MIB, MIB), 7, MIB);
        assert_eq!(one_row.split_at, None);
        assert!(!one_row.are_to_be_counted(7, MIB), "it stays as it is until more is written");
    }
}
