use std::collections::HashSet;

use trireme_coordinator::{
    CoordinatorError, CoordinatorOptions, CreateMode, MULTI_OPS_MAX, NodeVersion, Op,
};

use crate::support::connect;
use crate::support::proxy::{Proxy, Way};

fn create(path: &str, value: &str) -> Op {
    Op::Create { path: path.into(), value: value.into(), mode: CreateMode::Persistent }
}

pub async fn are_created_read_changed_and_deleted(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    assert_eq!(coordinator.get("/a").await, Ok(None));
    let created = coordinator.create("/a", b"1", CreateMode::Persistent).await.unwrap();
    assert_eq!(created.path, "/a");
    let node = coordinator.get("/a").await.unwrap().expect("the node");
    assert_eq!((node.value.as_slice(), node.version), (&b"1"[..], created.version));
    assert_eq!((node.sequence, node.changes, node.owner), (created.sequence, 1, None));
    assert_eq!(node.name(), "a");

    let again = coordinator.create("/a", b"2", CreateMode::Persistent).await;
    let exists = CoordinatorError::NodeExists { path: "/a".into(), current: created.version };
    assert_eq!(again, Err(exists));
    let version = coordinator.set("/a", b"2", None).await.unwrap();
    assert!(version > created.version);
    assert_eq!(coordinator.get("/a").await.unwrap().expect("the node").changes, 2);
    coordinator.delete("/a", None).await.unwrap();
    assert!(!coordinator.exists("/a").await.unwrap());
    let gone = CoordinatorError::NoNode { path: "/a".into() };
    assert_eq!(coordinator.delete("/a", None).await, Err(gone.clone()));
    assert_eq!(coordinator.set("/a", b"3", None).await, Err(gone));
    let reborn = coordinator.create("/a", b"3", CreateMode::Persistent).await.unwrap();
    assert!(reborn.version > version, "no version ever comes back");
}

pub async fn versions_guard_changes(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    let first = coordinator.create("/a", b"1", CreateMode::Persistent).await.unwrap().version;
    let second = coordinator.set("/a", b"2", Some(first)).await.unwrap();
    let path = || "/a".to_owned();
    let wrong = CoordinatorError::WrongVersion { path: path(), expected: first, current: second };
    assert_eq!(coordinator.set("/a", b"3", Some(first)).await, Err(wrong.clone()));
    assert_eq!(coordinator.delete("/a", Some(first)).await, Err(wrong));
    assert_eq!(coordinator.get("/a").await.unwrap().expect("the node").value, b"2");
    coordinator.delete("/a", Some(second)).await.unwrap();
    let none = coordinator.set("/a", b"3", Some(second)).await;
    assert_eq!(none, Err(CoordinatorError::NoNode { path: path() }));
}

pub async fn sequential_nodes_come_in_order(options: CoordinatorOptions) {
    let coordinators = [connect(&options).await, connect(&options).await];
    let mut sequences = Vec::new();
    let mut paths = HashSet::new();
    for round in 0..10 {
        let mode = [CreateMode::Sequential, CreateMode::EphemeralSequential][round % 2];
        let created = coordinators[round / 2 % 2].create("/q/c-", b"", mode).await.unwrap();
        assert!(created.path.starts_with("/q/c-"), "{}", created.path);
        assert!(paths.insert(created.path));
        sequences.push(created.sequence);
    }
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
    let children = coordinators[0].children("/q").await.unwrap().nodes;
    let listed: Vec<_> = children.iter().map(|node| node.sequence).collect();
    assert_eq!(listed, sequences);
    let owned = children.iter().filter(|node| node.owner.is_some()).count();
    assert_eq!(owned, 5);
}

pub async fn children_are_direct_and_in_order(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    for path in ["/d/z", "/d/a", "/d/a/deep", "/dx", "/d/m", "/d"] {
        coordinator.create(path, b"", CreateMode::Persistent).await.unwrap();
    }
    coordinator.set("/d/z", b"changed", None).await.unwrap();
    let names = |nodes: trireme_coordinator::Nodes| -> Vec<String> {
        nodes.nodes.iter().map(|node| node.name().to_owned()).collect()
    };
    assert_eq!(names(coordinator.children("/d").await.unwrap()), ["z", "a", "m"]);
    assert_eq!(names(coordinator.subtree("/d").await.unwrap()), ["z", "a", "deep", "m"]);
    assert_eq!(names(coordinator.children("/").await.unwrap()), ["dx", "d"]);
    assert!(coordinator.children("/none").await.unwrap().nodes.is_empty());
}

pub async fn a_multi_is_all_or_nothing(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    let done = coordinator.multi(vec![create("/a", "1"), create("/b", "1")]).await.unwrap();
    assert_eq!(done.created.len(), 2);
    assert!(done.created.iter().all(|created| created.version == done.version));
    let version = done.version;
    let expected = NodeVersion(version.0 - 1);
    let refusals = [
        (Op::CheckAbsent { path: "/b".into() }, "exists"),
        (Op::Check { path: "/b".into(), expected }, "is at version"),
        (Op::Check { path: "/none".into(), expected }, "there is no node"),
        (Op::Delete { path: "/none".into(), expected: None }, "there is no node"),
        (Op::Claim { path: "/b".into(), value: vec![], expected }, "is at version"),
        (create("/b", "2"), "exists"),
    ];
    for (refused, reason) in refusals {
        let set = Op::Set { path: "/a".into(), value: b"2".to_vec(), expected: Some(version) };
        let path = refused.path().to_owned();
        let error = coordinator.multi(vec![set, refused]).await.unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(&path), "{error}");
        let node = coordinator.get("/a").await.unwrap().expect("the node");
        assert_eq!(node.version, version, "half of a refused multi was done: {error}");
    }
    let ops = vec![
        Op::Check { path: "/b".into(), expected: version },
        Op::CheckAbsent { path: "/c".into() },
        Op::Set { path: "/a".into(), value: b"2".to_vec(), expected: Some(version) },
        create("/d", "2"),
    ];
    let done = coordinator.multi(ops).await.unwrap();
    assert_eq!(coordinator.get("/a").await.unwrap().expect("the node").version, done.version);
    assert_eq!(done.created[0].path, "/d");
}

pub async fn a_multi_is_bounded(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    let full: Vec<_> = (0..MULTI_OPS_MAX).map(|n| create(&format!("/m/{n}"), "")).collect();
    coordinator.multi(full).await.unwrap();
    let too_many: Vec<_> = (0..=MULTI_OPS_MAX).map(|n| create(&format!("/n/{n}"), "")).collect();
    let refused = |result| matches!(result, Err(CoordinatorError::InvalidRequest { .. }));
    assert!(refused(coordinator.multi(too_many).await));
    assert!(refused(coordinator.multi(vec![create("/x", "1"), create("/x", "2")]).await));
    let large = "x".repeat(1_300_000);
    coordinator.multi(vec![create("/large", &large)]).await.unwrap();
    let read = coordinator.get("/large").await.unwrap().expect("the node");
    assert_eq!(read.value.len(), large.len());
    assert!(refused(coordinator.multi(vec![create("/huge", &"x".repeat(1_500_000))]).await));
}

pub async fn increments_from_many_sides_are_all_counted(options: CoordinatorOptions) {
    const SIDES: usize = 4;
    const INCREMENTS: usize = 15;
    let coordinator = connect(&options).await;
    coordinator.create("/n", b"0", CreateMode::Persistent).await.unwrap();
    let mut sides = Vec::new();
    for _ in 0..SIDES {
        let options = options.clone();
        sides.push(tokio::spawn(async move {
            let coordinator = connect(&options).await;
            let mut done = 0;
            while done < INCREMENTS {
                let node = coordinator.get("/n").await.unwrap().expect("the counter");
                let value: usize = String::from_utf8(node.value).unwrap().parse().unwrap();
                let next = (value + 1).to_string();
                match coordinator.set("/n", next.as_bytes(), Some(node.version)).await {
                    Ok(_) => done += 1,
                    Err(CoordinatorError::WrongVersion { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }));
    }
    for side in sides {
        side.await.unwrap();
    }
    let total = coordinator.get("/n").await.unwrap().expect("the counter").value;
    assert_eq!(total, (SIDES * INCREMENTS).to_string().into_bytes());
}

pub async fn of_many_creators_one_wins(options: CoordinatorOptions) {
    let mut sides = Vec::new();
    for side in 0..8 {
        let options = options.clone();
        sides.push(tokio::spawn(async move {
            let coordinator = connect(&options).await;
            let value = format!("{side}").into_bytes();
            let created = coordinator.create("/leader", &value, CreateMode::Ephemeral).await;
            // The session is kept, so that the winner's node stays for the others to meet.
            (created.is_ok(), coordinator)
        }));
    }
    let mut winners = Vec::new();
    let mut coordinators = Vec::new();
    for (number, side) in sides.into_iter().enumerate() {
        let (won, coordinator) = side.await.unwrap();
        winners.extend(won.then_some(number));
        coordinators.push(coordinator);
    }
    assert_eq!(winners.len(), 1, "winners: {winners:?}");
    let leader = coordinators[0].get("/leader").await.unwrap().expect("a leader");
    assert_eq!(leader.value, winners[0].to_string().into_bytes());
    assert_eq!(leader.owner, Some(coordinators[winners[0]].session_id()));
}

/// S5: a create whose answer is lost is sent again, and tells whether it was this very call that
/// created the node. Here every answer is lost for a while, so that each change is carried out
/// and nobody hears of it.
pub async fn a_lost_answer_is_resolved(mut options: CoordinatorOptions) {
    let witness = connect(&options).await;
    let target = options.endpoints[0].trim_start_matches("http://").parse().unwrap();
    let proxy = Proxy::start(target).await;
    options.endpoints = proxy.endpoints();
    options.request_timeout = std::time::Duration::from_secs(20);
    options.session_timeout = std::time::Duration::from_secs(60);
    let coordinator = connect(&options).await;
    for round in 0..3 {
        let path = format!("/lost-{round}");
        proxy.set(Way::Open, Way::Lost);
        let creating = tokio::spawn({
            let (coordinator, path) = (coordinator.clone(), path.clone());
            async move { coordinator.create(&path, b"mine", CreateMode::Persistent).await }
        });
        // The node is there, and its creator does not know.
        crate::support::eventually("the node", || async { witness.get(&path).await.unwrap() })
            .await;
        assert!(!creating.is_finished());
        proxy.set(Way::Open, Way::Open);
        proxy.cut();
        let created = creating.await.unwrap().expect("created by this very call");
        let node = witness.get(&path).await.unwrap().expect("the node");
        assert_eq!((created.version, created.sequence), (node.version, node.sequence));
        assert_eq!(node.changes, 1, "it was created once");
        let second = coordinator.create(&path, b"mine", CreateMode::Persistent).await;
        assert!(matches!(second, Err(CoordinatorError::NodeExists { .. })), "{second:?}");
    }
}
