//! What the suites share: servers to run against, and a proxy to break the way to them.

#![allow(dead_code, unreachable_pub, reason = "each suite uses a part of it")]

pub mod etcd;
pub mod proxy;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use trireme_coordinator::{Coordinator, CoordinatorOptions, Watch, WatchEvent};
use trireme_embedded::{EmbeddedOptions, EmbeddedServer};

/// How long a test waits for what must come. Only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Any free port of this machine.
pub fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

/// A temporary folder, in memory where the machine has such: what these servers sync is not what
/// is tested, and they sync often.
pub fn quick_folder() -> TempDir {
    let memory = TempDir::new_in("/dev/shm");
    memory.or_else(|_| TempDir::new()).expect("a temporary folder")
}

/// An embedded server on a temporary folder.
pub struct Embedded {
    pub server: Option<EmbeddedServer>,
    pub folder: TempDir,
    pub address: SocketAddr,
}

impl Embedded {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(adjust: impl FnOnce(&mut EmbeddedOptions)) -> Self {
        let folder = quick_folder();
        let mut options = EmbeddedOptions::new(folder.path(), any_port());
        adjust(&mut options);
        let server = EmbeddedServer::start(options).await.expect("an embedded server");
        Self { address: server.address(), server: Some(server), folder }
    }

    pub fn running(&self) -> &EmbeddedServer {
        self.server.as_ref().expect("a running server")
    }

    pub async fn stop(&mut self) {
        self.server.take().expect("a running server").stop().await.expect("a clean stop");
    }

    pub async fn start_again(&mut self) {
        let options = EmbeddedOptions::new(self.folder.path(), self.address);
        self.server = Some(EmbeddedServer::start(options).await.expect("a second start"));
    }

    pub fn endpoints(&self) -> Vec<String> {
        vec![format!("http://{}", self.address)]
    }
}

/// Options for a namespace that no other test has.
pub fn fresh_options(endpoints: &[String]) -> CoordinatorOptions {
    static NAMESPACES: AtomicU64 = AtomicU64::new(1);
    let mut options = CoordinatorOptions::new(endpoints.iter().cloned());
    options.namespace = format!("/test-{}", NAMESPACES.fetch_add(1, Ordering::Relaxed));
    options
}

pub async fn connect(options: &CoordinatorOptions) -> Coordinator {
    Coordinator::connect(options.clone()).await.expect("a coordinator")
}

/// Waits until `probe` returns something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut probe: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} has not come in {PATIENCE:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Returns the next event of a watch, which must come.
pub async fn next(watch: &mut Watch) -> WatchEvent {
    timeout(PATIENCE, watch.next()).await.expect("an event in time").expect("an open watch")
}
