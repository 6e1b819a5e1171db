//! The world: its nodes, what connects them, and who looks at them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use trireme_replication::Role;
use trireme_replication::simulation::ClockRate;
use trireme_storage::fs::{Crash, Fs as _, MemFs};
use trireme_types::{CohortConfig, Epoch, NodeId, Protocol};

use crate::chance::Chance;
use crate::client::History;
use crate::coordinator::Coordinator;
use crate::coordinator::continuity::Memory;
use crate::damage;
use crate::invariants::{Observer, Seen};
use crate::mistake::Mistake;
use crate::network::{Network, Way};
use crate::node::{self, Running, Slot};
use crate::setup::{Plan, Setup};
use crate::trace::{Sink, Trace};

/// How long a node that failed stays down.
const DOWN_AFTER_FAILURE: (u64, u64) = (50, 2000);

/// How often the world looks whether it is well again.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long it may take, once all faults are over, until the cluster is well: several elections and
/// sessions one after the other.
const HEALS_WITHIN: Duration = Duration::from_secs(60);

/// A cluster with all that is around it.
pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) plan: Plan,
    pub(crate) trace: Trace,
    pub(crate) network: Network,
    pub(crate) coordinator: Coordinator,
    /// Clients ask for nothing that needs a leader.
    pub(crate) is_in_lull: AtomicBool,
    pub(crate) history: History,
    pub(crate) observer: Mutex<Observer>,
    slots: Mutex<BTreeMap<NodeId, Slot>>,
    /// The newest configuration that any node has remembered: what may have been acted in, whatever the
    /// coordinator has forgotten.
    acted_in: Mutex<CohortConfig>,
    chance: Mutex<Chance>,
    folder: TempDir,
    folders: Mutex<u64>,
}

impl World {
    /// Makes a world with nothing running in it.
    pub(crate) fn new(setup: Setup, sink: Option<Sink>) -> Arc<Self> {
        let mut chance = Chance::new(setup.seed);
        let plan = Plan::draw(setup.protocol, &mut chance);
        let folder = folder();
        let slots = plan.nodes.iter().map(|node| {
            let tables = folder.path().join(format!("{node}-0"));
            (*node, Slot::new(tables))
        });
        let slots = Mutex::new(slots.collect());
        let snapshots = folder.path().join("snapshots");
        std::fs::create_dir_all(snapshots).expect("a folder can be made in a temporary one");
        let config = plan.config(setup.protocol);
        let acted_in = Mutex::new(config.clone());
        Arc::new(Self {
            trace: Trace::new(sink),
            network: Network::new(chance.fork(), plan.weather),
            coordinator: Coordinator::new(chance.fork(), config, setup.mistake),
            is_in_lull: AtomicBool::new(false),
            history: History::default(),
            observer: Mutex::new(Observer::new(setup.protocol)),
            slots,
            acted_in,
            chance: Mutex::new(chance),
            folder,
            folders: Mutex::new(0),
            setup,
            plan,
        })
    }

    pub(crate) fn fork(&self) -> Chance {
        self.chance.lock().fork()
    }

    pub(crate) fn draw(&self) -> u64 {
        self.chance.lock().next()
    }

    pub(crate) fn snapshots_folder(&self) -> PathBuf {
        self.folder.path().join("snapshots")
    }

    pub(crate) fn running(&self, node: NodeId) -> Option<Arc<Running>> {
        self.slots.lock().get(&node)?.running.clone()
    }

    pub(crate) fn all_running(&self) -> Vec<Arc<Running>> {
        self.slots.lock().values().filter_map(|slot| slot.running.clone()).collect()
    }

    /// Hears that a node remembers a configuration, and so may act in it.
    pub(crate) fn may_act_in(&self, config: &CohortConfig) {
        let mut newest = self.acted_in.lock();
        if config.version > newest.version {
            *newest = config.clone();
        }
    }

    /// Looks at what a node remembers of the coordinator: it is on its disk when this returns.
    pub(crate) fn with_memory<R>(
        &self,
        node: NodeId,
        look: impl FnOnce(&mut Option<Memory>) -> R,
    ) -> R {
        let mut slots = self.slots.lock();
        look(&mut slots.get_mut(&node).expect("a node of the world").memory)
    }

    /// Returns how fast a node's clock runs.
    pub(crate) fn clock_rate(&self, node: NodeId) -> ClockRate {
        let at = self.plan.nodes.iter().position(|other| *other == node);
        match self.setup.mistake {
            Some(Mistake::SlowClock) if at == Some(0) => ClockRate { per_mille: -800 },
            _ => at.map(|at| self.plan.clocks[at]).unwrap_or_default(),
        }
    }

    pub(crate) fn starts_of(&self, node: NodeId) -> u64 {
        self.slots.lock().get(&node).map_or(0, |slot| slot.starts)
    }

    pub(crate) fn others(&self, node: NodeId) -> Vec<NodeId> {
        self.plan.nodes.iter().copied().filter(|other| *other != node).collect()
    }

    /// Returns the nodes that lost their disk, or will have when they start, and have not caught up
    /// since.
    pub(crate) fn lacking(&self) -> Vec<NodeId> {
        let slots = self.slots.lock();
        let lacks = |slot: &Slot| slot.lacks.is_some() || slot.damaged.is_some();
        slots.iter().filter(|(_, slot)| lacks(slot)).map(|(node, _)| *node).collect()
    }

    /// Returns the node that leads in the newest epoch.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.leads().map(|(_, leader)| leader)
    }

    /// Returns the newest epoch in which a node leads, and the node.
    pub(crate) fn leads(&self) -> Option<(Epoch, NodeId)> {
        let statuses = self.all_running().into_iter().map(|running| running.replica.status());
        let leading = statuses.filter(|status| status.role == Role::Leader);
        leading.map(|status| (status.epoch, status.node)).max_by_key(|(epoch, _)| *epoch)
    }

    /// Returns the longest time, in milliseconds, that any message may have taken until a node took it
    /// in.
    pub(crate) fn slack(&self, node: NodeId) -> u64 {
        let stood_still = self.slots.lock().get(&node).map_or(0, |slot| slot.stood_still);
        self.network.slowest() + stood_still
    }

    /// Stops a node's process for a while.
    pub(crate) fn pause(self: &Arc<Self>, running: &Running, lasts: Duration) {
        self.trace.note("pause", format_args!("{} for {lasts:?}", running.node));
        running.process.pause();
        if let Some(slot) = self.slots.lock().get_mut(&running.node) {
            let millis = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
            // Pauses may overlap.
            slot.stood_still = slot.stood_still.saturating_add(millis);
        }
        let process = running.process.clone();
        tokio::spawn(async move {
            sleep(lasts).await;
            process.resume();
        });
    }

    /// Cuts some ways for a while.
    pub(crate) fn cut(self: &Arc<Self>, ways: Vec<Way>, lasts: Duration) {
        self.trace.note("cut", format_args!("{ways:?} for {lasts:?}"));
        self.network.cut(&ways);
        self.later(lasts, move |world| world.network.heal(&ways));
    }

    /// Cuts a node off from the coordinator for a while.
    pub(crate) fn cut_coordinator(self: &Arc<Self>, node: NodeId, lasts: Duration) {
        self.trace.note("coordinator cut", format_args!("from {node} for {lasts:?}"));
        self.coordinator.cut(node);
        self.later(lasts, move |world| world.coordinator.heal(node));
    }

    /// Does something after a while, if the world still is.
    pub(crate) fn later(
        self: &Arc<Self>,
        after: Duration,
        act: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) {
        let world = Arc::downgrade(self);
        tokio::spawn(async move {
            sleep(after).await;
            if let Some(world) = world.upgrade() {
                act(&world);
            }
        });
    }

    /// Checks every invariant.
    pub(crate) fn observe(&self) {
        // The observer may be called from within what an observation asks a replica.
        let Some(mut observer) = self.observer.try_lock() else { return };
        let running = self.all_running();
        let seen: Vec<_> =
            running.iter().filter(|it| !it.disk.is_off()).map(|it| it.seen()).collect();
        self.note_caught_up(&seen);
        let config = self.acted_in.lock().clone();
        let result = observer.look(&seen, &config, &self.lacking());
        if let Err(reason) = result {
            self.trace.fail(reason);
        }
    }

    /// Judges that a node's permit to read was valid now, which led in `epoch`.
    pub(crate) fn serves(&self, node: NodeId, epoch: Epoch) {
        let judged = self.observer.lock().serves(node, epoch);
        if let Err(reason) = judged {
            self.trace.fail(reason);
        }
    }

    fn note_caught_up(&self, seen: &[Seen<'_>]) {
        let mut slots = self.slots.lock();
        for it in seen {
            let Some(slot) = slots.get_mut(&it.node) else { continue };
            let has_all = slot.lacks.is_some_and(|upto| it.status.durable.seq >= upto);
            if has_all && matches!(it.status.role, Role::Leader | Role::Follower) {
                slot.lacks = None;
            }
        }
    }

    /// Starts a node that does not run.
    pub(crate) async fn start(self: &Arc<Self>, node: NodeId) {
        let (start, disks) = {
            let mut slots = self.slots.lock();
            let slot = slots.get_mut(&node).expect("a node of the world");
            if slot.running.is_some() || slot.is_starting {
                return;
            }
            slot.is_starting = true;
            slot.starts += 1;
            (slot.starts, (slot.fs.clone(), slot.tables.clone(), slot.rejoins))
        };
        self.trace.note("start", format_args!("{node}, start {start}"));
        self.network.started(node);
        let started = node::start(self, node, start, disks).await;
        match started {
            Ok(running) => {
                let kept = self.observer.lock().started(node, &running.log);
                if let Err(reason) = kept {
                    self.trace.fail(reason);
                }
                self.damage_was_harmless(&running);
                let mut slots = self.slots.lock();
                let slot = slots.get_mut(&node).expect("a node of the world");
                (slot.running, slot.is_starting) = (Some(running), false);
            }
            Err(reason) => self.did_not_start(node, &reason),
        }
        self.observe();
    }

    /// A node has not started, for which damage to its log is the only good reason. It is as one that
    /// has lost its disk then.
    fn did_not_start(self: &Arc<Self>, node: NodeId, reason: &str) {
        let damaged = {
            let mut slots = self.slots.lock();
            let slot = slots.get_mut(&node).expect("a node of the world");
            slot.is_starting = false;
            slot.damaged.take().map(|segments| (segments, slot.fs.clone()))
        };
        let Some((segments, fs)) = damaged else {
            self.trace.fail(format!("{node} does not start: {reason}"));
            return;
        };
        self.trace.note("damage found", format_args!("{node}: {reason}"));
        if self.setup.mistake == Some(Mistake::DropsDamaged) {
            for segment in &segments {
                // It is there: it was damaged, or comes after that.
                let _removed = fs.remove(segment);
            }
        } else {
            self.wipe(node);
        }
        self.come_back(node);
    }

    /// Checks that a node which has started in spite of damage to its log has all of it.
    fn damage_was_harmless(&self, running: &Running) {
        let damaged = self.slots.lock().get_mut(&running.node).and_then(|slot| slot.damaged.take());
        if damaged.is_none() {
            return;
        }
        self.trace.note("damage harmless", format_args!("{}", running.node));
        let intact = self.observer.lock().is_intact(&running.log);
        if let Err(reason) = intact {
            self.trace.fail(format!("damage is found: {} starts, and {reason}", running.node));
        }
    }

    /// Flips a bit in the log of a node that does not run. Returns true if there was one to flip.
    pub(crate) fn damage(&self, node: NodeId) -> bool {
        let mut chance = self.fork();
        let mut slots = self.slots.lock();
        let slot = slots.get_mut(&node).expect("a node of the world");
        let forges = self.setup.mistake == Some(Mistake::ForgesChecksums);
        slot.damaged = damage::flip(&slot.fs, &mut chance, forges);
        if let Some(segments) = &slot.damaged {
            self.trace.note("damage", format_args!("{node}: {}", segments[0].display()));
        }
        slot.damaged.is_some()
    }

    /// Ends a node's process, with what a crash of this kind does to its disk.
    pub(crate) fn kill(&self, node: NodeId, crash: Crash) {
        let Some(running) = self.running(node) else { return };
        self.observe();
        self.trace.note("kill", format_args!("{node} {crash:?}"));
        running.process.kill();
        self.observer.lock().dying(&running.seen());
        let tables = self.new_folder(node);
        let mut slots = self.slots.lock();
        let slot = slots.get_mut(&node).expect("a node of the world");
        slot.running = None;
        slot.fs = running.disk.fs.crash_with(crash);
        // What the dead process holds open is not the next one's.
        if let Err(error) = node::copy_folder(&slot.tables, &tables) {
            self.trace.fail(format!("the tables of {node} cannot be copied: {error}"));
        }
        if self.setup.mistake == Some(Mistake::NamesOneMore)
            && let Err(error) = node::name_one_more(&tables, &running)
        {
            self.trace.fail(format!("the mistake cannot be made: {error}"));
        }
        slot.tables = tables;
    }

    /// Takes a dead node's disk away.
    pub(crate) fn wipe(&self, node: NodeId) {
        self.trace.note("wipe", format_args!("{node}"));
        let tables = self.new_folder(node);
        let mut observer = self.observer.lock();
        observer.wiped(node);
        let mut slots = self.slots.lock();
        let slot = slots.get_mut(&node).expect("a node of the world");
        (slot.fs, slot.tables, slot.rejoins) = (MemFs::new(), tables, true);
        (slot.memory, slot.damaged) = (None, None);
        slot.lacks = Some(observer.committed());
    }

    /// Starts a node after a while.
    pub(crate) fn start_after(self: &Arc<Self>, node: NodeId, after: Duration) {
        let world = Arc::downgrade(self);
        tokio::spawn(async move {
            sleep(after).await;
            if let Some(world) = world.upgrade() {
                world.start(node).await;
            }
        });
    }

    /// The power of a node has failed within a write.
    pub(crate) fn power_failed(self: &Arc<Self>, node: NodeId) {
        let seed = self.draw();
        self.kill(node, Crash::Random(seed));
        self.come_back(node);
    }

    /// A replica has failed, and so its node has stopped. Only a disk that was made to fail is a
    /// reason.
    pub(crate) fn replica_failed(self: &Arc<Self>, node: NodeId, start: u64, reason: String) {
        let Some(running) = self.running(node).filter(|running| running.start == start) else {
            return;
        };
        self.trace.note("replica failed", format_args!("{node}: {reason}"));
        if !running.disk.may_fail() {
            self.trace.fail(format!("no replica fails by itself: {node}: {reason}"));
            return;
        }
        let seed = self.draw();
        self.kill(node, Crash::Random(seed));
        self.come_back(node);
    }

    fn come_back(self: &Arc<Self>, node: NodeId) {
        let after = self.chance.lock().millis(DOWN_AFTER_FAILURE.0, DOWN_AFTER_FAILURE.1);
        self.start_after(node, after);
    }

    /// Ends all faults, and waits until the cluster is well.
    pub(crate) async fn heal(self: &Arc<Self>) {
        self.trace.note("heal", format_args!("all faults are over"));
        self.network.heal_all();
        if self.setup.mistake == Some(Mistake::StaysCut) {
            let node = self.plan.nodes[0];
            let others = self.others(node).into_iter();
            let ways: Vec<_> = others.map(|other| (other, node, None)).collect();
            self.network.cut(&ways);
        }
        self.network.set_weather(crate::network::Weather { lost: 0, late: 0, ..self.plan.weather });
        self.coordinator.set_down(false);
        for node in &self.plan.nodes {
            self.coordinator.heal(*node);
        }
        self.wait_until_well().await;
    }

    /// Starts what fails, and returns once nothing is amiss: every replica has all that its leader has.
    pub(crate) async fn wait_until_well(self: &Arc<Self>) {
        let deadline = Instant::now() + HEALS_WITHIN;
        loop {
            for node in &self.plan.nodes {
                match self.running(*node) {
                    Some(running) if running.disk.is_off() => {}
                    Some(running) => {
                        running.disk.heal(self.plan.disk_delay);
                        running.process.resume();
                    }
                    None => self.start(*node).await,
                }
            }
            let Some(missing) = self.missing() else { return };
            if Instant::now() >= deadline {
                self.trace.fail(format!("when all faults are over the cluster heals: {missing}"));
                return;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Has something go wrong again when all faults are over, if that is the mistake that is made.
    pub(crate) fn fails_again(&self, mistake: Mistake) {
        if self.setup.mistake != Some(mistake) {
            return;
        }
        self.trace.note("fails again", format_args!("{mistake}"));
        for running in self.all_running() {
            match mistake {
                Mistake::StallsAgain => running.disk.set_stalled(true),
                _ => running.process.pause(),
            }
        }
    }

    /// Returns what a cluster that is well has and this one lacks.
    fn missing(&self) -> Option<String> {
        let Some(leader) = self.leader() else { return Some("no node leads".into()) };
        let config = self.coordinator.config();
        if config.replicas_missing() > 0 {
            return Some(format!("{:?} are not enough replicas", config.replicas));
        }
        let leads = self.running(leader).map(|running| running.replica.status())?;
        for node in config.replicas {
            let Some(running) = self.running(node) else {
                return Some(format!("{node} does not run"));
            };
            let status = running.replica.status();
            if status.role == Role::Learner || status.last != leads.last {
                return Some(format!("{status} is not as far as {leads}"));
            }
            // A Raft follower learns of the last commit with the next heartbeat, as in the others.
            if status.applied != leads.last || status.epoch != leads.epoch {
                return Some(format!("{status} has not applied {}", leads.last));
            }
        }
        if let Some(node) = self.lacking().first() {
            let is_listed = self.setup.protocol != Protocol::Pacifica
                || self.coordinator.config().replicas.contains(node);
            if is_listed {
                return Some(format!("{node} lacks what it lost"));
            }
        }
        None
    }

    /// Returns true if some other node that lacks nothing is in the newest configuration, and in any
    /// that may become it: the configurations that are being asked for are of replicas of this one.
    pub(crate) fn bears_loss_of(&self, node: NodeId) -> bool {
        let config = self.coordinator.config();
        let is_whole = config.replicas_missing() == 0 && config.replicas.contains(&node);
        let running = self.all_running();
        let follows = |other: &NodeId| {
            running.iter().any(|it| {
                let status = it.replica.status();
                let acts = matches!(status.role, Role::Leader | Role::Follower);
                it.node == *other && acts && status.epoch == config.version
            })
        };
        is_whole && config.replicas.iter().all(follows)
    }

    /// Lets go of all nodes.
    pub(crate) fn end(&self) {
        for slot in self.slots.lock().values_mut() {
            if let Some(running) = slot.running.take() {
                running.process.kill();
            }
        }
    }

    fn new_folder(&self, node: NodeId) -> PathBuf {
        let mut folders = self.folders.lock();
        *folders += 1;
        self.folder.path().join(format!("{node}-{folders}"))
    }
}

/// Returns a temporary folder, in memory where the machine has one there: what is forced to it is
/// not what a run is about.
fn folder() -> TempDir {
    let in_memory = std::path::Path::new("/dev/shm");
    let made = if in_memory.is_dir() { TempDir::new_in(in_memory) } else { TempDir::new() };
    made.or_else(|_| TempDir::new()).expect("a temporary folder can be made")
}
