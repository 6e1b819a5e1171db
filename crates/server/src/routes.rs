//! From keys to cohorts, and from nodes to addresses.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use trireme_proto::v1;
use trireme_types::{
    ClusterId, CohortConfig, CohortId, KeyRange, NodeId, RangeDescriptor, RangeMap,
};

use crate::cohort::HostedCohort;
use crate::refusal;

/// Who is where, as of the newest news from the coordinator.
#[derive(Default)]
pub(crate) struct NodeDirectory {
    nodes: ArcSwap<BTreeMap<NodeId, v1::Node>>,
}

impl NodeDirectory {
    /// Replaces what is known.
    pub(crate) fn set(&self, nodes: impl IntoIterator<Item = v1::Node>) {
        let nodes = nodes.into_iter().map(|node| (NodeId(node.id), node)).collect();
        self.nodes.store(Arc::new(nodes));
    }

    /// Describes a node; `None` if it is not known.
    pub(crate) fn node(&self, id: NodeId) -> Option<v1::Node> {
        self.nodes.load().get(&id).cloned()
    }

    /// Describes every node.
    pub(crate) fn all(&self) -> Vec<v1::Node> {
        self.nodes.load().values().cloned().collect()
    }
}

/// The ranges and their cohorts, and which of those have a replica here.
pub(crate) struct Router {
    cluster: ClusterId,
    directory: Arc<NodeDirectory>,
    routes: Routes,
}

/// What the router knows, from the catalog that the node started with.
pub(crate) struct Routes {
    pub(crate) map: RangeMap,
    pub(crate) configs: BTreeMap<CohortId, CohortConfig>,
    pub(crate) hosted: BTreeMap<CohortId, Arc<HostedCohort>>,
}

impl Router {
    pub(crate) fn new(cluster: ClusterId, directory: Arc<NodeDirectory>, routes: Routes) -> Self {
        Self { cluster, directory, routes }
    }

    /// Returns what the router knows.
    pub(crate) fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Finds the cohort of a request for `key`, and checks the route that the client took to it
    /// (C5).
    pub(crate) fn cohort_of(
        &self,
        key: &[u8],
        route: Option<&v1::Route>,
    ) -> Result<Arc<HostedCohort>, Box<v1::Error>> {
        let routes = &self.routes;
        let descriptor = routes.map.find(key);
        let taken = route.filter(|route| route.cohort != 0);
        if taken.is_some_and(|taken| !is_current(taken, descriptor)) {
            return Err(Box::new(refusal::stale_route(routes.range_route(descriptor))));
        }
        match routes.hosted.get(&descriptor.cohort) {
            Some(cohort) => Ok(cohort.clone()),
            None => Err(Box::new(self.elsewhere(routes, descriptor.cohort))),
        }
    }

    /// Describes all ranges and nodes to clients.
    pub(crate) fn table(&self) -> v1::RouteTable {
        let routes = &self.routes;
        v1::RouteTable {
            cluster: self.cluster.0,
            version: routes.map.version,
            ranges: routes.map.ranges().iter().map(|range| routes.range_route(range)).collect(),
            nodes: self.directory.all(),
        }
    }

    /// Returns the error for a cohort that has no replica here: any of its replicas knows more.
    fn elsewhere(&self, routes: &Routes, cohort: CohortId) -> v1::Error {
        let replicas = routes.configs.get(&cohort).map(|config| &config.replicas[..]);
        let nodes: Vec<_> =
            replicas.unwrap_or_default().iter().filter_map(|&id| self.directory.node(id)).collect();
        let alive = nodes.iter().find(|node| node.alive).or(nodes.first());
        refusal::not_leader(alive.cloned())
    }
}

impl Routes {
    fn range_route(&self, descriptor: &RangeDescriptor) -> v1::RangeRoute {
        match (self.hosted.get(&descriptor.cohort), self.configs.get(&descriptor.cohort)) {
            (Some(cohort), _) => cohort.route(),
            (None, Some(config)) => range_route(descriptor, config, None),
            (None, None) => bare_route(descriptor),
        }
    }
}

/// Describes a range to clients.
pub(crate) fn range_route(
    descriptor: &RangeDescriptor,
    config: &CohortConfig,
    leader: Option<NodeId>,
) -> v1::RangeRoute {
    v1::RangeRoute {
        protocol: config.protocol.name().to_owned(),
        replicas: config.replicas.iter().map(|node| node.0).collect(),
        leader: leader.map_or(0, |node| node.0),
        ..bare_route(descriptor)
    }
}

fn bare_route(descriptor: &RangeDescriptor) -> v1::RangeRoute {
    let KeyRange { start, end } = descriptor.range.clone();
    let (cohort, epoch) = (descriptor.cohort.0, descriptor.epoch);
    v1::RangeRoute { cohort, epoch, start, end, ..v1::RangeRoute::default() }
}

fn is_current(taken: &v1::Route, descriptor: &RangeDescriptor) -> bool {
    taken.cohort == descriptor.cohort.0 && taken.epoch == descriptor.epoch
}
