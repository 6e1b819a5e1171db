//! Runs the commands of a script on a cluster.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use trireme_replication::core::{Effect, Event, Message, Moment, Reply, Ticket};
use trireme_replication::{ErrorClass, ReplicaStatus, Role};
use trireme_types::{Command as Write, CommandBatch, Condition, Lsn, NodeId, Operation};

use super::command::Command;
use super::invariants::{Invariants, POINTERS_ARE_ORDERED};
use super::network::{Content, Envelope, Network, Selection};
use super::node::{Answer, Asked, Node, SEND_LOG_ENTRIES_MAX};
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
    invariants: Invariants,
    /// Whether nothing is printed.
    is_quiet: bool,
    /// Whether everything is printed at once, which shows what led to a violation.
    is_loud: bool,
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
            invariants: Invariants::default(),
            is_quiet: false,
            is_loud: false,
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

impl<S: Subject> Runner<S> {
    /// Returns a runner that prints nothing.
    pub(crate) fn quiet() -> Self {
        Self { is_quiet: true, ..Self::default() }
    }

    /// Returns a runner that prints what happens as it happens.
    pub(crate) fn loud() -> Self {
        Self { is_loud: true, ..Self::default() }
    }

    /// Describes a replica, if it is alive.
    pub(crate) fn status(&self, id: NodeId) -> Option<ReplicaStatus> {
        self.nodes[&id].status()
    }

    /// Counts the replicas that have lost their disk and count in no majority yet.
    pub(crate) fn learners(&self) -> usize {
        self.nodes.values().filter(|node| node.is_learner).count()
    }

    /// Says whether a replica counts, as far as it said last, and its disk has all that any replica
    /// has committed.
    pub(crate) fn is_intact(&self, id: NodeId) -> bool {
        let node = &self.nodes[&id];
        let image = node.disk.durable();
        !node.is_learner && self.invariants.committed().all(|entry| image.keeps(entry))
    }

    pub(crate) const fn coordinator(&self) -> &S::Coordinator {
        &self.coordinator
    }

    pub(crate) const fn invariants(&self) -> &Invariants {
        &self.invariants
    }
}

// The script's commands.
impl<S: Subject> Runner<S> {
    pub(crate) fn execute(&mut self, command: &Command) -> Result<(), Box<dyn Error>> {
        match command {
            Command::Cluster { nodes, leader, options } => {
                self.start_cluster(*nodes, *leader, options);
            }
            Command::Put(node, pairs) => {
                let puts = pairs.iter().map(|(key, value)| (key.clone(), Some(value.clone())));
                self.propose(*node, puts.collect())?;
            }
            Command::Delete(node, keys) => {
                self.propose(*node, keys.iter().map(|key| (key.clone(), None)).collect())?;
            }
            Command::Get { node, key, level } => self.get(*node, key, level.as_deref())?,
            Command::Deliver { ids, from, to, count } => {
                let taken = self.network.take(&selection(ids, *from, *to, *count));
                taken.into_iter().for_each(|(id, envelope)| self.deliver(id, envelope));
            }
            Command::Drop { ids, from, to, count } => {
                for (id, envelope) in self.network.take(&selection(ids, *from, *to, *count)) {
                    self.lose(id, envelope);
                }
            }
            Command::Partition(nodes) => self.partition(nodes),
            Command::Cut(from, to) => {
                let lost = self.network.cut(NodeId(*from), NodeId(*to));
                self.lose_snapshots(lost);
            }
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
                node if node.live.is_none() => node.wipe(),
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
        self.invariants = Invariants::default();
        self.nodes = self.cluster.nodes.iter().map(|id| (*id, Node::new(*id))).collect();
        for id in self.cluster.nodes.clone() {
            self.start(id);
        }
    }

    fn propose(
        &mut self,
        node: u64,
        changes: Vec<(String, Option<String>)>,
    ) -> Result<(), Box<dyn Error>> {
        let write = |change| Write { request: None, operation: operation(change) };
        let commands = changes.iter().map(write).collect();
        let payload = CommandBatch { commands }.encode();
        self.ask(node, Asked::Write { changes }, |ticket| Event::Propose { ticket, payload })
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
        let lost = self.network.cut_off(nodes.iter().copied().map(NodeId));
        self.tell_connections(&before);
        self.lose_snapshots(lost);
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
                    assert!(again.is_none_or(|next| next > at), "{id} wants its timeout for ever: {again:?}");
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
        let id = NodeId(node);
        for ticket in self.node(node)?.crash() {
            self.print(id, &format!("never answers {ticket}"));
            self.invariants.unanswered((id, ticket));
        }
        self.invariants.reads_no_more(id);
        let lost = self.network.lose(id);
        self.tell_connections(&before);
        self.lose_snapshots(lost);
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
        let id = node.id;
        let Some(ticket) = node.ask(asked.clone(), event) else { return Ok(()) };
        match asked {
            Asked::Write { changes } => self.invariants.write_asked((id, ticket), &changes),
            Asked::Read { .. } => self.invariants.read_asked((id, ticket)),
            Asked::Other | Asked::Snapshot { .. } => {}
        }
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
            let (worked, answer) = self.live_or_dead(id).work();
            if let Some(Answer { ticket, lsn, text }) = answer {
                self.print_effect(id, &text);
                let replicas = self.coordinator.replicas();
                self.invariants.acknowledged((id, ticket), lsn, self.now, &self.nodes, replicas);
            }
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
            match format::condition(&effect) {
                Some(when) if !self.nodes[&id].holds(when) => {
                    let text = format::effect(&effect, "send");
                    self.print_effect(id, &format!("{text} when {when}"));
                    self.live_or_dead(id).keep(when, effect);
                }
                _ => self.perform(id, effect, "send"),
            }
        }
    }

    fn perform(&mut self, id: NodeId, effect: Effect<S>, verb: &str) {
        let text = format::effect(&effect, verb);
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
            Effect::EndReads => {
                self.print_effect(id, &text);
                self.invariants.reads_no_more(id);
            }
        }
    }

    fn answer(&mut self, id: NodeId, ticket: Ticket, reply: &Reply<S>) {
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
                self.send(id, from, content, "snapshot answer".into(), "send");
            }
            (Some(Asked::Read { key }), Reply::Read { until }) => {
                let value = self.nodes[&id].table.value(&key);
                let value = value.map(|value| value.escape_ascii().to_string());
                self.invariants.may_read(id, *until, self.now);
                self.invariants.found(caller, &key, value.as_deref());
            }
            (_, Reply::Error(error)) if error.class() == ErrorClass::Unknown => {
                self.invariants.unanswered(caller);
            }
            (_, Reply::Error(_)) => self.invariants.refused(caller),
            _ => {}
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
            self.invariants.commits(id, entry);
        }
        live.committed = live.committed.max(upto);
    }

    /// Checks what must hold of every replica whose core has been told everything.
    fn check(&mut self, id: NodeId) {
        let Some(status) = self.nodes[&id].status() else { return };
        self.live_or_dead(id).is_learner = status.role == Role::Learner;
        if status.role == Role::Leader {
            self.invariants.leads(id, status.epoch);
        }
        if self.nodes[&id].live.as_ref().is_some_and(|live| !live.events.is_empty()) {
            return;
        }
        let is_ordered = status.applied.seq <= status.committed.seq
            && status.committed.seq <= status.last.seq
            && status.last == self.nodes[&id].disk.memory.last();
        assert!(is_ordered, "{POINTERS_ARE_ORDERED}: {status}");
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

    /// Loses the snapshots among these; messages are gone without a word.
    fn lose_snapshots(&mut self, lost: Vec<(u64, Envelope)>) {
        let is_snapshot = |e: &Envelope| !matches!(e.content, Content::Message(_));
        let snapshots = lost.into_iter().filter(|(_, envelope)| is_snapshot(envelope));
        snapshots.for_each(|(id, envelope)| self.lose(id, envelope));
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
        if self.is_quiet {
            return;
        }
        if self.is_loud {
            println!("{line}");
        }
        writeln!(self.output, "{line}").expect("a string takes every line");
    }
}

fn selection(
    ids: &[u64],
    from: Option<u64>,
    to: Option<u64>,
    count: Option<usize>,
) -> Selection {
    let count = count.unwrap_or(usize::MAX);
    Selection { ids: ids.to_vec(), from: from.map(NodeId), to: to.map(NodeId), count }
}

fn operation((key, value): &(String, Option<String>)) -> Operation {
    let (key, condition) = (Bytes::from(key.clone()), Condition::None);
    match value.clone().map(Bytes::from) {
        Some(value) => Operation::Put { key, value, condition },
        None => Operation::Delete { key, condition },
    }
}
