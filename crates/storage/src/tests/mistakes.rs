//! Mistakes that naive versions make, so that tests can show that they would be noticed. Each is on
//! for what [`making`] runs, on its own thread.

use std::cell::Cell;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mistake {
    /// Local recovery skips the addresses that were ever dropped from a log, wherever they stand,
    /// as the paper's list of skipped LSNs says (S9).
    SkipsAddresses,
    /// Local recovery knows nothing of what was dropped from a log (S9).
    ForgetsTruncations,
    /// An entry is moved to the head of the log although the log has dropped it meanwhile (S9).
    MovesBlindly,
    /// The log is given up past what the table has on disk (S10).
    GivesUpUnpersisted,
    /// Conditions are judged against the rows as they were before the call (S12).
    JudgesOldRows,
}

thread_local! {
    static MADE: Cell<Option<Mistake>> = const { Cell::new(None) };
}

/// Runs something that makes a mistake, or none.
pub(crate) fn making<T>(mistake: Option<Mistake>, run: impl FnOnce() -> T) -> T {
    MADE.set(mistake);
    let result = run();
    MADE.set(None);
    result
}

/// Says whether the mistake is to be made.
pub(crate) fn is_made(mistake: Mistake) -> bool {
    MADE.get() == Some(mistake)
}
