//! Successors of cohorts that have ended: how the catalog records them.
//!
//! That a cohort has ended, and which are its successors, was decided by its own replicas, in its log
//! ([`trireme_types::Seal`]). Here it is only recorded, by any node that has applied it. Recording it again
//! changes nothing.

use std::collections::BTreeMap;

use trireme_types::{CohortConfig, CohortId, Lsn, Origin, RangeMapError, Seal};

use super::catalog::{Catalog, CatalogState, CompareAndSet, MAP, MapNode, config_op};
use super::encode;
use crate::{CoordinatorError, ErrorClass, NodeVersion, Op};

/// The version of a cohort's first configuration.
const FIRST_VERSION: u64 = 1;

/// Why a cohort could not be succeeded.
#[derive(Debug, thiserror::Error)]
pub enum SuccessionError {
    /// The coordinator could not do it.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    /// The successors' ranges are not the cohort's.
    #[error("the successors do not serve what the cohort served: {0}")]
    Ranges(#[from] RangeMapError),
    /// There is no such cohort, and it has no successor.
    #[error("the catalog does not know the cohort {0}")]
    NoCohort(CohortId),
}

impl CatalogState {
    /// Returns the configurations of the successors of `cohort`, in the order of their ids.
    pub fn successors(&self, cohort: CohortId) -> Vec<&CohortConfig> {
        successors(&self.configs, cohort)
    }
}

/// Returns the configurations of the successors of `cohort`, in the order of their ids.
pub fn successors(
    configs: &BTreeMap<CohortId, CohortConfig>,
    cohort: CohortId,
) -> Vec<&CohortConfig> {
    let comes_from_it = |config: &&CohortConfig| {
        config.origin.as_ref().is_some_and(|origin| origin.cohort == cohort)
    };
    configs.values().filter(comes_from_it).collect()
}

/// Returns true if nothing of a cohort is needed any more: all its successors are settled (RANGE-9).
pub fn is_over(configs: &BTreeMap<CohortId, CohortConfig>, cohort: CohortId) -> bool {
    let successors = successors(configs, cohort);
    let is_settled = |config: &&CohortConfig| config.origin.is_some_and(|it| it.is_settled);
    !successors.is_empty() && successors.iter().all(is_settled)
}

impl Catalog {
    /// Replaces `cohort`, which ended at `at`, by its successors, in one change of the range map that also
    /// gives them their ids and their first configurations. Returns these configurations, or those that are
    /// there already.
    pub async fn succeed(
        &self,
        cohort: CohortId,
        at: Lsn,
        seal: &Seal,
    ) -> Result<Vec<CohortConfig>, SuccessionError> {
        loop {
            let state = self.load().await?.ok_or(SuccessionError::NoCohort(cohort))?;
            let known: Vec<_> = state.successors(cohort).into_iter().cloned().collect();
            if !known.is_empty() {
                return Ok(known);
            }
            let configs = first_configs(&state, cohort, at, seal);
            let ranges = seal.successors.iter().map(|successor| successor.range.clone());
            let ranges = ranges.zip(configs.iter().map(|config| config.cohort));
            let map = state.map.replace(cohort, ranges);
            let map = map.ok_or(SuccessionError::NoCohort(cohort))??;
            //= RANGE-5
            let mut ops = vec![Op::Set {
                path: MAP.to_owned(),
                value: encode(&MapNode::from(&map)),
                expected: Some(NodeVersion(state.map_revision)),
            }];
            ops.extend(configs.iter().map(|config| config_op(config, None)));
            match self.coordinator().multi(ops).await {
                Ok(_) => return Ok(configs),
                // Another node was faster, with this or with another change.
                Err(error) if error.class() == ErrorClass::Conflict => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Records that `cohort` needs nothing any more of the one that it succeeds.
    pub async fn settle(&self, cohort: CohortId) -> Result<(), CoordinatorError> {
        loop {
            let Some(config) = self.cohort(cohort).await? else { return Ok(()) };
            let Some(origin) = config.origin.filter(|origin| !origin.is_settled) else {
                return Ok(());
            };
            let origin = Some(Origin { is_settled: true, ..origin });
            let settled = CohortConfig { version: config.version + 1, origin, ..config };
            if let CompareAndSet::Installed(_) = self.compare_and_set_cohort(settled).await? {
                return Ok(());
            }
        }
    }
}

/// Returns the configurations that the successors begin with, under ids that no cohort had before.
fn first_configs(
    state: &CatalogState,
    cohort: CohortId,
    at: Lsn,
    seal: &Seal,
) -> Vec<CohortConfig> {
    let mapped = state.map.ranges().iter().map(|entry| entry.cohort);
    let highest = mapped.chain(state.configs.keys().copied()).max().unwrap_or_default();
    let origin = Some(Origin { cohort, seal: at, is_settled: false });
    let ids = (highest.0 + 1..).map(CohortId);
    let configs = seal.successors.iter().zip(ids).map(|(successor, cohort)| CohortConfig {
        cohort,
        version: FIRST_VERSION,
        protocol: successor.protocol,
        replicas: successor.replicas.clone(),
        replicas_wanted: successor.replicas_wanted,
        incarnations: BTreeMap::new(),
        origin,
    });
    configs.collect()
}
