//! bench.

use crate::command::run;
use crate::fake::Cluster;

const QUICK: [&str; 8] =
    ["--keys", "200", "--duration", "300ms", "--warm-up", "50ms", "--callers", "1,8"];

#[test]
fn the_mixes_of_ycsb_are_measured() {
    let cluster = Cluster::start(3, &["g", "n"]);
    let mixes = "ycsb-a,ycsb-b,ycsb-c,ycsb-d,ycsb-e,ycsb-f";
    let ran = run(&cluster, ["bench", "--json", "--workload", mixes].into_iter().chain(QUICK));
    assert_eq!(ran.status, 0, "{ran:?}");
    let report: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 12);
    for run in runs {
        assert!(run["operations"].as_u64().unwrap() > 0, "{run}");
        assert_eq!((run["errors"].as_u64(), run["missing"].as_u64()), (Some(0), Some(0)), "{run}");
    }
    let state = cluster.state();
    assert!(state.rows.len() > 200, "keys were added");
    assert!(state.done["scan"] > 0, "{:?}", state.done);
}

#[test]
fn every_workload_is_measured_with_every_number_of_callers() {
    let cluster = Cluster::start(3, &["g", "n"]);
    let arguments = ["bench", "--json", "--workload", "put,get,mixed", "--value-bytes", "10"];
    let ran = run(&cluster, arguments.into_iter().chain(QUICK));
    assert_eq!(ran.status, 0, "{ran:?}");
    let report: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(report["cluster"]["durabilities"][0], "fsync");
    assert_eq!(report["cluster"]["engines"][0], "lsm");
    assert_eq!(report["cluster"]["protocols"][0], "raft");
    assert_eq!(report["cluster"]["load_shares_machine"], true);
    assert_eq!((&report["cluster"]["nodes"], &report["cluster"]["ranges"]), (&3.into(), &3.into()));
    assert_eq!(report["load"]["loop"], "closed");
    let runs = report["runs"].as_array().unwrap();
    let names: Vec<_> = runs
        .iter()
        .map(|run| (run["workload"].as_str().unwrap(), run["callers"].as_u64()))
        .collect();
    let named = |name| [(name, Some(1)), (name, Some(8))];
    assert_eq!(names, [named("put"), named("get"), named("mixed")].concat());
    for run in runs {
        assert!(run["operations"].as_u64().unwrap() > 0, "{run}");
        assert_eq!((run["errors"].as_u64(), run["missing"].as_u64()), (Some(0), Some(0)));
        let latency = |name: &str| run["latency_microseconds"][name].as_u64().unwrap();
        assert!(latency("p50") <= latency("p99") && latency("p99_9") <= latency("max"), "{run}");
    }
    let state = cluster.state();
    assert_eq!(state.rows.len(), 200);
    assert!(state.rows.iter().all(|(key, (value, _))| key.len() == 16 && value.len() == 10));
    assert!(state.done["get"] > 0);
}

#[test]
fn operations_are_due_at_a_rate() {
    let cluster = Cluster::start(1, &[]);
    let arguments = ["bench", "--json", "--workload", "put", "--rate", "100"];
    let ran = run(&cluster, arguments.into_iter().chain(QUICK));
    assert_eq!(ran.status, 0, "{ran:?}");
    let report: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((&report["load"]["loop"], &report["load"]["rate"]), (&"open".into(), &100.into()));
    for run in report["runs"].as_array().unwrap() {
        // 300 ms after 50 ms of warm-up.
        let done = run["operations"].as_u64().unwrap();
        assert!((1..=31).contains(&(done + run["not_begun"].as_u64().unwrap())), "{run}");
    }
}

/// A cluster that answers late is asked no less often: what no caller is free for is counted.
#[test]
fn operations_that_no_caller_was_free_for_are_counted() {
    let cluster = Cluster::start(1, &[]);
    cluster.state().unavailable = u64::MAX;
    let arguments = ["bench", "--workload", "put", "--deadline", "2s", "--json", "--rate", "100"];
    let ran = run(&cluster, arguments.into_iter().chain(QUICK));
    let report: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    let run = &report["runs"][0];
    assert_eq!(run["errors"], 1, "its one caller");
    // 350 ms hold 35, less what passes until the first is due.
    assert!((10..=34).contains(&run["not_begun"].as_u64().unwrap()), "{run}");
}

#[test]
fn people_learn_what_the_figures_depend_on() {
    let cluster = Cluster::start(1, &[]);
    let ran = run(&cluster, ["bench", "--workload", "put"].into_iter().chain(QUICK));
    for part in [
        "durability: fsync\n",
        "protocol:   raft\n",
        "1 nodes, 1 ranges with 1 replicas each",
        "closed loop",
        "share this machine",
        "200 keys of 16 bytes, values of 256 bytes",
        "WORKLOAD  CALLERS  OPS/S  P50",
    ] {
        assert!(ran.out().contains(part), "no '{part}' in {}", ran.out());
    }
    assert_eq!(ran.out().lines().filter(|line| line.starts_with("put ")).count(), 2);
}

/// A cluster that stands still answers nothing within the measured time: that must be seen.
#[test]
fn operations_that_outlast_the_measured_time_are_not_forgotten() {
    let cluster = Cluster::start(1, &[]);
    cluster.state().unavailable = u64::MAX;
    let arguments = ["bench", "--workload", "put", "--deadline", "2s", "--json"];
    let ran = run(&cluster, arguments.into_iter().chain(QUICK));
    assert_eq!(ran.status, 1, "{ran:?}");
    let report: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    let errors = |run: usize| report["runs"][run]["errors"].as_u64();
    assert_eq!((errors(0), errors(1)), (Some(1), Some(8)));
    assert!(report["runs"][0]["first_error"].as_str().unwrap().contains("unavailable"));
}

#[test]
fn operations_that_fail_are_counted_and_told() {
    let cluster = Cluster::start(1, &[]);
    cluster.state().unavailable = u64::MAX;
    let arguments = ["bench", "--workload", "put", "--deadline", "50ms"];
    let ran = run(&cluster, arguments.into_iter().chain(QUICK));
    assert!(ran.error(1).contains("operations failed, the first with: cohort c1"), "{ran:?}");
    let shown = String::from_utf8(ran.stdout).unwrap();
    assert!(shown.lines().any(|line| line.starts_with("put ") && !line.ends_with(" 0")), "{shown}");
}
