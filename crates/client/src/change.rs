//! Changes of ranges, asked for again until they are done.

use bytes::Bytes;
use trireme_proto::v1;
use trireme_types::{CohortId, NodeId, Protocol, check_split_key};

use crate::asking::Asking;
use crate::client::{Client, admin_answer};
use crate::node::NodeHandle;
use crate::{ClientError, Place, RouteTable};

/// A border between two ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// The cohort whose range ends there.
    pub below: CohortId,
    /// The cohort whose range begins there.
    pub above: CohortId,
    /// Whether the border was there before it was asked for.
    pub was_there: bool,
}

/// What is to be done, by the routes as they are.
enum Wanted {
    /// This.
    Change(v1::ChangeRangeRequest),
    /// Nothing: these cohorts serve the range as it should be.
    Nothing(Vec<CohortId>),
}

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
        let request = v1::ChangeRangeRequest { cohort: cohort.0, change: Some(change) };
        let asking = Asking::new(self.options().deadline, note);
        let changed = self.change_range(|_: &RouteTable| Wanted::Change(request.clone()), asking);
        one_of(cohort, &changed.await?)
    }

    /// Has node `to` hold a replica of the range of `cohort` in place of node `from`, and returns the cohort
    /// that serves it then, once a node leads that. Node `to` is brought up to date first, and counts
    /// nowhere until it has been; then the cohort ends, and the other one goes on from exactly the state
    /// that it ended with. Safe to repeat, also under the id of the cohort that has ended.
    ///
    /// Every node may be asked again and again, until nothing has changed for as long as the client's
    /// deadline; `note` is called with what stands in the way, whenever that is another thing than before.
    pub async fn move_replica(
        &self,
        cohort: CohortId,
        from: NodeId,
        to: NodeId,
        note: impl FnMut(&str) + Send,
    ) -> Result<CohortId, ClientError> {
        let change =
            v1::change_range_request::Change::Move(v1::MoveReplica { from: from.0, to: to.0 });
        let request = v1::ChangeRangeRequest { cohort: cohort.0, change: Some(change) };
        let asking = Asking::until_nothing_changes(self.options().deadline, note);
        let changed = self.change_range(|_: &RouteTable| Wanted::Change(request.clone()), asking);
        one_of(cohort, &changed.await?)
    }

    /// Cuts the range that holds `key` in two, of which the upper one begins at the key, and returns the two
    /// cohorts at that border, once a node leads each of them. The cohort of the range ends, and two others
    /// go on from exactly the state that it ended with, each on its part of the rows. Safe to repeat:
    /// nothing is changed where there is a border at the key already.
    ///
    /// Every node may be asked again and again until the client's deadline; `note` is called with what
    /// stands in the way, whenever that is another thing than before.
    pub async fn split_range(
        &self,
        key: impl Into<Bytes>,
        note: impl FnMut(&str) + Send,
    ) -> Result<Split, ClientError> {
        let key: Bytes = key.into();
        check_split_key(&key).map_err(|error| ClientError::Invalid(error.to_string()))?;
        let mut was_there = true;
        let wanted = |table: &RouteTable| {
            let ranges = &table.ranges;
            let above = ranges.partition_point(|route| route.range.start <= key).max(1) - 1;
            if above > 0 && ranges[above].range.start == key {
                return Wanted::Nothing(vec![ranges[above - 1].cohort, ranges[above].cohort]);
            }
            was_there = false;
            let change = v1::change_range_request::Change::Split(key.clone());
            let cohort = ranges[above].cohort.0;
            Wanted::Change(v1::ChangeRangeRequest { cohort, change: Some(change) })
        };
        let asking = Asking::new(self.options().deadline, note);
        match self.change_range(wanted, asking).await?[..] {
            [below, above] => Ok(Split { below, above, was_there }),
            _ => {
                let place = Place { cohort: CohortId::default(), node: None };
                let reason = "no border is between two cohorts".to_owned();
                Err(ClientError::Malformed { place, reason })
            }
        }
    }

    /// Has the two ranges be one that meet at `border`, and returns the cohort that serves that key then, once
    /// a node leads it, and whether there was no border there already. Both cohorts end, and the other one
    /// goes on from exactly the states that they ended with, by the protocol of the lower one. Their
    /// replicas must be on the same nodes. Safe to repeat.
    ///
    /// Every node may be asked again and again until the client's deadline; `note` is called with what
    /// stands in the way, whenever that is another thing than before.
    pub async fn merge_ranges(
        &self,
        border: impl Into<Bytes>,
        note: impl FnMut(&str) + Send,
    ) -> Result<(CohortId, bool), ClientError> {
        let border: Bytes = border.into();
        check_split_key(&border).map_err(|error| ClientError::Invalid(error.to_string()))?;
        let (mut were_one, mut lower) = (true, CohortId::default());
        let wanted = |table: &RouteTable| {
            let ranges = &table.ranges;
            let above = ranges.partition_point(|route| route.range.start <= border).max(1) - 1;
            if above == 0 || ranges[above].range.start != border {
                return Wanted::Nothing(vec![ranges[above].cohort]);
            }
            were_one = false;
            lower = ranges[above - 1].cohort;
            let change = v1::change_range_request::Change::Merge(border.clone());
            Wanted::Change(v1::ChangeRangeRequest { cohort: lower.0, change: Some(change) })
        };
        let asking = Asking::new(self.options().deadline, note);
        let changed = self.change_range(wanted, asking).await?;
        Ok((one_of(lower, &changed)?, were_one))
    }

    async fn change_range(
        &self,
        mut wanted: impl FnMut(&RouteTable) -> Wanted + Send,
        mut asking: Asking<impl FnMut(&str) + Send>,
    ) -> Result<Vec<CohortId>, ClientError> {
        let mut done = None;
        let mut cohort = CohortId::default();
        loop {
            let missing = match &done {
                None => match self.ask_to_change(&mut wanted, &mut cohort).await {
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
            asking.pause(Place { cohort, node: None }, missing).await?;
        }
    }

    /// Asks the node that leads the cohort for what is wanted by the newest routes, or any other one where
    /// none is known to. Notes which cohort that is.
    async fn ask_to_change(
        &self,
        wanted: &mut (impl FnMut(&RouteTable) -> Wanted + Send),
        cohort: &mut CohortId,
    ) -> Result<Vec<CohortId>, ClientError> {
        let table = self.refresh_routes().await?;
        let request = match wanted(&table) {
            Wanted::Change(request) => request,
            Wanted::Nothing(cohorts) => return Ok(cohorts),
        };
        *cohort = CohortId(request.cohort);
        let route = table.ranges.iter().find(|route| route.cohort == *cohort);
        let leader = route.and_then(|route| route.leader);
        let is_wanted = |id| leader.is_none_or(|leader| leader == id);
        let mut nodes = table.nodes.iter().filter(|node| node.alive && is_wanted(node.id));
        let node = nodes.next().ok_or_else(|| {
            let place = Place { cohort: *cohort, node: leader };
            ClientError::Unavailable { place, reason: "no node can be asked".to_owned() }
        })?;
        let node = NodeHandle::new(&node.address, self.options_handle())?;
        let cohorts = admin_answer(&node, node.change_range(request).await)?;
        Ok(cohorts.into_iter().map(CohortId).collect())
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

/// Returns the cohort that serves the range of what was asked for as `cohort`.
fn one_of(cohort: CohortId, cohorts: &[CohortId]) -> Result<CohortId, ClientError> {
    cohorts.first().copied().ok_or_else(|| {
        let place = Place { cohort, node: None };
        ClientError::Malformed { place, reason: "no cohort serves the range".to_owned() }
    })
}
