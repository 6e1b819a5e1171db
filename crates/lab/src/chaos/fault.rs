//! The kinds of faults.

use clap::ValueEnum;
use trireme_testbed::Network;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Fault {
    /// A node is killed, and started again.
    Kill,
    /// All nodes are killed at once, and started again.
    KillAll,
    /// A node stops in order, and is started again.
    Restart,
    /// A node's process stands still.
    Freeze,
    /// Nothing passes between a node and the other nodes.
    CutOff,
    /// Nothing passes between a node and the other nodes, nor between it and the coordinator. Clients
    /// reach it.
    Isolate,
    /// Nothing of the other nodes reaches a node.
    Deaf,
    /// Nothing of a node reaches the other nodes.
    Mute,
    /// Nothing passes between two nodes; both reach the others.
    CutPair,
    /// Every node loses the way to some others, each way for itself.
    CutAtRandom,
    /// Every node reaches only one of the others, the same for all, which does not lead if a leader is
    /// sought.
    QuorumLoss,
    /// The same, and nothing reaches a node any more, the leader if one is sought.
    Constrained,
    /// The nodes stand in a row, and each reaches only its neighbours.
    Chained,
    /// Nothing passes between the clients and a node.
    CutClients,
    /// All that a node sends to others comes late.
    Slow,
    /// A node's log is not forced to its disk meanwhile.
    StallDisk,
    /// A node's disk is slow.
    SlowDisk,
    /// A node's disk fails, which stops the node; it is started again.
    FailDisk,
    /// A node loses all its data, and comes back with none, once in a round. PacificA acknowledges with
    /// as few replicas as its configuration has, so that it happens to a whole cluster only.
    Wipe,
    /// A bit flips in the log of a node that is down, or in what it knows of itself and the cluster. It
    /// must refuse to start with it, and name the file; then it comes back without data, as after a wipe.
    FlipBit,
    /// A bit flips in the tables of a node that is down, which must refuse to start with it, or stop when
    /// it reads there, and name the file; then it comes back without data. Only to a whole cluster.
    FlipTableBit,
    /// Two of three replicas are lost one after the other: a node is killed, another loses its data and
    /// comes back with none, then the leader is killed and the first comes back. No replica has all that was
    /// acknowledged until the leader is back. Only to a whole cluster.
    LoseInTurn,
    /// The coordinator is killed, and started again.
    KillCoordinator,
    /// The coordinator stands still.
    FreezeCoordinator,
    /// Nothing passes between a node and the coordinator.
    CutCoordinator,
    /// The coordinator and the leader are killed at once, and started again.
    KillCoordinatorAndLeader,
    /// The coordinator comes back with the data that it had some time before.
    PutCoordinatorBack,
    /// A bit flips in the data of the coordinator while it is down. It must refuse to start with it, and
    /// name the file; then it comes back empty, and is rebuilt from what the nodes know. Only to a whole
    /// cluster.
    FlipCoordinatorBit,
}

impl Fault {
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Returns true if a node has none of its data afterwards.
    pub(super) const fn loses_data(self) -> bool {
        matches!(self, Self::Wipe | Self::FlipBit | Self::FlipTableBit)
    }

    /// Returns true if it begins with a cluster that is whole and suffers nothing else.
    pub(super) const fn takes_a_whole_cluster(self) -> bool {
        matches!(self, Self::LoseInTurn | Self::FlipTableBit | Self::FlipCoordinatorBit)
    }

    /// Returns true if the network can do it.
    pub(crate) fn is_possible(self, network: Network) -> bool {
        self != Self::CutClients || network == Network::Namespaces
    }
}
