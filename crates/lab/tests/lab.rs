//! The program, run as its user runs it, on clusters of the `trireme` program beside it.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Returns the program, told to make its clusters' folders in `folder`.
fn lab(folder: &Path, arguments: &[&str]) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_trireme-lab"));
    let trireme = program.with_file_name("trireme");
    // Cargo builds no program of another crate for this test; `cargo test --workspace` does.
    assert!(
        trireme.is_file(),
        "there is no {}: run `cargo build -p trireme-cli` first",
        trireme.display()
    );
    let mut command = Command::new(program);
    command.args(arguments).arg("--folder").arg(folder).stdin(Stdio::null());
    command
}

/// Checks that nothing is left of any cluster: no process, and no file.
fn assert_nothing_is_left(folder: &Path) {
    let name = folder.to_str().unwrap();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments);
        assert!(!arguments.contains(name), "{arguments:?} runs still");
    }
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0, "files are left");
}

#[test]
fn a_killed_leader_costs_a_gap_and_no_acknowledged_key() {
    let folder = tempfile::tempdir().unwrap();
    let arguments =
        ["kills", "--replication", "raft", "--victim", "leader", "--kills", "1", "--json"];
    let output = lab(folder.path(), &arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let conditions = &report["conditions"][0];
    assert_eq!(conditions["durability"], "fsync", "{report}");
    assert_eq!((&conditions["engine"], &conditions["protocol"]), (&"lsm".into(), &"raft".into()));
    let results = &report["results"];
    let kills = results["kills"].as_array().unwrap();
    assert_eq!(kills.len(), 1, "{report}");
    // A Raft cohort elects nobody while the dead leader's lease lasts.
    assert!(kills[0]["gap_us"].as_u64().unwrap() > 100_000, "{report}");
    assert!(results["acknowledged"].as_u64().unwrap() > 2, "{report}");
    assert_eq!(results["lost"], Value::Null, "{report}");
    assert_nothing_is_left(folder.path());
}

#[test]
fn an_interrupted_experiment_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["kills", "--replication", "raft", "--victim", "follower", "--kills", "1000"];
    let mut command = lab(folder.path(), &arguments);
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    // By then a node was killed and is being started again.
    let mut first = String::new();
    said.read_line(&mut first).unwrap();
    assert!(first.starts_with("kill 1 of 1000"), "{first}");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest}");
    assert!(rest.ends_with("trireme-lab: interrupted\n"), "{rest}");
    assert_nothing_is_left(folder.path());
}

#[test]
fn a_missing_program_and_a_cluster_that_does_not_start_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let error = |more: &[&str]| {
        let arguments = ["kills", "--replication", "raft", "--victim", "leader"];
        let output = lab(folder.path(), &arguments).args(more).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let missing = error(&["--trireme", "/nowhere/trireme"]);
    assert_eq!(missing, "trireme-lab: there is no program at /nowhere/trireme\n");
    let refused = error(&["--up", "--no-such-option"]);
    assert!(refused.contains("ended with exit status: 2 before it was ready"), "{refused}");
    assert!(refused.contains("--no-such-option"), "{refused}");
    assert_nothing_is_left(folder.path());
}

const GOOD: &str = r#"{"format":"trireme-history","version":1}
{"client":1,"called":1,"returned":2,"op":"put","key":"a","value":"1"}
{"client":2,"called":3,"returned":4,"op":"get","key":"a","found":"1"}
"#;

#[test]
fn histories_are_judged_and_what_is_wrong_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let (good, stale) = (folder.path().join("good.json"), folder.path().join("stale.json"));
    std::fs::write(&good, GOOD).unwrap();
    std::fs::write(&stale, GOOD.replace(r#""found":"1""#, r#""found":null"#)).unwrap();
    let check = |files: &[&Path]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trireme-lab"));
        command.arg("check").args(files).arg("--html").arg(folder.path());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(check(&[&good]), (Some(0), "good.json\tlinearizable\n".to_owned()));
    let both = "good.json\tlinearizable\nstale.json\tnot linearizable\n".to_owned();
    assert_eq!(check(&[&good, &stale]), (Some(1), both));
    let page = std::fs::read_to_string(folder.path().join("stale.json.html")).unwrap();
    assert!(page.contains("get a -&gt; (no value)"), "{page}");
    std::fs::write(&stale, "{}").unwrap();
    assert_eq!(check(&[&stale]), (Some(1), String::new()));
}

/// Runs `chaos` for one round, and returns its status and the report.
fn chaos(folder: &Path, arguments: &[&str]) -> (Option<i32>, Value) {
    let out = folder.join("out");
    let clusters = folder.join("clusters");
    std::fs::create_dir(&clusters).unwrap();
    let mut command = lab(&clusters, &["chaos", "--json", "--clients", "4"]);
    let output = command.arg("--out").arg(&out).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
    (output.status.code(), report)
}

#[test]
fn chaos_finds_nothing_wrong_with_a_cluster_that_keeps_its_promises() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--replication", "raft", "--time", "6s", "--round", "6s", "--fault", "kill"];
    let (status, report) = chaos(folder.path(), &arguments);
    let result = &report["results"]["chaos"][0];
    assert_eq!((status, result["outcome"].as_str()), (Some(0), Some("pass")), "{report}");
    assert!(result["answered"].as_u64().unwrap() > 100, "{report}");
    assert!(result["acknowledged_for_good"].as_u64().unwrap() > 10, "{report}");
    assert!(result["faults"]["kill"].as_u64().unwrap() > 0, "{report}");
    assert_nothing_is_left(&folder.path().join("clusters"));
}

/// The first time, there is no earlier copy of the coordinator's data yet, and with this seed there is
/// one time only. That the coordinator was killed was counted as if it had been put back.
#[test]
fn chaos_fails_if_a_required_fault_could_not_happen() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--replication", "raft", "--time", "3s", "--round", "3s", "--seed", "1"];
    let fault = ["--fault", "put-coordinator-back"];
    let (status, report) = chaos(folder.path(), &[&arguments[..], &fault].concat());
    let result = &report["results"]["chaos"][0];
    assert_eq!((status, result["outcome"].as_str()), (Some(1), Some("FAIL")), "{report}");
    assert_eq!(result["failure"], "never happened: put-coordinator-back", "{report}");
}

/// A replica that lost its disk votes as if it had not: acknowledged writes are lost, which must be
/// found, with all that shows it, and the command that repeats it.
#[test]
fn chaos_finds_the_writes_that_a_mistake_loses() {
    let folder = tempfile::tempdir().unwrap();
    let mistake = ["--mistake", "trusts-an-empty-disk", "--fault", "lose-in-turn"];
    let arguments = ["--replication", "spinnaker", "--time", "4s", "--round", "4s", "--seed", "7"];
    let (status, report) = chaos(folder.path(), &[&arguments[..], &mistake].concat());
    let result = &report["results"]["chaos"][0];
    assert_eq!((status, result["outcome"].as_str()), (Some(1), Some("FAIL")), "{report}");
    assert!(result["lost"].as_u64().unwrap() > 0, "{report}");
    let failure = result["failure"].as_str().unwrap();
    for part in ["lost acknowledged writes", "not linearizable"] {
        assert!(failure.contains(part), "{failure}");
    }
    let again = result["again"].as_str().unwrap();
    assert!(
        again.contains("--seed 7 ") && again.contains("--mistake trusts-an-empty-disk"),
        "{again}"
    );
    let kept = folder.path().join("out").join("spinnaker-7-round-1");
    for file in ["history.json", "events.txt", "violations.txt", "timeline-1.html", "cluster.txt"] {
        assert!(kept.join(file).is_file(), "{file} is not kept");
    }
    // What is kept is judged alike by the command for histories.
    let mut command = Command::new(env!("CARGO_BIN_EXE_trireme-lab"));
    let judged = command.arg("check").arg(kept.join("history.json")).output().unwrap();
    assert_eq!(judged.stdout, b"history.json\tnot linearizable\n");
}
