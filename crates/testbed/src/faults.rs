//! Faults, which a node suffers if its cluster was started with [`ALLOW`].

use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::try_join_all;
use trireme_client::faults::{
    DiskFault, Lane, LinkFault, LostOnTheWay, SetFaultsRequest, StalledDisk, disk_fault, link_fault,
};
use trireme_types::NodeId;

use crate::{Cluster, process};

/// The argument of `up` that lets its nodes be given faults.
pub const ALLOW: &str = "--allow-faults";

/// What a leader suffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suffering {
    /// Messages between it and all others are lost, on the data lane alone or on every lane.
    Links {
        /// Which way.
        lost: Lost,
        /// Whether other lanes than the one for data work.
        data_only: bool,
    },
    /// Its log's forces wait.
    StalledDisk,
    /// Its log's forces take so much longer.
    SlowDisk(Duration),
    /// It does not reach the coordinator.
    CoordinatorCut,
}

/// Which messages are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Those that the leader sends.
    FromLeader,
    /// Those that are sent to the leader.
    ToLeader,
    /// All between the leader and the others.
    BothWays,
}

/// A process that stands still. Dropped, it goes on.
#[derive(Debug)]
pub struct Frozen {
    pid: u32,
}

impl Suffering {
    /// Returns the loss of messages between the leader and all others.
    pub const fn links(lost: Lost, data_only: bool) -> Self {
        Self::Links { lost, data_only }
    }
}

impl Frozen {
    /// Has the process go on.
    pub fn thaw(self) -> anyhow::Result<()> {
        process::go_on(self.pid).context("waking a frozen process")
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may have been woken, or killed, already.
        let _gone = process::go_on(self.pid);
    }
}

impl Cluster {
    /// Delays all that a node sends to the others.
    pub async fn delay_all_from(&self, node: NodeId, delay: Duration) -> anyhow::Result<()> {
        let fate = link_fault::Fate::DelayMs(milliseconds(delay)?);
        self.set_faults(node, Self::links(self.others(node), false, fate)).await
    }

    /// Has all messages between two nodes be lost. Both reach the others.
    pub async fn cut_between(&self, one: NodeId, other: NodeId) -> anyhow::Result<()> {
        let fate = link_fault::Fate::Drop(LostOnTheWay {});
        let cut = [(one, other), (other, one)];
        let asked = cut.map(|(at, to)| self.set_faults(at, Self::links(vec![to], false, fate)));
        try_join_all(asked).await.map(drop)
    }

    /// Has the leader suffer, and the others what it takes for that, all at the same time.
    pub async fn suffer(&self, leader: NodeId, suffering: Suffering) -> anyhow::Result<()> {
        let disk = |fault| {
            let disk = Some(DiskFault { fault: Some(fault) });
            vec![(leader, SetFaultsRequest { disk, ..Default::default() })]
        };
        let faults = match suffering {
            Suffering::StalledDisk => disk(disk_fault::Fault::Stall(StalledDisk {})),
            Suffering::SlowDisk(by) => disk(disk_fault::Fault::SlowMs(milliseconds(by)?)),
            Suffering::CoordinatorCut => {
                vec![(leader, SetFaultsRequest { coordinator_cut: true, ..Default::default() })]
            }
            Suffering::Links { lost, data_only } => self.lost(leader, lost, data_only),
        };
        let asked = faults.into_iter().map(|(node, faults)| self.set_faults(node, faults));
        try_join_all(asked).await.map(drop)
    }

    /// Cuts every node that runs off the coordinator.
    pub async fn cut_coordinator(&self) -> anyhow::Result<()> {
        let cut = || SetFaultsRequest { coordinator_cut: true, ..Default::default() };
        let asked = self.running.keys().map(|node| self.set_faults(*node, cut()));
        try_join_all(asked).await.map(drop)
    }

    /// Heals all faults of all nodes that run.
    pub async fn heal_all(&self) -> anyhow::Result<()> {
        let nodes = self.running.keys();
        let healed = nodes.map(|node| self.set_faults(*node, SetFaultsRequest::default()));
        try_join_all(healed).await.map(drop)
    }

    /// Heals all faults of a node.
    pub async fn heal(&self, node: NodeId) -> anyhow::Result<()> {
        self.set_faults(node, SetFaultsRequest::default()).await
    }

    /// Has a node's process stand still.
    pub fn freeze(&mut self, node: NodeId) -> anyhow::Result<Frozen> {
        let folder = self.folder.path().to_owned();
        let Some(process) = self.running.get_mut(&node) else { bail!("{node} does not run") };
        if !process.runs(&folder) {
            bail!("{node} has ended by itself");
        }
        process::stop(process.pid).with_context(|| format!("freezing {node}"))?;
        Ok(Frozen { pid: process.pid })
    }

    fn lost(&self, leader: NodeId, lost: Lost, data_only: bool) -> Vec<(NodeId, SetFaultsRequest)> {
        let fate = link_fault::Fate::Drop(LostOnTheWay {});
        let mut faults = Vec::new();
        if matches!(lost, Lost::FromLeader | Lost::BothWays) {
            faults.push((leader, Self::links(self.others(leader), data_only, fate)));
        }
        if matches!(lost, Lost::ToLeader | Lost::BothWays) {
            let others = self.others(leader).into_iter();
            faults.extend(others.map(|it| (it, Self::links(vec![leader], data_only, fate))));
        }
        faults
    }

    /// Returns the faults of a node whose messages to some others have this fate.
    fn links(to: Vec<NodeId>, data_only: bool, fate: link_fault::Fate) -> SetFaultsRequest {
        let lane = data_only.then_some(i32::from(Lane::Data));
        let links = to.into_iter().map(|to| LinkFault { to: to.0, lane, fate: Some(fate) });
        SetFaultsRequest { links: links.collect(), ..Default::default() }
    }

    fn others(&self, node: NodeId) -> Vec<NodeId> {
        self.addresses.keys().copied().filter(|other| *other != node).collect()
    }

    async fn set_faults(&self, node: NodeId, faults: SetFaultsRequest) -> anyhow::Result<()> {
        let asked = self.observer.set_faults(self.address(node), faults).await;
        asked.with_context(|| format!("asking {node} to suffer"))
    }
}

fn milliseconds(duration: Duration) -> anyhow::Result<u64> {
    u64::try_from(duration.as_millis()).context("nothing takes as long as that")
}
