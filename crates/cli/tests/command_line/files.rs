//! import and export.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use crate::command::{Ran, run, run_with_input};
use crate::fake::Cluster;

fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).to_str().unwrap().to_owned()
}

fn rows(cluster: &Cluster) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let state = cluster.state();
    state.rows.iter().map(|(key, (value, _))| (key.to_vec(), value.to_vec())).collect()
}

#[track_caller]
fn assert_summary(ran: &Ran, counts: &str) {
    let out = String::from_utf8_lossy(&ran.stdout);
    assert!(
        out.starts_with(&format!("imported {counts}, in ")) && out.ends_with(" s\n"),
        "{ran:?}"
    );
    assert_eq!(out.lines().count(), 1);
}

#[test]
fn every_row_of_a_file_is_put_and_may_be_put_again() {
    let cluster = Cluster::start(3, &["0500"]);
    let folder = TempDir::new().unwrap();
    let file = path(&folder, "rows.tsv");
    let text: String = (0..1000).map(|n| format!("{n:04}\tvalue {n}\n")).collect();
    fs::write(&file, text).unwrap();
    for _ in 0..2 {
        let ran = run(&cluster, ["import", &file, "--jobs", "32"]);
        ran.out();
        assert_summary(&ran, "1000 rows, 0 errors");
        assert_eq!(rows(&cluster).len(), 1000);
    }
    assert_eq!(rows(&cluster)[&b"0042"[..]], b"value 42");
    let ran = run(&cluster, ["import", &file, "--json"]).json();
    assert_eq!((&ran["rows"], &ran["errors"]), (&json!(1000), &json!(0)));
    assert!(ran["seconds"].as_f64().is_some());
}

#[test]
fn lines_that_are_no_rows_are_counted_and_named() {
    let cluster = Cluster::start(1, &[]);
    let ran = run_with_input(&cluster, ["import", "-"], b"a\t1\nb\n\nc\t\\q\nd\t4");
    assert_summary(&ran, "2 rows, 3 errors");
    assert_eq!(ran.status, 1);
    let told: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(told[0], "trireme: line 2: there is no tab between a key and a value");
    assert_eq!(told[1], "trireme: line 3: the line is empty");
    assert!(told[2].starts_with("trireme: line 4: '\\q' is no escape"), "{told:?}");
    assert_eq!(told[3..], ["trireme: 3 of 5 rows failed"]);
    assert_eq!(rows(&cluster).len(), 2);
}

#[test]
fn many_failures_are_counted_but_not_all_told() {
    let cluster = Cluster::start(1, &[]);
    let ran = run_with_input(&cluster, ["import", "-"], "x\n".repeat(500).as_bytes());
    assert_summary(&ran, "0 rows, 500 errors");
    assert_eq!(ran.stderr.lines().count(), 22);
}

#[test]
fn the_form_of_lines_is_a_choice() {
    let cluster = Cluster::start(1, &[]);
    let import = |arguments: &[&str], input: &[u8]| {
        run_with_input(&cluster, [&["import", "-"], arguments].concat(), input).out().to_owned()
    };
    import(&["--separator", ","], b"a,1\r\n");
    import(&["--key-only"], b"k1\nk2\tx\n");
    import(&["--format", "jsonl"], b"{\"key\":\"j\",\"value_base64\":\"/w==\"}\n");
    let found: Vec<(Vec<u8>, Vec<u8>)> = rows(&cluster).into_iter().collect();
    let expected: [(&[u8], &[u8]); 4] =
        [(b"a", b"1"), (b"j", b"\xff"), (b"k1", b""), (b"k2\tx", b"")];
    assert_eq!(found, expected.map(|(key, value)| (key.to_vec(), value.to_vec())));
}

#[test]
fn of_two_rows_with_one_key_the_later_stands() {
    let cluster = Cluster::start(1, &[]);
    let text: String = (0..3000).map(|n| format!("{}\t{n}\n", n % 3)).collect();
    // The last but one row of each key comes back late.
    cluster.state().slow = ["2994", "2995", "2996"].map(|value| (value.into(), 4)).into();
    let ran = run_with_input(&cluster, ["import", "-", "--jobs", "64"], text.as_bytes());
    assert_summary(&ran, "3000 rows, 0 errors");
    let last: Vec<Vec<u8>> = rows(&cluster).into_values().collect();
    assert_eq!(last, [&b"2997"[..], b"2998", b"2999"]);
}

#[test]
fn the_log_holds_the_keys_of_acknowledged_rows_alone() {
    let cluster = Cluster::start(1, &[]);
    cluster.state().refused = vec!["no".into()];
    let folder = TempDir::new().unwrap();
    let log = path(&folder, "acknowledged");
    fs::write(&log, "before\n").unwrap();
    let input = b"a\t1\nno\t2\nbad\nb\\tc\t3\n";
    let ran = run_with_input(&cluster, ["import", "-", "--ack-log", &log], input);
    assert_summary(&ran, "2 rows, 2 errors");
    assert!(ran.stderr.contains("trireme: line 2: 'no': invalid request: on purpose"), "{ran:?}");
    let logged = fs::read_to_string(&log).unwrap();
    let mut keys: Vec<&str> = logged.lines().collect();
    keys[1..].sort_unstable();
    assert_eq!(keys, ["before", "a", "b\\tc"]);
}

#[test]
fn rows_are_tried_again_until_their_deadline() {
    let cluster = Cluster::start(3, &[]);
    cluster.state().unavailable = 20;
    let text: String = (0..100).map(|n| format!("{n}\tv\n")).collect();
    let ran = run_with_input(&cluster, ["import", "-"], text.as_bytes());
    assert_summary(&ran, "100 rows, 0 errors");
    cluster.state().unavailable = u64::MAX;
    let arguments = ["import", "-", "--deadline", "200ms"];
    let ran = run_with_input(&cluster, arguments, text.as_bytes());
    assert_summary(&ran, "0 rows, 100 errors");
    assert!(ran.status == 1 && ran.stderr.contains("unavailable"), "{ran:?}");
}

#[test]
fn what_is_exported_can_be_imported_whatever_it_holds() {
    let cluster = Cluster::start(2, &["m", "\u{80}"]);
    for (key, value) in [
        (&b""[..], &b"no key"[..]),
        (b"a\tb\nc\r", b"\\t"),
        (b"m\xff\x00", b"\xfe\r\n"),
        (b"z\r", b""),
        (b"\xf0\xff", "\u{2028}\u{7f}".as_bytes()),
    ] {
        cluster.state().insert(key, value);
    }
    for number in 0..50 {
        cluster.state().insert(format!("k{number}").into_bytes().leak(), b"v\r");
    }
    let folder = TempDir::new().unwrap();
    for format in ["tsv", "jsonl"] {
        let file = path(&folder, format);
        let ran = run(&cluster, ["export", &file, "--format", format]);
        assert!(ran.out().starts_with("exported 55 rows in "), "{ran:?}");
        assert!(!Path::new(&format!("{file}.partial")).exists());
        let piped = run(&cluster, ["export", "-", "--format", format]);
        assert_eq!(piped.stdout, fs::read(&file).unwrap());
        assert!(piped.stderr.starts_with("exported 55 rows in "), "{piped:?}");
        let other = Cluster::start(1, &["k"]);
        let ran = run(&other, ["import", &file, "--format", format]);
        assert_summary(&ran, "55 rows, 0 errors");
        assert_eq!(rows(&other), rows(&cluster));
    }
}

#[test]
fn a_part_of_the_keys_can_be_exported() {
    let cluster = Cluster::start(1, &[]);
    for key in [&b"a"[..], b"ab", b"b", b"c\t"] {
        cluster.state().insert(key, b"");
    }
    let export = |arguments: &[&str]| {
        let ran = run(&cluster, [&["export", "-"], arguments].concat());
        String::from_utf8(ran.stdout).unwrap()
    };
    assert_eq!(export(&["--prefix", "a"]), "a\t\nab\t\n");
    assert_eq!(export(&["--start", "ab", "--end", "c"]), "ab\t\nb\t\n");
    assert_eq!(export(&["--start", r"c\t", "--escaped"]), "c\\t\t\n");
}

/// Of many rows of one key each was put alone, with all others waiting behind it.
#[test]
fn rows_of_one_key_that_wait_for_each_other_are_put_as_the_last_of_them() {
    let cluster = Cluster::start(1, &[]);
    // The first row comes back late, so that all others come meanwhile.
    cluster.state().slow = [("first".into(), 8)].into();
    let mut text = "hot\tfirst\n".to_owned();
    for number in 1..2000 {
        text.push_str(&format!("hot\t{number}\nc{number:04}\t1\n"));
    }
    let folder = TempDir::new().unwrap();
    let log = path(&folder, "acknowledged");
    let ran = run_with_input(&cluster, ["import", "-", "--ack-log", &log], text.as_bytes());
    assert_summary(&ran, "3999 rows, 0 errors");
    assert_eq!(rows(&cluster)[&b"hot"[..]], b"1999");
    let puts = cluster.state().done["put"];
    assert!(puts < 1999 + 1000, "{puts} puts for 1999 other rows and 2000 of one key");
    let logged = fs::read_to_string(&log).unwrap();
    assert_eq!(logged.lines().filter(|key| *key == "hot").count(), 2000);
}

/// A row that stands for others fails for all of them.
#[test]
fn rows_that_wait_behind_one_that_is_refused_are_counted_each() {
    let cluster = Cluster::start(1, &[]);
    cluster.state().refused = vec!["no".into()];
    let input = "no\t1\n".repeat(50);
    let ran = run_with_input(&cluster, ["import", "-"], input.as_bytes());
    assert_summary(&ran, "0 rows, 50 errors");
    assert!(ran.status == 1 && ran.stderr.contains("'no'"), "{ran:?}");
    // One that could never be put is not acknowledged by what comes after it.
    let long = "v".repeat(trireme_types::limits::VALUE_BYTES_MAX + 1);
    let input = format!("k\t1\nk\t{long}\nk\t3\n");
    let ran = run_with_input(&cluster, ["import", "-"], input.as_bytes());
    assert_summary(&ran, "2 rows, 1 errors");
    assert!(
        ran.stderr.contains("line 2: 'k': invalid request: a value of 1048577 bytes;"),
        "{ran:?}"
    );
    assert_eq!(rows(&cluster)[&b"k"[..]], b"3");
}

/// The mark at the start of a file of another system became a part of the first key.
#[test]
fn a_byte_order_mark_is_passed_over_and_a_key_that_begins_with_one_comes_back() {
    let cluster = Cluster::start(1, &[]);
    for (format, input) in [
        (&["--format", "tsv"][..], &b"\xef\xbb\xbfapple\t1\r\nb\t2\r\n"[..]),
        (&["--format", "jsonl"], b"\xef\xbb\xbf{\"key\":\"j\",\"value\":\"1\"}\n"),
        (&["--key-only"], b"\xef\xbb\xbfk\n"),
    ] {
        run_with_input(&cluster, [&["import", "-"], format].concat(), input).out();
    }
    let keys: Vec<Vec<u8>> = rows(&cluster).into_keys().collect();
    assert_eq!(keys, [&b"apple"[..], b"b", b"j", b"k"]);

    let marked = Cluster::start(1, &[]);
    marked.state().insert(b"\xef\xbb\xbfa", b"1");
    for format in ["tsv", "jsonl"] {
        let exported = run(&marked, ["export", "-", "--format", format]).stdout;
        let other = Cluster::start(1, &[]);
        run_with_input(&other, ["import", "-", "--format", format], &exported).out();
        assert_eq!(rows(&other), rows(&marked), "{format}");
    }
}

/// What one command prints, another one reads, the empty key included.
#[test]
fn the_keys_that_scan_prints_can_be_imported() {
    let cluster = Cluster::start(1, &[]);
    for key in [&b""[..], b"a\tb", b"\xef\xbb\xbfz", b"\n"] {
        cluster.state().insert(key, b"");
    }
    let keys = run(&cluster, ["scan", "--keys-only"]).stdout;
    let other = Cluster::start(1, &[]);
    run_with_input(&other, ["import", "-", "--key-only"], &keys).out();
    assert_eq!(rows(&other), rows(&cluster));
}

/// An export to a link replaced the link, and one to a file made it readable by everybody.
#[test]
fn an_export_replaces_what_a_link_leads_to_and_keeps_the_rights_of_the_file() {
    let cluster = Cluster::start(1, &[]);
    cluster.state().insert(b"a", b"1");
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("far")).unwrap();
    let link = folder.path().join("link");
    let (middle, real) = (folder.path().join("far/middle"), folder.path().join("far/real"));
    symlink("far/middle", &link).unwrap();
    symlink(&real, &middle).unwrap();
    let export = || run(&cluster, ["export", link.to_str().unwrap()]).out().to_owned();
    export();
    assert_eq!(fs::read_to_string(&real).unwrap(), "a\t1\n");
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    cluster.state().insert(b"b", b"2");
    export();
    assert_eq!(fs::read_to_string(&link).unwrap(), "a\t1\nb\t2\n");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::symlink_metadata(&middle).unwrap().is_symlink());
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
}

/// A pipe became a file, and its reader waited for ever.
#[test]
fn an_export_to_a_pipe_or_a_device_is_written_to_it() {
    let cluster = Cluster::start(1, &[]);
    cluster.state().insert(b"a", b"1");
    let folder = TempDir::new().unwrap();
    let pipe = path(&folder, "pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::read_to_string(pipe).unwrap()
    });
    let ran = run(&cluster, ["export", &pipe]);
    assert_eq!((ran.status, &ran.stdout[..]), (0, &b""[..]), "{ran:?}");
    assert!(ran.stderr.starts_with("exported 1 rows in "), "{ran:?}");
    assert_eq!(reader.join().unwrap(), "a\t1\n");
    assert!(fs::metadata(&pipe).unwrap().file_type().is_fifo());

    // Not `/dev/stdout`, which is this machine's: where it was replaced, all others would miss it.
    let ran = run(&cluster, ["export", "/dev/fd/1"]);
    assert_eq!((ran.status, &ran.stdout[..]), (0, &b"a\t1\n"[..]), "{ran:?}");
    // A link of this folder, so that nothing of the machine is at risk.
    let full = path(&folder, "full");
    symlink("/dev/full", &full).unwrap();
    let ran = run(&cluster, ["export", &full]);
    assert!(ran.error(1).contains("No space left on device"), "{ran:?}");
    assert!(fs::symlink_metadata(&full).unwrap().is_symlink());
}

/// Two exports of one name wrote into one another's unfinished file.
#[test]
fn exports_to_one_file_at_once_do_not_meet() {
    let cluster = Cluster::start(1, &[]);
    for number in 0..400 {
        cluster.state().insert(format!("k{number:03}").into_bytes().leak(), b"v");
    }
    let folder = TempDir::new().unwrap();
    let file = path(&folder, "rows");
    let strangers = path(&folder, "rows.partial");
    fs::write(&strangers, "of another program").unwrap();
    std::thread::scope(|scope| {
        for prefix in ["k", "k0", "k1", "k2"] {
            let (cluster, file) = (&cluster, &file);
            scope.spawn(move || {
                for _ in 0..5 {
                    run(cluster, ["export", file, "--prefix", prefix]).out();
                    let lines = fs::read_to_string(file).unwrap().lines().count();
                    assert!([400, 100].contains(&lines), "{lines} lines");
                }
            });
        }
    });
    assert_eq!(fs::read_to_string(&strangers).unwrap(), "of another program");
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

/// A file of the name that was asked for is always a complete export.
#[test]
fn an_export_that_fails_leaves_the_file_as_it_was() {
    let cluster = Cluster::start(1, &[]);
    cluster.state().insert(b"a", b"1");
    let folder = TempDir::new().unwrap();
    let file = path(&folder, "rows");
    fs::write(&file, "an earlier export").unwrap();
    cluster.state().unavailable = u64::MAX;
    let ran = run(&cluster, ["export", &file, "--deadline", "200ms"]);
    assert!(ran.error(1).contains("unavailable"), "{ran:?}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "an earlier export");
    assert!(!Path::new(&format!("{file}.partial")).exists(), "a part of an export was left behind");
    let ran = run(&cluster, ["export", &path(&folder, "no/such/folder")]);
    assert!(ran.error(1).starts_with("creating "), "{ran:?}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let cluster = Cluster::start(1, &[]);
    let ran = run(&cluster, ["import", "/no/such/file"]);
    assert!(ran.error(1).starts_with("opening /no/such/file: No such file"), "{ran:?}");
    assert_eq!(ran.stdout, b"");
    let folder = TempDir::new().unwrap();
    let ran = run(&cluster, ["import", folder.path().to_str().unwrap()]);
    assert!(ran.error(1).ends_with("is a folder"), "{ran:?}");
}
