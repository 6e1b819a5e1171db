//! A process that is killed at any moment: the table is as it was after some entry, and holds just
//! what the log up to that entry amounts to.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command as Process, Stdio};

use super::script::{Random, Script};
use super::*;

for_each_engine!(a_killed_process_leaves_a_state_that_existed);

const FOLDER: &str = "TRIREME_TEST_TABLE_FOLDER";
const ENGINE: &str = "TRIREME_TEST_TABLE_ENGINE";
const CHILD: &str = "tests::kill::child_that_applies_until_it_is_killed";
const SEED: u64 = 31;
const KILLS: u64 = 12;

/// The child's part; does nothing when it is run as a test.
#[test]
fn child_that_applies_until_it_is_killed() {
    let (Ok(folder), Ok(engine)) = (env::var(FOLDER), env::var(ENGINE)) else {
        return;
    };
    let tables = Tables::open(Path::new(&folder), small(engine.parse().unwrap())).unwrap();
    let table = tables.cohort(COHORT, KeyRange::all()).unwrap();
    let mut script = script_at(table.applied().seq);
    loop {
        let entries: Vec<_> = (0..5).map(|_| script.next().0).collect();
        table.apply(&entries).unwrap();
        let line = format!("\napplied {} {}\n", table.applied().seq, table.persisted().seq);
        // The parent is gone if this fails, and there is nobody left to kill this process.
        if std::io::stdout().write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}

fn script_at(seq: u64) -> Script {
    let mut script = Script::new(SEED);
    (0..seq).for_each(|_| drop(script.next()));
    script
}

fn a_killed_process_leaves_a_state_that_existed(engine: Engine) {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(99);
    let mut last = 0;
    for _ in 0..KILLS {
        let (applied, persisted) = run_and_kill(dir.path(), engine, 20 + random.below(400));
        let tables = Tables::open(dir.path(), small(engine)).unwrap();
        let table = tables.cohort(COHORT, KeyRange::all()).unwrap();
        let seq = table.applied().seq;
        assert!(seq >= persisted, "{seq} is before {persisted}, which was persisted");
        assert!(seq >= last, "{seq} is before {last}, where the last run began");
        let mut script = script_at(seq);
        script.model.check(&table);
        // Sessions too are those of that moment: what follows has the outcomes that it must have.
        for _ in 0..50 {
            let (entry, outcomes) = script.next();
            assert_eq!(table.apply(&[entry]).unwrap()[0].outcomes, outcomes);
        }
        script.model.check(&table);
        tables.close().unwrap();
        last = script.model.applied.seq;
        assert!(applied > 0);
    }
}

/// Runs the child until it has reported so many times, kills it, and returns the last applied and
/// persisted sequence that it reported.
fn run_and_kill(dir: &Path, engine: Engine, reports: u64) -> (u64, u64) {
    let mut child = Process::new(env::current_exe().unwrap())
        .args([CHILD, "--exact", "--nocapture", "--test-threads=1"])
        .env(FOLDER, dir)
        .env(ENGINE, engine.name())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut points = (0, 0);
    let mut seen = 0;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let Some(Ok(line)) = Some(line) else { break };
        let mut words = line.split_whitespace();
        if words.next() != Some("applied") {
            continue;
        }
        let mut number = || words.next().and_then(|word| word.parse().ok());
        if let (Some(applied), Some(persisted)) = (number(), number()) {
            points = (applied, persisted);
            seen += 1;
        }
        if seen == reports {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(seen >= reports, "the child ended by itself after {seen} reports");
    points
}
