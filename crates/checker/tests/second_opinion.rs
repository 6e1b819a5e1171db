//! Held against another checker, on small random histories of one register, valid and invalid; and
//! against what is known of histories by how they were made.

#![allow(missing_docs, clippy::cast_possible_truncation, reason = "a test with small numbers")]

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;
use trireme_checker::history::{Answer, Operation};
use trireme_checker::kv::{Input, KvOperation, Output, Text};
use trireme_checker::search::{Bound, Limits};
use trireme_checker::{Verdict, check};

/// How many random histories are judged by both.
const HISTORIES: u64 = 20_000;

/// The register as the other checker knows it.
struct Register;

#[derive(Clone, Debug)]
enum Step {
    Read(Option<u32>),
    Write(u32),
    Set {
        expected: u32,
        value: u32,
        done: bool,
    },
    /// The outcome is ambiguous: it takes effect at the end if nowhere else.
    MaybeWrite(u32),
}

impl Specification for Register {
    type State = u32;
    type Operation = Step;

    fn init() -> u32 {
        0
    }

    fn apply(step: &Step, state: &u32) -> (bool, u32) {
        match step {
            Step::Read(value) => (*value == Some(*state), *state),
            Step::Write(value) | Step::MaybeWrite(value) => (true, *value),
            Step::Set { expected, value, done: true } => match expected == state {
                true => (true, *value),
                false => (false, *state),
            },
            Step::Set { expected, done: false, .. } => (expected != state, *state),
        }
    }
}

/// A random history of a register that begins with 0: of a real one if `is_real`, else with answers
/// by chance. Each entry: client, what was done, called, returned.
fn random(rng: &mut StdRng, is_real: bool) -> Vec<(u64, Step, u64, Option<u64>)> {
    let count = rng.random_range(1..=10);
    let clients = rng.random_range(1..=4_u64);
    let values = rng.random_range(1..=3_u32);
    let mut free = vec![0_u64; clients as usize];
    // When each takes effect decides what a real register answers.
    let mut planned = Vec::new();
    for _ in 0..count {
        let client = rng.random_range(0..clients);
        let called = free[client as usize] + rng.random_range(1..=4);
        let effect = called + rng.random_range(0..=5);
        let returned = effect + rng.random_range(1..=5);
        free[client as usize] = returned;
        planned.push((effect, client, called, returned, rng.random_range(0..10)));
    }
    planned.sort_unstable();
    let mut state = 0;
    let mut history = Vec::new();
    for (_, client, called, returned, kind) in planned {
        let value = rng.random_range(0..=values);
        let other = rng.random_range(0..=values);
        let wrong = !is_real && rng.random_range(0..4) == 0;
        match kind {
            0..4 => {
                let found = if wrong { other } else { state };
                history.push((client, Step::Read(Some(found)), called, Some(returned)));
            }
            4..7 => {
                state = value;
                history.push((client, Step::Write(value), called, Some(returned)));
            }
            7..9 => {
                let done = (state == other) != wrong;
                if done {
                    state = value;
                }
                history.push((
                    client,
                    Step::Set { expected: other, value, done },
                    called,
                    Some(returned),
                ));
            }
            _ => {
                if rng.random_range(0..2) == 0 {
                    state = value;
                }
                history.push((client, Step::MaybeWrite(value), called, None));
            }
        }
    }
    history
}

fn ours(history: &[(u64, Step, u64, Option<u64>)]) -> Vec<KvOperation> {
    let key = || Text::from("register");
    let text = |value: u32| Text::from(value.to_string());
    // The register begins with 0, before everything else.
    let first = Operation {
        client: u64::MAX,
        input: Input::Put { key: key(), value: text(0) },
        called: 0,
        answer: Some(Answer { at: 0, output: Output::Done }),
    };
    let operations = history.iter().map(|(client, step, called, returned)| {
        let (input, output) = match step {
            Step::Read(found) => (Input::Get { key: key() }, Output::Found(found.map(text))),
            Step::Write(value) | Step::MaybeWrite(value) => {
                (Input::Put { key: key(), value: text(*value) }, Output::Done)
            }
            Step::Set { expected, value, done } => {
                let expected = Some(text(*expected));
                let input = Input::CompareAndSet { key: key(), expected, value: text(*value) };
                (input, if *done { Output::Done } else { Output::Refused })
            }
        };
        let answer = returned.map(|at| Answer { at, output });
        Operation { client: *client, input, called: *called, answer }
    });
    std::iter::once(first).chain(operations).collect()
}

fn theirs(history: &[(u64, Step, u64, Option<u64>)]) -> History<Step> {
    let mut events = Vec::new();
    for (number, (_, step, called, returned)) in history.iter().enumerate() {
        // Calls before answers of the same moment: they overlap.
        events.push((*called, 0, number, Action::Call(step.clone())));
        let returned = returned.unwrap_or(u64::MAX);
        events.push((returned, 1, number, Action::Response(step.clone())));
    }
    events.sort_by_key(|&(at, kind, number, _)| (at, kind, number));
    // Each operation is a process of its own, since an ambiguous one ends last.
    History::from_actions(
        events.into_iter().map(|(_, _, number, action)| (number, action)).collect(),
    )
}

#[test]
fn another_checker_agrees_on_small_random_histories() {
    let mut rng = StdRng::seed_from_u64(7);
    let (mut good, mut bad) = (0, 0);
    for number in 0..HISTORIES {
        let is_real = number % 3 == 0;
        let history = random(&mut rng, is_real);
        let verdict = check(ours(&history), &Limits::default());
        let is_linearizable = WGLChecker::<Register>::is_linearizable(theirs(&history));
        let expected = if is_linearizable { "linearizable" } else { "not linearizable" };
        assert_eq!(verdict.name(), expected, "history {number}: {history:?}");
        assert!(is_linearizable || !is_real, "history {number} is of a real register");
        match is_linearizable {
            true => good += 1,
            false => bad += 1,
        }
    }
    // Both kinds are there in number, or the agreement shows nothing.
    assert!(good > HISTORIES / 10 && bad > HISTORIES / 10, "{good} good, {bad} bad");
}

/// A history of a map in which every operation takes effect at one moment of its own.
fn real_map(
    rng: &mut StdRng,
    count: u64,
    keys: u64,
    clients: u64,
    ambiguous: u64,
) -> Vec<KvOperation> {
    let mut free = vec![0_u64; clients as usize];
    let mut planned = Vec::new();
    for number in 0..count {
        let client = rng.random_range(0..clients);
        let called = free[client as usize] + rng.random_range(1..=3);
        let effect = called + rng.random_range(0..=20);
        let returned = effect + rng.random_range(0..=20);
        free[client as usize] = returned + 1;
        planned.push((effect, number, client, called, returned));
    }
    planned.sort_unstable();
    let mut rows = std::collections::BTreeMap::new();
    let mut history = Vec::new();
    for (_, number, client, called, returned) in planned {
        let key = Text::from(format!("k{}", rng.random_range(0..keys)));
        let value = Text::from(format!("v{number}"));
        let is_ambiguous = ambiguous > 0 && rng.random_range(0..1000) < ambiguous;
        let (input, output) = match rng.random_range(0..10) {
            0..5 => (Input::Get { key: key.clone() }, Output::Found(rows.get(&key).cloned())),
            5..8 => {
                if !is_ambiguous || rng.random_range(0..2) == 0 {
                    rows.insert(key.clone(), value.clone());
                }
                (Input::Put { key, value }, Output::Done)
            }
            8 => {
                if !is_ambiguous {
                    rows.remove(&key);
                }
                (Input::Delete { key }, Output::Done)
            }
            _ => {
                let expected = rows.get(&key).cloned();
                if !is_ambiguous {
                    rows.insert(key.clone(), value.clone());
                }
                (Input::CompareAndSet { key, expected, value }, Output::Done)
            }
        };
        let answer = (!is_ambiguous).then_some(Answer { at: returned, output });
        history.push(Operation { client, input, called, answer });
    }
    history
}

#[test]
fn long_histories_of_a_real_map_are_linearizable_and_a_broken_answer_is_found() {
    let mut rng = StdRng::seed_from_u64(11);
    for round in 0..20 {
        let history = real_map(&mut rng, 5_000, 20, 16, 5);
        let verdict = check(history.clone(), &Limits::default());
        assert_eq!(verdict.name(), "linearizable", "round {round}");
        // One read returns what its key had long before, and has not any more.
        let mut broken = history;
        let reads = |operation: &KvOperation| matches!(operation.input, Input::Get { .. });
        let late =
            (0..broken.len()).rev().find(|&at| reads(&broken[at]) && broken[at].answer.is_some());
        let late = late.expect("a history has reads");
        let key = broken[late].input.key().cloned();
        let old = broken.iter().find_map(|operation| match (&operation.input, &operation.answer) {
            (Input::Put { value, .. }, Some(_)) if operation.input.key() == key.as_ref() => {
                Some(value.clone())
            }
            _ => None,
        });
        let Some(Answer { output, .. }) = &mut broken[late].answer else { unreachable!() };
        *output = Output::Found(old);
        let verdict = check(broken, &Limits::default());
        let Verdict::NotLinearizable(example) = verdict else { panic!("{}", verdict.name()) };
        let stuck = &example.part[example.stuck];
        assert!(reads(stuck), "the stale read is what is stuck: {stuck:?}");
    }
}

#[test]
fn a_bound_gives_no_verdict() {
    let history = real_map(&mut StdRng::seed_from_u64(3), 1_000, 1, 8, 0);
    let steps = check(history.clone(), &Limits { steps_max: 10, ..Limits::default() });
    assert_eq!(steps, Verdict::Unknown(Bound::Steps));
    let memo = check(history, &Limits { memo_bytes_max: 1_000, ..Limits::default() });
    assert_eq!(memo, Verdict::Unknown(Bound::Memo));
}

/// A scan reads several keys at one moment: what it found must have been there together.
#[test]
fn a_scan_sees_one_moment() {
    let put = |key: &str, called, at| Operation {
        client: 1,
        input: Input::Put { key: key.into(), value: "1".into() },
        called,
        answer: Some(Answer { at, output: Output::Done }),
    };
    let scan = |rows: &[&str]| Operation {
        client: 2,
        input: Input::Scan { start: "a".into(), end: None },
        called: 1,
        answer: Some(Answer {
            at: 100,
            output: Output::Rows(rows.iter().map(|&key| (key.into(), "1".into())).collect()),
        }),
    };
    // `a` was written before `b`, so a read that sees `b` sees `a`.
    let verdict = |rows: &[&str]| {
        let history = vec![put("a", 10, 20), put("b", 30, 40), scan(rows)];
        check(history, &Limits::default()).name()
    };
    assert_eq!(verdict(&[]), "linearizable");
    assert_eq!(verdict(&["a"]), "linearizable");
    assert_eq!(verdict(&["a", "b"]), "linearizable");
    assert_eq!(verdict(&["b"]), "not linearizable");
}

/// Sixteen clients at one key for a long time: what orders their concurrent writes is only seen by
/// later reads, and a search that notices that late does not end.
#[test]
fn a_busy_key_is_judged_within_the_bounds() {
    const OPERATIONS: u64 = 60_000;
    const CLIENTS: u64 = 16;
    let key = || Text::from("hot");
    let mut rng = StdRng::seed_from_u64(3);
    let mut planned: Vec<(u64, u64, u64, u64)> = Vec::new();
    let mut free = [0_u64; CLIENTS as usize];
    for number in 0..OPERATIONS {
        let client = number % CLIENTS;
        let called = free[client as usize] + rng.random_range(1..=20);
        let effect = called + rng.random_range(0..=200);
        let returned = effect + rng.random_range(0..=200);
        free[client as usize] = returned;
        planned.push((effect, client, called, returned));
    }
    planned.sort_unstable();
    let mut value: Option<Text> = None;
    let mut history: Vec<KvOperation> = Vec::new();
    for (number, (_, client, called, at)) in planned.into_iter().enumerate() {
        let (input, output) = if rng.random_bool(0.5) {
            value = Some(number.to_string().into());
            let value = value.clone().unwrap();
            (Input::Put { key: key(), value }, Output::Done)
        } else {
            (Input::Get { key: key() }, Output::Found(value.clone()))
        };
        history.push(Operation { client, input, called, answer: Some(Answer { at, output }) });
    }
    assert_eq!(check(history.clone(), &Limits::default()), Verdict::Linearizable);
    // A read in the middle of it found what had been replaced for certain.
    let written = history.iter().find_map(|operation| match &operation.input {
        Input::Put { value, .. } => Some(value.clone()),
        _ => None,
    });
    let late = &mut history[OPERATIONS as usize / 2];
    let (called, at) = (late.called, late.returned());
    let output = Output::Found(written);
    *late = Operation {
        client: late.client,
        input: Input::Get { key: key() },
        called,
        answer: Some(Answer { at, output }),
    };
    assert!(matches!(check(history, &Limits::default()), Verdict::NotLinearizable(_)));
}
