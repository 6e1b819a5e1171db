//! Looks for an order of operations that explains every answer: the algorithm of Wing and Gong
//! (1993) with the memo of Lowe (2017), as Horn and Kroening (2015) and Porcupine have it.
//!
//! The search takes one operation after the other that may be next: no operation that is not taken
//! yet was answered before it was called. Where none is left that could be, it goes back. What was
//! taken together with the state that it led to is remembered, so nothing is tried twice.
//!
//! Four rules make it fast without changing a verdict:
//!
//! - An operation that may be next and can change no state, such as a read of the present value, is
//!   taken at once: taken earlier, it hinders no other.
//! - An operation with an ambiguous outcome is taken only for what the next one sees of it. If that
//!   one would be answered alike and lead to the same state without it, it is left out.
//! - Of equal operations with ambiguous outcomes, one is tried.
//! - A state is not left while an operation has to find it that is not taken yet, and no other can
//!   bring it back. Where each value is written once, as our own tests do, a wrong guess at the order
//!   of concurrent writes is found by the next step, and not where a read cannot be explained.

mod losses;

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use self::losses::Losses;
use crate::history::Operation;

/// The sequential specification of an object.
pub trait Model {
    /// What the object is at one moment.
    type State: Clone + Eq + Hash;
    /// What is asked of it.
    type Input: PartialEq;
    /// What it answers.
    type Output;

    /// Returns the state before the first operation.
    fn initial(&self) -> Self::State;

    /// Returns the state after an operation; `None` if the operation cannot be answered so in this
    /// state.
    ///
    /// `Some(None)` stands for the same state, and for an operation that with this answer changes no
    /// state whatever, such as a read. A write of the present value is not one: it would matter
    /// elsewhere in the order.
    fn step(
        &self,
        state: &Self::State,
        input: &Self::Input,
        output: &Self::Output,
    ) -> Option<Option<Self::State>>;

    /// Returns the state after an operation of which the answer is not known; `None` if it changes
    /// nothing in this state.
    fn step_of_unknown(&self, state: &Self::State, input: &Self::Input) -> Option<Self::State>;

    /// Returns the state in which alone an operation can be answered so; `None` if there are several,
    /// or if that is not known.
    fn needs(&self, _input: &Self::Input, _output: &Self::Output) -> Option<Self::State> {
        None
    }

    /// Returns which state an operation leads to, with its answer if that is known.
    fn makes(&self, _input: &Self::Input, _output: Option<&Self::Output>) -> Makes<Self::State> {
        Makes::Unknown
    }
}

/// Which state an operation leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Makes<S> {
    /// To the one before it.
    Nothing,
    /// To this one, or to the one before it.
    State(S),
    /// That depends on the state before it.
    Unknown,
}

/// How much one search may take. Reaching a bound ends it without a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most steps of the model. Ten million take some seconds.
    pub steps_max: u64,
    /// The most bytes of the memo and of the states in it, about.
    pub memo_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { steps_max: 20_000_000, memo_bytes_max: 512 * 1024 * 1024 }
    }
}

/// What a search came to. Numbers are places in the history that was searched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The operations in an order that explains every answer. Those with ambiguous outcomes that
    /// never took effect are not in it.
    Order(Vec<usize>),
    /// There is no such order.
    NoOrder {
        /// The longest beginning of an order that was found.
        longest: Vec<usize>,
        /// The answered operation that could not follow it, of several the one answered first.
        stuck: usize,
    },
    /// A bound was reached.
    Exhausted(Bound),
}

/// A bound of [`Limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// `steps_max`.
    Steps,
    /// `memo_bytes_max`.
    Memo,
}

/// Looks for an order of a history's operations.
pub fn search<M: Model>(
    model: &M,
    history: &[Operation<M::Input, M::Output>],
    limits: &Limits,
) -> Found {
    let losses = Losses::of(model, history);
    let never_there = losses.as_ref().and_then(|losses| losses.never_there(&model.initial()));
    let found = match never_there {
        Some(stuck) => Found::NoOrder { longest: Vec::new(), stuck },
        None => Search::new(model, history, *limits, losses).run(),
    };
    if !matches!(found, Found::NoOrder { .. }) {
        return found;
    }
    // A longer beginning explains more: without the rule of losses the search gets as far as answers
    // can be explained, if its bounds let it.
    match Search::new(model, history, *limits, None).run() {
        explained @ Found::NoOrder { .. } => explained,
        Found::Order(_) | Found::Exhausted(_) => found,
    }
}

/// A bookkeeping entry of the memo and of each known state, beside what it holds.
const ENTRY_BYTES: usize = 48;

type State = u32;

struct Search<'a, M: Model> {
    model: &'a M,
    history: &'a [Operation<M::Input, M::Output>],
    limits: Limits,
    steps: u64,
    /// The answered operations, by when they were called.
    answered: Vec<usize>,
    /// The operations with ambiguous outcomes, by when they were called.
    ambiguous: Vec<usize>,
    /// Which of `answered` and of `ambiguous` are taken.
    taken: Vec<bool>,
    used: Vec<bool>,
    /// All of `answered` before this one are taken, and how many are.
    prefix: usize,
    taken_count: usize,
    states: Vec<M::State>,
    numbers: HashMap<M::State, State>,
    memo: HashSet<Box<[u32]>>,
    memo_bytes: usize,
    longest: Option<(usize, Vec<usize>)>,
    /// Unless the model does not know what operations need and make.
    losses: Option<Losses<M::State>>,
}

/// One operation that may be next and changes the state.
#[derive(Clone, Copy)]
enum Choice {
    /// The number is a place in `answered`.
    Answered(usize, State),
    /// The number is a place in `ambiguous`.
    Ambiguous(usize, State),
}

/// A point to which the search can go back.
struct Frame {
    /// The operation that led here; none at the beginning.
    via: Option<Choice>,
    state: State,
    /// What was taken here since it leaves the state as it is, as places in `answered`.
    absorbed: Vec<usize>,
    choices: Vec<Choice>,
    next: usize,
}

/// What taking an operation led to.
enum Entered {
    /// A point to go on from.
    Frame(Frame),
    /// Every answered operation is taken; the last ones are these.
    Done(Vec<usize>),
    /// Nothing that was not tried before.
    DeadEnd,
    Exhausted(Bound),
}

impl<'a, M: Model> Search<'a, M> {
    fn new(
        model: &'a M,
        history: &'a [Operation<M::Input, M::Output>],
        limits: Limits,
        losses: Option<Losses<M::State>>,
    ) -> Self {
        let by_call = |is_answered: bool| {
            let mut places: Vec<_> = (0..history.len())
                .filter(|&place| history[place].answer.is_some() == is_answered)
                .collect();
            places.sort_by_key(|&place| history[place].called);
            places
        };
        let (answered, ambiguous) = (by_call(true), by_call(false));
        Self {
            model,
            history,
            limits,
            steps: 0,
            taken: vec![false; answered.len()],
            used: vec![false; ambiguous.len()],
            answered,
            ambiguous,
            prefix: 0,
            taken_count: 0,
            states: Vec::new(),
            numbers: HashMap::new(),
            memo: HashSet::new(),
            memo_bytes: 0,
            longest: None,
            losses,
        }
    }

    fn run(mut self) -> Found {
        let initial = self.number(self.model.initial());
        let mut frames: Vec<Frame> = Vec::new();
        let mut entered = self.enter(&frames, None, initial);
        loop {
            match entered {
                Entered::Frame(frame) => frames.push(frame),
                Entered::Done(absorbed) => return Found::Order(self.order(&frames, &absorbed)),
                Entered::Exhausted(bound) => return Found::Exhausted(bound),
                Entered::DeadEnd => {}
            }
            let Some((choice, before)) = self.next_choice(&mut frames) else { break };
            entered = self.enter(&frames, Some(choice), before);
        }
        let (_, longest) = self.longest.take().unwrap_or_default();
        let is_in_it: HashSet<usize> = longest.iter().copied().collect();
        let left = self.answered.iter().copied().filter(|place| !is_in_it.contains(place));
        let stuck = left.min_by_key(|&place| self.history[place].returned());
        Found::NoOrder { longest, stuck: stuck.expect("an order of all would have been found") }
    }

    /// Returns what is tried next and the state before it, and gives up every frame that has nothing
    /// left to try.
    fn next_choice(&mut self, frames: &mut Vec<Frame>) -> Option<(Choice, State)> {
        loop {
            let frame = frames.last_mut()?;
            if let Some(&choice) = frame.choices.get(frame.next) {
                frame.next += 1;
                return Some((choice, frame.state));
            }
            let frame = frames.pop()?;
            self.leave(&frame);
        }
    }

    /// Takes an operation, and with it what can be taken without changing the state.
    fn enter(&mut self, frames: &[Frame], via: Option<Choice>, before: State) -> Entered {
        let state = match via {
            None => before,
            Some(Choice::Answered(at, state)) => {
                self.take(at);
                state
            }
            Some(Choice::Ambiguous(at, state)) => {
                self.set_used(at, true);
                state
            }
        };
        let mut frame = Frame { via, state, absorbed: Vec::new(), choices: Vec::new(), next: 0 };
        if state != before && self.would_lose(before) {
            self.leave(&frame);
            return Entered::DeadEnd;
        }
        let mut open = self.absorb(state, &mut frame.absorbed);
        if self.taken_count == self.answered.len() {
            let mut last = Vec::from_iter(via.map(|choice| self.place(choice)));
            last.extend(frame.absorbed.iter().map(|&at| self.answered[at]));
            return Entered::Done(last);
        }
        if self.steps > self.limits.steps_max {
            return Entered::Exhausted(Bound::Steps);
        }
        let is_news = self.remember(state);
        if self.memo_bytes > self.limits.memo_bytes_max {
            return Entered::Exhausted(Bound::Memo);
        }
        if is_news {
            open.sort_by_key(|&at| self.history[self.answered[at]].returned());
            frame.choices = self.choices(state, &open);
            if matches!(via, Some(Choice::Ambiguous(..))) && frame.absorbed.is_empty() {
                let mut choices = std::mem::take(&mut frame.choices);
                choices.retain(|&choice| self.sees(choice, before));
                frame.choices = choices;
            }
            self.note_reached(frames, &frame);
        }
        if frame.choices.is_empty() {
            self.leave(&frame);
            return Entered::DeadEnd;
        }
        Entered::Frame(frame)
    }

    /// Returns true if an operation is answered in another way, or leads to another state, than it
    /// would from the state before the last one.
    fn sees(&mut self, choice: Choice, before: State) -> bool {
        self.steps += 1;
        let (after, without) = match choice {
            Choice::Answered(at, after) => (after, self.step(self.answered[at], before)),
            Choice::Ambiguous(at, after) => {
                (after, self.step_of_unknown(self.ambiguous[at], before).map(Some))
            }
        };
        match without {
            None => true,
            Some(None) => after != before,
            Some(Some(without)) => after != without,
        }
    }

    /// Takes every operation that may be next and leaves the state as it is. Returns the places in
    /// `answered` of those that may be next and do not.
    fn absorb(&mut self, state: State, absorbed: &mut Vec<usize>) -> Vec<usize> {
        loop {
            let mut open = self.may_be_next();
            let before = absorbed.len();
            open.retain(|&at| {
                let stays = matches!(self.step(self.answered[at], state), Some(None));
                if stays {
                    absorbed.push(at);
                }
                !stays
            });
            if absorbed.len() == before {
                return open;
            }
            for &at in &absorbed[before..] {
                self.take(at);
            }
        }
    }

    /// Returns the answered operations that were called before any that is not taken was answered.
    fn may_be_next(&self) -> Vec<usize> {
        let mut open = Vec::new();
        let mut first_answer = u64::MAX;
        for at in self.prefix..self.answered.len() {
            let operation = &self.history[self.answered[at]];
            if operation.called > first_answer {
                break;
            }
            if !self.taken[at] {
                first_answer = first_answer.min(operation.returned());
                open.push(at);
            }
        }
        open.retain(|&at| self.history[self.answered[at]].called <= first_answer);
        open
    }

    fn choices(&mut self, state: State, open: &[usize]) -> Vec<Choice> {
        let mut choices = Vec::new();
        let mut first_answer = u64::MAX;
        for &at in open {
            first_answer = first_answer.min(self.history[self.answered[at]].returned());
            if let Some(Some(after)) = self.step(self.answered[at], state) {
                choices.push(Choice::Answered(at, after));
            }
        }
        let mut tried: Vec<usize> = Vec::new();
        for at in 0..self.ambiguous.len() {
            let place = self.ambiguous[at];
            if self.history[place].called > first_answer {
                break;
            }
            let input = &self.history[place].input;
            if self.used[at] || tried.iter().any(|&other| self.history[other].input == *input) {
                continue;
            }
            tried.push(place);
            if let Some(after) = self.step_of_unknown(place, state) {
                choices.push(Choice::Ambiguous(at, after));
            }
        }
        choices
    }

    fn step(&mut self, place: usize, state: State) -> Option<Option<State>> {
        self.steps += 1;
        let operation = &self.history[place];
        let output = &operation.answer.as_ref().expect("it was answered").output;
        let after = self.model.step(&self.states[state as usize], &operation.input, output)?;
        Some(after.map(|after| self.number(after)))
    }

    fn step_of_unknown(&mut self, place: usize, state: State) -> Option<State> {
        self.steps += 1;
        let input = &self.history[place].input;
        let after = self.model.step_of_unknown(&self.states[state as usize], input)?;
        Some(self.number(after))
    }

    fn number(&mut self, state: M::State) -> State {
        if let Some(&number) = self.numbers.get(&state) {
            return number;
        }
        let number = State::try_from(self.states.len()).expect("the memo's bound is reached first");
        self.memo_bytes += ENTRY_BYTES + 2 * size_of::<M::State>();
        self.states.push(state.clone());
        self.numbers.insert(state, number);
        number
    }

    /// Returns true if leaving a state would leave operations without it for good.
    fn would_lose(&self, state: State) -> bool {
        let losses = self.losses.as_ref();
        losses.is_some_and(|losses| losses.would_lose(&self.states[state as usize]))
    }

    fn set_used(&mut self, at: usize, is_used: bool) {
        self.used[at] = is_used;
        if let Some(losses) = &mut self.losses {
            let place = self.ambiguous[at];
            if is_used { losses.take(place) } else { losses.put_back(place) }
        }
    }

    fn take(&mut self, at: usize) {
        self.taken[at] = true;
        if let Some(losses) = &mut self.losses {
            losses.take(self.answered[at]);
        }
        self.taken_count += 1;
        while self.taken.get(self.prefix) == Some(&true) {
            self.prefix += 1;
        }
    }

    /// Undoes what entering a frame took.
    fn leave(&mut self, frame: &Frame) {
        let via = match frame.via {
            Some(Choice::Answered(at, _)) => Some(at),
            Some(Choice::Ambiguous(at, _)) => {
                self.set_used(at, false);
                None
            }
            None => None,
        };
        for at in frame.absorbed.iter().copied().chain(via) {
            self.taken[at] = false;
            if let Some(losses) = &mut self.losses {
                losses.put_back(self.answered[at]);
            }
            self.taken_count -= 1;
            self.prefix = self.prefix.min(at);
        }
    }

    /// Remembers what is taken, with the state. Returns false if it was known.
    fn remember(&mut self, state: State) -> bool {
        let word = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        let used = self.used.iter().enumerate().filter(|(_, is_used)| **is_used);
        let mut key = vec![state, word(self.prefix), 0];
        key.extend(used.map(|(at, _)| word(at)));
        // Where the list ends and the bits begin.
        key[2] = word(key.len());
        let mut left = self.taken_count - self.prefix;
        let (mut bits, mut width) = (0_u32, 0);
        for &is_taken in &self.taken[self.prefix..] {
            if left == 0 {
                break;
            }
            bits |= u32::from(is_taken) << width;
            left -= usize::from(is_taken);
            width += 1;
            if width == u32::BITS {
                key.push(bits);
                (bits, width) = (0, 0);
            }
        }
        key.push(bits);
        let bytes = ENTRY_BYTES + key.len() * size_of::<u32>();
        let is_news = self.memo.insert(key.into_boxed_slice());
        self.memo_bytes += if is_news { bytes } else { 0 };
        is_news
    }

    /// Keeps the longest beginning of an order, where the search cannot go on.
    fn note_reached(&mut self, frames: &[Frame], frame: &Frame) {
        let is_longer = self.longest.as_ref().is_none_or(|(count, _)| self.taken_count > *count);
        if is_longer && frame.choices.is_empty() {
            let mut last = Vec::from_iter(frame.via.map(|choice| self.place(choice)));
            last.extend(frame.absorbed.iter().map(|&at| self.answered[at]));
            self.longest = Some((self.taken_count, self.order(frames, &last)));
        }
    }

    /// Returns the places in the history of what the frames took, in that order, and then `last`.
    fn order(&self, frames: &[Frame], last: &[usize]) -> Vec<usize> {
        let mut order = Vec::new();
        for frame in frames {
            order.extend(frame.via.map(|choice| self.place(choice)));
            order.extend(frame.absorbed.iter().map(|&at| self.answered[at]));
        }
        order.extend(last);
        order
    }

    fn place(&self, choice: Choice) -> usize {
        match choice {
            Choice::Answered(at, _) => self.answered[at],
            Choice::Ambiguous(at, _) => self.ambiguous[at],
        }
    }
}
