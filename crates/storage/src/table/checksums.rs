//! The lengths and checksums of the files of an engine that was closed in order.
//!
//! Made for sled, which takes some damage for writes that a crash has torn, and passes over rows
//! without a word. They are recorded when the engine is closed and removed before its files are opened:
//! of the files that a crash leaves, none are known.
//!
//! ```text
//! trireme-checksums 1
//! <CRC-32> <length> <name>      one line for each file, 8 hexadecimal digits and decimal digits
//! <CRC-32 of the lines above>
//! ```

use std::fmt::Write;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::table::TableError;
use crate::table::folder::{force_directory, write_whole};

const TITLE: &str = "trireme-checksums 1";

/// What is read of a file at once.
const PIECE_BYTES: usize = 1024 * 1024;

/// A file that is not what it was when the engine was closed.
pub(super) struct Changed {
    /// The file.
    pub(super) path: PathBuf,
    /// How that shows.
    pub(super) reason: String,
}

/// Records the files in `folder`, which nothing may change any more.
pub(super) fn record(folder: &Path) -> Result<(), TableError> {
    let mut text = describe(folder).map_err(TableError::io("read", folder))?;
    let checksum = crc32fast::hash(text.as_bytes());
    let _infallible = writeln!(text, "{checksum:08x}");
    write_whole(&path_of(folder), &folder.with_extension("checksums.tmp"), text.as_bytes())
}

/// Compares the files in `folder` with what was recorded of them, if anything was.
pub(super) fn check(folder: &Path) -> Result<(), Changed> {
    let path = path_of(folder);
    let changed_file =
        |path: PathBuf, reason: &dyn ToString| Changed { path, reason: reason.to_string() };
    let recorded = match fs::read(&path) {
        Ok(recorded) => recorded,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(changed_file(path, &error)),
    };
    let Some(expected) = std::str::from_utf8(&recorded).ok().and_then(checked) else {
        return Err(changed_file(path, &"it does not match its checksum"));
    };
    let found = describe(folder).map_err(|error| changed_file(folder.to_owned(), &error))?;
    if found == expected {
        return Ok(());
    }
    let changed = expected.lines().find(|line| !found.lines().any(|found| found == *line));
    let changed = changed
        .or_else(|| found.lines().find(|line| !expected.lines().any(|expected| expected == *line)));
    let name = changed.and_then(|line| line.splitn(3, ' ').nth(2)).unwrap_or_default();
    Err(changed_file(folder.join(name), &"it is not what it was when the table was closed"))
}

/// Removes what was recorded of `folder`, whose files are going to change.
pub(super) fn remove(folder: &Path) -> Result<(), TableError> {
    let path = path_of(folder);
    match fs::remove_file(&path) {
        Ok(()) => force_directory(path.parent().unwrap_or(folder)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(TableError::io("remove", &path)(error)),
    }
}

fn path_of(folder: &Path) -> PathBuf {
    folder.with_extension("checksums")
}

/// Returns the lines above the record's own checksum, if that is right.
fn checked(recorded: &str) -> Option<&str> {
    let above = recorded.strip_suffix('\n')?.rfind('\n')? + 1;
    let (lines, checksum) = recorded.split_at_checked(above)?;
    (checksum == format!("{:08x}\n", crc32fast::hash(lines.as_bytes()))).then_some(lines)
}

/// Describes the files in `folder` and those in its folders.
fn describe(folder: &Path) -> io::Result<String> {
    let mut lines = Vec::new();
    collect(folder, "", &mut lines)?;
    lines.sort();
    Ok(lines.into_iter().fold(format!("{TITLE}\n"), |text, line| text + &line + "\n"))
}

fn collect(folder: &Path, prefix: &str, lines: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().display());
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &format!("{name}/"), lines)?;
        } else {
            let (checksum, len) = checksum(&entry.path())?;
            lines.push(format!("{checksum:08x} {len} {name}"));
        }
    }
    Ok(())
}

fn checksum(path: &Path) -> io::Result<(u32, u64)> {
    let mut file = File::open(path)?;
    let (mut hasher, mut len) = (crc32fast::Hasher::new(), 0);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = file.read(&mut piece)?;
        if count == 0 {
            return Ok((hasher.finalize(), len));
        }
        hasher.update(&piece[..count]);
        len += count as u64;
    }
}
