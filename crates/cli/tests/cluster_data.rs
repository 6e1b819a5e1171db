//! Real input goes in over four ranges split at its own keys, and comes out in order, complete and
//! unchanged; and what single commands do to single keys.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::json;
use trireme_client::{ClientOptions, Consistency, ReadOptions, Version};

use common::{
    Cluster, Rows, made_up_unicode_data, made_up_words, sorted, split_keys, tsv, unicode_data,
    until, words,
};

const ENGINES: [&str; 2] = ["lsm", "sled"];

/// Imports the words, each with the number of its line, and the Unicode Character Database, each
/// line's first field with the rest of it.
#[test]
fn real_input_comes_back_in_order_and_complete() {
    let words = words();
    let mut rows = sorted(&words);
    let splits = split_keys(&rows, 4);
    let cluster = Cluster::start(&["--split-at", &splits]);

    let file = cluster.file("words.tsv");
    fs::write(&file, tsv(words.iter().map(|(word, number)| (word, number)))).unwrap();
    let imported = cluster.run(["import", &file, "--json"]).json();
    assert_eq!((&imported["rows"], &imported["errors"]), (&json!(words.len()), &json!(0)));
    assert_same(&cluster.rows(), &rows);
    assert_exported(&cluster, &rows, &[]);

    let text = unicode_data();
    let file = cluster.file("UnicodeData.txt");
    fs::write(&file, &text).unwrap();
    let imported = cluster.run(["import", &file, "--separator", ";", "--json"]).json();
    assert_eq!(imported["rows"], json!(text.lines().count()));
    rows.extend(text.lines().map(|line| {
        let (key, value) = line.split_once(';').unwrap();
        (key.to_owned(), value.to_owned())
    }));
    assert_same(&cluster.rows(), &rows);
    assert_exported(&cluster, &rows, &[]);
    assert_scans(&cluster, &rows, &splits);

    // The rows are spread over the ranges, and every range over all three nodes.
    let statuses = cluster.wait_until_caught_up(Duration::from_secs(30));
    assert_eq!(statuses.cohorts().len(), 4);
    for cohort in statuses.cohorts() {
        let replicas = statuses.replicas(cohort);
        assert!(replicas.len() == 3 && replicas.iter().all(|(_, r)| r.applied.unwrap().seq > 50));
    }
}

/// Scans intervals that begin and end before, at and behind every border of the ranges.
fn assert_scans(cluster: &Cluster, rows: &Rows, splits: &str) {
    let keys: Vec<&String> = rows.keys().collect();
    let reversed = cluster.run(["scan", "--reverse"]);
    assert!(reversed.out().lines().eq(lines(rows).rev()), "the reverse scan differs");
    for border in splits.split(',') {
        let at = keys.binary_search(&&border.to_owned()).expect("the border is a key");
        for (from, to) in [(at - 3, at + 3), (at - 3, at), (at, at + 3), (at - 5000, at + 5000)] {
            let (start, end) = (keys[from], keys[to]);
            let expected: Vec<String> = lines(rows).skip(from).take(to - from).collect();
            let scanned = cluster.run(["scan", "--", start, end]);
            assert!(scanned.out().lines().eq(&expected), "from {start} to {end}");
            let reversed = cluster.run(["scan", "--reverse", "--", start, end]);
            assert!(reversed.out().lines().eq(expected.iter().rev()), "from {end} to {start}");
            let limited = cluster.run(["scan", "--limit", "4", "--", start, end]);
            assert!(limited.out().lines().eq(expected.iter().take(4)), "four from {start}");
        }
        assert_exported(cluster, rows, &["--start", keys[at - 100], "--end", keys[at + 100]]);
    }
    let beginning: Vec<String> = lines(rows).filter(|line| line.starts_with("Me")).collect();
    assert!(cluster.run(["scan", "--prefix", "Me"]).out().lines().eq(&beginning));
}

/// What an export writes is what LC_ALL=C sort would make of the input.
#[track_caller]
fn assert_exported(cluster: &Cluster, rows: &Rows, part: &[&str]) {
    let file = cluster.file("exported.tsv");
    let ran = cluster.run([&["export", &file], part].concat());
    ran.out();
    let expected = match part {
        ["--start", start, "--end", end] => tsv(rows.range(start.to_string()..end.to_string())),
        _ => tsv(rows),
    };
    assert!(fs::read_to_string(&file).unwrap() == expected, "the export differs: {ran:?}");
}

#[track_caller]
fn assert_same(found: &Rows, expected: &Rows) {
    assert_eq!(found.len(), expected.len());
    let differing = found.iter().zip(expected).find(|(found, expected)| found != expected);
    assert_eq!(differing, None);
}

fn lines(rows: &Rows) -> impl DoubleEndedIterator<Item = String> + '_ {
    rows.iter().map(|(key, value)| format!("{key}\t{value}"))
}

#[test]
fn single_keys_are_put_read_and_deleted_under_conditions() {
    for engine in ENGINES {
        let cluster = Cluster::start(&["--engine", engine]);
        for key in ["apple", "grape", "melon", "zebra"] {
            assert_life_of_a_key(&cluster, key);
        }
        assert_timeline_reads_tell_how_old_they_are(&cluster);
    }
}

/// Every command's exit status and output, over the life of one key.
#[track_caller]
fn assert_life_of_a_key(cluster: &Cluster, key: &str) {
    let ran = |arguments: &[&str]| cluster.run(arguments);
    let version = |text: &str| text.trim_end().parse::<u64>().unwrap();

    assert_eq!(ran(&["get", key]).error(1).lines().count(), 1);
    assert_eq!(ran(&["delete", key]).status, 1);
    let first = version(ran(&["put", key, "one", "--if-absent"]).out());
    assert_eq!(ran(&["get", key]).out(), "one\n");

    let refused = ran(&["put", key, "other", "--if-absent"]);
    assert!(refused.error(1).contains(&first.to_string()), "{refused:?}");
    let second = version(ran(&["put", key, "two", "--if-version", &first.to_string()]).out());
    assert!(second > first);
    let refused = ran(&["put", key, "other", "--if-version", &first.to_string(), "--json"]);
    assert_eq!(refused.status, 1);
    let said: serde_json::Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(said, json!({"done": false, "current_version": second}));
    let got = ran(&["get", key, "--json"]).json();
    assert_eq!(got, json!({"key": key, "value": "two", "version": second}));

    let third = version(ran(&["put", key, "three"]).out());
    assert!(third > second);
    assert_eq!(ran(&["delete", key, "--if-version", &second.to_string()]).status, 1);
    assert_eq!(ran(&["get", key]).out(), "three\n");
    assert_eq!(ran(&["delete", key, "--if-version", &third.to_string()]).out(), "deleted\n");
    assert_eq!(ran(&["get", key]).error(1).lines().count(), 1);
    let refused = ran(&["put", key, "other", "--if-version", &third.to_string()]);
    refused.error(1);
    // A version is never used twice, also across a deletion.
    assert!(version(ran(&["put", key, "four", "--if-absent"]).out()) > third);
    assert_eq!(ran(&["delete", key]).out(), "deleted\n");
    assert_eq!(ran(&["scan", key, &format!("{key}~")]).out(), "");
}

/// A timeline read may be answered by any replica. Each says up to where it has come; in the end
/// all have come to the write.
#[track_caller]
fn assert_timeline_reads_tell_how_old_they_are(cluster: &Cluster) {
    cluster.run(["put", "apple", "red"]).out();
    let statuses = cluster.wait_until_caught_up(Duration::from_secs(20));
    let cohort = statuses.leader(1).unwrap().1;
    let applied = cohort.applied.unwrap();
    let timeline = ["get", "apple", "--consistency", "timeline"];
    let told = cluster.run([&timeline[..], &["--json"]].concat()).json();
    assert_eq!(told["value"], json!("red"));
    assert!(told["freshness"]["age_ms"].is_u64(), "{told}");
    assert!(told["freshness"].get("applied").is_some(), "{told}");
    assert_eq!(cluster.run(timeline).out(), "red\n");
    let strong = cluster.run(["get", "apple", "--json"]).json();
    assert_eq!(strong.get("freshness"), None);

    cluster.runtime.block_on(async {
        let client = cluster.client(ClientOptions::default()).await;
        let options = ReadOptions { consistency: Consistency::Timeline, deadline: None };
        let written = client.put("apple", "green").await.unwrap();
        let read = client.get_with("apple", options).await.unwrap();
        let freshness = read.freshness.expect("a timeline read tells it");
        assert!(freshness.applied.seq >= applied.seq, "{freshness:?} is older than {applied:?}");
        let value = read.value.unwrap();
        assert!(value.version == written || value.value == "red", "{value:?}");
        assert!(value.version > Version(0));
    });
    until("every replica answers with the newest value", Duration::from_secs(20), || {
        let values = [(); 6].map(|()| cluster.run(timeline).stdout);
        values.iter().all(|value| value == "green\n").then_some(())
    });
}

/// What stands in for the real input where that is not installed is as large, and each key comes
/// once.
#[test]
fn made_up_input_is_as_large_as_the_real_one() {
    let made_up = made_up_words();
    let distinct: BTreeSet<&str> = made_up.lines().collect();
    assert_eq!((made_up.lines().count(), distinct.len()), (104_334, 104_334));
    let made_up = made_up_unicode_data();
    let keys: BTreeSet<&str> =
        made_up.lines().filter_map(|line| Some(line.split_once(';')?.0)).collect();
    assert_eq!((made_up.lines().count(), keys.len()), (34_924, 34_924));
}
