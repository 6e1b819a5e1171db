//! Leaders that fall in turn: each finds what those before it have left half done, while a client reads
//! what was written last.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use trireme_types::{Epoch, NodeId};

use crate::chance::Chance;
use crate::faults::Faults;
use crate::network::{LaneKey, Way};
use crate::world::World;

/// How many leaders fall in turn.
const FALLING: (u64, u64) = (2, 5);

/// How long a leader is left alone, in milliseconds.
const FALLS_AFTER: (u64, u64) = (0, 200);

/// How long some of the others receive nothing from a leader before it falls, in milliseconds.
const CUT_BEFORE: (u64, u64) = (0, 60);

/// How long is waited for a leader to apply something, before it falls.
const APPLIES_WITHIN: Duration = Duration::from_millis(300);

/// How long after that it falls, in milliseconds: clients have the answers, and the others have not
/// been informed that anything is committed.
const ANSWERS_FOR: (u64, u64) = (0, 10);

/// How long one that has fallen stays down, in milliseconds: the next one takes over with those that
/// are there, and the one after that with those that have come back.
const FALLEN_FOR: (u64, u64) = (100, 1500);

/// How long there may be no leader before the turn ends.
const NO_LEADER_MAX: Duration = Duration::from_secs(4);

/// How often is looked for one.
const LOOK: Duration = Duration::from_millis(1);

/// Has leaders fall in turn for as long as the plan says.
pub(crate) struct Turns {
    world: Arc<World>,
    chance: Chance,
    faults: Faults,
    /// When all faults end.
    end: Instant,
    /// The epoch of the last one that fell.
    newest: Epoch,
}

impl Turns {
    pub(crate) fn new(world: Arc<World>) -> Self {
        let (chance, faults) = (world.fork(), Faults::new(Arc::clone(&world)));
        let end = Instant::now() + world.plan.faults_for;
        Self { world, chance, faults, end, newest: 0 }
    }

    pub(crate) async fn run(mut self) {
        while Instant::now() < self.end {
            if self.chance.one_in(3) {
                self.faults.happen();
            }
            for _ in 0..self.chance.within(FALLING.0, FALLING.1) {
                if !self.next_falls().await {
                    break;
                }
            }
            sleep(self.chance.millis(20, self.world.plan.calm)).await;
        }
    }

    /// Has the next leader fall. Returns false if there is none for long.
    async fn next_falls(&mut self) -> bool {
        let Some(leader) = self.next_leader().await else { return false };
        sleep(self.chance.millis(FALLS_AFTER.0, FALLS_AFTER.1)).await;
        if self.chance.one_in(2) {
            self.applies(leader).await;
            sleep(self.chance.millis(ANSWERS_FOR.0, ANSWERS_FOR.1)).await;
            self.fall(leader, &[]);
        } else {
            let others = self.world.others(leader).into_iter();
            let some = others.filter(|_| !self.chance.one_in(3));
            let ways: Vec<Way> = some.map(|other| (leader, other, Some(LaneKey::Data))).collect();
            self.world.network.cut(&ways);
            sleep(self.chance.millis(CUT_BEFORE.0, CUT_BEFORE.1)).await;
            self.fall(leader, &ways);
            self.world.network.heal(&ways);
        }
        true
    }

    /// Waits for a leader in a newer epoch than the last.
    async fn next_leader(&mut self) -> Option<NodeId> {
        let until = self.end.min(Instant::now() + NO_LEADER_MAX);
        while Instant::now() < until {
            let leads = self.world.leads().filter(|(epoch, _)| *epoch > self.newest);
            if let Some((epoch, leader)) = leads {
                self.newest = epoch;
                return Some(leader);
            }
            sleep(LOOK).await;
        }
        None
    }

    /// Waits until a leader has applied more, if it does so soon: then it answers those who wait for it.
    async fn applies(&self, leader: NodeId) {
        let until = Instant::now() + APPLIES_WITHIN;
        let applied = || self.world.running(leader).map(|running| running.table.applied());
        let before = applied();
        while Instant::now() < until && applied() == before {
            sleep(LOOK).await;
        }
    }

    fn fall(&mut self, leader: NodeId, cut: &[Way]) {
        self.world.trace.note("leader falls", format_args!("{leader} after {cut:?}"));
        self.world.kill(leader, self.faults.kind_of_crash());
        let down = self.chance.millis(FALLEN_FOR.0, FALLEN_FOR.1);
        self.world.start_after(leader, down);
    }
}
