//! The points of a log are in the order of docs/log-pointers.md, and those that only grow never go
//! back within one start of a node.

use std::collections::BTreeMap;

use trireme_types::{Lsn, NodeId, Protocol};

use super::Seen;

/// The points of each node that only grow, in its present start.
#[derive(Default)]
pub(super) struct Pointers {
    grown: BTreeMap<NodeId, (u64, [u64; 3])>,
}

impl Pointers {
    pub(super) fn look(&mut self, seen: &Seen<'_>, protocol: Protocol) -> Result<(), String> {
        let it = &seen.status;
        let is_ordered = |low: Lsn, high: Lsn| low.seq <= high.seq;
        let persisted = seen.table.persisted();
        // openraft reports what it applied after it has applied it, and only then as committed.
        let may_be_ahead = protocol == Protocol::Raft;
        let rules = [
            (is_ordered(it.durable, it.last), "what is durable is in the log"),
            (may_be_ahead || is_ordered(it.committed, it.last), "what is committed is in the log"),
            (
                may_be_ahead || is_ordered(it.applied, it.committed),
                "only what is committed is applied",
            ),
            (
                may_be_ahead || is_ordered(it.applied, it.durable),
                "only what is on the disk is applied",
            ),
            (
                is_ordered(it.purged, persisted),
                "the log is given up as far as the table is on disk",
            ),
            (is_ordered(persisted, seen.table.applied()), "the table is on disk as far as applied"),
        ];
        if let Some((_, rule)) = rules.iter().find(|(holds, _)| !holds) {
            return Err(format!("pointers are ordered: {rule}"));
        }
        let now = [it.committed.seq, it.applied.seq, it.epoch];
        let before = self.grown.insert(seen.node, (seen.start, now));
        let names = ["the commit point", "the applied point", "the epoch"];
        if let Some((start, before)) = before
            && start == seen.start
            && let Some(at) = (0..now.len()).find(|at| now[*at] < before[*at])
        {
            return Err(format!(
                "pointers are ordered: {} goes back from {}",
                names[at], before[at]
            ));
        }
        Ok(())
    }
}
