//! Real etcd servers, started by the tests and killed with them.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// With this set, a machine without etcd fails the tests that need it.
const REQUIRE: &str = "TRIREME_REQUIRE_ETCD";

/// Says whether etcd is there to be tested against; if not, says so loudly, or fails where it is
/// required.
pub fn available() -> bool {
    let found = Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        assert!(std::env::var_os(REQUIRE).is_none(), "{REQUIRE} is set, and etcd is not on PATH");
        shout();
    }
    found
}

#[expect(clippy::print_stderr, reason = "a skipped half of the suite must not go unnoticed")]
fn shout() {
    eprintln!(
        "\n######## etcd is not installed: THE TESTS AGAINST REAL ETCD WERE SKIPPED ########\n"
    );
}

/// One member, running or killed.
struct Member {
    name: String,
    client: String,
    peer: String,
    folder: TempDir,
    process: Option<Child>,
}

/// An etcd cluster on this machine.
pub struct Etcd {
    members: Vec<Member>,
}

impl Etcd {
    pub fn start(members: usize) -> Self {
        let members = (1..=members).map(|number| Member {
            name: format!("m{number}"),
            client: format!("http://127.0.0.1:{}", free_port()),
            peer: format!("http://127.0.0.1:{}", free_port()),
            folder: super::quick_folder(),
            process: None,
        });
        let mut etcd = Self { members: members.collect() };
        for index in 0..etcd.members.len() {
            etcd.start_member(index);
        }
        etcd
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.client.clone()).collect()
    }

    pub fn start_member(&mut self, index: usize) {
        let peers: Vec<_> = self.members.iter().map(|m| format!("{}={}", m.name, m.peer)).collect();
        let member = &mut self.members[index];
        // Where it exists, `setpriv` has the kernel kill etcd if this process dies unseen.
        let mut command = if Command::new("setpriv").arg("--version").output().is_ok() {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "etcd"]);
            command
        } else {
            Command::new("etcd")
        };
        command
            .args(["--name", &member.name])
            .args(["--data-dir", &member.folder.path().join("data").to_string_lossy()])
            .args(["--listen-client-urls", &member.client])
            .args(["--advertise-client-urls", &member.client])
            .args(["--listen-peer-urls", &member.peer])
            .args(["--initial-advertise-peer-urls", &member.peer])
            .args(["--initial-cluster", &peers.join(",")])
            .args(["--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        member.process = Some(command.spawn().expect("etcd starts"));
    }

    pub fn kill_member(&mut self, index: usize) {
        if let Some(mut process) = self.members[index].process.take() {
            process.kill().expect("etcd is killed");
            process.wait().expect("etcd is gone");
        }
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for index in 0..self.members.len() {
            self.kill_member(index);
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}
