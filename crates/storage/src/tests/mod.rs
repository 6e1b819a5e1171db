//! One suite for both engines, and what its tests share.

mod apply;
mod damage;
mod faults;
mod giving_up;
mod kill;
mod merging;
pub(crate) mod mistakes;
mod model;
mod readers;
mod script;
mod sealing;
mod serving;
mod snapshots;
mod tables;
mod tombstones;
mod truncation;

use std::path::Path;

use bytes::Bytes;
use tempfile::TempDir;
use trireme_types::{
    ClientId, CohortId, Command, CommandBatch, Condition, Engine, Entry, EntryKind, KeyRange, Lsn,
    Operation, Outcome, RequestId, Version, first_after,
};

use crate::{CohortTable, Row, SnapshotReader, SnapshotReceiver, StagedSnapshot};
use crate::{TableOptions, Tables};

/// Makes a test per engine of each function.
macro_rules! for_each_engine {
    ($($name:ident),+ $(,)?) => {
        mod lsm {
            $(#[test] fn $name() { super::$name(trireme_types::Engine::Lsm); })+
        }
        mod sled {
            $(#[test] fn $name() { super::$name(trireme_types::Engine::Sled); })+
        }
    };
}
pub(crate) use for_each_engine;

const COHORT: CohortId = CohortId(1);

/// Small enough that tests see flushes and compactions.
fn small(engine: Engine) -> TableOptions {
    TableOptions {
        engine,
        memtable_bytes: 64 * 1024,
        cache_bytes: 1024 * 1024,
        ..TableOptions::default()
    }
}

/// Tables in a folder of their own, which can be closed and opened again.
struct Fixture {
    dir: TempDir,
    options: TableOptions,
    tables: Option<Tables>,
}

impl Fixture {
    fn new(engine: Engine) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = small(engine);
        let tables = Some(Tables::open(dir.path(), options.clone()).unwrap());
        Self { dir, options, tables }
    }

    fn tables(&self) -> &Tables {
        self.tables.as_ref().unwrap()
    }

    fn cohort(&self) -> CohortTable {
        self.tables().cohort(COHORT, KeyRange::all()).unwrap()
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Opens the tables again without a flush: what a crash leaves, or more.
    fn reopen(&mut self) -> CohortTable {
        self.tables = None;
        self.tables = Some(Tables::open(self.dir.path(), self.options.clone()).unwrap());
        self.cohort()
    }
}

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(key: &str, value: &str) -> Command {
    put_if(key, value, Condition::None)
}

fn put_if(k: &str, value: &str, condition: Condition) -> Command {
    let operation = Operation::Put { key: key(k), value: key(value), condition };
    Command { request: None, operation }
}

fn delete(key: &str) -> Command {
    delete_if(key, Condition::None)
}

fn delete_if(k: &str, condition: Condition) -> Command {
    Command { request: None, operation: Operation::Delete { key: key(k), condition } }
}

fn requested(client: u128, sequence: u64, first_incomplete: u64, command: Command) -> Command {
    let client = ClientId(client);
    let request = RequestId { client, sequence, first_incomplete, start: None };
    Command { request: Some(request), ..command }
}

fn entry(seq: u64, commands: Vec<Command>) -> Entry {
    let payload = CommandBatch { commands, clock: 0 }.encode();
    Entry { lsn: Lsn::new(1, seq), kind: EntryKind::Commands, payload }
}

fn version(number: u64) -> Condition {
    Condition::Version(Version(number))
}

fn was_put(number: u64) -> Outcome {
    Outcome::Put { version: Version(number) }
}

fn failed(number: u64) -> Outcome {
    Outcome::ConditionFailed { current: Some(Version(number)) }
}

const FAILED_ABSENT: Outcome = Outcome::ConditionFailed { current: None };
const DELETED: Outcome = Outcome::Deleted { existed: true };
const NOT_THERE: Outcome = Outcome::Deleted { existed: false };

/// Applies the commands as the next entry and returns their outcomes.
fn apply(table: &CohortTable, commands: Vec<Command>) -> Vec<Outcome> {
    let entry = entry(table.applied().seq + 1, commands);
    table.apply(&[entry]).unwrap().remove(0).outcomes
}

/// Returns a key's value and version.
fn get(table: &CohortTable, key: &str) -> Option<(String, u64)> {
    let row = table.get(key.as_bytes()).unwrap()?;
    assert_eq!(row.key, key.as_bytes());
    Some((String::from_utf8(row.value.to_vec()).unwrap(), row.version.0))
}

/// Returns all rows, page by page.
fn all_rows(table: &CohortTable) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut range = KeyRange::all();
    loop {
        let page = table.scan(&range, usize::MAX, false).unwrap();
        rows.extend(page.rows);
        let Some(last) = page.last else { return rows };
        range.start = first_after(&last);
    }
}

fn chunks(mut reader: SnapshotReader) -> Vec<Bytes> {
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        assert!(chunk.len() <= crate::snapshot::CHUNK_BYTES_MAX);
        chunks.push(chunk);
    }
    assert!(reader.next_chunk().unwrap().is_none());
    chunks
}

fn stage(chunks: &[Bytes]) -> StagedSnapshot {
    let dir = tempfile::tempdir().unwrap();
    let mut receiver = SnapshotReceiver::new(dir.path()).unwrap();
    chunks.iter().for_each(|chunk| receiver.push(chunk).unwrap());
    receiver.finish().unwrap()
}
