//! The replicas of one node, which follow the catalog.
//!
//! One task opens the replicas that the node is to hold and closes those that it must not hold any
//! more, as [`decision`] says: whenever a configuration or an invitation has changed. One thing is done
//! after the other, so that no two replicas of a cohort can ever be open at once. What is to be served
//! comes first; what is left of cohorts that are over goes meanwhile ([`discarding`]).
//! What clients and peers are served by is replaced as a whole, several times while a node that runs
//! opens many replicas: a replica is served soon after it is open, and is not any more before it is
//! closed.
//!
//! As long as the coordinator says nothing, nothing changes: replicas do not need it to go on.

mod decision;
mod discarding;
mod inheritance;
mod opener;
#[cfg(test)]
mod tests;
mod unpublished;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use trireme_coordinator::recipes::catalog::CatalogState;
use trireme_coordinator::recipes::invitations::{AllInvitations, Invitations, InvitationsWatch};
use trireme_coordinator::recipes::succession::{is_over, served, successors};
use trireme_coordinator::{Coordinator, CoordinatorError};
use trireme_types::{CohortConfig, CohortId, KeyRange, Lsn, RangeDescriptor};

use self::decision::{Plan, merge, plan};
use self::discarding::Discarding;
use self::inheritance::{Before, Ended};
pub(crate) use self::opener::Opener;
use self::unpublished::Unpublished;
use crate::cohort::HostedCohort;
use crate::node::NodeError;
use crate::peers::Peers;
use crate::routes::{Router, Routes};

/// How long to wait before what could not be opened or discarded is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How many replicas are opened at a time: enough that those that wait for the disk or for a thread
/// hold up no other. More would only have more of them wait.
const OPENINGS_MAX: usize = 32;

/// The replicas of one node, and what decides which they are.
pub(crate) struct Hosting {
    opener: Arc<Opener>,
    router: Arc<Router>,
    peers: Arc<Peers>,
    /// The newest of everything that the coordinator has sent.
    catalog: CatalogState,
    /// `None` as long as the coordinator has not sent any.
    invitations: Option<AllInvitations>,
    /// What the coordinator has sent last, until the node remembers it.
    sent: Option<CatalogState>,
    hosted: BTreeMap<CohortId, Arc<HostedCohort>>,
    /// Those of them that are not published yet.
    unpublished: Unpublished,
    discarding: Discarding,
}

/// The watches that hosting follows.
struct CatalogWatches {
    catalog: watch::Receiver<Option<Arc<CatalogState>>>,
    invitations: InvitationsWatch,
    /// Changes whenever a cohort has ended here.
    ended: watch::Receiver<()>,
}

impl Hosting {
    /// Opens the replicas that the catalog places on the node, and serves peers and clients with
    /// them once the node takes connections. Fails if one cannot be opened: at its start, a node has all
    /// that it should, or ends.
    pub(crate) async fn start(
        opener: Opener,
        peers: Arc<Peers>,
        catalog: CatalogState,
    ) -> Result<Self, NodeError> {
        let router = Router::new(catalog.cluster, opener.directory.clone(), Routes::of(&catalog));
        let (router, invitations) = (Arc::new(router), None);
        let (opener, hosted, sent) = (Arc::new(opener), BTreeMap::new(), None);
        let (unpublished, discarding) = (Unpublished::default(), Discarding::default());
        let mut hosting = Self {
            opener,
            router,
            peers,
            catalog,
            invitations,
            sent,
            hosted,
            unpublished,
            discarding,
        };
        hosting.open_all(hosting.plan().open).await?;
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
                () = stop.cancelled() => break,
                is_open = self.hear(&mut watches) => if !is_open {
                    tracing::info!("the coordinator is closed");
                    break;
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
        self.discarding.finish().await;
    }

    /// Waits for the next change of a watch, or until what was over is discarded. Returns true if there
    /// can be more. Can be cancelled.
    async fn hear(&mut self, watches: &mut CatalogWatches) -> bool {
        let error = tokio::select! {
            changed = watches.catalog.changed() => {
                self.sent = watches.catalog.borrow_and_update().as_deref().cloned();
                return changed.is_ok();
            }
            sent = watches.invitations.next() => match sent {
                Some(Ok(sent)) => {
                    self.invitations = Some(sent);
                    return true;
                }
                Some(Err(error)) => error,
                None => return false,
            },
            changed = watches.ended.changed() => return changed.is_ok(),
            () = self.discarding.ended() => return true,
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
        self.publish();
        let mut done = self.open_all(self.plan().open).await;
        done = done.and(self.give_up().await);
        for cohort in self.opener.due().0 {
            tracing::info!(%cohort, "what was set aside is deleted");
            done = done.and(self.opener.delete_set_aside(cohort).await);
        }
        done
    }

    fn plan(&self) -> Plan {
        let local = self.opener.local(&self.hosted);
        plan(self.opener.node, &self.catalog.configs, self.invitations.as_ref(), &local)
    }

    /// Opens replicas, and publishes them. What fails is left for the next time; the rest is done.
    async fn open_all(&mut self, cohorts: BTreeSet<CohortId>) -> Result<(), NodeError> {
        let mut done = Ok(());
        // What begins where another cohort ends has to know what of that is here by then.
        let (linked, alone) = cohorts.into_iter().partition::<Vec<_>, _>(|it| self.is_linked(*it));
        let openings: Vec<_> = alone
            .into_iter()
            .filter_map(|cohort| {
                let (descriptor, config, before) = self.to_open(cohort)?;
                let opener = Arc::clone(&self.opener);
                Some(async move { (cohort, opener.open(descriptor, config, before).await) })
            })
            .collect();
        let mut openings = stream::iter(openings).buffer_unordered(OPENINGS_MAX);
        loop {
            tokio::select! {
                opened = openings.next() => match opened {
                    Some((cohort, opened)) => done = done.and(opened.map(|it| self.host(cohort, it))),
                    None => break,
                },
                () = at(self.unpublished.due()) => self.publish(),
            }
        }
        for cohort in linked {
            done = done.and(self.open_linked(cohort).await);
            // Each takes part in its cohort's election while the next one is opened.
            self.publish();
        }
        self.publish();
        done
    }

    /// Returns true if a cohort goes on where another one ends, or another one where it does.
    fn is_linked(&self, cohort: CohortId) -> bool {
        let configs = &self.catalog.configs;
        let origin = configs.get(&cohort).and_then(|config| config.origin.as_ref());
        let is_needed = |(ended, _)| !is_over(configs, ended);
        origin.is_some_and(|origin| origin.seals().any(is_needed))
            || !successors(configs, cohort).is_empty()
    }

    /// Returns what a cohort's replica is opened with; `None` if it serves no range, and so has nothing
    /// to do.
    fn to_open(&self, cohort: CohortId) -> Option<(RangeDescriptor, CohortConfig, Before)> {
        let config = self.catalog.configs.get(&cohort)?.clone();
        let before = self.before(&config);
        Some((self.descriptor(cohort)?, config, before))
    }

    /// Hosts a replica that was opened, and publishes it unless too little is new.
    fn host(&mut self, cohort: CohortId, opened: Option<Arc<HostedCohort>>) {
        let Some(opened) = opened else {
            return tracing::info!(%cohort, "waiting for the end of the cohort where it goes on");
        };
        self.hosted.insert(cohort, opened);
        if self.unpublished.add(Instant::now(), self.hosted.len()) {
            self.publish();
        }
    }

    async fn open_linked(&mut self, cohort: CohortId) -> Result<(), NodeError> {
        let Some((descriptor, config, before)) = self.to_open(cohort) else { return Ok(()) };
        for successor in successors(&self.catalog.configs, cohort) {
            let origin = successor.origin.as_ref();
            let seal = origin.and_then(|it| it.seals().find(|(ended, _)| *ended == cohort));
            if let Some((_, seal)) = seal
                && self.opener.has_log_only(successor.cohort)
            {
                self.opener.apply_up_to_seal(cohort, &descriptor.range, seal).await?;
            }
        }
        let opened = self.opener.open(descriptor, config, before).await?;
        self.host(cohort, opened);
        Ok(())
    }

    /// Returns the range that a cohort serves, or the one that it served until it ended.
    fn descriptor(&self, cohort: CohortId) -> Option<RangeDescriptor> {
        let CatalogState { map, configs, .. } = &self.catalog;
        let current = map.of_cohort(cohort).cloned();
        current.or_else(|| {
            Some(RangeDescriptor { range: served(map, configs, cohort)?, cohort, epoch: 0 })
        })
    }

    /// Returns what the node has of the cohorts where another one goes on.
    fn before(&self, config: &CohortConfig) -> Before {
        let Some(origin) = &config.origin else { return Before::default() };
        // The node may be one that is invited, and does not know it yet.
        let may_be_opened = |ended: &CohortId| {
            let local = self.opener.local(&self.hosted);
            self.invitations.is_none() && local.get(ended).is_some_and(|it| it.has_data)
        };
        let is_here = |(ended, _): (CohortId, Lsn)| {
            !is_over(&self.catalog.configs, ended)
                && (self.hosted.contains_key(&ended) || may_be_opened(&ended))
        };
        let is_here = origin.seals().all(is_here);
        let ended = origin.seals().map(|(cohort, seal)| {
            let range = self.descriptor(cohort).map_or_else(KeyRange::all, |it| it.range);
            Ended { cohort, seal, range }
        });
        let ended = ended.collect();
        let invitations = self.invitations.as_ref();
        let invitation =
            invitations.and_then(|all| all.get(&config.cohort)).map(|it| it.invitation);
        let is_to_learn = !config.replicas.contains(&self.opener.node)
            && invitation.is_some_and(|it| it.leaving.is_some());
        Before { is_here, ended, is_to_learn }
    }

    /// Closes the replicas that are not to be here any more and gives up what is left of them.
    async fn give_up(&mut self) -> Result<(), NodeError> {
        let Plan { close, discard, .. } = self.plan();
        for &cohort in &close {
            self.close(cohort).await;
        }
        let left = close.into_iter().chain(discard);
        let (over, others) =
            left.partition::<Vec<_>, _>(|cohort| is_over(&self.catalog.configs, *cohort));
        self.discarding.add(&self.opener, over);
        let mut done = Ok(());
        // Before the next step: what is left of one that is opened again is what it goes on with.
        for cohort in others {
            done = done.and(self.opener.set_aside(cohort).await);
        }
        done
    }

    async fn close(&mut self, cohort: CohortId) {
        let Some(hosted) = self.hosted.remove(&cohort) else { return };
        tracing::info!(%cohort, "closing a replica that is not to be here any more");
        self.publish();
        hosted.replica.shutdown().await;
    }

    /// Has clients and peers served by what is open, by the newest routes.
    fn publish(&mut self) {
        self.unpublished = Unpublished::default();
        let replicas = self.hosted.iter().map(|(&cohort, hosted)| (cohort, hosted.replica.clone()));
        {
            // What replicas do with messages that came before them is done where they run.
            let _entered = self.opener.consensus.enter();
            self.peers.set(replicas.collect());
        }
        self.router.set(Routes {
            invitations: self.invitations.clone().unwrap_or_default(),
            hosted: self.hosted.clone(),
            ..Routes::of(&self.catalog)
        });
    }
}

impl CatalogWatches {
    fn new(opener: &Opener, coordinator: &Coordinator) -> Result<Self, CoordinatorError> {
        let catalog = opener.coordinator.catalog.states();
        let ended = opener.ended.clone();
        let invitations = Invitations::new(coordinator).watch()?;
        Ok(Self { catalog, invitations, ended })
    }
}

/// Returns at a moment; never, if there is none.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
