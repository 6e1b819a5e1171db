//! What an order of operations must not lose: a state that operations still have to find, and that no
//! operation which is left can bring back.

use std::collections::HashMap;

use super::{Makes, Model};
use crate::history::Operation;

/// Which states are needed still, and can be made still. Of operations that are taken out of order
/// and put back, by their places in the history.
pub(super) struct Losses<S> {
    /// The state, by a number of its own, that each operation needs, and that it makes.
    needs: Vec<Option<usize>>,
    makes: Vec<Option<usize>>,
    numbers: HashMap<S, usize>,
    /// How many operations that are left need each state, and how many make it.
    needed: Vec<usize>,
    makers: Vec<usize>,
}

impl<S: Clone + Eq + std::hash::Hash> Losses<S> {
    /// Returns what is needed and made by a history; `None` if the model does not know.
    pub(super) fn of<M: Model<State = S>>(
        model: &M,
        history: &[Operation<M::Input, M::Output>],
    ) -> Option<Self> {
        let mut losses = Self {
            needs: Vec::with_capacity(history.len()),
            makes: Vec::with_capacity(history.len()),
            numbers: HashMap::new(),
            needed: Vec::new(),
            makers: Vec::new(),
        };
        for operation in history {
            let output = operation.answer.as_ref().map(|answer| &answer.output);
            let needs = output.and_then(|output| model.needs(&operation.input, output));
            let makes = match model.makes(&operation.input, output) {
                Makes::Nothing => None,
                Makes::State(state) => Some(state),
                Makes::Unknown => return None,
            };
            let needs = needs.map(|state| losses.number(state));
            let makes = makes.map(|state| losses.number(state));
            losses.needs.push(needs);
            losses.makes.push(makes);
            losses.put_back(losses.needs.len() - 1);
        }
        Some(losses)
    }

    fn number(&mut self, state: S) -> usize {
        let next = self.needed.len();
        let number = *self.numbers.entry(state).or_insert(next);
        if number == next {
            self.needed.push(0);
            self.makers.push(0);
        }
        number
    }

    /// Has an operation be left no more.
    pub(super) fn take(&mut self, place: usize) {
        self.change(place, |count| *count -= 1);
    }

    /// Has an operation be left again.
    pub(super) fn put_back(&mut self, place: usize) {
        self.change(place, |count| *count += 1);
    }

    fn change(&mut self, place: usize, change: impl Fn(&mut usize)) {
        if let Some(number) = self.needs[place] {
            change(&mut self.needed[number]);
        }
        if let Some(number) = self.makes[place] {
            change(&mut self.makers[number]);
        }
    }

    /// Returns the place of an operation that needs a state which is neither the initial one nor made
    /// by any operation.
    pub(super) fn never_there(&self, initial: &S) -> Option<usize> {
        let initial = self.numbers.get(initial).copied();
        self.needs.iter().position(|needs| {
            needs.is_some_and(|number| Some(number) != initial && self.makers[number] == 0)
        })
    }

    /// Returns true if no operation that is left makes a state that some of them need.
    pub(super) fn would_lose(&self, state: &S) -> bool {
        let number = self.numbers.get(state);
        number.is_some_and(|&number| self.needed[number] > 0 && self.makers[number] == 0)
    }
}
