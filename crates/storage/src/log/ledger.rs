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
    /// How many of `places` are in each segment.
    entries_in: BTreeMap<u32, u64>,
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
        *ledger.entries_in.entry(segment).or_default() += 1;
        let live = self.live.entry(segment).or_default();
        live.entries += 1;
        live.bytes += place.record_bytes();
        if at < ledger.places.len() {
            let old = std::mem::replace(&mut ledger.places[at], place);
            release(&mut self.live, &mut ledger.entries_in, old);
        } else {
            ledger.places.push_back(place);
        }
    }

    pub(super) fn truncate_after(&mut self, cohort: CohortId, seq: u64, commit_point: Lsn) {
        let ledger = self.cohorts.entry(cohort).or_default();
        ledger.commit_point = commit_point;
        while ledger.purged.seq + ledger.places.len() as u64 > seq
            && let Some(place) = ledger.places.pop_back()
        {
            release(&mut self.live, &mut ledger.entries_in, place);
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
            release(&mut self.live, &mut ledger.entries_in, place);
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
                release(&mut self.live, &mut ledger.entries_in, place);
            }
        }
    }

    /// Returns what a segment that starts here has to say first, of every cohort.
    pub(super) fn restatements(&self) -> Vec<(CohortId, Restatement)> {
        let restate = |ledger: &CohortLedger| Restatement {
            purged: ledger.purged,
            last: ledger.purged.seq + ledger.places.len() as u64,
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

    /// Returns a cohort with entries in the segment, and the highest of them.
    pub(super) fn pinned_by(&self, segment: u32) -> Option<(CohortId, u64)> {
        self.cohorts.iter().find_map(|(cohort, ledger)| {
            let mut left = *ledger.entries_in.get(&segment)?;
            let mut seq = ledger.purged.seq;
            for place in &ledger.places {
                seq += 1;
                left -= u64::from(place.segment == segment);
                if left == 0 {
                    break;
                }
            }
            Some((*cohort, seq))
        })
    }
}

/// Takes an entry out of the counts of its segment.
fn release(live: &mut BTreeMap<u32, Live>, entries_in: &mut BTreeMap<u32, u64>, place: Place) {
    if let Some(counts) = live.get_mut(&place.segment) {
        counts.entries -= 1;
        counts.bytes -= place.record_bytes();
        if counts.entries == 0 {
            live.remove(&place.segment);
        }
    }
    if let Some(count) = entries_in.get_mut(&place.segment) {
        *count -= 1;
        if *count == 0 {
            entries_in.remove(&place.segment);
        }
    }
}
