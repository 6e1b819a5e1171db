//! What goes wrong, and when.

use std::sync::Arc;

use tokio::time::{Instant, sleep};
use trireme_storage::fs::Crash;
use trireme_types::{NodeId, Protocol};

use crate::chance::Chance;
use crate::network::{LaneKey, Way, Weather};
use crate::node::Running;
use crate::world::World;

/// How long a node stays down after it was killed, in milliseconds.
const DOWN: (u64, u64) = (5, 3000);

/// How long a fault lasts that ends by itself, in milliseconds.
const LASTS: (u64, u64) = (100, 4000);

/// What a disk loses.
#[derive(Clone, Copy)]
enum Loss {
    All,
    /// Of the log, which the node must notice.
    OneBit,
}

/// Makes things go wrong for as long as the plan says.
pub(crate) struct Faults {
    world: Arc<World>,
    chance: Chance,
}

impl Faults {
    pub(crate) fn new(world: Arc<World>) -> Self {
        let chance = world.fork();
        Self { world, chance }
    }

    pub(crate) async fn run(mut self) {
        let end = Instant::now() + self.world.plan.faults_for;
        loop {
            let calm = self.chance.millis(20, self.world.plan.calm);
            if Instant::now() + calm >= end {
                sleep(end.saturating_duration_since(Instant::now())).await;
                return;
            }
            sleep(calm).await;
            self.happen();
        }
    }

    /// Returns the leader, or any node.
    fn node(&mut self) -> NodeId {
        let any = self.chance.pick(&self.world.plan.nodes);
        match self.world.leader() {
            Some(leader) if self.chance.one_in(2) => leader,
            _ => any,
        }
    }

    /// Makes one thing go wrong.
    pub(crate) fn happen(&mut self) {
        let node = self.node();
        let running = self.world.running(node);
        match (self.chance.below(100), running) {
            (0..14, Some(_)) => self.crash(node),
            (14..20, Some(running)) => {
                let calls = self.chance.within(1, 12);
                self.note("power", format_args!("{node} fails in {calls} calls"));
                running.disk.fail_power_after(calls);
            }
            (20..23, Some(_)) => self.crash_all(),
            (23..31, Some(running)) => self.pause(&running),
            (31..50, _) => self.cut(node),
            (50..56, _) => self.storm(),
            (56..64, Some(running)) => self.disk(node, running),
            (64..67, Some(running)) => {
                let syncs = self.chance.within(1, 4);
                self.note("sync fails", format_args!("{node} in {syncs} syncs"));
                running.disk.fail_sync_after(syncs);
            }
            (67..69, Some(running)) => {
                self.note("disk full", format_args!("{node}"));
                running.disk.fill_but(self.chance.below(20_000));
            }
            (69..74, _) => self.coordinator_down(),
            (74..79, _) => self.cut_coordinator(node),
            (79..82, _) => {
                self.note("session ends", format_args!("{node}"));
                self.world.coordinator.expire(node);
            }
            (82..92, Some(running)) => self.release(node, running),
            (92..95, Some(running)) => self.hand_over(&running),
            (95..98, _) => self.lose_disk(node, Loss::All),
            (98..100, _) => self.lose_disk(node, Loss::OneBit),
            _ => {}
        }
    }

    fn note(&self, kind: &'static str, what: std::fmt::Arguments<'_>) {
        self.world.trace.note(kind, what);
    }

    pub(crate) fn kind_of_crash(&mut self) -> Crash {
        match self.chance.below(3) {
            0 => Crash::LoseUnsynced,
            1 => Crash::KeepUnsynced,
            _ => Crash::Random(self.chance.next()),
        }
    }

    fn crash(&mut self, node: NodeId) {
        let crash = self.kind_of_crash();
        self.world.kill(node, crash);
        let down = self.chance.millis(DOWN.0, DOWN.1);
        self.world.start_after(node, down);
    }

    fn crash_all(&mut self) {
        for node in self.world.plan.nodes.clone() {
            self.crash(node);
        }
    }

    fn pause(&mut self, running: &Running) {
        let lasts = self.chance.millis(LASTS.0, LASTS.1);
        self.world.pause(running, lasts);
    }

    /// Cuts some ways: all of a node's, those between two halves, one direction, one lane, or those
    /// between two nodes alone.
    fn cut(&mut self, node: NodeId) {
        let others = self.world.others(node);
        let both = |a: NodeId, b: NodeId| [(a, b, None), (b, a, None)];
        let ways: Vec<Way> = match self.chance.below(6) {
            0 => others.iter().flat_map(|other| both(node, *other)).collect(),
            1 => {
                let all = self.world.plan.nodes.clone();
                let here: Vec<_> = all.iter().filter(|_| self.chance.one_in(2)).collect();
                let is_here = |node: &NodeId| here.contains(&node);
                let pairs = all.iter().flat_map(|a| all.iter().map(move |b| (*a, *b, None)));
                pairs.filter(|(a, b, _)| is_here(a) != is_here(b)).collect()
            }
            2 => others.iter().map(|other| (node, *other, None)).collect(),
            3 => others.iter().map(|other| (*other, node, None)).collect(),
            4 => {
                let lane = self.chance.pick(&[LaneKey::Data, LaneKey::Heartbeat]);
                others.iter().map(|other| (node, *other, Some(lane))).collect()
            }
            _ => {
                let other = self.chance.pick(&others);
                both(node, other).into()
            }
        };
        let lasts = self.chance.millis(LASTS.0, LASTS.1);
        self.world.cut(ways, lasts);
    }

    fn storm(&mut self) {
        let weather = Weather {
            delay: self.world.plan.weather.delay,
            late: self.chance.pick(&[0, 100, 500]),
            late_by: self.chance.pick(&[100, 600]),
            lost: self.chance.pick(&[20, 100, 300]),
        };
        let lasts = self.chance.millis(LASTS.0, LASTS.1);
        self.note("storm", format_args!("{weather:?} for {lasts:?}"));
        self.world.network.set_weather(weather);
        self.world.later(lasts, |world| world.network.set_weather(world.plan.weather));
    }

    fn disk(&mut self, node: NodeId, running: Arc<Running>) {
        let lasts = self.chance.millis(LASTS.0, LASTS.1);
        if self.chance.one_in(2) {
            self.note("disk stalls", format_args!("{node} for {lasts:?}"));
            running.disk.set_stalled(true);
        } else {
            let slow = self.chance.pick(&[(10, 40), (50, 200), (300, 600)]);
            self.note("disk is slow", format_args!("{node} {slow:?} for {lasts:?}"));
            running.disk.set_delay(slow);
        }
        let weak = Arc::downgrade(&running);
        self.world.later(lasts, move |world| {
            if let Some(running) = weak.upgrade() {
                running.disk.set_stalled(false);
                running.disk.set_delay(world.plan.disk_delay);
            }
        });
    }

    fn coordinator_down(&mut self) {
        let lasts = self.chance.millis(LASTS.0, LASTS.1);
        self.note("coordinator down", format_args!("for {lasts:?}"));
        self.world.coordinator.set_down(true);
        let copies = self.chance.one_in(3).then(|| self.chance.within(1, 8));
        self.world.later(lasts, move |world| {
            let copies = copies.and_then(|copies| usize::try_from(copies).ok());
            if copies.is_some_and(|copies| world.coordinator.put_back(copies)) {
                world.trace.note("coordinator put back", format_args!("by {copies:?} copies"));
            }
            world.coordinator.set_down(false);
        });
    }

    fn cut_coordinator(&mut self, node: NodeId) {
        let lasts = self.chance.millis(LASTS.0, LASTS.1);
        self.world.cut_coordinator(node, lasts);
    }

    /// Has a node flush its tables and give up the log that it needs no more; or asks it to give up all
    /// that it has applied, which it must not do.
    fn release(&mut self, node: NodeId, running: Arc<Running>) {
        let (merges, releases) = (self.chance.one_in(2), !self.chance.one_in(4));
        if self.chance.one_in(4) {
            self.note("release", format_args!("{node} is asked for all"));
            let process = running.process.clone();
            tokio::spawn(process.task(async move {
                // What is not on the disk stays.
                let _some = running.replica.release_log(running.table.applied().seq).await;
            }));
            return;
        }
        let world = Arc::downgrade(&self.world);
        let process = running.process.clone();
        tokio::spawn(process.task(async move {
            let flushed = running.tables.flush();
            let merged = if merges { running.tables.merge().map(drop) } else { Ok(()) };
            let Some(world) = world.upgrade() else { return };
            if let Err(error) = flushed.and(merged) {
                world.trace.fail(format!("the tables of {node} fail: {error}"));
                return;
            }
            let upto = running.table.persisted().seq;
            world.trace.note("flush", format_args!("{node} as of {upto}, releases: {releases}"));
            // What is committed is looked at before the log lets go of it.
            world.observe();
            drop(world);
            if releases {
                // A replica that cannot now is asked again another time.
                let _later = running.replica.release_log(upto).await;
            }
        }));
    }

    fn hand_over(&mut self, running: &Arc<Running>) {
        let to = self.chance.pick(&self.world.plan.nodes);
        self.note("hand over", format_args!("{} to {to}", running.node));
        let replica = Arc::clone(&running.replica);
        tokio::spawn(running.process.task(async move {
            // One that does not lead refuses.
            let _refused = replica.transfer_leader(to).await;
        }));
    }

    /// Takes a node's disk away, or what is as bad, if the protocol promises to bear that now.
    fn lose_disk(&mut self, node: NodeId, loss: Loss) {
        let world = Arc::clone(&self.world);
        if !world.lacking().is_empty() || world.running(node).is_none() {
            return;
        }
        let is_borne = match world.setup.protocol {
            Protocol::Spinnaker | Protocol::Raft => true,
            // Another replica must be in every configuration that may be the newest.
            Protocol::Pacifica => world.bears_loss_of(node),
        };
        if !is_borne {
            return;
        }
        world.kill(node, Crash::LoseUnsynced);
        match loss {
            Loss::All => world.wipe(node),
            // A log that has no older part keeps all its bits.
            Loss::OneBit => drop(world.damage(node)),
        }
        let down = self.chance.millis(DOWN.0, DOWN.1);
        world.start_after(node, down);
    }
}
