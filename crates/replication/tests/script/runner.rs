//! Runs the commands of a script on a cluster.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use trireme_replication::core::{Effect, Event, Message, Moment, Reply, Ticket, When};
use trireme_types::{Command as Write, CommandBatch, Condition, Entry, Lsn, NodeId, Operation};

use super::command::Command;
use super::network::{Content, Envelope, Network, Selection};
use super::node::{Asked, Node, SEND_LOG_ENTRIES_MAX};
use super::{Cluster, ScriptCoordinator, Subject, Told, format};

/// The most messages that `stabilize` delivers: a protocol that never comes to rest is an error.
const STABILIZE_MESSAGES_MAX: usize = 1000;

/// How long messages stay on the network while time runs.
const RUN_STEP: Duration = Duration::from_millis(5);

/// A cluster with its script's output.
pub(crate) struct Runner<S: Subject> {
    cluster: Cluster,
    nodes: BTreeMap<NodeId, Node<S>>,
    network: Network,
    coordinator: S::Coordinator,
    now: Moment,
    /// What any replica has ever committed.
    committed: BTreeMap<u64, Entry>,
    output: String,
}

impl<S: Subject> Default for Runner<S> {
    fn default() -> Self {
        Self {
            cluster: Cluster { nodes: Vec::new(), leader: NodeId(1), options: BTreeMap::new() },
            nodes: BTreeMap::new(),
            network: Network::default(),
            coordinator: S::Coordinator::default(),
            now: Moment::START,
            committed: BTreeMap::new(),
            output: String::new(),
        }
    }
}

impl<S: Subject> goldenscript::Runner for Runner<S> {
    type Command = Command;

    fn run(
        &mut self,
        command: &Command,
        _context: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        self.output.clear();
        self.execute(command)?;
        Ok(std::mem::take(&mut self.output))
    }
}

// The script's commands.
impl<S: Subject> Runner<S> {
    fn execute(&mut self, command: &Command) -> Result<(), Box<dyn Error>> {
        match command {
            Command::Cluster { nodes, leader, options } => {
                self.start_cluster(*nodes, *leader, options);
            }
            Command::Put(node, pairs) => self.propose(*node, pairs.iter().map(put).collect())?,
            Command::Delete(node, keys) => {
                self.propose(*node, keys.iter().map(|key| delete(key)).collect())?;
            }
            Command::Get { node, key, level } => self.get(*node, key, level.as_deref())?,
            Command::Deliver { ids, from, to } => {
                let taken = self.network.take(&selection(ids, *from, *to));
                taken.into_iter().for_each(|(id, envelope)| self.deliver(id, envelope));
            }
            Command::Drop { ids, from, to } => {
                for (id, envelope) in self.network.take(&selection(ids, *from, *to)) {
                    self.lose(id, envelope);
                }
            }
            Command::Partition(nodes) => self.partition(nodes),
            Command::Cut(from, to) => self.network.cut(NodeId(*from), NodeId(*to)),
            Command::Heal => self.heal(),
            Command::Run(milliseconds) => self.run_for(Duration::from_millis(*milliseconds)),
            Command::Transfer(node, to) => {
                let to = NodeId(*to);
                let event = |ticket| Event::TransferLeader { ticket, to };
                self.ask(*node, Asked::Other, event)?;
            }
            Command::Tick(milliseconds) => self.tick(Duration::from_millis(*milliseconds)),
            Command::Disk(node, what) => self.disk(*node, what)?,
            Command::Flush(node) => {
                let node = self.node(*node)?;
                node.flushed = node.table.clone();
            }
            Command::Release(node, upto) => {
                let upto = *upto;
                let event = |ticket| Event::ReleaseLog { ticket, upto };
                self.ask(*node, Asked::Other, event)?;
            }
            Command::Crash(node) => self.crash(*node)?,
            Command::Wipe(node) => match self.node(*node)? {
                node if node.live.is_none() => {
                    *node = Node::new(node.id);
                    node.was_wiped = true;
                }
                node => return Err(format!("{} is alive", node.id).into()),
            },
            Command::Restart(node) => self.restart(*node)?,
            Command::Coordinator(words) => {
                let told = self.coordinator.command(words)?;
                self.tell_all(told);
            }
            Command::Stabilize => self.stabilize(),
            Command::Network => self.print_network(),
            Command::Status(node) => self.print_status(*node)?,
            Command::Log(node) => self.print_log(*node)?,
        }
        Ok(())
    }

    fn start_cluster(&mut self, nodes: u64, leader: Option<u64>, options: &[(String, String)]) {
        let nodes: Vec<_> = (1..=nodes).map(NodeId).collect();
        let options = options.iter().cloned().collect();
        self.cluster = Cluster { nodes, leader: NodeId(leader.unwrap_or(1)), options };
        self.coordinator.begin(&self.cluster);
        self.nodes = self.cluster.nodes.iter().map(|id| (*id, Node::new(*id))).collect();
        for id in self.cluster.nodes.clone() {
            self.start(id);
        }
    }

    fn propose(&mut self, node: u64, operations: Vec<Operation>) -> Result<(), Box<dyn Error>> {
        let commands =
            operations.into_iter().map(|operation| Write { request: None, operation }).collect();
        let payload = CommandBatch { commands }.encode();
        self.ask(node, Asked::Write, |ticket| Event::Propose { ticket, payload })
    }

    fn get(&mut self, node: u64, key: &str, level: Option<&str>) -> Result<(), Box<dyn Error>> {
        match level {
            None | Some("strong") => {
                let asked = Asked::Read { key: key.to_owned() };
                self.ask(node, asked, |ticket| Event::Read { ticket })
            }
            Some("timeline") => {
                let row = self.node(node)?.table.row(key);
                self.print(NodeId(node), &format!("holds {row}"));
                Ok(())
            }
            Some(other) => Err(format!("no consistency is called {other}").into()),
        }
    }

    fn partition(&mut self, nodes: &[u64]) {
        let before = self.connections();
        self.network.cut_off(nodes.iter().copied().map(NodeId));
        self.tell_connections(&before);
    }

    fn heal(&mut self) {
        let before = self.connections();
        self.network.heal();
        self.tell_connections(&before);
    }

    /// Lets time pass; timeouts come when they are due, one after the other.
    fn tick(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let due = self.nodes.values().filter_map(|n| n.next_timeout().map(|at| (at, n.id)));
            match due.min() {
                Some((at, id)) if at <= end => {
                    self.now = self.now.max(at);
                    self.tell(id, Event::Timeout);
                    let again = self.nodes[&id].next_timeout();
                    assert!(again.is_none_or(|next| next > at), "{id} wants its timeout for ever");
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn disk(&mut self, node: u64, what: &str) -> Result<(), Box<dyn Error>> {
        let is_stalled = match what {
            "stall" => true,
            "resume" => false,
            other => return Err(format!("a disk can stall or resume, not {other}").into()),
        };
        self.node(node)?.disk.is_stalled = is_stalled;
        self.settle(NodeId(node));
        Ok(())
    }

    fn crash(&mut self, node: u64) -> Result<(), Box<dyn Error>> {
        let before = self.connections();
        for ticket in self.node(node)?.crash() {
            self.print(NodeId(node), &format!("never answers {ticket}"));
        }
        self.network.lose(NodeId(node));
        self.tell_connections(&before);
        Ok(())
    }

    fn restart(&mut self, node: u64) -> Result<(), Box<dyn Error>> {
        if self.node(node)?.live.is_some() {
            return Err(format!("n{node} is alive").into());
        }
        let before = self.connections();
        self.start(NodeId(node));
        self.tell_connections(&before);
        Ok(())
    }

    fn stabilize(&mut self) {
        for _ in 0..STABILIZE_MESSAGES_MAX {
            if let Some((id, envelope)) = self.network.take_oldest() {
                self.deliver(id, envelope);
                continue;
            }
            let told = self.coordinator.step();
            if told.is_empty() {
                return;
            }
            self.tell_all(told);
        }
        panic!("still talking after {STABILIZE_MESSAGES_MAX} messages");
    }

    fn tell_all(&mut self, told: Told<S>) {
        for (node, event) in told {
            self.tell(node, Event::Coordination(event));
        }
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        self.stabilize();
        while self.now < end {
            self.tick(RUN_STEP.min(end.since(self.now)));
            self.stabilize();
        }
    }

    fn print_network(&mut self) {
        let lines: Vec<_> = self
            .network
            .iter()
            .map(|(id, e)| format!("#{id} {} -> {}: {}", e.from, e.to, e.text))
            .collect();
        lines.iter().for_each(|line| self.print_line(line));
    }

    fn print_status(&mut self, node: Option<u64>) -> Result<(), Box<dyn Error>> {
        let ids = match node {
            Some(node) => vec![self.node(node)?.id],
            None => self.cluster.nodes.clone(),
        };
        for id in ids {
            match self.nodes[&id].status() {
                Some(status) => self.print_line(&status.to_string()),
                None => self.print(id, "is dead"),
            }
        }
        Ok(())
    }

    fn print_log(&mut self, node: u64) -> Result<(), Box<dyn Error>> {
        let disk = &self.node(node)?.disk;
        let log = &disk.memory;
        let mut lines = vec![format!("purged={} commit point={}", log.purged, log.commit_point)];
        for entry in log.entries.values() {
            let durable = if disk.has_forced(entry) { "durable" } else { "in memory" };
            lines.push(format!("{} ({durable})", format::entry(entry)));
        }
        lines.iter().for_each(|line| self.print(NodeId(node), line));
        Ok(())
    }
}

// What stands in for drivers and the network.
impl<S: Subject> Runner<S> {
    fn start(&mut self, id: NodeId) {
        let cluster = self.cluster.clone();
        self.coordinator.started(id);
        self.live_or_dead(id).start(&cluster);
        self.drain(id);
        self.settle(id);
    }

    fn ask(
        &mut self,
        node: u64,
        asked: Asked,
        event: impl FnOnce(Ticket) -> Event<S>,
    ) -> Result<(), Box<dyn Error>> {
        let node = self.node(node)?;
        if node.live.is_none() {
            return Err(format!("{} is dead", node.id).into());
        }
        node.ask(asked, event);
        let id = node.id;
        self.settle(id);
        Ok(())
    }

    /// Tells a core something, if it is alive.
    fn tell(&mut self, id: NodeId, event: Event<S>) {
        if let Some(live) = &mut self.live_or_dead(id).live {
            live.events.push_back(event);
        }
        self.settle(id);
    }

    /// Has a node work until it rests: every event handled, every effect performed, the disk and
    /// the table as far as they can be.
    fn settle(&mut self, id: NodeId) {
        loop {
            let now = self.now;
            let Some(live) = &mut self.live_or_dead(id).live else { return };
            if let Some(event) = live.events.pop_front() {
                let text = format::event(&event);
                self.print(id, &text);
                if let Some(live) = &mut self.live_or_dead(id).live {
                    live.core.handle(now, event);
                }
                self.drain(id);
                self.check(id);
                continue;
            }
            if let Some(effect) = self.live_or_dead(id).release() {
                self.perform(id, effect, "leaves");
                continue;
            }
            let (worked, answers) = self.live_or_dead(id).work();
            answers.iter().for_each(|answer| self.print_effect(id, answer));
            if !worked {
                return;
            }
        }
    }

    fn drain(&mut self, id: NodeId) {
        let mut effects = Vec::new();
        if let Some(live) = &mut self.live_or_dead(id).live {
            live.core.drain_effects(&mut effects);
        }
        for effect in effects {
            match condition(&effect) {
                Some(when) if !self.nodes[&id].holds(when) => {
                    let text = describe(&effect, "send");
                    self.print_effect(id, &format!("{text} when {when}"));
                    self.live_or_dead(id).keep(when, effect);
                }
                _ => self.perform(id, effect, "send"),
            }
        }
    }

    fn perform(&mut self, id: NodeId, effect: Effect<S>, verb: &str) {
        let text = describe(&effect, verb);
        match effect {
            Effect::Persist(write) => {
                let io = self.live_or_dead(id).disk.write(write);
                self.print_effect(id, &text.replacen("persist", &format!("persist {}", io.0), 1));
            }
            Effect::Send { to, message, .. } => {
                let content = Content::Message(message.encode());
                self.send(id, to, content, message.to_string(), verb);
            }
            Effect::SendLog { to, seqs, context, .. } => {
                self.print_effect(id, &text);
                let entries = self.nodes[&id].disk.read(seqs.clone(), SEND_LOG_ENTRIES_MAX);
                let next = seqs.start + entries.len() as u64;
                if !entries.is_empty() {
                    let message = S::entries_message(context, entries);
                    let content = Content::Message(message.encode());
                    self.send(id, to, content, message.to_string(), verb);
                }
                self.queue(id, Event::LogSent { to, seqs, next });
            }
            Effect::SendSnapshot { to, message, .. } => {
                let table = self.nodes[&id].table.clone();
                let shown = format!("snapshot at {}: {message}", table.applied);
                let content = Content::Snapshot { message: message.encode(), table };
                if !self.send(id, to, content, shown, verb) {
                    self.queue(id, Event::SnapshotSent { to, answer: None });
                }
            }
            Effect::InstallSnapshot { ticket } => {
                self.print_effect(id, &text);
                self.install(id, ticket);
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
            }
            Effect::Reply { ticket, reply, .. } => self.answer(id, ticket, &reply),
            Effect::Coordinate { request, .. } => {
                self.print_effect(id, &text);
                self.coordinator.request(id, request);
            }
            Effect::EndReads => self.print_effect(id, &text),
        }
    }

    fn answer(&mut self, id: NodeId, ticket: Ticket, reply: &Reply<S>) {
        let (text, asked) = self.live_or_dead(id).answer(ticket, reply);
        self.print_effect(id, &text);
        if let Some(Asked::Snapshot { from, .. }) = asked {
            let message = match reply {
                Reply::Message(message) => Some(message.encode()),
                _ => None,
            };
            self.send(id, from, Content::SnapshotAnswer(message), "snapshot answer".into(), "send");
        }
    }

    fn install(&mut self, id: NodeId, ticket: Ticket) {
        let node = self.live_or_dead(id);
        let live = node.live.as_mut().expect("its core had an effect");
        let Some(Asked::Snapshot { table, .. }) = live.open.get(&ticket) else {
            panic!("{id}: no snapshot was offered under {ticket}");
        };
        let upto = table.applied;
        assert!(upto > node.table.applied, "{id}: the snapshot at {upto} is old");
        // Installing is atomic and durable.
        node.table = table.clone();
        node.flushed = table.clone();
        live.committed = live.committed.max(upto);
        live.events.push_back(Event::SnapshotInstalled { ticket, upto });
    }

    /// Takes a commit point from a core, and checks that the cohort agrees on what it commits.
    fn commit(&mut self, id: NodeId, upto: Lsn) {
        let node = self.nodes.get_mut(&id).expect("a node of the cluster");
        let live = node.live.as_mut().expect("its core had an effect");
        for seq in live.committed.seq + 1..=upto.seq {
            let entry = node.disk.memory.entries.get(&seq);
            let entry = entry.unwrap_or_else(|| panic!("{id} commits {seq} and lacks it"));
            let agreed = self.committed.entry(seq).or_insert_with(|| entry.clone());
            assert_eq!(agreed, entry, "{id} commits another entry at {seq} than was committed");
        }
        live.committed = live.committed.max(upto);
    }

    /// Checks what must hold of every replica whose core has been told everything.
    fn check(&self, id: NodeId) {
        let Some(status) = self.nodes[&id].status() else { return };
        if self.nodes[&id].live.as_ref().is_some_and(|live| !live.events.is_empty()) {
            return;
        }
        assert!(
            status.applied.seq <= status.committed.seq,
            "applied what is not committed: {status}"
        );
        assert!(status.committed.seq <= status.last.seq, "committed what is not there: {status}");
        assert_eq!(
            status.last,
            self.nodes[&id].disk.memory.last(),
            "the core lost count: {status}"
        );
    }

    fn send(
        &mut self,
        from: NodeId,
        to: NodeId,
        content: Content,
        text: String,
        verb: &str,
    ) -> bool {
        let line = format!("{verb} {to}");
        match self.network.send(Envelope { from, to, content, text: text.clone() }) {
            Some(number) => self.print_effect(from, &format!("{line} #{number}: {text}")),
            None => {
                self.print_effect(from, &format!("{line} (lost): {text}"));
                return false;
            }
        }
        true
    }

    fn deliver(&mut self, id: u64, envelope: Envelope) {
        let Envelope { from, to, content, text } = envelope;
        if self.nodes[&to].live.is_none() {
            self.print_line(&format!("#{id} {from} -> {to} is lost: {text}"));
            return;
        }
        let decode = |bytes: Bytes| S::Message::decode(bytes).expect("a message reads back");
        match content {
            Content::Message(bytes) => {
                self.tell(to, Event::Message { from, message: decode(bytes) });
            }
            Content::Snapshot { message, table } => {
                let upto = table.applied;
                let message = decode(message);
                let node = self.live_or_dead(to);
                node.ask(Asked::Snapshot { from, table }, |ticket| Event::SnapshotOffered {
                    ticket,
                    from,
                    message,
                    upto,
                });
                self.settle(to);
            }
            Content::SnapshotAnswer(answer) => {
                let answer = answer.map(decode);
                self.tell(to, Event::SnapshotSent { to: from, answer });
            }
        }
    }

    fn lose(&mut self, id: u64, envelope: Envelope) {
        let Envelope { from, to, content, text } = envelope;
        self.print_line(&format!("#{id} {from} -> {to} is lost: {text}"));
        // Snapshots go over connections of their own, so their senders learn of a loss.
        match content {
            Content::Message(_) => {}
            Content::Snapshot { .. } => self.tell(from, Event::SnapshotSent { to, answer: None }),
            Content::SnapshotAnswer(_) => {
                self.tell(to, Event::SnapshotSent { to: from, answer: None });
            }
        }
    }

    fn queue(&mut self, id: NodeId, event: Event<S>) {
        if let Some(live) = &mut self.live_or_dead(id).live {
            live.events.push_back(event);
        }
    }

    /// Returns who reaches whom, in order.
    fn connections(&self) -> Vec<(NodeId, NodeId, bool)> {
        let live = |id: &NodeId| self.nodes[id].live.is_some();
        let pairs = self.cluster.nodes.iter().flat_map(|a| {
            self.cluster.nodes.iter().filter(move |b| *b != a).map(move |b| (*a, *b))
        });
        pairs.map(|(a, b)| (a, b, live(&a) && live(&b) && self.network.connects(a, b))).collect()
    }

    /// Tells everybody who has gone out of reach or come back.
    fn tell_connections(&mut self, before: &[(NodeId, NodeId, bool)]) {
        for (was, is) in before.iter().zip(self.connections()) {
            let (id, node, connects) = is;
            match (was.2, connects) {
                (true, false) => self.tell(id, Event::PeerLost { node }),
                (false, true) => self.tell(id, Event::PeerAlive { node }),
                _ => {}
            }
        }
    }

    fn node(&mut self, node: u64) -> Result<&mut Node<S>, Box<dyn Error>> {
        self.nodes.get_mut(&NodeId(node)).ok_or_else(|| format!("there is no n{node}").into())
    }

    fn live_or_dead(&mut self, id: NodeId) -> &mut Node<S> {
        self.nodes.get_mut(&id).expect("a node of the cluster")
    }

    fn print(&mut self, id: NodeId, text: &str) {
        self.print_line(&format!("{id} {text}"));
    }

    fn print_effect(&mut self, id: NodeId, text: &str) {
        self.print_line(&format!("{id}   {text}"));
    }

    fn print_line(&mut self, line: &str) {
        writeln!(self.output, "{line}").expect("a string takes every line");
    }
}

/// Returns the condition under which the effect may leave, if it is of a kind that has one.
fn condition<S: Subject>(effect: &Effect<S>) -> Option<When> {
    match effect {
        Effect::Send { when, .. }
        | Effect::SendLog { when, .. }
        | Effect::SendSnapshot { when, .. }
        | Effect::Reply { when, .. }
        | Effect::Coordinate { when, .. } => Some(*when),
        Effect::Persist(_)
        | Effect::InstallSnapshot { .. }
        | Effect::Commit { .. }
        | Effect::ReplyOutcomes { .. }
        | Effect::EndReads => None,
    }
}

fn describe<S: Subject>(effect: &Effect<S>, verb: &str) -> String {
    match effect {
        Effect::Persist(write) => format!("persist: {}", format::write(write)),
        Effect::Send { to, message, .. } => format!("{verb} {to}: {message}"),
        Effect::SendLog { to, seqs, context, .. } => {
            format!("{verb} {to} log {}: {context}", format::range(seqs))
        }
        Effect::SendSnapshot { to, message, .. } => format!("{verb} {to} snapshot: {message}"),
        Effect::InstallSnapshot { ticket } => format!("install {ticket}"),
        Effect::Commit { upto } => format!("commit {upto}"),
        Effect::ReplyOutcomes { ticket, lsn } => format!("reply {ticket} when applied({lsn})"),
        Effect::Reply { ticket, reply, .. } => format!("reply {ticket}: {}", format::reply(reply)),
        Effect::Coordinate { request, .. } => format!("ask coordinator: {request:?}"),
        Effect::EndReads => "end reads".into(),
    }
}

fn selection(ids: &[u64], from: Option<u64>, to: Option<u64>) -> Selection {
    Selection { ids: ids.to_vec(), from: from.map(NodeId), to: to.map(NodeId) }
}

fn put((key, value): &(String, String)) -> Operation {
    let (key, value) = (Bytes::from(key.clone()), Bytes::from(value.clone()));
    Operation::Put { key, value, condition: Condition::None }
}

fn delete(key: &str) -> Operation {
    Operation::Delete { key: Bytes::from(key.to_owned()), condition: Condition::None }
}
