//! What the tests of the shared log share.

#![allow(dead_code, reason = "each test uses its own part of this")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use trireme_storage::fs::{Fs, MemFs};
use trireme_storage::log::{CohortLog, LogError, LogIdentity, LogOptions, LogWrite, SharedLog};
use trireme_types::{ClusterId, CohortId, Durability, Entry, EntryKind, Lsn, NodeId};

/// The folder of every test's log.
pub(crate) const DIR: &str = "/node/log";

pub(crate) fn dir() -> &'static Path {
    Path::new(DIR)
}

pub(crate) fn identity() -> LogIdentity {
    LogIdentity { cluster: ClusterId(0xc1), node: NodeId(3) }
}

/// Returns options under which a few kilobytes make several segments.
pub(crate) fn small() -> LogOptions {
    LogOptions { segment_bytes: 8192, block_bytes_max: 4096, ..LogOptions::default() }
}

pub(crate) fn with_durability(durability: Durability) -> LogOptions {
    LogOptions { durability, ..small() }
}

pub(crate) fn open(fs: &MemFs) -> SharedLog {
    SharedLog::open(Arc::new(fs.clone()), dir(), identity(), small()).unwrap()
}

pub(crate) fn open_stepped(fs: &MemFs, options: LogOptions) -> Result<SharedLog, LogError> {
    SharedLog::open_stepped(Arc::new(fs.clone()), dir(), identity(), options)
}

pub(crate) fn entry(epoch: u64, seq: u64, payload: &str) -> Entry {
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    Entry { lsn: Lsn::new(epoch, seq), kind: EntryKind::Commands, payload }
}

/// Returns an append of entries of epoch 1 with these numbers and about `bytes` each.
pub(crate) fn append(seqs: std::ops::RangeInclusive<u64>, bytes: usize) -> LogWrite {
    let payload = |seq: u64| format!("{seq:0>bytes$}");
    LogWrite::Append(seqs.map(|seq| entry(1, seq, &payload(seq))).collect())
}

/// Submits a write and waits until it is durable.
pub(crate) fn write(log: &CohortLog, write: LogWrite) {
    let io = log.submit(write).unwrap();
    wait_until("a write to be durable", || log.durable() >= io);
}

/// Submits a write to a stepped log and makes it durable.
pub(crate) fn step(shared: &SharedLog, cohort: u64, write: LogWrite) {
    let log = shared.cohort(CohortId(cohort));
    let io = log.submit(write).unwrap();
    while shared.step() {}
    assert!(log.durable() >= io, "the log failed");
}

/// Waits until the condition holds, and fails if it takes too long.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

pub(crate) fn read_all(log: &CohortLog) -> Vec<Entry> {
    log.read(0..u64::MAX, usize::MAX).unwrap()
}

/// Returns the paths of the segments, oldest first.
pub(crate) fn segments(fs: &MemFs) -> Vec<PathBuf> {
    let names = fs.list(dir()).unwrap();
    names.into_iter().filter(|name| name.ends_with(".log")).map(|name| dir().join(name)).collect()
}

/// A small generator of pseudo-random numbers (SplitMix64), the same on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number from 0 to `count - 1`.
    pub(crate) fn below(&mut self, count: u64) -> u64 {
        self.next() % count
    }
}
