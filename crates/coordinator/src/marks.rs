//! The marks by which the fate of a change is found out when its answer is lost.
//!
//! A change is a transaction. Along with what it changes, it writes a mark that names it, into a
//! slot that no other change of this process uses at the time, and it requires that the slot is
//! as the last change left it. So when an answer is lost, the change can simply be sent again:
//!
//! - If the first one was carried out, the slot holds its mark, the second is refused, and the
//!   refusal shows the mark.
//! - If it was not, the second one is judged as if it were the first. Whatever comes of it, it
//!   changes the slot, so that the first one, should it still be under way somewhere, is refused
//!   when it arrives.
//!
//! The slots hang on the session and go with it. They are the coordinator's form of "reading who
//! owns the node" (S5), for nodes that nobody owns, too.

use parking_lot::Mutex;

use crate::node::SessionId;
use crate::path::MARKS;

/// The slots of one session that no change is using.
#[derive(Debug, Default)]
pub(crate) struct Marks(Mutex<Free>);

#[derive(Debug, Default)]
struct Free {
    slots: Vec<Slot>,
    slots_made: u64,
    changes: u64,
    names: u64,
}

/// One slot, in use by one change.
#[derive(Debug)]
pub(crate) struct Slot {
    number: u64,
    /// What the slot holds; `None` if it was never written.
    pub content: Option<String>,
    /// The number of the change that uses it.
    pub change: u64,
}

impl Marks {
    /// Takes a slot for a change that begins.
    pub(crate) fn take(&self) -> Slot {
        let mut free = self.0.lock();
        free.changes += 1;
        let change = free.changes;
        if let Some(mut slot) = free.slots.pop() {
            slot.change = change;
            return slot;
        }
        free.slots_made += 1;
        Slot { number: free.slots_made, content: None, change }
    }

    /// Returns a number that no other sequential node of the session has in its name.
    pub(crate) fn next_name(&self) -> u64 {
        let mut free = self.0.lock();
        free.names += 1;
        free.names
    }

    /// Gives back a slot whose content is known. Others are never used again.
    pub(crate) fn give_back(&self, slot: Slot) {
        self.0.lock().slots.push(slot);
    }
}

impl Slot {
    /// Returns the slot's path, below the namespace.
    pub(crate) fn path(&self, session: SessionId) -> String {
        format!("{MARKS}/{session}/{}", self.number)
    }

    /// Returns the mark of a change that was carried out.
    pub(crate) fn applied(&self) -> String {
        format!("{} applied", self.change)
    }

    /// Returns the mark of a change that was sent again and refused.
    pub(crate) fn refused(&self) -> String {
        format!("{} refused", self.change)
    }
}
