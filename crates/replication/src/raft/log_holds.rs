//! What of the log must stay for a follower that is being sent a snapshot.
//!
//! A snapshot is of one moment, and sending and installing it takes its time. Meanwhile the node
//! gives up log, so that a follower which had the snapshot at last would need another one, and never
//! caught up under writes. So the log after a snapshot stays, from its sending until the follower has
//! gone on from it, as long as there is progress: a follower that is lost must not hold the log.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::types::RaftId;

/// How long the log stays for a follower that has its snapshot and acknowledges nothing. Long enough
/// for a busy follower to go on from there; a dead one costs no more than what is written meanwhile.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(30);

/// The followers for which the log stays.
#[derive(Default)]
pub(super) struct LogHolds {
    holds: Mutex<HashMap<RaftId, Hold>>,
}

struct Hold {
    /// The last entry that the follower has or will have.
    seq: u64,
    /// When it last came further; `None` while the snapshot is on its way, which has limits of its
    /// own.
    progress_at: Option<Instant>,
}

impl LogHolds {
    /// Keeps what comes after `seq` for a follower that is sent a snapshot up to there.
    pub(super) fn hold(&self, follower: RaftId, seq: u64) {
        self.holds.lock().insert(follower, Hold { seq, progress_at: None });
    }

    /// Gives up what was kept for a follower.
    pub(super) fn release(&self, follower: RaftId) {
        self.holds.lock().remove(&follower);
    }

    /// Returns up to where the log may go, no further than `upto`. `matched` returns what a follower
    /// is known to have; one that has `caught_up` needs its hold no more.
    pub(super) fn limit(
        &self,
        upto: u64,
        caught_up: u64,
        now: Instant,
        matched: impl Fn(RaftId) -> Option<u64>,
    ) -> u64 {
        let mut holds = self.holds.lock();
        holds.retain(|follower, hold| {
            let Some(matched) = matched(*follower) else { return true };
            if matched >= hold.seq {
                let came_further = matched > hold.seq || hold.progress_at.is_none();
                hold.seq = matched;
                if came_further {
                    hold.progress_at = Some(now);
                }
            }
            let is_lost = hold.progress_at.is_some_and(|at| now - at > PROGRESS_TIMEOUT);
            !is_lost && matched < caught_up
        });
        holds.values().map(|hold| hold.seq).fold(upto, u64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLLOWER: RaftId = RaftId { node: 2, incarnation: 0 };

    /// A snapshot that took longer to install than the log lasted was followed by another one, and
    /// so on for ever.
    #[test]
    fn the_log_after_a_snapshot_stays_until_the_follower_has_gone_on_from_it() {
        let (holds, start) = (LogHolds::default(), Instant::now());
        let limit = |matched, later: u64| {
            holds.limit(500, 490, start + Duration::from_secs(later), |_| matched)
        };
        assert_eq!(limit(None, 0), 500);
        holds.hold(FOLLOWER, 100);
        assert_eq!(limit(Some(3), 1000), 100, "however long it takes to install");
        assert_eq!(limit(Some(100), 1001), 100);
        assert_eq!(limit(Some(150), 1020), 150);
        assert_eq!(limit(Some(160), 1049), 160, "it makes progress");
        assert_eq!(limit(Some(490), 1050), 500, "it has caught up");
        assert_eq!(limit(Some(3), 1051), 500);
    }

    #[test]
    fn a_follower_that_is_lost_holds_no_log() {
        let (holds, start) = (LogHolds::default(), Instant::now());
        let limit = |matched, later| {
            holds.limit(500, 490, start + PROGRESS_TIMEOUT * later, |_| Some(matched))
        };
        holds.hold(FOLLOWER, 100);
        assert_eq!(limit(100, 1), 100);
        assert_eq!(limit(100, 2), 100);
        assert_eq!(limit(100, 3), 500);
        holds.hold(FOLLOWER, 100);
        assert_eq!(limit(3, 4), 100);
        holds.release(FOLLOWER);
        assert_eq!(limit(3, 4), 500, "it was not sent");
    }
}
