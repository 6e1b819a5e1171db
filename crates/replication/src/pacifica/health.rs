//! Whether a replica's own data path makes progress: its disk, its applier, its way to the others.

use std::time::Duration;

use trireme_types::{Lsn, NodeId};

use super::reconfiguration::REMOVALS_FORGOTTEN_AFTER;
use super::{Pacifica, RoleState};
use crate::core::Moment;

/// For how many leases a primary may have made no progress with what it has to do, before it steps
/// down (P14). One is as long as it serves when it is cut off from the others: the grace of the
/// secondaries comes on top, as when it dies, so that a hang costs less than two deaths. Fewer would
/// take the hiccups of a busy disk for a hang.
const HANG_LEASES: u32 = 1;

/// How often the bound is doubled at the most for a replica that hung again and again: where every
/// disk is slow, some primary must be borne.
const HANG_DOUBLINGS_MAX: u32 = 4;

/// How many secondaries must acknowledge beacons and nothing else, or nothing at all, all of them, for
/// the primary to take itself for the one at fault. Of one alone it cannot tell whose fault it is.
const SECONDARIES_TO_BLAME_ONESELF: usize = 2;

/// Within how many leases secondaries must have fallen silent to be taken for having done so together:
/// a lease ends as much as one later than another, and the manager is asked in between.
const SILENT_TOGETHER_LEASES: u32 = 2;

/// After how many graces a primary that stepped down asks to go on, if its data path works and nobody
/// has taken its place: the others have had one to notice, and one to act.
const ASKS_AGAIN_AFTER_GRACES: u32 = 2;

/// What a replica knows of its own data path.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// When a write last became durable, or none was under way.
    durable_at: Moment,
    /// When an entry was last applied, or none was to be.
    applied_at: Moment,
    applied: Lsn,
    /// When the replica last stepped down because it made no progress, and how often before.
    hung: Option<(Moment, u32)>,
    /// When it last found that nobody had taken its place.
    unreplaced_at: Option<Moment>,
    /// It stepped down since, alone, it could take no writes, nobody took its place, and it has not held
    /// all its leases again since.
    may_go_alone: bool,
}

impl Health {
    pub(super) fn new(applied: Lsn) -> Self {
        Self { applied, ..Self::default() }
    }

    pub(super) fn on_applied(&mut self, now: Moment, upto: Lsn) {
        self.applied = self.applied.max(upto);
        self.applied_at = now;
    }

    pub(super) const fn on_durable(&mut self, now: Moment) {
        self.durable_at = now;
    }

    /// Returns for how long the data path may make no progress.
    fn patience(&self, now: Moment, lease: Duration) -> Duration {
        let recent = self.hung.filter(|(at, _)| now < *at + REMOVALS_FORGOTTEN_AFTER);
        let doublings = recent.map_or(0, |(_, times)| times.min(HANG_DOUBLINGS_MAX));
        HANG_LEASES * lease * 2_u32.pow(doublings)
    }

    /// Records that another replica is the primary: what was found while none took its place is over.
    pub(super) const fn was_replaced(&mut self) {
        //= PAC-29
        self.may_go_alone = false;
    }

    fn note_hang(&mut self, now: Moment) {
        let before = self.hung.filter(|(at, _)| now < *at + REMOVALS_FORGOTTEN_AFTER);
        self.hung = Some((now, before.map_or(0, |(_, times)| times) + 1));
    }
}

impl Pacifica {
    /// Notes what there is nothing to wait for.
    pub(super) fn note_rest(&mut self) {
        let now = self.now;
        if self.journal.is_durable() {
            self.health.durable_at = now;
        }
        if self.health.applied.seq >= self.journal.committed().seq {
            self.health.applied_at = now;
        }
    }

    /// Returns when the replica's own disk or applier counts as one that hangs, if nothing happens
    /// before.
    fn hangs_at(&self) -> Option<Moment> {
        let patience = self.health.patience(self.now, self.options.timing.lease);
        let disk = (!self.journal.is_durable()).then(|| self.health.durable_at + patience);
        // What is not on the disk is not applied: that is the disk's hang.
        let applicable = self.journal.committed().seq.min(self.journal.durable().seq);
        let applies = self.health.applied.seq < applicable;
        let applier = applies.then(|| self.health.applied_at + patience);
        disk.into_iter().chain(applier).min()
    }

    /// Returns true if the replica's own disk or applier makes no progress.
    pub(super) fn hangs(&self) -> bool {
        self.hangs_at().is_some_and(|at| at <= self.now)
    }

    /// Returns when a primary counts as one whose data reaches nobody: every secondary acknowledges
    /// beacons, and none of them entries.
    fn reaches_nobody_at(&self) -> Option<Moment> {
        let RoleState::Primary(primary) = &self.role else { return None };
        let (now, lease) = (self.now, self.options.timing.lease);
        let unreplaced = self.health.unreplaced_at;
        if unreplaced.is_some_and(|at| now < at + REMOVALS_FORGOTTEN_AFTER) {
            return None;
        }
        let patience = self.health.patience(now, lease);
        let listed = primary.leading.followers.iter().filter(|(node, _)| self.is_listed(**node));
        let mut ends = Vec::new();
        for (node, follower) in listed {
            let is_heard = follower.supported.is_some_and(|sent| now < sent + lease);
            let has_all = follower.match_lsn.seq >= self.journal.last().seq;
            // A snapshot takes its time; the transport judges whether it comes forward.
            if !is_heard || has_all || follower.is_sending {
                return None;
            }
            let counted = primary.counted.get(node).copied().unwrap_or_default();
            ends.push(follower.progressed.max(counted) + patience);
        }
        let is_enough = ends.len() >= SECONDARIES_TO_BLAME_ONESELF;
        ends.into_iter().max().filter(|_| is_enough)
    }

    /// Returns when a primary steps down, if nothing happens before.
    pub(super) fn steps_down_at(&self) -> Option<Moment> {
        let is_alone = self.config.as_ref().is_none_or(|config| config.replicas.len() <= 1);
        if is_alone || !matches!(self.role, RoleState::Primary(_)) {
            return None;
        }
        self.hangs_at().into_iter().chain(self.reaches_nobody_at()).min()
    }

    /// Steps down if the primary's own data path hangs: it sends nothing any more, so that the grace
    /// of the secondaries ends as if it had died (PAC-27).
    pub(super) fn step_down_if_it_hangs(&mut self) {
        if self.steps_down_at().is_none_or(|at| self.now < at) {
            return;
        }
        //= PAC-27
        tracing::warn!("the primary's disk, applier or network makes no progress: it steps down");
        self.health.note_hang(self.now);
        self.stepped_down = Some(self.now);
        self.set_role(RoleState::Follower(super::Following::default()));
    }

    /// Returns true if a primary without these secondaries, whose leases have ended, would be alone and
    /// take no writes, while it may be the one that is cut off from the others, and they could go on
    /// without it.
    pub(super) fn would_be_useless_without(&self, lapsed: &[NodeId]) -> bool {
        let (Some(config), RoleState::Primary(primary)) = (&self.config, &self.role) else {
            return false;
        };
        let is_alone = config.replicas.iter().all(|id| *id == self.node || lapsed.contains(id));
        let takes_no_writes = self.options.min_replicas_for_write > 1;
        // Their leases end one after the other, and the first may have been taken out by now.
        let earlier =
            primary.removed_since(self.now, SILENT_TOGETHER_LEASES * self.options.timing.lease);
        is_alone
            && takes_no_writes
            && lapsed.len() + earlier >= SECONDARIES_TO_BLAME_ONESELF
            && self.pending.is_none()
            && !self.health.may_go_alone
    }

    /// Steps down before all secondaries are taken out, so that one of them can take its place.
    pub(super) fn step_down_for_others(&mut self) {
        //= PAC-29
        tracing::warn!(
            "all leases have ended, and alone the primary takes no writes: it steps down"
        );
        self.stepped_down = Some(self.now);
        self.set_role(RoleState::Follower(super::Following::default()));
    }

    /// Notes that a primary holds its leases.
    pub(super) fn note_leases(&mut self) {
        if self.config.as_ref().is_some_and(|config| config.replicas.len() > 1) {
            self.health.may_go_alone = false;
        }
    }

    /// Returns when a primary that stepped down asks to go on.
    pub(super) fn asks_to_go_on_at(&self) -> Option<Moment> {
        let grace = self.options.timing.grace;
        self.stepped_down
            .filter(|_| self.pending.is_none() && !self.hangs() && self.is_settled())
            .map(|at| at + ASKS_AGAIN_AFTER_GRACES * grace)
    }

    /// Returns true if nothing waits for the disk or for the applier.
    fn is_settled(&self) -> bool {
        self.journal.is_durable() && self.health.applied.seq >= self.journal.committed().seq
    }

    /// Asks to go on under a new version, if nobody has taken the place of a primary that stepped
    /// down.
    pub(super) fn ask_to_go_on(&mut self) {
        if self.asks_to_go_on_at().is_none_or(|at| self.now < at) {
            return;
        }
        self.health.unreplaced_at = Some(self.now);
        self.health.may_go_alone = true;
        self.propose(super::reconfiguration::Purpose::Resume);
    }
}
