//! Which file of a tree is damaged.
//!
//! The tree checks each block that it reads, and its errors name no file. Nor does it check the list of
//! its files (`v<number>`) against the checksum that `current` holds, which is done here before it is
//! opened. The list in turn holds a checksum of every file of rows.
//!
//! ```text
//! current            number of the list (u64) | XXH3-128 of the list (u128) | 0 (u8)
//! in the list        number of a file of rows (u64) | 0 (u8) | XXH3-128 of the file (u128)
//! ```
//! All numbers are little-endian.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lsm_tree::checksum::ChecksummedWriter;

use super::lsm::TABLES_FOLDER;

const CURRENT_FILE: &str = "current";

/// The bytes of `current`.
const CURRENT_BYTES: usize = 25;

/// The bytes of a file's entry in the list up to its checksum, and with it.
const ENTRY_BYTES: (usize, usize) = (9, 25);

/// How long a damaged file is sought. The node stops when it is found or not, and must not serve on for
/// long before; a disk reads some gigabytes in the meantime.
const SEARCH_TIME_MAX: Duration = Duration::from_secs(5);

/// What is wrong with the files of a tree.
pub(super) struct Damage {
    pub(super) path: PathBuf,
    pub(super) reason: String,
}

/// Checks the list of the tree's files in `folder`, if there is one.
pub(super) fn check_list(folder: &Path) -> Result<(), Damage> {
    list(folder).map(drop)
}

/// Returns the file in `folder` that is not what the tree wrote, if one is found in time.
pub(super) fn find_damaged(folder: &Path) -> Option<PathBuf> {
    let list = match list(folder) {
        Ok(list) => list?,
        Err(damage) => return Some(damage.path),
    };
    let began = Instant::now();
    let mut files: Vec<u64> = fs::read_dir(folder.join(TABLES_FOLDER))
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    files.sort_unstable();
    for number in files {
        let path = folder.join(TABLES_FOLDER).join(number.to_string());
        let head = [&number.to_le_bytes()[..], &[0]].concat();
        let entries = list.windows(ENTRY_BYTES.1).filter(|entry| entry.starts_with(&head));
        let expected: Vec<&[u8]> = entries.map(|entry| &entry[ENTRY_BYTES.0..]).collect();
        if expected.is_empty() {
            // Not in the list: written since, or left by a crash.
            continue;
        }
        match checksum(&path, began + SEARCH_TIME_MAX) {
            // The number may stand in the list by chance, but not before the right checksum.
            Ok(Some(found)) if expected.contains(&&found[..]) => {}
            Ok(Some(_)) => return Some(path),
            // There was no time left.
            Ok(None) => return None,
            // It was merged into another one meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return Some(path),
        }
    }
    None
}

/// Returns the list of the tree's files; `None` if there is no tree yet.
fn list(folder: &Path) -> Result<Option<Vec<u8>>, Damage> {
    let current = folder.join(CURRENT_FILE);
    let damage = |path: &Path, reason: &dyn ToString| Damage {
        path: path.to_owned(),
        reason: reason.to_string(),
    };
    let bytes = match fs::read(&current) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(damage(&current, &error)),
    };
    let number = bytes.first_chunk().map(|number| u64::from_le_bytes(*number));
    let (Some(number), CURRENT_BYTES, Some(0)) = (number, bytes.len(), bytes.last()) else {
        return Err(damage(&current, &"it is not what was written"));
    };
    let path = folder.join(format!("v{number}"));
    let list = match fs::read(&path) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(damage(
                &current,
                &format!("it names {}, which is not there", path.display()),
            ));
        }
        Err(error) => return Err(damage(&path, &error)),
    };
    if hash(&list) == bytes[8..CURRENT_BYTES - 1] {
        return Ok(Some(list));
    }
    let reason = format!("it does not match the checksum in {}", current.display());
    Err(damage(&path, &reason))
}

fn hash(bytes: &[u8]) -> [u8; 16] {
    let mut writer = ChecksummedWriter::new(io::sink());
    // A sink takes everything.
    let _written = io::Write::write_all(&mut writer, bytes);
    writer.checksum().into_u128().to_le_bytes()
}

/// Returns the checksum of a file; `None` if it is not read by then.
fn checksum(path: &Path, deadline: Instant) -> io::Result<Option<[u8; 16]>> {
    let mut file = File::open(path)?;
    let mut writer = ChecksummedWriter::new(io::sink());
    let mut piece = vec![0; 1024 * 1024];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(Some(writer.checksum().into_u128().to_le_bytes())),
            count => io::Write::write_all(&mut writer, &piece[..count])?,
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
    }
}
