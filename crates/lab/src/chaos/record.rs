//! What clients did and saw, in one clock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use trireme_checker::history::{Answer, Operation};
use trireme_checker::kv::{Input, KvOperation, Output, Text};
use trireme_client::{ClientError, ErrorClass, Version};

/// A clock that all clients of a run share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

/// A state that a timeline read was answered from.
#[derive(Clone, Debug)]
pub(crate) struct TimelineRead {
    pub(crate) client: u64,
    pub(crate) called: u64,
    pub(crate) key: Text,
    /// The version that it found; `None` if the key had no value.
    pub(crate) version: Option<u64>,
    pub(crate) applied: (u64, u64),
    pub(crate) age: Option<Duration>,
}

/// What one client, or several, did in one round.
#[derive(Debug, Default)]
pub(crate) struct Recorded {
    /// The operations that were done or may have been. One that was refused for good is in none of
    /// them: it was not done.
    pub(crate) history: Vec<KvOperation>,
    /// Each version of a key that was seen, with its value.
    pub(crate) versions: Vec<(Text, u64, Text)>,
    /// Plain puts that were acknowledged: key, version, and when.
    pub(crate) puts: Vec<(Text, u64, u64)>,
    pub(crate) timeline: Vec<TimelineRead>,
    /// When nodes' messages began to come late, and by how much.
    pub(crate) delays: Vec<(u64, Duration)>,
    /// Keys that were added once and never changed, with their values, by what became of that.
    pub(crate) added: BTreeMap<Text, Text>,
    pub(crate) perhaps_added: BTreeSet<Text>,
    pub(crate) never_added: BTreeSet<Text>,
    /// The elements that were appended to each key, by what became of that.
    pub(crate) appended: BTreeMap<Text, BTreeSet<Text>>,
    pub(crate) perhaps_appended: BTreeMap<Text, BTreeSet<Text>>,
    /// How many operations were refused: they were not done.
    pub(crate) refused: u64,
    /// Answers that break the rules by themselves.
    pub(crate) broken: Vec<String>,
}

/// What became of a call.
pub(crate) enum Became<T> {
    /// It was answered.
    Answered(T),
    /// It may have been done, or may be done yet.
    Ambiguous,
    /// It was not done.
    Refused,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }

    /// Returns the microseconds since the run began.
    pub(crate) fn now(self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Recorded {
    /// Records an operation, and returns its answer.
    pub(crate) fn operation<T>(
        &mut self,
        client: u64,
        input: Input,
        (called, returned): (u64, u64),
        result: Result<T, ClientError>,
        output: impl FnOnce(&T) -> Output,
    ) -> Became<T> {
        let is_write = !matches!(input, Input::Get { .. } | Input::Scan { .. });
        match result {
            Ok(answer) => {
                let output = output(&answer);
                let answered = Some(Answer { at: returned, output });
                self.history.push(Operation { client, input, called, answer: answered });
                Became::Answered(answer)
            }
            Err(error) => match error.class() {
                ErrorClass::Unknown if is_write => {
                    self.history.push(Operation { client, input, called, answer: None });
                    Became::Ambiguous
                }
                ErrorClass::Retry | ErrorClass::Unknown => {
                    self.refused += 1;
                    Became::Refused
                }
                ErrorClass::Invalid | ErrorClass::Fatal => {
                    self.broken.push(format!("client {client}: {input:?}: {error}"));
                    Became::Refused
                }
            },
        }
    }

    /// Records that a key was seen to have a version with a value.
    pub(crate) fn version(&mut self, key: &Text, version: Version, value: &Text) {
        self.versions.push((key.clone(), version.0, value.clone()));
    }

    /// Takes over what another client recorded.
    pub(crate) fn merge(&mut self, other: Self) {
        self.history.extend(other.history);
        self.versions.extend(other.versions);
        self.puts.extend(other.puts);
        self.timeline.extend(other.timeline);
        self.delays.extend(other.delays);
        self.added.extend(other.added);
        self.perhaps_added.extend(other.perhaps_added);
        self.never_added.extend(other.never_added);
        for (key, elements) in other.appended {
            self.appended.entry(key).or_default().extend(elements);
        }
        for (key, elements) in other.perhaps_appended {
            self.perhaps_appended.entry(key).or_default().extend(elements);
        }
        self.refused += other.refused;
        self.broken.extend(other.broken);
    }

    /// Returns how many operations were answered.
    pub(crate) fn answered(&self) -> usize {
        self.history.iter().filter(|operation| operation.answer.is_some()).count()
    }

    /// Returns how many writes have an unknown outcome.
    pub(crate) fn ambiguous(&self) -> usize {
        self.history.len() - self.answered()
    }
}

/// Returns bytes of this suite's own making as text.
pub(crate) fn text(bytes: &[u8]) -> Text {
    Arc::from(String::from_utf8_lossy(bytes))
}
