//! What a successor begins with (RANGE-6).
//!
//! Nothing of it is copied: its table is begun on the rows of the one that ended, or of the two, and its log
//! behind the seal. A crash may leave the log without the table, which is not on the disk before the next
//! flush. Then the log of what ended is still there, and is applied up to the seal, which must
//! have been committed, since the successor had begun (RANGE-8).

use std::io;

use trireme_storage::{Beginning, LogWrite};
use trireme_types::{CohortConfig, CohortId, KeyRange, Lsn, RangeDescriptor};

use super::opener::Opener;
use crate::node::NodeError;
use crate::protocols::first_state;

/// The bytes of entries that are read and applied at once.
const STEP_BYTES: usize = 4 * 1024 * 1024;

/// What another cohort goes on from, as this node has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Before {
    /// The cohorts that ended, in key order.
    pub(super) ended: Vec<Ended>,
    /// Whether their replicas are here, and may apply their seals yet.
    pub(super) is_here: bool,
    /// The replica is none of a member: the node is invited, and its replica learns.
    pub(super) is_to_learn: bool,
}

/// A cohort that ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) cohort: CohortId,
    pub(super) seal: Lsn,
    /// The range that it served.
    pub(super) range: KeyRange,
}

/// What a replica has of the cohort that its own succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inheritance {
    /// Its cohort succeeds none.
    None,
    /// All.
    Taken,
    /// It must wait for the seal to be applied here.
    Awaited,
    /// Nothing, and it will not get it: others have to bring it up to date before it counts.
    Missed,
}

impl Opener {
    /// Has the replica of a successor begin with what the cohort that ended has here.
    pub(super) async fn inherit(
        &self,
        descriptor: &RangeDescriptor,
        config: &CohortConfig,
        before: Before,
        was_given_up: bool,
    ) -> Result<Inheritance, NodeError> {
        let Some(origin) = &config.origin else { return Ok(Inheritance::None) };
        let cohort = config.cohort;
        if !self.tables.has_begun(cohort) {
            //= RANGE-17
            // What the node has of the one before goes when that is settled, whether or not it is invited.
            if before.is_to_learn {
                return Ok(Inheritance::None);
            }
            if was_given_up {
                // What was there when the other one ended may have been changed since.
                return Ok(Inheritance::Missed);
            }
            let has_log_only = self.has_log_only(cohort);
            for Ended { cohort, seal, range } in &before.ended {
                if has_log_only {
                    self.apply_up_to_seal(*cohort, range, *seal).await?;
                }
                if !self.is_sealed(*cohort, range)? {
                    //= RANGE-7
                    return Ok(match before.is_here {
                        true => Inheritance::Awaited,
                        false => Inheritance::Missed,
                    });
                }
            }
            let beginning = Beginning {
                cohort,
                range: descriptor.range.clone(),
                base: origin.base(),
                protocol: first_state(config),
            };
            let tables = self.tables.clone();
            let part = |(ended, _)| (ended, origin.part(ended, &descriptor.range));
            let ended: Vec<_> = origin.seals().map(part).collect();
            let begin = tokio::task::spawn_blocking(move || tables.begin(&ended, &beginning));
            begin.await.map_err(io::Error::other)??;
        }
        let log = self.log.cohort(cohort);
        if log.bounds().last == Lsn::ZERO {
            //= RANGE-6
            log.submit(LogWrite::Begin { after: origin.base() })
                .map_err(|refused| NodeError::from(refused.error))?;
        }
        Ok(Inheritance::Taken)
    }

    /// Returns true if the node has the table of a cohort that has ended.
    fn is_sealed(&self, cohort: CohortId, range: &KeyRange) -> Result<bool, NodeError> {
        // Without a table, none is to be made.
        let has_begun = self.tables.has_begun(cohort);
        Ok(has_begun && self.tables.cohort(cohort, range.clone())?.is_sealed())
    }

    /// Applies the log of a cohort whose replica is not open up to its seal, which is known to be
    /// committed, unless that is done.
    pub(super) async fn apply_up_to_seal(
        &self,
        cohort: CohortId,
        range: &KeyRange,
        seal: Lsn,
    ) -> Result<(), NodeError> {
        //= RANGE-8
        // One at a time: two halves may be opened at once, and both need it.
        let _applying = self.applying.lock().await;
        let table = self.tables.cohort(cohort, range.clone())?;
        let log = self.log.cohort(cohort);
        if table.is_sealed() {
            return Ok(());
        }
        tracing::info!(%cohort, %seal, applied = %table.applied(), "applying what another cohort began with");
        let applying = tokio::task::spawn_blocking(move || -> Result<bool, NodeError> {
            while table.applied().seq < seal.seq {
                let first = table.applied().seq + 1;
                let entries = log.read(first..seal.seq + 1, STEP_BYTES)?;
                if entries.first().is_none_or(|entry| entry.lsn.seq != first) {
                    return Ok(false);
                }
                table.apply(&entries)?;
            }
            Ok(table.is_sealed())
        });
        if applying.await.map_err(io::Error::other)?? {
            return Ok(());
        }
        let applied = self.tables.cohort(cohort, range.clone())?.applied();
        Err(NodeError::LostRows { cohort, applied, purged: seal })
    }
}
