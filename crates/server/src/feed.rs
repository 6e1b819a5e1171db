//! What one watch of the coordinator brings, handed to the cohorts that it is about.
//!
//! A node has one watch of a kind, and one task that reads it, whatever the number of its cohorts: a
//! change costs the coordinator one message for each node, and a node the work of one cohort. Each
//! cohort's replica has the newest value alone. What it had no time for is replaced, so that a slow
//! replica holds up no other, and none waits behind values that are old already.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use trireme_types::CohortId;

/// The cohorts that a feed's task hands values to.
pub(crate) struct Subscriptions<T> {
    cohorts: Mutex<BTreeMap<CohortId, watch::Sender<Option<T>>>>,
    /// Wakes the feed's task when there is a new subscription.
    added: Notify,
}

impl<T: Clone + PartialEq> Subscriptions<T> {
    pub(crate) fn new() -> Self {
        Self { cohorts: Mutex::default(), added: Notify::new() }
    }

    /// Returns what receives the cohort's values: the newest as soon as the feed knows one.
    pub(crate) fn subscribe(&self, cohort: CohortId) -> Subscription<T> {
        let mut cohorts = self.cohorts.lock();
        cohorts.retain(|_, sender| !sender.is_closed());
        let values = match cohorts.get(&cohort) {
            Some(sender) => {
                let mut values = sender.subscribe();
                values.mark_changed();
                values
            }
            None => {
                let (sender, values) = watch::channel(None);
                cohorts.insert(cohort, sender);
                values
            }
        };
        drop(cohorts);
        self.added.notify_one();
        Subscription { values }
    }

    /// Waits for a new subscription. Can be cancelled.
    pub(crate) async fn added(&self) {
        self.added.notified().await;
    }

    /// Returns the value that was handed to a cohort's replica last.
    pub(crate) fn newest(&self, cohort: CohortId) -> Option<T> {
        self.cohorts.lock().get(&cohort)?.borrow().clone()
    }

    /// Returns the cohorts that have a subscription, with the value that was handed on last.
    pub(crate) fn last(&self) -> Vec<(CohortId, Option<T>)> {
        let cohorts = self.cohorts.lock();
        cohorts.iter().map(|(&cohort, sender)| (cohort, sender.borrow().clone())).collect()
    }

    /// Returns the cohorts that have a subscription and were handed no value yet.
    pub(crate) fn waiting(&self) -> Vec<CohortId> {
        let cohorts = self.cohorts.lock();
        let waiting = cohorts.iter().filter(|(_, sender)| sender.borrow().is_none());
        waiting.map(|(&cohort, _)| cohort).collect()
    }

    /// Hands a value to a cohort's replica, unless it is the one that it was handed before or there
    /// is no subscription.
    pub(crate) fn publish(&self, cohort: CohortId, value: T) {
        if let Some(sender) = self.cohorts.lock().get(&cohort) {
            sender.send_if_modified(|last| {
                let is_new = last.as_ref() != Some(&value);
                if is_new {
                    *last = Some(value);
                }
                is_new
            });
        }
    }
}

/// One cohort's values. Dropping it ends the subscription.
pub(crate) struct Subscription<T> {
    values: watch::Receiver<Option<T>>,
}

impl<T: Clone> Subscription<T> {
    /// Returns the newest value that was not returned before; `None` once the feed has ended. Can be
    /// cancelled.
    pub(crate) async fn next(&mut self) -> Option<T> {
        loop {
            self.values.changed().await.ok()?;
            if let Some(value) = self.values.borrow_and_update().clone() {
                return Some(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_cohort_has_the_newest_of_its_own_values_and_each_once() {
        let feed = Subscriptions::new();
        let (one, two) = (CohortId(1), CohortId(2));
        feed.publish(one, 1);
        let mut ones = feed.subscribe(one);
        let mut twos = feed.subscribe(two);
        assert_eq!(feed.waiting(), [one, two]);
        feed.publish(one, 2);
        feed.publish(one, 3);
        assert_eq!(ones.next().await, Some(3), "what it had no time for is replaced");
        feed.publish(one, 3);
        feed.publish(two, 9);
        assert_eq!(twos.next().await, Some(9));
        assert_eq!(feed.last(), [(one, Some(3)), (two, Some(9))]);
        let mut again = feed.subscribe(one);
        assert_eq!(again.next().await, Some(3), "a later replica begins with what is known");
        assert!(!ones.values.has_changed().unwrap(), "the same value is no news");
        drop((ones, again));
        let _third = feed.subscribe(CohortId(3));
        assert_eq!(feed.waiting(), [CohortId(3)]);
        assert_eq!(feed.last().len(), 2, "a subscription ends with its replica");
        drop(feed);
        assert_eq!(twos.next().await, None);
    }
}
