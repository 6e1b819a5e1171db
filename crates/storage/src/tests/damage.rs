//! One bit of a file of the tables that became another: it is found when the tables are opened or
//! when the row is read, the file is named, and from then on the tables take no more writes. What a
//! reader is given is what was written. The files are those of a table that was closed in order.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::TableError;

for_each_engine!(a_flipped_bit_is_found_and_never_served,);

/// The rows of the table that is damaged.
const ROWS: usize = 1500;

/// How many places of each file are tried, beside its first and last bytes.
const PLACES: usize = 30;

/// How many bytes at each end of a file are all tried.
const ENDS: usize = 12;

/// What became of tables of which a bit was flipped.
#[derive(Debug)]
enum Effect {
    /// The bit stands for nothing: everything is as it was.
    Nothing,
    /// They were not opened.
    Refused(TableError),
    /// They were opened, and a read failed.
    ReadFailed(TableError),
}

fn a_flipped_bit_is_found_and_never_served(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    let table = fixture.cohort();
    // Several flushes, so that there are several files, and rows that no other file covers.
    for part in 0..3 {
        for row in (part..ROWS).step_by(3) {
            apply(&table, vec![put(&format!("k{row:05}"), &format!("value {row:0>60}"))]);
        }
        fixture.tables().flush().unwrap();
    }
    let (expected, applied) = (all_rows(&table), table.applied());
    drop(table);
    fixture.tables.take().unwrap().close().unwrap();
    let whole = files(fixture.path());
    let (mut refusals, mut failures) = (0, 0);
    for (path, bytes) in &whole {
        for place in places(bytes.len()) {
            restore(fixture.path(), &whole);
            let mut damaged = bytes.clone();
            damaged[place] ^= 1 << (place % 8);
            fs::write(path, &damaged).unwrap();
            let came = look(&fixture, place, &expected, applied);
            let said = format!("byte {place} of {}: {came:?}", path.display());
            match came {
                // Old lists of files are not read, nor are a few bytes at the ends of the others.
                Effect::Nothing => {}
                Effect::Refused(error) => {
                    refusals += 1;
                    assert!(names(&error, path), "{said}");
                }
                Effect::ReadFailed(error) => {
                    failures += 1;
                    assert!(names(&error, path), "{said}");
                }
            }
        }
    }
    // sled's files are compared as a whole when they are opened.
    assert!(refusals > 0 && (failures > 0 || engine == Engine::Sled), "{refusals} {failures}");
}

/// Opens the tables and reads everything there is, in every way there is.
fn look(fixture: &Fixture, place: usize, expected: &[Row], applied: Lsn) -> Effect {
    let tables = match Tables::open(fixture.path(), fixture.options.clone()) {
        Ok(tables) => tables,
        Err(error) => return Effect::Refused(error),
    };
    let failures = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&failures);
    tables.on_failure(Box::new(move |_| {
        count.fetch_add(1, Ordering::AcqRel);
    }));
    let table = match tables.cohort(COHORT, KeyRange::all()) {
        Ok(table) => table,
        Err(error) => return Effect::Refused(error),
    };
    let mut failed = None;
    // Each way is the first one at some places.
    for way in 0..WAYS.len() {
        match WAYS[(way + place) % WAYS.len()](&table, expected) {
            Ok(()) => {}
            Err(error) if failed.is_none() => failed = Some(error),
            Err(_) => {}
        }
    }
    assert_eq!(table.applied(), applied);
    match failed {
        None => Effect::Nothing,
        Some(error) => {
            assert_eq!(failures.load(Ordering::Acquire), 1, "nobody heard of {error}");
            let refused = table.apply(&[entry(applied.seq + 1, vec![])]).unwrap_err();
            assert!(matches!(refused, TableError::Failed { .. }), "{refused}");
            Effect::ReadFailed(error)
        }
    }
}

/// A way to read all rows, which checks those that it is given.
type Way = fn(&CohortTable, &[Row]) -> Result<(), TableError>;

/// All ways to read.
const WAYS: [Way; 5] = [
    |table, expected| {
        for row in expected {
            assert_eq!(table.get(&row.key)?.as_ref(), Some(row));
        }
        Ok(())
    },
    |table, expected| {
        assert_eq!(table.scan(&KeyRange::all(), usize::MAX, false)?.rows, expected);
        Ok(())
    },
    |table, expected| {
        for row in expected {
            assert_eq!(table.get_with_applied(&row.key)?.0.as_ref(), Some(row));
        }
        Ok(())
    },
    |table, expected| {
        let (page, _) = table.scan_with_applied(&KeyRange::all(), usize::MAX, true)?;
        assert!(page.rows.iter().rev().eq(expected));
        Ok(())
    },
    |table, expected| {
        let mut snapshot = table.snapshot()?;
        let mut bytes = 0;
        while let Some(chunk) = snapshot.next_chunk()? {
            bytes += chunk.len();
        }
        let rows: usize = expected.iter().map(|row| row.key.len() + row.value.len()).sum();
        assert!(bytes > rows);
        Ok(())
    },
];

fn names(error: &TableError, path: &Path) -> bool {
    let folder = path.parent().unwrap();
    // Of a claim that is none any more, the folder that it makes is named.
    let name = if path.ends_with("FORMAT") { folder } else { path };
    error.to_string().contains(name.to_str().unwrap())
}

fn places(len: usize) -> Vec<usize> {
    let ends = (0..ENDS.min(len)).chain(len.saturating_sub(ENDS)..len);
    let mut places: Vec<_> = ends.chain((0..PLACES).map(|step| step * len / PLACES)).collect();
    places.retain(|place| *place < len);
    places.sort_unstable();
    places.dedup();
    places
}

fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn restore(folder: &Path, whole: &[(PathBuf, Vec<u8>)]) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }
    for (path, bytes) in whole {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}
