//! On how many disks a write is.

use std::collections::BTreeMap;

use trireme_types::{Lsn, NodeId};

use super::agreement::Agreement;
use crate::script::Subject;
use crate::script::node::Node;

/// What was acknowledged is on the disks of all replicas that the coordinator lists, or of a majority:
/// it is never lost while those are not.
pub(crate) const ON_ENOUGH_DISKS: &str = "what was acknowledged is on enough disks";

/// A write that its caller is to be told of is committed on as many disks as writes need.
pub(crate) const ON_THE_LEAST_DISKS: &str = "a write is on as many disks as writes need";

/// How far writes were acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    /// The newest sequence that was.
    pub(super) acknowledged: u64,
}

impl Disks {
    /// Records that a replica acknowledges the entry there, which says of all before that they are
    /// committed: on the disks of all `replicas`, or if it does not go by those, of a majority of the members,
    /// which all nodes are unless they are named.
    pub(crate) fn acknowledged<S: Subject>(
        &mut self,
        id: NodeId,
        lsn: Lsn,
        agreement: &Agreement,
        nodes: &BTreeMap<NodeId, Node<S>>,
        (replicas, members): (Option<&[NodeId]>, Option<&[NodeId]>),
    ) {
        self.acknowledged = self.acknowledged.max(lsn.seq);
        for entry in agreement.upto(lsn.seq) {
            let has_it = |node: &NodeId| nodes[node].has_made_durable(entry);
            let is_enough = match replicas {
                Some(replicas) => replicas.iter().all(has_it),
                None => {
                    let is_member = |node: &&NodeId| members.is_none_or(|all| all.contains(node));
                    let members: Vec<_> = nodes.keys().filter(is_member).collect();
                    members.iter().filter(|node| has_it(node)).count() > members.len() / 2
                }
            };
            assert!(is_enough, "{ON_ENOUGH_DISKS}: {id} answers {lsn}, not {}", entry.lsn);
        }
    }

    /// Checks an entry whose caller is to be answered with what becomes of it, when that is decided:
    /// it counts only where it is at that moment (PAC-8).
    pub(crate) fn has_least<S: Subject>(
        id: NodeId,
        lsn: Lsn,
        least: usize,
        nodes: &BTreeMap<NodeId, Node<S>>,
    ) {
        let Some(entry) = nodes[&id].disk.memory.entries.get(&lsn.seq) else { return };
        let disks = nodes.values().filter(|node| node.has_made_durable(entry)).count();
        assert!(disks >= least, "{ON_THE_LEAST_DISKS}: {id} commits {lsn} on {disks} of {least}");
    }
}
