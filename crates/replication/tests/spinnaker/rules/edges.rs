//! The edges of the rules: what one replica does at the very moment, epoch or entry where a rule begins
//! to hold or ends.

use std::time::Duration;

use trireme_replication::Role;
use trireme_replication::core::{Core as _, Effect, Event, Moment, Reply, Ticket};
use trireme_replication::spinnaker::SpinnakerMessage;
use trireme_types::{Epoch, Lsn, NodeId};

use super::{N1, N2, N3, Replica, lsns};

impl Replica {
    /// Has a follower answer a beacon that leaves now: it supports the leader, whatever its data does.
    fn support(&mut self, from: NodeId, epoch: Epoch) -> &mut Self {
        let (supports, is_learner, awaits_disk) = (Some(self.now), false, false);
        self.hear(from, SpinnakerMessage::BeaconAck { epoch, supports, is_learner, awaits_disk })
    }

    fn leads(&self) -> bool {
        self.core.status().leader == Some(N1)
    }

    /// Returns true if it acknowledges a beacon with its support.
    fn supports(&self) -> bool {
        let supports = |message: &SpinnakerMessage| {
            matches!(message, SpinnakerMessage::BeaconAck { supports: Some(_), .. })
        };
        self.messages().any(|(message, _)| supports(message))
    }

    fn transfer(&mut self, ticket: u64, to: NodeId) -> &mut Self {
        self.tell(Event::TransferLeader { ticket: Ticket(ticket), to })
    }

    fn refuses(&self) -> Vec<Ticket> {
        let refused = |effect: &Effect<_>| match effect {
            Effect::Reply { ticket, reply: Reply::Error(_), .. } => Some(*ticket),
            _ => None,
        };
        self.effects.iter().filter_map(refused).collect()
    }

    /// Makes it the leader of epoch 2, whose no-op 2.3 it and both others have on their disks.
    fn lead_all(&mut self) -> &mut Self {
        self.lead(2);
        for follower in [N2, N3] {
            self.join(follower, 2, Lsn::new(1, 2), false).sent(follower);
            self.ack(follower, 2, Lsn::new(2, 3));
        }
        assert_eq!(self.committed(), 3);
        self
    }
}

/// [SPIN-20] Of a suspicion that is as old as a grace it is not known whether it still holds.
#[test]
fn a_suspicion_ends_when_a_grace_does() {
    let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
    replica.view(1, None, &[]).doubt(N3, 1).wait(1000);
    assert!(!replica.stands(), "n3 suspected the leader a grace ago");
    let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
    replica.view(1, None, &[]).wait(1).doubt(N3, 1).wait(999);
    assert!(replica.stands(), "a millisecond is left");
}

/// [SPIN-20] What an earlier run of the replica stood for shows nothing of the others.
#[test]
fn a_replica_that_stands_alone_is_not_two() {
    let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
    replica.view(1, None, &[(N1, Lsn::new(1, 1))]).wait(1000);
    assert!(!replica.stands(), "no other replica has no leader");
    replica.doubt(N3, 1);
    assert!(replica.stands());
}

/// [SPIN-27] The first view may be of an epoch before the one whose leader the replica has heard: that
/// it names no leader says nothing of that one.
#[test]
fn a_first_view_of_an_earlier_epoch_ends_no_support() {
    let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
    replica.beacon(N2, 3).view(1, None, &[]);
    for _ in 0..4 {
        replica.wait(500).beacon(N2, 3);
        assert!(replica.supports());
    }
}

/// [SPIN-26] A replica that led before it was started again does not follow itself.
#[test]
fn what_an_earlier_run_leads_is_led_by_nobody() {
    let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
    replica.view(2, Some(N1), &[]);
    assert_eq!(replica.core.status().leader, None);
}

/// [SPIN-22] A leader resigns for a newer epoch than its own, not for its own.
#[test]
fn a_leader_resigns_for_a_newer_epoch_only() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead(2).hear(N2, SpinnakerMessage::RejectStaleEpoch { epoch: 2 });
    assert!(replica.leads(), "what n2 refused was sent by the leader before");
    replica.hear(N2, SpinnakerMessage::RejectStaleEpoch { epoch: 3 });
    assert!(!replica.leads());
}

/// [SPIN-47] The first position of a follower shows that its data arrives, and a further one that it has
/// received what it was sent. The same one again shows nothing. With the default periods data may be
/// missing for 850 ms.
#[test]
fn a_position_that_is_no_news_shows_no_data() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead(2).wait(400).support(N2, 2).join(N2, 2, Lsn::new(1, 1), false);
    replica.wait(300).support(N2, 2).join(N2, 2, Lsn::new(1, 1), false);
    replica.wait(300).support(N2, 2);
    assert!(replica.leads(), "it heard n2's position 600 ms ago");
    replica.wait(249).support(N2, 2);
    assert!(replica.leads(), "849 ms ago");
    replica.wait(1);
    assert!(!replica.leads(), "n2 has received nothing since");

    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead(2).wait(400).support(N2, 2).join(N2, 2, Lsn::new(1, 1), false);
    replica.wait(300).support(N2, 2).join(N2, 2, Lsn::new(1, 2), false);
    replica.wait(800).support(N2, 2);
    assert!(replica.leads(), "n2 came further 800 ms ago");
    replica.wait(50);
    assert!(!replica.leads());
}

/// [SPIN-70] A leader that serves names its no-op, and as of when it will have been the newest: the end
/// of its lease.
#[test]
fn a_leader_that_serves_names_the_end_of_its_lease() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    let current = |replica: &Replica| replica.core.status().current;
    replica.lead_all().support(N2, 2);
    assert_eq!(current(&replica), None, "its no-op is not applied");
    replica.tell(Event::Applied { upto: Lsn::new(2, 3) });
    let end: Moment = replica.now + Duration::from_millis(800);
    assert_eq!(current(&replica), Some((Lsn::new(2, 3), end)));
}

/// [SPIN-46] One hand-over at a time, and to a replica that counts.
#[test]
fn a_hand_over_is_to_a_voter_and_the_only_one() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead_all().join(N2, 2, Lsn::ZERO, true).transfer(1, N2);
    assert_eq!(replica.refuses(), [Ticket(1)], "n2 is a learner");
    replica.write(9).transfer(2, N3);
    assert!(replica.refuses().is_empty() && replica.leads(), "n3 lacks the write");
    replica.transfer(3, N3);
    assert_eq!(replica.refuses(), [Ticket(3)], "one is under way");
}

/// [SPIN-46] A successor has everything, not just what others have committed without it.
#[test]
fn a_hand_over_waits_for_what_its_successor_lacks() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead_all().write(1).force().ack(N3, 2, Lsn::new(2, 4));
    assert_eq!(replica.committed(), 4);
    replica.transfer(2, N2);
    assert!(replica.leads(), "n2 lacks 2.4");
    replica.ack(N2, 2, Lsn::new(2, 4));
    assert!(!replica.leads());
}

/// [SPIN-22] An epoch has one leader: what another says under the same one is not followed.
#[test]
fn an_epoch_has_one_leader() {
    let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
    replica.view(2, Some(N2), &[]).beacon(N3, 2);
    assert!(!replica.supports());
    assert_eq!(replica.core.status().leader, Some(N2));
    replica.beacon(N2, 2);
    assert!(replica.supports());
}

/// [SPIN-44] A learner counts again by its leader's word alone, and by what that said in this epoch.
#[test]
fn a_learner_is_welcomed_by_its_leader_only() {
    let mut replica = Replica::start(&[], 0, true);
    replica.view(2, Some(N2), &[]).propose(N2, 2, Lsn::ZERO, &lsns(1, 1..=1)).force();
    let is_learner = |replica: &Replica| replica.core.status().role == Role::Learner;
    let upto = Lsn::new(1, 1);
    for (from, epoch) in [(N3, 2), (N2, 1), (N3, 1)] {
        replica.hear(from, SpinnakerMessage::Readmit { epoch, upto });
        assert!(is_learner(&replica), "{from} says so in epoch {epoch}");
    }
    replica.hear(N2, SpinnakerMessage::Readmit { epoch: 2, upto });
    assert!(!is_learner(&replica));
}

/// [SPIN-12] The leader of this epoch frees its followers by resigning, and no other replica.
#[test]
fn a_promise_is_ended_by_its_leader_only() {
    let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
    replica.view(2, Some(N2), &[]).beacon(N2, 2);
    for (from, epoch) in [(N3, 2), (N2, 1), (N3, 1)] {
        replica.hear(from, SpinnakerMessage::Resign { epoch, successor: Some(N1) });
        assert_eq!(replica.core.status().leader, Some(N2), "{from} resigns from epoch {epoch}");
    }
    replica.hear(N2, SpinnakerMessage::Resign { epoch: 2, successor: Some(N1) });
    assert_eq!(replica.core.status().leader, None);
}

/// [SPIN-42] A snapshot that brings nothing is answered at once, though one is being installed.
#[test]
fn a_snapshot_that_brings_nothing_waits_for_no_other() {
    let mut replica = Replica::start(&lsns(1, 1..=3), 1, false);
    replica.offer(1, N2, 2, 9);
    assert_eq!((replica.answered(), replica.installs()), (vec![], vec![Ticket(1)]));
    replica.offer(2, N3, 2, 0);
    assert_eq!((replica.answered(), replica.installs()), (vec![Ticket(2)], vec![]));
}

/// [SPIN-20] A leader that suspects itself was started again, and leads no more: its follower waits for
/// no more than its own promise. That another follower suspects the leader shows no such thing.
#[test]
fn a_leader_that_was_started_again_is_waited_for_no_longer() {
    let suspected_by = |suspecting: NodeId| {
        let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
        replica.view(1, Some(N2), &[]).beacon(N2, 1).wait(1000).beacon(N2, 1);
        replica.wait(1).doubt(suspecting, 1).wait(999);
        replica.stands()
    };
    assert!(suspected_by(N2) && !suspected_by(N3));
}

/// [SPIN-41] A catch-up holds up writes for 50 ms, though that of another follower begins meanwhile.
#[test]
fn a_second_catch_up_holds_up_writes_no_longer() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead_all().write(1).join(N2, 2, Lsn::new(2, 3), false);
    replica.wait(30).join(N3, 2, Lsn::new(2, 3), false).write(2);
    assert!(!replica.appends(), "it is held");
    replica.wait(19);
    assert!(!replica.appends());
    replica.wait(1);
    assert!(replica.appends());
    let longest = replica.core.status().measures.longest_write_stall;
    assert_eq!(longest, Some(Duration::from_millis(50)));
}
