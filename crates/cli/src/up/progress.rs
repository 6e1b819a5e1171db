//! How far a starting cluster is, and whether it still gets anywhere.
//!
//! A node that has much of its log to apply answers nothing until it is done, which on a slow disk
//! takes minutes. What its process has read, written and computed says that it is at work.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;
use trireme_types::CohortId;

/// Bytes that a starting node reads or writes that count as a step forward: more than a node that
/// merely asks the coordinator again and again needs within the time that a start may stand still.
const STEP_BYTES: u64 = 4 * 1024 * 1024;

/// Processor time that counts as a step forward, for nodes whose files are in the page cache.
const STEP_PROCESSOR: Duration = Duration::from_secs(2);

/// The unit of processor time below `/proc`, which Linux keeps the same on every machine.
const TICKS_PER_SECOND: u64 = 100;

/// What a process has done since it began, as the kernel counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Bytes that it read and wrote, whether from the disk or from memory.
    pub(super) bytes: u64,
    /// Processor time.
    pub(super) processor: Duration,
}

impl Work {
    /// Returns what the process has done; nothing if it is gone, or where the kernel does not say.
    pub(super) fn of(pid: u32) -> Self {
        let read = |file| std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        Self {
            bytes: read("io").map_or(0, |text| bytes(&text)),
            processor: read("stat").map_or(Duration::ZERO, |text| processor(&text)),
        }
    }

    /// Returns true if this is at least a step further than `earlier`.
    fn is_further_than(&self, earlier: &Self) -> bool {
        self.bytes.saturating_sub(earlier.bytes) >= STEP_BYTES
            || self.processor.saturating_sub(earlier.processor) >= STEP_PROCESSOR
    }
}

fn bytes(io: &str) -> u64 {
    let fields = io.lines().filter_map(|line| line.split_once(": "));
    let moved = fields.filter(|(name, _)| matches!(*name, "rchar" | "wchar"));
    moved.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum()
}

fn processor(stat: &str) -> Duration {
    // The name of the program, in parentheses, may hold spaces.
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    let ticks = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
    Duration::from_millis(ticks.saturating_mul(1000 / TICKS_PER_SECOND))
}

/// A starting cluster at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stage {
    pub(super) nodes: usize,
    pub(super) ranges: usize,
    /// How many ranges have a leader that says so.
    pub(super) led: usize,
    /// The nodes that do not answer yet, with why not.
    pub(super) silent: BTreeMap<usize, String>,
    /// What each node that does not answer has done so far.
    pub(super) work: BTreeMap<usize, Work>,
}

impl Stage {
    /// Counts the ranges, each by the cohort that serves it now, and those of them that are led.
    pub(super) fn count(&mut self, serving: &[CohortId], led: &BTreeSet<CohortId>) {
        self.ranges = serving.len();
        self.led = serving.iter().filter(|cohort| led.contains(cohort)).count();
    }

    pub(super) fn is_ready(&self) -> bool {
        self.silent.is_empty() && self.led == self.ranges
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, ranges, led, silent, work } = self;
        write!(f, "{} of {nodes} nodes answer", nodes - silent.len().min(*nodes))?;
        for (node, reason) in silent {
            let Work { bytes, processor } = work.get(node).copied().unwrap_or_default();
            let mebibytes = bytes / (1024 * 1024);
            let seconds = processor.as_secs();
            write!(f, "; node {node} has moved {mebibytes} MiB in {seconds} s of work ({reason})")?;
        }
        if silent.is_empty() {
            write!(f, "; {led} of {ranges} ranges have a leader")?;
        }
        Ok(())
    }
}

/// Decides when a start that gets nowhere is given up.
pub(super) struct Patience {
    limit: Duration,
    /// When the start last came a step further.
    since: Instant,
    /// How far it was then; `None` before the first look.
    last: Option<Stage>,
}

impl Patience {
    pub(super) fn new(limit: Duration, now: Instant) -> Self {
        Self { limit, since: now, last: None }
    }

    /// Returns true if the start has stood still for longer than it may.
    pub(super) fn is_over(&mut self, stage: &Stage, now: Instant) -> bool {
        if self.is_step(stage) {
            (self.since, self.last) = (now, Some(stage.clone()));
        }
        now.duration_since(self.since) >= self.limit
    }

    fn is_step(&self, stage: &Stage) -> bool {
        let Some(last) = &self.last else { return true };
        let nothing = Work::default();
        let more_answer = stage.silent.len() < last.silent.len();
        let more_led = stage.led > last.led;
        let at_work = stage
            .work
            .iter()
            .any(|(node, work)| work.is_further_than(last.work.get(node).unwrap_or(&nothing)));
        more_answer || more_led || at_work
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starting(bytes: u64, processor: Duration) -> Stage {
        let work = BTreeMap::from([(2, Work { bytes, processor })]);
        let silent = BTreeMap::from([(2, "connection refused".to_owned())]);
        Stage { nodes: 3, ranges: 4, led: 0, silent, work }
    }

    /// A node with a long log to apply said nothing for longer than a minute, and was killed by the
    /// start that waited for it, each time anew.
    #[test]
    fn a_start_goes_on_as_long_as_some_node_works_and_no_longer() {
        let (began, limit) = (Instant::now(), Duration::from_secs(60));
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut patience = Patience::new(limit, began);
        let (step, busy) = (STEP_BYTES, STEP_PROCESSOR);
        assert!(!patience.is_over(&starting(step, Duration::ZERO), at(50)));
        assert!(!patience.is_over(&starting(2 * step, Duration::ZERO), at(100)), "it has read on");
        assert!(!patience.is_over(&starting(2 * step, busy), at(150)), "it has computed");
        assert!(!patience.is_over(&starting(2 * step + 1, busy), at(209)));
        assert!(patience.is_over(&starting(2 * step + 1, busy), at(210)), "it stands still");
    }

    #[test]
    fn answers_and_leaders_are_steps_too() {
        let (began, limit) = (Instant::now(), Duration::from_secs(60));
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut patience = Patience::new(limit, began);
        let answers = Stage { silent: BTreeMap::new(), ..starting(0, Duration::ZERO) };
        assert!(!patience.is_over(&starting(STEP_BYTES, Duration::ZERO), at(10)));
        assert!(!patience.is_over(&answers, at(69)));
        assert!(!patience.is_over(&Stage { led: 2, ..answers.clone() }, at(120)));
        assert!(!patience.is_over(&Stage { led: 1, ..answers.clone() }, at(179)), "none is new");
        assert!(patience.is_over(&Stage { led: 2, ..answers.clone() }, at(180)));
        assert!(Stage { led: 4, ..answers }.is_ready());
    }

    /// Everything was killed amid a merge: the cluster served, and the start waited for the leader of a range
    /// that was one with its neighbour by then, gave up after a minute, and stopped it.
    #[test]
    fn ranges_count_as_they_are_now() {
        let ids = |ids: &[u64]| ids.iter().copied().map(CohortId).collect::<Vec<_>>();
        let led = BTreeSet::from([CohortId(13), CohortId(14)]);
        let mut stage = Stage { nodes: 3, ..Stage::default() };
        stage.count(&ids(&[12, 9, 13]), &led);
        assert_eq!((stage.ranges, stage.led, stage.is_ready()), (3, 1, false));
        stage.count(&ids(&[14, 13]), &led);
        assert!(stage.is_ready());
        // One that has ended may still have a leader.
        stage.count(&ids(&[14, 15]), &led);
        assert!(!stage.is_ready());
    }

    #[test]
    fn what_the_kernel_counts_is_read() {
        let io = "rchar: 10\nwchar: 5\nsyscr: 7\nread_bytes: 4096\n";
        assert_eq!(bytes(io), 15);
        let stat = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 100 150 0 0";
        assert_eq!(processor(stat), Duration::from_millis(2500));
        assert!(Work::of(std::process::id()).bytes > 0);
        let text = starting(3 << 20, Duration::from_secs(7)).to_string();
        let node = "node 2 has moved 3 MiB in 7 s of work (connection refused)";
        assert_eq!(text, format!("2 of 3 nodes answer; {node}"));
    }
}
