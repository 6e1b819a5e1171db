//! A random log that follows from a seed, and a model of what it amounts to, written as plainly as
//! possible and without a line in common with the table.

use std::collections::BTreeMap;

use trireme_types::{Epoch, Version};

use super::*;

/// What a cohort's table should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) applied: Lsn,
    pub(super) writes: u64,
    pub(super) rows: BTreeMap<Bytes, (u64, Bytes)>,
    pub(super) protocol: Option<(Lsn, Bytes)>,
    sessions: BTreeMap<ClientId, (u64, BTreeMap<u64, Outcome>)>,
}

impl Model {
    pub(super) fn apply(&mut self, entry: &Entry) -> Vec<Outcome> {
        self.applied = entry.lsn;
        match entry.kind {
            EntryKind::NoOp => vec![],
            EntryKind::Protocol => {
                self.protocol = Some((entry.lsn, entry.payload.clone()));
                vec![]
            }
            EntryKind::Commands => {
                let commands = CommandBatch::decode(&entry.payload).unwrap().commands;
                commands.iter().map(|command| self.command(command)).collect()
            }
        }
    }

    fn command(&mut self, command: &Command) -> Outcome {
        let Some(request) = command.request else {
            return self.operation(&command.operation);
        };
        let (floor, outcomes) = self.sessions.entry(request.client).or_default();
        *floor = request.first_incomplete.max(*floor);
        *outcomes = outcomes.split_off(floor);
        if let Some(outcome) = outcomes.get(&request.sequence) {
            return *outcome;
        }
        if request.sequence < *floor {
            return FAILED_ABSENT;
        }
        let outcome = self.operation(&command.operation);
        self.sessions.get_mut(&request.client).unwrap().1.insert(request.sequence, outcome);
        outcome
    }

    fn operation(&mut self, operation: &Operation) -> Outcome {
        let current = self.rows.get(operation.key()).map(|(version, _)| Version(*version));
        let (Operation::Put { condition, .. } | Operation::Delete { condition, .. }) = operation;
        let passes = match condition {
            Condition::None => true,
            Condition::Absent => current.is_none(),
            Condition::Version(version) => current == Some(*version),
        };
        if !passes {
            return Outcome::ConditionFailed { current };
        }
        match operation {
            Operation::Put { key, value, .. } => {
                self.writes += 1;
                self.rows.insert(key.clone(), (self.writes, value.clone()));
                was_put(self.writes)
            }
            Operation::Delete { key, .. } => {
                let existed = self.rows.remove(key).is_some();
                self.writes += u64::from(existed);
                Outcome::Deleted { existed }
            }
        }
    }

    /// Fails unless the table holds exactly this.
    pub(super) fn check(&self, table: &CohortTable) {
        assert_eq!(table.applied(), self.applied);
        assert_eq!(table.protocol_state(), self.protocol);
        let rows = all_rows(table).into_iter().map(|row| (row.key, (row.version.0, row.value)));
        let rows: BTreeMap<_, _> = rows.collect();
        assert!(rows == self.rows, "rows differ at {}: {rows:?} {:?}", self.applied, self.rows);
    }
}

/// Pseudo-random numbers that follow from a seed (splitmix64).
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A log that goes on and on, and what its entries so far amount to.
#[derive(Clone, Debug)]
pub(super) struct Script {
    random: Random,
    epoch: Epoch,
    sequences: [u64; CLIENTS],
    pub(super) model: Model,
}

const CLIENTS: usize = 3;
const KEYS: u64 = 60;

impl Script {
    pub(super) fn new(seed: u64) -> Self {
        Self { random: Random(seed), epoch: 1, sequences: [0; CLIENTS], model: Model::default() }
    }

    /// Returns the next entry and what its outcomes must be.
    pub(super) fn next(&mut self) -> (Entry, Vec<Outcome>) {
        self.epoch += u64::from(self.random.below(50) == 0);
        let lsn = Lsn::new(self.epoch, self.model.applied.seq + 1);
        let next = match self.random.below(20) {
            0 => Entry { lsn, kind: EntryKind::NoOp, payload: Bytes::new() },
            1 => {
                let payload = Bytes::from(lsn.to_string());
                Entry { lsn, kind: EntryKind::Protocol, payload }
            }
            _ => {
                let count = self.random.below(12);
                let commands = (0..count).map(|_| self.command()).collect();
                Entry { lsn, ..entry(lsn.seq, commands) }
            }
        };
        let outcomes = self.model.apply(&next);
        (next, outcomes)
    }

    fn command(&mut self) -> Command {
        let key = Bytes::from(format!("key-{:03}", self.random.below(KEYS)));
        let condition = match self.random.below(6) {
            0 => Condition::Absent,
            1 => Condition::Version(Version(self.random.below(self.model.writes + 2))),
            2 => match self.model.rows.get(&key) {
                Some((version, _)) => Condition::Version(Version(*version)),
                None => Condition::Absent,
            },
            _ => Condition::None,
        };
        let operation = if self.random.below(4) == 0 {
            Operation::Delete { key, condition }
        } else {
            let letter = b'a' + u8::try_from(self.random.below(26)).unwrap();
            let len = usize::try_from(self.random.below(300)).unwrap();
            Operation::Put { key, value: Bytes::from(vec![letter; len]), condition }
        };
        Command { request: self.request(), operation }
    }

    /// Mostly the client's next request, sometimes one of those before it.
    fn request(&mut self) -> Option<RequestId> {
        let client = usize::try_from(self.random.below(CLIENTS as u64 + 1)).unwrap();
        let last = self.sequences.get_mut(client)?;
        let sequence = if self.random.below(4) == 0 {
            last.saturating_sub(self.random.below(20))
        } else {
            *last += 1;
            *last
        };
        let first_incomplete = last.saturating_sub(self.random.below(20));
        let client = ClientId(client as u128);
        Some(RequestId { client, sequence, first_incomplete, start: None })
    }
}
