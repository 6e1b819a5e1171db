//! The calls of one stream that were sent and are not answered yet.

use tokio::time::Instant;

use crate::call::{CallError, Waiter};

/// Sent calls by the id that their answers will carry.
///
/// An id is a slot's number with the count of its uses above, so that an answer that comes too
/// late is never taken for one to the slot's next call.
pub(crate) struct Unanswered {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

struct Slot {
    uses: u32,
    waiter: Option<Waiter>,
}

impl Unanswered {
    pub(crate) const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    /// Keeps a call's waiter and returns the id that it is to be sent under.
    pub(crate) fn insert(&mut self, waiter: Waiter) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { uses: 0, waiter: None });
            u32::try_from(self.slots.len() - 1).expect("an option bounds the calls to 32 bits")
        });
        let slot = &mut self.slots[index as usize];
        slot.uses = slot.uses.wrapping_add(1);
        slot.waiter = Some(waiter);
        u64::from(slot.uses) << 32 | u64::from(index)
    }

    /// Returns the waiter that an answer with this id belongs to; `None` if no caller waits for it.
    pub(crate) fn take(&mut self, id: u64) -> Option<Waiter> {
        let index = u32::try_from(id & u64::from(u32::MAX)).expect("masked to 32 bits");
        let slot = self.slots.get_mut(index as usize)?;
        if u64::from(slot.uses) != id >> 32 {
            return None;
        }
        let waiter = slot.waiter.take()?;
        self.free.push(index);
        Some(waiter)
    }

    /// Forgets the calls whose callers wait no longer, or wait until this very moment: those learn
    /// that their deadline has passed, whichever of the two looks at the clock first.
    pub(crate) fn forget_expired(&mut self, now: Instant) {
        let is_over = |waiter: &mut Waiter| waiter.deadline() <= now || waiter.is_abandoned();
        for (slot, index) in self.slots.iter_mut().zip(0..) {
            if let Some(waiter) = slot.waiter.take_if(is_over) {
                waiter.answer(Err(CallError::Late { sent: true }));
                self.free.push(index);
            }
        }
    }

    /// Returns how many calls are unanswered.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes out every call.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Waiter> {
        self.free.clear();
        std::mem::take(&mut self.slots).into_iter().filter_map(|slot| slot.waiter)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use trireme_proto::v1;
    use trireme_proto::v1::request::Operation;

    use super::*;
    use crate::call::{self, PendingCall};

    fn call() -> (Waiter, PendingCall) {
        let deadline = Instant::now() + Duration::from_secs(5);
        let (call, pending) = call::new(Operation::Get(v1::GetRequest::default()), deadline);
        (call.waiter, pending)
    }

    #[tokio::test]
    async fn an_answer_finds_its_call_once() {
        let mut unanswered = Unanswered::new();
        let (first, _first) = call();
        let (second, _second) = call();
        let ids = [unanswered.insert(first), unanswered.insert(second)];
        assert_ne!(ids[0], ids[1]);
        assert!(unanswered.take(ids[1]).is_some());
        assert!(unanswered.take(ids[1]).is_none());
        assert!(unanswered.take(ids[0]).is_some());
        assert_eq!(unanswered.len(), 0);
        for id in [0, 7, u64::MAX, ids[0] ^ 1 << 40] {
            assert!(unanswered.take(id).is_none(), "the id {id} belongs to no call");
        }
    }

    #[tokio::test]
    async fn a_late_answer_is_not_taken_for_the_slots_next_call() {
        let mut unanswered = Unanswered::new();
        let (first, pending) = call();
        let old = unanswered.insert(first);
        drop(pending);
        unanswered.forget_expired(Instant::now());
        assert_eq!(unanswered.len(), 0);
        let (second, _pending) = call();
        let new = unanswered.insert(second);
        assert!(unanswered.take(old).is_none());
        assert!(unanswered.take(new).is_some());
    }

    /// A caller whose deadline passed in the same moment in which the stream looked for such callers
    /// was answered that its runtime had stopped.
    #[tokio::test]
    async fn a_caller_whose_call_is_forgotten_learns_that_its_time_is_over() {
        let mut unanswered = Unanswered::new();
        let (waiter, pending) = call();
        let deadline = waiter.deadline();
        assert!(waiter.claim());
        unanswered.insert(waiter);
        unanswered.forget_expired(deadline - Duration::from_millis(1));
        assert_eq!(unanswered.len(), 1);
        unanswered.forget_expired(deadline);
        assert_eq!(unanswered.len(), 0);
        let ended = pending.wait(tokio::time::sleep_until(deadline)).await;
        assert!(matches!(ended, Err(CallError::Late { sent: true })), "{ended:?}");
    }
}
