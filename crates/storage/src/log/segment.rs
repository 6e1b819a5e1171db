//! Segment files: their names, making one, and which there are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;

use super::LogError;
use super::format::SegmentHeader;
use crate::fs::{Fs, FsFile};

/// A number that stands for no segment: where an entry is that no segment holds yet. Segments are
/// numbered below it.
pub(super) const NO_SEGMENT: u32 = u32::MAX;

/// The ending of a segment's name while it is being made. It gets its own name only when its header
/// and its room are durable, so a segment with a bad header is always damage.
const UNFINISHED: &str = ".new";

/// One segment file. It stays readable while somebody holds it, even after its name is removed.
pub(super) struct Segment {
    pub(super) number: u32,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn FsFile>,
    pub(super) len: u64,
}

/// A file with room for a segment, without header and name yet.
pub(super) struct Spare {
    path: PathBuf,
    file: Arc<dyn FsFile>,
    len: u64,
}

/// Where the segments of a log are.
#[derive(Clone)]
pub(super) struct SegmentFolder {
    pub(super) fs: Arc<dyn Fs>,
    pub(super) dir: PathBuf,
}

/// The segments that may hold entries, by number.
pub(super) type SegmentMap = RwLock<BTreeMap<u32, Arc<Segment>>>;

impl SegmentFolder {
    pub(super) fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:020}.log"))
    }

    /// Makes a file with room for a segment.
    pub(super) fn make_spare(&self, len: u64) -> Result<Spare, LogError> {
        let path = self.dir.join(format!("spare.log{UNFINISHED}"));
        let file = self.fs.create(&path).map_err(|e| LogError::io("create", &path, e))?;
        let filled = file.preallocate(len).and_then(|()| file.sync_data());
        match filled {
            Ok(()) => Ok(Spare { path, file, len }),
            Err(error) => {
                // The next attempt makes the file anew. Should it find this one still there, it
                // fails for that, which is as well.
                let _stays = self.fs.remove(&path);
                Err(LogError::io("make room in", &path, error))
            }
        }
    }

    /// Makes a spare file into the segment that `header` describes, whose length becomes the file's.
    /// On return, the segment's header, room and name are durable.
    pub(super) fn make_segment(
        &self,
        spare: Spare,
        mut header: SegmentHeader,
    ) -> Result<Segment, LogError> {
        header.len = spare.len;
        let path = self.path(header.number);
        let written = spare.file.write_at(&header.encode(), 0);
        written.map_err(|e| LogError::io("write the header of", &path, e))?;
        spare.file.sync_data().map_err(|e| LogError::io("sync", &path, e))?;
        self.fs.rename(&spare.path, &path).map_err(|e| LogError::io("name", &path, e))?;
        self.sync()?;
        let number = u32::try_from(header.number).ok().filter(|number| *number != NO_SEGMENT);
        let number = number.ok_or_else(|| LogError::corrupt(&path, 0, "too high a number"))?;
        Ok(Segment { number, path, file: spare.file, len: header.len })
    }

    /// Removes a spare file that is too small.
    pub(super) fn discard(&self, spare: &Spare) -> Result<(), LogError> {
        self.remove(&spare.path)
    }

    /// Removes a file, durably.
    pub(super) fn remove(&self, path: &Path) -> Result<(), LogError> {
        self.fs.remove(path).map_err(|e| LogError::io("remove", path, e))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), LogError> {
        self.fs.sync_dir(&self.dir).map_err(|e| LogError::io("sync the folder", &self.dir, e))
    }

    /// Returns the numbers of the segments that there are, in order, and removes what was never
    /// finished. Fails if one between the first and the last is not there.
    pub(super) fn list(&self) -> Result<Vec<u64>, LogError> {
        let names = self.fs.list(&self.dir).map_err(|e| LogError::io("list", &self.dir, e))?;
        let mut numbers = Vec::new();
        for name in names {
            if name.ends_with(UNFINISHED) {
                self.remove(&self.dir.join(&name))?;
            } else if let Some(number) = segment_number(&name) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        match numbers.windows(2).find(|pair| pair[0] + 1 != pair[1]) {
            Some(gap) => {
                Err(LogError::MissingSegment { dir: self.dir.clone(), number: gap[0] + 1 })
            }
            None => Ok(numbers),
        }
    }
}

impl Spare {
    pub(super) fn len(&self) -> u64 {
        self.len
    }
}

fn segment_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    let is_number = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { digits.parse().ok() } else { None }
}
