//! Measures one cohort's table on both engines: applied commands and reads per second.
//!
//! `cargo run --release -p trireme-storage --example apply_bench`
//!
//! 16-byte keys, 256-byte values, 100 commands to a call, each with a request of one of a few
//! clients; then reads of random keys. The table is not flushed between, only as it fills up.

use std::error::Error;
use std::io::{self, Write};
use std::time::Instant;

use bytes::Bytes;
use trireme_storage::{CohortTable, TableOptions, Tables};
use trireme_types::{
    ClientId, CohortId, Command, CommandBatch, Condition, Engine, Entry, EntryKind, KeyRange, Lsn,
    Operation, RequestId,
};

const CALLS: u64 = 4_000;
const BATCH: u64 = 100;
const KEYS: u64 = 200_000;
const READS: u64 = 300_000;
const CLIENTS: u64 = 8;
/// What a client has under way; as many outcomes are kept of it.
const WINDOW: u64 = 128;

fn main() -> Result<(), Box<dyn Error>> {
    for engine in [Engine::Lsm, Engine::Sled] {
        let dir = tempfile::tempdir()?;
        let options = TableOptions { engine, ..TableOptions::default() };
        let tables = Tables::open(dir.path(), options)?;
        let table = tables.cohort(CohortId(1), KeyRange::all())?;
        let applies = measure_applies(&table)?;
        let gets = measure_gets(&table)?;
        let metrics = tables.metrics();
        writeln!(
            io::stdout(),
            "{engine}: {applies:.0} commands/s, {gets:.0} gets/s, {} flushes, {} stalls, {} MiB",
            metrics.flushes,
            metrics.stalls,
            metrics.disk_bytes >> 20,
        )?;
        tables.close()?;
    }
    Ok(())
}

fn measure_applies(table: &CohortTable) -> Result<f64, Box<dyn Error>> {
    let entries: Vec<_> = (0..CALLS).map(entry).collect();
    let start = Instant::now();
    for entry in &entries {
        table.apply(std::slice::from_ref(entry))?;
    }
    Ok(per_second(CALLS * BATCH, start))
}

fn measure_gets(table: &CohortTable) -> Result<f64, Box<dyn Error>> {
    let keys: Vec<_> = (0..READS).map(key).collect();
    let start = Instant::now();
    let mut found = 0_u64;
    for key in &keys {
        found += u64::from(table.get(key)?.is_some());
    }
    let rate = per_second(READS, start);
    assert!(found > READS / 2, "only {found} rows were found");
    Ok(rate)
}

fn per_second(count: u64, start: Instant) -> f64 {
    let count = u32::try_from(count).expect("a few million at most");
    f64::from(count) / start.elapsed().as_secs_f64()
}

fn entry(call: u64) -> Entry {
    let commands = (0..BATCH).map(|i| command(call * BATCH + i)).collect();
    let payload = CommandBatch { commands, clock: 0 }.encode();
    Entry { lsn: Lsn::new(1, call + 1), kind: EntryKind::Commands, payload }
}

fn command(number: u64) -> Command {
    let sequence = number / CLIENTS + 1;
    let request = RequestId {
        client: ClientId(u128::from(number % CLIENTS)),
        sequence,
        first_incomplete: sequence.saturating_sub(WINDOW),
        start: Some(0),
    };
    let value = Bytes::from(vec![b'v'; 256]);
    let operation = Operation::Put { key: key(number), value, condition: Condition::None };
    Command { request: Some(request), operation }
}

/// Spreads the keys evenly and without order.
fn key(number: u64) -> Bytes {
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS;
    Bytes::from(format!("{spread:016}"))
}
