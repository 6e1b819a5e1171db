//! Lulls: clients ask for nothing for a while, so that the cohort comes to rest, something goes wrong
//! meanwhile, and then clients ask every node at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::sleep;
use trireme_storage::fs::Crash;
use trireme_types::NodeId;

use crate::chance::Chance;
use crate::client::Client;
use crate::faults::Faults;
use crate::network::{LaneKey, Spoken, Way};
use crate::world::World;

/// How many lulls there are in such a world.
const LULLS: u64 = 3;

/// For how long clients work before a lull, in milliseconds.
const WORK: (u64, u64) = (300, 1500);

/// How many beacon intervals pass in a lull before something happens: a cohort rests after some ten, and
/// then for longer than a follower bears a silence.
const QUIET: (u64, u64) = (14, 60);

/// How long a node stays down that dies in a lull, in milliseconds: seldom longer than others need to
/// notice.
const DOWN: (u64, u64) = (1, 600);

/// In how many steps messages come to be late, so that no silence falls.
const STEPS: u32 = 10;

/// For how many graces every node is asked when a lull is over.
const ASKED_FOR: u32 = 3;

/// The first number of a client that asks one node.
const FIRST_ASKER: u64 = 100;

/// Makes lulls, and things go wrong in them.
pub(crate) struct Lulls {
    world: Arc<World>,
    chance: Chance,
    faults: Faults,
    asked: u64,
}

impl Lulls {
    pub(crate) fn new(world: Arc<World>) -> Self {
        let (chance, faults) = (world.fork(), Faults::new(Arc::clone(&world)));
        Self { world, chance, faults, asked: 0 }
    }

    pub(crate) async fn run(mut self) {
        for _ in 0..LULLS {
            if self.chance.one_in(4) {
                self.faults.happen();
            }
            sleep(self.chance.millis(WORK.0, WORK.1)).await;
            self.set(true);
            let quiet = u32::try_from(self.chance.within(QUIET.0, QUIET.1)).expect("a few");
            sleep(quiet * self.world.plan.timing.beacon_interval).await;
            if let Some(leader) = self.world.leader() {
                self.happen(leader).await;
            }
            sleep(self.graces(0, 1500)).await;
            self.set(false);
            self.ask_every_node().await;
        }
    }

    fn set(&self, is_now: bool) {
        self.world.is_in_lull.store(is_now, Ordering::Relaxed);
        self.world.trace.note("lull", format_args!("{}", if is_now { "begins" } else { "ends" }));
    }

    /// Returns a part of the grace, or a multiple of it, in thousandths.
    fn graces(&mut self, low: u64, high: u64) -> Duration {
        let thousandths = u32::try_from(self.chance.within(low, high)).expect("a few thousand");
        self.world.plan.timing.grace * thousandths / 1000
    }

    async fn happen(&mut self, leader: NodeId) {
        let others = self.world.others(leader);
        match self.chance.below(16) {
            0 => {}
            1..4 => self.cut(leader, &others),
            4 => self.pause(leader),
            5 => {
                for node in others.iter().take(1 + others.len() / 2) {
                    self.pause(*node);
                }
            }
            6 => self.kill(leader),
            7 => others.iter().for_each(|node| self.kill(*node)),
            8..10 => self.answer_late(leader, &others).await,
            10 => self.drop_half(leader, &others),
            _ => self.leave_alone(leader, &others),
        }
    }

    /// Cuts the leader off from the others, and maybe from the coordinator.
    fn cut(&mut self, leader: NodeId, others: &[NodeId]) {
        let lane = self.chance.pick(&[None, None, Some(LaneKey::Heartbeat)]);
        let from = others.iter().map(|other| (leader, *other, lane));
        let to = others.iter().map(|other| (*other, leader, lane));
        let ways: Vec<Way> = match self.chance.below(3) {
            0 => from.collect(),
            1 => to.collect(),
            _ => from.chain(to).collect(),
        };
        let lasts = self.graces(300, 4000);
        if self.chance.one_in(2) {
            self.world.cut_coordinator(leader, lasts);
        }
        self.world.cut(ways, lasts);
    }

    fn pause(&mut self, node: NodeId) {
        let lasts = self.graces(200, 4000);
        if let Some(running) = self.world.running(node) {
            self.world.pause(&running, lasts);
        }
    }

    fn kill(&mut self, node: NodeId) {
        self.world.kill(node, Crash::LoseUnsynced);
        let down = self.chance.millis(DOWN.0, DOWN.1);
        self.world.start_after(node, down);
    }

    /// Has all that comes to the leader be later and later, and then nothing more come from it.
    async fn answer_late(&mut self, leader: NodeId, others: &[NodeId]) {
        let timing = self.world.plan.timing;
        let late = timing.lease * u32::try_from(self.chance.within(2, 10)).expect("a few") / 10;
        let ways: Vec<_> = others.iter().map(|other| (*other, leader)).collect();
        self.world.trace.note("late", format_args!("{ways:?} by {late:?}"));
        for step in 1..=STEPS {
            self.world.network.hold_up(&ways, late * step / STEPS);
            sleep(2 * timing.beacon_interval).await;
        }
        let lasts = self.graces(1000, 4000);
        self.world.later(lasts, move |world| world.network.hold_up(&ways, Duration::ZERO));
        self.world.cut_coordinator(leader, lasts);
        self.world.cut(others.iter().map(|other| (leader, *other, None)).collect(), lasts);
    }

    /// Loses all pulses, or all that replicas say, between the leader and some others.
    fn drop_half(&mut self, leader: NodeId, others: &[NodeId]) {
        let spoken = self.chance.pick(&[Spoken::Pulses, Spoken::ByReplicas]);
        let some = 1 + usize::try_from(self.chance.below(others.len() as u64)).expect("a few");
        let both = others.iter().take(some).flat_map(|other| [(leader, *other), (*other, leader)]);
        let ways: Vec<_> = both.filter(|_| !self.chance.one_in(3)).collect();
        let lasts = self.graces(200, 2500);
        self.drop_spoken(ways, spoken, lasts);
    }

    fn drop_spoken(&self, ways: Vec<(NodeId, NodeId)>, spoken: Spoken, lasts: Duration) {
        self.world.trace.note("dropped", format_args!("{spoken:?} {ways:?} for {lasts:?}"));
        self.world.network.drop_spoken(&ways, spoken, true);
        self.world.later(lasts, move |world| world.network.drop_spoken(&ways, spoken, false));
    }

    /// Has the others find that the leader is gone, by connections that break and maybe by its session,
    /// while pulses go on: it learns neither of that nor of a new leader.
    fn leave_alone(&mut self, leader: NodeId, others: &[NodeId]) {
        let lasts = self.graces(1500, 4000);
        self.world.cut_coordinator(leader, lasts);
        let ways = others.iter().map(|other| (*other, leader)).collect();
        self.drop_spoken(ways, Spoken::ByReplicas, lasts);
        if self.chance.one_in(2) {
            self.world.trace.note("session ends", format_args!("{leader}"));
            self.world.coordinator.expire(leader);
        }
        for running in others.iter().filter_map(|node| self.world.running(*node)) {
            self.world.trace.note("peer lost", format_args!("{} lost {leader}", running.node));
            running.process.within(|| {
                running.pulses.peer_lost(leader);
                running.replica.peer_lost(leader);
            });
        }
    }

    /// Has a client ask each node for strong reads, whether it leads or not.
    async fn ask_every_node(&mut self) {
        let lasts = self.world.plan.timing.grace * ASKED_FOR;
        let asking: Vec<_> = self
            .world
            .plan
            .nodes
            .iter()
            .map(|node| {
                self.asked += 1;
                let asker = Client::new(Arc::clone(&self.world), FIRST_ASKER + self.asked);
                tokio::spawn(asker.ask_for(*node, lasts))
            })
            .collect();
        for asker in asking {
            // A panic has ended the run.
            let _panicked = asker.await;
        }
    }
}
