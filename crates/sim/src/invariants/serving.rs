//! No replica answers a strong read under its lease once another one has in a newer epoch: PacificA's
//! Primary Invariant (§2.3: at any time at most one replica takes itself for the primary), which holds
//! for Spinnaker's leases too. A Raft leader holds no lease: it asks a majority for each read, whose
//! answer may come when another leads already.

use trireme_types::{Epoch, NodeId};

/// Who answered a strong read in the newest epoch.
#[derive(Default)]
pub(super) struct Serving {
    newest: Option<(Epoch, NodeId)>,
}

impl Serving {
    /// Judges that a node's permit to read was valid now, which led in `epoch`.
    pub(super) fn look(&mut self, node: NodeId, epoch: Epoch) -> Result<(), String> {
        if let Some((newest, other)) = self.newest
            && other != node
            && epoch <= newest
        {
            return Err(format!(
                "one serves at a time: {node} reads in epoch {epoch}, and {other} has in {newest}"
            ));
        }
        self.newest = self.newest.max(Some((epoch, node)));
        Ok(())
    }
}
