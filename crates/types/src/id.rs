//! Identifiers of nodes, cohorts, clients and clusters.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names one node: a process with one shared log. Chosen by the operator, unique in a cluster,
/// never 0.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct NodeId(pub u64);

/// Names one cohort: the group of replicas that serves one key range. Never 0 and never reused.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct CohortId(pub u64);

/// Names one life of one replica: from when its disk was empty to when what it acknowledged is lost.
/// Drawn at random by whoever opens a replica on an empty disk, so that two never meet; a restart
/// keeps it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// Names one client, which is one scope of request numbers ([`crate::RequestId`]). Chosen at
/// random by the client, so that two never meet.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ClientId(pub u128);

/// Names one cluster. Drawn at random when the cluster is created and written into every data
/// folder, so that a node never joins a cluster that its data does not belong to.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ClusterId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

impl fmt::Display for CohortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "i{}", self.0)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that should have been an identifier and is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not {expected}: '{text}'")]
pub struct ParseIdError {
    expected: &'static str,
    text: String,
}

impl FromStr for NodeId {
    type Err = ParseIdError;

    /// Reads a node id, with or without its leading `n`.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        match text.strip_prefix('n').unwrap_or(text).parse() {
            Ok(id) if id > 0 => Ok(Self(id)),
            _ => Err(ParseIdError { expected: "a node id (1, 2, ...)", text: text.to_owned() }),
        }
    }
}

impl FromStr for ClusterId {
    type Err = ParseIdError;

    /// Reads the 16 hexadecimal digits that `Display` writes.
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        match u64::from_str_radix(text, 16) {
            Ok(id) if text.len() == 16 => Ok(Self(id)),
            _ => Err(ParseIdError { expected: "a cluster id", text: text.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_what_they_print() {
        assert_eq!("n7".parse(), Ok(NodeId(7)));
        assert_eq!("7".parse(), Ok(NodeId(7)));
        assert_eq!(ClusterId(0xab).to_string().parse(), Ok(ClusterId(0xab)));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "0", "n0", "-1", "nn1", "1x"] {
            assert!(text.parse::<NodeId>().is_err(), "{text:?} was taken for a node id");
        }
        for text in ["", "ab", "zzzzzzzzzzzzzzzz", "00000000000000000"] {
            assert!(text.parse::<ClusterId>().is_err(), "{text:?} was taken for a cluster id");
        }
    }
}
