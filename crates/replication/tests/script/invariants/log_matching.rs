//! The logs of the replicas.

use std::collections::BTreeMap;

use trireme_types::NodeId;

use crate::script::Subject;
use crate::script::node::Node;

/// Two logs that hold the same entry hold the same before it, and an address names one entry.
pub(crate) const LOGS_MATCH: &str = "logs that share an entry share what precedes it";

/// Checks a log against those of all others.
pub(crate) fn check<S: Subject>(id: NodeId, nodes: &BTreeMap<NodeId, Node<S>>) {
    if !S::LOGS_MATCH {
        return;
    }
    let mine = &nodes[&id].disk.memory;
    for (other, node) in nodes.iter().filter(|(other, _)| **other != id) {
        let theirs = &node.disk.memory;
        let mut has_matched = false;
        for (seq, entry) in mine.entries.iter().rev() {
            let Some(their) = theirs.entries.get(seq) else { continue };
            let (lsn, their_lsn) = (entry.lsn, their.lsn);
            assert!(their == entry || lsn != their_lsn, "{LOGS_MATCH}: {id}, {other}: two {lsn}");
            assert!(
                their == entry || !has_matched,
                "{LOGS_MATCH}: {id} has {lsn} and {other} {their_lsn} before what both have"
            );
            has_matched |= their == entry;
        }
    }
}
