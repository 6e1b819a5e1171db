//! Faults, which a node suffers if its cluster was started with [`ALLOW`].

use std::time::Duration;

use trireme_types::NodeId;

use super::Cluster;

/// The argument of `up` that lets its nodes be given faults.
pub(crate) const ALLOW: &str = "--allow-faults";

impl Cluster {
    /// Delays all that a node sends to the others.
    pub(crate) async fn delay_all_from(&self, node: NodeId, delay: Duration) -> anyhow::Result<()> {
        let (number, delay) = (node.0.to_string(), format!("{}ms", delay.as_millis()));
        let others: Vec<String> = self
            .addresses
            .keys()
            .filter(|other| **other != node)
            .map(|n| n.0.to_string())
            .collect();
        let mut arguments = vec!["fault", "--node", &number];
        for other in &others {
            arguments.extend(["--to", other]);
        }
        arguments.extend(["--delay", &delay]);
        self.command(&arguments).await.map(drop)
    }

    /// Heals all faults of a node.
    pub(crate) async fn heal(&self, node: NodeId) -> anyhow::Result<()> {
        self.command(&["fault", "--node", &node.0.to_string(), "--heal"]).await.map(drop)
    }
}
