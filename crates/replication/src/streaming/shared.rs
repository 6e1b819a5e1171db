//! What a replica has in every role, in both protocols: its clock, its log, its promises.

use trireme_types::{Epoch, Lsn, NodeId, Timing};

use super::wire::HardState;
use super::{Following, Journal, Offer, Position, Streams, Support};
use crate::core::{CoreStatus, Moment, Recovered, Reply, Rest, Terms, Ticket, When};
use crate::replica::{Measures, ReplicaError, Role};

/// What the methods of every role work on. What only one protocol keeps is `own`.
#[derive(Debug)]
pub(crate) struct Shared<C: Streams> {
    pub(crate) node: NodeId,
    pub(crate) timing: Timing,
    pub(crate) now: Moment,
    /// When the first event came: before that the replica knows no time.
    pub(crate) started: Option<Moment>,
    pub(crate) journal: Journal<C>,
    /// What it has promised, as it is on disk or on its way there.
    pub(crate) state: HardState,
    pub(crate) support: Support,
    /// The newest entry that the table includes.
    pub(crate) applied: Lsn,
    /// What it measured when it led before.
    pub(crate) measures: Measures,
    pub(crate) own: C::Own,
}

/// What a role reports of itself.
#[derive(Debug)]
pub(crate) struct RoleStatus {
    pub(crate) role: Role,
    pub(crate) leader: Option<NodeId>,
    pub(crate) current: Option<(Lsn, Moment)>,
    pub(crate) progress: Vec<(NodeId, Lsn)>,
    pub(crate) measures: Measures,
}

impl<C: Streams> Shared<C> {
    /// Returns what a replica starts with. One that `may_have_promised` before it stopped is bound by
    /// what it may have promised at its last moment.
    pub(crate) fn new(
        recovered: &Recovered,
        timing: Timing,
        state: HardState,
        may_have_promised: bool,
        own: C::Own,
    ) -> Self {
        Self {
            node: recovered.node,
            timing,
            now: Moment::START,
            started: None,
            journal: Journal::new(recovered),
            state,
            support: Support::starting(Moment::START, timing.grace, may_have_promised),
            applied: recovered.applied,
            measures: Measures::default(),
            own,
        }
    }

    /// Sets the clock. When the replica starts, promises made before count from now: it is not known
    /// for how long it was stopped.
    pub(crate) fn set_clock(&mut self, now: Moment, may_have_promised: bool) {
        self.now = now;
        if self.started.is_none() {
            self.started = Some(now);
            //= SPIN-11
            //= PAC-22
            self.support = Support::starting(now, self.timing.grace, may_have_promised);
        }
    }

    /// Writes a hard state.
    pub(crate) fn keep(&mut self, state: HardState) {
        self.state = state;
        self.journal.keep(state.encode());
    }

    /// Returns the position that the replica reports to a leader.
    pub(crate) fn position(&self, is_learner: bool) -> Position {
        Position { committed: self.journal.committed(), last: self.journal.last(), is_learner }
    }

    /// Commits up to `seq`, as a leader's message says it is, and records that.
    pub(crate) fn commit_as_follower(&mut self, seq: u64) {
        //= SPIN-8
        //= PAC-6
        if self.journal.commit(seq) {
            self.journal.record_commit_point();
        }
    }

    /// Returns true if its whole log is on its disk, committed and applied.
    pub(crate) fn is_settled(&self) -> bool {
        let committed = self.journal.committed();
        self.journal.is_durable() && committed == self.journal.last() && self.applied == committed
    }

    /// Returns what a follower could rest as that owes its leader nothing.
    pub(crate) fn rest(&self, following: &Following, epoch: Epoch) -> Option<Rest> {
        let leader = following.leader.filter(|_| following.is_streaming)?;
        let rests = self.is_settled() && !self.state.is_learner;
        let terms = Terms { epoch, committed: self.journal.committed() };
        rests.then_some(Rest::Follows { terms, leader })
    }

    /// Refuses what only a leader does.
    pub(crate) fn refuse_to_lead(&mut self, ticket: Ticket, leader: Option<NodeId>) {
        self.journal.refuse(ticket, ReplicaError::NotLeader { leader });
    }

    pub(crate) fn release_log(&mut self, ticket: Ticket, upto: u64) {
        self.journal.release(upto);
        self.journal.reply(ticket, Reply::Done, When::Now);
    }

    /// Describes the replica, whose newest epoch is `epoch`.
    pub(crate) fn status(
        &self,
        of_role: RoleStatus,
        epoch: Epoch,
        replicas: Vec<NodeId>,
    ) -> CoreStatus {
        let RoleStatus { role, leader, current, progress, measures } = of_role;
        CoreStatus {
            role,
            leader,
            current,
            epoch,
            last: self.journal.last(),
            durable: self.journal.durable(),
            committed: self.journal.committed(),
            purged: self.journal.log().purged(),
            replicas,
            progress,
            measures,
        }
    }
}

/// Snapshots that other replicas send.
impl<C: Streams> Shared<C> {
    /// Returns true if a snapshot that includes `upto` is from a leader of an older epoch than the
    /// promised one, which it is answered with.
    pub(crate) fn rejects_snapshot(&mut self, ticket: Ticket, epoch: Epoch) -> bool {
        let promised = self.state.promised;
        let is_stale = epoch < promised;
        if is_stale {
            let reply = Reply::Message(C::reject_message(promised));
            self.journal.reply(ticket, reply, When::Now);
        }
        is_stale
    }

    /// Has a snapshot installed, unless it brings nothing.
    pub(crate) fn install_snapshot(&mut self, ticket: Ticket, upto: Lsn) {
        if self.journal.offer_snapshot(ticket, upto) == Offer::Old {
            self.answer_snapshot(ticket);
        }
    }

    pub(crate) fn on_snapshot_installed(&mut self, ticket: Ticket, upto: Lsn) {
        self.applied = self.applied.max(upto);
        let answered = self.journal.installed(ticket, upto);
        answered.into_iter().for_each(|ticket| self.answer_snapshot(ticket));
    }

    pub(crate) fn on_snapshot_outdated(&mut self, ticket: Ticket) {
        let answered = self.journal.outdated(ticket);
        answered.into_iter().for_each(|ticket| self.answer_snapshot(ticket));
    }

    /// Answers a snapshot with the replica's position, once that is durable.
    pub(crate) fn answer_snapshot(&mut self, ticket: Ticket) {
        let reply = Reply::Message(C::position_message(self, C::epoch(self)));
        let when = self.journal.when_durable();
        self.journal.reply(ticket, reply, when);
    }
}
