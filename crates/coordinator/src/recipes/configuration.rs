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
//!
//! What is installed is learned from a watch of the catalog, one for all cohorts of a node.

use trireme_types::{CohortConfig, CohortId};

use super::catalog::{Catalog, CatalogState, CompareAndSet};
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
    /// `at` is the newest, or returns the newest. What this coordinator has sent of the catalog saves
    /// asking for it.
    pub async fn propose(
        &self,
        at: u64,
        mut change: CohortConfig,
        known: Option<&CatalogState>,
    ) -> Result<CompareAndSet<CohortConfig>, CoordinatorError> {
        change.cohort = self.cohort;
        change.version = at.saturating_add(1);
        match known {
            Some(known) => self.catalog.compare_and_set_known_cohort(known, change).await,
            None => self.catalog.compare_and_set_cohort(change).await,
        }
    }
}
