use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::sleep;
use trireme_coordinator::{
    CoordinatorOptions, CreateMode, NodeChange, Op, Scope, Watch, WatchEvent,
};

use crate::support::proxy::{Proxy, Way};
use crate::support::{connect, eventually, next};

/// What a reader of a watch knows.
#[derive(Default)]
struct View {
    values: BTreeMap<String, Vec<u8>>,
    revision: i64,
    states: usize,
    changes: usize,
}

impl View {
    async fn follow(&mut self, watch: &mut Watch) {
        match next(watch).await {
            WatchEvent::State(state) => {
                assert!(state.revision >= self.revision, "the state went back");
                self.revision = state.revision;
                let nodes = state.nodes.into_iter();
                self.values = nodes.map(|node| (node.path, node.value)).collect();
                self.states += 1;
            }
            WatchEvent::Changes { revision, changes } => {
                assert!(revision > self.revision, "a change was told twice or out of order");
                self.revision = revision;
                for change in changes {
                    self.changes += 1;
                    match change {
                        NodeChange::Put(node) => self.values.insert(node.path, node.value),
                        NodeChange::Deleted { path } => self.values.remove(&path),
                    };
                }
            }
        }
    }

    fn value(&self, path: &str) -> Option<&str> {
        self.values.get(path).map(|value| std::str::from_utf8(value).unwrap())
    }
}

pub async fn tell_the_state_and_every_change(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    coordinator.create("/w/a", b"1", CreateMode::Persistent).await.unwrap();
    let mut watch = coordinator.watch("/w", Scope::Children).unwrap();
    let mut view = View::default();
    view.follow(&mut watch).await;
    assert_eq!((view.states, view.value("/w/a")), (1, Some("1")));
    let mut versions = Vec::new();
    for round in 2..20 {
        let value = format!("{round}");
        versions.push(coordinator.set("/w/a", value.as_bytes(), None).await.unwrap());
    }
    for version in versions {
        view.follow(&mut watch).await;
        assert_eq!(view.revision, version.0, "a change was left out");
    }
    coordinator.delete("/w/a", None).await.unwrap();
    view.follow(&mut watch).await;
    assert!(view.values.is_empty());
    assert_eq!((view.states, view.changes), (1, 19));
}

pub async fn tell_a_multi_at_once(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    let mut watch = coordinator.watch("/w", Scope::Subtree).unwrap();
    next(&mut watch).await;
    let create = |path: &str| Op::Create {
        path: path.to_owned(),
        value: vec![],
        mode: CreateMode::Persistent,
    };
    let ops = vec![create("/w/b"), create("/other"), create("/w/a/deep")];
    let done = coordinator.multi(ops).await.unwrap();
    let WatchEvent::Changes { revision, changes } = next(&mut watch).await else {
        panic!("no changes")
    };
    assert_eq!(revision, done.version.0);
    let paths: Vec<_> = changes.iter().map(NodeChange::path).collect();
    assert_eq!(paths, ["/w/b", "/w/a/deep"]);
}

pub async fn keep_to_their_scope(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    let scopes = [
        (Scope::Node, "/w", "/w"),
        (Scope::Children, "/w", "/w/c"),
        (Scope::Subtree, "/w", "/w/c/d"),
        (Scope::Children, "/", "/w"),
    ];
    let mut watches = Vec::new();
    for (scope, root, _) in scopes {
        let mut watch = coordinator.watch(root, scope).unwrap();
        next(&mut watch).await;
        watches.push(watch);
    }
    for path in ["/wx", "/w/c/d", "/w/c", "/w"] {
        coordinator.create(path, b"", CreateMode::Persistent).await.unwrap();
    }
    let expected: [&[&str]; 4] = [&["/w"], &["/w/c"], &["/w/c/d", "/w/c"], &["/wx", "/w"]];
    for (watch, expected) in watches.iter_mut().zip(expected) {
        for path in expected {
            let WatchEvent::Changes { changes, .. } = next(watch).await else { panic!() };
            assert_eq!(changes[0].path(), *path);
        }
    }
    assert!(coordinator.watch("/", Scope::Node).is_err());
}

pub async fn that_fire_once_do(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    let watch = coordinator.watch_once("/w", Scope::Node).await.unwrap();
    assert!(watch.state.nodes.is_empty());
    let changed = tokio::spawn(watch.changed());
    coordinator.create("/unrelated", b"", CreateMode::Persistent).await.unwrap();
    let created = coordinator.create("/w", b"x", CreateMode::Ephemeral).await.unwrap();
    let event = changed.await.unwrap().expect("an event");
    let WatchEvent::Changes { revision, changes } = event else { panic!("{event:?}") };
    assert_eq!((revision, changes.len()), (created.version.0, 1));
}

/// Changes go on while the watch's connection is cut again and again, sometimes one way only: it
/// tells each of them, once.
pub async fn lose_nothing_when_cut_off(mut options: CoordinatorOptions) {
    const CHANGES: usize = 300;
    let writer = connect(&options).await;
    writer.create("/w/n", b"0", CreateMode::Persistent).await.unwrap();
    let target = options.endpoints[0].trim_start_matches("http://").parse().unwrap();
    let proxy = Proxy::start(target).await;
    options.endpoints = proxy.endpoints();
    options.session_timeout = Duration::from_secs(2);
    let reader = connect(&options).await;
    let mut watch = reader.watch("/w", Scope::Children).unwrap();
    let mut view = View::default();
    view.follow(&mut watch).await;

    let writing = tokio::spawn(async move {
        for round in 1..=CHANGES {
            let value = round.to_string();
            writer.set("/w/n", value.as_bytes(), None).await.unwrap();
            sleep(Duration::from_millis(3)).await;
        }
    });
    let breaking = tokio::spawn(async move {
        for round in 0..6 {
            sleep(Duration::from_millis(120)).await;
            if round % 3 == 2 {
                proxy.set(Way::Open, Way::Lost);
                sleep(Duration::from_millis(100)).await;
                proxy.set(Way::Open, Way::Open);
            }
            proxy.cut();
        }
        proxy
    });
    let last = CHANGES.to_string();
    let mut seen = 0;
    while view.value("/w/n") != Some(&last) {
        view.follow(&mut watch).await;
        let value: usize = view.value("/w/n").expect("the node").parse().unwrap();
        assert_eq!(value, seen + 1, "a change was lost or told twice");
        seen = value;
    }
    assert_eq!((view.states, view.changes), (1, CHANGES));
    writing.await.unwrap();
    breaking.await.unwrap();
}

pub async fn lose_nothing_when_read_slowly(options: CoordinatorOptions) {
    const CHANGES: usize = 700;
    let coordinator = connect(&options).await;
    coordinator.create("/w/n", b"0", CreateMode::Persistent).await.unwrap();
    let mut watch = coordinator.watch("/w", Scope::Children).unwrap();
    let mut view = View::default();
    view.follow(&mut watch).await;
    // Far more than the watch's queue holds, before anything is read.
    for round in 1..=CHANGES {
        coordinator.set("/w/n", round.to_string().as_bytes(), None).await.unwrap();
    }
    for round in 1..=CHANGES {
        view.follow(&mut watch).await;
        assert_eq!(view.value("/w/n"), Some(round.to_string().as_str()));
    }
    assert_eq!(view.states, 1);
}

pub async fn tell_the_state_anew_after_a_compaction(mut options: CoordinatorOptions) {
    let writer = connect(&options).await;
    for path in ["/w/kept", "/w/deleted"] {
        writer.create(path, b"old", CreateMode::Persistent).await.unwrap();
    }
    let target = options.endpoints[0].trim_start_matches("http://").parse().unwrap();
    let proxy = Proxy::start(target).await;
    let direct = options.endpoints.clone();
    options.endpoints = proxy.endpoints();
    let reader = connect(&options).await;
    let mut watch = reader.watch("/w", Scope::Children).unwrap();
    let mut view = View::default();
    view.follow(&mut watch).await;

    proxy.accept(false);
    writer.delete("/w/deleted", None).await.unwrap();
    let version = writer.set("/w/kept", b"new", None).await.unwrap();
    let mut client = etcd_client::Client::connect(direct, None).await.unwrap();
    eventually("the compaction", || {
        // Other cases may have compacted further already.
        let mut client = client.kv_client();
        async move {
            let compacted = client.compact(version.0, None).await;
            let done = compacted
                .as_ref()
                .is_err_and(|error| error.to_string().contains("has been compacted"));
            (compacted.is_ok() || done).then_some(())
        }
    })
    .await;
    client.put("unrelated", "", None).await.unwrap();
    proxy.accept(true);
    view.follow(&mut watch).await;
    assert_eq!((view.states, view.value("/w/kept")), (2, Some("new")));
    assert_eq!(view.value("/w/deleted"), None, "what was deleted in the gap is gone");
    writer.set("/w/kept", b"newer", None).await.unwrap();
    view.follow(&mut watch).await;
    assert_eq!((view.states, view.value("/w/kept")), (2, Some("newer")));
}
