//! When replicas that were opened are published: soon, and together where many are opened.

use std::time::Duration;

use tokio::time::Instant;

/// What is open is published once this part of it is new: often enough that replicas serve while most
/// of the others are still to be opened, and so seldom that publishing, which goes through all of
/// them, costs no more for each replica the more there are.
const NEW_PART: usize = 16;

/// The longest that an open replica waits to be published with others, however few are new: one that
/// takes long to open must not hold up those that do not.
const WAIT_MAX: Duration = Duration::from_millis(50);

/// The replicas that are open and not published yet.
#[derive(Debug, Default)]
pub(super) struct Unpublished {
    count: usize,
    since: Option<Instant>,
}

impl Unpublished {
    /// Counts one of `hosted` replicas that is open now; returns true if all are to be published.
    pub(super) fn add(&mut self, now: Instant, hosted: usize) -> bool {
        self.count += 1;
        self.since.get_or_insert(now);
        self.count * NEW_PART >= hosted
    }

    /// Returns when they are to be published, however few they are; `None` if there are none.
    pub(super) fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + WAIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is open was published after each opening, by going through all that was open: a thousand
    /// replicas cost half a million steps, and ten thousand fifty million.
    #[test]
    fn replicas_are_published_early_and_at_a_cost_that_does_not_grow_with_their_number() {
        let now = Instant::now();
        for replicas in [3, 1_000, 10_000] {
            let (mut unpublished, mut steps) = (Unpublished::default(), 0);
            for hosted in 1..=replicas {
                if unpublished.add(now, hosted) {
                    steps += hosted;
                    unpublished = Unpublished::default();
                }
                let count = unpublished.count;
                assert!(count <= hosted / NEW_PART, "{count} of {hosted} are not served");
            }
            assert!(steps <= 2 * NEW_PART * replicas, "{steps} steps for {replicas} replicas");
        }
    }

    /// Nine that were opened beside a thousand waited for the tenth, which took minutes.
    #[test]
    fn a_few_new_ones_wait_for_the_others_only_so_long() {
        let (mut unpublished, now) = (Unpublished::default(), Instant::now());
        assert_eq!(unpublished.due(), None);
        assert!(!unpublished.add(now, 1_000));
        assert!(!unpublished.add(now + WAIT_MAX / 2, 1_001));
        assert_eq!(unpublished.due(), Some(now + WAIT_MAX), "as of the first");
    }
}
