//! A primary's candidates: which replica it brings up to date and adds, and which it keeps out.

use std::time::Duration;

use trireme_types::{Incarnation, NodeId, Timing};

use super::Shared;
use super::primary::{GOES_ON, Lead, Primary};
use super::proposal::Purpose;
use crate::core::{Effect, Moment};
use crate::streaming::Progress;

/// How long a replica that was removed for the first time is kept out; each further removal doubles
/// it (P13).
const READMIT_PAUSE: Duration = Duration::from_millis(500);

/// How often the pause is doubled at the most.
const READMIT_DOUBLINGS_MAX: u32 = 7;

/// After how long without another removal a replica's earlier ones count for nothing.
pub(super) const REMOVALS_FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// When a replica was removed, and how often.
#[derive(Clone, Copy, Debug)]
pub(super) struct Removal {
    at: Moment,
    times: u32,
}

impl Removal {
    /// Returns until when the replica is kept out.
    fn until(&self) -> Moment {
        let doublings = (self.times - 1).min(READMIT_DOUBLINGS_MAX);
        self.at + READMIT_PAUSE * 2_u32.pow(doublings)
    }
}

impl Primary {
    /// Returns true if a replica may be brought up to date: one of the configuration, or one candidate
    /// at a time (PAC-40).
    pub(super) fn admits(
        &mut self,
        cx: &mut Shared,
        node: NodeId,
        incarnation: Incarnation,
    ) -> bool {
        let now = cx.now;
        if self.is_known_as(cx, node, incarnation) {
            return true;
        }
        match self.leading.followers.get(&node) {
            Some(follower) if follower.is_voter() => {
                // What the voter acknowledged, this one has not: it does not answer for it.
                tracing::warn!(%node, %incarnation, "the replica lost what it acknowledged");
                return false;
            }
            Some(_) => self.forget(cx, node),
            None => {}
        }
        let has_candidate = self.leading.followers.keys().any(|other| !cx.own.is_listed(*other));
        let is_kept_out = self.removals.get(&node).is_some_and(|r| now < r.until());
        //= PAC-40
        if has_candidate || is_kept_out || !self.serves(now) {
            return false;
        }
        self.leading.followers.insert(node, Progress::learning(now));
        self.incarnations.insert(node, incarnation);
        true
    }

    /// Asks for a candidate to be added, once it is replicating and has all that is committed. From
    /// now on nothing is committed, and nothing served, without it (PAC-37; P6).
    pub(super) fn consider_adding(&mut self, cx: &mut Shared, node: NodeId) -> Lead {
        let (now, committed, lease) = (cx.now, cx.journal.committed(), cx.timing.lease);
        if cx.own.pending.is_some() || !cx.own.is_missing_one() {
            return GOES_ON;
        }
        if !self.serves(now) || self.transfer.is_some() {
            return GOES_ON;
        }
        let Some(follower) = self.leading.followers.get_mut(&node) else { return GOES_ON };
        let has_all = follower.is_replicating() && follower.match_lsn().seq >= committed.seq;
        let supports_until = follower.supported().map_or(Moment::START, |sent| sent + lease);
        if follower.is_voter() || !has_all || supports_until <= now {
            return GOES_ON;
        }
        //= PAC-37
        if !cx.own.options.faults.adds_without_waiting() {
            follower.become_voter();
        }
        self.counted.insert(node, now);
        if supports_until < self.lease_until {
            // What was given out with the leases of the others alone would outlast this one's.
            cx.journal.push(Effect::EndReads);
        }
        cx.propose(Purpose::Add(node), Some(&self.incarnations));
        self.check_leases(cx)
    }

    /// Forgets candidates that do not answer, or acknowledge nothing of what they are sent: their
    /// candidacy is over, and others may have their turn (PAC-38).
    pub(super) fn forget_silent_candidates(&mut self, cx: &mut Shared) {
        let ends = self.ends_of_candidacies(cx.timing);
        let silent: Vec<_> = ends.filter(|(_, end)| *end <= cx.now).map(|(node, _)| node).collect();
        for node in silent {
            //= PAC-38
            tracing::info!(%node, "the candidate does not answer, or makes no progress");
            self.forget(cx, node);
            self.note_end_of_candidacy(cx.now, node);
        }
    }

    pub(super) fn next_silent_candidate(&self, timing: Timing) -> Option<Moment> {
        self.ends_of_candidacies(timing).map(|(_, end)| end).min()
    }

    /// Returns when each candidate counts as one that does not answer, or makes no progress.
    fn ends_of_candidacies(&self, timing: Timing) -> impl Iterator<Item = (NodeId, Moment)> {
        let candidates = self.leading.followers.iter().filter(|(_, follower)| !follower.is_voter());
        candidates.map(move |(node, follower)| (*node, follower.given_up_at(timing)))
    }

    /// Forgets a follower, and which incarnation of it was meant.
    pub(super) fn forget(&mut self, cx: &mut Shared, node: NodeId) {
        self.leading.forget(cx, node);
        self.incarnations.remove(&node);
        self.counted.remove(&node);
    }

    /// Keeps out a candidate that came to nothing, so that another has its turn. Since it
    /// held up no write, it is not kept out for longer the next time.
    fn note_end_of_candidacy(&mut self, now: Moment, node: NodeId) {
        let removal = self.removals.entry(node).or_insert(Removal { at: now, times: 1 });
        removal.at = now;
    }

    /// Returns how many others were taken out, or came to nothing as candidates, within this time, and
    /// are not back.
    pub(super) fn removed_since(&self, now: Moment, time: Duration) -> usize {
        let is_back = |node: &NodeId| self.leading.followers.contains_key(node);
        let removed = self.removals.iter().filter(|(node, _)| !is_back(node));
        removed.filter(|(_, removal)| now < removal.at + time).count()
    }

    pub(super) fn note_removal(&mut self, now: Moment, node: NodeId) {
        let removal = self.removals.entry(node).or_insert(Removal { at: now, times: 0 });
        if now >= removal.at + REMOVALS_FORGOTTEN_AFTER {
            removal.times = 0;
        }
        *removal = Removal { at: now, times: removal.times + 1 };
    }
}

#[cfg(test)]
mod tests {
    use trireme_storage::IoId;
    use trireme_types::{CohortConfig, CohortId, Lsn, Protocol};

    use super::super::{Newest, Pacifica, PacificaMessage, PacificaOptions, RoleState};
    use super::*;
    use crate::core::{Core as _, Event, Recovered};
    use crate::streaming::Position;

    /// What the primary of two replicas handles, and the time at which it does.
    struct Run {
        core: Pacifica,
        now: Moment,
    }

    impl Run {
        fn handle(&mut self, event: Event<Pacifica>) {
            self.core.handle(self.now, event);
            if self.core.next_timeout().is_some_and(|at| at <= self.now) {
                self.core.handle(self.now, Event::Timeout);
            }
            assert_eq!(self.core.validate(), Ok(()));
            self.core.drain_effects(&mut Vec::new());
        }

        fn hear(&mut self, from: u64, message: PacificaMessage) {
            self.handle(Event::Message { from: NodeId(from), message });
        }

        /// Has a replica ask to be brought up to date that has nothing.
        fn is_asked(&mut self, by: u64) {
            let position = Position { committed: Lsn::ZERO, last: Lsn::ZERO, is_learner: true };
            let incarnation = Incarnation(by);
            self.hear(by, PacificaMessage::ReportPosition { epoch: 1, position, incarnation });
        }

        fn primary(&self) -> &Primary {
            let RoleState::Primary(primary) = &self.core.role else { panic!("{:?}", self.core) };
            primary
        }
    }

    /// Returns a primary that has rested, long after it last heard the only other replica by itself.
    fn rested() -> Run {
        let options = PacificaOptions::new(Incarnation(1));
        let core = Pacifica::new(&Recovered::nothing(), options).expect("the options make sense");
        let mut run = Run { core, now: Moment::after_start(Duration::from_secs(1)) };
        let config = CohortConfig {
            cohort: CohortId(1),
            version: 1,
            protocol: Protocol::Pacifica,
            replicas: [1, 2].map(NodeId).to_vec(),
            replicas_wanted: 2,
            incarnations: [1, 2].map(|it| (NodeId(it), Incarnation(it))).into(),
            origin: None,
        };
        run.handle(Event::Coordination(Newest(config)));
        run.handle(Event::Durable { upto: IoId(1) });
        run.is_asked(2);
        let (upto, incarnation) = (run.primary().leading.no_op, Incarnation(2));
        let supports = Some(run.now);
        run.hear(2, PacificaMessage::Prepared { epoch: 1, upto, supports, incarnation });
        run.handle(Event::Durable { upto: IoId(2) });
        run.handle(Event::Applied { upto });
        assert!(run.primary().serves(run.now), "{:?}", run.core);
        run.now = run.now + Duration::from_secs(30);
        run
    }

    /// [PAC-40] [RANGE-17]
    #[test]
    fn a_primary_that_has_rested_brings_an_invited_replica_up_to_date() {
        let mut run = rested();
        let now = run.now;
        // As the driver does: what it missed comes first, and what time brings last.
        run.core.handle(now, Event::Supported { by: vec![(NodeId(2), now)] });
        run.is_asked(3);
        assert!(run.primary().leading.followers.contains_key(&NodeId(3)), "{:?}", run.core);
    }

    /// [PAC-40]
    #[test]
    fn a_primary_without_its_leases_takes_no_replica_up() {
        let mut run = rested();
        run.core.handle(run.now, Event::Supported { by: vec![(NodeId(2), Moment::START)] });
        run.is_asked(3);
        assert!(!run.primary().leading.followers.contains_key(&NodeId(3)));
    }
}
