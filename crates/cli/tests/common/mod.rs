//! What the tests on clusters of real processes share.
//!
//! A [`Cluster`] is what `trireme up` starts, in a temporary folder and on ports of its own; it is
//! killed when it is dropped, also by a panic, and then shows the end of what its processes said.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

mod by_hand;
mod cluster;
mod coordinator_data;
mod data;
mod etcd;
mod faults;
mod history;
mod import;
mod load;
mod poll;
mod process;
mod ranges;
mod recorder;
mod scanner;
mod seat;
mod status;
pub(crate) mod wire;

pub(crate) use cluster::{Cluster, replication, start_fails, up_command};
pub(crate) use coordinator_data::copy_folder;
pub(crate) use data::{
    Rows, made_up_unicode_data, made_up_words, sorted, split_keys, tsv, unicode_data, words,
};
pub(crate) use faults::Disk;
pub(crate) use history::{History, Report, check_the_judge};
pub(crate) use import::{Import, assert_holds};
pub(crate) use poll::{until, until_ok};
pub(crate) use process::{Ran, finish, run, trireme};
pub(crate) use recorder::Recorder;
pub(crate) use scanner::Scanner;
pub(crate) use seat::Seat;
pub(crate) use status::{Replica, Statuses};
