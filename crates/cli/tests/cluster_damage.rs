//! One bit that became another, in a file of a node, of its coordinator or of `up`: the file is named
//! when the process starts or when it reads there, nothing of it is served, and what the documentation
//! says brings everything back.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use trireme_types::Protocol;

use common::{Cluster, Import, Rows, start_fails, until};

/// How long a cluster may take to be as it should.
const PATIENCE: Duration = Duration::from_secs(60);

/// How many rows there are, each of about [`VALUE_BYTES`]: a few tables' worth.
const KEYS: usize = 3_000;

const VALUE_BYTES: usize = 1_000;

/// The smallest memtable, so that rows are in files.
const SMALL_TABLES: [&str; 2] = ["--memtable-bytes", "1048576"];

/// The bytes of the empty frame that a coordinator that stops in order ends its log with.
const EMPTY_FRAME_BYTES: usize = 24;

/// The one cohort of a cluster that is started by hand.
const COHORT: u64 = 1;

/// The node that is damaged.
const NODE: usize = 2;

#[test]
fn a_flipped_bit_in_a_node_of_raft_is_named_and_mended() {
    assert_every_file_is_checked(Protocol::Raft, "lsm");
}

#[test]
fn a_flipped_bit_in_a_node_of_spinnaker_is_named_and_mended() {
    assert_every_file_is_checked(Protocol::Spinnaker, "sled");
}

#[test]
fn a_flipped_bit_in_a_node_of_pacifica_is_named_and_mended() {
    assert_every_file_is_checked(Protocol::Pacifica, "lsm");
}

/// Flips a bit in the middle of each file of a node that has stopped, if a start reads it. The node does not start and names
/// the file, and the others serve. Started on an empty folder it has everything again.
#[track_caller]
fn assert_every_file_is_checked(protocol: Protocol, engine: &str) {
    let cluster = &mut start(protocol, engine);
    let rows = fill(cluster);
    cluster.wait_until_caught_up(PATIENCE);
    cluster.stop_node(NODE);
    let folder = cluster.node_folder(NODE);
    let mut named = Vec::new();
    let newest = newest_list(&folder);
    for path in files(&folder) {
        let name = path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
        let whole = fs::read(&path).unwrap();
        if is_unused(&name)
            || whole.is_empty()
            || (is_list(&name) && Some(&name) != newest.as_ref())
        {
            continue;
        }
        let place = used(&path, &whole) / 2;
        flip(&path, place);
        let refused = cluster.node_fails(NODE, &[]);
        let folder_name = path.parent().unwrap().to_str().unwrap();
        let expected = if name.ends_with("FORMAT") { folder_name } else { path.to_str().unwrap() };
        let said = refused.error(1).lines().last().unwrap();
        assert!(said.starts_with("trireme: ") && said.contains(expected), "{place} {name}: {said}");
        fs::write(&path, &whole).unwrap();
        named.push(name);
    }
    for kind in ["log/0", "node.json", "memory.json", "tables/FORMAT", &format!("tables/{engine}")]
    {
        assert!(named.iter().any(|name| name.starts_with(kind)), "{kind} is not in {named:?}");
    }
    assert_eq!(cluster.rows(), rows);

    // The last one is damaged for good.
    let path = folder.join("node.json");
    flip(&path, fs::read(&path).unwrap().len() / 2);
    rebuild(cluster);
    let other = cluster.others(NODE)[0];
    cluster.kill(other);
    assert_eq!(cluster.rows(), rows);
}

/// A damaged block was found when it was read, and the read failed; the node went on to lead, and so
/// did every strong read of that block until another led.
#[test]
fn a_leader_that_cannot_read_a_block_stops_and_another_leads() {
    for protocol in [Protocol::Raft, Protocol::Spinnaker, Protocol::Pacifica] {
        let cluster = &mut start(protocol, "lsm");
        for error in [
            "the tables have failed and take no more writes",
            "the node can no longer keep its promises",
            "has ended: exit status: 1",
            "a read failed",
            "Checksum mismatch for block",
        ] {
            cluster.expect_error(error);
        }
        let rows = fill(cluster);
        cluster.wait_until_caught_up(PATIENCE);
        cluster.stop_node(NODE);
        let tables = cluster.node_folder(NODE).join("tables/lsm/tables");
        let largest =
            files(&tables).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len());
        let path = largest.unwrap();
        flip(&path, fs::read(&path).unwrap().len() / 3);
        cluster.restart_node_with(NODE, &SMALL_TABLES);
        cluster.wait_until_caught_up(PATIENCE);
        cluster.lead_everywhere(NODE);
        // Each row is right, whichever replica answers.
        assert_eq!(cluster.rows(), rows, "{protocol}");
        cluster.wait_for_the_end_of(NODE);
        assert!(cluster.has_said(&format!("{} is damaged", path.display())), "{protocol}");
        let leader = cluster.wait_for_leader(COHORT, PATIENCE);
        assert_ne!(leader, NODE);
        cluster.run(["put", "after", "1"]).out();

        rebuild(cluster);
        cluster.lead_everywhere(NODE);
        let mut expected = rows;
        expected.insert("after".to_owned(), "1".to_owned());
        assert_eq!(cluster.rows(), expected, "{protocol}");
    }
}

/// `up` names the file in its own folder or in its coordinator's, and has what it needs from the nodes
/// once that is moved away.
#[test]
fn a_flipped_bit_in_what_up_and_its_coordinator_keep_is_named_and_mended() {
    let cluster = &mut Cluster::start(&["--ranges", "2", "--replication", "spinnaker"]);
    cluster.run(["put", "a", "1"]).out();
    cluster.stop();
    let description = cluster.data().join("cluster.json");
    let coordinator = cluster.data().join("coordinator");
    let mut paths = Vec::new();
    // A real etcd sees to its own files.
    let is_embedded = coordinator.exists();
    if is_embedded {
        paths.extend(files(&coordinator).into_iter().filter(|path| !path.ends_with("lock")));
        let has = |part: &str| paths.iter().any(|path| path.to_str().unwrap().contains(part));
        assert!(has("/log-") && has("/snapshot-"), "{paths:?}");
    }
    // `up` reads it before the others, so that it is damaged after them.
    paths.push(description.clone());
    for path in &paths {
        let whole = fs::read(path).unwrap();
        // The last is in the newest frame of the log that holds anything.
        for place in [0, whole.len() / 3, whole.len() / 2, whole.len() - EMPTY_FRAME_BYTES - 1] {
            flip(path, place);
            let refused = start_fails(&cluster.data(), cluster.port(), &[""; 0]);
            let said = refused.error(1).lines().last().unwrap();
            let expected = path.to_str().unwrap();
            assert!(said.starts_with("trireme: ") && said.contains(expected), "{place}: {said}");
            fs::write(path, &whole).unwrap();
        }
        flip(path, whole.len() / 2);
    }
    fs::rename(&description, cluster.folder().join("cluster.json.damaged")).unwrap();
    if is_embedded {
        fs::rename(&coordinator, cluster.folder().join("coordinator.damaged")).unwrap();
    }
    cluster.up_again();
    assert_eq!(cluster.run(["get", "a"]).out(), "1\n");
    cluster.run(["put", "b", "2"]).out();
}

/// A node of a cluster of sled was rebuilt as the documentation says, and so with the default engine:
/// the next `up` wanted the cluster's engine of it, and ended.
#[test]
fn a_node_that_was_rebuilt_with_another_engine_is_one_of_the_cluster() {
    let cluster = &mut Cluster::start(&["--ranges", "1", "--engine", "sled"]);
    cluster.run(["put", "a", "1"]).out();
    cluster.stop_node(NODE);
    fs::rename(cluster.node_folder(NODE), cluster.folder().join("damaged")).unwrap();
    cluster.start_new_node(NODE, &[]);
    cluster.wait_until_caught_up(PATIENCE);
    cluster.stop();
    cluster.up_again();
    assert_eq!(cluster.run(["get", "a"]).out(), "1\n");
    cluster.stop();
    cluster.up_again_with(&["--engine", "sled"]);
    assert_eq!(cluster.run(["get", "a"]).out(), "1\n");
}

#[track_caller]
fn start(protocol: Protocol, engine: &str) -> Cluster {
    let options = [&SMALL_TABLES[..], &["--engine", engine]].concat();
    Cluster::start_by_hand_as(protocol, &[], &options)
}

/// Moves the node's whole folder away and starts it on an empty one; returns when it counts again and
/// has everything.
#[track_caller]
fn rebuild(cluster: &mut Cluster) {
    let aside = cluster.folder().join("damaged");
    fs::rename(cluster.node_folder(NODE), aside).unwrap();
    cluster.start_new_node(NODE, &SMALL_TABLES);
    cluster.wait_for_role(COHORT, NODE, "follower", PATIENCE);
    cluster.wait_until_caught_up(PATIENCE);
}

#[track_caller]
fn fill(cluster: &Cluster) -> Rows {
    let row = |number: usize| (format!("k-{number:05}"), format!("{number:0>VALUE_BYTES$}"));
    let rows: Rows = (0..KEYS).map(row).collect();
    let summary = Import::start(cluster, &rows, &[]).finish();
    assert!(summary.out().contains(" 0 errors"), "{summary:?}");
    // Flushes go on beside the writes; what is to be damaged are files.
    until("there are files of rows", PATIENCE, || {
        let tables = files(&cluster.node_folder(NODE).join("tables"));
        let bytes: u64 = tables.iter().map(|path| fs::metadata(path).map_or(0, |m| m.len())).sum();
        (bytes > 1024 * 1024).then_some(())
    });
    rows
}

/// Returns true for what no start reads: locks, room for the log, and the blocks of rows of lsm.
fn is_unused(name: &str) -> bool {
    let is_rows = name.starts_with("tables/lsm/tables/");
    is_rows || name.ends_with("lock") || name.ends_with("LOCK") || name.ends_with(".new")
}

/// Returns true for a list of lsm's files.
fn is_list(name: &str) -> bool {
    name.strip_prefix("tables/lsm/v").is_some_and(|number| number.parse::<u64>().is_ok())
}

/// Returns the name of lsm's newest list of files, which alone is in use.
fn newest_list(folder: &Path) -> Option<String> {
    let current = fs::read(folder.join("tables/lsm/current")).ok()?;
    Some(format!("tables/lsm/v{}", u64::from_le_bytes(*current.first_chunk()?)))
}

/// Returns where a file's last byte is that is not zero: of a segment of the log, where records end.
fn used(path: &Path, bytes: &[u8]) -> usize {
    let end = bytes.iter().rposition(|byte| *byte != 0);
    end.unwrap_or_else(|| panic!("{} is empty", path.display())) + 1
}

fn flip(path: &Path, place: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[place] ^= 4;
    fs::write(path, bytes).unwrap();
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}
