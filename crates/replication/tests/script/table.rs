//! A node's table: a map that forgets what was not flushed.

use std::collections::BTreeMap;

use bytes::Bytes;
use trireme_types::{
    Command, CommandBatch, Condition, Entry, EntryKind, Lsn, Operation, Outcome, Version,
};

/// What a table includes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) applied: Lsn,
    pub(crate) protocol_state: Option<(Lsn, Bytes)>,
    rows: BTreeMap<Bytes, (Bytes, Version)>,
    writes: u64,
}

impl Table {
    /// Applies the next entry.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Vec<Outcome> {
        assert_eq!(entry.lsn.seq, self.applied.seq + 1, "applied out of order");
        self.applied = entry.lsn;
        match entry.kind {
            EntryKind::Barrier => Vec::new(),
            EntryKind::Protocol => {
                self.protocol_state = Some((entry.lsn, entry.payload.clone()));
                Vec::new()
            }
            EntryKind::Commands => {
                let batch = CommandBatch::decode(&entry.payload).expect("a batch was proposed");
                batch.commands.into_iter().map(|command| self.execute(command)).collect()
            }
        }
    }

    /// Returns the row of a key, as scripts print it.
    pub(crate) fn row(&self, key: &str) -> String {
        match self.rows.get(key.as_bytes()) {
            Some((value, version)) => format!("{key}={} v{version}", value.escape_ascii()),
            None => format!("{key} has no value"),
        }
    }

    /// Returns the value of a key.
    pub(crate) fn value(&self, key: &str) -> Option<&Bytes> {
        self.rows.get(key.as_bytes()).map(|(value, _)| value)
    }

    fn execute(&mut self, command: Command) -> Outcome {
        let current = self.rows.get(command.operation.key()).map(|(_, version)| *version);
        match command.operation {
            Operation::Put { condition, .. } | Operation::Delete { condition, .. }
                if !holds(condition, current) =>
            {
                Outcome::ConditionFailed { current }
            }
            Operation::Put { key, value, .. } => {
                self.writes += 1;
                let version = Version(self.writes);
                self.rows.insert(key, (value, version));
                Outcome::Put { version }
            }
            Operation::Delete { key, .. } => {
                self.writes += 1;
                Outcome::Deleted { existed: self.rows.remove(&key).is_some() }
            }
        }
    }
}

fn holds(condition: Condition, current: Option<Version>) -> bool {
    match condition {
        Condition::None => true,
        Condition::Absent => current.is_none(),
        Condition::Version(version) => current == Some(version),
    }
}
