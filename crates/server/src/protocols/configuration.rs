//! PacificA's configuration manager at the coordinator.

use std::sync::{Arc, Weak};

use trireme_coordinator::recipes::catalog::CompareAndSet;
use trireme_coordinator::recipes::configuration::ConfigurationManager;
use trireme_coordinator::{Coordinator, CoordinatorError};
use trireme_replication::driver::CoreReplica;
use trireme_replication::pacifica::{Newest, Pacifica, Proposal};
use trireme_types::{CohortConfig, CohortId};

use super::pending_request::{PendingRequest, RETRY_PAUSE, notify};
use crate::continuity::Continuity;
use crate::memory::MemoryError;

/// Carries out what a replica proposes to its cohort's configuration manager, and sends it the newest
/// configuration, until the replica ends. To be called within a runtime.
pub(crate) fn configure(
    coordinator: &Coordinator,
    continuity: Arc<Continuity>,
    cohort: CohortId,
    request: &PendingRequest<Pacifica>,
    replica: &Arc<CoreReplica<Pacifica>>,
) {
    let server = request.server();
    let manager = ConfigurationManager::new(coordinator, cohort);
    let part = Part { manager, continuity, cohort, replica: Arc::downgrade(replica) };
    let (watching, end) = (part.clone(), server.end.clone());
    tokio::spawn(async move {
        end.run_until_cancelled(watching.watch()).await;
    });
    tokio::spawn(async move {
        server.serve(|proposal| part.carry_out(proposal)).await;
    });
}

/// One replica's part in the changes of its cohort's configuration.
#[derive(Clone)]
struct Part {
    manager: ConfigurationManager,
    continuity: Arc<Continuity>,
    cohort: CohortId,
    replica: Weak<CoreReplica<Pacifica>>,
}

impl Part {
    /// Passes every new configuration to the replica.
    async fn watch(&self) {
        loop {
            let mut watch = match self.manager.watch() {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::error!(%error, "the configuration cannot be watched");
                    return;
                }
            };
            while let Some(config) = watch.next().await {
                match config {
                    Ok(config) => {
                        if !self.notify(config).await {
                            return;
                        }
                    }
                    Err(error) => tracing::error!(%error, "the configuration cannot be read"),
                }
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Passes a configuration to the replica that the node remembers: a node that acts in one knows it
    /// whatever becomes of the coordinator. One that is older than what the node knows, or another
    /// under the same version, comes from a coordinator that was put back, and is not passed on.
    /// Returns true if the replica still runs.
    async fn notify(&self, config: CohortConfig) -> bool {
        loop {
            match self.continuity.remember_config(&config).await {
                Ok(true) => return notify(&self.replica, Newest(config)).await,
                Ok(false) => return true,
                Err(error @ MemoryError::Conflict(_)) => {
                    tracing::error!(%error, "a configuration is refused");
                    return true;
                }
                Err(error @ MemoryError::Folder(_)) => {
                    tracing::warn!(%error, "a configuration cannot be remembered yet");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Carries out a proposal and passes on what is installed; returns true if that is known.
    async fn carry_out(&self, Proposal(config): Proposal) -> bool {
        if !self.continuity.may_change(self.cohort).await {
            return false;
        }
        let newest = match propose(&self.manager, config).await {
            Ok(newest) => Some(newest),
            Err(error) => {
                tracing::info!(%error, "it is not known what became of a proposal");
                // P4: read, and let the replica go by what is read.
                self.manager.newest().await.ok().flatten()
            }
        };
        match newest {
            Some(config) => {
                self.notify(config).await;
                true
            }
            None => false,
        }
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
