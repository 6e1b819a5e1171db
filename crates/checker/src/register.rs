//! The sequential specification of one key, which is most of what is judged: its state is its value
//! alone.

use crate::kv::{Input, KvOperation, Output, Text};
use crate::search::{Makes, Model};

/// The specification of a single key.
pub(crate) struct Register;

/// Returns true if operations are on a single key each. Those of a part are on the same one then.
pub(crate) fn is_of_one_key(part: &[KvOperation]) -> bool {
    part.iter().all(|operation| operation.input.key().is_some())
}

impl Model for Register {
    type State = Option<Text>;
    type Input = Input;
    type Output = Output;

    fn initial(&self) -> Option<Text> {
        None
    }

    fn step(
        &self,
        state: &Option<Text>,
        input: &Input,
        output: &Output,
    ) -> Option<Option<Option<Text>>> {
        match (input, output) {
            (Input::Get { .. }, Output::Found(found)) => (state == found).then_some(None),
            (Input::CompareAndSet { expected, value, .. }, Output::Done) => {
                (state == expected).then(|| Some(Some(value.clone())))
            }
            (Input::CompareAndSet { expected, .. }, Output::Refused) => {
                (state != expected).then_some(None)
            }
            (Input::Put { .. } | Input::Delete { .. } | Input::Append { .. }, Output::Done) => {
                Some(Some(written(state, input)))
            }
            _ => None,
        }
    }

    fn step_of_unknown(&self, state: &Option<Text>, input: &Input) -> Option<Option<Text>> {
        let after = written(state, input);
        (after != *state).then_some(after)
    }

    fn needs(&self, input: &Input, output: &Output) -> Option<Option<Text>> {
        match (input, output) {
            (Input::Get { .. }, Output::Found(found)) => Some(found.clone()),
            (Input::CompareAndSet { expected, .. }, Output::Done) => Some(expected.clone()),
            _ => None,
        }
    }

    fn makes(&self, input: &Input, output: Option<&Output>) -> Makes<Option<Text>> {
        match input {
            Input::Get { .. } | Input::Scan { .. } => Makes::Nothing,
            Input::CompareAndSet { .. } if output == Some(&Output::Refused) => Makes::Nothing,
            Input::Put { value, .. } | Input::CompareAndSet { value, .. } => {
                Makes::State(Some(value.clone()))
            }
            Input::Delete { .. } => Makes::State(None),
            Input::Append { .. } => Makes::Unknown,
        }
    }
}

/// Returns the value after an operation that is done, whatever its answer.
fn written(state: &Option<Text>, input: &Input) -> Option<Text> {
    match input {
        Input::Put { value, .. } => Some(value.clone()),
        Input::Delete { .. } => None,
        Input::Append { value, .. } => {
            let old = state.as_deref().unwrap_or_default();
            Some(format!("{old}{value}").into())
        }
        Input::CompareAndSet { expected, value, .. } if state == expected => Some(value.clone()),
        Input::CompareAndSet { .. } | Input::Get { .. } | Input::Scan { .. } => state.clone(),
    }
}
