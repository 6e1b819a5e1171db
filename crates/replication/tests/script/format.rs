//! How scripts print what happens.

use std::ops::Range;

use trireme_replication::core::{Core, Effect, Event, Reply, When};
use trireme_storage::LogWrite;
use trireme_types::{Condition, Entry, EntryKind, Lsn, Operation, Outcome, Payload};

use super::Subject;

/// Returns an event as one line.
pub(crate) fn event<S: Subject>(event: &Event<S>) -> String {
    match event {
        Event::Message { from, message } => format!("from {from}: {message}"),
        Event::Propose { ticket, payload } => format!("propose {ticket} {}", commands(payload)),
        Event::Read { ticket } => format!("read {ticket}"),
        Event::TransferLeader { ticket, to } => format!("transfer {ticket} to {to}"),
        Event::ReleaseLog { ticket, upto } => format!("release {ticket} upto {upto}"),
        Event::Durable { upto } => format!("durable {}", upto.0),
        Event::Applied { upto } => format!("applied {upto}"),
        Event::LogSent { to, seqs, next } => format!("sent {to} {} of {}", next, range(seqs)),
        Event::SnapshotSent { to, answer: Some(answer) } => format!("snapshot to {to}: {answer}"),
        Event::SnapshotSent { to, answer: None } => format!("snapshot to {to}: lost"),
        Event::SnapshotOffered { ticket, from, message, upto } => {
            format!("snapshot {ticket} from {from} at {upto}: {message}")
        }
        Event::SnapshotInstalled { ticket, upto } => format!("installed {ticket} at {upto}"),
        Event::SnapshotOutdated { ticket } => format!("outdated {ticket}"),
        Event::Coordination(event) => format!("coordinator: {event:?}"),
        Event::PeerAlive { node } => format!("alive {node}"),
        Event::PeerLost { node } => format!("lost {node}"),
        Event::Heard { leader, terms, .. } => {
            format!("rested under {leader} at {}", terms.committed)
        }
        Event::Supported { by } => {
            let by: Vec<_> = by.iter().map(|(node, _)| node.to_string()).collect();
            format!("rested supported by {}", by.join(" "))
        }
        Event::Timeout => "timeout".into(),
    }
}

/// Returns a write to the log.
pub(crate) fn write(write: &LogWrite) -> String {
    match write {
        LogWrite::Append(entries) => {
            let entries: Vec<_> = entries.iter().map(entry).collect();
            format!("append [{}]", entries.join(", "))
        }
        LogWrite::HardState(state) => format!("hard state {}", state.escape_ascii()),
        LogWrite::TruncateAfter { seq } => format!("truncate after {seq}"),
        LogWrite::Purge { upto } => format!("purge upto {upto}"),
        LogWrite::Begin { after } => format!("begin after {after}"),
        LogWrite::CommitPoint(point) => format!("commit point {point}"),
    }
}

/// Returns an entry with its commands.
pub(crate) fn entry(entry: &Entry) -> String {
    let Entry { lsn, kind, payload } = entry;
    match kind {
        EntryKind::Commands => format!("{lsn} {}", commands(payload)),
        EntryKind::NoOp => format!("{lsn} barrier"),
        EntryKind::Protocol => format!("{lsn} protocol"),
    }
}

/// Returns the sequences as scripts print them, both ends included.
pub(crate) fn range(seqs: &Range<u64>) -> String {
    format!("{}..={}", seqs.start, seqs.end - 1)
}

/// Returns what became of the commands of an entry.
pub(crate) fn outcomes(lsn: Lsn, outcomes: &[Outcome]) -> String {
    let outcomes: Vec<_> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Outcome::Put { version } => format!("put v{version}"),
            Outcome::Deleted { existed } => format!("deleted existed={existed}"),
            Outcome::ConditionFailed { current } => format!("condition failed: {current:?}"),
            Outcome::WrongRange => "wrong range".into(),
            Outcome::SessionGone { .. } => "session gone".into(),
            Outcome::SessionsFull => "sessions full".into(),
        })
        .collect();
    let outcomes = if outcomes.is_empty() { "applied".into() } else { outcomes.join(", ") };
    format!("{outcomes} at {lsn}")
}

/// Returns an answer that is no outcome.
pub(crate) fn reply<C: Core<Message: std::fmt::Display>>(reply: &Reply<C>) -> String {
    match reply {
        Reply::Done => "done".into(),
        Reply::Read { until: Some(until) } => format!("read until {until}"),
        Reply::Read { until: None } => "read".into(),
        Reply::Message(message) => message.to_string(),
        Reply::Error(error) => format!("error: {error}"),
    }
}

/// Returns the condition under which the effect may leave, if it is of a kind that has one.
pub(crate) fn condition<S: Subject>(effect: &Effect<S>) -> Option<When> {
    match effect {
        Effect::Send { when, .. }
        | Effect::SendLog { when, .. }
        | Effect::SendSnapshot { when, .. }
        | Effect::Reply { when, .. }
        | Effect::Coordinate { when, .. } => Some(*when),
        Effect::Persist(_)
        | Effect::InstallSnapshot { .. }
        | Effect::Commit { .. }
        | Effect::ReplyOutcomes { .. }
        | Effect::EndReads => None,
    }
}

/// Returns an effect as one line, with what it does now.
pub(crate) fn effect<S: Subject>(effect: &Effect<S>, verb: &str) -> String {
    match effect {
        Effect::Persist(write) => format!("persist: {}", self::write(write)),
        Effect::Send { to, message, .. } => format!("{verb} {to}: {message}"),
        Effect::SendLog { to, seqs, context, .. } => {
            format!("{verb} {to} log {}: {context}", range(seqs))
        }
        Effect::SendSnapshot { to, message, .. } => format!("{verb} {to} snapshot: {message}"),
        Effect::InstallSnapshot { ticket } => format!("install {ticket}"),
        Effect::Commit { upto } => format!("commit {upto}"),
        Effect::ReplyOutcomes { ticket, lsn } => format!("reply {ticket} when applied({lsn})"),
        Effect::Reply { ticket, reply, .. } => format!("reply {ticket}: {}", self::reply(reply)),
        Effect::Coordinate { request, .. } => format!("ask coordinator: {request:?}"),
        Effect::EndReads => "end reads".into(),
    }
}

fn commands(payload: &[u8]) -> String {
    let batch = match Payload::decode(payload).expect("scripts propose batches and seals") {
        Payload::Commands(batch) => batch,
        Payload::Seal(seal) => {
            let successors = seal.successors.iter();
            let successors = successors.map(|it| format!("{} {}", it.protocol, it.range));
            return format!("seal [{}]", successors.collect::<Vec<_>>().join(", "));
        }
    };
    let commands: Vec<_> =
        batch.commands.iter().map(|command| operation(&command.operation)).collect();
    commands.join(" ")
}

fn operation(operation: &Operation) -> String {
    let (change, condition) = match operation {
        Operation::Put { key, value, condition } => {
            (format!("{}={}", key.escape_ascii(), value.escape_ascii()), condition)
        }
        Operation::Delete { key, condition } => (format!("-{}", key.escape_ascii()), condition),
    };
    match condition {
        Condition::None => change,
        Condition::Absent => format!("{change} if absent"),
        Condition::Version(version) => format!("{change} if v{version}"),
    }
}
