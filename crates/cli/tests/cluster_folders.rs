//! Files that are missing from the data folder of a cluster that was stopped: what can be known without
//! them is made again, and what cannot is refused with the reason.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::fs::{self, File};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use common::{Cluster, Rows, sorted, start_fails, tsv, until};

/// How long a cluster may take to be as it should.
const PATIENCE: Duration = Duration::from_secs(60);

fn fill(cluster: &Cluster) -> Rows {
    let rows: Vec<_> =
        ('a'..='z').map(|letter| (format!("{letter}-key"), format!("value of {letter}"))).collect();
    let file = cluster.file("rows.tsv");
    fs::write(&file, tsv(rows.iter().map(|(key, value)| (key, value)))).unwrap();
    cluster.run(["import", &file]).out();
    cluster.wait_until_caught_up(PATIENCE);
    sorted(&rows)
}

/// A folder without its description was taken for a new cluster's, and refused since its coordinator and
/// its nodes knew another one.
#[test]
fn a_missing_description_of_the_cluster_is_made_again_from_its_nodes() {
    let shape = ["--replication", "pacifica", "--ranges", "2", "--engine", "sled"];
    let cluster = &mut Cluster::start(&[&shape[..], &["--grace", "2s"]].concat());
    let rows = fill(cluster);
    let path = cluster.data().join("cluster.json");
    cluster.stop();
    let before: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    fs::remove_file(&path).unwrap();
    cluster.up_again();
    assert_eq!(cluster.rows(), rows);
    let after: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(after, before);

    // The coordinator's folder is lost as well, and so is that of a node.
    cluster.wait_until_caught_up(PATIENCE);
    cluster.stop();
    fs::remove_file(&path).unwrap();
    cluster.lose_coordinator();
    let aside = cluster.folder().join("aside");
    fs::rename(cluster.node_folder(3), &aside).unwrap();
    let refused = start_fails(&cluster.data(), cluster.port(), &[""; 0]);
    assert!(refused.error(1).contains("what n3 knows is missing"), "{refused:?}");
    fs::rename(&aside, cluster.node_folder(3)).unwrap();
    cluster.up_again();
    assert_eq!(cluster.rows(), rows);
}

/// What a node remembers is needed where the coordinator has lost the cluster, and only there.
#[test]
fn a_node_without_its_memory_starts_as_long_as_the_coordinator_knows_the_cluster() {
    for protocol in ["raft", "spinnaker", "pacifica"] {
        let cluster = &mut Cluster::start(&["--replication", protocol, "--ranges", "2"]);
        let rows = fill(cluster);
        let path = cluster.node_folder(3).join("memory.json");
        cluster.stop();
        fs::remove_file(&path).unwrap();
        cluster.up_again();
        assert_eq!(cluster.rows(), rows);
        cluster.wait_until_caught_up(PATIENCE);
        assert!(path.exists(), "it remembers again");

        cluster.stop();
        let memory = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        cluster.lose_coordinator();
        let refused = start_fails(&cluster.data(), cluster.port(), &[""; 0]);
        assert!(refused.error(1).contains("node-3 has a log, and no memory.json"), "{refused:?}");
        fs::write(&path, memory).unwrap();
        cluster.up_again();
        assert_eq!(cluster.rows(), rows);
    }
}

/// A process that was killed holds its folder until the system has taken it apart, which a restart right
/// after the kill must not fail on.
#[test]
fn a_node_waits_for_its_killed_predecessor_to_leave_the_folder() {
    let cluster = &mut Cluster::start(&["--ranges", "1"]);
    cluster.kill(3);
    let lock = File::open(cluster.node_folder(3).join("LOCK")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    cluster.restart_node(3);
    until("the node waits", PATIENCE, || {
        cluster.has_said("waiting for another process to leave the folder").then_some(())
    });
    drop(lock);
    until("the node serves", PATIENCE, || cluster.statuses_of(&[3]).ok());
}

/// What a node acknowledged was in the log: it does not start without it, and the way out that it names
/// leads out.
#[test]
fn a_node_whose_log_is_missing_is_refused_and_rebuilt_on_an_empty_folder() {
    for protocol in ["raft", "spinnaker", "pacifica"] {
        let cluster = &mut Cluster::start(&["--replication", protocol, "--ranges", "2"]);
        let rows = fill(cluster);
        cluster.kill(3);
        fs::remove_dir_all(cluster.node_folder(3).join("log")).unwrap();
        let refused = cluster.node_fails(3, &[]);
        assert!(refused.error(1).contains("has lost its log"), "{refused:?}");
        assert!(refused.error(1).contains("move the whole folder away"), "{refused:?}");
        cluster.wipe(3);
        cluster.start_new_node(3, &[]);
        for cohort in [1, 2] {
            cluster.wait_for_role(cohort, 3, "follower", PATIENCE);
        }
        cluster.wait_until_caught_up(PATIENCE);
        cluster.kill(1);
        assert_eq!(cluster.rows(), rows);
    }
}
