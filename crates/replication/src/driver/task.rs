//! A replica's task: events in, effects out.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use trireme_types::Lsn;

use super::apply::{Applier, Progress};
use super::callers::{Caller, Callers};
use super::clock::Clock;
use super::mailbox::{Control, Mailbox, Phase, Proposal, Taken};
use super::outgoing::{Held, Sender, decode};
use super::storage::{Applied, CohortLog, IoId, LogErrorClass, LogWrite};
use super::{Coordination, DriverFaults, FailureListener, Published};
use crate::core::{Core, DurableSeqs, Effect, Event, Moment, Ticket, When};
use crate::pulse::{Learnt, Sleeper};
use crate::replica::ReplicaError;

/// How long the task waits before it tries again to write to a log whose queue is full. The queue
/// empties at the speed of the disk, and until it does the replica can do nothing else.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(1);

/// A replica's task.
pub(super) struct Task<C: Core> {
    pub(super) core: C,
    pub(super) clock: Clock,
    pub(super) mailbox: Arc<Mailbox<C>>,
    pub(super) published: Arc<Published>,
    pub(super) log: CohortLog,
    pub(super) sender: Sender<C>,
    pub(super) coordination: Arc<dyn Coordination<C>>,
    pub(super) applier: Applier,
    pub(super) on_failure: FailureListener,
    pub(super) drain_timeout: Duration,
    pub(super) faults: DriverFaults,
    pub(super) sleeper: Sleeper,
    pub(super) state: State<C>,
}

/// What the task keeps count of.
pub(super) struct State<C: Core> {
    callers: Callers,
    held: Held<C>,
    /// How many writes the core has asked for.
    writes: u64,
    /// The newest durable one of them, as far as the core was told.
    durable: IoId,
    durable_seqs: DurableSeqs,
    applied: Lsn,
    committed: u64,
    /// When a replica that drains stops waiting.
    drain_until: Option<Instant>,
}

impl<C: Core> State<C> {
    /// Starts with a log that ends at `last`, all of it on disk, and a table that includes
    /// `applied`.
    pub(super) fn new(last: u64, applied: Lsn) -> Self {
        Self {
            callers: Callers::default(),
            held: Held::new(),
            writes: 0,
            durable: IoId(0),
            durable_seqs: DurableSeqs::starting_at(last),
            applied,
            committed: applied.seq,
            drain_until: None,
        }
    }

    /// Returns true if there is no one who waits for anything.
    fn is_idle(&self) -> bool {
        self.callers.is_empty() && self.held.is_empty() && self.drain_until.is_none()
    }
}

/// Why the task ends.
enum End {
    Stopped,
    Failed(String),
}

impl<C: Core> Task<C> {
    /// Runs the replica until it is stopped or fails.
    pub(super) async fn run(mut self) {
        let end = self.work().await;
        let refusal = match &end {
            End::Stopped => ReplicaError::Unavailable("the replica has stopped".into()),
            End::Failed(reason) => ReplicaError::Failed(reason.clone()),
        };
        self.mailbox.close(Phase::Closed, refusal.clone());
        if let End::Failed(reason) = end {
            // The node that is told says so as an error, once for all its replicas.
            tracing::warn!(reason, "the replica failed");
            (self.on_failure)(&refusal);
        }
        self.state.callers.refuse_all(&refusal);
        refuse_waiting(&self.mailbox, &refusal);
        self.sender.tasks.shutdown().await;
        self.applier.finish().await;
    }

    async fn work(&mut self) -> End {
        let mut effects = Vec::new();
        if let Err(end) = self.perform_drained(&mut effects).await {
            return end;
        }
        loop {
            let progress = self.wait().await;
            if let Err(end) = self.step(progress, &mut effects).await {
                return end;
            }
            // A busy replica gives the others on its thread their turn.
            tokio::task::consume_budget().await;
        }
    }

    /// Waits until there is something to do.
    async fn wait(&mut self) -> Option<Progress> {
        let timeout = match self.sleeper.rests() {
            true => self.sleeper.until(),
            false => self.core.next_timeout().map(|moment| self.clock.instant(moment)),
        };
        let wake_up = [timeout, self.state.drain_until].into_iter().flatten().min();
        tokio::select! {
            biased;
            progress = self.applier.progress() => Some(progress),
            () = self.mailbox.arrived() => None,
            () = self.sleeper.alarm() => None,
            () = sleep_until(wake_up) => None,
        }
    }

    /// Handles one batch.
    async fn step(
        &mut self,
        progress: Option<Progress>,
        effects: &mut Vec<Effect<C>>,
    ) -> Result<(), End> {
        // Nothing is acknowledged for it from now on.
        let learnt = self.sleeper.look_up();
        let taken = self.mailbox.take();
        if let Some(reason) = taken.failure {
            return Err(End::Failed(reason));
        }
        let phase = taken.phase;
        let is_read = !taken.reads.is_empty();
        let now = self.clock.now();
        let durable = taken.durable.clone();
        let durable = durable.map_err(|error| End::Failed(format!("the log failed: {error}")))?;
        if let Some(learnt) = learnt {
            self.take_learnt(now, learnt);
        }
        self.take_durable(now, durable);
        self.take_progress(now, progress)?;
        self.take_events(now, taken);
        if self.core.next_timeout().is_some_and(|due| due <= now) {
            self.handle(now, Event::Timeout);
        }
        self.validate()?;
        self.perform_drained(effects).await?;
        let applied = self.applier.apply_at_once(self.appliable()).map_err(End::Failed)?;
        if !applied.is_empty() {
            self.take_applied(now, applied);
            self.validate()?;
            self.perform_drained(effects).await?;
        }
        self.applier.go_on(self.appliable());
        self.sender.reap();
        self.published.set(self.core.status(), self.state.applied);
        // A cohort that is read does not rest: each read would have to look up what was missed.
        let may_rest = phase == Phase::Open && !is_read && self.state.is_idle();
        let rest = may_rest.then(|| self.core.rest()).flatten();
        self.sleeper.settle(Instant::now(), rest, self.clock.started());
        match self.may_end(phase) {
            ControlFlow::Break(()) => Err(End::Stopped),
            ControlFlow::Continue(()) => Ok(()),
        }
    }

    /// Nothing leaves a core that contradicts itself.
    fn validate(&self) -> Result<(), End> {
        let broken = |rule| End::Failed(format!("a rule of the protocol is broken: {rule}"));
        self.core.validate().map_err(broken)
    }

    fn handle(&mut self, now: Moment, event: Event<C>) {
        tracing::trace!(?now, ?event, "event");
        self.core.handle(now, event);
    }

    /// Hands the core what it has missed at rest, as of when that came.
    fn take_learnt(&mut self, now: Moment, learnt: Learnt) {
        match learnt {
            Learnt::Supported(by) => {
                let sent = |(node, at)| (node, self.clock.moment(at));
                let by = by.into_iter().map(sent).collect();
                self.handle(now, Event::Supported { by });
            }
            Learnt::Heard { leader, terms, received, sent, .. } => {
                let received = self.clock.moment(received).min(now);
                self.handle(received, Event::Heard { leader, terms, sent });
            }
        }
    }

    fn take_durable(&mut self, now: Moment, upto: IoId) {
        if upto > self.state.durable {
            self.state.durable = upto;
            self.state.durable_seqs.completed(upto);
            self.handle(now, Event::Durable { upto });
        }
    }

    /// Takes in what was applied beside the task.
    fn take_progress(&mut self, now: Moment, progress: Option<Progress>) -> Result<(), End> {
        match progress {
            None => {}
            Some(Progress::Applied(applied)) => self.take_applied(now, applied),
            Some(Progress::Installed { ticket, upto }) => {
                self.state.applied = upto;
                self.state.committed = self.state.committed.max(upto.seq);
                self.state.callers.passed(upto.seq);
                self.handle(now, Event::SnapshotInstalled { ticket, upto });
            }
            Some(Progress::Outdated { ticket }) => {
                self.handle(now, Event::SnapshotOutdated { ticket });
            }
            Some(Progress::Failed(reason)) => return Err(End::Failed(reason)),
        }
        Ok(())
    }

    /// Callers get their outcomes first, for they have waited longest.
    fn take_applied(&mut self, now: Moment, applied: Vec<Applied>) {
        if let Some(last) = applied.last() {
            self.state.applied = last.lsn;
        }
        self.state.callers.applied(applied);
        self.handle(now, Event::Applied { upto: self.state.applied });
    }

    fn take_events(&mut self, now: Moment, taken: Taken<C>) {
        for event in taken.notices {
            self.handle(now, event);
        }
        for (node, is_alive) in taken.peers {
            let event = if is_alive { Event::PeerAlive { node } } else { Event::PeerLost { node } };
            self.handle(now, event);
        }
        for (from, payload) in taken.messages {
            if let Some(message) = decode::<C>(from, payload) {
                self.handle(now, Event::Message { from, message });
            }
        }
        for control in taken.controls {
            self.take_control(now, control);
        }
        for Proposal { payload, answer, admitted } in taken.proposals {
            // Nobody waits for it any more, and nothing was done yet.
            if answer.is_closed() {
                continue;
            }
            let ticket = self.state.callers.open(Caller::Proposal { answer, admitted });
            self.handle(now, Event::Propose { ticket, payload });
        }
        if !taken.reads.is_empty() {
            let ticket = self.state.callers.open(Caller::Reads(taken.reads));
            self.handle(now, Event::Read { ticket });
        }
    }

    fn take_control(&mut self, now: Moment, control: Control) {
        let callers = &mut self.state.callers;
        let event = match control {
            Control::TransferLeader { to, answer } => {
                Event::TransferLeader { ticket: callers.open(Caller::Control(answer)), to }
            }
            Control::ReleaseLog { upto, answer } => {
                Event::ReleaseLog { ticket: callers.open(Caller::Control(answer)), upto }
            }
            Control::Snapshot { from, header, snapshot, answer } => {
                let Some(message) = decode::<C>(from, header) else {
                    let error = ReplicaError::Invalid("the snapshot's header is no message".into());
                    drop(answer.send(Err(error)));
                    return;
                };
                let upto = snapshot.header().applied;
                let staged = Some(snapshot);
                let ticket = callers.open(Caller::Snapshot { answer, staged });
                Event::SnapshotOffered { ticket, from, message, upto }
            }
        };
        self.handle(now, event);
    }

    /// Lets go what has waited for its condition, then performs what the core wants done, in order.
    async fn perform_drained(&mut self, effects: &mut Vec<Effect<C>>) -> Result<(), End> {
        let State { durable, applied, .. } = self.state;
        while let Some(effect) = self.state.held.release(durable, applied.seq) {
            self.perform(effect)?;
        }
        self.core.drain_effects(effects);
        // The log is FIFO, so the newest forced write of the batch speaks for all of it.
        let last_forced = effects.iter().rposition(is_forced_write);
        for (position, effect) in effects.drain(..).enumerate() {
            tracing::trace!(?effect, "effect");
            match (condition(&effect), effect) {
                (_, Effect::Persist(write)) => {
                    self.persist(write, Some(position) == last_forced).await?;
                }
                (Some(when), effect) if !self.holds(when) => self.state.held.keep(when, effect),
                (_, effect) => self.perform(effect)?,
            }
        }
        Ok(())
    }

    /// Submits the core's next write. `tells` has the log report when it is durable.
    async fn persist(&mut self, write: LogWrite, tells: bool) -> Result<(), End> {
        self.state.writes += 1;
        let io = IoId(self.state.writes);
        self.state.durable_seqs.submitted(io, &write);
        let mut write = write;
        loop {
            let submitted = if tells {
                let mailbox = Arc::clone(&self.mailbox);
                let done = move |result: Result<(), _>| mailbox.durable(result.map(|()| io));
                let submitted = self.log.submit_then(write, done);
                submitted.map_err(|refused| (refused.error, refused.write))
            } else {
                self.log.submit(write).map_err(|refused| (refused.error, refused.write))
            };
            write = match submitted {
                Ok(_) => return Ok(()),
                Err((error, write)) if error.class() == LogErrorClass::Retry => {
                    tracing::debug!(%error, "waiting for room in the log's queue");
                    write
                }
                Err((error, _)) => {
                    return Err(End::Failed(format!("the log refused a write: {error}")));
                }
            };
            tokio::time::sleep(QUEUE_FULL_PAUSE).await;
        }
    }

    /// Performs an effect whose condition holds, and which is no write.
    fn perform(&mut self, effect: Effect<C>) -> Result<(), End> {
        match effect {
            Effect::Persist(_) => unreachable!("writes are submitted in their order"),
            Effect::Send { to, lane, message, .. } => self.sender.send(to, lane, &message),
            Effect::SendLog { to, previous, seqs, context, .. } => {
                self.sender.send_log(to, previous, seqs, context);
            }
            Effect::SendSnapshot { to, message, .. } => self.sender.send_snapshot(to, &message),
            Effect::InstallSnapshot { ticket } => self.install(ticket)?,
            Effect::Commit { upto } => self.commit(upto)?,
            Effect::ReplyOutcomes { ticket, lsn } => {
                self.state.callers.promise(ticket, lsn, self.state.applied);
            }
            Effect::Reply { ticket, reply, .. } => {
                self.state.callers.reply(ticket, reply, self.clock);
            }
            Effect::Coordinate { request, .. } => self.coordination.request(request),
            Effect::EndReads => {
                self.state.callers.end_reads();
                self.published.end_reads(self.clock.now());
            }
        }
        Ok(())
    }

    fn install(&mut self, ticket: Ticket) -> Result<(), End> {
        let Some(snapshot) = self.state.callers.take_snapshot(ticket) else {
            return Err(End::Failed(format!("no snapshot was offered under {ticket}")));
        };
        self.applier.install(ticket, snapshot);
        Ok(())
    }

    /// Takes in a commit point. One that names an entry that is not in the log must not be passed
    /// on: what stands there instead would be applied.
    fn commit(&mut self, upto: Lsn) -> Result<(), End> {
        if upto.seq <= self.state.applied.seq {
            return Ok(());
        }
        match self.log.lsn_at(upto.seq) {
            Some(lsn) if lsn == upto => {
                self.state.committed = self.state.committed.max(upto.seq);
                Ok(())
            }
            Some(lsn) => Err(End::Failed(format!("{upto} was committed, and the log has {lsn}"))),
            None => Err(End::Failed(format!("{upto} was committed, and the log lacks it"))),
        }
    }

    /// Returns the sequence up to which entries may be applied: they are committed, and on disk here.
    fn appliable(&self) -> u64 {
        let durable = self.state.durable_seqs.durable();
        if self.faults.applies_uncommitted() {
            durable
        } else if self.faults.applies_unforced() {
            self.state.committed
        } else {
            self.state.committed.min(durable)
        }
    }

    fn holds(&self, when: When) -> bool {
        match when {
            When::Now => true,
            When::Durable(io) => io <= self.state.durable || self.faults.acknowledges_from_memory(),
            When::Applied(lsn) => lsn.seq <= self.state.applied.seq,
        }
    }

    /// Says whether a replica that is to stop may.
    fn may_end(&mut self, phase: Phase) -> ControlFlow<()> {
        // What waits for the disk may be what others wait for.
        let is_idle = || {
            self.state.callers.is_empty()
                && self.state.held.is_empty()
                && !self.mailbox.has_requests()
        };
        match phase {
            Phase::Open => return ControlFlow::Continue(()),
            Phase::Draining if !is_idle() => {}
            Phase::Draining | Phase::Closed => return ControlFlow::Break(()),
        }
        let now = Instant::now();
        let until = *self.state.drain_until.get_or_insert(now + self.drain_timeout);
        if now < until { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Refuses the requests that no core has seen.
fn refuse_waiting<C: Core>(mailbox: &Mailbox<C>, refusal: &ReplicaError) {
    loop {
        let Taken { controls, reads, proposals, .. } = mailbox.take();
        if controls.is_empty() && reads.is_empty() && proposals.is_empty() {
            return;
        }
        // A caller that has gone needs no answer.
        controls.into_iter().for_each(|control| control.refuse(refusal.clone()));
        reads.into_iter().for_each(|answer| drop(answer.send(Err(refusal.clone()))));
        proposals.into_iter().for_each(|p| drop(p.answer.send(Err(refusal.clone()))));
    }
}

/// Returns the condition under which the effect may leave, if it is of a kind that has one.
fn condition<C: Core>(effect: &Effect<C>) -> Option<When> {
    match effect {
        Effect::Send { when, .. }
        | Effect::SendLog { when, .. }
        | Effect::SendSnapshot { when, .. }
        | Effect::Reply { when, .. }
        | Effect::Coordinate { when, .. } => Some(*when),
        Effect::Persist(_)
        | Effect::InstallSnapshot { .. }
        | Effect::Commit { .. }
        | Effect::ReplyOutcomes { .. }
        | Effect::EndReads => None,
    }
}

fn is_forced_write<C: Core>(effect: &Effect<C>) -> bool {
    matches!(effect, Effect::Persist(write) if !matches!(write, LogWrite::CommitPoint(_)))
}
