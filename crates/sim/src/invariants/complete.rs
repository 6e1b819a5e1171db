//! Those who count have what is committed. A leader has all that was committed in epochs before its
//! own: Raft's Leader Completeness (§5.4), which the two protocols of our own promise as well. And in
//! PacificA every replica of the newest configuration has all that is committed, for each of them may
//! be the next primary: the Commit Invariant (§2.1: what is committed anywhere, every replica of the
//! configuration has prepared).

use trireme_replication::Role;
use trireme_types::{CohortConfig, NodeId};

use super::Seen;
use super::committed::Committed;
use super::durable::Durable;

/// Checks that a node that leads has what was committed before its time.
pub(super) fn check_leader(seen: &Seen<'_>, committed: &Committed) -> Result<(), String> {
    if seen.status.role != Role::Leader {
        return Ok(());
    }
    let Some(before) = committed.last_before(seen.status.epoch) else { return Ok(()) };
    let has =
        before.seq <= seen.log.bounds().purged.seq || seen.log.lsn_at(before.seq) == Some(before);
    if has {
        return Ok(());
    }
    Err(format!("a leader has what is committed: {} leads and lacks {before}", seen.node))
}

/// Checks that all replicas of PacificA's newest configuration have what is committed on their disks,
/// those aside that are known to have lost their disk.
pub(super) fn check_config(
    config: &CohortConfig,
    committed: &Committed,
    durable: &Durable,
    lacking: &[NodeId],
) -> Result<(), String> {
    let Some(last) = committed.get(committed.last()).map(|entry| entry.lsn) else { return Ok(()) };
    let counts = |node: &&NodeId| !lacking.contains(node);
    let lacks = config.replicas.iter().filter(counts).find(|node| !durable.has(**node, last));
    match lacks {
        None => Ok(()),
        Some(node) => Err(format!(
            "a configuration has what is committed: {node} lacks {last} and is of {:?}",
            config.replicas
        )),
    }
}
