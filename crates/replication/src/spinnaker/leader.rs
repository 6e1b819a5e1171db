//! The leader: taking over, committing, serving, handing over.

use std::ops::ControlFlow;
use std::time::Duration;

use trireme_types::{Epoch, Lsn, NodeId, Timing};

use super::election::{RETRY, SLACK_DIVISOR};
use super::stall::Stall;
use super::{ElectionRequest, Shared, SpinnakerMessage};
use crate::core::{Effect, Moment, Reply, Rest, Ticket, When};
use crate::replica::ReplicaError;
use crate::streaming::{Leading, Position, Progress};

/// How long a leader that is to hand over waits for its successor to have all that it has.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);

/// What only a leader knows.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) leading: Leading,
    pub(super) stall: Stall,
    hand_over: Option<HandOver>,
    /// When it asks for its node at the coordinator again.
    reclaim_at: Option<Moment>,
}

#[derive(Debug)]
struct HandOver {
    ticket: Ticket,
    to: NodeId,
    until: Moment,
}

/// That the leader leads no more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resignation {
    /// The replica that should stand first.
    pub(super) successor: Option<NodeId>,
    /// It may be this replica's own fault, so it lets the others be first.
    pub(super) is_at_fault: bool,
}

impl Resignation {
    const OUTDATED: Self = Self { successor: None, is_at_fault: false };
    const AT_FAULT: Self = Self { successor: None, is_at_fault: true };
}

/// Whether the leader goes on: one that resigns does nothing after that.
pub(super) type Lead = ControlFlow<Resignation>;

const GOES_ON: Lead = ControlFlow::Continue(());

/// Beginning and ending.
impl Leader {
    /// Begins to lead in `epoch` (SPIN-30).
    pub(super) fn begin(cx: &mut Shared, epoch: Epoch) -> Self {
        let followers = cx.others();
        let leading = Leading::begin(cx, epoch, followers);
        Self { leading, stall: Stall::default(), hand_over: None, reclaim_at: None }
    }

    /// Ends to lead, and first what it gave out (SPIN-12); `leader` leads now, as far as is known.
    pub(super) fn end(self, cx: &mut Shared, leader: Option<NodeId>) {
        self.leading.stop(cx);
        let no_op = self.leading.no_op;
        if cx.journal.last() == no_op && cx.journal.committed() < no_op {
            //= SPIN-34
            // Its leader alone could have committed it, and leads no more.
            cx.journal.truncate_after(no_op.seq - 1);
        }
        self.leading.refuse_callers(cx, leader);
        if let Some(hand_over) = self.hand_over {
            let error = ReplicaError::Unavailable("the replica lost its lead meanwhile".into());
            cx.journal.refuse(hand_over.ticket, error);
        }
    }

    /// Returns what it could rest as.
    pub(super) fn rest(&self, cx: &Shared) -> Option<Rest> {
        let is_free = self.hand_over.is_none() && self.reclaim_at.is_none();
        is_free.then(|| self.leading.rest(cx)).flatten()
    }

    /// Checks what must hold of a leader.
    pub(super) fn validate(&self, cx: &Shared) -> Result<(), String> {
        let (own, known, no_op) = (self.leading.epoch, cx.own.epoch, self.leading.no_op);
        if cx.state.is_learner {
            return Err(format!("it leads epoch {own} and counts in no majority"));
        }
        // That mistake is to serve before the no-op is committed.
        if cx.own.options.faults.commits_older_epochs() {
            return Ok(());
        }
        if own != known || no_op.epoch != own {
            return Err(format!("it leads epoch {own} behind {no_op} and knows epoch {known}"));
        }
        if self.leading.serves() && cx.journal.committed() < no_op {
            return Err(format!("it serves, and {no_op} is not committed"));
        }
        self.validate_learners(cx)?;
        self.leading.validate(cx)
    }
}

/// What followers send.
impl Leader {
    pub(super) fn on_ack(
        &mut self,
        cx: &mut Shared,
        from: NodeId,
        (epoch, upto): (Epoch, Lsn),
        supports: Option<Moment>,
    ) -> Lead {
        if epoch != self.leading.epoch {
            return GOES_ON;
        }
        self.leading.on_data(cx.now, from);
        self.leading.on_ack(cx, from, upto);
        if let Some(sent) = supports {
            self.leading.on_support(cx.now, from, sent);
        }
        self.advance(cx)?;
        self.readmit(cx, from)?;
        self.answer_reads(cx);
        GOES_ON
    }

    pub(super) fn on_beacon_ack(
        &mut self,
        cx: &mut Shared,
        from: NodeId,
        (epoch, supports): (Epoch, Option<Moment>),
        (is_learner, awaits_disk): (bool, bool),
    ) {
        if epoch != self.leading.epoch {
            return;
        }
        if let Some(sent) = supports {
            self.leading.on_support(cx.now, from, sent);
        }
        if awaits_disk {
            // It owes no acknowledgement, so that none comes shows nothing.
            self.leading.on_data(cx.now, from);
        }
        let has_all = |follower: &&Progress| follower.is_voter() && follower.is_replicating();
        if let Some(follower) = self.leading.followers.get(&from).filter(has_all)
            && is_learner
            && let Some(upto) = cx.journal.log().lsn_at(follower.next() - 1)
        {
            // The message that it counts again was lost; or it has lost its disk since, and the report
            // of its position is on its way.
            cx.journal.send(from, SpinnakerMessage::Readmit { epoch, upto }, When::Now);
        }
        self.answer_reads(cx);
    }

    pub(super) fn on_report_position(
        &mut self,
        cx: &mut Shared,
        from: NodeId,
        epoch: Epoch,
        position: Position,
    ) -> Lead {
        if epoch != self.leading.epoch || !self.admits(cx, from, position) {
            return GOES_ON;
        }
        //= SPIN-32
        //= SPIN-41
        let before = self.match_seq(from);
        self.leading.on_report_position(cx, from, position);
        // One that reports the same again has received nothing of what it was sent.
        if self.match_seq(from) > before {
            self.leading.on_data(cx.now, from);
        }
        self.advance(cx)?;
        self.readmit(cx, from)
    }

    /// Returns up to where a follower's log is the leader's, once it has reported its position.
    fn match_seq(&self, node: NodeId) -> Option<u64> {
        let follower = self.leading.followers.get(&node).filter(|follower| !follower.is_probing());
        follower.map(|follower| follower.match_lsn().seq)
    }

    /// Readmits a follower that had lost its disk, once it has all that it may ever have acknowledged
    /// and this leader has all that was ever committed (SPIN-44; S14).
    fn readmit(&mut self, cx: &mut Shared, node: NodeId) -> Lead {
        let is_established = self.leading.is_established(&cx.journal);
        if !cx.is_member(node) && !cx.own.options.faults.counts_the_invited() {
            return GOES_ON;
        }
        let Some(follower) = self.leading.followers.get_mut(&node) else { return GOES_ON };
        if !follower.may_vote_again() || !is_established {
            return GOES_ON;
        }
        //= SPIN-44
        follower.become_voter();
        let (epoch, upto) = (self.leading.epoch, follower.match_lsn());
        cx.journal.send(node, SpinnakerMessage::Readmit { epoch, upto }, When::Now);
        // What it has acknowledged already counts from now on.
        self.advance(cx)
    }

    /// Resigns if a follower has promised itself to a newer epoch.
    pub(super) fn on_reject_stale_epoch(&self, epoch: Epoch) -> Lead {
        //= SPIN-22
        if epoch > self.leading.epoch {
            tracing::info!(epoch, "a follower has promised itself to a newer epoch");
            return ControlFlow::Break(Resignation::OUTDATED);
        }
        GOES_ON
    }
}

/// Committing and serving.
impl Leader {
    /// Commits what is on the leader's own disk and on those of a majority (SPIN-5).
    pub(super) fn advance(&mut self, cx: &mut Shared) -> Lead {
        let needed = cx.followers_needed();
        let Some(matched) = self.leading.matched_by(needed) else { return GOES_ON };
        //= SPIN-5
        let seq = matched.min(cx.journal.durable().seq);
        let no_op = self.leading.no_op;
        let is_careless = cx.own.options.faults.commits_older_epochs();
        //= SPIN-31
        if seq < no_op.seq && !is_careless {
            return GOES_ON;
        }
        self.leading.commit(cx, seq);
        if is_careless && seq + 1 >= no_op.seq {
            self.begin_serving(cx, no_op);
        }
        let is_closed = !self.leading.is_open() && self.hand_over.is_none();
        if is_closed && self.leading.is_established(&cx.journal) {
            //= SPIN-33
            self.leading.open(cx);
        }
        self.try_hand_over(cx)
    }

    /// Serves strong (linearizable) reads once the table holds the no-op, and so all before it (C4).
    pub(super) fn begin_serving(&mut self, cx: &mut Shared, applied: Lsn) {
        //= SPIN-33
        if self.leading.begin_serving(cx.now, applied) {
            cx.own.step_back.has_served();
            self.answer_reads(cx);
        }
    }

    /// Returns the leader's first entry, and until when a state that includes it is the newest
    /// (SPIN-70).
    pub(super) fn current(&self, cx: &Shared) -> Option<(Lsn, Moment)> {
        //= SPIN-70
        let lease = self.leading.lease_until(cx.timing, cx.followers_needed());
        lease.filter(|_| self.leading.serves()).map(|until| (self.leading.no_op, until))
    }

    pub(super) fn on_read(&mut self, cx: &mut Shared, ticket: Ticket) -> Lead {
        self.leading.add_read(ticket);
        self.answer_reads(cx);
        GOES_ON
    }

    /// Answers the reads that wait, if the leader may: they hold until its lease ends (SPIN-10).
    fn answer_reads(&mut self, cx: &mut Shared) {
        let lease = self.leading.lease_until(cx.timing, cx.followers_needed());
        self.leading.set_lease(lease);
        if !self.leading.serves() {
            return;
        }
        //= SPIN-10
        let until = lease.filter(|until| cx.now < *until);
        if cx.own.options.faults.reads_without_lease() {
            self.leading.answer_reads(&mut cx.journal, None);
        } else if until.is_some() {
            self.leading.answer_reads(&mut cx.journal, until);
        }
    }
}

/// Handing over.
impl Leader {
    pub(super) fn on_transfer(&mut self, cx: &mut Shared, ticket: Ticket, to: NodeId) -> Lead {
        if to == cx.node {
            cx.journal.reply(ticket, Reply::Done, When::Now);
            return GOES_ON;
        }
        let is_voter = self.leading.followers.get(&to).is_some_and(|follower| follower.is_voter());
        if !is_voter || self.hand_over.is_some() {
            let reason = format!("{to} cannot take over from {} now", cx.node);
            cx.journal.refuse(ticket, ReplicaError::Unavailable(reason));
            return GOES_ON;
        }
        self.leading.close();
        self.hand_over = Some(HandOver { ticket, to, until: cx.now + HAND_OVER_MAX });
        self.try_hand_over(cx)
    }

    /// Hands over once the successor has everything and everything is committed (SPIN-46).
    fn try_hand_over(&mut self, cx: &mut Shared) -> Lead {
        let last = cx.journal.last();
        let Some(HandOver { ticket, to, .. }) = self.hand_over else { return GOES_ON };
        let successor = self.leading.followers.get(&to);
        if cx.journal.committed() < last || successor.is_none_or(|f| f.match_lsn() < last) {
            return GOES_ON;
        }
        //= SPIN-46
        self.hand_over = None;
        cx.journal.reply(ticket, Reply::Done, When::Now);
        ControlFlow::Break(Resignation { successor: Some(to), is_at_fault: false })
    }

    /// Gives up to hand over to a successor that did not catch up in time.
    fn end_hand_over_if_due(&mut self, cx: &mut Shared) -> Lead {
        let due = self.hand_over.take_if(|hand_over| hand_over.until <= cx.now);
        let Some(hand_over) = due else { return GOES_ON };
        let reason = format!("{} did not catch up in time", hand_over.to);
        cx.journal.refuse(hand_over.ticket, ReplicaError::Unavailable(reason));
        // Writes go on, unless the cohort did not take any yet.
        self.advance(cx)
    }
}

/// Timeouts, and the leader's node at the coordinator.
impl Leader {
    pub(super) fn on_timeout(&mut self, cx: &mut Shared) -> Lead {
        let epoch = cx.own.epoch;
        if cx.now >= self.end_of_support(cx) {
            //= SPIN-45
            tracing::warn!(epoch, "a majority does not answer: leads no more");
            return ControlFlow::Break(Resignation::AT_FAULT);
        }
        if let Some(cause) = self.stalled(cx) {
            //= SPIN-47
            tracing::warn!(epoch, cause, "makes no progress: leads no more");
            return ControlFlow::Break(Resignation::AT_FAULT);
        }
        self.advance(cx)?;
        self.forget_silent_learners(cx);
        self.leading.on_timeout(cx);
        self.end_hand_over_if_due(cx)?;
        if self.reclaim_at.is_some_and(|at| at <= cx.now) {
            self.reclaim(cx);
        }
        self.answer_reads(cx);
        GOES_ON
    }

    /// Returns when a leader gives up that a majority does not support (SPIN-45).
    fn end_of_support(&self, cx: &Shared) -> Moment {
        let lease = self.leading.lease_until(cx.timing, cx.followers_needed());
        let Timing { lease: length, grace, .. } = cx.timing;
        lease.unwrap_or(self.leading.since + length) + grace / SLACK_DIVISOR
    }

    pub(super) fn next_timeout(&self, cx: &Shared) -> Option<Moment> {
        let hand_over = self.hand_over.as_ref().map(|hand_over| hand_over.until);
        let stalled = self.stall.due(cx.timing, cx.now);
        let learners = self.next_silent_learner(cx);
        let others = [hand_over, self.reclaim_at, Some(self.end_of_support(cx)), stalled, learners];
        let next = self.leading.next_timeout(cx);
        others.into_iter().chain([next]).flatten().min()
    }

    /// Asks for its node at the coordinator again, if that does not know any more that it leads.
    pub(super) fn on_view(&mut self, cx: &mut Shared, is_known: bool) {
        self.reclaim_at = None;
        if !is_known {
            self.reclaim(cx);
        }
    }

    /// Asks for the leader's node again, whose session has ended, until the coordinator knows it
    /// (SPIN-27).
    fn reclaim(&mut self, cx: &mut Shared) {
        self.reclaim_at = Some(cx.now + RETRY);
        //= SPIN-27
        let request = ElectionRequest::Reclaim { epoch: cx.own.epoch };
        cx.journal.push(Effect::Coordinate { request, when: When::Now });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{RoleState, Spinnaker, SpinnakerOptions};
    use super::*;
    use crate::core::{Core as _, Recovered};

    /// Returns the leader of epoch 1 of three replicas.
    fn leading() -> Spinnaker {
        let replicas = [1, 2, 3].map(NodeId).to_vec();
        let core = Spinnaker::new(&Recovered::nothing(), SpinnakerOptions::new(replicas));
        let mut core = core.expect("the options make sense");
        core.shared.promise(1);
        core.become_leader(1);
        core
    }

    #[test]
    fn what_breaks_an_invariant_is_named() {
        let broken = |break_it: fn(&mut Shared, &mut Leader)| {
            let mut core = leading();
            assert_eq!(core.validate(), Ok(()));
            let RoleState::Leader(leader) = &mut core.role else { panic!("it leads") };
            break_it(&mut core.shared, leader);
            core.validate().expect_err("an invariant is broken")
        };
        let learner = broken(|cx, _| cx.state.is_learner = true);
        assert!(learner.contains("counts in no majority"), "{learner}");
        let known = broken(|cx, _| cx.own.epoch = 2);
        assert!(known.contains("knows epoch 2"), "{known}");
        let older = broken(|_, leader| leader.leading.no_op.epoch = 0);
        assert!(older.contains("leads epoch 1 behind 0.1"), "{older}");
        let early = broken(|_, leader| leader.leading.serve_at_once());
        assert!(early.contains("1.1 is not committed"), "{early}");
        let follower = broken(|_, leader| {
            leader.leading.on_support(Moment::FAR, NodeId(2), Moment::FAR);
        });
        assert!(follower.contains("follower n2: support"), "{follower}");
        let caller = broken(|cx, leader| {
            leader.leading.open(cx);
            leader.leading.propose(cx, Ticket(1), bytes::Bytes::new());
            cx.journal.truncate_after(1);
        });
        assert!(caller.contains("waits for an entry behind 1.1"), "{caller}");
    }

    /// [SPIN-47] A follower that reports its position for the first time is reached by what it was sent,
    /// though its log be empty. One that reports the same again is not.
    #[test]
    fn the_first_position_of_a_follower_shows_that_data_arrives() {
        let mut core = leading();
        let RoleState::Leader(leader) = &mut core.role else { panic!("it leads") };
        let mut reports_at = |seconds| {
            core.shared.now = Moment::after_start(Duration::from_secs(seconds));
            let position = Position { committed: Lsn::ZERO, last: Lsn::ZERO, is_learner: false };
            assert!(
                leader.on_report_position(&mut core.shared, NodeId(2), 1, position).is_continue()
            );
            let follower = &leader.leading.followers[&NodeId(2)];
            follower.is_reached(core.shared.now, Duration::from_secs(1))
        };
        assert!(reports_at(5) && !reports_at(10));
    }
}
