//! What was acknowledged is never lost: each acknowledged request is among the committed ones, and had
//! the outcome that its client was given.

use trireme_types::{ClientId, Outcome};

use super::states::States;

/// The acknowledgements that were not found among what is known to be committed yet.
#[derive(Default)]
pub(crate) struct Acknowledged {
    waiting: Vec<(ClientId, u64, Option<Outcome>)>,
}

impl Acknowledged {
    /// Records that a client was given an outcome of a request; that it was done, if none is named.
    pub(crate) fn record(&mut self, client: u64, sequence: u64, outcome: Option<Outcome>) {
        self.waiting.push((ClientId(u128::from(client)), sequence, outcome));
    }

    pub(super) fn look(&mut self, states: &States) -> Result<(), String> {
        let mut error = None;
        self.waiting.retain(|(client, sequence, outcome)| {
            let Some(found) = states.outcome(*client, *sequence) else { return true };
            if outcome.as_ref().is_some_and(|outcome| outcome != found) {
                error = Some(format!(
                    "acknowledged is never lost: request {sequence} of client {} was answered by \
                     {outcome:?} and is {found:?}",
                    client.0
                ));
            }
            false
        });
        error.map_or(Ok(()), Err)
    }

    /// Judges what is left when all is committed.
    pub(super) fn at_the_end(&self) -> Result<(), String> {
        match self.waiting.first() {
            None => Ok(()),
            Some((client, sequence, _)) => Err(format!(
                "acknowledged is never lost: request {sequence} of client {} was acknowledged and is \
                 nowhere",
                client.0
            )),
        }
    }
}
