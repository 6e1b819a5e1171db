//! Taking over a snapshot in place of the rows in force.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use trireme_types::Version;

use crate::cohort_table::sessions::Sessions;
use crate::cohort_table::{CohortTable, Serving, State, Writer, wait_for_readers};
use crate::snapshot::{Record, SnapshotError, SnapshotHeader, StagedSnapshot};
use crate::table::keys::{self, Meta, Place};
use crate::table::rows::Rows;
use crate::table::{TableError, WriteBatch};

/// The bytes after which a batch of snapshot rows is written.
const INSTALL_BATCH_BYTES: usize = 1024 * 1024;

/// The points between which an installation may be cut off. Tests cut it off at each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InstallStep {
    /// A part of the rows is written under the next generation.
    SomeRowsWritten,
    /// All rows are.
    RowsWritten,
    /// All rows are durable; the old generation is in force.
    RowsDurable,
    /// The next generation is in force, and that is not durable.
    Flipped,
    /// It is durable; the old rows are still there.
    FlipDurable,
}

impl CohortTable {
    /// Replaces everything that the table holds by the snapshot's content. Durable when it returns;
    /// after a crash before that, the table is as it was before or as it is after.
    ///
    /// Refused if the snapshot is older than [`CohortTable::applied`], or if its content is no
    /// table's; then nothing has changed. The range stays as it is.
    pub fn install(&self, staged: StagedSnapshot) -> Result<(), TableError> {
        self.install_in_steps(staged, &mut |_| Ok(()))
    }

    /// Installs, and calls `step` between the steps; breaks off where `step` fails.
    pub(crate) fn install_in_steps(
        &self,
        staged: StagedSnapshot,
        step: &mut dyn FnMut(InstallStep) -> Result<(), TableError>,
    ) -> Result<(), TableError> {
        let state = &*self.state;
        state.core.check_usable()?;
        // Nothing is applied until the snapshot is in force or refused.
        let mut writer = state.writer.lock();
        let old = state.place()?;
        let old_rows = writer.rows.clone();
        let snapshot = staged.header().applied;
        if snapshot < writer.applied {
            let (cohort, applied) = (state.id, writer.applied);
            return Err(TableError::OldSnapshot { cohort, applied, snapshot });
        }
        let new = Place { generation: next_generation(old)?, ..old };
        // An installation that was refused half-way may have left rows there.
        state.core.remove_span(&new.all())?;
        let loaded = match load(state, new, staged, step) {
            Ok(loaded) => loaded,
            Err(error) => {
                if !error.is_fatal() {
                    state.core.remove_span(&new.all())?;
                }
                return Err(error);
            }
        };
        step(InstallStep::RowsWritten)?;
        state.core.flush()?;
        step(InstallStep::RowsDurable)?;
        let replaced = state.flip(new, &mut writer, loaded)?;
        step(InstallStep::Flipped)?;
        state.core.flush()?;
        step(InstallStep::FlipDurable)?;
        wait_for_readers(&replaced);
        state.core.remove_span(&old.all())?;
        for part in old_rows.parts() {
            state.core.remove_span(&part.span())?;
        }
        tracing::info!(cohort = %state.id, applied = %writer.applied, "installed a snapshot");
        Ok(())
    }
}

impl State {
    fn place(&self) -> Result<Place, TableError> {
        Ok(self.serving()?.place(self.id))
    }

    /// Puts the generation `new` in force, for the disk and for readers, and returns what those still
    /// keep that read the old one.
    fn flip(
        &self,
        new: Place,
        writer: &mut Writer,
        loaded: Writer,
    ) -> Result<Arc<Serving>, TableError> {
        let _replacing = self.replacing.lock();
        self.serving()?;
        let meta = Meta {
            generation: new.generation,
            applied: loaded.applied,
            writes: loaded.writes,
            clock: loaded.sessions.clock(),
            rows: Rows::Own,
        };
        let mut batch = WriteBatch::default();
        batch.put(&[&keys::meta_key(self.id)], &[&meta.encode()]);
        self.core.write(batch)?;
        let generation = new.generation;
        let replaced = self.replace(|serving| Serving { generation, rows: Rows::Own, ..serving });
        *writer = loaded;
        self.protocol.write().clone_from(&writer.protocol);
        self.clock.store(writer.sessions.clock(), Ordering::Release);
        self.points.set_applied(writer.applied);
        Ok(replaced)
    }
}

fn next_generation(old: Place) -> Result<u32, TableError> {
    old.generation.checked_add(1).ok_or_else(|| {
        keys::corrupt(old.cohort, "the meta row", "no generation number is left".to_owned())
    })
}

/// Writes the snapshot's rows under `place` and returns what belongs to them in memory.
fn load(
    state: &State,
    place: Place,
    staged: StagedSnapshot,
    step: &mut dyn FnMut(InstallStep) -> Result<(), TableError>,
) -> Result<Writer, TableError> {
    let cohort = place.cohort;
    let (header, mut records) = staged.into_records();
    let mut sessions = Sessions::at(header.clock);
    let mut batch = WriteBatch::default();
    if let Some((lsn, payload)) = &header.protocol {
        let key = place.prefix(keys::KIND_PROTOCOL);
        batch.put(&[&key], &[&keys::lsn_header(*lsn), payload]);
    }
    let refused = |source| TableError::Snapshot { cohort, source };
    while let Some(record) = records.next_record().map_err(refused)? {
        load_record(place, &header, record, &mut sessions, &mut batch)?;
        if batch.bytes() >= INSTALL_BATCH_BYTES {
            state.core.write(std::mem::take(&mut batch))?;
            step(InstallStep::SomeRowsWritten)?;
        }
    }
    state.core.write(batch)?;
    Ok(Writer {
        applied: header.applied,
        writes: header.writes,
        protocol: header.protocol,
        sessions,
        ..Writer::default()
    })
}

/// Checks one record and adds it to the batch.
fn load_record(
    place: Place,
    header: &SnapshotHeader,
    record: Record,
    sessions: &mut Sessions,
    batch: &mut WriteBatch,
) -> Result<(), TableError> {
    let cohort = place.cohort;
    let malformed = |reason: &str| {
        let source = SnapshotError::Malformed(reason.to_owned());
        TableError::Snapshot { cohort, source }
    };
    let kind = match record.kind {
        Record::SESSION => {
            sessions.load(cohort, &record.key, &record.value)?;
            keys::KIND_SESSION
        }
        Record::ROW => {
            let version = keys::row_version(cohort, &record.value)?;
            if version > Version(header.writes) {
                return Err(malformed("a row's version is above the last write's"));
            }
            if !header.range.contains(&record.key) {
                return Err(malformed("a row's key is outside its range"));
            }
            keys::KIND_ROW
        }
        _ => return Err(malformed("a record is of no known kind")),
    };
    batch.put(&[&place.prefix(kind), &record.key], &[&record.value]);
    Ok(())
}
