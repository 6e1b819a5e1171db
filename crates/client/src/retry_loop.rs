//! From an operation to its answer, over as many tries as its deadline allows.
//!
//! Each try goes to the leader of the key's cohort, or to any replica for a timeline read. What
//! becomes of it decides the next:
//!
//! | a try ends with | the request | next |
//! |---|---|---|
//! | an answer | is done | |
//! | NOT_LEADER | was not begun | the leader that is named; else new routes |
//! | STALE_ROUTE, UNAVAILABLE, EXPIRED | was not begun | a pause and new routes |
//! | BUSY | was not begun | the pause that is asked for |
//! | a node that cannot be reached | was not sent | new routes |
//! | SESSION_GONE | was not begun | a new session; if it was in doubt before, it stays so |
//! | a broken stream, AMBIGUOUS, INTERNAL, no answer | is in doubt | a pause and new routes |
//! | a timeline read's older state than one seen before | is not done | the leader, then the others |
//! | a timeline read's state of unknown age | may be done | the others; it counts if they say no more |
//!
//! A write that is in doubt stays so until it is answered, whatever is refused later: an earlier
//! copy may still be under way. It is sent again under its first name, so that the cohort applies
//! it once and answers every copy alike (C1). If the deadline passes first, the caller
//! gets an error that the outcome is unknown.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use trireme_proto::v1::{ErrorCode, response};
use trireme_proto::{convert, v1};
use trireme_types::{CohortId, Lsn, NodeId};

use crate::call::CallError;
use crate::node::NodeHandle;
use crate::request::Request;
use crate::routes::{CachedRoute, Preference, Routes};
use crate::session::WriteSlot;
use crate::{ClientError, ClientOptions, Place, backoff};

/// How many redirects in a row are followed without a pause: two nodes with outdated knowledge
/// may each take the other for the leader.
const REDIRECTS_AT_ONCE: u32 = 2;

/// How many new sessions a write is given without a pause. One is enough, unless the cohort's clock
/// runs on far between two tries.
const SESSIONS_AT_ONCE: u32 = 2;

/// Performs the request, or returns why that could not be done before `deadline`.
pub(crate) async fn perform(
    routes: &Routes,
    options: &ClientOptions,
    turn: usize,
    request: &Request,
    deadline: Instant,
) -> Result<response::Result, ClientError> {
    request.validate()?;
    let mut retry_loop = RetryLoop {
        routes,
        options,
        request,
        deadline,
        turn,
        slot: None,
        in_doubt: false,
        attempt_timeout: options.attempt_timeout,
        failures: 0,
        redirects: 0,
        suspect: None,
        last: None,
        told: None,
        sessions: 0,
        timeline: Timeline::default(),
    };
    retry_loop.run().await
}

struct RetryLoop<'a> {
    routes: &'a Routes,
    options: &'a ClientOptions,
    request: &'a Request,
    deadline: Instant,
    /// Which replica is asked where any will do; the next one with each try.
    turn: usize,
    /// The write's name, and the cohort that it is a name in.
    slot: Option<(CohortId, WriteSlot)>,
    /// Whether a copy of the write may have reached a server that did not refuse it.
    in_doubt: bool,
    /// How long to wait for the next answer.
    attempt_timeout: Duration,
    /// Tries in a row that ended without an answer or a redirect.
    failures: u32,
    /// Redirects in a row.
    redirects: u32,
    /// The leader that the last try failed at. Another replica is asked next if no one knows a
    /// newer leader.
    suspect: Option<NodeId>,
    /// Where the last try went, and how it ended if it was not by silence.
    last: Option<(Place, Option<String>)>,
    /// What a replica last said of why its cohort does not serve: it knows better than a node that
    /// cannot be reached, or that does not lead.
    told: Option<(Place, String)>,
    /// New sessions that the write was given.
    sessions: u32,
    timeline: Timeline,
}

/// What a timeline read has met.
#[derive(Default)]
struct Timeline {
    /// The newest state that this client had been answered from, by the cohort, when the read
    /// began: an earlier one would have its reads go back.
    least: Option<(CohortId, Lsn)>,
    /// Replicas that were asked.
    asked: usize,
    /// A replica's state was too old: the leader's is the best.
    wants_leader: bool,
    /// An answer from a state of unknown age, and that state, for want of a better one.
    ageless: Option<(response::Result, Lsn)>,
}

/// What to do after a try.
enum Next {
    /// Nothing: the request is done.
    Done(response::Result),
    /// Give up: no further try can end better.
    GiveUp(ClientError),
    /// Try again at once.
    Again,
    /// Try again after a pause.
    Pause(Duration),
    /// Try again after a pause that grows, with new routes.
    Reroute,
}

impl RetryLoop<'_> {
    async fn run(&mut self) -> Result<response::Result, ClientError> {
        loop {
            let (route, generation) = self.routes.find(self.request.position());
            self.begin_timeline(&route);
            let write_id = self.name(&route).await?;
            let next = match self.choose(&route) {
                Some((id, node)) => {
                    let place = Place { cohort: route.descriptor.cohort, node: Some(id) };
                    self.attempt(&route, place, &node, write_id).await
                }
                None => {
                    let place = Place { cohort: route.descriptor.cohort, node: None };
                    self.last = Some((place, Some("no address of a replica is known".to_owned())));
                    Next::Reroute
                }
            };
            if self.timeline.asked >= route.replicas.len()
                && !matches!(next, Next::Done(_))
                && let Some((answer, applied)) = self.timeline.ageless.take()
            {
                // No replica knows how old its state is, or can be asked.
                route.seen.raise(applied);
                return Ok(answer);
            }
            match next {
                Next::Done(answer) => return Ok(answer),
                Next::GiveUp(error) => return Err(error),
                Next::Again => self.check_deadline()?,
                Next::Pause(pause) => self.pause(pause).await?,
                Next::Reroute => self.reroute(&route, generation).await?,
            }
        }
    }

    /// Returns the name that the write is to be sent under; `None` for a read. A write that is in
    /// doubt keeps its name; one that is not takes a new one in another cohort.
    async fn name(&mut self, route: &CachedRoute) -> Result<Option<v1::WriteId>, ClientError> {
        if !self.request.is_write() {
            return Ok(None);
        }
        let cohort = route.descriptor.cohort;
        if let Some((named, slot)) = &self.slot
            && (*named == cohort || self.in_doubt)
        {
            return Ok(Some(slot.write_id()));
        }
        self.slot = None;
        let session = route.sessions.current();
        let slot = match session.try_begin() {
            Some(slot) => slot,
            None => match timeout_at(self.deadline, session.begin()).await {
                Ok(slot) => slot,
                Err(_elapsed) => {
                    self.last.get_or_insert((Place { cohort, node: None }, None));
                    return Err(self.out_of_time());
                }
            },
        };
        let id = slot.write_id();
        self.slot = Some((cohort, slot));
        Ok(Some(id))
    }

    /// Returns the node to ask.
    fn choose(&mut self, route: &CachedRoute) -> Option<(NodeId, Arc<NodeHandle>)> {
        let reachable = |id: NodeId| Some((id, self.routes.node(id)?));
        let suspect = self.suspect.take();
        let wants_leader =
            !self.request.suits_any_replica() || std::mem::take(&mut self.timeline.wants_leader);
        if wants_leader
            && let Some(leader) = route.leader()
            && (suspect != Some(leader) || route.replicas.len() < 2)
            && let Some(chosen) = reachable(leader)
        {
            return Some(chosen);
        }
        let turn = self.turn;
        self.turn = self.turn.wrapping_add(1);
        let count = route.replicas.len();
        let mut others = (0..count)
            .map(|step| route.replicas[(turn % count + step) % count])
            .filter(|id| suspect != Some(*id) || count == 1)
            .filter_map(reachable);
        let first = others.next()?;
        if !first.1.is_closed() {
            return Some(first);
        }
        Some(others.find(|(_, node)| !node.is_closed()).unwrap_or(first))
    }

    /// Asks one node once.
    async fn attempt(
        &mut self,
        route: &CachedRoute,
        place: Place,
        node: &NodeHandle,
        write_id: Option<v1::WriteId>,
    ) -> Next {
        let id = v1::Route { cohort: route.descriptor.cohort.0, epoch: route.descriptor.epoch };
        let operation = self.request.operation(id, write_id);
        let leader = route.leader().filter(|leader| Some(*leader) == place.node);
        let call = {
            // Pinned here, since it is large to move.
            let until = pin!(self.late_or_replaced(route, leader));
            node.call(operation, self.deadline, until).await
        };
        match call {
            Ok(Some(response::Result::Error(error))) => self.refused(route, place, error),
            Ok(Some(answer)) if self.request.is_answered_by(&answer) => {
                self.answered(route, place, answer)
            }
            Ok(_) => self.malformed(place, "it does not belong to the request"),
            Err(CallError::NotSent(reason)) => self.failed(place, reason, false),
            Err(CallError::Lost(reason)) => self.failed(place, reason, true),
            Err(CallError::Late { sent }) => {
                self.attempt_timeout = if leader.is_some_and(|leader| self.is_replaced(leader)) {
                    self.options.attempt_timeout
                } else {
                    self.attempt_timeout.saturating_mul(2)
                };
                self.in_doubt |= sent && self.request.is_write();
                self.suspect = place.node;
                // What the deadline cuts short says less than why the one before it failed.
                let is_cut_short = Instant::now() >= self.deadline;
                let has_reason = |(_, reason): &(Place, Option<String>)| reason.is_some();
                if !is_cut_short || !self.last.as_ref().is_some_and(has_reason) {
                    self.last = Some((place, None));
                }
                Next::Reroute
            }
        }
    }

    /// Completes when an answer is waited for no longer: when it is late, or as soon as `leader`, if
    /// it was asked, is known to be replaced. A silent leader is asked again less and less often, which
    /// spares one that is slow; whether it was replaced is looked up again and again meanwhile.
    async fn late_or_replaced(&self, route: &CachedRoute, leader: Option<NodeId>) {
        let late = self.deadline.min(Instant::now() + self.attempt_timeout);
        let Some(leader) = leader else { return sleep_until(late).await };
        loop {
            let look = Instant::now() + self.options.attempt_timeout;
            if look >= late {
                return sleep_until(late).await;
            }
            sleep_until(look).await;
            let preference = Preference { first: &route.replicas, last: Some(leader) };
            let looked = self.routes.refresh(self.routes.generation(), preference);
            // Without newer routes there is nothing to go by but time.
            let _known = timeout_at(late, looked).await;
            if self.is_replaced(leader) {
                return;
            }
        }
    }

    /// Returns true if another node than this one is known to lead.
    fn is_replaced(&self, leader: NodeId) -> bool {
        let (route, _) = self.routes.find(self.request.position());
        route.leader().is_some_and(|newer| newer != leader)
    }

    /// Keeps what a timeline read must not go back behind, as of when it begins.
    fn begin_timeline(&mut self, route: &CachedRoute) {
        let cohort = route.descriptor.cohort;
        if self.timeline.least.is_none_or(|(kept, _)| kept != cohort) {
            self.timeline = Timeline::default();
            self.timeline.least = Some((cohort, route.seen.get()));
        }
    }

    /// Takes an answer, unless it is a timeline read's that another replica can do better.
    fn answered(&mut self, route: &CachedRoute, place: Place, answer: response::Result) -> Next {
        let freshness = match &answer {
            response::Result::Get(got) => got.freshness.as_ref(),
            response::Result::Scan(page) => page.freshness.as_ref(),
            _ => None,
        };
        let Some(v1::Freshness { applied: Some(applied), age_ms }) = freshness else {
            return Next::Done(answer);
        };
        let (applied, knows_age) = (Lsn::from(*applied), age_ms.is_some());
        let least = self.timeline.least.map_or(Lsn::ZERO, |(_, least)| least);
        self.timeline.asked += 1;
        if applied >= least && knows_age {
            route.seen.raise(applied);
            return Next::Done(answer);
        }
        self.suspect = place.node;
        if applied >= least {
            self.last = Some((place, Some("it does not know how old its state is".to_owned())));
            self.timeline.ageless = Some((answer, applied));
        } else {
            let reason = format!("its state {applied} is older than one read before, {least}");
            self.last = Some((place, Some(reason)));
            self.timeline.wants_leader = self.timeline.asked < route.replicas.len();
        }
        // All were asked: what they lack takes them a while.
        if self.timeline.asked < route.replicas.len() { Next::Again } else { Next::Reroute }
    }

    fn refused(&mut self, route: &CachedRoute, place: Place, error: v1::Error) -> Next {
        let said = |error: v1::Error| format!("{}: {}", error.code().as_str_name(), error.message);
        match error.code() {
            ErrorCode::NotLeader => self.redirected(route, place, error),
            ErrorCode::Busy => {
                let asked = Duration::from_millis(error.retry_after_ms);
                self.told = Some((place, said(error)));
                Next::Pause(backoff::lengthened(asked.max(self.options.backoff_min)))
            }
            ErrorCode::StaleRoute => {
                self.last = Some((place, Some(said(error))));
                Next::Reroute
            }
            ErrorCode::Unavailable | ErrorCode::Expired => {
                let reason = said(error);
                self.told = Some((place, reason.clone()));
                self.failed(place, reason, false)
            }
            ErrorCode::Ambiguous | ErrorCode::Internal | ErrorCode::Unspecified => {
                let reason = said(error);
                self.told = Some((place, reason.clone()));
                self.failed(place, reason, true)
            }
            ErrorCode::SessionGone if self.in_doubt => {
                Next::GiveUp(ClientError::Ambiguous { place, reason: said(error) })
            }
            ErrorCode::SessionGone => {
                if let Some((_, gone)) = self.slot.take() {
                    route.sessions.renew(&gone, error.session_start);
                }
                self.sessions += 1;
                self.last = Some((place, Some(said(error))));
                if self.sessions <= SESSIONS_AT_ONCE { Next::Again } else { Next::Reroute }
            }
            ErrorCode::Invalid if self.in_doubt => {
                Next::GiveUp(ClientError::Ambiguous { place, reason: said(error) })
            }
            ErrorCode::Invalid => Next::GiveUp(ClientError::Invalid(error.message)),
        }
    }

    fn redirected(&mut self, route: &CachedRoute, place: Place, error: v1::Error) -> Next {
        let refuser = place.node.unwrap_or_default();
        let leader = error.leader.as_ref().and_then(|leader| {
            let id = convert::node_id(leader.id).filter(|id| *id != refuser)?;
            Some((id, leader.address.as_str()))
        });
        self.redirects += 1;
        let next = match leader {
            Some((id, address)) => {
                self.routes.learn(id, address);
                route.set_leader(id);
                if self.redirects <= REDIRECTS_AT_ONCE { Next::Again } else { Next::Reroute }
            }
            None => {
                route.unset_leader(refuser);
                self.suspect = Some(refuser);
                Next::Reroute
            }
        };
        self.last = Some((place, Some(format!("it does not lead: {}", error.message))));
        next
    }

    fn failed(&mut self, place: Place, reason: String, sent: bool) -> Next {
        self.in_doubt |= sent && self.request.is_write();
        self.suspect = place.node;
        self.last = Some((place, Some(reason)));
        Next::Reroute
    }

    fn malformed(&mut self, place: Place, reason: &str) -> Next {
        let reason = reason.to_owned();
        Next::GiveUp(if self.request.is_write() {
            ClientError::Ambiguous { place, reason: format!("a meaningless answer: {reason}") }
        } else {
            ClientError::Malformed { place, reason }
        })
    }

    /// Pauses, longer with each failure in a row, and sees to it that the routes are newer than
    /// those that failed. The first time there is no pause: most failures are of one node, and
    /// others know better already.
    async fn reroute(&mut self, route: &CachedRoute, generation: u64) -> Result<(), ClientError> {
        let ClientOptions { backoff_min, backoff_max, .. } = *self.options;
        self.pause(backoff::pause(self.failures, backoff_min, backoff_max)).await?;
        self.failures += 1;
        self.redirects = 0;
        let last = self.suspect.or_else(|| self.last.as_ref().and_then(|(place, _)| place.node));
        let preference = Preference { first: &route.replicas, last };
        match timeout_at(self.deadline, self.routes.refresh(generation, preference)).await {
            Ok(Ok(())) => {}
            // The next try says what is wrong, with the routes that there are.
            Ok(Err(reason)) => tracing::debug!(reason, "no node answers with its routes"),
            Err(_elapsed) => return Err(self.out_of_time()),
        }
        self.check_deadline()
    }

    async fn pause(&self, pause: Duration) -> Result<(), ClientError> {
        if !pause.is_zero() {
            sleep_until(self.deadline.min(Instant::now() + pause)).await;
        }
        self.check_deadline()
    }

    fn check_deadline(&self) -> Result<(), ClientError> {
        if Instant::now() < self.deadline { Ok(()) } else { Err(self.out_of_time()) }
    }

    fn out_of_time(&self) -> ClientError {
        let nowhere = Place { cohort: CohortId::default(), node: None };
        let told = self.told.clone().map(|(place, reason)| (place, Some(reason)));
        let (place, reason) = told.or_else(|| self.last.clone()).unwrap_or((nowhere, None));
        match reason {
            reason if self.in_doubt => {
                let reason = reason.unwrap_or_else(|| "no answer before the deadline".to_owned());
                ClientError::Ambiguous { place, reason }
            }
            Some(reason) => ClientError::Unavailable { place, reason },
            None => ClientError::DeadlineExceeded { place },
        }
    }
}
