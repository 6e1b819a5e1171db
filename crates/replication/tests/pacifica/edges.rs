//! The edges of the rules: what one replica does at the very moment, version or entry where a rule
//! begins to hold or ends.

use std::time::Duration;

use bytes::Bytes;
use trireme_replication::Role;
use trireme_replication::core::{
    Core as _, Effect, EpochRuns, Event, Moment, Recovered, Reply, Ticket,
};
use trireme_replication::pacifica::{Newest, Pacifica, PacificaMessage, PacificaOptions};
use trireme_replication::streaming::{Beacon, Position, Preceding};
use trireme_storage::{IoId, LogWrite};
use trireme_types::{
    CohortConfig, CohortId, CommandBatch, Entry, EntryKind, Epoch, Incarnation, Lsn, NodeId,
    Protocol, Timing,
};

pub(super) const N1: NodeId = NodeId(1);
pub(super) const N2: NodeId = NodeId(2);
pub(super) const N3: NodeId = NodeId(3);

/// The first entry of the primary of version 1.
pub(super) const NO_OP: Lsn = Lsn::new(1, 1);

/// Replica n1, whose disk has incarnation 1.
pub(super) struct Replica {
    pub(super) core: Pacifica,
    pub(super) now: Moment,
    writes: u64,
    effects: Vec<Effect<Pacifica>>,
}

impl Replica {
    /// Starts it with these entries on its disk, on which it acted up to version `promised`.
    pub(super) fn start(log: &[Lsn], promised: Option<Epoch>) -> Self {
        Self::start_with(log, promised, Timing::default(), 1)
    }

    pub(super) fn start_with(
        log: &[Lsn],
        promised: Option<Epoch>,
        timing: Timing,
        min_replicas_for_write: usize,
    ) -> Self {
        let mut runs = EpochRuns::starting_after(Lsn::ZERO);
        log.iter().for_each(|lsn| runs.append(*lsn));
        // Format 2: the promise, that it is no learner, and its incarnation.
        let state = |promised: Epoch| -> Bytes {
            [&[2], &promised.to_be_bytes()[..], &[0], &1_u64.to_be_bytes()].concat().into()
        };
        let recovered = Recovered {
            node: N1,
            cohort: CohortId(1),
            log: runs,
            hard_state: promised.map(state),
            commit_point: Lsn::ZERO,
            applied: Lsn::ZERO,
            protocol_state: None,
        };
        let options = PacificaOptions {
            timing,
            min_replicas_for_write,
            ..PacificaOptions::new(Incarnation(1))
        };
        let core = Pacifica::new(&recovered, options).expect("the disk makes sense");
        let now = Moment::after_start(Duration::from_secs(10));
        let mut replica = Self { core, now, writes: 0, effects: Vec::new() };
        replica.drain();
        replica
    }

    fn drain(&mut self) {
        self.effects.clear();
        self.core.drain_effects(&mut self.effects);
        let is_write = |effect: &&Effect<_>| matches!(effect, Effect::Persist(_));
        self.writes += self.effects.iter().filter(is_write).count() as u64;
        self.core.validate().expect("the core keeps its own rules");
    }

    pub(super) fn tell(&mut self, event: Event<Pacifica>) -> &mut Self {
        self.core.handle(self.now, event);
        self.drain();
        self
    }

    pub(super) fn hear(&mut self, from: NodeId, message: PacificaMessage) -> &mut Self {
        self.tell(Event::Message { from, message })
    }

    /// Has everything that was written become durable.
    pub(super) fn force(&mut self) -> &mut Self {
        let upto = IoId(self.writes);
        self.tell(Event::Durable { upto })
    }

    pub(super) fn pass(&mut self, milliseconds: u64) -> &mut Self {
        self.now = self.now + Duration::from_millis(milliseconds);
        self
    }

    pub(super) fn wait(&mut self, milliseconds: u64) -> &mut Self {
        self.pass(milliseconds).tell(Event::Timeout)
    }

    /// Shows it a configuration that is the newest one.
    pub(super) fn newest(&mut self, version: Epoch, replicas: &[NodeId]) -> &mut Self {
        self.tell(Event::Coordination(Newest(config(version, replicas))))
    }

    fn beacon(&mut self, from: NodeId, epoch: Epoch) -> &mut Self {
        let (committed, sent) = (Lsn::ZERO, Moment::START);
        let beacon = Beacon { epoch, committed, sent, current_at: None };
        self.hear(from, PacificaMessage::Beacon(beacon))
    }

    fn prepare(&mut self, from: NodeId, epoch: Epoch, previous: Lsn, lsn: Lsn) -> &mut Self {
        let (committed, sent) = (Lsn::ZERO, Moment::START);
        let preceding = Preceding { epoch, previous, committed, sent, current_at: None };
        let entry = Entry { lsn, kind: EntryKind::NoOp, payload: Bytes::new() };
        self.hear(from, PacificaMessage::Prepare { preceding, entries: vec![entry] })
    }

    pub(super) fn report(&mut self, from: NodeId, epoch: Epoch, last: Lsn) -> &mut Self {
        let position = Position { committed: Lsn::ZERO, last, is_learner: false };
        let incarnation = Incarnation(from.0);
        self.hear(from, PacificaMessage::ReportPosition { epoch, position, incarnation })
    }

    /// Has a secondary answer a beacon that leaves now.
    pub(super) fn support(&mut self, from: NodeId, epoch: Epoch) -> &mut Self {
        let (supports, incarnation) = (Some(self.now), Incarnation(from.0));
        self.hear(from, PacificaMessage::BeaconAck { epoch, supports, incarnation })
    }

    pub(super) fn prepared(&mut self, from: NodeId, epoch: Epoch, upto: Lsn) -> &mut Self {
        let (supports, incarnation) = (Some(self.now), Incarnation(from.0));
        self.hear(from, PacificaMessage::Prepared { epoch, upto, supports, incarnation })
    }

    fn offer(&mut self, ticket: u64, from: NodeId, epoch: Epoch, upto: Lsn) -> &mut Self {
        let (ticket, message) = (Ticket(ticket), PacificaMessage::Snapshot { epoch });
        self.tell(Event::SnapshotOffered { ticket, from, message, upto })
    }

    pub(super) fn write(&mut self, ticket: u64) -> &mut Self {
        let payload = CommandBatch::default().encode();
        self.tell(Event::Propose { ticket: Ticket(ticket), payload })
    }

    /// Makes it the primary of version 1, which serves: it and n2 have its no-op.
    pub(super) fn lead(&mut self) -> &mut Self {
        self.newest(1, &[N1, N2]).force().report(N2, 1, Lsn::ZERO).sent().force();
        self.prepared(N2, 1, NO_OP).tell(Event::Applied { upto: NO_OP });
        assert_eq!((self.role(), self.committed()), (Role::Leader, 1));
        self
    }

    /// Leads n2 and n3 in version 1, and serves.
    pub(super) fn lead_three(&mut self) -> &mut Self {
        self.newest(1, &[N1, N2, N3]).force();
        for follower in [N2, N3] {
            self.report(follower, 1, Lsn::ZERO).sent().force().prepared(follower, 1, NO_OP);
        }
        self.tell(Event::Applied { upto: NO_OP })
    }

    /// Sends what it was asked to from the log, up to the end.
    pub(super) fn sent(&mut self) -> &mut Self {
        let piece = self.effects.iter().find_map(|effect| match effect {
            Effect::SendLog { to, seqs, .. } => Some((*to, seqs.clone())),
            _ => None,
        });
        let (to, seqs) = piece.expect("it sends a piece of its log");
        self.tell(Event::LogSent { to, next: seqs.end, seqs })
    }

    pub(super) fn role(&self) -> Role {
        self.core.status().role
    }

    pub(super) fn committed(&self) -> u64 {
        self.core.status().committed.seq
    }

    fn any(&self, is: impl Fn(&Effect<Pacifica>) -> bool) -> bool {
        self.effects.iter().any(is)
    }

    /// Returns true if it asks the manager for a change.
    pub(super) fn asks(&self) -> bool {
        self.any(|effect| matches!(effect, Effect::Coordinate { .. }))
    }

    fn appends(&self) -> bool {
        self.any(|effect| matches!(effect, Effect::Persist(LogWrite::Append(_))))
    }

    fn sends_log(&self) -> bool {
        self.any(|effect| matches!(effect, Effect::SendLog { .. }))
    }

    fn installs(&self) -> bool {
        self.any(|effect| matches!(effect, Effect::InstallSnapshot { .. }))
    }

    /// Returns true if it answers a snapshot with where it stands.
    fn answers(&self) -> bool {
        self.any(|effect| matches!(effect, Effect::Reply { reply: Reply::Message(_), .. }))
    }

    /// Returns true if it refuses a caller.
    pub(super) fn refuses(&self) -> bool {
        let is_error = |reply: &_| matches!(reply, Reply::Error(_));
        self.any(|effect| matches!(effect, Effect::Reply { reply, .. } if is_error(reply)))
    }

    /// Returns true if it acknowledges a beacon.
    fn acknowledges(&self) -> bool {
        let is_ack = |message: &_| matches!(message, PacificaMessage::BeaconAck { .. });
        self.any(|effect| matches!(effect, Effect::Send { message, .. } if is_ack(message)))
    }
}

/// Returns a configuration in which every replica has its number as its incarnation.
pub(super) fn config(version: Epoch, replicas: &[NodeId]) -> CohortConfig {
    CohortConfig {
        cohort: CohortId(1),
        version,
        protocol: Protocol::Pacifica,
        replicas: replicas.to_vec(),
        replicas_wanted: replicas.len(),
        incarnations: replicas.iter().map(|node| (*node, Incarnation(node.0))).collect(),
        origin: None,
    }
}

pub(super) fn lsns(epoch: Epoch, seqs: std::ops::RangeInclusive<u64>) -> Vec<Lsn> {
    seqs.map(|seq| Lsn::new(epoch, seq)).collect()
}

/// [PAC-45] Where a configuration names no incarnation, which the first of all may do, a replica that
/// has never acted is not taken for the one that later versions build on.
#[test]
fn a_disk_that_never_acted_is_not_the_one_of_a_later_version() {
    let unnamed = |version| CohortConfig { incarnations: [].into(), ..config(version, &[N2, N1]) };
    let role = |promised, version| {
        let mut replica = Replica::start(&[], promised);
        replica.tell(Event::Coordination(Newest(unnamed(version))));
        replica.role()
    };
    assert_eq!(role(None, 1), Role::Follower);
    assert_eq!(role(None, 2), Role::Learner, "it may have acknowledged what this disk lacks");
    assert_eq!(role(Some(1), 2), Role::Follower);
}

/// [PAC-44] A candidate finds that another incarnation is listed in its place: it follows no primary.
#[test]
fn a_replica_in_whose_place_another_is_listed_follows_nobody() {
    let mut replica = Replica::start(&[], None);
    replica.newest(1, &[N2, N3]).beacon(N2, 1);
    assert!(replica.acknowledges(), "it is a candidate");
    let listed = CohortConfig {
        incarnations: [(N1, Incarnation(9)), (N2, Incarnation(2))].into(),
        ..config(2, &[N2, N1])
    };
    replica.tell(Event::Coordination(Newest(listed))).beacon(N2, 2);
    assert!(!replica.acknowledges());
    assert_eq!(replica.role(), Role::Learner);
}

/// [PAC-35] A replica that is named in the first configuration that it sees is the primary when its disk
/// knows that it acted, however often it is shown the same configuration, or another cohort's.
#[test]
fn a_configuration_that_is_shown_again_changes_nothing() {
    let mut replica = Replica::start(&[], None);
    replica.newest(1, &[N1, N2]).newest(1, &[N1, N2]);
    assert!(!replica.appends(), "it does not know yet that it acted");
    let other = CohortConfig { cohort: CohortId(2), ..config(2, &[N1, N2]) };
    replica.tell(Event::Coordination(Newest(other)));
    assert_eq!(replica.core.status().epoch, 1);
    replica.force();
    assert!(replica.appends(), "it is the primary, and appends its no-op");
}

/// [PAC-28] A replica that was started again is bound for a grace, to the moment, and acts as the primary
/// that it was named as after that, though it looks at its clock late.
#[test]
fn a_replica_that_is_named_is_bound_for_a_grace() {
    let start = || {
        let mut replica = Replica::start(&lsns(1, 1..=1), Some(1));
        replica.tell(Event::Timeout);
        replica
    };
    let mut replica = start();
    replica.pass(999).newest(2, &[N1, N2]);
    assert!(!replica.asks() && !replica.appends(), "it is bound for a millisecond more");
    replica.wait(6);
    assert!(replica.asks(), "a run before this one may have acted in version 2");
    let mut replica = start();
    replica.pass(1000).newest(2, &[N1, N2]);
    assert!(replica.asks(), "it is bound no more");
}

/// [PAC-12] A primary that hears another one in a newer version follows it, whether or not the manager
/// has sent that version.
#[test]
fn a_primary_that_hears_a_newer_one_follows_it() {
    let mut replica = Replica::start(&[], None);
    replica.lead().prepare(N2, 2, Lsn::new(1, 1), Lsn::new(2, 2));
    assert!(replica.appends());
    assert_eq!(replica.core.status().leader, Some(N2));
}

/// [PAC-5] An acknowledgement of a version that this primary has sent nothing in is about another
/// primary's log.
#[test]
fn acknowledgements_of_another_primarys_version_are_not_counted() {
    let mut replica = Replica::start(&[], None);
    replica.newest(3, &[N1, N2]).force().report(N2, 3, Lsn::ZERO).sent().force();
    for version in [2, 4] {
        replica.prepared(N2, version, Lsn::new(3, 1));
        assert_eq!(replica.committed(), 0, "version {version}");
    }
    replica.prepared(N2, 3, Lsn::new(3, 1));
    assert_eq!(replica.committed(), 1);
}

/// [PAC-41] A replica that has not heard of the newest version yet reports its position in an older one;
/// one that is ahead of the primary is none of its secondaries.
#[test]
fn a_position_counts_in_the_primarys_version_or_an_older_one() {
    let reported = |version| {
        let mut replica = Replica::start(&[], None);
        replica.newest(3, &[N1, N2]).force().report(N2, version, Lsn::ZERO);
        replica.sends_log()
    };
    assert!(reported(3) && reported(2));
    assert!(!reported(4));
}

/// [PAC-31] [PAC-24] At the moment at which the lease ends it has ended: the primary neither serves nor
/// accepts a write.
#[test]
fn a_lease_has_ended_when_it_ends() {
    let mut replica = Replica::start(&[], None);
    replica.lead().pass(799).tell(Event::PeerLost { node: N3 });
    assert_eq!(replica.role(), Role::Leader);
    replica.pass(1).tell(Event::PeerLost { node: N3 });
    assert_eq!(replica.role(), Role::Candidate);
    replica.force().write(1);
    assert!(!replica.appends(), "the write is held");
    let mut replica = Replica::start(&[], None);
    replica.lead().pass(799).force().write(1);
    assert!(replica.appends(), "the lease holds for a millisecond more");
}

/// [PAC-70] A primary that serves names its no-op and the end of its leases; one that does not serve, or
/// serves nothing until the manager has decided, names nothing.
#[test]
fn a_primary_that_serves_names_the_end_of_its_leases() {
    let mut replica = Replica::start(&[], None);
    replica.newest(1, &[N1, N2]).force();
    assert_eq!(replica.core.status().current, None, "it does not serve yet");
    let mut replica = Replica::start(&[], None);
    replica.lead();
    let end = replica.now + Duration::from_millis(800);
    assert_eq!(replica.core.status().current, Some((Lsn::new(1, 1), end)));
    replica.tell(Event::TransferLeader { ticket: Ticket(1), to: N2 });
    assert!(replica.asks());
    assert_eq!(replica.core.status().current, None, "it has handed over");
}

/// [PAC-24] What waits for the manager is refused after a second, though no beacon is due before.
#[test]
fn a_primary_wakes_to_refuse_what_waits() {
    let seconds = Duration::from_secs;
    let timing = Timing {
        beacon_interval: seconds(30),
        lease: seconds(90),
        grace: seconds(120),
        ..Timing::default()
    };
    let mut replica = Replica::start_with(&[], None, timing, 1);
    replica.lead().tell(Event::TransferLeader { ticket: Ticket(1), to: N2 });
    replica.tell(Event::Read { ticket: Ticket(2) });
    assert!(!replica.refuses());
    let end = replica.now + seconds(1);
    while replica.now < end {
        let next = replica.core.next_timeout().expect("it waits for something");
        assert!(next > replica.now && next <= end, "{next}");
        replica.now = next;
        replica.tell(Event::Timeout);
    }
    assert!(replica.refuses());
}

/// [PAC-42] A snapshot is for a secondary that lacks what it includes; another is answered at once,
/// though one is being installed.
#[test]
fn a_snapshot_that_brings_nothing_is_answered_at_once() {
    let mut replica = Replica::start(&[], None);
    replica.lead().offer(1, N2, 2, Lsn::new(2, 9));
    assert!(replica.answers() && !replica.installs(), "it is the primary");
    let mut replica = Replica::start(&lsns(1, 1..=3), None);
    replica.newest(1, &[N2, N1]).beacon(N2, 1).offer(1, N2, 1, Lsn::new(1, 9));
    assert!(replica.installs() && !replica.answers());
    replica.offer(2, N3, 1, Lsn::ZERO);
    assert!(replica.answers() && !replica.installs());
}

/// Makes n1 the primary of n1 and n2, which serves, of three that are wanted.
pub(super) fn lacking_one(timing: Timing, min_replicas_for_write: usize) -> Replica {
    let mut replica = Replica::start_with(&[], None, timing, min_replicas_for_write);
    let wanting = CohortConfig { replicas_wanted: 3, ..config(1, &[N1, N2]) };
    replica.tell(Event::Coordination(Newest(wanting))).force();
    replica.report(N2, 1, Lsn::ZERO).sent().force();
    replica.prepared(N2, 1, NO_OP).tell(Event::Applied { upto: NO_OP });
    assert_eq!(replica.role(), Role::Leader);
    replica
}

impl Replica {
    /// Returns true if the primary brings this replica up to date, or counts it.
    pub(super) fn knows(&self, node: NodeId) -> bool {
        self.core.status().progress.iter().any(|(known, _)| *known == node)
    }

    /// Returns true if it steps down for others.
    pub(super) fn steps_down(&self) -> bool {
        let is_it = |message: &_| matches!(message, PacificaMessage::StepDown { .. });
        self.any(|effect| matches!(effect, Effect::Send { message, .. } if is_it(message)))
    }
}

/// [PAC-40] A replica that was removed is kept out for half a second, to the moment.
#[test]
fn a_replica_that_was_removed_is_kept_out_for_its_time() {
    let admitted_after = |milliseconds| {
        let mut replica = Replica::start(&[], None);
        replica.lead_three();
        let removed = CohortConfig { replicas_wanted: 3, ..config(2, &[N1, N2]) };
        replica.tell(Event::Coordination(Newest(removed)));
        assert!(!replica.knows(N3));
        replica.pass(milliseconds).support(N2, 2).report(N3, 2, NO_OP);
        replica.knows(N3)
    };
    assert!(!admitted_after(499) && admitted_after(500));
}

/// [PAC-37] [PAC-38] No candidate is added to a cohort that is full, since another was added.
#[test]
fn no_candidate_is_added_to_a_cohort_that_is_full() {
    let n4 = NodeId(4);
    let added = |is_full| {
        let mut replica = lacking_one(Timing::default(), 1);
        replica.report(N3, 1, Lsn::ZERO).sent();
        assert!(replica.knows(N3));
        if is_full {
            replica.newest(2, &[N1, N2, n4]).support(n4, 2);
        }
        replica.prepared(N3, 1, NO_OP);
        replica.asks()
    };
    assert!(added(false) && !added(true));
}

/// [PAC-36] [PAC-37] A primary that is to hand over adds no replica.
#[test]
fn no_candidate_is_added_while_a_hand_over_waits() {
    let mut replica = lacking_one(Timing::default(), 1);
    replica.report(N3, 1, Lsn::ZERO).sent().write(1).force();
    replica.tell(Event::TransferLeader { ticket: Ticket(2), to: N2 });
    assert!(!replica.asks(), "the write is not committed");
    replica.prepared(N3, 1, NO_OP);
    assert!(!replica.asks());
    replica.prepared(N2, 1, Lsn::new(1, 2));
    assert!(replica.asks(), "it hands over");
}

/// [PAC-12] A primary that was replaced has nothing to wait for until it hears who leads.
#[test]
fn a_replica_without_a_primary_waits_for_no_time() {
    let mut replica = Replica::start(&[], None);
    replica.lead().hear(N2, PacificaMessage::RejectStaleEpoch { epoch: 2 });
    assert_eq!(replica.core.next_timeout(), None);
}

/// [PAC-38] [PAC-46] A candidate that lost its disk is brought up to date anew, and what was held up for
/// the one before goes on.
#[test]
fn writes_do_not_wait_for_a_candidate_that_is_forgotten() {
    let mut replica = lacking_one(Timing::default(), 1);
    replica.write(1).report(N3, 1, NO_OP).write(2);
    assert!(replica.knows(N3) && !replica.appends(), "the write is held up");
    let position = Position { committed: NO_OP, last: NO_OP, is_learner: true };
    let (epoch, incarnation) = (1, Incarnation(33));
    replica.hear(N3, PacificaMessage::ReportPosition { epoch, position, incarnation });
    assert!(replica.appends());
}

/// [PAC-27] A disk or an applier that is slow and makes progress is not one that hangs. One that does
/// nothing for a lease is.
#[test]
fn a_primary_that_makes_progress_does_not_step_down() {
    // The disk: each write is forced 500 ms after the one before it.
    let mut replica = Replica::start(&[], None);
    replica.lead();
    let forced = replica.writes;
    for ticket in 1..=4 {
        replica.write(ticket);
    }
    for write in 1..=3 {
        replica.pass(500).support(N2, 1).tell(Event::Durable { upto: IoId(forced + write) });
        replica.wait(0);
        assert!(!replica.steps_down(), "write {write}");
    }
    replica.pass(799).support(N2, 1).tell(Event::Timeout);
    assert!(!replica.steps_down());
    replica.wait(1);
    assert!(replica.steps_down(), "nothing was forced for a lease");

    // The applier: everything is committed, and applied entry by entry.
    let mut replica = Replica::start(&[], None);
    replica.lead();
    for ticket in 1..=4 {
        replica.write(ticket);
    }
    replica.force().prepared(N2, 1, Lsn::new(1, 5));
    assert_eq!(replica.committed(), 5);
    for seq in 2..=4 {
        replica.pass(500).support(N2, 1).tell(Event::Applied { upto: Lsn::new(1, seq) });
        replica.wait(0);
        assert!(!replica.steps_down(), "entry {seq}");
    }
    replica.pass(799).support(N2, 1).tell(Event::Timeout);
    assert!(!replica.steps_down());
    replica.wait(1);
    assert!(replica.steps_down(), "nothing was applied for a lease");
}

/// [PAC-23] [PAC-27] Secondaries that are heard and do not come further show that the data of the primary
/// does not arrive. Those whose leases end at this moment are heard no more: they are taken out.
#[test]
fn secondaries_that_are_not_heard_are_taken_out() {
    let after = |milliseconds| {
        let mut replica = Replica::start(&[], None);
        replica.lead_three().write(1).force().pass(100);
        replica.support(N2, 1).support(N3, 1).wait(milliseconds);
        (replica.steps_down(), replica.asks())
    };
    assert_eq!(after(699), (false, false));
    assert_eq!(after(700), (true, false), "nothing was acknowledged for a lease");
    assert_eq!(after(799), (true, false));
    assert_eq!(after(800), (false, true));
}

/// A replica that knows no configuration is no learner: it may have everything.
#[test]
fn a_replica_that_knows_no_configuration_is_a_follower() {
    assert_eq!(Replica::start(&lsns(1, 1..=1), Some(1)).role(), Role::Follower);
}
