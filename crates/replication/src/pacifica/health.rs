//! Whether a replica's own data path makes progress: its disk, its applier, its way to the others.

use std::ops::ControlFlow;
use std::time::Duration;

use trireme_types::NodeId;

use super::Shared;
use super::candidates::REMOVALS_FORGOTTEN_AFTER;
use super::primary::{GOES_ON, Lead, Primary, StepDown};
use super::proposal::Purpose;
use crate::core::Moment;

/// For how many leases a primary may have made no progress with what it has to do, before it steps
/// down (P14). One is as long as it serves when it is cut off from the others, and less than the grace
/// that its death would cost. Fewer would take the hiccups of a busy disk for a hang.
const HANG_LEASES: u32 = 1;

/// After how many times of what a replica would bear next it is forgotten that it hung. Where every
/// disk is slow, each replica of a cohort hangs in turn, and each must find that it has before; one
/// whose disk hung long ago is to be replaced as soon as the first time.
const HANG_FORGOTTEN_AFTER: u32 = 12;

/// How often the bound is doubled at the most for a replica that hung again and again: where every
/// disk is slow, some primary must be borne.
const HANG_DOUBLINGS_MAX: u32 = 4;

/// For which part of a lease something may have waited for a secondary's disk or applier when it asks
/// to take the primary's place. Less than a primary bears, and never more: a primary that stepped down
/// since its secondaries acknowledged nothing must not be followed by one of those that hang.
const WAITS_LEASE_DIVISOR: u32 = 2;

/// How many secondaries must acknowledge beacons and nothing else, or nothing at all, all of them, for
/// the primary to take itself for the one at fault. Of one alone it cannot know whose fault it is.
const SECONDARIES_TO_BLAME_ONESELF: usize = 2;

/// Within how many leases secondaries must have fallen silent to be taken for having done so together:
/// a lease ends as much as one later than another, and the manager is asked in between.
const SILENT_TOGETHER_LEASES: u32 = 2;

/// After how many graces a primary that stepped down asks to go on, if its data path works and no other
/// has taken its place: the others have had one to notice, and one to act.
const ASKS_AGAIN_AFTER_GRACES: u32 = 2;

/// What a replica knows of its own data path.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// When a write last became durable, or none was under way.
    durable_at: Moment,
    /// When an entry was last applied, or none was to be.
    applied_at: Moment,
    /// When the replica last stepped down because it made no progress, and how often before.
    hung: Option<(Moment, u32)>,
    /// When the table of the replica, as the primary, last went on, or nothing was to be applied.
    served_at: Moment,
    /// Since when the table of the replica, as the primary, has gone on without a long pause.
    serves_well_since: Option<Moment>,
    /// When it last found that no other had taken its place.
    unreplaced_at: Option<Moment>,
    /// It stepped down since, alone, it could take no writes, no other took its place, and it has not
    /// held all its leases again since.
    may_go_alone: bool,
}

impl Health {
    pub(super) const fn on_applied(&mut self, now: Moment) {
        self.applied_at = now;
    }

    pub(super) const fn on_durable(&mut self, now: Moment) {
        self.durable_at = now;
    }

    /// Returns for how long the data path may make no progress.
    fn patience(&self, now: Moment, lease: Duration) -> Duration {
        HANG_LEASES * lease * 2_u32.pow(self.doublings(now, lease))
    }

    /// Returns how often the bound is doubled for the hangs that are not forgotten yet.
    fn doublings(&self, now: Moment, lease: Duration) -> u32 {
        let Some((at, times)) = self.hung else { return 0 };
        let doublings = times.min(HANG_DOUBLINGS_MAX);
        let next = HANG_LEASES * lease * 2_u32.pow(doublings);
        if now < at + HANG_FORGOTTEN_AFTER * next { doublings } else { 0 }
    }

    /// Records that the table of a primary goes on, for which the disks of all have written. One that
    /// does so for a lease without a pause of half of one hangs no more, and when it does again, that
    /// is another hang.
    fn note_served(&mut self, now: Moment, lease: Duration) {
        if now >= self.served_at + lease / WAITS_LEASE_DIVISOR {
            self.serves_well_since = None;
        } else if now >= *self.serves_well_since.get_or_insert(now) + lease {
            //= PAC-27
            self.hung = None;
        }
        self.served_at = now;
    }

    /// Records that another replica is the primary: what was found while none took its place is over.
    pub(super) const fn was_replaced(&mut self) {
        //= PAC-29
        self.may_go_alone = false;
    }

    fn note_hang(&mut self, now: Moment, lease: Duration) {
        self.serves_well_since = None;
        self.hung = Some((now, self.doublings(now, lease) + 1));
    }
}

/// A replica's own disk and applier.
impl Shared {
    /// Records what there is nothing to wait for.
    pub(super) fn note_rest(&mut self) {
        if self.journal.is_durable() {
            self.own.health.durable_at = self.now;
        }
        if self.applied.seq >= self.journal.committed().seq {
            self.own.health.applied_at = self.now;
        }
        if self.applied.seq >= self.journal.last().seq {
            self.own.health.served_at = self.now;
        }
    }

    /// Records that the table of a primary goes on.
    pub(super) fn note_served(&mut self) {
        self.own.health.note_served(self.now, self.timing.lease);
    }

    /// Returns when the replica's own disk or applier counts as one that hangs, if nothing happens
    /// before.
    fn hangs_at(&self) -> Option<Moment> {
        self.waits_for(self.own.health.patience(self.now, self.timing.lease))
    }

    /// Returns when something has waited for the replica's own disk or applier for so long, if nothing
    /// happens before.
    fn waits_for(&self, patience: Duration) -> Option<Moment> {
        let health = &self.own.health;
        let disk = (!self.journal.is_durable()).then(|| health.durable_at + patience);
        // What is not on the disk is not applied: that is the disk's hang.
        let applicable = self.journal.committed().seq.min(self.journal.durable().seq);
        let applies = self.applied.seq < applicable;
        let applier = applies.then(|| health.applied_at + patience);
        disk.into_iter().chain(applier).min()
    }

    /// Returns true if something waits for the replica's own disk or applier for so long that it must
    /// not take a primary's place.
    pub(super) fn could_not_lead(&self) -> bool {
        let waits_for = self.waits_for(self.timing.lease / WAITS_LEASE_DIVISOR);
        waits_for.is_some_and(|at| at <= self.now)
    }

    /// Returns true if nothing waits for the disk or for the applier.
    fn waits_for_nothing(&self) -> bool {
        self.journal.is_durable() && self.applied.seq >= self.journal.committed().seq
    }

    /// Records that a primary holds its leases.
    pub(super) fn note_leases(&mut self) {
        if self.own.replicas() > 1 {
            self.own.health.may_go_alone = false;
        }
    }

    /// Returns when a primary that stepped down asks to go on.
    pub(super) fn asks_to_go_on_at(&self) -> Option<Moment> {
        self.own
            .stepped_down
            .filter(|_| self.own.pending.is_none() && self.waits_for_nothing())
            .map(|at| at + ASKS_AGAIN_AFTER_GRACES * self.timing.grace)
    }

    /// Asks to go on under a new version, if no replica has taken the place of a primary that stepped
    /// down.
    pub(super) fn ask_to_go_on(&mut self) {
        if self.asks_to_go_on_at().is_none_or(|at| self.now < at) {
            return;
        }
        self.own.health.unreplaced_at = Some(self.now);
        self.own.health.may_go_alone = true;
        self.propose(Purpose::Resume, None);
    }
}

/// A primary whose data path hangs.
impl Primary {
    /// Returns when a primary counts as one whose data reaches no secondary: every one acknowledges
    /// beacons, and none of them entries.
    fn reaches_nobody_at(&self, cx: &Shared) -> Option<Moment> {
        let (now, lease, health) = (cx.now, cx.timing.lease, &cx.own.health);
        if health.unreplaced_at.is_some_and(|at| now < at + REMOVALS_FORGOTTEN_AFTER) {
            return None;
        }
        let patience = health.patience(now, lease);
        let listed = self.leading.followers.iter().filter(|(node, _)| cx.own.is_listed(**node));
        let mut ends = Vec::new();
        for (node, follower) in listed {
            let is_heard = follower.supported().is_some_and(|sent| now < sent + lease);
            let has_all = follower.match_lsn().seq >= cx.journal.last().seq;
            // A snapshot takes its time; the transport judges whether it comes forward.
            if !is_heard || has_all || follower.is_sending() {
                return None;
            }
            let counted = self.counted.get(node).copied().unwrap_or_default();
            ends.push(follower.progressed().max(counted) + patience);
        }
        let is_enough = ends.len() >= SECONDARIES_TO_BLAME_ONESELF;
        ends.into_iter().max().filter(|_| is_enough)
    }

    /// Returns when a primary steps down, if nothing happens before.
    pub(super) fn steps_down_at(&self, cx: &Shared) -> Option<Moment> {
        if cx.own.replicas() <= 1 {
            return None;
        }
        cx.hangs_at().into_iter().chain(self.reaches_nobody_at(cx)).min()
    }

    /// Steps down if the primary's own data path hangs, so that a secondary takes its place (PAC-27).
    pub(super) fn step_down_if_it_hangs(&self, cx: &mut Shared) -> Lead {
        if self.steps_down_at(cx).is_none_or(|at| cx.now < at) {
            return GOES_ON;
        }
        //= PAC-27
        tracing::warn!("the primary's disk, applier or network makes no progress: it steps down");
        cx.own.health.note_hang(cx.now, cx.timing.lease);
        ControlFlow::Break(StepDown::ForOthers)
    }

    /// Returns true if a primary without these secondaries, whose leases have ended, would be alone and
    /// take no writes, while it may be the one that is cut off from the others, and they could go on
    /// without it.
    pub(super) fn would_be_useless_without(&self, cx: &Shared, lapsed: &[NodeId]) -> bool {
        let Some(config) = &cx.own.config else { return false };
        let is_alone = config.replicas.iter().all(|id| *id == cx.node || lapsed.contains(id));
        let takes_no_writes = cx.own.options.min_replicas_for_write > 1;
        // Their leases end one after the other, and the first may have been taken out by now.
        let earlier = self.removed_since(cx.now, SILENT_TOGETHER_LEASES * cx.timing.lease);
        is_alone
            && takes_no_writes
            && lapsed.len() + earlier >= SECONDARIES_TO_BLAME_ONESELF
            && cx.own.pending.is_none()
            && !cx.own.health.may_go_alone
    }

    /// Steps down before all secondaries are taken out, so that one of them can take its place.
    pub(super) fn step_down_for_others(&self) -> Lead {
        //= PAC-29
        tracing::warn!(
            "all leases have ended, and alone the primary takes no writes: it steps down"
        );
        ControlFlow::Break(StepDown::ForOthers)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trireme_storage::IoId;
    use trireme_types::{CohortConfig, CohortId, Entry, EntryKind, Incarnation, Lsn, Protocol};

    use super::super::{Pacifica, PacificaOptions};
    use super::*;
    use crate::core::Recovered;

    const LEASE: Duration = Duration::from_millis(800);
    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_replica_that_hung_bears_twice_as_long_until_that_is_long_ago() {
        let mut health = Health::default();
        let mut now = Moment::after_start(Duration::from_secs(100));
        let leases = |health: &Health, now| {
            let patience = health.patience(now, LEASE);
            patience.as_millis() / LEASE.as_millis()
        };
        assert_eq!(leases(&health, now), 1);
        for borne in [2, 4, 8, 16, 16] {
            health.note_hang(now, LEASE);
            assert_eq!(leases(&health, now), borne);
            now = now + Duration::from_secs(15);
        }
        health.note_hang(now, LEASE);
        let forgotten = now + HANG_FORGOTTEN_AFTER * 16 * LEASE;
        assert_eq!(leases(&health, forgotten - Duration::from_millis(1)), 16);
        assert_eq!(leases(&health, forgotten), 1);
        health.note_hang(forgotten, LEASE);
        assert_eq!(leases(&health, forgotten), 2, "it begins anew");
    }

    #[test]
    fn a_primary_that_serves_well_for_a_lease_hangs_no_more() {
        let (start, quick) = (Moment::after_start(Duration::from_secs(100)), LEASE / 2 - MS);
        // Serves so often, after such pauses, and returns how long it bears a hang then.
        let after = |pauses: &[Duration]| {
            let mut health = Health { served_at: start, ..Health::default() };
            let mut now = start;
            health.note_served(now, LEASE);
            health.note_hang(now, LEASE);
            for pause in pauses {
                now = now + *pause;
                health.note_served(now, LEASE);
            }
            health.patience(now, LEASE)
        };
        assert_eq!(after(&[]), 2 * LEASE);
        assert_eq!(after(&[quick; 3]), 2 * LEASE, "it has served for less than a lease");
        assert_eq!(after(&[quick, quick, quick, 2 * MS]), LEASE);
        assert_eq!(after(&[LEASE / 2; 9]), 2 * LEASE, "each is a long pause");
        let interrupted = [quick, quick, LEASE / 2, quick, quick];
        assert_eq!(after(&interrupted), 2 * LEASE, "since the pause it is less than a lease");
    }

    /// Returns a replica of a cohort of so many.
    fn replica_of(replicas: u64) -> Pacifica {
        let core = Pacifica::new(&Recovered::nothing(), PacificaOptions::new(Incarnation(7)));
        let mut core = core.expect("the options make sense");
        core.shared.own.config = Some(CohortConfig {
            cohort: CohortId(1),
            version: 1,
            protocol: Protocol::Pacifica,
            replicas: (1..=replicas).map(NodeId).collect(),
            replicas_wanted: 3,
            incarnations: [].into(),
            origin: None,
        });
        core
    }

    /// That it holds the leases of all the others shows that it is not cut off, if there are others.
    #[test]
    fn leases_of_others_end_the_right_to_go_alone() {
        let may_go_alone = |replicas| {
            let mut core = replica_of(replicas);
            core.shared.own.health.may_go_alone = true;
            core.shared.note_leases();
            core.shared.own.health.may_go_alone
        };
        assert!(may_go_alone(1) && !may_go_alone(2) && !may_go_alone(3));
    }

    /// A primary that stepped down asks to go on when its disk and its applier have done all that they
    /// had to, not when they are only given more time than the last time.
    #[test]
    fn a_primary_asks_to_go_on_when_nothing_waits() {
        let cx = &mut replica_of(3).shared;
        cx.own.stepped_down = Some(Moment::START);
        let asks = |cx: &Shared| cx.asks_to_go_on_at().is_some();
        assert!(asks(cx));
        let lsn = Lsn::new(1, 1);
        cx.journal.propose(Entry { lsn, kind: EntryKind::NoOp, payload: Bytes::new() });
        cx.journal.write_gathered();
        assert!(!asks(cx) && !cx.could_not_lead(), "its disk has something to do");
        cx.journal.on_durable(IoId(1));
        assert!(asks(cx));
        cx.journal.commit(1);
        assert!(!asks(cx) && !cx.could_not_lead(), "its applier has something to do");
        cx.applied = lsn;
        assert!(asks(cx));
    }

    /// What is not on the disk is not applied: while the disk makes progress, the applier that waits for
    /// it does not hang.
    #[test]
    fn an_applier_that_waits_for_the_disk_does_not_hang() {
        let cx = &mut replica_of(3).shared;
        cx.now = Moment::after_start(Duration::from_secs(9));
        for seq in [1, 2] {
            let lsn = Lsn::new(1, seq);
            cx.journal.propose(Entry { lsn, kind: EntryKind::NoOp, payload: Bytes::new() });
            cx.journal.write_gathered();
        }
        cx.journal.commit(2);
        cx.journal.on_durable(IoId(1));
        cx.own.health.on_durable(cx.now);
        assert!(cx.could_not_lead(), "the first entry has waited for the applier since the start");
        cx.applied = Lsn::new(1, 1);
        assert!(!cx.could_not_lead(), "the second one waits for the disk");
    }

    #[test]
    fn a_replica_that_was_replaced_does_not_go_alone() {
        let mut health = Health { may_go_alone: true, ..Health::default() };
        health.was_replaced();
        assert!(!health.may_go_alone);
    }
}
