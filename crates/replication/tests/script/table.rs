//! A node's table: a map that forgets what was not flushed.

use std::collections::BTreeMap;

use bytes::Bytes;
use trireme_types::{
    Command, Condition, Entry, EntryKind, Lsn, Operation, Outcome, Payload, RequestId, Seal,
    Version,
};

use super::invariants::Request;

/// What a table includes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) applied: Lsn,
    pub(crate) protocol_state: Option<(Lsn, Bytes)>,
    rows: BTreeMap<Bytes, (Bytes, Version)>,
    writes: u64,
    /// What became of each request: where a client is never forgotten, all that a session is.
    requests: BTreeMap<Request, Outcome>,
    /// The first seal, if it was applied: nothing behind it changes anything.
    seal: Option<(Lsn, Seal)>,
}

/// What applying an entry did.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// What became of each of its commands.
    pub(crate) outcomes: Vec<Outcome>,
    /// The keys that got another value, or none.
    pub(crate) changes: Vec<(String, Option<String>)>,
}

impl Table {
    /// Applies the next entry.
    pub(crate) fn apply(&mut self, entry: &Entry) -> Applied {
        assert_eq!(entry.lsn.seq, self.applied.seq + 1, "applied out of order");
        self.applied = entry.lsn;
        let mut applied = Applied::default();
        match entry.kind {
            EntryKind::NoOp => {}
            EntryKind::Protocol => {
                self.protocol_state = Some((entry.lsn, entry.payload.clone()));
            }
            EntryKind::Commands => {
                match Payload::decode(&entry.payload).expect("a batch or a seal was proposed") {
                    Payload::Seal(seal) => {
                        self.seal.get_or_insert((entry.lsn, seal));
                    }
                    Payload::Commands(batch) if self.seal.is_some() => {
                        applied.outcomes = vec![Outcome::WrongRange; batch.commands.len()];
                    }
                    Payload::Commands(batch) => {
                        let take = |command| self.take(command, &mut applied);
                        batch.commands.into_iter().for_each(take);
                    }
                }
            }
        }
        applied
    }

    /// Executes a command, unless it was before (C1).
    fn take(&mut self, Command { request, operation }: Command, applied: &mut Applied) {
        let request = request.map(named);
        if let Some(outcome) = request.and_then(|request| self.outcome(request)) {
            applied.outcomes.push(outcome);
            return;
        }
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let change = match &operation {
            Operation::Put { key, value, .. } => (text(key), Some(text(value))),
            Operation::Delete { key, .. } => (text(key), None),
        };
        let outcome = self.execute(operation);
        if !matches!(outcome, Outcome::ConditionFailed { .. }) {
            applied.changes.push(change);
        }
        applied.outcomes.push(outcome);
        if let Some(request) = request {
            self.requests.insert(request, outcome);
        }
    }

    /// Returns what became of a request, if it was applied.
    pub(crate) fn outcome(&self, request: Request) -> Option<Outcome> {
        self.requests.get(&request).copied()
    }

    /// Forgets which requests were applied.
    pub(crate) fn forget_requests(&mut self) {
        self.requests.clear();
    }

    /// Returns the address of the seal that ended the cohort, if it was applied.
    pub(crate) fn seal(&self) -> Option<Lsn> {
        self.seal.as_ref().map(|(lsn, _)| *lsn)
    }

    /// Forgets that the cohort has ended.
    pub(crate) fn forget_seal(&mut self) {
        self.seal = None;
    }

    /// Returns true if it includes the same rows, requests and end as another, wherever they are in
    /// their logs.
    pub(crate) fn has_what(&self, other: &Self) -> bool {
        self.rows == other.rows
            && self.writes == other.writes
            && self.requests == other.requests
            && self.seal == other.seal
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

    fn execute(&mut self, operation: Operation) -> Outcome {
        let current = self.rows.get(operation.key()).map(|(_, version)| *version);
        match operation {
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

/// Returns a request's name.
pub(crate) fn named(id: RequestId) -> Request {
    (u64::try_from(id.client.0).expect("clients of scripts have small numbers"), id.sequence)
}

fn holds(condition: Condition, current: Option<Version>) -> bool {
    match condition {
        Condition::None => true,
        Condition::Absent => current.is_none(),
        Condition::Version(version) => current == Some(version),
    }
}
