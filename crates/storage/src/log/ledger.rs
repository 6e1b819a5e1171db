//! What the physical log holds up to where the writer has come.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use trireme_types::{CohortId, Lsn};

use super::format::{RECORD_HEADER_BYTES, Restatement};
use super::index::CohortIndex;

/// What the physical log says of every cohort up to the writer's position, and which segments hold
/// entries that still count.
///
/// It differs from the cohorts' [`CohortIndex`]es by what waits for the writer: a segment must not
/// be removed because of a purge that is not on disk yet, and a restatement must say what the log
/// says up to its own place, not what is still to come.
#[derive(Default)]
pub(super) struct Ledger {
    cohorts: BTreeMap<CohortId, CohortLedger>,
    /// Per segment, what of it still counts; a segment that is not here holds nothing that does.
    live: BTreeMap<u32, Live>,
}

/// What of a segment, or of a cohort in a segment, still counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Live {
    entries: u64,
    bytes: u64,
}

#[derive(Default)]
struct CohortLedger {
    purged: Lsn,
    commit_point: Lsn,
    hard_state: Option<Bytes>,
    /// Where each entry after `purged` is: 8 bytes each.
    places: VecDeque<Place>,
    /// What of `places` is in each segment.
    held_in: BTreeMap<u32, Held>,
}

/// What one cohort has in one segment.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    live: Live,
    /// No entry after this one is in the segment. One that was there may be gone.
    last: u64,
}

/// A cohort that keeps segments from being removed (S10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogHolder {
    /// The cohort.
    pub cohort: CohortId,
    /// It lets go of the segments when its log is purged up to here.
    pub upto: u64,
    /// The bytes of its entries in them.
    pub bytes: u64,
}

#[derive(Clone, Copy)]
struct Place {
    segment: u32,
    payload_bytes: u32,
}

impl Place {
    fn record_bytes(self) -> u64 {
        RECORD_HEADER_BYTES as u64 + u64::from(self.payload_bytes)
    }
}

impl Ledger {
    /// Returns the ledger of a log in which nothing waits for the writer: after local recovery.
    pub(super) fn from_indexes<'a>(
        cohorts: impl Iterator<Item = (CohortId, &'a CohortIndex)>,
    ) -> Self {
        let mut ledger = Self::default();
        for (cohort, index) in cohorts {
            ledger.cohorts.insert(
                cohort,
                CohortLedger {
                    purged: index.bounds().purged,
                    commit_point: index.commit_point(),
                    hard_state: index.hard_state(),
                    ..CohortLedger::default()
                },
            );
            let mut seq = index.bounds().purged.seq;
            for slot in index.slots() {
                seq += 1;
                ledger.put(cohort, seq, slot.segment, slot.payload_bytes);
            }
        }
        ledger
    }

    /// Notes an entry that the log holds now, in place of one that may have its `seq`.
    pub(super) fn put(&mut self, cohort: CohortId, seq: u64, segment: u32, payload_bytes: u32) {
        let place = Place { segment, payload_bytes };
        let ledger = self.cohorts.entry(cohort).or_default();
        let at = usize::try_from(seq - ledger.purged.seq - 1).expect("a log fits into memory");
        let held = ledger.held_in.entry(segment).or_default();
        held.live.add(place);
        held.last = held.last.max(seq);
        self.live.entry(segment).or_default().add(place);
        if at < ledger.places.len() {
            let old = std::mem::replace(&mut ledger.places[at], place);
            release(&mut self.live, &mut ledger.held_in, old);
        } else {
            ledger.places.push_back(place);
        }
    }

    pub(super) fn truncate_after(&mut self, cohort: CohortId, seq: u64, commit_point: Lsn) {
        let ledger = self.cohorts.entry(cohort).or_default();
        ledger.commit_point = commit_point;
        while ledger.last() > seq
            && let Some(place) = ledger.places.pop_back()
        {
            release(&mut self.live, &mut ledger.held_in, place);
        }
    }

    pub(super) fn purge(&mut self, cohort: CohortId, upto: Lsn, commit_point: Lsn) {
        let ledger = self.cohorts.entry(cohort).or_default();
        ledger.commit_point = commit_point;
        if upto.seq <= ledger.purged.seq {
            return;
        }
        for _ in ledger.purged.seq..upto.seq {
            let Some(place) = ledger.places.pop_front() else { break };
            release(&mut self.live, &mut ledger.held_in, place);
        }
        ledger.purged = upto;
    }

    pub(super) fn set_commit_point(&mut self, cohort: CohortId, point: Lsn) {
        self.cohorts.entry(cohort).or_default().commit_point = point;
    }

    pub(super) fn set_hard_state(&mut self, cohort: CohortId, state: Bytes) {
        self.cohorts.entry(cohort).or_default().hard_state = Some(state);
    }

    pub(super) fn forget(&mut self, cohort: CohortId) {
        if let Some(mut ledger) = self.cohorts.remove(&cohort) {
            for place in ledger.places {
                release(&mut self.live, &mut ledger.held_in, place);
            }
        }
    }

    /// Returns what a segment that starts here has to say first, of every cohort.
    pub(super) fn restatements(&self) -> Vec<(CohortId, Restatement)> {
        let restate = |ledger: &CohortLedger| Restatement {
            purged: ledger.purged,
            last: ledger.last(),
            commit_point: ledger.commit_point,
            hard_state: ledger.hard_state.clone(),
        };
        self.cohorts.iter().map(|(cohort, ledger)| (*cohort, restate(ledger))).collect()
    }

    /// Says whether nothing in the segment counts any more.
    pub(super) fn is_dead(&self, segment: u32) -> bool {
        !self.live.contains_key(&segment)
    }

    /// Returns the bytes of all records that still count.
    pub(super) fn live_bytes(&self) -> u64 {
        self.live.values().map(|live| live.bytes).sum()
    }

    /// Returns the cohorts that have entries in the segments up to this one.
    pub(super) fn holders(&self, newest: u32) -> Vec<LogHolder> {
        let mut holders = Vec::new();
        for (cohort, ledger) in &self.cohorts {
            let mut holder = LogHolder { cohort: *cohort, upto: 0, bytes: 0 };
            for held in ledger.held_in.range(..=newest).map(|(_, held)| held) {
                holder.upto = holder.upto.max(held.last);
                holder.bytes += held.live.bytes;
            }
            if holder.bytes > 0 {
                holder.upto = holder.upto.min(ledger.last());
                holders.push(holder);
            }
        }
        holders
    }

    /// Returns the bytes of a cohort's entries after `seq`.
    pub(super) fn bytes_after(&self, cohort: CohortId, seq: u64) -> u64 {
        let Some(ledger) = self.cohorts.get(&cohort) else { return 0 };
        let count = usize::try_from(ledger.last().saturating_sub(seq)).unwrap_or(usize::MAX);
        ledger.places.iter().rev().take(count).map(|place| place.record_bytes()).sum()
    }

    /// Returns entries of the segment that count, by cohort: as many as these bytes hold, and at
    /// least one if there is one.
    pub(super) fn entries_in(&self, segment: u32, max_bytes: u64) -> Vec<(CohortId, Vec<u64>)> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for (cohort, ledger) in &self.cohorts {
            let Some(held) = ledger.held_in.get(&segment) else { continue };
            let mut left = held.live.entries;
            let mut seqs = Vec::new();
            for (seq, place) in (ledger.purged.seq + 1..).zip(&ledger.places) {
                if left == 0 || bytes >= max_bytes {
                    break;
                }
                if place.segment == segment {
                    left -= 1;
                    bytes += place.record_bytes();
                    seqs.push(seq);
                }
            }
            if !seqs.is_empty() {
                found.push((*cohort, seqs));
            }
        }
        found
    }

    /// Returns true if the log has the cohort's entry at `seq` in this segment.
    pub(super) fn is_in(&self, cohort: CohortId, seq: u64, segment: u32) -> bool {
        self.cohorts.get(&cohort).is_some_and(|ledger| {
            let after_purged = seq.checked_sub(ledger.purged.seq + 1);
            let at = after_purged.and_then(|at| usize::try_from(at).ok());
            at.and_then(|at| ledger.places.get(at)).is_some_and(|place| place.segment == segment)
        })
    }
}

impl CohortLedger {
    fn last(&self) -> u64 {
        self.purged.seq + self.places.len() as u64
    }
}

impl Live {
    fn add(&mut self, place: Place) {
        self.entries += 1;
        self.bytes += place.record_bytes();
    }

    /// Takes an entry out, and returns true if none is left.
    fn remove(&mut self, place: Place) -> bool {
        self.entries -= 1;
        self.bytes -= place.record_bytes();
        self.entries == 0
    }
}

/// Takes an entry out of the counts of its segment.
fn release(live: &mut BTreeMap<u32, Live>, held_in: &mut BTreeMap<u32, Held>, place: Place) {
    if live.get_mut(&place.segment).is_some_and(|live| live.remove(place)) {
        live.remove(&place.segment);
    }
    if held_in.get_mut(&place.segment).is_some_and(|held| held.live.remove(place)) {
        held_in.remove(&place.segment);
    }
}
