//! One call of a decoder, what is wrong with it, and what is made of that.

use std::cell::Cell;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::Verdict;

/// The memory that a call may take, however short its input is.
const BYTES: u64 = 1024 * 1024;

/// The memory that a call may take for each byte of its input: what a byte becomes at most is an
/// element of a vector that grows by doubling.
const BYTES_PER_BYTE: u64 = 512;

/// The longest that a call may take. Generous: other tests have the processor too.
const TIME: Duration = Duration::from_secs(20);

/// How often a finding is tried to be made smaller.
const SHRINKS_MAX: usize = 2_000;

/// What a call may take.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) bytes: u64,
    pub(crate) bytes_per_byte: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: BYTES, bytes_per_byte: BYTES_PER_BYTE }
    }
}

/// What is wrong with a call.
#[derive(Debug)]
pub(crate) enum Finding {
    Panic(String),
    Memory { took: u64, limit: u64 },
    Time(Duration),
}

impl Finding {
    /// Returns true if the other one is of the same kind.
    fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panic(message) => write!(f, "it panicked: {message}"),
            Self::Memory { took, limit } => {
                write!(f, "it allocated {took} bytes, where {limit} are enough")
            }
            Self::Time(took) => write!(f, "it took {took:?}"),
        }
    }
}

thread_local! {
    /// Whether a panic of this thread is expected and becomes a finding.
    static CATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Calls the decoder, and measures it.
pub(crate) fn call(
    limits: Limits,
    decode: &dyn Fn(&[u8]) -> Verdict,
    input: &[u8],
) -> Result<Verdict, Finding> {
    let mut verdict = Verdict::Refused;
    let started = Instant::now();
    let mut panicked = None;
    let memory = allocation_counter::measure(|| {
        match panic::catch_unwind(AssertUnwindSafe(|| decode(input))) {
            Ok(found) => verdict = found,
            Err(panic) => panicked = Some(panic),
        }
    });
    if let Some(panic) = panicked {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
        return Err(Finding::Panic(message.unwrap_or("without a message").to_owned()));
    }
    let limit = limits.bytes + limits.bytes_per_byte * input.len() as u64;
    if memory.bytes_max > limit {
        return Err(Finding::Memory { took: memory.bytes_max, limit });
    }
    let took = started.elapsed();
    if took > TIME {
        return Err(Finding::Time(took));
    }
    Ok(verdict)
}

/// Fails the test, with an input as small as can be found that shows the same.
pub(crate) fn report(
    name: &str,
    limits: Limits,
    decode: &dyn Fn(&[u8]) -> Verdict,
    input: &[u8],
    seed: u64,
    finding: Finding,
) -> ! {
    let (input, finding) = match finding {
        // Each try would take as long.
        Finding::Time(_) => (input.to_vec(), finding),
        _ => shrink(limits, decode, input, finding),
    };
    let place = keep(name, &input);
    panic!(
        "{name}: {finding}\nan input of {} bytes: {}\nseed {seed}; again: \
         TRIREME_FUZZ_INPUT={place} cargo test {name}",
        input.len(),
        hex(&input)
    );
}

fn shrink(
    limits: Limits,
    decode: &dyn Fn(&[u8]) -> Verdict,
    input: &[u8],
    finding: Finding,
) -> (Vec<u8>, Finding) {
    silence_panics();
    CATCHING.set(true);
    let (mut smallest, mut finding) = (input.to_vec(), finding);
    let mut tries = 0;
    let mut piece = smallest.len().div_ceil(2);
    while piece > 0 && tries < SHRINKS_MAX {
        let mut at = 0;
        while at < smallest.len() && tries < SHRINKS_MAX {
            tries += 1;
            let mut smaller = smallest.clone();
            smaller.drain(at..(at + piece).min(smallest.len()));
            match call(limits, decode, &smaller) {
                Err(found) if found.is_like(&finding) => (smallest, finding) = (smaller, found),
                _ => at += piece,
            }
        }
        piece /= 2;
    }
    CATCHING.set(false);
    (smallest, finding)
}

/// Has panics of a thread that expects them pass without a word.
fn silence_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CATCHING.get() {
                before(info);
            }
        }));
    });
}

/// Writes the input where it can be called with again, and returns where.
fn keep(name: &str, input: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    let folder = std::env::temp_dir().join("trireme-fuzz");
    let path: PathBuf = folder.join(format!("{name}-{:016x}", hasher.finish()));
    match std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, input)) {
        Ok(()) => path.display().to_string(),
        Err(error) => format!("(not kept: {error})"),
    }
}

fn hex(input: &[u8]) -> String {
    const SHOWN_MAX: usize = 512;
    let shown: String = input.iter().take(SHOWN_MAX).map(|byte| format!("{byte:02x}")).collect();
    if input.len() > SHOWN_MAX { shown + "..." } else { shown }
}
