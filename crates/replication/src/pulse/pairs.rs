//! What one node keeps of each other one, and of its own cohorts that rest: a state machine without
//! clock, network or task.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use trireme_proto::v1;
use trireme_types::{CohortId, NodeId};

use super::{Learnt, PulseFaults};
use crate::core::{Moment, Terms};
use crate::freshness::LeaderClock;

/// The most pulses whose sending is remembered until they are answered.
const UNANSWERED_MAX: usize = 64;

/// The other nodes, and the cohorts that rest here or may.
pub(super) struct Pairs {
    /// How long the other node may be silent.
    silence_max: Duration,
    cohorts: BTreeMap<CohortId, Part>,
    pairs: BTreeMap<NodeId, Pair>,
    /// The name of this process's clock; 0 as long as it has none.
    clock: u64,
    faults: PulseFaults,
}

/// What the replica of a cohort does at rest.
enum Part {
    /// It leads. For each follower, the number of the change that had it rest; and since when it handles
    /// something.
    Leads { terms: Terms, followers: BTreeMap<NodeId, u64>, held_at: Option<Instant> },
    /// It follows, and may rest.
    Willing { terms: Terms, leader: NodeId },
    /// It follows and rests, since the pulse of this number.
    Follows {
        terms: Terms,
        leader: NodeId,
        since: u64,
        ahead: Duration,
        /// When the first pulse was sent that it rested with, on the leader's node's clock.
        began: Duration,
        is_held: bool,
    },
    /// It rests no more, and has not looked up yet: this is what it missed.
    Woken(Learnt),
}

/// One other node.
#[derive(Default)]
struct Pair {
    led: Led,
    followed: Followed,
}

/// The cohorts that this node leads, and that rest at the other one too, or are to.
#[derive(Default)]
struct Led {
    session: u64,
    number: u64,
    cohorts: BTreeSet<CohortId>,
    /// When the first of them was to rest.
    since: Option<Instant>,
    /// What the other node has not acknowledged, with the number of the first.
    changes: VecDeque<v1::PulseChange>,
    first_change: u64,
    /// When each pulse was sent that is not answered.
    unanswered: VecDeque<(u64, Instant)>,
    /// When the newest pulse was sent that was answered.
    answered: Option<Instant>,
    /// The newest change that the other node had made when it answered that one.
    applied: u64,
}

/// The cohorts that the other node leads, and that rest here.
#[derive(Default)]
struct Followed {
    session: u64,
    applied: u64,
    cohorts: BTreeSet<CohortId>,
    /// Those that do not rest here, though the other node takes them to.
    awake: BTreeSet<CohortId>,
    /// The newest pulse: its number, when it arrived, and when it was sent.
    newest: Option<(u64, Instant, Duration)>,
    clock: LeaderClock,
    /// As of when the newest pulse was sent, on this node's clock.
    as_of: Option<Moment>,
}

impl Pairs {
    pub(super) const fn new(silence_max: Duration, faults: PulseFaults) -> Self {
        Self { silence_max, cohorts: BTreeMap::new(), pairs: BTreeMap::new(), clock: 0, faults }
    }

    /// Has a cohort that is led here rest, once all of these followers do. `ahead` is by how much the
    /// node's clock is ahead of the replica's.
    pub(super) fn lead(
        &mut self,
        now: Instant,
        cohort: CohortId,
        terms: Terms,
        ahead: Duration,
        followers: &[NodeId],
    ) {
        let rest = v1::PulseRest {
            epoch: terms.epoch,
            committed: Some(terms.committed.into()),
            // Rounded up, so that no pulse seems to be sent later than it was.
            ahead_us: micros(ahead).saturating_add(1),
        };
        let mut numbers = BTreeMap::new();
        for &node in followers {
            let led = &mut self.pairs.entry(node).or_default().led;
            led.cohorts.insert(cohort);
            led.since.get_or_insert(now);
            let change = v1::PulseChange { cohort: cohort.0, rest: Some(rest) };
            numbers.insert(node, led.push(change));
        }
        self.cohorts.insert(cohort, Part::Leads { terms, followers: numbers, held_at: None });
    }

    /// Lets a cohort that is followed here rest, if its leader wants it to.
    pub(super) fn follow(&mut self, cohort: CohortId, terms: Terms, leader: NodeId) {
        self.cohorts.insert(cohort, Part::Willing { terms, leader });
    }

    /// Returns true if a cohort rests: the replica need not do anything.
    pub(super) fn rests(&self, cohort: CohortId) -> bool {
        match self.cohorts.get(&cohort) {
            Some(Part::Leads { followers, .. }) => followers.iter().all(|(node, number)| {
                self.pairs.get(node).is_some_and(|pair| pair.led.applied >= *number)
            }),
            Some(Part::Follows { .. }) => true,
            Some(Part::Willing { .. } | Part::Woken(_)) | None => false,
        }
    }

    /// Returns what the replica has missed at rest, before it handles anything. No pulse is
    /// acknowledged for it until [`Pairs::release`].
    pub(super) fn hold(&mut self, now: Instant, cohort: CohortId) -> Option<Learnt> {
        let learnt = self.learnt(cohort);
        match self.cohorts.get_mut(&cohort)? {
            Part::Leads { held_at, .. } => *held_at = Some(now),
            Part::Follows { is_held, .. } => *is_held = true,
            Part::Willing { .. } | Part::Woken(_) => drop(self.cohorts.remove(&cohort)),
        }
        learnt
    }

    /// Returns what a replica has missed.
    fn learnt(&self, cohort: CohortId) -> Option<Learnt> {
        match self.cohorts.get(&cohort)? {
            Part::Leads { followers, .. } => {
                let answered = followers.iter().filter_map(|(node, number)| {
                    let led = &self.pairs.get(node)?.led;
                    (led.applied >= *number).then_some((*node, led.answered?))
                });
                Some(Learnt::Supported(answered.collect()))
            }
            Part::Follows { is_held: true, .. } | Part::Willing { .. } => None,
            Part::Follows { .. } if self.faults.forgets_pulses() => None,
            Part::Follows { terms, leader, since, ahead, began, .. } => {
                let followed = &self.pairs.get(leader)?.followed;
                let (number, received, sent) = followed.newest?;
                let sent = Moment::after_start(sent.saturating_sub(*ahead));
                let (leader, terms, sent_here) =
                    (*leader, *terms, self.all_rested(followed, *began));
                let heard = Learnt::Heard { leader, terms, received, sent, sent_here };
                (number >= *since).then_some(heard)
            }
            Part::Woken(learnt) => Some(learnt.clone()),
        }
    }

    /// Has a replica that has handled something rest on. Returns false if it does not rest any more.
    pub(super) fn release(&mut self, cohort: CohortId) -> bool {
        match self.cohorts.get_mut(&cohort) {
            Some(Part::Leads { held_at, .. }) => *held_at = None,
            Some(Part::Follows { leader, since, is_held, .. }) => {
                *is_held = false;
                let newest = self.pairs.get(leader).and_then(|pair| pair.followed.newest);
                *since = newest.map_or(0, |(number, ..)| number) + 1;
            }
            Some(Part::Willing { .. }) => {}
            Some(Part::Woken(_)) | None => return false,
        }
        true
    }

    /// Ends a cohort's rest here, and has the other nodes end it.
    pub(super) fn wake(&mut self, cohort: CohortId) {
        match self.cohorts.remove(&cohort) {
            Some(Part::Leads { followers, .. }) => {
                for node in followers.into_keys() {
                    let Some(pair) = self.pairs.get_mut(&node) else { continue };
                    if pair.led.cohorts.remove(&cohort) {
                        pair.led.push(v1::PulseChange { cohort: cohort.0, rest: None });
                    }
                }
            }
            Some(Part::Follows { leader, .. }) => {
                if let Some(pair) = self.pairs.get_mut(&leader)
                    && pair.followed.cohorts.remove(&cohort)
                {
                    pair.followed.awake.insert(cohort);
                }
            }
            Some(Part::Willing { .. } | Part::Woken(_)) | None => {}
        }
    }

    /// Ends a cohort's rest for a reason that its replica does not know: it is to look up.
    fn rouse(&mut self, cohort: CohortId) {
        let learnt = self.learnt(cohort);
        self.wake(cohort);
        if let Some(learnt) = learnt {
            self.cohorts.insert(cohort, Part::Woken(learnt));
        }
    }

    /// Returns the pulses that are due, and the cohorts that rest no more since another node is silent.
    pub(super) fn tick(
        &mut self,
        now: Instant,
        sent: Duration,
        mut draw: impl FnMut() -> u64,
    ) -> (Vec<(NodeId, v1::Pulse)>, Vec<CohortId>) {
        let mut woken = Vec::new();
        let is_silent = |since: Option<Instant>, max| {
            since.is_some_and(|since| now.duration_since(since) >= max)
        };
        let mut silent = Vec::new();
        for (&node, pair) in &self.pairs {
            if is_silent(pair.led.answered.max(pair.led.since), self.silence_max) {
                silent.push(node);
                woken.extend(pair.led.cohorts.iter().copied());
            }
            let newest = pair.followed.newest.map(|(_, received, _)| received);
            if is_silent(newest, self.silence_max) {
                woken.extend(pair.followed.cohorts.iter().copied());
            }
        }
        woken.iter().for_each(|cohort| self.rouse(*cohort));
        // What they are handling may be what ends their lead.
        let is_held = |part: &Part| matches!(part, Part::Leads { held_at: Some(_), .. });
        let held = self.cohorts.iter().filter(|(_, part)| is_held(part)).map(|(cohort, _)| *cohort);
        let held: Vec<_> = held.collect();
        held.iter().for_each(|cohort| self.wake(*cohort));
        woken.extend(held);
        silent.into_iter().for_each(|node| self.begin_session(node, draw()));
        while self.clock == 0 {
            self.clock = draw();
        }
        let mut pulses = Vec::new();
        for (&node, pair) in &mut self.pairs {
            let led = &mut pair.led;
            if led.cohorts.is_empty() && led.changes.is_empty() {
                (led.since, led.answered) = (None, None);
                continue;
            }
            pulses.push((node, led.pulse(now, (self.clock, sent), &mut draw)));
        }
        (pulses, woken)
    }

    /// Ends the rest of all cohorts that rest with a node which cannot be reached. Returns them.
    pub(super) fn lost(&mut self, node: NodeId, session: u64) -> Vec<CohortId> {
        let Some(pair) = self.pairs.get(&node) else { return Vec::new() };
        let woken: Vec<_> = pair.led.cohorts.union(&pair.followed.cohorts).copied().collect();
        woken.iter().for_each(|cohort| self.rouse(*cohort));
        self.begin_session(node, session);
        woken
    }

    /// Begins anew with nothing at rest at another node, which learns of it with the next pulse.
    fn begin_session(&mut self, node: NodeId, session: u64) {
        let led = Led { session, first_change: 1, ..Led::default() };
        self.pairs.entry(node).or_default().led = led;
    }

    /// Takes a pulse. Returns the answer, and the cohorts that rest no more.
    pub(super) fn on_pulse(
        &mut self,
        from: NodeId,
        (now, here): (Instant, Moment),
        pulse: v1::Pulse,
    ) -> (Option<v1::PulseAnswer>, Vec<CohortId>) {
        let followed = &mut self.pairs.entry(from).or_default().followed;
        let mut woken = Vec::new();
        if pulse.session != followed.session {
            woken.extend(followed.cohorts.iter().copied());
            woken.iter().for_each(|cohort| self.rouse(*cohort));
            let followed = &mut self.pairs.entry(from).or_default().followed;
            // A clock is known for longer than a session: the first pulse of one may have been held up.
            let clock = std::mem::take(&mut followed.clock);
            *followed = Followed { session: pulse.session, clock, ..Followed::default() };
        }
        let followed = &mut self.pairs.entry(from).or_default().followed;
        let is_old = followed.newest.is_some_and(|(number, ..)| pulse.number <= number);
        if is_old || pulse.first_change > followed.applied + 1 {
            return (None, woken);
        }
        let number = pulse.number;
        let applied = followed.applied;
        let is_held = |cohort: &&CohortId| {
            matches!(self.cohorts.get(*cohort), Some(Part::Follows { is_held: true, .. }))
        };
        let held: Vec<_> = followed.cohorts.iter().filter(is_held).copied().collect();
        held.iter().for_each(|cohort| self.wake(*cohort));
        woken.extend(held);
        // First: the pulse is no beacon for what it takes back.
        for (change, at) in pulse.changes.into_iter().zip(pulse.first_change..) {
            if at > applied {
                woken.extend(self.change(from, (number, pulse.sent_us), change));
                self.pairs.entry(from).or_default().followed.applied = at;
            }
        }
        let followed = &mut self.pairs.entry(from).or_default().followed;
        let sent = Duration::from_micros(pulse.sent_us);
        let moment = Moment::after_start(sent);
        followed.newest = Some((number, now, sent));
        followed.as_of = followed.clock.local(here, (from, pulse.clock), moment, moment);
        let Followed { session, applied, awake, .. } =
            &self.pairs.entry(from).or_default().followed;
        let awake = awake.iter().filter(|_| !self.faults.acknowledges_for_all());
        let awake = awake.map(|cohort| cohort.0).collect();
        (Some(v1::PulseAnswer { session: *session, number, applied: *applied, awake }), woken)
    }

    /// Makes a change that another node wants. Returns the cohort if it rests no more.
    fn change(
        &mut self,
        from: NodeId,
        (number, sent_us): (u64, u64),
        change: v1::PulseChange,
    ) -> Option<CohortId> {
        let cohort = CohortId(change.cohort);
        let Some(rest) = change.rest else {
            let rested = self.pairs.entry(from).or_default().followed.cohorts.contains(&cohort);
            if rested {
                self.rouse(cohort);
            }
            self.pairs.entry(from).or_default().followed.awake.remove(&cohort);
            return rested.then_some(cohort);
        };
        let committed = rest.committed.unwrap_or_default().into();
        let wanted = Terms { epoch: rest.epoch, committed };
        let followed = &mut self.pairs.entry(from).or_default().followed;
        let is_ready = matches!(self.cohorts.get(&cohort), Some(Part::Willing { terms, leader })
            if *terms == wanted && *leader == from);
        if is_ready {
            let ahead = Duration::from_micros(rest.ahead_us);
            let (terms, leader, since, is_held) = (wanted, from, number, false);
            let began = Duration::from_micros(sent_us);
            let part = Part::Follows { terms, leader, since, ahead, began, is_held };
            self.cohorts.insert(cohort, part);
            followed.cohorts.insert(cohort);
            followed.awake.remove(&cohort);
        } else {
            followed.awake.insert(cohort);
        }
        None
    }

    /// Takes the answer to a pulse. Returns the cohorts that rest no more.
    pub(super) fn on_answer(
        &mut self,
        from: NodeId,
        now: Instant,
        answer: &v1::PulseAnswer,
    ) -> Vec<CohortId> {
        let Some(pair) = self.pairs.get_mut(&from) else { return Vec::new() };
        let led = &mut pair.led;
        if answer.session != led.session {
            return Vec::new();
        }
        let Some(sent) = led.answered(answer.number, answer.applied) else { return Vec::new() };
        let sent = if self.faults.leases_from_answers() { now } else { sent };
        let awake = answer.awake.iter().map(|cohort| CohortId(*cohort));
        let woken: Vec<_> = awake
            .filter(|cohort| match self.cohorts.get(cohort) {
                Some(Part::Leads { followers, .. }) => {
                    // It may be an answer from before the cohort was to rest again.
                    followers.get(&from).is_some_and(|number| *number <= answer.applied)
                }
                _ => false,
            })
            .collect();
        // First: the answer supports no leader of a cohort that it names.
        woken.iter().for_each(|cohort| self.rouse(*cohort));
        let Some(Pair { led, .. }) = self.pairs.get_mut(&from) else { return woken };
        led.answered = led.answered.max(Some(sent));
        led.applied = led.applied.max(answer.applied);
        woken
    }

    /// Returns when a follower's newest pulse was sent, on this node's clock, if all followers had then
    /// shown that they rest, and `began` is when the first one of its own was sent: its leader would not have
    /// gone on to send them if one had been silent since.
    fn all_rested(&self, followed: &Followed, began: Duration) -> Option<Moment> {
        let (_, _, sent) = followed.newest?;
        // Twice, since the two clocks may differ a little in their rates.
        let is_long = sent.saturating_sub(began) > self.silence_max * 2;
        followed.as_of.filter(|_| is_long)
    }

    /// Returns as of when a cohort that rests is known to be in the state that it rests in: for a
    /// leader until its lease ends, which counts from when its followers were last heard. Where a leader has
    /// no lease, a follower knows only what all of them had shown by then. `moment` turns the sending of a
    /// pulse, on the node's clock, into the instant since which it shows that.
    pub(super) fn as_of(
        &self,
        cohort: CohortId,
        lease: Option<Duration>,
        moment: impl Fn(Moment) -> Option<Instant>,
    ) -> Option<(Terms, Instant)> {
        match self.cohorts.get(&cohort)? {
            Part::Leads { terms, followers, held_at } => {
                let answered = followers.iter().map(|(node, number)| {
                    let led = &self.pairs.get(node)?.led;
                    led.answered.filter(|_| led.applied >= *number)
                });
                let until = answered.min().flatten()? + lease.unwrap_or_default();
                // What it handles may have it lead no more.
                Some((*terms, held_at.map_or(until, |at| until.min(at))))
            }
            Part::Willing { .. } | Part::Woken(_) => None,
            Part::Follows { terms, leader, since, began, .. } => {
                let followed = &self.pairs.get(leader)?.followed;
                let newest = followed.newest.filter(|(number, ..)| number >= since);
                let as_of = match lease {
                    Some(_) => followed.as_of,
                    None => self.all_rested(followed, *began),
                };
                newest.and(as_of).and_then(moment).map(|at| (*terms, at))
            }
        }
    }
}

impl Led {
    /// Adds a change, and returns its number.
    fn push(&mut self, change: v1::PulseChange) -> u64 {
        self.first_change = self.first_change.max(1);
        self.changes.push_back(change);
        self.first_change + self.changes.len() as u64 - 1
    }

    fn pulse(
        &mut self,
        now: Instant,
        (clock, sent): (u64, Duration),
        mut draw: impl FnMut() -> u64,
    ) -> v1::Pulse {
        while self.session == 0 {
            self.session = draw();
        }
        self.number += 1;
        self.unanswered.push_back((self.number, now));
        if self.unanswered.len() > UNANSWERED_MAX {
            self.unanswered.pop_front();
        }
        v1::Pulse {
            session: self.session,
            number: self.number,
            clock,
            sent_us: micros(sent),
            first_change: self.first_change.max(1),
            // All of them: a pulse stands for a beacon to every cohort that it does not take back.
            changes: self.changes.iter().copied().collect(),
        }
    }

    /// Records that the pulse of this number was answered, and how many changes were made by then.
    /// Returns when it was sent; `None` if that is not known any more, or if changes were made that this
    /// node has not sent.
    fn answered(&mut self, number: u64, applied: u64) -> Option<Instant> {
        if applied >= self.first_change + self.changes.len() as u64 {
            return None;
        }
        let at = self.unanswered.iter().position(|(sent, _)| *sent == number)?;
        let (_, sent) = self.unanswered[at];
        self.unanswered.drain(..=at);
        while self.first_change <= applied && self.changes.pop_front().is_some() {
            self.first_change += 1;
        }
        Some(sent)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
