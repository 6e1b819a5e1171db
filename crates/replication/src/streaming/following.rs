//! What a follower knows of its leader, in both protocols.

use trireme_types::{Entry, Epoch, Lsn, NodeId, Timing};

use super::{Beacon, Preceding, Shared, Streams, Taken};
use crate::core::Moment;

/// What a follower knows of its leader.
#[derive(Debug, Default)]
pub(crate) struct Following {
    /// The leader, as far as it knows.
    pub(crate) leader: Option<NodeId>,
    /// When it last heard from it, or of it.
    pub(crate) heard: Option<Moment>,
    /// The leader streams its log to it: something that continues its log has arrived.
    pub(crate) is_streaming: bool,
    /// When it last reported its position in this epoch.
    pub(crate) reported_at: Option<Moment>,
}

impl Following {
    /// Returns what a follower knows that has just heard of `leader`.
    pub(crate) fn of(leader: NodeId, now: Moment) -> Self {
        Self { leader: Some(leader), heard: Some(now), ..Self::default() }
    }

    /// Applies a leader's entries to the log and returns up to where the log is the leader's; `None`,
    /// and the position is reported, if they leave a gap.
    pub(crate) fn accept_entries<C: Streams>(
        &mut self,
        cx: &mut Shared<C>,
        from: NodeId,
        preceding: &Preceding,
        entries: Vec<Entry>,
    ) -> Option<Lsn> {
        cx.journal.take_current(cx.now, from, &preceding.beacon());
        let Taken::Matched(matched) = cx.journal.take(preceding, entries) else {
            self.report_position(cx, from, preceding.epoch);
            return None;
        };
        self.is_streaming = true;
        Some(matched)
    }

    /// Applies what a beacon says is committed, and reports the position again that may have been lost,
    /// as long as nothing continues the log.
    pub(crate) fn on_beacon<C: Streams>(
        &mut self,
        cx: &mut Shared<C>,
        leader: NodeId,
        beacon: &Beacon,
    ) {
        cx.journal.take_current(cx.now, leader, beacon);
        if cx.journal.log().holds(beacon.committed) || C::faults(cx).commits_by_number() {
            cx.commit_as_follower(beacon.committed.seq);
        }
        if !self.is_streaming {
            self.report_position(cx, leader, beacon.epoch);
        }
    }

    /// Reports the replica's position, at most once in a beacon interval, and not again while a
    /// stalled disk still holds back an earlier report: each one has the leader start anew. What is not
    /// reported for that reason is as soon as the disk is back.
    pub(crate) fn report_position<C: Streams>(
        &mut self,
        cx: &mut Shared<C>,
        leader: NodeId,
        epoch: Epoch,
    ) {
        let interval = cx.timing.beacon_interval;
        let is_recent = self.reported_at.is_some_and(|reported| cx.now < reported + interval);
        if is_recent || self.is_report_held_back(cx) {
            return;
        }
        self.reported_at = Some(cx.now);
        let report = C::position_message(cx, epoch);
        let when = cx.journal.when_durable();
        cx.journal.send(leader, report, when);
    }

    /// Asks the leader (again) to be brought up to date: it may not know that there is such a replica.
    pub(crate) fn ask<C: Streams>(&mut self, cx: &mut Shared<C>, epoch: Epoch) {
        let Some(leader) = self.leader else { return };
        if self.is_report_held_back(cx) {
            // It will be sent when the disk is back, and is given its time to be answered.
            self.reported_at = Some(cx.now);
        } else {
            self.report_position(cx, leader, epoch);
        }
    }

    /// Returns when it asks (again) to be brought up to date: as long as nothing comes from its leader,
    /// once in a grace.
    pub(crate) fn asks_from(&self, timing: Timing) -> Moment {
        if self.leader.is_none() {
            return Moment::FAR;
        }
        let after = |moment: Option<Moment>| moment.map_or(Moment::START, |at| at + timing.grace);
        after(self.reported_at).max(after(self.heard.filter(|_| self.is_streaming)))
    }

    /// Records that a node can be reached again. A leader that was away may not know that this replica
    /// waits for it.
    pub(crate) fn on_peer_alive(&mut self, node: NodeId) {
        if self.leader == Some(node) {
            self.reported_at = None;
        }
    }

    /// Returns true if the disk may still hold back the last report.
    pub(crate) fn is_report_held_back<C: Streams>(&self, cx: &Shared<C>) -> bool {
        self.reported_at.is_some() && !cx.journal.is_durable()
    }

    /// Checks what must hold of what it knows.
    pub(crate) fn validate(&self, node: NodeId) -> Result<(), String> {
        match self.leader {
            Some(leader) if leader == node => Err("it follows itself".into()),
            Some(_) if self.heard.is_none() => {
                Err("it follows a leader of which it never heard".into())
            }
            None if self.is_streaming => Err("it is sent a log, and follows no leader".into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_an_invariant_is_named() {
        let (own, leader) = (NodeId(1), NodeId(2));
        let following = || Following::of(leader, Moment::START);
        assert_eq!(Following::default().validate(own), Ok(()));
        assert_eq!(following().validate(own), Ok(()));
        let itself = following().validate(leader).expect_err("it follows itself");
        assert!(itself.contains("itself"), "{itself}");
        let unheard = Following { heard: None, ..following() };
        let unheard = unheard.validate(own).expect_err("it never heard of its leader");
        assert!(unheard.contains("never heard"), "{unheard}");
        let no_leader = Following { is_streaming: true, ..Following::default() };
        let no_leader = no_leader.validate(own).expect_err("no leader sends it a log");
        assert!(no_leader.contains("follows no leader"), "{no_leader}");
    }
}
