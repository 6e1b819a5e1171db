//! What a run has done, for its summary.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::{Lasting, Trial};

/// The kinds of step that are the same for every protocol, as [`Tally::count`] names them.
const KINDS: [&str; 49] = [
    "bounce",
    "cluster",
    "coordinator cut",
    "coordinator heal",
    "coordinator step",
    "crash",
    "cut",
    "cut lane data",
    "cut lane heartbeat",
    "depose",
    "deliver from to count",
    "deliver from to count lane data",
    "deliver from to count lane heartbeat",
    "disk one",
    "disk resume",
    "disk stall",
    "drop from to count",
    "flood",
    "flush",
    "get",
    "get level timeline client",
    "heal",
    "isolate",
    "partition",
    "pause",
    "peeralive",
    "peerlost",
    "put",
    "release",
    "release all",
    "request delete",
    "request delete when",
    "request delete when absent",
    "request put",
    "request put when",
    "request put when absent",
    "restart",
    "resume",
    "retry",
    "run",
    "seal",
    "seal at",
    "sender resume",
    "sender stall",
    "table resume",
    "table stall",
    "tick",
    "transfer",
    "wipe",
];

/// Returns every kind of step that a run of many seeds takes, as [`Tally::count`] names them.
pub(super) fn kinds<S: Trial>() -> BTreeSet<String> {
    let late = (0..3).map(|how| S::late(1, how));
    let trouble = (0..4).map(|which| S::trouble(1, which));
    let words = late.chain(trouble).chain(S::depose(1)).chain([S::relief(1)]);
    let coordinator = words.map(|words| kind(&format!("coordinator {words}")));
    let discards = S::DISCARDS.then(|| "discard".to_owned());
    KINDS.iter().map(|kind| (*kind).to_owned()).chain(coordinator).chain(discards).collect()
}

/// Returns the words of a step that name no node, key or value.
fn kind(text: &str) -> String {
    let is_verb =
        |word: &&str| word.len() > 1 && word.chars().all(|letter| letter.is_ascii_lowercase());
    let words: Vec<&str> = text.split([' ', '=']).filter(is_verb).collect();
    let verbs = words.iter().take(if words[0] == "cluster" { 1 } else { words.len() });
    verbs.copied().collect::<Vec<_>>().join(" ")
}

/// Counts of what was done in one run, or in many.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) seeds: u64,
    /// How much virtual time has passed.
    pub(super) time: Duration,
    pub(super) acknowledged: u64,
    pub(super) read: u64,
    /// In how many epochs a replica led.
    pub(super) epochs: u64,
    /// How many snapshots were installed.
    pub(super) installed: u64,
    /// How many cohorts ended.
    pub(super) ended: u64,
    /// How often each kind of step was taken, before the end of a run.
    pub(super) steps: BTreeMap<String, u64>,
    /// How often the rest had to serve in spite of so many faults of these kinds.
    pub(super) lasting: BTreeMap<String, u64>,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.time += other.time;
        self.acknowledged += other.acknowledged;
        self.read += other.read;
        self.epochs += other.epochs;
        self.installed += other.installed;
        self.ended += other.ended;
        for (kind, count) in &other.steps {
            *self.steps.entry(kind.clone()).or_default() += count;
        }
        for (kind, count) in &other.lasting {
            *self.lasting.entry(kind.clone()).or_default() += count;
        }
    }

    /// Counts a step by the words of its script that name no node, key or value.
    pub(super) fn count(&mut self, text: &str) {
        *self.steps.entry(kind(text)).or_default() += 1;
    }

    /// Returns what of all that runs try was never done: steps of these kinds, faults that last, and
    /// what comes of them.
    pub(super) fn lacking(&self, kinds: &BTreeSet<String>) -> Vec<String> {
        let Self { acknowledged, read, epochs, installed, ended, .. } = *self;
        let results = [
            ("acknowledged writes", acknowledged),
            ("strong reads", read),
            ("changes of leader", epochs.saturating_sub(self.seeds)),
            ("snapshots", installed),
            ("cohorts that end", ended),
        ];
        let results = results.into_iter().filter(|(_, count)| *count == 0);
        let lasting = Lasting::ALL.iter().map(|fault| format!("{fault:?}"));
        let lasting = lasting.filter(|fault| !self.lasting.contains_key(fault));
        let steps = kinds.iter().filter(|kind| !self.steps.contains_key(*kind)).cloned();
        steps.chain(lasting).chain(results.map(|(name, _)| name.to_owned())).collect()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = self.time.as_secs_f64() / 3600.0;
        let Self { seeds, acknowledged, read, epochs, installed, ended, .. } = self;
        writeln!(
            f,
            "{seeds} seeds, {hours:.1} hours: {acknowledged} writes acknowledged, {read} strong reads \
             answered, {epochs} epochs led, {installed} snapshots installed, {ended} cohorts ended"
        )?;
        let shown = |counts: &BTreeMap<String, u64>| {
            let shown = counts.iter().map(|(kind, count)| format!("{kind} {count}"));
            shown.collect::<Vec<_>>().join(", ")
        };
        writeln!(f, "steps: {}", shown(&self.steps))?;
        write!(f, "faults that lasted while the rest served: {}", shown(&self.lasting))
    }
}
