//! What a leader sends to its followers, and when: entries, the commit point, probes, beacons.

use trireme_types::{Entry, Lsn, NodeId, Timing};

use super::catch_up::WriteStall;
use super::{Beacon, Leading, PROPOSAL_BYTES_MAX, Preceding, Progress, Shared, Streams};
use crate::core::{Moment, When};

impl Leading {
    /// Sends what the batch has proposed to every follower that is replicating, in few messages.
    pub(crate) fn send_gathered<C: Streams>(&mut self, cx: &mut Shared<C>) {
        //= SPIN-2
        //= PAC-2
        // The write to the log has been submitted, and nothing here waits for it.
        let entries = cx.journal.take_unsent();
        let Some(first) = entries.first().map(|entry| entry.lsn.seq) else { return };
        self.advertise_commit(cx);
        let mut previous =
            cx.journal.log().lsn_at(first - 1).unwrap_or_else(|| cx.journal.log().purged());
        for piece in pieces(&entries) {
            let first = piece[0].lsn.seq;
            let preceding = self.preceding(cx, previous);
            let next = first + piece.len() as u64;
            let bytes = piece.iter().map(|entry| entry.payload.len()).sum();
            for (&to, follower) in &mut self.followers {
                if follower.is_replicating() && follower.next() == first {
                    if !follower.has_room() {
                        tracing::debug!(follower = %to, "does not keep up");
                        follower.become_catching_up();
                        continue;
                    }
                    follower.send_entries(cx.now, next - 1, bytes);
                    let message = C::entries_message(preceding, piece.to_vec());
                    cx.journal.send(to, message, When::Now);
                }
            }
            previous = piece[piece.len() - 1].lsn;
        }
    }

    /// Records how far the log is committed and advertises that from now on, once in a commit period
    /// (SPIN-7). Returns true if it did.
    fn advertise_commit<C: Streams>(&mut self, cx: &mut Shared<C>) -> bool {
        if cx.journal.committed() <= self.advertised_commit || cx.now < self.advertise_at(cx.timing)
        {
            return false;
        }
        //= SPIN-7
        self.advertised_commit = cx.journal.committed();
        self.advertised_at = cx.now;
        self.current_at = self.current_at(cx.now, self.advertised_commit);
        cx.journal.record_commit_point();
        true
    }

    fn advertise_at(&self, timing: Timing) -> Moment {
        self.advertised_at + timing.commit_period
    }

    pub(super) fn preceding<C: Streams>(&mut self, cx: &Shared<C>, previous: Lsn) -> Preceding {
        let (committed, current_at) = (self.advertised_commit, self.advertised_current_at(cx));
        Preceding { epoch: self.epoch, previous, committed, sent: cx.now, current_at }
    }

    /// Returns as of when the advertised commit point was the newest.
    fn advertised_current_at<C: Streams>(&mut self, cx: &Shared<C>) -> Option<Moment> {
        if cx.journal.committed() == self.advertised_commit {
            self.current_at = self.current_at.max(self.current_at(cx.now, self.advertised_commit));
        }
        self.current_at
    }

    /// Does what is due at `now`.
    pub(crate) fn on_timeout<C: Streams>(&mut self, cx: &mut Shared<C>) {
        self.end_write_stall_if_due(cx);
        self.note_followers_that_owe_nothing(cx);
        if self.advertise_commit(cx) {
            let is_due = |follower: &Progress| {
                follower.is_replicating() && follower.next() > cx.journal.last().seq
            };
            let due: Vec<_> =
                self.followers.iter().filter(|(_, f)| is_due(f)).map(|(node, _)| *node).collect();
            due.into_iter().for_each(|to| self.send_empty(cx, to));
        }
        let overdue = |follower: &Progress| follower.probe_at().is_some_and(|at| at <= cx.now);
        let due: Vec<_> =
            self.followers.iter().filter(|(_, f)| overdue(f)).map(|(node, _)| *node).collect();
        due.into_iter().for_each(|to| self.probe(cx, to));
        self.send_beacons(cx);
    }

    /// Records which followers have everything: their time to acknowledge counts from what comes next.
    fn note_followers_that_owe_nothing<C: Streams>(&mut self, cx: &Shared<C>) {
        let last = cx.journal.last().seq;
        for follower in
            self.followers.values_mut().filter(|follower| follower.match_lsn().seq >= last)
        {
            follower.note_progress(cx.now);
        }
    }

    /// Sends a message without entries: it carries the commit point, and a follower that lacks what
    /// comes before it reports its position.
    pub(super) fn send_empty<C: Streams>(&mut self, cx: &mut Shared<C>, to: NodeId) {
        let Some(follower) = self.followers.get_mut(&to) else { return };
        let Some(previous) = cx.journal.log().lsn_at(follower.next() - 1) else { return };
        follower.send_empty(cx.now);
        let preceding = self.preceding(cx, previous);
        let message = C::entries_message(preceding, Vec::new());
        cx.journal.send(to, message, When::Now);
    }

    /// Asks a follower whether something was lost.
    pub(crate) fn probe<C: Streams>(&mut self, cx: &mut Shared<C>, to: NodeId) {
        let Some(follower) = self.followers.get_mut(&to) else { return };
        follower.restart_probe_timer(cx.now);
        if follower.is_replicating() || !follower.has_room() {
            self.send_empty(cx, to);
        } else {
            self.send_next(cx, to);
        }
    }

    /// Asks every follower whether something was lost.
    pub(crate) fn probe_all<C: Streams>(&mut self, cx: &mut Shared<C>) {
        let nodes: Vec<_> = self.followers.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.probe(cx, node));
    }

    /// Sends a beacon to every follower that was sent nothing for a beacon interval (M40), or whose
    /// support what was sent does not bring.
    fn send_beacons<C: Streams>(&mut self, cx: &mut Shared<C>) {
        let current_at = self.advertised_current_at(cx);
        let beacon = Beacon {
            epoch: self.epoch,
            committed: self.advertised_commit,
            sent: cx.now,
            current_at,
        };
        let interval = cx.timing.beacon_interval;
        for (&to, follower) in &mut self.followers {
            if follower.beacon_at(interval) <= cx.now {
                follower.send_beacon(cx.now);
                self.measures.beacons += 1;
                cx.journal.signal(to, C::beacon_message(beacon));
            }
        }
    }

    /// Returns when something is due.
    pub(crate) fn next_timeout<C: Streams>(&self, cx: &Shared<C>) -> Option<Moment> {
        let interval = cx.timing.beacon_interval;
        let of_followers = self.followers.values().flat_map(|follower| {
            [Some(follower.beacon_at(interval)), follower.probe_at()].into_iter().flatten()
        });
        let advertises =
            (cx.journal.committed() > self.advertised_commit).then(|| self.advertise_at(cx.timing));
        let write_stall = self.write_stall.as_ref().map(WriteStall::until);
        of_followers.chain(advertises).chain(write_stall).min()
    }
}

/// Cuts entries into what one message each may hold.
fn pieces(entries: &[Entry]) -> Vec<&[Entry]> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, entry) in entries.iter().enumerate() {
        if bytes + entry.payload.len() > PROPOSAL_BYTES_MAX && at > start {
            pieces.push(&entries[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes += entry.payload.len();
    }
    pieces.push(&entries[start..]);
    pieces
}

#[cfg(test)]
mod tests {
    use trireme_types::EntryKind;

    use super::*;

    /// Returns how many entries there are in each message, of entries of so many bytes.
    fn cut(bytes: &[usize]) -> Vec<usize> {
        let entry = |(bytes, seq): (&usize, u64)| Entry {
            lsn: Lsn::new(1, seq),
            kind: EntryKind::Commands,
            payload: vec![0; *bytes].into(),
        };
        let entries: Vec<_> = bytes.iter().zip(1..).map(entry).collect();
        let pieces = pieces(&entries);
        assert_eq!(pieces.concat(), entries, "nothing is left out");
        pieces.iter().map(|piece| piece.len()).collect()
    }

    #[test]
    fn a_message_holds_no_more_than_its_bytes_unless_one_entry_has_more() {
        let (max, half) = (PROPOSAL_BYTES_MAX, PROPOSAL_BYTES_MAX / 2);
        assert_eq!(cut(&[half, half]), [2], "as much as a message holds");
        assert_eq!(cut(&[half, half, 1]), [2, 1]);
        assert_eq!(cut(&[half, half + 1]), [1, 1]);
        assert_eq!(cut(&[max + 1, 1, max, max + 1]), [1, 1, 1, 1]);
        assert_eq!(cut(&[1, 0, 0]), [3]);
    }
}
