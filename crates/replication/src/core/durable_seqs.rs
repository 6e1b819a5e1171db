//! Which entries of the log are on disk.

use std::collections::VecDeque;

use trireme_storage::{IoId, LogWrite};

/// Joins the numbers of writes to the sequences of entries, so that nothing is applied that is not
/// on this replica's disk: a table that ran ahead of its own log would, after a crash, stand behind
/// a hole.
#[derive(Debug)]
pub(crate) struct DurableSeqs {
    /// Every entry up to this one is on disk as the log holds it now.
    durable: u64,
    /// Once the write is durable, every entry up to this sequence is; by rising numbers.
    forcing: VecDeque<(IoId, u64)>,
}

impl DurableSeqs {
    /// Starts with a log whose entries are all on disk.
    pub(crate) const fn starting_at(last: u64) -> Self {
        Self { durable: last, forcing: VecDeque::new() }
    }

    pub(crate) const fn durable(&self) -> u64 {
        self.durable
    }

    /// Records that a write was submitted.
    pub(crate) fn submitted(&mut self, io: IoId, write: &LogWrite) {
        match write {
            LogWrite::Append(entries) => {
                let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
                // Entries after a replaced one stay in the log as they are, yet count as durable
                // only with the write that replaces the last entry before them: a little late.
                self.limit(first.lsn.seq - 1);
                self.forcing.push_back((io, last.lsn.seq));
            }
            LogWrite::TruncateAfter { seq } => self.limit(*seq),
            // What is purged is in the table, on disk.
            LogWrite::Purge { upto } | LogWrite::Begin { after: upto } => {
                self.durable = self.durable.max(upto.seq)
            }
            LogWrite::HardState(_) | LogWrite::CommitPoint(_) => {}
        }
    }

    /// Records that every write up to this one is durable.
    pub(crate) fn completed(&mut self, upto: IoId) {
        while let Some(&(io, seq)) = self.forcing.front()
            && io <= upto
        {
            self.forcing.pop_front();
            self.durable = self.durable.max(seq);
        }
    }

    /// Forgets that entries after `seq` are, or will be, on disk: they are others now.
    fn limit(&mut self, seq: u64) {
        self.durable = self.durable.min(seq);
        for (_, until) in self.forcing.iter_mut().rev() {
            if *until <= seq {
                break;
            }
            *until = seq;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trireme_types::{Entry, EntryKind, Lsn};

    use super::*;

    fn append(epoch: u64, seqs: std::ops::RangeInclusive<u64>) -> LogWrite {
        let entry =
            |seq| Entry { lsn: Lsn::new(epoch, seq), kind: EntryKind::NoOp, payload: Bytes::new() };
        LogWrite::Append(seqs.map(entry).collect())
    }

    #[test]
    fn entries_are_durable_with_the_write_that_wrote_them() {
        let mut seqs = DurableSeqs::starting_at(2);
        seqs.submitted(IoId(1), &append(1, 3..=4));
        seqs.submitted(IoId(2), &append(1, 5..=5));
        assert_eq!(seqs.durable(), 2);
        seqs.completed(IoId(1));
        assert_eq!(seqs.durable(), 4);
        seqs.completed(IoId(2));
        assert_eq!(seqs.durable(), 5);
    }

    #[test]
    fn an_entry_in_the_place_of_a_durable_one_is_not_durable_yet() {
        let mut seqs = DurableSeqs::starting_at(0);
        seqs.submitted(IoId(1), &append(1, 1..=3));
        seqs.submitted(IoId(2), &LogWrite::TruncateAfter { seq: 1 });
        seqs.submitted(IoId(3), &append(2, 2..=2));
        seqs.completed(IoId(1));
        assert_eq!(seqs.durable(), 1);
        seqs.completed(IoId(3));
        assert_eq!(seqs.durable(), 2);
        seqs.submitted(IoId(4), &append(3, 2..=2));
        assert_eq!(seqs.durable(), 1);
    }

    #[test]
    fn what_a_snapshot_holds_is_durable() {
        let mut seqs = DurableSeqs::starting_at(0);
        seqs.submitted(IoId(1), &LogWrite::Purge { upto: Lsn::new(4, 40) });
        assert_eq!(seqs.durable(), 40);
    }
}
