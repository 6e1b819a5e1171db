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
//!   timeline read sees some earlier state, and at one replica, for as long as it runs, never an
//!   earlier one than before.
//! * It serves as long as a single replica is there: one that does not answer is taken out of the
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
//! Every message of the primary is a beacon. A replica that acknowledges it promises not to become
//! primary for the grace, counted from when it received it. The primary serves as long as it holds a lease from
//! *all* secondaries, counted from when it sent what they acknowledged. A lease is shorter than a
//! grace, so the primary has stopped before another takes its place, and it needs no clock but its own
//! (P1).
//!
//! # When a replica is gone (§2.4)
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

mod candidates;
mod coordinator;
mod health;
mod identity;
mod membership;
mod message;
mod options;
mod primary;
mod proposal;
mod roles;
mod secondary;
mod validate;

use trireme_types::{Entry, Epoch, Lsn, NodeId, Protocol};

pub use self::coordinator::{Newest, Proposal};
pub use self::message::PacificaMessage;
pub use self::options::{PacificaFaults, PacificaOptions};

use self::health::Health;
use self::membership::Membership;
use self::roles::RoleState;
use crate::core::{Core, CoreStatus, Effect, Event, Moment, Recovered, Rest};
use crate::replica::Role;
use crate::streaming::wire::HardState;
use crate::streaming::{self, Beacon, Leading, Preceding, RoleStatus, StreamingFaults, Streams};

/// What the methods of every role work on. The promised epoch is the newest version that the replica
/// has acted in.
type Shared = streaming::Shared<Pacifica>;

/// One replica of a cohort.
#[derive(Debug)]
pub struct Pacifica {
    shared: Shared,
    role: RoleState,
}

impl Pacifica {
    /// Returns a replica as its disk describes it, or the reason why it cannot be one.
    pub fn new(recovered: &Recovered, options: PacificaOptions) -> Result<Self, String> {
        options.timing.validate().map_err(|error| error.to_string())?;
        let kept = recovered.hard_state.clone().map(HardState::decode).transpose()?;
        let mut state = kept.unwrap_or_default();
        let incarnation = *state.incarnation.get_or_insert(options.incarnation);
        let (timing, rejoins) = (options.timing, options.rejoins);
        let membership = Membership {
            cohort: recovered.cohort,
            options,
            incarnation,
            is_new: kept.is_none() && !rejoins,
            promised_at_start: state.promised,
            config: None,
            pending: None,
            named: None,
            becomes_primary_at: None,
            health: Health::default(),
            stepped_down: None,
            released: 0,
        };
        let mut shared = Shared::new(recovered, timing, state, true, membership);
        if rejoins && kept.is_none() {
            //= PAC-44
            shared.keep(HardState { is_learner: true, ..state });
        } else if kept.is_some_and(|kept| kept.incarnation.is_none()) {
            // It was written before replicas had one. A new replica writes its own with the first
            // version that it acts in.
            shared.keep(state);
        }
        Ok(Self { shared, role: RoleState::Idle })
    }

    /// Records how far the table has come.
    fn on_applied(&mut self, upto: Lsn) {
        let cx = &mut self.shared;
        cx.applied = cx.applied.max(upto);
        cx.own.health.on_applied(cx.now);
        if let RoleState::Primary(primary) = &mut self.role {
            cx.note_served();
            primary.begin_serving(cx, upto);
        }
    }

    fn on_durable(&mut self, upto: trireme_storage::IoId) {
        let cx = &mut self.shared;
        cx.journal.on_durable(upto);
        cx.own.health.on_durable(cx.now);
        if cx.own.becomes_primary_at.take_if(|io| *io <= upto).is_some() {
            self.become_primary();
        }
        if let RoleState::Primary(primary) = &mut self.role {
            primary.advance(&mut self.shared);
        }
    }
}

impl Core for Pacifica {
    const PROTOCOL: Protocol = Protocol::Pacifica;

    type Message = PacificaMessage;
    type Context = Preceding;
    type CoordinatorRequest = Proposal;
    type CoordinatorEvent = Newest;

    fn handle(&mut self, now: Moment, event: Event<Self>) {
        let cx = &mut self.shared;
        cx.set_clock(now, true);
        cx.note_rest();
        if matches!(event, Event::SnapshotInstalled { .. }) {
            cx.own.health.on_applied(now);
        }
        let Some(event) = streaming::handle(self, event) else { return };
        match event {
            Event::Propose { ticket, payload } => {
                if let RoleState::Primary(primary) = &mut self.role {
                    primary.on_propose(&mut self.shared, ticket, payload);
                }
            }
            Event::Read { ticket } => self.as_primary(|primary, cx| primary.on_read(cx, ticket)),
            Event::TransferLeader { ticket, to } => {
                if let RoleState::Primary(primary) = &mut self.role {
                    primary.on_transfer(&mut self.shared, ticket, to);
                }
            }
            Event::Durable { upto } => self.on_durable(upto),
            Event::Applied { upto } => self.on_applied(upto),
            Event::SnapshotOffered { ticket, message, upto, .. } => {
                self.on_snapshot(ticket, &message, upto);
            }
            Event::Coordination(Newest(config)) => self.on_config(config),
            Event::PeerAlive { node } => self.on_peer_alive(node),
            Event::Timeout => self.on_timeout(),
            // Of a lost peer only the silence counts, at either side: it is what leases are made of
            // (§2.3).
            _ => {}
        }
    }

    fn drain_effects(&mut self, effects: &mut Vec<Effect<Self>>) {
        streaming::drain(self, effects);
    }

    fn validate(&self) -> Result<(), String> {
        self.shared.validate()?;
        match &self.role {
            RoleState::Idle => Ok(()),
            RoleState::Secondary(secondary) => secondary.following.validate(self.shared.node),
            RoleState::Primary(primary) => primary.validate(&self.shared),
        }
    }

    fn next_timeout(&self) -> Option<Moment> {
        let cx = &self.shared;
        let of_role = match &self.role {
            RoleState::Idle => None,
            RoleState::Secondary(secondary) => secondary.next_timeout(cx),
            RoleState::Primary(primary) => primary.next_timeout(cx),
        };
        let pending = cx.own.pending.as_ref().map(|pending| pending.retry_at);
        let named = cx.own.named.map(|_| cx.support.until());
        [of_role, pending, named, cx.asks_to_go_on_at()].into_iter().flatten().min()
    }

    fn rest(&self) -> Option<Rest> {
        let cx = &self.shared;
        let own = &cx.own;
        let waits = own.pending.is_some() || own.named.is_some() || own.stepped_down.is_some();
        let acts = own.config.as_ref().is_some_and(|config| config.version == cx.state.promised);
        // One that is to get another replica soon has something to do.
        if waits || !acts || own.is_missing_one() || own.becomes_primary_at.is_some() {
            return None;
        }
        match &self.role {
            RoleState::Idle => None,
            RoleState::Secondary(secondary) => {
                let follows = own.is_listed(cx.node) && own.primary() == secondary.following.leader;
                follows.then(|| cx.rest(&secondary.following, cx.state.promised)).flatten()
            }
            RoleState::Primary(primary) => primary.rest(cx),
        }
    }

    fn status(&self) -> CoreStatus {
        let cx = &self.shared;
        let (role, current, progress, measures) = match &self.role {
            RoleState::Primary(primary) => {
                let role = if primary.serves(cx.now) { Role::Leader } else { Role::Candidate };
                let (progress, measures) = (primary.leading.progress(), primary.leading.measures);
                (role, primary.current(), progress, measures)
            }
            role => {
                let role = match role {
                    RoleState::Idle if cx.state.is_learner => Role::Learner,
                    RoleState::Idle => Role::Follower,
                    _ if !cx.own.is_listed(cx.node) => Role::Learner,
                    _ if cx.own.pending.is_some() => Role::Candidate,
                    _ => Role::Follower,
                };
                (role, cx.journal.current(), Vec::new(), cx.measures)
            }
        };
        let of_role = RoleStatus { role, leader: self.leader(), current, progress, measures };
        let config = cx.own.config.as_ref();
        let replicas = config.map_or_else(Vec::new, |config| config.replicas.clone());
        cx.status(of_role, cx.state.promised, replicas)
    }

    fn entries_message(preceding: Preceding, entries: Vec<Entry>) -> PacificaMessage {
        PacificaMessage::Prepare { preceding, entries }
    }
}

impl Streams for Pacifica {
    type Own = Membership;

    fn beacon_message(beacon: Beacon) -> PacificaMessage {
        PacificaMessage::Beacon(beacon)
    }

    fn snapshot_message(epoch: Epoch) -> PacificaMessage {
        PacificaMessage::Snapshot { epoch }
    }

    fn position_message(cx: &Shared, epoch: Epoch) -> PacificaMessage {
        let is_candidate = !cx.own.is_listed(cx.node);
        let (position, incarnation) = (cx.position(is_candidate), cx.own.incarnation);
        PacificaMessage::ReportPosition { epoch, position, incarnation }
    }

    fn reject_message(promised: Epoch) -> PacificaMessage {
        PacificaMessage::RejectStaleEpoch { epoch: promised }
    }

    fn epoch(cx: &Shared) -> Epoch {
        cx.state.promised
    }

    fn faults(cx: &Shared) -> StreamingFaults {
        cx.own.options.streaming_faults
    }

    fn leader(&self) -> Option<NodeId> {
        match &self.role {
            RoleState::Idle => None,
            // One that was only named, and has not been heard, may not be up to it yet.
            RoleState::Secondary(secondary) => {
                secondary.following.leader.filter(|_| secondary.following.is_streaming)
            }
            RoleState::Primary(primary) => {
                primary.serves(self.shared.now).then_some(self.shared.node)
            }
        }
    }

    fn parts(&mut self) -> (&mut Shared, Option<&mut Leading>) {
        let leading = match &mut self.role {
            RoleState::Primary(primary) => Some(&mut primary.leading),
            _ => None,
        };
        (&mut self.shared, leading)
    }

    fn on_message(&mut self, from: NodeId, message: PacificaMessage) {
        match message {
            PacificaMessage::Prepare { preceding, entries } => {
                if self.accepts(from, preceding.epoch) {
                    self.as_secondary(|role, cx| role.on_prepare(cx, from, &preceding, entries));
                }
            }
            PacificaMessage::Prepared { epoch, upto, supports, incarnation } => {
                self.as_primary(|role, cx| {
                    if !role.is_known_as(cx, from, incarnation) {
                        return primary::GOES_ON;
                    }
                    role.on_prepared(cx, from, (epoch, upto), supports)
                });
            }
            PacificaMessage::Beacon(beacon) => {
                if self.accepts(from, beacon.epoch) {
                    self.as_secondary(|role, cx| role.on_beacon(cx, from, beacon));
                }
            }
            PacificaMessage::BeaconAck { epoch, supports, incarnation } => {
                self.as_primary(|role, cx| {
                    if !role.is_known_as(cx, from, incarnation) {
                        return primary::GOES_ON;
                    }
                    role.on_beacon_ack(cx, from, epoch, supports)
                });
            }
            PacificaMessage::ReportPosition { epoch, position, incarnation } => {
                let report = (position, incarnation);
                self.as_primary(|role, cx| role.on_report_position(cx, from, epoch, report));
            }
            PacificaMessage::RejectStaleEpoch { epoch } => {
                self.as_primary(|role, cx| role.on_reject_stale_epoch(cx, epoch));
            }
            PacificaMessage::StepDown { epoch } => self.on_step_down(from, epoch),
            // It comes with a snapshot only.
            PacificaMessage::Snapshot { .. } => {}
        }
    }

    fn on_supported(&mut self) {
        if let RoleState::Primary(primary) = &mut self.role {
            primary.take_in_leases(&self.shared);
        }
    }
}
