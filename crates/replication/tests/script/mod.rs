//! Scripts for protocol cores: a cluster of replicas in virtual time, driven line by line.
//!
//! A script sends commands ([`Command`]) and records what every core is told and what it answers,
//! effect by effect. Nothing moves by itself but a disk that is not stalled and a table: messages
//! stay on the network until the script delivers or drops them, and time stands still until it
//! ticks. `UPDATE_GOLDENFILES=1 cargo test` writes the outputs anew; read the diff before keeping
//! it.
//!
//! ```text
//! n1 propose t1 a=1                 an event at n1
//! n1   persist 2: append [1.1]      an effect of it: write number 2 of this core
//! n1   send n2 #1: ...              a message on the network, which `deliver 1` delivers
//! n1   send n2: ... when durable(2) a message that waits for the disk ...
//! n1   leaves n2 #2: ...            ... and goes now
//! n1   reply t1: ...                an answer
//! ```
//!
//! The runner is generic over the protocol ([`Subject`]) and checks after every step what must hold
//! for all of them: its [`invariants`].

mod clocks;
mod command;
mod disk;
pub(crate) mod faults;
mod format;
pub(crate) mod invariants;
pub(crate) mod mistakes;
mod network;
mod node;
pub(crate) mod random;
mod runner;
mod table;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::{Debug, Display};
use std::path::{Path, PathBuf};
use std::time::Duration;

use trireme_replication::core::{Core, Recovered};
use trireme_types::{NodeId, Timing};

pub(crate) use self::command::Command;
use self::mistakes::Mistake;
pub(crate) use self::runner::Runner;

/// A protocol that scripts can run.
pub(crate) trait Subject: Core<Message: Display, Context: Display> {
    /// Whether two logs that hold the same entry hold the same before it.
    const LOGS_MATCH: bool = true;

    /// What stands in for the coordinator.
    type Coordinator: ScriptCoordinator<Self>;

    /// Returns a replica of the cluster as its disk describes it; `rejoins` if the disk was wiped.
    fn start(recovered: Recovered, cluster: &Cluster, rejoins: bool) -> Self;
}

/// How a cluster was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    /// The nodes, 1, 2, ...
    pub(crate) nodes: Vec<NodeId>,
    /// The node that leads at first, where a protocol has it appointed.
    pub(crate) leader: NodeId,
    /// What the protocol's own options say.
    pub(crate) options: BTreeMap<String, String>,
    /// How many replicas were started so far: a number that no other start has.
    pub(crate) starts: u64,
}

impl Cluster {
    /// Returns an option in milliseconds.
    pub(crate) fn milliseconds(&self, name: &str) -> Option<Duration> {
        self.number(name).map(Duration::from_millis)
    }

    /// Returns the number that an option is.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        let value = self.options.get(name)?;
        Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
    }

    /// Returns the mistake that is made, if one is.
    pub(crate) fn mistake(&self) -> Option<Mistake> {
        let name = self.options.get("mistake")?;
        Some(name.parse().unwrap_or_else(|error| panic!("{error}")))
    }

    /// Returns the periods that the options say.
    pub(crate) fn timing(&self) -> Timing {
        let default = Timing::default();
        Timing {
            commit_period: self.milliseconds("commit_period").unwrap_or(default.commit_period),
            beacon_interval: self.milliseconds("beacon").unwrap_or(default.beacon_interval),
            lease: self.milliseconds("lease").unwrap_or(default.lease),
            grace: self.milliseconds("grace").unwrap_or(default.grace),
        }
    }
}

/// A coordinator that a script commands. What it has to say waits until it is stepped.
pub(crate) trait ScriptCoordinator<C: Core>: Default {
    /// Begins anew, for a cluster.
    fn begin(&mut self, _cluster: &Cluster) {}

    /// Opens a session for a node that starts.
    fn started(&mut self, _node: NodeId) {}

    /// Works off what it was asked, and returns what to tell which replicas.
    fn step(&mut self) -> Told<C> {
        Vec::new()
    }

    /// Returns who must have what is acknowledged, if it is not just any majority.
    fn replicas(&self) -> Option<&[NodeId]> {
        None
    }

    /// Returns the members of the cohort, if not all nodes are.
    fn members(&self) -> Option<&[NodeId]> {
        None
    }

    /// Returns how many replicas there may be at the most, where the coordinator lists them.
    fn replicas_wanted(&self) -> Option<usize> {
        None
    }

    /// Returns true if a node's replica is listed, and meant is the one that found its disk empty at
    /// this start.
    fn lists(&self, _node: NodeId, _incarnation: u64) -> bool {
        false
    }

    /// Takes a replica's request.
    fn request(&mut self, from: NodeId, request: C::CoordinatorRequest);

    /// Runs `coordinator WORDS`, and returns what to tell which replicas.
    fn command(&mut self, words: &[String]) -> Result<Told<C>, String>;
}

/// What a coordinator tells whom.
pub(crate) type Told<C> = Vec<(NodeId, <C as Core>::CoordinatorEvent)>;

/// No coordinator, for a protocol that has none.
#[derive(Debug, Default)]
pub(crate) struct NoCoordinator;

impl<C: Core<CoordinatorRequest = Infallible>> ScriptCoordinator<C> for NoCoordinator {
    fn request(&mut self, _from: NodeId, request: Infallible) {
        match request {}
    }

    fn command(&mut self, _words: &[String]) -> Result<Told<C>, String> {
        Err("the protocol has no coordinator".into())
    }
}

/// Runs every script in the folder, each in a cluster of its own, and checks that each says in its
/// first line what it claims.
pub(crate) fn run_scripts<S: Subject>(folder: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts").join(folder);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()))
        .map(|file| file.expect("a folder of scripts can be listed").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} holds no script", folder.display());
    let failed: Vec<_> = paths.iter().filter(|path| !passes::<S>(path)).collect();
    assert!(failed.is_empty(), "scripts that failed: {failed:#?}");
}

fn passes<S: Subject>(path: &Path) -> bool {
    let script = std::fs::read_to_string(path).expect("a script can be read");
    assert!(script.starts_with("# "), "{} does not begin with its claim", path.display());
    let run = || goldenscript::run(&mut Runner::<S>::default(), path);
    // A difference is a panic, which has been printed; the other scripts are still worth running.
    match std::panic::catch_unwind(run) {
        Ok(result) => {
            result.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            true
        }
        Err(_) => false,
    }
}
