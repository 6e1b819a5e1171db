//! The sessions of a cohort: which writes of which clients were applied, and what became of them
//! (C1).
//!
//! They are replicated state: everything here follows from the log alone, so that every replica
//! recognises the same retries. Time is in the log too: each batch names the cohort's clock as of
//! when its leader gathered it, and the highest that was applied is the time.
//!
//! # Whom a cohort forgets, and why that is safe
//!
//! A session lives for [`SESSION_LIFETIME`] after its client was last heard, however many others
//! come. Its client named a `start` with every request: a moment that the cohort's clock had shown
//! before the client's first request was sent. So a session that is forgotten had started before the
//! time less the lifetime, and will have for ever. An unknown client that started after that is new
//! and is taken; one that started before may have been forgotten, and its write is refused as such:
//! [`Outcome::SessionGone`]. A client that names no start is never forgotten, and there is room for
//! few of those.
//!
//! A cohort that goes on from two has the sessions of both, and the later of their times. Whom either has
//! forgotten had started before its time less the lifetime, and so before the later time less the lifetime.
//! Those that are known live for as long as they had left.
//!
//! They are kept in memory whole and on disk as one row per client, rewritten in the batch of each
//! apply that touched it. Both are bounded: [`SESSIONS_MAX`], [`OUTCOMES_MAX`]. Where there is no
//! room, what is new is refused, and no session is given up for it.

use std::collections::{BTreeSet, HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use trireme_types::limits::{
    OUTCOMES_MAX, OUTCOMES_UNDATED_MAX, SESSION_LIFETIME, SESSION_OUTCOMES_MAX, SESSIONS_MAX,
    SESSIONS_UNDATED_MAX,
};
use trireme_types::{ClientId, CohortId, Outcome, RequestId};

use crate::table::keys::{self, Place};
use crate::table::{TableError, WriteBatch};

/// The outcome of a request that the client has given up waiting for: nothing is changed, which is
/// what this outcome says, and no retry follows from it.
pub(crate) const STALE: Outcome = Outcome::ConditionFailed { current: None };

/// The format of a session's row. In format 1, that of 0.1.0, no client named its start.
const FORMAT: u8 = 2;

/// The lifetime on the cohort's clock.
#[expect(clippy::cast_possible_truncation, reason = "it is some minutes")]
const LIFETIME: u64 = SESSION_LIFETIME.as_millis() as u64;

/// All sessions of a cohort.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// The cohort's time, in milliseconds.
    clock: u64,
    clients: HashMap<ClientId, Session>,
    /// The clients that named a start, by when they were heard last.
    dated: BTreeSet<(u64, ClientId)>,
    /// The outcomes of those clients, and of the others.
    outcomes: Counts,
    /// Clients whose row on disk is behind; one may be named twice, and may be forgotten by now.
    changed: Vec<ClientId>,
}

#[derive(Debug, Default)]
struct Counts {
    dated: usize,
    undated: usize,
}

impl Counts {
    const fn of(&mut self, session: &Session) -> &mut usize {
        if session.start.is_some() { &mut self.dated } else { &mut self.undated }
    }
}

/// What is known of one client's writes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Session {
    /// When the client started, as it said.
    start: Option<u64>,
    /// When the client was heard last.
    heard: u64,
    /// No request below it is applied any more: the client has all those answers, or there were
    /// too many to keep.
    floor: u64,
    /// Outcomes of requests at or above the floor, in ascending order.
    outcomes: VecDeque<(u64, Outcome)>,
    /// Whether the client is named in `changed`.
    is_changed: bool,
}

/// A session's row, after the format byte.
#[derive(Serialize, Deserialize)]
struct SessionRow {
    start: Option<u64>,
    heard: u64,
    floor: u64,
    outcomes: VecDeque<(u64, Outcome)>,
}

/// A session's row of format 1, after the format byte.
#[derive(Deserialize)]
struct SessionRowOfFormat1 {
    /// Where in the log the client was heard last.
    _heard: (u64, u32),
    floor: u64,
    outcomes: VecDeque<(u64, Outcome)>,
}

impl Sessions {
    /// Returns no sessions, at a time.
    pub(crate) fn at(clock: u64) -> Self {
        Self { clock, ..Self::default() }
    }

    /// Returns the sessions of a cohort that goes on from several: all of each, at the time of the latest. A
    /// client that more than one of them knows was known to a cohort that they both come from, so that a
    /// number that it gave out stands for one write in all of them, and for the same outcome.
    ///
    /// There may be more than a cohort takes. Then it takes no others until some have gone.
    pub(crate) fn united<'a>(all: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let clock = all.clone().map(Self::clock).max().unwrap_or_default();
        let mut united = Self::at(clock);
        for sessions in all {
            // Each counts its own time. What is left of a session's life stays as long as it is.
            let ahead = clock - sessions.clock;
            for (client, session) in &sessions.clients {
                let known = united.clients.entry(*client).or_default();
                known.unite(session, ahead);
            }
        }
        for (client, session) in &united.clients {
            if session.start.is_some() {
                united.dated.insert((session.heard, *client));
            }
            *united.outcomes.of(session) += session.outcomes.len();
        }
        united
    }

    /// Returns how many clients are known, and how many outcomes of their writes.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.clients.len(), self.outcomes.dated + self.outcomes.undated)
    }

    /// Returns the cohort's time.
    pub(crate) const fn clock(&self) -> u64 {
        self.clock
    }

    /// Brings the time to `clock`, unless it is there already, and forgets whoever was silent for a
    /// lifetime.
    pub(crate) fn advance(&mut self, clock: u64) {
        self.clock = self.clock.max(clock);
        while let Some(&(heard, client)) = self.dated.first()
            && heard.saturating_add(LIFETIME) < self.clock
        {
            self.dated.pop_first();
            if let Some(session) = self.clients.remove(&client) {
                *self.outcomes.of(&session) -= session.outcomes.len();
            }
            self.changed.push(client);
        }
    }

    /// Notes that `request` was heard. Returns its outcome if it must not be applied: the recorded
    /// one of a retry, [`STALE`], or why it cannot be recognised.
    pub(crate) fn hear(&mut self, request: RequestId) -> Option<Outcome> {
        let is_new = !self.clients.contains_key(&request.client);
        if is_new && let Some(refusal) = self.refusal(request.start) {
            return Some(refusal);
        }
        let clock = self.clock;
        let session = self
            .clients
            .entry(request.client)
            .or_insert_with(|| Session { start: request.start, ..Session::default() });
        if !session.is_changed {
            session.is_changed = true;
            self.changed.push(request.client);
        }
        if session.start.is_some() && (is_new || session.heard != clock) {
            self.dated.remove(&(session.heard, request.client));
            self.dated.insert((clock, request.client));
        }
        session.heard = clock;
        let count = self.outcomes.of(session);
        *count -= session.raise_floor(request.first_incomplete);
        match session.find(request.sequence) {
            Ok(index) => Some(session.outcomes[index].1),
            Err(_) if request.sequence < session.floor => Some(STALE),
            Err(_) => {
                let max = if session.start.is_some() { OUTCOMES_MAX } else { OUTCOMES_UNDATED_MAX };
                (*count >= max).then_some(Outcome::SessionsFull)
            }
        }
    }

    /// Returns why a client that is not known cannot be taken for a new one.
    fn refusal(&self, start: Option<u64>) -> Option<Outcome> {
        let clock = self.clock;
        let is_recent = |start: u64| start <= clock && clock <= start.saturating_add(LIFETIME);
        let undated = self.clients.len() - self.dated.len();
        match start {
            // It may have been forgotten; or the start is none of this cohort's moments.
            Some(start) if !is_recent(start) => Some(Outcome::SessionGone { clock }),
            Some(_) => (self.dated.len() >= SESSIONS_MAX).then_some(Outcome::SessionsFull),
            None => (undated >= SESSIONS_UNDATED_MAX).then_some(Outcome::SessionGone { clock }),
        }
    }

    /// Records the outcome of a request that [`Sessions::hear`] had applied.
    pub(crate) fn record(&mut self, request: RequestId, outcome: Outcome) {
        let Some(session) = self.clients.get_mut(&request.client) else {
            return;
        };
        let count = self.outcomes.of(session);
        if let Err(index) = session.find(request.sequence) {
            session.outcomes.insert(index, (request.sequence, outcome));
            *count += 1;
        }
        if session.outcomes.len() > SESSION_OUTCOMES_MAX {
            // The client has more under way than it may. What cannot be recognised again must not
            // be applied again.
            let lowest = session.outcomes[0].0;
            *count -= session.raise_floor(lowest.saturating_add(1));
        }
    }

    /// Adds the rows of all sessions that changed since the last call.
    pub(crate) fn write_changed(&mut self, place: Place, batch: &mut WriteBatch) {
        let mut changed = std::mem::take(&mut self.changed);
        // A client may be here twice if it was forgotten and heard again.
        changed.sort_unstable();
        changed.dedup();
        for client in changed.drain(..) {
            let key = place.session_key(client);
            match self.clients.get_mut(&client) {
                Some(session) => {
                    session.is_changed = false;
                    batch.put(&[&key], &[&session.encode()]);
                }
                None => batch.remove(&[&key]),
            }
        }
        self.changed = changed;
    }

    /// Gives `write` the rows of all sessions, as they would lie at `place`.
    pub(crate) fn write_all(
        &mut self,
        place: Place,
        write: &mut dyn FnMut(Vec<u8>, Vec<u8>) -> Result<(), TableError>,
    ) -> Result<(), TableError> {
        for (client, session) in &mut self.clients {
            write(place.session_key(*client), session.encode())?;
        }
        Ok(())
    }

    /// Takes up a session's row, read from the table or from a snapshot: the part of the key that
    /// names the client, and the value.
    pub(crate) fn load(
        &mut self,
        cohort: CohortId,
        client: &[u8],
        value: &[u8],
    ) -> Result<(), TableError> {
        let what = "a session";
        let client = client.try_into().map_err(|_| {
            keys::corrupt(cohort, what, format!("{} bytes name its client", client.len()))
        })?;
        let row = decode_row(cohort, what, value)?;
        let rising = row.outcomes.iter().zip(row.outcomes.iter().skip(1)).all(|(a, b)| a.0 < b.0);
        if !rising || row.outcomes.len() > SESSION_OUTCOMES_MAX {
            return Err(keys::corrupt(cohort, what, "its outcomes are no list".to_owned()));
        }
        // Of two cohorts that became one there may be twice as many.
        if self.clients.len() >= 2 * (SESSIONS_MAX + SESSIONS_UNDATED_MAX) {
            let reason = "there are more than there may be".to_owned();
            return Err(keys::corrupt(cohort, "the session table", reason));
        }
        let client = ClientId(u128::from_be_bytes(client));
        let SessionRow { start, heard, floor, outcomes } = row;
        if start.is_some() {
            self.dated.insert((heard, client));
        }
        let session = Session { start, heard, floor, outcomes, is_changed: false };
        *self.outcomes.of(&session) += session.outcomes.len();
        self.clients.insert(client, session);
        Ok(())
    }
}

/// Reads a session's row, also one of 0.1.0.
fn decode_row(
    cohort: CohortId,
    what: &'static str,
    value: &[u8],
) -> Result<SessionRow, TableError> {
    let malformed = |error: postcard::Error| keys::corrupt(cohort, what, error.to_string());
    let (row, rest) = if value.first() == Some(&FORMAT) {
        postcard::take_from_bytes::<SessionRow>(&value[1..]).map_err(malformed)?
    } else {
        let row = keys::check_format(cohort, what, value)?;
        let (row, rest) =
            postcard::take_from_bytes::<SessionRowOfFormat1>(row).map_err(malformed)?;
        let SessionRowOfFormat1 { floor, outcomes, .. } = row;
        (SessionRow { start: None, heard: 0, floor, outcomes }, rest)
    };
    if !rest.is_empty() {
        return Err(keys::corrupt(cohort, what, "bytes follow its outcomes".to_owned()));
    }
    Ok(row)
}

impl Session {
    /// Takes in what another cohort knows of the same client, whose time is behind by `behind`.
    fn unite(&mut self, other: &Self, behind: u64) {
        self.start = self.start.or(other.start);
        self.heard = self.heard.max(other.heard.saturating_add(behind));
        for &(sequence, outcome) in &other.outcomes {
            if let Err(index) = self.find(sequence) {
                self.outcomes.insert(index, (sequence, outcome));
            }
        }
        self.raise_floor(other.floor);
        while self.outcomes.len() > SESSION_OUTCOMES_MAX {
            let lowest = self.outcomes[0].0;
            self.raise_floor(lowest.saturating_add(1));
        }
    }

    fn find(&self, sequence: u64) -> Result<usize, usize> {
        // Requests mostly come in order, so the place is mostly the end.
        match self.outcomes.back() {
            Some((last, _)) if *last < sequence => Err(self.outcomes.len()),
            _ => self.outcomes.binary_search_by_key(&sequence, |(sequence, _)| *sequence),
        }
    }

    /// Drops what lies below `floor`, and returns how many outcomes that were.
    fn raise_floor(&mut self, floor: u64) -> usize {
        let before = self.outcomes.len();
        self.floor = self.floor.max(floor);
        while self.outcomes.front().is_some_and(|(sequence, _)| *sequence < self.floor) {
            self.outcomes.pop_front();
        }
        before - self.outcomes.len()
    }

    fn encode(&mut self) -> Vec<u8> {
        let row = SessionRow {
            start: self.start,
            heard: self.heard,
            floor: self.floor,
            outcomes: std::mem::take(&mut self.outcomes),
        };
        let bytes = Vec::with_capacity(32 + row.outcomes.len() * 12);
        let mut bytes = bytes;
        bytes.push(FORMAT);
        let bytes = postcard::to_extend(&row, bytes)
            .expect("a session holds nothing that postcard cannot write, and a Vec always grows");
        self.outcomes = row.outcomes;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use trireme_types::Version;

    use super::*;

    fn request(client: u128, sequence: u64, first_incomplete: u64) -> RequestId {
        RequestId { client: ClientId(client), sequence, first_incomplete, start: None }
    }

    fn put(version: u64) -> Outcome {
        Outcome::Put { version: Version(version) }
    }

    #[test]
    fn a_retry_gets_the_outcome_of_the_first_try() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.hear(request(1, 5, 5)), None);
        sessions.record(request(1, 5, 5), put(1));
        assert_eq!(sessions.hear(request(1, 5, 5)), Some(put(1)));
        assert_eq!(sessions.hear(request(2, 5, 5)), None, "another client's request");
    }

    #[test]
    fn requests_out_of_order_are_each_recognised() {
        let mut sessions = Sessions::default();
        for sequence in [7, 3, 5, 4, 9] {
            assert_eq!(sessions.hear(request(1, sequence, 3)), None);
            sessions.record(request(1, sequence, 3), put(sequence));
        }
        for sequence in [3, 4, 5, 7, 9] {
            let heard = sessions.hear(request(1, sequence, 3));
            assert_eq!(heard, Some(put(sequence)), "sequence {sequence}");
        }
        assert_eq!(sessions.hear(request(1, 6, 3)), None);
    }

    #[test]
    fn what_the_client_no_longer_awaits_is_dropped_and_never_applied_again() {
        let mut sessions = Sessions::default();
        for sequence in 1..=9 {
            assert_eq!(sessions.hear(request(1, sequence, 1)), None);
            sessions.record(request(1, sequence, 1), put(sequence));
        }
        assert_eq!(sessions.hear(request(1, 10, 8)), None);
        assert_eq!(sessions.hear(request(1, 7, 1)), Some(STALE));
        assert_eq!(sessions.hear(request(1, 8, 1)), Some(put(8)));
        assert_eq!(sessions.clients[&ClientId(1)].outcomes.len(), 2);
    }

    #[test]
    fn a_client_with_too_much_under_way_cannot_have_a_write_applied_twice() {
        let mut sessions = Sessions::default();
        let count = SESSION_OUTCOMES_MAX as u64 + 1;
        for sequence in 1..=count {
            assert_eq!(sessions.hear(request(1, sequence, 1)), None);
            sessions.record(request(1, sequence, 1), put(sequence));
        }
        assert_eq!(sessions.hear(request(1, 1, 1)), Some(STALE));
        assert_eq!(sessions.hear(request(1, 2, 1)), Some(put(2)));
    }

    fn dated(client: u128, sequence: u64, start: u64) -> RequestId {
        RequestId { start: Some(start), ..request(client, sequence, sequence) }
    }

    const fn gone(clock: u64) -> Option<Outcome> {
        Some(Outcome::SessionGone { clock })
    }

    /// However many others come, and whenever: what decides is the time.
    #[test]
    fn a_session_lives_for_its_lifetime_and_is_refused_as_gone_from_then_on() {
        let mut sessions = Sessions::at(1000);
        assert_eq!(sessions.hear(dated(1, 1, 1000)), None);
        sessions.record(dated(1, 1, 1000), put(1));
        for client in 2..20_000 {
            assert_eq!(sessions.hear(dated(client, 1, 1000)), None);
            sessions.record(dated(client, 1, 1000), put(2));
        }
        sessions.advance(1000 + LIFETIME);
        assert_eq!(sessions.hear(dated(1, 1, 1000)), Some(put(1)));
        sessions.advance(1001 + LIFETIME);
        assert_eq!(sessions.clients.len(), 1, "the others were silent for longer");
        assert_eq!(sessions.outcomes.dated, 1);
        assert_eq!(sessions.hear(dated(2, 1, 1000)), gone(1001 + LIFETIME));
        sessions.advance(2000 + 2 * LIFETIME);
        let late = sessions.hear(dated(1, 1, 1000));
        assert_eq!(late, gone(2000 + 2 * LIFETIME), "it would be applied a second time");
        assert_eq!(sessions.hear(dated(3, 1, 2000 + 2 * LIFETIME)), None, "a new client");
        assert_eq!(sessions.hear(dated(4, 1, 2001 + 2 * LIFETIME)), late, "of no such moment");
        // A leader's clock that lags behind changes nothing.
        sessions.advance(5);
        assert_eq!(sessions.clock(), 2000 + 2 * LIFETIME);
    }

    #[test]
    fn no_session_is_given_up_for_another() {
        let mut sessions = Sessions::at(10);
        for client in 0..SESSIONS_MAX as u128 {
            assert_eq!(sessions.hear(dated(client, 1, 10)), None);
        }
        let new = u128::MAX;
        assert_eq!(sessions.hear(dated(new, 1, 10)), Some(Outcome::SessionsFull));
        assert_eq!(sessions.hear(dated(0, 2, 10)), None);
        sessions.advance(11 + LIFETIME);
        assert_eq!(sessions.hear(dated(new, 1, 11 + LIFETIME)), None);
    }

    #[test]
    fn clients_without_a_start_are_never_forgotten_and_few() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.hear(request(1, 1, 1)), None);
        sessions.record(request(1, 1, 1), put(1));
        sessions.advance(100 * LIFETIME);
        assert_eq!(sessions.hear(request(1, 1, 1)), Some(put(1)));
        for client in 2..=SESSIONS_UNDATED_MAX as u128 {
            assert_eq!(sessions.hear(request(client, 1, 1)), None);
        }
        assert_eq!(sessions.hear(request(u128::MAX, 1, 1)), gone(100 * LIFETIME));
        assert_eq!(sessions.hear(request(1, 1, 1)), Some(put(1)));
    }

    #[test]
    fn the_outcomes_of_all_clients_are_bounded() {
        let mut sessions = Sessions::at(10);
        let each = SESSION_OUTCOMES_MAX as u64;
        let many =
            |client, sequence| RequestId { first_incomplete: 1, ..dated(client, sequence, 10) };
        for client in 0..(OUTCOMES_MAX / SESSION_OUTCOMES_MAX) as u128 {
            for sequence in 1..=each {
                assert_eq!(sessions.hear(many(client, sequence)), None);
                sessions.record(many(client, sequence), put(1));
            }
        }
        assert_eq!(sessions.hear(dated(u128::MAX, 1, 10)), Some(Outcome::SessionsFull));
        assert_eq!(sessions.hear(many(3, 7)), Some(put(1)), "a retry needs no room");
        assert_eq!(sessions.hear(dated(3, each + 1, 10)), None, "it has done with the others");
        assert_eq!(sessions.hear(dated(u128::MAX, 1, 10)), None);
    }

    /// [RANGE-20]
    #[test]
    fn the_sessions_of_two_cohorts_are_united_at_the_later_time() {
        let (mut early, mut late) = (Sessions::at(500), Sessions::at(9000));
        let apply = |sessions: &mut Sessions, request: RequestId, version: u64| {
            assert_eq!(sessions.hear(request), None);
            sessions.record(request, put(version));
        };
        // One client of each, and one that both know from before they were cut.
        apply(&mut early, dated(1, 1, 400), 1);
        apply(&mut late, dated(2, 1, 8000), 2);
        for sessions in [&mut early, &mut late] {
            apply(sessions, RequestId { first_incomplete: 1, ..dated(3, 4, 300) }, 4);
        }
        apply(&mut early, RequestId { first_incomplete: 3, ..dated(3, 5, 300) }, 5);
        apply(&mut late, RequestId { first_incomplete: 2, ..dated(3, 6, 300) }, 6);
        early.advance(700);
        let mut both = Sessions::united([&early, &late].into_iter());
        assert_eq!((both.clock(), both.counts()), (9000, (3, 5)));
        assert_eq!(both.dated.len(), 3);
        for (client, sequence, outcome) in [(1, 1, 1), (2, 1, 2), (3, 4, 4), (3, 5, 5), (3, 6, 6)] {
            let request = RequestId { first_incomplete: 3, ..dated(client, sequence, 300) };
            assert_eq!(both.hear(RequestId { first_incomplete: 1, ..request }), Some(put(outcome)));
        }
        let stale = RequestId { first_incomplete: 1, ..dated(3, 2, 300) };
        assert_eq!(both.hear(stale), Some(STALE), "the client had its answer");
        // It had been silent for 200 milliseconds of its cohort's time.
        let mut both = Sessions::united([&early, &late].into_iter());
        both.advance(9000 + LIFETIME - 200);
        assert!(both.clients.contains_key(&ClientId(1)));
        both.advance(9001 + LIFETIME - 200);
        assert!(!both.clients.contains_key(&ClientId(1)));
        assert_eq!(both.hear(dated(1, 1, 400)), gone(9001 + LIFETIME - 200));
    }

    #[test]
    fn rows_read_back_and_damaged_ones_are_refused() {
        let mut session =
            Session { start: Some(7), heard: 1 << 50, floor: 5, ..Session::default() };
        session.outcomes =
            VecDeque::from([(5, put(1)), (7, Outcome::WrongRange), (300, STALE), (301, put(9))]);
        let bytes = session.encode();
        let client = 9_u128.to_be_bytes();
        let mut sessions = Sessions::default();
        sessions.load(CohortId(1), &client, &bytes).unwrap();
        assert_eq!(sessions.clients[&ClientId(9)], session);
        for len in 0..bytes.len() {
            let cut = sessions.load(CohortId(1), &client, &bytes[..len]);
            assert!(cut.is_err(), "cut to {len} bytes");
        }
        assert!(sessions.load(CohortId(1), &client[1..], &bytes).is_err());
        let mut future = bytes;
        future[0] += 1;
        let refused = sessions.load(CohortId(1), &client, &future).unwrap_err();
        assert!(matches!(refused, TableError::Format { .. }), "{refused}");
        // What 0.1.0 wrote: heard at (300, 2), floor 5, and the outcome of request 6.
        let row = [1, 0xac, 2, 2, 5, 1, 6, 0, 9];
        sessions.load(CohortId(1), &client, &row).unwrap();
        let outcomes = VecDeque::from([(6, put(9))]);
        let expected = Session { floor: 5, outcomes, ..Session::default() };
        assert_eq!(sessions.clients[&ClientId(9)], expected);
        assert!(sessions.load(CohortId(1), &client, &row[..8]).is_err());
    }
}
