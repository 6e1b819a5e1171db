//! Beginning a table where those of other cohorts ended: on their rows, with all that they knew.

use std::sync::Arc;

use bytes::Bytes;
use trireme_types::limits::{OUTCOMES_MAX, SESSIONS_MAX};
use trireme_types::{CohortId, KeyRange, Lsn};

use crate::cohort_table::CohortTable;
use crate::cohort_table::sessions::Sessions;
use crate::table::keys::{self, Meta, Place};
use crate::table::rows::{PARTS_MAX, Rows};
use crate::table::{Core, TableError, WriteBatch};

/// The bytes after which a batch of sessions is written.
const BATCH_BYTES: usize = 1024 * 1024;

/// The generation in which a table begins.
const FIRST_GENERATION: u32 = 1;

/// A table that is to begin where others ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// Whose table it is.
    pub cohort: CohortId,
    /// The keys, all of which those that ended served.
    pub range: KeyRange,
    /// What counts as the last applied entry.
    pub base: Lsn,
    /// What the protocol keeps beside the rows at first, as if it were an entry at `base`.
    pub protocol: Option<Bytes>,
}

/// Writes all that a table is to begin with where those of `ended` have ended, in key order, each on the part of
/// its rows that lies in the range named with it; the meta row last: a crash before that leaves what the next start removes. Returns what was written there. No row is
/// read or written.
pub(crate) fn hand_on(
    core: &Arc<Core>,
    ended: &[(CohortTable, KeyRange)],
    beginning: &Beginning,
) -> Result<Meta, TableError> {
    let Beginning { cohort, base, protocol, .. } = beginning;
    let place = Place { cohort: *cohort, generation: FIRST_GENERATION };
    let mut parts = Vec::new();
    let mut writers = Vec::with_capacity(ended.len());
    for (table, range) in ended {
        let state = &*table.state;
        let writer = state.writer.lock();
        if writer.seal.is_none() {
            return Err(TableError::NotSealed(state.id));
        }
        let serving = state.present()?;
        let own_range = serving.range.intersection(range);
        parts.extend(writer.rows.within(serving.place(state.id), &own_range));
        writers.push(writer);
    }
    let mut batch = WriteBatch::default();
    let mut write = |key: Vec<u8>, value: Vec<u8>| {
        batch.put(&[&key], &[&value]);
        match batch.bytes() {
            bytes if bytes >= BATCH_BYTES => core.write(std::mem::take(&mut batch)),
            _ => Ok(()),
        }
    };
    //= RANGE-6
    let clock = match &mut writers[..] {
        [one] => {
            one.sessions.write_all(place, &mut write)?;
            one.sessions.clock()
        }
        several => {
            let mut all = Sessions::united(several.iter().map(|writer| &writer.sessions));
            all.write_all(place, &mut write)?;
            all.clock()
        }
    };
    if let Some(payload) = protocol {
        let key = place.prefix(keys::KIND_PROTOCOL);
        batch.put(&[&key], &[&keys::lsn_header(*base), payload]);
    }
    let meta = Meta {
        generation: FIRST_GENERATION,
        applied: *base,
        // No key was in two of them, so that the versions of each go on from what they were.
        writes: writers.iter().map(|writer| writer.writes).max().unwrap_or_default(),
        clock,
        rows: Rows::elsewhere(parts),
    };
    batch.put(&[&keys::meta_key(*cohort)], &[&meta.encode()]);
    core.write(batch)?;
    Ok(meta)
}

impl CohortTable {
    /// Returns where the rows lie.
    pub(crate) fn rows(&self) -> Rows {
        self.state.serving.load().rows.clone()
    }

    /// Returns why this cohort and another one should not become one, if there is a reason: what they know of
    /// clients is kept whole, and where their rows lie is written with every batch.
    pub fn reason_against_merge(&self, other: &Self) -> Option<String> {
        let count = |table: &Self| {
            let writer = table.state.writer.lock();
            let (sessions, outcomes) = writer.sessions.counts();
            [sessions, outcomes, writer.rows.parts().len().max(1)]
        };
        let (one, other) = (count(self), count(other));
        let kinds = ["clients", "outcomes of clients' writes", "parts of the key space"];
        let limits = [SESSIONS_MAX, OUTCOMES_MAX, PARTS_MAX];
        let mut all = kinds.iter().zip(limits).zip(one.iter().zip(other));
        all.find_map(|((kind, limit), (one, other))| {
            let together = one + other;
            (together > limit)
                .then(|| format!("together they have {together} {kind}, and {limit} are the limit"))
        })
    }
}
