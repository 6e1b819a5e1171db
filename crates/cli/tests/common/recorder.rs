//! Callers that read, write and write under conditions, each answer of which is recorded and judged in
//! the end: the load and the judge of `trireme compare`, on a cluster of a test.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use trireme_client::{ClientOptions, Consistency};
use trireme_compare::judge::judge;
use trireme_compare::keys::Keys;
use trireme_compare::load::{Done, Load, Recorded, longest_gap, nanoseconds};
use trireme_compare::report::Checks;
use trireme_compare::store::Store;
use trireme_compare::suite::{Action, KeyChoice, Setting, Workload};

use super::cluster::Cluster;

/// How long one operation may take before its outcome counts as unknown.
const DEADLINE: Duration = Duration::from_secs(10);

/// How many keys there are: few, so that callers meet.
const KEYS: u64 = 4;

/// What the callers do, at a rate that leaves the machine to what is tested.
const WORKLOAD: Workload = Workload {
    name: "recorded",
    description: "reads, writes and writes under conditions of few keys",
    callers: 5,
    mix: &[(Action::Get(Consistency::Strong), 1), (Action::Put, 1), (Action::Modify, 2)],
    keys: KeyChoice::Uniform,
    value_bytes: Some(1),
    rate: Some(200),
    setting: Setting::PLAIN,
};

/// A history that is recorded.
pub(crate) struct Recorder {
    load: Load,
    filled: Done,
    stop: CancellationToken,
    driving: JoinHandle<anyhow::Result<Done>>,
}

/// A history that was found to be linearizable.
pub(crate) struct Judged {
    operations: Vec<Recorded>,
    epoch: Instant,
}

impl Recorder {
    /// Starts the callers.
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let options = ClientOptions { deadline: DEADLINE, ..ClientOptions::default() };
        let load = Load {
            store: Store::Trireme(cluster.runtime.block_on(cluster.client(options))),
            workload: WORKLOAD,
            keys: Keys::new(KEYS),
            value_bytes: 1,
            seed: 1,
            tag: "recorded".to_owned(),
            epoch: Instant::now(),
            handicap_percent: 0,
        };
        let filled = cluster.runtime.block_on(load.fill()).expect("every key can be put");
        let stop = CancellationToken::new();
        let (callers, until) = (load.clone(), stop.clone());
        let driving = cluster.runtime.spawn(async move { callers.run_until_stopped(until).await });
        Self { load, filled, stop, driving }
    }

    /// Ends the history and judges it.
    #[track_caller]
    pub(crate) fn finish(self, cluster: &Cluster) -> Judged {
        self.stop.cancel();
        let done = cluster.runtime.block_on(self.driving).expect("the callers do not panic");
        let done = done.expect("the callers end well");
        let last = cluster.runtime.block_on(self.load.read_all()).expect("every key can be read");
        assert_eq!(last.failed, 0, "{:?}", last.first_error);
        let operations = [self.filled.operations, done.operations].concat();
        let mut checks = Checks::default();
        judge("the test", &operations, &last.operations, &mut checks);
        assert!(!checks.has_failed() && checks.undecided == 0, "{checks:?}");
        Judged { operations, epoch: self.load.epoch }
    }
}

impl Judged {
    /// Returns how many operations there are, and of how many of them the outcome is unknown.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let unknown = self.operations.iter().filter(|operation| operation.answer.is_none());
        (self.operations.len(), unknown.count())
    }

    /// Returns the longest time without an acknowledged write between two moments.
    pub(crate) fn longest_gap(&self, from: Instant, end: Instant) -> Duration {
        let writes = self.operations.iter().filter(|operation| operation.is_write());
        let mut acknowledged: Vec<u64> = writes.filter_map(Recorded::returned).collect();
        acknowledged.sort_unstable();
        let at = |moment: Instant| nanoseconds(moment - self.epoch);
        Duration::from_nanos(longest_gap(&acknowledged, at(from), at(end)))
    }
}
