//! PacificA's configuration manager at the coordinator.

use std::sync::{Arc, Weak};

use trireme_coordinator::CoordinatorError;
use trireme_coordinator::recipes::catalog::CompareAndSet;
use trireme_coordinator::recipes::configuration::ConfigurationManager;
use trireme_replication::driver::CoreReplica;
use trireme_replication::pacifica::{Newest, Pacifica, Proposal};
use trireme_types::{CohortConfig, CohortId};

use super::pending_request::{PendingRequest, RETRY_PAUSE};
use super::shared::{RequestPermit, SharedCoordinator};

/// Carries out what a replica proposes to its cohort's configuration manager, and sends it the newest
/// configuration, until the replica ends. To be called within a runtime.
pub(crate) fn configure(
    coordinator: Arc<SharedCoordinator>,
    cohort: CohortId,
    request: &PendingRequest<Pacifica>,
    replica: &Arc<CoreReplica<Pacifica>>,
) {
    let server = request.server();
    let manager = ConfigurationManager::new(&coordinator.coordinator, cohort);
    let permits = Arc::clone(&coordinator);
    let part = Part { manager, coordinator, cohort, replica: Arc::downgrade(replica) };
    let (watching, end) = (part.clone(), server.end.clone());
    tokio::spawn(async move {
        end.run_until_cancelled(watching.watch()).await;
    });
    tokio::spawn(async move {
        server.serve(&permits, |proposal, permit| part.carry_out(proposal, permit)).await;
    });
}

/// One replica's part in the changes of its cohort's configuration.
#[derive(Clone)]
struct Part {
    manager: ConfigurationManager,
    coordinator: Arc<SharedCoordinator>,
    cohort: CohortId,
    replica: Weak<CoreReplica<Pacifica>>,
}

impl Part {
    /// Passes every new configuration to the replica.
    async fn watch(&self) {
        let mut configs = self.coordinator.catalog.configs(self.cohort);
        while let Some(config) = configs.next().await {
            if !CoreReplica::notify(&self.replica, Newest(config)).await {
                return;
            }
        }
    }

    /// Passes a configuration that was read or installed to the replica, once the node remembers it: a
    /// node that acts in one knows it whatever becomes of the coordinator. One that is older than what
    /// the node knows, or another under the same version, is not passed on.
    async fn pass_on(&self, config: CohortConfig) {
        loop {
            match self.coordinator.continuity.remember_configs(std::slice::from_ref(&config)).await
            {
                Ok(newest) if newest.is_empty() => return,
                Ok(_) => {
                    CoreReplica::notify(&self.replica, Newest(config)).await;
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "a configuration cannot be remembered yet");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
    }

    /// Carries out a proposal and passes on what is installed; returns true if that is known.
    async fn carry_out(&self, Proposal(config): Proposal, permit: RequestPermit) -> bool {
        if !self.coordinator.continuity.may_change(self.cohort).await || self.withholds(&config) {
            return false;
        }
        let newest = match self.propose(config).await {
            Ok(newest) => Some(newest),
            Err(error) => {
                tracing::info!(%error, "it is not known what became of a proposal");
                // P4: read, and let the replica go by what is read.
                self.manager.newest().await.ok().flatten()
            }
        };
        drop(permit);
        match newest {
            Some(config) => {
                self.pass_on(config).await;
                true
            }
            None => false,
        }
    }

    /// Returns true if a node that stops would take replicas out of a configuration. Those that do not
    /// answer it any more are likely to stop as it does, and when all are back, the only replica that
    /// counts would be the one that stopped last. What is at fault is found by those that stay.
    fn withholds(&self, config: &CohortConfig) -> bool {
        let known = self.coordinator.known_catalog();
        let known = known.as_ref().and_then(|known| known.configs.get(&self.cohort));
        let takes_out = known.is_some_and(|known| config.replicas.len() < known.replicas.len());
        takes_out && self.coordinator.is_stopping()
    }

    async fn propose(&self, config: CohortConfig) -> Result<CohortConfig, CoordinatorError> {
        let at = config.version.saturating_sub(1);
        let known = self.coordinator.known_catalog();
        Ok(match self.manager.propose(at, config, known.as_deref()).await? {
            CompareAndSet::Installed(config) | CompareAndSet::Superseded(config) => config,
        })
    }
}
