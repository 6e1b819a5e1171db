//! Cohorts that rest, and the pulses that two nodes exchange for all of them.
//!
//! # Why
//!
//! A leader sends each follower a beacon ten times a second, and each answers. Of a thousand ranges
//! of which nothing is asked that takes half of a core. So a cohort in which nothing happens comes to
//! *rest*: its replicas do nothing, and their nodes do it for all cohorts at once. Every beacon
//! interval, a node that leads cohorts at rest sends each other node that follows one *pulse*, which
//! stands for a beacon to each of those followers, and its answer for their acknowledgements.
//!
//! # What a pulse stands for
//!
//! Nothing is different for the protocols. Before a replica handles anything, its driver
//! hands it what it has missed, with the time at which that came (`Learnt`): a follower the newest
//! beacon, a leader the newest acknowledgement of each follower. What a replica would have been sent
//! in between is lost, as far as it knows; each beacon is newer than the ones before it. And no pulse
//! is acknowledged for a follower from the moment at which it begins to handle something: what it
//! does then may be to help another leader.
//!
//! That holds because a cohort rests under [`Terms`], its epoch and its newest entry, on which all of its
//! replicas agree: everything is committed, on all disks and applied, no caller waits, no replica is
//! missing, and the leader serves. Whatever changes the terms ends the rest.
//!
//! # How a cohort comes to rest, and wakes
//!
//! ```text
//!   leader's node                                            follower's node
//!   quiet for LEADER_QUIET  ── Pulse{cohort rests} ────────►  quiet for FOLLOWER_QUIET: it rests
//!   all of them do: it rests ◄─ PulseAnswer ────────────────
//!   something happens       ── Pulse{cohort rests no more} ►  wakes
//!   wakes                   ◄─ PulseAnswer{awake} ──────────  something happens
//! ```
//!
//! Changes are numbered, and sent until they are acknowledged. When a node has not answered for half a
//! lease, or no pulse has come for as long, all cohorts of the pair wake, and go on as if they had never
//! rested: with leases and promises that count from the last pulse. A replica also wakes now and then
//! (`REST_MAX`), so that one whose task hangs is noticed though nothing is asked of it (P14).
//!
//! A node that knows no pulses answers none, and its cohorts do not rest.

mod pairs;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Notify;
use tokio::time::Instant;
use trireme_proto::v1;
use trireme_proto::v1::pulse_message::Body;
use trireme_types::{CohortId, Lsn, NodeId, Timing};

use self::pairs::Pairs;
use crate::core::{Moment, Rest, Terms};
use crate::simulation::{self, ClockRate};
use crate::streaming::deliberate_faults;
use crate::transport::{Lane, Transport};

/// In place of a cohort, in the messages that carry pulses.
pub const PULSE_COHORT: CohortId = CohortId(u64::MAX);

/// For how many beacon intervals nothing must have happened in a cohort before its leader has it rest.
/// More than a follower waits, so that it is ready by then.
const LEADER_QUIET: u32 = 10;

/// For how many beacon intervals nothing must have happened in a replica that follows before it may rest.
const FOLLOWER_QUIET: u32 = 5;

/// For how long a cohort rests at the least before its leader has it show that it goes on; some of them
/// as much as twice as long, so that not all do so at once. For a second it is as busy as one that does not
/// rest, which is a sixtieth of the time or less.
const REST_MAX: Duration = Duration::from_secs(60);

/// By which part of a lease a node may be silent before the cohorts that rest with it wake: there is time
/// for several pulses, and for the replicas to find out by themselves before any lease ends.
const SILENCE_DIVISOR: u32 = 2;

deliberate_faults! {
    /// The mistakes that naive pulses make, each off: with the feature `deliberate-faults` a test can
    /// switch one on.
    PulseFaults {
        /// A lease counts from when the answer to a pulse came, and not from when the pulse was sent
        /// (SPIN-10, PAC-20).
        leases_from_answers,
        /// A follower that wakes does not learn what was acknowledged for it (SPIN-11, PAC-22).
        forgets_pulses,
        /// A pulse is acknowledged for replicas that do not rest.
        acknowledges_for_all,
    }
}

/// What a replica has missed at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Learnt {
    /// A leader: when the newest beacon was sent that each follower has acknowledged.
    Supported(Vec<(NodeId, Instant)>),
    /// A follower: the newest beacon.
    Heard {
        leader: NodeId,
        terms: Terms,
        /// When it came.
        received: Instant,
        /// When it was sent, on the leader's clock.
        sent: Moment,
        /// When it was sent, on this node's clock; `None` if that is not known, or if not all followers had
        /// shown by then that they rest.
        sent_here: Option<Moment>,
    },
}

/// The pulses of one node, and which of its replicas rest.
pub struct Pulses {
    timing: Timing,
    transport: Arc<dyn Transport>,
    /// When the node's clock began, and how it runs.
    start: Instant,
    rate: ClockRate,
    state: Mutex<State>,
}

struct State {
    pairs: Pairs,
    /// What wakes the replica of each cohort.
    alarms: BTreeMap<CohortId, Arc<Notify>>,
}

impl Pulses {
    /// Begins to exchange pulses over `transport` every beacon interval, until it is dropped. To be
    /// called within the runtime that the replicas run on. `faults` are mistakes to make, so that
    /// tests can show that they would be noticed.
    pub fn start(transport: Arc<dyn Transport>, timing: Timing, faults: PulseFaults) -> Arc<Self> {
        let pairs = Pairs::new(timing.lease / SILENCE_DIVISOR, faults);
        let state = Mutex::new(State { pairs, alarms: BTreeMap::new() });
        let (start, rate) = (Instant::now(), simulation::clock_rate());
        let pulses = Arc::new(Self { timing, transport, start, rate, state });
        simulation::spawn(beat(Arc::downgrade(&pulses), timing.beacon_interval));
        pulses
    }

    /// Takes a message for [`PULSE_COHORT`]. Never waits.
    pub fn deliver(&self, from: NodeId, payload: Bytes) {
        let body = match v1::PulseMessage::decode(payload) {
            Ok(message) => message.body,
            Err(error) => return tracing::warn!(%from, %error, "a pulse that is none was dropped"),
        };
        match body {
            Some(Body::Pulse(pulse)) => {
                let answer = {
                    let mut state = self.state.lock();
                    let now = Instant::now();
                    let here = Moment::after_start(self.since_start(now));
                    let (answer, woken) = state.pairs.on_pulse(from, (now, here), pulse);
                    state.wake(&woken);
                    answer
                };
                if let Some(answer) = answer {
                    self.send(from, Body::Answer(answer));
                }
            }
            Some(Body::Answer(answer)) => {
                let mut state = self.state.lock();
                let woken = state.pairs.on_answer(from, Instant::now(), &answer);
                state.wake(&woken);
            }
            None => {}
        }
    }

    fn beat(&self) {
        let pulses = {
            let mut state = self.state.lock();
            let now = Instant::now();
            let sent = self.since_start(now);
            let (pulses, woken) = state.pairs.tick(now, sent, simulation::random);
            state.wake(&woken);
            pulses
        };
        for (to, pulse) in pulses {
            self.send(to, Body::Pulse(pulse));
        }
    }

    fn send(&self, to: NodeId, body: Body) {
        let payload = v1::PulseMessage { body: Some(body) }.encode_to_vec().into();
        // One that is lost is followed by another.
        if let Err(error) = self.transport.send(to, PULSE_COHORT, Lane::Heartbeat, payload) {
            tracing::trace!(%to, %error, "a pulse was not sent");
        }
    }

    /// Wakes what rests with a node to which the connection broke.
    pub fn peer_lost(&self, node: NodeId) {
        let mut state = self.state.lock();
        let woken = state.pairs.lost(node, simulation::random());
        state.wake(&woken);
    }

    /// Returns the time since the node's clock began.
    fn since_start(&self, now: Instant) -> Duration {
        self.rate.local(now.saturating_duration_since(self.start))
    }

    fn instant(&self, moment: Moment) -> Instant {
        self.start + self.rate.time(moment.since_start())
    }

    /// Returns a moment since which all followers had answered a pulse when their leader sent one at `sent`:
    /// none of them had been silent for longer.
    fn answered_by_all(&self, sent: Moment) -> Option<Instant> {
        self.instant(sent).checked_sub(self.timing.lease / SILENCE_DIVISOR)
    }
}

impl State {
    fn wake(&self, cohorts: &[CohortId]) {
        for cohort in cohorts {
            if let Some(alarm) = self.alarms.get(cohort) {
                alarm.notify_one();
            }
        }
    }
}

/// Sends pulses until they are dropped.
async fn beat(pulses: Weak<Pulses>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(pulses) = pulses.upgrade() else { return };
        pulses.beat();
    }
}

/// One replica's way to rest. Dropped, it rests no more.
pub(crate) struct Sleeper {
    cohort: CohortId,
    /// `None` where no cohort rests.
    pulses: Option<Arc<Pulses>>,
    alarm: Arc<Notify>,
    /// What the replica could rest as, and since when.
    quiet: Option<(Rest, Instant)>,
    /// It rests, or has asked to.
    is_known: bool,
    /// Since when it rests.
    since: Option<Instant>,
}

impl Sleeper {
    pub(crate) fn new(cohort: CohortId, pulses: Option<Arc<Pulses>>) -> Self {
        let alarm = Arc::<Notify>::default();
        if let Some(pulses) = &pulses {
            let mut state = pulses.state.lock();
            // Nothing is acknowledged for a replica of before: this one knows nothing of it.
            state.pairs.wake(cohort);
            state.alarms.insert(cohort, Arc::clone(&alarm));
        }
        Self { cohort, pulses, alarm, quiet: None, is_known: false, since: None }
    }

    /// Returns true if the replica rests: no timer of its own is due.
    pub(crate) const fn rests(&self) -> bool {
        self.since.is_some()
    }

    /// Returns when a replica that rests is to wake by itself.
    pub(crate) fn until(&self) -> Option<Instant> {
        // Followers wake when their leader does.
        let leads = matches!(self.quiet, Some((Rest::Leads { .. }, _)));
        let spread =
            REST_MAX.mul_f64(f64::from(u8::try_from(self.cohort.0 % 64).unwrap_or(0)) / 64.0);
        self.since.filter(|_| leads).map(|since| since + REST_MAX + spread)
    }

    /// Returns when the replica is to look up since another node wants that, or is silent.
    pub(crate) async fn alarm(&self) {
        self.alarm.notified().await;
    }

    /// Returns what wakes [`Sleeper::alarm`].
    pub(crate) fn alarm_handle(&self) -> Arc<Notify> {
        Arc::clone(&self.alarm)
    }

    /// Returns true if pulses are exchanged for the replica, or are to be.
    pub(crate) const fn is_known(&self) -> bool {
        self.is_known
    }

    /// Returns true if nothing has ended the rest of a replica that rests, beside what it handles itself.
    pub(crate) fn is_undisturbed(&self) -> bool {
        let pulses = self.pulses.as_ref().filter(|_| self.rests());
        pulses.is_some_and(|pulses| pulses.state.lock().pairs.rests(self.cohort))
    }

    /// Returns what the replica has missed, before it handles anything.
    pub(crate) fn look_up(&self) -> Option<Learnt> {
        let pulses = self.pulses.as_ref().filter(|_| self.is_known)?;
        pulses.state.lock().pairs.hold(Instant::now(), self.cohort)
    }

    /// Returns the state that the replica rested in, and as of when that is known from `learnt` to have been
    /// the newest, for a leader that has no lease ([`RestWatch::unleased_as_of`]).
    pub(crate) fn unleased_as_of(&self, learnt: &Learnt) -> Option<(Lsn, Instant)> {
        match (learnt, &self.quiet) {
            (Learnt::Supported(by), Some((Rest::Leads { terms, followers }, _)))
                if by.len() == followers.len() =>
            {
                Some((terms.committed, by.iter().map(|(_, sent)| *sent).min()?))
            }
            (Learnt::Heard { terms, sent_here, .. }, _) => {
                let pulses = self.pulses.as_ref()?;
                Some((terms.committed, pulses.answered_by_all((*sent_here)?)?))
            }
            (Learnt::Supported(_), _) => None,
        }
    }

    /// Ends the rest, and all that was quiet before.
    pub(crate) fn wake(&mut self) {
        if let Some(pulses) = self.pulses.as_ref().filter(|_| self.is_known) {
            pulses.state.lock().pairs.wake(self.cohort);
        }
        (self.is_known, self.since, self.quiet) = (false, None, None);
    }

    /// Has the replica rest on, or begin to, after it has handled what there was. `rest` is what it
    /// could rest as; `started` is when its own clock began.
    pub(crate) fn settle(&mut self, now: Instant, rest: Option<Rest>, started: Instant) {
        let Some(pulses) = self.pulses.clone() else { return };
        // One without followers sends no beacons either.
        let is_alone = matches!(&rest, Some(Rest::Leads { followers, .. }) if followers.is_empty());
        let rest = rest.filter(|_| !is_alone);
        let is_same =
            matches!((&self.quiet, &rest), (Some((known, _)), Some(rest)) if known == rest);
        let is_over = self.until().is_some_and(|until| now >= until);
        if !is_same || is_over {
            if self.is_known {
                pulses.state.lock().pairs.wake(self.cohort);
            }
            (self.is_known, self.since) = (false, None);
            self.quiet = rest.map(|rest| (rest, now));
            return;
        }
        let Some((rest, quiet_since)) = &mut self.quiet else { return };
        let leads = matches!(rest, Rest::Leads { .. });
        let interval = pulses.timing.beacon_interval;
        let (leader_quiet, follower_quiet) = (LEADER_QUIET * interval, FOLLOWER_QUIET * interval);
        if !self.is_known && now.duration_since(*quiet_since) < follower_quiet {
            return;
        }
        let mut state = pulses.state.lock();
        if self.is_known && !state.pairs.release(self.cohort) {
            self.is_known = false;
            if self.since.take().is_some() || leads {
                // It may rest again when it has been quiet for as long.
                *quiet_since = now;
            }
        }
        let quiet_for = now.duration_since(*quiet_since);
        match rest {
            Rest::Leads { terms, followers } if !self.is_known && quiet_for >= leader_quiet => {
                let began = started.saturating_duration_since(pulses.start);
                let ahead = pulses.rate.local(began);
                state.pairs.lead(now, self.cohort, *terms, ahead, followers);
                self.is_known = true;
            }
            Rest::Follows { terms, leader } if !self.is_known && quiet_for >= follower_quiet => {
                state.pairs.follow(self.cohort, *terms, *leader);
                self.is_known = true;
            }
            _ => {}
        }
        if self.is_known && state.pairs.rests(self.cohort) {
            self.since.get_or_insert(now);
        } else {
            self.since = None;
        }
    }

    /// Returns a view of the state that the replica rests in.
    pub(crate) fn watch(&self) -> RestWatch {
        RestWatch { cohort: self.cohort, pulses: self.pulses.clone() }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        if let Some(pulses) = &self.pulses {
            let mut state = pulses.state.lock();
            // Another replica of the cohort may have begun since, and rest.
            if state.alarms.get(&self.cohort).is_some_and(|it| Arc::ptr_eq(it, &self.alarm)) {
                state.pairs.wake(self.cohort);
                state.alarms.remove(&self.cohort);
            }
        }
    }
}

/// What is known of a replica while it rests.
#[derive(Clone)]
pub(crate) struct RestWatch {
    cohort: CohortId,
    pulses: Option<Arc<Pulses>>,
}

impl RestWatch {
    /// Returns the state that the replica rests in, and as of when it is known to be the newest, which may
    /// lie ahead; `None` if it does not rest.
    pub(crate) fn as_of(&self) -> Option<(Lsn, Instant)> {
        let pulses = self.pulses.as_ref()?;
        let moment = |moment| Some(pulses.instant(moment));
        let state = pulses.state.lock();
        let (terms, at) = state.pairs.as_of(self.cohort, Some(pulses.timing.lease), moment)?;
        Some((terms.committed, at))
    }

    /// Returns the state that the replica rests in, and as of when it is known to be the newest, where a
    /// leader has no lease: all of its followers, who are all that could elect another, have shown since
    /// that they had not. `None` if they have not yet.
    pub(crate) fn unleased_as_of(&self) -> Option<(Lsn, Instant)> {
        let pulses = self.pulses.as_ref()?;
        let moment = |moment| pulses.answered_by_all(moment);
        let state = pulses.state.lock();
        let (terms, at) = state.pairs.as_of(self.cohort, None, moment)?;
        Some((terms.committed, at))
    }
}
