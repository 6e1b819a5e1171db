//! What a benchmark's figures depend on, as the cluster reports it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::bail;
use trireme_client::{Client, NodeStatus};

use crate::status;

/// The cluster that was loaded.
pub(super) struct Surroundings {
    pub(super) nodes: usize,
    pub(super) ranges: usize,
    /// The numbers of replicas that ranges have: one, unless they differ.
    pub(super) replicas: BTreeSet<usize>,
    pub(super) protocols: BTreeSet<String>,
    pub(super) engines: BTreeSet<String>,
    pub(super) durabilities: BTreeSet<String>,
    /// Nodes that could not be asked.
    pub(super) unreachable: usize,
    /// Whether the load runs on the machine that all nodes run on.
    pub(super) shares_machine: bool,
}

impl Surroundings {
    /// Asks the cluster. Fails if no node reports its durability, without which no figure means
    /// anything.
    pub(super) async fn of(client: &Client, endpoints: &[String]) -> anyhow::Result<Self> {
        let routes = client.routes();
        let reports = status::ask_nodes(client).await;
        let answers = || reports.iter().filter_map(|report| report.status.as_ref().ok());
        let all = |part: fn(&NodeStatus) -> &String| answers().map(part).cloned().collect();
        if answers().next().is_none() {
            bail!("no node says how durable its writes are");
        }
        let addresses = routes.nodes.iter().map(|node| &node.address).chain(endpoints);
        Ok(Self {
            nodes: routes.nodes.len(),
            ranges: routes.ranges.len(),
            replicas: routes.ranges.iter().map(|route| route.replicas.len()).collect(),
            protocols: routes.ranges.iter().map(|route| route.protocol.clone()).collect(),
            engines: all(|status| &status.engine),
            durabilities: all(|status| &status.durability),
            unreachable: reports.len() - answers().count(),
            shares_machine: addresses.into_iter().all(|address| is_loopback(address)),
        })
    }
}

/// Returns true if an address, `host:port`, is one that a machine reaches itself by.
fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_are_known() {
        for address in ["127.0.0.1:7101", "127.9.9.9:1", "[::1]:7101", "localhost:7101"] {
            assert!(is_loopback(address), "{address}");
        }
        for address in ["10.0.0.1:7101", "[fe80::1]:7101", "n1:7101", "127.0.0.1.example:1"] {
            assert!(!is_loopback(address), "{address}");
        }
    }
}
