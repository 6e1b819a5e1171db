//! A real etcd as a cluster's coordinator.

use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::until;

/// Set to `etcd`, it makes every cluster that `up` starts use a real etcd.
const CHOICE: &str = "TRIREME_TEST_COORDINATOR";

/// How long etcd may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running etcd of one member; killed when it is dropped.
pub(super) struct Etcd {
    process: Child,
}

impl Etcd {
    /// Says whether clusters are to use a real etcd.
    pub(super) fn is_chosen() -> bool {
        match std::env::var(CHOICE).as_deref() {
            Ok("etcd") => true,
            Ok("embedded") | Err(_) => false,
            Ok(other) => panic!("{CHOICE} is '{other}': expected etcd or embedded"),
        }
    }

    /// Starts etcd on `port` and the one after it.
    #[track_caller]
    pub(super) fn start(folder: &Path, port: u16) -> Self {
        let clients = format!("http://127.0.0.1:{port}");
        let peers = format!("http://127.0.0.1:{}", port + 1);
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(folder.join("etcd"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is installed (Debian: etcd-server)");
        let etcd = Self { process };
        until("etcd listens", START_TIMEOUT, || TcpStream::connect(("127.0.0.1", port)).ok());
        etcd
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // Nobody is left to tell if it cannot be killed.
        let _gone = self.process.kill();
        let _gone = self.process.wait();
    }
}
