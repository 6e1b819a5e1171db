//! What is committed never changes, and is the same wherever it is known to be committed: Raft's
//! State Machine Safety, and the Commit Invariant of PacificA (§2.1) as far as it is about two
//! replicas' committed lists.

use trireme_storage::CohortLog;
use trireme_types::{Entry, EntryKind, Epoch, Lsn};

use super::Seen;

/// How many bytes of a log are read at a time.
const READ_BYTES: usize = 1 << 20;

/// Every entry that was seen to be committed.
#[derive(Default)]
pub(crate) struct Committed {
    /// Entry `seq` at `seq - 1`.
    entries: Vec<Entry>,
    /// In which epoch each was committed, which is the entry's own or a newer one: the epoch of the node
    /// where that was seen first.
    committed_in: Vec<Epoch>,
    /// As far as each is known to be on enough disks.
    checked: usize,
}

impl Committed {
    /// Looks at a node's commit point. Returns true if there is more than was known.
    pub(super) fn look(&mut self, seen: &Seen<'_>) -> Result<bool, String> {
        // What is applied is committed, whether the replica has said so yet or not.
        let point = seen.status.committed.max(seen.table.applied());
        let upto = point.seq;
        let bounds = seen.log.bounds();
        let known = self.entries.len() as u64;
        if upto > 0 && upto <= known {
            self.compare(upto, Some(point))?;
        }
        // A snapshot has brought the table further than the log, which is still to be replaced.
        if bounds.last.seq < upto || !is_in(seen.log, point) {
            return Ok(false);
        }
        // What the log still holds of what is known.
        let newest_known = upto.min(known);
        if newest_known > bounds.purged.seq {
            self.compare(newest_known, seen.log.lsn_at(newest_known))?;
        }
        // What a table alone still has is learned from a log that has it.
        if upto <= known || bounds.purged.seq > known {
            return Ok(false);
        }
        let read = seen.log.read(known + 1..upto + 1, READ_BYTES);
        let read = read.map_err(|error| format!("the log cannot be read: {error}"))?;
        for entry in read {
            if entry.lsn.seq != self.entries.len() as u64 + 1 {
                return Err(format!(
                    "committed never changes: a log has a hole before {}",
                    entry.lsn
                ));
            }
            let before = self.committed_in.last().copied().unwrap_or_default();
            self.committed_in.push(seen.status.epoch.max(before));
            self.entries.push(entry);
        }
        Ok(self.entries.len() as u64 > known)
    }

    fn compare(&self, seq: u64, found: Option<Lsn>) -> Result<(), String> {
        let known = self.get(seq).map(|entry| entry.lsn);
        if found == known || found.is_none() {
            return Ok(());
        }
        Err(format!("committed never changes: entry {seq} is {found:?} here and was {known:?}"))
    }

    /// Checks that what a log holds of what is committed is that, byte for byte.
    pub(super) fn is_intact(&self, log: &CohortLog) -> Result<(), String> {
        let bounds = log.bounds();
        let mut next = bounds.purged.seq + 1;
        while next <= bounds.last.seq {
            let read = log.read(next..bounds.last.seq + 1, READ_BYTES);
            let read = read.map_err(|error| format!("its log cannot be read: {error}"))?;
            let Some(last) = read.last().map(|entry| entry.lsn.seq) else { break };
            let differs = |entry: &&Entry| {
                self.get(entry.lsn.seq)
                    .is_some_and(|known| known.lsn == entry.lsn && known != *entry)
            };
            if let Some(entry) = read.iter().find(differs) {
                return Err(format!("entry {} is another one than was committed", entry.lsn));
            }
            next = last + 1;
        }
        Ok(())
    }

    /// Checks that what is newly committed is on enough disks.
    pub(super) fn on_enough_disks(
        &mut self,
        is_on_enough: impl Fn(Lsn) -> Result<(), String>,
    ) -> Result<(), String> {
        while let Some(entry) = self.entries.get(self.checked) {
            is_on_enough(entry.lsn)?;
            self.checked += 1;
        }
        Ok(())
    }

    pub(super) fn get(&self, seq: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(seq.checked_sub(1)?).ok()?)
    }

    /// Returns the newest entry that was committed in an epoch before `epoch`. One of an older epoch may
    /// have been committed later, by a leader that a leader of `epoch` does not know of.
    pub(super) fn last_before(&self, epoch: Epoch) -> Option<Lsn> {
        let before = self.committed_in.partition_point(|committed_in| *committed_in < epoch);
        before.checked_sub(1).map(|at| self.entries[at].lsn)
    }

    pub(super) fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Returns the entries after `seq` that hold commands, with those that do not.
    pub(super) fn after(&self, seq: u64) -> impl Iterator<Item = (u64, Option<&[u8]>)> {
        let from = usize::try_from(seq).unwrap_or(usize::MAX).min(self.entries.len());
        self.entries[from..].iter().map(|entry| {
            let commands = (entry.kind == EntryKind::Commands).then_some(&entry.payload[..]);
            (entry.lsn.seq, commands)
        })
    }
}

/// Returns true if a log holds an entry, or has given it up.
fn is_in(log: &CohortLog, lsn: Lsn) -> bool {
    lsn.seq <= log.bounds().purged.seq || log.lsn_at(lsn.seq) == Some(lsn)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    /// n1 leads epoch 4 and is cut off; the leader of epoch 5 commits what an earlier one had begun.
    #[test]
    fn what_a_later_leader_commits_is_not_before_an_earlier_one() {
        let entry = |epoch, seq| Entry {
            lsn: Lsn::new(epoch, seq),
            kind: EntryKind::NoOp,
            payload: Bytes::new(),
        };
        let entries = vec![entry(3, 1), entry(3, 2), entry(5, 3)];
        let committed = Committed { entries, committed_in: vec![3, 5, 5], checked: 0 };
        let last = |epoch| committed.last_before(epoch);
        assert_eq!([last(3), last(4)], [None, Some(Lsn::new(3, 1))]);
        assert_eq!([last(5), last(6)], [Some(Lsn::new(3, 1)), Some(Lsn::new(5, 3))]);
    }
}
