//! What one cohort's log holds and where, in memory.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use trireme_types::{CohortId, Entry, EntryKind, Lsn};

use super::format::Restatement;
use super::segment::NO_SEGMENT;
use super::{LogBounds, LogError};

/// The state of one cohort's log as its owner sees it: what was submitted counts, written or not.
///
/// Local recovery makes it by the same methods from the records of the physical log, in their order
/// there, so that a restart comes to the state that was left.
#[derive(Default)]
pub(super) struct CohortIndex {
    purged: Lsn,
    /// One slot for each entry, in order, from `purged.seq + 1` on.
    slots: VecDeque<Slot>,
    /// The entries that are in memory, by `seq`: all that no segment holds yet, and recent others.
    cache: BTreeMap<u64, Cached>,
    commit_point: Lsn,
    /// The newest hard state that is durable.
    hard_state: Option<Bytes>,
    /// The number of the write that last forgot everything; hard states before it are void.
    forgotten: u64,
    /// How many writes were submitted: the newest one's number.
    pub(super) submitted: u64,
    next_token: u64,
}

/// Where an entry is: 24 bytes each, the price of a log entry's stay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) epoch: u64,
    /// [`NO_SEGMENT`] while only the cache holds the entry.
    pub(super) segment: u32,
    /// Where in the segment the entry's record starts.
    pub(super) position: u32,
    /// The length of its payload.
    pub(super) payload_bytes: u32,
}

#[derive(Clone)]
struct Cached {
    /// Tells this entry from others that have had its `seq`.
    token: u64,
    kind: EntryKind,
    payload: Bytes,
}

/// An entry as a reader finds it.
pub(super) enum Found {
    Cached(Entry),
    OnDisk(Lsn, Slot),
}

impl CohortIndex {
    pub(super) fn bounds(&self) -> LogBounds {
        LogBounds { purged: self.purged, last: self.last() }
    }

    pub(super) fn last_seq(&self) -> u64 {
        self.purged.seq + self.slots.len() as u64
    }

    pub(super) fn last(&self) -> Lsn {
        self.slots.back().map_or(self.purged, |slot| Lsn::new(slot.epoch, self.last_seq()))
    }

    pub(super) fn lsn_at(&self, seq: u64) -> Option<Lsn> {
        if seq == self.purged.seq {
            return Some(self.purged);
        }
        self.slot(seq).map(|slot| Lsn::new(slot.epoch, seq))
    }

    pub(super) fn commit_point(&self) -> Lsn {
        self.commit_point
    }

    pub(super) fn find(&self, seq: u64) -> Option<Found> {
        let slot = self.slot(seq)?;
        let lsn = Lsn::new(slot.epoch, seq);
        Some(match self.cache.get(&seq) {
            Some(cached) => {
                Found::Cached(Entry { lsn, kind: cached.kind, payload: cached.payload.clone() })
            }
            None => Found::OnDisk(lsn, *slot),
        })
    }

    /// Says whether these entries may be appended: each at the place of one that there is, or right
    /// behind the last.
    pub(super) fn check_append(&self, cohort: CohortId, entries: &[Entry]) -> Result<(), LogError> {
        let mut last = self.last_seq();
        for Entry { lsn: Lsn { seq, .. }, .. } in entries {
            let (seq, purged) = (*seq, self.purged);
            if seq <= purged.seq {
                return Err(LogError::BelowPurged { cohort, seq, purged });
            }
            if seq - 1 > last {
                return Err(LogError::Hole { cohort, seq, last });
            }
            last = last.max(seq);
        }
        Ok(())
    }

    /// Puts an entry that waits for the disk at its place, and returns the token by which
    /// [`Self::locate`] knows it again.
    pub(super) fn append(&mut self, entry: &Entry) -> u64 {
        let payload_bytes = u32::try_from(entry.payload.len())
            .expect("an entry above a few MiB was refused when it was submitted");
        let epoch = entry.lsn.epoch;
        self.put(entry.lsn.seq, Slot { epoch, segment: NO_SEGMENT, position: 0, payload_bytes });
        self.next_token += 1;
        let token = self.next_token;
        let cached = Cached { token, kind: entry.kind, payload: entry.payload.clone() };
        self.cache.insert(entry.lsn.seq, cached);
        token
    }

    /// Puts an entry at its place, in place of one that may be there. The caller has checked that
    /// it leaves no hole.
    pub(super) fn put(&mut self, seq: u64, slot: Slot) {
        match self.position_of(seq).and_then(|at| self.slots.get_mut(at)) {
            Some(there) => *there = slot,
            None => self.slots.push_back(slot),
        }
    }

    /// Notes where the entry of this token lies, unless another has taken its place. From then on
    /// it may leave the cache.
    pub(super) fn locate(&mut self, seq: u64, token: u64, segment: u32, position: u32) {
        let is_current = self.cache.get(&seq).is_some_and(|cached| cached.token == token);
        if let Some(slot) = self.position_of(seq).and_then(|at| self.slots.get_mut(at))
            && is_current
        {
            slot.segment = segment;
            slot.position = position;
        }
    }

    /// Notes that the entry that lay at `from`, a segment and a position in it, lies at `to` now,
    /// unless another has taken its place.
    pub(super) fn relocate(&mut self, seq: u64, from: (u32, u32), to: (u32, u32)) {
        if let Some(slot) = self.position_of(seq).and_then(|at| self.slots.get_mut(at))
            && (slot.segment, slot.position) == from
        {
            (slot.segment, slot.position) = to;
        }
    }

    /// Returns the address and the slot of the entry at `seq` if it lies in this segment.
    pub(super) fn slot_in(&self, seq: u64, segment: u32) -> Option<(Lsn, Slot)> {
        let slot = *self.slot(seq)?;
        (slot.segment == segment).then_some((Lsn::new(slot.epoch, seq), slot))
    }

    /// Takes the entry of this token out of the cache, if it is still there.
    pub(super) fn evict(&mut self, seq: u64, token: u64) {
        if self.cache.get(&seq).is_some_and(|cached| cached.token == token) {
            self.cache.remove(&seq);
        }
    }

    /// Drops every entry after `kept`. A commit point among them falls back to `kept`.
    pub(super) fn truncate_after(&mut self, kept: Lsn) {
        let count = kept.seq.saturating_sub(self.purged.seq);
        self.slots.truncate(usize::try_from(count).unwrap_or(usize::MAX));
        self.cache.split_off(&kept.seq.saturating_add(1));
        // The address is taken from the caller, not from the slots: in local recovery, a slot may
        // stand for an entry of a segment that is gone, and not know its epoch.
        if self.commit_point.seq > kept.seq {
            self.commit_point = kept;
        }
    }

    /// Drops every entry up to `upto`. Past the last entry, that leaves an empty log that goes on
    /// after `upto`. What is purged was committed, so the commit point follows.
    pub(super) fn purge(&mut self, upto: Lsn) {
        if upto.seq <= self.purged.seq {
            return;
        }
        let gone = usize::try_from(upto.seq - self.purged.seq).unwrap_or(usize::MAX);
        self.slots.drain(..gone.min(self.slots.len()));
        self.cache = self.cache.split_off(&upto.seq.saturating_add(1));
        self.purged = upto;
        self.raise_commit_point(upto);
    }

    /// Moves the commit point up to `point`; never down.
    pub(super) fn raise_commit_point(&mut self, point: Lsn) {
        if point.seq > self.commit_point.seq {
            self.commit_point = point;
        }
    }

    /// Forgets everything but the numbers of the writes, by the write that is submitted next.
    pub(super) fn forget(&mut self) {
        let (submitted, next_token) = (self.submitted, self.next_token);
        *self = Self { submitted, next_token, forgotten: submitted + 1, ..Self::default() };
    }

    pub(super) fn hard_state(&self) -> Option<Bytes> {
        self.hard_state.clone()
    }

    /// Notes the hard state that the write of this number has made durable.
    pub(super) fn set_hard_state(&mut self, state: Bytes, io: u64) {
        if io >= self.forgotten {
            self.hard_state = Some(state);
        }
    }

    /// Starts from what a restatement says: the entries between `purged` and `last` are in segments
    /// that are gone, and one that nothing supersedes will be found missing by
    /// [`Self::first_missing`].
    pub(super) fn restate(&mut self, state: &Restatement) {
        let Restatement { purged, last, .. } = *state;
        self.purged = purged;
        self.commit_point = state.commit_point;
        self.hard_state.clone_from(&state.hard_state);
        let nowhere = Slot { epoch: 0, segment: NO_SEGMENT, position: 0, payload_bytes: 0 };
        let count = usize::try_from(last.saturating_sub(purged.seq)).unwrap_or(usize::MAX);
        self.slots = std::iter::repeat_n(nowhere, count).collect();
    }

    /// Returns the first entry that no segment holds.
    pub(super) fn first_missing(&self) -> Option<u64> {
        let at = self.slots.iter().position(|slot| slot.segment == NO_SEGMENT)?;
        Some(self.purged.seq + 1 + at as u64)
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    fn slot(&self, seq: u64) -> Option<&Slot> {
        self.slots.get(self.position_of(seq)?)
    }

    fn position_of(&self, seq: u64) -> Option<usize> {
        usize::try_from(seq.checked_sub(self.purged.seq)?.checked_sub(1)?).ok()
    }
}
