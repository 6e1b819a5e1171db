//! How a Raft cohort begins: with a membership that its replicas write or find, and a first leader.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use openraft::EmptyNode;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::time::Instant;
use trireme_types::{CohortConfig, NodeId};

use super::RaftOptions;
use super::inbound::RaftHandle;
use super::types::{RaftId, RaftMembership, encode_membership};

/// How long the first replica of a successor waits for votes before it asks again. The others begin at
/// about the same time, and nodes keep what comes for them just before: so only what was lost has to be
/// asked again, and a vote that is on its way would be asked for in vain if this were shorter.
const FIRST_ELECTION_PAUSE: Duration = Duration::from_millis(80);

/// How often it asks at most.
const FIRST_TERMS_MAX: u64 = 20;

/// Returns what a Raft cohort keeps beside its rows whose first members are on these nodes: a
/// membership, for one that does not begin with an empty log.
pub fn first_state(replicas: &[NodeId]) -> Bytes {
    let voters: BTreeSet<RaftId> = replicas.iter().map(|node| RaftId::first(*node)).collect();
    encode_membership(&RaftMembership::new_with_defaults(vec![voters], []))
}

/// Writes the cohort's first membership, unless its log already begins with one. Every member may
/// do so, since all would write the same; the range's base node does it at once, so that it leads
/// at first, and the others only if it does not come.
pub(super) async fn form_cohort(
    raft: RaftHandle,
    id: RaftId,
    config: CohortConfig,
    options: RaftOptions,
) {
    if config.replicas.first() != Some(&id.node()) {
        tokio::time::sleep(options.election_timeout_max * 3).await;
    }
    let members: BTreeMap<RaftId, EmptyNode> =
        config.replicas.iter().map(|node| (RaftId::first(*node), EmptyNode::default())).collect();
    match raft.initialize(members).await {
        Ok(()) => tracing::info!(cohort = %config.cohort, "the cohort was formed"),
        Err(error) => tracing::debug!(cohort = %config.cohort, %error, "the cohort exists"),
    }
}

/// Stands for election at once in a successor that has had no leader yet, and again until it has one:
/// replicas that have not begun yet do not receive the request for their vote. The other replicas stand
/// only after their election timeout.
pub(super) async fn lead_at_first(raft: RaftHandle, options: RaftOptions) {
    if raft.metrics().borrow_watched().current_term > 0 {
        // It ran before.
        return;
    }
    let until = Instant::now() + options.election_timeout_max * 3;
    while Instant::now() < until {
        let metrics = raft.metrics();
        let (term, leader) = {
            let metrics = metrics.borrow_watched();
            (metrics.current_term, metrics.current_leader)
        };
        if leader.is_some() || term > FIRST_TERMS_MAX {
            return;
        }
        if let Err(error) = raft.trigger().elect(false).await {
            return tracing::debug!(%error, "the first election was not begun");
        }
        tokio::time::sleep(FIRST_ELECTION_PAUSE).await;
    }
}
