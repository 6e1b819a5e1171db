//! The node's one watch of the catalog: hosting follows it, and so does every replica whose protocol
//! changes its configuration.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use trireme_coordinator::recipes::catalog::{Catalog, CatalogState, CatalogWatch};
use trireme_coordinator::{Coordinator, CoordinatorError};
use trireme_types::{CohortConfig, CohortId};

use crate::continuity::Continuity;
use crate::feed::{Subscription, Subscriptions};

/// How long to wait before configurations are remembered that the disk did not take.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The watch of the catalog that a node has.
pub(crate) struct CatalogFeed {
    states: watch::Receiver<Option<Arc<CatalogState>>>,
    configs: Arc<Subscriptions<CohortConfig>>,
    task: AbortHandle,
}

impl CatalogFeed {
    /// Begins to watch. To be called within a runtime.
    pub(crate) fn start(
        coordinator: &Coordinator,
        continuity: Arc<Continuity>,
    ) -> Result<Self, CoordinatorError> {
        let catalog = Catalog::new(coordinator).watch()?;
        let configs = Arc::new(Subscriptions::new());
        let (sender, states) = watch::channel(None);
        let reader = Reader { continuity, states: sender, configs: Arc::clone(&configs) };
        let task = tokio::spawn(reader.run(catalog)).abort_handle();
        Ok(Self { states, configs, task })
    }

    /// Returns what receives the catalog whenever it has changed.
    pub(crate) fn states(&self) -> watch::Receiver<Option<Arc<CatalogState>>> {
        self.states.clone()
    }

    /// Returns the catalog as it was sent last.
    pub(crate) fn newest(&self) -> Option<Arc<CatalogState>> {
        self.states.borrow().clone()
    }

    /// Returns what receives a cohort's newest configuration, which the node remembers by then.
    pub(crate) fn configs(&self, cohort: CohortId) -> Subscription<CohortConfig> {
        self.configs.subscribe(cohort)
    }
}

impl Drop for CatalogFeed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task that reads the watch.
struct Reader {
    continuity: Arc<Continuity>,
    states: watch::Sender<Option<Arc<CatalogState>>>,
    configs: Arc<Subscriptions<CohortConfig>>,
}

impl Reader {
    async fn run(self, mut catalog: CatalogWatch) {
        loop {
            tokio::select! {
                state = catalog.next() => match state {
                    Some(Ok(state)) => {
                        self.states.send_replace(Some(Arc::new(state)));
                    }
                    Some(Err(error)) => tracing::error!(%error, "the catalog cannot be read"),
                    None => return,
                },
                () = self.configs.added() => {}
            }
            self.hand_on().await;
        }
    }

    /// Hands on what replicas have not been handed yet. The node remembers it first: a node that acts in
    /// a configuration knows it whatever becomes of the coordinator. One that is older than what
    /// the node knows, or another under the same version, comes from a coordinator that was put back,
    /// and is not handed on.
    async fn hand_on(&self) {
        let Some(state) = self.states.borrow().clone() else { return };
        let news = self.configs.last().into_iter().filter_map(|(cohort, last)| {
            let newest = state.configs.get(&cohort)?;
            last.is_none_or(|last| last.version < newest.version).then(|| newest.clone())
        });
        let news: Vec<_> = news.collect();
        if news.is_empty() {
            return;
        }
        let newest = loop {
            match self.continuity.remember_configs(&news).await {
                Ok(newest) => break newest,
                Err(error) => {
                    tracing::warn!(%error, "configurations cannot be remembered yet");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        };
        for config in newest {
            self.configs.publish(config.cohort, config);
        }
    }
}
