//! What the first start of a cluster has made, to be taken back if it fails.
//!
//! Until the coordinator has the cluster, nothing is decided: a start that fails before, for a port
//! that is taken or a coordinator that is not there, leaves the next one every choice.

use std::io;
use std::path::{Path, PathBuf};

use super::{cluster_file, coordinator_folder};

/// The first start in a folder, before the coordinator has the cluster.
#[derive(Debug)]
pub(super) struct FirstStart {
    folder: PathBuf,
    /// Whether there was a coordinator's folder already, which stays.
    had_coordinator: bool,
    /// Whether a coordinator elsewhere may have the cluster by the name that the folder has.
    keeps_description: bool,
}

impl FirstStart {
    pub(super) fn in_folder(folder: &Path) -> Self {
        let had_coordinator = coordinator_folder(folder).exists();
        Self { folder: folder.to_owned(), had_coordinator, keeps_description: false }
    }

    /// Sets whether the folder is to go on knowing the cluster's name.
    pub(super) fn keep_description(&mut self, keeps: bool) {
        self.keeps_description = keeps;
    }

    /// Removes what was made, after everything that used it has stopped.
    pub(super) fn undo(self) {
        if !self.keeps_description {
            report(&cluster_file::path(&self.folder), |path| std::fs::remove_file(path));
        }
        if !self.had_coordinator {
            report(&coordinator_folder(&self.folder), |path| std::fs::remove_dir_all(path));
        }
    }
}

/// Removes something that may not be there. What stays is reported: the start has failed already.
fn report(path: &Path, remove: impl FnOnce(&Path) -> io::Result<()>) {
    if let Err(error) = remove(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        let path = path.display();
        tracing::warn!(%path, %error, "what a failed first start has made could not be removed");
    }
}
