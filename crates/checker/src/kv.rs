//! The sequential specification of a key-value store, and the parts of a history that it can be
//! divided into.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::history::Operation;
use crate::search::Model;

/// A key or a value.
pub type Text = Arc<str>;

/// What a client asks of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The value of a key.
    Get {
        /// The key.
        key: Text,
    },
    /// A key is to have a value.
    Put {
        /// The key.
        key: Text,
        /// Its value from then on.
        value: Text,
    },
    /// A key is to have no value.
    Delete {
        /// The key.
        key: Text,
    },
    /// A key's value is to be longer; a key without a value begins with the empty one.
    Append {
        /// The key.
        key: Text,
        /// What follows the value.
        value: Text,
    },
    /// A key is to have another value if it has the expected one.
    CompareAndSet {
        /// The key.
        key: Text,
        /// The value that it must have; `None` for no value.
        expected: Option<Text>,
        /// Its value from then on.
        value: Text,
    },
    /// All keys in `[start, end)` with their values.
    Scan {
        /// The first key.
        start: Text,
        /// The first key past the interval; `None` for no end.
        end: Option<Text>,
    },
}

/// What the store answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To a get: the key's value, if it has one.
    Found(Option<Text>),
    /// To a write: it was done.
    Done,
    /// To a conditional write: the condition did not hold, and nothing was done.
    Refused,
    /// To a scan: keys and values, in the order of the keys.
    Rows(Vec<(Text, Text)>),
}

/// An operation on the store.
pub type KvOperation = Operation<Input, Output>;

/// The rows of the store.
pub type Rows = BTreeMap<Text, Text>;

/// The sequential specification of the store.
#[derive(Clone, Copy, Debug, Default)]
pub struct KvModel;

impl Model for KvModel {
    type State = Rows;
    type Input = Input;
    type Output = Output;

    fn initial(&self) -> Rows {
        Rows::new()
    }

    fn step(&self, rows: &Rows, input: &Input, output: &Output) -> Option<Option<Rows>> {
        match (input, output) {
            (Input::Get { key }, Output::Found(found)) => {
                (rows.get(key) == found.as_ref()).then_some(None)
            }
            (Input::CompareAndSet { key, expected, .. }, Output::Done) => {
                (rows.get(key) == expected.as_ref()).then(|| Some(written(rows, input)))
            }
            (Input::CompareAndSet { key, expected, .. }, Output::Refused) => {
                (rows.get(key) != expected.as_ref()).then_some(None)
            }
            (Input::Put { .. } | Input::Delete { .. } | Input::Append { .. }, Output::Done) => {
                Some(Some(written(rows, input)))
            }
            (Input::Scan { start, end }, Output::Rows(found)) => {
                let end = end.as_ref();
                let inside = rows.range(start.clone()..);
                let inside = inside.take_while(|(key, _)| end.is_none_or(|end| *key < end));
                inside.eq(found.iter().map(|(key, value)| (key, value))).then_some(None)
            }
            _ => None,
        }
    }

    fn step_of_unknown(&self, rows: &Rows, input: &Input) -> Option<Rows> {
        changed(rows, input)
    }
}

/// Returns the rows after a write that is done.
fn written(rows: &Rows, input: &Input) -> Rows {
    changed(rows, input).unwrap_or_else(|| rows.clone())
}

/// Returns the rows after a write that is done; `None` if they stay the same.
fn changed(rows: &Rows, input: &Input) -> Option<Rows> {
    let (key, value) = match input {
        Input::Get { .. } | Input::Scan { .. } => return None,
        Input::Put { key, value } => (key, Some(value.clone())),
        Input::Delete { key } => (key, None),
        Input::Append { key, value } => {
            let old = rows.get(key).map_or("", |old| old);
            (key, Some(Text::from(format!("{old}{value}"))))
        }
        Input::CompareAndSet { key, expected, value } => {
            if rows.get(key) != expected.as_ref() {
                return None;
            }
            (key, Some(value.clone()))
        }
    };
    if rows.get(key) == value.as_ref() {
        return None;
    }
    let mut rows = rows.clone();
    match value {
        Some(value) => rows.insert(key.clone(), value),
        None => rows.remove(key),
    };
    Some(rows)
}

impl Input {
    /// Returns the key of an operation on one key.
    pub fn key(&self) -> Option<&Text> {
        match self {
            Self::Get { key }
            | Self::Put { key, .. }
            | Self::Delete { key }
            | Self::Append { key, .. }
            | Self::CompareAndSet { key, .. } => Some(key),
            Self::Scan { .. } => None,
        }
    }
}

/// Divides a history into parts that are linearizable if and only if the whole is (linearizability
/// is local): the operations of each key, with keys joined that one scan reads.
///
/// A scan also reads the keys that no operation names; of those it must find nothing, so it is
/// judged in a part of its own if it reads no key that is named.
pub fn partition(history: Vec<KvOperation>) -> Vec<Vec<KvOperation>> {
    let named: BTreeSet<Text> = history
        .iter()
        .flat_map(|operation| {
            let rows = match operation.answer.as_ref().map(|answer| &answer.output) {
                Some(Output::Rows(rows)) => &rows[..],
                _ => &[],
            };
            let found = rows.iter().map(|(key, _)| key.clone());
            operation.input.key().cloned().into_iter().chain(found)
        })
        .collect();
    // Each key is the part that begins with it, or belongs to the part of an earlier key: an
    // interval joins all keys that it covers, so parts are intervals too.
    let keys: Vec<Text> = named.into_iter().collect();
    let mut joined = vec![false; keys.len()];
    for operation in &history {
        if let Input::Scan { start, end } = &operation.input {
            let (first, past) = covered(&keys, start, end.as_ref());
            joined[(first + 1).min(past)..past].fill(true);
        }
    }
    let mut part_of = Vec::with_capacity(keys.len());
    let mut parts: Vec<Vec<KvOperation>> = Vec::new();
    for is_joined in joined {
        if !is_joined {
            parts.push(Vec::new());
        }
        part_of.push(parts.len() - 1);
    }
    let mut alone = Vec::new();
    for operation in history {
        let at = match &operation.input {
            Input::Scan { start, end } => {
                let (first, past) = covered(&keys, start, end.as_ref());
                (first < past).then_some(first)
            }
            single => single.key().and_then(|key| keys.binary_search(key).ok()),
        };
        match at {
            Some(at) => parts[part_of[at]].push(operation),
            None => alone.push(vec![operation]),
        }
    }
    parts.append(&mut alone);
    parts.retain(|part| !part.is_empty());
    parts
}

/// Returns which of the sorted keys an interval covers.
fn covered(keys: &[Text], start: &Text, end: Option<&Text>) -> (usize, usize) {
    let first = keys.partition_point(|key| key < start);
    let past = end.map_or(keys.len(), |end| keys.partition_point(|key| key < end));
    (first, past.max(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Answer;

    fn operation(input: Input, output: Output) -> KvOperation {
        Operation { client: 1, input, called: 1, answer: Some(Answer { at: 2, output }) }
    }

    fn put(key: &str) -> KvOperation {
        operation(Input::Put { key: key.into(), value: "1".into() }, Output::Done)
    }

    fn scan(start: &str, end: Option<&str>) -> KvOperation {
        let end = end.map(Text::from);
        operation(Input::Scan { start: start.into(), end }, Output::Rows(Vec::new()))
    }

    #[test]
    fn keys_are_judged_apart_unless_a_scan_joins_them() {
        let sizes = |history: Vec<KvOperation>| -> Vec<usize> {
            partition(history).iter().map(Vec::len).collect()
        };
        assert_eq!(sizes(vec![put("a"), put("b"), put("a")]), [2, 1]);
        assert_eq!(sizes(vec![put("a"), put("b"), put("c"), scan("a", Some("c"))]), [3, 1]);
        assert_eq!(sizes(vec![put("a"), put("b"), put("c"), scan("b", None)]), [1, 3]);
        assert_eq!(sizes(vec![put("a"), scan("x", None)]), [1, 1]);
        assert_eq!(sizes(vec![put("a"), scan("b", Some("a"))]), [1, 1]);
    }

    #[test]
    fn the_model_knows_each_operation() {
        let get = |found: Option<&str>| {
            let found = Output::Found(found.map(Text::from));
            (Input::Get { key: "k".into() }, found)
        };
        let set = |expected: Option<&str>, output| {
            let expected = expected.map(Text::from);
            (Input::CompareAndSet { key: "k".into(), expected, value: "c".into() }, output)
        };
        let append = (Input::Append { key: "k".into(), value: "z".into() }, Output::Done);
        let steps = [
            (get(None), true),
            (get(Some("")), false),
            (set(Some("a"), Output::Done), false),
            (set(Some("a"), Output::Refused), true),
            (set(None, Output::Done), true),
            (get(Some("c")), true),
            (append, true),
            (get(Some("cz")), true),
            ((Input::Delete { key: "k".into() }, Output::Done), true),
            (get(None), true),
            // An answer that does not fit the question is never right.
            ((Input::Get { key: "k".into() }, Output::Done), false),
        ];
        let mut rows = KvModel.initial();
        for ((input, output), is_right) in steps {
            let step = KvModel.step(&rows, &input, &output);
            assert_eq!(step.is_some(), is_right, "{input:?} answered by {output:?}");
            rows = step.flatten().unwrap_or(rows);
        }
    }
}
