//! What every core owes its driver.

use trireme_replication::ReplicaStatus;
use trireme_replication::core::Core;
use trireme_types::{Lsn, NodeId};

/// A core keeps its own rules between any two events.
pub(crate) const CORE_IS_VALID: &str = "a core keeps its own rules";

/// Every caller is answered once.
pub(crate) const ANSWERED_ONCE: &str = "every caller is answered once";

/// A core knows what its log holds, and commits and applies nothing else.
pub(crate) const POINTERS_ARE_ORDERED: &str = "applied <= committed <= last";

/// Checks a core that has handled everything, with what it says of itself and where its log ends.
pub(crate) fn check<C: Core>(id: NodeId, core: &C, status: &ReplicaStatus, last: Lsn) {
    if let Err(rule) = core.validate() {
        panic!("{CORE_IS_VALID}: {id}: {rule}");
    }
    let is_ordered = status.applied.seq <= status.committed.seq
        && status.committed.seq <= status.last.seq
        && status.last == last;
    assert!(is_ordered, "{POINTERS_ARE_ORDERED}: {status}");
}
