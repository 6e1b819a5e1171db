//! What a node remembers of the coordinator, and how far it trusts it: the rules are those of the
//! server's own nodes ([`Trust`], [`Knowledge`]); the asking is the simulator's.
//!
//! A node acts in no configuration that it does not remember. It changes nothing at the coordinator,
//! and passes on nothing of an election, before it is known that the coordinator has not forgotten
//! anything: whenever that was started, those are asked who may know more, and what it has forgotten
//! is brought forward. In the protocol in which the coordinator has no part nothing of this matters.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::sleep;
use trireme_coordinator::Line;
use trireme_coordinator::recipes::knowledge::Knowledge;
use trireme_coordinator::recipes::trust::{Asking, KnowsMore, Trust, knows_more};
use trireme_replication::streaming::promised_epoch;
use trireme_types::{ClusterId, CohortConfig, CohortId, Epoch, NodeId, RangeMap};

use super::Coordinator;
use crate::mistake::Mistake;
use crate::node::Running;
use crate::world::World;

/// How often a node asks those who have not answered.
const ASK_EVERY: Duration = Duration::from_millis(300);

/// What a node has on its disk of the coordinator.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    known: Knowledge,
    /// The line in which the coordinator was last known to have lost nothing.
    line: Line,
    revision: u64,
}

/// What one start of a node knows of the coordinator.
#[derive(Debug, Default)]
pub(crate) struct Continuity {
    /// `None` until it has been heard of.
    trust: Option<Trust>,
    /// The epoch that the coordinator was brought forward to, below which nothing that it said before
    /// counts.
    floor: Epoch,
}

impl Memory {
    /// Returns what a node knows that hears of the coordinator for the first time.
    fn new(cohort: CohortId, state: &Stated) -> Self {
        let map = RangeMap::from_splits(&[]).expect("a map of one range");
        let configs = [(cohort, state.config.clone())].into();
        let known = Knowledge { cluster: ClusterId(1), map, configs };
        Self { known, line: state.line, revision: state.revision }
    }
}

/// What the coordinator says of itself.
pub(super) struct Stated {
    pub(super) line: Line,
    pub(super) revision: u64,
    pub(super) config: CohortConfig,
}

impl World {
    /// Has a node hear of the coordinator, as it is now.
    fn hear_of_coordinator(&self, running: &Running) {
        let state = self.coordinator.stated();
        let is_older = self.with_memory(running.node, |memory| {
            let memory = memory.get_or_insert_with(|| Memory::new(state.config.cohort, &state));
            let mut continuity = running.continuity.lock();
            match &mut continuity.trust {
                Some(trust) => {
                    trust.note(state.line, None);
                }
                none => {
                    let is_trusted = memory.line == state.line && memory.revision <= state.revision;
                    let asking = Asking { has_restarted: true, ..Asking::default() };
                    let asking = (!is_trusted).then_some(asking);
                    *none = Some(Trust { line: state.line, creation: 0, asking });
                }
            }
            if continuity.trust.as_ref().is_some_and(|trust| trust.asking.is_none()) {
                (memory.line, memory.revision) = (state.line, state.revision);
            }
            remember(&mut memory.known, &state.config).map(|()| memory.known.clone())
        });
        match is_older {
            Ok(known) => self.bring_forward(&known),
            Err(conflict) => self.trace.fail(format!("a configuration is one: {conflict}")),
        }
    }

    /// Replaces the configuration at the coordinator by one that is newer.
    fn bring_forward(&self, known: &Knowledge) {
        for config in known.configs.values() {
            if self.coordinator.bring_config_forward(config) {
                self.trace.note("forward", format_args!("to version {}", config.version));
            }
        }
    }

    /// Remembers a configuration. Returns true if it is the newest that the node knows.
    pub(crate) fn remember_config(&self, node: NodeId, config: &CohortConfig) -> bool {
        let newest = self.with_memory(node, |memory| {
            let memory = memory.as_mut()?;
            if let Err(conflict) = remember(&mut memory.known, config) {
                return Some(Err(conflict));
            }
            Some(Ok(memory.known.configs.get(&config.cohort) == Some(config)))
        });
        match newest {
            Some(Ok(is_newest)) => {
                if is_newest {
                    self.may_act_in(config);
                }
                is_newest
            }
            Some(Err(conflict)) => {
                self.trace.fail(format!("a configuration is one: {conflict}"));
                false
            }
            None => false,
        }
    }

    /// Returns true if a node may have the coordinator change something, which it has reached just now.
    pub(crate) fn may_change(&self, running: &Running) -> bool {
        if self.trusts_any_coordinator() {
            return true;
        }
        self.hear_of_coordinator(running);
        self.is_cleared(running)
    }

    /// Returns true if a node may pass on what the coordinator says of an epoch.
    pub(crate) fn may_pass_on(&self, running: &Running, epoch: Epoch) -> bool {
        if self.trusts_any_coordinator() {
            return true;
        }
        self.is_cleared(running) && epoch >= running.continuity.lock().floor
    }

    fn trusts_any_coordinator(&self) -> bool {
        self.setup.mistake == Some(Mistake::TrustsAnyCoordinator)
    }

    fn is_cleared(&self, running: &Running) -> bool {
        let newest = self.newest_known(running.node);
        let continuity = running.continuity.lock();
        continuity.trust.as_ref().is_some_and(|it| it.is_cleared(running.node, newest.as_ref()))
    }

    fn newest_known(&self, node: NodeId) -> Option<CohortConfig> {
        let cohort = crate::setup::COHORT;
        self.with_memory(node, |memory| memory.as_ref()?.known.configs.get(&cohort).cloned())
    }

    /// Has a node take what others say that they know, and bring the coordinator forward.
    fn settle(&self, running: &Running, line: Line, answers: &[(NodeId, Knowledge, Epoch)]) {
        let node = running.node;
        for (_, known, _) in answers {
            let merged = self.with_memory(node, |memory| match memory {
                Some(memory) => memory.known.merge(known).map(drop),
                None => Ok(()),
            });
            if let Err(conflict) = merged {
                self.trace.fail(format!("a configuration is one: {conflict}"));
            }
        }
        let Some(config) = self.newest_known(node) else { return };
        if self.coordinator.stated().line != line {
            return;
        }
        if let Some(known) =
            self.with_memory(node, |memory| memory.as_ref().map(|it| it.known.clone()))
        {
            self.bring_forward(&known);
        }
        let mut continuity = running.continuity.lock();
        let Continuity { trust: Some(trust), floor } = &mut *continuity else { return };
        let Some(asking) = trust.asking.as_mut().filter(|_| trust.line == line) else { return };
        let cohort = config.cohort;
        asking.note_promises(answers.iter().map(|(_, _, epoch)| (cohort, *epoch)));
        asking.note_promises([(cohort, promised(running))]);
        asking.answered.extend(answers.iter().map(|(node, ..)| *node));
        let answered = |it: &&NodeId| **it == node || asking.answered.contains(*it);
        let is_majority =
            config.replicas.iter().filter(answered).count() > config.replicas.len() / 2;
        if knows_more(config.protocol) == KnowsMore::SomeOfAMajority && is_majority {
            *floor = asking.promised.get(&cohort).copied().unwrap_or_default();
            if self.coordinator.bring_epoch_forward(*floor) {
                self.trace.note("forward", format_args!("to epoch {floor}"));
            }
            asking.raised.insert(cohort);
        }
        if asking.missing(node, &config).is_empty() {
            trust.asking = None;
            drop(continuity);
            let state = self.coordinator.stated();
            self.with_memory(node, |memory| {
                if let Some(memory) = memory {
                    (memory.line, memory.revision) = (state.line, state.revision);
                }
            });
        }
    }

    /// Returns the line that a node asks about, and whom it asks; `None` if it asks nothing.
    fn asks(&self, running: &Running) -> Option<(Line, BTreeSet<NodeId>)> {
        let continuity = running.continuity.lock();
        let trust = continuity.trust.as_ref()?;
        let asking = trust.asking.as_ref()?;
        let line = trust.line;
        let answered = asking.answered.clone();
        drop(continuity);
        let config = self.newest_known(running.node)?;
        let others = config.replicas.into_iter().filter(|it| *it != running.node);
        Some((line, others.filter(|it| !answered.contains(it)).collect()))
    }
}

/// Takes over a configuration that contradicts nothing that is known.
fn remember(known: &mut Knowledge, config: &CohortConfig) -> Result<(), String> {
    known.check(config).map_err(|conflict| conflict.to_string())?;
    known.take(config);
    Ok(())
}

/// Returns the newest epoch that a replica of Spinnaker has promised or acted in.
fn promised(running: &Running) -> Epoch {
    let promised = running.log.hard_state().and_then(promised_epoch).unwrap_or_default();
    promised.max(running.log.bounds().last.epoch)
}

/// Hears of the coordinator and asks those who may know more than it. Ends with the node.
pub(crate) async fn ask(world: Weak<World>, node: NodeId) {
    loop {
        sleep(ASK_EVERY).await;
        let Some((running, asked)) = begin(&world, node) else { return };
        let Some((line, nodes)) = asked else { continue };
        let mut answers = Vec::new();
        for other in nodes {
            let Some(way) = world.upgrade().map(|world| world.network.round_trip(node, other))
            else {
                return;
            };
            let Some(way) = way else { continue };
            sleep(way).await;
            let Some(world) = world.upgrade() else { return };
            answers.extend(world.answer(other));
        }
        let Some(world) = world.upgrade() else { return };
        if world.coordinator.reaches(node) {
            world.settle(&running, line, &answers);
        }
    }
}

/// What a node that asks begins with.
type Begun = (Arc<Running>, Option<(Line, BTreeSet<NodeId>)>);

fn begin(world: &Weak<World>, node: NodeId) -> Option<Begun> {
    let world = world.upgrade()?;
    let running = world.running(node)?;
    if world.coordinator.reaches(node) {
        world.hear_of_coordinator(&running);
    }
    let asks = world.asks(&running);
    Some((running, asks))
}

impl World {
    /// Returns what a node knows, if it runs and answers.
    fn answer(&self, node: NodeId) -> Option<(NodeId, Knowledge, Epoch)> {
        let running = self.running(node).filter(|running| running.process.runs())?;
        let known = self.with_memory(node, |memory| Some(memory.as_ref()?.known.clone()))?;
        Some((node, known, promised(&running)))
    }
}

impl Coordinator {
    pub(super) fn stated(&self) -> Stated {
        let inner = self.inner.lock();
        Stated { line: inner.line, revision: inner.revision, config: inner.kept.config.clone() }
    }

    fn bring_config_forward(&self, config: &CohortConfig) -> bool {
        let mut inner = self.inner.lock();
        let is_newer = config.version > inner.kept.config.version;
        if is_newer {
            inner.kept.config = config.clone();
            drop(inner);
            self.changed();
        }
        is_newer
    }

    fn bring_epoch_forward(&self, epoch: Epoch) -> bool {
        let is_newer = self.inner.lock().kept.elections.bring_forward(epoch);
        if is_newer {
            self.changed();
        }
        is_newer
    }
}
