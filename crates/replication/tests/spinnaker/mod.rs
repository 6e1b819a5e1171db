//! Spinnaker in scripts: its options, and a coordinator that holds elections.
//!
//! ```text
//! cluster nodes=3 [replicas=3] [commit_period=MS] [beacon=MS] [lease=MS] [grace=MS] [fault=S1]
//! coordinator step              works off what it was asked, and tells everybody what is new
//! coordinator cut 1             loses what node 1 asks, and tells it nothing
//! coordinator mute 1            loses what node 1 asks
//! coordinator deaf 1            tells node 1 nothing
//! coordinator heal 1            ends all three
//! coordinator lag 1             keeps from node 1 what is new
//! coordinator tell 1            gives node 1 the oldest of what was kept from it
//! coordinator unlag 1           gives node 1 all of it, in order, and keeps nothing more
//! coordinator expire 1          ends the session of node 1, and with it what is bound to it
//! ```
//!
//! The first `replicas` nodes form the cohort; other nodes are invited.
//!
//! A node that starts has a new session; what its old one holds stays until it expires.

mod faults;
mod random;
mod rules;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use trireme_replication::core::Recovered;
use trireme_replication::spinnaker::{
    Candidate, ElectionRequest, ElectionView, Spinnaker, SpinnakerFaults, SpinnakerOptions,
};
use trireme_types::{Epoch, NodeId};

use super::script::mistakes::Mistake;
use super::script::{Cluster, ScriptCoordinator, Subject, Told};

impl Subject for Spinnaker {
    type Coordinator = Elections;

    fn start(recovered: Recovered, cluster: &Cluster, rejoins: bool) -> Self {
        let base = cluster.options.get("base").map(|id| NodeId(id.parse().expect("a number")));
        let members = members(cluster);
        let options = SpinnakerOptions {
            is_invited: !members.contains(&recovered.node),
            base,
            timing: cluster.timing(),
            rejoins,
            faults: faults(cluster.options.get("fault").map(String::as_str)),
            ..SpinnakerOptions::new(members)
        };
        Self::new(&recovered, options).expect("the options make sense")
    }
}

/// Returns the members of the cohort.
fn members(cluster: &Cluster) -> Vec<NodeId> {
    let replicas = cluster.options.get("replicas").map(|it| it.parse().expect("a number"));
    cluster.nodes[..replicas.unwrap_or(cluster.nodes.len())].to_vec()
}

fn faults(name: Option<&str>) -> SpinnakerFaults {
    let mut faults = SpinnakerFaults::default();
    match name {
        None => {}
        Some("S1" | "S16") => faults.commits_older_epochs = true,
        Some("S2") => faults.publishes_without_fence = true,
        Some("S3") => faults.counts_old_candidates = true,
        Some("S5") => faults.reads_without_lease = true,
        Some("S14") => faults.trusts_an_empty_disk = true,
        Some("SPIN-48") => faults.counts_the_invited = true,
        Some(other) => panic!("no fault is called {other}"),
    }
    faults
}

/// A session of a node: the node, and how often it had started.
type Session = (NodeId, u64);

/// The coordinator of one cohort.
#[derive(Debug, Default)]
pub(crate) struct Elections {
    nodes: Vec<NodeId>,
    members: Vec<NodeId>,
    starts: BTreeMap<NodeId, u64>,
    asked: Vec<(NodeId, ElectionRequest)>,
    /// The nodes that it hears nothing from.
    mute: BTreeSet<NodeId>,
    /// The nodes that hear nothing from it.
    deaf: BTreeSet<NodeId>,
    epoch: Epoch,
    leader: Option<(Session, Epoch)>,
    candidates: Vec<(Session, Candidate)>,
    sequence: u64,
    /// Those who stood when the leader was elected.
    stood: BTreeSet<NodeId>,
    mistake: Option<Mistake>,
    /// Something has happened since all were last told what is new.
    may_have_news: bool,
    /// What each node was told last.
    told: BTreeMap<NodeId, ElectionView>,
    lagging: BTreeSet<NodeId>,
    /// What was kept from each node that lags, in order.
    kept: BTreeMap<NodeId, VecDeque<ElectionView>>,
}

impl ScriptCoordinator<Spinnaker> for Elections {
    fn begin(&mut self, cluster: &Cluster) {
        let (nodes, mistake) = (cluster.nodes.clone(), cluster.mistake());
        *self = Self { nodes, members: members(cluster), mistake, ..Self::default() };
    }

    fn members(&self) -> Option<&[NodeId]> {
        Some(&self.members)
    }

    fn started(&mut self, node: NodeId) {
        self.may_have_news = true;
        *self.starts.entry(node).or_default() += 1;
        self.told.remove(&node);
        self.kept.remove(&node);
        self.asked.retain(|(from, _)| *from != node);
    }

    fn request(&mut self, from: NodeId, request: ElectionRequest) {
        if !self.mute.contains(&from) {
            self.asked.push((from, request));
        }
    }

    fn step(&mut self) -> Told<Spinnaker> {
        for (from, request) in std::mem::take(&mut self.asked) {
            self.may_have_news = true;
            self.carry_out(from, request);
        }
        if !std::mem::take(&mut self.may_have_news) {
            return Vec::new();
        }
        let (newest, mut told) = (self.view(), Vec::new());
        for node in &self.nodes {
            let mut view = newest.clone();
            if self.mistake == Some(Mistake::EachWins) && self.stood.contains(node) {
                view.leader = view.leader.map(|(_, epoch)| (*node, epoch));
            }
            let is_news = self.told.get(node) != Some(&view);
            if is_news && !self.deaf.contains(node) {
                self.told.insert(*node, view.clone());
                if self.lagging.contains(node) {
                    self.kept.entry(*node).or_default().push_back(view.clone());
                } else {
                    told.push((*node, view.clone()));
                }
            }
        }
        told
    }

    fn command(&mut self, words: &[String]) -> Result<Told<Spinnaker>, String> {
        self.may_have_news = true;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let node = |text: &str| text.parse().map(NodeId).map_err(|_| format!("no node: {text}"));
        match words[..] {
            ["step"] => return Ok(self.step()),
            ["cut", id] => {
                let id = node(id)?;
                self.mute.insert(id);
                self.deaf.insert(id);
                self.asked.retain(|(from, _)| *from != id);
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
            ["expire", id] => self.expire(node(id)?),
            ["lag", id] => {
                self.lagging.insert(node(id)?);
            }
            ["tell", id] => {
                let id = node(id)?;
                let view = self.kept.get_mut(&id).and_then(VecDeque::pop_front);
                return Ok(view.map(|view| (id, view)).into_iter().collect());
            }
            ["unlag", id] => {
                let id = node(id)?;
                self.lagging.remove(&id);
                let views = self.kept.remove(&id).unwrap_or_default();
                return Ok(views.into_iter().map(|view| (id, view)).collect());
            }
            _ => return Err(format!("the coordinator does not understand {words:?}")),
        }
        Ok(Vec::new())
    }
}

impl Elections {
    fn session(&self, node: NodeId) -> Session {
        (node, self.starts.get(&node).copied().unwrap_or_default())
    }

    fn carry_out(&mut self, from: NodeId, request: ElectionRequest) {
        let session = self.session(from);
        match request {
            ElectionRequest::Stand { round, last } if round == self.epoch + 1 => {
                self.sequence += 1;
                let candidate = Candidate { node: from, round, last, sequence: self.sequence };
                self.candidates.push((session, candidate));
            }
            ElectionRequest::Lead { round } if round == self.epoch + 1 => {
                self.epoch = round;
                self.leader = Some((session, round));
                self.stood = self.candidates.iter().map(|((node, _), _)| *node).collect();
            }
            ElectionRequest::Reclaim { epoch } if epoch == self.epoch && self.leader.is_none() => {
                self.leader = Some((session, epoch));
            }
            _ => {}
        }
    }

    fn expire(&mut self, node: NodeId) {
        self.candidates.retain(|((of, _), _)| *of != node);
        self.leader = self.leader.filter(|((of, _), _)| *of != node);
        // A node that lives on opens another session.
        *self.starts.entry(node).or_default() += 1;
    }

    fn view(&self) -> ElectionView {
        let mut candidates: BTreeMap<(Epoch, NodeId), Candidate> = BTreeMap::new();
        for (_, candidate) in &self.candidates {
            candidates.insert((candidate.round, candidate.node), *candidate);
        }
        ElectionView {
            epoch: self.epoch,
            leader: self.leader.map(|((node, _), epoch)| (node, epoch)),
            candidates: candidates.into_values().collect(),
        }
    }
}
