//! What is computed from moments: percentiles, gaps, staleness, and whether figures rise.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use trireme_testbed::Killed;

/// The order statistics of some durations, each of them one that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) min: Duration,
    pub(crate) p50: Duration,
    pub(crate) p90: Duration,
    pub(crate) p99: Duration,
    pub(crate) p999: Duration,
    pub(crate) max: Duration,
}

/// One put that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Put {
    pub(crate) begun: Instant,
    pub(crate) acknowledged: Instant,
}

/// How long writes stood still because a node died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    /// From the kill to the acknowledgement of the first put that was begun when the node was
    /// gone.
    pub(crate) gap: Duration,
    /// The longest time between two acknowledgements in a row, from the last before the kill to
    /// the one that ends the gap.
    pub(crate) longest_pause: Duration,
}

/// What a timeline read found: how far a counter had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    /// When the read was begun.
    pub(crate) begun: Instant,
    /// The value; 0 if there was none yet.
    pub(crate) seen: usize,
}

/// Whether figures rise from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trend {
    /// Each is higher than the one before.
    EveryStep,
    /// The last is higher than the first, but not every one than the one before.
    InAll,
    /// The last is not higher than the first.
    No,
    /// There are fewer than two figures, or one is missing.
    Unknown,
}

impl Summary {
    /// Sums up durations; `None` if there are none.
    pub(crate) fn of(mut durations: Vec<Duration>) -> Option<Self> {
        durations.sort_unstable();
        let (min, max) = (*durations.first()?, *durations.last()?);
        let at = |permille| quantile(&durations, permille);
        let (p50, p90, p99, p999) = (at(500), at(900), at(990), at(999));
        Some(Self { count: durations.len(), min, p50, p90, p99, p999, max })
    }

    /// Returns the same for programs, in microseconds.
    pub(crate) fn json(&self) -> Value {
        json!({
            "count": self.count,
            "min": microseconds(self.min),
            "p50": microseconds(self.p50),
            "p90": microseconds(self.p90),
            "p99": microseconds(self.p99),
            "p999": microseconds(self.p999),
            "max": microseconds(self.max),
        })
    }
}

impl Put {
    /// Returns how long it took.
    pub(crate) fn took(self) -> Duration {
        self.acknowledged - self.begun
    }
}

impl Trend {
    /// Judges figures in the order in which they should rise.
    pub(crate) fn of(figures: &[Option<Duration>]) -> Self {
        let Some(known) = figures.iter().copied().collect::<Option<Vec<Duration>>>() else {
            return Self::Unknown;
        };
        match known.as_slice() {
            [first, .., last] if known.is_sorted_by(|a, b| a < b) && first < last => {
                Self::EveryStep
            }
            [first, .., last] if first < last => Self::InAll,
            [_, .., _] => Self::No,
            _ => Self::Unknown,
        }
    }

    /// Returns the trend as words that follow "rose with the period: ".
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::EveryStep => "yes, with every step",
            Self::InAll => "yes from first to last, but not with every step",
            Self::No => "no",
            Self::Unknown => "not known",
        }
    }
}

/// Returns the gap that a kill tore into the puts of one caller, who does one after the other;
/// `None` if no put that was begun after it is among them.
pub(crate) fn gap(puts: &[Put], killed: Killed) -> Option<Gap> {
    let end = puts.iter().position(|put| put.begun > killed.gone)?;
    let before = puts[..end].iter().rposition(|put| put.acknowledged <= killed.at);
    let around = &puts[before.unwrap_or(0)..=end];
    let pauses = around.windows(2).map(|pair| pair[1].acknowledged - pair[0].acknowledged);
    Some(Gap {
        gap: puts[end].acknowledged - killed.at,
        longest_pause: pauses.max().unwrap_or_default(),
    })
}

/// Returns the longest time between two acknowledgements in a row of one caller, who does one put
/// after the other, from the last one before `begun` on; `None` if no put was acknowledged after it.
pub(crate) fn longest_pause(puts: &[Put], begun: Instant) -> Option<Duration> {
    let first = puts.iter().position(|put| put.acknowledged > begun)?;
    let around = &puts[first.saturating_sub(1)..];
    let pauses = around.windows(2).map(|pair| pair[1].acknowledged - pair[0].acknowledged);
    // Without a put before it, the first pause began with the fault at the latest.
    Some(pauses.max().unwrap_or_default().max(puts[first].acknowledged - begun))
}

/// Returns how long the value that a read found had already stopped being the newest acknowledged
/// one when the read was begun; zero if it had not. `acknowledged` tells when each value of the
/// counter was acknowledged, 1 first.
pub(crate) fn staleness(acknowledged: &[Instant], sample: Sample) -> Duration {
    // Values count from 1, so the next one's moment stands at the index of this one.
    acknowledged
        .get(sample.seen)
        .map_or(Duration::ZERO, |next| sample.begun.saturating_duration_since(*next))
}

/// Returns a duration in whole microseconds.
pub(crate) fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Returns the lowest of sorted durations that at least so many of a thousand do not pass.
fn quantile(sorted: &[Duration], permille: usize) -> Duration {
    let rank = (sorted.len() * permille).div_ceil(1000).max(1);
    sorted[rank - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let summary = Summary::of((1..=20).rev().map(ms).collect()).unwrap();
        assert_eq!((summary.count, summary.min, summary.max), (20, ms(1), ms(20)));
        assert_eq!((summary.p50, summary.p90, summary.p99), (ms(10), ms(18), ms(20)));
        let summary = Summary::of((1..=2000).map(ms).collect()).unwrap();
        assert_eq!((summary.p99, summary.p999), (ms(1980), ms(1998)));
        let one = Summary::of(vec![ms(7)]).unwrap();
        assert_eq!((one.min, one.p50, one.p99, one.max), (ms(7), ms(7), ms(7), ms(7)));
        assert_eq!(Summary::of(Vec::new()), None);
    }

    fn puts(start: Instant, times: &[(u64, u64)]) -> Vec<Put> {
        let at = |milliseconds| start + ms(milliseconds);
        let put = |&(begun, end): &(u64, u64)| Put { begun: at(begun), acknowledged: at(end) };
        times.iter().map(put).collect()
    }

    #[test]
    fn the_longest_pause_is_one_that_ends_after_the_fault() {
        let start = Instant::now();
        let all = puts(start, &[(0, 10), (10, 500), (500, 510), (510, 800), (800, 810)]);
        assert_eq!(longest_pause(&all, start + ms(505)), Some(ms(290)), "the one before is over");
        assert_eq!(longest_pause(&all, start + ms(20)), Some(ms(490)));
        assert_eq!(longest_pause(&all[3..], start + ms(600)), Some(ms(200)));
        assert_eq!(longest_pause(&all, start + ms(900)), None);
    }

    #[test]
    fn a_gap_ends_with_the_first_put_that_was_begun_when_the_node_was_gone() {
        let start = Instant::now();
        let killed = Killed { at: start + ms(25), gone: start + ms(27) };
        // The put that was under way is answered by the next leader, and ends no gap by itself.
        let puts = puts(start, &[(0, 10), (10, 20), (20, 1020), (1020, 1030), (1030, 1040)]);
        let found = gap(&puts, killed).unwrap();
        assert_eq!(found, Gap { gap: ms(1005), longest_pause: ms(1000) });
        assert_eq!(gap(&puts[..3], killed), None);
    }

    #[test]
    fn a_put_between_the_kill_and_the_end_of_the_process_ends_no_gap() {
        let start = Instant::now();
        let killed = Killed { at: start + ms(25), gone: start + ms(40) };
        let puts = puts(start, &[(0, 20), (20, 30), (30, 39), (39, 500), (500, 510)]);
        let found = gap(&puts, killed).unwrap();
        assert_eq!(found, Gap { gap: ms(485), longest_pause: ms(461) });
    }

    #[test]
    fn staleness_counts_from_when_the_next_value_was_acknowledged() {
        let start = Instant::now();
        let acknowledged: Vec<Instant> = [10, 20, 30].map(|at| start + ms(at)).to_vec();
        let stale = |at, seen| staleness(&acknowledged, Sample { begun: start + ms(at), seen });
        assert_eq!(stale(35, 0), ms(25), "nothing seen, though 1 was acknowledged at 10");
        assert_eq!(stale(35, 1), ms(15));
        assert_eq!(stale(35, 3), ms(0), "the newest");
        assert_eq!(stale(15, 1), ms(0), "2 was acknowledged only after the read was begun");
        assert_eq!(stale(35, 4), ms(0), "committed, and not acknowledged yet");
    }

    #[test]
    fn a_trend_is_judged_from_first_to_last() {
        let trend =
            |figures: &[u64]| Trend::of(&figures.iter().map(|n| Some(ms(*n))).collect::<Vec<_>>());
        assert_eq!(trend(&[1, 2, 3]), Trend::EveryStep);
        assert_eq!(trend(&[1, 3, 2]), Trend::InAll);
        assert_eq!(trend(&[1, 1, 2]), Trend::InAll);
        assert_eq!(trend(&[2, 3, 2]), Trend::No);
        assert_eq!(trend(&[2]), Trend::Unknown);
        assert_eq!(Trend::of(&[Some(ms(1)), None]), Trend::Unknown);
    }
}
