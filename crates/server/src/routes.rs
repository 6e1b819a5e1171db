//! From keys to cohorts, and from nodes to addresses.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use trireme_coordinator::recipes::catalog::CatalogState;
use trireme_coordinator::recipes::invitations::AllInvitations;
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
    routes: ArcSwap<Routes>,
}

/// What the router knows at one moment.
pub(crate) struct Routes {
    /// The ranges.
    pub(crate) map: RangeMap,
    /// The newest configuration of every cohort.
    pub(crate) configs: BTreeMap<CohortId, CohortConfig>,
    /// Who is asked to hold replicas that cohorts lack.
    pub(crate) invitations: AllInvitations,
    /// The cohorts that have a replica here.
    pub(crate) hosted: BTreeMap<CohortId, Arc<HostedCohort>>,
}

impl Router {
    pub(crate) fn new(cluster: ClusterId, directory: Arc<NodeDirectory>, routes: Routes) -> Self {
        Self { cluster, directory, routes: ArcSwap::from_pointee(routes) }
    }

    /// Replaces what the router knows.
    pub(crate) fn set(&self, routes: Routes) {
        self.routes.store(Arc::new(routes));
    }

    /// Returns what the router knows now.
    pub(crate) fn routes(&self) -> Arc<Routes> {
        self.routes.load_full()
    }

    /// Finds the cohort of a request for `key`, and checks the route that the client took to it
    /// (C5).
    pub(crate) fn cohort_of(
        &self,
        key: &[u8],
        route: Option<&v1::Route>,
    ) -> Result<Arc<HostedCohort>, Box<v1::Error>> {
        let routes = self.routes.load();
        let descriptor = routes.map.find(key);
        let taken = route.filter(|route| route.cohort != 0);
        if taken.is_some_and(|taken| !is_current(taken, descriptor)) {
            return Err(Box::new(refusal::stale_route(routes.range_route(descriptor))));
        }
        match routes.hosted.get(&descriptor.cohort) {
            Some(cohort) => Ok(cohort.clone()),
            None => Err(Box::new(self.elsewhere(&routes, descriptor.cohort))),
        }
    }

    /// Describes all ranges and nodes to clients.
    pub(crate) fn table(&self) -> v1::RouteTable {
        let routes = self.routes.load();
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
    /// Returns what the catalog says, before anything is hosted.
    pub(crate) fn of(catalog: &CatalogState) -> Self {
        Self {
            map: catalog.map.clone(),
            configs: catalog.configs.clone(),
            invitations: AllInvitations::new(),
            hosted: BTreeMap::new(),
        }
    }

    /// Describes a range to clients: its replicas as the newest configuration has them, and its
    /// leader if a replica here knows it.
    fn range_route(&self, descriptor: &RangeDescriptor) -> v1::RangeRoute {
        let Some(config) = self.configs.get(&descriptor.cohort) else {
            return bare_route(descriptor);
        };
        let hosted = self.hosted.get(&descriptor.cohort);
        let leader = hosted.and_then(|cohort| cohort.replica.leader());
        v1::RangeRoute {
            protocol: config.protocol.name().to_owned(),
            replicas: config.replicas.iter().map(|node| node.0).collect(),
            leader: leader.map_or(0, |node| node.0),
            session_start: hosted.map_or(0, |cohort| cohort.table.clock()),
            config_version: config.version,
            ..bare_route(descriptor)
        }
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
