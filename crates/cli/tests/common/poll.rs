//! Waiting for a condition, up to a deadline.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// Returns what `look` finds, as soon as it finds something.
#[track_caller]
pub(crate) fn until<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    until_ok(what, patience, || look().ok_or("not yet"))
}

/// Returns what `look` finds, as soon as it does not fail; else shows how it failed last.
#[track_caller]
pub(crate) fn until_ok<T, E: Debug>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match look() {
            Ok(found) => return found,
            Err(missing) if Instant::now() >= deadline => {
                panic!("{what}: not within {patience:?}: {missing:?}")
            }
            Err(_) => std::thread::sleep(INTERVAL),
        }
    }
}
