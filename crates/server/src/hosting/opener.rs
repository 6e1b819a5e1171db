//! Opening a replica on what the node has of its cohort, and discarding what is left of one.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use trireme_coordinator::Coordinator;
use trireme_storage::{CohortLog, CohortTable, SharedLog, Tables};
use trireme_types::{CohortConfig, CohortId, Lsn, NodeId, RangeDescriptor, Timing};

use super::decision::Local;
use crate::backpressure::Backpressure;
use crate::cohort::HostedCohort;
use crate::factory::{ReplicaParts, open_replica};
use crate::node::NodeError;
use crate::routes::NodeDirectory;
use crate::transport::PeerTransport;

/// What the replicas of one node share.
pub(crate) struct Opener {
    pub(crate) node: NodeId,
    /// Whether the node once lost its disk.
    pub(crate) rejoins: bool,
    /// The periods of the protocols of our own.
    pub(crate) timing: Timing,
    /// How many replicas a PacificA cohort must have to take writes (P10).
    pub(crate) min_replicas_for_write: usize,
    pub(crate) log: SharedLog,
    pub(crate) tables: Tables,
    pub(crate) transport: Arc<PeerTransport>,
    pub(crate) directory: Arc<NodeDirectory>,
    pub(crate) coordinator: Coordinator,
    /// What writes meet when the log is too long.
    pub(crate) backpressure: Arc<Backpressure>,
    /// Called when the node can no longer keep its promises.
    pub(crate) fail: Arc<dyn Fn(String) + Send + Sync>,
    /// Where the replicas run.
    pub(crate) consensus: Handle,
}

impl Opener {
    /// Opens a replica and starts its queues on the current runtime. Nobody else may have one of
    /// the same cohort open.
    pub(super) async fn open(
        &self,
        descriptor: RangeDescriptor,
        config: CohortConfig,
    ) -> Result<Arc<HostedCohort>, NodeError> {
        let cohort = config.cohort;
        let (log, table) = self.storage(&descriptor, &config).await?;
        let on_failure = self.fail.clone();
        let parts = ReplicaParts {
            node: self.node,
            config,
            log,
            tables: self.tables.clone(),
            table: table.clone(),
            transport: self.transport.clone(),
            coordinator: self.coordinator.clone(),
            timing: self.timing,
            min_replicas_for_write: self.min_replicas_for_write,
            rejoins: self.rejoins,
            on_failure: Arc::new(move |reason| on_failure(format!("{cohort}: {reason}"))),
        };
        let opened = self.consensus.spawn(open_replica(parts)).await.map_err(io::Error::other)?;
        let replica = opened.map_err(|source| NodeError::Replica { cohort, source })?;
        let (directory, backpressure) = (self.directory.clone(), self.backpressure.clone());
        Ok(HostedCohort::start(descriptor, replica, table, directory, backpressure))
    }

    /// Returns the log and the table for a replica, whose table must reach to where its log begins.
    /// In what is left of a replica that is not in the cohort any more it may not, if discarding it
    /// was interrupted: such a replica begins anew, for nobody counts on what it has.
    async fn storage(
        &self,
        descriptor: &RangeDescriptor,
        config: &CohortConfig,
    ) -> Result<(CohortLog, CohortTable), NodeError> {
        let cohort = config.cohort;
        let is_member = config.replicas.contains(&self.node);
        let (log, table) = self.open_storage(descriptor)?;
        let (applied, bounds) = (table.applied(), log.bounds());
        let is_torn = applied.seq < bounds.purged.seq || applied.seq > bounds.last.seq;
        if !is_member && is_torn {
            tracing::warn!(%cohort, %applied, ?bounds, "the rest of a replica is discarded");
            self.discard(cohort).await?;
            return self.open_storage(descriptor);
        }
        if applied.seq < bounds.purged.seq {
            return Err(NodeError::LostRows { cohort, applied, purged: bounds.purged });
        }
        Ok((log, table))
    }

    fn open_storage(
        &self,
        descriptor: &RangeDescriptor,
    ) -> Result<(CohortLog, CohortTable), NodeError> {
        let table = self.tables.cohort(descriptor.cohort, descriptor.range.clone())?;
        Ok((self.log.cohort(descriptor.cohort), table))
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

    /// Returns what the node has of each cohort of which it has anything.
    pub(super) fn local(
        &self,
        hosted: &BTreeMap<CohortId, Arc<HostedCohort>>,
    ) -> BTreeMap<CohortId, Local> {
        let mut local = BTreeMap::new();
        // What is there without a replica has been found on the disk, or is left of one.
        let logs = self.log.cohorts().into_iter().filter(|&cohort| {
            let log = self.log.cohort(cohort);
            log.bounds().last != Lsn::ZERO || log.hard_state().is_some()
        });
        for cohort in logs.chain(self.tables.cohorts()) {
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
