//! `trireme coordinator rebuild --without`: the coordinator has lost all that it knew, and nodes are
//! lost for good as well.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::time::Duration;

use trireme_types::Protocol;

use common::{Cluster, Ran, finish, run, trireme, until_ok};

/// How long a cluster may take to be as it should.
const PATIENCE: Duration = Duration::from_secs(60);

const COHORT: u64 = 1;

const PROTOCOLS: [Protocol; 3] = [Protocol::Raft, Protocol::Spinnaker, Protocol::Pacifica];

/// What the command reports of a cohort that cannot elect a leader.
const NO_MAJORITY: &str = "keeps 1 of its 3 replicas";

/// How a folder is refused that is not its node's any more.
const OTHER_DATA: &str = "is known with other data";

/// The others have all that was acknowledged. The lost node comes back with nothing, as a newcomer,
/// and the folder that was given up is refused if it is found again.
#[test]
fn a_cluster_goes_on_without_a_node_that_was_lost_with_the_coordinator() {
    for protocol in PROTOCOLS {
        let cluster = &mut Cluster::start_by_hand_as(protocol, &[], &[]);
        put(cluster, "before", "1");
        cluster.kill(3);
        lose_coordinator(cluster);
        let aside = cluster.folder().join("aside");
        std::fs::rename(cluster.node_folder(3), &aside).unwrap();

        let two = [cluster.address(1), cluster.address(2)];
        if protocol == Protocol::Pacifica {
            let refused = rebuild(cluster, &two, &[]);
            assert!(refused.error(1).contains("what n3 knows is missing"), "{refused:?}");
        }
        let rebuilt = rebuild(cluster, &two, &[3]);
        assert!(rebuilt.out().starts_with("created "), "{rebuilt:?}");
        assert!(!rebuilt.stderr.contains(NO_MAJORITY), "{rebuilt:?}");
        put(cluster, "without", "2");

        std::fs::rename(&aside, cluster.node_folder(3)).unwrap();
        let found_again = cluster.node_fails(3, &[]);
        assert!(found_again.error(1).contains(OTHER_DATA), "{found_again:?}");
        std::fs::rename(cluster.node_folder(3), &aside).unwrap();

        cluster.start_new_node(3, &[]);
        // Only then may another die.
        cluster.wait_for_role(COHORT, 3, "follower", PATIENCE);
        cluster.wait_until_caught_up(PATIENCE);
        let leader = cluster.wait_for_leader(COHORT, PATIENCE);
        cluster.kill(leader);
        put(cluster, "after", "3");
        assert_values(cluster, &[("before", "1"), ("without", "2"), ("after", "3")]);
    }
}

/// One replica is left of three. A PacificA cohort serves from it all that was acknowledged. One that
/// needs a majority never will, which the command reports.
#[test]
fn a_cluster_of_which_one_node_is_left_goes_on_where_its_protocol_can() {
    for protocol in PROTOCOLS {
        let cluster = &mut Cluster::start_by_hand_as(protocol, &[], &[]);
        put(cluster, "before", "1");
        cluster.wait_until_caught_up(PATIENCE);
        for node in [1, 2, 3] {
            cluster.kill(node);
        }
        lose_coordinator(cluster);
        cluster.wipe(2);
        cluster.wipe(3);
        let from = [folder(cluster, 1)];
        let refused = rebuild(cluster, &from, &[2]);
        assert!(refused.error(1).contains("what n3 knows is missing"), "{refused:?}");
        let rebuilt = rebuild(cluster, &from, &[2, 3]);
        assert!(rebuilt.out().starts_with("created "), "{rebuilt:?}");
        let needs_majority = protocol != Protocol::Pacifica;
        assert_eq!(rebuilt.stderr.contains(NO_MAJORITY), needs_majority, "{rebuilt:?}");
        cluster.restart_node(1);
        if needs_majority {
            continue;
        }
        put(cluster, "after", "2");
        for node in [2, 3] {
            cluster.start_new_node(node, &[]);
        }
        wait_for_members(cluster, &[2, 3]);
        cluster.wait_until_caught_up(PATIENCE);
        cluster.kill(1);
        assert_values(cluster, &[("before", "1"), ("after", "2")]);
    }
}

/// The nodes that were given up knew a newer configuration, in which writes were acknowledged. They
/// are lost, as the command's page says. But those that were written afterwards are not: a folder that
/// was given up does not come back, though it knows the newer configuration, and also though its node
/// had lost another folder before.
#[test]
fn a_folder_that_was_given_up_does_not_take_back_what_was_written_without_it() {
    let cluster = &mut Cluster::start_by_hand_as(Protocol::Pacifica, &[], &[]);
    put(cluster, "before", "1");
    let primary = cluster.wait_for_leader(COHORT, PATIENCE);
    let others = cluster.others(primary);
    for &node in &others {
        cluster.kill(node);
        cluster.wipe(node);
        cluster.start_new_node(node, &[]);
        wait_for_members(cluster, &[node]);
        cluster.wait_until_caught_up(PATIENCE);
    }
    let primary = cluster.wait_for_leader(COHORT, PATIENCE);
    let others = cluster.others(primary);
    cluster.kill(primary);
    cluster.wait_for_another_leader(COHORT, primary, PATIENCE);
    put(cluster, "given-up", "2");
    for &node in &others {
        cluster.kill(node);
    }
    lose_coordinator(cluster);

    let rebuilt = rebuild(cluster, &[folder(cluster, primary)], &others);
    assert!(rebuilt.out().starts_with("created "), "{rebuilt:?}");
    cluster.restart_node(primary);
    put(cluster, "after", "3");
    for &node in &others {
        let refused = cluster.node_fails(node, &[]);
        assert!(refused.error(1).contains(OTHER_DATA), "{refused:?}");
    }
    assert_values(cluster, &[("before", "1"), ("after", "3")]);
    let lost = run(&cluster.address(primary), ["get", "given-up"]);
    assert!(lost.error(1).contains("has no value"), "{lost:?}");
    for &node in &others {
        cluster.wipe(node);
        cluster.start_new_node(node, &[]);
    }
    cluster.wait_until_caught_up(PATIENCE);
    assert_values(cluster, &[("before", "1"), ("after", "3")]);
}

/// Where the newer configuration is given as well, it counts, in whatever order it comes.
#[test]
fn the_newest_configuration_of_those_given_counts() {
    let cluster = &mut Cluster::start_by_hand_as(Protocol::Pacifica, &[], &[]);
    put(cluster, "before", "1");
    let primary = cluster.wait_for_leader(COHORT, PATIENCE);
    let others = cluster.others(primary);
    cluster.kill(primary);
    cluster.wait_for_another_leader(COHORT, primary, PATIENCE);
    put(cluster, "newer", "2");
    for &node in &others {
        cluster.kill(node);
    }
    lose_coordinator(cluster);
    // The first primary is in no configuration that is newer, so that no node has to wait for it.
    let from: Vec<_> = std::iter::once(primary).chain(others.iter().copied()).collect();
    let from: Vec<_> = from.into_iter().map(|node| folder(cluster, node)).collect();
    assert!(rebuild(cluster, &from, &[]).out().starts_with("created "));
    cluster.restart_node(primary);
    for &node in &others {
        cluster.restart_node(node);
    }
    assert_values(cluster, &[("before", "1"), ("newer", "2")]);
    cluster.wait_until_caught_up(PATIENCE);
}

/// What cannot be meant is refused.
#[test]
fn a_node_that_is_there_is_not_given_up() {
    let cluster = &mut Cluster::start_by_hand_as(Protocol::Raft, &[], &[]);
    let from = [cluster.address(1), cluster.address(2)];
    let alive = rebuild(cluster, &from, &[3]);
    assert!(alive.error(1).contains("n3 cannot be given up: it has a session"), "{alive:?}");
    let both = rebuild(cluster, &from, &[2]);
    assert!(both.error(2).contains("n2 is given by --from and by --without"), "{both:?}");
}

fn lose_coordinator(cluster: &mut Cluster) {
    cluster.kill_coordinator();
    cluster.lose_coordinator();
    cluster.start_coordinator();
}

#[track_caller]
fn rebuild(cluster: &Cluster, from: &[String], without: &[usize]) -> Ran {
    let mut command = trireme();
    command.args(["coordinator", "rebuild", "--from", &from.join(",")]);
    command.args(["--coordinator", &cluster.coordinator()]);
    if !without.is_empty() {
        let without: Vec<_> = without.iter().map(ToString::to_string).collect();
        command.args(["--without", &without.join(",")]);
    }
    finish(command)
}

fn folder(cluster: &Cluster, node: usize) -> String {
    cluster.node_folder(node).to_str().unwrap().to_owned()
}

#[track_caller]
fn put(cluster: &Cluster, key: &str, value: &str) {
    until_ok("the cluster takes a write", PATIENCE, || {
        let ran = cluster.run(["put", key, value]);
        if ran.status == 0 { Ok(()) } else { Err(ran) }
    });
}

/// Waits until nodes that were started anew are in the cohort with the others. That it has three replicas
/// says less: one of the nodes may know it as it was before their disks were lost.
fn wait_for_members(cluster: &Cluster, nodes: &[usize]) {
    for &node in nodes {
        cluster.wait_for_role(COHORT, node, "follower", PATIENCE);
    }
    until_ok("there are three replicas again", PATIENCE, || {
        let list = cluster.run(["range", "list", "--json"]);
        let replicas = list.json()[0]["replicas"].as_array().map(Vec::len);
        if replicas == Some(3) { Ok(()) } else { Err(list) }
    });
}

#[track_caller]
fn assert_values(cluster: &Cluster, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        let read = until_ok("the cluster answers", PATIENCE, || {
            let ran = cluster.run(["get", key]);
            if ran.stderr.contains("has no value") || ran.status == 0 { Ok(ran) } else { Err(ran) }
        });
        assert_eq!(read.out(), format!("{value}\n"), "{key}");
    }
}
