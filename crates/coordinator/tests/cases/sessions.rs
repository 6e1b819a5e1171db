use std::time::{Duration, Instant};

use tokio::time::sleep;
use trireme_coordinator::{
    CoordinatorError, CoordinatorOptions, CreateMode, Scope, SessionState, WatchEvent,
};

use crate::support::proxy::{Proxy, Way};
use crate::support::{connect, eventually, next};

pub async fn a_closed_session_takes_its_nodes_along(options: CoordinatorOptions) {
    let witness = connect(&options).await;
    let owner = connect(&options).await;
    assert_ne!(owner.session_id(), witness.session_id());
    owner.create("/e", b"", CreateMode::Ephemeral).await.unwrap();
    owner.create("/p", b"", CreateMode::Persistent).await.unwrap();
    let node = witness.get("/e").await.unwrap().expect("the node");
    assert_eq!(node.owner, Some(owner.session_id()));
    let clone = owner.clone();
    owner.close().await.unwrap();
    assert!(!witness.exists("/e").await.unwrap());
    assert!(witness.exists("/p").await.unwrap());
    assert_eq!(clone.session(), SessionState::Expired);
    let refused = clone.create("/e", b"", CreateMode::Ephemeral).await;
    assert_eq!(refused, Err(CoordinatorError::SessionExpired));
}

pub async fn a_silent_session_takes_its_nodes_along(mut options: CoordinatorOptions) {
    let witness = connect(&options).await;
    options.session_timeout = Duration::from_secs(2);
    let owner = connect(&options).await;
    owner.create("/e", b"", CreateMode::Ephemeral).await.unwrap();
    let mut watch = witness.watch("/e", Scope::Node).unwrap();
    assert!(matches!(next(&mut watch).await, WatchEvent::State(state) if state.nodes.len() == 1));
    // Dropped without a word, as by a process that died.
    drop(owner);
    let event = next(&mut watch).await;
    assert!(matches!(event, WatchEvent::Changes { .. }), "{event:?}");
    assert!(!witness.exists("/e").await.unwrap());
}

pub async fn a_live_session_keeps_its_nodes(mut options: CoordinatorOptions) {
    options.session_timeout = Duration::from_secs(2);
    let owner = connect(&options).await;
    owner.create("/e", b"", CreateMode::Ephemeral).await.unwrap();
    let SessionState::Live { until: first } = owner.session() else { panic!("no session") };
    assert!(first <= Instant::now() + Duration::from_secs(2), "promised for too long");
    sleep(Duration::from_secs(5)).await;
    let SessionState::Live { until: later } = owner.session() else { panic!("no session") };
    assert!(later > first);
    assert!(owner.exists("/e").await.unwrap());
}

pub async fn an_expired_session_is_renewed_on_demand(mut options: CoordinatorOptions) {
    options.session_timeout = Duration::from_secs(2);
    let target = options.endpoints[0].trim_start_matches("http://").parse().unwrap();
    let proxy = Proxy::start(target).await;
    options.endpoints = proxy.endpoints();
    let coordinator = connect(&options).await;
    let first = coordinator.session_id();
    assert_eq!(coordinator.renew().await, Ok(first), "a live session is not replaced");
    coordinator.create("/e", b"", CreateMode::Ephemeral).await.unwrap();
    let mut watch = coordinator.watch("/w", Scope::Children).unwrap();
    next(&mut watch).await;
    proxy.accept(false);
    coordinator.session_expired().await;
    assert_eq!(coordinator.session(), SessionState::Expired);
    proxy.accept(true);
    let second = eventually("a new session", || async { coordinator.renew().await.ok() }).await;
    assert_ne!(first, second);
    assert!(matches!(coordinator.session(), SessionState::Live { .. }));
    eventually("the old node's end", || async {
        (!coordinator.exists("/e").await.ok()?).then_some(())
    })
    .await;
    coordinator.create("/e", b"", CreateMode::Ephemeral).await.unwrap();
    coordinator.create("/w/new", b"", CreateMode::Persistent).await.unwrap();
    // The watch was set before all this, and has gone on.
    loop {
        match next(&mut watch).await {
            WatchEvent::Changes { .. } => break,
            WatchEvent::State(state) if !state.nodes.is_empty() => break,
            WatchEvent::State(_) => {}
        }
    }
}

/// S5: the holder of an ephemeral node knows that it is lost before anybody else can see it gone,
/// though nobody tells the holder anything.
pub async fn a_stalled_server_ends_the_session_by_the_local_clock(mut options: CoordinatorOptions) {
    let witness = connect(&options).await;
    options.session_timeout = Duration::from_secs(2);
    let target = options.endpoints[0].trim_start_matches("http://").parse().unwrap();
    let proxy = Proxy::start(target).await;
    options.endpoints = proxy.endpoints();
    let owner = connect(&options).await;
    owner.create("/e", b"", CreateMode::Ephemeral).await.unwrap();
    let mut watch = witness.watch("/e", Scope::Node).unwrap();
    next(&mut watch).await;

    proxy.set(Way::Held, Way::Held);
    let expired = tokio::spawn({
        let owner = owner.clone();
        async move {
            owner.session_expired().await;
            Instant::now()
        }
    });
    next(&mut watch).await;
    let seen_gone = Instant::now();
    assert_eq!(owner.session(), SessionState::Expired, "others see it gone, the owner does not");
    let known = expired.await.unwrap();
    assert!(known < seen_gone, "known {:?} too late", known - seen_gone);
    // Answers that were under way all the time change nothing.
    proxy.set(Way::Open, Way::Open);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(owner.session(), SessionState::Expired);
    let refused = owner.create("/e", b"", CreateMode::Ephemeral).await;
    assert_eq!(refused, Err(CoordinatorError::SessionExpired));
}
