//! PacificA's configuration manager at the coordinator.

use std::sync::{Arc, Weak};

use trireme_coordinator::recipes::catalog::CompareAndSet;
use trireme_coordinator::recipes::configuration::ConfigurationManager;
use trireme_coordinator::{Coordinator, CoordinatorError};
use trireme_replication::driver::CoreReplica;
use trireme_replication::pacifica::{Newest, Pacifica, Proposal};
use trireme_types::{CohortConfig, CohortId};

use super::{RETRY_PAUSE, Wish, tell};

/// Carries out what a replica proposes to its cohort's configuration manager, and tells it the newest
/// configuration, until the replica ends. To be called within a runtime.
pub(crate) fn configure(
    coordinator: &Coordinator,
    cohort: CohortId,
    wish: &Wish<Pacifica>,
    replica: &Arc<CoreReplica<Pacifica>>,
) {
    let server = wish.server();
    let manager = ConfigurationManager::new(coordinator, cohort);
    let (watched, end) = (manager.clone(), server.end.clone());
    let (told, asking) = (Arc::downgrade(replica), Arc::downgrade(replica));
    tokio::spawn(async move {
        end.run_until_cancelled(watch(&watched, &told)).await;
    });
    tokio::spawn(async move {
        server.serve(|proposal| carry_out(&manager, &asking, proposal)).await;
    });
}

/// Tells the replica every new configuration.
async fn watch(manager: &ConfigurationManager, replica: &Weak<CoreReplica<Pacifica>>) {
    loop {
        let mut watch = match manager.watch() {
            Ok(watch) => watch,
            Err(error) => {
                tracing::error!(%error, "the configuration cannot be watched");
                return;
            }
        };
        while let Some(config) = watch.next().await {
            match config {
                Ok(config) => {
                    if !tell(replica, Newest(config)).await {
                        return;
                    }
                }
                Err(error) => tracing::error!(%error, "the configuration cannot be read"),
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Carries out a proposal and tells the replica what is installed; says whether that is known.
async fn carry_out(
    manager: &ConfigurationManager,
    replica: &Weak<CoreReplica<Pacifica>>,
    Proposal(config): Proposal,
) -> bool {
    let newest = match propose(manager, config).await {
        Ok(newest) => Some(newest),
        Err(error) => {
            tracing::info!(%error, "it is not known what became of a proposal");
            // P4: read, and let the replica go by what is read.
            manager.newest().await.ok().flatten()
        }
    };
    match newest {
        Some(config) => {
            tell(replica, Newest(config)).await;
            true
        }
        None => false,
    }
}

async fn propose(
    manager: &ConfigurationManager,
    config: CohortConfig,
) -> Result<CohortConfig, CoordinatorError> {
    let at = config.version.saturating_sub(1);
    Ok(match manager.propose(at, config).await? {
        CompareAndSet::Installed(config) | CompareAndSet::Superseded(config) => config,
    })
}
