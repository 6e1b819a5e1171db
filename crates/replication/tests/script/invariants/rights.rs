//! The rights to read that rest on leases.

use std::collections::BTreeMap;

use trireme_replication::core::Moment;
use trireme_types::{Lsn, NodeId};

use crate::script::Subject;
use crate::script::node::Node;

/// No replica acknowledges a write while another may still read without it (S5).
pub(crate) const READS_END_FIRST: &str = "a right to read ends before another leader answers";

/// At any moment one replica at most has a right to read.
pub(crate) const ONE_READER: &str = "one replica may read at a time";

/// Until when a replica may give out what it reads.
#[derive(Debug, Default)]
pub(crate) struct Rights(BTreeMap<NodeId, Moment>);

impl Rights {
    /// Records that a replica may read until then.
    pub(crate) fn may_read(&mut self, id: NodeId, until: Option<Moment>, now: Moment) {
        let other = self.0.iter().find(|(other, until)| **other != id && **until > now);
        if let Some((other, until)) = other {
            panic!("{ONE_READER}: {id} at {now}, and {other} until {until}");
        }
        self.0.insert(id, until.unwrap_or(Moment::FAR));
    }

    /// Records that a replica reads no more.
    pub(crate) fn reads_no_more(&mut self, id: NodeId) {
        self.0.remove(&id);
    }

    /// Checks those of others when a replica acknowledges a write.
    pub(crate) fn acknowledged<S: Subject>(
        &self,
        id: NodeId,
        lsn: Lsn,
        now: Moment,
        nodes: &BTreeMap<NodeId, Node<S>>,
    ) {
        for (reader, until) in &self.0 {
            // An answer may be late, and the write be long in the reader's table.
            let misses_it = nodes[reader].table.applied.seq < lsn.seq;
            assert!(
                *reader == id || *until <= now || !misses_it,
                "{READS_END_FIRST}: {id} answers {lsn} at {now}, and {reader} may read until {until}"
            );
        }
    }
}
