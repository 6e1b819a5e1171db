//! `trireme fault`.

use std::time::Duration;

use anyhow::Context;
use clap::{ArgGroup, Args, ValueEnum};
use trireme_client::faults::{
    DiskFault, FailedDisk, Lane, LinkFault, LostOnTheWay, SetFaultsRequest, StalledDisk,
    disk_fault, link_fault,
};
use trireme_types::NodeId;

use super::cluster::ClusterArgs;
use super::duration;

/// Arguments of `trireme fault`.
#[derive(Args)]
#[command(
    group = ArgGroup::new("faults").required(true).multiple(true)
        .args(["to", "coordinator", "disk", "panic", "heal"]),
    group = ArgGroup::new("fate").args(["drop", "delay"]),
)]
pub(crate) struct FaultArgs {
    /// Node to inject the faults into.
    #[arg(long, value_name = "N")]
    node: NodeId,
    /// Node whose messages from --node are dropped or delayed; may be given more than once. For a
    /// cut in both directions, run the command for the other node as well.
    #[arg(long, value_name = "N", requires = "fate")]
    to: Vec<NodeId>,
    /// Affect only this lane. [default: all]
    #[arg(long, requires = "to")]
    lane: Option<LaneChoice>,
    /// Drop messages to the nodes of --to.
    #[arg(long, requires = "to")]
    drop: bool,
    /// Delay messages to the nodes of --to, by at most a minute.
    #[arg(long, value_name = "DURATION", requires = "to", value_parser = duration::positive)]
    delay: Option<Duration>,
    /// Drop everything to and from the coordinator, without an error at either end.
    #[arg(long)]
    coordinator: Option<CoordinatorFault>,
    /// Fault of each sync of the log: stall (it waits until healed), slow:50ms (it takes that much
    /// longer) or fail (it fails, and the node stops).
    #[arg(long, value_name = "stall|slow:DURATION|fail", value_parser = read_disk_fault)]
    disk: Option<DiskFault>,
    /// Panic in a task of the node, which ends its process.
    #[arg(long)]
    panic: bool,
    /// End all faults of the node.
    #[arg(long, conflicts_with_all = ["to", "coordinator", "disk", "panic"])]
    heal: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum LaneChoice {
    /// Log entries, their acknowledgements, votes.
    Data,
    /// Heartbeats and beacons.
    Heartbeat,
    /// Snapshots.
    Snapshot,
}

#[derive(Clone, Copy, ValueEnum)]
enum CoordinatorFault {
    /// Cut the connection to it.
    Cut,
}

impl FaultArgs {
    /// Has the node suffer what the arguments say, and nothing else.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let client = cluster.connect().await?;
        let routes = client.routes();
        let address_of = |id: NodeId| {
            let node = routes.nodes.iter().find(|node| node.id == id);
            node.map(|node| &node.address).with_context(|| format!("the cluster has no node {id}"))
        };
        let (node, address) = (self.node, address_of(self.node)?);
        for &to in &self.to {
            // A slip of the finger would be a fault that never shows.
            address_of(to)?;
        }
        let asked = client.set_faults(address, self.request()).await;
        asked.with_context(|| format!("asking {node}"))
    }

    fn request(self) -> SetFaultsRequest {
        let fate = match self.delay {
            Some(delay) if !self.drop => link_fault::Fate::DelayMs(milliseconds(delay)),
            _ => link_fault::Fate::Drop(LostOnTheWay {}),
        };
        let lane = self.lane.map(|lane| i32::from(lane.on_the_wire()));
        let links = self.to.iter().map(|to| LinkFault { to: to.0, lane, fate: Some(fate) });
        SetFaultsRequest {
            links: links.collect(),
            coordinator_cut: self.coordinator.is_some(),
            disk: self.disk,
            panic: self.panic,
        }
    }
}

impl LaneChoice {
    fn on_the_wire(self) -> Lane {
        match self {
            Self::Data => Lane::Data,
            Self::Heartbeat => Lane::Heartbeat,
            Self::Snapshot => Lane::Snapshot,
        }
    }
}

/// Reads `stall`, `slow:DURATION` or `fail`.
fn read_disk_fault(text: &str) -> Result<DiskFault, String> {
    let fault = match text.split_once(':') {
        None if text == "stall" => disk_fault::Fault::Stall(StalledDisk {}),
        None if text == "fail" => disk_fault::Fault::Fail(FailedDisk {}),
        Some(("slow", delay)) => {
            disk_fault::Fault::SlowMs(milliseconds(duration::positive(delay)?))
        }
        _ => return Err("expected stall, slow:DURATION or fail".to_owned()),
    };
    Ok(DiskFault { fault: Some(fault) })
}

/// Returns the milliseconds of a delay, rounded up: a short one is none the less one.
fn milliseconds(delay: Duration) -> u64 {
    u64::try_from(delay.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}
