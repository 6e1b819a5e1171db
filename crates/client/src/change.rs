//! Changes of ranges, asked for again until they are done.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::Code;
use trireme_proto::v1;
use trireme_types::{CohortId, Protocol};

use crate::client::{Client, admin_error};
use crate::node::NodeHandle;
use crate::{ClientError, Place};

/// How long to wait before a node is asked again.
const PAUSE: Duration = Duration::from_millis(50);

impl Client {
    /// Has the range of `cohort` replicated by another protocol, and returns the cohort that serves it
    /// then, once a node leads that. The cohort ends, and the other one goes on from exactly the state
    /// that it ended with. Safe to repeat, also under the id of the cohort that has ended.
    ///
    /// Every node may be asked again and again until the client's deadline; `note` is called with what
    /// stands in the way, whenever that is another thing than before.
    pub async fn set_protocol(
        &self,
        cohort: CohortId,
        protocol: Protocol,
        note: impl FnMut(&str) + Send,
    ) -> Result<CohortId, ClientError> {
        let change = v1::change_range_request::Change::Protocol(protocol.name().to_owned());
        let cohorts = self.change_range(cohort, change, note).await?;
        cohorts.first().copied().ok_or_else(|| {
            let place = Place { cohort, node: None };
            ClientError::Malformed { place, reason: "no cohort serves the range".to_owned() }
        })
    }

    async fn change_range(
        &self,
        cohort: CohortId,
        change: v1::change_range_request::Change,
        mut note: impl FnMut(&str) + Send,
    ) -> Result<Vec<CohortId>, ClientError> {
        let until = Instant::now() + self.options().deadline;
        let request = v1::ChangeRangeRequest { cohort: cohort.0, change: Some(change) };
        let mut noted = None;
        let mut done = None;
        loop {
            let missing = match &done {
                None => match self.ask_to_change(&request).await {
                    Ok(cohorts) => {
                        done = Some(cohorts);
                        continue;
                    }
                    Err(error @ ClientError::Invalid(_)) => return Err(error),
                    Err(error) => error.to_string(),
                },
                Some(cohorts) => match self.unserved(cohorts).await {
                    Ok(None) => return Ok(cohorts.clone()),
                    Ok(Some(cohort)) => format!("no node leads cohort {cohort} yet"),
                    Err(error) => error.to_string(),
                },
            };
            if Instant::now() >= until {
                let place = Place { cohort, node: None };
                return Err(ClientError::Unavailable { place, reason: missing });
            }
            if noted.as_ref() != Some(&missing) {
                note(&missing);
                noted = Some(missing);
            }
            sleep(PAUSE).await;
        }
    }

    /// Asks the node that leads the cohort, or any other one where none is known to.
    async fn ask_to_change(
        &self,
        request: &v1::ChangeRangeRequest,
    ) -> Result<Vec<CohortId>, ClientError> {
        let table = self.refresh_routes().await?;
        let route = table.ranges.iter().find(|route| route.cohort.0 == request.cohort);
        let leader = route.and_then(|route| route.leader);
        let is_wanted = |id| leader.is_none_or(|leader| leader == id);
        let mut nodes = table.nodes.iter().filter(|node| node.alive && is_wanted(node.id));
        let node = nodes.next().ok_or_else(|| {
            let place = Place { cohort: CohortId(request.cohort), node: leader };
            ClientError::Unavailable { place, reason: "no node can be asked".to_owned() }
        })?;
        let node = NodeHandle::new(&node.address, self.options_handle())?;
        match node.change_range(request.clone()).await {
            Ok(cohorts) => Ok(cohorts.into_iter().map(CohortId).collect()),
            Err((Code::InvalidArgument, reason)) => Err(ClientError::Invalid(reason)),
            Err((_, reason)) => Err(admin_error(&node, reason)),
        }
    }

    /// Returns one of the cohorts that no node leads.
    async fn unserved(&self, cohorts: &[CohortId]) -> Result<Option<CohortId>, ClientError> {
        let table = self.refresh_routes().await?;
        let is_led = |cohort: &CohortId| {
            table.ranges.iter().any(|route| route.cohort == *cohort && route.leader.is_some())
        };
        Ok(cohorts.iter().copied().find(|cohort| !is_led(cohort)))
    }
}
