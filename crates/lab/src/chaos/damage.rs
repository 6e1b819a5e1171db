//! Damage at rest: a bit that flips in a file of a process that is down.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rand::RngExt;
use rand::rngs::StdRng;

/// Damage in the newest segments may look like a write that a crash has torn, of which nothing was
/// acknowledged.
const SPARED: usize = 2;

/// The files in which a node keeps what it knows of itself and of the cluster.
const RECORDS: [&str; 2] = ["node.json", "memory.json"];

/// How often the log is what is damaged, rather than a record: one of so many is a record.
const RECORDS_ONE_OF: u32 = 4;

/// The length of the empty frame that a coordinator that stops in order ends its log with. Damage in
/// the last frame cannot be distinguished from a torn write.
const EMPTY_FRAME_BYTES: usize = 24;

/// Flips a bit in a node's data folder that its next start must find: in an older segment of its log,
/// where something is written, or in a record. Returns the file; `None` if the log has no older
/// segment and that was to be it.
pub(super) fn flip_in_node(data: &Path, rng: &mut StdRng) -> anyhow::Result<Option<PathBuf>> {
    let is_record = rng.random_ratio(1, RECORDS_ONE_OF);
    let mut paths = if is_record {
        RECORDS.map(|name| data.join(name)).into_iter().filter(|path| path.is_file()).collect()
    } else {
        let mut segments = files(&data.join("log"))?;
        segments.retain(|path| {
            let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".log"));
            number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        });
        segments.truncate(segments.len().saturating_sub(SPARED));
        segments
    };
    flip_in_one_of(&mut paths, 0, rng)
}

/// Flips a bit in a file of a node's tables, which the node reads at its start, later or never. Returns
/// the file; `None` if there is none.
pub(super) fn flip_in_tables(data: &Path, rng: &mut StdRng) -> anyhow::Result<Option<PathBuf>> {
    let mut paths = files(&data.join("tables"))?;
    paths.retain(|path| !is_lock(path));
    flip_in_one_of(&mut paths, 0, rng)
}

/// Flips a bit in the data of a coordinator that has stopped in order. Returns the file.
pub(super) fn flip_in_coordinator(
    data: &Path,
    rng: &mut StdRng,
) -> anyhow::Result<Option<PathBuf>> {
    let mut paths = files(data)?;
    paths.retain(|path| !is_lock(path));
    flip_in_one_of(&mut paths, EMPTY_FRAME_BYTES, rng)
}

/// Flips a bit of one of the files, where something is written, and not in the last `spared` bytes.
fn flip_in_one_of(
    paths: &mut Vec<PathBuf>,
    spared: usize,
    rng: &mut StdRng,
) -> anyhow::Result<Option<PathBuf>> {
    while !paths.is_empty() {
        let path = paths.swap_remove(rng.random_range(0..paths.len()));
        let reading = || format!("reading {}", path.display());
        let mut bytes = fs::read(&path).with_context(reading)?;
        let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let written = written.min(bytes.len().saturating_sub(spared));
        if written == 0 {
            continue;
        }
        bytes[rng.random_range(0..written)] ^= 1 << rng.random_range(0..8);
        fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        return Ok(Some(path));
    }
    Ok(None)
}

/// Returns all files below a folder, in the order of their names; none if it is not there.
fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop().filter(|folder| folder.is_dir()) {
        let reading = || format!("reading {}", folder.display());
        for entry in fs::read_dir(&folder).with_context(reading)? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    Ok(found)
}

fn is_lock(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.eq_ignore_ascii_case("lock"))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn one_bit_of_an_older_segment_or_a_record_is_another_one() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let log = folder.path().join("log");
        fs::create_dir(&log).expect("a folder can be made");
        let mut rng = StdRng::seed_from_u64(1);
        let written = [[7; 64], [0; 64]].concat();
        let segment = |number| log.join(format!("{number:020}.log"));
        (1..=2).for_each(|number| fs::write(segment(number), &written).expect("it is written"));
        fs::write(log.join("spare.log"), &written).expect("it can be written");
        let mut flip = || flip_in_node(folder.path(), &mut rng).expect("it can be read");
        assert!((0..50).all(|_| flip().is_none()), "the newest two are spared");
        fs::write(segment(3), &written).expect("it can be written");
        fs::write(folder.path().join("node.json"), &written).expect("it can be written");
        let mut hit = Vec::new();
        for _ in 0..50 {
            let path = flip().expect("there is something to damage");
            let found = fs::read(&path).expect("it can be read");
            let bits = found.iter().zip(&written).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
            assert_eq!((bits, &found[64..]), (1, &written[64..]));
            fs::write(&path, &written).expect("it can be written");
            hit.push(path);
        }
        hit.sort();
        hit.dedup();
        assert_eq!(hit, [segment(1), folder.path().join("node.json")]);
    }

    #[test]
    fn the_end_of_a_coordinators_log_and_all_locks_are_spared() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let mut rng = StdRng::seed_from_u64(1);
        let (log, short) = (folder.path().join("log-1"), folder.path().join("log-2"));
        let written = [[7; 8], [9; 8], [9; 8], [9; 8]].concat();
        fs::write(folder.path().join("lock"), &written).expect("it can be written");
        fs::write(&short, &written[..EMPTY_FRAME_BYTES]).expect("it can be written");
        let flipped = flip_in_coordinator(folder.path(), &mut rng).expect("it can be read");
        assert_eq!(flipped, None);
        for _ in 0..50 {
            fs::write(&log, &written).expect("it can be written");
            let flipped = flip_in_coordinator(folder.path(), &mut rng).expect("it can be read");
            assert_eq!(flipped.as_ref(), Some(&log));
            let found = fs::read(&log).expect("it can be read");
            assert!(found[..8] != written[..8] && found[8..] == written[8..], "{found:?}");
        }
    }

    #[test]
    fn tables_are_damaged_wherever_their_files_lie() {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let mut rng = StdRng::seed_from_u64(1);
        let none = flip_in_tables(folder.path(), &mut rng).expect("it can be read");
        assert_eq!(none, None);
        let deep = folder.path().join("tables").join("lsm").join("tables");
        fs::create_dir_all(&deep).expect("a folder can be made");
        fs::write(folder.path().join("tables").join("LOCK"), [1]).expect("it can be written");
        fs::write(deep.join("7"), [1; 8]).expect("it can be written");
        let flipped = flip_in_tables(folder.path(), &mut rng).expect("it can be read");
        assert_eq!(flipped, Some(deep.join("7")));
        assert_ne!(fs::read(deep.join("7")).expect("it can be read"), [1; 8]);
    }
}
