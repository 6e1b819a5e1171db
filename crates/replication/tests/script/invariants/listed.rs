//! Whom a coordinator lists that lists replicas.

use std::collections::BTreeMap;

use trireme_types::NodeId;

use super::Invariants;
use crate::script::Subject;
use crate::script::node::Node;

/// The coordinator lists no replica that lacks something that was acknowledged.
pub(crate) const LISTED_HAVE_ALL: &str = "whoever is listed has what was acknowledged";

/// The coordinator never lists more replicas than the cluster was asked for with.
pub(crate) const NOT_TOO_MANY: &str = "there are never more replicas than are wanted";

impl Invariants {
    /// Checks the number and the content of those listed; `lists` is true of one that is meant as it
    /// is now, with the disk that it has.
    pub(crate) fn listed<S: Subject>(
        &self,
        replicas: &[NodeId],
        wanted: Option<usize>,
        nodes: &BTreeMap<NodeId, Node<S>>,
        lists: impl Fn(&Node<S>) -> bool,
    ) {
        let is_enough = wanted.is_none_or(|wanted| replicas.len() <= wanted);
        assert!(is_enough, "{NOT_TOO_MANY}: {replicas:?}, and {wanted:?} are wanted");
        for entry in self.agreement.upto(self.disks.acknowledged) {
            // The very one that is listed has it now; one that lost its data since had it then.
            let has_it = |node: &Node<S>| {
                if lists(node) { node.keeps(entry) } else { node.has_made_durable(entry) }
            };
            let lacking = replicas.iter().find(|id| !has_it(&nodes[id]));
            assert!(
                lacking.is_none(),
                "{LISTED_HAVE_ALL}: {lacking:?} of {replicas:?} lacks {}",
                entry.lsn
            );
        }
    }
}
