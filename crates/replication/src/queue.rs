//! A bounded queue of many senders and one receiver that takes room as it fills.
//!
//! Tokio's channels take room for 32 elements from the start. A node has thousands of replicas, most
//! of which do nothing most of the time; what waits for them is most often nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, TryAcquireError};

/// What a queue that is empty may keep room for.
const ROOM_KEPT: usize = 8;

/// Returns both ends of a queue in which at most `max` elements wait.
pub(crate) fn queue<T>(max: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State { waiting: VecDeque::new(), senders: 1 }),
        room: Semaphore::new(max.min(Semaphore::MAX_PERMITS)),
        arrived: Notify::new(),
    });
    (Sender { shared: Arc::clone(&shared) }, Receiver { shared })
}

struct Shared<T> {
    state: Mutex<State<T>>,
    /// A permit for each element that finds room; closed with the receiver.
    room: Semaphore,
    /// Told of each element, and when the last sender has gone.
    arrived: Notify,
}

struct State<T> {
    waiting: VecDeque<T>,
    senders: usize,
}

/// Adds to a queue.
pub(crate) struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// A sender that keeps no queue open.
pub(crate) struct WeakSender<T> {
    shared: Weak<Shared<T>>,
}

/// Takes from a queue.
pub(crate) struct Receiver<T> {
    shared: Arc<Shared<T>>,
}

/// Why an element was not added; it is given back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused<T> {
    Full(T),
    Closed(T),
}

impl<T> Sender<T> {
    /// Adds an element when there is room for it; gives it back if the receiver has gone. Those that wait
    /// have their turn in the order in which they came.
    pub(crate) async fn send(&self, element: T) -> Result<(), T> {
        match self.shared.room.acquire().await {
            Ok(room) => room.forget(),
            Err(_) => return Err(element),
        }
        self.add(element);
        Ok(())
    }

    /// Adds an element if there is room for it.
    pub(crate) fn try_send(&self, element: T) -> Result<(), Refused<T>> {
        match self.shared.room.try_acquire() {
            Ok(room) => room.forget(),
            Err(TryAcquireError::NoPermits) => return Err(Refused::Full(element)),
            Err(TryAcquireError::Closed) => return Err(Refused::Closed(element)),
        }
        self.add(element);
        Ok(())
    }

    fn add(&self, element: T) {
        self.shared.state.lock().waiting.push_back(element);
        self.shared.arrived.notify_one();
    }

    pub(crate) fn downgrade(&self) -> WeakSender<T> {
        WeakSender { shared: Arc::downgrade(&self.shared) }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.state.lock().senders += 1;
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let senders = {
            let mut state = self.shared.state.lock();
            state.senders -= 1;
            state.senders
        };
        if senders == 0 {
            self.shared.arrived.notify_one();
        }
    }
}

impl<T> WeakSender<T> {
    /// Returns a sender if there is another one.
    pub(crate) fn upgrade(&self) -> Option<Sender<T>> {
        let shared = self.shared.upgrade()?;
        {
            let mut state = shared.state.lock();
            if state.senders == 0 {
                return None;
            }
            state.senders += 1;
        }
        Some(Sender { shared })
    }
}

impl<T> Clone for WeakSender<T> {
    fn clone(&self) -> Self {
        Self { shared: Weak::clone(&self.shared) }
    }
}

/// Why there is no element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nothing {
    /// One may yet come.
    Yet,
    /// All senders have gone.
    Left,
}

impl<T> Receiver<T> {
    /// Takes the next element; `None` when nothing is left and all senders have gone. Nothing is lost
    /// if this is dropped before.
    pub(crate) async fn recv(&mut self) -> Option<T> {
        loop {
            // A receiver that always finds something gives the others on its thread their turn.
            tokio::task::consume_budget().await;
            match self.try_recv() {
                Ok(element) => return Some(element),
                Err(Nothing::Left) => return None,
                Err(Nothing::Yet) => self.shared.arrived.notified().await,
            }
        }
    }

    /// Takes the next element if there is one.
    pub(crate) fn try_recv(&mut self) -> Result<T, Nothing> {
        let element = {
            let mut state = self.shared.state.lock();
            let element = state.waiting.pop_front();
            if state.waiting.is_empty() {
                state.waiting.shrink_to(ROOM_KEPT);
            }
            element.ok_or(if state.senders > 0 { Nothing::Yet } else { Nothing::Left })
        };
        if element.is_ok() {
            self.shared.room.add_permits(1);
        }
        element
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.shared.room.close();
        let waiting = std::mem::take(&mut self.shared.state.lock().waiting);
        // Outside of the lock: what is dropped may hold senders.
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn elements_come_in_order_and_the_end_after_the_last() {
        let (sender, mut receiver) = queue(8);
        let other = sender.clone();
        sender.send(1).await.expect("there is room");
        other.try_send(2).expect("there is room");
        assert_eq!(receiver.recv().await, Some(1));
        assert_eq!(receiver.try_recv(), Ok(2));
        assert_eq!(receiver.try_recv(), Err(Nothing::Yet));
        drop(sender);
        other.send(3).await.expect("there is room");
        drop(other);
        assert_eq!(receiver.recv().await, Some(3));
        assert_eq!(receiver.recv().await, None);
        assert_eq!(receiver.try_recv(), Err(Nothing::Left));
    }

    #[tokio::test]
    async fn a_receiver_that_waits_learns_of_an_element_and_of_the_end() {
        let (sender, mut receiver) = queue(1);
        let receiving = tokio::spawn(async move { (receiver.recv().await, receiver.recv().await) });
        tokio::task::yield_now().await;
        sender.send(1).await.expect("there is room");
        tokio::task::yield_now().await;
        drop(sender);
        assert_eq!(receiving.await.expect("no panic"), (Some(1), None));
    }

    #[tokio::test]
    async fn who_finds_no_room_waits_for_it_in_turn() {
        let (sender, mut receiver) = queue(1);
        sender.try_send(1).expect("there is room");
        assert_eq!(sender.try_send(2), Err(Refused::Full(2)));
        let send = |element| {
            let sender = sender.clone();
            let mut sending = Box::pin(async move { sender.send(element).await });
            assert!(sending.as_mut().now_or_never().is_none(), "there is no room");
            sending
        };
        let (second, third) = (send(2), send(3));
        assert_eq!(receiver.recv().await, Some(1));
        assert_eq!(second.await, Ok(()));
        assert_eq!(receiver.recv().await, Some(2));
        assert_eq!(third.await, Ok(()));
        assert_eq!(receiver.recv().await, Some(3));
    }

    #[tokio::test]
    async fn without_a_receiver_elements_are_given_back_and_those_that_wait_are_dropped() {
        let (sender, receiver) = queue(2);
        let element = Arc::new(());
        sender.send(Arc::clone(&element)).await.expect("there is room");
        drop(receiver);
        assert_eq!(Arc::strong_count(&element), 1);
        assert!(matches!(sender.try_send(Arc::clone(&element)), Err(Refused::Closed(_))));
        assert!(sender.send(element).await.is_err());
    }

    #[tokio::test]
    async fn a_weak_sender_keeps_no_queue_open() {
        let (sender, mut receiver) = queue::<u8>(1);
        let weak = sender.downgrade();
        weak.upgrade().expect("there is a sender").send(1).await.expect("there is room");
        drop(sender);
        assert!(weak.upgrade().is_none());
        assert_eq!((receiver.recv().await, receiver.recv().await), (Some(1), None));
    }

    #[test]
    fn a_queue_that_was_long_keeps_no_room() {
        let (sender, mut receiver) = queue(1000);
        (0..1000).for_each(|element| sender.try_send(element).expect("there is room"));
        while receiver.try_recv().is_ok() {}
        assert!(receiver.shared.state.lock().waiting.capacity() <= ROOM_KEPT);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_lost_between_many_senders_and_the_receiver() {
        const SENDERS: u32 = 8;
        const EACH: u32 = 5_000;
        let (sender, mut receiver) = queue(3);
        for from in 0..SENDERS {
            let sender = sender.clone();
            tokio::spawn(async move {
                for number in 0..EACH {
                    sender.send((from, number)).await.expect("the receiver is there");
                }
            });
        }
        drop(sender);
        let mut next = [0; SENDERS as usize];
        while let Some((from, number)) = receiver.recv().await {
            let next = &mut next[from as usize];
            assert_eq!(number, *next, "of one sender, they come in its order");
            *next += 1;
        }
        assert_eq!(next, [EACH; SENDERS as usize]);
    }
}
