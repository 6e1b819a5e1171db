//! What stands in for the drivers and the network of a scripted cluster.

use std::error::Error;
use std::fmt::Write as _;

use bytes::Bytes;
use trireme_replication::core::{Effect, Event, Message, Reply, Ticket};
use trireme_replication::{ErrorClass, Role};
use trireme_types::{Lsn, NodeId};

use super::super::invariants::{Disks, cores, log_matching};
use super::super::mistakes::Mistake;
use super::super::network::{Content, Envelope, Way};
use super::super::node::{Asked, Live, Node, Piece, SEND_LOG_ENTRIES_MAX};
use super::super::{ScriptCoordinator, Subject, format};
use super::Runner;

impl<S: Subject> Runner<S> {
    pub(super) fn start(&mut self, id: NodeId) {
        self.cluster.starts += 1;
        let cluster = self.cluster.clone();
        self.coordinator.started(id);
        self.live_or_dead(id).start(&cluster);
        self.drain(id);
        self.settle(id);
    }

    pub(super) fn ask(
        &mut self,
        node: u64,
        asked: Asked,
        event: impl FnOnce(Ticket) -> Event<S>,
    ) -> Result<(), Box<dyn Error>> {
        let node = self.node(node)?;
        if node.live.is_none() {
            return Err(format!("{} is dead", node.id).into());
        }
        let id = node.id;
        let Some(ticket) = node.ask(asked.clone(), event) else { return Ok(()) };
        match asked {
            Asked::Write { changes, request } => {
                self.invariants.history.write_asked((id, ticket), request, &changes);
            }
            Asked::Read { .. } => {
                self.invariants.history.read_asked((id, ticket));
                self.invariants.seals.read_asked((id, ticket));
            }
            Asked::Seal | Asked::Other | Asked::Snapshot { .. } => {}
        }
        self.settle(id);
        Ok(())
    }

    /// Tells a core something, if it is alive.
    pub(super) fn tell(&mut self, id: NodeId, event: Event<S>) {
        if let Some(live) = &mut self.live_or_dead(id).live {
            live.events.push_back(event);
        }
        self.settle(id);
    }

    /// Has a node work until it rests: every event handled, every effect performed, the disk and
    /// the table as far as they can be.
    pub(super) fn settle(&mut self, id: NodeId) {
        loop {
            if self.live_or_dead(id).is_paused {
                return;
            }
            if self.handle_next(id) {
                while self.is_batching && self.handle_next(id) {}
                self.drain(id);
                self.check(id);
                continue;
            }
            if let Some(effect) = self.live_or_dead(id).release() {
                self.perform(id, effect, "leaves");
                continue;
            }
            let (now, install) = (self.now, self.install);
            let (worked, answer) = self.live_or_dead(id).work(now, install);
            if let Some(answer) = answer {
                self.acknowledged(id, &answer);
            }
            if !worked {
                return;
            }
        }
    }

    /// Has a core handle the event that has waited longest, if one waits.
    fn handle_next(&mut self, id: NodeId) -> bool {
        let now = self.clocks.local(id, self.now);
        let Some(live) = &mut self.live_or_dead(id).live else { return false };
        let Some(event) = live.events.pop_front() else { return false };
        if !self.is_quiet {
            let text = format::event(&event);
            self.print(id, &text);
        }
        let Some(live) = &mut self.live_or_dead(id).live else { return false };
        live.core.handle(now, event);
        true
    }

    pub(super) fn drain(&mut self, id: NodeId) {
        let mut effects = Vec::new();
        if let Some(live) = &mut self.live_or_dead(id).live {
            live.core.drain_effects(&mut effects);
        }
        for effect in effects {
            match format::condition(&effect) {
                Some(when) if !self.nodes[&id].holds(when) => {
                    if !self.is_quiet {
                        let text = format::effect(&effect, "send");
                        self.print_effect(id, &format!("{text} when {when}"));
                    }
                    self.live_or_dead(id).keep(when, effect);
                }
                _ => self.perform(id, effect, "send"),
            }
        }
    }

    pub(super) fn perform(&mut self, id: NodeId, effect: Effect<S>, verb: &str) {
        let text = self.shown(|| format::effect(&effect, verb));
        match effect {
            Effect::Persist(write) => {
                let io = self.live_or_dead(id).disk.write(write);
                self.print_effect(id, &text.replacen("persist", &format!("persist {}", io.0), 1));
            }
            Effect::Send { to, lane, message, .. } => {
                let content = Content::Message(message.encode());
                let text = self.shown(|| message.to_string());
                self.send_by(lane.into(), id, to, content, text, verb);
            }
            Effect::SendLog { to, previous, seqs, context, .. } => {
                self.print_effect(id, &text);
                let piece = Piece { to, previous, seqs, context };
                match &mut self.live_or_dead(id).live {
                    Some(Live { unsent: Some(unsent), .. }) => unsent.push(piece),
                    _ => self.send_log(id, piece, verb),
                }
            }
            Effect::SendSnapshot { to, .. } if self.nodes[&id].table.seal().is_some() => {
                // The rows may be a successor's by now (RANGE-13).
                self.print_effect(id, &text);
                self.invariants.seals.withheld += 1;
                self.queue(id, Event::SnapshotSent { to, answer: None });
            }
            Effect::SendSnapshot { to, message, .. } => {
                let table = self.nodes[&id].table.clone();
                let shown = self.shown(|| format!("snapshot at {}: {message}", table.applied));
                let content = Content::Snapshot { message: message.encode(), table };
                if !self.send(id, to, content, shown, verb) {
                    self.queue(id, Event::SnapshotSent { to, answer: None });
                }
            }
            Effect::InstallSnapshot { ticket } => {
                self.print_effect(id, &text);
                let live = self.live_or_dead(id).live.as_mut().expect("its core had an effect");
                live.installing.push_back(ticket);
            }
            Effect::Commit { upto } => {
                self.print_effect(id, &text);
                self.commit(id, upto);
            }
            Effect::ReplyOutcomes { ticket, lsn } => {
                self.print_effect(id, &text);
                let node = self.live_or_dead(id);
                assert!(node.table.applied.seq < lsn.seq, "{lsn} was applied before its reply");
                let live = node.live.as_mut().expect("its core had an effect");
                live.proposals.insert(lsn.seq, (lsn, ticket));
                if let Some(least) = self.cluster.number("min") {
                    let least = usize::try_from(least).expect("a small number");
                    Disks::has_least(id, lsn, least, &self.nodes);
                }
            }
            Effect::Reply { ticket, reply, .. } => {
                self.answer(id, ticket, &reply);
                if self.cluster.mistake() == Some(Mistake::AnswersTwice) {
                    self.answer(id, ticket, &reply);
                }
            }
            Effect::Coordinate { request, .. } => {
                self.print_effect(id, &text);
                self.coordinator.request(id, request);
            }
            Effect::EndReads => {
                self.print_effect(id, &text);
                if self.cluster.mistake() != Some(Mistake::IgnoresEndOfReads) {
                    self.invariants.rights.reads_no_more(id);
                }
            }
        }
    }

    pub(super) fn send_log(&mut self, id: NodeId, piece: Piece<S>, verb: &str) {
        let Piece { to, previous, seqs, context } = piece;
        let disk = &self.nodes[&id].disk;
        let is_preceded = disk.memory.lsn_at(previous.seq) == Some(previous);
        let entries_max = if is_preceded { SEND_LOG_ENTRIES_MAX } else { 0 };
        let mut entries = disk.read(seqs.clone(), entries_max);
        if let ([first, second, ..], Some(Mistake::MixesEntries)) =
            (&mut entries[..], self.cluster.mistake())
        {
            std::mem::swap(&mut first.payload, &mut second.payload);
            std::mem::swap(&mut first.kind, &mut second.kind);
        }
        let next = seqs.start + entries.len() as u64;
        if !entries.is_empty() {
            let message = S::entries_message(context, entries);
            let content = Content::Message(message.encode());
            let text = self.shown(|| message.to_string());
            self.send(id, to, content, text, verb);
        }
        self.queue(id, Event::LogSent { to, seqs, next });
    }

    pub(super) fn answer(&mut self, id: NodeId, ticket: Ticket, reply: &Reply<S>) {
        let (text, asked) = self.live_or_dead(id).answer(ticket, reply);
        self.print_effect(id, &text);
        let caller = (id, ticket);
        match (asked, reply) {
            (Some(Asked::Snapshot { from, .. }), reply) => {
                let message = match reply {
                    Reply::Message(message) => Some(message.encode()),
                    _ => None,
                };
                let content = Content::SnapshotAnswer(message);
                // The sender waits for it on a connection of its own, and learns of the loss.
                if !self.send(id, from, content, "snapshot answer".into(), "send") {
                    self.tell(from, Event::SnapshotSent { to: id, answer: None });
                }
            }
            (Some(Asked::Read { .. }), Reply::Read { .. })
                if self.nodes[&id].table.seal().is_some() =>
            {
                self.invariants.history.refused(caller);
            }
            (Some(Asked::Read { key }), Reply::Read { until }) => {
                self.invariants.seals.read_answered(caller);
                let value = self.nodes[&id].table.value(&key);
                let value = value.map(|value| value.escape_ascii().to_string());
                let until = until.map(|until| self.clocks.global(id, until));
                self.invariants.rights.may_read(id, until, self.now);
                self.invariants.history.found(caller, &key, value.as_deref());
            }
            (_, Reply::Error(error))
                if error.class() == ErrorClass::Unknown
                    && self.cluster.mistake() != Some(Mistake::UnknownIsRefused) =>
            {
                self.invariants.history.unanswered(caller);
            }
            (_, Reply::Error(_)) => self.invariants.history.refused(caller),
            _ => {}
        }
    }

    /// Takes a commit point from a core, and checks that the cohort agrees on what it commits.
    pub(super) fn commit(&mut self, id: NodeId, upto: Lsn) {
        let node = self.nodes.get_mut(&id).expect("a node of the cluster");
        let live = node.live.as_mut().expect("its core had an effect");
        for seq in live.committed.seq + 1..=upto.seq {
            let entry = node.disk.memory.entries.get(&seq);
            let entry = entry.unwrap_or_else(|| panic!("{id} commits {seq} and lacks it"));
            self.invariants.agreement.commits(id, entry);
        }
        live.committed = live.committed.max(upto);
    }

    /// Checks what must hold of every replica whose core has been told everything.
    pub(super) fn check(&mut self, id: NodeId) {
        let Some(status) = self.nodes[&id].status() else { return };
        self.live_or_dead(id).is_learner = status.role == Role::Learner;
        if status.role == Role::Leader {
            self.invariants.leaders.leads(id, status.epoch);
        }
        if self.nodes[&id].live.as_ref().is_some_and(|live| !live.events.is_empty()) {
            return;
        }
        if self.live_or_dead(id).has_changed() {
            log_matching::check(id, &self.nodes);
        }
        let node = &self.nodes[&id];
        let leads = (status.role == Role::Leader).then_some(status.epoch);
        self.invariants.ends(node, leads);
        if let Some(live) = &node.live {
            cores::check(id, &live.core, &status, node.disk.memory.last());
        }
    }

    pub(super) fn send(
        &mut self,
        from: NodeId,
        to: NodeId,
        content: Content,
        text: String,
        verb: &str,
    ) -> bool {
        let way = if matches!(content, Content::Message(_)) { Way::Data } else { Way::Own };
        self.send_by(way, from, to, content, text, verb)
    }

    fn send_by(
        &mut self,
        way: Way,
        from: NodeId,
        to: NodeId,
        content: Content,
        text: String,
        verb: &str,
    ) -> bool {
        let shown = self.shown(|| text.clone());
        let number = self.network.send(Envelope { from, to, content, way, text });
        if !self.is_quiet {
            let number = number.map_or("(lost)".into(), |number| format!("#{number}"));
            self.print_effect(from, &format!("{verb} {to} {number}: {shown}"));
        }
        number.is_some()
    }

    pub(super) fn deliver(&mut self, id: u64, envelope: Envelope) {
        if self.nodes[&envelope.to].live.is_none() {
            return self.lose(id, envelope);
        }
        let Envelope { from, to, content, .. } = envelope;
        let decode = |bytes: Bytes| S::Message::decode(bytes).expect("a message reads back");
        match content {
            Content::Message(bytes) => {
                self.tell(to, Event::Message { from, message: decode(bytes) });
            }
            Content::Snapshot { message, table } => {
                let upto = table.applied;
                let message = decode(message);
                let asked = Asked::Snapshot { from, table };
                let offered = |ticket| Event::SnapshotOffered { ticket, from, message, upto };
                let _ticket = self.live_or_dead(to).ask(asked, offered);
                self.settle(to);
            }
            Content::SnapshotAnswer(answer) => {
                let answer = answer.map(decode);
                self.tell(to, Event::SnapshotSent { to: from, answer });
            }
        }
    }

    pub(super) fn lose(&mut self, id: u64, envelope: Envelope) {
        let Envelope { from, to, content, text, .. } = envelope;
        self.print_line(&self.shown(|| format!("#{id} {from} -> {to} is lost: {text}")));
        // Snapshots go over connections of their own, so their senders learn of a loss.
        match content {
            Content::Message(_) => {}
            Content::Snapshot { .. } => self.tell(from, Event::SnapshotSent { to, answer: None }),
            Content::SnapshotAnswer(_) => {
                self.tell(to, Event::SnapshotSent { to: from, answer: None });
            }
        }
    }

    /// Loses the snapshots among these; messages are gone without a word.
    pub(super) fn lose_snapshots(&mut self, lost: Vec<(u64, Envelope)>) {
        let is_snapshot = |e: &Envelope| !matches!(e.content, Content::Message(_));
        let snapshots = lost.into_iter().filter(|(_, envelope)| is_snapshot(envelope));
        snapshots.for_each(|(id, envelope)| self.lose(id, envelope));
    }

    pub(super) fn queue(&mut self, id: NodeId, event: Event<S>) {
        if let Some(live) = &mut self.live_or_dead(id).live {
            live.events.push_back(event);
        }
    }

    /// Returns who reaches whom, in order.
    pub(super) fn connections(&self) -> Vec<(NodeId, NodeId, bool)> {
        let live = |id: &NodeId| self.nodes[id].live.is_some();
        let pairs = self.cluster.nodes.iter().flat_map(|a| {
            self.cluster.nodes.iter().filter(move |b| *b != a).map(move |b| (*a, *b))
        });
        pairs.map(|(a, b)| (a, b, live(&a) && live(&b) && self.network.connects(a, b))).collect()
    }

    /// Tells everybody who has gone out of reach or come back.
    pub(super) fn tell_connections(&mut self, before: &[(NodeId, NodeId, bool)]) {
        for (was, is) in before.iter().zip(self.connections()) {
            let (id, node, connects) = is;
            match (was.2, connects) {
                (true, false) => self.tell(id, Event::PeerLost { node }),
                (false, true) => self.tell(id, Event::PeerAlive { node }),
                _ => {}
            }
        }
    }

    pub(super) fn node(&mut self, node: u64) -> Result<&mut Node<S>, Box<dyn Error>> {
        self.nodes.get_mut(&NodeId(node)).ok_or_else(|| format!("there is no n{node}").into())
    }

    pub(super) fn live_or_dead(&mut self, id: NodeId) -> &mut Node<S> {
        self.nodes.get_mut(&id).expect("a node of the cluster")
    }

    pub(super) fn print(&mut self, id: NodeId, text: &str) {
        self.print_line(&self.shown(|| format!("{id} {text}")));
    }

    pub(super) fn print_effect(&mut self, id: NodeId, text: &str) {
        self.print_line(&self.shown(|| format!("{id}   {text}")));
    }

    /// Returns what is to be printed, or nothing if nothing is: most of a quiet run's time went there.
    pub(super) fn shown(&self, text: impl FnOnce() -> String) -> String {
        if self.is_quiet { String::new() } else { text() }
    }

    #[expect(clippy::print_stdout, reason = "it is what a loud runner is for")]
    pub(super) fn print_line(&mut self, line: &str) {
        if self.is_quiet {
            return;
        }
        if self.is_loud {
            println!("{line}");
        }
        writeln!(self.output, "{line}").expect("a string takes every line");
    }
}
