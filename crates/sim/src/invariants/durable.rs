//! What is committed is on enough disks: of a majority in Spinnaker and Raft, of every replica of the
//! newest configuration in PacificA (the Commit Invariant: what the primary has committed, every
//! secondary has prepared). And what a node has reported as durable, it has after a crash.

use std::collections::BTreeMap;

use trireme_storage::CohortLog;
use trireme_types::{CohortConfig, Lsn, NodeId, Protocol};

use super::Seen;

/// What each node's disk holds, whether the node runs or not.
#[derive(Default)]
pub(super) struct Durable {
    disks: BTreeMap<NodeId, DiskLog>,
}

#[derive(Default)]
struct DiskLog {
    /// Everything up to here is in the table.
    purged: u64,
    /// The entries after `purged`.
    lsns: Vec<Lsn>,
}

impl DiskLog {
    fn last(&self) -> u64 {
        self.purged + self.lsns.len() as u64
    }

    fn at(&self, seq: u64) -> Option<Lsn> {
        let at = seq.checked_sub(self.purged + 1)?;
        self.lsns.get(usize::try_from(at).ok()?).copied()
    }

    /// Forgets what the log has dropped, or replaced. Two logs that have one entry in common have the
    /// same before it.
    fn drop_replaced(&mut self, log: &CohortLog) {
        while let Some(lsn) = self.lsns.last()
            && log.lsn_at(lsn.seq) != Some(*lsn)
        {
            self.lsns.pop();
        }
    }

    fn holds(&self, seq: u64, lsn: Lsn) -> bool {
        seq <= self.purged || self.at(seq) == Some(lsn)
    }
}

impl Durable {
    /// Records what a node has on its disk now.
    pub(super) fn look(&mut self, seen: &Seen<'_>) {
        let disk = self.disks.entry(seen.node).or_default();
        let (log, status) = (seen.log, &seen.status);
        let purged = log.bounds().purged.seq;
        if purged > disk.purged {
            let gone = usize::try_from(purged - disk.purged).unwrap_or(usize::MAX);
            disk.lsns.drain(..gone.min(disk.lsns.len()));
            disk.purged = purged;
        }
        disk.drop_replaced(log);
        let from = disk.last() + 1;
        let found = (from..=status.durable.seq).map_while(|seq| log.lsn_at(seq));
        disk.lsns.extend(found);
    }

    pub(super) fn wiped(&mut self, node: NodeId) {
        self.disks.remove(&node);
    }

    pub(super) fn started(&mut self, node: NodeId, log: &CohortLog) -> Result<(), String> {
        let Some(disk) = self.disks.get(&node) else { return Ok(()) };
        let bounds = log.bounds();
        // How far the log was given up, or replaced by a snapshot, may not have been on disk yet.
        for lsn in disk.lsns.iter().filter(|lsn| lsn.seq > bounds.purged.seq) {
            let found = log.lsn_at(lsn.seq);
            if found != Some(*lsn) {
                return Err(format!(
                    "durable is kept: {node} had {lsn} and comes back with {found:?}"
                ));
            }
        }
        Ok(())
    }

    /// Returns true if a node's disk holds an entry, or its table does.
    pub(super) fn has(&self, node: NodeId, lsn: Lsn) -> bool {
        self.disks.get(&node).is_some_and(|disk| disk.holds(lsn.seq, lsn))
    }

    pub(super) fn is_on_enough(
        &self,
        lsn: Lsn,
        protocol: Protocol,
        config: &CohortConfig,
        lacking: &[NodeId],
    ) -> Result<(), String> {
        let holds = |node: &NodeId| self.has(*node, lsn);
        let have: Vec<NodeId> = config.replicas.iter().copied().filter(holds).collect();
        let is_enough = match protocol {
            // One that lost its disk after it had acknowledged counts as one that has it.
            Protocol::Spinnaker | Protocol::Raft => {
                let lost = lacking.iter().filter(|node| !have.contains(node));
                have.len() + lost.count() > config.replicas.len() / 2
            }
            Protocol::Pacifica => {
                let has = |node: &NodeId| have.contains(node) || lacking.contains(node);
                config.replicas.iter().all(has)
            }
        };
        if is_enough {
            return Ok(());
        }
        Err(format!("committed is durable: {lsn} is on the disks of {have:?} of {config:?} alone"))
    }
}
