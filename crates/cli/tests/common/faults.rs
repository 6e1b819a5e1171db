//! Faults that the nodes of a cluster suffer on request, for clusters that were started with
//! `--allow-faults`.

use std::time::Duration;

use tonic::transport::Endpoint;
use trireme_proto::v1::admin_client::AdminClient;
use trireme_proto::v1::{
    DiskFault, FailedDisk, Lane, LinkFault, LostOnTheWay, SetFaultsRequest, StalledDisk,
    disk_fault, link_fault,
};

use super::cluster::Cluster;
use super::process;

/// How long a node may take to have a fault.
const FAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What becomes of each force of a node's log.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Disk {
    Stall,
    /// It takes so many milliseconds longer.
    Slow(u64),
    Fail,
}

/// Each adds to what the node suffers already.
impl Cluster {
    /// Loses what one node sends to another.
    #[track_caller]
    pub(crate) fn cut_one_way(&self, from: usize, to: usize) {
        self.set_link(from, to, link_fault::Fate::Drop(LostOnTheWay {}));
    }

    /// Loses what two nodes send to each other.
    #[track_caller]
    pub(crate) fn cut(&self, one: usize, other: usize) {
        self.cut_one_way(one, other);
        self.cut_one_way(other, one);
    }

    /// Loses what a node and all others send to each other.
    #[track_caller]
    pub(crate) fn isolate(&self, node: usize) {
        self.others(node).into_iter().for_each(|other| self.cut(node, other));
    }

    /// Loses what one node sends to another on one lane.
    #[track_caller]
    pub(crate) fn cut_lane(&self, from: usize, to: usize, lane: Lane) {
        let (to, lane) = (to as u64, Some(i32::from(lane)));
        self.change(from, |faults| {
            let fate = Some(link_fault::Fate::Drop(LostOnTheWay {}));
            faults.links.retain(|link| (link.to, link.lane) != (to, lane));
            faults.links.push(LinkFault { to, lane, fate });
        });
    }

    /// Has what a node sends to all others leave so many milliseconds later.
    #[track_caller]
    pub(crate) fn delay(&self, node: usize, milliseconds: u64) {
        for other in self.others(node) {
            self.set_link(node, other, link_fault::Fate::DelayMs(milliseconds));
        }
    }

    /// Cuts a node from the coordinator.
    #[track_caller]
    pub(crate) fn cut_coordinator(&self, node: usize) {
        self.change(node, |faults| faults.coordinator_cut = true);
    }

    /// Has a node's log suffer from its disk.
    #[track_caller]
    pub(crate) fn disk(&self, node: usize, disk: Disk) {
        let fault = match disk {
            Disk::Stall => disk_fault::Fault::Stall(StalledDisk {}),
            Disk::Slow(milliseconds) => disk_fault::Fault::SlowMs(milliseconds),
            Disk::Fail => disk_fault::Fault::Fail(FailedDisk {}),
        };
        self.change(node, |faults| faults.disk = Some(DiskFault { fault: Some(fault) }));
    }

    /// Heals all that a node suffers, and the links of the others to it.
    #[track_caller]
    pub(crate) fn heal(&self, node: usize) {
        self.change(node, |faults| *faults = SetFaultsRequest::default());
        for other in self.others(node) {
            self.change(other, |faults| faults.links.retain(|link| link.to != node as u64));
        }
    }

    /// Heals all that running nodes suffer.
    #[track_caller]
    pub(crate) fn heal_all(&self) {
        for node in self.running() {
            self.change(node, |faults| *faults = SetFaultsRequest::default());
        }
    }

    /// Waits until a node that cannot go on has ended by itself.
    #[track_caller]
    pub(crate) fn wait_for_the_end_of(&mut self, node: usize) {
        let mut ended = self.running.remove(&node).expect("the node runs");
        match &mut ended.child {
            Some(child) => drop(child.wait().unwrap()),
            None => process::wait_until_gone(ended.pid),
        }
        self.note_end(node);
    }

    /// Returns the other nodes that run.
    pub(crate) fn others(&self, node: usize) -> Vec<usize> {
        self.running().into_iter().filter(|&other| other != node).collect()
    }

    #[track_caller]
    fn set_link(&self, from: usize, to: usize, fate: link_fault::Fate) {
        let to = to as u64;
        self.change(from, |faults| {
            faults.links.retain(|link| link.to != to);
            faults.links.push(LinkFault { to, lane: None, fate: Some(fate) });
        });
    }

    /// Asks a node for other faults than it has, if they are others.
    #[track_caller]
    fn change(&self, node: usize, change: impl FnOnce(&mut SetFaultsRequest)) {
        let mut all = self.faults.lock().unwrap();
        let faults = all.entry(node).or_default();
        let before = faults.clone();
        change(faults);
        if *faults != before {
            let asked = self.runtime.block_on(ask(&self.address(node), faults.clone()));
            asked.unwrap_or_else(|error| panic!("node {node} cannot have {faults:?}: {error}"));
        }
    }
}

async fn ask(address: &str, faults: SetFaultsRequest) -> Result<(), String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let endpoint = endpoint.connect_timeout(FAULT_TIMEOUT).timeout(FAULT_TIMEOUT);
    let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
    let set = AdminClient::new(channel).set_faults(faults).await;
    set.map(drop).map_err(|error| error.to_string())
}
