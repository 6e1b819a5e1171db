//! The sessions of a cohort: which writes of which clients were applied, and what became of them
//! (C1).
//!
//! They are replicated state: everything here follows from the log alone, the choice of the session
//! to forget included, so that every replica recognises the same retries. They are kept in memory
//! whole and on disk as one row per client, rewritten in the batch of each apply that touched it.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use trireme_types::limits::{SESSION_OUTCOMES_MAX, SESSIONS_MAX};
use trireme_types::{ClientId, CohortId, Outcome, RequestId};

use crate::table::keys::{self, Place};
use crate::table::{TableError, WriteBatch};

/// Where in the log a command stands: its entry's sequence, and its place among the entry's
/// commands. No two commands share one.
pub(crate) type Moment = (u64, u32);

/// The outcome of a request that the client has given up waiting for: nothing is changed, which is
/// what this outcome says, and no retry follows from it.
pub(crate) const STALE: Outcome = Outcome::ConditionFailed { current: None };

/// All sessions of a cohort.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    clients: HashMap<ClientId, Session>,
    /// Clients whose row on disk is behind; one may be named twice, and may be forgotten by now.
    changed: Vec<ClientId>,
}

/// What is known of one client's writes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Session {
    /// When the client was heard last.
    heard: Moment,
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
    heard: Moment,
    floor: u64,
    outcomes: VecDeque<(u64, Outcome)>,
}

impl Sessions {
    /// Notes that `request` was heard at `moment`. Returns its outcome if it must not be applied:
    /// the recorded one of a retry, or [`STALE`].
    pub(crate) fn hear(&mut self, request: RequestId, moment: Moment) -> Option<Outcome> {
        if !self.clients.contains_key(&request.client) {
            self.make_room();
        }
        let session = self.clients.entry(request.client).or_default();
        if !session.is_changed {
            session.is_changed = true;
            self.changed.push(request.client);
        }
        session.heard = moment;
        session.raise_floor(request.first_incomplete);
        match session.find(request.sequence) {
            Ok(index) => Some(session.outcomes[index].1),
            Err(_) if request.sequence < session.floor => Some(STALE),
            Err(_) => None,
        }
    }

    /// Records the outcome of a request that [`Sessions::hear`] had applied.
    pub(crate) fn record(&mut self, request: RequestId, outcome: Outcome) {
        let Some(session) = self.clients.get_mut(&request.client) else {
            return;
        };
        if let Err(index) = session.find(request.sequence) {
            session.outcomes.insert(index, (request.sequence, outcome));
        }
        if session.outcomes.len() > SESSION_OUTCOMES_MAX {
            // The client has more under way than it may. What cannot be recognised again must not
            // be applied again.
            let lowest = session.outcomes[0].0;
            session.raise_floor(lowest.saturating_add(1));
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
        let row = keys::check_format(cohort, what, value)?;
        let (row, rest) = postcard::take_from_bytes::<SessionRow>(row)
            .map_err(|error| keys::corrupt(cohort, what, error.to_string()))?;
        let rising = row.outcomes.iter().zip(row.outcomes.iter().skip(1)).all(|(a, b)| a.0 < b.0);
        if !rest.is_empty() || !rising || row.outcomes.len() > SESSION_OUTCOMES_MAX {
            return Err(keys::corrupt(cohort, what, "its outcomes are no list".to_owned()));
        }
        if self.clients.len() >= SESSIONS_MAX {
            let reason = format!("there are more than {SESSIONS_MAX}");
            return Err(keys::corrupt(cohort, "the session table", reason));
        }
        let session = Session {
            heard: row.heard,
            floor: row.floor,
            outcomes: row.outcomes,
            is_changed: false,
        };
        self.clients.insert(ClientId(u128::from_be_bytes(client)), session);
        Ok(())
    }

    /// Forgets the client that was unheard for longest if there is no room for one more. A search
    /// through all, which only a client past the limit costs, is cheaper than keeping an order.
    fn make_room(&mut self) {
        if self.clients.len() < SESSIONS_MAX {
            return;
        }
        let oldest = self.clients.iter().min_by_key(|(_, session)| session.heard);
        if let Some(client) = oldest.map(|(client, _)| *client) {
            self.clients.remove(&client);
            self.changed.push(client);
        }
    }
}

impl Session {
    fn find(&self, sequence: u64) -> Result<usize, usize> {
        // Requests mostly come in order, so the place is mostly the end.
        match self.outcomes.back() {
            Some((last, _)) if *last < sequence => Err(self.outcomes.len()),
            _ => self.outcomes.binary_search_by_key(&sequence, |(sequence, _)| *sequence),
        }
    }

    fn raise_floor(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
        while self.outcomes.front().is_some_and(|(sequence, _)| *sequence < self.floor) {
            self.outcomes.pop_front();
        }
    }

    fn encode(&mut self) -> Vec<u8> {
        let row = SessionRow {
            heard: self.heard,
            floor: self.floor,
            outcomes: std::mem::take(&mut self.outcomes),
        };
        let bytes = Vec::with_capacity(32 + row.outcomes.len() * 12);
        let mut bytes = bytes;
        bytes.push(keys::FORMAT);
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
        RequestId { client: ClientId(client), sequence, first_incomplete }
    }

    fn put(version: u64) -> Outcome {
        Outcome::Put { version: Version(version) }
    }

    #[test]
    fn a_retry_gets_the_outcome_of_the_first_try() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.hear(request(1, 5, 5), (1, 0)), None);
        sessions.record(request(1, 5, 5), put(1));
        assert_eq!(sessions.hear(request(1, 5, 5), (2, 0)), Some(put(1)));
        assert_eq!(sessions.hear(request(2, 5, 5), (3, 0)), None, "another client's request");
    }

    #[test]
    fn requests_out_of_order_are_each_recognised() {
        let mut sessions = Sessions::default();
        for (index, sequence) in [7, 3, 5, 4, 9].into_iter().enumerate() {
            let moment = (index as u64 + 1, 0);
            assert_eq!(sessions.hear(request(1, sequence, 3), moment), None);
            sessions.record(request(1, sequence, 3), put(sequence));
        }
        for sequence in [3, 4, 5, 7, 9] {
            let heard = sessions.hear(request(1, sequence, 3), (20, 0));
            assert_eq!(heard, Some(put(sequence)), "sequence {sequence}");
        }
        assert_eq!(sessions.hear(request(1, 6, 3), (21, 0)), None);
    }

    #[test]
    fn what_the_client_no_longer_awaits_is_dropped_and_never_applied_again() {
        let mut sessions = Sessions::default();
        for sequence in 1..=9 {
            assert_eq!(sessions.hear(request(1, sequence, 1), (sequence, 0)), None);
            sessions.record(request(1, sequence, 1), put(sequence));
        }
        assert_eq!(sessions.hear(request(1, 10, 8), (10, 0)), None);
        assert_eq!(sessions.hear(request(1, 7, 1), (11, 0)), Some(STALE));
        assert_eq!(sessions.hear(request(1, 8, 1), (12, 0)), Some(put(8)));
        assert_eq!(sessions.clients[&ClientId(1)].outcomes.len(), 2);
    }

    #[test]
    fn a_client_with_too_much_under_way_cannot_have_a_write_applied_twice() {
        let mut sessions = Sessions::default();
        let count = SESSION_OUTCOMES_MAX as u64 + 1;
        for sequence in 1..=count {
            assert_eq!(sessions.hear(request(1, sequence, 1), (sequence, 0)), None);
            sessions.record(request(1, sequence, 1), put(sequence));
        }
        assert_eq!(sessions.hear(request(1, 1, 1), (count + 1, 0)), Some(STALE));
        assert_eq!(sessions.hear(request(1, 2, 1), (count + 2, 0)), Some(put(2)));
    }

    #[test]
    fn the_client_unheard_for_longest_is_forgotten() {
        let mut sessions = Sessions::default();
        let max = SESSIONS_MAX as u64;
        for client in 0..max {
            assert_eq!(sessions.hear(request(client.into(), 1, 1), (client + 1, 0)), None);
            sessions.record(request(client.into(), 1, 1), put(client));
        }
        assert_eq!(sessions.hear(request(0, 1, 1), (max + 1, 0)), Some(put(0)));
        assert_eq!(sessions.hear(request(u128::MAX, 1, 1), (max + 1, 1)), None);
        assert_eq!(sessions.clients.len(), SESSIONS_MAX);
        assert!(!sessions.clients.contains_key(&ClientId(1)), "the longest unheard is kept");
        assert_eq!(sessions.hear(request(0, 1, 1), (max + 2, 0)), Some(put(0)));
    }

    #[test]
    fn rows_read_back_and_damaged_ones_are_refused() {
        let mut session = Session { heard: (1 << 50, 3), floor: 5, ..Session::default() };
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
    }
}
