//! Rules of one Spinnaker replica, driven event by event: what it must not do at a moment that whole
//! clusters rarely come to.

mod edges;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use trireme_replication::core::EpochRuns;
use trireme_replication::core::{Core, Effect, Event, Moment, Recovered, Reply, Ticket, When};
use trireme_replication::spinnaker::{
    Candidate, ElectionRequest, ElectionView, Spinnaker, SpinnakerMessage, SpinnakerOptions,
};
use trireme_replication::streaming::{Beacon, Position, Preceding};
use trireme_storage::{IoId, LogWrite};
use trireme_types::{CohortId, CommandBatch, Entry, EntryKind, Epoch, Lsn, NodeId};

const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
const N3: NodeId = NodeId(3);

/// Replica n1 of three.
struct Replica {
    core: Spinnaker,
    now: Moment,
    effects: Vec<Effect<Spinnaker>>,
    writes: u64,
    /// What it wants sent from its log.
    to_send: BTreeMap<NodeId, Range<u64>>,
}

impl Replica {
    /// Starts it with a disk that holds these entries and has promised this epoch.
    fn start(log: &[Lsn], promised: Epoch, lost_disk: bool) -> Self {
        let mut runs = EpochRuns::starting_after(Lsn::ZERO);
        log.iter().for_each(|lsn| runs.append(*lsn));
        // Format 1: the promise, and that it is no learner.
        let state = [&[1][..], &promised.to_be_bytes()[..], &[0][..]].concat();
        let recovered = Recovered {
            node: N1,
            cohort: CohortId(1),
            log: runs,
            hard_state: (promised > 0).then(|| state.into()),
            commit_point: Lsn::ZERO,
            applied: Lsn::ZERO,
            protocol_state: None,
        };
        let options =
            SpinnakerOptions { rejoins: lost_disk, ..SpinnakerOptions::new(vec![N1, N2, N3]) };
        let core = Spinnaker::new(&recovered, options).expect("the options make sense");
        let (now, effects) = (Moment::after_start(Duration::from_secs(10)), Vec::new());
        let mut replica = Self { core, now, effects, writes: 0, to_send: BTreeMap::new() };
        replica.drain();
        replica
    }

    fn drain(&mut self) {
        self.effects.clear();
        self.core.drain_effects(&mut self.effects);
        let is_write = |effect: &&Effect<_>| matches!(effect, Effect::Persist(_));
        self.writes += self.effects.iter().filter(is_write).count() as u64;
        for effect in &self.effects {
            if let Effect::SendLog { to, seqs, .. } = effect {
                self.to_send.insert(*to, seqs.clone());
            }
        }
        self.core.validate().expect("the core keeps its own rules");
    }

    fn tell(&mut self, event: Event<Spinnaker>) -> &mut Self {
        self.core.handle(self.now, event);
        self.drain();
        self
    }

    fn hear(&mut self, from: NodeId, message: SpinnakerMessage) -> &mut Self {
        self.tell(Event::Message { from, message })
    }

    fn view(
        &mut self,
        epoch: Epoch,
        leader: Option<NodeId>,
        standing: &[(NodeId, Lsn)],
    ) -> &mut Self {
        let candidate = |(at, (node, last)): (usize, &(NodeId, Lsn))| Candidate {
            node: *node,
            round: epoch + 1,
            last: *last,
            sequence: at as u64,
        };
        let view = ElectionView {
            epoch,
            leader: leader.map(|leader| (leader, epoch)),
            candidates: standing.iter().enumerate().map(candidate).collect(),
        };
        self.tell(Event::Coordination(view))
    }

    /// Has everything that was written become durable.
    fn force(&mut self) -> &mut Self {
        let upto = IoId(self.writes);
        self.tell(Event::Durable { upto })
    }

    fn wait(&mut self, milliseconds: u64) -> &mut Self {
        self.now = self.now + Duration::from_millis(milliseconds);
        self.tell(Event::Timeout)
    }

    fn doubt(&mut self, from: NodeId, epoch: Epoch) -> &mut Self {
        self.hear(from, SpinnakerMessage::SuspectLeader { epoch })
    }

    fn beacon(&mut self, from: NodeId, epoch: Epoch) -> &mut Self {
        let (committed, sent) = (Lsn::ZERO, Moment::START);
        let beacon = Beacon { epoch, committed, sent, current_at: None };
        self.hear(from, SpinnakerMessage::Beacon(beacon))
    }

    fn propose(&mut self, from: NodeId, epoch: Epoch, previous: Lsn, lsns: &[Lsn]) -> &mut Self {
        let (committed, sent) = (Lsn::ZERO, Moment::START);
        let preceding = Preceding { epoch, previous, committed, sent, current_at: None };
        let entries = lsns.iter().map(|lsn| entry(*lsn)).collect();
        self.hear(from, SpinnakerMessage::Propose { preceding, entries })
    }

    /// Makes it the leader of the next epoch; its log ends with the barrier then.
    fn lead(&mut self, epoch: Epoch) -> &mut Self {
        let last = self.core.status().last;
        self.view(epoch - 1, None, &[]).wait(1000).doubt(N2, epoch - 1);
        self.view(epoch - 1, None, &[(N1, last), (N2, Lsn::ZERO)]);
        self.view(epoch, Some(N1), &[]).force();
        assert_eq!(self.core.status().leader, Some(N1), "it leads");
        self
    }

    fn join(&mut self, from: NodeId, epoch: Epoch, last: Lsn, is_learner: bool) -> &mut Self {
        let position = Position { committed: Lsn::ZERO, last, is_learner };
        self.hear(from, SpinnakerMessage::ReportPosition { epoch, position })
    }

    fn ack(&mut self, from: NodeId, epoch: Epoch, upto: Lsn) -> &mut Self {
        self.hear(from, SpinnakerMessage::Ack { epoch, upto, supports: None })
    }

    fn write(&mut self, ticket: u64) -> &mut Self {
        let payload = CommandBatch::default().encode();
        self.tell(Event::Propose { ticket: Ticket(ticket), payload })
    }

    /// Returns true if it asks a follower whether something was lost.
    fn asks(&self, follower: NodeId) -> bool {
        let asks = |effect: &Effect<_>| {
            matches!(effect, Effect::Send { to, message: SpinnakerMessage::Propose { entries, .. }, .. }
                if *to == follower && entries.is_empty())
        };
        self.effects.iter().any(asks)
    }

    /// Sends what it was asked to from the log, up to the end.
    fn sent(&mut self, to: NodeId) -> &mut Self {
        let seqs = self.to_send.remove(&to).expect("it sends entries");
        self.tell(Event::LogSent { to, next: seqs.end, seqs })
    }

    fn stands(&self) -> bool {
        let stands = |effect: &Effect<_>| {
            matches!(effect, Effect::Coordinate { request: ElectionRequest::Stand { .. }, .. })
        };
        self.effects.iter().any(stands)
    }

    fn messages(&self) -> impl Iterator<Item = (&SpinnakerMessage, When)> {
        self.effects.iter().filter_map(|effect| match effect {
            Effect::Send { message, when, .. } => Some((message, *when)),
            _ => None,
        })
    }

    fn acknowledges(&self) -> bool {
        self.messages().any(|(message, _)| matches!(message, SpinnakerMessage::Ack { .. }))
    }

    fn joins(&self) -> Option<When> {
        let join = |(message, when)| {
            matches!(message, &SpinnakerMessage::ReportPosition { .. }).then_some(when)
        };
        self.messages().find_map(join)
    }

    fn welcomes(&self) -> bool {
        self.messages().any(|(message, _)| matches!(message, SpinnakerMessage::Readmit { .. }))
    }

    fn committed(&self) -> u64 {
        self.core.status().committed.seq
    }

    fn appends(&self) -> bool {
        let appends = |e: &Effect<_>| matches!(e, Effect::Persist(LogWrite::Append(_)));
        self.effects.iter().any(appends)
    }

    /// Returns which offers of snapshots were answered.
    fn answered(&self) -> Vec<Ticket> {
        let answer = |effect: &Effect<_>| match effect {
            Effect::Reply { ticket, reply: Reply::Message(_), .. } => Some(*ticket),
            _ => None,
        };
        self.effects.iter().filter_map(answer).collect()
    }

    fn installs(&self) -> Vec<Ticket> {
        let install = |effect: &Effect<_>| match effect {
            Effect::InstallSnapshot { ticket } => Some(*ticket),
            _ => None,
        };
        self.effects.iter().filter_map(install).collect()
    }

    fn offer(&mut self, ticket: u64, from: NodeId, epoch: Epoch, upto: u64) -> &mut Self {
        let message = SpinnakerMessage::Snapshot { epoch };
        let (ticket, upto) = (Ticket(ticket), Lsn::new(1, upto));
        self.tell(Event::SnapshotOffered { ticket, from, message, upto })
    }
}

fn entry(lsn: Lsn) -> Entry {
    Entry { lsn, kind: EntryKind::NoOp, payload: bytes::Bytes::new() }
}

fn lsns(epoch: Epoch, seqs: std::ops::RangeInclusive<u64>) -> Vec<Lsn> {
    seqs.map(|seq| Lsn::new(epoch, seq)).collect()
}

/// [SPIN-3] Entries are taken behind the very entry that precedes them at the leader.
#[test]
fn what_follows_another_entry_of_the_same_sequence_is_not_taken() {
    let mut replica = Replica::start(&lsns(1, 1..=3), 1, false);
    replica.view(2, Some(N2), &[]).propose(N2, 2, Lsn::new(2, 3), &lsns(2, 4..=4));
    assert!(!replica.acknowledges() && !replica.appends());
    assert!(replica.joins().is_some(), "it says where it stands instead");
    replica.propose(N2, 2, Lsn::new(1, 3), &lsns(2, 4..=4));
    assert!(replica.acknowledges() && replica.appends());
}

/// [SPIN-3] The epochs of a log never fall, and a leader has no entry of a later epoch than its own.
#[test]
fn entries_of_a_log_that_changed_while_it_was_read_are_not_taken() {
    let mut replica = Replica::start(&lsns(1, 1..=3), 1, false);
    replica.view(2, Some(N2), &[]);
    let falling = [Lsn::new(2, 4), Lsn::new(1, 5)];
    replica.propose(N2, 2, Lsn::new(1, 3), &falling);
    assert!(!replica.acknowledges() && !replica.appends());
    replica.propose(N2, 2, Lsn::new(1, 3), &lsns(3, 4..=4));
    assert!(!replica.acknowledges() && !replica.appends(), "3.4 is of a later epoch");
}

/// [SPIN-11] [SPIN-20] That others stand already ends no promise.
#[test]
fn a_promise_binds_though_another_stands() {
    let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
    replica.view(1, Some(N2), &[]).beacon(N2, 1).wait(500).beacon(N2, 1);
    replica.tell(Event::PeerLost { node: N2 }).doubt(N3, 1);
    replica.view(1, None, &[(N3, Lsn::new(1, 1))]);
    assert!(!replica.stands());
    replica.wait(999).doubt(N3, 1);
    assert!(!replica.stands(), "its promise has not ended");
    replica.wait(1);
    assert!(replica.stands());
}

/// [SPIN-11] A replica may have promised right before it stopped.
#[test]
fn a_replica_that_restarts_stands_after_a_grace() {
    let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
    replica.view(1, None, &[(N3, Lsn::new(1, 1))]).doubt(N3, 1).doubt(N2, 1);
    assert!(!replica.stands());
    replica.wait(999).doubt(N3, 1);
    assert!(!replica.stands());
    replica.wait(1);
    assert!(replica.stands());
}

/// [SPIN-20] Who has not said for a grace that it has no leader may have one again.
#[test]
fn a_doubt_is_forgotten_after_a_grace() {
    let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
    replica.view(1, None, &[]).doubt(N3, 1).wait(1001);
    assert!(!replica.stands(), "n3 has doubted more than a grace ago");
    replica.doubt(N3, 1);
    assert!(replica.stands());
}

/// [SPIN-20] A doubt about an earlier leader says nothing of this one.
#[test]
fn a_doubt_of_an_earlier_epoch_is_not_counted() {
    let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
    replica.view(2, None, &[]).wait(1000).doubt(N3, 1);
    assert!(!replica.stands());
    replica.doubt(N3, 2);
    assert!(replica.stands());
}

/// [SPIN-28] A view of an earlier epoch than the replica knows changes nothing, however it got there.
#[test]
fn a_late_view_is_ignored() {
    let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
    replica.view(3, Some(N2), &[]).beacon(N2, 3);
    let before = format!("{:?}", replica.core);
    for (epoch, leader) in [(0, None), (1, Some(N3)), (2, Some(N1)), (2, None)] {
        replica.view(epoch, leader, &[(N1, Lsn::ZERO), (N3, Lsn::ZERO)]);
        assert!(replica.effects.is_empty(), "{:?}", replica.effects);
        assert_eq!(format!("{:?}", replica.core), before, "epoch {epoch}");
    }
}

/// [SPIN-12] What a leader sent before it resigned, and another lane brings later, is not followed.
#[test]
fn a_leader_that_has_resigned_is_not_followed() {
    let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
    replica.view(2, Some(N2), &[]).propose(N2, 2, Lsn::new(1, 1), &lsns(2, 2..=2)).force();
    replica.hear(N2, SpinnakerMessage::Resign { epoch: 2, successor: None });
    replica.propose(N2, 2, Lsn::new(2, 2), &lsns(2, 3..=3));
    assert!(!replica.acknowledges() && replica.core.status().leader.is_none());
    replica.beacon(N2, 2);
    assert_eq!(replica.messages().count(), 0, "no support is given");
}

/// [SPIN-21] [SPIN-4] Where the log ends is said when it is durable, and the promise with it.
#[test]
fn a_position_waits_for_the_promise_to_be_durable() {
    let mut replica = Replica::start(&lsns(1, 1..=1), 1, false);
    replica.view(1, None, &[]).beacon(N2, 2);
    let promise = replica.writes;
    assert_eq!(replica.joins(), Some(When::Durable(IoId(promise))));
}

/// [SPIN-5] An acknowledgement of an earlier epoch is about another log.
#[test]
fn acknowledgements_of_an_earlier_epoch_are_not_counted() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead(2).join(N2, 2, Lsn::new(1, 2), false).sent(N2);
    replica.ack(N2, 1, Lsn::new(2, 3));
    assert_eq!(replica.committed(), 0);
    replica.ack(N2, 2, Lsn::new(2, 3));
    assert_eq!(replica.committed(), 3);
}

/// [SPIN-5] What the leader's log does not hold, or what was not sent since the follower said where
/// it stands, is not acknowledged by it.
#[test]
fn acknowledgements_of_what_is_not_held_or_not_sent_are_not_counted() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead(2).join(N2, 2, Lsn::new(1, 2), false).sent(N2);
    replica.ack(N2, 2, Lsn::new(1, 3));
    assert_eq!(replica.committed(), 0, "the entry there is 2.3");
    // It has lost its disk: an acknowledgement from before that arrives late.
    replica.join(N2, 2, Lsn::ZERO, false).ack(N2, 2, Lsn::new(2, 3));
    assert_eq!(replica.committed(), 0, "nothing was sent since");
    replica.sent(N2).ack(N2, 2, Lsn::new(2, 3));
    assert_eq!(replica.committed(), 3);
}

/// [SPIN-33] Reads wait until the barrier is applied, not just something.
#[test]
fn a_leader_reads_nothing_before_its_barrier_is_applied() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead(2).join(N2, 2, Lsn::new(1, 2), false).sent(N2);
    let (upto, supports) = (Lsn::new(2, 3), Some(replica.now));
    replica.hear(N2, SpinnakerMessage::Ack { epoch: 2, upto, supports });
    assert_eq!(replica.committed(), 3);
    let reads = |replica: &Replica| {
        let is_read = |e: &Effect<_>| matches!(e, Effect::Reply { reply: Reply::Read { .. }, .. });
        replica.effects.iter().any(is_read)
    };
    replica.tell(Event::Read { ticket: Ticket(1) });
    assert!(!reads(&replica));
    replica.tell(Event::Applied { upto: Lsn::new(1, 2) });
    assert!(!reads(&replica), "the barrier is not applied");
    replica.tell(Event::Applied { upto });
    assert!(reads(&replica));
}

/// [SPIN-70] What a leader has is the newest state until its lease ends, which counts from when a
/// follower was sent what it supported last, and no longer: it may be cut off, and another lead. Before
/// its table holds its no-op it has no age.
#[test]
fn what_a_leader_has_is_the_newest_only_as_long_as_its_lease_lasts() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    let no_op = Lsn::new(2, 3);
    replica.lead(2).join(N2, 2, Lsn::new(1, 2), false).sent(N2);
    let supported = replica.now;
    replica.wait(40);
    replica.hear(N2, SpinnakerMessage::Ack { epoch: 2, upto: no_op, supports: Some(supported) });
    assert_eq!((replica.committed(), replica.core.status().current), (3, None));
    replica.tell(Event::Applied { upto: no_op });
    let lease_end = supported + SpinnakerOptions::new(vec![N1, N2, N3]).timing.lease;
    assert_eq!(replica.core.status().current, Some((no_op, lease_end)));
    let advertises = |replica: &Replica| {
        let age = |(message, _): (&SpinnakerMessage, When)| match message {
            SpinnakerMessage::Propose { preceding, .. } => preceding.current_at,
            SpinnakerMessage::Beacon(beacon) => beacon.current_at,
            _ => None,
        };
        replica.messages().filter_map(age).max()
    };
    let mut advertised = None;
    while replica.now < lease_end + Duration::from_secs(5) {
        replica.wait(20);
        let current = replica.core.status().current;
        assert!(current.is_none_or(|(_, until)| until <= lease_end), "{current:?}");
        advertised = advertised.max(advertises(&replica));
    }
    assert!(advertised > Some(supported) && advertised <= Some(lease_end), "{advertised:?}");
}

/// [SPIN-41] [SPIN-70] A piece of the log says as of when its commit point was the newest, which the
/// leader has not advertised yet; and each follower that has caught up is counted.
#[test]
fn a_piece_of_the_log_has_the_age_of_its_own_commit_point() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead(2).join(N2, 2, Lsn::new(1, 2), false).sent(N2);
    let (upto, supports) = (Lsn::new(2, 3), Some(replica.now));
    let ack = |upto| SpinnakerMessage::Ack { epoch: 2, upto, supports };
    replica.hear(N2, ack(upto));
    replica.wait(30).write(1).force().hear(N2, ack(Lsn::new(2, 4)));
    assert_eq!(replica.core.status().measures.catch_ups, 1);
    replica.now = replica.now + Duration::from_millis(5);
    replica.join(N3, 2, Lsn::ZERO, false);
    let piece = replica.effects.iter().find_map(|effect| match effect {
        Effect::SendLog { to, context, .. } if *to == N3 => Some(*context),
        _ => None,
    });
    let piece = piece.expect("it sends a piece of its log");
    assert_eq!((piece.committed, piece.current_at), (Lsn::new(2, 4), Some(replica.now)));
    replica.sent(N3);
    assert_eq!(replica.core.status().measures.catch_ups, 2);
}

/// [SPIN-4] [SPIN-5] A follower is asked for an acknowledgement when it has acknowledged nothing new for
/// 200 ms. That it says again what it said before does not count.
#[test]
fn an_acknowledgement_that_is_repeated_puts_off_no_question() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead(2).join(N2, 2, Lsn::new(1, 2), false).sent(N2).ack(N2, 2, Lsn::new(2, 3));
    replica.wait(30).wait(30);
    replica.write(1).write(2);
    replica.wait(100).ack(N2, 2, Lsn::new(2, 4)).wait(1);
    assert!(!replica.asks(N2), "it has just acknowledged something");
    replica.wait(98).ack(N2, 2, Lsn::new(2, 4));
    assert!(!replica.asks(N2));
    replica.wait(102);
    assert!(replica.asks(N2), "it owes the second write for 200 ms");
    let acknowledged = |replica: &Replica| replica.core.status().progress[0];
    replica.ack(N2, 2, Lsn::new(2, 3));
    assert_eq!(acknowledged(&replica), (N2, Lsn::new(2, 4)), "what is on a disk stays there");
}

/// [SPIN-22] A snapshot of a leader of the past is answered with the newer epoch, one of a leader that is
/// newer than what the replica has heard of is installed.
#[test]
fn a_snapshot_of_an_older_leader_is_refused() {
    let mut replica = Replica::start(&lsns(1, 1..=3), 3, false);
    replica.offer(1, N2, 2, 9);
    assert_eq!((replica.answered(), replica.installs()), (vec![Ticket(1)], vec![]));
    let refusal = |effect: &Effect<_>| {
        let Effect::Reply { reply: Reply::Message(message), .. } = effect else { return false };
        *message == SpinnakerMessage::RejectStaleEpoch { epoch: 3 }
    };
    assert!(replica.effects.iter().any(refusal));
    replica.offer(2, N2, 4, 9);
    assert_eq!((replica.answered(), replica.installs()), (vec![], vec![Ticket(2)]));
}

/// A leader counts how often it came to serve, and a write that is about to be sent carries the commit
/// point: nothing else is sent for that.
#[test]
fn a_write_that_is_about_to_be_sent_carries_the_commit_point() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead(2).join(N2, 2, Lsn::new(1, 2), false).sent(N2).ack(N2, 2, Lsn::new(2, 3));
    replica.tell(Event::Applied { upto: Lsn::new(2, 3) });
    assert_eq!(replica.core.status().measures.takeovers, 1);
    replica.now = replica.now + Duration::from_millis(50);
    let payload = CommandBatch::default().encode();
    replica.core.handle(replica.now, Event::Propose { ticket: Ticket(1), payload });
    replica.tell(Event::Timeout);
    assert!(!replica.asks(N2), "one message has both");
    let committed = |(message, _): (&SpinnakerMessage, When)| match message {
        SpinnakerMessage::Propose { preceding, .. } => Some(preceding.committed),
        _ => None,
    };
    let sent: Vec<_> = replica.messages().filter_map(committed).collect();
    assert_eq!(sent, [Lsn::new(2, 3)]);
}

/// [SPIN-70] What a leader says of the age of its commit point is of the point that it says: of one that
/// it has not passed, the moment of sending, as long as its lease lasts; of one that it has passed, not.
#[test]
fn a_commit_point_that_the_leader_has_passed_gets_no_younger() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead(2).join(N2, 2, Lsn::new(1, 2), false).sent(N2);
    let support = |replica: &mut Replica, upto| {
        let supports = Some(replica.now);
        replica.hear(N2, SpinnakerMessage::Ack { epoch: 2, upto, supports });
    };
    let said = |replica: &Replica| {
        let point = |(message, _): (&SpinnakerMessage, When)| match message {
            SpinnakerMessage::Propose { preceding, .. } => {
                Some((preceding.committed, preceding.current_at))
            }
            _ => None,
        };
        replica.messages().filter_map(point).last().expect("it says how far it has committed")
    };
    support(&mut replica, Lsn::new(2, 3));
    replica.wait(30);
    let advertised = replica.now;
    assert_eq!(said(&replica), (Lsn::new(2, 3), Some(advertised)));
    replica.now = advertised + Duration::from_millis(5);
    replica.write(1);
    let written = replica.now;
    assert_eq!(said(&replica), (Lsn::new(2, 3), Some(written)), "it is the newest still");
    replica.force();
    support(&mut replica, Lsn::new(2, 4));
    assert_eq!(replica.committed(), 4);
    // Sooner than it advertises the next one.
    replica.now = advertised + Duration::from_millis(10);
    replica.write(2);
    assert_eq!(said(&replica), (Lsn::new(2, 3), Some(written)), "a write was acknowledged since");
}

/// [SPIN-44] A learner counts again when it has all that there was when it came, and the leader all
/// that was ever committed.
#[test]
fn a_learner_is_not_welcomed_before_it_has_caught_up() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead(2).join(N2, 2, Lsn::ZERO, true).sent(N2);
    replica.ack(N2, 2, Lsn::new(1, 2));
    assert!(!replica.welcomes(), "it lacks the barrier");
    replica.ack(N2, 2, Lsn::new(2, 3));
    assert!(!replica.welcomes(), "the leader's own barrier is not committed");
    replica.join(N3, 2, Lsn::new(1, 2), false).sent(N3).ack(N3, 2, Lsn::new(2, 3));
    assert_eq!(replica.committed(), 3);
    replica.ack(N2, 2, Lsn::new(2, 3)).join(N2, 2, Lsn::new(2, 3), true);
    assert!(replica.welcomes());
}

/// [SPIN-44] That everything was sent to a learner does not show that it has it.
#[test]
fn a_learner_that_was_sent_everything_is_not_welcomed_before_it_has_it() {
    let mut replica = Replica::start(&lsns(1, 1..=2), 1, false);
    replica.lead(2).join(N3, 2, Lsn::new(1, 2), false).sent(N3).ack(N3, 2, Lsn::new(2, 3));
    assert_eq!(replica.committed(), 3, "the leader's own barrier is committed");
    replica.join(N2, 2, Lsn::ZERO, true).sent(N2).ack(N2, 2, Lsn::new(1, 2));
    assert!(!replica.welcomes(), "it lacks the barrier");
    replica.ack(N2, 2, Lsn::new(2, 3));
    assert!(replica.welcomes());
}

/// [SPIN-44] A learner that is welcomed too early, by a leader that does not know that it lost its
/// disk, stays one.
#[test]
fn a_welcome_with_what_a_learner_lacks_changes_nothing() {
    let mut replica = Replica::start(&[], 0, true);
    replica.view(1, Some(N2), &[]).propose(N2, 1, Lsn::ZERO, &lsns(1, 1..=1)).force();
    let is_learner = |replica: &Replica| replica.core.status().role.to_string() == "learner";
    assert!(is_learner(&replica));
    replica.hear(N2, SpinnakerMessage::Readmit { epoch: 1, upto: Lsn::new(1, 2) });
    assert!(is_learner(&replica), "it lacks 1.2");
    replica.hear(N2, SpinnakerMessage::Readmit { epoch: 1, upto: Lsn::new(1, 1) });
    assert!(!is_learner(&replica));
}

/// [SPIN-44] A learner follows no leader before it knows the coordinator's epoch, and is bound by what
/// it still stands for.
#[test]
fn a_learner_goes_by_the_coordinators_word() {
    let mut replica = Replica::start(&[], 0, true);
    replica.beacon(N2, 1);
    assert_eq!(replica.messages().count(), 0, "it follows no leader yet");
    replica.view(1, None, &[(N1, Lsn::new(1, 4))]);
    replica.beacon(N2, 1);
    let refuses =
        |(m, _): (&SpinnakerMessage, _)| *m == SpinnakerMessage::RejectStaleEpoch { epoch: 2 };
    assert!(replica.messages().any(refuses), "it stands in round 2");
}

/// [SPIN-42] Of two snapshots the older is refused, whichever comes first, and both are answered.
#[test]
fn an_older_snapshot_is_refused_while_a_newer_one_is_installed() {
    let mut replica = Replica::start(&[], 0, false);
    replica.view(2, Some(N2), &[]).offer(1, N2, 2, 65);
    assert_eq!(replica.installs(), [Ticket(1)]);
    replica.offer(2, N3, 2, 60);
    assert!(replica.installs().is_empty() && replica.answered().is_empty());
    // A newer one waits its turn.
    replica.offer(3, N3, 2, 70);
    assert_eq!(replica.installs(), [Ticket(3)]);
    replica.tell(Event::SnapshotInstalled { ticket: Ticket(1), upto: Lsn::new(1, 65) });
    assert_eq!(replica.answered(), [Ticket(1)]);
    replica.tell(Event::SnapshotInstalled { ticket: Ticket(3), upto: Lsn::new(1, 70) });
    assert_eq!(replica.answered(), [Ticket(3), Ticket(2)]);
    replica.offer(4, N2, 2, 70);
    assert_eq!(replica.answered(), [Ticket(4)], "it brings nothing");
    // What the table passed while the snapshot waited.
    replica.offer(5, N2, 2, 80).tell(Event::SnapshotOutdated { ticket: Ticket(5) });
    assert_eq!(replica.answered(), [Ticket(5)]);
    assert_eq!(replica.committed(), 70);
}
