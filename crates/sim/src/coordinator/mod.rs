//! A coordinator with the semantics of the real one's recipes: sessions that expire, elections that
//! are bound to them, and configurations by compare-and-set. Each request is carried out at one
//! moment or not at all; requests and answers are late or lost; watches deliver the newest state, and
//! may skip what lies between.

mod configuration;
pub(crate) mod continuity;
mod election;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use trireme_coordinator::Line;
use trireme_replication::core::Core;
use trireme_replication::driver::{Coordination, CoreReplica};
use trireme_types::{CohortConfig, Epoch, NodeId};

use self::election::Elections;
use crate::chance::Chance;
use crate::mistake::Mistake;
use crate::world::World;

/// How long a session lives without its node.
const SESSION: Duration = Duration::from_secs(2);

/// How often a node renews its session.
const RENEW_EVERY: Duration = Duration::from_millis(500);

/// How often sessions are looked after.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Every so many looks it keeps a copy of what it has ...
const LOOKS_A_COPY: u64 = 10;

/// ... and so many of them: those of the last seconds.
const COPIES_MAX: usize = 16;

/// The pause before a request is sent again that was not answered.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The coordinator of a world.
pub(crate) struct Coordinator {
    inner: Mutex<Inner>,
}

/// A session: which one, of all that there ever were.
type SessionId = u64;

struct Inner {
    /// Has each who wants to lead believe that it does: a mistake.
    each_wins: bool,
    chance: Chance,
    is_down: bool,
    /// Which unbroken run of it this is: each start begins another.
    line: Line,
    /// The nodes that do not reach it.
    cut: BTreeSet<NodeId>,
    /// Until when each session lives, unless its node is heard.
    sessions: BTreeMap<SessionId, Instant>,
    /// The session of each node that runs, with the start of the node.
    current: BTreeMap<NodeId, (u64, SessionId)>,
    sessions_opened: u64,
    kept: Kept,
    /// What it has kept at earlier moments.
    copies: VecDeque<Kept>,
    /// Counts its changes.
    revision: u64,
    /// What wakes each node's watch. A channel of tokio's wakes its receivers in a random order.
    watching: BTreeMap<NodeId, Arc<Notify>>,
}

/// What it has on its disk, the sessions aside.
#[derive(Clone)]
struct Kept {
    elections: Elections,
    config: CohortConfig,
    /// The sessions that there are.
    open: BTreeSet<SessionId>,
}

/// What became of a request.
pub(crate) enum Carried<E> {
    /// It cannot be carried out yet, and is sent again.
    NotYet,
    /// What has come of it is seen by the watch.
    Done,
    /// What the replica is to know of it.
    Answered(E),
}

/// A protocol's part in the coordinator.
pub(crate) trait Recipe: Core + Sized {
    /// Carries a node's request out, in one step.
    fn carry_out(
        coordinator: &Coordinator,
        node: NodeId,
        request: Self::CoordinatorRequest,
    ) -> Carried<Self::CoordinatorEvent>;

    /// Returns the epoch that an event is about, below which nothing may be passed on that was brought
    /// forward since; the newest, where it does not matter.
    fn epoch_of(event: &Self::CoordinatorEvent) -> Epoch;

    /// Returns true if a replica may hear of this: its node remembers it.
    fn is_remembered(world: &World, node: NodeId, event: &Self::CoordinatorEvent) -> bool;

    /// Returns what a node is to know.
    fn view(coordinator: &Coordinator, node: NodeId) -> Self::CoordinatorEvent;
}

impl Coordinator {
    pub(crate) fn new(chance: Chance, config: CohortConfig, mistake: Option<Mistake>) -> Self {
        let inner = Inner {
            each_wins: mistake == Some(Mistake::EachWins),
            chance,
            is_down: false,
            line: Line { cluster: 1, term: 1 },
            cut: BTreeSet::new(),
            sessions: BTreeMap::new(),
            current: BTreeMap::new(),
            sessions_opened: 0,
            kept: Kept { elections: Elections::default(), config, open: BTreeSet::new() },
            copies: VecDeque::new(),
            revision: 1,
            watching: BTreeMap::new(),
        };
        Self { inner: Mutex::new(inner) }
    }

    /// Returns the newest configuration.
    pub(crate) fn config(&self) -> CohortConfig {
        self.inner.lock().kept.config.clone()
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        let mut inner = self.inner.lock();
        if inner.is_down && !is_down {
            inner.line.term += 1;
        }
        inner.is_down = is_down;
        // What comes back gives every session its whole time again.
        let until = Instant::now() + SESSION;
        inner.sessions.values_mut().for_each(|session| *session = until);
        drop(inner);
        self.changed();
    }

    /// Puts one that is down back to what it had kept `copies` copies ago, or to the oldest copy. Returns
    /// true if there is one.
    pub(crate) fn put_back(&self, copies: usize) -> bool {
        let inner = &mut *self.inner.lock();
        let at = inner.copies.len().saturating_sub(copies.max(1));
        let Some(kept) = inner.copies.get(at).cloned() else { return false };
        inner.copies.truncate(at);
        inner.sessions.retain(|session, _| kept.open.contains(session));
        for session in &kept.open {
            inner.sessions.entry(*session).or_insert_with(Instant::now);
        }
        inner.kept = kept;
        inner.line.term += 1;
        true
    }

    pub(crate) fn cut(&self, node: NodeId) {
        self.inner.lock().cut.insert(node);
    }

    pub(crate) fn heal(&self, node: NodeId) {
        self.inner.lock().cut.remove(&node);
        self.changed();
    }

    /// Ends a node's session now.
    pub(crate) fn expire(&self, node: NodeId) {
        let mut inner = self.inner.lock();
        if let Some((_, session)) = inner.current.get(&node).copied() {
            inner.end(session);
        }
        drop(inner);
        self.changed();
    }

    pub(crate) fn reaches(&self, node: NodeId) -> bool {
        let inner = self.inner.lock();
        !inner.is_down && !inner.cut.contains(&node)
    }

    /// Returns the time that a message takes to it or from it.
    fn delay(&self) -> Duration {
        self.inner.lock().chance.millis(1, 6)
    }

    /// Returns true if the answer to a request is lost.
    fn loses(&self) -> bool {
        self.inner.lock().chance.one_in(40)
    }

    fn changed(&self) {
        let mut inner = self.inner.lock();
        inner.revision += 1;
        inner.watching.values().for_each(|watching| watching.notify_one());
    }

    fn revision(&self) -> u64 {
        self.inner.lock().revision
    }

    /// Returns what is notified from now on of every change, in place of what was for this node.
    fn subscribe(&self, node: NodeId) -> Arc<Notify> {
        let watching = Arc::<Notify>::default();
        self.inner.lock().watching.insert(node, Arc::clone(&watching));
        watching
    }

    /// Renews a node's session, or opens a new one.
    fn renew(&self, node: NodeId, start: u64) {
        let inner = &mut *self.inner.lock();
        let until = Instant::now() + SESSION;
        if let Some((of, session)) = inner.current.get(&node)
            && *of == start
            && let Some(lives) = inner.sessions.get_mut(session)
        {
            *lives = until;
            return;
        }
        inner.sessions_opened += 1;
        inner.sessions.insert(inner.sessions_opened, until);
        inner.kept.open.insert(inner.sessions_opened);
        inner.current.insert(node, (start, inner.sessions_opened));
        inner.revision += 1;
        inner.watching.values().for_each(|watching| watching.notify_one());
    }

    /// Ends the sessions that are over, for ever.
    pub(crate) async fn run(world: Weak<World>) {
        let mut looks = 0_u64;
        loop {
            sleep(LOOK_EVERY).await;
            let Some(world) = world.upgrade() else { return };
            let coordinator = &world.coordinator;
            let mut inner = coordinator.inner.lock();
            if inner.is_down {
                continue;
            }
            looks += 1;
            if looks.is_multiple_of(LOOKS_A_COPY) {
                let kept = inner.kept.clone();
                inner.copies.push_back(kept);
                if inner.copies.len() > COPIES_MAX {
                    inner.copies.pop_front();
                }
            }
            let now = Instant::now();
            let is_over = |(id, until): (&SessionId, &Instant)| (*until <= now).then_some(*id);
            let over: Vec<_> = inner.sessions.iter().filter_map(is_over).collect();
            over.iter().for_each(|session| inner.end(*session));
            drop(inner);
            if !over.is_empty() {
                world.trace.note("session over", format_args!("{over:?}"));
                coordinator.changed();
            }
        }
    }
}

impl Inner {
    fn end(&mut self, session: SessionId) {
        self.sessions.remove(&session);
        self.kept.open.remove(&session);
        self.kept.elections.end(session);
    }

    /// Returns the session of a node, if it lives.
    fn session(&self, node: NodeId) -> Option<SessionId> {
        let (_, session) = self.current.get(&node)?;
        self.sessions.contains_key(session).then_some(*session)
    }
}

/// What a replica asks of the coordinator, until it has been carried out: the newest request takes
/// the place of the one before.
pub(crate) struct Requests<C: Core> {
    newest: Mutex<Option<C::CoordinatorRequest>>,
    changed: Notify,
}

impl<C: Core> Requests<C> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { newest: Mutex::new(None), changed: Notify::new() })
    }
}

impl<C: Core<CoordinatorRequest: Send + Sync>> Coordination<C> for Requests<C> {
    fn request(&self, request: C::CoordinatorRequest) {
        *self.newest.lock() = Some(request);
        self.changed.notify_one();
    }
}

/// Keeps a node's session alive. Ends with the node.
pub(crate) async fn keep_session(world: Weak<World>, node: NodeId, start: u64) {
    loop {
        {
            let Some(world) = world.upgrade() else { return };
            if world.coordinator.reaches(node) {
                world.coordinator.renew(node, start);
            }
        }
        sleep(RENEW_EVERY).await;
    }
}

/// Carries a replica's requests out. Ends with the node.
pub(crate) async fn serve<C>(
    world: Weak<World>,
    node: NodeId,
    requests: Arc<Requests<C>>,
    replica: Weak<CoreReplica<C>>,
) where
    C: Recipe<CoordinatorRequest: Clone, CoordinatorEvent: Clone>,
{
    loop {
        let Some(request) = requests.newest.lock().take() else {
            requests.changed.notified().await;
            continue;
        };
        let Some(delay) = world.upgrade().map(|world| world.coordinator.delay()) else { return };
        sleep(delay).await;
        let answer = {
            let Some(world) = world.upgrade() else { return };
            let coordinator = &world.coordinator;
            let may_change =
                || world.running(node).is_some_and(|running| world.may_change(&running));
            if coordinator.reaches(node) && may_change() {
                world.trace.note("coordinator", format_args!("{node}: {request:?}"));
                let answer = C::carry_out(coordinator, node, request.clone());
                coordinator.changed();
                if coordinator.loses() { Carried::NotYet } else { answer }
            } else {
                Carried::NotYet
            }
        };
        sleep(delay).await;
        match answer {
            Carried::NotYet => {
                sleep(RETRY_PAUSE).await;
                requests.newest.lock().get_or_insert(request);
            }
            Carried::Done => {}
            Carried::Answered(event) => {
                let is_remembered =
                    world.upgrade().is_some_and(|world| C::is_remembered(&world, node, &event));
                if is_remembered && !CoreReplica::notify(&replica, event).await {
                    return;
                }
            }
        }
    }
}

/// Passes on to a replica what is new at the coordinator. Ends with the node.
pub(crate) async fn watch<C>(world: Weak<World>, node: NodeId, replica: Weak<CoreReplica<C>>)
where
    C: Recipe<CoordinatorEvent: Clone>,
{
    let (mut last, mut revision) = (None, 0);
    let watching = world.upgrade().map(|world| world.coordinator.subscribe(node));
    let Some(watching) = watching else { return };
    loop {
        let Some(newest) = world.upgrade().map(|world| world.coordinator.revision()) else {
            return;
        };
        if newest == revision {
            watching.notified().await;
            continue;
        }
        revision = newest;
        let Some(delay) = world.upgrade().map(|world| world.coordinator.delay()) else { return };
        sleep(delay).await;
        let event = {
            let Some(world) = world.upgrade() else { return };
            let coordinator = &world.coordinator;
            let event = coordinator.reaches(node).then(|| C::view(coordinator, node));
            let running = world.running(node);
            let may_hear = |event: &C::CoordinatorEvent| {
                let it = running.as_ref();
                it.is_some_and(|it| world.may_pass_on(it, C::epoch_of(event)))
                    && C::is_remembered(&world, node, event)
            };
            if event.as_ref().is_some_and(|event| !may_hear(event)) {
                // What is not passed on now is when it is known to be the newest.
                drop((running, world));
                revision = 0;
                sleep(RETRY_PAUSE).await;
                continue;
            }
            drop(running);
            let is_news = event.as_ref().map(|event| format!("{event:?}"));
            if is_news.is_none() || is_news == last {
                continue;
            }
            last = is_news;
            event
        };
        if let Some(event) = event
            && !CoreReplica::notify(&replica, event).await
        {
            return;
        }
    }
}
