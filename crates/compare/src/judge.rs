//! Whether what callers recorded can be explained.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trireme_checker::history::Answer;
use trireme_checker::kv::{Input, KvOperation, Output};
use trireme_checker::search::Limits;
use trireme_checker::{Verdict, check};
use trireme_client::Consistency;

use crate::load::{Asked, Recorded};
use crate::report::Checks;

/// Judges what was done to one cluster, from its first write on, and adds what was found. `what`
/// names the history. `last` are strong reads of all keys after everything else.
pub fn judge(what: &str, operations: &[Recorded], last: &[Recorded], checks: &mut Checks) {
    checks.histories += 1;
    checks.operations += (operations.len() + last.len()) as u64;
    let lost = lost_writes(operations, last);
    if lost > 0 {
        checks.lost_writes += lost;
        checks.findings.push(format!("{what}: {lost} acknowledged writes are lost"));
    }
    let wrong = wrong_timeline_reads(operations);
    if wrong > 0 {
        checks.wrong_timeline_reads += wrong;
        checks.findings.push(format!("{what}: {wrong} timeline reads went back, or found nothing"));
    }
    let history = operations.iter().chain(last).filter_map(linearizable).collect();
    match check(history, &Limits::default()) {
        Verdict::Linearizable => {}
        Verdict::NotLinearizable(example) => {
            checks.not_linearizable += 1;
            let stuck = &example.part[example.stuck];
            checks.findings.push(format!("{what}: not linearizable: {:?}", stuck.input));
        }
        Verdict::Unknown(bound) => {
            checks.undecided += 1;
            checks.findings.push(format!("{what}: undecided: the checker reached {bound:?}"));
        }
    }
}

/// Returns an operation as the checker knows it; `None` of a timeline read, which need not see the
/// newest value.
fn linearizable(operation: &Recorded) -> Option<KvOperation> {
    let key: Arc<str> = operation.key.to_string().into();
    let (input, output) = match &operation.asked {
        Asked::Get(Consistency::Timeline) => return None,
        Asked::Get(_) => {
            let found = operation.found.as_ref().map(|found| Arc::clone(&found.value));
            (Input::Get { key }, Output::Found(found))
        }
        Asked::Put(value) => (Input::Put { key, value: Arc::clone(value) }, Output::Done),
    };
    let answer = operation.returned.map(|at| Answer { at, output });
    Some(KvOperation { client: operation.caller, input, called: operation.called, answer })
}

/// Counts keys whose last read found a value that an acknowledged write had replaced for certain:
/// one that was asked for after the value's own write had been acknowledged; or found none though
/// something was acknowledged.
fn lost_writes(operations: &[Recorded], last: &[Recorded]) -> u64 {
    // The newest call of an acknowledged write of each key, and when each value was acknowledged.
    let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
    let mut acknowledged: BTreeMap<&str, Option<u64>> = BTreeMap::new();
    for operation in operations {
        if let Asked::Put(value) = &operation.asked {
            acknowledged.insert(value, operation.returned);
            if operation.returned.is_some() {
                let newest = newest.entry(operation.key).or_default();
                *newest = (*newest).max(operation.called);
            }
        }
    }
    let is_lost = |read: &&Recorded| {
        let Some(newest) = newest.get(&read.key) else { return false };
        match read.found.as_ref().map(|found| acknowledged.get(&*found.value).copied()) {
            None => true,
            // A write without an answer may have taken effect at any time.
            Some(None | Some(None)) => false,
            Some(Some(Some(at))) => at < *newest,
        }
    };
    last.iter().filter(is_lost).count() as u64
}

/// Counts timeline reads that found a value that was never put, or an older one than the same caller
/// had seen of that key.
fn wrong_timeline_reads(operations: &[Recorded]) -> u64 {
    let put = |operation: &Recorded| match &operation.asked {
        Asked::Put(value) => Some(Arc::clone(value)),
        Asked::Get(_) => None,
    };
    let values: BTreeSet<Arc<str>> = operations.iter().filter_map(put).collect();
    let mut seen: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    let mut wrong = 0;
    for operation in operations {
        if operation.asked != Asked::Get(Consistency::Timeline) {
            continue;
        }
        let version = operation.found.as_ref().map_or(0, |found| found.version);
        let newest = seen.entry((operation.caller, operation.key)).or_default();
        let is_known = operation.found.as_ref().is_none_or(|found| values.contains(&found.value));
        wrong += u64::from(!is_known || version < *newest);
        *newest = (*newest).max(version);
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Found;

    fn put(value: &str, called: u64, returned: Option<u64>) -> Recorded {
        Recorded {
            caller: 1,
            key: 7,
            asked: Asked::Put(value.into()),
            due: called,
            called,
            returned,
            found: None,
        }
    }

    fn get(consistency: Consistency, value: &str, version: u64, called: u64) -> Recorded {
        let found = Some(Found { value: value.into(), version });
        let (asked, returned) = (Asked::Get(consistency), Some(called + 1));
        Recorded { caller: 2, key: 7, asked, due: called, called, returned, found }
    }

    fn judged(operations: &[Recorded], last: &[Recorded]) -> Checks {
        let mut checks = Checks::default();
        judge("a run", operations, last, &mut checks);
        checks
    }

    #[test]
    fn what_can_be_explained_is_right() {
        let puts = [put("a", 0, Some(10)), put("b", 20, None), put("c", 30, Some(40))];
        for last in ["b", "c"] {
            let checks = judged(&puts, &[get(Consistency::Strong, last, 3, 50)]);
            assert!(!checks.has_failed(), "{checks:?}");
            assert_eq!((checks.histories, checks.operations), (1, 4));
        }
    }

    #[test]
    fn a_lost_write_and_a_stale_read_are_found() {
        let puts = [put("a", 0, Some(10)), put("c", 30, Some(40))];
        let lost = judged(&puts, &[get(Consistency::Strong, "a", 1, 50)]);
        assert_eq!((lost.lost_writes, lost.not_linearizable), (1, 1), "{lost:?}");
        let stale = [&puts[..], &[get(Consistency::Strong, "a", 1, 50)]].concat();
        let stale = judged(&stale, &[get(Consistency::Strong, "c", 2, 60)]);
        assert_eq!((stale.lost_writes, stale.not_linearizable), (0, 1), "{stale:?}");
    }

    #[test]
    fn a_timeline_read_may_be_old_and_may_not_go_back() {
        let puts = [put("a", 0, Some(10)), put("c", 30, Some(40))];
        let last = [get(Consistency::Strong, "c", 2, 90)];
        let read = |value, version, called| get(Consistency::Timeline, value, version, called);
        let old = [&puts[..], &[read("a", 1, 50), read("c", 2, 60)]].concat();
        assert!(!judged(&old, &last).has_failed());
        let back = [&puts[..], &[read("c", 2, 50), read("a", 1, 60)]].concat();
        assert_eq!(judged(&back, &last).wrong_timeline_reads, 1);
        let unknown = [&puts[..], &[read("x", 1, 50)]].concat();
        assert_eq!(judged(&unknown, &last).wrong_timeline_reads, 1);
    }
}
