//! What a run has done, for its summary.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

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
    /// How often each kind of step was taken.
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
        for (kind, count) in &other.steps {
            *self.steps.entry(kind.clone()).or_default() += count;
        }
        for (kind, count) in &other.lasting {
            *self.lasting.entry(kind.clone()).or_default() += count;
        }
    }

    /// Counts a step by the words of its script that name no node, key or value.
    pub(super) fn count(&mut self, text: &str) {
        let is_verb =
            |word: &&str| word.len() > 1 && word.chars().all(|letter| letter.is_ascii_lowercase());
        let words: Vec<&str> = text.split([' ', '=']).filter(is_verb).collect();
        let verbs = words.iter().take(if words[0] == "cluster" { 1 } else { words.len() });
        let kind = verbs.copied().collect::<Vec<_>>().join(" ");
        *self.steps.entry(kind).or_default() += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = self.time.as_secs_f64() / 3600.0;
        let Self { seeds, acknowledged, read, epochs, installed, .. } = self;
        writeln!(
            f,
            "{seeds} seeds, {hours:.1} hours: {acknowledged} writes acknowledged, {read} strong reads \
             answered, {epochs} epochs led, {installed} snapshots installed"
        )?;
        let shown = |counts: &BTreeMap<String, u64>| {
            let shown = counts.iter().map(|(kind, count)| format!("{kind} {count}"));
            shown.collect::<Vec<_>>().join(", ")
        };
        writeln!(f, "steps: {}", shown(&self.steps))?;
        write!(f, "faults that lasted while the rest served: {}", shown(&self.lasting))
    }
}
