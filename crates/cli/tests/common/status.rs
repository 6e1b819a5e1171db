//! What the nodes say of themselves, asked without the client crate and the command.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tonic::transport::Endpoint;
use trireme_proto::v1::admin_client::AdminClient;
use trireme_proto::v1::{LogStatus, Lsn, NodeStatus, ReplicaStatus, StatusRequest};

use super::cluster::Cluster;
use super::until_ok;
use super::wire::Wire;

const STATUS_TIMEOUT: Duration = Duration::from_secs(3);

/// What every node that runs says of itself, by its number.
#[derive(Debug)]
pub(crate) struct Statuses(pub(crate) BTreeMap<usize, NodeStatus>);

/// One replica, and the node that it is on.
pub(crate) type Replica<'a> = (usize, &'a ReplicaStatus);

impl Statuses {
    pub(crate) async fn ask(nodes: Vec<(usize, String)>) -> Result<Self, String> {
        let mut statuses = BTreeMap::new();
        for (node, address) in nodes {
            let status = ask(&address).await.map_err(|error| format!("node {node}: {error}"))?;
            statuses.insert(node, status);
        }
        Ok(Self(statuses))
    }

    /// Returns what a node says of its log.
    #[track_caller]
    pub(crate) fn log(&self, node: usize) -> LogStatus {
        self.0[&node].log.unwrap()
    }

    /// Returns every cohort that has a replica on a node that was asked.
    pub(crate) fn cohorts(&self) -> BTreeSet<u64> {
        self.0.values().flat_map(|node| &node.replicas).map(|replica| replica.cohort).collect()
    }

    /// Returns the replicas of a cohort.
    pub(crate) fn replicas(&self, cohort: u64) -> Vec<Replica<'_>> {
        let nodes = self.0.iter();
        nodes
            .filter_map(|(&node, status)| {
                let replica = status.replicas.iter().find(|replica| replica.cohort == cohort)?;
                Some((node, replica))
            })
            .collect()
    }

    /// Returns the replica that leads a cohort: of two that believe so, the newer one.
    pub(crate) fn leader(&self, cohort: u64) -> Option<Replica<'_>> {
        let leaders = self.replicas(cohort).into_iter().filter(|(_, r)| r.role == "leader");
        leaders.max_by_key(|(_, replica)| replica.epoch)
    }

    /// Says what a cohort lacks until all its replicas on these nodes have all that their leader
    /// had when it was asked `before`, in their logs and in their tables. What it has now they may
    /// not have yet, where writes go on.
    fn lacks(&self, before: &Self) -> Result<(), String> {
        for cohort in self.cohorts() {
            let no_leader = || format!("cohort {cohort}: no leader");
            let (led_by, leader) = self.leader(cohort).ok_or_else(no_leader)?;
            let (was_led_by, earlier) = before.leader(cohort).ok_or_else(no_leader)?;
            if (was_led_by, earlier.epoch) != (led_by, leader.epoch) {
                return Err(format!("cohort {cohort}: another leader"));
            }
            let last = earlier.last;
            let at = |lsn: Option<Lsn>| lsn.map_or((0, 0), |lsn| (lsn.epoch, lsn.seq));
            for (node, replica) in self.replicas(cohort) {
                let has = [replica.last, replica.applied];
                let lags = has.iter().any(|&has| at(has) < at(last));
                if lags || replica.leader != leader.leader {
                    return Err(format!("cohort {cohort}: node {node} has {has:?} of {last:?}"));
                }
            }
        }
        Ok(())
    }
}

impl Cluster {
    /// Waits until every cohort has a leader, and all replicas on running nodes have and have
    /// applied all that it has.
    #[track_caller]
    pub(crate) fn wait_until_caught_up(&self, patience: Duration) -> Statuses {
        let mut before: Option<Statuses> = None;
        until_ok("every replica has caught up", patience, || {
            let statuses = self.statuses()?;
            let lacks = before
                .as_ref()
                .map_or(Err("asked once".to_owned()), |before| statuses.lacks(before));
            match lacks {
                Ok(()) => Ok(statuses),
                Err(lacks) => {
                    before = Some(statuses);
                    Err(lacks)
                }
            }
        })
    }

    /// Waits until a cohort has a leader on a running node, and returns the node.
    #[track_caller]
    pub(crate) fn wait_for_leader(&self, cohort: u64, patience: Duration) -> usize {
        until_ok("a cohort has a leader", patience, || {
            let statuses = self.statuses()?;
            statuses.leader(cohort).map(|(node, _)| node).ok_or(format!("{statuses:?}"))
        })
    }

    /// Waits until another node than this one leads a cohort, which need not answer, and returns it.
    #[track_caller]
    pub(crate) fn wait_for_another_leader(
        &self,
        cohort: u64,
        than: usize,
        patience: Duration,
    ) -> usize {
        until_ok("another node leads a cohort", patience, || {
            let statuses = self.statuses_of(&self.others(than))?;
            statuses.leader(cohort).map(|(node, _)| node).ok_or(format!("{statuses:?}"))
        })
    }

    /// Waits until a node's replica of a cohort has a role.
    #[track_caller]
    pub(crate) fn wait_for_role(&self, cohort: u64, node: usize, role: &str, patience: Duration) {
        until_ok(&format!("node {node} is a {role}"), patience, || {
            let statuses = self.statuses_of(&[node])?;
            let replicas = statuses.replicas(cohort);
            let is_it = replicas.first().is_some_and(|(_, replica)| replica.role == role);
            is_it.then_some(()).ok_or(format!("{statuses:?}"))
        });
    }

    /// Has one node lead every cohort.
    #[track_caller]
    pub(crate) fn lead_everywhere(&self, node: usize) {
        for cohort in self.statuses().unwrap().cohorts() {
            until_ok("the node leads", Duration::from_secs(30), || {
                let leader = self.wait_for_leader(cohort, Duration::from_secs(20));
                if leader == node {
                    return Ok(());
                }
                self.runtime.block_on(async {
                    let mut wire = Wire::connect(&self.address(leader)).await;
                    Err(format!("asked: {:?}", wire.transfer(cohort, node as u64).await))
                })
            });
        }
    }
}

async fn ask(address: &str) -> Result<NodeStatus, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
    let endpoint = endpoint.connect_timeout(STATUS_TIMEOUT).timeout(STATUS_TIMEOUT);
    let channel = endpoint.connect().await.map_err(|error| error.to_string())?;
    let status = AdminClient::new(channel).status(StatusRequest {}).await;
    Ok(status.map_err(|error| error.to_string())?.into_inner())
}
