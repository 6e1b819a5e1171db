//! The folder that a table lives in: whose it is, and how it is opened.
//!
//! The file `FORMAT` is written and forced before the engine makes its first file, so a folder
//! with an engine's files and no `FORMAT` is none of ours.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use trireme_types::Engine;

use crate::table::TableError;
use crate::table::engine::TableEngine;
use crate::table::lsm::LsmEngine;
use crate::table::sled::SledEngine;

/// The format of the whole folder: its files, and the keys in the engine.
const FOLDER_FORMAT: u32 = 1;

const FORMAT_FILE: &str = "FORMAT";
const FORMAT_FILE_UNFINISHED: &str = "FORMAT.tmp";
const FORMAT_NAME: &str = "trireme-table";

/// Opens the table in `dir` with the engine that it must have been made by, or begins one if the
/// folder is empty or absent.
pub(crate) fn open_engine(
    dir: &Path,
    engine: Engine,
    cache_bytes: u64,
    open_files_max: usize,
) -> Result<Box<dyn TableEngine>, TableError> {
    fs::create_dir_all(dir).map_err(TableError::io("create", dir))?;
    claim(dir, engine)?;
    let path = dir.join(engine.name());
    Ok(match engine {
        Engine::Lsm => Box::new(LsmEngine::open(&path, cache_bytes, open_files_max)?),
        Engine::Sled => Box::new(SledEngine::open(&path, cache_bytes)?),
    })
}

thread_local! {
    /// Whether this thread is opening an engine, whose panics become errors.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Returns true if a panic of the calling thread would be caught and become an error, as while an
/// engine opens files that may be damaged. For a panic hook that ends the process.
pub fn is_catching_panics() -> bool {
    CATCHING.get()
}

/// Runs an engine's opening, which reads files that a crash or a disk may have damaged, and turns
/// failure and panic alike into one error.
pub(crate) fn catch_panic<T>(
    engine: Engine,
    path: &Path,
    open: impl FnOnce() -> Result<T, String>,
) -> Result<T, TableError> {
    // Nothing of a half-open engine is used after a panic.
    CATCHING.set(true);
    let result = catch_unwind(AssertUnwindSafe(open));
    CATCHING.set(false);
    let result = result.unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("it panicked: {}", message.unwrap_or("without a message")))
    });
    result.map_err(|reason| TableError::WillNotOpen { engine, path: path.to_owned(), reason })
}

/// Forces a folder's list of names.
pub(crate) fn force_directory(path: &Path) -> Result<(), TableError> {
    let forced = File::open(path).and_then(|folder| folder.sync_all());
    forced.map_err(TableError::io("force the folder", path))
}

/// Checks that the folder was made by this engine in this format, or writes down that it is.
fn claim(dir: &Path, engine: Engine) -> Result<(), TableError> {
    let path = dir.join(FORMAT_FILE);
    match fs::read_to_string(&path) {
        Ok(text) => check_claim(dir, engine, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !is_empty(dir)? {
                return Err(TableError::NotATable { path: dir.to_owned() });
            }
            write_claim(dir, engine)
        }
        Err(error) => Err(TableError::io("read", &path)(error)),
    }
}

fn check_claim(dir: &Path, engine: Engine, text: &str) -> Result<(), TableError> {
    let not_a_table = || TableError::NotATable { path: dir.to_owned() };
    let mut words = text.trim_end_matches('\n').split(' ');
    if words.next() != Some(FORMAT_NAME) {
        return Err(not_a_table());
    }
    let found = words.next().and_then(|format| format.parse().ok()).ok_or_else(not_a_table)?;
    if found != FOLDER_FORMAT {
        return Err(TableError::Format { what: "the table folder", found, known: FOLDER_FORMAT });
    }
    match words.next() {
        Some(name) if name == engine.name() => Ok(()),
        found => Err(TableError::OtherEngine {
            path: dir.to_owned(),
            found: found.unwrap_or_default().to_owned(),
            asked: engine,
        }),
    }
}

fn write_claim(dir: &Path, engine: Engine) -> Result<(), TableError> {
    let claim = format!("{FORMAT_NAME} {FOLDER_FORMAT} {engine}\n");
    write_whole(&dir.join(FORMAT_FILE), &dir.join(FORMAT_FILE_UNFINISHED), claim.as_bytes())?;
    // The folder's own name must outlive a crash too.
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    force_directory(parent.unwrap_or(&PathBuf::from(".")))
}

/// Writes a file so that it is there whole or not at all, whatever happens meanwhile.
pub(super) fn write_whole(path: &Path, unfinished: &Path, bytes: &[u8]) -> Result<(), TableError> {
    let write = || -> io::Result<()> {
        let mut file = File::create(unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(unfinished, path)
    };
    write().map_err(TableError::io("write", unfinished))?;
    force_directory(path.parent().unwrap_or(path))
}

/// Says whether nothing but an unfinished claim lies in the folder.
fn is_empty(dir: &Path) -> Result<bool, TableError> {
    for entry in fs::read_dir(dir).map_err(TableError::io("list", dir))? {
        let entry = entry.map_err(TableError::io("list", dir))?;
        if entry.file_name() != FORMAT_FILE_UNFINISHED {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Forces the files in a folder, and the folder itself. A file that its engine removes meanwhile
/// needs no forcing.
pub(super) fn force_folder(path: &Path) -> Result<(), TableError> {
    let files = fs::read_dir(path).map_err(TableError::io("list", path))?;
    for file in files {
        let file = file.map_err(TableError::io("list", path))?.path();
        match force_file(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(TableError::io("force", &file))?,
        }
    }
    force_directory(path)
}

fn force_file(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    if file.metadata()?.is_file() { file.sync_all() } else { Ok(()) }
}
