//! What the coordinator has on its disk: lost, kept, and put back.

use std::fs;
use std::path::{Path, PathBuf};

use super::cluster::Cluster;
use super::etcd::Etcd;

impl Cluster {
    /// Returns the folder that holds what the coordinator knows.
    pub(crate) fn coordinator_folder(&self) -> PathBuf {
        if Etcd::is_chosen() { self.folder().join("etcd") } else { self.data().join("coordinator") }
    }

    /// Keeps a copy of what the coordinator knows now, whether or not it runs.
    pub(crate) fn keep_coordinator(&mut self, name: &str) {
        let (from, to) = (self.coordinator_folder(), self.folder().join(name));
        if self.etcd.take().is_some() {
            // A copy of etcd's files while it changes them would be none.
            copy_folder(&from, &to);
            self.start_etcd();
        } else {
            copy_folder(&from, &to);
        }
    }

    /// Returns true if no coordinator of the cluster runs.
    pub(crate) fn coordinator_is_down(&self) -> bool {
        self.etcd.is_none() && self.up.is_none()
    }

    /// Removes all that the coordinator knows, which must not run unless it is etcd.
    pub(crate) fn lose_coordinator(&mut self) {
        let is_running = self.etcd.take().is_some();
        fs::remove_dir_all(self.coordinator_folder()).unwrap();
        if is_running {
            self.start_etcd();
        }
    }

    /// Puts back a copy of what the coordinator knew, which must not run unless it is etcd.
    pub(crate) fn put_coordinator_back(&mut self, name: &str) {
        let is_running = self.etcd.take().is_some();
        let folder = self.coordinator_folder();
        fs::remove_dir_all(&folder).unwrap();
        copy_folder(&self.folder().join(name), &folder);
        if is_running {
            self.start_etcd();
        }
    }
}

/// Copies a folder with all that is in it. What goes away meanwhile is left out.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            match fs::copy(entry.path(), target) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => drop(copied.unwrap()),
            }
        }
    }
}
