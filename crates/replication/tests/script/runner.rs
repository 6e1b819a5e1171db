//! Runs the commands of a script on a cluster.

mod clients;
mod driving;

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use trireme_replication::ReplicaStatus;
use trireme_replication::core::{Event, Moment};
use trireme_types::{Condition, Lsn, NodeId};

use super::clocks::Clocks;
use super::command::Command;
use super::invariants::{Invariants, Request};
use super::network::{Network, Selection, Way};
use super::node::{Asked, Node};
use super::{Cluster, ScriptCoordinator, Subject, Told, format};

/// The most messages that `stabilize` delivers: a protocol that never comes to rest is an error.
const STABILIZE_MESSAGES_MAX: usize = 20_000;

/// The most timeouts that a node has at the same moment.
const TIMEOUTS_AT_ONCE_MAX: u32 = 4;

/// How long messages stay on the network while time runs.
const RUN_STEP: Duration = Duration::from_millis(5);

/// What a node's time brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// A snapshot is installed.
    Installed,
    /// The core's timeout.
    Timeout,
}

/// A change to one key, and on what condition.
type Named = ((String, Option<String>), Condition);

/// A cluster with its script's output.
pub(crate) struct Runner<S: Subject> {
    cluster: Cluster,
    nodes: BTreeMap<NodeId, Node<S>>,
    network: Network,
    coordinator: S::Coordinator,
    now: Moment,
    clocks: Clocks,
    /// Whether a core handles all events that wait before its effects are drained.
    is_batching: bool,
    invariants: Invariants,
    /// The writes that clients have sent under a name.
    requests: BTreeMap<Request, Named>,
    /// The newest state that each client has seen.
    seen: BTreeMap<u64, Lsn>,
    /// How long a snapshot takes to install.
    install: Duration,
    /// Whether nothing is printed.
    is_quiet: bool,
    /// Whether everything is printed at once, which shows what led to a violation.
    is_loud: bool,
    output: String,
}

impl<S: Subject> Default for Runner<S> {
    fn default() -> Self {
        Self {
            cluster: Cluster {
                nodes: Vec::new(),
                leader: NodeId(1),
                options: BTreeMap::new(),
                starts: 0,
            },
            nodes: BTreeMap::new(),
            network: Network::default(),
            coordinator: S::Coordinator::default(),
            now: Moment::START,
            clocks: Clocks::default(),
            is_batching: false,
            invariants: Invariants::default(),
            requests: BTreeMap::new(),
            seen: BTreeMap::new(),
            install: Duration::ZERO,
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

    /// Counts the members that have lost their disk and count in no majority yet.
    pub(crate) fn learners(&self) -> usize {
        let members = self.coordinator.members();
        let is_member = |id: &NodeId| members.is_none_or(|members| members.contains(id));
        self.nodes.values().filter(|node| node.is_learner && is_member(&node.id)).count()
    }

    /// Says whether a replica counts, as far as it said last, and its disk has all that any replica
    /// has committed.
    pub(crate) fn is_intact(&self, id: NodeId) -> bool {
        let node = &self.nodes[&id];
        let image = node.disk.durable();
        !node.is_learner && self.invariants.agreement.committed().all(|e| image.keeps(e))
    }

    /// Returns true if a replica's disk shows that it was ever told anything.
    pub(crate) fn has_acted(&self, id: NodeId) -> bool {
        self.nodes[&id].disk.durable().hard_state.is_some()
    }

    /// Returns the nodes, dead or alive.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.keys().copied()
    }

    /// Returns how much time has passed.
    pub(crate) const fn time(&self) -> Duration {
        self.now.since_start()
    }

    /// Returns how many snapshots the nodes have installed.
    pub(crate) fn installed(&self) -> u64 {
        self.nodes.values().map(|node| node.installed).sum()
    }

    /// Returns true if the cohort has ended: its seal is committed.
    pub(crate) fn has_ended(&self) -> bool {
        self.invariants.agreement.seal().is_some()
    }

    /// Returns true if a node's replica has applied the seal.
    pub(crate) fn is_sealed(&self, id: NodeId) -> bool {
        self.nodes[&id].table.seal().is_some()
    }

    /// Returns the number that an option of the cluster is.
    pub(crate) fn option(&self, name: &str) -> Option<u64> {
        self.cluster.number(name)
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
            Command::Seal { node, at } => self.seal(*node, at.as_deref())?,
            Command::Request { node, name, words, when } => {
                self.request(*node, name, words, when.as_deref())?;
            }
            Command::Retry(node, name) => self.retry(*node, name)?,
            Command::Get { node, key, level, client } => {
                self.get(*node, key, level.as_deref(), *client)?;
            }
            Command::Deliver { ids, from, to, count, lane } => {
                let taken = self.network.take(&selection(ids, *from, *to, *count, *lane));
                taken.into_iter().for_each(|(id, envelope)| self.deliver(id, envelope));
            }
            Command::Drop { ids, from, to, count, lane } => {
                let taken = self.network.take(&selection(ids, *from, *to, *count, *lane));
                taken.into_iter().for_each(|(id, envelope)| self.lose(id, envelope));
            }
            Command::Peerlost(node, other) => {
                self.tell(NodeId(*node), Event::PeerLost { node: NodeId(*other) });
            }
            Command::Peeralive(node, other) => {
                self.tell(NodeId(*node), Event::PeerAlive { node: NodeId(*other) });
            }
            Command::Partition(nodes) => self.partition(nodes),
            Command::Cut { from, to, lane } => {
                let lost = self.network.cut(NodeId(*from), NodeId(*to), *lane);
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
            Command::Table(node, what) => {
                self.node(*node)?.is_table_stalled = is_stall(what)?;
                self.settle(NodeId(*node));
            }
            Command::Sender(node, what, count) => self.sender(*node, what, *count)?,
            Command::Pause(node) => self.node(*node)?.is_paused = true,
            Command::Resume(node) => {
                self.node(*node)?.is_paused = false;
                self.settle(NodeId(*node));
            }
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
            Command::Discard(node) => match self.node(*node)? {
                node if node.live.is_none() => node.discard(),
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
        let (replicas, wanted) = (self.coordinator.replicas(), self.coordinator.replicas_wanted());
        if let Some(replicas) = replicas {
            let lists = |node: &Node<S>| self.coordinator.lists(node.id, node.incarnation);
            self.invariants.listed(replicas, wanted, &self.nodes, lists);
        }
        Ok(())
    }

    fn start_cluster(&mut self, nodes: u64, leader: Option<u64>, options: &[(String, String)]) {
        let nodes: Vec<_> = (1..=nodes).map(NodeId).collect();
        let options = options.iter().cloned().collect();
        self.cluster = Cluster { nodes, leader: NodeId(leader.unwrap_or(1)), options, starts: 0 };
        self.clocks = Clocks::new(self.cluster.number("skew"));
        self.network.shuffle(self.cluster.number("shuffle").unwrap_or_default());
        self.is_batching = self.cluster.number("batch").is_some();
        self.install = self.cluster.milliseconds("install").unwrap_or_default();
        (self.requests, self.seen) = Default::default();
        self.coordinator.begin(&self.cluster);
        self.invariants = Invariants::default();
        self.nodes = self.cluster.nodes.iter().map(|id| (*id, Node::new(*id))).collect();
        for id in self.cluster.nodes.clone() {
            self.start(id);
        }
    }

    fn get(
        &mut self,
        node: u64,
        key: &str,
        level: Option<&str>,
        client: Option<u64>,
    ) -> Result<(), Box<dyn Error>> {
        match level {
            None | Some("strong") if self.node(node)?.holds_reads() => {
                self.print(NodeId(node), "reads nothing strongly: the cohort may end");
                Ok(())
            }
            None | Some("strong") => {
                let asked = Asked::Read { key: key.to_owned() };
                self.ask(node, asked, |ticket| Event::Read { ticket })
            }
            Some("timeline") => self.timeline(node, key, client),
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
            let running = self.nodes.values().filter(|node| !node.is_paused);
            match running.filter_map(|node| self.due(node)).min() {
                Some((at, id, what)) if at <= end => {
                    self.now = self.now.max(at);
                    match what {
                        Due::Installed => self.settle(id),
                        Due::Timeout => self.time_out(id, at),
                    }
                }
                _ => break,
            }
        }
        self.now = end;
    }

    /// Returns what a node's time brings next, and when.
    fn due(&self, node: &Node<S>) -> Option<(Moment, NodeId, Due)> {
        let installed = node.installed_at.filter(|_| !node.is_table_stalled);
        let installed = installed.map(|at| (at, node.id, Due::Installed));
        let timeout = node.next_timeout().map(|local| self.clocks.global(node.id, local));
        let timeout = timeout.map(|at| (at, node.id, Due::Timeout));
        installed.into_iter().chain(timeout).min()
    }

    fn time_out(&mut self, id: NodeId, at: Moment) {
        self.tell(id, Event::Timeout);
        let again = self.nodes[&id].next_timeout();
        let again = again.map(|local| self.clocks.global(id, local));
        // What comes of a timeout at once, as a commit or a lost snapshot, may itself have something due.
        let is_due_again = again.is_some_and(|next| next <= at);
        let node = self.live_or_dead(id);
        node.timeouts = if is_due_again { node.timeouts + 1 } else { 0 };
        let is_bounded = node.timeouts < TIMEOUTS_AT_ONCE_MAX;
        assert!(is_bounded, "{id} wants its timeout for ever: {again:?}");
    }

    fn disk(&mut self, node: u64, what: &str) -> Result<(), Box<dyn Error>> {
        match what {
            "one" => self.node(node)?.sync_one(),
            what => self.node(node)?.disk.is_stalled = is_stall(what)?,
        }
        self.settle(NodeId(node));
        Ok(())
    }

    fn sender(
        &mut self,
        node: u64,
        what: &str,
        count: Option<usize>,
    ) -> Result<(), Box<dyn Error>> {
        let is_stalled = is_stall(what)? || count.is_some();
        let Some(live) = &mut self.node(node)?.live else { return Ok(()) };
        let mut held = live.unsent.take().unwrap_or_default();
        let kept = held.split_off(count.unwrap_or(held.len()).min(held.len()));
        live.unsent = is_stalled.then_some(kept);
        for piece in held {
            self.send_log(NodeId(node), piece, "leaves");
        }
        self.settle(NodeId(node));
        Ok(())
    }

    fn crash(&mut self, node: u64) -> Result<(), Box<dyn Error>> {
        let before = self.connections();
        let id = NodeId(node);
        // Their connections break with the node, however far it has come with what they sent.
        let live = self.node(node)?.live.as_ref();
        let asked: Vec<Asked> = live.map_or_else(Vec::new, |l| l.open.values().cloned().collect());
        for ticket in self.node(node)?.crash() {
            self.print(id, &format!("never answers {ticket}"));
            self.invariants.history.unanswered((id, ticket));
        }
        self.invariants.rights.reads_no_more(id);
        let lost = self.network.lose(id);
        self.tell_connections(&before);
        self.lose_snapshots(lost);
        for asked in asked {
            if let Asked::Snapshot { from, .. } = asked {
                self.tell(from, Event::SnapshotSent { to: id, answer: None });
            }
        }
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
            if let Some((id, envelope)) = self.network.take_next() {
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
            self.pass_idle_steps(end);
            self.tick(RUN_STEP.min(end.since(self.now)));
            self.stabilize();
        }
    }

    /// Lets the steps pass in which nothing is due, while no message is under way: most of a run.
    fn pass_idle_steps(&mut self, end: Moment) {
        let running = self.nodes.values().filter(|node| !node.is_paused);
        let due = running.filter_map(|node| self.due(node)).map(|(at, ..)| at).min();
        let until = due.map_or(end, |at| at.min(end));
        // What is due at the end of a step comes within it.
        let idle = until.since(self.now).saturating_sub(Duration::from_nanos(1));
        let steps = idle.as_nanos() / RUN_STEP.as_nanos();
        self.now = self.now + RUN_STEP * u32::try_from(steps).expect("a short run");
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

fn selection(
    ids: &[u64],
    from: Option<u64>,
    to: Option<u64>,
    count: Option<usize>,
    way: Option<Way>,
) -> Selection {
    let count = count.unwrap_or(usize::MAX);
    Selection { ids: ids.to_vec(), from: from.map(NodeId), to: to.map(NodeId), count, way }
}

fn is_stall(what: &str) -> Result<bool, Box<dyn Error>> {
    match what {
        "stall" => Ok(true),
        "resume" => Ok(false),
        other => Err(format!("it can stall or resume, not {other}").into()),
    }
}
