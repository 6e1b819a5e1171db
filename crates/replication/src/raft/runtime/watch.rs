//! Tokio's watch channels, which wake those that wait in a random order: within a simulation they are
//! woken in the order in which their receivers were made.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use openraft::async_runtime::watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender};
use openraft::{OptionalSend, OptionalSync};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::simulation::SimulatedNode;

/// The channels.
pub(in crate::raft) struct RuntimeWatch;

/// Wakes the receivers of one channel in order.
#[derive(Default)]
struct Order {
    receivers: u64,
    waiting: BTreeMap<u64, Waker>,
}

/// `None` outside of a simulation.
type Ordered = Option<Arc<Mutex<Order>>>;

pub(in crate::raft) struct Sender<T> {
    sender: watch::Sender<T>,
    order: Ordered,
}

pub(in crate::raft) struct Receiver<T> {
    receiver: watch::Receiver<T>,
    order: Ordered,
    /// Its place among the receivers.
    place: u64,
}

impl<T> Sender<T> {
    fn wake(&self) {
        if let Some(order) = &self.order {
            let waiting = std::mem::take(&mut order.lock().waiting);
            waiting.into_values().for_each(Waker::wake);
        }
    }
}

impl<T> Receiver<T> {
    fn new(receiver: watch::Receiver<T>, order: Ordered) -> Self {
        let place = order.as_ref().map_or(0, |order| {
            let mut order = order.lock();
            order.receivers += 1;
            order.receivers
        });
        Self { receiver, order, place }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), order: self.order.clone() }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // Each receiver that waits checks whether this was the last sender.
        self.wake();
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self::new(self.receiver.clone(), self.order.clone())
    }
}

impl Watch for RuntimeWatch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = watch::channel(init);
        let order: Ordered = SimulatedNode::current().map(|_| Arc::default());
        (Sender { sender, order: order.clone() }, Receiver::new(receiver, order))
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<RuntimeWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        let sent = self.sender.send(value).map_err(|error| SendError(error.0));
        self.wake();
        sent
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        let is_modified = self.sender.send_if_modified(modify);
        if is_modified {
            self.wake();
        }
        is_modified
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.sender.borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        Receiver::new(self.sender.subscribe(), self.order.clone())
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<RuntimeWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        let Some(order) = &self.order else {
            return self.receiver.changed().await.map_err(|_closed| RecvError(()));
        };
        poll_fn(|context| match self.receiver.has_changed() {
            Ok(true) => {
                self.receiver.mark_unchanged();
                Poll::Ready(Ok(()))
            }
            Ok(false) => {
                order.lock().waiting.insert(self.place, context.waker().clone());
                Poll::Pending
            }
            Err(_closed) => Poll::Ready(Err(RecvError(()))),
        })
        .await
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.receiver.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.receiver.borrow_and_update()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation;

    /// Has several tasks wait for a change, and returns the order in which they saw it.
    async fn order_of_waking() -> Vec<u64> {
        let (sender, receiver) = RuntimeWatch::channel(0);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = (0..20)
            .map(|task| {
                let (mut receiver, seen) = (receiver.clone(), Arc::clone(&seen));
                simulation::spawn(async move {
                    receiver.changed().await.expect("the sender lives");
                    assert_eq!(*receiver.borrow_watched(), 1);
                    seen.lock().push(task);
                    receiver.changed().await.expect_err("the sender is gone");
                })
            })
            .collect();
        tokio::task::yield_now().await;
        sender.send(1).expect("there are receivers");
        tokio::task::yield_now().await;
        drop(sender);
        for task in tasks {
            task.await.expect("no task panics");
        }
        Arc::into_inner(seen).expect("the tasks have ended").into_inner()
    }

    #[tokio::test]
    async fn receivers_are_woken_in_order_within_a_simulation_and_all_of_them_outside() {
        let all: Vec<u64> = (0..20).collect();
        let node = SimulatedNode::new(1);
        assert_eq!(node.task(order_of_waking()).await, all);
        let mut outside = order_of_waking().await;
        outside.sort_unstable();
        assert_eq!(outside, all);
    }
}
