//! The catalog: which cluster this is, which cohort serves which keys, and who is in each cohort.
//!
//! ```text
//! /catalog/cluster          who we are, and the cohorts' configurations that we began with
//! /catalog/map              the range map
//! /catalog/cohorts/<id>     a cohort's configuration, once it has changed or the cohort is newer
//! ```
//! A cluster begins with one atomic change that creates the first two, so that of any number of
//! nodes that start it at once exactly one decides what it is. The configurations that it begins
//! with are part of the first node, however many there are, because a transaction is bounded.
//!
//! Map and configurations change by compare-and-set on their own versions, which rise by one:
//! of two proposals made at version v, exactly one installs v+1, and the other receives what is
//! installed (M34).

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use trireme_types::{ClusterId, CohortConfig, CohortId, KeyRange, RangeDescriptor, RangeMap};

use super::catalog_watch::CatalogNodes;
pub use super::catalog_watch::CatalogWatch;
use super::{decode, encode, malformed};
use crate::{
    Coordinator, CoordinatorError, CreateMode, ErrorClass, Line, MULTI_OPS_MAX, Node, NodeVersion,
    Op, Scope,
};

const ROOT: &str = "/catalog";
pub(super) const CLUSTER: &str = "/catalog/cluster";
pub(super) const MAP: &str = "/catalog/map";
pub(super) const COHORTS: &str = "/catalog/cohorts/";

/// What a cluster begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSpec {
    /// The cluster's name.
    pub cluster: ClusterId,
    /// Its first range map.
    pub map: RangeMap,
    /// The first configuration of every cohort in the map.
    pub configs: Vec<CohortConfig>,
}

/// The catalog at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogState {
    /// The line that the coordinator was in at that moment.
    pub line: Line,
    /// The coordinator's revision at that moment; of two states, the later has the higher one.
    pub revision: i64,
    /// Names the creation of this catalog: one that was lost and created again has another. 0 where it
    /// was created before creations were named.
    pub creation: i64,
    /// The cluster's name.
    pub cluster: ClusterId,
    /// The range map.
    pub map: RangeMap,
    /// The newest change of the map, for those who compare by it rather than by the map's own
    /// version.
    pub map_revision: i64,
    /// The newest configuration of every cohort.
    pub configs: BTreeMap<CohortId, CohortConfig>,
    /// The nodes that the configurations stand in.
    pub nodes: ConfigNodes,
}

/// The versions of the nodes that configurations stand in, by which one that is known is replaced
/// without being read again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigNodes {
    /// The cluster's node.
    pub(super) cluster: NodeVersion,
    /// The nodes of cohorts that have one.
    pub(super) cohorts: BTreeMap<CohortId, NodeVersion>,
}

/// What became of a bootstrap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bootstrapped {
    /// This call created the cluster.
    Created(CatalogState),
    /// There was a cluster already, which may be another than the one asked for.
    Existed(CatalogState),
}

impl Bootstrapped {
    /// Returns the catalog that there is now.
    pub fn into_state(self) -> CatalogState {
        match self {
            Self::Created(state) | Self::Existed(state) => state,
        }
    }
}

/// What became of a compare-and-set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompareAndSet<T> {
    /// The proposal is installed.
    Installed(T),
    /// Somebody else was first, and this is what is installed (M34).
    Superseded(T),
}

/// The catalog of the cluster that a coordinator's namespace belongs to.
#[derive(Clone, Debug)]
pub struct Catalog {
    coordinator: Coordinator,
}

impl Catalog {
    /// Returns the catalog at this coordinator.
    pub fn new(coordinator: &Coordinator) -> Self {
        Self { coordinator: coordinator.clone() }
    }

    pub(super) const fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// Creates the cluster if there is none, and returns the one that there is.
    pub async fn bootstrap(
        coordinator: &Coordinator,
        spec: ClusterSpec,
    ) -> Result<Bootstrapped, CoordinatorError> {
        let catalog = Self::new(coordinator);
        if let Some(state) = catalog.load().await? {
            return Ok(Bootstrapped::Existed(state));
        }
        check_spec(&spec)?;
        // No two sessions have the same name, so no two creations do.
        let creation = coordinator.session_id().0;
        let (cluster, configs) = (spec.cluster.to_string(), spec.configs);
        let cluster = ClusterNode { cluster, creation, configs };
        let create = |path: &str, value| Op::Create {
            path: path.to_owned(),
            value,
            mode: CreateMode::Persistent,
        };
        let ops =
            vec![create(CLUSTER, encode(&cluster)), create(MAP, encode(&MapNode::from(&spec.map)))];
        let created = match coordinator.multi(ops).await {
            Ok(_) => true,
            Err(CoordinatorError::NodeExists { .. }) => false,
            Err(error) => return Err(error),
        };
        let state = catalog
            .load()
            .await?
            .ok_or_else(|| CoordinatorError::NoNode { path: CLUSTER.to_owned() })?;
        Ok(if created { Bootstrapped::Created(state) } else { Bootstrapped::Existed(state) })
    }

    /// Returns the catalog; `None` where no cluster was ever created.
    pub async fn load(&self) -> Result<Option<CatalogState>, CoordinatorError> {
        let nodes = self.coordinator.subtree(ROOT).await?;
        CatalogNodes::from(nodes).state()
    }

    /// Returns the newest configuration of one cohort; `None` if there is no such cohort.
    pub async fn cohort(&self, cohort: CohortId) -> Result<Option<CohortConfig>, CoordinatorError> {
        if let Some(node) = self.coordinator.get(&cohort_path(cohort)).await? {
            return decode_config(&node, cohort).map(Some);
        }
        let Some(node) = self.coordinator.get(CLUSTER).await? else { return Ok(None) };
        let first: ClusterNode = decode(&node)?;
        Ok(first.configs.into_iter().find(|config| config.cohort == cohort))
    }

    /// Installs `config` if the newest one of its cohort is its direct predecessor: the one of
    /// version `config.version - 1`.
    pub async fn compare_and_set_cohort(
        &self,
        config: CohortConfig,
    ) -> Result<CompareAndSet<CohortConfig>, CoordinatorError> {
        let path = cohort_path(config.cohort);
        loop {
            let node = self.coordinator.get(&path).await?;
            let current = match &node {
                Some(node) => Some(decode_config(node, config.cohort)?),
                None => self.cohort(config.cohort).await?,
            };
            let Some(current) = current else {
                return Err(CoordinatorError::NoNode { path });
            };
            if current.version.checked_add(1) != Some(config.version) {
                return Ok(CompareAndSet::Superseded(current));
            }
            let op = config_op(&config, node.map(|node| node.version));
            match self.coordinator.multi(vec![op]).await {
                Ok(_) => return Ok(CompareAndSet::Installed(config)),
                // Somebody was faster: look at what he installed.
                Err(
                    CoordinatorError::NodeExists { .. }
                    | CoordinatorError::WrongVersion { .. }
                    | CoordinatorError::NoNode { .. },
                ) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Does what [`Catalog::compare_and_set_cohort`] does with one request where `known`, which this
    /// coordinator has sent, is as new as it can be.
    pub async fn compare_and_set_known_cohort(
        &self,
        known: &CatalogState,
        config: CohortConfig,
    ) -> Result<CompareAndSet<CohortConfig>, CoordinatorError> {
        let cohort = config.cohort;
        match known.configs.get(&cohort) {
            Some(newest) if newest.version >= config.version => {
                return Ok(CompareAndSet::Superseded(newest.clone()));
            }
            Some(direct) if direct.version + 1 == config.version => {}
            _ => return self.compare_and_set_cohort(config).await,
        }
        let own = known.nodes.cohorts.get(&cohort).copied();
        let mut ops = vec![config_op(&config, own)];
        if own.is_none() {
            // It stands in what the cluster began with.
            ops.push(Op::Check { path: CLUSTER.to_owned(), expected: known.nodes.cluster });
        }
        match self.coordinator.multi(ops).await {
            Ok(_) => Ok(CompareAndSet::Installed(config)),
            Err(error) if error.class() == ErrorClass::Conflict => {
                self.compare_and_set_cohort(config).await
            }
            Err(error) => Err(error),
        }
    }

    /// Installs `map`, and the first configurations of the cohorts that are new in it, if the
    /// installed map is its direct predecessor: the one of version `map.version - 1`.
    pub async fn compare_and_set_map(
        &self,
        map: RangeMap,
        new_cohorts: Vec<CohortConfig>,
    ) -> Result<CompareAndSet<RangeMap>, CoordinatorError> {
        if new_cohorts.len() + 1 > MULTI_OPS_MAX {
            let reason = "one change of the map brings too many new cohorts";
            return Err(CoordinatorError::InvalidRequest { path: MAP.to_owned(), reason });
        }
        loop {
            let Some(node) = self.coordinator.get(MAP).await? else {
                return Err(CoordinatorError::NoNode { path: MAP.to_owned() });
            };
            let current = decode_map(&node)?;
            if current.version.checked_add(1) != Some(map.version) {
                return Ok(CompareAndSet::Superseded(current));
            }
            let mut ops = vec![Op::Set {
                path: MAP.to_owned(),
                value: encode(&MapNode::from(&map)),
                expected: Some(node.version),
            }];
            ops.extend(new_cohorts.iter().map(|config| config_op(config, None)));
            match self.coordinator.multi(ops).await {
                Ok(_) => return Ok(CompareAndSet::Installed(map)),
                Err(CoordinatorError::WrongVersion { path, .. }) if path == MAP => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Watches the catalog.
    pub fn watch(&self) -> Result<CatalogWatch, CoordinatorError> {
        let watch = self.coordinator.watch(ROOT, Scope::Subtree)?;
        Ok(CatalogWatch::new(watch))
    }
}

/// The value of the cluster's node.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ClusterNode {
    pub(super) cluster: String,
    #[serde(default)]
    pub(super) creation: i64,
    pub(super) configs: Vec<CohortConfig>,
}

/// The value of a cohort's node.
#[derive(Debug, Serialize, Deserialize)]
struct ConfigNode {
    config: CohortConfig,
}

/// A range map as its node holds it, with keys as people read them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MapNode {
    version: u64,
    ranges: Vec<RangeNode>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct RangeNode {
    start: String,
    /// Not there: no upper end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    end: Option<String>,
    cohort: CohortId,
    epoch: u64,
}

impl From<&RangeMap> for MapNode {
    fn from(map: &RangeMap) -> Self {
        let ranges = map.ranges().iter().map(|entry| RangeNode {
            start: key_text::encode(&entry.range.start),
            end: entry.range.end.as_ref().map(|end| key_text::encode(end)),
            cohort: entry.cohort,
            epoch: entry.epoch,
        });
        Self { version: map.version, ranges: ranges.collect() }
    }
}

impl MapNode {
    /// Returns the map, or says why it is none.
    pub(super) fn map(self) -> Result<RangeMap, String> {
        let Self { version, ranges } = self;
        let key = |text: &str| key_text::decode(text).ok_or_else(|| format!("'{text}' is no key"));
        let mut descriptors = Vec::with_capacity(ranges.len());
        for RangeNode { start, end, cohort, epoch } in ranges {
            let start = Bytes::from(key(&start)?);
            let end = end.map(|end| key(&end)).transpose()?.map(Bytes::from);
            descriptors.push(RangeDescriptor { range: KeyRange { start, end }, cohort, epoch });
        }
        RangeMap::new(version, descriptors).map_err(|error| error.to_string())
    }
}

pub(super) fn decode_map(node: &Node) -> Result<RangeMap, CoordinatorError> {
    decode::<MapNode>(node)?.map().map_err(|error| malformed(node, error))
}

pub(super) fn decode_config(
    node: &Node,
    cohort: CohortId,
) -> Result<CohortConfig, CoordinatorError> {
    let ConfigNode { config } = decode(node)?;
    if config.cohort == cohort {
        Ok(config)
    } else {
        Err(malformed(node, format!("it is the configuration of cohort {}", config.cohort)))
    }
}

pub(super) fn config_op(config: &CohortConfig, current: Option<NodeVersion>) -> Op {
    let path = cohort_path(config.cohort);
    let value = encode(&ConfigNode { config: config.clone() });
    match current {
        Some(expected) => Op::Set { path, value, expected: Some(expected) },
        None => Op::Create { path, value, mode: CreateMode::Persistent },
    }
}

pub(super) fn cohort_path(cohort: CohortId) -> String {
    format!("{COHORTS}{}", cohort.0)
}

fn check_spec(spec: &ClusterSpec) -> Result<(), CoordinatorError> {
    let invalid =
        |reason| Err(CoordinatorError::InvalidRequest { path: CLUSTER.to_owned(), reason });
    if spec.map.validate().is_err() {
        return invalid("the range map is none");
    }
    let mut configs = BTreeMap::new();
    for config in &spec.configs {
        if configs.insert(config.cohort, config).is_some() {
            return invalid("a cohort has two configurations");
        }
    }
    if spec.map.ranges().iter().any(|range| !configs.contains_key(&range.cohort)) {
        return invalid("a cohort of the range map has no configuration");
    }
    Ok(())
}

/// Keys as text: printable ASCII as it is, everything else escaped, so that no two keys look
/// alike and every key comes back.
mod key_text {
    /// Returns the text of a key.
    pub(super) fn encode(key: &[u8]) -> String {
        trireme_types::printable(key)
    }

    /// Returns the key of a text; `None` if it is no key's.
    pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
        let mut key = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            if byte != b'\\' {
                key.push(byte);
                continue;
            }
            let (&escape, after) = rest.split_first()?;
            rest = after;
            key.push(match escape {
                b't' => b'\t',
                b'r' => b'\r',
                b'n' => b'\n',
                b'\'' | b'"' | b'\\' => escape,
                b'x' => {
                    let digits = rest.get(..2)?;
                    rest = &rest[2..];
                    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
                }
                _ => return None,
            });
        }
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_map_is_written_so_that_a_person_can_read_it() {
        let map = RangeMap::from_splits(&[Bytes::from("gn"), Bytes::from(&b"t\xff"[..])]).unwrap();
        let json = String::from_utf8(encode(&MapNode::from(&map))).unwrap();
        let expected = r#"{"format":1,"version":1,"ranges":[{"start":"","end":"gn","cohort":1,"#;
        assert!(json.starts_with(expected), "{json}");
        assert!(json.contains(r#""end":"t\\xff""#), "{json}");
    }

    proptest! {
        #[test]
        fn every_key_comes_back_from_its_text(
            key in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let text = key_text::encode(&key);
            prop_assert!(text.is_ascii() && !text.contains(char::is_control));
            prop_assert_eq!(key_text::decode(&text), Some(key));
        }

        #[test]
        fn no_text_makes_decoding_panic(text in ".{0,40}") {
            let _ignored = key_text::decode(&text);
        }
    }
}
