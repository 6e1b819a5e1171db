//! What is judged: operations of clients, each with when it was called and what answered it.

/// An operation, as the client that asked for it saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<I, O> {
    /// The client. Two operations of one client do not overlap in a well-formed history, but
    /// nothing here relies on that.
    pub client: u64,
    /// What was asked.
    pub input: I,
    /// When it was asked: any unit, the same for the whole history. It took effect no earlier.
    pub called: u64,
    /// What answered it; `None` if the outcome is ambiguous: it took effect at some time after it
    /// was called, or never.
    pub answer: Option<Answer<O>>,
}

/// An answer to an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer<O> {
    /// When it came, not before the operation was called. The operation took effect no later. An
    /// operation that is called at the same moment overlaps this one.
    pub at: u64,
    /// What it was.
    pub output: O,
}

impl<I, O> Operation<I, O> {
    /// Returns when the operation was answered; `u64::MAX` if it never was.
    pub fn returned(&self) -> u64 {
        self.answer.as_ref().map_or(u64::MAX, |answer| answer.at)
    }
}
