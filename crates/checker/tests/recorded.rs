//! Histories that others recorded, with known verdicts. They are not part of the project: the
//! variable `TRIREME_RECORDED_HISTORIES` names their folder.

#![allow(clippy::print_stderr, reason = "a test that does not run says so")]

use std::fs::{self, File};
use std::io::BufReader;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use trireme_checker::search::Limits;
use trireme_checker::{check, format};

/// Where the histories are looked for: beside the checkout, unless the variable names a folder.
fn folder() -> PathBuf {
    match std::env::var_os("TRIREME_RECORDED_HISTORIES") {
        Some(folder) => folder.into(),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/histories"),
    }
}

#[test]
fn recorded_histories_get_their_known_verdicts() {
    let folder = folder();
    let Ok(verdicts) = fs::read_to_string(folder.join("verdicts.tsv")) else {
        assert!(
            std::env::var_os("TRIREME_RECORDED_HISTORIES").is_none(),
            "{} has no verdicts.tsv",
            folder.display()
        );
        eprintln!("######## NO RECORDED HISTORIES: {} is not there ########", folder.display());
        return;
    };
    let mut judged = 0;
    for line in verdicts.lines() {
        let (name, expected) = line.split_once('\t').expect("a name, a tab and a verdict");
        let begun = Instant::now();
        let file = File::open(folder.join(name)).expect("the history is beside its verdict");
        let history = format::read(BufReader::new(file)).expect("the history can be read");
        let verdict = check(history, &Limits::default());
        assert_eq!(verdict.name(), expected, "{name}");
        // Each takes milliseconds; an order found only by exhausting a bound would take far more.
        assert!(begun.elapsed() < Duration::from_secs(30), "{name} took {:?}", begun.elapsed());
        judged += 1;
    }
    assert!(judged > 0, "no history was judged");
}
