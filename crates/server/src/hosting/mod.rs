//! The replicas of one node, which follow the catalog.
//!
//! One task opens the replicas that the node is to hold and closes those that it must not hold any
//! more, as [`decision`] says: whenever a configuration or an invitation has changed, and one
//! after the other, so that no two replicas of a cohort can ever be open at once. What clients and
//! peers are served by is replaced as a whole after each step: a replica is served once it is
//! open, and is not any more before it is closed.
//!
//! As long as the coordinator says nothing, nothing changes: replicas do not need it to go on.

mod decision;
mod opener;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use trireme_coordinator::recipes::catalog::CatalogState;
use trireme_coordinator::recipes::invitations::{AllInvitations, Invitations, InvitationsWatch};
use trireme_coordinator::{Coordinator, CoordinatorError};
use trireme_types::CohortId;

use self::decision::{Plan, merge, plan};
pub(crate) use self::opener::Opener;
use crate::cohort::HostedCohort;
use crate::node::NodeError;
use crate::peers::Peers;
use crate::routes::{Router, Routes};

/// How long to wait before what could not be opened or discarded is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The replicas of one node, and what decides which they are.
pub(crate) struct Hosting {
    opener: Opener,
    router: Arc<Router>,
    peers: Arc<Peers>,
    /// The newest of everything that the coordinator has sent.
    catalog: CatalogState,
    invitations: AllInvitations,
    /// What the coordinator has sent last, until the node remembers it.
    sent: Option<CatalogState>,
    hosted: BTreeMap<CohortId, Arc<HostedCohort>>,
}

/// The watches that hosting follows.
struct CatalogWatches {
    catalog: watch::Receiver<Option<Arc<CatalogState>>>,
    invitations: InvitationsWatch,
}

impl Hosting {
    /// Opens the replicas that the catalog places on the node, and serves peers and clients with
    /// them. Fails if one cannot be opened: at its start, a node has all that it should or nothing.
    pub(crate) async fn start(
        opener: Opener,
        peers: Arc<Peers>,
        catalog: CatalogState,
    ) -> Result<Self, NodeError> {
        let router = Router::new(catalog.cluster, opener.directory.clone(), Routes::of(&catalog));
        let (router, invitations) = (Arc::new(router), AllInvitations::new());
        let hosted = BTreeMap::new();
        let sent = None;
        let mut hosting = Self { opener, router, peers, catalog, invitations, sent, hosted };
        let Plan { open, discard, .. } = hosting.plan();
        for cohort in discard {
            hosting.opener.set_aside(cohort).await?;
        }
        for cohort in open {
            hosting.open(cohort).await?;
        }
        hosting.publish();
        Ok(hosting)
    }

    /// Returns the router, which always knows the newest routes.
    pub(crate) fn router(&self) -> Arc<Router> {
        self.router.clone()
    }

    /// Follows the catalog until `stop`, and leaves the replicas as they are then.
    pub(crate) async fn run(mut self, coordinator: Coordinator, stop: CancellationToken) {
        let mut watches = match CatalogWatches::new(&self.opener, &coordinator) {
            Ok(watches) => watches,
            Err(error) => return tracing::error!(%error, "the catalog cannot be watched"),
        };
        let mut retry_at = Some(Instant::now());
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                is_open = self.hear(&mut watches) => if !is_open {
                    return tracing::info!("the coordinator is closed");
                },
                () = at(retry_at) => {}
            }
            retry_at = match self.follow().await {
                Ok(()) => self.opener.due().1.map(|left| Instant::now() + left),
                Err(error) => {
                    tracing::warn!(%error, "the replicas here are not yet as they should be");
                    Some(Instant::now() + RETRY_PAUSE)
                }
            };
        }
    }

    /// Waits for the next change of a watch. Returns true if there can be more. Can be cancelled.
    async fn hear(&mut self, watches: &mut CatalogWatches) -> bool {
        let error = tokio::select! {
            changed = watches.catalog.changed() => {
                self.sent = watches.catalog.borrow_and_update().as_deref().cloned();
                return changed.is_ok();
            }
            sent = watches.invitations.next() => match sent {
                Some(Ok(sent)) => {
                    self.invitations = sent;
                    return true;
                }
                Some(Err(error)) => error,
                None => return false,
            },
        };
        tracing::error!(%error, "what the coordinator sent is passed over");
        true
    }

    /// Opens and closes replicas as what is known now asks for. What fails is left for the next
    /// time; the rest is done.
    async fn follow(&mut self) -> Result<(), NodeError> {
        if let Some(sent) = &self.sent {
            // On the disk before anything is done by it.
            self.opener.continuity.remember(sent).await?;
        }
        if let Some(sent) = self.sent.take() {
            merge(&mut self.catalog, sent);
        }
        let Plan { open, close, discard } = self.plan();
        self.publish();
        let mut done = Ok(());
        for cohort in self.opener.due().0 {
            tracing::info!(%cohort, "what was set aside is deleted");
            done = done.and(self.opener.delete_set_aside(cohort).await);
        }
        for cohort in close {
            done = done.and(self.close(cohort).await);
        }
        for cohort in discard {
            done = done.and(self.opener.set_aside(cohort).await);
        }
        for cohort in open {
            done = done.and(self.open(cohort).await);
            self.publish();
        }
        done
    }

    fn plan(&self) -> Plan {
        let local = self.opener.local(&self.hosted);
        plan(self.opener.node, &self.catalog.configs, &self.invitations, &local)
    }

    async fn open(&mut self, cohort: CohortId) -> Result<(), NodeError> {
        let descriptor = self.catalog.map.of_cohort(cohort).cloned();
        let config = self.catalog.configs.get(&cohort).cloned();
        // A cohort that serves no range has nothing to do.
        let (Some(descriptor), Some(config)) = (descriptor, config) else { return Ok(()) };
        tracing::info!(%cohort, ?config, "opening a replica");
        let opened = self.opener.open(descriptor, config).await?;
        self.hosted.insert(cohort, opened);
        Ok(())
    }

    /// Closes a replica and sets aside what it leaves.
    async fn close(&mut self, cohort: CohortId) -> Result<(), NodeError> {
        let Some(hosted) = self.hosted.remove(&cohort) else { return Ok(()) };
        tracing::info!(%cohort, "closing a replica that is not to be here any more");
        self.publish();
        hosted.replica.shutdown().await;
        self.opener.set_aside(cohort).await
    }

    /// Has clients and peers served by what is open, by the newest routes.
    fn publish(&self) {
        let replicas = self.hosted.iter().map(|(&cohort, hosted)| (cohort, hosted.replica.clone()));
        self.peers.set(replicas.collect());
        self.router.set(Routes {
            invitations: self.invitations.clone(),
            hosted: self.hosted.clone(),
            ..Routes::of(&self.catalog)
        });
    }
}

impl CatalogWatches {
    fn new(opener: &Opener, coordinator: &Coordinator) -> Result<Self, CoordinatorError> {
        let catalog = opener.coordinator.catalog.states();
        let invitations = Invitations::new(coordinator).watch()?;
        Ok(Self { catalog, invitations })
    }
}

/// Returns at a moment; never, if there is none.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
