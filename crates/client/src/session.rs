//! Numbers for writes, so that a cohort recognises one that is sent again (C1).
//!
//! A client is another [`Session`] to each cohort. A cohort remembers the outcomes of a session's
//! last [`SESSION_OUTCOMES_MAX`](trireme_types::limits::SESSION_OUTCOMES_MAX) writes, counted from
//! the lowest whose answer the client still awaits; so a session gives out no number further
//! ahead of that one. Were there one session for all cohorts, a single write that waits for a
//! cohort without a leader would soon hold up the writes to all others.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, TryAcquireError};
use trireme_proto::{convert, v1};
use trireme_types::ClientId;

/// The session that a cohort's next writes belong to.
///
/// A cohort forgets a session that it hears nothing of for
/// [`SESSION_LIFETIME`](trireme_types::limits::SESSION_LIFETIME). A write that it refuses for that
/// reason was not applied, and goes on in a new session, unless an earlier copy of it is in doubt.
pub(crate) struct Sessions {
    current: Mutex<Arc<Session>>,
    in_flight_max: usize,
}

impl Sessions {
    /// Begins with a session that no cohort has heard of, for up to `in_flight_max` writes at once;
    /// `start` is a moment of the cohort's clock, or 0.
    pub(crate) fn new(in_flight_max: usize, start: u64) -> Self {
        let current = Mutex::new(Arc::new(Session::new(in_flight_max, start)));
        Self { current, in_flight_max }
    }

    /// Returns the session.
    pub(crate) fn current(&self) -> Arc<Session> {
        Arc::clone(&self.current.lock())
    }

    /// Begins a new session at `start` of the cohort's clock, unless that has happened since the
    /// write of `gone` was named.
    pub(crate) fn renew(&self, gone: &WriteSlot, start: u64) {
        let mut current = self.current.lock();
        if Arc::ptr_eq(&current, &gone.session) {
            *current = Arc::new(Session::new(self.in_flight_max, start));
        }
    }
}

/// One client's writes to one cohort.
pub(crate) struct Session {
    /// The client id's bytes on the wire.
    client: Bytes,
    /// A moment of the cohort's clock before which this client sent it nothing.
    start: u64,
    /// As many permits as numbers may still be given out before the lowest unfinished one is
    /// finished.
    room: Semaphore,
    window: Mutex<Window>,
}

/// The numbers given out whose outcomes the cohort must still remember.
struct Window {
    /// The lowest number whose write is unfinished.
    first_incomplete: u64,
    /// Whether the write of `first_incomplete + index` is finished. The first never is.
    finished: VecDeque<bool>,
}

/// The number of one write, which counts as unfinished until this is dropped.
pub(crate) struct WriteSlot {
    session: Arc<Session>,
    sequence: u64,
}

impl Session {
    /// Returns a session that no cohort has heard of, for up to `in_flight_max` writes at once.
    pub(crate) fn new(in_flight_max: usize, start: u64) -> Self {
        let client = ClientId(rand::random());
        Self {
            client: convert::client_bytes(client),
            start,
            room: Semaphore::new(in_flight_max),
            window: Mutex::new(Window { first_incomplete: 1, finished: VecDeque::new() }),
        }
    }

    /// Returns the next number if there is room for one.
    pub(crate) fn try_begin(self: &Arc<Self>) -> Option<WriteSlot> {
        match self.room.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => return None,
        }
        Some(self.next())
    }

    /// Returns the next number, as soon as there is room for one.
    pub(crate) async fn begin(self: &Arc<Self>) -> WriteSlot {
        self.room.acquire().await.expect("the semaphore is never closed").forget();
        self.next()
    }

    fn next(self: &Arc<Self>) -> WriteSlot {
        let mut window = self.window.lock();
        let sequence = window.first_incomplete + window.finished.len() as u64;
        window.finished.push_back(false);
        WriteSlot { session: Arc::clone(self), sequence }
    }

    fn finish(&self, sequence: u64) {
        let mut window = self.window.lock();
        let index = usize::try_from(sequence - window.first_incomplete)
            .expect("an unfinished number lies within the window, which fits memory");
        window.finished[index] = true;
        let mut freed = 0;
        while window.finished.front() == Some(&true) {
            window.finished.pop_front();
            window.first_incomplete += 1;
            freed += 1;
        }
        drop(window);
        self.room.add_permits(freed);
    }
}

impl WriteSlot {
    /// Returns the name of the write, as of now.
    pub(crate) fn write_id(&self) -> v1::WriteId {
        v1::WriteId {
            client: self.session.client.clone(),
            sequence: self.sequence,
            first_incomplete: self.session.window.lock().first_incomplete,
            start: Some(self.session.start),
        }
    }
}

impl Drop for WriteSlot {
    fn drop(&mut self) {
        self.session.finish(self.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(slot: &WriteSlot) -> (u64, u64) {
        let id = slot.write_id();
        (id.sequence, id.first_incomplete)
    }

    #[test]
    fn the_first_incomplete_number_passes_finished_ones_only() {
        let session = Arc::new(Session::new(8, 0));
        let first = session.try_begin().unwrap();
        let second = session.try_begin().unwrap();
        assert_eq!((numbers(&first), numbers(&second)), ((1, 1), (2, 1)));
        drop(second);
        let third = session.try_begin().unwrap();
        assert_eq!(numbers(&third), (3, 1));
        drop(first);
        assert_eq!(numbers(&third), (3, 3));
        drop(third);
        assert_eq!(numbers(&session.try_begin().unwrap()), (4, 4));
    }

    /// A cohort that remembers N outcomes from the first incomplete one on must never be sent a
    /// number further ahead, however many in between are finished.
    #[test]
    fn no_number_is_given_out_further_ahead_than_a_cohort_remembers() {
        let session = Arc::new(Session::new(4, 0));
        let slow = session.try_begin().unwrap();
        for _ in 0..3 {
            drop(session.try_begin().unwrap());
        }
        assert!(session.try_begin().is_none(), "number 5 while 1 is unfinished");
        drop(slow);
        let five = session.try_begin().unwrap();
        assert_eq!(numbers(&five), (5, 5));
    }

    #[test]
    fn a_session_that_is_gone_is_renewed_once() {
        let sessions = Sessions::new(4, 7);
        let [first, second] = [(); 2].map(|()| sessions.current().try_begin().unwrap());
        assert_eq!(first.write_id().start, Some(7));
        sessions.renew(&first, 50);
        let third = sessions.current().try_begin().unwrap();
        sessions.renew(&second, 60);
        let fourth = sessions.current().try_begin().unwrap();
        assert_eq!((third.write_id().start, third.write_id().sequence), (Some(50), 1));
        assert_eq!(fourth.write_id().client, third.write_id().client);
        assert_ne!(third.write_id().client, first.write_id().client);
    }

    #[test]
    fn two_sessions_never_share_a_name() {
        let names = [Session::new(1, 0).client, Session::new(1, 0).client];
        assert_ne!(names[0], names[1]);
        assert_eq!(names[0].len(), 16);
    }
}
