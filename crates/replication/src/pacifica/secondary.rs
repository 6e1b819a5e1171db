//! The secondary or candidate: it prepares what the primary orders, and catches up.

use trireme_types::{Entry, NodeId};

use super::{PacificaMessage, Shared};
use crate::core::Moment;
use crate::streaming::{Beacon, Following, Preceding};

/// What a secondary or a candidate knows: which of both it is, the configuration says.
#[derive(Debug, Default)]
pub(super) struct Secondary {
    pub(super) following: Following,
}

impl Secondary {
    pub(super) fn of(primary: NodeId, now: Moment) -> Self {
        Self { following: Following::of(primary, now) }
    }

    pub(super) fn on_prepare(
        &mut self,
        cx: &mut Shared,
        from: NodeId,
        preceding: &Preceding,
        entries: Vec<Entry>,
    ) {
        //= PAC-3
        let accepted = self.following.accept_entries(cx, from, preceding, entries);
        let Some(matched) = accepted else { return };
        //= PAC-4
        let supports = self.support(cx, preceding.sent);
        let when = cx.journal.when_durable();
        let (epoch, incarnation) = (preceding.epoch, cx.own.incarnation);
        let prepared = PacificaMessage::Prepared { epoch, upto: matched, supports, incarnation };
        cx.journal.send(from, prepared, when);
        cx.commit_as_follower(preceding.committed.seq.min(matched.seq));
    }

    pub(super) fn on_beacon(&mut self, cx: &mut Shared, from: NodeId, beacon: Beacon) {
        let Beacon { epoch, sent, .. } = beacon;
        let supports = self.support(cx, sent);
        let incarnation = cx.own.incarnation;
        cx.journal.signal(from, PacificaMessage::BeaconAck { epoch, supports, incarnation });
        self.following.on_beacon(cx, from, &beacon);
    }

    /// Returns what to acknowledge a message of this time with, and keeps what that promises: the
    /// grace counts from now. A secondary that has asked to be primary promises nothing more.
    fn support(&self, cx: &mut Shared, sent: Moment) -> Option<Moment> {
        //= PAC-21
        let asks = cx.own.pending.is_some() || cx.own.named.is_some();
        if asks || self.following.leader.is_none() {
            return None;
        }
        //= PAC-22
        cx.support.renew(cx.now);
        Some(sent)
    }

    /// Asks the primary again to be brought up to date, as long as nothing comes from it (PAC-40).
    pub(super) fn on_timeout(&mut self, cx: &mut Shared) {
        if cx.now >= self.asks_from(cx) {
            //= PAC-40
            self.following.ask(cx, cx.state.promised);
        }
    }

    /// Returns when a candidate asks (again) to be brought up to date.
    fn asks_from(&self, cx: &Shared) -> Moment {
        let is_wanted = cx.own.is_missing_one() || cx.own.options.is_invited;
        let asks = is_wanted && !cx.own.is_listed(cx.node);
        if asks { self.following.asks_from(cx.timing) } else { Moment::FAR }
    }

    pub(super) fn next_timeout(&self, cx: &Shared) -> Option<Moment> {
        let take_over = cx.may_take_over_from();
        [take_over, self.asks_from(cx)].into_iter().min().filter(|at| *at < Moment::FAR)
    }
}
