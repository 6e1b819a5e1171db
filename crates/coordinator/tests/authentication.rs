//! A coordinator behind an etcd that asks for a user and a password.

#![allow(clippy::unwrap_used, reason = "in a test, what cannot be unwrapped is a failure")]

mod support;

use std::process::Command;
use std::time::Duration;

use support::etcd::Etcd;
use trireme_coordinator::{
    Coordinator, CoordinatorOptions, CreateMode, SessionState, UserPassword,
};

/// Makes etcd ask for a password from now on.
fn enable_authentication(endpoint: &str) {
    for arguments in [&["user", "add", "root:secret"][..], &["auth", "enable"]] {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", endpoint])
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {arguments:?}: {error}");
    }
}

fn options(endpoints: &[String], password: Option<&str>) -> CoordinatorOptions {
    let user_password = password
        .map(|password| UserPassword { user: "root".to_owned(), password: password.to_owned() });
    CoordinatorOptions {
        user_password,
        session_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(2),
        ..support::fresh_options(endpoints)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_right_password_gets_in_and_its_session_lives_on() {
    if !support::etcd::available() {
        return;
    }
    let etcd = Etcd::start(1);
    let endpoints = etcd.endpoints();
    // It serves before it is asked to guard itself.
    support::connect(&support::fresh_options(&endpoints)).await.close().await.unwrap();
    enable_authentication(endpoints[0].trim_start_matches("http://"));

    for wrong in [None, Some("guess")] {
        // Some releases grant a lease, and so a session, to anyone: then the first node is refused.
        let made = match Coordinator::connect(options(&endpoints, wrong)).await {
            Ok(stranger) => stranger.create("/s", b"", CreateMode::Persistent).await.is_ok(),
            Err(_) => false,
        };
        assert!(!made, "{wrong:?} got in");
    }
    let coordinator = support::connect(&options(&endpoints, Some("secret"))).await;
    coordinator.create("/a", b"1", CreateMode::Ephemeral).await.unwrap();
    let created = tokio::time::Instant::now();
    // The session is kept alive past its timeout, which takes the password too.
    support::eventually("the session's third life", || async {
        (created.elapsed() > Duration::from_secs(5)).then_some(())
    })
    .await;
    assert_ne!(coordinator.session(), SessionState::Expired);
    assert_eq!(coordinator.get("/a").await.unwrap().unwrap().value, b"1");
    coordinator.close().await.unwrap();
}
