//! PacificA: primary-backup replication with a configuration manager.
//!
//! After Lin, Yang, Zhang, Zhou: *PacificA: Replication in Log-Based Distributed Storage Systems*
//! (MSR-TR-2008-25). `docs/protocols/pacifica.md` states the protocol in numbered requirements, which
//! the code cites as `PAC-n`, and says where and why it differs from the report.
//!
//! # What it guarantees
//!
//! * A write that was acknowledged is on the disks of all replicas of the configuration, and of one
//!   that is being added to it, and is never lost as long as one replica of the newest configuration
//!   keeps its disk. A replica whose disk was lost, exchanged or discarded is none that keeps it: it has
//!   another incarnation than the one that the configuration lists.
//! * A strong read sees every write that was acknowledged before it began, and costs no message. A
//!   timeline read sees some earlier state, and at one replica never an earlier one than before.
//! * It serves as long as a single replica is there: whoever does not answer is taken out of the
//!   configuration. For that it needs the configuration manager; for reads and writes it does not.
//!
//! # Roles
//!
//! ```text
//!   primary ──── orders writes, commits what all replicas have prepared, reads under leases from all
//!   secondary ── prepares what the primary orders; any of them can become primary
//!   candidate ── prepares too, is brought up to date, and is not in the configuration yet
//!   idle ─────── does not know the configuration, or lost its data and is still listed in it
//! ```
//!
//! The configuration says who is what: its first replica is the primary. The manager installs the
//! direct successor of the newest configuration and nothing else, so that of two proposals one wins.
//!
//! # A write (§2.2)
//!
//! The primary numbers it, prepares it in its own log and at all secondaries in parallel. When all have
//! it on disk it is committed: the primary applies it and answers. Secondaries learn the committed
//! point with what is prepared next, or, if nothing is, within a commit period.
//!
//! # Leases (§2.3)
//!
//! Every message of the primary is a beacon. Whoever acknowledges it promises not to become primary for
//! the grace, counted from when it received it. The primary serves as long as it holds a lease from
//! *all* secondaries, counted from when it sent what they acknowledged. A lease is shorter than a
//! grace, so the primary has stopped before anybody takes its place, and it needs no clock but its own
//! (P1).
//!
//! # When somebody is gone (§2.4)
//!
//! * A secondary: the primary's lease ends. It stops serving, and has the manager install a
//!   configuration without it.
//! * The primary: the grace of the secondaries ends. Each proposes a configuration without it, with
//!   itself as the primary; the first to be heard wins, with no vote: they all have everything.
//! * The new primary *reconciles* before it serves: it appends an entry of its own version and has
//!   everything up to there committed in the new configuration. Who lacks something is sent it; who has
//!   more drops it, since what is not at the new primary cannot have been committed.
//! * A replica that was taken out and is there again comes back as a candidate, with what it has. From
//!   the moment when the primary asks the manager to add it, nothing is committed that it has not
//!   prepared (P6), so it drops nothing of that, whatever happens to it, as long as the primary does not
//!   order something else in its place.
//! * A primary whose own data path hangs, though it is heard, steps down, so that it is replaced as if it
//!   had died (P14).
//!
//! # Caveats
//!
//! One slow replica makes every write slow. Entries keep the version under which they were first
//! prepared, and the reconciling entry stands for the report's preparing them again (decision 8).

mod coordinator;
mod follower;
mod health;
mod identity;
mod leader;
mod message;
mod options;
mod reconfiguration;
mod validate;

use trireme_storage::IoId;
use trireme_types::{CohortConfig, CohortId, Entry, Epoch, Incarnation, NodeId, Protocol};

pub use self::coordinator::{Newest, Proposal};
pub use self::message::PacificaMessage;
pub use self::options::{PacificaFaults, PacificaOptions};

use self::follower::Following;
use self::health::Health;
use self::leader::Primary;
use self::reconfiguration::{Named, Pending};
use crate::core::{Core, CoreStatus, Effect, Event, Moment, Recovered, Reply, Ticket, When};
use crate::replica::{Measures, ReplicaError, Role};
use crate::streaming::wire::HardState;
use crate::streaming::{Beacon, Journal, Position, Preceding, Streams, Support};

/// One replica of a cohort.
#[derive(Debug)]
pub struct Pacifica {
    node: NodeId,
    cohort: CohortId,
    options: PacificaOptions,
    now: Moment,
    journal: Journal<Self>,
    /// What it has promised, as it is on disk or on its way there. The epoch in it is the newest
    /// version that it has acted in.
    state: HardState,
    /// What tells it from those that had another disk under the same name.
    incarnation: Incarnation,
    /// Nothing was on its disk: no incarnation of it ever acted.
    is_new: bool,
    /// The newest version that it had acted in when it started.
    promised_at_start: Epoch,
    /// The newest configuration that the manager told.
    config: Option<CohortConfig>,
    /// Whether it has been told the time.
    has_started: bool,
    support: Support,
    role: RoleState,
    /// What it asked the manager for and has not seen decided.
    pending: Option<Pending>,
    /// It becomes primary when this write, by which it will know that it acted, is on disk.
    becomes_primary_at: Option<IoId>,
    /// It is named as the primary, and has promised another one not to be it yet.
    named: Option<Named>,
    health: Health,
    /// When it stepped down, though it is the primary of the newest configuration.
    stepped_down: Option<Moment>,
    /// What it measured when it was primary before.
    measures: Measures,
}

/// What the replica does in the cohort.
#[derive(Debug)]
enum RoleState {
    /// It does not know yet what it is, or has nothing that it could be.
    Idle,
    /// A secondary, or a candidate: the configuration tells which.
    Follower(Following),
    Primary(Box<Primary>),
}

impl Pacifica {
    /// Returns a replica as its disk describes it, or says why it cannot be one.
    pub fn new(recovered: &Recovered, options: PacificaOptions) -> Result<Self, String> {
        options.timing.validate().map_err(|error| error.to_string())?;
        let kept = recovered.hard_state.clone().map(HardState::decode).transpose()?;
        let mut state = kept.unwrap_or_default();
        let incarnation = *state.incarnation.get_or_insert(options.incarnation);
        let grace = options.timing.grace;
        let mut replica = Self {
            node: recovered.node,
            cohort: recovered.cohort,
            now: Moment::START,
            journal: Journal::new(recovered),
            state,
            incarnation,
            promised_at_start: state.promised,
            is_new: kept.is_none() && !options.rejoins,
            config: None,
            has_started: false,
            support: Support::starting(Moment::START, grace, true),
            role: RoleState::Idle,
            pending: None,
            becomes_primary_at: None,
            named: None,
            health: Health::new(recovered.applied),
            stepped_down: None,
            measures: Measures::default(),
            options,
        };
        if replica.options.rejoins && kept.is_none() {
            //= PAC-44
            replica.keep(HardState { is_learner: true, ..state });
        } else if kept.is_some_and(|kept| kept.incarnation.is_none()) {
            // It was written before replicas had one. A new replica writes its own with the first
            // version that it acts in.
            replica.keep(state);
        }
        Ok(replica)
    }

    /// Writes a hard state.
    fn keep(&mut self, state: HardState) {
        self.state = state;
        self.journal.keep(state.encode());
    }

    /// Acts in `version` from now on, and in no older one (PAC-12).
    fn promise(&mut self, version: Epoch) {
        if version > self.state.promised {
            self.keep(HardState { promised: version, ..self.state });
            self.stepped_down = None;
            // The same primary may have begun anew, and not know where anybody stands.
            if let RoleState::Follower(following) = &mut self.role {
                following.is_streaming = false;
                following.joined = None;
            }
        }
    }

    /// Returns the primary of the newest configuration that the manager told.
    fn primary(&self) -> Option<NodeId> {
        self.config.as_ref().and_then(|config| config.replicas.first().copied())
    }

    /// Says whether the newest configuration that the manager told lists the node.
    fn is_listed(&self, node: NodeId) -> bool {
        self.config.as_ref().is_some_and(|config| config.replicas.contains(&node))
    }

    /// Returns who leads, as far as the replica knows.
    fn leader(&self) -> Option<NodeId> {
        match &self.role {
            RoleState::Idle => None,
            // One that was only named, and has not been heard, may not be up to it yet.
            RoleState::Follower(following) => following.leader.filter(|_| following.is_streaming),
            RoleState::Primary(primary) => primary.serves(self.now).then_some(self.node),
        }
    }

    /// Returns the position that the replica reports to a primary.
    fn position(&self) -> Position {
        Position {
            committed: self.journal.committed(),
            last: self.journal.last(),
            is_learner: !self.is_listed(self.node),
        }
    }

    fn on_message(&mut self, from: NodeId, message: PacificaMessage) {
        match message {
            PacificaMessage::Prepare { preceding, entries } => {
                self.on_prepare(from, &preceding, entries);
            }
            PacificaMessage::Prepared { epoch, upto, supports, incarnation } => {
                if self.is_known_as(from, incarnation) {
                    self.on_prepared(from, epoch, upto, supports);
                }
            }
            PacificaMessage::Beacon(beacon) => self.on_beacon(from, beacon),
            PacificaMessage::BeaconAck { epoch, supports, incarnation } => {
                if self.is_known_as(from, incarnation) {
                    self.on_beacon_ack(from, epoch, supports);
                }
            }
            PacificaMessage::ReportPosition { epoch, position, incarnation } => {
                self.on_report_position(from, epoch, position, incarnation);
            }
            PacificaMessage::RejectStaleEpoch { epoch } => self.on_reject_stale_epoch(epoch),
            // It comes with a snapshot only.
            PacificaMessage::Snapshot { .. } => {}
        }
    }

    fn refuse_to_lead(&mut self, ticket: Ticket) {
        let leader = self.leader();
        self.journal.refuse(ticket, ReplicaError::NotLeader { leader });
    }
}

impl Core for Pacifica {
    const PROTOCOL: Protocol = Protocol::Pacifica;

    type Message = PacificaMessage;
    type Context = Preceding;
    type CoordinatorRequest = Proposal;
    type CoordinatorEvent = Newest;

    fn handle(&mut self, now: Moment, event: Event<Self>) {
        self.now = now;
        if !self.has_started {
            self.has_started = true;
            //= PAC-22
            self.support = Support::starting(now, self.options.timing.grace, true);
        }
        self.note_rest();
        match event {
            Event::Message { from, message } => self.on_message(from, message),
            Event::Propose { ticket, payload } => self.on_propose(ticket, payload),
            Event::Read { ticket } => self.on_read(ticket),
            Event::Reconfigure { ticket, .. } => {
                let reason = "a PacificA cohort changes its configuration by itself".into();
                self.journal.refuse(ticket, ReplicaError::Invalid(reason));
            }
            Event::TransferLeader { ticket, to } => self.on_transfer(ticket, to),
            Event::ReleaseLog { ticket, upto } => {
                self.journal.release(upto);
                self.journal.reply(ticket, Reply::Done, When::Now);
            }
            Event::Durable { upto } => {
                self.journal.on_durable(upto);
                self.health.on_durable(now);
                if self.becomes_primary_at.take_if(|io| *io <= upto).is_some() {
                    self.become_primary();
                }
                self.advance();
            }
            Event::Applied { upto } => {
                self.health.on_applied(now, upto);
                self.begin_serving(upto);
            }
            Event::LogSent { to, seqs, next } => self.on_log_sent(to, &seqs, next),
            Event::SnapshotSent { to, answer } => self.on_snapshot_sent(to, answer),
            Event::SnapshotOffered { ticket, message, upto, .. } => {
                self.on_snapshot(ticket, message, upto);
            }
            Event::SnapshotInstalled { ticket, upto } => {
                self.health.on_applied(now, upto);
                self.on_installed(ticket, upto);
            }
            Event::SnapshotOutdated { ticket } => self.on_outdated(ticket),
            Event::Coordination(Newest(config)) => self.on_config(config),
            Event::PeerAlive { node } => self.on_peer_alive(node),
            // Only silence counts, at either side: it is what leases are made of (§2.3).
            Event::PeerLost { .. } => {}
            Event::Timeout => self.on_timeout(),
        }
    }

    fn drain_effects(&mut self, effects: &mut Vec<Effect<Self>>) {
        if let RoleState::Primary(primary) = &mut self.role {
            primary.leading.send_gathered(self.now, &mut self.journal);
        }
        self.journal.drain_into(effects);
        if let Err(broken) = self.validate() {
            panic!("{} contradicts itself: {broken}", self.node);
        }
    }

    fn next_timeout(&self) -> Option<Moment> {
        let part = match &self.role {
            RoleState::Idle => None,
            RoleState::Follower(following) => self.next_of_follower(following),
            RoleState::Primary(primary) => self.next_of_primary(primary),
        };
        let pending = self.pending.as_ref().map(|pending| pending.retry_at);
        let named = self.named.map(|_| self.support.until());
        part.into_iter().chain(pending).chain(named).chain(self.asks_to_go_on_at()).min()
    }

    fn status(&self) -> CoreStatus {
        let (role, progress) = match &self.role {
            RoleState::Idle if self.state.is_learner => (Role::Learner, Vec::new()),
            RoleState::Idle => (Role::Follower, Vec::new()),
            RoleState::Follower(_) if !self.is_listed(self.node) => (Role::Learner, Vec::new()),
            RoleState::Follower(_) if self.pending.is_some() => (Role::Candidate, Vec::new()),
            RoleState::Follower(_) => (Role::Follower, Vec::new()),
            RoleState::Primary(primary) if primary.serves(self.now) => {
                (Role::Leader, primary.leading.progress())
            }
            RoleState::Primary(primary) => (Role::Candidate, primary.leading.progress()),
        };
        let current = match &self.role {
            RoleState::Primary(primary) => primary.current(),
            _ => self.journal.current(),
        };
        let measures = match &self.role {
            RoleState::Primary(primary) => primary.leading.measures,
            _ => self.measures,
        };
        CoreStatus {
            role,
            leader: self.leader(),
            current,
            epoch: self.state.promised,
            last: self.journal.last(),
            durable: self.journal.durable(),
            committed: self.journal.committed(),
            purged: self.journal.log().purged(),
            replicas: self.config.as_ref().map_or_else(Vec::new, |config| config.replicas.clone()),
            progress,
            measures,
        }
    }

    fn entries_message(preceding: Preceding, entries: Vec<Entry>) -> PacificaMessage {
        PacificaMessage::Prepare { preceding, entries }
    }
}

impl Streams for Pacifica {
    fn beacon_message(beacon: Beacon) -> PacificaMessage {
        PacificaMessage::Beacon(beacon)
    }

    fn snapshot_message(epoch: Epoch) -> PacificaMessage {
        PacificaMessage::Snapshot { epoch }
    }
}
