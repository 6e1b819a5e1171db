//! A node's log on a disk that can stall and lose what it had not made durable.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;
use trireme_replication::core::EpochRuns;
use trireme_storage::{IoId, LogWrite};
use trireme_types::{Entry, Lsn};

/// What a log holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct LogImage {
    pub(crate) purged: Lsn,
    pub(crate) entries: BTreeMap<u64, Entry>,
    pub(crate) hard_state: Option<Bytes>,
    pub(crate) commit_point: Lsn,
}

impl LogImage {
    /// Returns the addresses of the entries.
    pub(crate) fn runs(&self) -> EpochRuns {
        let mut runs = EpochRuns::starting_after(self.purged);
        self.entries.values().for_each(|entry| runs.append(entry.lsn));
        runs
    }

    /// Says whether it holds this very entry, or a table does that has taken its place.
    pub(crate) fn keeps(&self, entry: &Entry) -> bool {
        let seq = entry.lsn.seq;
        seq <= self.purged.seq || self.entries.get(&seq) == Some(entry)
    }

    pub(crate) fn last(&self) -> Lsn {
        self.entries.values().next_back().map_or(self.purged, |entry| entry.lsn)
    }

    /// Returns the address of the entry there, or of the last one that was given up.
    pub(crate) fn lsn_at(&self, seq: u64) -> Option<Lsn> {
        if seq == self.purged.seq {
            return Some(self.purged);
        }
        self.entries.get(&seq).map(|entry| entry.lsn)
    }

    fn write(&mut self, write: &LogWrite) {
        match write {
            LogWrite::Append(entries) => {
                for entry in entries {
                    let (first, end) = (self.purged.seq + 1, self.last().seq + 1);
                    let seq = entry.lsn.seq;
                    assert!((first..=end).contains(&seq), "{seq} leaves a hole before {end}");
                    self.entries.insert(seq, entry.clone());
                }
            }
            LogWrite::HardState(state) => self.hard_state = Some(state.clone()),
            LogWrite::TruncateAfter { seq } => self.entries.retain(|at, _| at <= seq),
            LogWrite::Purge { upto } | LogWrite::Begin { after: upto } => {
                self.entries.retain(|&at, _| at > upto.seq);
                self.purged = self.purged.max(*upto);
                self.commit_point = self.commit_point.max(*upto);
            }
            LogWrite::CommitPoint(point) => self.commit_point = *point,
        }
    }
}

/// A disk with a log.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// What readers see: everything that was written.
    pub(crate) memory: LogImage,
    durable: LogImage,
    waiting: VecDeque<LogWrite>,
    /// How many writes are durable.
    completed: u64,
    pub(crate) is_stalled: bool,
    /// How often what readers see has changed.
    pub(crate) changes: u64,
}

impl Disk {
    /// Takes a write and returns its number.
    pub(crate) fn write(&mut self, write: LogWrite) -> IoId {
        self.changes += 1;
        self.memory.write(&write);
        self.waiting.push_back(write);
        IoId(self.completed + self.waiting.len() as u64)
    }

    /// Makes what waits durable, up to the last write that is forced: a commit point alone is not.
    /// Returns the new watermark if it has moved.
    pub(crate) fn sync(&mut self) -> Option<IoId> {
        if self.is_stalled {
            return None;
        }
        let forced = self.waiting.iter().rposition(is_forced)?;
        Some(self.complete(forced + 1))
    }

    /// Makes the next forced write durable, and what comes before it, even on a stalled disk.
    pub(crate) fn sync_one(&mut self) -> Option<IoId> {
        let forced = self.waiting.iter().position(is_forced)?;
        Some(self.complete(forced + 1))
    }

    fn complete(&mut self, writes: usize) -> IoId {
        for write in self.waiting.drain(..writes) {
            self.durable.write(&write);
            self.completed += 1;
        }
        IoId(self.completed)
    }

    /// Says that all is durable, and forgets that it is not: a mistake.
    pub(crate) fn lie(&self) -> Option<IoId> {
        let forced = self.waiting.iter().rposition(is_forced)?;
        Some(IoId(self.completed + forced as u64 + 1))
    }

    /// Loses what is not durable. The core that starts next counts its writes anew.
    pub(crate) fn crash(&mut self) {
        self.waiting.clear();
        self.completed = 0;
        self.changes += 1;
        self.memory = self.durable.clone();
    }

    /// Returns the entries, as many as a message may hold.
    pub(crate) fn read(&self, seqs: Range<u64>, entries_max: usize) -> Vec<Entry> {
        if !self.memory.entries.contains_key(&seqs.start) {
            return Vec::new();
        }
        self.memory.entries.range(seqs).take(entries_max).map(|(_, entry)| entry.clone()).collect()
    }

    /// Says whether this very entry is durable.
    pub(crate) fn has_forced(&self, entry: &Entry) -> bool {
        self.durable.entries.get(&entry.lsn.seq) == Some(entry)
    }

    /// Returns what a crash would leave.
    pub(crate) const fn durable(&self) -> &LogImage {
        &self.durable
    }
}

/// Returns true if a write is made durable by itself: a commit point goes along with the next one.
const fn is_forced(write: &LogWrite) -> bool {
    !matches!(write, LogWrite::CommitPoint(_))
}
