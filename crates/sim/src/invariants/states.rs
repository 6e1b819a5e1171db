//! What a table holds follows from the committed entries up to its applied point, whichever node it
//! is on and whether it was applied, replayed after a crash or installed from a snapshot; and each
//! request takes effect once, however often it is in the log: a client puts every value once, so that
//! none may be put twice. The reference is a store of our own,
//! much simpler than the tables.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use trireme_storage::CohortTable;
use trireme_types::{
    ClientId, Command, CommandBatch, Condition, KeyRange, NodeId, Operation, Outcome, Version,
    first_after,
};

use super::Seen;
use super::committed::Committed;

/// Keys and values, with their versions.
pub(super) type Rows = BTreeMap<Bytes, (Bytes, u64)>;

/// The rows as of every committed entry.
#[derive(Default)]
pub(crate) struct States {
    now: Rows,
    writes: u64,
    /// The requests that took effect or were judged, of each client.
    heard: BTreeMap<ClientId, Client>,
    /// The values that were put, each of which one request alone puts.
    put: BTreeSet<Bytes>,
    /// The rows as of entry `seq`, at `seq - 1`.
    by_seq: Vec<Rows>,
    /// As of which entry each node's table was compared last.
    compared: BTreeMap<NodeId, (u64, u64)>,
}

#[derive(Default)]
struct Client {
    floor: u64,
    judged: BTreeMap<u64, Outcome>,
}

impl States {
    pub(super) fn look(&mut self, seen: &Seen<'_>, committed: &Committed) -> Result<(), String> {
        let applied = seen.table.applied().seq;
        let compared = (seen.start, applied);
        if self.compared.get(&seen.node) == Some(&compared) {
            return Ok(());
        }
        let Some(expected) = self.as_of(applied, committed)? else { return Ok(()) };
        let found = rows(seen.table)?;
        if found != *expected {
            return Err(format!(
                "states follow from the log: as of {applied}, {} holds {found:?} in place of \
                 {expected:?}",
                seen.node
            ));
        }
        self.compared.insert(seen.node, compared);
        Ok(())
    }

    /// Returns the rows as of an entry; `None` if that is not known to be committed yet.
    pub(super) fn as_of(
        &mut self,
        seq: u64,
        committed: &Committed,
    ) -> Result<Option<&Rows>, String> {
        for (_, commands) in committed.after(self.by_seq.len() as u64) {
            if let Some(commands) = commands {
                let batch = CommandBatch::decode(commands)
                    .map_err(|error| format!("a committed entry cannot be read: {error}"))?;
                batch.commands.into_iter().try_for_each(|command| self.apply(command))?;
            }
            self.by_seq.push(self.now.clone());
        }
        static NOTHING: Rows = Rows::new();
        let Some(at) = seq.checked_sub(1) else { return Ok(Some(&NOTHING)) };
        Ok(usize::try_from(at).ok().and_then(|at| self.by_seq.get(at)))
    }

    /// Returns what became of a request; `None` if it is not known to be committed.
    pub(super) fn outcome(&self, client: ClientId, sequence: u64) -> Option<&Outcome> {
        self.heard.get(&client)?.judged.get(&sequence)
    }

    fn apply(&mut self, Command { request, operation }: Command) -> Result<(), String> {
        if let Some(request) = &request {
            let client = self.heard.entry(request.client).or_default();
            client.floor = client.floor.max(request.first_incomplete);
            if request.sequence < client.floor || client.judged.contains_key(&request.sequence) {
                return Ok(());
            }
        }
        let outcome = self.judge(operation)?;
        if let Some(request) = request {
            let client = self.heard.entry(request.client).or_default();
            client.judged.insert(request.sequence, outcome);
        }
        Ok(())
    }

    fn judge(&mut self, operation: Operation) -> Result<Outcome, String> {
        let (Operation::Put { key, condition, .. } | Operation::Delete { key, condition }) =
            &operation;
        let current = self.now.get(key).map(|(_, version)| Version(*version));
        let holds = match condition {
            Condition::None => true,
            Condition::Absent => current.is_none(),
            Condition::Version(version) => current == Some(*version),
        };
        if !holds {
            return Ok(Outcome::ConditionFailed { current });
        }
        match operation {
            Operation::Put { key, value, .. } => {
                if !self.put.insert(value.clone()) {
                    return Err(format!("exactly once: {value:?} is put once more, at {key:?}"));
                }
                self.writes += 1;
                self.now.insert(key, (value, self.writes));
                Ok(Outcome::Put { version: Version(self.writes) })
            }
            Operation::Delete { key, .. } => {
                let existed = self.now.remove(&key).is_some();
                self.writes += u64::from(existed);
                Ok(Outcome::Deleted { existed })
            }
        }
    }
}

/// Returns every row of a table, page by page: a scan gives way where rows have many old versions.
pub(super) fn rows(table: &CohortTable) -> Result<Rows, String> {
    let (mut rows, mut rest) = (Rows::new(), KeyRange::all());
    loop {
        let page = table.scan(&rest, usize::MAX, false);
        let page = page.map_err(|error| format!("a table cannot be read: {error}"))?;
        rows.extend(page.rows.into_iter().map(|row| (row.key, (row.value, row.version.0))));
        let Some(last) = page.last else { return Ok(rows) };
        rest.start = first_after(&last);
    }
}
