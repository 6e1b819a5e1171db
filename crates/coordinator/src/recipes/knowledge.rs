//! What is known of the catalog elsewhere than at the coordinator, and how the catalog is brought
//! back from it.
//!
//! Each node keeps the map and the configurations that the coordinator has sent it, and acts in none
//! that it does not keep. So a coordinator that has lost its data, or was put back to what it knew
//! earlier, is brought forward by a node that knows more: map and configurations are replaced where they
//! are older, by compare-and-set, and never where they are not. What is known was installed once, so
//! that nothing comes into the catalog that was not in it before.
//!
//! Two configurations of one version and different content are a conflict: somebody has changed the
//! older catalog, and which of the two was acted in cannot be decided from here. Nothing is changed
//! then.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use trireme_types::{ClusterId, CohortConfig, CohortId, NodeId, RangeMap};

use super::catalog::{Catalog, CatalogState, ClusterSpec, MAP, MapNode, config_op};
use super::catalog::{cohort_path, decode_config, decode_map};
use super::membership::{NodeInfo, record_path};
use super::{decode, encode};
use crate::{Coordinator, CoordinatorError, CreateMode, ErrorClass, Line, Op};

/// The mark that somebody has compared the catalog with what all nodes know.
const COMPARED: &str = "/compared";

/// A map and the cohorts' configurations, as some party knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knowledge {
    /// The cluster.
    pub cluster: ClusterId,
    /// The newest range map.
    pub map: RangeMap,
    /// The newest configuration of every cohort.
    pub configs: BTreeMap<CohortId, CohortConfig>,
}

/// Two parties that know different things under one number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Two clusters.
    #[error("one is of cluster {0}, the other of cluster {1}")]
    Cluster(ClusterId, ClusterId),
    /// Two maps of one version.
    #[error("there are two range maps of version {0}")]
    Map(u64),
    /// Two configurations of one version.
    #[error(
        "there are two configurations of cohort {cohort} of version {version}: with the replicas \
         {known:?} and {other:?}"
    )]
    Config {
        /// The cohort.
        cohort: CohortId,
        /// The version of both.
        version: u64,
        /// The replicas of the one.
        known: Vec<NodeId>,
        /// The replicas of the other.
        other: Vec<NodeId>,
    },
}

/// Why a catalog was not brought forward.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BringForwardError {
    /// The coordinator knows something else under the same number.
    #[error("the coordinator and the nodes know different things: {0}")]
    Conflict(#[from] Conflict),
    /// The coordinator knows no cluster.
    #[error(
        "the coordinator has lost what it knew of the cluster; bring it back with `trireme \
         coordinator rebuild`"
    )]
    NoCluster,
    /// The coordinator could not do it.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
}

/// What a party knows, in the form that is written to files and sent to others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WrittenKnowledge {
    cluster: String,
    map: MapNode,
    configs: Vec<CohortConfig>,
}

impl From<&Knowledge> for WrittenKnowledge {
    fn from(knowledge: &Knowledge) -> Self {
        Self {
            cluster: knowledge.cluster.to_string(),
            map: MapNode::from(&knowledge.map),
            configs: knowledge.configs.values().cloned().collect(),
        }
    }
}

impl TryFrom<WrittenKnowledge> for Knowledge {
    type Error = String;

    fn try_from(written: WrittenKnowledge) -> Result<Self, String> {
        let WrittenKnowledge { cluster, map, configs } = written;
        let cluster = cluster.parse().map_err(|error| format!("'{cluster}': {error}"))?;
        let configs = configs.into_iter().map(|config| (config.cohort, config)).collect();
        Ok(Self { cluster, map: map.map()?, configs })
    }
}

impl From<&CatalogState> for Knowledge {
    fn from(state: &CatalogState) -> Self {
        let (cluster, map, configs) = (state.cluster, state.map.clone(), state.configs.clone());
        Self { cluster, map, configs }
    }
}

impl Knowledge {
    /// Takes over whatever is newer in `other`, and returns whether something was. Where the two are
    /// in conflict, nothing is taken over.
    pub fn merge(&mut self, other: &Self) -> Result<bool, Conflict> {
        if self.cluster != other.cluster {
            return Err(Conflict::Cluster(self.cluster, other.cluster));
        }
        if self.map.version == other.map.version && self.map != other.map {
            return Err(Conflict::Map(self.map.version));
        }
        for config in other.configs.values() {
            self.check(config)?;
        }
        let mut has_changed = false;
        if other.map.version > self.map.version {
            self.map = other.map.clone();
            has_changed = true;
        }
        for config in other.configs.values() {
            has_changed |= self.take(config);
        }
        Ok(has_changed)
    }

    /// Refuses a configuration that is another than the known one of the same version.
    pub fn check(&self, config: &CohortConfig) -> Result<(), Conflict> {
        match self.configs.get(&config.cohort) {
            Some(known) if known.version == config.version && known != config => {
                Err(Conflict::Config {
                    cohort: config.cohort,
                    version: config.version,
                    known: known.replicas.clone(),
                    other: config.replicas.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Takes over a configuration that was checked, if it is newer than the known one.
    pub fn take(&mut self, config: &CohortConfig) -> bool {
        let known = self.configs.get(&config.cohort);
        let is_newer = known.is_none_or(|known| known.version < config.version);
        if is_newer {
            self.configs.insert(config.cohort, config.clone());
        }
        is_newer
    }

    /// Returns true if it has something that is newer than what `state` has.
    pub fn is_ahead_of(&self, state: &CatalogState) -> bool {
        let version = |config: &CohortConfig| {
            state.configs.get(&config.cohort).map_or(0, |told| told.version)
        };
        self.map.version > state.map.version
            || self.configs.values().any(|config| config.version > version(config))
    }

    /// Returns the nodes that are in a cohort.
    pub fn members(&self) -> impl Iterator<Item = NodeId> {
        let mut members: Vec<_> =
            self.configs.values().flat_map(|config| config.replicas.iter().copied()).collect();
        members.sort_unstable();
        members.dedup();
        members.into_iter()
    }

    /// Creates the cluster at a coordinator that knows none. Returns false if it knows one.
    pub async fn create(&self, coordinator: &Coordinator) -> Result<bool, CoordinatorError> {
        let (cluster, map) = (self.cluster, self.map.clone());
        let configs = self.configs.values().cloned().collect();
        let spec = ClusterSpec { cluster, map, configs };
        let created = Catalog::bootstrap(coordinator, spec).await?;
        Ok(matches!(created, super::catalog::Bootstrapped::Created(_)))
    }

    /// Replaces whatever is older in the catalog, which must know the cluster. Returns true if
    /// something was.
    pub async fn bring_forward(
        &self,
        coordinator: &Coordinator,
    ) -> Result<bool, BringForwardError> {
        let catalog = Catalog::new(coordinator);
        let mut has_changed = false;
        loop {
            let state = catalog.load().await?.ok_or(BringForwardError::NoCluster)?;
            // Checks everything before the first change.
            Self::from(&state).merge(self)?;
            if !self.is_ahead_of(&state) {
                return Ok(has_changed);
            }
            // Each by itself, since one change is bounded: what is brought forward stays so if
            // another cannot be, and an interrupted call is to be repeated.
            //= RANGE-16
            // The map comes last: of a range that was split, one half alone would look like all of it.
            for config in self.configs.values() {
                has_changed |= bring_config_forward(coordinator, config).await?;
            }
            has_changed |= self.bring_map_forward(coordinator).await?;
        }
    }

    async fn bring_map_forward(&self, coordinator: &Coordinator) -> Result<bool, CoordinatorError> {
        let Some(node) = coordinator.get(MAP).await? else { return Ok(false) };
        if decode_map(&node)?.version >= self.map.version {
            return Ok(false);
        }
        let (path, value) = (MAP.to_owned(), encode(&MapNode::from(&self.map)));
        changed(
            coordinator.multi(vec![Op::Set { path, value, expected: Some(node.version) }]).await,
        )
    }
}

async fn bring_config_forward(
    coordinator: &Coordinator,
    config: &CohortConfig,
) -> Result<bool, CoordinatorError> {
    let node = coordinator.get(&cohort_path(config.cohort)).await?;
    let known = match &node {
        Some(node) => Some(decode_config(node, config.cohort)?),
        None => Catalog::new(coordinator).cohort(config.cohort).await?,
    };
    if known.is_some_and(|known| known.version >= config.version) {
        return Ok(false);
    }
    changed(coordinator.multi(vec![config_op(config, node.map(|node| node.version))]).await)
}

/// Returns true for a change that was made, and false for one that somebody else was faster with:
/// what there is now is looked at again.
fn changed<T>(done: Result<T, CoordinatorError>) -> Result<bool, CoordinatorError> {
    match done {
        Ok(_) => Ok(true),
        Err(error) if error.class() == ErrorClass::Conflict => Ok(false),
        Err(error) => Err(error),
    }
}

/// The value of the mark.
#[derive(Debug, Serialize, Deserialize)]
struct ComparedNode {
    line: Line,
}

/// Notes that the catalog, in this line of the coordinator, was compared with what all nodes know.
pub async fn note_compared(coordinator: &Coordinator, line: Line) -> Result<(), CoordinatorError> {
    write(coordinator, COMPARED, &encode(&ComparedNode { line })).await
}

/// Writes a value, whatever was there.
async fn write(
    coordinator: &Coordinator,
    path: &str,
    value: &[u8],
) -> Result<(), CoordinatorError> {
    loop {
        let (to, value) = (path.to_owned(), value.to_vec());
        let op = match coordinator.get(path).await? {
            None => Op::Create { path: to, value, mode: CreateMode::Persistent },
            Some(node) => Op::Set { path: to, value, expected: Some(node.version) },
        };
        if changed(coordinator.multi(vec![op]).await)? {
            return Ok(());
        }
    }
}

/// Returns the line in which the catalog was last compared with what all nodes know.
pub async fn compared(coordinator: &Coordinator) -> Result<Option<Line>, CoordinatorError> {
    let node = coordinator.get(COMPARED).await?;
    Ok(node.map(|node| decode::<ComparedNode>(&node)).transpose()?.map(|node| node.line))
}

/// Writes the record of a node that the coordinator has lost, so that a folder that is not the
/// node's is noticed when it comes.
pub async fn restore_record(
    coordinator: &Coordinator,
    node: NodeId,
    info: &NodeInfo,
) -> Result<bool, CoordinatorError> {
    let (path, value) = (record_path(node), encode(info));
    changed(coordinator.multi(vec![Op::Create { path, value, mode: CreateMode::Persistent }]).await)
}

/// Records that the data of a node are given up, whatever was recorded of it.
pub async fn give_up(
    coordinator: &Coordinator,
    node: NodeId,
    info: &NodeInfo,
) -> Result<(), CoordinatorError> {
    write(coordinator, &record_path(node), &encode(info)).await
}

#[cfg(test)]
mod tests {
    use trireme_types::Protocol;

    use super::*;

    fn knowledge(map_version: u64, configs: &[(u64, u64, &[u64])]) -> Knowledge {
        let mut map = RangeMap::from_splits(&[bytes::Bytes::from("m")]).unwrap();
        map.version = map_version;
        let config = |&(cohort, version, replicas): &(u64, u64, &[u64])| CohortConfig {
            cohort: CohortId(cohort),
            version,
            protocol: Protocol::Pacifica,
            replicas: replicas.iter().copied().map(NodeId).collect(),
            replicas_wanted: 3,
            incarnations: [].into(),
            origin: None,
        };
        let configs = configs.iter().map(config).map(|it| (it.cohort, it)).collect();
        Knowledge { cluster: ClusterId(7), map, configs }
    }

    #[test]
    fn of_two_who_know_something_the_newer_counts_for_each_cohort() {
        let mut one = knowledge(2, &[(1, 5, &[1, 2]), (2, 1, &[1, 2, 3])]);
        let other = knowledge(1, &[(1, 4, &[1, 2, 3]), (2, 3, &[2])]);
        assert_eq!(one.merge(&other), Ok(true));
        assert_eq!(one, knowledge(2, &[(1, 5, &[1, 2]), (2, 3, &[2])]));
        assert_eq!(one.merge(&other), Ok(false));
        assert_eq!(one.members().collect::<Vec<_>>(), [1, 2].map(NodeId));
    }

    /// A number that was given out twice is noticed, and nothing of either is mixed.
    #[test]
    fn two_configurations_of_one_version_are_a_conflict() {
        let mut one = knowledge(1, &[(1, 5, &[1, 2]), (2, 1, &[1])]);
        let before = one.clone();
        let conflict = one.merge(&knowledge(2, &[(1, 5, &[1]), (2, 2, &[1])])).unwrap_err();
        assert!(conflict.to_string().contains("cohort c1 of version 5"), "{conflict}");
        assert_eq!(one, before);
        let other = Knowledge { cluster: ClusterId(8), ..before.clone() };
        assert!(matches!(one.merge(&other), Err(Conflict::Cluster(..))));
    }

    #[test]
    fn what_is_written_is_read_back() {
        let known = knowledge(3, &[(1, 5, &[1, 2]), (2, 1, &[1, 2, 3])]);
        let text = serde_json::to_string(&WrittenKnowledge::from(&known)).unwrap();
        let read: WrittenKnowledge = serde_json::from_str(&text).unwrap();
        assert_eq!(Knowledge::try_from(read), Ok(known));
    }
}
