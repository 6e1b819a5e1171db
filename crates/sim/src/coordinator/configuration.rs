//! PacificA's configuration manager: compare-and-set on the newest configuration.

use trireme_replication::pacifica::{Newest, Pacifica, Proposal};
use trireme_types::NodeId;

use super::{Carried, Coordinator, Recipe};

impl Recipe for Pacifica {
    fn carry_out(
        coordinator: &Coordinator,
        _node: NodeId,
        Proposal(proposed): Proposal,
    ) -> Carried<Newest> {
        let mut inner = coordinator.inner.lock();
        if proposed.version == inner.config.version + 1 {
            inner.config = proposed;
        }
        Carried::Answered(Newest(inner.config.clone()))
    }

    fn view(coordinator: &Coordinator, _node: NodeId) -> Newest {
        Newest(coordinator.config())
    }
}
