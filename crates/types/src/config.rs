//! Who is in a cohort, and the choices that a cluster is started with.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{CohortId, Incarnation, NodeId, Origin};

/// A replication protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Paxos-style log replication with election through the coordinator.
    Spinnaker,
    /// Raft.
    Raft,
    /// Primary-backup with leases and a configuration manager.
    Pacifica,
}

/// What a read asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// The latest acknowledged write, whoever answers.
    #[default]
    Strong,
    /// The committed state of the replica that answers, which may be old; the answer says how old.
    Timeline,
}

/// What an acknowledged write has survived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Each replica that counts has forced it to disk: it survives a power cut of all nodes.
    #[default]
    Fsync,
    /// Each replica that counts has handed it to its operating system: it survives the death of
    /// every process, not a power cut.
    Os,
    /// Each replica that counts has it in memory: it survives as long as enough processes do.
    Memory,
}

/// A storage engine for the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// A log-structured merge tree (the crate lsm-tree).
    #[default]
    Lsm,
    /// The crate sled.
    Sled,
}

/// A name that stands for none of the choices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} '{name}': expected {expected}")]
pub struct UnknownName {
    what: &'static str,
    name: String,
    expected: &'static str,
}

/// Gives a choice the names that flags, files and output use for it.
macro_rules! named {
    ($type:ident, $what:literal, $expected:literal, $($variant:ident = $name:literal),+) => {
        impl $type {
            /// Returns the name that flags, files and output use.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),+
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $type {
            type Err = UnknownName;

            fn from_str(name: &str) -> Result<Self, UnknownName> {
                match name {
                    $($name => Ok(Self::$variant),)+
                    _ => Err(UnknownName {
                        what: $what,
                        name: name.to_owned(),
                        expected: $expected,
                    }),
                }
            }
        }
    };
}

named!(
    Protocol,
    "protocol",
    "spinnaker, raft or pacifica",
    Spinnaker = "spinnaker",
    Raft = "raft",
    Pacifica = "pacifica"
);
named!(Consistency, "consistency", "strong or timeline", Strong = "strong", Timeline = "timeline");
named!(
    Durability,
    "durability",
    "fsync, os or memory",
    Fsync = "fsync",
    Os = "os",
    Memory = "memory"
);
named!(Engine, "engine", "lsm or sled", Lsm = "lsm", Sled = "sled");

/// Who is in a cohort, and by which protocol they replicate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CohortConfig {
    /// The cohort.
    pub cohort: CohortId,
    /// Rises by one with every change, each made by compare-and-set on this number.
    pub version: u64,
    /// The protocol that the replicas speak.
    pub protocol: Protocol,
    /// The nodes that hold a replica. A new cohort's begin with the range's base node; in PacificA
    /// the first is the primary.
    pub replicas: Vec<NodeId>,
    /// How many replicas there should be, where fewer are listed because some were removed (M52);
    /// 0 in what was written before configurations could shrink, and then as many as are listed.
    #[serde(default)]
    pub replicas_wanted: usize,
    /// Which incarnation of each replica is meant, where the protocol asks for it (PacificA): another
    /// one of the same node has not what the listed one acknowledged. None is known of the replicas
    /// of a first version until another version is proposed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub incarnations: BTreeMap<NodeId, Incarnation>,
    /// The cohort that this one succeeds, if it succeeds one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

impl CohortConfig {
    /// Returns how many replicas there should be.
    pub const fn replicas_wanted(&self) -> usize {
        match self.replicas_wanted {
            0 => self.replicas.len(),
            wanted => wanted,
        }
    }

    /// Returns how many replicas are missing.
    pub fn replicas_missing(&self) -> usize {
        self.replicas_wanted().saturating_sub(self.replicas.len())
    }
}

/// A placement that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// No replica at all.
    #[error("the replication factor must be at least 1")]
    NoReplica,
    /// Fewer nodes than replicas.
    #[error("a replication factor of {factor} needs as many nodes; there are {nodes}")]
    TooFewNodes {
        /// The replicas that each range should have.
        factor: usize,
        /// The nodes that there are.
        nodes: usize,
    },
}

/// Places the `index`-th range (from 0) by chained declustering: on its base node and on the next
/// ones, around the ring of `nodes` (Spinnaker §4, figure 2; M8).
pub fn chained_placement(
    nodes: &[NodeId],
    index: usize,
    factor: usize,
) -> Result<Vec<NodeId>, PlacementError> {
    if factor == 0 {
        return Err(PlacementError::NoReplica);
    }
    if nodes.len() < factor {
        return Err(PlacementError::TooFewNodes { factor, nodes: nodes.len() });
    }
    Ok((0..factor).map(|step| nodes[(index + step) % nodes.len()]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_what_they_print() {
        for protocol in [Protocol::Spinnaker, Protocol::Raft, Protocol::Pacifica] {
            assert_eq!(protocol.name().parse(), Ok(protocol));
        }
        let unknown = "paxos".parse::<Protocol>().unwrap_err().to_string();
        assert_eq!(unknown, "unknown protocol 'paxos': expected spinnaker, raft or pacifica");
    }

    /// M8: five nodes, three replicas: each node is in exactly three cohorts, as in the paper's
    /// figure 2; five replicas work too.
    #[test]
    fn chained_placement_puts_each_node_in_as_many_cohorts_as_there_are_replicas() {
        let nodes: Vec<NodeId> = (1..=5).map(NodeId).collect();
        for factor in [1, 3, 5] {
            let cohorts: Vec<_> =
                (0..5).map(|i| chained_placement(&nodes, i, factor).unwrap()).collect();
            for node in &nodes {
                assert_eq!(cohorts.iter().filter(|c| c.contains(node)).count(), factor);
            }
        }
        let last = chained_placement(&nodes, 4, 3).unwrap();
        assert_eq!(last, [NodeId(5), NodeId(1), NodeId(2)]);
    }

    /// What was written before a configuration named incarnations reads as one that knows none.
    #[test]
    fn a_configuration_without_incarnations_reads_and_is_written_as_before() {
        let text = r#"{"cohort":1,"version":3,"protocol":"pacifica","replicas":[2,1]}"#;
        let config: CohortConfig = serde_json::from_str(text).unwrap();
        assert_eq!((config.replicas_wanted(), config.replicas_missing()), (2, 0));
        assert!(config.incarnations.is_empty());
        assert!(!serde_json::to_string(&config).unwrap().contains("incarnations"));
        let incarnations = [(NodeId(2), Incarnation(u64::MAX))].into();
        let config = CohortConfig { incarnations, ..config };
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<CohortConfig>(&text).unwrap(), config);
    }

    #[test]
    fn impossible_placements_are_refused() {
        let nodes = [NodeId(1), NodeId(2)];
        assert_eq!(chained_placement(&nodes, 0, 0), Err(PlacementError::NoReplica));
        let refused = PlacementError::TooFewNodes { factor: 3, nodes: 2 };
        assert_eq!(chained_placement(&nodes, 0, 3), Err(refused));
    }
}
