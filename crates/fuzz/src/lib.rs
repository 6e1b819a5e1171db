//! Feeds decoders with damaged and hostile bytes, in the tests of the crates that own the decoders.
//!
//! A target is a test: it gives valid encodings and a function that decodes bytes and checks what
//! came out. [`Fuzz::run`] calls it with each encoding as it is, then with mutations of them and
//! with noise, and fails if the function
//!
//! * panics, which is also how it reports what it finds wrong;
//! * allocates far more than the input is long, as a decoder does that believes a length before it
//!   has the bytes;
//! * takes longer than any input of that size may.
//!
//! An input that is decoded becomes an encoding to mutate further, so that a run drifts through
//! what the decoder accepts. The first inputs follow from the seed alone: a short run, which is what
//! `cargo test` does, is the same everywhere.
//!
//! | variable | |
//! |---|---|
//! | `TRIREME_FUZZ_SECONDS` | how long each target runs; without it, [`SHORT_INPUTS`] inputs or [`SHORT_TIME`], whichever comes first |
//! | `TRIREME_FUZZ_SEED` | the seed; 1 without it |
//! | `TRIREME_FUZZ_INPUT` | a file: the target is called with its bytes alone |
//!
//! A finding is made smaller, written to a file, and printed with the command that repeats it.

mod finding;
mod mutate;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use finding::Limits;

/// The most inputs of a short run.
pub const SHORT_INPUTS: u64 = 20_000;

/// The longest that a short run takes.
pub const SHORT_TIME: Duration = Duration::from_secs(1);

/// The most accepted inputs that are kept to be mutated further; the oldest one goes first.
const ACCEPTED_MAX: usize = 256;

/// The longest input that is kept to be mutated further, in lengths of the longest valid one: what
/// grows without end makes every call slower and shows nothing new.
const KEPT_LENGTHS_MAX: usize = 4;

/// What a target says of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was decoded.
    Accepted,
    /// It was refused.
    Refused,
}

impl<T, E> From<&Result<T, E>> for Verdict {
    fn from(result: &Result<T, E>) -> Self {
        if result.is_ok() { Self::Accepted } else { Self::Refused }
    }
}

/// Makes an input's checksums right.
pub type Repair = dyn Fn(&mut Vec<u8>);

/// One target: a decoder, and valid inputs of it.
pub struct Fuzz<'a> {
    name: &'static str,
    valid: Vec<Vec<u8>>,
    repair: Option<&'a Repair>,
    limits: Limits,
}

impl<'a> Fuzz<'a> {
    /// A target with these valid inputs, of which there must be one at least.
    pub fn new(name: &'static str, valid: impl IntoIterator<Item = impl Into<Vec<u8>>>) -> Self {
        let valid: Vec<Vec<u8>> = valid.into_iter().map(Into::into).collect();
        assert!(!valid.is_empty(), "{name}: mutations need a valid input");
        Self { name, valid, repair: None, limits: Limits::default() }
    }

    /// Has half of the mutated inputs repaired before they are decoded: their checksums made right,
    /// so that what is wrong gets past them.
    #[must_use]
    pub fn repair(self, repair: &'a Repair) -> Self {
        Self { repair: Some(repair), ..self }
    }

    /// Allows `bytes` of memory for an input however short, and `per_byte` more for each of its
    /// bytes: for a decoder that has a reason to take more than others.
    #[must_use]
    pub fn memory(mut self, bytes: u64, per_byte: u64) -> Self {
        self.limits.bytes = bytes;
        self.limits.bytes_per_byte = per_byte;
        self
    }

    /// Calls `decode` with input after input.
    ///
    /// # Panics
    /// `decode` panicked, allocated too much or took too long.
    pub fn run(self, decode: impl Fn(&[u8]) -> Verdict) {
        let decode: &dyn Fn(&[u8]) -> Verdict = &decode;
        if let Some(input) = input_of_environment() {
            let verdict = finding::call(self.limits, decode, &input);
            eprintln_figures(format_args!("{}: {verdict:?}", self.name));
            verdict.unwrap_or_else(|finding| panic!("{}: {finding}", self.name));
            return;
        }
        for input in &self.valid {
            match self.call(decode, input, 0) {
                Verdict::Accepted => {}
                Verdict::Refused => panic!("{}: a valid input is refused: {input:x?}", self.name),
            }
        }
        self.mutate(decode);
    }

    fn mutate(&self, decode: &dyn Fn(&[u8]) -> Verdict) {
        let seed = number_of_environment("TRIREME_FUZZ_SEED").unwrap_or(1);
        let seconds = number_of_environment("TRIREME_FUZZ_SECONDS");
        let time = seconds.map_or(SHORT_TIME, Duration::from_secs);
        let inputs_max = if seconds.is_some() { u64::MAX } else { SHORT_INPUTS };
        let mut rng = StdRng::seed_from_u64(seed);
        let mut found: VecDeque<Vec<u8>> = VecDeque::new();
        let started = Instant::now();
        let (mut inputs, mut accepted) = (0, 0);
        let kept_max =
            KEPT_LENGTHS_MAX * self.valid.iter().map(Vec::len).max().unwrap_or(0).max(16);
        while inputs < inputs_max && started.elapsed() < time {
            let input = self.next(&mut rng, &found);
            inputs += 1;
            if self.call(decode, &input, seed) == Verdict::Accepted {
                accepted += 1;
                if input.len() <= kept_max {
                    found.push_back(input);
                }
                if found.len() > ACCEPTED_MAX {
                    found.pop_front();
                }
            }
        }
        let took = started.elapsed().as_secs_f64();
        let name = self.name;
        eprintln_figures(format_args!(
            "{name}: {inputs} inputs in {took:.1} s, {accepted} accepted, seed {seed}"
        ));
    }

    fn next(&self, rng: &mut StdRng, found: &VecDeque<Vec<u8>>) -> Vec<u8> {
        if rng.random_ratio(1, 16) {
            return mutate::noise(rng);
        }
        let any = |rng: &mut StdRng| {
            let index = rng.random_range(0..self.valid.len() + found.len());
            let found = |index: usize| &found[index - self.valid.len()];
            self.valid.get(index).unwrap_or_else(|| found(index))
        };
        // Half of the inputs begin from what is known to be valid.
        let base = match rng.random() {
            true => &self.valid[rng.random_range(0..self.valid.len())],
            false => any(rng),
        };
        let mut input = base.clone();
        let other = any(rng);
        mutate::mutate(rng, &mut input, other);
        if let Some(repair) = self.repair
            && rng.random()
        {
            repair(&mut input);
        }
        input
    }

    fn call(&self, decode: &dyn Fn(&[u8]) -> Verdict, input: &[u8], seed: u64) -> Verdict {
        match finding::call(self.limits, decode, input) {
            Ok(verdict) => verdict,
            Err(finding) => finding::report(self.name, self.limits, decode, input, seed, finding),
        }
    }
}

fn number_of_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is no number")))
}

fn input_of_environment() -> Option<Vec<u8>> {
    let path = std::env::var_os("TRIREME_FUZZ_INPUT")?;
    let read = std::fs::read(&path);
    Some(read.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// Prints what `cargo test` shows with `--nocapture` only.
#[expect(clippy::print_stderr, reason = "a test's figures are for who runs it")]
fn eprintln_figures(figures: std::fmt::Arguments<'_>) {
    eprintln!("{figures}");
}

#[cfg(test)]
mod tests;
