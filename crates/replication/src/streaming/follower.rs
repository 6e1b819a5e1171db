//! One follower, as its leader sees it.

use std::collections::VecDeque;

use trireme_types::Lsn;

use super::WINDOW_BYTES;
use crate::core::Moment;

/// How a leader serves a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It has not said yet where it stands.
    Unheard,
    /// It is sent what it lacks.
    CatchingUp,
    /// It is sent every entry as it is proposed.
    InStep,
}

/// What a leader knows of a follower.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) stage: Stage,
    /// The follower's log is the leader's up to here, on the follower's disk.
    pub(crate) acked: Lsn,
    /// The first entry that was not sent.
    pub(crate) next: u64,
    /// A piece of the log, or a snapshot, is on its way out.
    pub(crate) is_sending: bool,
    /// What was sent and is not acknowledged: the last entry of each message, and its bytes.
    in_flight: VecDeque<(u64, usize)>,
    in_flight_bytes: usize,
    /// Its acknowledgements count towards committing, and its support towards the lease.
    pub(crate) counts: bool,
    /// The time in the newest message that it acknowledged with its support.
    pub(crate) supported: Option<Moment>,
    /// When the newest message left whose acknowledgement gives support.
    pub(crate) asked: Option<Moment>,
    /// When its acknowledgement is overdue.
    pub(crate) probe_at: Option<Moment>,
    /// When it last acknowledged more than before, or owed nothing: a disk that hangs shows here
    /// while beacons are still acknowledged (P14).
    pub(crate) progressed: Moment,
    /// The end of the leader's log when a follower that does not count said where it stands: all
    /// that it may once have acknowledged lies before (S14).
    pub(crate) counts_from: u64,
}

impl Follower {
    pub(crate) const fn new(counts: bool) -> Self {
        Self {
            stage: Stage::Unheard,
            acked: Lsn::ZERO,
            next: 1,
            is_sending: false,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            counts,
            supported: None,
            asked: None,
            probe_at: None,
            progressed: Moment::START,
            counts_from: 0,
        }
    }

    /// Takes in that entries up to `last` were sent, of so many bytes.
    pub(crate) fn sent(&mut self, last: u64, bytes: usize) {
        self.next = last + 1;
        self.in_flight.push_back((last, bytes));
        self.in_flight_bytes += bytes;
    }

    /// Takes in that the follower's log is the leader's up to `upto`, on its disk.
    pub(crate) fn acked(&mut self, upto: Lsn) {
        self.acked = upto;
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
        self.acked = matched;
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

    /// Says whether something was sent that is not acknowledged yet.
    pub(crate) const fn is_owing(&self) -> bool {
        self.acked.seq + 1 < self.next
    }
}
