//! Writes that are sent more than once.

use trireme_types::Outcome;

use super::{Invariants, Request};

/// A request is applied once: every answer to it names the same outcome, the one of the first entry in
/// the log that carries it (C1).
pub(crate) const APPLIED_ONCE: &str = "a request is applied once, however often it is sent";

impl Invariants {
    /// Checks what a client is told of its request.
    pub(crate) fn answered(&self, request: Request, outcome: Outcome) {
        let first = self.agreement.outcome(request);
        assert!(
            first == Some(outcome),
            "{APPLIED_ONCE}: request {request:?} is answered {outcome:?}, and was {first:?}"
        );
    }
}
