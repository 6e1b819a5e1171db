//! A watch of the catalog, which decodes again only what has changed.
//!
//! A change of one cohort's configuration costs the decoding of one node, however many cohorts there
//! are, and changes that wait together become one state. So a reader keeps up with any number of
//! cohorts that change at once, as they do when a node dies.

use std::collections::{BTreeMap, BTreeSet};

use trireme_types::{CohortConfig, CohortId};

use super::catalog::{
    CLUSTER, COHORTS, CatalogState, ClusterNode, ConfigNodes, MAP, decode_config, decode_map,
};
use super::{decode, malformed};
use crate::{CoordinatorError, Line, Node, NodeChange, Nodes, Watch, WatchEvent};

/// A watch of the catalog. Dropping it ends it.
#[derive(Debug)]
pub struct CatalogWatch {
    watch: Watch,
    nodes: CatalogNodes,
}

impl CatalogWatch {
    pub(super) fn new(watch: Watch) -> Self {
        Self { watch, nodes: CatalogNodes::default() }
    }

    /// Returns the catalog: at first as it is, once there is a cluster, and then whenever it has
    /// changed, with all changes that have arrived by then. `None` once the coordinator is closed.
    /// Can be cancelled.
    pub async fn next(&mut self) -> Option<Result<CatalogState, CoordinatorError>> {
        loop {
            self.nodes.apply(self.watch.next().await?);
            while let Some(event) = self.watch.try_next() {
                self.nodes.apply(event);
            }
            if let Some(state) = self.nodes.state().transpose() {
                return Some(state);
            }
        }
    }
}

/// The catalog's nodes at one moment.
#[derive(Debug, Default)]
pub(super) struct CatalogNodes {
    line: Line,
    revision: i64,
    nodes: BTreeMap<String, Node>,
    /// What the nodes held when they were last decoded.
    decoded: Option<CatalogState>,
    /// The paths that have changed since.
    changed: BTreeSet<String>,
}

impl From<Nodes> for CatalogNodes {
    fn from(nodes: Nodes) -> Self {
        let Nodes { line, revision, nodes } = nodes;
        let nodes = nodes.into_iter().map(|node| (node.path.clone(), node)).collect();
        Self { line, revision, nodes, ..Self::default() }
    }
}

impl CatalogNodes {
    fn apply(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::State(nodes) => *self = Self::from(nodes),
            WatchEvent::Changes { revision, changes } => {
                self.revision = revision;
                for change in changes {
                    self.changed.insert(change.path().to_owned());
                    match change {
                        NodeChange::Put(node) => self.nodes.insert(node.path.clone(), node),
                        NodeChange::Deleted { path } => self.nodes.remove(&path),
                    };
                }
            }
        }
    }

    /// Returns the catalog; `None` where no cluster was ever created.
    pub(super) fn state(&mut self) -> Result<Option<CatalogState>, CoordinatorError> {
        let changed = std::mem::take(&mut self.changed);
        // Left out if this fails: the next call decodes everything.
        let decoded = match self.decoded.take() {
            Some(decoded) => self.decode_changed(decoded, &changed)?,
            None => self.decode_all()?,
        };
        self.decoded = decoded.map(|decoded| CatalogState {
            line: self.line,
            revision: self.revision,
            ..decoded
        });
        Ok(self.decoded.clone())
    }

    fn decode_changed(
        &self,
        mut decoded: CatalogState,
        changed: &BTreeSet<String>,
    ) -> Result<Option<CatalogState>, CoordinatorError> {
        for path in changed {
            match (self.nodes.get(path), path.strip_prefix(COHORTS)) {
                (Some(node), Some(id)) => {
                    let (id, config) = decode_cohort(node, id)?;
                    decoded.configs.insert(id, config);
                    decoded.nodes.cohorts.insert(id, node.version);
                }
                (Some(node), None) if path == MAP => {
                    decoded.map = decode_map(node)?;
                    decoded.map_revision = node.version.0;
                }
                // What the catalog began with, or what was deleted, decides about several parts.
                _ => return self.decode_all(),
            }
        }
        Ok(Some(decoded))
    }

    fn decode_all(&self) -> Result<Option<CatalogState>, CoordinatorError> {
        let (Some(cluster_node), Some(map_node)) = (self.nodes.get(CLUSTER), self.nodes.get(MAP))
        else {
            return Ok(None);
        };
        let ClusterNode { cluster, creation, configs } = decode(cluster_node)?;
        let cluster = cluster.parse().map_err(|error| malformed(cluster_node, error))?;
        let mut configs: BTreeMap<CohortId, CohortConfig> =
            configs.into_iter().map(|config| (config.cohort, config)).collect();
        let mut nodes = ConfigNodes { cluster: cluster_node.version, ..ConfigNodes::default() };
        for (path, node) in &self.nodes {
            if let Some(id) = path.strip_prefix(COHORTS) {
                let (id, config) = decode_cohort(node, id)?;
                configs.insert(id, config);
                nodes.cohorts.insert(id, node.version);
            }
        }
        let map = decode_map(map_node)?;
        let (line, revision, map_revision) = (self.line, self.revision, map_node.version.0);
        Ok(Some(CatalogState {
            line,
            revision,
            creation,
            cluster,
            map,
            map_revision,
            configs,
            nodes,
        }))
    }
}

fn decode_cohort(node: &Node, id: &str) -> Result<(CohortId, CohortConfig), CoordinatorError> {
    let id = CohortId(id.parse().map_err(|error| malformed(node, error))?);
    Ok((id, decode_config(node, id)?))
}

#[cfg(test)]
mod tests {
    use trireme_types::{ClusterId, NodeId, Protocol, RangeMap};

    use super::super::catalog::{MapNode, cohort_path, config_op};
    use super::super::encode;
    use super::*;
    use crate::{NodeVersion, Op};

    fn node(path: &str, value: Vec<u8>, version: i64) -> Node {
        let (path, version) = (path.to_owned(), NodeVersion(version));
        Node { path, value, version, sequence: 1, changes: 1, owner: None }
    }

    fn config(cohort: u64, version: u64, replicas: &[u64]) -> CohortConfig {
        CohortConfig {
            cohort: CohortId(cohort),
            version,
            protocol: Protocol::Pacifica,
            replicas: replicas.iter().copied().map(NodeId).collect(),
            replicas_wanted: 3,
            incarnations: [].into(),
            origin: None,
        }
    }

    fn config_node(config: &CohortConfig, version: i64) -> Node {
        let Op::Create { path, value, .. } = config_op(config, None) else {
            panic!("a first configuration creates its node")
        };
        node(&path, value, version)
    }

    fn cluster_node(configs: Vec<CohortConfig>, version: i64) -> Node {
        let cluster = ClusterId(7).to_string();
        node(CLUSTER, encode(&ClusterNode { cluster, creation: 5, configs }), version)
    }

    fn changes(revision: i64, changes: Vec<NodeChange>) -> WatchEvent {
        WatchEvent::Changes { revision, changes }
    }

    /// Whatever changes, what is decoded step by step is what is decoded as a whole.
    #[test]
    fn what_changes_is_decoded_into_what_a_full_read_returns() {
        let map = RangeMap::from_splits(&["m".into()]).unwrap();
        let map_node = |version| node(MAP, encode(&MapNode::from(&map)), version);
        let first = vec![config(1, 1, &[1, 2, 3]), config(2, 1, &[2, 3, 1])];
        let mut nodes = CatalogNodes::from(Nodes {
            line: Line { cluster: 1, term: 2 },
            revision: 10,
            nodes: vec![cluster_node(first.clone(), 9), map_node(9)],
        });
        assert_eq!(nodes.state().unwrap().unwrap().configs.len(), 2);
        let steps = [
            vec![NodeChange::Put(config_node(&config(1, 2, &[1, 2]), 11))],
            vec![
                NodeChange::Put(config_node(&config(2, 2, &[2]), 12)),
                NodeChange::Put(config_node(&config(1, 3, &[1]), 12)),
            ],
            vec![NodeChange::Put(map_node(13))],
            vec![NodeChange::Deleted { path: cohort_path(CohortId(2)) }],
            vec![NodeChange::Put(cluster_node(first[..1].to_vec(), 15))],
        ];
        for (revision, step) in (11..).zip(steps) {
            nodes.apply(changes(revision, step));
            let stepwise = nodes.state().unwrap();
            assert_eq!(stepwise, nodes.decode_all().unwrap(), "at {revision}");
            assert_eq!(stepwise.unwrap().revision, revision);
        }
        assert_eq!(nodes.state().unwrap().unwrap().configs[&CohortId(1)].version, 3);
        nodes.apply(changes(16, vec![NodeChange::Deleted { path: MAP.to_owned() }]));
        assert_eq!(nodes.state().unwrap(), None);
    }

    /// A node that cannot be read is an error for as long as it is there, and no longer.
    #[test]
    fn what_cannot_be_decoded_is_an_error_until_it_is_replaced() {
        let map = RangeMap::from_splits(&[]).unwrap();
        let map_node = node(MAP, encode(&MapNode::from(&map)), 9);
        let state = vec![cluster_node(vec![config(1, 1, &[1])], 9), map_node];
        let line = Line { cluster: 1, term: 2 };
        let mut nodes = CatalogNodes::from(Nodes { line, revision: 10, nodes: state });
        nodes.state().unwrap();
        let path = cohort_path(CohortId(1));
        nodes.apply(changes(11, vec![NodeChange::Put(node(&path, b"{}".to_vec(), 11))]));
        assert!(nodes.state().is_err());
        assert!(nodes.state().is_err(), "it is still there");
        let mended = config(1, 2, &[2]);
        nodes.apply(changes(12, vec![NodeChange::Put(config_node(&mended, 12))]));
        assert_eq!(nodes.state().unwrap().unwrap().configs[&CohortId(1)], mended);
    }
}
