//! One replica of a scripted cluster: its core, and what stands in for its driver.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use trireme_replication::ReplicaStatus;
use trireme_replication::core::{Effect, Event, Moment, Recovered, Reply, Ticket, When};
use trireme_storage::IoId;
use trireme_types::{CohortId, Entry, EntryKind, Lsn, NodeId, Outcome};

use super::disk::{Disk, LogImage};
use super::invariants::{ANSWERED_ONCE, Request};
use super::mistakes::Mistake;
use super::table::{Applied, Table};
use super::{Cluster, Subject, format};

/// The one cohort of every script.
pub(crate) const COHORT: CohortId = CohortId(1);

/// The most entries that one message carries when they are read from the log.
pub(crate) const SEND_LOG_ENTRIES_MAX: usize = 3;

/// What was asked for under a ticket.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    /// Keys with the values that they are to get; none to delete one.
    Write {
        changes: Vec<(String, Option<String>)>,
        /// Its name, if the client may send it again.
        request: Option<Request>,
    },
    Read {
        key: String,
    },
    Seal,
    Other,
    Snapshot {
        from: NodeId,
        table: Table,
    },
}

/// What became of a proposal.
pub(crate) struct Answer {
    pub(crate) ticket: Ticket,
    pub(crate) lsn: Lsn,
    pub(crate) request: Option<Request>,
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) text: String,
}

/// One node.
pub(crate) struct Node<S: Subject> {
    pub(crate) id: NodeId,
    pub(crate) disk: Disk,
    pub(crate) table: Table,
    /// What is left of the table after a crash.
    pub(crate) flushed: Table,
    /// `None` while the node is dead.
    pub(crate) live: Option<Live<S>>,
    /// Whether the disk has lost what was on it.
    pub(crate) was_wiped: bool,
    /// Whether the replica said last that it counts in no majority.
    pub(crate) is_learner: bool,
    /// What was on the disk when it was lost, each time.
    pub(crate) lost: Vec<LogImage>,
    /// The number of the start that found the disk empty; 0 until there is one.
    pub(crate) incarnation: u64,
    tickets: u64,
    pub(crate) is_paused: bool,
    /// Whether the table neither applies nor installs anything.
    pub(crate) is_table_stalled: bool,
    /// When the snapshot is installed that is being installed.
    pub(crate) installed_at: Option<Moment>,
    /// How many snapshots were installed.
    pub(crate) installed: u64,
    /// The number of the newest start.
    pub(crate) run: u64,
    /// How many of its timeouts in a row were due again at once.
    pub(crate) timeouts: u32,
    /// The mistake that it makes.
    mistake: Option<Mistake>,
    /// As of which change the log was compared with those of the others.
    compared: u64,
}

/// What a node has while it is alive.
pub(crate) struct Live<S: Subject> {
    pub(crate) core: S,
    pub(crate) events: VecDeque<Event<S>>,
    pub(crate) open: BTreeMap<Ticket, Asked>,
    /// Proposals that wait for their entry to be applied.
    pub(crate) proposals: BTreeMap<u64, (Lsn, Ticket)>,
    pub(crate) durable: IoId,
    /// How far the core wants entries applied.
    pub(crate) committed: Lsn,
    /// Effects that may not leave yet, in order.
    waiting: VecDeque<(When, Effect<S>)>,
    /// Snapshots that are to be installed, in order, before anything more is applied.
    pub(crate) installing: VecDeque<Ticket>,
    /// Pieces of the log that a stalled sender holds back; none if it is not stalled.
    pub(crate) unsent: Option<Vec<Piece<S>>>,
}

/// A piece of the log that is to be sent.
pub(crate) struct Piece<S: Subject> {
    pub(crate) to: NodeId,
    pub(crate) previous: Lsn,
    pub(crate) seqs: Range<u64>,
    pub(crate) context: S::Context,
}

impl<S: Subject> Node<S> {
    pub(crate) fn new(id: NodeId) -> Self {
        let (disk, table, flushed) = <(Disk, Table, Table)>::default();
        Self {
            id,
            disk,
            table,
            flushed,
            live: None,
            was_wiped: false,
            is_learner: false,
            lost: Vec::new(),
            incarnation: 0,
            tickets: 0,
            is_paused: false,
            is_table_stalled: false,
            installed_at: None,
            installed: 0,
            run: 0,
            timeouts: 0,
            mistake: None,
            compared: 0,
        }
    }

    /// Returns true if the log has changed since this was asked last.
    pub(crate) const fn has_changed(&mut self) -> bool {
        let compared = std::mem::replace(&mut self.compared, self.disk.changes);
        compared != self.disk.changes
    }

    /// Returns true if this entry is durable now, on the disk that the replica has.
    pub(crate) fn keeps(&self, entry: &Entry) -> bool {
        self.disk.durable().keeps(entry)
    }

    /// Starts the core from what the disk holds.
    pub(crate) fn start(&mut self, cluster: &Cluster) {
        if self.disk.memory.hard_state.is_none() {
            self.incarnation = cluster.starts;
        }
        self.run = cluster.starts;
        self.mistake = cluster.mistake();

        let recovered = Recovered {
            node: self.id,
            cohort: COHORT,
            log: self.disk.memory.runs(),
            hard_state: self.disk.memory.hard_state.clone(),
            commit_point: self.disk.memory.commit_point,
            applied: self.table.applied,
            protocol_state: self.table.protocol_state.clone(),
        };
        self.live = Some(Live {
            core: S::start(recovered, cluster, self.was_wiped),
            events: VecDeque::new(),
            open: BTreeMap::new(),
            proposals: BTreeMap::new(),
            durable: IoId(0),
            committed: self.table.applied,
            waiting: VecDeque::new(),
            installing: VecDeque::new(),
            unsent: None,
        });
    }

    /// Kills the node. Returns the tickets that will never be answered.
    pub(crate) fn crash(&mut self) -> Vec<Ticket> {
        self.disk.crash();
        self.table = self.flushed.clone();
        (self.is_paused, self.installed_at) = (false, None);
        let live = self.live.take();
        live.map_or_else(Vec::new, |live| live.open.into_keys().collect())
    }

    /// Empties a dead node's disk.
    pub(crate) fn wipe(&mut self) {
        self.lost.push(self.disk.durable().clone());
        (self.disk, self.table, self.flushed) = Default::default();
        self.incarnation = 0;
        (self.was_wiped, self.is_learner) = (true, true);
    }

    /// Discards a dead node's replica. Nothing on the node notes that anything was lost.
    pub(crate) fn discard(&mut self) {
        self.lost.push(self.disk.durable().clone());
        (self.disk, self.table, self.flushed) = Default::default();
        self.incarnation = 0;
    }

    /// Makes one more forced write durable, even on a stalled disk.
    pub(crate) fn sync_one(&mut self) {
        let Some(live) = &mut self.live else { return };
        if let Some(upto) = self.disk.sync_one() {
            live.durable = upto;
            live.events.push_back(Event::Durable { upto });
        }
    }

    /// Says whether the replica has made this entry durable. What its disk had when it was lost
    /// counts: losing it a moment later would be no other failure.
    pub(crate) fn has_made_durable(&self, entry: &Entry) -> bool {
        self.disk.durable().keeps(entry) || self.lost.iter().any(|image| image.keeps(entry))
    }

    /// Opens a ticket and hands the core the event that asks under it, if it is alive.
    pub(crate) fn ask(
        &mut self,
        asked: Asked,
        event: impl FnOnce(Ticket) -> Event<S>,
    ) -> Option<Ticket> {
        let live = self.live.as_mut()?;
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        live.open.insert(ticket, asked);
        live.events.push_back(event(ticket));
        Some(ticket)
    }

    /// Returns true if it answers no strong read that comes now: a seal was proposed here whose fate is
    /// not known (RANGE-4).
    pub(crate) fn holds_reads(&self) -> bool {
        let is_seal = |asked: &Asked| matches!(asked, Asked::Seal);
        self.mistake != Some(Mistake::ReadsWhileSealing)
            && self.live.as_ref().is_some_and(|live| live.open.values().any(is_seal))
    }

    /// Closes a ticket and returns what to print: the answer, with the value if it was a read.
    pub(crate) fn answer(&mut self, ticket: Ticket, reply: &Reply<S>) -> (String, Option<Asked>) {
        let asked = self.close(ticket);
        let mut text = format!("reply {ticket}: {}", format::reply(reply));
        if let (Some(Asked::Read { key }), Reply::Read { .. }) = (&asked, reply) {
            text = match self.table.seal() {
                Some(_) => format!("reply {ticket}: none, the cohort has ended"),
                None => format!("{text} {}", self.table.row(key)),
            };
        }
        (text, asked)
    }

    /// Closes a ticket, which every answer must do exactly once.
    pub(crate) fn close(&mut self, ticket: Ticket) -> Option<Asked> {
        let asked = self.live.as_mut().and_then(|live| live.open.remove(&ticket));
        assert!(asked.is_some(), "{ANSWERED_ONCE}: {} answers {ticket} again", self.id);
        asked
    }

    /// Describes the replica as the server would.
    pub(crate) fn status(&self) -> Option<ReplicaStatus> {
        let status = self.live.as_ref()?.core.status();
        Some(ReplicaStatus {
            node: self.id,
            cohort: COHORT,
            protocol: S::PROTOCOL,
            role: status.role,
            leader: status.leader,
            epoch: status.epoch,
            last: status.last,
            durable: status.durable,
            committed: status.committed,
            applied: self.table.applied,
            purged: status.purged,
            replicas: status.replicas,
            progress: status.progress,
            measures: status.measures,
        })
    }

    /// Says whether something under this condition may leave.
    pub(crate) fn holds(&self, when: When) -> bool {
        let Some(live) = &self.live else { return false };
        match when {
            When::Now => true,
            When::Durable(io) => io <= live.durable,
            When::Applied(lsn) => lsn.seq <= self.table.applied.seq,
        }
    }

    /// Keeps an effect until its condition holds.
    pub(crate) fn keep(&mut self, when: When, effect: Effect<S>) {
        self.live.as_mut().expect("a core had an effect").waiting.push_back((when, effect));
    }

    /// Takes out the first effect whose condition holds now.
    pub(crate) fn release(&mut self) -> Option<Effect<S>> {
        let waiting = &self.live.as_ref()?.waiting;
        let ready = waiting.iter().position(|(when, _)| self.holds(*when))?;
        self.live.as_mut()?.waiting.remove(ready).map(|(_, effect)| effect)
    }

    /// Makes what can be durable so, and applies what is committed, one entry at a time; each tells
    /// the core. Returns whether anything happened, and the answer that this gave. A snapshot takes
    /// this long to install.
    pub(crate) fn work(&mut self, now: Moment, install: Duration) -> (bool, Option<Answer>) {
        let Some(live) = &mut self.live else { return (false, None) };
        let lie = Some(&self.disk).filter(|_| self.mistake == Some(Mistake::LyingDisk));
        let lie = lie.and_then(Disk::lie).filter(|upto| *upto > live.durable);
        if let Some(upto) = lie.or_else(|| self.disk.sync()) {
            live.durable = upto;
            live.events.push_back(Event::Durable { upto });
            return (true, None);
        }
        if self.is_table_stalled {
            return (false, None);
        }
        if let Some(ticket) = live.installing.front().copied() {
            if now < *self.installed_at.get_or_insert(now + install) {
                return (false, None);
            }
            self.installed_at = None;
            live.installing.pop_front();
            self.install(ticket);
            return (true, None);
        }
        self.apply_next()
    }

    fn apply_next(&mut self) -> (bool, Option<Answer>) {
        let Some(live) = &mut self.live else { return (false, None) };
        let is_ahead = self.mistake == Some(Mistake::AppliesAhead);
        if self.table.applied.seq >= live.committed.seq && !is_ahead {
            return (false, None);
        }
        let seq = self.table.applied.seq + 1;
        let entry = match self.disk.memory.entries.get(&seq) {
            Some(entry) => entry,
            None if is_ahead => return (false, None),
            None => panic!("what is committed is in the log"),
        };
        // As in the driver, a table never runs ahead of its own log.
        if !self.disk.has_forced(entry) {
            return (false, None);
        }
        if entry.kind == EntryKind::NoOp && self.mistake == Some(Mistake::ForgetsRequests) {
            self.table.forget_requests();
        }
        if self.mistake == Some(Mistake::ForgetsSeal) {
            self.table.forget_seal();
        }
        let Applied { outcomes, .. } = self.table.apply(entry);
        let lsn = entry.lsn;
        live.events.push_back(Event::Applied { upto: lsn });
        let proposal = live.proposals.remove(&seq);
        let answer = proposal.map(|(proposed, ticket)| {
            assert_eq!(proposed, lsn, "{ticket} was promised the outcome of another entry");
            let request = match self.close(ticket) {
                Some(Asked::Write { request, .. }) => request,
                _ => None,
            };
            let text = format!("reply {ticket}: {}", format::outcomes(lsn, &outcomes));
            Answer { ticket, lsn, request, outcomes, text }
        });
        (true, answer)
    }

    /// Puts the snapshot that was offered under a ticket in the table's place, durably.
    fn install(&mut self, ticket: Ticket) {
        let Some(live) = &mut self.live else { return };
        let Some(Asked::Snapshot { table, .. }) = live.open.get(&ticket) else {
            panic!("{}: no snapshot was offered under {ticket}", self.id);
        };
        let upto = table.applied;
        if upto <= self.table.applied {
            live.events.push_back(Event::SnapshotOutdated { ticket });
            return;
        }
        (self.table, self.flushed) = (table.clone(), table.clone());
        self.installed += 1;
        live.committed = live.committed.max(upto);
        live.events.push_back(Event::SnapshotInstalled { ticket, upto });
    }

    /// Returns the newest entry that a timeline read says its state includes.
    pub(crate) fn names(&self) -> Lsn {
        match &self.live {
            Some(live) if self.mistake == Some(Mistake::NamesCommitted) => live.committed,
            _ => self.table.applied,
        }
    }

    /// Returns when the core wants to be woken.
    pub(crate) fn next_timeout(&self) -> Option<Moment> {
        self.live.as_ref().and_then(|live| live.core.next_timeout())
    }
}
