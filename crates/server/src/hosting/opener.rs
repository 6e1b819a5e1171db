//! Opening a replica on what the node has of its cohort, and discarding what is left of one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Mutex, oneshot, watch};
use trireme_replication::pulse::Pulses;
use trireme_storage::{CohortLog, CohortTable, SharedLog, Tables};
use trireme_types::{CohortConfig, CohortId, Lsn, NodeId, RangeDescriptor, Timing};

use super::decision::Local;
use super::inheritance::{Before, Inheritance};
use crate::backpressure::Backpressure;
use crate::cohort::HostedCohort;
use crate::continuity::Continuity;
use crate::memory::NodeMemory;
use crate::node::NodeError;
use crate::protocols::{Mistakes, ReplicaParts, SharedCoordinator, open_replica};
use crate::readers::Readers;
use crate::routes::NodeDirectory;
use crate::transport::PeerTransport;

/// What the replicas of one node share.
pub(crate) struct Opener {
    pub(crate) node: NodeId,
    /// Whether the node once lost its disk.
    pub(crate) rejoins: bool,
    /// What the node remembers, and whether the coordinator is what it was.
    pub(crate) continuity: Arc<Continuity>,
    /// How long what is left of a replica is kept.
    pub(crate) discard_after: Duration,
    /// The periods of the protocols of our own.
    pub(crate) timing: Timing,
    /// How many replicas a PacificA cohort must have to take writes (P10).
    pub(crate) min_replicas_for_write: usize,
    /// What the replicas do wrong, for tests of what judges them.
    pub(crate) mistakes: Mistakes,
    pub(crate) log: SharedLog,
    pub(crate) tables: Tables,
    pub(crate) transport: Arc<PeerTransport>,
    /// What the replicas rest by while nothing happens.
    pub(crate) pulses: Arc<Pulses>,
    pub(crate) directory: Arc<NodeDirectory>,
    pub(crate) coordinator: Arc<SharedCoordinator>,
    /// What writes meet when the log is too long.
    pub(crate) backpressure: Arc<Backpressure>,
    /// Changes whenever a cohort has ended here.
    pub(crate) ended: watch::Receiver<()>,
    /// Called when the node can no longer keep its promises.
    pub(crate) fail: Arc<dyn Fn(String) + Send + Sync>,
    /// Who reads what lies in files.
    pub(crate) readers: Arc<Readers>,
    /// Where the replicas run.
    pub(crate) consensus: Handle,
    /// Held while what a cohort ended with is applied from its log: no entry may be applied twice.
    pub(crate) applying: Mutex<()>,
}

impl Opener {
    /// Opens a replica and starts its queues on the current runtime; `None` if it has to wait for the
    /// end of the one where its cohort goes on. There must be no other one of the same cohort open.
    pub(super) async fn open(
        &self,
        descriptor: RangeDescriptor,
        config: CohortConfig,
        before: Before,
    ) -> Result<Option<Arc<HostedCohort>>, NodeError> {
        let cohort = config.cohort;
        tracing::info!(%cohort, ?config, "opening a replica");
        if self.continuity.memory().get().set_aside.contains_key(&cohort) {
            // It has not followed the cohort since, and no other counts on what it has.
            tracing::warn!(%cohort, "what was set aside is deleted, since a new replica is to be here");
            self.delete_set_aside(cohort).await?;
        }
        let was_given_up = self.continuity.memory().get().given_up.contains(&cohort);
        let rejoins = match self.inherit(&descriptor, &config, before, was_given_up).await? {
            Inheritance::None => self.rejoins || was_given_up,
            Inheritance::Taken => false,
            Inheritance::Missed => true,
            Inheritance::Awaited => return Ok(None),
        };
        let (log, table) = self.storage(&descriptor, &config).await?;
        let on_failure = self.fail.clone();
        let parts = ReplicaParts {
            node: self.node,
            config,
            log,
            tables: self.tables.clone(),
            table: table.clone(),
            transport: self.transport.clone(),
            pulses: self.pulses.clone(),
            coordinator: self.coordinator.clone(),
            timing: self.timing,
            min_replicas_for_write: self.min_replicas_for_write,
            mistakes: self.mistakes,
            rejoins,
            on_failure: Arc::new(move |reason| on_failure(format!("{cohort}: {reason}"))),
        };
        let opened = self.consensus.spawn(open_replica(parts)).await.map_err(io::Error::other)?;
        let replica = opened.map_err(|source| NodeError::Replica { cohort, source })?;
        Ok(Some(HostedCohort::start(
            descriptor,
            replica,
            table,
            self.directory.clone(),
            self.backpressure.clone(),
            self.readers.clone(),
        )))
    }

    /// Returns the log and the table for a replica, whose table must reach to where its log begins.
    /// In what is left of a replica that is not in the cohort any more it may not, if discarding it
    /// was interrupted: such a replica begins anew under another incarnation, so that nothing is counted on that
    /// it had.
    async fn storage(
        &self,
        descriptor: &RangeDescriptor,
        config: &CohortConfig,
    ) -> Result<(CohortLog, CohortTable), NodeError> {
        let cohort = config.cohort;
        let is_member = config.replicas.contains(&self.node);
        let (log, table) = self.open_storage(descriptor).await?;
        let (applied, bounds) = (table.applied(), log.bounds());
        let is_torn = applied.seq < bounds.purged.seq || applied.seq > bounds.last.seq;
        if !is_member && is_torn {
            tracing::warn!(%cohort, %applied, ?bounds, "the rest of a replica is discarded");
            self.discard(cohort).await?;
            return self.open_storage(descriptor).await;
        }
        if applied.seq < bounds.purged.seq {
            return Err(NodeError::LostRows { cohort, applied, purged: bounds.purged });
        }
        Ok((log, table))
    }

    async fn open_storage(
        &self,
        descriptor: &RangeDescriptor,
    ) -> Result<(CohortLog, CohortTable), NodeError> {
        let RangeDescriptor { cohort, range, .. } = descriptor.clone();
        let (tables, log) = (self.tables.clone(), self.log.clone());
        // It reads from the disk.
        let opening = tokio::task::spawn_blocking(move || {
            Ok((log.cohort(cohort), tables.cohort(cohort, range)?))
        });
        opening.await.map_err(io::Error::other)?
    }

    /// Sets aside what the node has of a cohort whose replica is closed: its rows stay as they are,
    /// and its log goes, so that it keeps no segment. Interrupted, it is to be repeated.
    pub(super) async fn set_aside(&self, cohort: CohortId) -> Result<(), NodeError> {
        let memory = self.continuity.memory();
        let given_up = memory.update(|memory| {
            memory.set_aside.entry(cohort).or_insert_with(NodeMemory::now);
            memory.given_up.insert(cohort);
            Ok(())
        });
        given_up.await?;
        if self.discard_after.is_zero() {
            return self.delete_set_aside(cohort).await;
        }
        // What the rows lack on the disk would be lost with the log.
        self.flush().await?;
        self.log.forget_cohort(cohort)?;
        tracing::info!(%cohort, kept = ?self.discard_after, "what is left of a replica is set aside");
        Ok(())
    }

    /// Deletes what was set aside.
    pub(super) async fn delete_set_aside(&self, cohort: CohortId) -> Result<(), NodeError> {
        self.discard(cohort).await?;
        let memory = self.continuity.memory();
        let deleted = memory.update(|memory| {
            memory.set_aside.remove(&cohort);
            Ok(())
        });
        Ok(deleted.await?)
    }

    /// Returns the cohorts whose rest was set aside long enough ago, and in how long the next one's
    /// will have been.
    pub(super) fn due(&self) -> (Vec<CohortId>, Option<Duration>) {
        let memory = self.continuity.memory().get();
        let (now, mut due, mut next) = (NodeMemory::now(), Vec::new(), None::<Duration>);
        for (&cohort, &since) in &memory.set_aside {
            let age = Duration::from_millis(now.saturating_sub(since));
            match self.discard_after.checked_sub(age).filter(|left| !left.is_zero()) {
                None => due.push(cohort),
                Some(left) => next = Some(next.map_or(left, |next| next.min(left))),
            }
        }
        (due, next)
    }

    /// Writes what the tables have in memory to the disk.
    pub(super) async fn flush(&self) -> Result<(), NodeError> {
        let tables = self.tables.clone();
        let flush = tokio::task::spawn_blocking(move || tables.flush());
        Ok(flush.await.map_err(io::Error::other)??)
    }

    /// Drops everything that the node has of a cohort whose replica is closed, so that it keeps no
    /// segment of the log and takes no room. Interrupted, it is to be repeated.
    ///
    /// The log goes first, and durably: one that came back after a crash without the rows that it
    /// purged would keep a node that is a member again from opening its replica.
    pub(super) async fn discard(&self, cohort: CohortId) -> Result<(), NodeError> {
        let (forgotten, is_forgotten) = oneshot::channel();
        let done = move |result| {
            // Who waited may have gone.
            let _gone = forgotten.send(result);
        };
        self.log.forget_cohort_then(cohort, done)?;
        is_forgotten.await.map_err(io::Error::other)??;
        let tables = self.tables.clone();
        let dropped = tokio::task::spawn_blocking(move || tables.drop_cohort(cohort));
        dropped.await.map_err(io::Error::other)??;
        tracing::info!(%cohort, "what was left of the cohort's replica is discarded");
        Ok(())
    }

    /// Returns true if the node has a log of the cohort that has begun, and no table.
    pub(super) fn has_log_only(&self, cohort: CohortId) -> bool {
        let has_log = self.log.cohorts().contains(&cohort);
        let has_begun = has_log && self.log.cohort(cohort).bounds().last != Lsn::ZERO;
        has_begun && !self.tables.has_begun(cohort)
    }

    /// Returns what the node has of each cohort of which it has anything.
    pub(super) fn local(
        &self,
        hosted: &BTreeMap<CohortId, Arc<HostedCohort>>,
    ) -> BTreeMap<CohortId, Local> {
        let mut local = BTreeMap::new();
        let memory = self.continuity.memory().get();
        let logs: BTreeSet<_> = self.log.cohorts().into_iter().collect();
        // What is there without a replica has been found on the disk, or is left of one.
        let with_content = logs.iter().copied().filter(|&cohort| {
            let log = self.log.cohort(cohort);
            log.bounds().last != Lsn::ZERO || log.hard_state().is_some()
        });
        for cohort in with_content.chain(self.tables.cohorts()) {
            // What is set aside brings nothing along, unless setting it aside was interrupted.
            if memory.set_aside.contains_key(&cohort) && !logs.contains(&cohort) {
                continue;
            }
            local.insert(cohort, Local { is_hosted: false, has_data: true });
        }
        for (&cohort, replica) in hosted {
            // What a replica promised counts for nothing here, only what it could bring along.
            let has_entries = self.log.cohort(cohort).bounds().last != Lsn::ZERO;
            let has_data = has_entries || replica.table.applied() != Lsn::ZERO;
            local.insert(cohort, Local { is_hosted: true, has_data });
        }
        local
    }
}
