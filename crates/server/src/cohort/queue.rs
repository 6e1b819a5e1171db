//! What waits at a cohort, and how many tasks work it off.
//!
//! A queue in which nothing waits has no task and takes no room: a node may have thousands, and most
//! are empty most of the time.

use std::collections::VecDeque;

use parking_lot::Mutex;

/// What a queue that is empty may keep room for.
const ROOM_KEPT: usize = 32;

/// How much may wait in a queue, and how many tasks may work on it.
pub(super) struct Limits {
    pub(super) items: usize,
    pub(super) bytes: usize,
    pub(super) workers: usize,
}

/// First in, first out.
pub(super) struct Queue<T> {
    limits: Limits,
    state: Mutex<State<T>>,
}

struct State<T> {
    waiting: VecDeque<(T, usize)>,
    bytes: usize,
    /// The tasks that take from it. As long as something waits there is one.
    workers: usize,
}

/// Items that were taken together, and the bytes of all of them.
pub(super) struct Batch<T> {
    pub(super) items: Vec<T>,
    pub(super) bytes: usize,
}

impl<T> Queue<T> {
    pub(super) fn new(limits: Limits) -> Self {
        let state = State { waiting: VecDeque::new(), bytes: 0, workers: 0 };
        Self { limits, state: Mutex::new(state) }
    }

    /// Adds an item of so many bytes, or gives it back if there is no room for it. Returns true if the
    /// caller must start another worker: a task that calls [`Queue::take`] until that returns nothing.
    pub(super) fn push(&self, item: T, bytes: usize) -> Result<bool, T> {
        let mut state = self.state.lock();
        if state.waiting.len() >= self.limits.items || state.bytes + bytes > self.limits.bytes {
            return Err(item);
        }
        state.bytes += bytes;
        state.waiting.push_back((item, bytes));
        let needs_worker = state.workers < self.limits.workers;
        state.workers += usize::from(needs_worker);
        Ok(needs_worker)
    }

    /// Takes for a worker what has waited longest: one item, and more until there are `items_max` or
    /// they have `bytes_max`. `None` if nothing waits; the worker must end then, and is no longer
    /// counted.
    pub(super) fn take(&self, items_max: usize, bytes_max: usize) -> Option<Batch<T>> {
        let mut state = self.state.lock();
        let State { waiting, bytes, workers } = &mut *state;
        if waiting.is_empty() {
            waiting.shrink_to(ROOM_KEPT);
            *workers -= 1;
            return None;
        }
        let mut batch = Batch { items: Vec::with_capacity(waiting.len().min(items_max)), bytes: 0 };
        while batch.items.is_empty() || batch.items.len() < items_max && batch.bytes < bytes_max {
            let Some((item, item_bytes)) = waiting.pop_front() else { break };
            batch.items.push(item);
            batch.bytes += item_bytes;
        }
        *bytes -= batch.bytes;
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    fn queue(workers: usize) -> Queue<u32> {
        Queue::new(Limits { items: 100, bytes: 1000, workers })
    }

    #[test]
    fn what_finds_no_room_is_given_back() {
        let queue = queue(1);
        assert_eq!(queue.push(1, 990), Ok(true));
        assert_eq!(queue.push(2, 11), Err(2), "too many bytes");
        for item in 3..102 {
            assert_eq!(queue.push(item, 0), Ok(false));
        }
        assert_eq!(queue.push(102, 0), Err(102), "too many items");
        assert_eq!(queue.take(1, usize::MAX).map(|batch| batch.bytes), Some(990));
        assert_eq!(queue.push(103, 1000), Ok(false), "what was taken has given its room back");
    }

    #[test]
    fn a_batch_ends_at_its_limits_and_has_one_item_at_least() {
        let queue = queue(1);
        for (item, bytes) in [(1, 10), (2, 10), (3, 10), (4, 500), (5, 1)] {
            queue.push(item, bytes).expect("there is room");
        }
        let take = |items_max, bytes_max| queue.take(items_max, bytes_max).map(|batch| batch.items);
        assert_eq!(take(2, usize::MAX), Some(vec![1, 2]));
        assert_eq!(take(0, 0), Some(vec![3]));
        assert_eq!(take(10, 500), Some(vec![4]));
        assert_eq!(take(10, 500), Some(vec![5]));
        assert_eq!(take(10, 500), None);
    }

    #[test]
    fn a_queue_that_was_long_keeps_no_room() {
        let queue = queue(1);
        for item in 0..100 {
            queue.push(item, 1).expect("there is room");
        }
        while queue.take(7, usize::MAX).is_some() {}
        assert!(queue.state.lock().waiting.capacity() <= ROOM_KEPT);
    }

    /// Each item is taken once, in its order, by no more workers than there may be; and whatever waits
    /// has one.
    #[test]
    fn nothing_is_left_or_taken_twice_however_pushes_and_workers_meet() {
        const ITEMS: u32 = 50_000;
        const WORKERS: usize = 2;
        let (queue, working, taken) = (queue(WORKERS), AtomicUsize::new(0), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            let (queue, working, taken) = (&queue, &working, &taken);
            let work = move || {
                assert!(working.fetch_add(1, Ordering::SeqCst) < WORKERS);
                loop {
                    // One that finds nothing is no longer counted, and another may begin at once.
                    working.fetch_sub(1, Ordering::SeqCst);
                    let Some(batch) = queue.take(5, usize::MAX) else { return };
                    working.fetch_add(1, Ordering::SeqCst);
                    taken.lock().extend(batch.items);
                }
            };
            for item in 0..ITEMS {
                let mut next = item;
                loop {
                    match queue.push(next, 1) {
                        Ok(true) => drop(scope.spawn(work)),
                        Ok(false) => {}
                        Err(item) => {
                            next = item;
                            thread::yield_now();
                            continue;
                        }
                    }
                    break;
                }
            }
        });
        let mut taken = taken.into_inner();
        taken.sort_unstable();
        assert_eq!(taken, (0..ITEMS).collect::<Vec<_>>());
        assert_eq!(queue.state.lock().workers, 0);
    }
}
