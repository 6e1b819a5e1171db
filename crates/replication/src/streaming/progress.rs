//! How far one follower has come, as its leader knows it.
//!
//! ```text
//!                 on_position                    everything sent
//!   Probing ──────────────────────► CatchingUp ───────────────────► Replicating
//!   (a new leader knows no position) │  ▲    ▲                           │
//!              the log begins later  │  │    └── on_position (a gap), or ┘
//!                                    ▼  │        the window is full
//!                              SendingSnapshot ── on_snapshot_end
//! ```
//!
//! The fields are private: a transition moves all of them together, and [`Progress::validate`] states
//! what holds between them.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use trireme_types::{Lsn, Timing};

use super::{ACK_LEASES, PROBE_AFTER, PROPOSAL_BYTES_MAX, WINDOW_BYTES};
use crate::core::Moment;

/// How a leader serves a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has not reported its position yet, and is sent beacons only.
    Probing,
    /// It is sent what it lacks, one piece at a time; `is_sending` while one is on its way out.
    CatchingUp { is_sending: bool },
    /// It is sent a snapshot, since the leader's log begins behind what it lacks.
    SendingSnapshot,
    /// It is sent every entry as it is proposed.
    Replicating,
}

/// What a leader knows of a follower.
#[derive(Debug)]
pub(crate) struct Progress {
    stage: Stage,
    /// The follower's log is the leader's up to here, on the follower's disk.
    match_lsn: Lsn,
    /// The first entry that was not sent.
    next: u64,
    /// What was sent and is not acknowledged: the last entry of each message, and its bytes.
    in_flight: VecDeque<(u64, usize)>,
    in_flight_bytes: usize,
    /// Its acknowledgements count towards committing, and its support towards the lease.
    is_voter: bool,
    /// The end of the leader's log when a follower that had been a voter reported as a learner: all
    /// that it may once have acknowledged lies before (S14).
    votes_from: u64,
    /// When the leader began to bring it up to date, as one that does not count.
    begun: Moment,
    /// The time in the newest message that it acknowledged with its support.
    supported: Option<Moment>,
    /// When the newest message left whose acknowledgement gives support.
    last_sent_at: Option<Moment>,
    /// When the newest beacon left.
    last_beacon_at: Option<Moment>,
    /// When its acknowledgement is overdue.
    probe_at: Option<Moment>,
    /// When it last acknowledged more than before, or owed nothing: a disk that hangs shows here
    /// while beacons are still acknowledged (P14).
    progressed: Moment,
    /// When it last sent something on the data lane, or the reason why it does not.
    heard_data: Moment,
}

/// The state, and the transitions between its stages.
impl Progress {
    /// Returns the progress of a follower that has not reported its position.
    pub(crate) const fn probing(is_voter: bool) -> Self {
        Self {
            stage: Stage::Probing,
            match_lsn: Lsn::ZERO,
            next: 1,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            is_voter,
            votes_from: 0,
            begun: Moment::START,
            supported: None,
            last_sent_at: None,
            last_beacon_at: None,
            probe_at: None,
            progressed: Moment::START,
            heard_data: Moment::START,
        }
    }

    /// Returns the progress of a replica that is to be brought up to date from now on, and does not count.
    pub(crate) fn learning(now: Moment) -> Self {
        Self { begun: now, last_sent_at: Some(now), ..Self::probing(false) }
    }

    /// Begins anew behind `matched`, the follower's position: nothing that was sent counts as sent.
    /// Returns true if the follower was not catching up before.
    pub(crate) fn on_position(&mut self, matched: Lsn) -> bool {
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.match_lsn = matched;
        self.next = matched.seq + 1;
        self.probe_at = None;
        let begins = matches!(self.stage, Stage::Probing | Stage::Replicating);
        if begins {
            self.become_catching_up();
        }
        begins
    }

    /// Sends it no more entries as they are proposed, until it has been sent what it lacks.
    pub(crate) const fn become_catching_up(&mut self) {
        self.stage = Stage::CatchingUp { is_sending: false };
    }

    /// Sends it every entry as it is proposed from now on: it has been sent all others.
    pub(crate) fn become_replicating(&mut self, now: Moment) {
        self.stage = Stage::Replicating;
        self.restart_probe_timer(now);
    }

    /// Waits for a snapshot to be sent, however long that takes.
    pub(crate) const fn become_sending_snapshot(&mut self) {
        self.stage = Stage::SendingSnapshot;
    }

    /// Records that a snapshot was sent, or lost: what the follower lacks now is sent next.
    pub(crate) fn on_snapshot_end(&mut self) {
        if self.stage == Stage::SendingSnapshot {
            self.become_catching_up();
        }
    }

    /// Counts its acknowledgements and its support from now on.
    pub(crate) const fn become_voter(&mut self) {
        self.is_voter = true;
    }

    /// Counts nothing of it until it has what a leader's log held up to `votes_from`.
    pub(crate) const fn become_learner(&mut self, votes_from: u64) {
        self.is_voter = false;
        self.votes_from = votes_from;
    }
}

/// What is sent to the follower, and what comes back.
impl Progress {
    /// Records that a piece of the log leaves at `now`, for a follower that is catching up.
    pub(crate) const fn send_piece(&mut self, now: Moment) {
        self.stage = Stage::CatchingUp { is_sending: true };
        self.last_sent_at = Some(now);
    }

    /// Records that the piece of `seqs` has left, up to the entry before `next`.
    pub(crate) fn on_piece_sent(&mut self, now: Moment, seqs: &Range<u64>, next: u64) {
        if let Stage::CatchingUp { is_sending } = &mut self.stage {
            *is_sending = false;
        }
        // Unless the follower has reported another position meanwhile.
        if self.next == seqs.start && next > seqs.start {
            // Only the driver knows how many bytes it was: as many as one piece has at the most.
            self.add_in_flight(next - 1, PROPOSAL_BYTES_MAX);
            self.probe_at.get_or_insert(now + PROBE_AFTER);
        }
    }

    /// Records that entries up to `last`, of so many bytes, leave at `now`.
    pub(crate) fn send_entries(&mut self, now: Moment, last: u64, bytes: usize) {
        self.add_in_flight(last, bytes);
        self.last_sent_at = Some(now);
        self.probe_at.get_or_insert(now + PROBE_AFTER);
    }

    fn add_in_flight(&mut self, last: u64, bytes: usize) {
        self.next = last + 1;
        self.in_flight.push_back((last, bytes));
        self.in_flight_bytes += bytes;
    }

    /// Records that a message without entries leaves at `now`.
    pub(crate) const fn send_empty(&mut self, now: Moment) {
        self.last_sent_at = Some(now);
    }

    /// Records that a beacon leaves at `now`.
    pub(crate) const fn send_beacon(&mut self, now: Moment) {
        (self.last_sent_at, self.last_beacon_at) = (Some(now), Some(now));
    }

    /// Records that the follower's log is the leader's up to `upto`, which it was sent, on its disk.
    /// Returns true if that is news; of a follower whose position is not known yet nothing is.
    pub(crate) fn on_ack(&mut self, now: Moment, upto: Lsn) -> bool {
        if upto.seq <= self.match_lsn.seq || self.stage == Stage::Probing {
            return false;
        }
        self.progressed = now;
        self.match_lsn = upto;
        while let Some(&(last, bytes)) = self.in_flight.front()
            && last <= upto.seq
        {
            self.in_flight.pop_front();
            self.in_flight_bytes -= bytes;
        }
        self.restart_probe_timer(now);
        true
    }

    /// Records support: a message sent at `sent` was acknowledged with it. A time that is yet to come
    /// is none that this leader gave out.
    pub(crate) fn on_support(&mut self, now: Moment, sent: Moment) {
        if sent <= now {
            self.supported = self.supported.max(Some(sent));
        }
    }

    /// Records that the follower sent something on the data lane, or the reason why it does not.
    pub(crate) fn on_data(&mut self, now: Moment) {
        self.heard_data = self.heard_data.max(now);
    }

    /// Records that the follower has come further, or owes nothing: its time to acknowledge counts
    /// from now.
    pub(crate) const fn note_progress(&mut self, now: Moment) {
        self.progressed = now;
    }

    /// Waits for an acknowledgement, from now on, if one is owed.
    pub(crate) fn restart_probe_timer(&mut self, now: Moment) {
        self.probe_at = self.is_owing().then(|| now + PROBE_AFTER);
    }

    /// Probes the follower later, whether or not it owes an acknowledgement.
    pub(crate) fn probe_later(&mut self, now: Moment) {
        self.probe_at = Some(now + PROBE_AFTER);
    }
}

/// What a leader asks of it.
impl Progress {
    pub(crate) const fn match_lsn(&self) -> Lsn {
        self.match_lsn
    }

    pub(crate) const fn next(&self) -> u64 {
        self.next
    }

    pub(crate) const fn is_voter(&self) -> bool {
        self.is_voter
    }

    pub(crate) fn is_probing(&self) -> bool {
        self.stage == Stage::Probing
    }

    pub(crate) fn is_replicating(&self) -> bool {
        self.stage == Stage::Replicating
    }

    /// Returns true if a piece of the log or a snapshot is on its way out.
    pub(crate) const fn is_sending(&self) -> bool {
        matches!(self.stage, Stage::SendingSnapshot | Stage::CatchingUp { is_sending: true })
    }

    /// Returns true if it is catching up and may be sent the next piece of what it lacks.
    pub(crate) fn awaits_piece(&self) -> bool {
        self.stage == Stage::CatchingUp { is_sending: false } && self.has_room()
    }

    /// Returns true if more may be sent before something is acknowledged.
    pub(crate) const fn has_room(&self) -> bool {
        self.in_flight_bytes < WINDOW_BYTES
    }

    /// Returns true if something was sent that is not acknowledged yet.
    const fn is_owing(&self) -> bool {
        self.match_lsn.seq + 1 < self.next
    }

    /// Returns true if it has on disk all of a log that ends at `last`, supports its leader, and is sent
    /// every entry as it is proposed.
    pub(crate) fn has_all(&self, last: Lsn) -> bool {
        self.is_replicating() && self.match_lsn == last && self.supported.is_some()
    }

    /// Returns true if it has on disk all that it may have acknowledged before it became a learner,
    /// and is sent every entry as it is proposed.
    pub(crate) fn may_vote_again(&self) -> bool {
        !self.is_voter && self.is_replicating() && self.match_lsn.seq >= self.votes_from
    }

    /// Returns the time in the newest message that it acknowledged with its support.
    pub(crate) const fn supported(&self) -> Option<Moment> {
        self.supported
    }

    /// Returns when it last acknowledged more than before, or owed nothing.
    pub(crate) const fn progressed(&self) -> Moment {
        self.progressed
    }

    /// Returns when an acknowledgement is overdue.
    pub(crate) const fn probe_at(&self) -> Option<Moment> {
        self.probe_at
    }

    /// Returns when a beacon is due: when nothing was sent for an interval, or what was sent has
    /// brought no support for two, as where acknowledgements wait for a slow disk. Beacons do not
    /// wait.
    pub(crate) fn beacon_at(&self, interval: Duration) -> Moment {
        let after = |moment: Option<Moment>, time| moment.map_or(Moment::START, |at| at + time);
        let unsupported =
            after(self.supported, 2 * interval).max(after(self.last_beacon_at, interval));
        after(self.last_sent_at, interval).min(unsupported)
    }

    /// Returns true if data has come from the follower within `limit`, or is not expected to: it is
    /// asked for some whenever it owes an acknowledgement.
    pub(crate) fn is_reached(&self, now: Moment, limit: Duration) -> bool {
        self.stage == Stage::SendingSnapshot || now < self.heard_data + limit
    }

    /// Returns when a replica that does not count is given up, since it does not answer, or acknowledges
    /// nothing of what it was sent.
    pub(crate) fn given_up_at(&self, timing: Timing) -> Moment {
        let silent = self.supported.max(Some(self.begun)).unwrap_or_default() + timing.grace;
        // A snapshot on its way brings no acknowledgement: the transport judges whether it comes
        // forward, and reports its end.
        if self.is_sending() {
            return silent;
        }
        silent.min(self.progressed.max(self.begun) + ACK_LEASES * timing.lease)
    }

    /// Checks what must hold of a follower whose leader's log ends at `last`.
    pub(crate) fn validate(&self, last: u64, now: Moment) -> Result<(), String> {
        let Self { match_lsn, next, .. } = self;
        if match_lsn.seq >= *next {
            return Err(format!("{match_lsn} is acknowledged, and {next} is the next to be sent"));
        }
        if *next > last + 1 {
            return Err(format!("{next} is the next to be sent, and the log ends at {last}"));
        }
        let sum: usize = self.in_flight.iter().map(|(_, bytes)| bytes).sum();
        let is_rising = self.in_flight.iter().map(|(last, _)| last).is_sorted();
        if sum != self.in_flight_bytes || !is_rising {
            let Self { in_flight, in_flight_bytes, .. } = self;
            return Err(format!("{in_flight:?} is in flight, counted as {in_flight_bytes} bytes"));
        }
        if let Some((newest, _)) = self.in_flight.back()
            && (newest >= next || *newest <= match_lsn.seq)
        {
            return Err(format!(
                "{newest} is in flight behind {match_lsn}, and {next} is not sent"
            ));
        }
        if self.supported > Some(now) || self.last_sent_at > Some(now) || self.progressed > now {
            let Self { supported, last_sent_at, progressed, .. } = self;
            let moments = format!("{supported:?}, {last_sent_at:?}, {progressed}");
            return Err(format!("support, sending and progress at {moments}, and it is {now}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment::after_start(Duration::from_secs(9));

    fn at(seq: u64) -> Lsn {
        Lsn::new(1, seq)
    }

    /// Returns a follower that has all ten entries of its leader's log.
    fn replicating() -> Progress {
        let mut progress = Progress::probing(true);
        assert!(progress.on_position(at(10)), "it begins to catch up");
        progress.become_replicating(NOW);
        progress
    }

    #[test]
    fn what_is_sent_is_in_flight_until_it_is_acknowledged() {
        let mut progress = replicating();
        progress.send_entries(NOW, 11, 100);
        progress.send_entries(NOW, 12, WINDOW_BYTES);
        assert!(!progress.has_room() && progress.probe_at() == Some(NOW + PROBE_AFTER));
        assert_eq!(progress.validate(12, NOW), Ok(()));
        assert!(progress.on_ack(NOW, at(12)));
        assert!(progress.has_room() && progress.probe_at().is_none());
        assert!(!progress.on_ack(NOW, at(11)), "an older acknowledgement is no news");
        assert_eq!((progress.match_lsn(), progress.next()), (at(12), 13));
    }

    #[test]
    fn one_piece_or_one_snapshot_is_sent_at_a_time() {
        let mut progress = Progress::probing(true);
        assert!(!progress.awaits_piece() && !progress.on_ack(NOW, at(3)), "its log is not known");
        assert!(progress.on_position(at(3)) && progress.awaits_piece());
        progress.send_piece(NOW);
        assert!(progress.is_sending() && !progress.awaits_piece());
        assert!(
            !progress.on_position(at(2)) && progress.is_sending(),
            "the piece is still under way"
        );
        progress.on_piece_sent(NOW, &(4..9), 9);
        assert_eq!(progress.next(), 3, "the piece begins behind the position reported since");
        progress.become_sending_snapshot();
        assert!(
            progress.is_sending()
                && progress.is_reached(NOW + Duration::from_secs(99), PROBE_AFTER)
        );
        progress.on_snapshot_end();
        assert!(progress.awaits_piece());
    }

    #[test]
    fn a_piece_is_in_flight_if_any_of_it_was_sent() {
        let mut progress = Progress::probing(true);
        progress.on_position(at(3));
        progress.send_piece(NOW);
        progress.on_piece_sent(NOW, &(4..9), 4);
        assert!(progress.awaits_piece() && progress.probe_at().is_none(), "nothing of it was");
        assert!(progress.in_flight.is_empty());
        progress.send_piece(NOW);
        progress.on_piece_sent(NOW, &(4..9), 7);
        assert_eq!((progress.next(), progress.probe_at()), (7, Some(NOW + PROBE_AFTER)));
        assert_eq!(progress.validate(9, NOW), Ok(()));
    }

    #[test]
    fn what_breaks_an_invariant_is_named() {
        let broken = |break_it: fn(&mut Progress)| {
            let mut progress = replicating();
            assert_eq!(progress.validate(10, NOW), Ok(()));
            break_it(&mut progress);
            progress.validate(10, NOW).expect_err("an invariant is broken")
        };
        let matched = broken(|progress| progress.match_lsn = at(11));
        assert!(matched.contains("11 is the next to be sent"), "{matched}");
        let ahead = broken(|progress| progress.next = 12);
        assert!(ahead.contains("the log ends at 10"), "{ahead}");
        let bytes = broken(|progress| progress.in_flight_bytes = 1);
        assert!(bytes.contains("counted as 1 bytes"), "{bytes}");
        let unsent = broken(|progress| progress.in_flight.push_back((11, 0)));
        assert!(unsent.contains("11 is not sent"), "{unsent}");
        let future = broken(|progress| progress.supported = Some(NOW + PROBE_AFTER));
        assert!(future.contains("it is 9s"), "{future}");
    }
}
