//! The verdict on a whole history of the store.

use crate::kv::{KvModel, KvOperation, partition};
use crate::register::{Register, is_of_one_key};
use crate::search::{Bound, Found, Limits, search};

/// What a history is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order of the operations that explains every answer.
    Linearizable,
    /// There is none.
    NotLinearizable(Box<CounterExample>),
    /// A bound was reached before either was shown.
    Unknown(Bound),
}

/// Operations that cannot be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterExample {
    /// The part of the history that has no order: all operations of a key, or of keys that scans
    /// join.
    pub part: Vec<KvOperation>,
    /// The longest beginning of an order that was found, as places in `part`.
    pub longest: Vec<usize>,
    /// The operation that could not follow, as a place in `part`.
    pub stuck: usize,
}

impl Verdict {
    /// Returns the verdict in a few words.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::NotLinearizable(_) => "not linearizable",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// Judges a history. The bounds hold for each of its parts.
///
/// A part that is not linearizable makes the whole so, even if others could not be judged.
pub fn check(history: Vec<KvOperation>, limits: &Limits) -> Verdict {
    let mut verdict = Verdict::Linearizable;
    for part in partition(history) {
        let found = if is_of_one_key(&part) {
            search(&Register, &part, limits)
        } else {
            search(&KvModel, &part, limits)
        };
        match found {
            Found::Order(_) => {}
            Found::NoOrder { longest, stuck } => {
                return Verdict::NotLinearizable(Box::new(CounterExample { part, longest, stuck }));
            }
            Found::Exhausted(bound) => verdict = Verdict::Unknown(bound),
        }
    }
    verdict
}
