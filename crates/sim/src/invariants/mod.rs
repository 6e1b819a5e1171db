//! What must hold after every event, one file each.

mod acknowledged;
mod committed;
mod complete;
mod durable;
mod leaders;
mod pointers;
mod serving;
mod states;
mod timeline;

use std::collections::BTreeMap;

use trireme_replication::{ReplicaStatus, Role};
use trireme_storage::{CohortLog, CohortTable};
use trireme_types::{CohortConfig, Epoch, Lsn, NodeId, Protocol};

use self::acknowledged::Acknowledged;
use self::committed::Committed;
use self::durable::Durable;
use self::leaders::Leaders;
use self::pointers::Pointers;
use self::serving::Serving;
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
    serving: Serving,
    pub(crate) acknowledged: Acknowledged,
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
            serving: Serving::default(),
            acknowledged: Acknowledged::default(),
            timelines: Timelines::default(),
        }
    }

    /// Hears of a node that has started: what it recovered must include what it had made durable.
    pub(crate) fn started(&mut self, node: NodeId, log: &CohortLog) -> Result<(), String> {
        self.durable.started(node, log)
    }

    /// Checks that what a log holds of what is committed is that, byte for byte.
    pub(crate) fn is_intact(&self, log: &CohortLog) -> Result<(), String> {
        self.committed.is_intact(log)
    }

    /// Hears that a node dies, whose power may have failed: what it has reported as durable is on its
    /// disk, and what its log has dropped by then need not come back.
    pub(crate) fn dying(&mut self, seen: &Seen<'_>) {
        self.durable.look(seen);
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
            // First: a primary of PacificA leads from when it has committed, and what it lacks it has
            // replaced by then.
            complete::check_leader(seen, &self.committed).map_err(failed)?;
            has_more |= self.committed.look(seen).map_err(failed)?;
        }
        if has_more {
            let (protocol, durable) = (self.protocol, &self.durable);
            let judged = self
                .committed
                .on_enough_disks(|lsn| durable.is_on_enough(lsn, protocol, config, lacking));
            judged.map_err(|reason| {
                let all: Vec<_> = nodes.iter().map(|seen| seen.status.to_string()).collect();
                format!("{reason}; seen at {}", all.join(", "))
            })?;
        }
        if self.protocol == Protocol::Pacifica {
            complete::check_config(config, &self.committed, &self.durable, lacking)?;
        }
        for seen in nodes {
            self.states.look(seen, &self.committed)?;
        }
        self.acknowledged.look(&self.states)
    }

    /// Judges that a node's permit to read was valid now, which led in `epoch`.
    pub(crate) fn serves(&mut self, node: NodeId, epoch: Epoch) -> Result<(), String> {
        match self.protocol {
            Protocol::Raft => Ok(()),
            Protocol::Spinnaker | Protocol::Pacifica => self.serving.look(node, epoch),
        }
    }

    /// Judges what can be judged only when all is over and the cluster is well, whose tables have come
    /// to `applied`.
    pub(crate) fn at_the_end(&mut self, applied: u64) -> Result<(), String> {
        if self.committed.last() < applied {
            return Err(format!(
                "all that is committed was looked at: {applied} is applied, and {} was seen last",
                self.committed.last()
            ));
        }
        self.states.as_of(self.committed.last(), &self.committed)?;
        self.acknowledged.look(&self.states)?;
        self.acknowledged.at_the_end()
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
