//! What a cluster's nodes say of themselves.

use std::fmt::Display;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use trireme_client::{NodeStatus, ReplicaStatus};
use trireme_types::{NodeId, Protocol};

use crate::Cluster;

/// How often the nodes are asked while something is waited for.
const INTERVAL: Duration = Duration::from_millis(20);

/// What the file system type of a folder in memory is numbered as by Linux.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// What the nodes that run say of themselves. Each holds one replica, of the one range.
#[derive(Debug)]
pub struct Statuses(Vec<NodeStatus>);

/// What a figure depends on, as the cluster tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// How the range is replicated.
    pub protocol: Protocol,
    /// What an acknowledged write has survived.
    pub durability: String,
    /// The storage engine.
    pub engine: String,
    /// How many nodes there are.
    pub nodes: usize,
    /// How many ranges the first of them holds a replica of.
    pub ranges: usize,
    /// The nodes' version.
    pub version: String,
    /// Whether the data lies in memory, where nothing is forced to a disk whatever the durability.
    pub in_memory: bool,
}

impl Conditions {
    /// Returns the same for programs.
    pub fn json(&self) -> Value {
        json!({
            "protocol": self.protocol.name(),
            "durability": self.durability,
            "engine": self.engine,
            "nodes": self.nodes,
            "ranges": self.ranges,
            "version": self.version,
            "data_in_memory": self.in_memory,
            "load_shares_machine": true,
        })
    }
}

impl Statuses {
    pub(crate) const fn of(nodes: Vec<NodeStatus>) -> Self {
        Self(nodes)
    }

    /// Returns the replica that leads and its node: of two that believe so, the newer one.
    pub fn leader(&self) -> Option<(NodeId, &ReplicaStatus)> {
        self.replicas()
            .filter(|(_, replica)| replica.role == "leader")
            .max_by_key(|(_, replica)| replica.epoch)
    }

    /// Returns the nodes whose replicas do not lead.
    pub fn followers(&self) -> Vec<NodeId> {
        let leader = self.leader().map(|(node, _)| node);
        self.replicas().map(|(node, _)| node).filter(|node| Some(*node) != leader).collect()
    }

    /// Returns what every node says.
    pub fn nodes(&self) -> &[NodeStatus] {
        &self.0
    }

    /// Returns what one node says.
    pub fn node(&self, node: NodeId) -> Option<&NodeStatus> {
        self.0.iter().find(|status| status.node == node.0)
    }

    /// Returns what the figures of a cluster with this protocol and folder depend on.
    pub(crate) fn conditions(
        &self,
        expected: Protocol,
        folder: &Path,
    ) -> anyhow::Result<Conditions> {
        let first = self.0.first().context("no node runs")?;
        let replica = first.replicas.first().context("the first node has no replica")?;
        let protocol: Protocol = replica.protocol.parse().context("asking for the protocol")?;
        if protocol != expected {
            bail!("the cluster replicates by {protocol}, not by {expected}");
        }
        Ok(Conditions {
            protocol,
            durability: first.durability.clone(),
            engine: first.engine.clone(),
            nodes: self.0.len(),
            ranges: first.replicas.len(),
            version: first.version.clone(),
            in_memory: is_in_memory(folder),
        })
    }

    fn replicas(&self) -> impl Iterator<Item = (NodeId, &ReplicaStatus)> {
        let first = |node: &NodeStatus| NodeId(node.node);
        self.0.iter().filter_map(move |node| Some((first(node), node.replicas.first()?)))
    }

    /// Says what is missing until this many replicas follow one leader.
    pub(crate) fn lacks_members(&self, nodes: usize) -> Result<(), String> {
        let (leader, led) = self.leader().ok_or("nobody leads")?;
        if led.replicas.len() < nodes {
            return Err(format!("{leader} leads {} replicas of {nodes}", led.replicas.len()));
        }
        if self.replicas().count() < nodes {
            return Err(format!("{} replicas of {nodes} are there", self.replicas().count()));
        }
        let follows =
            |replica: &ReplicaStatus| replica.role == "follower" && replica.leader == leader.0;
        match self.replicas().find(|(node, replica)| *node != leader && !follows(replica)) {
            Some((node, replica)) => {
                Err(format!("{node} is a {} of n{}, not of {leader}", replica.role, replica.leader))
            }
            None => Ok(()),
        }
    }

    /// Says which replica has not applied an entry yet.
    pub(crate) fn lacks_entries(&self, upto: u64) -> Result<(), String> {
        let applied = |replica: &ReplicaStatus| replica.applied.unwrap_or_default().seq;
        match self.replicas().find(|(_, replica)| applied(replica) < upto) {
            Some((node, replica)) => {
                Err(format!("{node} has applied entry {} of {upto}", applied(replica)))
            }
            None => Ok(()),
        }
    }
}

impl Cluster {
    /// Asks every node that runs how it is.
    pub async fn statuses(&self) -> anyhow::Result<Statuses> {
        let mut statuses = Vec::new();
        for node in self.running.keys() {
            let asked = self.observer.node_status(self.address(*node)).await;
            statuses.push(asked.with_context(|| format!("asking {node} how it is"))?);
        }
        Ok(Statuses(statuses))
    }

    /// Waits until every node that runs says how it is, whatever it says.
    pub async fn wait_until_answered(&self, patience: Duration) -> anyhow::Result<Statuses> {
        self.wait_for("every node to answer", patience, |_| Ok::<_, String>(())).await
    }

    /// Waits until every node's replica follows one leader and has applied all that the leader
    /// knew to be committed when that came to be so. Writes may go on meanwhile.
    pub async fn wait_until_whole(&self, patience: Duration) -> anyhow::Result<Statuses> {
        let nodes = self.addresses.len();
        let mut upto = None;
        self.wait_for("every replica to have caught up", patience, |statuses| {
            statuses.lacks_members(nodes)?;
            let committed = statuses.leader().and_then(|(_, leader)| leader.committed);
            let upto = *upto.get_or_insert(committed.unwrap_or_default().seq);
            statuses.lacks_entries(upto)
        })
        .await
    }

    /// Waits until every node's replica follows one leader, however far it has come.
    pub async fn wait_until_all_follow(&self, patience: Duration) -> anyhow::Result<Statuses> {
        let nodes = self.addresses.len();
        let lacks = |statuses: &Statuses| statuses.lacks_members(nodes);
        self.wait_for("every replica to follow one leader", patience, lacks).await
    }

    /// Waits until the statuses of the nodes that run lack nothing.
    pub async fn wait_for<E: Display>(
        &self,
        what: &str,
        patience: Duration,
        mut lacks: impl FnMut(&Statuses) -> Result<(), E>,
    ) -> anyhow::Result<Statuses> {
        let deadline = Instant::now() + patience;
        loop {
            let missing = match self.statuses().await {
                Ok(statuses) => match lacks(&statuses) {
                    Ok(()) => return Ok(statuses),
                    Err(missing) => missing.to_string(),
                },
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() >= deadline {
                bail!("waited {patience:?} for {what}: {missing}{}", self.said());
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Waits until another replica leads than in an earlier epoch, and returns how long its
    /// takeover took as it measured that itself; `None` if its protocol measures none.
    pub async fn takeover_after(
        &self,
        epoch: u64,
        patience: Duration,
    ) -> anyhow::Result<Option<Duration>> {
        let statuses = self.wait_for("a new leader", patience, |statuses| {
            let led = statuses.leader().is_some_and(|(_, leader)| leader.epoch > epoch);
            if led { Ok(()) } else { Err("nobody leads") }
        });
        let statuses = statuses.await?;
        let measures = statuses.leader().and_then(|(_, leader)| leader.measures);
        let takeover = measures.and_then(|measures| measures.last_takeover_us);
        Ok(takeover.map(Duration::from_micros))
    }

    /// Returns what the cluster's figures depend on.
    pub async fn conditions(&self) -> anyhow::Result<Conditions> {
        self.statuses().await?.conditions(self.protocol, self.folder())
    }
}

fn is_in_memory(folder: &Path) -> bool {
    rustix::fs::statfs(folder)
        .is_ok_and(|found| u64::try_from(found.f_type).is_ok_and(|kind| kind == TMPFS_MAGIC))
}

#[cfg(test)]
mod tests {
    use trireme_types::Lsn;

    use super::*;

    fn node(node: u64, role: &str, leader: u64, epoch: u64, applied: u64) -> NodeStatus {
        let replica = ReplicaStatus {
            role: role.to_owned(),
            leader,
            epoch,
            replicas: vec![1, 2, 3],
            applied: Some(Lsn::new(epoch, applied).into()),
            ..Default::default()
        };
        NodeStatus { node, replicas: vec![replica], ..Default::default() }
    }

    #[test]
    fn of_two_leaders_the_newer_one_leads() {
        let statuses = Statuses(vec![
            node(1, "leader", 1, 4, 9),
            node(2, "leader", 2, 5, 9),
            node(3, "follower", 2, 5, 9),
        ]);
        assert_eq!(statuses.leader().unwrap().0, NodeId(2));
        assert_eq!(statuses.followers(), [NodeId(1), NodeId(3)]);
        assert!(statuses.lacks_members(3).unwrap_err().contains("n1 is a leader"));
    }

    #[test]
    fn a_cohort_is_whole_when_all_follow_and_have_applied_enough() {
        let whole = || vec![node(1, "leader", 1, 4, 9), node(2, "follower", 1, 4, 8)];
        let two = Statuses(whole());
        assert!(two.lacks_members(3).unwrap_err().contains("2 replicas of 3"));
        let mut learning = whole();
        learning.push(node(3, "learner", 1, 4, 2));
        assert!(Statuses(learning).lacks_members(3).unwrap_err().contains("learner"));
        let mut behind = whole();
        behind.push(node(3, "follower", 1, 4, 2));
        let behind = Statuses(behind);
        assert_eq!(behind.lacks_members(3), Ok(()));
        assert_eq!(behind.lacks_entries(8), Err("n3 has applied entry 2 of 8".to_owned()));
        assert_eq!(behind.lacks_entries(2), Ok(()));
    }
}
