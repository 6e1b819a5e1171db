//! A node that stops in order hands the cohorts that it leads to others first: no client then has to
//! find out by a timeout that their leader is gone.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout_at};
use trireme_replication::{ErrorClass, Replica, ReplicaStatus};
use trireme_types::{Lsn, NodeId};

/// The longest that a stopping node waits for others to lead what it led. About what finding a dead
/// leader by timeout would take: waiting longer would make the stop worse than a death.
const HAND_OVER_MAX: Duration = Duration::from_secs(1);

/// How often it is looked whether another replica leads by now.
const INTERVAL: Duration = Duration::from_millis(5);

/// How long a replica that was to lead may take before one is asked again: the furthest may be
/// another by then, and a request may be lost.
const ASK_AGAIN: Duration = Duration::from_millis(300);

/// Hands over all cohorts that a replica of this node leads, at once. Returns when others lead
/// them, or when it has taken too long; a cohort without another replica that `is_connected` is
/// not waited for.
pub(super) async fn hand_over(
    node: NodeId,
    replicas: impl IntoIterator<Item = Arc<dyn Replica>>,
    is_connected: impl Fn(NodeId) -> bool,
) {
    let deadline = Instant::now() + HAND_OVER_MAX;
    let led = replicas.into_iter().filter(|replica| replica.leader() == Some(node));
    let handing = join_all(led.map(|replica| hand_over_one(node, replica, &is_connected)));
    if timeout_at(deadline, handing).await.is_err() {
        tracing::warn!("some cohorts have no other leader yet");
    }
}

/// Closes all replicas, at once: each waits for what is under way in it, and some for what will not come,
/// so that one after the other they take as long as there are replicas.
pub(super) async fn close(replicas: &[Arc<dyn Replica>]) {
    join_all(replicas.iter().map(|replica| replica.shutdown())).await;
}

async fn hand_over_one(
    node: NodeId,
    replica: Arc<dyn Replica>,
    is_connected: &impl Fn(NodeId) -> bool,
) {
    let mut ask_at = Instant::now();
    loop {
        let leader = replica.leader();
        // One that leads no more may not have heard yet who does: that it has shows that the other
        // is there, and can be named to clients.
        if leader.is_some_and(|leader| leader != node) {
            return;
        }
        if leader.is_some() && Instant::now() >= ask_at {
            let status = replica.status();
            let cohort = status.cohort;
            let Some(to) = furthest(&status, is_connected) else {
                tracing::info!(%cohort, "no other replica is there to lead");
                return;
            };
            match replica.transfer_leader(to).await {
                Ok(()) => tracing::info!(%cohort, %to, "handing over"),
                Err(error) => {
                    tracing::info!(%cohort, %to, %error, "not handed over");
                    if matches!(error.class(), ErrorClass::Invalid | ErrorClass::Fatal) {
                        return;
                    }
                }
            }
            ask_at = Instant::now() + ASK_AGAIN;
        }
        sleep(INTERVAL).await;
    }
}

/// Returns the other replica that has come furthest of those that are connected; of several, the
/// one on the node with the lowest number.
fn furthest(status: &ReplicaStatus, is_connected: &impl Fn(NodeId) -> bool) -> Option<NodeId> {
    let progress = |node: NodeId| {
        let found = status.progress.iter().find(|(other, _)| *other == node);
        found.map_or(Lsn::ZERO, |&(_, lsn)| lsn)
    };
    let others = status.replicas.iter().copied();
    others
        .filter(|&other| other != status.node && is_connected(other))
        .max_by_key(|&other| (progress(other), Reverse(other)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{FakeReplica, STUBBORN_CLOSES_IN};

    const ME: NodeId = NodeId(1);

    #[tokio::test(start_paused = true)]
    async fn each_cohort_goes_to_the_replica_that_is_connected_and_has_come_furthest() {
        let [behind, gone, elsewhere] = [1, 2, 3].map(|cohort| FakeReplica::new(1, cohort));
        behind.lead(&[(1, 9), (2, 7), (3, 8)]);
        gone.lead(&[(1, 9), (3, 7), (2, 7), (4, 9)]);
        let all = [&behind, &gone, &elsewhere].map(|r| Arc::clone(r) as Arc<dyn Replica>);
        let began = Instant::now();
        hand_over(ME, all, |node| node != NodeId(4)).await;
        assert_eq!(behind.asked(), [3]);
        assert_eq!(gone.asked(), [2], "of two that have come as far, the lower one");
        assert_eq!(elsewhere.asked(), [0; 0], "it did not lead");
        assert!(began.elapsed() < HAND_OVER_MAX);
    }

    /// A stop takes no longer than it may, whatever the other nodes do.
    #[tokio::test(start_paused = true)]
    async fn a_cohort_that_nobody_takes_holds_up_the_stop_for_a_bounded_time() {
        let ignored = FakeReplica::stubborn(1, 1);
        ignored.lead(&[]);
        let began = Instant::now();
        hand_over(ME, [Arc::clone(&ignored) as Arc<dyn Replica>], |_| true).await;
        assert_eq!(began.elapsed(), HAND_OVER_MAX);
        assert_eq!(ignored.asked(), [2; 4], "it is asked again while there is time");

        let began = Instant::now();
        hand_over(ME, [ignored as Arc<dyn Replica>], |_| false).await;
        assert!(began.elapsed() < ASK_AGAIN, "nobody is there to wait for");
    }

    /// A node with a thousand Raft replicas took longer than it may to stop, and was killed.
    #[tokio::test(start_paused = true)]
    async fn many_replicas_are_closed_in_the_time_that_the_slowest_takes() {
        let slow: Vec<_> = (1..=1000).map(|cohort| FakeReplica::stubborn(1, cohort)).collect();
        let all: Vec<_> = slow.iter().map(|it| Arc::clone(it) as Arc<dyn Replica>).collect();
        let began = Instant::now();
        close(&all).await;
        assert_eq!(began.elapsed(), STUBBORN_CLOSES_IN);
        assert!(slow.iter().all(|replica| replica.is_closed()));
    }
}
