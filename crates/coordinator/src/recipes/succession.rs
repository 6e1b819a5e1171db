//! Successors of cohorts that have ended: how the catalog records them.
//!
//! That a cohort has ended, and which are its successors, was decided by its own replicas, in its log
//! ([`trireme_types::Seal`]). Here it is only recorded, by any node that has applied it. Recording it again
//! changes nothing.

use std::collections::BTreeMap;

use trireme_types::{
    CohortConfig, CohortId, KeyRange, Lsn, Origin, RangeMap, RangeMapError, Seal, Successor, Upper,
};

use super::catalog::{Catalog, CatalogState, CompareAndSet, MAP, MapNode, config_op};
use super::encode;
use crate::{CoordinatorError, ErrorClass, MULTI_BYTES_MAX, NodeVersion, Op};

/// The version of a cohort's first configuration.
const FIRST_VERSION: u64 = 1;

/// The most bytes of a range map that is to become longer: half of what one change may have, so that those
/// that become longer at the same time, each by a few borders, have room too.
const MAP_BYTES_MAX: usize = MULTI_BYTES_MAX / 2;

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

/// What goes on where cohorts have ended, as their seals decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Those that ended, in key order, each with its seal: one, or two that become one.
    ended: Vec<(CohortId, Lsn)>,
    successors: Vec<Successor>,
}

impl Decided {
    /// One has ended, and goes on by itself, in one successor or several.
    pub fn alone(cohort: CohortId, at: Lsn, seal: &Seal) -> Self {
        Self { ended: vec![(cohort, at)], successors: seal.successors.clone() }
    }

    /// Two have ended that go on as one, the one with the lower keys first.
    pub fn merged(ended: [(CohortId, Lsn); 2], successor: Successor) -> Self {
        Self { ended: ended.into(), successors: vec![successor] }
    }

    /// Returns the first of the cohorts that ended.
    fn first(&self) -> CohortId {
        self.ended[0].0
    }
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
        config.origin.as_ref().is_some_and(|origin| origin.is_from(cohort))
    };
    configs.values().filter(comes_from_it).collect()
}

/// Returns the range that a cohort serves, or the one that it served until it ended: what its successors
/// serve together, or theirs in their turn. `None` if that is not known.
pub fn served(
    map: &RangeMap,
    configs: &BTreeMap<CohortId, CohortConfig>,
    cohort: CohortId,
) -> Option<KeyRange> {
    if let Some(entry) = map.of_cohort(cohort) {
        return Some(entry.range.clone());
    }
    if map.ranges().iter().any(|entry| !configs.contains_key(&entry.cohort)) {
        // One of them may be a successor.
        return None;
    }
    // Ids rise from one to the next, so that this comes to an end.
    let later = successors(configs, cohort).into_iter().filter(|it| it.cohort > cohort);
    let part = |successor: &CohortConfig| {
        let whole = served(map, configs, successor.cohort)?;
        Some(successor.origin.as_ref()?.part(cohort, &whole))
    };
    let ranges: Option<Vec<_>> = later.map(part).collect();
    let ranges = ranges?;
    let start = ranges.iter().map(|range| range.start.clone()).min()?;
    // No end is the highest.
    let last = ranges.iter().max_by(|a, b| a.start.cmp(&b.start))?;
    Some(KeyRange { start, end: last.end.clone() })
}

/// Returns true if nothing of a cohort is needed any more: all its successors are settled (RANGE-9).
pub fn is_over(configs: &BTreeMap<CohortId, CohortConfig>, cohort: CohortId) -> bool {
    let successors = successors(configs, cohort);
    let is_settled =
        |config: &&CohortConfig| config.origin.as_ref().is_some_and(|it| it.is_settled);
    !successors.is_empty() && successors.iter().all(is_settled)
}

/// Returns true if the catalog has room for a map, and for others that become longer at the same time. A
/// cohort that has ended must get its successors, so this is to be asked before it ends.
pub fn has_room(map: &RangeMap) -> bool {
    encode(&MapNode::from(map)).len() <= MAP_BYTES_MAX
}

impl Catalog {
    /// Replaces cohorts that have ended by what goes on in their place, in one change of the range map that
    /// also gives the successors their ids and their first configurations. Returns these configurations, or
    /// those of the successors that one of the cohorts has already.
    pub async fn succeed(&self, decided: &Decided) -> Result<Vec<CohortConfig>, SuccessionError> {
        loop {
            let state = self.load().await?;
            let state = state.ok_or_else(|| SuccessionError::NoCohort(decided.first()))?;
            if let Some(configs) = self.succeed_in(&state, decided).await? {
                return Ok(configs);
            }
        }
    }

    /// Does what [`Catalog::succeed`] does with one request where `known`, which this coordinator has sent,
    /// is as new as it can be.
    pub async fn succeed_known(
        &self,
        known: &CatalogState,
        decided: &Decided,
    ) -> Result<Vec<CohortConfig>, SuccessionError> {
        match self.succeed_in(known, decided).await {
            Ok(Some(configs)) => Ok(configs),
            Err(SuccessionError::Coordinator(error)) => Err(error.into()),
            // It may be older than the cohort.
            Ok(None) | Err(SuccessionError::Ranges(_) | SuccessionError::NoCohort(_)) => {
                self.succeed(decided).await
            }
        }
    }

    /// Makes the change if the catalog is still as in `state`; `None` if it is not.
    async fn succeed_in(
        &self,
        state: &CatalogState,
        decided: &Decided,
    ) -> Result<Option<Vec<CohortConfig>>, SuccessionError> {
        let ids: Vec<_> = decided.ended.iter().map(|(cohort, _)| *cohort).collect();
        //= RANGE-21
        let known = ids.iter().map(|cohort| state.successors(*cohort));
        if let Some(known) = known.into_iter().find(|known| !known.is_empty()) {
            return Ok(Some(known.into_iter().cloned().collect()));
        }
        let configs = first_configs(state, decided);
        let ranges = decided.successors.iter().map(|successor| successor.range.clone());
        let ranges = ranges.zip(configs.iter().map(|config| config.cohort));
        let map = state.map.replace(&ids, ranges);
        let map = map.ok_or_else(|| SuccessionError::NoCohort(decided.first()))??;
        //= RANGE-5
        let mut ops = vec![Op::Set {
            path: MAP.to_owned(),
            value: encode(&MapNode::from(&map)),
            expected: Some(NodeVersion(state.map_revision)),
        }];
        ops.extend(configs.iter().map(|config| config_op(config, None)));
        match self.coordinator().multi(ops).await {
            Ok(_) => Ok(Some(configs)),
            // Another node was faster, with this or with another change.
            Err(error) if error.class() == ErrorClass::Conflict => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Records that `cohort` needs nothing any more of the one that it succeeds.
    pub async fn settle(&self, cohort: CohortId) -> Result<(), CoordinatorError> {
        loop {
            let Some(config) = self.cohort(cohort).await? else { return Ok(()) };
            let Some(origin) = config.origin.clone().filter(|origin| !origin.is_settled) else {
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
fn first_configs(state: &CatalogState, decided: &Decided) -> Vec<CohortConfig> {
    let mapped = state.map.ranges().iter().map(|entry| entry.cohort);
    let highest = mapped.chain(state.configs.keys().copied()).max().unwrap_or_default();
    let origin = origin(state, decided);
    let ids = (highest.0 + 1..).map(CohortId);
    let configs = decided.successors.iter().zip(ids).map(|(successor, cohort)| CohortConfig {
        cohort,
        version: FIRST_VERSION,
        protocol: successor.protocol,
        replicas: successor.replicas.clone(),
        replicas_wanted: successor.replicas_wanted,
        incarnations: BTreeMap::new(),
        origin: origin.clone(),
    });
    configs.collect()
}

/// Returns what the successors come from; `None` if that serves no range.
fn origin(state: &CatalogState, decided: &Decided) -> Option<Origin> {
    let upper = match decided.ended[..] {
        [_, (cohort, seal)] => {
            let start = state.map.of_cohort(cohort)?.range.start.clone();
            Some(Upper { cohort, seal, start })
        }
        _ => None,
    };
    let (cohort, seal) = decided.ended[0];
    Some(Origin { cohort, seal, is_settled: false, upper })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trireme_types::{NodeId, Protocol};

    use super::*;

    /// What a cohort served is known from its successors, and from theirs, and is not guessed while one of them is unknown.
    #[test]
    fn the_range_of_a_cohort_that_has_ended_is_what_all_its_successors_serve() {
        let config = |cohort: u64, of: u64| CohortConfig {
            cohort: CohortId(cohort),
            version: 1,
            protocol: Protocol::Raft,
            replicas: vec![NodeId(1)],
            replicas_wanted: 1,
            incarnations: BTreeMap::new(),
            origin: Some(Origin {
                cohort: CohortId(of),
                seal: Lsn::new(1, 9),
                is_settled: true,
                upper: None,
            }),
        };
        let first = CohortConfig { origin: None, ..config(2, 0) };
        let all = [first, config(3, 2), config(4, 2), config(5, 4), config(6, 4), config(7, 1)];
        let mut configs: BTreeMap<_, _> = all.map(|config| (config.cohort, config)).into();
        let map = RangeMap::from_splits(&[Bytes::from("m")]).unwrap();
        let range = |start: &'static str, end: Option<&'static str>| KeyRange::new(start, end);
        let half = |start, end, id| (range(start, end), CohortId(id));
        let map = map.replace(&[CohortId(1)], [half("", Some("m"), 7)]).unwrap().unwrap();
        let map = map.replace(&[CohortId(2)], [half("m", Some("r"), 3), half("r", None, 4)]);
        let map = map.unwrap().unwrap();
        let map = map.replace(&[CohortId(4)], [half("r", Some("v"), 5), half("v", None, 6)]);
        let map = map.unwrap().unwrap();
        for (cohort, expected) in [
            (1, range("", Some("m"))),
            (2, range("m", None)),
            (3, range("m", Some("r"))),
            (4, range("r", None)),
        ] {
            assert_eq!(served(&map, &configs, CohortId(cohort)), Some(expected), "{cohort}");
        }
        assert_eq!(served(&map, &configs, CohortId(9)), None);
        // The last of them is merged with what went on from the half before, and that split elsewhere.
        let upper = Some(Upper { cohort: CohortId(6), seal: Lsn::new(1, 3), start: "v".into() });
        let origin = Origin { upper, ..config(8, 5).origin.unwrap() };
        let merged = CohortConfig { origin: Some(origin), ..config(8, 5) };
        let parts = [half("r", Some("t"), 9), half("t", None, 10)];
        let together = [half("r", None, 8)];
        let map = map.replace(&[CohortId(5), CohortId(6)], together).unwrap().unwrap();
        let map = map.replace(&[CohortId(8)], parts).unwrap().unwrap();
        configs.extend([merged, config(9, 8), config(10, 8)].map(|config| (config.cohort, config)));
        for (cohort, expected) in
            [(5, range("r", Some("v"))), (6, range("v", None)), (4, range("r", None))]
        {
            assert_eq!(served(&map, &configs, CohortId(cohort)), Some(expected), "{cohort}");
        }
        configs.remove(&CohortId(9));
        assert_eq!(served(&map, &configs, CohortId(4)), None, "half of it is not all");
    }
}
