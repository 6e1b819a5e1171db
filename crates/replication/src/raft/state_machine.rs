//! openraft's state machine over a cohort's table.

use std::io;

use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, Snapshot};
use openraft::{OptionalSend, alias};
use trireme_storage::{CohortTable, SnapshotReader, StagedSnapshot, TableError, Tables};
use trireme_types::Lsn;

use super::RaftFaults;
use super::types::{
    LogId, SnapshotMeta, StoredMembership, TypeConfig, decode_membership, log_id, lsn_or_zero,
    to_log,
};
use crate::simulation;

type RaftSnapshot = alias::SnapshotOf<TypeConfig, SnapshotData>;

/// The most entries that are applied as one batch of the table.
const APPLY_ENTRIES_MAX: usize = 256;

/// A snapshot on its way out or in.
pub(super) enum SnapshotData {
    /// The table as of one moment, to be read and sent.
    Outgoing(SnapshotReader),
    /// What another replica sent, whole and verified.
    Incoming(StagedSnapshot),
    /// The table as it is on disk, which is not to be sent.
    OnDisk,
}

/// One cohort's table, as openraft sees it.
#[derive(Clone)]
pub(super) struct RaftTable {
    tables: Tables,
    table: CohortTable,
    faults: RaftFaults,
}

impl RaftTable {
    /// Returns openraft's view of a cohort's table, which is one of the node's `tables`.
    pub(super) fn new(tables: Tables, table: CohortTable) -> Self {
        Self { tables, table, faults: RaftFaults::default() }
    }

    /// Returns it with the mistakes that it is to make.
    pub(super) fn with_faults(self, faults: RaftFaults) -> Self {
        Self { faults, ..self }
    }

    fn membership(&self) -> io::Result<StoredMembership> {
        stored_membership(self.table.protocol_state())
    }

    fn snapshot(&self) -> io::Result<RaftSnapshot> {
        let reader = self.table.snapshot().map_err(io_error)?;
        let header = reader.header();
        let meta = SnapshotMeta {
            last_log_id: log_id(header.applied),
            last_membership: stored_membership(header.protocol.clone())?,
        };
        Ok(Snapshot { meta, snapshot: SnapshotData::Outgoing(reader) })
    }
}

impl RaftStateMachine<TypeConfig> for RaftTable {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((log_id(self.table.applied()), self.membership()?))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(APPLY_ENTRIES_MAX);
        while let Some(chunk) = chunks.next().await {
            let mut entries = Vec::with_capacity(chunk.len());
            let mut responders = Vec::with_capacity(chunk.len());
            for item in chunk {
                let (entry, responder) = item?;
                entries.push(to_log(entry));
                responders.push(responder);
            }
            let applied = match self.table.apply_resident(&entries).map_err(io_error)? {
                Some(applied) => applied,
                // Where it may wait for the disk, the thread's other tasks, heartbeats among them, go
                // on elsewhere.
                None => simulation::in_place(|| self.table.apply(&entries)).map_err(io_error)?,
            };
            for (responder, applied) in responders.into_iter().zip(applied) {
                if let Some(responder) = responder {
                    responder.send(applied.outcomes);
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let SnapshotData::Incoming(staged) = snapshot else {
            return Err(io::Error::other("a snapshot of this replica cannot be installed in it"));
        };
        let (told, found) = (lsn_or_zero(meta.last_log_id), staged.header().applied);
        if told != found {
            return Err(io::Error::other(format!(
                "a snapshot said to be as of {told} is as of {found}"
            )));
        }
        let table = self.table.clone();
        run_blocking(move || table.install(staged)).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<RaftSnapshot>> {
        if self.table.applied() == Lsn::ZERO {
            return Ok(None);
        }
        if self.table.is_sealed() {
            // The rows are others' to change. One that lacks what the log does not hold any more comes to
            // a successor without it; that there is a snapshot, openraft takes for granted.
            //= RANGE-13
            return self.build_snapshot().await.map(Some);
        }
        self.snapshot().map(Some)
    }
}

impl RaftSnapshotBuilder<TypeConfig> for RaftTable {
    type SnapshotData = SnapshotData;

    /// A snapshot is the table itself, as far as it is on disk, because openraft then lets the log go
    /// up to there. What is on disk already needs no flush: the node flushes once for all its
    /// cohorts, and a cohort that is written to has always applied more since.
    async fn build_snapshot(&mut self) -> io::Result<RaftSnapshot> {
        loop {
            let membership = self.table.protocol_state();
            let changed = membership.as_ref().map_or(Lsn::ZERO, |(lsn, _)| *lsn);
            let unflushed = self.faults.purges_unflushed();
            let persisted = if unflushed { self.table.applied() } else { self.table.persisted() };
            let is_empty = persisted == Lsn::ZERO && self.table.applied() > Lsn::ZERO;
            if persisted >= changed && !is_empty {
                let last_membership = stored_membership(membership)?;
                let meta = SnapshotMeta { last_log_id: log_id(persisted), last_membership };
                return Ok(Snapshot { meta, snapshot: SnapshotData::OnDisk });
            }
            let tables = self.tables.clone();
            run_blocking(move || tables.flush()).await?;
        }
    }
}

fn stored_membership(state: Option<(Lsn, bytes::Bytes)>) -> io::Result<StoredMembership> {
    let Some((lsn, bytes)) = state else { return Ok(StoredMembership::default()) };
    Ok(StoredMembership::new(log_id(lsn), decode_membership(&bytes)?))
}

/// Runs work that waits for the disk off the threads that carry messages.
async fn run_blocking<F>(work: F) -> io::Result<()>
where
    F: FnOnce() -> Result<(), TableError> + Send + 'static,
{
    let result = simulation::blocking(work).await.map_err(io::Error::other)?;
    result.map_err(io_error)
}

fn io_error(error: TableError) -> io::Error {
    io::Error::other(error)
}
