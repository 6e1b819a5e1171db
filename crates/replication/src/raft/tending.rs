//! What a replica does from time to time, beside what openraft does: it probes the lanes that owe
//! it answers, gives up a lead that it cannot use, completes a change of membership that an earlier
//! leader began, and asks to be admitted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use openraft::async_runtime::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{RaftMetrics, ServerState};
use tokio::time::Instant;
use trireme_proto::v1;
use trireme_proto::v1::raft_message::Body;
use trireme_storage::CohortTable;
use trireme_types::NodeId;

use super::RaftOptions;
use super::admission::{Admission, is_committed_joint, is_newcomer};
use super::calls::Calls;
use super::inbound::RaftHandle;
use super::rest::{Ticks, rest};
use super::types::{
    LogId, RaftId, RaftMembership, StoredMembership, TypeConfig, Vote, vote_message,
};
use super::watchdog::{Trouble, View, Watchdog};
use crate::core::Rest;
use crate::simulation;
use crate::transport::Lane;

/// How often a replica under a new incarnation asks to be admitted. Each step towards it, being
/// made a learner, catching up and being made a voter, is taken when it asks.
const JOIN_INTERVAL: Duration = Duration::from_millis(500);

/// How long a leader that gives up its lead waits for one follower to stand before it asks the next.
const STAND_TIMEOUT: Duration = Duration::from_millis(300);

/// Tends one replica until it is aborted.
pub(super) struct Tending {
    pub(super) raft: RaftHandle,
    pub(super) ticks: Arc<Ticks>,
    pub(super) admission: Arc<Admission>,
    pub(super) calls: Arc<Calls>,
    pub(super) table: CohortTable,
    /// The nodes that are to hold the cohort, as far as was known when the replica was opened.
    pub(super) nodes: Vec<NodeId>,
    pub(super) options: RaftOptions,
}

/// What is known of the replica at one moment.
struct Snapshot {
    is_leader: bool,
    leader: Option<RaftId>,
    vote: Vote,
    membership: Arc<StoredMembership>,
    last: u64,
    committed: u64,
    commit_point: Option<LogId>,
    /// For how long no majority has acknowledged anything.
    unanswered_for: Option<Duration>,
    /// How far the others have come, the furthest first.
    others: Vec<RaftId>,
}

/// A lead that is being given up.
struct GivingUp {
    trouble: Trouble,
    since: Instant,
    asked_at: Instant,
    /// The followers that were asked to stand.
    asked: BTreeSet<RaftId>,
}

/// What is remembered of the present lead.
struct Lead {
    term: u64,
    since: Instant,
    /// When heartbeats were sent last.
    beat_at: Option<Instant>,
    /// The commit point at the last look, and what was applied.
    progress: (u64, u64),
    giving_up: Option<GivingUp>,
    /// Until when the lead is kept whatever is seen, after it could not be handed over.
    kept_until: Instant,
}

impl Tending {
    pub(super) async fn run(self) {
        let quick = self.options.heartbeat_interval / 2;
        let mut watchdog = Watchdog::new(self.options.election_timeout_max, quick);
        let mut lead: Option<Lead> = None;
        let mut metrics = self.raft.metrics();
        let mut joined_at: Option<Instant> = None;
        let mut rested = false;
        loop {
            // One that does not lead has little to look after.
            let period = if lead.is_some() { quick } else { self.options.heartbeat_interval };
            self.ticks.wait(period, &mut metrics).await;
            let now = Instant::now();
            let seen = self.see();
            let is_free = lead.as_ref().is_none_or(|lead| lead.giving_up.is_none());
            if self.ticks.look(self.rest().filter(|_| is_free)) {
                rested = true;
                continue;
            }
            let has_woken = std::mem::take(&mut rested);
            if let Some(lead) = lead.as_mut().filter(|_| has_woken) {
                // Nothing was asked of anybody meanwhile.
                lead.since = now;
                watchdog.reset();
                self.calls.forget_silence();
            }
            self.probe_what_is_overdue(&seen, quick);
            if !seen.is_leader {
                if lead.take().is_some_and(|lead| lead.giving_up.is_some()) {
                    self.raft.runtime_config().heartbeat(true);
                }
                self.ask_to_be_admitted(&seen, now, &mut joined_at);
                continue;
            }
            let lead = match &mut lead {
                Some(lead) if lead.term == seen.vote.leader_id.term => lead,
                other => {
                    watchdog.reset();
                    self.calls.forget_silence();
                    self.raft.runtime_config().heartbeat(true);
                    let term = seen.vote.leader_id.term;
                    let (progress, giving_up, beat_at) = ((0, 0), None, None);
                    let (since, kept_until) = (now, now);
                    other.insert(Lead { term, since, beat_at, progress, giving_up, kept_until })
                }
            };
            self.watch(&seen, lead, &mut watchdog, now);
            self.beat(lead, now, quick);
            if is_committed_joint(&seen.membership, seen.committed) {
                self.complete_membership();
            }
            let gone = self.admission.gone(seen.membership.membership(), lead.since);
            if !gone.is_empty() {
                self.remove_learners(gone);
            }
        }
    }

    /// Sends heartbeats if they are due before half of `period` from now is over, unless the lead is being
    /// given up. openraft's ticks, which would send them, are off.
    fn beat(&self, lead: &mut Lead, now: Instant, period: Duration) {
        let is_due = |at: Instant| now - at + period / 2 >= self.options.heartbeat_interval;
        if lead.giving_up.is_some() || !lead.beat_at.is_none_or(is_due) {
            return;
        }
        // Without room in its queue, openraft is asked at the next look: it must not be waited for (P14).
        if let Some(Ok(())) = self.raft.trigger().heartbeat().now_or_never() {
            lead.beat_at = Some(now);
        }
    }

    /// Completes a joint membership, unless this replica is about to.
    fn complete_membership(&self) {
        let (raft, admission) = (self.raft.clone(), self.admission.clone());
        let cohort = self.calls.cohort();
        // It waits for a majority, which nothing else must wait for.
        simulation::spawn(async move { admission.complete(&raft, cohort).await });
    }

    /// Removes invited learners that are gone, unless this replica is about to.
    fn remove_learners(&self, gone: BTreeSet<RaftId>) {
        let (raft, admission) = (self.raft.clone(), self.admission.clone());
        let cohort = self.calls.cohort();
        // It waits for a majority, which nothing else must wait for.
        simulation::spawn(async move { admission.remove(&raft, cohort, gone).await });
    }

    /// Returns what the replica could rest as.
    fn rest(&self) -> Option<Rest> {
        let applied = self.table.applied();
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        rest(&metrics, applied)
    }

    fn see(&self) -> Snapshot {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        Snapshot::of(&metrics)
    }

    /// Probes the data lanes on which something has waited for an answer for a while: what was lost
    /// is known to be at the answer.
    fn probe_what_is_overdue(&self, seen: &Snapshot, period: Duration) {
        for node in self.calls.overdue(Lane::Data, period) {
            for (id, _) in seen.membership.membership().nodes().filter(|(id, _)| id.node() == node)
            {
                self.calls.probe(*id, Lane::Data);
            }
        }
    }

    fn watch(&self, seen: &Snapshot, lead: &mut Lead, watchdog: &mut Watchdog, now: Instant) {
        if seen.others.is_empty() {
            return;
        }
        let applied = self.table.applied().seq;
        // Only what stands still is looked into, so that probes cost a busy cohort nothing.
        let (committed_before, applied_before) = lead.progress;
        let stands_still = seen.last > seen.committed.min(applied)
            && (seen.committed == committed_before || applied == applied_before);
        lead.progress = (seen.committed, applied);
        if stands_still || lead.giving_up.is_some() {
            seen.others.iter().for_each(|other| self.calls.probe(*other, Lane::Data));
        } else {
            self.calls.forget_silence();
        }
        // A lead that has just begun was not answered yet.
        let led_for = now - lead.since;
        let view = View {
            now,
            unanswered_for: seen.unanswered_for.map_or(led_for, |it| it.min(led_for)),
            data_flow: self.has_flow(seen, Lane::Data, self.options.election_timeout_max),
            applied,
            follower_applied: self.follower_applied(seen),
        };
        let trouble = watchdog.look(view);
        match (&mut lead.giving_up, trouble) {
            (None, Some(trouble)) if now >= lead.kept_until => {
                tracing::warn!(cohort = %self.calls.cohort(), ?trouble, "gives up its lead");
                self.raft.runtime_config().heartbeat(false);
                let asked = BTreeSet::new();
                let mut giving_up = GivingUp { trouble, since: now, asked_at: now, asked };
                self.ask_to_stand(seen, &mut giving_up, now);
                lead.giving_up = Some(giving_up);
            }
            (None, _) => {}
            (Some(giving_up), _) => {
                if self.is_over(seen, giving_up, now) {
                    tracing::warn!(cohort = %self.calls.cohort(), "keeps its lead");
                    self.raft.runtime_config().heartbeat(true);
                    lead.giving_up = None;
                    // Long enough for heartbeats to gather the followers again.
                    lead.kept_until = now + self.options.election_timeout_max * 2;
                    watchdog.reset();
                } else if now - giving_up.asked_at > STAND_TIMEOUT {
                    self.ask_to_stand(seen, giving_up, now);
                } else {
                    self.probe_heartbeat_lanes(seen);
                }
            }
        }
    }

    /// Returns true if a lead that was to be given up is kept: its trouble is over, or nobody took
    /// it within the time that an election takes, so that a follower whose vote is needed may again
    /// be in want of heartbeats.
    fn is_over(&self, seen: &Snapshot, giving_up: &GivingUp, now: Instant) -> bool {
        let for_now = now - giving_up.since;
        let recent = self.options.heartbeat_interval * 2;
        let is_answered = giving_up.trouble != Trouble::Behind
            && for_now > recent * 2
            && self.has_flow(seen, Lane::Heartbeat, recent)
            && self.has_flow(seen, Lane::Data, recent);
        is_answered || for_now > self.options.election_timeout_max * 2
    }

    /// Asks one of the followers, the most advanced first, to stand at once, and all to let it.
    fn ask_to_stand(&self, seen: &Snapshot, giving_up: &mut GivingUp, now: Instant) {
        self.probe_heartbeat_lanes(seen);
        giving_up.asked_at = now;
        let voters: BTreeSet<RaftId> = seen.membership.voter_ids().collect();
        let mut candidates = seen.others.iter().filter(|id| voters.contains(id));
        let next = candidates.clone().find(|id| !giving_up.asked.contains(id));
        let Some(&to) = next.or_else(|| candidates.next()) else { return };
        giving_up.asked.insert(to);
        for other in &seen.others {
            // On the lane that works if any does. Whether its log is long enough, the election
            // shows: the leader's newest entries may have reached nobody.
            let transfer = v1::RaftTransferLeader {
                from: Some(vote_message(&seen.vote)),
                to: to.node,
                last: None,
                to_incarnation: to.incarnation,
            };
            self.calls.notify(*other, Lane::Heartbeat, Body::TransferLeader(transfer));
        }
    }

    fn probe_heartbeat_lanes(&self, seen: &Snapshot) {
        seen.others.iter().for_each(|other| self.calls.probe(*other, Lane::Heartbeat));
    }

    /// Returns true if a majority, with this replica, has not been silent for longer on a lane.
    fn has_flow(&self, seen: &Snapshot, lane: Lane, silence_max: Duration) -> bool {
        let me = self.calls.me();
        let flows = |id: &RaftId| *id == me || self.calls.silence(id.node(), lane) <= silence_max;
        has_majority(seen.membership.membership(), flows)
    }

    fn follower_applied(&self, seen: &Snapshot) -> u64 {
        let applied = seen.others.iter().map(|other| self.calls.applied(other.node()).seq);
        applied.max().unwrap_or(0)
    }

    /// Asks the others to make this replica a member in place of its predecessor, until it counts: the
    /// one that leads does. All of them are asked: who leads is not known for sure to a replica that is
    /// no member, since a leader that came later sends it nothing.
    fn ask_to_be_admitted(&self, seen: &Snapshot, now: Instant, joined_at: &mut Option<Instant>) {
        let me = self.calls.me();
        let counts = !is_newcomer(me, &seen.membership, seen.commit_point);
        if counts || joined_at.is_some_and(|at| now - at < JOIN_INTERVAL) {
            return;
        }
        *joined_at = Some(now);
        let known = seen.membership.membership().nodes().map(|(id, _)| id.node());
        let nodes: BTreeSet<NodeId> = known.chain(self.nodes.iter().copied()).collect();
        let only = seen.leader.filter(|_| self.options.faults.asks_one_leader()).map(RaftId::node);
        for node in nodes.into_iter().filter(|node| *node != me.node()) {
            if only.is_some_and(|leader| leader != node) {
                continue;
            }
            let (incarnation, is_invited) = (me.incarnation, !self.nodes.contains(&me.node()));
            let join = v1::RaftJoin { incarnation, is_invited };
            self.calls.notify(RaftId::first(node), Lane::Data, Body::Join(join));
        }
    }
}

impl Snapshot {
    fn of(metrics: &RaftMetrics<TypeConfig>) -> Self {
        let membership = metrics.membership_config.clone();
        let mut others: Vec<_> = metrics.replication.iter().flatten().collect();
        others.retain(|(id, _)| **id != metrics.id);
        others.sort_by_key(|(_, matched)| std::cmp::Reverse(**matched));
        Self {
            is_leader: metrics.state == ServerState::Leader,
            leader: metrics.current_leader,
            vote: metrics.vote,
            last: metrics.last_log_index.map_or(0, |index| index + 1),
            committed: metrics.local_committed.map_or(0, |id| id.index + 1),
            commit_point: metrics.local_committed,
            unanswered_for: metrics.last_quorum_acked.map(|acked| acked.elapsed()),
            others: others.into_iter().map(|(id, _)| *id).collect(),
            membership,
        }
    }
}

/// Returns true if a majority of each of a membership's configurations is so.
fn has_majority(membership: &RaftMembership, is_so: impl Fn(&RaftId) -> bool) -> bool {
    membership.get_joint_config().iter().all(|voters| {
        let count = voters.iter().filter(|id| is_so(id)).count();
        count > voters.len() / 2
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_joint_membership_needs_a_majority_of_both() {
        let ids = |nodes: &[u64]| -> BTreeSet<RaftId> {
            nodes.iter().map(|node| RaftId::first(NodeId(*node))).collect()
        };
        let membership =
            RaftMembership::new_with_defaults(vec![ids(&[1, 2, 3]), ids(&[3, 4, 5])], []);
        let with = |nodes: &[u64]| has_majority(&membership, |id| nodes.contains(&id.node));
        assert!(with(&[1, 3, 4]));
        assert!(!with(&[1, 2, 3]));
        assert!(!with(&[3, 4, 5]));
    }
}
