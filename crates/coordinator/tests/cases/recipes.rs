use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};
use trireme_coordinator::recipes::catalog::{
    Bootstrapped, Catalog, CatalogState, ClusterSpec, CompareAndSet,
};
use trireme_coordinator::recipes::configuration::ConfigurationManager;
use trireme_coordinator::recipes::invitations::{Invitation, Invitations};
use trireme_coordinator::recipes::knowledge::Knowledge;
use trireme_coordinator::recipes::membership::{
    Member, Membership, MembershipWatch, NodeInfo, RegisterError,
};
use trireme_coordinator::recipes::succession::{Decided, SuccessionError, is_over};
use trireme_coordinator::{CoordinatorError, CoordinatorOptions};
use trireme_types::{
    ClusterId, CohortConfig, CohortId, KeyRange, Lsn, NodeId, Origin, Protocol, RangeMap, Seal,
    Successor, even_splits,
};

use crate::support::{PATIENCE, connect};

fn config(cohort: u64, version: u64, leader: u64) -> CohortConfig {
    let replicas = vec![NodeId(leader), NodeId(leader % 3 + 1)];
    CohortConfig {
        cohort: CohortId(cohort),
        version,
        protocol: Protocol::Pacifica,
        replicas,
        replicas_wanted: 0,
        incarnations: [].into(),
        origin: None,
    }
}

fn spec(cluster: u64, ranges: usize) -> ClusterSpec {
    let map = RangeMap::from_splits(&even_splits(ranges)).unwrap();
    let configs = map.ranges().iter().map(|range| config(range.cohort.0, 1, 1)).collect();
    ClusterSpec { cluster: ClusterId(cluster), map, configs }
}

pub async fn of_many_bootstraps_one_wins(options: CoordinatorOptions) {
    let first = connect(&options).await;
    assert_eq!(Catalog::new(&first).load().await, Ok(None));
    let mut sides = Vec::new();
    for side in 1..=6 {
        let options = options.clone();
        sides.push(tokio::spawn(async move {
            let coordinator = connect(&options).await;
            Catalog::bootstrap(&coordinator, spec(side, usize::try_from(side).unwrap())).await
        }));
    }
    let mut created = Vec::new();
    let mut states = Vec::new();
    for side in sides {
        match side.await.unwrap().unwrap() {
            Bootstrapped::Created(state) => {
                created.push(state.cluster);
                states.push(state);
            }
            Bootstrapped::Existed(state) => states.push(state),
        }
    }
    assert_eq!(created.len(), 1, "winners: {created:?}");
    for state in states {
        assert_eq!(state.cluster, created[0]);
        let expected = spec(state.cluster.0, usize::try_from(state.cluster.0).unwrap());
        assert_eq!(state.map, expected.map);
        assert_eq!(state.configs.into_values().collect::<Vec<_>>(), expected.configs);
    }
}

/// M34: of two proposals made at version v exactly one installs v+1, and the other is told it.
pub async fn of_two_proposals_one_is_installed(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    Catalog::bootstrap(&coordinator, spec(1, 2)).await.unwrap();
    for version in 2..8 {
        let mut sides = Vec::new();
        for leader in [1, 2, 3] {
            let catalog = Catalog::new(&coordinator);
            let proposal = config(1, version, leader);
            sides.push(tokio::spawn(async move {
                catalog.compare_and_set_cohort(proposal).await.unwrap()
            }));
        }
        let mut installed = Vec::new();
        let mut told = Vec::new();
        for side in sides {
            match side.await.unwrap() {
                CompareAndSet::Installed(config) => installed.push(config),
                CompareAndSet::Superseded(config) => told.push(config),
            }
        }
        assert_eq!(installed.len(), 1, "installed: {installed:?}");
        assert!(told.iter().all(|newest| *newest == installed[0]), "told: {told:?}");
        let catalog = Catalog::new(&coordinator);
        let newest = catalog.cohort(CohortId(1)).await.unwrap();
        assert_eq!(newest.as_ref(), Some(&installed[0]));
        let state = catalog.load().await.unwrap().expect("the catalog");
        assert_eq!(state.configs[&CohortId(1)], installed[0]);
        assert_eq!(state.configs[&CohortId(2)], config(2, 1, 1), "the other cohort is untouched");
    }
    let catalog = Catalog::new(&coordinator);
    let unknown = catalog.compare_and_set_cohort(config(9, 2, 1)).await;
    assert!(matches!(unknown, Err(CoordinatorError::NoNode { .. })), "{unknown:?}");
    let ahead = catalog.compare_and_set_cohort(config(2, 7, 1)).await.unwrap();
    assert_eq!(ahead, CompareAndSet::Superseded(config(2, 1, 1)));
}

pub async fn the_map_changes_with_its_new_cohorts(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    Catalog::bootstrap(&coordinator, spec(1, 1)).await.unwrap();
    let catalog = Catalog::new(&coordinator);
    let before = catalog.load().await.unwrap().expect("the catalog");
    let mut split = RangeMap::from_splits(&[Bytes::from("m")]).unwrap();
    split.version = 2;
    let installed = catalog.compare_and_set_map(split.clone(), vec![config(2, 1, 2)]).await;
    assert_eq!(installed, Ok(CompareAndSet::Installed(split.clone())));
    let after = catalog.load().await.unwrap().expect("the catalog");
    assert_eq!(after.map, split);
    assert!(after.map_revision > before.map_revision);
    assert_eq!(after.configs[&CohortId(2)], config(2, 1, 2));
    let mut late = RangeMap::from_splits(&[Bytes::from("x")]).unwrap();
    late.version = 2;
    let told = catalog.compare_and_set_map(late, vec![config(3, 1, 2)]).await;
    assert_eq!(told, Ok(CompareAndSet::Superseded(split)));
    assert_eq!(catalog.cohort(CohortId(3)).await, Ok(None), "a refused change leaves nothing");
}

/// [RANGE-5]
pub async fn a_cohort_is_succeeded_once(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    Catalog::bootstrap(&coordinator, spec(1, 3)).await.unwrap();
    let catalog = Catalog::new(&coordinator);
    let before = catalog.load().await.unwrap().unwrap();
    let ended = |cohort| before.map.of_cohort(CohortId(cohort)).unwrap().range.clone();
    let seal = |cohort, protocol| {
        let (range, replicas) = (ended(cohort), vec![NodeId(2), NodeId(1)]);
        Seal::new(vec![Successor { range, protocol, replicas, replicas_wanted: 2 }])
    };
    // Two cohorts are succeeded at once, each by several who have applied its seal.
    let at = Lsn::new(4, 17);
    let mut sides = Vec::new();
    for side in 0..6 {
        let (catalog, seal) = (catalog.clone(), seal(side % 2 + 1, Protocol::Raft));
        sides.push(tokio::spawn(async move {
            let cohort = CohortId(side % 2 + 1);
            catalog.succeed(&Decided::alone(cohort, at, &seal)).await.unwrap()
        }));
    }
    let mut successors = BTreeMap::new();
    for (side, task) in (0..).zip(sides) {
        let configs = task.await.unwrap();
        let known = successors.entry(side % 2 + 1).or_insert_with(|| configs.clone());
        assert_eq!((known.len(), &*known), (1, &configs));
    }
    let after = catalog.load().await.unwrap().unwrap();
    assert_eq!(after.map.version, before.map.version + 2);
    let mut ids = Vec::new();
    for (cohort, configs) in &successors {
        let config = &configs[0];
        let origin = Origin { cohort: CohortId(*cohort), seal: at, is_settled: false, upper: None };
        assert_eq!((config.version, config.origin.as_ref()), (1, Some(&origin)));
        assert_eq!(
            (config.protocol, &config.replicas[..]),
            (Protocol::Raft, &[NodeId(2), NodeId(1)][..])
        );
        let entry = after.map.of_cohort(config.cohort).unwrap();
        assert_eq!((&entry.range, entry.epoch), (&ended(*cohort), 2));
        assert_eq!(after.successors(CohortId(*cohort)), [config]);
        assert!(!is_over(&after.configs, CohortId(*cohort)));
        ids.push(config.cohort.0);
    }
    ids.sort_unstable();
    assert_eq!(ids, [4, 5]);

    let first = successors[&1][0].cohort;
    for _ in 0..2 {
        catalog.settle(first).await.unwrap();
        let state = catalog.load().await.unwrap().unwrap();
        assert_eq!(state.configs[&first].version, 2);
        assert!(is_over(&state.configs, CohortId(1)) && !is_over(&state.configs, CohortId(2)));
        assert!(!is_over(&state.configs, CohortId(3)), "no other went on from it");
    }
    // An id is not given again, and the ranges must be what the cohort served.
    let next = catalog
        .succeed(&Decided::alone(CohortId(3), at, &seal(3, Protocol::Pacifica)))
        .await
        .unwrap();
    assert_eq!(next[0].cohort, CohortId(6));
    let gap = catalog.succeed(&Decided::alone(CohortId(6), at, &seal(1, Protocol::Raft))).await;
    assert!(matches!(gap, Err(SuccessionError::Ranges(_))), "{gap:?}");
    let unknown =
        catalog.succeed(&Decided::alone(CohortId(77), at, &seal(1, Protocol::Raft))).await;
    assert!(matches!(unknown, Err(SuccessionError::NoCohort(CohortId(77)))), "{unknown:?}");
    coordinator.close().await.unwrap();
}

/// Two neighbours become one, or each goes on by itself: of the changes that are asked for at once, the catalog
/// has the first. [RANGE-20] [RANGE-21]
pub async fn two_cohorts_go_on_as_one_or_each_by_itself(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    let catalog = Catalog::new(&coordinator);
    Catalog::bootstrap(&coordinator, spec(1, 8)).await.unwrap();
    let before = catalog.load().await.unwrap().unwrap();
    let range = |cohort| before.map.of_cohort(CohortId(cohort)).unwrap().range.clone();
    let successor = |range| Successor {
        range,
        protocol: Protocol::Raft,
        replicas: vec![NodeId(1)],
        replicas_wanted: 1,
    };
    let seals = [Lsn::new(1, 9), Lsn::new(3, 7)];
    let together = |lower: u64| {
        let ended = [(CohortId(lower), seals[0]), (CohortId(lower + 1), seals[1])];
        let range = KeyRange { start: range(lower).start, end: range(lower + 1).end };
        Decided::merged(ended, successor(range))
    };
    let alone = |cohort: u64, at| {
        Decided::alone(CohortId(cohort), at, &Seal::new(vec![successor(range(cohort))]))
    };
    for lower in [1, 3, 5, 7] {
        let all = [together(lower), alone(lower, seals[0]), alone(lower + 1, seals[1])];
        let sides: Vec<_> = all
            .into_iter()
            .map(|decided| {
                let catalog = catalog.clone();
                tokio::spawn(async move { catalog.succeed(&decided).await.unwrap() })
            })
            .collect();
        for side in sides {
            assert_eq!(side.await.unwrap().len(), 1);
        }
        let state = catalog.load().await.unwrap().unwrap();
        let of = |at| state.successors(CohortId(lower + at));
        let [low, high] = [of(0), of(1)];
        assert_eq!((low.len(), high.len()), (1, 1));
        let origin = low[0].origin.as_ref().unwrap();
        assert_eq!(low[0] == high[0], origin.upper.is_some());
        let served = &state.map.of_cohort(low[0].cohort).unwrap().range;
        let ended: Vec<_> = origin.seals().collect();
        assert_eq!(ended[0], (CohortId(lower), seals[0]));
        assert_eq!(origin.part(CohortId(lower), served), range(lower));
        if let [_, (upper, seal)] = ended[..] {
            assert_eq!((upper, seal), (CohortId(lower + 1), seals[1]));
            assert_eq!(origin.part(upper, served), range(lower + 1));
            assert_eq!(origin.base(), Lsn::new(0, 9));
        }
    }
    // Of two that go on as one, nothing is needed once that is settled.
    catalog.succeed(&together(1)).await.unwrap();
    let state = catalog.load().await.unwrap().unwrap();
    let first = state.successors(CohortId(1))[0].cohort;
    catalog.settle(first).await.unwrap();
    let state = catalog.load().await.unwrap().unwrap();
    assert!(is_over(&state.configs, CohortId(1)));
    assert_eq!(
        is_over(&state.configs, CohortId(2)),
        state.successors(CohortId(2))[0].cohort == first
    );
    coordinator.close().await.unwrap();
}

/// [RANGE-5]
pub async fn a_known_cohort_is_succeeded_with_one_request(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    let catalog = Catalog::new(&coordinator);
    let first = Catalog::bootstrap(&coordinator, spec(1, 2)).await.unwrap().into_state();
    let asked = || (coordinator.counters().reads, coordinator.counters().writes);
    let split = |state: &CatalogState, cohort: u64, at: &'static str| {
        let whole = state.map.of_cohort(CohortId(cohort)).unwrap().range.clone();
        let half = |range| Successor {
            range,
            protocol: Protocol::Raft,
            replicas: vec![NodeId(1)],
            replicas_wanted: 1,
        };
        let lower = KeyRange { end: Some(at.into()), ..whole.clone() };
        Seal::new(vec![half(lower), half(KeyRange { start: at.into(), ..whole })])
    };
    let at = Lsn::new(1, 9);
    let (reads, writes) = asked();
    let seal = split(&first, 1, "c");
    let halves =
        catalog.succeed_known(&first, &Decided::alone(CohortId(1), at, &seal)).await.unwrap();
    assert_eq!(halves.iter().map(|it| it.cohort.0).collect::<Vec<_>>(), [3, 4]);
    assert_eq!(asked(), (reads, writes + 1));
    // What is known is too old, for a cohort that it has, for one that is gone, and for one that is newer.
    let seal_of_other = split(&first, 2, "t");
    let others = catalog
        .succeed_known(&first, &Decided::alone(CohortId(2), at, &seal_of_other))
        .await
        .unwrap();
    assert_eq!(others.iter().map(|it| it.cohort.0).collect::<Vec<_>>(), [5, 6]);
    let again =
        catalog.succeed_known(&first, &Decided::alone(CohortId(1), at, &seal)).await.unwrap();
    assert_eq!(again, halves);
    let second = catalog.load().await.unwrap().unwrap();
    let seal_of_half = split(&second, 3, "b");
    let quarters = catalog
        .succeed_known(&first, &Decided::alone(CohortId(3), at, &seal_of_half))
        .await
        .unwrap();
    assert_eq!(quarters[0].cohort, CohortId(7));
    let third = catalog.load().await.unwrap().unwrap();
    let cohorts: Vec<_> = third.map.ranges().iter().map(|entry| entry.cohort.0).collect();
    assert_eq!((cohorts, third.map.version), (vec![7, 8, 4, 5, 6], 4));
    coordinator.close().await.unwrap();
}

/// [RANGE-16]
pub async fn a_map_is_brought_forward_after_its_configurations(options: CoordinatorOptions) {
    const SUCCESSORS: u64 = 30;
    let coordinator = connect(&options).await;
    let Bootstrapped::Created(older) = Catalog::bootstrap(&coordinator, spec(1, 1)).await.unwrap()
    else {
        panic!("there was a cluster already")
    };
    let mut known = Knowledge::from(&older);
    let ids = (2..2 + SUCCESSORS).map(CohortId);
    let cut = RangeMap::from_splits(&even_splits(ids.clone().count())).unwrap();
    let ranges = cut.ranges().iter().map(|entry| entry.range.clone());
    known.map = older.map.replace(&[CohortId(1)], ranges.zip(ids.clone())).unwrap().unwrap();
    known.configs.extend(ids.map(|id| (id, config(id.0, 1, 1))));
    let mut watch = Catalog::new(&coordinator).watch().unwrap();
    let (from, to) = (known.clone(), coordinator.clone());
    let forward = tokio::spawn(async move { from.bring_forward(&to).await });
    loop {
        let state = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        let mut mapped = state.map.ranges().iter().map(|entry| entry.cohort);
        assert!(mapped.all(|cohort| state.configs.contains_key(&cohort)), "{state:?}");
        if state.map == known.map {
            break;
        }
    }
    assert_eq!(forward.await.unwrap(), Ok(true));
    coordinator.close().await.unwrap();
}

pub async fn the_catalog_is_watched(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    let catalog = Catalog::new(&coordinator);
    let mut watch = catalog.watch().unwrap();
    Catalog::bootstrap(&coordinator, spec(1, 3)).await.unwrap();
    let first = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(
        Some(&first),
        catalog.load().await.unwrap().as_ref().map(|state| {
            // The watch tells the moment of the change, the read that of the reading.
            assert!(state.revision >= first.revision);
            &first
        })
    );
    catalog.compare_and_set_cohort(config(3, 2, 2)).await.unwrap();
    let second = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
    assert!(second.revision > first.revision);
    assert_eq!(second.configs[&CohortId(3)], config(3, 2, 2));
    assert_eq!(second.map, first.map);
}

/// A node that watches the catalog changes a configuration without a read; what it knows may be old,
/// which costs reads and nothing else.
pub async fn a_known_configuration_is_replaced_with_one_request(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    let catalog = Catalog::new(&coordinator);
    let first = Catalog::bootstrap(&coordinator, spec(1, 3)).await.unwrap().into_state();
    let asked = || (coordinator.counters().reads, coordinator.counters().writes);
    let (reads, writes) = asked();
    let installed = catalog.compare_and_set_known_cohort(&first, config(3, 2, 2)).await;
    assert_eq!(installed, Ok(CompareAndSet::Installed(config(3, 2, 2))));
    assert_eq!(asked(), (reads, writes + 1));
    let second = catalog.load().await.unwrap().unwrap();
    let (reads, writes) = asked();
    let installed = catalog.compare_and_set_known_cohort(&second, config(3, 3, 1)).await;
    assert_eq!(installed, Ok(CompareAndSet::Installed(config(3, 3, 1))));
    // What is known to be installed is not proposed again.
    let outcome = catalog.compare_and_set_known_cohort(&second, config(3, 2, 1)).await;
    assert_eq!(outcome, Ok(CompareAndSet::Superseded(config(3, 2, 2))));
    assert_eq!(asked(), (reads, writes + 1));
    for old in [first, second] {
        let version = old.configs[&CohortId(3)].version + 1;
        let outcome = catalog.compare_and_set_known_cohort(&old, config(3, version, 1)).await;
        assert_eq!(outcome, Ok(CompareAndSet::Superseded(config(3, 3, 1))));
    }
}

pub async fn a_catalog_of_a_thousand_ranges_fits(options: CoordinatorOptions) {
    let coordinator = connect(&options).await;
    let large = spec(1, 1000);
    let state = Catalog::bootstrap(&coordinator, large.clone()).await.unwrap().into_state();
    assert_eq!(state.map, large.map);
    assert_eq!(state.configs.len(), 1000);
}

pub async fn a_node_is_alive_once(options: CoordinatorOptions) {
    let first = connect(&options).await;
    let second = connect(&options).await;
    let info = NodeInfo::new("127.0.0.1:7101");
    let members = Membership::new(&first);
    members.register(NodeId(1), &info).await.unwrap();
    members.register(NodeId(1), &info).await.expect("the same process may register again");
    let refused = Membership::new(&second).register(NodeId(1), &NodeInfo::new("x:1")).await;
    let alive = RegisterError::AlreadyAlive {
        id: NodeId(1),
        address: info.address.clone(),
        session: first.session_id(),
    };
    assert_eq!(refused, Err(alive));
    Membership::new(&second).register(NodeId(2), &NodeInfo::new("b:2")).await.unwrap();
    let listed = members.list().await.unwrap();
    let session = Some(first.session_id());
    assert_eq!(
        listed[0],
        Member { id: NodeId(1), info: info.clone(), session, is_draining: false }
    );
    assert!(listed.len() == 2 && listed[1].is_alive());

    first.close().await.unwrap();
    let listed = Membership::new(&second).list().await.unwrap();
    assert_eq!(listed[0], Member { id: NodeId(1), info, session: None, is_draining: false });
    Membership::new(&second).register(NodeId(1), &NodeInfo::new("x:1")).await.unwrap();
    Membership::new(&second).deregister(NodeId(1)).await.unwrap();
    assert!(!Membership::new(&second).list().await.unwrap()[0].is_alive());
}

pub async fn a_node_comes_back_at_its_place(options: CoordinatorOptions) {
    let before = connect(&options).await;
    let mut info = NodeInfo::new("127.0.0.1:7101");
    (info.folder, info.place) = ("5d1f".to_owned(), "boot/1/2".to_owned());
    Membership::new(&before).register(NodeId(1), &info).await.unwrap();
    // The process dies and is started again at once; its session lives on.
    let after = connect(&options).await;
    Membership::new(&after).register(NodeId(1), &info).await.unwrap();
    let listed = Membership::new(&after).list().await.unwrap();
    assert_eq!(listed[0].session, Some(after.session_id()));
    // A copy of the folder is at another place.
    let copy = connect(&options).await;
    let elsewhere = NodeInfo { place: "boot/1/3".to_owned(), ..info };
    let refused = Membership::new(&copy).register(NodeId(1), &elsewhere).await;
    assert!(matches!(refused, Err(RegisterError::AlreadyAlive { .. })), "{refused:?}");
    // The end of the old session takes nothing from the new one.
    before.close().await.unwrap();
    assert!(Membership::new(&after).list().await.unwrap()[0].is_alive());
}

pub async fn a_node_waits_for_its_predecessor(mut options: CoordinatorOptions) {
    options.session_timeout = Duration::from_secs(2);
    let before = connect(&options).await;
    let info = NodeInfo::new("127.0.0.1:7101");
    Membership::new(&before).register(NodeId(1), &info).await.unwrap();
    let after = connect(&options).await;
    let members = Membership::new(&after);
    let impatient = members.register_within(NodeId(1), &info, Duration::from_millis(200)).await;
    assert!(matches!(impatient, Err(RegisterError::AlreadyAlive { .. })));
    drop(before);
    let start = Instant::now();
    members.register_within(NodeId(1), &info, PATIENCE).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "waited for {:?}", start.elapsed());
}

pub async fn the_membership_is_watched(options: CoordinatorOptions) {
    async fn until(watch: &mut MembershipWatch, wanted: &[(u64, bool)]) {
        let told = timeout(PATIENCE, async {
            loop {
                let members = watch.next().await.unwrap().unwrap();
                let seen: Vec<_> = members.iter().map(|m| (m.id.0, m.is_alive())).collect();
                if seen == wanted {
                    return;
                }
            }
        });
        told.await.unwrap_or_else(|_| panic!("{wanted:?} was not told"));
    }
    let observer = connect(&options).await;
    let mut watch = Membership::new(&observer).watch().unwrap();
    until(&mut watch, &[]).await;
    let node = connect(&options).await;
    Membership::new(&node).register(NodeId(1), &NodeInfo::new("a:1")).await.unwrap();
    until(&mut watch, &[(1, true)]).await;
    Membership::new(&node).register(NodeId(12), &NodeInfo::new("a:1")).await.unwrap();
    until(&mut watch, &[(1, true), (12, true)]).await;
    node.close().await.unwrap();
    until(&mut watch, &[(1, false), (12, false)]).await;
}

/// The race of P3: the primary removes a secondary while that one removes the primary. One is
/// installed, the other is told, and both see the same.
pub async fn the_configuration_manager_installs_one_successor(options: CoordinatorOptions) {
    let primary = connect(&options).await;
    let secondary = connect(&options).await;
    Catalog::bootstrap(&primary, spec(1, 1)).await.unwrap();
    let managers = [&primary, &secondary].map(|c| ConfigurationManager::new(c, CohortId(1)));
    let mut watch = Catalog::new(&primary).watch().unwrap();
    let mut at = managers[0].newest().await.unwrap().expect("the cohort").version;
    for _ in 0..5 {
        let (ours, theirs) = tokio::join!(
            managers[0].propose(at, config(1, 0, 1), None),
            managers[1].propose(at, config(1, 0, 2), None),
        );
        let newest = match (ours.unwrap(), theirs.unwrap()) {
            (CompareAndSet::Installed(new), CompareAndSet::Superseded(told))
            | (CompareAndSet::Superseded(told), CompareAndSet::Installed(new)) => {
                assert_eq!(new, told);
                new
            }
            other => panic!("not one was installed: {other:?}"),
        };
        assert_eq!(newest.version, at + 1);
        at = newest.version;
        loop {
            let state = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
            if state.configs[&CohortId(1)].version == at {
                assert_eq!(state.configs[&CohortId(1)], newest);
                break;
            }
        }
    }
}

const fn invitation(node: u64, at: u64) -> Invitation {
    Invitation { node: NodeId(node), at, leaving: None }
}

/// Of an old and a new leader that both invite, one is heard; and what was read before somebody
/// else's change can neither be replaced nor withdrawn.
pub async fn a_cohort_has_one_invitation(options: CoordinatorOptions) {
    let (old, new) = (connect(&options).await, connect(&options).await);
    let [old, new] = [&old, &new].map(Invitations::new);
    let cohort = CohortId(1);
    assert_eq!(old.all().await, Ok([].into()));
    let (first, second) = tokio::join!(
        old.invite(cohort, None, invitation(4, 2)),
        new.invite(cohort, None, invitation(5, 2)),
    );
    let is_old = first.unwrap();
    assert_ne!(is_old, second.unwrap(), "one is heard");
    let before = old.all().await.unwrap()[&cohort];
    assert_eq!(before.invitation, invitation(if is_old { 4 } else { 5 }, 2));

    assert_eq!(new.invite(cohort, Some(before), invitation(6, 3)).await, Ok(true));
    assert_eq!(old.invite(cohort, Some(before), invitation(7, 2)).await, Ok(false));
    assert_eq!(old.withdraw(cohort, before).await, Ok(false));
    let standing = old.all().await.unwrap()[&cohort];
    assert_eq!(standing.invitation, invitation(6, 3));
    assert_eq!(old.withdraw(cohort, standing).await, Ok(true));
    assert_eq!(new.withdraw(cohort, standing).await, Ok(false));
    assert_eq!(new.invite(cohort, Some(standing), invitation(4, 3)).await, Ok(false));
    assert_eq!(new.all().await, Ok([].into()));
}

pub async fn the_invitations_are_watched(options: CoordinatorOptions) {
    let (observer, leader) = (connect(&options).await, connect(&options).await);
    let mut watch = Invitations::new(&observer).watch().unwrap();
    let invitations = Invitations::new(&leader);
    let mut next = async || timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(next().await, [].into());
    invitations.invite(CohortId(2), None, invitation(4, 2)).await.unwrap();
    let told = next().await;
    assert_eq!(told[&CohortId(2)].invitation, invitation(4, 2));
    invitations.invite(CohortId(12), None, invitation(1, 9)).await.unwrap();
    assert_eq!(next().await.len(), 2);
    invitations.withdraw(CohortId(2), told[&CohortId(2)]).await.unwrap();
    let told = next().await;
    assert_eq!(told.keys().collect::<Vec<_>>(), [&CohortId(12)]);
    assert_eq!(told, invitations.all().await.unwrap());
}
