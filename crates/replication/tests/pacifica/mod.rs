//! PacificA in scripts: its options, and a configuration manager.
//!
//! ```text
//! cluster nodes=3 [replicas=3] [commit_period=MS] [beacon=MS] [lease=MS] [grace=MS] [min=1] [invited=1] [fault=P1]
//! coordinator step              works off what it was asked, and tells everybody what is new
//! coordinator tell 1            tells node 1 the newest configuration, whatever it was told before
//! coordinator cut 1             loses what node 1 asks, and tells it nothing
//! coordinator mute 1            loses what node 1 asks
//! coordinator deaf 1            tells node 1 nothing
//! coordinator heal 1            ends all three
//! coordinator hold              keeps what it is asked, until `step`
//! coordinator lag 1             keeps from node 1 what is new
//! coordinator pass 1            gives node 1 the oldest of what was kept from it
//! coordinator unlag 1           gives node 1 all of it, in order, and keeps nothing more
//! ```
//!
//! The first `replicas` nodes form the cohort, node 1 is its primary; other nodes are free, and are
//! started as replicas that may join; with `invited` they ask also while none is missing.

mod edges;
mod edges_of_counting;
mod faults;
mod identity;
mod load;
mod random;
mod rules;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use trireme_replication::core::Recovered;
use trireme_replication::pacifica::{Newest, Pacifica, PacificaFaults, PacificaOptions, Proposal};
use trireme_types::{CohortConfig, CohortId, Incarnation, NodeId, Protocol};

use super::script::mistakes::Mistake;
use super::script::{Cluster, ScriptCoordinator, Subject, Told};

impl Subject for Pacifica {
    type Coordinator = Manager;

    fn start(recovered: Recovered, cluster: &Cluster, rejoins: bool) -> Self {
        let least = cluster.options.get("min").map(|least| least.parse().expect("a number"));
        let options = PacificaOptions {
            timing: cluster.timing(),
            rejoins,
            is_invited: cluster.options.contains_key("invited"),
            min_replicas_for_write: least.unwrap_or(1),
            faults: faults(cluster.options.get("fault").map(String::as_str)),
            ..PacificaOptions::new(Incarnation(cluster.starts))
        };
        Self::new(&recovered, options).expect("the options make sense")
    }
}

fn faults(name: Option<&str>) -> PacificaFaults {
    let mut faults = PacificaFaults::default();
    match name {
        None => {}
        Some("P1") => faults.leases_from_receipt = true,
        Some("P2") => faults.lease_of_majority = true,
        Some("P3") => faults.serves_while_removing = true,
        Some("P5") => faults.takes_old_versions = true,
        Some("P6") => faults.adds_without_waiting = true,
        Some("P7") => faults.resumes_its_version = true,
        Some("P8") => faults.drops_its_tail = true,
        Some("P9") => faults.serves_before_reconciling = true,
        Some("P10") => faults.judges_the_minimum_early = true,
        Some(other) => panic!("no fault is called {other}"),
    }
    faults
}

/// The configuration manager of one cohort.
#[derive(Debug, Default)]
pub(crate) struct Manager {
    nodes: Vec<NodeId>,
    /// How many replicas the cluster was asked for with, whatever the configuration says since.
    wanted: usize,
    config: Option<CohortConfig>,
    asked: Vec<(NodeId, Proposal)>,
    /// The nodes that it hears nothing from.
    mute: BTreeSet<NodeId>,
    /// The nodes that hear nothing from it.
    deaf: BTreeSet<NodeId>,
    is_holding: bool,
    mistake: Option<Mistake>,
    /// The version that each node was told last.
    told: BTreeMap<NodeId, u64>,
    lagging: BTreeSet<NodeId>,
    /// What was kept from each node that lags, in order.
    kept: BTreeMap<NodeId, VecDeque<Newest>>,
}

impl ScriptCoordinator<Pacifica> for Manager {
    fn begin(&mut self, cluster: &Cluster) {
        let replicas = cluster.options.get("replicas").map(|r| r.parse().expect("a number"));
        let replicas = replicas.unwrap_or(cluster.nodes.len());
        let config = CohortConfig {
            cohort: CohortId(1),
            version: 1,
            protocol: Protocol::Pacifica,
            replicas: cluster.nodes[..replicas].to_vec(),
            replicas_wanted: replicas,
            incarnations: [].into(),
            origin: None,
        };
        let (nodes, wanted, mistake) = (cluster.nodes.clone(), replicas, cluster.mistake());
        *self = Self { nodes, wanted, mistake, config: Some(config), ..Self::default() };
    }

    fn started(&mut self, node: NodeId) {
        self.told.remove(&node);
        self.kept.remove(&node);
    }

    fn replicas(&self) -> Option<&[NodeId]> {
        self.config.as_ref().map(|config| &config.replicas[..])
    }

    fn replicas_wanted(&self) -> Option<usize> {
        Some(self.wanted)
    }

    fn lists(&self, node: NodeId, incarnation: u64) -> bool {
        self.config().incarnations.get(&node) == Some(&Incarnation(incarnation))
    }

    fn request(&mut self, from: NodeId, request: Proposal) {
        if !self.mute.contains(&from) {
            self.asked.push((from, request));
        }
    }

    fn step(&mut self) -> Told<Pacifica> {
        if self.is_holding {
            return Vec::new();
        }
        self.work()
    }

    fn command(&mut self, words: &[String]) -> Result<Told<Pacifica>, String> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let node = |text: &str| text.parse().map(NodeId).map_err(|_| format!("no node: {text}"));
        match words[..] {
            ["step"] => {
                self.is_holding = false;
                return Ok(self.work());
            }
            ["hold"] => self.is_holding = true,
            ["tell", id] => return Ok(vec![self.tell(node(id)?)]),
            ["cut", id] => {
                self.mute.insert(node(id)?);
                self.deaf.insert(node(id)?);
            }
            ["mute", id] => {
                self.mute.insert(node(id)?);
            }
            ["deaf", id] => {
                self.deaf.insert(node(id)?);
            }
            ["heal", id] => {
                self.mute.remove(&node(id)?);
                self.deaf.remove(&node(id)?);
            }
            ["lag", id] => {
                self.lagging.insert(node(id)?);
            }
            ["pass", id] => {
                let id = node(id)?;
                let config = self.kept.get_mut(&id).and_then(VecDeque::pop_front);
                return Ok(config.map(|config| (id, config)).into_iter().collect());
            }
            ["unlag", id] => {
                let id = node(id)?;
                self.lagging.remove(&id);
                let configs = self.kept.remove(&id).unwrap_or_default();
                return Ok(configs.into_iter().map(|config| (id, config)).collect());
            }
            _ => return Err(format!("the manager does not understand {words:?}")),
        }
        Ok(Vec::new())
    }
}

impl Manager {
    /// Returns the newest configuration.
    pub(crate) const fn config(&self) -> &CohortConfig {
        self.config.as_ref().expect("it has begun")
    }

    /// Returns the configurations that may be the newest when what it was asked is worked off.
    pub(crate) fn possible(&self) -> impl Iterator<Item = &CohortConfig> {
        let next = self.config().version + 1;
        let asked = self.asked.iter().map(|(_, Proposal(proposed))| proposed);
        asked.filter(move |proposed| proposed.version == next).chain(&self.config)
    }

    fn work(&mut self) -> Told<Pacifica> {
        let Some(config) = &mut self.config else { return Vec::new() };
        for (_, Proposal(proposed)) in std::mem::take(&mut self.asked) {
            if proposed.version == config.version + 1 {
                *config = proposed;
                if self.mistake == Some(Mistake::ListsOneMore) {
                    let free = self.nodes.iter().find(|node| !config.replicas.contains(node));
                    config.replicas.extend(free);
                }
            }
        }
        let version = config.version;
        let is_due =
            |node: &&NodeId| self.told.get(*node) != Some(&version) && !self.deaf.contains(*node);
        let due: Vec<_> = self.nodes.iter().filter(is_due).copied().collect();
        let mut passed = Vec::new();
        for node in due {
            let (node, config) = self.tell(node);
            if self.lagging.contains(&node) {
                self.kept.entry(node).or_default().push_back(config);
            } else {
                passed.push((node, config));
            }
        }
        passed
    }

    fn tell(&mut self, node: NodeId) -> (NodeId, Newest) {
        let mut config = self.config().clone();
        if self.mistake == Some(Mistake::EachWins) && config.replicas.contains(&node) {
            config.replicas.sort_by_key(|replica| *replica != node);
        }
        self.told.insert(node, config.version);
        (node, Newest(config))
    }
}
