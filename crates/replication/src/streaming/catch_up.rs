//! The leader's part: bringing a follower up to date (SPIN-41, SPIN-42).

use std::ops::Range;

use trireme_types::NodeId;

use super::{
    Journal, Leading, PROBE_AFTER, PROPOSAL_BYTES_MAX, Position, Stage, Streams, WRITE_STALL_MAX,
    WRITE_STALL_PAUSE,
};
use crate::core::{Effect, Moment, When};

/// New writes wait while a follower is sent the last of what it lacks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteStall {
    /// The follower.
    node: NodeId,
    since: Moment,
}

impl WriteStall {
    /// Returns when writes go on in any case.
    pub(super) fn until(&self) -> Moment {
        self.since + WRITE_STALL_MAX
    }
}

impl Leading {
    /// Takes in where a follower stands, and sends it what it lacks.
    pub(crate) fn on_report_position<C: Streams>(
        &mut self,
        now: Moment,
        journal: &mut Journal<C>,
        from: NodeId,
        position: Position,
    ) {
        let Some(follower) = self.followers.get_mut(&from) else { return };
        // If its last entry is ours, so is all before it; what it knows to be committed always is.
        let is_same = journal.log().holds(position.last);
        let matched = if is_same { position.last } else { position.committed };
        let is_ours =
            is_same || journal.log().holds(matched) || matched.seq <= journal.log().purged().seq;
        if !is_ours {
            // It knows a commit of a later epoch, which will reach this leader too.
            tracing::warn!(follower = %from, ?position, "knows a commit that is not here");
            return;
        }
        follower.begin_after(matched);
        if position.is_learner && follower.is_voter {
            follower.is_voter = false;
            follower.votes_from = journal.last().seq;
        }
        if follower.stage != Stage::CatchingUp {
            follower.stage = Stage::CatchingUp;
            tracing::info!(follower = %from, from = %matched, to = %journal.last(), "catching up");
        }
        self.send_next(now, journal, from);
        let lacks_nothing =
            self.followers.get(&from).is_some_and(|follower| follower.stage == Stage::Replicating);
        if lacks_nothing {
            // It waits for a word that continues its log.
            self.send_empty(now, journal, from);
        }
    }

    /// Sends a follower that is catching up the next piece of what it lacks, unless one is on its
    /// way.
    pub(super) fn send_next<C: Streams>(
        &mut self,
        now: Moment,
        journal: &mut Journal<C>,
        to: NodeId,
    ) {
        let Some(follower) = self.followers.get_mut(&to) else { return };
        let may_send = !follower.is_sending && follower.has_room();
        if !may_send || follower.stage != Stage::CatchingUp {
            return;
        }
        journal.write_gathered();
        let (last, committed) = (journal.last().seq, journal.committed());
        if follower.next > last {
            follower.stage = Stage::Replicating;
            follower.probe_at = follower.is_owing().then(|| now + PROBE_AFTER);
            self.caught_up(now, journal, to);
            return;
        }
        let Some(previous) = journal.log().lsn_at(follower.next - 1) else {
            (follower.is_sending, follower.is_sent_snapshot) = (true, true);
            let message = C::snapshot_message(self.epoch);
            journal.push(Effect::SendSnapshot { to, message, when: When::Now });
            return;
        };
        // Committed writes first (M21); what may yet be dropped follows when nothing else is left.
        let end = if follower.next <= committed.seq { committed.seq } else { last } + 1;
        let seqs = follower.next..end;
        follower.is_sending = true;
        follower.last_sent_at = Some(now);
        if end > committed.seq + 1 {
            self.begin_write_stall(now, to);
        }
        let current_at = self.current_at(now, committed);
        let preceding = self.preceding(now, journal, previous);
        let context = super::Preceding { committed, current_at, ..preceding };
        journal.push(Effect::SendLog { to, previous, seqs, context, when: When::Now });
    }

    /// Takes in how far a piece of the log went.
    pub(crate) fn on_log_sent<C: Streams>(
        &mut self,
        now: Moment,
        journal: &mut Journal<C>,
        to: NodeId,
        seqs: &Range<u64>,
        next: u64,
    ) {
        let Some(follower) = self.followers.get_mut(&to) else { return };
        follower.is_sending = false;
        // Unless the follower has said meanwhile what it wants.
        if follower.next == seqs.start && next > seqs.start {
            // How many bytes it was, only the driver knows: as many as one piece has at the most.
            follower.sent(next - 1, PROPOSAL_BYTES_MAX);
            follower.probe_at.get_or_insert(now + PROBE_AFTER);
        }
        self.send_next(now, journal, to);
    }

    /// Takes in that a snapshot did not get there; the follower is asked again later.
    pub(crate) fn on_snapshot_lost(&mut self, now: Moment, to: NodeId) {
        if let Some(follower) = self.followers.get_mut(&to) {
            (follower.is_sending, follower.is_sent_snapshot) = (false, false);
            follower.probe_at = Some(now + PROBE_AFTER);
        }
    }

    /// Takes in that a snapshot got there; what the follower answered comes as a message.
    pub(crate) fn on_snapshot_sent(&mut self, to: NodeId) {
        if let Some(follower) = self.followers.get_mut(&to) {
            (follower.is_sending, follower.is_sent_snapshot) = (false, false);
        }
    }

    /// Has new writes wait, so that the follower comes to an end (M22). A catch-up that had to let
    /// go lets writes flow for a while before it tries again.
    fn begin_write_stall(&mut self, now: Moment, node: NodeId) {
        if self.write_stall.is_none() && self.is_open() && now >= self.write_stall_after {
            self.write_stall = Some(WriteStall { node, since: now });
        }
    }

    fn caught_up<C: Streams>(&mut self, now: Moment, journal: &mut Journal<C>, node: NodeId) {
        self.measures.catch_ups += 1;
        tracing::debug!(follower = %node, "in step");
        if self.write_stall.is_some_and(|write_stall| write_stall.node == node) {
            self.end_write_stall(now, journal);
        }
    }

    pub(super) fn end_write_stall_if_due<C: Streams>(
        &mut self,
        now: Moment,
        journal: &mut Journal<C>,
    ) {
        if self.write_stall.is_some_and(|write_stall| write_stall.until() <= now) {
            self.write_stall_after = now + WRITE_STALL_PAUSE;
            self.end_write_stall(now, journal);
        }
    }

    fn end_write_stall<C: Streams>(&mut self, now: Moment, journal: &mut Journal<C>) {
        if let Some(write_stall) = self.write_stall.take() {
            let length = now.since(write_stall.since);
            self.measures.longest_write_stall = self.measures.longest_write_stall.max(Some(length));
        }
        self.take_held(journal);
    }

    /// Forgets that a follower that went away is waited for.
    pub(crate) fn forget<C: Streams>(
        &mut self,
        now: Moment,
        journal: &mut Journal<C>,
        node: NodeId,
    ) {
        self.followers.remove(&node);
        if self.write_stall.is_some_and(|write_stall| write_stall.node == node) {
            self.end_write_stall(now, journal);
        }
    }
}
