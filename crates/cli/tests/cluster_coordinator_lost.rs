//! The coordinator loses what it knew, or is put back to what it knew earlier. What was acknowledged
//! is there afterwards, in the same ranges, or the start is refused with the reason: the nodes remember
//! what they have acted in.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::process::Command;
use std::time::Duration;

use trireme_types::Protocol;

use common::{Cluster, Rows, finish, run, sorted, start_fails, trireme, tsv, until_ok};

/// How long a cluster may take to be as it should.
const PATIENCE: Duration = Duration::from_secs(60);

const PROTOCOLS: [&str; 3] = ["raft", "spinnaker", "pacifica"];

/// The cohort of clusters that have one.
const COHORT: u64 = 1;

/// Puts rows whose keys lie in all ranges, and returns them.
#[track_caller]
fn fill(cluster: &Cluster, name: &str, count: usize) -> Rows {
    let row = |number: usize| {
        let letter = char::from(b'a' + u8::try_from(number % 26).unwrap());
        (format!("{letter}-{name}-{number:05}"), format!("{name} {number}"))
    };
    let rows: Vec<_> = (0..count).map(row).collect();
    let file = cluster.file(&format!("{name}.tsv"));
    std::fs::write(&file, tsv(rows.iter().map(|(key, value)| (key, value)))).unwrap();
    let summary = cluster.run(["import", &file]);
    assert!(summary.out().starts_with(&format!("imported {count} rows, 0 errors")), "{summary:?}");
    sorted(&rows)
}

#[track_caller]
fn ranges(cluster: &Cluster) -> Vec<(String, String, usize)> {
    let list = cluster.run(["range", "list", "--json"]).json();
    let range = |range: &serde_json::Value| {
        let text = |name: &str| range[name].as_str().unwrap_or_default().to_owned();
        (text("start"), text("protocol"), range["replicas"].as_array().unwrap().len())
    };
    list.as_array().unwrap().iter().map(range).collect()
}

#[track_caller]
fn assert_rows(cluster: &Cluster, expected: &Rows) {
    let found = cluster.rows();
    let lost: Vec<_> =
        expected.iter().filter(|(key, value)| found.get(*key) != Some(*value)).collect();
    assert!(lost.is_empty(), "{} of {} rows are lost: {lost:?}", lost.len(), expected.len());
}

/// Starts a cluster of so many nodes, loses what the coordinator knows, and starts it without an
/// option.
#[track_caller]
fn comes_back(nodes: usize, options: &[&str]) {
    let cluster = &mut Cluster::start_nodes(nodes, options);
    let rows = fill(cluster, "before", 500);
    let before = ranges(cluster);
    cluster.stop();
    cluster.lose_coordinator();
    cluster.up_again();
    // A replica that was removed while the nodes stopped one after another comes back.
    until_ok("the ranges are what they were", PATIENCE, || {
        let now = ranges(cluster);
        if now == before { Ok(()) } else { Err(now) }
    });
    assert_rows(cluster, &rows);
    let more = fill(cluster, "after", 100);
    cluster.wait_until_caught_up(PATIENCE);
    // What was brought back does what the lost did, and so is what changes from then on.
    cluster.kill_all();
    cluster.up_again();
    assert_rows(cluster, &rows);
    assert_rows(cluster, &more);
}

#[test]
fn a_cluster_of_raft_comes_back_with_its_ranges_when_the_coordinators_data_are_gone() {
    comes_back(3, &["--replication", "raft", "--ranges", "8"]);
}

/// Elections go on above the epochs that replicas have promised.
#[test]
fn a_cluster_of_spinnaker_comes_back_with_its_ranges_when_the_coordinators_data_are_gone() {
    comes_back(3, &["--replication", "spinnaker", "--ranges", "4"]);
}

#[test]
fn a_cluster_of_pacifica_comes_back_with_its_ranges_when_the_coordinators_data_are_gone() {
    comes_back(3, &["--replication", "pacifica", "--ranges", "4"]);
}

/// The nodes that the defaults would not place a replica on keep theirs.
#[test]
fn five_replicas_of_one_range_come_back_when_the_coordinators_data_are_gone() {
    for protocol in ["raft", "pacifica"] {
        comes_back(5, &["--replication", protocol, "--replicas", "5", "--ranges", "1"]);
    }
}

#[test]
fn borders_and_protocols_of_their_own_come_back_when_the_coordinators_data_are_gone() {
    comes_back(3, &["--split-at", "f,m,t"]);
    comes_back(3, &["--replication", "spinnaker", "--ranges", "4", "--range", "a..c=pacifica"]);
}

/// The same by hand: another coordinator, which is empty, takes the place of the lost one.
#[test]
fn a_cluster_moves_to_an_empty_coordinator_of_its_own() {
    for protocol in PROTOCOLS {
        let cluster = &mut Cluster::start(&["--replication", protocol, "--ranges", "4"]);
        let rows = fill(cluster, "before", 200);
        let before = ranges(cluster);
        cluster.stop();
        let listen = format!("127.0.0.1:{}", cluster.seat().ports(1));
        let mut command = trireme();
        command.arg("coordinator").arg("--data").arg(cluster.folder().join("elsewhere"));
        command.args(["--listen", &listen]).stdout(std::process::Stdio::null());
        let mut coordinator = command.stderr(std::process::Stdio::null()).spawn().unwrap();
        cluster.up_again_with(&["--coordinator", &format!("http://{listen}")]);
        until_ok("the ranges are what they were", PATIENCE, || {
            let now = ranges(cluster);
            if now == before { Ok(()) } else { Err(now) }
        });
        assert_rows(cluster, &rows);
        cluster.stop();
        coordinator.kill().unwrap();
        coordinator.wait().unwrap();
    }
}

/// What would have to be known to bring a cluster back is missing: nothing is made up, and the one
/// line says what is missing.
#[test]
fn a_cluster_is_not_brought_back_from_less_than_is_needed() {
    let cluster = &mut Cluster::start(&["--replication", "pacifica", "--ranges", "2"]);
    let rows = fill(cluster, "before", 100);
    cluster.stop();
    cluster.lose_coordinator();
    let (folder, aside) = (cluster.node_folder(2), cluster.folder().join("node-2-aside"));
    std::fs::rename(&folder, &aside).unwrap();
    let refused = start_fails(&cluster.data(), cluster.port(), &[""; 0]);
    let said = refused.error(1);
    assert!(said.contains("has lost the cluster") && said.contains("node-2"), "{said}");
    std::fs::rename(&aside, &folder).unwrap();
    cluster.up_again();
    assert_rows(cluster, &rows);
}

/// A coordinator that was put back to what it knew before a primary died would have that one go on.
/// Twice, so that the versions given out after the first time are not given out again.
#[test]
fn an_older_coordinator_has_no_pacifica_cohort_go_back() {
    let cluster = &mut Cluster::start(&["--replication", "pacifica", "--ranges", "1"]);
    let mut rows = fill(cluster, "before", 20);
    cluster.keep_coordinator("kept");
    for round in ["first", "second"] {
        let primary = cluster.wait_for_leader(COHORT, PATIENCE);
        cluster.kill(primary);
        rows.extend(until_ok("writes go on without the primary", PATIENCE, || {
            let probe = cluster.run(["--deadline", "2s", "put", "probe", round]);
            if probe.status == 0 { Ok(fill(cluster, round, 100)) } else { Err(probe) }
        }));
        cluster.kill_all();
        cluster.put_coordinator_back("kept");
        cluster.up_again();
        assert_rows(cluster, &rows);
        cluster.wait_until_caught_up(PATIENCE);
        assert_replicas_agree(cluster, &rows);
    }
    cluster.run(["put", "after", "1"]).out();
}

/// What replicas answer to timeline reads is the same at each.
#[track_caller]
fn assert_replicas_agree(cluster: &Cluster, rows: &Rows) {
    let (key, value) = rows.iter().next_back().unwrap();
    for node in cluster.running() {
        until_ok("a replica has the newest row", PATIENCE, || {
            let read = run(&cluster.address(node), ["get", key, "--consistency", "timeline"]);
            if read.stdout == format!("{value}\n") { Ok(()) } else { Err(read) }
        });
    }
}

/// Elections that were held after the copy was made gave out epochs that the older coordinator would
/// give out again, or never reach.
#[test]
fn an_older_coordinator_has_spinnaker_elect_above_the_epochs_in_use() {
    let cluster = &mut Cluster::start(&["--replication", "spinnaker", "--ranges", "1"]);
    let mut rows = fill(cluster, "before", 20);
    cluster.wait_until_caught_up(PATIENCE);
    cluster.keep_coordinator("kept");
    for round in 0..3 {
        let leader = cluster.wait_for_leader(COHORT, PATIENCE);
        cluster.kill(leader);
        cluster.wait_for_another_leader(COHORT, leader, PATIENCE);
        rows.extend(fill(cluster, &format!("round{round}"), 20));
        cluster.restart_node(leader);
        cluster.wait_until_caught_up(PATIENCE);
    }
    let before = epoch(cluster);
    cluster.kill_all();
    cluster.put_coordinator_back("kept");
    cluster.up_again();
    assert!(epoch(cluster) > before, "e{} after e{before}", epoch(cluster));
    assert_rows(cluster, &rows);
}

fn epoch(cluster: &Cluster) -> u64 {
    cluster.wait_for_leader(COHORT, PATIENCE);
    cluster.statuses().unwrap().leader(COHORT).unwrap().1.epoch
}

/// The node that knows least is the first one to come, and its coordinator knows no more: it serves
/// nothing and changes nothing until those have come who would know more.
#[test]
fn a_node_that_knows_as_little_as_an_older_coordinator_waits_for_the_others() {
    let cluster = &mut Cluster::start_by_hand_as(Protocol::Pacifica, &[], &[]);
    let mut rows = fill(cluster, "before", 20);
    let primary = cluster.wait_for_leader(COHORT, PATIENCE);
    cluster.keep_coordinator("kept");
    cluster.kill(primary);
    cluster.wait_for_another_leader(COHORT, primary, PATIENCE);
    rows.extend(fill(cluster, "after", 50));
    let others = cluster.others(primary);
    others.iter().for_each(|&node| cluster.kill(node));
    cluster.kill_coordinator();
    cluster.put_coordinator_back("kept");
    if cluster.coordinator_is_down() {
        cluster.start_coordinator();
    }

    cluster.restart_node(primary);
    until_ok("the node says what it waits for", PATIENCE, || {
        if cluster.has_said("may have been put back") { Ok(()) } else { Err("it does not") }
    });
    // Longer than the others would be given to answer before they are removed.
    let read = run(&cluster.address(primary), ["--deadline", "4s", "get", "a-after-00000"]);
    assert_ne!(read.status, 0, "an older state is served: {read:?}");
    let statuses = cluster.statuses_of(&[primary]).unwrap();
    assert!(statuses.leader(COHORT).is_none(), "{statuses:?}");
    others.iter().for_each(|&node| cluster.restart_node(node));
    cluster.wait_for_leader(COHORT, PATIENCE);
    assert_rows(cluster, &rows);
    cluster.wait_until_caught_up(PATIENCE);
}

/// The coordinator is put back while the nodes run: they bring it forward, and go on.
#[test]
fn running_nodes_bring_an_older_coordinator_forward() {
    for protocol in [Protocol::Pacifica, Protocol::Spinnaker] {
        let cluster = &mut Cluster::start_by_hand_as(protocol, &["n"], &[]);
        let mut rows = fill(cluster, "before", 20);
        cluster.keep_coordinator("kept");
        let leader = cluster.wait_for_leader(COHORT, PATIENCE);
        cluster.kill(leader);
        cluster.wait_for_another_leader(COHORT, leader, PATIENCE);
        rows.extend(fill(cluster, "between", 20));
        cluster.kill_coordinator();
        cluster.put_coordinator_back("kept");
        cluster.start_coordinator();
        cluster.restart_node(leader);
        cluster.wait_until_caught_up(PATIENCE);
        // A node that has not asked the others what they know waits for one that dies now.
        until_ok("every node knows that nothing is missing", PATIENCE, || {
            let asked = cluster.have_said("the coordinator knows all that its nodes know");
            if asked == 3 { Ok(()) } else { Err(format!("{asked} of 3 do")) }
        });
        // The leader dies: the next configurations and epochs are above those before.
        let next = cluster.wait_for_leader(COHORT, PATIENCE);
        cluster.kill(next);
        cluster.wait_for_another_leader(COHORT, next, PATIENCE);
        rows.extend(fill(cluster, "after", 20));
        cluster.restart_node(next);
        cluster.wait_until_caught_up(PATIENCE);
        assert_rows(cluster, &rows);
    }
}

/// A coordinator that has lost everything is brought back from nodes that run, from folders, or from
/// both; a second time changes nothing.
#[test]
fn a_coordinator_that_lost_everything_is_rebuilt_by_command() {
    for protocol in [Protocol::Raft, Protocol::Spinnaker, Protocol::Pacifica] {
        let cluster = &mut Cluster::start_by_hand_as(protocol, &["n"], &[]);
        let mut rows = fill(cluster, "before", 50);
        cluster.kill_coordinator();
        cluster.lose_coordinator();
        cluster.start_coordinator();
        cluster.kill(3);
        let few = rebuild(cluster, &[cluster.address(1)]);
        let said = finish(few);
        assert!(said.error(1).contains("has lost the cluster"), "{said:?}");
        let all = [cluster.address(1), cluster.address(2), folder(cluster, 3)];
        assert!(finish(rebuild(cluster, &all)).out().starts_with("created "));
        assert!(finish(rebuild(cluster, &all)).out().starts_with("unchanged "));
        cluster.restart_node(3);
        cluster.wait_until_caught_up(PATIENCE);
        assert_rows(cluster, &rows);
        // The leader dies: what was rebuilt is enough to elect another and to go on without it.
        let leader = cluster.wait_for_leader(COHORT, PATIENCE);
        cluster.kill(leader);
        cluster.wait_for_another_leader(COHORT, leader, PATIENCE);
        rows.extend(fill(cluster, "after", 20));
        cluster.restart_node(leader);
        cluster.wait_until_caught_up(PATIENCE);
        assert_rows(cluster, &rows);
    }
}

fn rebuild(cluster: &Cluster, from: &[String]) -> Command {
    let mut command = trireme();
    command.args(["coordinator", "rebuild", "--from", &from.join(",")]);
    command.args(["--coordinator", &cluster.coordinator()]);
    command
}

fn folder(cluster: &Cluster, node: usize) -> String {
    cluster.node_folder(node).to_str().unwrap().to_owned()
}
