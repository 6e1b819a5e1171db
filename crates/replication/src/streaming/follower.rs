//! One follower, as its leader sees it.

use std::collections::VecDeque;
use std::time::Duration;

use trireme_types::Lsn;

use super::WINDOW_BYTES;
use crate::core::Moment;

/// How a leader serves a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It has not said yet where it stands.
    Probing,
    /// It is sent what it lacks.
    CatchingUp,
    /// It is sent every entry as it is proposed.
    Replicating,
}

/// What a leader knows of a follower.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) stage: Stage,
    /// The follower's log is the leader's up to here, on the follower's disk.
    pub(crate) match_lsn: Lsn,
    /// The first entry that was not sent.
    pub(crate) next: u64,
    /// A piece of the log, or a snapshot, is on its way out.
    pub(crate) is_sending: bool,
    /// What was sent and is not acknowledged: the last entry of each message, and its bytes.
    in_flight: VecDeque<(u64, usize)>,
    in_flight_bytes: usize,
    /// Its acknowledgements count towards committing, and its support towards the lease.
    pub(crate) is_voter: bool,
    /// The time in the newest message that it acknowledged with its support.
    pub(crate) supported: Option<Moment>,
    /// When the newest message left whose acknowledgement gives support.
    pub(crate) last_sent_at: Option<Moment>,
    /// When the newest beacon left.
    beaconed: Option<Moment>,
    /// When its acknowledgement is overdue.
    pub(crate) probe_at: Option<Moment>,
    /// When it last acknowledged more than before, or owed nothing: a disk that hangs shows here
    /// while beacons are still acknowledged (P14).
    pub(crate) progressed: Moment,
    /// When it last said something on the data lane, or why it does not.
    heard_data: Moment,
    /// It is sent a snapshot, which takes as long as it takes.
    pub(crate) is_sent_snapshot: bool,
    /// The end of the leader's log when a follower that does not count said where it stands: all
    /// that it may once have acknowledged lies before (S14).
    pub(crate) votes_from: u64,
}

impl Follower {
    pub(crate) const fn new(is_voter: bool) -> Self {
        Self {
            stage: Stage::Probing,
            match_lsn: Lsn::ZERO,
            next: 1,
            is_sending: false,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            is_voter,
            supported: None,
            last_sent_at: None,
            beaconed: None,
            probe_at: None,
            progressed: Moment::START,
            heard_data: Moment::START,
            is_sent_snapshot: false,
            votes_from: 0,
        }
    }

    /// Takes in that entries up to `last` were sent, of so many bytes.
    pub(crate) fn sent(&mut self, last: u64, bytes: usize) {
        self.next = last + 1;
        self.in_flight.push_back((last, bytes));
        self.in_flight_bytes += bytes;
    }

    /// Takes in that the follower's log is the leader's up to `upto`, on its disk.
    pub(crate) fn on_ack(&mut self, upto: Lsn) {
        self.match_lsn = upto;
        // What it has need not be sent, wherever it said before that it stands.
        self.next = self.next.max(upto.seq + 1);
        while let Some(&(last, bytes)) = self.in_flight.front()
            && last <= upto.seq
        {
            self.in_flight.pop_front();
            self.in_flight_bytes -= bytes;
        }
    }

    /// Begins anew behind `matched`: nothing that was sent counts as sent.
    pub(crate) fn begin_after(&mut self, matched: Lsn) {
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.match_lsn = matched;
        self.next = matched.seq + 1;
        self.probe_at = None;
    }

    /// Says whether more may be sent before something is acknowledged.
    pub(crate) const fn has_room(&self) -> bool {
        self.in_flight_bytes < WINDOW_BYTES
    }

    /// Takes in the time of a message that was acknowledged with support. A time that is yet to come
    /// is none that this leader gave out.
    pub(crate) fn support(&mut self, sent: Moment, now: Moment) {
        if sent <= now {
            self.supported = self.supported.max(Some(sent));
        }
    }

    /// Returns when a beacon is due: when nothing was sent for an interval, or what was sent has brought
    /// no support for two, as where acknowledgements wait for a slow disk. Beacons do not wait.
    pub(crate) fn beacon_at(&self, interval: Duration) -> Moment {
        let after = |moment: Option<Moment>, time| moment.map_or(Moment::START, |at| at + time);
        let unsupported = after(self.supported, 2 * interval).max(after(self.beaconed, interval));
        after(self.last_sent_at, interval).min(unsupported)
    }

    /// Records that a beacon was sent.
    pub(crate) const fn sent_beacon(&mut self, now: Moment) {
        (self.last_sent_at, self.beaconed) = (Some(now), Some(now));
    }

    /// Records that the follower said something on the data lane, or why it does not.
    pub(crate) fn heard_data(&mut self, now: Moment) {
        self.heard_data = self.heard_data.max(now);
    }

    /// Returns true if data has come from the follower within `limit`, or is not expected to: it is
    /// asked for some whenever it owes an acknowledgement.
    pub(crate) fn is_reached(&self, now: Moment, limit: Duration) -> bool {
        self.is_sent_snapshot || now < self.heard_data + limit
    }

    /// Checks what must hold of a follower whose leader's log ends at `last`.
    pub(crate) fn validate(&self, last: u64, now: Moment) -> Result<(), String> {
        let Self { match_lsn, next, .. } = self;
        if match_lsn.seq >= *next {
            return Err(format!("{match_lsn} is acknowledged, and {next} is the next to be sent"));
        }
        if *next > last + 1 && self.stage != Stage::Probing {
            return Err(format!("{next} is the next to be sent, and the log ends at {last}"));
        }
        let newest = self.in_flight.back();
        if newest.is_some_and(|(last, _)| last >= next)
            || (newest.is_none() && self.in_flight_bytes > 0)
        {
            let bytes = self.in_flight_bytes;
            return Err(format!("{newest:?} is in flight, {bytes} bytes, and {next} not sent"));
        }
        if self.supported > Some(now) {
            return Err(format!("it has acknowledged {:?}, and it is {now}", self.supported));
        }
        Ok(())
    }

    /// Says whether something was sent that is not acknowledged yet.
    pub(crate) const fn is_owing(&self) -> bool {
        self.match_lsn.seq + 1 < self.next
    }
}
