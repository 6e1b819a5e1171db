//! Beginning a table where another cohort's ended: on its rows, with all that it knew.

use bytes::Bytes;
use trireme_types::{CohortId, KeyRange, Lsn};

use crate::cohort_table::CohortTable;
use crate::table::keys::{self, Meta, Place, Rows};
use crate::table::{TableError, WriteBatch};

/// The bytes after which a batch of sessions is written.
const BATCH_BYTES: usize = 1024 * 1024;

/// The generation in which a table begins.
const FIRST_GENERATION: u32 = 1;

/// A table that is to begin where another one ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// Whose table it is.
    pub cohort: CohortId,
    /// The keys, all of which the one that ended served.
    pub range: KeyRange,
    /// What counts as the last applied entry.
    pub base: Lsn,
    /// What the protocol keeps beside the rows at first, as if it were an entry at `base`.
    pub protocol: Option<Bytes>,
}

impl CohortTable {
    /// Writes all that a table is to begin with, the meta row last: a crash before that leaves what
    /// the next start removes. Returns what was written there. No row is read or written.
    pub(crate) fn hand_on(&self, beginning: &Beginning) -> Result<Meta, TableError> {
        let state = &*self.state;
        let mut writer = state.writer.lock();
        if writer.seal.is_none() {
            return Err(TableError::NotSealed(state.id));
        }
        let own = state.present()?.place(state.id);
        let Beginning { cohort, range, base, protocol } = beginning;
        let place = Place { cohort: *cohort, generation: FIRST_GENERATION };
        let mut batch = WriteBatch::default();
        //= RANGE-6
        writer.sessions.write_all(place, &mut |key, value| {
            batch.put(&[&key], &[&value]);
            match batch.bytes() {
                bytes if bytes >= BATCH_BYTES => state.core.write(std::mem::take(&mut batch)),
                _ => Ok(()),
            }
        })?;
        if let Some(payload) = protocol {
            let key = place.prefix(keys::KIND_PROTOCOL);
            batch.put(&[&key], &[&keys::lsn_header(*base), payload]);
        }
        let meta = Meta {
            generation: FIRST_GENERATION,
            applied: *base,
            writes: writer.writes,
            clock: writer.sessions.clock(),
            rows: Rows::Elsewhere { place: writer.rows.place(own), range: range.clone() },
        };
        batch.put(&[&keys::meta_key(*cohort)], &[&meta.encode()]);
        state.core.write(batch)?;
        Ok(meta)
    }

    /// Returns where the rows lie.
    pub(crate) fn rows(&self) -> Rows {
        let serving = self.state.serving.load();
        match serving.rows {
            place if place.cohort == self.state.id => Rows::Own,
            place => Rows::Elsewhere { place, range: serving.range.clone() },
        }
    }
}
