//! Making room for the next segment and removing those that hold nothing any more, beside the
//! writer.

use std::collections::VecDeque;
use std::path::PathBuf;

use parking_lot::{Condvar, Mutex};

use super::LogError;
use super::segment::{SegmentFolder, Spare};

/// Keeps one spare file ready, and removes dead segments, on a thread of its own, so that neither
/// holds up a write. Without the thread, each is done where it is asked for.
pub(super) struct Keeper {
    folder: SegmentFolder,
    has_thread: bool,
    spare: Mutex<Option<Spare>>,
    tasks: Mutex<Tasks>,
    wake: Condvar,
}

#[derive(Default)]
struct Tasks {
    spare_of: Option<u64>,
    removals: VecDeque<PathBuf>,
    /// Set once a removal failed. Segments go oldest first, so none may go after one that stayed;
    /// the next start finds them all and tries again.
    is_stuck: bool,
    is_over: bool,
}

impl Keeper {
    pub(super) fn new(folder: SegmentFolder, has_thread: bool) -> Self {
        let (spare, tasks) = (Mutex::default(), Mutex::default());
        Self { folder, has_thread, spare, tasks, wake: Condvar::new() }
    }

    /// Does what is asked until [`Self::stop`]: the thread's body.
    pub(super) fn run(&self) {
        loop {
            let (spare_of, removal) = {
                let mut tasks = self.tasks.lock();
                while tasks.spare_of.is_none() && tasks.removals.is_empty() && !tasks.is_over {
                    self.wake.wait(&mut tasks);
                }
                if tasks.is_over {
                    return;
                }
                (tasks.spare_of.take(), tasks.removals.pop_front())
            };
            if let Some(len) = spare_of {
                self.prepare(len);
            }
            if let Some(path) = removal {
                self.remove_one(path);
            }
        }
    }

    pub(super) fn stop(&self) {
        self.tasks.lock().is_over = true;
        self.wake.notify_all();
    }

    /// Asks for a spare file of this length.
    pub(super) fn ask_for_spare(&self, len: u64) {
        if self.has_thread {
            self.tasks.lock().spare_of = Some(len);
            self.wake.notify_all();
        }
    }

    /// Returns a file with room for at least `len` bytes: the one that is ready, or one made now.
    pub(super) fn take_spare(&self, len: u64) -> Result<Spare, LogError> {
        // While the keeper makes a spare, it holds the lock, so this waits for it.
        match self.spare.lock().take() {
            Some(spare) if spare.len() >= len => return Ok(spare),
            Some(small) => self.folder.discard(&small)?,
            None => {}
        }
        self.folder.make_spare(len)
    }

    /// Removes these segments, in this order.
    pub(super) fn remove(&self, paths: Vec<PathBuf>) {
        if self.has_thread {
            self.tasks.lock().removals.extend(paths);
            self.wake.notify_all();
        } else {
            paths.into_iter().for_each(|path| self.remove_one(path));
        }
    }

    fn prepare(&self, len: u64) {
        let mut spare = self.spare.lock();
        if spare.is_some() {
            return;
        }
        match self.folder.make_spare(len) {
            Ok(made) => *spare = Some(made),
            // The writer will try again when it needs the room, and its failure ends the log.
            Err(error) => tracing::warn!(%error, "no room could be made for the next segment"),
        }
    }

    /// Removes one segment, durably: were a removal lost behind a later one, the segments would have
    /// a gap.
    fn remove_one(&self, path: PathBuf) {
        if self.tasks.lock().is_stuck {
            return;
        }
        if let Err(error) = self.folder.remove(&path) {
            self.tasks.lock().is_stuck = true;
            tracing::error!(%error, "a segment that holds nothing any more could not be removed");
        }
    }
}
