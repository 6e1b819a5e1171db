//! A Raft replica at rest ([`crate::pulse`]): openraft's ticks are off, so that it neither sends heartbeats
//! nor starts an election, until something happens.
//!
//! openraft ticks every twenty milliseconds, and its leaders send heartbeats to each follower: of a thousand
//! idle ranges that takes more than a core. Of those that do not rest, only replicas tick that miss their
//! leader. No guarantee of Raft depends on when a heartbeat arrives, but
//! elections do. So a follower that wakes is first given the heartbeat that it missed, as a late one, and
//! only then its ticks: it starts an election no sooner after its leader's last sign of life than one that
//! never rested. And a leader that wakes has a majority answer it before it takes a write, as openraft wants
//! of its leaders.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::AppendEntriesRequest;
use openraft::{RaftMetrics, ReadPolicy, ServerState};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use trireme_storage::CohortTable;
use trireme_types::Lsn;

use super::heard::{Heard, Metrics};
use super::inbound::RaftHandle;
use super::types::{TypeConfig, Vote, lsn, lsn_or_zero};
use super::{RaftFaults, RaftOptions};
use crate::core::{Rest, Terms};
use crate::pulse::{Learnt, Sleeper};
use crate::simulation;

/// How long a leader that has rested waits for a majority to answer it, before it takes writes without:
/// openraft refuses those, with the reason.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(1);

/// The ticks of one replica: they are off while it rests; while it leads, since its heartbeats are sent by
/// its tending; and while it follows a leader that has just been heard, whose lease has not expired.
pub(super) struct Ticks {
    raft: RaftHandle,
    heard: Arc<Heard>,
    table: CohortTable,
    sleeper: Mutex<Sleeper>,
    /// Whether the ticks are on; changed under the lock of `sleeper`.
    are_on: AtomicBool,
    alarm: Arc<Notify>,
    /// How many questions of other replicas are being answered: any may change what was agreed on.
    asked: AtomicUsize,
    /// Held until a leader that has rested is answered by a majority again.
    renewal: Arc<tokio::sync::Mutex<()>>,
    is_renewing: AtomicBool,
    started: Instant,
    /// How long a heartbeat counts: one that came earlier says nothing any more.
    heartbeat_lasts: Duration,
    faults: RaftFaults,
}

/// A question that is being answered.
pub(super) struct Asked {
    ticks: Arc<Ticks>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        let is_last = self.ticks.asked.fetch_sub(1, Ordering::SeqCst) == 1;
        if is_last && self.ticks.sleeper.lock().is_known() {
            // Pulses may count again, once it is known that nothing has changed.
            self.ticks.alarm.notify_one();
        }
    }
}

impl Ticks {
    pub(super) fn new(
        raft: RaftHandle,
        heard: Arc<Heard>,
        table: CohortTable,
        sleeper: Sleeper,
        options: &RaftOptions,
    ) -> Arc<Self> {
        Arc::new(Self {
            raft,
            heard,
            table,
            alarm: sleeper.alarm_handle(),
            sleeper: Mutex::new(sleeper),
            are_on: AtomicBool::new(true),
            asked: AtomicUsize::new(0),
            renewal: Arc::default(),
            is_renewing: AtomicBool::new(false),
            started: Instant::now(),
            heartbeat_lasts: options.election_timeout_max,
            faults: options.faults,
        })
    }

    /// Returns when the replica is to be looked at: after `period`, or if it rests, when something has
    /// changed. `metrics` are those of the replica, which has seen what they were before.
    pub(super) async fn wait(&self, period: Duration, metrics: &mut Metrics) {
        let (rests, until) = {
            let sleeper = self.sleeper.lock();
            (sleeper.rests(), sleeper.until())
        };
        if !rests {
            drop(tokio::time::timeout(period, self.alarm.notified()).await);
            return;
        }
        let elapsed = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let changed = async {
            if metrics.changed().await.is_err() {
                // Raft has ended.
                std::future::pending().await
            }
        };
        tokio::select! {
            biased;
            () = self.alarm.notified() => {}
            () = changed => {}
            () = elapsed => {}
        }
    }

    /// Has the replica rest, or rest on, if it may. Returns true if it rests.
    pub(super) fn look(self: &Arc<Self>, rest: Option<Rest>) -> bool {
        let mut sleeper = self.sleeper.lock();
        if self.asked.load(Ordering::SeqCst) != 0 {
            // What is being answered may change what it could rest as, which is looked at behind that.
            if sleeper.rests() && !sleeper.is_undisturbed() {
                self.end(&mut sleeper);
            }
            return sleeper.rests();
        }
        let rested = sleeper.rests();
        let learnt = self.look_up(&sleeper);
        sleeper.settle(Instant::now(), rest, self.started);
        let rests = sleeper.rests();
        match (rested, rests) {
            (_, true) => self.set(false),
            (true, false) => self.rouse(learnt),
            (false, false) => self.set(self.needs_ticks()),
        }
        rests
    }

    /// Wakes the replica before it handles a question of another one.
    pub(super) fn ask(self: &Arc<Self>) -> Asked {
        let asked = self.count();
        self.stir();
        asked
    }

    /// Wakes the replica before it handles what another one asks that stands, or wants it to: it may lead
    /// soon.
    pub(super) fn ask_to_elect(self: &Arc<Self>) -> Asked {
        let asked = self.ask();
        let sleeper = self.sleeper.lock();
        if !sleeper.rests() {
            self.set(true);
        }
        drop(sleeper);
        asked
    }

    /// Notes that the replica handles a heartbeat, which is newer than any that it may have missed: if it
    /// finds nothing new there, it rests on.
    pub(super) fn ask_by_heartbeat(self: &Arc<Self>) -> Asked {
        let asked = self.count();
        drop(self.look_up(&self.sleeper.lock()));
        asked
    }

    fn count(self: &Arc<Self>) -> Asked {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Asked { ticks: Arc::clone(self) }
    }

    /// Wakes the replica before it does anything.
    pub(super) fn stir(self: &Arc<Self>) {
        self.end(&mut self.sleeper.lock());
    }

    /// Wakes the replica before it takes a write.
    pub(super) async fn stir_to_write(self: &Arc<Self>) {
        self.stir();
        if self.is_renewing.load(Ordering::SeqCst) {
            drop(self.renewal.lock().await);
        }
    }

    fn end(self: &Arc<Self>, sleeper: &mut Sleeper) {
        let rested = sleeper.rests();
        let learnt = self.look_up(sleeper);
        sleeper.wake();
        if rested {
            self.rouse(learnt);
            // Its tending goes on.
            self.alarm.notify_one();
        }
    }

    /// Takes in what the replica has missed, before it handles anything.
    fn look_up(&self, sleeper: &Sleeper) -> Option<Learnt> {
        let learnt = sleeper.look_up()?;
        if let Some((point, as_of)) = sleeper.unleased_as_of(&learnt) {
            self.heard.rested(point, as_of, self.table.applied());
        }
        Some(learnt)
    }

    /// Gives a replica that has rested its ticks back: a follower after the heartbeat that it missed, a
    /// leader with what asks for answers.
    fn rouse(self: &Arc<Self>, learnt: Option<Learnt>) {
        let heartbeat = learnt.and_then(|learnt| self.missed(&learnt));
        // It fails if a majority has only just been asked.
        let renewal = Arc::clone(&self.renewal).try_lock_owned();
        if renewal.is_ok() {
            self.is_renewing.store(true, Ordering::SeqCst);
        }
        let ticks = Arc::clone(self);
        simulation::spawn(async move {
            if let Some(vote) = heartbeat {
                let (prev_log_id, entries, leader_commit) = (None, Vec::new(), None);
                let heartbeat = AppendEntriesRequest { vote, prev_log_id, entries, leader_commit };
                if let Err(error) = ticks.raft.append_entries(heartbeat).await {
                    tracing::debug!(%error, "a heartbeat that was missed was not taken");
                }
            }
            {
                let sleeper = ticks.sleeper.lock();
                if !sleeper.rests() {
                    ticks.set(true);
                }
            }
            if let Ok(_held) = renewal {
                // A replica that does not lead returns at once.
                let answered = ticks.raft.get_read_linearizer(ReadPolicy::ReadIndex);
                drop(tokio::time::timeout(RENEWAL_TIMEOUT, answered).await);
                ticks.is_renewing.store(false, Ordering::SeqCst);
            }
        });
    }

    /// Turns the ticks on or off.
    fn set(&self, on: bool) {
        if on && self.faults.keeps_its_ticks_off() {
            return;
        }
        if self.are_on.swap(on, Ordering::SeqCst) != on {
            self.raft.runtime_config().tick(on);
        }
    }

    /// Returns true unless the replica leads, or follows a leader that has just been heard: the leader's
    /// lease, and the election timeout behind it, last for much longer than until the next look.
    fn needs_ticks(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let heard = || self.heard.last_addressed_in(metrics.vote.leader_id.term);
        let is_heard = || heard().is_some_and(|at| at.elapsed() < self.heartbeat_lasts);
        match metrics.state {
            ServerState::Leader => false,
            ServerState::Follower => !metrics.vote.committed || !is_heard(),
            _ => true,
        }
    }

    /// Returns the vote of the heartbeat that a follower missed, if it still counts.
    fn missed(&self, learnt: &Learnt) -> Option<Vote> {
        let Learnt::Heard { received, terms, .. } = learnt else { return None };
        let vote = self.raft.metrics().borrow_watched().vote;
        let is_leaders = vote.committed && vote.leader_id.term == terms.epoch;
        (is_leaders && received.elapsed() < self.heartbeat_lasts).then_some(vote)
    }
}

/// Returns as what a replica could rest that is so and has applied so much.
pub(super) fn rest(metrics: &RaftMetrics<TypeConfig>, applied: Lsn) -> Option<Rest> {
    let committed = metrics.local_committed?;
    let membership = metrics.membership_config.membership();
    let voters: Vec<_> = membership.voter_ids().collect();
    let is_settled = metrics.last_log_index == Some(committed.index)
        && applied == lsn(committed)
        && metrics.running_state.is_ok()
        && membership.get_joint_config().len() == 1
        && membership.nodes().count() == voters.len()
        && voters.contains(&metrics.id);
    let terms = Terms { epoch: metrics.current_term, committed: lsn(committed) };
    let has_all = |id| {
        let matched = metrics.replication.as_ref().and_then(|known| known.get(id));
        matched.is_some_and(|matched| lsn_or_zero(*matched) == terms.committed)
    };
    let others = || voters.iter().filter(|id| **id != metrics.id);
    match metrics.state {
        // Until it has committed an entry of its own, it does not know what is committed.
        ServerState::Leader if is_settled && terms.committed.epoch == terms.epoch => {
            let followers = others().map(|id| id.node()).collect();
            others().all(has_all).then_some(Rest::Leads { terms, followers })
        }
        ServerState::Follower if is_settled && metrics.vote.committed => {
            let leader = metrics.current_leader?.node();
            Some(Rest::Follows { terms, leader })
        }
        _ => None,
    }
}
