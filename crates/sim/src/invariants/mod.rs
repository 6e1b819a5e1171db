//! What must hold after every event, one file each.

mod committed;
mod durable;
mod leaders;
mod pointers;
mod states;
mod timeline;

use std::collections::BTreeMap;

use trireme_replication::{ReplicaStatus, Role};
use trireme_storage::{CohortLog, CohortTable};
use trireme_types::{CohortConfig, Lsn, NodeId, Protocol};

use self::committed::Committed;
use self::durable::Durable;
use self::leaders::Leaders;
use self::pointers::Pointers;
use self::states::States;

pub(crate) use self::timeline::{TimelineRead, Timelines};

/// A node as it is now.
pub(crate) struct Seen<'a> {
    pub(crate) node: NodeId,
    pub(crate) start: u64,
    pub(crate) status: ReplicaStatus,
    pub(crate) log: &'a CohortLog,
    pub(crate) table: &'a CohortTable,
}

/// What of a node's status an observation goes by.
type Known = (u64, Role, u64, [Lsn; 5]);

/// Looks at every node after every event.
pub(crate) struct Observer {
    protocol: Protocol,
    known: BTreeMap<NodeId, Known>,
    leaders: Leaders,
    pointers: Pointers,
    committed: Committed,
    durable: Durable,
    states: States,
    pub(crate) timelines: Timelines,
}

impl Observer {
    pub(crate) fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            known: BTreeMap::new(),
            leaders: Leaders::default(),
            pointers: Pointers::default(),
            committed: Committed::default(),
            durable: Durable::default(),
            states: States::default(),
            timelines: Timelines::default(),
        }
    }

    /// Hears of a node that has started: what it recovered must include what it had made durable.
    pub(crate) fn started(&mut self, node: NodeId, log: &CohortLog) -> Result<(), String> {
        self.durable.started(node, log)
    }

    /// Hears that a node dies: what its log has dropped by then need not come back.
    pub(crate) fn dying(&mut self, node: NodeId, log: &CohortLog) {
        self.durable.drop_replaced(node, log);
    }

    /// Hears that a node has lost its disk.
    pub(crate) fn wiped(&mut self, node: NodeId) {
        self.durable.wiped(node);
    }

    /// Looks at the nodes that run.
    pub(crate) fn look(
        &mut self,
        nodes: &[Seen<'_>],
        config: &CohortConfig,
        lacking: &[NodeId],
    ) -> Result<(), String> {
        let mut has_more = false;
        for seen in nodes {
            let it = &seen.status;
            let points = [it.last, it.durable, it.committed, it.applied, it.purged];
            let known = (seen.start, it.role, it.epoch, points);
            if self.known.insert(seen.node, known) == Some(known) {
                continue;
            }
            let failed = |reason: String| format!("{reason}; seen at {it}");
            self.leaders.look(seen).map_err(failed)?;
            self.pointers.look(seen, self.protocol).map_err(failed)?;
            self.durable.look(seen);
            has_more |= self.committed.look(seen).map_err(failed)?;
        }
        if has_more {
            let (protocol, durable) = (self.protocol, &self.durable);
            self.committed.on_enough_disks(|seq, lsn| {
                durable.is_on_enough((seq, lsn), protocol, config, lacking)
            })?;
        }
        for seen in nodes {
            self.states.look(seen, &self.committed)?;
        }
        Ok(())
    }

    /// Returns how far anything is known to be committed.
    pub(crate) fn committed(&self) -> u64 {
        self.committed.last()
    }

    /// Judges a timeline read.
    pub(crate) fn timeline(&mut self, read: &TimelineRead) -> Result<(), String> {
        self.timelines.judge(read, &mut self.states, &self.committed)
    }

    /// Returns how many leaders there were.
    pub(crate) fn leads(&self) -> u64 {
        self.leaders.count()
    }
}
