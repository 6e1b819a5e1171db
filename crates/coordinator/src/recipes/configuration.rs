//! PacificA's configuration manager for one cohort (PacificA §2.3; M33, M34).
//!
//! It holds the cohort's newest configuration, in the catalog. A proposal made at version v is
//! installed as v+1 if v is still the newest, and otherwise the proposer receives what is; of two
//! proposals made at the same version exactly one is installed. It has no part in reads and writes,
//! and no part in deciding who is dead: that is between primary and secondaries.
//!
//! Whoever does not know what became of his proposal stays inactive, reads, and goes by what he
//! reads (P4): [`ConfigurationManager::propose`] never proposes the same thing under another
//! version by itself. A reply that could not be had is the error
//! [`CoordinatorError::Ambiguous`].

use trireme_types::{CohortConfig, CohortId};

use super::catalog::{Catalog, CatalogWatch, CompareAndSet};
use crate::{Coordinator, CoordinatorError};

/// The configuration manager of one cohort.
#[derive(Clone, Debug)]
pub struct ConfigurationManager {
    catalog: Catalog,
    cohort: CohortId,
}

impl ConfigurationManager {
    /// Returns the configuration manager of `cohort`.
    pub fn new(coordinator: &Coordinator, cohort: CohortId) -> Self {
        Self { catalog: Catalog::new(coordinator), cohort }
    }

    /// Returns the newest configuration; `None` if there is no such cohort.
    pub async fn newest(&self) -> Result<Option<CohortConfig>, CoordinatorError> {
        self.catalog.cohort(self.cohort).await
    }

    /// Proposes `change` of the configuration of version `at`: installs it as version `at + 1` if
    /// `at` is the newest, or returns the newest.
    pub async fn propose(
        &self,
        at: u64,
        mut change: CohortConfig,
    ) -> Result<CompareAndSet<CohortConfig>, CoordinatorError> {
        change.cohort = self.cohort;
        change.version = at.saturating_add(1);
        self.catalog.compare_and_set_cohort(change).await
    }

    /// Watches the configuration.
    pub fn watch(&self) -> Result<ConfigurationWatch, CoordinatorError> {
        Ok(ConfigurationWatch { watch: self.catalog.watch()?, cohort: self.cohort, told: 0 })
    }
}

/// A watch of one cohort's configuration. Dropping it ends it.
#[derive(Debug)]
pub struct ConfigurationWatch {
    watch: CatalogWatch,
    cohort: CohortId,
    /// The version that was delivered last; versions begin at 1.
    told: u64,
}

impl ConfigurationWatch {
    /// Returns the next configuration that is newer than the one delivered before. `None` once the
    /// coordinator is closed. Can be cancelled.
    pub async fn next(&mut self) -> Option<Result<CohortConfig, CoordinatorError>> {
        loop {
            let mut state = match self.watch.next().await? {
                Ok(state) => state,
                Err(error) => return Some(Err(error)),
            };
            if let Some(config) = state.configs.remove(&self.cohort)
                && config.version > self.told
            {
                self.told = config.version;
                return Some(Ok(config));
            }
        }
    }
}
