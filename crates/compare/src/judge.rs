//! Whether what callers recorded can be explained.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use trireme_checker::history::Answer;
use trireme_checker::kv::{Input, KvOperation, Output};
use trireme_checker::search::Limits;
use trireme_checker::{Verdict, check};
use trireme_client::Consistency;

use crate::load::{Asked, Found, Outcome, Recorded};
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
    let mut history = Vec::new();
    operations.iter().chain(last).for_each(|operation| add_to(&mut history, operation));
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

/// Adds an operation as the checker knows it. A timeline read is none of its operations, as it need
/// not see the newest value. A scan is a read of each key that it covers: its pages are no picture of
/// one moment.
fn add_to(history: &mut Vec<KvOperation>, operation: &Recorded) {
    let name = |key: u64| Arc::from(key.to_string());
    let mut add = |input, output| {
        let (client, called) = (operation.caller, operation.called);
        let at = operation.returned();
        let answer = at.zip(output).map(|(at, output)| Answer { at, output });
        history.push(KvOperation { client, input, called, answer });
    };
    let key = name(operation.key);
    let outcome = operation.answer.as_ref().map(|answer| &answer.outcome);
    match (&operation.asked, outcome) {
        (Asked::Get(Consistency::Strong), Some(Outcome::Found(found))) => {
            let found = found.as_ref().map(|found| Arc::clone(&found.value));
            add(Input::Get { key }, Some(Output::Found(found)));
        }
        (Asked::Scan(limit), Some(Outcome::Rows(rows))) => {
            let found: BTreeMap<u64, &Found> = rows.iter().map(|(key, it)| (*key, it)).collect();
            for covered in covered(operation.key, *limit, rows) {
                let value = found.get(&covered).map(|found| Arc::clone(&found.value));
                add(Input::Get { key: name(covered) }, Some(Output::Found(value)));
            }
        }
        (Asked::Put(value), outcome) => {
            add(Input::Put { key, value: Arc::clone(value) }, outcome.map(|_| Output::Done));
        }
        (Asked::PutIf { value, expected }, outcome) => {
            let output = outcome.map(|outcome| match outcome {
                Outcome::Refused => Output::Refused,
                _ => Output::Done,
            });
            let (value, expected) = (Arc::clone(value), Some(Arc::clone(expected)));
            add(Input::CompareAndSet { key, expected, value }, output);
        }
        // A timeline read, or a read whose answer never came, which says nothing.
        (Asked::Get(_) | Asked::Scan(_), _) => {}
    }
}

/// Returns the keys that a scan covers: up to the last row that it found, if it found as many as it
/// was to; else all from the first on, of which as many are returned as the scan was to find.
fn covered(first: u64, limit: u64, rows: &[(u64, Found)]) -> Range<u64> {
    match rows.last() {
        Some((last, _)) if rows.len() as u64 == limit => first..last + 1,
        _ => first..first + limit,
    }
}

/// Counts keys whose last read found a value that an acknowledged write had replaced for certain:
/// one that was asked for after the value's own write had been acknowledged; or found none though
/// something was acknowledged.
fn lost_writes(operations: &[Recorded], last: &[Recorded]) -> u64 {
    // The newest call of an acknowledged write of each key, and when each value was acknowledged.
    let mut newest: BTreeMap<u64, u64> = BTreeMap::new();
    let mut acknowledged: BTreeMap<&str, Option<u64>> = BTreeMap::new();
    for operation in operations {
        if let Some(value) = written(operation) {
            acknowledged.insert(value, operation.returned());
            if operation.answer.is_some() {
                let newest = newest.entry(operation.key).or_default();
                *newest = (*newest).max(operation.called);
            }
        }
    }
    let is_lost = |read: &&Recorded| {
        let Some(newest) = newest.get(&read.key) else { return false };
        match found_by(read).map(|found| acknowledged.get(&*found.value).copied()) {
            None => true,
            // A write without an answer may have taken effect at any time.
            Some(None | Some(None)) => false,
            Some(Some(Some(at))) => at < *newest,
        }
    };
    last.iter().filter(is_lost).count() as u64
}

/// Returns the value that an operation wrote or may have written.
fn written(operation: &Recorded) -> Option<&Arc<str>> {
    let is_refused = matches!(&operation.answer, Some(it) if it.outcome == Outcome::Refused);
    match &operation.asked {
        Asked::Put(value) | Asked::PutIf { value, .. } if !is_refused => Some(value),
        _ => None,
    }
}

/// Returns what a read of a key found.
fn found_by(operation: &Recorded) -> Option<&Found> {
    match &operation.answer.as_ref()?.outcome {
        Outcome::Found(found) => found.as_ref(),
        Outcome::Done | Outcome::Refused | Outcome::Rows(_) => None,
    }
}

/// Counts timeline reads that found a value that was never put, or an older one than the same caller
/// had seen of that key.
fn wrong_timeline_reads(operations: &[Recorded]) -> u64 {
    let values: BTreeSet<&Arc<str>> = operations.iter().filter_map(written).collect();
    let mut seen: BTreeMap<(u64, u64), u64> = BTreeMap::new();
    let mut wrong = 0;
    for operation in operations {
        if operation.asked != Asked::Get(Consistency::Timeline) {
            continue;
        }
        let found = found_by(operation);
        let version = found.map_or(0, |found| found.version);
        let newest = seen.entry((operation.caller, operation.key)).or_default();
        let is_known = found.is_none_or(|found| values.contains(&found.value));
        wrong += u64::from(!is_known || version < *newest);
        *newest = (*newest).max(version);
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load;

    fn recorded(
        caller: u64,
        asked: Asked,
        called: u64,
        answer: Option<(u64, Outcome)>,
    ) -> Recorded {
        let answer = answer.map(|(at, outcome)| load::Answer { at, outcome });
        Recorded { caller, key: 7, asked, due: called, called, answer }
    }

    fn put(value: &str, called: u64, returned: Option<u64>) -> Recorded {
        let answer = returned.map(|at| (at, Outcome::Done));
        recorded(1, Asked::Put(value.into()), called, answer)
    }

    fn put_if(expected: &str, value: &str, called: u64, outcome: Outcome) -> Recorded {
        let asked = Asked::PutIf { value: value.into(), expected: expected.into() };
        recorded(3, asked, called, Some((called + 5, outcome)))
    }

    fn found(value: &str, version: u64) -> Found {
        Found { value: value.into(), version }
    }

    fn get(consistency: Consistency, value: &str, version: u64, called: u64) -> Recorded {
        let outcome = Outcome::Found(Some(found(value, version)));
        recorded(2, Asked::Get(consistency), called, Some((called + 1, outcome)))
    }

    fn scan(limit: u64, rows: Vec<(u64, Found)>, called: u64) -> Recorded {
        recorded(2, Asked::Scan(limit), called, Some((called + 1, Outcome::Rows(rows))))
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

    #[test]
    fn a_conditional_write_is_done_or_refused_for_a_reason() {
        let last = |value: &str| [get(Consistency::Strong, value, 2, 90)];
        let done = [put("a", 0, Some(10)), put_if("a", "b", 20, Outcome::Done)];
        assert!(!judged(&done, &last("b")).has_failed());
        assert_eq!(judged(&done, &last("a")).lost_writes, 1);
        let refused = [put("a", 0, Some(10)), put_if("x", "b", 20, Outcome::Refused)];
        assert!(!judged(&refused, &last("a")).has_failed());
        let wrongly = [put("a", 0, Some(10)), put_if("a", "b", 20, Outcome::Refused)];
        assert_eq!(judged(&wrongly, &last("a")).not_linearizable, 1);
    }

    #[test]
    fn a_scan_must_find_what_there_was() {
        let puts = [put("a", 0, Some(10)), put("b", 20, Some(30))];
        let last = [get(Consistency::Strong, "b", 2, 90)];
        let with = |scanned: Recorded| judged(&[&puts[..], &[scanned]].concat(), &last);
        assert!(!with(scan(1, vec![(7, found("b", 2))], 40)).has_failed());
        assert!(!with(scan(3, vec![(7, found("b", 2))], 40)).has_failed());
        assert_eq!(with(scan(1, vec![(7, found("a", 1))], 40)).not_linearizable, 1);
        assert_eq!(with(scan(1, vec![(9, found("z", 1))], 40)).not_linearizable, 1);
        assert_eq!(with(scan(1, vec![], 40)).not_linearizable, 1);
    }
}
