//! What clients were told, key by key: a write that was acknowledged has taken effect by then; one that
//! was refused never does; of one that was not answered nothing is known, until a strong read has found
//! it, or has not.

use std::collections::BTreeMap;

use trireme_replication::core::Ticket;
use trireme_types::NodeId;

use super::{Caller, Request};

/// A strong read finds the newest acknowledged write, or one that came after it (C4).
pub(crate) const ACKNOWLEDGED_IS_READ: &str = "what was acknowledged is read";

/// A write that was not answered, and that a strong read did not find, is never found later, unless it
/// is sent again; nor is one whose place another was found in (S16).
pub(crate) const NO_GHOST: &str = "what was not found does not appear later";

/// A strong read finds what a client wrote and was not refused.
pub(crate) const REFUSED_IS_NOT_READ: &str = "what was refused is not read";

/// What clients did and were told.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Counts it.
    step: u64,
    reads: BTreeMap<Caller, u64>,
    writes: Vec<WriteOfKey>,
    /// How many writes were acknowledged.
    pub(crate) acknowledged: u64,
    /// How many strong reads were answered with what was found.
    pub(crate) answered: u64,
}

/// One key's part of a write.
#[derive(Debug)]
struct WriteOfKey {
    request: Option<Request>,
    key: String,
    /// None if the key was to be deleted.
    value: Option<String>,
    asked: u64,
    /// Those who have sent it, and what each was told.
    attempts: BTreeMap<Caller, Attempt>,
    /// What has become of it for certain, by the first answer that says so.
    decided: Option<Decided>,
    /// When a strong read that found it was first answered.
    found: Option<u64>,
    /// When a strong read was answered that shows that it is never found again, and why.
    gone: Option<(u64, &'static str)>,
}

/// What one who sent a write was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attempt {
    Open,
    Refused,
    Unknown(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decided {
    /// It has taken effect by then.
    Effective(u64),
    /// Its condition did not hold.
    Void,
}

impl WriteOfKey {
    fn new(caller: Option<Caller>, key: &str, value: Option<&str>, asked: u64) -> Self {
        Self {
            request: None,
            key: key.to_owned(),
            value: value.map(str::to_owned),
            asked,
            attempts: caller.into_iter().map(|caller| (caller, Attempt::Open)).collect(),
            decided: None,
            found: None,
            gone: None,
        }
    }

    /// Returns the step by which it has certainly taken effect.
    fn done(&self) -> Option<u64> {
        let effective = match self.decided {
            Some(Decided::Effective(at)) => Some(at),
            _ => None,
        };
        [effective, self.found].into_iter().flatten().min()
    }

    /// Returns true if it certainly never takes effect.
    fn is_refused(&self) -> bool {
        match self.decided {
            Some(decided) => decided == Decided::Void,
            None => self.attempts.values().all(|attempt| *attempt == Attempt::Refused),
        }
    }

    /// Returns true if it was over before `step`, whatever came of it.
    fn is_over_before(&self, step: u64) -> bool {
        if let Some(done) = self.done() {
            return done < step;
        }
        // What was refused is over, and none of those that count.
        let is_unknown = self.attempts.values().any(|a| matches!(a, Attempt::Unknown(_)));
        let is_over = |attempt: &Attempt| match attempt {
            Attempt::Open => false,
            Attempt::Refused => true,
            Attempt::Unknown(at) => *at < step,
        };
        self.decided.is_none() && is_unknown && self.attempts.values().all(is_over)
    }
}

impl History {
    /// Records that a client asks for a write, with the values that keys are to get.
    pub(crate) fn write_asked(
        &mut self,
        caller: Caller,
        request: Option<Request>,
        changes: &[(String, Option<String>)],
    ) {
        self.step += 1;
        if request.is_some() && self.asked_again(caller, request) {
            return;
        }
        for (key, value) in changes {
            if !self.writes.iter().any(|write| write.key == *key) {
                let decided = Some(Decided::Effective(0));
                self.writes.push(WriteOfKey { decided, ..WriteOfKey::new(None, key, None, 0) });
            }
            // A batch that writes a key twice leaves its last value.
            self.writes.retain(|w| !w.attempts.contains_key(&caller) || w.key != *key);
            let write = WriteOfKey::new(Some(caller), key, value.as_deref(), self.step);
            self.writes.push(WriteOfKey { request, ..write });
        }
    }

    /// Records another attempt at a write, if it is one.
    fn asked_again(&mut self, caller: Caller, request: Option<Request>) -> bool {
        let mut is_known = false;
        for write in self.writes.iter_mut().filter(|write| write.request == request) {
            is_known = true;
            write.attempts.insert(caller, Attempt::Open);
            // What could not appear any more by itself may be written only now.
            if write.decided.is_none() && write.found.is_none() {
                write.gone = None;
            }
        }
        is_known
    }

    /// Records that a client asks for a strong read.
    pub(crate) fn read_asked(&mut self, caller: Caller) {
        self.step += 1;
        self.reads.insert(caller, self.step);
    }

    /// Records that a write was acknowledged, which took effect or was void.
    pub(crate) fn acknowledged(&mut self, caller: Caller, took_effect: bool) {
        self.step += 1;
        self.acknowledged += 1;
        let decided = if took_effect { Decided::Effective(self.step) } else { Decided::Void };
        for write in self.writes.iter_mut().filter(|w| w.attempts.contains_key(&caller)) {
            write.decided.get_or_insert(decided);
        }
    }

    /// Records that a write had no effect, and never will, as far as it was sent by this caller.
    pub(crate) fn refused(&mut self, caller: Caller) {
        self.end(caller, |_| Attempt::Refused);
    }

    /// Records that a client will never know what came of what it asked.
    pub(crate) fn unanswered(&mut self, caller: Caller) {
        self.end(caller, Attempt::Unknown);
    }

    fn end(&mut self, caller: Caller, told: impl Fn(u64) -> Attempt) {
        self.reads.remove(&caller);
        self.step += 1;
        let told = told(self.step);
        let attempts = self.writes.iter_mut().filter_map(|w| w.attempts.get_mut(&caller));
        attempts.for_each(|attempt| *attempt = told);
    }

    /// Records what a strong read has found.
    pub(crate) fn found(&mut self, caller: Caller, key: &str, value: Option<&str>) {
        self.step += 1;
        self.answered += 1;
        let now = self.step;
        let Some(asked) = self.reads.remove(&caller) else { return };
        let of_key = || self.writes.iter().enumerate().filter(|(_, write)| write.key == key);
        let shown = shown(caller, key, value);
        if of_key().next().is_none() && value.is_none() {
            return;
        }
        let candidates: Vec<usize> = of_key()
            .filter(|(_, write)| write.value.as_deref() == value && !write.is_refused())
            .map(|(at, _)| at)
            .collect();
        assert!(!candidates.is_empty(), "{REFUSED_IS_NOT_READ}: {shown}");
        let objection = |at: &usize| self.objection(&self.writes[*at], asked);
        let objections: Vec<_> = candidates.iter().filter_map(objection).collect();
        assert!(
            objections.len() < candidates.len(),
            "{}: {shown}, though {}",
            objections[0].0,
            objections[0].1
        );
        if let [found] = candidates[..] {
            self.note(found, asked, now);
        }
    }

    /// Returns why a read that was asked at `asked` can not find a write, if it can not.
    fn objection(&self, write: &WriteOfKey, asked: u64) -> Option<(&'static str, String)> {
        if let Some((at, name)) = write.gone
            && at < asked
        {
            return Some((name, "an earlier read did not find it".into()));
        }
        let done = write.done()?;
        let is_after = |later: &&WriteOfKey| {
            later.key == write.key
                && later.asked > done
                && later.done().is_some_and(|done| done < asked)
        };
        let later = self.writes.iter().find(is_after)?;
        let value = later.value.as_deref().unwrap_or("none");
        let why = if later.decided.is_some() { "acknowledged" } else { "read" };
        Some((ACKNOWLEDGED_IS_READ, format!("{}={value} was {why} since", later.key)))
    }

    /// Notes that a read found this write, and so not the others.
    fn note(&mut self, found: usize, asked: u64, now: u64) {
        let key = self.writes[found].key.clone();
        for (at, write) in self.writes.iter_mut().enumerate() {
            if at == found {
                write.found.get_or_insert(now);
            } else if write.key == key && write.is_over_before(asked) {
                let is_unknown = write.done().is_none();
                let name = if is_unknown { NO_GHOST } else { ACKNOWLEDGED_IS_READ };
                write.gone.get_or_insert((now, name));
            }
        }
    }
}

fn shown((node, _): (NodeId, Ticket), key: &str, value: Option<&str>) -> String {
    format!("{node} reads {key}={}", value.unwrap_or("none"))
}
