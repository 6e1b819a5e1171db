//! A cluster of etcd's own program, as a reference beside those of Trireme's.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::ports::Ports;
use crate::{process, tail};

/// How many members it has.
const MEMBERS: u16 = 3;

/// How long the members may take until they listen.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// How often it is looked whether they do.
const INTERVAL: Duration = Duration::from_millis(20);

/// Runs etcd until standard input ends, as it does when the process that started this is gone,
/// however it went; prints the number of etcd's process first.
const KEEPER: &str = r#""$@" & pid=$!; echo $pid; read -r _; kill -9 $pid; wait"#;

/// A running cluster of three members of etcd. Dropped, it is killed.
pub struct EtcdCluster {
    version: String,
    endpoints: Vec<String>,
    members: Vec<Member>,
    folder: TempDir,
    _ports: Ports,
}

struct Member {
    pid: u32,
    /// The shell that kills the member when its standard input ends.
    keeper: Child,
}

impl EtcdCluster {
    /// Starts three members, with etcd's defaults, in a folder of their own below `parent`. Returns
    /// when they listen; they may not have elected a leader yet.
    ///
    /// # Errors
    ///
    /// If there is no `etcd` on the path, or it does not start.
    pub async fn start(parent: &Path) -> anyhow::Result<Self> {
        let version = version()?;
        let folder = TempDir::with_prefix_in("trireme-etcd-", parent)
            .with_context(|| format!("making a temporary folder in {}", parent.display()))?;
        let ports = Ports::take()?;
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let client_port = |member: u16| ports.first() + 2 * member;
        let peers: Vec<String> =
            (0..MEMBERS).map(|it| format!("n{it}={}", url(client_port(it) + 1))).collect();
        let mut cluster = Self {
            version,
            endpoints: (0..MEMBERS).map(|it| url(client_port(it))).collect(),
            members: Vec::new(),
            folder,
            _ports: ports,
        };
        for member in 0..MEMBERS {
            let (client, peer) = (&cluster.endpoints[usize::from(member)], &peers);
            let peer_url = peer[usize::from(member)].split_once('=').expect("a name").1;
            let folder = cluster.folder.path();
            let mut command = Command::new("sh");
            command.args(["-c", KEEPER, "keeper", "etcd", "--name", &format!("n{member}")]);
            command.arg("--data-dir").arg(folder.join(format!("n{member}")));
            command.args(["--listen-client-urls", client, "--advertise-client-urls", client]);
            command.args(["--listen-peer-urls", peer_url]);
            command.args(["--initial-advertise-peer-urls", peer_url]);
            command.args(["--initial-cluster", &peers.join(","), "--log-level", "error"]);
            let said = File::create(folder.join(format!("n{member}.stderr")))?;
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(said);
            let mut keeper = command.spawn().context("starting etcd")?;
            let stdout = keeper.stdout.take().context("its output is piped")?;
            let mut first = String::new();
            BufReader::new(stdout).read_line(&mut first).context("asking for etcd's number")?;
            let pid = first.trim().parse().context("reading etcd's number")?;
            cluster.members.push(Member { pid, keeper });
        }
        cluster.listening().await?;
        Ok(cluster)
    }

    /// Returns what it says of its version: `3.4.23`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Returns where clients reach its members.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Returns the processes of its members.
    pub fn processes(&self) -> Vec<u32> {
        self.members.iter().map(|member| member.pid).collect()
    }

    async fn listening(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        for endpoint in &self.endpoints {
            let address = endpoint.trim_start_matches("http://");
            while TcpStream::connect(address).is_err() {
                if Instant::now() >= deadline {
                    bail!("etcd does not listen on {address}{}", tail(self.folder.path()));
                }
                tokio::time::sleep(INTERVAL).await;
            }
        }
        Ok(())
    }
}

impl Drop for EtcdCluster {
    fn drop(&mut self) {
        let pids = self.processes();
        for member in &mut self.members {
            // Its standard input ends with it, and the shell ends etcd.
            drop(member.keeper.stdin.take());
        }
        process::wait_for_all(&pids);
        for member in &mut self.members {
            let _ended = member.keeper.wait();
        }
    }
}

fn version() -> anyhow::Result<String> {
    let output = Command::new("etcd").arg("--version").output();
    let output = output.context("there is no `etcd` on the path to stand beside the protocols")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.lines().find_map(|line| line.strip_prefix("etcd Version: "));
    Ok(version.context("etcd does not say its version")?.trim().to_owned())
}
