//! What the driver uses of the node's disk.

use trireme_types::{Lsn, NodeId};

pub(super) use trireme_storage::{
    APPLY_RESIDENT_BYTES_MAX, Applied, CohortLog, CohortTable, IoId, LogError, LogErrorClass,
    LogWrite, StagedSnapshot, TableError,
};

use crate::core::{EpochRuns, Recovered};

/// Reads from a cohort's log and table what a core is made from.
pub(super) fn recover(node: NodeId, log: &CohortLog, table: &CohortTable) -> Recovered {
    Recovered {
        node,
        cohort: table.id(),
        log: epoch_runs(log),
        hard_state: log.hard_state(),
        commit_point: log.commit_point(),
        applied: table.applied(),
        protocol_state: table.protocol_state(),
    }
}

fn epoch_runs(log: &CohortLog) -> EpochRuns {
    let bounds = log.bounds();
    let mut runs = EpochRuns::starting_after(bounds.purged);
    for seq in bounds.purged.seq + 1..=bounds.last.seq {
        let lsn: Lsn = log.lsn_at(seq).expect("nobody changes the log of a replica that starts");
        runs.append(lsn);
    }
    runs
}
