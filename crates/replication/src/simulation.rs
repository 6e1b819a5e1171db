//! What a simulator decides in place of the machine: when a node's tasks run, on which thread they
//! wait for a disk, and which numbers they draw.
//!
//! Outside of a simulation nothing here does anything: tasks are spawned, blocking work goes to
//! threads that may wait, and numbers are drawn at random. Within one, which is a single thread with
//! a runtime in virtual time, each task belongs to a [`SimulatedNode`]. The node's tasks run only
//! while the node does, so that a pause stops all of them between two steps, as SIGSTOP stops a
//! process, and a crash lets none of them take another step. What a task spawns belongs to its node
//! too. Blocking work is done in place, since a thread of its own would end at a time that no seed
//! decides, and numbers come from the node's seed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::{JoinError, JoinHandle, JoinSet};

thread_local! {
    /// The node whose task is being polled on this thread.
    static CURRENT: RefCell<Option<SimulatedNode>> = const { RefCell::new(None) };
}

/// A process of a simulated cluster, from its start to its end.
#[derive(Clone)]
pub struct SimulatedNode {
    shared: Arc<Shared>,
}

struct Shared {
    numbers: Mutex<SmallRng>,
    rate: ClockRate,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    /// The node's tasks, which must hear of it when the node goes on or ends.
    tasks: BTreeMap<u64, Waker>,
    next_task: u64,
}

/// How fast a node's clock runs: by so many thousandths more than the runtime's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockRate {
    /// Above -1000.
    pub per_mille: i16,
}

impl ClockRate {
    /// Returns how much a clock of this rate counts in a time.
    pub(crate) fn local(self, time: Duration) -> Duration {
        match self.per_mille {
            0 => time,
            rate => scale(time, rate, false),
        }
    }

    /// Returns in what time a clock of this rate counts so much: no less than it takes.
    pub(crate) fn time(self, local: Duration) -> Duration {
        match self.per_mille {
            0 => local,
            rate => scale(local, rate, true),
        }
    }
}

/// Returns a time by a rate, or what it is the time of.
fn scale(time: Duration, per_mille: i16, is_inverse: bool) -> Duration {
    let faster = u128::try_from(1000 + i32::from(per_mille)).unwrap_or(1).max(1);
    let nanos = time.as_nanos();
    let nanos = if is_inverse { (nanos * 1000).div_ceil(faster) } else { nanos * faster / 1000 };
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Runs,
    Paused,
    Dead,
}

impl SimulatedNode {
    /// Returns a node that runs and draws its numbers from `seed`, with a clock that runs as the
    /// runtime's does.
    pub fn new(seed: u64) -> Self {
        Self::with_clock(seed, ClockRate::default())
    }

    /// Returns one whose clock runs at this rate. Only the drivers of the cores go by it: nothing that
    /// openraft promises depends on a clock.
    pub fn with_clock(seed: u64, rate: ClockRate) -> Self {
        let state = State { phase: Phase::Runs, tasks: BTreeMap::new(), next_task: 0 };
        let numbers = Mutex::new(SmallRng::seed_from_u64(seed));
        Self { shared: Arc::new(Shared { numbers, rate, state: Mutex::new(state) }) }
    }

    /// Returns the node that the calling task belongs to.
    pub fn current() -> Option<Self> {
        current()
    }

    /// Returns a future that is `future` as a task of this node: it goes on only while the node
    /// runs, and never ends once the node is dead.
    pub fn task<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        let id = {
            let mut state = self.shared.state.lock();
            state.next_task += 1;
            state.next_task
        };
        NodeTask { node: self.clone(), id, future: Some(Box::pin(future)) }
    }

    /// Does something as a part of this node, whether it runs or not.
    pub fn within<R>(&self, act: impl FnOnce() -> R) -> R {
        let _current = Entered::new(self.clone());
        act()
    }

    /// Stops all tasks of the node until [`SimulatedNode::resume`].
    pub fn pause(&self) {
        let mut state = self.shared.state.lock();
        if state.phase == Phase::Runs {
            state.phase = Phase::Paused;
        }
    }

    /// Lets the tasks of a node that is paused go on.
    pub fn resume(&self) {
        self.change(Phase::Runs);
    }

    /// Ends the node for good: none of its tasks takes another step.
    pub fn kill(&self) {
        self.change(Phase::Dead);
    }

    /// Returns true if the node's tasks may run.
    pub fn runs(&self) -> bool {
        self.shared.state.lock().phase == Phase::Runs
    }

    fn change(&self, phase: Phase) {
        let tasks = {
            let mut state = self.shared.state.lock();
            if state.phase == Phase::Dead {
                return;
            }
            state.phase = phase;
            std::mem::take(&mut state.tasks)
        };
        tasks.into_values().for_each(Waker::wake);
    }
}

/// A task of a node. The future goes when the node is dead.
struct NodeTask<F> {
    node: SimulatedNode,
    id: u64,
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for NodeTask<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let phase = {
            let mut state = self.node.shared.state.lock();
            if state.phase != Phase::Dead {
                state.tasks.insert(self.id, context.waker().clone());
            }
            state.phase
        };
        let _current = Entered::new(self.node.clone());
        match (phase, &mut self.future) {
            (Phase::Runs, Some(future)) => future.as_mut().poll(context),
            (Phase::Dead, future) => {
                *future = None;
                Poll::Pending
            }
            (Phase::Paused | Phase::Runs, _) => Poll::Pending,
        }
    }
}

impl<F> Drop for NodeTask<F> {
    fn drop(&mut self) {
        let node = self.node.clone();
        node.shared.state.lock().tasks.remove(&self.id);
        node.within(|| self.future = None);
    }
}

/// Has a node be the current one until it is dropped.
struct Entered {
    before: Option<SimulatedNode>,
}

impl Entered {
    fn new(node: SimulatedNode) -> Self {
        Self { before: CURRENT.with(|current| current.borrow_mut().replace(node)) }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.before.take();
        CURRENT.with(|current| *current.borrow_mut() = before);
    }
}

fn current() -> Option<SimulatedNode> {
    CURRENT.with(|current| current.borrow().clone())
}

/// Spawns a task, of the current node if there is one.
pub(crate) fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    match current() {
        Some(node) => tokio::spawn(node.task(future)),
        None => tokio::spawn(future),
    }
}

/// Spawns a task into a set, of the current node if there is one.
pub(crate) fn spawn_into<F>(tasks: &mut JoinSet<F::Output>, future: F)
where
    F: Future<Output: Send> + Send + 'static,
{
    match current() {
        Some(node) => tasks.spawn(node.task(future)),
        None => tasks.spawn(future),
    };
}

/// Does work that may wait for a disk beside the tasks of a set, as one of them.
pub(crate) fn spawn_blocking_into(tasks: &mut JoinSet<()>, work: impl FnOnce() + Send + 'static) {
    match current() {
        Some(node) => tasks.spawn(node.task(async move { work() })),
        None => tasks.spawn_blocking(work),
    };
}

/// Does work that may wait for a disk, on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    if current().is_some() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await
}

/// Does work that may wait for a disk on this thread, whose other tasks go elsewhere meanwhile.
pub(crate) fn in_place<T>(work: impl FnOnce() -> T) -> T {
    if current().is_some() {
        return work();
    }
    tokio::task::block_in_place(work)
}

/// Returns the rate of the clock of the calling task's node.
pub(crate) fn clock_rate() -> ClockRate {
    current().map_or_else(ClockRate::default, |node| node.shared.rate)
}

/// Draws a number.
pub(crate) fn random() -> u64 {
    match current() {
        Some(node) => node.shared.numbers.lock().next_u64(),
        None => rand::random(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_tasks_of_a_node_stop_with_it() {
        let node = SimulatedNode::new(1);
        let count = Arc::new(AtomicU64::new(0));
        let counting = Arc::clone(&count);
        tokio::spawn(node.task(async move {
            // What a task spawns belongs to its node.
            spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    counting.fetch_add(1, Ordering::Relaxed);
                }
            });
        }));
        let pass = || tokio::time::sleep(Duration::from_millis(10));
        let counted = || count.load(Ordering::Relaxed);
        pass().await;
        let before = counted();
        assert!(before > 5, "{before}");
        node.pause();
        pass().await;
        assert_eq!((counted(), node.runs()), (before, false));
        node.resume();
        pass().await;
        let resumed = counted();
        assert!(resumed > before + 5, "{resumed}");
        node.kill();
        node.resume();
        pass().await;
        assert_eq!((counted(), node.runs()), (resumed, false));
        assert_eq!(Arc::strong_count(&count), 1, "a dead node's tasks hold nothing");
    }

    #[test]
    fn a_clock_that_is_waited_for_has_come_as_far() {
        for per_mille in [-500, -45, 0, 1, 45, 1000] {
            let rate = ClockRate { per_mille };
            for micros in [0, 1, 7, 999, 1_000_003] {
                let local = Duration::from_micros(micros);
                let waited = rate.time(local);
                let ahead = rate.local(waited).checked_sub(local);
                let ahead = ahead.unwrap_or_else(|| panic!("{per_mille}: {local:?} is early"));
                assert!(ahead < Duration::from_nanos(3), "{per_mille}: {local:?} is late");
            }
        }
        let fast = ClockRate { per_mille: 100 };
        assert_eq!(fast.local(Duration::from_secs(10)), Duration::from_secs(11));
        assert_eq!(fast.time(Duration::from_secs(11)), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_seed_decides_the_numbers_and_blocking_work_is_done_in_place() {
        let draw = |seed| SimulatedNode::new(seed).within(|| [random(), random()]);
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let here = std::thread::current().id();
        let node = SimulatedNode::new(1);
        let ran_on = node.task(blocking(|| std::thread::current().id())).await;
        assert_eq!(ran_on.expect("no panic"), here);
        assert_eq!(node.within(|| in_place(|| 7)), 7);
    }
}
