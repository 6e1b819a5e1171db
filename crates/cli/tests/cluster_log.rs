//! M11: each node has one log for all its cohorts, written by group commit and read once. The
//! segments are read here as docs/storage-format.md describes them.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::join_all;
use trireme_client::ClientOptions;

use common::Cluster;

const NODES: usize = 3;
const COHORTS: usize = 4;
const WRITERS: usize = 96;
const PUTS: usize = 100;

const SECTOR: usize = 512;
const BLOCK_HEADER: usize = 48;
const RECORD_HEADER: usize = 36;
const KIND_ENTRY: u8 = 1;

#[test]
fn the_cohorts_of_a_node_share_one_log_and_its_forced_writes() {
    let cluster = &mut Cluster::start(&["--ranges", &COHORTS.to_string()]);
    let patience = Duration::from_secs(30);
    let before = cluster.wait_until_caught_up(patience);
    write_concurrently(cluster);
    let after = cluster.wait_until_caught_up(patience);

    // Every node writes every command, its own cohorts' and as a follower the others'.
    let commands = |statuses: &common::Statuses| -> u64 {
        (1..=NODES).map(|node| statuses.log(node).commands).sum()
    };
    let commands = commands(&after) - commands(&before);
    assert!(commands >= (WRITERS * PUTS) as u64, "only {commands} commands were counted");
    for node in 1..=NODES {
        let (before, after) = (before.log(node), after.log(node));
        let syncs = after.syncs - before.syncs;
        assert!(syncs > 0 && syncs * 4 < commands, "node {node}: {syncs} for {commands}");
        let entries = after.entries - before.entries;
        assert!(syncs < entries, "node {node}: {syncs} for the {entries} entries of all cohorts");
        assert_eq!(after.scans, 1, "node {node}");
    }

    let rows = cluster.rows();
    cluster.stop();
    let mut sizes = Vec::new();
    for node in 1..=NODES {
        let folder = cluster.node_folder(node);
        assert_one_log(&folder);
        let segments = segments(&folder);
        let used: usize = segments.iter().map(|segment| used(segment)).sum();
        sizes.push(used as u64..=segments.iter().map(|segment| segment.len() as u64).sum());
    }
    cluster.up_again();
    let statuses = cluster.wait_until_caught_up(patience);
    for (node, size) in (1..=NODES).zip(sizes) {
        // M12: no byte is read twice.
        let log = statuses.log(node);
        assert_eq!(log.scans, 1, "node {node}");
        assert!(size.contains(&log.scanned_bytes), "node {node} read {log:?} of {size:?}");
    }
    assert!(cluster.rows() == rows, "a restart has changed the rows");
}

/// Has many writers put at once, each into every range in turn.
fn write_concurrently(cluster: &Cluster) {
    cluster.runtime.block_on(async {
        let client = cluster.client(ClientOptions::default()).await;
        let writers = (0..WRITERS).map(|writer| {
            let client = client.clone();
            tokio::spawn(async move {
                for put in 0..PUTS {
                    let letter = char::from(b'a' + u8::try_from((writer + put) % 26).unwrap());
                    let key = format!("{letter}-{writer}-{put}");
                    client.put(key, vec![b'v'; 64]).await.unwrap();
                }
            })
        });
        join_all(writers).await.into_iter().for_each(|ended| ended.unwrap());
    });
}

/// Checks that a node's folder holds one log and that the entries of all cohorts lie in it, mixed.
#[track_caller]
fn assert_one_log(node: &Path) {
    let mut names: Vec<String> = fs::read_dir(node)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["LOCK", "incoming", "log", "memory.json", "node.json", "tables"]);

    let mut entries = Vec::new();
    let mut mixed_blocks = 0;
    for segment in segments(node) {
        for block in blocks(&segment) {
            let cohorts: BTreeSet<u64> = block.iter().copied().collect();
            mixed_blocks += usize::from(cohorts.len() > 1);
            entries.extend(block);
        }
    }
    let cohorts: BTreeSet<u64> = entries.iter().copied().collect();
    assert_eq!(cohorts.len(), COHORTS, "{}", node.display());
    let changes = entries.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(changes > entries.len() / 4, "{changes} changes in {} entries", entries.len());
    assert!(mixed_blocks > 10, "only {mixed_blocks} forced writes held several cohorts' entries");
}

/// Returns the segments of a node's log, and checks that nothing but them is in its folder.
#[track_caller]
fn segments(node: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(node.join("log")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.retain(|path| !["lock", "spare.log.new"].iter().any(|name| path.ends_with(name)));
    let first = paths.first().expect("there is a segment");
    assert!(first.ends_with("00000000000000000001.log"), "{paths:?}");
    paths.iter().for_each(|path| assert_eq!(path.extension().unwrap(), "log", "{paths:?}"));
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Returns the cohort of each entry of each block in a segment.
#[track_caller]
fn blocks(segment: &[u8]) -> Vec<Vec<u64>> {
    assert_eq!(&segment[..8], b"TRIRELOG");
    let mut blocks = Vec::new();
    let mut at = SECTOR;
    while segment.get(at..at + 4) == Some(b"TBLK") {
        let bytes = number(&segment[at + 32..at + 36]);
        let count = number(&segment[at + 40..at + 44]);
        let records = &segment[at + BLOCK_HEADER..][..bytes];
        blocks.push(entries(records, count));
        at += (BLOCK_HEADER + bytes).next_multiple_of(SECTOR);
    }
    assert!(segment[at..].iter().all(|&byte| byte == 0), "something lies behind the last block");
    blocks
}

#[track_caller]
fn entries(mut records: &[u8], count: usize) -> Vec<u64> {
    let mut cohorts = Vec::new();
    for _ in 0..count {
        let payload = number(&records[4..8]);
        if records[8] == KIND_ENTRY {
            cohorts.push(number(&records[12..20]) as u64);
        }
        records = &records[RECORD_HEADER + payload..];
    }
    assert!(records.is_empty(), "a block holds more than its records");
    cohorts
}

/// Returns how many bytes of a segment are used.
fn used(segment: &[u8]) -> usize {
    segment.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | usize::from(byte))
}
