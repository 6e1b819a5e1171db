//! Applying log entries: judging each command against the rows as all earlier commands left them,
//! and gathering what changes into one batch.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use trireme_types::{
    Command, CommandBatch, Condition, Entry, EntryKind, KeyRange, Lsn, Operation, Outcome, Payload,
    Seal, Version,
};

use crate::cohort_table::{Applied, Writer};
use crate::table::keys::{self, Place};
use crate::table::rows::Rows;
use crate::table::{Core, TableError, WriteBatch};

/// One entry with its payload read.
pub(crate) struct Decoded {
    lsn: Lsn,
    content: Content,
}

enum Content {
    Commands(CommandBatch),
    Seal(Seal),
    NoOp,
    Protocol(Bytes),
}

/// Reads the entries' payloads and checks that they rise from `applied` on. That none is left out
/// is the log's to promise: it takes no entry that would leave a gap. Nothing has been changed if
/// this fails.
pub(crate) fn decode(
    place: Place,
    mut applied: Lsn,
    entries: &[Entry],
) -> Result<Vec<Decoded>, TableError> {
    let cohort = place.cohort;
    let mut decoded = Vec::with_capacity(entries.len());
    for entry in entries {
        let lsn = entry.lsn;
        if lsn.seq <= applied.seq || lsn.epoch < applied.epoch {
            return Err(TableError::OutOfOrder { cohort, applied, found: lsn });
        }
        applied = lsn;
        let content = match entry.kind {
            EntryKind::Commands => match Payload::decode(&entry.payload) {
                Ok(Payload::Commands(batch)) => Content::Commands(batch),
                Ok(Payload::Seal(seal)) => Content::Seal(seal),
                Err(source) => return Err(TableError::Batch { cohort, lsn, source }),
            },
            EntryKind::NoOp => Content::NoOp,
            EntryKind::Protocol => Content::Protocol(entry.payload.clone()),
        };
        decoded.push(Decoded { lsn, content });
    }
    Ok(decoded)
}

/// Says whether applying the entries takes no read of a file, and no wait for readers. `rows` says where
/// the cohort's rows lie.
pub(crate) fn is_resident(
    core: &Core,
    place: Place,
    rows: &Rows,
    entries: &[Decoded],
) -> Result<bool, TableError> {
    for Decoded { content, .. } in entries {
        let commands = match content {
            Content::Commands(batch) => &batch.commands,
            Content::Seal(_) => return Ok(false),
            Content::NoOp | Content::Protocol(_) => continue,
        };
        for command in commands.iter().filter(|command| reads_row(&command.operation)) {
            let key = command.operation.key();
            if core.get_resident(&rows.place_of(place, key).row_key(key))?.is_none() {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Says whether what becomes of the operation depends on the row as it is: a put that asks nothing
/// reads nothing, which is what makes it fast.
fn reads_row(operation: &Operation) -> bool {
    !matches!(operation, Operation::Put { condition: Condition::None, .. })
}

/// One call of apply under way: the rows that it has changed so far lie over those of the engine.
pub(crate) struct Apply<'a> {
    core: &'a Core,
    place: Place,
    range: &'a KeyRange,
    writer: &'a mut Writer,
    /// The rows that changed, in the order in which they first did.
    rows: Vec<ChangedRow>,
    /// Where in `rows` a key is.
    index: HashMap<Bytes, usize>,
}

struct ChangedRow {
    key: Bytes,
    /// `None` if the row is gone.
    value: Option<(Version, Bytes)>,
}

impl<'a> Apply<'a> {
    pub(crate) fn new(
        core: &'a Core,
        place: Place,
        range: &'a KeyRange,
        writer: &'a mut Writer,
    ) -> Self {
        Self { core, place, range, writer, rows: Vec::new(), index: HashMap::new() }
    }

    /// Judges the entries in order. Sessions and counters of the writer change as it goes, so a
    /// failure leaves them ahead of the disk.
    pub(crate) fn run(&mut self, entries: Vec<Decoded>) -> Result<Vec<Applied>, TableError> {
        let mut applied = Vec::with_capacity(entries.len());
        for Decoded { lsn, content } in entries {
            let outcomes = match content {
                //= RANGE-2
                Content::Commands(batch) if self.writer.seal.is_some() => {
                    vec![Outcome::WrongRange; batch.commands.len()]
                }
                Content::Commands(batch) => self.commands(batch)?,
                Content::Seal(seal) => {
                    if self.writer.seal.is_none() {
                        self.writer.seal = Some((lsn, Arc::new(seal)));
                        self.writer.seal_changed = true;
                    }
                    Vec::new()
                }
                Content::NoOp => Vec::new(),
                Content::Protocol(payload) => {
                    self.writer.protocol = Some((lsn, payload));
                    self.writer.protocol_changed = true;
                    Vec::new()
                }
            };
            self.writer.applied = lsn;
            applied.push(Applied { lsn, outcomes });
        }
        Ok(applied)
    }

    /// Returns everything that changed, the cohort's meta row included.
    pub(crate) fn into_batch(self) -> WriteBatch {
        let mut batch = WriteBatch::default();
        for row in &self.rows {
            let prefix = self.writer.rows.place_of(self.place, &row.key).prefix(keys::KIND_ROW);
            match &row.value {
                Some((version, value)) => {
                    batch.put(&[&prefix, &row.key], &[&keys::row_header(*version), value]);
                }
                None => batch.remove(&[&prefix, &row.key]),
            }
        }
        self.writer.write_own_rows(self.place, &mut batch);
        batch
    }

    fn commands(&mut self, batch: CommandBatch) -> Result<Vec<Outcome>, TableError> {
        let CommandBatch { commands, clock } = batch;
        self.writer.sessions.advance(clock);
        self.rows.reserve(commands.len());
        self.index.reserve(commands.len());
        let mut outcomes = Vec::with_capacity(commands.len());
        for command in commands {
            outcomes.push(self.command(command)?);
        }
        Ok(outcomes)
    }

    fn command(&mut self, command: Command) -> Result<Outcome, TableError> {
        let Some(request) = command.request else {
            return self.operation(command.operation);
        };
        if let Some(outcome) = self.writer.sessions.hear(request) {
            return Ok(outcome);
        }
        let outcome = self.operation(command.operation)?;
        // What was refused here may yet be applied by the cohort that the key belongs to now, and
        // a write whose fate is in doubt keeps its name on the way there.
        if outcome != Outcome::WrongRange {
            self.writer.sessions.record(request, outcome);
        }
        Ok(outcome)
    }

    fn operation(&mut self, operation: Operation) -> Result<Outcome, TableError> {
        if !self.range.contains(operation.key()) {
            return Ok(Outcome::WrongRange);
        }
        match operation {
            Operation::Put { key, value, condition } => self.put(key, value, condition),
            Operation::Delete { key, condition } => self.delete(key, condition),
        }
    }

    fn put(
        &mut self,
        key: Bytes,
        value: Bytes,
        condition: Condition,
    ) -> Result<Outcome, TableError> {
        if condition != Condition::None {
            let current = self.current(&key)?;
            if !holds(condition, current) {
                return Ok(Outcome::ConditionFailed { current });
            }
        }
        let version = self.writer.next_version();
        self.change(key, Some((version, value)));
        Ok(Outcome::Put { version })
    }

    fn delete(&mut self, key: Bytes, condition: Condition) -> Result<Outcome, TableError> {
        let current = self.current(&key)?;
        if !holds(condition, current) {
            return Ok(Outcome::ConditionFailed { current });
        }
        let existed = current.is_some();
        if existed {
            // The deletion takes a number too, so that numbers count changes.
            self.writer.next_version();
            self.change(key, None);
        }
        Ok(Outcome::Deleted { existed })
    }

    /// Returns the key's version as the commands so far have left it.
    fn current(&self, key: &Bytes) -> Result<Option<Version>, TableError> {
        //= SPIN-9
        if let Some(&index) = self.index.get(key)
            && !judges_old_rows()
        {
            return Ok(self.rows[index].value.as_ref().map(|(version, _)| *version));
        }
        let place = self.writer.rows.place_of(self.place, key);
        let value = self.core.get(&place.row_key(key))?;
        value.map(|value| keys::row_version(self.place.cohort, &value)).transpose()
    }

    fn change(&mut self, key: Bytes, value: Option<(Version, Bytes)>) {
        match self.index.get(&key) {
            Some(&index) => self.rows[index].value = value,
            None => {
                self.index.insert(key.clone(), self.rows.len());
                self.rows.push(ChangedRow { key, value });
            }
        }
    }
}

#[cfg(test)]
fn judges_old_rows() -> bool {
    crate::tests::mistakes::is_made(crate::tests::mistakes::Mistake::JudgesOldRows)
}

#[cfg(not(test))]
const fn judges_old_rows() -> bool {
    false
}

fn holds(condition: Condition, current: Option<Version>) -> bool {
    match condition {
        Condition::None => true,
        Condition::Absent => current.is_none(),
        Condition::Version(version) => current == Some(version),
    }
}
