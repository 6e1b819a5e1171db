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
//!   Learner (a follower that lost its disk; neither stands nor counts)
//! ```
//!
//! # A write (§5)
//!
//! The leader appends it to its log, forces it, and in parallel proposes it to its followers; each
//! forces it and acknowledges. When it is on the leader's own disk and on those of a majority, the
//! leader included, it is committed: the leader applies it and answers. Once in a commit period the
//! followers are told how far the log is committed, and apply up to there.
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
//!    below the round, and only then publishes the end of its log. What it says stays true: nobody can
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
//! The replicas of a cohort are fixed. A cohort whose majority has lost its disks stays without a
//! leader: its data is lost, and nothing here pretends otherwise.

mod coordinator;
mod election;
mod follower;
mod leader;
mod message;
mod options;
mod stall;

use std::collections::BTreeMap;

use trireme_types::{Entry, Epoch, Lsn, NodeId, Protocol};

pub use self::coordinator::{Candidate, ElectionRequest, ElectionView};
pub use self::message::SpinnakerMessage;
pub use self::options::{SpinnakerFaults, SpinnakerOptions};

use self::election::Candidacy;
use self::follower::Following;
use self::leader::Leader;
use self::stall::StepBack;
use crate::core::{Core, CoreStatus, Effect, Event, Moment, Recovered, Ticket, When};
use crate::replica::{Measures, ReplicaError, Role};
use crate::streaming::wire::HardState;
use crate::streaming::{Beacon, Journal, Preceding, Streams, Support};

/// One replica of a cohort.
#[derive(Debug)]
pub struct Spinnaker {
    node: NodeId,
    options: SpinnakerOptions,
    now: Moment,
    journal: Journal<Self>,
    /// What it has promised, as it is on disk or on its way there.
    state: HardState,
    /// The newest epoch of which it knows a leader.
    epoch: Epoch,
    /// When it was first told the time.
    started: Option<Moment>,
    support: Support,
    role: RoleState,
    /// The election, as the coordinator last told it.
    view: Option<ElectionView>,
    /// The newest epoch whose leader has said that it leads no more.
    resigned: Epoch,
    /// The newest entry that the table includes.
    applied: Lsn,
    step_back: StepBack,
    /// When the coordinator was first seen to know no leader of the newest epoch.
    leaderless_since: Option<Moment>,
    /// Who else has no leader that it supports, as of when.
    suspicions: BTreeMap<NodeId, Moment>,
    /// What it measured when it led before.
    measures: Measures,
}

/// What the replica does in the cohort.
#[derive(Debug)]
enum RoleState {
    Follower(Following),
    Candidate(Candidacy),
    Leader(Box<Leader>),
}

impl Spinnaker {
    /// Returns a replica as its disk describes it, or says why it cannot be one.
    pub fn new(recovered: &Recovered, options: SpinnakerOptions) -> Result<Self, String> {
        options.timing.validate().map_err(|error| error.to_string())?;
        if !options.replicas.contains(&recovered.node) {
            return Err(format!("{} is not among the cohort's replicas", recovered.node));
        }
        let kept = recovered.hard_state.clone().map(HardState::decode).transpose()?;
        let state = kept.unwrap_or_default();
        let now = Moment::START;
        let grace = options.timing.grace;
        let mut replica = Self {
            node: recovered.node,
            now,
            journal: Journal::new(recovered),
            state,
            epoch: recovered.log.last().epoch,
            started: None,
            support: Support::starting(now, grace, state.promised > 0),
            role: RoleState::Follower(Following::default()),
            view: None,
            resigned: 0,
            applied: recovered.applied,
            step_back: StepBack::default(),
            leaderless_since: None,
            suspicions: BTreeMap::new(),
            measures: Measures::default(),
            options,
        };
        //= SPIN-44
        if replica.options.rejoins && kept.is_none() && !replica.options.faults.trusts_an_empty_disk
        {
            replica.keep(HardState { is_learner: true, ..state });
        }
        Ok(replica)
    }

    /// Writes a hard state and returns the condition that it is on disk.
    fn keep(&mut self, state: HardState) -> When {
        self.state = state;
        self.journal.keep(state.encode())
    }

    /// Promises to accept nothing from a leader of an epoch below `epoch` (SPIN-21).
    fn promise(&mut self, epoch: Epoch) {
        if epoch > self.state.promised {
            self.keep(HardState { promised: epoch, ..self.state });
        }
    }

    fn others(&self) -> impl Iterator<Item = NodeId> + use<> {
        let node = self.node;
        self.options.replicas.clone().into_iter().filter(move |other| *other != node)
    }

    /// Returns how many followers make a majority together with their leader.
    fn followers_needed(&self) -> usize {
        self.options.replicas.len() / 2
    }

    /// Returns who leads, as far as the replica knows.
    const fn leader(&self) -> Option<NodeId> {
        match &self.role {
            RoleState::Follower(following) => following.leader,
            RoleState::Candidate(_) => None,
            RoleState::Leader(_) => Some(self.node),
        }
    }

    fn on_message(&mut self, from: NodeId, message: SpinnakerMessage) {
        match message {
            SpinnakerMessage::Propose { preceding, entries } => {
                self.on_propose(from, &preceding, entries);
            }
            SpinnakerMessage::Ack { epoch, upto, supports } => {
                self.on_ack(from, epoch, upto, supports);
            }
            SpinnakerMessage::Beacon(beacon) => self.on_beacon(from, beacon),
            SpinnakerMessage::BeaconAck { epoch, supports, is_learner, awaits_disk } => {
                self.on_beacon_ack(from, epoch, supports, (is_learner, awaits_disk));
            }
            SpinnakerMessage::ReportPosition { epoch, position } => {
                self.on_report_position(from, epoch, position)
            }
            SpinnakerMessage::Readmit { epoch, upto } => self.on_readmit(from, epoch, upto),
            SpinnakerMessage::RejectStaleEpoch { epoch } => self.on_reject_stale_epoch(epoch),
            // It comes with a snapshot only.
            SpinnakerMessage::Snapshot { .. } => {}
            SpinnakerMessage::SuspectLeader { epoch } => self.on_suspect_leader(from, epoch),
            SpinnakerMessage::Resign { epoch, successor } => self.on_resign(from, epoch, successor),
        }
    }

    fn refuse_to_lead(&mut self, ticket: Ticket) {
        let leader = self.leader();
        self.journal.refuse(ticket, ReplicaError::NotLeader { leader });
    }
}

impl Core for Spinnaker {
    const PROTOCOL: Protocol = Protocol::Spinnaker;

    type Message = SpinnakerMessage;
    type Context = Preceding;
    type CoordinatorRequest = ElectionRequest;
    type CoordinatorEvent = ElectionView;

    fn handle(&mut self, now: Moment, event: Event<Self>) {
        self.now = now;
        if self.started.is_none() {
            self.started = Some(now);
            //= SPIN-11
            let may_have_promised = self.state.promised > 0;
            self.support = Support::starting(now, self.options.timing.grace, may_have_promised);
        }
        match event {
            Event::Message { from, message } => self.on_message(from, message),
            Event::Propose { ticket, payload } => match &mut self.role {
                RoleState::Leader(leader) => {
                    leader.leading.propose(&mut self.journal, ticket, payload)
                }
                _ => self.refuse_to_lead(ticket),
            },
            Event::Read { ticket } => self.on_read(ticket),
            Event::Reconfigure { ticket, .. } => {
                let reason = "the replicas of a Spinnaker cohort are fixed".into();
                self.journal.refuse(ticket, ReplicaError::Invalid(reason));
            }
            Event::TransferLeader { ticket, to } => self.on_transfer(ticket, to),
            Event::ReleaseLog { ticket, upto } => {
                self.journal.release(upto);
                self.journal.reply(ticket, crate::core::Reply::Done, When::Now);
            }
            Event::Durable { upto } => {
                self.journal.on_durable(upto);
                self.advance();
            }
            Event::Applied { upto } => self.on_applied(upto),
            Event::LogSent { to, seqs, next } => self.on_log_sent(to, &seqs, next),
            Event::SnapshotSent { to, answer } => self.on_snapshot_sent(to, answer),
            Event::SnapshotOffered { ticket, message, upto, .. } => {
                self.on_snapshot(ticket, message, upto);
            }
            Event::SnapshotInstalled { ticket, upto } => self.on_installed(ticket, upto),
            Event::SnapshotOutdated { ticket } => self.on_outdated(ticket),
            Event::Coordination(view) => self.on_view(view),
            Event::PeerAlive { node } => self.on_peer_alive(node),
            Event::PeerLost { node } => self.on_peer_lost(node),
            Event::Timeout => self.on_timeout(),
        }
    }

    fn drain_effects(&mut self, effects: &mut Vec<Effect<Self>>) {
        self.note_progress();
        if let RoleState::Leader(leader) = &mut self.role {
            leader.leading.send_gathered(self.now, &mut self.journal);
        }
        self.journal.drain_into(effects);
    }

    fn validate(&self) -> Result<(), String> {
        self.journal.validate()?;
        let (epoch, promised) = (self.epoch, self.state.promised);
        let last = self.journal.last().epoch;
        if last > epoch.max(promised) {
            return Err(format!("the log ends in epoch {last}, and {promised} is promised"));
        }
        match &self.role {
            RoleState::Follower(following) => following.validate(self.node),
            RoleState::Candidate(candidacy) if candidacy.round <= epoch => {
                Err(format!("it stands in round {} and knows epoch {epoch}", candidacy.round))
            }
            RoleState::Candidate(_) => Ok(()),
            RoleState::Leader(leader) if self.state.is_learner => {
                Err(format!("it leads epoch {} and counts in no majority", leader.leading.epoch))
            }
            // That mistake is to serve before the no-op is committed.
            RoleState::Leader(_) if self.options.faults.commits_older_epochs => Ok(()),
            RoleState::Leader(leader) => leader.validate(epoch, &self.journal, self.now),
        }
    }

    fn next_timeout(&self) -> Option<Moment> {
        match &self.role {
            RoleState::Follower(_) => self.next_suspicion(),
            RoleState::Candidate(candidacy) => Some(candidacy.retry_at),
            RoleState::Leader(leader) => self.next_of_leader(leader),
        }
    }

    fn status(&self) -> CoreStatus {
        let (role, progress) = match &self.role {
            RoleState::Follower(_) if self.state.is_learner => (Role::Learner, Vec::new()),
            RoleState::Follower(_) => (Role::Follower, Vec::new()),
            RoleState::Candidate(_) => (Role::Candidate, Vec::new()),
            RoleState::Leader(leader) => (Role::Leader, leader.leading.progress()),
        };
        let current = match &self.role {
            RoleState::Leader(leader) => self.current_of_leader(leader),
            _ => self.journal.current(),
        };
        let measures = match &self.role {
            RoleState::Leader(leader) => leader.leading.measures,
            _ => self.measures,
        };
        CoreStatus {
            role,
            leader: self.leader(),
            current,
            epoch: self.epoch.max(self.state.promised),
            last: self.journal.last(),
            durable: self.journal.durable(),
            committed: self.journal.committed(),
            purged: self.journal.log().purged(),
            replicas: self.options.replicas.clone(),
            progress,
            measures,
        }
    }

    fn entries_message(preceding: Preceding, entries: Vec<Entry>) -> SpinnakerMessage {
        SpinnakerMessage::Propose { preceding, entries }
    }
}

impl Streams for Spinnaker {
    fn beacon_message(beacon: Beacon) -> SpinnakerMessage {
        SpinnakerMessage::Beacon(beacon)
    }

    fn snapshot_message(epoch: Epoch) -> SpinnakerMessage {
        SpinnakerMessage::Snapshot { epoch }
    }
}

impl Spinnaker {
    /// Returns the position that the replica reports to a leader.
    fn position(&self) -> crate::streaming::Position {
        crate::streaming::Position {
            committed: self.journal.committed(),
            last: self.journal.last(),
            is_learner: self.state.is_learner,
        }
    }

    /// Records how far the table has come.
    fn on_applied(&mut self, upto: Lsn) {
        self.applied = self.applied.max(upto);
        self.begin_serving(upto);
    }
}
