//! The node's one watch of Spinnaker's elections.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::task::AbortHandle;
use trireme_coordinator::recipes::election::ElectionState;
use trireme_coordinator::recipes::elections::ElectionsWatch;
use trireme_coordinator::{Coordinator, CoordinatorError, Line};
use trireme_types::CohortId;

use crate::feed::{Subscription, Subscriptions};

/// An election, and the line that the coordinator was in when it sent it.
pub(super) type SentElection = (Line, ElectionState);

/// The watch of the elections of all cohorts that a node has.
pub(super) struct ElectionFeed {
    states: Arc<Subscriptions<SentElection>>,
    task: AbortHandle,
}

impl ElectionFeed {
    /// Begins to watch. To be called within a runtime.
    pub(super) fn start(coordinator: &Coordinator) -> Result<Self, CoordinatorError> {
        let watch = ElectionsWatch::new(coordinator)?;
        let states = Arc::new(Subscriptions::new());
        let task = tokio::spawn(read(watch, Arc::clone(&states))).abort_handle();
        Ok(Self { states, task })
    }

    /// Returns what receives a cohort's election.
    pub(super) fn subscribe(&self, cohort: CohortId) -> Subscription<SentElection> {
        self.states.subscribe(cohort)
    }

    /// Returns a cohort's election as it was sent last, if there is a subscription.
    pub(super) fn newest(&self, cohort: CohortId) -> Option<SentElection> {
        self.states.newest(cohort)
    }
}

impl Drop for ElectionFeed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read(mut watch: ElectionsWatch, states: Arc<Subscriptions<SentElection>>) {
    let mut has_begun = false;
    loop {
        let mut changed = BTreeSet::new();
        tokio::select! {
            next = watch.next() => match next {
                Some(next) => {
                    has_begun = true;
                    changed = next;
                }
                None => return,
            },
            () = states.added() => {}
        }
        if has_begun {
            changed.extend(states.waiting());
            changed.into_iter().for_each(|cohort| hand_on(&watch, &states, cohort));
        }
    }
}

fn hand_on(watch: &ElectionsWatch, states: &Subscriptions<SentElection>, cohort: CohortId) {
    match watch.state(cohort) {
        Ok(state) => states.publish(cohort, (watch.line(), state)),
        Err(error) => tracing::error!(%cohort, %error, "the election cannot be read"),
    }
}
