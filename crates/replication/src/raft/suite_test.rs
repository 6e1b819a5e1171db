//! openraft's own conformance suite for storage, on the shared log and the tables.
//!
//! Many of the suite's tests begin their log at index 1, which no Raft log does: its first entry,
//! the membership that forms the cohort, has index 0, and a log that left out its first entries
//! would have the hole that the storage contract forbids. [`SuiteLog`] renumbers such a log so that
//! what reaches the store begins at 0.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::{Stream, StreamExt};
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogReader, RaftLogStorage, RaftStateMachine,
};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{OptionalSend, StorageError};
use tempfile::TempDir;
use trireme_storage::fs::MemFs;
use trireme_storage::{LogIdentity, LogOptions, SharedLog, SnapshotReceiver, TableOptions, Tables};
use trireme_types::{
    ClusterId, CohortId, CommandBatch, Engine, Entry, EntryKind, KeyRange, Lsn, NodeId, Seal,
};

use super::log_store::RaftLogStore;
use super::state_machine::{RaftTable, SnapshotData};
use super::types::{LogId, RaftEntry, SnapshotMeta, StoredMembership, TypeConfig, Vote};

/// A store whose index 0 is the first index that a test appends at.
#[derive(Clone)]
struct SuiteLog {
    store: RaftLogStore,
    first: Arc<AtomicU64>,
}

impl SuiteLog {
    fn first(&self) -> u64 {
        self.first.load(Ordering::SeqCst)
    }

    fn inward(&self, id: LogId) -> LogId {
        LogId { index: id.index - self.first(), ..id }
    }

    fn outward(&self, id: LogId) -> LogId {
        LogId { index: id.index + self.first(), ..id }
    }

    fn entry_outward(&self, entry: RaftEntry) -> RaftEntry {
        RaftEntry { log_id: self.outward(entry.log_id), ..entry }
    }

    fn range_inward(&self, range: &impl RangeBounds<u64>) -> (Bound<u64>, Bound<u64>) {
        let first = self.first();
        let inward = |bound: Bound<&u64>| bound.map(|index| index.saturating_sub(first));
        (inward(range.start_bound()), inward(range.end_bound()))
    }
}

impl RaftLogReader<TypeConfig> for SuiteLog {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<RaftEntry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let entries = self.store.try_get_log_entries(self.range_inward(&range)).await?;
        Ok(entries.into_iter().map(|entry| self.entry_outward(entry)).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.store.read_vote().await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<RaftEntry>> {
        let first = self.first();
        let (start, end) = (start.saturating_sub(first), end.saturating_sub(first));
        let entries = self.store.limited_get_log_entries(start, end).await?;
        Ok(entries.into_iter().map(|entry| self.entry_outward(entry)).collect())
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<RaftEntry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (this, range) = (self.clone(), self.range_inward(&range));
        let entries = self.store.entries_stream(range).await;
        entries.map(move |entry| entry.map(|entry| this.entry_outward(entry)))
    }
}

impl RaftLogStorage<TypeConfig> for SuiteLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.store.get_log_state().await?;
        Ok(LogState {
            last_purged_log_id: state.last_purged_log_id.map(|id| self.outward(id)),
            last_log_id: state.last_log_id.map(|id| self.outward(id)),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.store.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.store.save_committed(committed.map(|id| self.inward(id))).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.store.read_committed().await?.map(|id| self.outward(id)))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut entries: Vec<_> = entries.into_iter().collect();
        if self.store.get_log_state().await?.last_log_id.is_none()
            && let Some(entry) = entries.first()
        {
            self.first.store(entry.log_id.index, Ordering::SeqCst);
        }
        for entry in &mut entries {
            entry.log_id = self.inward(entry.log_id);
        }
        self.store.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.store.truncate_after(last.map(|id| self.inward(id))).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        if upto.index < self.first() {
            // Nothing of the log is as old as that.
            return Ok(());
        }
        self.store.purge(self.inward(upto)).await
    }
}

/// A table that takes a snapshot straight from another one, by the way that it takes over the
/// network: chunk by chunk.
struct SuiteTable {
    table: RaftTable,
    incoming: PathBuf,
}

impl RaftStateMachine<TypeConfig> for SuiteTable {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = RaftTable;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.table.applied_state().await
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        self.table.apply(entries).await
    }

    async fn get_snapshot_builder(&mut self) -> RaftTable {
        self.table.get_snapshot_builder().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let SnapshotData::Outgoing(mut reader) = snapshot else { panic!("not of this suite") };
        let mut receiver = SnapshotReceiver::new(&self.incoming).unwrap();
        while let Some(chunk) = reader.next_chunk().unwrap() {
            receiver.push(&chunk).unwrap();
        }
        let staged = SnapshotData::Incoming(receiver.finish().unwrap());
        self.table.install_snapshot(meta, staged).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<openraft::alias::SnapshotOf<TypeConfig, SnapshotData>>> {
        self.table.get_current_snapshot().await
    }
}

struct Builder(Engine);

/// Keeps what a store stands on for as long as a test uses it.
struct Guard {
    _log: SharedLog,
    _tables: Tables,
    _folder: TempDir,
}

impl StoreBuilder<TypeConfig, SuiteLog, SuiteTable, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, SuiteLog, SuiteTable), StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().unwrap();
        let identity = LogIdentity { cluster: ClusterId(1), node: NodeId(1) };
        let fs = Arc::new(MemFs::new());
        let log = SharedLog::open(fs, Path::new("/log"), identity, LogOptions::default()).unwrap();
        let options = TableOptions { engine: self.0, ..TableOptions::default() };
        let tables = Tables::open(folder.path(), options).unwrap();
        let table = tables.cohort(CohortId(1), KeyRange::all()).unwrap();
        let store = RaftLogStore::new(log.cohort(CohortId(1)), 0);
        let machine = SuiteTable {
            table: RaftTable::new(tables.clone(), table),
            incoming: folder.path().to_owned(),
        };
        let log_store = SuiteLog { store, first: Arc::default() };
        Ok((Guard { _log: log, _tables: tables, _folder: folder }, log_store, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_conformance_suite_passes_on_the_lsm_engine() {
    Suite::test_all(Builder(Engine::Lsm)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_conformance_suite_passes_on_the_sled_engine() {
    Suite::test_all(Builder(Engine::Sled)).await.unwrap();
}

/// [RANGE-13] Successors may have changed the rows.
#[tokio::test]
async fn a_table_whose_cohort_has_ended_gives_no_snapshot_that_can_be_sent() {
    let folder = tempfile::tempdir().unwrap();
    let tables = Tables::open(folder.path(), TableOptions::default()).unwrap();
    let table = tables.cohort(CohortId(1), KeyRange::all()).unwrap();
    let entry = |seq, payload| Entry { lsn: Lsn::new(1, seq), kind: EntryKind::Commands, payload };
    let mut raft = RaftTable::new(tables.clone(), table.clone());
    table.apply(&[entry(1, CommandBatch::default().encode())]).unwrap();
    let before = raft.get_current_snapshot().await.unwrap().unwrap();
    assert!(matches!(before.snapshot, SnapshotData::Outgoing(_)));
    drop(before);
    let seal = Seal::new(Vec::new());
    table.apply(&[entry(2, seal.encode())]).unwrap();
    let after = raft.get_current_snapshot().await.unwrap().unwrap();
    assert!(matches!(after.snapshot, SnapshotData::OnDisk));
}
