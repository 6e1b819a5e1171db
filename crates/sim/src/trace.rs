//! What happened, in order: a hash of all of it, and its end in words.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::Write;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How many events a failure shows.
const SHOWN: usize = 60;

/// The events of a run.
pub(crate) struct Trace {
    start: Instant,
    inner: Mutex<Inner>,
    failed: Notify,
}

/// Where every event is written.
pub(crate) type Sink = Box<dyn Write + Send>;

#[derive(Default)]
struct Inner {
    sink: Option<Sink>,
    hash: u64,
    events: u64,
    last: VecDeque<String>,
    counts: BTreeMap<&'static str, u64>,
    failure: Option<String>,
}

impl Trace {
    pub(crate) fn new(sink: Option<Sink>) -> Self {
        let inner = Inner { hash: 0xcbf2_9ce4_8422_2325, sink, ..Inner::default() };
        Self { start: Instant::now(), inner: Mutex::new(inner), failed: Notify::new() }
    }

    /// Returns how many milliseconds of virtual time have passed.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Records an event of a kind.
    pub(crate) fn note(&self, kind: &'static str, what: fmt::Arguments<'_>) {
        let text = format!("{:>6} {kind}: {what}", self.now());
        let mut inner = self.inner.lock();
        inner.hash = hash(inner.hash, text.as_bytes());
        inner.events += 1;
        if let Some(sink) = &mut inner.sink {
            // A full disk of the machine is no fault of the run.
            let _unwritten = writeln!(sink, "{text}");
        }
        *inner.counts.entry(kind).or_default() += 1;
        if inner.last.len() == SHOWN {
            inner.last.pop_front();
        }
        inner.last.push_back(text);
    }

    /// Ends the run: something is wrong. Only the first failure counts.
    pub(crate) fn fail(&self, what: String) {
        self.inner.lock().failure.get_or_insert(what);
        self.failed.notify_one();
    }

    /// Returns when the run has failed.
    pub(crate) async fn failed(&self) {
        while self.inner.lock().failure.is_none() {
            self.failed.notified().await;
        }
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.inner.lock().failure.clone()
    }

    /// Returns a number that grows with every event.
    pub(crate) fn moment(&self) -> u64 {
        self.inner.lock().events
    }

    pub(crate) fn hash(&self) -> u64 {
        self.inner.lock().hash
    }

    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.inner.lock().counts.clone()
    }

    pub(crate) fn last(&self) -> Vec<String> {
        self.inner.lock().last.iter().cloned().collect()
    }
}

/// FNV-1a: what goes in is neither large nor chosen by anyone.
pub(crate) fn hash(from: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(from, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
