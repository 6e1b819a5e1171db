//! Spinnaker: Paxos-style log replication, with leaders elected through a coordinator.
//!
//! After Rao, Shekita, Tata: *Using Paxos to Build a Scalable, Consistent, and Highly Available
//! Datastore* (PVLDB 4(4), 2011), with the holes closed that the paper leaves open.
//! `docs/protocols/spinnaker.md` states the protocol in numbered requirements, which the code cites
//! as `SPIN-n`, and says where and why it differs from the paper.
//!
//! # What it guarantees
//!
//! * A write that was acknowledged is on the disks of a majority of the cohort's replicas, and is
//!   never lost as long as a majority of the disks is not.
//! * A strong read sees every write that was acknowledged before it began. A timeline read sees some
//!   earlier state, and at one replica, for as long as it runs, never an earlier one than before.
//! * It serves as long as a majority of the replicas is there and can reach each other; to get
//!   another leader it needs the coordinator too. The coordinator is on the path of no read or write.
//!
//! # Roles
//!
//! ```text
//!                    a majority has no leader it supports
//!      Follower ────────────────────────────────────────► Candidate
//!       ▲  ▲  ▲                 (fence, then stand)           │
//!       │  │  └───────────── another one leads ───────────────┤
//!       │  │                                                  │ its log is the longest of a majority,
//!       │  └── no majority supports it, a newer epoch, ──┐    ▼ and the change at the coordinator is done
//!       │      it hangs, or it hands over                └─ Leader: takes over, then serves
//!   Learner (a follower that lost its disk, or is invited; neither stands nor counts)
//! ```
//!
//! # A write (§5)
//!
//! The leader appends it to its log, forces it, and in parallel proposes it to its followers; each
//! forces it and acknowledges. When it is on the leader's own disk and on those of a majority, the
//! leader included, it is committed: the leader applies it and answers. Once in a commit period the
//! followers are sent how far the log is committed, and apply up to there.
//!
//! # A strong read
//!
//! The leader answers it alone, from its table, as long as a majority supports it: each supporter has
//! promised, by acknowledging a message, to help no other replica to lead for the grace, counted from
//! when it received the message. The leader counts its lease, which is shorter, from when it sent it.
//! The lease is looked at before the read and once more when the state has been read (S5).
//!
//! # When the leader is gone (§7, §6.2)
//!
//! 1. A follower that has lost its connection to the leader, or has not heard from it for long, or
//!    sees that its session at the coordinator has ended, says so to the others once it is free of its
//!    promise (`SuspectLeader`). When a majority has no leader that it supports, it stands.
//! 2. To stand, it first *fences*: it promises, on disk, to accept nothing from a leader of an epoch
//!    below the round, and only then publishes the end of its log. What it says stays true: nothing can
//!    make it acknowledge more for an earlier leader (S2).
//! 3. When a majority stands in the round, the longest log wins, of equals the first to have stood.
//!    The winner makes itself the leader and the round the epoch in one atomic change.
//! 4. The new leader appends a *no-op* of its epoch and sends every follower what it lacks. Entries of
//!    older epochs count as committed only when the no-op is on a majority: until then a longer log
//!    of another old epoch could still win an election and undo them (S1).
//! 5. When the no-op is committed, it takes writes; when it is applied, strong reads.
//!
//! A leader that is supported and makes no progress, because its disk, its table or its data lane
//! hangs, resigns, and lets the others be first (`stall`, P14).
//!
//! # Catching up (§6.1)
//!
//! A follower that restarts applies its log up to the commit point that it knows, no further. It says
//! where it stands, and is sent committed entries, piece by piece, while writes go on; the rest last,
//! for which new writes wait a moment. What its log holds that the leader's does not is dropped by a
//! record in its place in the shared log (Spinnaker's skipped-LSN list). If the leader's log does not
//! reach back far enough, a snapshot comes first.
//!
//! # Caveats
//!
//! The members of a cohort are fixed: others take their place only in a successor (RANGE-17). A cohort whose
//! majority has lost its disks stays without a leader: its data is lost, and nothing here pretends
//! otherwise.

mod candidate;
mod coordinator;
mod election;
mod follower;
mod leader;
mod learners;
mod message;
mod options;
mod roles;
mod stall;

use trireme_types::{Entry, Epoch, Lsn, NodeId, Protocol};

pub use self::coordinator::{Candidate, ElectionRequest, ElectionView};
pub use self::message::SpinnakerMessage;
pub use self::options::{SpinnakerFaults, SpinnakerOptions};

use self::election::Election;
use self::follower::Follower;
use self::leader::Leader;
use self::roles::RoleState;
use crate::core::{Core, CoreStatus, Effect, Event, Moment, Recovered, Rest};
use crate::replica::Role;
use crate::streaming::wire::HardState;
use crate::streaming::{self, Beacon, Leading, Preceding, RoleStatus, StreamingFaults, Streams};

/// What the methods of every role work on.
type Shared = streaming::Shared<Spinnaker>;

/// One replica of a cohort.
#[derive(Debug)]
pub struct Spinnaker {
    shared: Shared,
    role: RoleState,
}

impl Spinnaker {
    /// Returns a replica as its disk describes it, or the reason why it cannot be one.
    pub fn new(recovered: &Recovered, options: SpinnakerOptions) -> Result<Self, String> {
        options.timing.validate().map_err(|error| error.to_string())?;
        let is_member = options.replicas.contains(&recovered.node);
        if is_member == options.is_invited {
            let known = if is_member { "a member" } else { "no member" };
            return Err(format!("{} is {known} of the cohort", recovered.node));
        }
        let kept = recovered.hard_state.clone().map(HardState::decode).transpose()?;
        let state = kept.unwrap_or_default();
        let (timing, epoch) = (options.timing, recovered.log.last().epoch);
        let is_rejoining = options.rejoins && !options.faults.trusts_an_empty_disk();
        let is_invited = options.is_invited;
        let election = Election::new(options, epoch);
        let mut shared = Shared::new(recovered, timing, state, state.promised > 0, election);
        //= SPIN-44
        //= SPIN-48
        if (is_rejoining && kept.is_none()) || (is_invited && !state.is_learner) {
            shared.keep(HardState { is_learner: true, ..state });
        }
        Ok(Self { shared, role: RoleState::Follower(Follower::default()) })
    }

    /// Records how far the table has come.
    fn on_applied(&mut self, upto: Lsn) {
        self.shared.applied = self.shared.applied.max(upto);
        if let RoleState::Leader(leader) = &mut self.role {
            leader.begin_serving(&mut self.shared, upto);
        }
    }
}

impl Core for Spinnaker {
    const PROTOCOL: Protocol = Protocol::Spinnaker;

    type Message = SpinnakerMessage;
    type Context = Preceding;
    type CoordinatorRequest = ElectionRequest;
    type CoordinatorEvent = ElectionView;

    fn handle(&mut self, now: Moment, event: Event<Self>) {
        let cx = &mut self.shared;
        cx.set_clock(now, cx.state.promised > 0);
        let Some(event) = streaming::handle(self, event) else { return };
        match event {
            Event::Propose { ticket, payload } => {
                if let (cx, Some(leading)) = self.parts() {
                    leading.propose(cx, ticket, payload);
                }
            }
            Event::Read { ticket } => self.as_leader(|leader, cx| leader.on_read(cx, ticket)),
            Event::TransferLeader { ticket, to } => {
                self.as_leader(|leader, cx| leader.on_transfer(cx, ticket, to));
            }
            Event::Durable { upto } => {
                self.shared.journal.on_durable(upto);
                self.as_leader(Leader::advance);
            }
            Event::Applied { upto } => self.on_applied(upto),
            Event::SnapshotOffered { ticket, message, upto, .. } => {
                Follower::on_snapshot(&mut self.shared, ticket, &message, upto);
            }
            Event::Coordination(view) => self.on_view(view),
            Event::PeerAlive { node } => self.on_peer_alive(node),
            Event::PeerLost { node } => self.on_peer_lost(node),
            Event::Timeout => self.on_timeout(),
            _ => {}
        }
    }

    fn drain_effects(&mut self, effects: &mut Vec<Effect<Self>>) {
        if let RoleState::Leader(leader) = &mut self.role {
            leader.note_progress(&self.shared);
        }
        streaming::drain(self, effects);
    }

    fn validate(&self) -> Result<(), String> {
        let cx = &self.shared;
        cx.journal.validate()?;
        let (epoch, promised) = (cx.own.epoch, cx.state.promised);
        let last = cx.journal.last().epoch;
        if last > epoch.max(promised) {
            return Err(format!("the log ends in epoch {last}, and {promised} is promised"));
        }
        match &self.role {
            RoleState::Follower(follower) => follower.validate(cx.node),
            RoleState::Candidate(candidacy) => candidacy.validate(epoch),
            RoleState::Leader(leader) => leader.validate(cx),
        }
    }

    fn next_timeout(&self) -> Option<Moment> {
        match &self.role {
            RoleState::Follower(follower) => follower.next_timeout(&self.shared),
            RoleState::Candidate(candidacy) => Some(candidacy.next_timeout()),
            RoleState::Leader(leader) => leader.next_timeout(&self.shared),
        }
    }

    fn rest(&self) -> Option<Rest> {
        let cx = &self.shared;
        let is_known = cx.own.view.is_some() && cx.own.leaderless_since.is_none();
        match &self.role {
            RoleState::Follower(follower) if is_known => follower.rest(cx),
            RoleState::Leader(leader) if is_known => leader.rest(cx),
            _ => None,
        }
    }

    fn status(&self) -> CoreStatus {
        let cx = &self.shared;
        let (role, current, progress, measures) = match &self.role {
            RoleState::Leader(leader) => {
                let (progress, measures) = (leader.leading.progress(), leader.leading.measures);
                (Role::Leader, leader.current(cx), progress, measures)
            }
            role => {
                let role = match role {
                    RoleState::Candidate(_) => Role::Candidate,
                    _ if cx.state.is_learner => Role::Learner,
                    _ => Role::Follower,
                };
                (role, cx.journal.current(), Vec::new(), cx.measures)
            }
        };
        let of_role = RoleStatus { role, leader: self.leader(), current, progress, measures };
        let epoch = cx.own.epoch.max(cx.state.promised);
        cx.status(of_role, epoch, cx.own.options.replicas.clone())
    }

    fn entries_message(preceding: Preceding, entries: Vec<Entry>) -> SpinnakerMessage {
        SpinnakerMessage::Propose { preceding, entries }
    }
}

impl Streams for Spinnaker {
    type Own = Election;

    fn beacon_message(beacon: Beacon) -> SpinnakerMessage {
        SpinnakerMessage::Beacon(beacon)
    }

    fn snapshot_message(epoch: Epoch) -> SpinnakerMessage {
        SpinnakerMessage::Snapshot { epoch }
    }

    fn position_message(cx: &Shared, epoch: Epoch) -> SpinnakerMessage {
        SpinnakerMessage::ReportPosition { epoch, position: cx.position(cx.state.is_learner) }
    }

    fn reject_message(promised: Epoch) -> SpinnakerMessage {
        SpinnakerMessage::RejectStaleEpoch { epoch: promised }
    }

    fn epoch(cx: &Shared) -> Epoch {
        cx.own.epoch
    }

    fn faults(cx: &Shared) -> StreamingFaults {
        cx.own.options.streaming_faults
    }

    fn leader(&self) -> Option<NodeId> {
        match &self.role {
            RoleState::Follower(follower) => follower.following.leader,
            RoleState::Candidate(_) => None,
            RoleState::Leader(_) => Some(self.shared.node),
        }
    }

    fn parts(&mut self) -> (&mut Shared, Option<&mut Leading>) {
        let leading = match &mut self.role {
            RoleState::Leader(leader) => Some(&mut leader.leading),
            _ => None,
        };
        (&mut self.shared, leading)
    }

    fn on_message(&mut self, from: NodeId, message: SpinnakerMessage) {
        match message {
            SpinnakerMessage::Propose { preceding, entries } => {
                if self.accepts(from, preceding.epoch) {
                    self.as_follower(|role, cx| role.on_propose(cx, from, &preceding, entries));
                }
            }
            SpinnakerMessage::Ack { epoch, upto, supports } => {
                self.as_leader(|role, cx| role.on_ack(cx, from, (epoch, upto), supports));
            }
            SpinnakerMessage::Beacon(beacon) => {
                if self.accepts(from, beacon.epoch) {
                    self.as_follower(|role, cx| role.on_beacon(cx, from, beacon));
                }
            }
            SpinnakerMessage::BeaconAck { epoch, supports, is_learner, awaits_disk } => {
                if let RoleState::Leader(leader) = &mut self.role {
                    let (support, disk) = ((epoch, supports), (is_learner, awaits_disk));
                    leader.on_beacon_ack(&mut self.shared, from, support, disk);
                }
            }
            SpinnakerMessage::ReportPosition { epoch, position } => {
                self.as_leader(|role, cx| role.on_report_position(cx, from, epoch, position));
            }
            SpinnakerMessage::Readmit { epoch, upto } => {
                self.as_follower(|role, cx| role.on_readmit(cx, from, epoch, upto));
            }
            SpinnakerMessage::RejectStaleEpoch { epoch } => {
                self.as_leader(|role, _| role.on_reject_stale_epoch(epoch));
            }
            // It comes with a snapshot only.
            SpinnakerMessage::Snapshot { .. } => {}
            SpinnakerMessage::SuspectLeader { epoch } => self.on_suspect_leader(from, epoch),
            SpinnakerMessage::Resign { epoch, successor } => self.on_resign(from, epoch, successor),
        }
    }
}
