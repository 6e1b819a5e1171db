//! The route cache: which node to ask for which key.
//!
//! Any node sends the whole table. Lookups take the current table without a lock; who leads a
//! cohort is an atomic number in its route, so that a redirect costs no new table. A table of an
//! older version than the one in use changes no route; what it says of leaders is taken as a hint,
//! as every word about leaders is: the node that is asked knows better (C5).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::stream::FuturesUnordered;
use futures::{StreamExt, stream};
use parking_lot::RwLock;
use rand::seq::SliceRandom;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};
use trireme_proto::{convert, v1};
use trireme_types::{ClusterId, CohortId, Lsn, NodeId, RangeDescriptor};

use crate::node::NodeHandle;
use crate::route_table::{Node, Route, RouteTable};
use crate::session::Sessions;
use crate::{ClientError, ClientOptions, backoff};

/// How long one node has to send the routes before the next is asked as well.
const STAGGER: Duration = Duration::from_millis(100);

/// How long every node has to send the routes when the newest are wanted.
const NEWEST_PATIENCE: Duration = Duration::from_secs(1);

/// How many nodes are asked for the newest routes at a time.
const ASKED_MAX: usize = 64;

/// The most nodes that a client keeps addresses of: a bound on what servers can make it remember.
const NODES_MAX: usize = 10_000;

/// The routes of one cluster and the nodes that they lead to.
pub(crate) struct Routes {
    options: Arc<ClientOptions>,
    /// The nodes that the client was given, which may also be others than the table names.
    endpoints: Vec<Arc<NodeHandle>>,
    table: ArcSwap<Table>,
    nodes: RwLock<HashMap<NodeId, Arc<NodeHandle>>>,
    /// Held by the one caller that asks for the routes anew.
    refreshing: Mutex<()>,
}

struct Table {
    cluster: ClusterId,
    version: u64,
    /// Rises whenever an answer to a request for the routes was applied.
    generation: u64,
    ranges: Vec<Arc<CachedRoute>>,
    nodes: Vec<Node>,
}

/// One range, as requests are routed by it.
pub(crate) struct CachedRoute {
    pub(crate) descriptor: RangeDescriptor,
    protocol: String,
    pub(crate) replicas: Vec<NodeId>,
    /// Rises with every change of the replicas.
    config_version: u64,
    /// The leader as far as is known; 0 is none.
    leader: AtomicU64,
    /// This client's writes to the cohort.
    pub(crate) sessions: Arc<Sessions>,
    /// The newest state that a timeline read of this client was answered from.
    pub(crate) seen: Arc<NewestSeen>,
}

/// The newest entry of a cohort's log that a timeline read has included: no later one is answered
/// from an earlier state.
#[derive(Default)]
pub(crate) struct NewestSeen(parking_lot::Mutex<Lsn>);

impl NewestSeen {
    pub(crate) fn get(&self) -> Lsn {
        *self.0.lock()
    }

    pub(crate) fn raise(&self, applied: Lsn) {
        let mut newest = self.0.lock();
        *newest = applied.max(*newest);
    }
}

/// Where a request belongs in the order of keys.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Position<'a> {
    /// To the range that holds this key.
    At(&'a [u8]),
    /// To the range that holds the keys right below this one; below `None` lies the highest.
    Below(Option<&'a [u8]>),
}

/// Which node should rather be asked for the routes, and which rather not.
#[derive(Clone, Copy, Default)]
pub(crate) struct Preference<'a> {
    pub(crate) first: &'a [NodeId],
    pub(crate) last: Option<NodeId>,
}

impl CachedRoute {
    /// Returns the node that leads the cohort, as far as is known.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        convert::node_id(self.leader.load(Ordering::Relaxed))
    }

    /// Records that a node leads the cohort.
    pub(crate) fn set_leader(&self, leader: NodeId) {
        self.leader.store(leader.0, Ordering::Relaxed);
    }

    /// Records that a node does not lead the cohort.
    pub(crate) fn unset_leader(&self, former: NodeId) {
        // Failing means that somebody else is known to lead already.
        let _known =
            self.leader.compare_exchange(former.0, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Routes {
    /// Asks the endpoints for the routes, again and again until one answers or `deadline` passes: a
    /// cluster that is being started again is there in a moment.
    pub(crate) async fn connect(
        endpoints: Vec<Arc<NodeHandle>>,
        options: Arc<ClientOptions>,
        deadline: Instant,
    ) -> Result<Self, ClientError> {
        let table = table_within(&endpoints, &options, deadline).await?;
        let routes = Self {
            options,
            endpoints,
            table: ArcSwap::from_pointee(Table {
                cluster: ClusterId(table.cluster),
                version: 0,
                generation: 0,
                ranges: Vec::new(),
                nodes: Vec::new(),
            }),
            nodes: RwLock::new(HashMap::new()),
            refreshing: Mutex::new(()),
        };
        routes.install(table).map_err(ClientError::Connect)?;
        Ok(routes)
    }

    /// Returns the route for a position and the generation of the table that it is from.
    pub(crate) fn find(&self, position: Position<'_>) -> (Arc<CachedRoute>, u64) {
        let table = self.table.load();
        let ranges = &table.ranges;
        let after = match position {
            Position::At(key) => ranges.partition_point(|route| route.start() <= key),
            Position::Below(Some(key)) => ranges.partition_point(|route| route.start() < key),
            Position::Below(None) => ranges.len(),
        };
        // The first range starts at the lowest key, so that 0 means a position below that.
        (Arc::clone(&ranges[after.saturating_sub(1)]), table.generation)
    }

    /// Returns a node that an address is known of.
    pub(crate) fn node(&self, id: NodeId) -> Option<Arc<NodeHandle>> {
        self.nodes.read().get(&id).cloned()
    }

    /// Records the address of a node.
    pub(crate) fn learn(&self, id: NodeId, address: &str) {
        let known = |node: &Arc<NodeHandle>| node.address() == crate::node::bare(address);
        let nodes = self.nodes.read();
        if nodes.get(&id).is_some_and(known) || nodes.len() >= NODES_MAX {
            return;
        }
        drop(nodes);
        let endpoint = self.endpoints.iter().find(|endpoint| known(endpoint)).cloned();
        match endpoint.map_or_else(|| NodeHandle::new(address, &self.options).map(Arc::new), Ok) {
            Ok(node) => drop(self.nodes.write().insert(id, node)),
            Err(error) => warn!(node = %id, %error, "a node's address makes no sense"),
        }
    }

    /// Returns the table in use.
    pub(crate) fn table(&self) -> RouteTable {
        let table = self.table.load();
        RouteTable {
            cluster: table.cluster,
            version: table.version,
            ranges: table.ranges.iter().map(|route| route.public()).collect(),
            nodes: table.nodes.clone(),
        }
    }

    /// Returns how often the routes were updated so far.
    pub(crate) fn generation(&self) -> u64 {
        self.table.load().generation
    }

    /// Asks for the routes anew, unless somebody has since generation `seen`.
    pub(crate) async fn refresh(
        &self,
        seen: u64,
        preference: Preference<'_>,
    ) -> Result<(), String> {
        let _only = self.refreshing.lock().await;
        if self.generation() > seen {
            return Ok(());
        }
        let table = first_table(&self.candidates(preference)).await?;
        self.install(table)
    }

    /// Asks every known node for the routes. Of what they answer within [`NEWEST_PATIENCE`], the newest is
    /// in use from then on.
    pub(crate) async fn refresh_from_all(&self) -> Result<(), String> {
        let _only = self.refreshing.lock().await;
        let late = Instant::now() + NEWEST_PATIENCE;
        let asked = self.candidates(Preference::default()).into_iter().map(|node| async move {
            let answer = match timeout_at(late, node.routes()).await {
                Ok(answer) => answer,
                Err(_elapsed) => Err(format!("no answer within {NEWEST_PATIENCE:?}")),
            };
            (node, answer)
        });
        let mut answers = stream::iter(asked).buffer_unordered(ASKED_MAX);
        let (mut answered, mut refusals) = (false, Vec::new());
        while let Some((node, answer)) = answers.next().await {
            match answer.and_then(|table| self.install(table)) {
                Ok(()) => answered = true,
                Err(reason) => refusals.push(format!("{}: {reason}", node.address())),
            }
        }
        answered.then_some(()).ok_or_else(|| refusals.join("; "))
    }

    /// Returns every known node, in the order in which to ask them.
    fn candidates(&self, preference: Preference<'_>) -> Vec<Arc<NodeHandle>> {
        let mut known: Vec<_> =
            self.nodes.read().iter().map(|(id, node)| (Some(*id), Arc::clone(node))).collect();
        for endpoint in &self.endpoints {
            if !known.iter().any(|(_, node)| Arc::ptr_eq(node, endpoint)) {
                known.push((None, Arc::clone(endpoint)));
            }
        }
        known.shuffle(&mut rand::rng());
        known.sort_by_key(|(id, node)| {
            let last = id.is_some() && *id == preference.last;
            let first = id.is_some_and(|id| preference.first.contains(&id));
            (last || node.is_closed(), !first)
        });
        known.into_iter().map(|(_, node)| node).collect()
    }

    /// Applies a table that a node sent. Called by one caller at a time.
    fn install(&self, received: v1::RouteTable) -> Result<(), String> {
        let old = self.table.load_full();
        if received.cluster != old.cluster.0 {
            return Err(format!(
                "the routes of cluster {} instead of {}",
                ClusterId(received.cluster),
                old.cluster
            ));
        }
        let map = convert::range_map(&received).map_err(|error| error.to_string())?;
        let outdated = received.version < old.version;
        let mut table = Table {
            cluster: old.cluster,
            version: received.version.max(old.version),
            generation: old.generation + 1,
            ranges: old.ranges.clone(),
            nodes: received.nodes.iter().filter_map(node).collect(),
        };
        if outdated {
            debug!(received = received.version, known = old.version, "a node has outdated routes");
            hint_leaders(&old, &received);
        } else {
            let mut routes: HashMap<u64, v1::RangeRoute> =
                received.ranges.into_iter().map(|route| (route.cohort, route)).collect();
            let before: HashMap<CohortId, &Arc<CachedRoute>> =
                old.ranges.iter().map(|route| (route.descriptor.cohort, route)).collect();
            table.ranges = map
                .ranges()
                .iter()
                .filter_map(|descriptor| {
                    let route = routes.remove(&descriptor.cohort.0)?;
                    let before = before.get(&descriptor.cohort).copied();
                    Some(Arc::new(self.cached(descriptor, route, before)))
                })
                .collect();
            if table.ranges.len() != map.ranges().len() {
                return Err("a route table that names a cohort twice".to_owned());
            }
        }
        for node in &table.nodes {
            self.learn(node.id, &node.address);
        }
        if !outdated {
            let named: Vec<NodeId> = table.nodes.iter().map(|node| node.id).collect();
            self.nodes.write().retain(|id, _| named.contains(id));
        }
        if table.version > old.version {
            info!(version = table.version, ranges = table.ranges.len(), "the routes have changed");
        }
        self.table.store(Arc::new(table));
        Ok(())
    }

    fn cached(
        &self,
        descriptor: &RangeDescriptor,
        received: v1::RangeRoute,
        before: Option<&Arc<CachedRoute>>,
    ) -> CachedRoute {
        let known = before.and_then(|route| route.leader()).map_or(0, |leader| leader.0);
        let newer = before.filter(|route| route.config_version > received.config_version);
        let received_replicas = received.replicas.iter().copied().filter_map(convert::node_id);
        CachedRoute {
            descriptor: descriptor.clone(),
            protocol: received.protocol,
            replicas: newer
                .map_or_else(|| received_replicas.collect(), |route| route.replicas.clone()),
            config_version: newer.map_or(received.config_version, |route| route.config_version),
            leader: AtomicU64::new(if received.leader == 0 { known } else { received.leader }),
            sessions: before.map_or_else(
                || Arc::new(Sessions::new(self.options.in_flight_max, received.session_start)),
                |route| Arc::clone(&route.sessions),
            ),
            seen: before.map_or_else(Arc::default, |route| Arc::clone(&route.seen)),
        }
    }
}

impl CachedRoute {
    fn start(&self) -> &[u8] {
        &self.descriptor.range.start
    }

    fn public(&self) -> Route {
        Route {
            range: self.descriptor.range.clone(),
            cohort: self.descriptor.cohort,
            epoch: self.descriptor.epoch,
            protocol: self.protocol.clone(),
            replicas: self.replicas.clone(),
            leader: self.leader(),
        }
    }
}

fn hint_leaders(table: &Table, received: &v1::RouteTable) {
    for hint in &received.ranges {
        let route = table.ranges.iter().find(|route| route.descriptor.cohort.0 == hint.cohort);
        if let (Some(route), Some(leader)) = (route, convert::node_id(hint.leader)) {
            route.set_leader(leader);
        }
    }
}

fn node(received: &v1::Node) -> Option<Node> {
    let id = convert::node_id(received.id)?;
    let v1::Node { address, alive, draining, .. } = received.clone();
    Some(Node { id, address, alive, draining })
}

/// Asks nodes for the routes until one answers or `deadline` passes.
async fn table_within(
    nodes: &[Arc<NodeHandle>],
    options: &ClientOptions,
    deadline: Instant,
) -> Result<v1::RouteTable, ClientError> {
    let mut refusal = "no answer before the deadline".to_owned();
    for failures in 1.. {
        match timeout_at(deadline, first_table(nodes)).await {
            Ok(Ok(table)) => return Ok(table),
            Ok(Err(reason)) => refusal = reason,
            Err(_elapsed) => break,
        }
        let pause = backoff::pause(failures, options.backoff_min, options.backoff_max);
        if Instant::now() + pause >= deadline {
            break;
        }
        sleep(pause).await;
    }
    Err(ClientError::Connect(refusal))
}

/// Asks nodes for the routes, one after the other, without waiting long for any of them, and
/// returns the first answer.
async fn first_table(nodes: &[Arc<NodeHandle>]) -> Result<v1::RouteTable, String> {
    let mut waiting = nodes.iter();
    let mut asked = FuturesUnordered::new();
    let mut refusals = Vec::new();
    loop {
        if let Some(node) = waiting.next() {
            asked.push(async move { (node, node.routes().await) });
        }
        let more = waiting.len() > 0;
        tokio::select! {
            answer = asked.next() => match answer {
                Some((_, Ok(table))) => return Ok(table),
                Some((node, Err(reason))) => refusals.push(format!("{}: {reason}", node.address())),
                None => return Err(refusals.join("; ")),
            },
            () = sleep(STAGGER), if more => {}
        }
    }
}
