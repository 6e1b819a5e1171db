//! All replicas commit the same entries in the same order, and so there is one state after each.

use std::collections::BTreeMap;

use trireme_types::{Entry, Lsn, NodeId, Outcome};

use super::Request;
use crate::script::table::Table;

/// What was committed never changes.
pub(crate) const COMMITTED_NEVER_CHANGES: &str = "what was committed never changes";

/// What any replica has ever committed, and the state that follows from it.
#[derive(Debug, Default)]
pub(crate) struct Agreement {
    committed: BTreeMap<u64, Entry>,
    /// The state after the newest entry.
    state: Table,
    /// The values of each key, with the sequence of the entry that gave it to the key.
    changes: BTreeMap<String, Vec<(u64, Option<String>)>>,
}

impl Agreement {
    /// Records that a replica commits an entry.
    pub(crate) fn commits(&mut self, id: NodeId, entry: &Entry) {
        let Some(agreed) = self.committed.get(&entry.lsn.seq) else {
            self.committed.insert(entry.lsn.seq, entry.clone());
            return self.apply(entry);
        };
        assert!(
            agreed == entry,
            "{COMMITTED_NEVER_CHANGES}: {id} commits {} where {} was committed",
            entry.lsn,
            agreed.lsn
        );
    }

    fn apply(&mut self, entry: &Entry) {
        for (key, value) in self.state.apply(entry).changes {
            self.changes.entry(key).or_default().push((entry.lsn.seq, value));
        }
    }

    /// Returns what any replica has ever committed.
    pub(crate) fn committed(&self) -> impl Iterator<Item = &Entry> {
        self.committed.values()
    }

    /// Returns what was committed up to a sequence.
    pub(crate) fn upto(&self, seq: u64) -> impl Iterator<Item = &Entry> {
        self.committed.range(..=seq).map(|(_, entry)| entry)
    }

    /// Returns the address of what was committed there.
    pub(crate) fn lsn_at(&self, seq: u64) -> Option<Lsn> {
        self.committed.get(&seq).map(|entry| entry.lsn)
    }

    /// Returns the value of a key after the entry there, and which entry gave it to the key: 0 if none
    /// did.
    pub(crate) fn value_after(&self, seq: u64, key: &str) -> (u64, Option<&str>) {
        let changes = self.changes.get(key).map_or(&[][..], Vec::as_slice);
        let last = changes.iter().rev().find(|(at, _)| *at <= seq);
        last.map_or((0, None), |(at, value)| (*at, value.as_deref()))
    }

    /// Returns which entry gave this value to the key, if one did; values come once.
    pub(crate) fn given(&self, key: &str, value: &str) -> Option<u64> {
        let changes = self.changes.get(key)?;
        changes.iter().find(|(_, given)| given.as_deref() == Some(value)).map(|(at, _)| *at)
    }

    /// Returns the address of the seal that ends the cohort, if one was committed.
    pub(crate) fn seal(&self) -> Option<Lsn> {
        self.state.seal()
    }

    /// Returns true if a table is as the cohort ends, if it has ended.
    pub(crate) fn is_final(&self, table: &Table) -> bool {
        self.state.has_what(table)
    }

    /// Returns what became of a request when it was first applied.
    pub(crate) fn outcome(&self, request: Request) -> Option<Outcome> {
        self.state.outcome(request)
    }
}
