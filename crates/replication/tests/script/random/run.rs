//! A cluster under way, with the script that it has run.

use trireme_replication::Role;
use trireme_types::NodeId;

use super::Trial;
use super::clients::Clients;
use super::lasting::Lasting;
use super::steps::{KEYS, Step};
use super::tally::Tally;
use crate::script::{Command, Runner};

/// When all faults are over, the cohort serves, with all that it should have.
pub(crate) const IT_HEALS: &str = "when all is over it heals";

/// When all faults are over, a cohort that was to end has ended at every replica that has its seal.
pub(crate) const IT_ENDS: &str = "when all is over it ends";

/// A cluster under way, with the script that it has run.
pub(super) struct Run<S: Trial> {
    pub(super) runner: Runner<S>,
    pub(super) nodes: u64,
    script: Vec<String>,
    /// How many values were written.
    pub(super) puts: u64,
    pub(super) clients: Clients,
    pub(super) tally: Tally,
    /// The steps have been taken, and what follows is the same for every run.
    is_ending: bool,
}

impl<S: Trial> Run<S> {
    pub(super) fn new(nodes: u64, options: &[(String, String)]) -> Self {
        let mut run = Self {
            runner: Runner::quiet(),
            nodes,
            script: Vec::new(),
            puts: 0,
            clients: Clients::default(),
            tally: Tally::default(),
            is_ending: false,
        };
        let shown: String =
            options.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        let command = Command::Cluster { nodes, leader: None, options: options.to_vec() };
        run.execute(format!("cluster nodes={nodes}{shown}"), &command);
        run
    }

    pub(super) fn execute(&mut self, text: String, command: &Command) {
        self.count(&text);
        self.script.push(text);
        self.runner.execute(command).expect("a step makes sense");
    }

    /// Counts a step, unless it belongs to the end of a run, which would hide that it is taken nowhere
    /// else.
    pub(super) fn count(&mut self, text: &str) {
        if !self.is_ending {
            self.tally.count(text);
        }
    }

    /// Returns the node that leads in the newest epoch, or any.
    pub(super) fn leader(&self) -> u64 {
        let leads = |id: &u64| {
            let status = self.runner.status(NodeId(*id))?;
            (status.role == Role::Leader).then_some((status.epoch, *id))
        };
        (1..=self.nodes).filter_map(|id| leads(&id)).max().map_or(1, |(_, id)| id)
    }

    pub(super) fn is_alive(&self, node: u64) -> bool {
        self.runner.status(NodeId(node)).is_some()
    }

    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Put { node, key } => self.put(node.unwrap_or_else(|| self.leader()), KEYS[key]),
            Step::Get { node, key } => self.get(node.unwrap_or_else(|| self.leader()), KEYS[key]),
            Step::Deliver { from, to, count } if from != to => {
                let text = format!("deliver from={from} to={to} count={count}");
                let (ids, from, to, count) = (vec![], Some(from), Some(to), Some(count));
                self.execute(text, &Command::Deliver { ids, from, to, count, lane: None });
            }
            Step::Drop { from, to, count } if from != to => {
                let text = format!("drop from={from} to={to} count={count}");
                let (ids, from, to, count) = (vec![], Some(from), Some(to), Some(count));
                self.execute(text, &Command::Drop { ids, from, to, count, lane: None });
            }
            Step::Tick(time) => self.execute(format!("tick {time}"), &Command::Tick(time)),
            Step::Run(time) => self.run(time),
            Step::Crash(node) => {
                let node = node.unwrap_or_else(|| self.leader());
                if self.is_alive(node) {
                    self.execute(format!("crash {node}"), &Command::Crash(node));
                }
            }
            Step::Restart(node) if !self.is_alive(node) => {
                self.execute(format!("restart {node}"), &Command::Restart(node));
            }
            Step::Wipe(node)
                if !self.is_alive(node) && S::bears_loss_of(&self.runner, NodeId(node)) =>
            {
                self.execute(format!("wipe {node}"), &Command::Wipe(node));
            }
            Step::Partition(node) => {
                self.execute(format!("partition {node}"), &Command::Partition(vec![node]));
            }
            Step::Cut(from, to) => self.cut(from, to, None),
            Step::Heal => self.execute("heal".into(), &Command::Heal),
            Step::Disk(node, is_stalled) => {
                let what = if is_stalled { "stall" } else { "resume" };
                self.execute(format!("disk {node} {what}"), &Command::Disk(node, what.into()));
            }
            Step::FlushAndRelease(node) if self.is_alive(node) => {
                let upto = self.runner.status(NodeId(node)).map_or(0, |s| s.applied.seq);
                self.execute(format!("flush {node}"), &Command::Flush(node));
                self.execute(format!("release {node} {upto}"), &Command::Release(node, upto));
            }
            Step::Transfer(to) => {
                let leader = self.leader();
                if self.is_alive(leader) {
                    self.execute(format!("transfer {leader} {to}"), &Command::Transfer(leader, to));
                }
            }
            Step::CutCoordinator(node) => self.coordinator(&format!("cut {node}")),
            Step::HealCoordinator(node) => self.coordinator(&format!("heal {node}")),
            Step::Trouble(node, which) => self.coordinator(&S::trouble(node, which)),
            Step::Pause(node, time) => {
                let node = node.unwrap_or_else(|| self.leader());
                self.execute(format!("pause {node}"), &Command::Pause(node));
                self.run(time);
                self.execute(format!("resume {node}"), &Command::Resume(node));
            }
            Step::Depose => {
                self.count("depose");
                let commands = S::depose(self.leader());
                commands.iter().for_each(|words| self.coordinator(words));
            }
            Step::Client(step) => self.act(step),
            Step::CoordinatorWorks => self.coordinator("step"),
            Step::Move(step) => self.make(step),
            Step::DiskOne(node) => {
                self.execute(format!("disk {node} one"), &Command::Disk(node, "one".into()));
            }
            Step::Bounce(node) => {
                self.count("bounce");
                let node = node.unwrap_or_else(|| self.leader());
                self.take(Step::Crash(Some(node)));
                self.take(Step::Restart(node));
            }
            Step::Discard => {
                for NodeId(node) in S::displaced(&self.runner) {
                    self.take(Step::Crash(Some(node)));
                    self.execute(format!("discard {node}"), &Command::Discard(node));
                }
            }
            Step::Seal { node, key } => {
                let node = node.unwrap_or_else(|| self.leader());
                if self.is_alive(node) {
                    let at = key.map(|key| KEYS[key].to_owned());
                    let shown = at.as_ref().map(|at| format!(" at={at}")).unwrap_or_default();
                    self.execute(format!("seal {node}{shown}"), &Command::Seal { node, at });
                }
            }
            _ => {}
        }
    }

    pub(super) fn put(&mut self, node: u64, key: &str) {
        if self.is_alive(node) {
            self.puts += 1;
            let value = format!("v{}", self.puts);
            let text = format!("put {node} {key}={value}");
            self.execute(text, &Command::Put(node, vec![(key.to_owned(), value)]));
        }
    }

    pub(super) fn get(&mut self, node: u64, key: &str) {
        if self.is_alive(node) {
            let (key, level) = (key.to_owned(), None);
            self.execute(
                format!("get {node} {key}"),
                &Command::Get { node, key, level, client: None },
            );
        }
    }

    pub(super) fn run(&mut self, time: u64) {
        self.execute(format!("run {time}"), &Command::Run(time));
    }

    pub(super) fn coordinator(&mut self, words: &str) {
        let text = format!("coordinator {words}");
        let words = words.split(' ').map(str::to_owned).collect();
        self.execute(text, &Command::Coordinator(words));
    }

    /// Ends all faults but these, and sees the rest serve; then ends those, and sees the cohort serve.
    pub(super) fn end(&mut self, lasting: &[(Lasting, Option<u64>)]) {
        self.is_ending = true;
        if !lasting.is_empty() {
            self.heal();
            self.run(10_000);
            if !self.runner.has_ended() {
                self.serve_in_spite_of(lasting);
            }
        }
        self.heal();
        self.run(10_000);
        if self.runner.has_ended() {
            self.see_the_end();
        } else {
            self.serve();
        }
    }

    /// Returns what was done.
    pub(super) fn tally(mut self) -> Tally {
        let history = &self.runner.invariants().history;
        (self.tally.acknowledged, self.tally.read) = (history.acknowledged, history.answered);
        self.tally.epochs = self.runner.invariants().leaders.epochs() as u64;
        self.tally.installed = self.runner.installed();
        self.tally.ended = self.runner.has_ended().into();
        self.tally.time = self.runner.time();
        self.tally.seeds = 1;
        self.tally
    }

    /// Returns what was done, as a script.
    pub(super) fn into_script(self) -> Vec<String> {
        self.script
    }

    /// Ends all faults.
    pub(super) fn heal(&mut self) {
        self.take(Step::Heal);
        self.relieve();
        for node in 1..=self.nodes {
            self.take(Step::Disk(node, false));
            self.take(Step::HealCoordinator(node));
            self.coordinator(&S::relief(node));
            self.take(Step::Restart(node));
        }
    }

    /// Sees the cohort at its end: every replica with all that was committed has applied the seal, and what
    /// is asked for has the answer that the range has changed.
    fn see_the_end(&mut self) {
        let lacks = |id: &NodeId| self.runner.is_intact(*id) && !self.runner.is_sealed(*id);
        let lacking = self.runner.nodes().find(lacks);
        assert!(lacking.is_none(), "{IT_ENDS}: {lacking:?} has the seal, and has not applied it");
        let is_sealed = self.runner.nodes().any(|id| self.runner.is_sealed(id));
        assert!(is_sealed, "{IT_ENDS}: no replica has applied the seal");
        let leader = self.leader();
        let seals = &self.runner.invariants().seals;
        let (turned_away, withheld) = (seals.turned_away, seals.withheld);
        self.put(leader, "a");
        // None of these is answered with a value, which an invariant sees to.
        (1..=self.nodes).for_each(|node| self.get(node, "a"));
        self.run(500);
        if let Some(missing) = S::missing(&self.runner) {
            // One that needs a snapshot gets none: it comes to a successor (RANGE-13).
            assert!(withheld > 0, "{IT_ENDS}: {missing}");
            return;
        }
        assert!(
            self.runner.invariants().seals.turned_away > turned_away,
            "{IT_ENDS}: n{leader} does not answer that the range has changed"
        );
    }

    /// Sees the cohort serve, with all that it should have.
    pub(super) fn serve(&mut self) {
        let leader = self.leader();
        let answered = self.runner.invariants().history.acknowledged;
        self.put(leader, "a");
        self.run(500);
        assert!(
            self.runner.invariants().history.acknowledged > answered,
            "{IT_HEALS}: a put at n{leader} is not acknowledged"
        );
        for key in KEYS {
            let answered = self.runner.invariants().history.answered;
            self.get(leader, key);
            self.run(500);
            assert!(
                self.runner.invariants().history.answered > answered,
                "{IT_HEALS}: n{leader} does not read {key}"
            );
        }
        if let Some(missing) = S::missing(&self.runner) {
            panic!("{IT_HEALS}: {missing}");
        }
    }
}
