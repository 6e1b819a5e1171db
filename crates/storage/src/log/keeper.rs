//! Making room for the next segment and removing those that hold nothing any more, beside the
//! writer.

use std::collections::VecDeque;
use std::path::PathBuf;

use parking_lot::{Condvar, Mutex};

use super::LogError;
use super::segment::{SegmentFolder, Spare};

/// Keeps one spare file ready, and removes dead segments, on a thread of its own, so that neither
/// holds up a write. Without the thread, each is done where it is asked for.
///
/// Its lock is never held over I/O. All spare files have one name, so only one may exist, and the
/// state of the spare says who has it.
pub(super) struct Keeper {
    folder: SegmentFolder,
    has_thread: bool,
    state: Mutex<State>,
    /// Signalled when the thread may have something to do, and when it has finished a spare.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    spare: SpareState,
    /// The length of the spare that is to be made.
    spare_wanted: Option<u64>,
    /// No longer than the log has segments.
    removals: VecDeque<PathBuf>,
    /// Set once a removal failed. Segments go oldest first, so none may go after one that stayed;
    /// the next start finds them all and tries again.
    is_stuck: bool,
    is_over: bool,
}

/// What has the name of the spare file.
#[derive(Default)]
enum SpareState {
    /// Nothing.
    #[default]
    Free,
    /// A file that the keeper's thread makes.
    Making,
    /// A file that is ready.
    Ready(Spare),
    /// The writer's, until it has given the file its segment's name.
    Taken,
}

enum Task {
    Prepare(u64),
    Remove(PathBuf),
}

impl Keeper {
    pub(super) fn new(folder: SegmentFolder, has_thread: bool) -> Self {
        Self { folder, has_thread, state: Mutex::default(), changed: Condvar::new() }
    }

    /// Does what is asked until [`Self::stop`]: the thread's body.
    pub(super) fn run(&self) {
        while let Some(task) = self.next() {
            match task {
                Task::Prepare(len) => self.prepare(len),
                Task::Remove(path) => self.remove_one(path),
            }
        }
    }

    /// Waits for the next task; `None` once the keeper is stopped.
    fn next(&self) -> Option<Task> {
        let mut state = self.state.lock();
        loop {
            if state.is_over {
                return None;
            }
            if let Some(task) = state.task() {
                return Some(task);
            }
            self.changed.wait(&mut state);
        }
    }

    pub(super) fn stop(&self) {
        self.state.lock().is_over = true;
        self.changed.notify_all();
    }

    /// Asks for a spare file of this length.
    pub(super) fn ask_for_spare(&self, len: u64) {
        if self.has_thread {
            self.state.lock().spare_wanted = Some(len);
            self.changed.notify_all();
        }
    }

    /// Returns a file with room for at least `len` bytes: the one that is ready, or one made now.
    /// The keeper makes no other until [`Self::spare_is_named`].
    pub(super) fn take_spare(&self, len: u64) -> Result<Spare, LogError> {
        let ready = {
            let mut state = self.state.lock();
            while matches!(state.spare, SpareState::Making) {
                self.changed.wait(&mut state);
            }
            // What was asked for and not begun comes too late.
            state.spare_wanted = None;
            std::mem::replace(&mut state.spare, SpareState::Taken)
        };
        match ready {
            SpareState::Ready(spare) if spare.len() >= len => return Ok(spare),
            SpareState::Ready(small) => self.folder.discard(&small)?,
            SpareState::Free | SpareState::Making | SpareState::Taken => {}
        }
        self.folder.make_spare(len)
    }

    /// Records that the spare file that was taken has a segment's name now.
    pub(super) fn spare_is_named(&self) {
        self.state.lock().spare = SpareState::Free;
        self.changed.notify_all();
    }

    /// Removes these segments, in this order.
    pub(super) fn remove(&self, paths: Vec<PathBuf>) {
        if self.has_thread {
            self.state.lock().removals.extend(paths);
            self.changed.notify_all();
        } else {
            paths.into_iter().for_each(|path| self.remove_one(path));
        }
    }

    fn prepare(&self, len: u64) {
        let made = self.folder.make_spare(len);
        self.state.lock().spare = match made {
            Ok(made) => SpareState::Ready(made),
            Err(error) => {
                // The writer will try again when it needs the room, and its failure ends the log.
                tracing::warn!(%error, "no room could be made for the next segment");
                SpareState::Free
            }
        };
        self.changed.notify_all();
    }

    /// Removes one segment, durably: were a removal lost behind a later one, the segments would have
    /// a gap.
    fn remove_one(&self, path: PathBuf) {
        if self.state.lock().is_stuck {
            return;
        }
        if let Err(error) = self.folder.remove(&path) {
            self.state.lock().is_stuck = true;
            tracing::error!(%error, "a segment that holds nothing any more could not be removed");
        }
    }
}

impl State {
    fn task(&mut self) -> Option<Task> {
        // The writer may be waiting for a spare, and for a removal it never does.
        if matches!(self.spare, SpareState::Free)
            && let Some(len) = self.spare_wanted.take()
        {
            self.spare = SpareState::Making;
            return Some(Task::Prepare(len));
        }
        self.removals.pop_front().map(Task::Remove)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::thread;

    use trireme_types::{ClusterId, NodeId};

    use super::*;
    use crate::fs::{Fs, MemFs};
    use crate::log::format::SegmentHeader;
    use crate::log::options::LogIdentity;

    /// The keeper comes late with a spare, and the writer makes one by itself at the same time or is
    /// about to name one: neither meets the other's file.
    #[test]
    fn the_writer_and_the_keeper_never_make_a_spare_at_the_same_time() {
        const LEN: u64 = 4096;
        let (fs, dir) = (Arc::new(MemFs::new()), Path::new("/log"));
        fs.create_dir_all(dir).unwrap();
        let folder = SegmentFolder { fs: fs.clone(), dir: dir.to_owned() };
        let keeper = &Keeper::new(folder.clone(), true);
        let made = thread::scope(|scope| {
            scope.spawn(|| keeper.run());
            let made = (1..=3000).try_for_each(|number| {
                keeper.ask_for_spare(LEN);
                // Another moment each time, so that the two meet wherever they can.
                (0..number % 50).for_each(|_| std::hint::spin_loop());
                let spare = keeper.take_spare(LEN)?;
                let identity = LogIdentity { cluster: ClusterId(1), node: NodeId(1) };
                let header = SegmentHeader { identity, number, len: LEN, first_block: 1 };
                let segment = folder.make_segment(spare, header)?;
                keeper.spare_is_named();
                keeper.remove(vec![segment.path]);
                Ok::<_, LogError>(())
            });
            keeper.stop();
            made
        });
        made.unwrap();
        assert!(!keeper.state.lock().is_stuck);
    }
}
