//! The leader's part: bringing a follower up to date (SPIN-41, SPIN-42).

use std::ops::Range;

use trireme_types::NodeId;

use super::{Leading, Position, Progress, Shared, Streams, WRITE_STALL_MAX, WRITE_STALL_PAUSE};
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
    /// Records the position that a follower reports, and sends it what it lacks.
    pub(crate) fn on_report_position<C: Streams>(
        &mut self,
        cx: &mut Shared<C>,
        from: NodeId,
        position: Position,
    ) {
        let Some(follower) = self.followers.get_mut(&from) else { return };
        // If its last entry is ours, so is all before it; what it knows to be committed always is.
        let is_same = cx.journal.log().holds(position.last);
        let matched = if is_same { position.last } else { position.committed };
        let is_ours = is_same
            || cx.journal.log().holds(matched)
            || matched.seq <= cx.journal.log().purged().seq;
        if !is_ours {
            // It knows a commit of a later epoch, which will reach this leader too.
            tracing::warn!(follower = %from, ?position, "knows a commit that is not here");
            return;
        }
        if position.is_learner && follower.is_voter() {
            follower.become_learner(cx.journal.last().seq);
        }
        if follower.on_position(matched) {
            tracing::info!(follower = %from, from = %matched, to = %cx.journal.last(), "catching up");
        }
        self.send_next(cx, from);
        let lacks_nothing = self.followers.get(&from).is_some_and(Progress::is_replicating);
        if lacks_nothing {
            // It waits for a message that continues its log.
            self.send_empty(cx, from);
        }
    }

    /// Sends a follower that is catching up the next piece of what it lacks, unless one is on its
    /// way.
    pub(super) fn send_next<C: Streams>(&mut self, cx: &mut Shared<C>, to: NodeId) {
        let Some(follower) = self.followers.get_mut(&to) else { return };
        if !follower.awaits_piece() {
            return;
        }
        cx.journal.write_gathered();
        let (last, committed) = (cx.journal.last().seq, cx.journal.committed());
        if follower.next() > last {
            follower.become_replicating(cx.now);
            self.caught_up(cx, to);
            return;
        }
        let Some(previous) = cx.journal.log().lsn_at(follower.next() - 1) else {
            follower.become_sending_snapshot();
            let message = C::snapshot_message(self.epoch);
            cx.journal.push(Effect::SendSnapshot { to, message, when: When::Now });
            return;
        };
        // Committed writes first (M21); what may yet be dropped follows when nothing else is left.
        let end = if follower.next() <= committed.seq { committed.seq } else { last } + 1;
        let seqs = follower.next()..end;
        follower.send_piece(cx.now);
        if end > committed.seq + 1 {
            self.begin_write_stall(cx.now, to);
        }
        let current_at = self.current_at(cx.now, committed);
        let preceding = self.preceding(cx, previous);
        let context = super::Preceding { committed, current_at, ..preceding };
        cx.journal.push(Effect::SendLog { to, previous, seqs, context, when: When::Now });
    }

    /// Records how far a piece of the log was sent, and sends the next.
    pub(crate) fn on_log_sent<C: Streams>(
        &mut self,
        cx: &mut Shared<C>,
        to: NodeId,
        seqs: &Range<u64>,
        next: u64,
    ) {
        let Some(follower) = self.followers.get_mut(&to) else { return };
        follower.on_piece_sent(cx.now, seqs, next);
        self.send_next(cx, to);
    }

    /// Records that a snapshot did not arrive; the follower is probed later.
    pub(crate) fn on_snapshot_lost(&mut self, now: Moment, to: NodeId) {
        if let Some(follower) = self.followers.get_mut(&to) {
            follower.on_snapshot_end();
            follower.probe_later(now);
        }
    }

    /// Records that a snapshot arrived; what the follower answered comes as a message.
    pub(crate) fn on_snapshot_sent(&mut self, to: NodeId) {
        if let Some(follower) = self.followers.get_mut(&to) {
            follower.on_snapshot_end();
        }
    }

    /// Has new writes wait, so that the follower comes to an end (M22). A catch-up that had to let
    /// go lets writes flow for a while before it tries again.
    fn begin_write_stall(&mut self, now: Moment, node: NodeId) {
        if self.write_stall.is_none() && self.is_open() && now >= self.write_stall_after {
            self.write_stall = Some(WriteStall { node, since: now });
        }
    }

    fn caught_up<C: Streams>(&mut self, cx: &mut Shared<C>, node: NodeId) {
        self.measures.catch_ups += 1;
        tracing::debug!(follower = %node, "in step");
        if self.write_stall.is_some_and(|write_stall| write_stall.node == node) {
            self.end_write_stall(cx);
        }
    }

    pub(super) fn end_write_stall_if_due<C: Streams>(&mut self, cx: &mut Shared<C>) {
        if self.write_stall.is_some_and(|write_stall| write_stall.until() <= cx.now) {
            self.write_stall_after = cx.now + WRITE_STALL_PAUSE;
            self.end_write_stall(cx);
        }
    }

    fn end_write_stall<C: Streams>(&mut self, cx: &mut Shared<C>) {
        if C::faults(cx).stalls_writes_for_good() {
            // Nor does a timeout come again that would end it.
            return self.write_stall.iter_mut().for_each(|stall| stall.since = Moment::FAR);
        }
        if let Some(write_stall) = self.write_stall.take() {
            let length = cx.now.since(write_stall.since);
            self.measures.longest_write_stall = self.measures.longest_write_stall.max(Some(length));
        }
        self.take_held(cx);
    }

    /// Forgets a follower, and goes on with writes that waited for it.
    pub(crate) fn forget<C: Streams>(&mut self, cx: &mut Shared<C>, node: NodeId) {
        self.followers.remove(&node);
        if self.write_stall.is_some_and(|write_stall| write_stall.node == node) {
            self.end_write_stall(cx);
        }
    }
}
