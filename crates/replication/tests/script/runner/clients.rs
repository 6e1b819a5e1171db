//! What clients ask, and what they take for an answer.

use std::error::Error;

use bytes::Bytes;
use trireme_replication::core::Event;
use trireme_types::{
    ClientId, Command as Write, CommandBatch, Condition, KeyRange, NodeId, Operation, Outcome,
    Protocol, RequestId, Seal, Successor, Version,
};

use super::super::invariants::{Found, Request};
use super::super::mistakes::Mistake;
use super::super::node::{Answer, Asked};
use super::super::{ScriptCoordinator, Subject};
use super::Runner;

impl<S: Subject> Runner<S> {
    pub(super) fn propose(
        &mut self,
        node: u64,
        changes: Vec<(String, Option<String>)>,
    ) -> Result<(), Box<dyn Error>> {
        let operation = |change| operation(change, Condition::None);
        let write = |change| Write { request: None, operation: operation(change) };
        let commands = changes.iter().map(write).collect();
        let payload = CommandBatch { commands, clock: 0 }.encode();
        let asked = Asked::Write { changes, request: None };
        self.ask(node, asked, |ticket| Event::Propose { ticket, payload })
    }

    /// Proposes to end the cohort, as for another protocol or for a split at a key.
    pub(super) fn seal(&mut self, node: u64, at: Option<&str>) -> Result<(), Box<dyn Error>> {
        let ranges = match at {
            None => vec![(KeyRange::all(), Protocol::Raft)],
            Some(at) => {
                let at = at.to_owned();
                let halves =
                    [KeyRange::new("", Some(at.clone())), KeyRange::new(at, None::<String>)];
                halves.map(|half| (half, S::PROTOCOL)).into()
            }
        };
        let replicas = self.cluster.nodes.clone();
        let successor = |(range, protocol)| {
            let (replicas_wanted, replicas) = (replicas.len(), replicas.clone());
            Successor { range, protocol, replicas, replicas_wanted }
        };
        let seal = Seal::new(ranges.into_iter().map(successor).collect());
        let payload = seal.encode();
        self.ask(node, Asked::Seal, |ticket| Event::Propose { ticket, payload })
    }

    /// Has a client send a write under a name that it can send it under again.
    pub(super) fn request(
        &mut self,
        node: u64,
        name: &str,
        words: &[String],
        condition: Option<&str>,
    ) -> Result<(), Box<dyn Error>> {
        let condition = self::condition(condition)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let change = match words[..] {
            ["put", key, value] => (key.to_owned(), Some(value.to_owned())),
            ["delete", key] => (key.to_owned(), None),
            _ => return Err(format!("no write is called {words:?}").into()),
        };
        let write = (change.clone(), condition);
        match self.requests.insert(named(name)?, write.clone()) {
            Some(other) if other != write => Err(format!("{name} names another write").into()),
            _ => self.retry(node, name),
        }
    }

    /// Has a client send a write once more.
    pub(super) fn retry(&mut self, node: u64, name: &str) -> Result<(), Box<dyn Error>> {
        let request @ (client, sequence) = named(name)?;
        let Some((change, condition)) = self.requests.get(&request).cloned() else {
            return Err(format!("{name} names no write").into());
        };
        let client = ClientId(client.into());
        let id = RequestId { client, sequence, first_incomplete: 0, start: None };
        let command = Write { request: Some(id), operation: operation(&change, condition) };
        let payload = CommandBatch { commands: vec![command], clock: 0 }.encode();
        let asked = Asked::Write { changes: vec![change], request: Some(request) };
        self.ask(node, asked, |ticket| Event::Propose { ticket, payload })
    }

    /// Reads what a replica has, whether or not it is the newest. A client takes no state that is older
    /// than it has seen.
    pub(super) fn timeline(
        &mut self,
        node: u64,
        key: &str,
        client: Option<u64>,
    ) -> Result<(), Box<dyn Error>> {
        let node = self.node(node)?;
        let (id, run, applied) = (node.id, node.run, node.names());
        if node.table.seal().is_some() {
            self.print(id, "reads nothing: the cohort has ended");
            return Ok(());
        }
        let row = node.table.row(key);
        self.print(id, &format!("holds {row}"));
        let value = self.nodes[&id].table.value(key);
        let value = value.map(|value| value.escape_ascii().to_string());
        let found = Found { key, value: value.as_deref(), applied };
        let agreement = &self.invariants.agreement;
        if self.nodes[&id].live.is_none() {
            return Ok(());
        }
        self.invariants.timeline.answers((id, run), &found, agreement);
        let Some(client) = client else { return Ok(()) };
        let seen = self.seen.entry(client).or_default();
        if applied < *seen && self.cluster.mistake() != Some(Mistake::TakesOlder) {
            return Ok(());
        }
        *seen = applied;
        self.invariants.timeline.takes(client, &found, agreement);
        Ok(())
    }

    /// Takes the answer to a write.
    pub(super) fn acknowledged(&mut self, id: NodeId, answer: &Answer) {
        let Answer { ticket, lsn, request, outcomes, text } = answer;
        self.print_effect(id, text);
        let is_void = |outcome: &Outcome| matches!(outcome, Outcome::ConditionFailed { .. });
        let took_effect = !outcomes.iter().any(is_void);
        let (invariants, nodes) = (&mut self.invariants, &self.nodes);
        let is_turned_away = invariants.is_turned_away(id, *lsn, outcomes);
        if is_turned_away {
            // The client asks a successor, which knows whether it was applied before.
            invariants.history.unanswered((id, *ticket));
        } else if !outcomes.is_empty() {
            invariants.history.acknowledged((id, *ticket), took_effect);
        }
        let (all, most) = (self.coordinator.replicas(), self.coordinator.members());
        invariants.disks.acknowledged(id, *lsn, &invariants.agreement, nodes, (all, most));
        invariants.rights.acknowledged(id, *lsn, self.now, nodes);
        if let (Some(request), Some(outcome), false) = (request, outcomes.first(), is_turned_away) {
            invariants.answered(*request, *outcome);
        }
    }

    /// Returns the version that a client was told of when its write of the key was acknowledged.
    pub(crate) fn version_of(&self, request: Request) -> Option<u64> {
        match self.invariants.agreement.outcome(request) {
            Some(Outcome::Put { version }) => Some(version.0),
            _ => None,
        }
    }
}

/// Reads a request's name: the client and its number, as in `2.3`.
fn named(name: &str) -> Result<Request, Box<dyn Error>> {
    let (client, number) = name.split_once('.').ok_or("a request is called CLIENT.NUMBER")?;
    Ok((client.parse()?, number.parse()?))
}

fn condition(text: Option<&str>) -> Result<Condition, Box<dyn Error>> {
    match text.map(|text| (text, text.strip_prefix('v'))) {
        None => Ok(Condition::None),
        Some(("absent", _)) => Ok(Condition::Absent),
        Some((_, Some(version))) => Ok(Condition::Version(Version(version.parse()?))),
        Some((other, None)) => Err(format!("no condition is called {other}").into()),
    }
}

fn operation((key, value): &(String, Option<String>), condition: Condition) -> Operation {
    let key = Bytes::from(key.clone());
    match value.clone().map(Bytes::from) {
        Some(value) => Operation::Put { key, value, condition },
        None => Operation::Delete { key, condition },
    }
}
