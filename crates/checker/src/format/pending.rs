//! Joins events to operations: a process invokes one, and later says how it ended.

use std::collections::BTreeMap;

use super::{FormatError, OPERATIONS_MAX};
use crate::history::{Answer, Operation};
use crate::kv::{Input, KvOperation, Output};

/// Operations that are being put together from events, whose numbers are the time.
#[derive(Debug, Default)]
pub(super) struct Pending {
    history: Vec<Option<KvOperation>>,
    /// The place of each process' operation without an end.
    open: BTreeMap<u64, usize>,
    now: u64,
}

/// How an operation ended.
#[derive(Debug)]
pub(super) enum End {
    /// It was answered.
    Answered(Output),
    /// It had no effect, and its answer shows nothing.
    Nothing,
    /// Its outcome is ambiguous.
    Ambiguous,
}

impl Pending {
    /// Adds the beginning of an operation.
    pub(super) fn invoke(&mut self, client: u64, input: Input) -> Result<(), String> {
        self.now += 1;
        if self.history.len() >= OPERATIONS_MAX {
            return Err(FormatError::TooLong.to_string());
        }
        let operation = Operation { client, input, called: self.now, answer: None };
        if self.open.insert(client, self.history.len()).is_some() {
            return Err(format!("process {client} invokes an operation before the last one ended"));
        }
        self.history.push(Some(operation));
        Ok(())
    }

    /// Adds the end of a process' operation.
    pub(super) fn end(
        &mut self,
        client: u64,
        how: impl FnOnce(&Input) -> Result<End, String>,
    ) -> Result<(), String> {
        self.now += 1;
        let place = self.open.remove(&client);
        let place = place.ok_or_else(|| format!("process {client} has invoked nothing"))?;
        let slot = &mut self.history[place];
        let operation = slot.as_mut().ok_or("the operation has ended before")?;
        match how(&operation.input)? {
            End::Answered(output) => operation.answer = Some(Answer { at: self.now, output }),
            End::Nothing => *slot = None,
            End::Ambiguous => {}
        }
        Ok(())
    }

    /// Returns the operations; those without an end are ambiguous.
    pub(super) fn finish(self) -> Vec<KvOperation> {
        self.history.into_iter().flatten().collect()
    }
}
