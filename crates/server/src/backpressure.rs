//! Which writes have to wait, or are refused, because of the length of a log: the node's own, or that
//! of another node that holds a replica.
//!
//! A node whose log is at its limit sends all others a notice, and they propose nothing new meanwhile for
//! cohorts that have a replica there. Only what is new waits, here and there: what is under way, and
//! what lets it be applied and purged, never does, so that no two nodes wait for each other.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use arc_swap::ArcSwap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};
use trireme_replication::{Lane, Transport};
use trireme_types::limits::BATCH_BYTES_MAX;
use trireme_types::{CohortId, NodeId};

/// The unit in which bytes under way are counted: a semaphore has too few permits for single bytes.
const UNIT_BYTES: u64 = 1024;

/// The most units: more than any log has, and as few as a semaphore bears on every machine.
const UNITS_MAX: u32 = 1 << 28;

/// For how long a batch counts as one that is under way. After that it is in the log, and counted with
/// it; a cohort that has lost its quorum must not hold up the others.
const UNDER_WAY_TIMEOUT: Duration = Duration::from_secs(2);

/// In place of a cohort, in messages from node to node.
pub(crate) const NO_COHORT: CohortId = CohortId(0);

/// How often a node whose log is at its limit repeats its notice.
const NOTICE_INTERVAL: Duration = Duration::from_millis(500);

/// How long another node's notice counts: the node may be gone, or its next notice lost.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(2);

/// What new writes meet while the log is too long. Maintenance decides it, and every cohort's queue
/// of writes asks.
pub(crate) struct Backpressure {
    /// Whether new batches of all cohorts wait.
    is_paused: watch::Sender<bool>,
    /// The other nodes whose logs are at their limits, and until when that is believed.
    full: watch::Sender<BTreeMap<NodeId, Instant>>,
    /// How many units all batches under way may have together.
    units: u32,
    under_way: Arc<Semaphore>,
    /// The cohorts whose new writes are refused, with the bytes of log that each holds for good.
    held_up: ArcSwap<BTreeMap<CohortId, u64>>,
}

impl Backpressure {
    /// Returns one that lets everything pass, as long as batches under way have no more than these
    /// bytes together.
    pub(crate) fn new(under_way_max: u64) -> Arc<Self> {
        let units = u32::try_from(under_way_max / UNIT_BYTES).unwrap_or(u32::MAX);
        let units = units.clamp(1, UNITS_MAX);
        Arc::new(Self {
            is_paused: watch::Sender::new(false),
            full: watch::Sender::default(),
            units,
            under_way: Arc::new(Semaphore::new(units as usize)),
            held_up: ArcSwap::default(),
        })
    }

    /// Has new batches wait, or lets them go on.
    pub(crate) fn pause(&self, is_paused: bool) {
        self.is_paused.send_if_modified(|paused| std::mem::replace(paused, is_paused) != is_paused);
    }

    /// Returns the most bytes that a batch of several writes should have.
    pub(crate) fn batch_bytes_max(&self) -> usize {
        let bytes = u64::from(self.units) * UNIT_BYTES;
        usize::try_from(bytes).map_or(BATCH_BYTES_MAX, |bytes| bytes.min(BATCH_BYTES_MAX))
    }

    /// Records another node's notice: whether its log is at its limit.
    pub(crate) fn peer_log(&self, node: NodeId, is_full: bool) {
        let until = Instant::now() + NOTICE_TIMEOUT;
        self.full.send_if_modified(|full| match is_full {
            true => full.insert(node, until).is_none(),
            false => full.remove(&node).is_some(),
        });
    }

    /// Sends the other nodes a notice when this node's log reaches its limit, and when it is shorter
    /// again, until the task is aborted. `peers` returns those nodes.
    pub(crate) async fn announce(
        self: Arc<Self>,
        transport: Arc<dyn Transport>,
        peers: impl Fn() -> Vec<NodeId>,
    ) {
        let mut paused = self.is_paused.subscribe();
        loop {
            let is_full = *paused.borrow_and_update();
            for node in peers() {
                let notice = Bytes::copy_from_slice(&[is_full.into()]);
                // One that is lost is repeated, or what it ends runs out.
                drop(transport.send(node, NO_COHORT, Lane::Heartbeat, notice));
            }
            let changed = paused.changed();
            // The sender is here, so this cannot fail.
            match is_full {
                true => drop(timeout(NOTICE_INTERVAL, changed).await),
                false => drop(changed.await),
            }
        }
    }

    /// Returns when a batch of so many bytes may be proposed to a cohort with these replicas, with its
    /// share of what may be under way, which is to be kept while it is. Batches have their turn in the
    /// order in which they ask; one that is larger than everything that may be under way is so alone.
    pub(crate) async fn admit(
        &self,
        bytes: usize,
        replicas: impl Fn() -> Vec<NodeId>,
    ) -> Option<OwnedSemaphorePermit> {
        let units = (bytes as u64).div_ceil(UNIT_BYTES);
        let units = u32::try_from(units).unwrap_or(u32::MAX).min(self.units);
        loop {
            // Waits without a share, which cohorts without a replica there can have meanwhile.
            self.peers_passed(&replicas).await;
            // The semaphore is never closed.
            let share = Arc::clone(&self.under_way).acquire_many_owned(units).await.ok();
            self.passed().await;
            if self.full_until(&replicas).is_none() {
                return share;
            }
        }
    }

    /// Returns when no replica's node has a log that is at its limit.
    async fn peers_passed(&self, replicas: &impl Fn() -> Vec<NodeId>) {
        let mut full = self.full.subscribe();
        while let Some(until) = self.full_until(replicas) {
            // A repeated notice changes only its end, which is looked up again.
            drop(timeout_at(until, full.changed()).await);
        }
    }

    /// Returns until when one of the replicas' nodes has a log that is at its limit, if any has.
    fn full_until(&self, replicas: &impl Fn() -> Vec<NodeId>) -> Option<Instant> {
        let full = self.full.borrow();
        if full.is_empty() {
            return None;
        }
        let now = Instant::now();
        let ends = replicas().into_iter().filter_map(|node| full.get(&node).copied());
        ends.filter(|until| *until > now).max()
    }

    /// Returns when nothing has to wait for the log to become shorter.
    pub(crate) async fn passed(&self) {
        let mut paused = self.is_paused.subscribe();
        // The sender is here, so this cannot fail.
        drop(paused.wait_for(|is_paused| !is_paused).await);
    }

    /// Has new writes of these cohorts refused, and of no other.
    pub(crate) fn hold_up(&self, cohorts: BTreeMap<CohortId, u64>) {
        if **self.held_up.load() != cohorts {
            self.held_up.store(Arc::new(cohorts));
        }
    }

    /// Returns true if the cohort's new writes are refused.
    pub(crate) fn is_held_up(&self, cohort: CohortId) -> bool {
        self.held_up.load().contains_key(&cohort)
    }

    /// Returns why a new write of the cohort is refused, if it is.
    pub(crate) fn refusal(&self, cohort: CohortId) -> Option<String> {
        let held_up = self.held_up.load();
        let bytes = held_up.get(&cohort)?;
        Some(format!(
            "{bytes} bytes of the node's log hold writes of cohort {cohort} that are not applied \
             yet, which is more than its share"
        ))
    }
}

/// Waits for the outcome of a batch, and gives up its share of what may be under way when that is known
/// or should be.
pub(crate) async fn while_under_way<T, P>(outcome: impl Future<Output = T>, share: P) -> T {
    let mut outcome = std::pin::pin!(outcome);
    match timeout(UNDER_WAY_TIMEOUT, outcome.as_mut()).await {
        Ok(outcome) => outcome,
        Err(_) => {
            drop(share);
            outcome.await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    /// What is under way is in the log before it can be given up, so it is bounded by bytes, not by
    /// the number of cohorts.
    #[tokio::test]
    async fn batches_under_way_have_a_bounded_number_of_bytes_together() {
        let backpressure = Backpressure::new(512 * 1024);
        assert_eq!(backpressure.batch_bytes_max(), 512 * 1024);
        let first = backpressure.admit(300 * 1024, Vec::new).await;
        let second = backpressure.admit(200 * 1024, Vec::new).await;
        assert!(timeout(SOON, backpressure.admit(13 * 1024, Vec::new)).await.is_err());
        drop(first);
        let third = backpressure.admit(13 * 1024, Vec::new).await;
        // One that is larger than all that may be under way goes, and goes alone.
        assert!(timeout(SOON, backpressure.admit(2 * 1024 * 1024, Vec::new)).await.is_err());
        drop((second, third));
        let large = backpressure.admit(2 * 1024 * 1024, Vec::new).await;
        assert!(timeout(SOON, backpressure.admit(1, Vec::new)).await.is_err());
        drop(large);
        backpressure.pause(true);
        assert!(timeout(SOON, backpressure.admit(1, Vec::new)).await.is_err());
        backpressure.pause(false);
        assert!(backpressure.admit(1, Vec::new).await.is_some());
        assert!(Backpressure::new(u64::MAX).admit(usize::MAX, Vec::new).await.is_some());
    }

    /// A cohort without a quorum has no outcome for long, and must not keep the others' share.
    #[tokio::test(start_paused = true)]
    async fn a_batch_without_an_outcome_gives_up_its_share() {
        let backpressure = Backpressure::new(UNIT_BYTES);
        let share = backpressure.admit(1, Vec::new).await;
        let stuck = tokio::spawn(while_under_way(std::future::pending::<()>(), share));
        let next = timeout(2 * UNDER_WAY_TIMEOUT, backpressure.admit(1, Vec::new)).await;
        assert!(next.is_ok_and(|share| share.is_some()));
        stuck.abort();
        let share = backpressure.admit(1, Vec::new).await;
        assert_eq!(while_under_way(async { 7 }, share).await, 7);
        assert!(backpressure.admit(1, Vec::new).await.is_some());
    }

    /// Only cohorts with a replica on that node wait, and no longer than its notice counts.
    #[tokio::test(start_paused = true)]
    async fn batches_wait_for_the_log_of_another_node_that_holds_a_replica() {
        let backpressure = Backpressure::new(u64::MAX);
        let (one, two) = (|| vec![NodeId(1), NodeId(2)], || vec![NodeId(1), NodeId(3)]);
        backpressure.peer_log(NodeId(2), true);
        assert!(timeout(SOON, backpressure.admit(1, one)).await.is_err());
        assert!(timeout(SOON, backpressure.admit(1, two)).await.is_ok());
        backpressure.peer_log(NodeId(2), false);
        assert!(timeout(SOON, backpressure.admit(1, one)).await.is_ok());

        // A notice that is repeated counts on, and one that is not runs out.
        backpressure.peer_log(NodeId(2), true);
        let begun = Instant::now();
        let waiting = backpressure.admit(1, one);
        let repeating = async {
            tokio::time::sleep(NOTICE_TIMEOUT / 2).await;
            backpressure.peer_log(NodeId(2), true);
        };
        tokio::join!(waiting, repeating);
        assert_eq!(begun.elapsed().as_millis(), (NOTICE_TIMEOUT * 3 / 2).as_millis());
    }

    /// It is sent when that begins, again while it lasts, and when it ends.
    #[tokio::test(start_paused = true)]
    async fn a_node_sends_notice_when_its_log_is_at_its_limit() {
        let backpressure = Backpressure::new(u64::MAX);
        let transport = Arc::new(Notices::default());
        let peers = || vec![NodeId(2), NodeId(3)];
        let task = tokio::spawn(backpressure.clone().announce(transport.clone(), peers));
        tokio::time::sleep(SOON).await;
        backpressure.pause(true);
        tokio::time::sleep(2 * NOTICE_INTERVAL + SOON).await;
        backpressure.pause(false);
        tokio::time::sleep(SOON).await;
        task.abort();
        let notices = transport.0.lock().clone();
        let to_two: Vec<u8> = notices
            .iter()
            .filter(|(node, _)| *node == NodeId(2))
            .map(|(_, notice)| *notice)
            .collect();
        assert_eq!(to_two, [0, 1, 1, 1, 0]);
        assert_eq!(notices.len(), 2 * to_two.len());
    }

    /// What was sent to whom.
    #[derive(Default)]
    struct Notices(parking_lot::Mutex<Vec<(NodeId, u8)>>);

    #[async_trait::async_trait]
    impl Transport for Notices {
        fn send(
            &self,
            to: NodeId,
            cohort: CohortId,
            lane: Lane,
            payload: Bytes,
        ) -> Result<(), trireme_replication::SendError> {
            assert_eq!((cohort, lane), (NO_COHORT, Lane::Heartbeat));
            self.0.lock().push((to, payload[0]));
            Ok(())
        }

        async fn send_snapshot(
            &self,
            to: NodeId,
            _cohort: CohortId,
            _header: Bytes,
            _snapshot: trireme_storage::SnapshotReader,
        ) -> Result<Bytes, trireme_replication::SendError> {
            Err(trireme_replication::SendError::Unreachable(to))
        }
    }
}
