//! Whether what clients saw is what was promised.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use trireme_checker::kv::Text;
use trireme_checker::search::Limits;
use trireme_checker::{CounterExample, Verdict, check};
use trireme_client::{Client, Consistency};

use super::record::{Recorded, TimelineRead, text};

/// The most examples that are named of one kind.
const EXAMPLES_MAX: usize = 5;

/// A promise that was not kept.
#[derive(Debug)]
pub(crate) struct Violation {
    /// What kind it is, in a few words.
    pub(crate) kind: &'static str,
    pub(crate) what: String,
    pub(crate) example: Option<Box<CounterExample>>,
}

/// What the cluster must hold for good.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    added: BTreeMap<Text, Text>,
    never_added: BTreeSet<Text>,
    appended: BTreeMap<Text, BTreeSet<Text>>,
    perhaps_appended: BTreeMap<Text, BTreeSet<Text>>,
}

/// What was found of a ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Acknowledged writes that are not there.
    pub(crate) lost: u64,
    /// Writes that were applied more than once.
    pub(crate) duplicates: u64,
    /// Writes that were refused, and are there.
    pub(crate) undead: u64,
}

impl Violation {
    pub(crate) fn new(kind: &'static str, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), example: None }
    }
}

/// Judges a round. Returns what is wrong, and whether the history could be judged.
pub(crate) fn judge(recorded: &Recorded) -> (Vec<Violation>, bool) {
    let mut violations = Vec::new();
    let of_kind = |kind, found: Vec<String>| named(kind, &found);
    violations.extend(of_kind("broken answer", recorded.broken.clone()));
    violations.extend(of_kind("a version with two values", two_values(&recorded.versions)));
    violations.extend(of_kind("timeline went back", went_back(&recorded.timeline)));
    violations.extend(of_kind("timeline older than its age", too_old(recorded)));
    let verdict = check(recorded.history.clone(), &Limits::default());
    let is_judged = !matches!(verdict, Verdict::Unknown(_));
    if let Verdict::NotLinearizable(example) = verdict {
        let stuck = &example.part[example.stuck];
        let label = trireme_checker::timeline::label(stuck);
        let what = format!("no order explains client {}: {}", stuck.client, shortened(&label));
        let kind = "not linearizable";
        violations.push(Violation { kind, what, example: Some(example) });
    }
    (violations, is_judged)
}

impl Ledger {
    pub(crate) fn of(recorded: &Recorded) -> Self {
        Self {
            added: recorded.added.clone(),
            never_added: recorded.never_added.clone(),
            appended: recorded.appended.clone(),
            perhaps_appended: recorded.perhaps_appended.clone(),
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.added.extend(other.added);
        self.never_added.extend(other.never_added);
        self.appended.extend(other.appended);
        self.perhaps_appended.extend(other.perhaps_appended);
    }

    /// Returns how many acknowledged writes it names.
    pub(crate) fn acknowledged(&self) -> usize {
        self.added.len() + self.appended.values().map(BTreeSet::len).sum::<usize>()
    }

    /// Compares it with all rows of the cluster that it could be about.
    pub(crate) fn compare(&self, rows: &BTreeMap<Text, Text>) -> (Found, Vec<Violation>) {
        let (mut lost, mut duplicates, mut undead) = (Vec::new(), Vec::new(), Vec::new());
        for (key, value) in &self.added {
            match rows.get(key) {
                Some(found) if found == value => {}
                Some(found) => lost.push(format!("{key} has {} for {value}", shortened(found))),
                None => lost.push(format!("{key} is missing")),
            }
        }
        let refused = self.never_added.iter().filter(|key| rows.contains_key(*key));
        undead.extend(refused.map(|key| format!("{key} is there")));
        let lists: BTreeSet<&Text> =
            self.appended.keys().chain(self.perhaps_appended.keys()).collect();
        for key in lists {
            let mut found: HashMap<&str, u32> = HashMap::new();
            let list = rows.get(key).map_or("", |list| &**list);
            list.split_whitespace().for_each(|element| *found.entry(element).or_default() += 1);
            for element in self.appended.get(key).into_iter().flatten() {
                if !found.contains_key(&**element) {
                    lost.push(format!("{element} is missing from {key}"));
                }
            }
            let twice = found.iter().filter(|(_, count)| **count > 1);
            duplicates.extend(twice.map(|(element, _)| format!("{element} in {key}")));
            let known = |element: &str| {
                let of = |lists: &BTreeMap<Text, BTreeSet<Text>>| {
                    lists.get(key).is_some_and(|elements| elements.contains(element))
                };
                of(&self.appended) || of(&self.perhaps_appended)
            };
            let strange = found.keys().filter(|element| !known(element));
            undead.extend(strange.map(|element| format!("{element} in {key}")));
        }
        let count = |found: &Vec<String>| u64::try_from(found.len()).unwrap_or(u64::MAX);
        let found =
            Found { lost: count(&lost), duplicates: count(&duplicates), undead: count(&undead) };
        let violations = [
            named("lost acknowledged writes", &lost),
            named("writes applied twice", &duplicates),
            named("refused writes that were done", &undead),
        ];
        (found, violations.into_iter().flatten().collect())
    }
}

/// Returns all rows below a prefix.
pub(crate) async fn rows(
    client: &Client,
    prefix: &str,
    consistency: Consistency,
) -> anyhow::Result<BTreeMap<Text, Text>> {
    let end = format!("{prefix}\u{7f}");
    let mut scan = client.scan(prefix.to_owned()..end).consistency(consistency);
    let mut rows = BTreeMap::new();
    while let Some(row) = scan.next().await? {
        rows.insert(text(&row.key), text(&row.value));
    }
    Ok(rows)
}

/// Returns how two states of the same rows differ.
pub(crate) fn differences(
    expected: &BTreeMap<Text, Text>,
    found: &BTreeMap<Text, Text>,
) -> Vec<String> {
    let keys: BTreeSet<&Text> = expected.keys().chain(found.keys()).collect();
    let of = |rows: &BTreeMap<Text, Text>, key| {
        rows.get(key).map_or_else(|| "no value".to_owned(), |value| shortened(value))
    };
    let differ = keys.into_iter().filter(|key| expected.get(*key) != found.get(*key));
    differ.map(|key| format!("{key} has {} for {}", of(found, key), of(expected, key))).collect()
}

/// Returns a violation that names some of what was found, if anything was.
pub(crate) fn named(kind: &'static str, found: &[String]) -> Option<Violation> {
    let some = found.iter().take(EXAMPLES_MAX).map(String::as_str).collect::<Vec<_>>();
    let more = found.len() - some.len();
    let and = if more > 0 { format!("; and {more} more") } else { String::new() };
    (!found.is_empty()).then(|| Violation::new(kind, format!("{}{and}", some.join("; "))))
}

fn two_values(versions: &[(Text, u64, Text)]) -> Vec<String> {
    let mut seen: HashMap<(&Text, u64), &Text> = HashMap::new();
    let mut wrong = Vec::new();
    for (key, version, value) in versions {
        let first = seen.entry((key, *version)).or_insert(value);
        if *first != value {
            let (first, value) = (shortened(first), shortened(value));
            wrong.push(format!("version {version} of {key} is {first} and {value}"));
        }
    }
    wrong
}

/// The timeline reads of a client never go back: each names a state that includes the one before.
fn went_back(reads: &[TimelineRead]) -> Vec<String> {
    let mut newest: BTreeMap<u64, &TimelineRead> = BTreeMap::new();
    let mut wrong = Vec::new();
    for read in reads {
        if let Some(before) = newest.insert(read.client, read)
            && read.applied.1 < before.applied.1
        {
            let (before, after) = (before.applied, read.applied);
            let client = read.client;
            wrong.push(format!("client {client} read {after:?} after {before:?}"));
        }
    }
    wrong
}

/// Every write that was acknowledged longer before a timeline read than its age is in what it read. What a
/// leader's fastest message takes comes on top of an age (SPIN-70): of one that was started when its
/// messages came late already, all do, until its followers have heard it without.
fn too_old(recorded: &Recorded) -> Vec<String> {
    let mut puts: HashMap<&Text, Vec<(u64, u64)>> = HashMap::new();
    for (key, version, acknowledged) in &recorded.puts {
        puts.entry(key).or_default().push((*acknowledged, *version));
    }
    let mut wrong = Vec::new();
    for read in &recorded.timeline {
        let (Some(age), Some(version), Some(puts)) = (read.age, read.version, puts.get(&read.key))
        else {
            continue;
        };
        let late = recorded.delays.iter().filter(|(since, _)| *since <= read.called);
        let fastest = late.map(|(_, delay)| *delay).max().unwrap_or_default();
        let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let age = microseconds(age);
        let moment = read.called.checked_sub(age.saturating_add(microseconds(fastest)));
        let Some(moment) = moment else { continue };
        let included = puts.iter().filter(|(acknowledged, _)| *acknowledged < moment);
        let newest = included.map(|(_, version)| *version).max().unwrap_or(0);
        if version < newest {
            let (key, client) = (&read.key, read.client);
            wrong.push(format!(
                "client {client} read version {version} of {key} at {} us, {age} us old at most, and \
                 version {newest} was acknowledged before that; the fastest message may have taken \
                 {fastest:?}",
                read.called
            ));
        }
    }
    wrong
}

fn shortened(text: &str) -> String {
    const CHARACTERS_MAX: usize = 160;
    let short: String = text.chars().take(CHARACTERS_MAX).collect();
    if short.len() < text.len() { format!("{short}...") } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(text: &str) -> Text {
        Text::from(text)
    }

    fn ledger() -> Ledger {
        Ledger {
            added: [(t("s/1"), t("a"))].into(),
            never_added: [t("s/2")].into(),
            appended: [(t("l"), [t("1-1"), t("1-2")].into())].into(),
            perhaps_appended: [(t("l"), [t("2-1")].into())].into(),
        }
    }

    fn found(rows: &[(&str, &str)]) -> Found {
        let rows = rows.iter().map(|(key, value)| (t(key), t(value))).collect();
        ledger().compare(&rows).0
    }

    #[test]
    fn what_was_acknowledged_is_there_once() {
        assert_eq!(found(&[("s/1", "a"), ("l", "1-1 1-2")]), Found::default());
        assert_eq!(found(&[("s/1", "a"), ("l", "1-1 2-1 1-2")]), Found::default(), "it may be");
        assert_eq!(found(&[("s/1", "b"), ("l", "1-1 1-2")]).lost, 1);
        assert_eq!(found(&[("l", "1-1")]), Found { lost: 2, ..Found::default() });
        let twice = found(&[("s/1", "a"), ("l", "1-1 1-2 1-1")]);
        assert_eq!(twice, Found { duplicates: 1, ..Found::default() });
        let undead = found(&[("s/1", "a"), ("s/2", "a"), ("l", "1-1 1-2 3-1")]);
        assert_eq!(undead, Found { undead: 2, ..Found::default() });
    }

    #[test]
    fn a_version_has_one_value() {
        let version = |version, value| (t("k"), version, t(value));
        assert!(two_values(&[version(1, "a"), version(1, "a"), version(2, "b")]).is_empty());
        assert_eq!(two_values(&[version(1, "a"), version(1, "b")]).len(), 1);
    }

    #[test]
    fn timeline_reads_go_forward_and_are_as_young_as_they_claim() {
        let read = |client, called, version, seq, age_us| TimelineRead {
            client,
            called,
            key: t("k"),
            version: Some(version),
            applied: (1, seq),
            age: Some(Duration::from_micros(age_us)),
        };
        let reads = [read(1, 10, 1, 5, 0), read(2, 11, 1, 4, 0), read(1, 12, 1, 5, 0)];
        assert!(went_back(&reads).is_empty());
        assert_eq!(went_back(&[read(1, 10, 1, 5, 0), read(1, 12, 1, 4, 0)]).len(), 1);
        let of = |timeline| Recorded {
            puts: vec![(t("k"), 3, 100)],
            timeline: vec![timeline],
            ..Recorded::default()
        };
        assert!(too_old(&of(read(1, 150, 3, 9, 10))).is_empty());
        assert!(too_old(&of(read(1, 150, 2, 9, 50))).is_empty(), "it may be from before the put");
        assert_eq!(too_old(&of(read(1, 150, 2, 9, 49))).len(), 1);
    }

    #[test]
    fn messages_that_come_late_are_borne_from_then_on_and_by_that_much() {
        let late = |since, called, age_us| Recorded {
            puts: vec![(t("k"), 3, 100)],
            delays: vec![(since, Duration::from_micros(30)), (since + 500, Duration::from_secs(1))],
            timeline: vec![TimelineRead {
                client: 1,
                called,
                key: t("k"),
                version: Some(2),
                applied: (1, 9),
                age: Some(Duration::from_micros(age_us)),
            }],
            ..Recorded::default()
        };
        assert!(too_old(&late(140, 150, 20)).is_empty());
        assert_eq!(too_old(&late(140, 150, 19)).len(), 1, "older than the delay explains");
        assert_eq!(too_old(&late(151, 150, 20)).len(), 1, "there was no delay yet");
    }
}
