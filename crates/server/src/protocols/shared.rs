//! What the replicas of one node share of the coordinator: its watches, and how many requests they
//! have there at once.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use trireme_coordinator::recipes::catalog::CatalogState;
use trireme_coordinator::recipes::election::ElectionState;
use trireme_coordinator::{Coordinator, CoordinatorError};
use trireme_types::CohortId;

use super::election_feed::{ElectionFeed, SentElection};
use crate::catalog_feed::CatalogFeed;
use crate::continuity::Continuity;
use crate::feed::Subscription;

/// The most requests that the replicas of a node have at the coordinator at once. When a node dies or
/// a cluster starts, every replica has one. More at once would wait at the coordinator instead, where
/// they use up the time that they may take and delay the keep-alives of the session; fewer leave it
/// idle between two of them.
const REQUESTS_MAX: usize = 16;

/// The right to have a request carried out. Dropping it gives it to the cohort that waits longest.
pub(super) type RequestPermit = Option<OwnedSemaphorePermit>;

/// The coordinator, as all replicas of a node use it.
pub(crate) struct SharedCoordinator {
    pub(super) coordinator: Coordinator,
    /// What keeps replicas from changing anything at a coordinator that is older than it was.
    pub(super) continuity: Arc<Continuity>,
    pub(crate) catalog: CatalogFeed,
    /// Made for the first replica that takes part in elections.
    elections: Mutex<Option<ElectionFeed>>,
    permits: Arc<Semaphore>,
    /// Cancelled when the node stops in order.
    stopping: CancellationToken,
}

impl SharedCoordinator {
    /// Begins to watch the catalog; `stopping` is cancelled when the node stops in order. To be called
    /// within a runtime.
    pub(crate) fn start(
        coordinator: &Coordinator,
        continuity: Arc<Continuity>,
        stopping: CancellationToken,
    ) -> Result<Arc<Self>, CoordinatorError> {
        let catalog = CatalogFeed::start(coordinator, continuity.clone())?;
        let (coordinator, elections) = (coordinator.clone(), Mutex::default());
        let permits = Arc::new(Semaphore::new(REQUESTS_MAX));
        Ok(Arc::new(Self { coordinator, continuity, catalog, elections, permits, stopping }))
    }

    /// Returns what receives a cohort's election whenever it has changed. To be called within a
    /// runtime.
    pub(super) fn elections(
        &self,
        cohort: CohortId,
    ) -> Result<Subscription<SentElection>, CoordinatorError> {
        let mut elections = self.elections.lock();
        let feed = match &mut *elections {
            Some(feed) => feed,
            none => none.insert(ElectionFeed::start(&self.coordinator)?),
        };
        Ok(feed.subscribe(cohort))
    }

    /// Returns a cohort's election as it was sent last, if that was in the line that is trusted now: in
    /// another one, a version may be that of something else.
    pub(super) fn election(&self, cohort: CohortId) -> Option<ElectionState> {
        let (line, state) = self.elections.lock().as_ref()?.newest(cohort)?;
        self.continuity.is_in(line).then_some(state)
    }

    /// Returns the catalog as it was sent last, under the same condition.
    pub(crate) fn known_catalog(&self) -> Option<Arc<CatalogState>> {
        self.catalog.newest().filter(|known| self.continuity.is_in(known.line))
    }

    /// Returns true once the node stops in order.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Waits for a permit. Those who wait receive one in turn.
    pub(super) async fn permit(&self) -> RequestPermit {
        // The semaphore is never closed.
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }
}
