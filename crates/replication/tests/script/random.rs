//! Random faults, from a seed: whatever is lost, crashes, stalls or is cut off, the invariants hold,
//! and when it is over the cohort serves and nothing that was acknowledged is lost.
//!
//! A seed gives a [`Plan`]: a cluster, what its clocks and lanes are like, and a sequence of steps. The
//! same seed gives the same run, on any machine. `cargo test -p trireme-replication --test scripts
//! spinnaker::random::whatever` (or `pacifica::random::whatever`) runs the first 500;
//!
//! * `SEED=17` runs one, `FROM=500 SEEDS=5000` runs that many from there on, `GO_ON=1` goes on past
//!   those that fail, and `THREADS=1` uses one core instead of all;
//! * `FAULT=S2` has all replicas make a mistake of [`SpinnakerFaults`] or [`PacificaFaults`], and
//!   `MISTAKE=lying-disk` has what surrounds them make one ([`Mistake`](super::mistakes::Mistake));
//! * a failure is shown as the shortest script found that fails alike. `SCRIPT=file`, with
//!   `a_script_from_elsewhere --nocapture` instead of `whatever`, runs such a script and prints all
//!   that happens: the way to see what led to it, and to make a golden script of it;
//! * with `--nocapture` a run ends with a summary: seeds, virtual time, and what was done how often.
//!
//! [`SpinnakerFaults`]: trireme_replication::spinnaker::SpinnakerFaults
//! [`PacificaFaults`]: trireme_replication::pacifica::PacificaFaults

mod clients;
mod lasting;
mod moves;
mod run;
mod steps;
mod tally;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use trireme_types::NodeId;

pub(crate) use self::lasting::{Lasting, THE_REST_SERVES};
use self::run::Run;
use self::steps::Step;
use self::tally::Tally;
use super::{Runner, Subject};

/// A protocol that can be tried by random faults.
pub(crate) trait Trial: Subject {
    /// Whether nodes discard replicas of which others have taken the place.
    const DISCARDS: bool;

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
    fn late(node: u64, how: u64) -> String;

    /// Returns how many nodes of this cluster may be at fault for long while the rest must serve.
    fn minority(cluster: &Shape<'_>) -> u64;

    /// Returns true if what is needed to serve is left when these nodes are at fault.
    fn survives(_runner: &Runner<Self>, _at_fault: &[NodeId]) -> bool {
        true
    }

    /// Returns true if the rest of this cluster must serve in spite of faults of this kind.
    fn bears(_cluster: &Shape<'_>, _fault: Lasting) -> bool {
        true
    }

    /// Returns true if the protocol bears it that this node, which is dead, loses its disk now.
    fn bears_loss_of(runner: &Runner<Self>, node: NodeId) -> bool;

    /// Returns what is still missing of a cluster that has had its time to heal, if anything is.
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

/// The seeds of a normal run. So many have every kind of step, which is checked.
const SEEDS: u64 = 500;

/// The most milliseconds that a snapshot takes beyond a tenth of a second.
const INSTALL_MAX: u64 = 2000;

/// The steps of one run.
const STEPS: usize = 150;

/// In one of so many runs the cohort is to end.
const ENDS_ONE_IN: u64 = 6;

/// The most seals that are proposed in such a run.
const SEALS_MAX: u64 = 3;

/// Makes another sequence of numbers of a seed, for what ends a cohort: all else that a seed means stays
/// what it was.
const OF_SEALS: u64 = 0x5ea1_0e7d_5ea1_0e7d;

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

/// A run: the cluster, and the steps. The same seed gives the same run.
struct Plan {
    nodes: u64,
    options: Vec<(String, String)>,
    steps: Vec<Step>,
    /// Faults of nodes, or of the leader, that last while the rest must serve.
    lasting: Vec<(Lasting, Option<u64>)>,
}

impl Plan {
    fn new<S: Trial>(seed: u64, mistake: Mistaken<'_>) -> Self {
        let mut numbers = Numbers(seed);
        let (nodes, mut options) = S::cluster(&mut numbers);
        options.extend(mistake.map(|(kind, name)| (kind.to_owned(), name.to_owned())));
        // Some runs are without one kind of trouble, so that others come further.
        let without = numbers.below(8);
        options.extend(conditions(&mut numbers));
        let shape = Shape { nodes, options: &options };
        let faults = 1 + numbers.below(S::minority(&shape).max(1));
        let lasting = (0..faults).map(|_| {
            let node = numbers.below(nodes) + 1;
            let node = (numbers.below(2) == 0).then_some(node);
            (Lasting::any(&mut numbers), node)
        });
        let lasting = lasting.collect::<Vec<_>>().into_iter();
        let is_borne =
            |(fault, _): &(Lasting, _)| S::minority(&shape) > 0 && S::bears(&shape, *fault);
        let lasting = lasting.filter(is_borne).collect();
        let mut steps: Vec<_> =
            (0..STEPS).map(|_| steps::pick(&mut numbers, nodes, without)).collect();
        insert_seals(&mut steps, &mut Numbers(seed ^ OF_SEALS), nodes);
        Self { nodes, options, steps, lasting }
    }
}

/// Has the cohort end in some runs: at some moment a seal is proposed, or several are, of which the first
/// counts.
fn insert_seals(steps: &mut Vec<Step>, numbers: &mut Numbers, nodes: u64) {
    if numbers.below(ENDS_ONE_IN) > 0 {
        return;
    }
    for _ in 0..=numbers.below(SEALS_MAX) {
        let at = usize::try_from(numbers.below(STEPS as u64)).expect("few steps");
        steps.splice(at..at, steps::pick_seal(numbers, nodes));
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
    if numbers.below(3) == 0 {
        // A snapshot takes its time: others come meanwhile, and leaders change.
        add("install", 100 + numbers.below(INSTALL_MAX));
    }
    options
}

impl Plan {
    /// Takes the steps, and returns what was done, or what failed with the script up to there.
    fn run<S: Trial>(&self) -> Result<Tally, (String, Vec<String>)> {
        let mut run = Run::<S>::new(self.nodes, &self.options);
        let whole = AssertUnwindSafe(|| {
            self.steps.iter().for_each(|step| run.take(*step));
            run.end(&self.lasting);
        });
        let Err(panic) = catch_unwind(whole) else { return Ok(run.tally()) };
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err((text.unwrap_or_default(), run.into_script()))
    }

    /// Leaves out steps for as long as it fails in the same way, and returns the script.
    fn shrink<S: Trial>(mut self, text: &str) -> String {
        let is_alike = |plan: &Self| {
            let failed = plan.run::<S>().err();
            failed.filter(|(other, _)| name(other) == name(text))
        };
        let mut size = self.steps.len() / 2;
        while size > 0 {
            let mut at = 0;
            while at < self.steps.len() {
                let mut steps = self.steps.clone();
                steps.drain(at..(at + size).min(self.steps.len()));
                let (options, lasting) = (self.options.clone(), self.lasting.clone());
                let fewer = Self { steps, options, lasting, nodes: self.nodes };
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

/// A mistake that is made in a run: what makes it, `fault` for all replicas or `mistake` for what
/// surrounds them, and its name.
type Mistaken<'a> = Option<(&'a str, &'a str)>;

/// A mistake that runs notice: what makes it and its name, which invariant it violates, and how many
/// seeds suffice to see it.
pub(crate) type Noticed = (&'static str, &'static str, &'static str, u64);

/// Checks that each mistake is found to violate its invariant, by one of the first so many seeds, which
/// passes without it. Prints which.
pub(crate) fn check_mistakes<S: Trial>(mistakes: &[Noticed]) {
    let finds = |(kind, mistake, invariant, seeds): &Noticed| {
        let finds = |seed: &u64| {
            let failed = Plan::new::<S>(*seed, Some((kind, mistake))).run::<S>().err();
            failed.is_some_and(|(text, _)| name(&text) == *invariant)
                && Plan::new::<S>(*seed, None).run::<S>().is_ok()
        };
        let found = (0..*seeds).find(finds);
        let found = found.map_or_else(|| "NOT FOUND".into(), |seed| format!("seed {seed}"));
        format!("{kind}={mistake}: {invariant}: {found} of {seeds}")
    };
    let (next, lines) = (AtomicU64::new(0), Mutex::new(BTreeMap::new()));
    on_all_cores(|| {
        while let Ok(at) = usize::try_from(next.fetch_add(1, Ordering::Relaxed))
            && let Some(mistake) = mistakes.get(at)
        {
            let line = finds(mistake);
            lines.lock().expect("no panic").insert(at, line);
        }
    });
    let lines = lines.into_inner().expect("no panic");
    let table = lines.into_values().collect::<Vec<_>>().join("\n");
    print(&table);
    assert!(!table.contains("NOT FOUND"), "\n{table}");
}

/// Does the work on as many threads as there are cores, or as `THREADS` says.
fn on_all_cores(work: impl Fn() + Sync) {
    let cores = || u64::try_from(std::thread::available_parallelism().ok()?.get()).ok();
    std::thread::scope(|scope| {
        for _ in 0..number("THREADS").or_else(cores).unwrap_or(1) {
            scope.spawn(&work);
        }
    });
}

/// Tries the protocol.
pub(crate) fn try_seeds<S: Trial>() {
    let (fault, mistake) = (std::env::var("FAULT").ok(), std::env::var("MISTAKE").ok());
    let mistake = fault.as_deref().map(|fault| ("fault", fault)).or_else(|| {
        let mistake = mistake.as_deref()?;
        Some(("mistake", mistake))
    });
    let (from, end) = match number("SEED") {
        Some(seed) => (seed, seed + 1),
        None => {
            let from = number("FROM").unwrap_or_default();
            (from, from + number("SEEDS").unwrap_or(SEEDS))
        }
    };
    let goes_on = std::env::var("GO_ON").is_ok();
    let next = AtomicU64::new(from);
    let failed = Mutex::new(Vec::new());
    let all = Mutex::new(Tally::default());
    on_all_cores(|| {
        let mut own = Tally::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end || (!goes_on && !failed.lock().expect("no panic").is_empty()) {
                return all.lock().expect("no panic").add(&own);
            }
            match Plan::new::<S>(seed, mistake).run::<S>() {
                Ok(tally) => own.add(&tally),
                Err((text, _)) => failed.lock().expect("no panic").push((seed, text)),
            }
        }
    });
    let mut failed = failed.into_inner().expect("no panic");
    failed.sort();
    if goes_on {
        let lines: Vec<_> =
            failed.iter().map(|(seed, text)| format!("SEED={seed} fails: {text}")).collect();
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    } else if let Some((seed, text)) = failed.first() {
        let shortest = Plan::new::<S>(*seed, mistake).shrink::<S>(text);
        panic!("SEED={seed}: {text}\nin the shortest such script: {shortest}");
    }
    let all = all.into_inner().expect("no panic");
    print(&format!("{:?}: {all}", S::PROTOCOL));
    if mistake.is_none() && end - from >= SEEDS {
        let kinds = tally::kinds::<S>();
        let lacking = all.lacking(&kinds);
        assert!(lacking.is_empty(), "{SEEDS} seeds and more had none of these: {lacking:?}");
        let unlisted: Vec<_> = all.steps.keys().filter(|kind| !kinds.contains(*kind)).collect();
        assert!(unlisted.is_empty(), "steps of no listed kind: {unlisted:?}");
    }
}

#[expect(clippy::print_stdout, reason = "a summary is what a run is for beside its verdict")]
fn print(text: &str) {
    println!("{text}");
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is no number")))
}
