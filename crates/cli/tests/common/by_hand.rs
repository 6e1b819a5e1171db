//! A cluster whose processes were started one by one, with options that `up` does not take.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use trireme_coordinator::recipes::catalog::{Catalog, ClusterSpec};
use trireme_coordinator::{Coordinator, CoordinatorOptions};
use trireme_types::{ClusterId, CohortConfig, NodeId, Protocol, RangeMap, chained_placement};

use super::cluster::{Cluster, NodeProcess, spread_nothing};
use super::etcd::Etcd;
use super::process::trireme;
use super::seat::Seat;
use super::until_ok;

const NODES: usize = 3;

/// How long the processes may take until they serve.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

impl Cluster {
    /// Starts a coordinator and three nodes with these options, and ranges with borders at these
    /// keys that Raft replicates.
    #[track_caller]
    pub(crate) fn start_by_hand(splits: &[&'static str], options: &[&str]) -> Self {
        Self::start_by_hand_as(Protocol::Raft, splits, options)
    }

    /// Starts a coordinator, which the test may stop and start again, and three nodes with these
    /// options, and ranges with borders at these keys.
    #[track_caller]
    pub(crate) fn start_by_hand_as(
        protocol: Protocol,
        splits: &[&'static str],
        options: &[&str],
    ) -> Self {
        Self::start_by_hand_with_free(0, protocol, splits, options)
    }

    /// Starts what [`Cluster::start_by_hand_as`] does, and so many nodes more, which hold no replica.
    #[track_caller]
    pub(crate) fn start_by_hand_with_free(
        free: usize,
        protocol: Protocol,
        splits: &[&'static str],
        options: &[&str],
    ) -> Self {
        let splits: Vec<Bytes> =
            splits.iter().map(|key| Bytes::from_static(key.as_bytes())).collect();
        Self::start_by_hand_on(NODES + free, protocol, &splits, options)
    }

    /// Starts what [`Cluster::start_by_hand_as`] does, with borders that are made up at run time.
    #[track_caller]
    pub(crate) fn start_by_hand_split(
        protocol: Protocol,
        splits: &[Bytes],
        options: &[&str],
    ) -> Self {
        Self::start_by_hand_on(NODES, protocol, splits, options)
    }

    #[track_caller]
    fn start_by_hand_on(
        nodes: usize,
        protocol: Protocol,
        splits: &[Bytes],
        options: &[&str],
    ) -> Self {
        let mut cluster = Self::new(nodes, Arc::new(Seat::take()));
        cluster.start_coordinator();
        cluster.bootstrap(protocol, splits);
        for node in 1..=nodes {
            cluster.start_new_node(node, options);
        }
        cluster.wait_until_caught_up(READY_TIMEOUT);
        cluster
    }

    /// Starts the coordinator, also again.
    pub(crate) fn start_coordinator(&mut self) {
        if Etcd::is_chosen() {
            return self.start_etcd();
        }
        let listen = format!("127.0.0.1:{}", self.port());
        let mut command = trireme();
        command.arg("coordinator").arg("--data").arg(self.data().join("coordinator"));
        command.args(["--listen", &listen]).stdout(Stdio::null());
        self.up = Some(command.stderr(self.stderr_file("coordinator")).spawn().unwrap());
    }

    /// Kills the coordinator of a cluster that was started by hand.
    pub(crate) fn kill_coordinator(&mut self) {
        drop(self.etcd.take());
        if let Some(mut coordinator) = self.up.take() {
            coordinator.kill().unwrap();
            coordinator.wait().unwrap();
        }
    }

    #[track_caller]
    fn bootstrap(&self, protocol: Protocol, splits: &[Bytes]) {
        let map = RangeMap::from_splits(splits).unwrap();
        let nodes: Vec<NodeId> = (1..).map(NodeId).take(NODES).collect();
        let configs = map.ranges().iter().enumerate().map(|(index, entry)| CohortConfig {
            cohort: entry.cohort,
            version: 1,
            protocol,
            replicas: chained_placement(&nodes, index, NODES).unwrap(),
            replicas_wanted: NODES,
            incarnations: [].into(),
            origin: None,
        });
        let configs = configs.collect();
        let spec = ClusterSpec { cluster: ClusterId(rand::random()), map, configs };
        until_ok("the coordinator has the cluster", READY_TIMEOUT, || {
            let (endpoint, spec) = (self.coordinator(), spec.clone());
            self.runtime.block_on(async {
                let coordinator =
                    Coordinator::connect(CoordinatorOptions::new(vec![endpoint])).await?;
                Catalog::bootstrap(&coordinator, spec).await?;
                coordinator.close().await
            })
        });
    }

    /// Starts a node on an empty folder.
    pub(crate) fn start_new_node(&mut self, node: usize, options: &[&str]) {
        self.faults.get_mut().unwrap().remove(&node);
        let mut command = self.node_command(node);
        command.args(["--id", &node.to_string(), "--listen", &self.address(node)]);
        command.args(["--coordinator", &self.coordinator()]).args(options).stdout(Stdio::null());
        command.stderr(self.stderr_file(&format!("node-{node}")));
        spread_nothing(&mut command);
        let child = command.spawn().unwrap();
        self.running.insert(node, NodeProcess { pid: child.id(), child: Some(child) });
    }
}
