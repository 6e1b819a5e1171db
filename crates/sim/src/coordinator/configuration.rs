//! PacificA's configuration manager: compare-and-set on the newest configuration.

use trireme_replication::pacifica::{Newest, Pacifica, Proposal};
use trireme_types::{Epoch, NodeId};

use super::{Carried, Coordinator, Recipe};
use crate::mistake::Mistake;
use crate::world::World;

impl Recipe for Pacifica {
    fn carry_out(
        coordinator: &Coordinator,
        node: NodeId,
        Proposal(proposed): Proposal,
    ) -> Carried<Newest> {
        let mut inner = coordinator.inner.lock();
        if proposed.version == inner.kept.config.version + 1 {
            inner.kept.config = proposed;
        }
        drop(inner);
        Carried::Answered(Self::view(coordinator, node))
    }

    fn epoch_of(_newest: &Newest) -> Epoch {
        Epoch::MAX
    }

    fn is_remembered(world: &World, node: NodeId, Newest(config): &Newest) -> bool {
        if world.setup.mistake == Some(Mistake::TrustsAnyCoordinator) {
            world.may_act_in(config);
            return true;
        }
        world.remember_config(node, config)
    }

    fn view(coordinator: &Coordinator, node: NodeId) -> Newest {
        let inner = coordinator.inner.lock();
        let mut config = inner.kept.config.clone();
        if inner.each_wins && config.replicas.contains(&node) {
            config.replicas.sort_by_key(|replica| *replica != node);
        }
        Newest(config)
    }
}
