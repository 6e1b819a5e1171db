//! What connects the hosts of a cluster: network namespaces, where the machine allows them without
//! privileges, else the loopback interface and the nodes' own fault hooks.
//!
//! With namespaces, every process has a network stack and an address of its own on one bridge, all
//! within a user namespace of this program, so that nothing of it is visible outside and nothing of it
//! is left when the program ends. A host is cut off from another by sending its frames to a hardware
//! address that no host has: packets vanish on the wire, one way, without an error at either end,
//! acknowledgements of TCP included.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use trireme_types::NodeId;

/// The environment variable by which this program knows that it is in namespaces of its own.
const INSIDE: &str = "TRIREME_TESTBED_NAMESPACES";

/// What a program is started by in namespaces of its own.
const UNSHARE: [&str; 5] = ["unshare", "--user", "--map-root-user", "--net", "--mount"];

/// Tries everything that the network is made of.
const PROBE: &str = "mount -t tmpfs tmpfs /run && ip link add probe0 type bridge && \
     ip netns add probe && ip link add probe1 type veth peer name eth0 netns probe && \
     nsenter --net=/run/netns/probe true";

/// The bridge, on which the clients have their address.
const BRIDGE: &str = "trireme0";

/// The hardware address that no host has.
const NOBODY: &str = "02:54:52:00:ff:ff";

/// The most nodes that addresses are there for.
pub(crate) const NODES_MAX: u64 = 100;

const COORDINATOR_NUMBER: u64 = 200;
const CLIENTS_NUMBER: u64 = 254;

/// The port of every process in a namespace, where no other process has any.
const PORT: u16 = 7101;

/// A place in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// The host of a node.
    Node(NodeId),
    /// The coordinator's host.
    Coordinator,
    /// The host of all clients: this program.
    Clients,
}

/// How hosts are connected, and cut off from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// By network namespaces: hosts are really cut off.
    Namespaces,
    /// By the loopback interface: a node that is cut off drops what it would send.
    Loopback,
}

impl Network {
    /// Returns its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Loopback => "loopback",
        }
    }

    /// Has this program run again in namespaces of its own, if it does not yet. Must be called before
    /// anything else is done: the program starts anew. Returns only if it is there, or with the reason
    /// if it cannot be.
    pub fn enter_namespaces() -> Result<(), String> {
        if std::env::var_os(INSIDE).is_some() {
            return Ok(());
        }
        let (unshare, arguments) = (UNSHARE[0], &UNSHARE[1..]);
        let probe = Command::new(unshare).args(arguments).args(["sh", "-c", PROBE]).output();
        match probe {
            Err(error) => return Err(format!("{unshare} cannot be run: {error}")),
            Ok(output) if !output.status.success() => {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(said.lines().next().unwrap_or("it is not permitted").to_owned());
            }
            Ok(_) => {}
        }
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(unshare);
        command.args(arguments).arg("--").arg(program).args(std::env::args_os().skip(1));
        // It returns only if it failed.
        Err(command.env(INSIDE, "1").exec().to_string())
    }
}

impl Host {
    fn number(self) -> u64 {
        match self {
            Self::Node(node) => node.0,
            Self::Coordinator => COORDINATOR_NUMBER,
            Self::Clients => CLIENTS_NUMBER,
        }
    }

    fn ip(self) -> String {
        format!("10.77.0.{}", self.number())
    }

    fn hardware(self) -> String {
        format!("02:54:52:00:00:{:02x}", self.number())
    }

    fn namespace(self) -> String {
        format!("h{}", self.number())
    }

    /// Returns where the host's process listens.
    pub(crate) fn address(self) -> String {
        format!("{}:{PORT}", self.ip())
    }

    /// Returns the interface by which the host reaches others.
    fn interface(self) -> &'static str {
        if self == Self::Clients { BRIDGE } else { "eth0" }
    }

    /// Returns the arguments of `ip` that have it work on the host.
    fn scope(self) -> Vec<String> {
        match self {
            Self::Clients => Vec::new(),
            host => vec!["-n".to_owned(), host.namespace()],
        }
    }
}

/// The hosts of one cluster in namespaces. Dropped, they are gone.
pub(crate) struct Namespaces {
    hosts: Vec<Host>,
    cuts: BTreeSet<(Host, Host)>,
}

impl Namespaces {
    /// Makes the hosts, all of which reach each other.
    pub(crate) fn new(nodes: &[NodeId]) -> anyhow::Result<Self> {
        if nodes.iter().any(|node| node.0 == 0 || node.0 > NODES_MAX) {
            bail!("there are addresses for nodes 1 to {NODES_MAX}");
        }
        let nodes = nodes.iter().copied().map(Host::Node);
        let hosts = nodes.chain([Host::Coordinator, Host::Clients]).collect();
        let network = Self { hosts, cuts: BTreeSet::new() };
        network.make().context("making a network of namespaces")?;
        Ok(network)
    }

    fn make(&self) -> anyhow::Result<()> {
        if ip(&["link", "show", BRIDGE]).is_err() {
            // The names of namespaces are kept there, which others must not see.
            run("mount", ["-t", "tmpfs", "tmpfs", "/run"])?;
            ip(&["link", "set", "lo", "up"])?;
            ip(&["link", "add", BRIDGE, "type", "bridge"])?;
            ip(&["link", "set", BRIDGE, "address", &Host::Clients.hardware(), "up"])?;
            ip(&["addr", "add", &format!("{}/24", Host::Clients.ip()), "dev", BRIDGE])?;
        }
        for host in self.hosts.iter().copied().filter(|host| *host != Host::Clients) {
            let (name, port) = (host.namespace(), format!("v{}", host.number()));
            ip(&["netns", "add", &name])?;
            ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
            ip(&["link", "set", &port, "master", BRIDGE, "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&["-n", &name, "link", "set", "eth0", "address", &host.hardware(), "up"])?;
            ip(&["-n", &name, "addr", "add", &format!("{}/24", host.ip()), "dev", "eth0"])?;
        }
        for from in &self.hosts {
            for to in self.hosts.iter().filter(|to| *to != from) {
                neighbour(*from, *to, &to.hardware())?;
            }
        }
        Ok(())
    }

    /// Has exactly these ways between hosts be cut: what the first would send to the second is lost.
    pub(crate) fn set_cuts(&mut self, cuts: &BTreeSet<(Host, Host)>) -> anyhow::Result<()> {
        for (from, to) in self.cuts.difference(cuts) {
            neighbour(*from, *to, &to.hardware())?;
        }
        for (from, to) in cuts.difference(&self.cuts) {
            neighbour(*from, *to, NOBODY)?;
        }
        self.cuts.clone_from(cuts);
        Ok(())
    }

    /// Returns a command that runs on a host.
    pub(crate) fn command(host: Host, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", host.namespace())).arg("--").arg(program);
        command
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for host in self.hosts.iter().filter(|host| **host != Host::Clients) {
            // What is left goes with this program.
            let _gone = ip(&["netns", "del", &host.namespace()]);
            let _gone = ip(&["link", "del", &format!("v{}", host.number())]);
        }
    }
}

/// Says which hardware address a host sends its frames for another to.
fn neighbour(from: Host, to: Host, hardware: &str) -> anyhow::Result<()> {
    let ip_of_other = to.ip();
    let change = ["neigh", "replace", &ip_of_other, "lladdr", hardware, "dev", from.interface()];
    let mut arguments = from.scope();
    arguments.extend(change.map(str::to_owned));
    arguments.extend(["nud".to_owned(), "permanent".to_owned()]);
    run("ip", arguments)
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    run("ip", arguments)
}

fn run(
    program: &str,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> anyhow::Result<()> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output: io::Result<_> = command.output();
    let output = output.with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
