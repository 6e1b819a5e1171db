//! Random faults, from a seed: whatever is lost, crashes, stalls or is cut off, the invariants hold,
//! and when it is over the cohort serves and nothing that was acknowledged is lost.
//!
//! `SEED=17` runs one seed, `FROM=500 SEEDS=5000` that many from there on, with `GO_ON=1` past those
//! that fail, and `FAULT=S2` has all replicas make a mistake. A
//! failure is shown as the shortest script found that fails alike; `SCRIPT=file`, with `--nocapture`,
//! runs such a script and prints all that happens.

mod moves;

use std::panic::{AssertUnwindSafe, catch_unwind};

use trireme_replication::Role;
use trireme_types::NodeId;

pub(crate) use self::moves::Lasting;
use self::moves::Move;
use super::{Command, Runner, Subject};

/// A protocol that can be tried by random faults.
pub(crate) trait Trial: Subject {
    /// Returns how many nodes a cluster has, and what else it is asked for with.
    fn cluster(numbers: &mut Numbers) -> (u64, Vec<(String, String)>);

    /// Returns what a coordinator can do that makes trouble, for a node or for all: one of several
    /// things, by a number.
    fn trouble(node: u64, which: u64) -> String;

    /// Returns the nodes whose replica is to be discarded, since others have taken its place.
    fn displaced(_runner: &Runner<Self>) -> Vec<NodeId> {
        Vec::new()
    }

    /// Returns what a coordinator does so that the others replace a leader, which does not know.
    fn depose(leader: u64) -> Vec<String>;

    /// Returns what a coordinator does for a node, or for all, so that the trouble ends.
    fn relief(node: u64) -> String;

    /// Returns what a coordinator does so that a node learns late what is new: 0 begins that, 1 lets
    /// the node learn something, 2 ends it.
    fn late(_node: u64, _how: u64) -> Option<String> {
        None
    }

    /// Returns true if the rest of this cluster must serve in spite of a fault of one node, its leader
    /// or another, that lasts.
    fn bears(_cluster: &Shape<'_>, _fault: Lasting, _is_leaders: bool) -> bool {
        true
    }

    /// Says whether the protocol bears it that this node, which is dead, loses its disk now.
    fn bears_loss_of(runner: &Runner<Self>, node: NodeId) -> bool;

    /// Says what is still missing of a cluster that has had its time to heal, if anything is.
    fn missing(runner: &Runner<Self>) -> Option<String>;
}

/// How many nodes a cluster has, and what else it was asked for with.
pub(crate) struct Shape<'a> {
    nodes: u64,
    options: &'a [(String, String)],
}

impl Shape<'_> {
    pub(crate) const fn nodes(&self) -> u64 {
        self.nodes
    }

    /// Returns the number that an option was given as, if it was.
    pub(crate) fn option(&self, name: &str) -> Option<u64> {
        let (_, value) = self.options.iter().find(|(given, _)| given == name)?;
        Some(value.parse().expect("a number"))
    }
}

/// The seeds of a normal run.
const SEEDS: u64 = 500;

/// The steps of one run.
const STEPS: usize = 150;

const KEYS: [&str; 3] = ["a", "b", "c"];

/// Numbers from a seed (SplitMix64).
pub(crate) struct Numbers(u64);

impl Numbers {
    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    pub(crate) const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// One step, which does nothing where it makes no sense.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// At a node, or at whoever leads.
    Put {
        node: Option<u64>,
        key: usize,
    },
    Get {
        node: Option<u64>,
        key: usize,
    },
    Deliver {
        from: u64,
        to: u64,
        count: usize,
    },
    Drop {
        from: u64,
        to: u64,
        count: usize,
    },
    Tick(u64),
    Run(u64),
    Crash(Option<u64>),
    Restart(u64),
    Wipe(u64),
    Partition(u64),
    Cut(u64, u64),
    Heal,
    Disk(u64, bool),
    FlushAndRelease(u64),
    Transfer(u64),
    /// At a node, or at whoever leads: it is stopped for so long.
    Pause(Option<u64>, u64),
    CutCoordinator(u64),
    HealCoordinator(u64),
    Trouble(u64, u64),
    CoordinatorWorks,
    /// The others replace the leader, which does not know.
    Depose,
    Move(Move),
    /// One more write becomes durable, even on a stalled disk.
    DiskOne(u64),
    /// A node, or whoever leads, dies and is back before anybody has missed it.
    Bounce(Option<u64>),
    /// Nodes close and discard the replicas that they are not to hold any more.
    Discard,
}

/// A run: the cluster, and the steps. The same seed gives the same run.
struct Plan {
    nodes: u64,
    options: Vec<(String, String)>,
    steps: Vec<Step>,
    /// A fault of a node, or of the leader, that lasts while the rest must serve.
    lasting: Option<(Lasting, Option<u64>)>,
}

impl Plan {
    fn new<S: Trial>(seed: u64, fault: Option<&str>) -> Self {
        let mut numbers = Numbers(seed);
        let (nodes, mut options) = S::cluster(&mut numbers);
        options.extend(fault.map(|fault| ("fault".to_owned(), fault.to_owned())));
        // Some runs are without one kind of trouble, so that others come further.
        let without = numbers.below(8);
        options.extend(conditions(&mut numbers));
        let fault = Lasting::any(&mut numbers);
        let node = (numbers.below(2) == 0).then_some(numbers.below(nodes) + 1);
        let shape = Shape { nodes, options: &options };
        let lasting = Some((fault, node)).filter(|_| S::bears(&shape, fault, node.is_none()));
        let steps = (0..STEPS).map(|_| step(&mut numbers, nodes, without)).collect();
        Self { nodes, options, steps, lasting }
    }
}

/// Returns what clocks, lanes and drivers are like in a run: in most of them, as they should be.
fn conditions(numbers: &mut Numbers) -> Vec<(String, String)> {
    let mut options = Vec::new();
    let mut add = |name: &str, value: u64| options.push((name.to_owned(), value.to_string()));
    if numbers.below(3) == 0 {
        add("skew", numbers.below(1 << 32));
    }
    if numbers.below(3) == 0 {
        add("shuffle", 1 + numbers.below(1 << 32));
    }
    if numbers.below(3) == 0 {
        add("batch", 1);
    }
    if numbers.below(8) == 0 {
        // As long as a lease may be beside the grace.
        add("lease", 900);
    }
    options
}

fn step(numbers: &mut Numbers, nodes: u64, without: u64) -> Step {
    let node = numbers.below(nodes) + 1;
    let other = numbers.below(nodes) + 1;
    let at = (numbers.below(4) == 0).then_some(node);
    let key = usize::try_from(numbers.below(KEYS.len() as u64)).expect("few keys");
    let count = usize::try_from(numbers.below(3) + 1).expect("few messages");
    if numbers.below(5) == 0 {
        return Step::Move(moves::pick(numbers, nodes));
    }
    let kind = numbers.below(112);
    match kind {
        0..18 => Step::Put { node: at, key },
        18..28 => Step::Get { node: at, key },
        28..40 => Step::Deliver { from: node, to: other, count },
        40..44 if without != 0 => Step::Drop { from: node, to: other, count },
        44..50 => Step::Tick(numbers.below(400)),
        50..56 => Step::Run(numbers.below(60)),
        56..64 => Step::Run(numbers.below(600)),
        64..66 => Step::Run(1200),
        66..70 if without != 1 => Step::Crash(at),
        70..77 => Step::Restart(node),
        77..79 if without != 2 => Step::Wipe(node),
        79..81 if without != 3 => Step::Partition(node),
        81..83 if without != 4 => Step::Cut(node, other),
        83..87 => Step::Heal,
        87..89 if without != 5 => Step::Disk(node, true),
        89..91 => Step::Disk(node, false),
        91 => Step::FlushAndRelease(node),
        92 => Step::Transfer(node),
        93 if without != 6 => Step::CutCoordinator(node),
        94..96 => Step::HealCoordinator(node),
        96 | 106..109 if without != 7 => Step::Trouble(node, numbers.below(4)),
        97 if without != 7 => Step::Depose,
        98 => Step::Tick(1000 + numbers.below(100)),
        99 => Step::Pause(at, numbers.below(1500)),
        100..102 => Step::DiskOne(node),
        102..104 if without != 1 => Step::Bounce(at),
        104..106 => Step::Discard,
        _ => Step::CoordinatorWorks,
    }
}

/// A cluster under way, with the script that it has run.
struct Run<S: Trial> {
    runner: Runner<S>,
    nodes: u64,
    script: Vec<String>,
    puts: u64,
}

impl<S: Trial> Run<S> {
    fn new(nodes: u64, options: &[(String, String)]) -> Self {
        let mut run = Self { runner: Runner::quiet(), nodes, script: Vec::new(), puts: 0 };
        let shown: String =
            options.iter().map(|(name, value)| format!(" {name}={value}")).collect();
        let command = Command::Cluster { nodes, leader: None, options: options.to_vec() };
        run.execute(format!("cluster nodes={nodes}{shown}"), &command);
        run
    }

    fn execute(&mut self, text: String, command: &Command) {
        self.script.push(text);
        self.runner.execute(command).expect("a step makes sense");
    }

    /// Returns the node that leads in the newest epoch, or any.
    fn leader(&self) -> u64 {
        let leads = |id: &u64| {
            let status = self.runner.status(NodeId(*id))?;
            (status.role == Role::Leader).then_some((status.epoch, *id))
        };
        (1..=self.nodes).filter_map(|id| leads(&id)).max().map_or(1, |(_, id)| id)
    }

    fn is_alive(&self, node: u64) -> bool {
        self.runner.status(NodeId(node)).is_some()
    }

    fn take(&mut self, step: Step) {
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
                let commands = S::depose(self.leader());
                commands.iter().for_each(|words| self.coordinator(words));
            }
            Step::CoordinatorWorks => self.coordinator("step"),
            Step::Move(step) => self.make(step),
            Step::DiskOne(node) => {
                self.execute(format!("disk {node} one"), &Command::Disk(node, "one".into()));
            }
            Step::Bounce(node) => {
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
            _ => {}
        }
    }

    fn put(&mut self, node: u64, key: &str) {
        if self.is_alive(node) {
            self.puts += 1;
            let value = format!("v{}", self.puts);
            let text = format!("put {node} {key}={value}");
            self.execute(text, &Command::Put(node, vec![(key.to_owned(), value)]));
        }
    }

    fn get(&mut self, node: u64, key: &str) {
        if self.is_alive(node) {
            let (key, level) = (key.to_owned(), None);
            self.execute(format!("get {node} {key}"), &Command::Get { node, key, level });
        }
    }

    fn run(&mut self, time: u64) {
        self.execute(format!("run {time}"), &Command::Run(time));
    }

    fn coordinator(&mut self, words: &str) {
        let text = format!("coordinator {words}");
        let words = words.split(' ').map(str::to_owned).collect();
        self.execute(text, &Command::Coordinator(words));
    }

    /// Ends all faults but one, and sees the rest serve; then ends that, and sees the cohort serve.
    fn end(&mut self, lasting: Option<(Lasting, Option<u64>)>) {
        if let Some((fault, node)) = lasting {
            self.heal();
            self.run(10_000);
            self.serve_in_spite_of(fault, node);
        }
        self.heal();
        self.run(10_000);
        self.serve();
    }

    /// Ends all faults.
    fn heal(&mut self) {
        self.take(Step::Heal);
        self.relieve();
        for node in 1..=self.nodes {
            self.take(Step::Disk(node, false));
            self.take(Step::HealCoordinator(node));
            self.coordinator(&S::relief(node));
            self.take(Step::Restart(node));
        }
    }

    /// Sees the cohort serve, with all that it should have.
    fn serve(&mut self) {
        let leader = self.leader();
        let answered = self.runner.invariants().acknowledged;
        self.put(leader, "a");
        self.run(500);
        assert!(
            self.runner.invariants().acknowledged > answered,
            "a put at n{leader} is not acknowledged"
        );
        for key in KEYS {
            let answered = self.runner.invariants().answered;
            self.get(leader, key);
            self.run(500);
            assert!(self.runner.invariants().answered > answered, "n{leader} does not read {key}");
        }
        if let Some(missing) = S::missing(&self.runner) {
            panic!("it did not heal: {missing}");
        }
    }
}

impl Plan {
    /// Takes the steps, and returns what failed with the script up to there.
    fn fails<S: Trial>(&self) -> Option<(String, Vec<String>)> {
        let mut run = Run::<S>::new(self.nodes, &self.options);
        let whole = AssertUnwindSafe(|| {
            self.steps.iter().for_each(|step| run.take(*step));
            run.end(self.lasting);
        });
        let panic = catch_unwind(whole).err()?;
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Some((text.unwrap_or_default(), run.script))
    }

    /// Leaves out steps for as long as it fails in the same way, and returns the script.
    fn shrink<S: Trial>(mut self, text: &str) -> String {
        let is_alike =
            |plan: &Self| plan.fails::<S>().filter(|(other, _)| name(other) == name(text));
        let mut size = self.steps.len() / 2;
        while size > 0 {
            let mut at = 0;
            while at < self.steps.len() {
                let mut steps = self.steps.clone();
                steps.drain(at..(at + size).min(self.steps.len()));
                let fewer = Self { steps, options: self.options.clone(), ..self };
                if is_alike(&fewer).is_some() {
                    self = fewer;
                } else {
                    at += size;
                }
            }
            size /= 2;
        }
        let (text, script) = is_alike(&self).unwrap_or_default();
        format!("{text}\n{}", script.join("\n"))
    }
}

/// What comes before the first colon: the invariant.
fn name(text: &str) -> &str {
    text.split(':').next().unwrap_or_default()
}

/// Runs the script in the file that `SCRIPT` names, and prints what happens.
pub(crate) fn run_script_from_elsewhere<S: Trial>() {
    let Ok(path) = std::env::var("SCRIPT") else { return };
    let script = std::fs::read_to_string(path).expect("the script can be read");
    let mut runner = Runner::<S>::loud();
    goldenscript::generate(&mut runner, &format!("{script}\n---\n")).expect("the script runs");
}

/// Says whether a normal run notices a mistake that all replicas make.
pub(crate) fn notices<S: Trial>(fault: &str) -> bool {
    let fails = |seed, fault| Plan::new::<S>(seed, fault).fails::<S>().is_some();
    // A seed that fails anyway notices nothing.
    (0..SEEDS).any(|seed| fails(seed, Some(fault)) && !fails(seed, None))
}

/// Tries the protocol.
pub(crate) fn try_seeds<S: Trial>() {
    let fault = std::env::var("FAULT").ok();
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let from = number("FROM").unwrap_or_default();
            from..from + number("SEEDS").unwrap_or(SEEDS)
        }
    };
    let goes_on = std::env::var("GO_ON").is_ok();
    let mut failed = Vec::new();
    for seed in seeds {
        let plan = Plan::new::<S>(seed, fault.as_deref());
        if let Some((text, _)) = plan.fails::<S>() {
            if goes_on {
                failed.push(format!("SEED={seed} fails: {text}"));
                continue;
            }
            let shortest = plan.shrink::<S>(&text);
            panic!("SEED={seed}: {text}\nin the shortest such script: {shortest}");
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is no number")))
}
