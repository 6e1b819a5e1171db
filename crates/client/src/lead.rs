//! Handing the lead of a range over, asked for again until it is done.

use std::time::Duration;

use tokio::time::Instant;
use trireme_types::{CohortId, NodeId};

use crate::asking::Asking;
use crate::client::{Client, admin_error};
use crate::node::NodeHandle;
use crate::{ClientError, Place, RouteTable};

/// How long a node that has begun to hand over has for it, before it is asked again.
const HAND_OVER_PAUSE: Duration = Duration::from_secs(1);

impl Client {
    /// Has node `to` lead `cohort`, and returns true if it did already. The node that leads hands over to
    /// it once it has all that was acknowledged. Safe to repeat: nothing is changed where it leads.
    ///
    /// The node that leads may be asked again and again until the client's deadline; `note` is called with
    /// what stands in the way, whenever that is another thing than before. A cohort that serves no range,
    /// and a node that holds no replica of it, are refused at once ([`ClientError::Invalid`]).
    pub async fn transfer_leader(
        &self,
        cohort: CohortId,
        to: NodeId,
        note: impl FnMut(&str) + Send,
    ) -> Result<bool, ClientError> {
        let mut asking = Asking::new(self.options().deadline, note);
        let (mut asked_at, mut did_lead) = (None::<Instant>, true);
        loop {
            let may_ask = asked_at.is_none_or(|at| at.elapsed() >= HAND_OVER_PAUSE);
            let missing = match self.ask_to_hand_over(cohort, to, may_ask).await {
                Ok(Some(leader)) if leader == to => return Ok(did_lead),
                Ok(Some(_leader)) => {
                    if may_ask {
                        asked_at = Some(Instant::now());
                    }
                    format!("{to} does not lead cohort {cohort} yet")
                }
                Ok(None) => format!("no node leads cohort {cohort}"),
                Err(error @ ClientError::Invalid(_)) => return Err(error),
                Err(error) => error.to_string(),
            };
            did_lead = false;
            asking.pause(Place { cohort, node: Some(to) }, missing).await?;
        }
    }

    /// Returns the node that leads a cohort, which is asked to hand over, if it may be asked and is another
    /// one than `to`.
    async fn ask_to_hand_over(
        &self,
        cohort: CohortId,
        to: NodeId,
        may_ask: bool,
    ) -> Result<Option<NodeId>, ClientError> {
        let table = self.refresh_routes().await?;
        let leader = known_leader(&table, cohort, to)?;
        let Some(other) = leader.filter(|leader| may_ask && *leader != to) else {
            return Ok(leader);
        };
        let node = table.nodes.iter().find(|node| node.id == other).ok_or_else(|| {
            let place = Place { cohort, node: leader };
            ClientError::Unavailable { place, reason: "its address is not known".to_owned() }
        })?;
        let node = NodeHandle::new(&node.address, self.options_handle())?;
        let asked = node.transfer_leader(cohort.0, to.0).await;
        asked.map_err(|reason| admin_error(&node, reason))?;
        Ok(leader)
    }
}

/// Returns the node that leads a cohort, as far as is known, or why `to` never could.
fn known_leader(
    table: &RouteTable,
    cohort: CohortId,
    to: NodeId,
) -> Result<Option<NodeId>, ClientError> {
    let route = table
        .ranges
        .iter()
        .find(|route| route.cohort == cohort)
        .ok_or_else(|| ClientError::Invalid(format!("cohort {cohort} serves no range")))?;
    if !route.replicas.contains(&to) {
        let replicas: Vec<_> = route.replicas.iter().map(NodeId::to_string).collect();
        let replicas = replicas.join(", ");
        let reason = format!("{to} holds no replica of cohort {cohort}: {replicas} do");
        return Err(ClientError::Invalid(reason));
    }
    Ok(route.leader)
}
