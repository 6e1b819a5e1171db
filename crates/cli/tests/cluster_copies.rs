//! One folder is one node: of two processes on copies of a folder one runs, and a folder that is older
//! than what its node has acknowledged counts as lost.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use trireme_types::Protocol;

use common::{Cluster, copy_folder, finish, trireme, until, until_ok};

/// How long a cluster may take to be as it should.
const PATIENCE: Duration = Duration::from_secs(60);

const COHORT: u64 = 1;

/// The node whose folder is copied.
const COPIED: usize = 2;

const ALL: [Protocol; 3] = [Protocol::Raft, Protocol::Spinnaker, Protocol::Pacifica];

/// A process that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Nobody is left to tell if it cannot be killed.
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

#[track_caller]
fn put_all(cluster: &Cluster, name: &str) {
    for letter in ["a", "h", "o", "v"] {
        cluster.run(["put", &format!("{letter}-{name}"), name]).out();
    }
}

#[track_caller]
fn assert_has_all(cluster: &Cluster, names: &[&str]) {
    for name in names {
        for letter in ["a", "h", "o", "v"] {
            let found = cluster.run(["get", &format!("{letter}-{name}")]);
            assert_eq!(found.out(), format!("{name}\n"));
        }
    }
}

fn copy_of(cluster: &Cluster) -> PathBuf {
    let copy = cluster.folder().join("copy");
    copy_folder(&cluster.node_folder(COPIED), &copy);
    copy
}

fn start_copy(cluster: &Cluster, copy: &Path) -> Command {
    let listen = format!("127.0.0.1:{}", cluster.seat().ports(1));
    let mut command = trireme();
    command.arg("node").arg("--data").arg(copy).args(["--listen", &listen]);
    command
}

#[test]
fn a_copy_of_a_folder_is_refused_while_its_node_runs() {
    for protocol in ALL {
        let cluster = &mut Cluster::start_by_hand_as(protocol, &["n"], &[]);
        put_all(cluster, "before");
        cluster.signal(COPIED, Signal::STOP);
        let copy = copy_of(cluster);
        cluster.signal(COPIED, Signal::CONT);
        let refused = finish(start_copy(cluster, &copy));
        let here = format!("already running at {}", cluster.address(COPIED));
        assert!(refused.error(1).contains(&here), "{refused:?}");
        // The first one has noticed nothing.
        put_all(cluster, "after");
        cluster.wait_until_caught_up(PATIENCE);
        let listed = cluster.run(["node", "list"]);
        assert!(listed.out().contains(&cluster.address(COPIED)), "{listed:?}");
        assert_has_all(cluster, &["before", "after"]);
    }
}

/// A process is stopped for longer than its session lives, and a copy of its folder takes its place.
/// When it runs on, it ends: two would act as one.
#[test]
fn a_process_whose_place_a_copy_has_taken_ends() {
    for protocol in [Protocol::Spinnaker, Protocol::Pacifica] {
        let cluster = &mut Cluster::start_by_hand_as(protocol, &[], &[]);
        cluster.expect_error("can no longer keep its promises");
        put_all(cluster, "before");
        cluster.signal(COPIED, Signal::STOP);
        let copy = copy_of(cluster);
        let _taking = Killed(start_copy(cluster, &copy).stderr(Stdio::null()).spawn().unwrap());
        until_ok("the copy has the place", PATIENCE, || {
            let listed = cluster.run(["node", "list"]);
            let is_there = listed.status == 0 && !listed.stdout.contains(&cluster.address(COPIED));
            if is_there { Ok(()) } else { Err(listed) }
        });
        cluster.signal(COPIED, Signal::CONT);
        cluster.wait_for_the_end_of(COPIED);
        assert!(
            cluster.has_said("another process was started as node"),
            "it does not say why it ended"
        );
        put_all(cluster, "after");
        assert_has_all(cluster, &["before", "after"]);
    }
}

/// A node's folder comes back older than it was: what the node has acknowledged since is not in it. It
/// is set aside, and the node comes back as one that has lost its data.
#[test]
fn a_folder_that_is_older_than_it_was_counts_as_lost() {
    for protocol in [Protocol::Spinnaker, Protocol::Pacifica] {
        let cluster = &mut Cluster::start_by_hand_as(protocol, &["n"], &[]);
        cluster.expect_error("the folder is an older copy");
        put_all(cluster, "before");
        put_old_folder_back(cluster);
        cluster.restart_node(COPIED);
        until("the node has noticed", PATIENCE, || {
            cluster.has_said("the folder is an older copy").then_some(())
        });
        cluster.wait_until_caught_up(PATIENCE);
        let others = cluster.others(COPIED);
        let aside = fs::read_dir(cluster.node_folder(COPIED)).unwrap().flatten();
        let aside: Vec<_> = aside
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("set-aside-"))
            .collect();
        assert_eq!(aside.len(), 1, "what the folder held is kept once");
        assert!(aside[0].path().join("log").is_dir());
        assert_has_all(cluster, &["before", "meanwhile"]);
        // It counts again: one of the others may go.
        cluster.wait_for_leader(COHORT, PATIENCE);
        cluster.kill(others[0]);
        until_ok("writes go on", PATIENCE, || {
            let put = cluster.run(["--deadline", "2s", "put", "z", "1"]);
            if put.status == 0 { Ok(()) } else { Err(put) }
        });
        put_all(cluster, "after");
        assert_has_all(cluster, &["before", "meanwhile", "after"]);
    }
}

/// Keeps a copy of the folder, has the node started and acknowledge more, and puts the copy back.
fn put_old_folder_back(cluster: &mut Cluster) {
    cluster.stop_node(COPIED);
    let copy = copy_of(cluster);
    cluster.restart_node(COPIED);
    cluster.wait_until_caught_up(PATIENCE);
    put_all(cluster, "meanwhile");
    cluster.kill(COPIED);
    cluster.wipe(COPIED);
    copy_folder(&copy, &cluster.node_folder(COPIED));
}
