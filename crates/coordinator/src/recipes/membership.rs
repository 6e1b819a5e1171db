//! Membership: which nodes there are, where they listen, and which of them live.
//!
//! ```text
//! /nodes/<id>    who the node is and where it listens: stays when the node stops
//! /live/<id>     ephemeral: there as long as a process holds the node's session
//! /draining/<id> the node is to hold no replica
//! ```
//! The live node is created atomically, so that two living processes cannot both be one node. A
//! process that comes back at the place of its predecessor, which it could only lock because the
//! predecessor is gone, takes the live node over at once; any other, one on a copy of the folder
//! among them, waits until the old session has ended. Each start of a node carries a number that its
//! folder remembers: a process that finds a later start recorded than its own has lost its place to another
//! process and does not get it back.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use trireme_types::NodeId;

use super::{decode, encode, malformed};
use crate::{
    Coordinator, CoordinatorError, CreateMode, Node, NodeChange, Nodes, Op, Scope, SessionId,
    Watch, WatchEvent,
};

const NODES: &str = "/nodes";
const LIVE: &str = "/live";
const DRAINING: &str = "/draining";

/// The folder in the record of a node that has data, of which only the identity is not known.
const UNKNOWN_FOLDER: &str = "unknown";

/// The folder in the record of a node whose data are given up: no folder that comes is the one that was
/// known.
const GIVEN_UP_FOLDER: &str = "given-up";

/// The address in a record that knows none: it leads nowhere.
const UNKNOWN_ADDRESS: &str = "unknown.invalid:1";

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Where it listens, as `host:port`.
    pub address: String,
    /// The identity of the data folder that it works on, drawn when the folder was made; empty if
    /// it has none.
    #[serde(default)]
    pub folder: String,
    /// Where that folder is, in words that no copy of it shares and that name no two folders; empty
    /// if that is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub place: String,
    /// How often a process was started on the folder, this one included.
    #[serde(default)]
    pub starts: u64,
    /// Of two folders that the node has come back with, having lost what it had, the newer one has the
    /// higher number; zero is its first.
    #[serde(default)]
    pub incarnation: u64,
    /// Further properties of the node.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Returns the incarnation of a node that comes back without what it had, or whose data are given up, now,
/// when the coordinator knows `known` of it: the time, in milliseconds of Unix time. One more than what is
/// known would be given twice by a coordinator that was put back in between, and the later of the two
/// folders would pass for one whose place the other has taken. Where this machine's clock is behind, one
/// more is what it is.
pub fn next_incarnation(known: u64) -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    time.max(known.saturating_add(1))
}

impl NodeInfo {
    /// Returns the information of a node that listens on `address`.
    pub fn new(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            folder: String::new(),
            place: String::new(),
            starts: 0,
            incarnation: 0,
            labels: BTreeMap::new(),
        }
    }

    /// Returns the information of a node that has data, in a folder that is not known: one that holds
    /// data is taken for it, and an empty one is that of a node that lost what it had.
    pub fn with_unknown_folder() -> Self {
        Self { folder: UNKNOWN_FOLDER.to_owned(), ..Self::new(UNKNOWN_ADDRESS) }
    }

    /// Returns the information of a node whose data were given up at `time`, in milliseconds of Unix
    /// time. The node comes back with an empty folder, and with no other: the cluster went on without
    /// what that holds. The time is a higher incarnation than that of an earlier time, and than any that
    /// 0.1.0 counted one by one; a folder of a higher one would pass for the node's newest.
    pub fn given_up(time: u64) -> Self {
        let folder = GIVEN_UP_FOLDER.to_owned();
        Self { folder, incarnation: time, ..Self::new(UNKNOWN_ADDRESS) }
    }

    /// Returns true if the node's folder is not known, so that any that holds data may be it.
    pub fn has_unknown_folder(&self) -> bool {
        self.folder == UNKNOWN_FOLDER
    }

    /// Returns true if the node's data were given up.
    pub fn is_given_up(&self) -> bool {
        self.folder == GIVEN_UP_FOLDER
    }
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub id: NodeId,
    /// Who it is, by its latest registration.
    pub info: NodeInfo,
    /// The session of its living process; `None` if none lives.
    pub session: Option<SessionId>,
    /// Whether it is to hold no replica.
    pub is_draining: bool,
}

impl Member {
    /// Returns true if a process holds the node's session.
    pub fn is_alive(&self) -> bool {
        self.session.is_some()
    }
}

/// Why a node was not registered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// Another process, with a living session, is this node.
    #[error("node {id} is already running at {address} (session {session})")]
    AlreadyAlive {
        /// The node.
        id: NodeId,
        /// Where that process listens.
        address: String,
        /// Its session.
        session: SessionId,
    },
    /// The session of a process lives that was this node before this one was started: the coordinator
    /// was put back to a state in which it was there. Nothing keeps the session alive.
    #[error(
        "the session {session} of an earlier process of node {id}, at {address}, has not ended"
    )]
    Outlived {
        /// The node.
        id: NodeId,
        /// Where that process listened.
        address: String,
        /// Its session.
        session: SessionId,
    },
    /// Another process was started as this node since this one was.
    #[error("another process was started as node {id}, at {address}, since this one was")]
    Overtaken {
        /// The node.
        id: NodeId,
        /// Where that process listens.
        address: String,
    },
    /// The coordinator could not do it.
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
}

/// The nodes of the cluster that a coordinator's namespace belongs to.
#[derive(Clone, Debug)]
pub struct Membership {
    coordinator: Coordinator,
}

/// The value of a live node.
#[derive(Debug, Serialize, Deserialize)]
struct LiveNode {
    address: String,
    #[serde(default)]
    folder: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    place: String,
    /// Which of the node's processes it is: the incarnation of the folder, and how often a process had
    /// been started on it. Absent where an earlier version has registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    generation: Option<(u64, u64)>,
}

/// Who registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Registering {
    /// A process that starts.
    First,
    /// One that was registered before, and whose session has expired.
    Again,
}

impl Membership {
    /// Returns the membership at this coordinator.
    pub fn new(coordinator: &Coordinator) -> Self {
        Self { coordinator: coordinator.clone() }
    }

    /// Registers this process as node `id` for as long as its session lives. To be called again
    /// after [`Coordinator::renew`], and whenever `info` changes.
    pub async fn register(&self, id: NodeId, info: &NodeInfo) -> Result<(), RegisterError> {
        loop {
            match self.try_register(id, info, Registering::First).await? {
                Attempt::Done => return Ok(()),
                Attempt::Raced => {}
                Attempt::Held(error) => return Err(error),
            }
        }
    }

    /// Registers this process again, whose session has expired. Fails at once if another process has
    /// taken its place meanwhile, or was started as the node; with [`RegisterError::Outlived`], it can
    /// be tried again.
    pub async fn register_again(&self, id: NodeId, info: &NodeInfo) -> Result<(), RegisterError> {
        loop {
            match self.try_register(id, info, Registering::Again).await? {
                Attempt::Done => return Ok(()),
                Attempt::Raced => {}
                Attempt::Held(error) => return Err(error),
            }
        }
    }

    /// Waits up to `patience` until no other process holds the place of node `id`.
    pub async fn wait_until_free(
        &self,
        id: NodeId,
        info: &NodeInfo,
        patience: Duration,
    ) -> Result<(), RegisterError> {
        let deadline = Instant::now() + patience;
        loop {
            let watch = self.coordinator.watch_once(&live_path(id), Scope::Node).await?;
            let Some(live) = watch.state.nodes.first() else { return Ok(()) };
            let Some(held) = self.held_by_another(id, info, live)? else { return Ok(()) };
            if timeout_at(deadline, watch.changed()).await.is_err() {
                return Err(held);
            }
        }
    }

    /// Returns who else holds a live node, if somebody does.
    fn held_by_another(
        &self,
        id: NodeId,
        info: &NodeInfo,
        live: &Node,
    ) -> Result<Option<RegisterError>, CoordinatorError> {
        let holder: LiveNode = decode(live)?;
        let session = live.owner.unwrap_or(SessionId(0));
        let is_ours = session == self.coordinator.session_id();
        // Only one process can hold a place, and this one does.
        let is_same_place = !info.place.is_empty() && holder.place == info.place;
        let is_earlier = holder.generation.is_some_and(|earlier| earlier < generation(info));
        let address = holder.address;
        let held = if is_earlier {
            RegisterError::Outlived { id, address, session }
        } else {
            RegisterError::AlreadyAlive { id, address, session }
        };
        Ok((!is_ours && !is_same_place).then_some(held))
    }

    /// Registers as [`Membership::register`] does, and waits up to `patience` for the session of
    /// an earlier process to end.
    pub async fn register_within(
        &self,
        id: NodeId,
        info: &NodeInfo,
        patience: Duration,
    ) -> Result<(), RegisterError> {
        let deadline = Instant::now() + patience;
        loop {
            let watch = self.coordinator.watch_once(&live_path(id), Scope::Node).await?;
            match self.try_register(id, info, Registering::First).await? {
                Attempt::Done => return Ok(()),
                Attempt::Raced => {}
                Attempt::Held(error) => {
                    if timeout_at(deadline, watch.changed()).await.is_err() {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Takes this process's registration back; the record of the node stays, as a dead one.
    pub async fn deregister(&self, id: NodeId) -> Result<(), CoordinatorError> {
        let path = live_path(id);
        let Some(node) = self.coordinator.get(&path).await? else { return Ok(()) };
        if node.owner != Some(self.coordinator.session_id()) {
            return Ok(());
        }
        match self.coordinator.delete(&path, Some(node.version)).await {
            // It has changed hands since: it is not ours to delete.
            Err(CoordinatorError::WrongVersion { .. } | CoordinatorError::NoNode { .. }) => Ok(()),
            other => other,
        }
    }

    /// Has a node hold no replica, or may it hold some again. Whether it holds any is not looked at.
    pub async fn set_draining(
        &self,
        id: NodeId,
        is_draining: bool,
    ) -> Result<(), CoordinatorError> {
        let path = draining_path(id);
        let op = match is_draining {
            true => Op::Create { path, value: Vec::new(), mode: CreateMode::Persistent },
            false => Op::Delete { path, expected: None },
        };
        match self.coordinator.multi(vec![op]).await {
            // It was so already.
            Ok(_) | Err(CoordinatorError::NodeExists { .. } | CoordinatorError::NoNode { .. }) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Removes the record of a node of which no process lives. Returns false if one does. A node of that
    /// name that comes later is another one.
    pub async fn remove(&self, id: NodeId) -> Result<bool, CoordinatorError> {
        loop {
            if self.coordinator.get(&live_path(id)).await?.is_some() {
                return Ok(false);
            }
            self.set_draining(id, false).await?;
            let Some(record) = self.coordinator.get(&record_path(id)).await? else {
                return Ok(true);
            };
            // A process that registers meanwhile writes its record.
            match self.coordinator.delete(&record.path, Some(record.version)).await {
                Err(CoordinatorError::WrongVersion { .. } | CoordinatorError::NoNode { .. }) => {}
                other => return other.map(|()| true),
            }
        }
    }

    /// Returns the nodes, by their identifiers.
    pub async fn list(&self) -> Result<Vec<Member>, CoordinatorError> {
        // Two reads are not one moment: a node that dies between them may be listed as alive, as
        // any answer may be old when it arrives.
        let live = self.coordinator.children(LIVE).await?;
        let nodes = self.coordinator.children(NODES).await?;
        let draining = self.coordinator.children(DRAINING).await?;
        members(&by_path(nodes), &by_path(live), &by_path(draining))
    }

    /// Watches the nodes.
    pub fn watch(&self) -> Result<MembershipWatch, CoordinatorError> {
        Ok(MembershipWatch {
            nodes: Part::new(self.coordinator.watch(NODES, Scope::Children)?),
            live: Part::new(self.coordinator.watch(LIVE, Scope::Children)?),
            draining: Part::new(self.coordinator.watch(DRAINING, Scope::Children)?),
            told: None,
        })
    }

    async fn try_register(
        &self,
        id: NodeId,
        info: &NodeInfo,
        registering: Registering,
    ) -> Result<Attempt, CoordinatorError> {
        let (record_path, live_path) = (record_path(id), live_path(id));
        let record = self.coordinator.get(&record_path).await?;
        let live = self.coordinator.get(&live_path).await?;
        if let Some(record) = &record {
            let recorded: NodeInfo = decode(record)?;
            let is_ours = recorded.folder == info.folder || recorded.has_unknown_folder();
            if (is_ours && recorded.starts > info.starts)
                || (!is_ours
                    && registering == Registering::Again
                    && recorded.incarnation >= info.incarnation)
            {
                let overtaken = RegisterError::Overtaken { id, address: recorded.address };
                return Ok(Attempt::Held(overtaken));
            }
        }
        let live_node = LiveNode {
            address: info.address.clone(),
            folder: info.folder.clone(),
            place: info.place.clone(),
            generation: Some(generation(info)),
        };
        let live_value = encode(&live_node);
        let live_op = match live {
            None => Op::Create {
                path: live_path.clone(),
                value: live_value,
                mode: CreateMode::Ephemeral,
            },
            Some(node) => {
                if let Some(held) = self.held_by_another(id, info, &node)? {
                    return Ok(Attempt::Held(held));
                }
                Op::Claim { path: live_path.clone(), value: live_value, expected: node.version }
            }
        };
        let value = encode(info);
        let record_op = match record {
            None => Op::Create { path: record_path, value, mode: CreateMode::Persistent },
            Some(node) => Op::Set { path: record_path, value, expected: Some(node.version) },
        };
        match self.coordinator.multi(vec![record_op, live_op]).await {
            Ok(_) => Ok(Attempt::Done),
            Err(
                CoordinatorError::NodeExists { .. }
                | CoordinatorError::WrongVersion { .. }
                | CoordinatorError::NoNode { .. },
            ) => Ok(Attempt::Raced),
            Err(error) => Err(error),
        }
    }
}

enum Attempt {
    Done,
    /// Something changed between reading and writing.
    Raced,
    Held(RegisterError),
}

/// A watch of the membership. Dropping it ends it.
#[derive(Debug)]
pub struct MembershipWatch {
    nodes: Part,
    live: Part,
    draining: Part,
    told: Option<Vec<Member>>,
}

/// One of the folders, as its watch has delivered it.
#[derive(Debug)]
struct Part {
    watch: Watch,
    known: Option<BTreeMap<String, Node>>,
}

impl MembershipWatch {
    /// Returns the nodes: at first as they are, then whenever they have changed. `None` once the
    /// coordinator is closed. Can be cancelled.
    pub async fn next(&mut self) -> Option<Result<Vec<Member>, CoordinatorError>> {
        loop {
            tokio::select! {
                event = self.nodes.watch.next() => self.nodes.take_in(event?),
                event = self.live.watch.next() => self.live.take_in(event?),
                event = self.draining.watch.next() => self.draining.take_in(event?),
            }
            let (Some(nodes), Some(live), Some(draining)) =
                (&self.nodes.known, &self.live.known, &self.draining.known)
            else {
                continue;
            };
            let members = match members(nodes, live, draining) {
                Ok(members) => members,
                Err(error) => return Some(Err(error)),
            };
            if self.told.as_ref() != Some(&members) {
                self.told = Some(members.clone());
                return Some(Ok(members));
            }
        }
    }
}

impl Part {
    fn new(watch: Watch) -> Self {
        Self { watch, known: None }
    }

    fn take_in(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::State(nodes) => self.known = Some(by_path(nodes)),
            WatchEvent::Changes { changes, .. } => {
                let known = self.known.get_or_insert_default();
                for change in changes {
                    match change {
                        NodeChange::Put(node) => known.insert(node.path.clone(), node),
                        NodeChange::Deleted { path } => known.remove(&path),
                    };
                }
            }
        }
    }
}

fn by_path(nodes: Nodes) -> BTreeMap<String, Node> {
    nodes.nodes.into_iter().map(|node| (node.path.clone(), node)).collect()
}

fn members(
    nodes: &BTreeMap<String, Node>,
    live: &BTreeMap<String, Node>,
    draining: &BTreeMap<String, Node>,
) -> Result<Vec<Member>, CoordinatorError> {
    let mut members = Vec::with_capacity(nodes.len());
    for node in nodes.values() {
        let id: NodeId = node.name().parse().map_err(|error| malformed(node, error))?;
        let session = live.get(&live_path(id)).and_then(|live| live.owner);
        let is_draining = draining.contains_key(&draining_path(id));
        members.push(Member { id, info: decode(node)?, session, is_draining });
    }
    members.sort_by_key(|member| member.id);
    Ok(members)
}

/// Returns which of the node's processes registers. A later one has a greater one.
fn generation(info: &NodeInfo) -> (u64, u64) {
    (info.incarnation, info.starts)
}

pub(super) fn record_path(id: NodeId) -> String {
    format!("{NODES}/{}", id.0)
}

fn draining_path(id: NodeId) -> String {
    format!("{DRAINING}/{}", id.0)
}

fn live_path(id: NodeId) -> String {
    format!("{LIVE}/{}", id.0)
}
