//! The network: messages that are late, lost or cut off, in order on each lane, as
//! [`trireme_replication::Transport`] promises.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use trireme_replication::pulse::PULSE_COHORT;
use trireme_replication::{Lane, ReplicaError, SendError, Transport};
use trireme_storage::{SnapshotReader, SnapshotReceiver};
use trireme_types::{CohortId, NodeId};

use crate::chance::Chance;
use crate::trace;
use crate::world::World;

/// How long a snapshot may take before its sender gives up.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a message that has arrived at a process that does not run is looked after.
const PAUSED_LOOK: Duration = Duration::from_millis(5);

/// How often a node pings the others.
const PING_EVERY: Duration = Duration::from_millis(100);

/// After how long without a ping a peer counts as lost.
const LOST_AFTER: Duration = Duration::from_millis(500);

/// The most that may be under way on one lane; what finds no room is lost.
const UNDERWAY_MAX: usize = 4096;

/// What a network does to its messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Weather {
    /// The delays in milliseconds, in between which most messages' lie.
    pub(crate) delay: (u64, u64),
    /// In so many of a thousand cases a message is late ...
    pub(crate) late: u64,
    /// ... by up to so many milliseconds more.
    pub(crate) late_by: u64,
    /// In so many of a thousand cases a message is lost.
    pub(crate) lost: u64,
}

impl Weather {
    const fn slowest(self) -> u64 {
        self.delay.1 + if self.late > 0 { self.late_by } else { 0 }
    }
}

/// A way from one node to another; all its lanes if none is named.
pub(crate) type Way = (NodeId, NodeId, Option<LaneKey>);

/// A lane, in an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LaneKey {
    Data,
    Heartbeat,
}

impl LaneKey {
    pub(crate) const fn of(lane: Lane) -> Self {
        match lane {
            Lane::Data => Self::Data,
            Lane::Heartbeat => Self::Heartbeat,
        }
    }
}

/// What is said between two nodes, apart from their pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Spoken {
    Pulses,
    ByReplicas,
}

/// What travels.
enum Parcel {
    Message { cohort: CohortId, lane: Lane, payload: Bytes },
    Ping,
}

impl Parcel {
    fn spoken(&self) -> Option<Spoken> {
        match self {
            Self::Message { cohort: PULSE_COHORT, .. } => Some(Spoken::Pulses),
            Self::Message { .. } => Some(Spoken::ByReplicas),
            Self::Ping => None,
        }
    }
}

struct Underway {
    due: Instant,
    /// Which start of the receiver it was sent to, if it goes to no other.
    start: Option<u64>,
    parcel: Parcel,
}

/// The network of a world.
pub(crate) struct Network {
    inner: Mutex<Inner>,
}

struct Inner {
    chance: Chance,
    weather: Weather,
    /// The longest that any message may have been under way.
    slowest: u64,
    cut: BTreeSet<Way>,
    /// What is lost on the way from one node to another, though the rest arrives.
    dropped: BTreeSet<(NodeId, NodeId, Spoken)>,
    /// By how much everything from one node to another is late.
    held_up: BTreeMap<(NodeId, NodeId), Duration>,
    links: BTreeMap<(NodeId, NodeId, LaneKey), mpsc::Sender<Underway>>,
    /// When each node last had a ping of another one, and whether that counts as alive.
    heard: BTreeMap<(NodeId, NodeId), (Instant, bool)>,
}

impl Network {
    pub(crate) fn new(chance: Chance, weather: Weather) -> Self {
        let inner = Inner {
            chance,
            weather,
            slowest: weather.slowest(),
            cut: BTreeSet::new(),
            dropped: BTreeSet::new(),
            held_up: BTreeMap::new(),
            links: BTreeMap::new(),
            heard: BTreeMap::new(),
        };
        Self { inner: Mutex::new(inner) }
    }

    /// Returns the longest time, in milliseconds, that any message may have been under way.
    pub(crate) fn slowest(&self) -> u64 {
        self.inner.lock().slowest
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        let mut inner = self.inner.lock();
        inner.weather = weather;
        inner.slowest = inner.slowest.max(weather.slowest());
    }

    pub(crate) fn cut(&self, ways: &[Way]) {
        self.inner.lock().cut.extend(ways.iter().copied());
    }

    pub(crate) fn heal(&self, ways: &[Way]) {
        let mut inner = self.inner.lock();
        for way in ways {
            inner.cut.remove(way);
        }
    }

    /// Loses what is said on some ways, or does so no more.
    pub(crate) fn drop_spoken(&self, ways: &[(NodeId, NodeId)], spoken: Spoken, is_lost: bool) {
        let mut inner = self.inner.lock();
        for (from, to) in ways {
            match is_lost {
                true => inner.dropped.insert((*from, *to, spoken)),
                false => inner.dropped.remove(&(*from, *to, spoken)),
            };
        }
    }

    /// Has everything on some ways be late by this much more than the weather has it.
    pub(crate) fn hold_up(&self, ways: &[(NodeId, NodeId)], by: Duration) {
        let mut inner = self.inner.lock();
        inner.held_up.extend(ways.iter().map(|way| (*way, by)));
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        inner.slowest = inner.slowest.max(inner.weather.slowest().saturating_add(millis));
    }

    pub(crate) fn heal_all(&self) {
        let mut inner = self.inner.lock();
        inner.cut.clear();
        inner.dropped.clear();
        inner.held_up.clear();
    }

    /// Forgets what a node that starts has heard before.
    pub(crate) fn started(&self, node: NodeId) {
        self.inner.lock().heard.retain(|(at, _), _| *at != node);
    }

    /// Returns the time that a message takes; `None` if it is lost.
    fn fate(&self, from: NodeId, to: NodeId, lane: LaneKey) -> Option<Duration> {
        let inner = &mut *self.inner.lock();
        let Weather { delay, late, late_by, lost } = inner.weather;
        let is_cut = [None, Some(lane)].iter().any(|lane| inner.cut.contains(&(from, to, *lane)));
        let is_lost = inner.chance.per_mille(lost);
        let mut time = inner.chance.within(delay.0, delay.1);
        if inner.chance.per_mille(late) {
            time += inner.chance.below(late_by + 1);
        }
        let held_up = inner.held_up.get(&(from, to)).copied().unwrap_or_default();
        (!is_cut && !is_lost).then(|| Duration::from_millis(time) + held_up)
    }

    /// Returns the time that a question and its answer take; `None` if one of the two is lost.
    pub(crate) fn round_trip(&self, from: NodeId, to: NodeId) -> Option<Duration> {
        let there = self.fate(from, to, LaneKey::Heartbeat);
        let back = self.fate(to, from, LaneKey::Heartbeat);
        Some(there? + back?)
    }

    /// Puts something on a lane. Returns false if it is lost.
    fn put(
        &self,
        world: &Arc<World>,
        from: NodeId,
        to: NodeId,
        lane: LaneKey,
        parcel: Parcel,
    ) -> bool {
        let Some(delay) = self.fate(from, to, lane) else { return false };
        if parcel.spoken().is_some_and(|it| self.inner.lock().dropped.contains(&(from, to, it))) {
            return false;
        }
        let start = world.starts_of(to);
        let inner = &mut *self.inner.lock();
        // What waits at the sender while the receiver restarts goes to its next start.
        let start = (!inner.chance.one_in(3)).then_some(start);
        let link = inner.links.entry((from, to, lane)).or_insert_with(|| {
            let (link, arriving) = mpsc::channel(UNDERWAY_MAX);
            tokio::spawn(carry(Arc::downgrade(world), from, to, arriving));
            link
        });
        link.try_send(Underway { due: Instant::now() + delay, start, parcel }).is_ok()
    }

    fn heard(&self, at: NodeId, of: NodeId) -> bool {
        let mut inner = self.inner.lock();
        let known = inner.heard.insert((at, of), (Instant::now(), true));
        !known.is_some_and(|(_, is_alive)| is_alive)
    }

    /// Returns the peers that a node has not heard for too long and did not know to be lost.
    fn newly_lost(&self, at: NodeId) -> Vec<NodeId> {
        let mut inner = self.inner.lock();
        let mut lost = Vec::new();
        for ((node, of), (when, is_alive)) in &mut inner.heard {
            if *node == at && *is_alive && when.elapsed() > LOST_AFTER {
                *is_alive = false;
                lost.push(*of);
            }
        }
        lost
    }
}

/// Delivers what travels on one lane, in order.
async fn carry(
    world: Weak<World>,
    from: NodeId,
    to: NodeId,
    mut arriving: mpsc::Receiver<Underway>,
) {
    while let Some(Underway { due, start, parcel }) = arriving.recv().await {
        sleep_until(due).await;
        let running = loop {
            let Some(world) = world.upgrade() else { return };
            let running = world.running(to);
            match running {
                Some(running) if !running.process.runs() => {}
                other => break other,
            }
            drop(world);
            sleep(PAUSED_LOOK).await;
        };
        let Some(world) = world.upgrade() else { return };
        let Some(running) = running.filter(|it| start.is_none_or(|start| start == it.start)) else {
            world.trace.note("not running", format_args!("{from} > {to}"));
            continue;
        };
        match parcel {
            Parcel::Message { cohort, lane, payload } => {
                let shown = trace::hash(0, &payload);
                let lane_key = LaneKey::of(lane);
                world.trace.note(
                    if cohort == PULSE_COHORT { "pulse" } else { "delivered" },
                    format_args!("{from} > {to} {lane_key:?} {} bytes {shown:x}", payload.len()),
                );
                running.process.within(|| match cohort {
                    PULSE_COHORT => running.pulses.deliver(from, payload),
                    _ => running.replica.deliver(from, lane, payload),
                });
            }
            Parcel::Ping => {
                if world.network.heard(to, from) {
                    running.process.within(|| running.replica.peer_alive(from));
                }
            }
        }
        world.observe();
    }
}

/// Pings all others from a node, and notices those that have fallen silent. Ends with the node.
pub(crate) async fn ping(world: Weak<World>, node: NodeId) {
    loop {
        {
            let Some(world) = world.upgrade() else { return };
            let Some(running) = world.running(node) else { return };
            for to in world.others(node) {
                world.network.put(&world, node, to, LaneKey::Heartbeat, Parcel::Ping);
            }
            for lost in world.network.newly_lost(node) {
                world.trace.note("peer lost", format_args!("{node} lost {lost}"));
                running.pulses.peer_lost(lost);
                running.replica.peer_lost(lost);
            }
        }
        sleep(PING_EVERY).await;
    }
}

/// One node's end of the network, as long as one process.
pub(crate) struct Link {
    pub(crate) world: Weak<World>,
    pub(crate) from: NodeId,
}

#[async_trait]
impl Transport for Link {
    fn send(
        &self,
        to: NodeId,
        cohort: CohortId,
        lane: Lane,
        payload: Bytes,
    ) -> Result<(), SendError> {
        let world = self.world.upgrade().ok_or(SendError::Unreachable(to))?;
        let (from, bytes) = (self.from, payload.len());
        let parcel = Parcel::Message { cohort, lane, payload };
        if !world.network.put(&world, from, to, LaneKey::of(lane), parcel) {
            world.trace.note("lost", format_args!("{from} > {to} {bytes} bytes"));
        }
        Ok(())
    }

    async fn send_snapshot(
        &self,
        to: NodeId,
        _cohort: CohortId,
        header: Bytes,
        mut snapshot: SnapshotReader,
    ) -> Result<Bytes, SendError> {
        let unreachable = SendError::Unreachable(to);
        let refused = |reason: String| SendError::Refused { node: to, reason };
        let world = self.world.upgrade().ok_or(unreachable.clone())?;
        let from = self.from;
        let there = world.network.fate(from, to, LaneKey::Data).ok_or(unreachable.clone())?;
        let back = world.network.fate(to, from, LaneKey::Data);
        let mut receiver = SnapshotReceiver::new(&world.snapshots_folder())
            .map_err(|error| refused(error.to_string()))?;
        while let Some(chunk) = snapshot.next_chunk().map_err(|e| refused(e.to_string()))? {
            receiver.push(&chunk).map_err(|error| refused(error.to_string()))?;
        }
        let staged = receiver.finish().map_err(|error| refused(error.to_string()))?;
        sleep(there).await;
        let running = world.running(to).ok_or(unreachable)?;
        let upto = staged.header().applied;
        world.trace.note("snapshot", format_args!("{from} > {to} as of {upto}"));
        let (answer, answered) = oneshot::channel();
        let replica = Arc::clone(&running.replica);
        tokio::spawn(running.process.task(async move {
            let installed = replica.install_snapshot(from, header, staged).await;
            // The sender may have given up.
            let _nobody = answer.send(installed);
        }));
        drop((running, world));
        let answer = timeout(SNAPSHOT_TIMEOUT, answered).await;
        let back = back.ok_or_else(|| refused("the answer was lost".into()))?;
        sleep(back).await;
        let answer = answer.map_err(|_| refused("it took too long".into()))?;
        let answer = answer.map_err(|_| refused("the receiver died".into()))?;
        answer.map_err(|error: ReplicaError| refused(error.to_string()))
    }
}
