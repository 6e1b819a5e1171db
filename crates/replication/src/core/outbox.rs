//! What a core has decided and the driver has not fetched yet.

use trireme_storage::{IoId, LogWrite};
use trireme_types::NodeId;

use super::{Core, Effect, Reply, Ticket, When};
use crate::replica::ReplicaError;
use crate::transport::Lane;

/// The effects of a core, in order, with the count of its writes.
#[derive(Debug)]
pub struct Outbox<C: Core> {
    effects: Vec<Effect<C>>,
    writes: u64,
}

impl<C: Core> Outbox<C> {
    /// Returns an empty outbox, for a core that has written nothing yet.
    pub const fn new() -> Self {
        Self { effects: Vec::new(), writes: 0 }
    }

    /// Adds a write to the log and returns its number.
    pub fn persist(&mut self, write: LogWrite) -> IoId {
        self.writes += 1;
        self.effects.push(Effect::Persist(write));
        IoId(self.writes)
    }

    /// Adds a message on the data lane.
    pub fn send(&mut self, to: NodeId, message: C::Message, when: When) {
        self.effects.push(Effect::Send { to, lane: Lane::Data, message, when });
    }

    /// Adds an answer.
    pub fn reply(&mut self, ticket: Ticket, reply: Reply<C>, when: When) {
        self.effects.push(Effect::Reply { ticket, reply, when });
    }

    /// Adds the answer that something was not done, which need not wait.
    pub fn refuse(&mut self, ticket: Ticket, error: ReplicaError) {
        self.reply(ticket, Reply::Error(error), When::Now);
    }

    /// Adds any effect but a write, which [`Outbox::persist`] numbers.
    ///
    /// # Panics
    ///
    /// If it is a write.
    pub fn push(&mut self, effect: Effect<C>) {
        assert!(!matches!(effect, Effect::Persist(_)), "a write without a number: {effect:?}");
        self.effects.push(effect);
    }

    /// Moves the effects to the end of `effects`.
    pub fn drain_into(&mut self, effects: &mut Vec<Effect<C>>) {
        effects.append(&mut self.effects);
    }

    /// Returns the number of the newest write; 0 if there is none.
    pub const fn last_write(&self) -> IoId {
        IoId(self.writes)
    }
}

impl<C: Core> Default for Outbox<C> {
    fn default() -> Self {
        Self::new()
    }
}
