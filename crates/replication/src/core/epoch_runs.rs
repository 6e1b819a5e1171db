//! The addresses of a log's entries, in a few words.

use trireme_types::Lsn;

/// The address of every entry in a cohort's log.
///
/// Neighbours nearly always share an epoch, so only the first address of each run of equal epochs
/// is kept: a log of a million entries written under three leaders takes three. Epochs need not
/// rise from run to run: a leader that prepares entries again under the same sequences replaces
/// them from the front (P9).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochRuns {
    /// The entry after this is the oldest that the log holds.
    purged: Lsn,
    /// The sequence of the newest entry.
    last_seq: u64,
    /// The first address of each run, by rising sequence, all in `(purged.seq, last_seq]`;
    /// neighbours differ in their epochs. Empty if and only if the log holds no entry.
    runs: Vec<Lsn>,
}

impl EpochRuns {
    /// Returns the addresses of a log that holds nothing and starts after `purged`.
    pub const fn starting_after(purged: Lsn) -> Self {
        Self { purged, last_seq: purged.seq, runs: Vec::new() }
    }

    /// Returns the address before the oldest entry.
    pub const fn purged(&self) -> Lsn {
        self.purged
    }

    /// Returns the address of the newest entry; of the newest purged one if there is none.
    pub fn last(&self) -> Lsn {
        match self.runs.last() {
            Some(run) => Lsn::new(run.epoch, self.last_seq),
            None => self.purged,
        }
    }

    /// Returns the address of the entry at `seq`, if the log holds one or has just purged it.
    pub fn lsn_at(&self, seq: u64) -> Option<Lsn> {
        if seq == self.purged.seq {
            return Some(self.purged);
        }
        if seq > self.last_seq {
            return None;
        }
        // Nothing that was purged is in a run.
        let run = self.runs.partition_point(|run| run.seq <= seq).checked_sub(1)?;
        Some(Lsn::new(self.runs[run].epoch, seq))
    }

    /// Says whether the log holds exactly this entry, or has just purged it.
    pub fn holds(&self, lsn: Lsn) -> bool {
        self.lsn_at(lsn.seq) == Some(lsn)
    }

    /// Returns true if no entry's epoch is below that of the entry before it.
    pub(crate) fn is_rising(&self) -> bool {
        let epochs = self.runs.iter().map(|run| run.epoch);
        std::iter::once(self.purged.epoch).chain(epochs).is_sorted()
    }

    /// Records an entry: the next one, or one in the place of an entry that the log holds.
    ///
    /// # Panics
    ///
    /// If it would leave a hole, or is purged.
    pub fn append(&mut self, lsn: Lsn) {
        let (first, end) = (self.purged.seq + 1, self.last_seq + 1);
        assert!((first..=end).contains(&lsn.seq), "{lsn} does not belong in {first}..={end}");
        if self.lsn_at(lsn.seq) == Some(lsn) {
            return;
        }
        if lsn.seq == end {
            self.last_seq = lsn.seq;
            if self.runs.last().is_none_or(|run| run.epoch != lsn.epoch) {
                self.runs.push(lsn);
            }
            return;
        }
        self.replace(lsn);
    }

    /// Forgets every entry after `seq`.
    pub fn truncate_after(&mut self, seq: u64) {
        let last = seq.clamp(self.purged.seq, self.last_seq);
        self.last_seq = last;
        self.runs.truncate(self.runs.partition_point(|run| run.seq <= last));
    }

    /// Forgets every entry up to `upto`; all of them, and starts after it, if it is not among them.
    pub fn purge(&mut self, upto: Lsn) {
        if upto.seq <= self.purged.seq {
            return;
        }
        if !self.holds(upto) {
            *self = Self::starting_after(upto);
            return;
        }
        let first = self.lsn_at(upto.seq + 1);
        self.purged = upto;
        let gone = self.runs.partition_point(|run| run.seq <= upto.seq);
        self.runs.drain(..gone);
        if let Some(first) = first
            && self.runs.first().is_none_or(|run| run.seq != first.seq)
        {
            self.runs.insert(0, first);
        }
    }

    /// Puts an entry in another's place, in the middle of the log.
    fn replace(&mut self, lsn: Lsn) {
        let after = self.lsn_at(lsn.seq + 1);
        let at = self.runs.partition_point(|run| run.seq < lsn.seq);
        let before = at.checked_sub(1).map(|run| self.runs[run].epoch);
        // The run that started here, and one that starts right after, are made anew.
        let end = self.runs.partition_point(|run| run.seq <= lsn.seq + 1);
        let starts = [Some(lsn), after].into_iter().flatten();
        let mut epoch = before;
        let fresh: Vec<Lsn> =
            starts.filter(|start| epoch.replace(start.epoch) != Some(start.epoch)).collect();
        self.runs.splice(at..end, fresh);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_run_stands_for_all_its_entries() {
        let mut runs = EpochRuns::starting_after(Lsn::ZERO);
        for lsn in [Lsn::new(1, 1), Lsn::new(1, 2), Lsn::new(3, 3), Lsn::new(3, 4)] {
            runs.append(lsn);
        }
        assert_eq!(runs.runs, [Lsn::new(1, 1), Lsn::new(3, 3)]);
        assert_eq!(runs.lsn_at(2), Some(Lsn::new(1, 2)));
        assert_eq!(runs.lsn_at(5), None);
        assert_eq!(runs.last(), Lsn::new(3, 4));
        assert!(runs.holds(Lsn::ZERO) && !runs.holds(Lsn::new(2, 3)));
    }

    #[test]
    #[should_panic(expected = "1.3 does not belong in 4..=4")]
    fn what_is_purged_is_not_appended() {
        EpochRuns::starting_after(Lsn::new(1, 3)).append(Lsn::new(1, 3));
    }

    #[test]
    fn epochs_that_fall_are_found() {
        let rising = |lsns: [Lsn; 2]| {
            let mut runs = EpochRuns::starting_after(Lsn::new(2, 3));
            lsns.into_iter().for_each(|lsn| runs.append(lsn));
            runs.is_rising()
        };
        assert!(rising([Lsn::new(2, 4), Lsn::new(3, 5)]));
        assert!(!rising([Lsn::new(3, 4), Lsn::new(2, 5)]));
        assert!(!rising([Lsn::new(1, 4), Lsn::new(1, 5)]), "it falls behind what is purged");
    }

    #[derive(Clone, Copy, Debug)]
    enum Change {
        Append { back: u64, epoch: u64 },
        TruncateAfter { back: u64 },
        Purge { back: u64 },
        Jump { ahead: u64, epoch: u64 },
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            8 => (0..4_u64, 1..4_u64).prop_map(|(back, epoch)| Change::Append { back, epoch }),
            2 => (0..6_u64).prop_map(|back| Change::TruncateAfter { back }),
            2 => (0..6_u64).prop_map(|back| Change::Purge { back }),
            1 => (1..4_u64, 1..4_u64).prop_map(|(ahead, epoch)| Change::Jump { ahead, epoch }),
        ]
    }

    /// The same log with every address written out.
    #[derive(Default)]
    struct Model {
        purged: Lsn,
        entries: BTreeMap<u64, Lsn>,
    }

    impl Model {
        fn last(&self) -> Lsn {
            self.entries.values().next_back().copied().unwrap_or(self.purged)
        }

        fn make(&mut self, runs: &mut EpochRuns, change: Change) {
            let last = self.last().seq;
            match change {
                Change::Append { back, epoch } => {
                    let lsn = Lsn::new(epoch, (last + 1 - back.min(last)).max(self.purged.seq + 1));
                    self.entries.insert(lsn.seq, lsn);
                    runs.append(lsn);
                }
                Change::TruncateAfter { back } => {
                    let seq = last.saturating_sub(back);
                    self.entries.retain(|&at, _| at <= seq);
                    runs.truncate_after(seq);
                }
                Change::Purge { back } => {
                    let Some(&upto) = self.entries.get(&last.saturating_sub(back)) else { return };
                    self.entries.retain(|&at, _| at > upto.seq);
                    self.purged = upto;
                    runs.purge(upto);
                }
                Change::Jump { ahead, epoch } => {
                    self.purged = Lsn::new(epoch, last + ahead);
                    self.entries.clear();
                    runs.purge(self.purged);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn runs_say_the_same_as_every_address_written_out(
            changes in proptest::collection::vec(change(), 0..60),
        ) {
            let (mut model, mut runs) = (Model::default(), EpochRuns::default());
            for change in changes {
                model.make(&mut runs, change);
                let last = model.last().seq;
                prop_assert_eq!(runs.last(), model.last());
                prop_assert_eq!(runs.purged(), model.purged);
                for seq in 0..model.last().seq + 3 {
                    let mut expected = model.entries.get(&seq).copied();
                    if seq == model.purged.seq {
                        expected = Some(model.purged);
                    }
                    prop_assert_eq!(runs.lsn_at(seq), expected, "at {} in {:?}", seq, runs);
                }
                let mergeable = runs.runs.windows(2).any(|pair| pair[0].epoch == pair[1].epoch);
                prop_assert!(!mergeable, "{:?} has runs to merge", runs);
                let starts: Vec<_> = runs.runs.iter().map(|run| run.seq).collect();
                let is_rising = starts.windows(2).all(|pair| pair[0] < pair[1]);
                let are_held = starts.iter().all(|seq| (model.purged.seq + 1..=last).contains(seq));
                prop_assert!(is_rising && are_held, "{:?} has runs elsewhere", runs);
                prop_assert_eq!(starts.is_empty(), model.entries.is_empty());
            }
        }
    }
}
