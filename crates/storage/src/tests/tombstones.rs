//! Scans over deleted rows: they give way, go on where they stopped, and have tombstones removed.

use std::time::{Duration, Instant};

use trireme_types::limits::SCAN_ROWS_MAX;
use trireme_types::{KeyRange, first_after};

use super::{apply, delete, put};
use crate::{CohortTable, ScanPage, TableOptions, Tables};

/// Several times what a page may read.
const DELETED: usize = 6 * SCAN_ROWS_MAX;

/// More deleted rows than one page passes over, and fewer than have the tables merged.
const FEW_DELETED: usize = 3 * SCAN_ROWS_MAX;

/// Fills a table with rows that are deleted again, and one below and one above them that are not.
fn fill(table: &CohortTable, deleted: usize) {
    let keys: Vec<String> = (0..deleted).map(|i| format!("m{i:06}")).collect();
    apply(table, vec![put("a", "first"), put("z", "last")]);
    for part in keys.chunks(1000) {
        apply(table, part.iter().map(|key| put(key, "gone")).collect());
    }
    for part in keys.chunks(1000) {
        apply(table, part.iter().map(|key| delete(key)).collect());
    }
}

/// Returns the pages of a scan of everything.
fn pages(table: &CohortTable, reverse: bool) -> Vec<ScanPage> {
    let (mut range, mut pages) = (KeyRange::all(), Vec::new());
    loop {
        let page = table.scan(&range, SCAN_ROWS_MAX, reverse).unwrap();
        let last = page.last.clone();
        pages.push(page);
        match last {
            None => return pages,
            Some(last) if reverse => range.end = Some(last),
            Some(last) => range.start = first_after(&last),
        }
    }
}

fn keys(pages: &[ScanPage]) -> Vec<&[u8]> {
    pages.iter().flat_map(|page| &page.rows).map(|row| &row.key[..]).collect()
}

#[test]
fn a_page_ends_early_among_deleted_rows_and_the_scan_goes_on_behind_it() {
    for (reverse, expected) in [(false, [b"a", b"z"]), (true, [b"z", b"a"])] {
        let dir = tempfile::tempdir().unwrap();
        let tables = Tables::open(dir.path(), TableOptions::default()).unwrap();
        let table = tables.cohort(super::COHORT, KeyRange::all()).unwrap();
        fill(&table, FEW_DELETED);
        let pages = pages(&table, reverse);
        assert!(pages.len() > 1, "one page passed over every deleted row");
        assert_eq!(keys(&pages), expected);
        assert!(pages.iter().all(|page| page.more == page.last.is_some()));
        assert_eq!(tables.metrics().purges, 0);
    }
}

#[test]
fn older_versions_of_a_row_count_as_work_and_hide_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let tables = Tables::open(dir.path(), TableOptions::default()).unwrap();
    let table = tables.cohort(super::COHORT, KeyRange::all()).unwrap();
    apply(&table, vec![put("a", "first"), put("z", "last")]);
    for version in 0..3 * SCAN_ROWS_MAX {
        apply(&table, vec![put("m", &version.to_string())]);
    }
    for reverse in [false, true] {
        let pages = pages(&table, reverse);
        assert!(pages.len() > 1, "one page read every version");
        let mut keys = keys(&pages);
        keys.sort_unstable();
        assert_eq!(keys, [b"a", b"m", b"z"]);
        let hot = pages.iter().flat_map(|page| &page.rows).find(|row| row.key == "m").unwrap();
        assert_eq!(hot.value, (3 * SCAN_ROWS_MAX - 1).to_string());
    }
}

#[test]
fn scans_have_tombstones_removed() {
    // With room in memory for all of it: nothing is flushed, and so merged, before a scan asks for it.
    let dir = tempfile::tempdir().unwrap();
    let tables = Tables::open(dir.path(), TableOptions::default()).unwrap();
    let table = tables.cohort(super::COHORT, KeyRange::all()).unwrap();
    fill(&table, DELETED);
    assert_eq!(tables.metrics().flushes, 0, "tombstones went without a scan");
    let deadline = Instant::now() + Duration::from_secs(60);
    while tables.metrics().purges == 0 {
        assert!(Instant::now() < deadline, "the tombstones stay");
        assert_eq!(keys(&pages(&table, false)), [b"a", b"z"]);
    }
    assert_eq!(keys(&pages(&table, true)), [b"z", b"a"]);
    assert_eq!(pages(&table, false).len(), 1, "tombstones are left");
}
