//! Two cohorts end, and one goes on from exactly the states that they ended with.

use trireme_types::{NodeId, Protocol, Seal, Successor};

use super::*;
use crate::Beginning;
use crate::table::rows::PARTS_MAX;

for_each_engine!(
    one_that_goes_on_from_two_has_what_both_had,
    rows_in_parts_are_read_in_order_from_either_side,
    a_crash_before_the_flush_leaves_what_it_takes_to_begin_again,
    two_halves_that_become_one_again_have_their_rows_in_one_place,
    one_that_installs_a_snapshot_leaves_nothing_of_its_parts_behind,
    cohorts_that_lie_in_too_many_parts_do_not_become_one,
);

const LOW: CohortId = CohortId(30);
const HIGH: CohortId = CohortId(31);
const BOTH: CohortId = CohortId(32);

fn low() -> KeyRange {
    KeyRange::new("", Some("m"))
}

fn high() -> KeyRange {
    KeyRange::new("m", None::<&str>)
}

fn open(fixture: &Fixture, cohort: CohortId, range: KeyRange) -> CohortTable {
    fixture.tables().cohort(cohort, range).unwrap()
}

/// Ends a table's cohort.
fn seal(table: &CohortTable) -> Lsn {
    let (range, protocol) = (KeyRange::all(), Protocol::Raft);
    let successor = Successor { range, protocol, replicas: vec![NodeId(1)], replicas_wanted: 1 };
    let payload = Seal::new(vec![successor]).encode();
    let lsn = Lsn::new(1, table.applied().seq + 1);
    table.apply(&[Entry { lsn, kind: EntryKind::Commands, payload }]).unwrap();
    lsn
}

/// Begins a table on the rows of two that end now.
fn unite(
    fixture: &Fixture,
    ended: [(CohortId, KeyRange); 2],
    cohort: CohortId,
    range: KeyRange,
) -> CohortTable {
    let seals = ended.clone().map(|(id, range)| seal(&open(fixture, id, range)).seq);
    let base = Lsn::new(0, seals[0].max(seals[1]));
    let beginning = Beginning { cohort, range: range.clone(), base, protocol: None };
    fixture.tables().begin(&ended, &beginning).unwrap();
    open(fixture, cohort, range)
}

fn unite_all(fixture: &Fixture) -> CohortTable {
    unite(fixture, [(LOW, low()), (HIGH, high())], BOTH, KeyRange::all())
}

fn keys(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|row| std::str::from_utf8(&row.key).unwrap()).collect()
}

fn everything() -> crate::table::Span {
    crate::table::Span::new(Vec::new(), crate::table::keys::END_OF_KEYS.to_vec())
}

/// [RANGE-20]
fn one_that_goes_on_from_two_has_what_both_had(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    let (left, right) = (open(&fixture, LOW, low()), open(&fixture, HIGH, high()));
    apply(&left, vec![requested(4, 1, 1, put("a", "1")), put("l", "1")]);
    let first = requested(4, 2, 1, put("m", "1"));
    apply(&right, vec![first.clone(), put("z", "1"), put("z", "2"), put("y", "1")]);
    let both = unite_all(&fixture);
    assert_eq!(both.applied(), Lsn::new(0, 2));
    assert_eq!(keys(&all_rows(&both)), ["a", "l", "m", "y", "z"]);
    assert_eq!(get(&both, "a"), Some(("1".to_owned(), 1)));
    assert_eq!(get(&both, "z"), Some(("2".to_owned(), 3)));
    // Retries of writes to either, one of them of the client that both know.
    let retries = vec![requested(4, 1, 1, put("a", "9")), first];
    assert_eq!(apply(&both, retries), [was_put(1), was_put(1)]);
    // No version comes twice, and each row goes where its neighbours lie.
    let more = vec![put_if("a", "2", version(1)), put_if("z", "3", version(3)), delete("y")];
    let outcomes = apply(&both, more);
    assert_eq!(outcomes, [was_put(5), was_put(6), Outcome::Deleted { existed: true }]);
    let expected = ["a", "l", "m", "z"];
    let is_whole = |fixture: &Fixture| {
        let both = open(fixture, BOTH, KeyRange::all());
        assert_eq!(keys(&all_rows(&both)), expected);
        assert_eq!(get(&both, "z"), Some(("3".to_owned(), 6)));
    };
    fixture.tables().flush().unwrap();
    drop((left, right, both));
    fixture.reopen();
    is_whole(&fixture);
    for ended in [LOW, HIGH] {
        fixture.tables().drop_cohort(ended).unwrap();
    }
    is_whole(&fixture);
    fixture.reopen();
    is_whole(&fixture);
    fixture.tables().drop_cohort(BOTH).unwrap();
    fixture.tables().drop_cohort(COHORT).unwrap();
    assert_eq!(fixture.tables().core().first(&everything()).unwrap(), None);
}

/// Pages of any length pass the border, and are of one moment with what they say was applied.
fn rows_in_parts_are_read_in_order_from_either_side(engine: Engine) {
    let fixture = Fixture::new(engine);
    for (cohort, range, keys) in
        [(LOW, low(), ["a", "b", "k", "l"]), (HIGH, high(), ["m", "n", "y", "z"])]
    {
        let table = open(&fixture, cohort, range);
        apply(&table, keys.map(|key| put(key, "1")).into());
        apply(&table, vec![delete(keys[1])]);
    }
    let both = unite_all(&fixture);
    let all = ["a", "k", "l", "m", "y", "z"];
    for reverse in [false, true] {
        for limit in 1..=7 {
            let (mut rest, mut found) = (KeyRange::all(), Vec::new());
            loop {
                let (page, applied) = both.scan_with_applied(&rest, limit, reverse).unwrap();
                assert_eq!(page, both.scan(&rest, limit, reverse).unwrap());
                assert_eq!(applied, both.applied());
                found.extend(keys(&page.rows).into_iter().map(str::to_owned));
                let Some(last) = page.last.filter(|_| page.more) else { break };
                match reverse {
                    false => rest.start = first_after(&last),
                    true => rest.end = Some(last),
                }
            }
            if reverse {
                found.reverse();
            }
            assert_eq!(found, all, "{limit} at a time, reverse: {reverse}");
        }
    }
    let middle = KeyRange::new("b", Some("n"));
    assert_eq!(keys(&both.scan(&middle, 9, false).unwrap().rows), ["k", "l", "m"]);
    assert_eq!(keys(&both.scan(&middle, 9, true).unwrap().rows), ["m", "l", "k"]);
    for key in all {
        let (row, applied) = both.get_with_applied(key.as_bytes()).unwrap();
        assert_eq!((row.is_some(), applied), (true, both.applied()));
    }
    assert_eq!(both.get_with_applied(b"n").unwrap().0, None);
}

/// [RANGE-8] [RANGE-20]
fn a_crash_before_the_flush_leaves_what_it_takes_to_begin_again(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    apply(&open(&fixture, LOW, low()), vec![put("a", "1")]);
    apply(&open(&fixture, HIGH, high()), vec![put("z", "1")]);
    fixture.tables().flush().unwrap();
    let both = unite_all(&fixture);
    apply(&both, vec![put("a", "2"), put("z", "2")]);
    drop(both);
    fixture.reopen();
    if !fixture.tables().has_begun(BOTH) {
        for (cohort, range) in [(LOW, low()), (HIGH, high())] {
            let table = open(&fixture, cohort, range);
            if !table.is_sealed() {
                assert_eq!(all_rows(&table).len(), 1, "{cohort} has what its log applies to");
                seal(&table);
            }
        }
        let beginning = Beginning {
            cohort: BOTH,
            range: KeyRange::all(),
            base: Lsn::new(0, 2),
            protocol: None,
        };
        fixture.tables().begin(&[(LOW, low()), (HIGH, high())], &beginning).unwrap();
        let both = open(&fixture, BOTH, KeyRange::all());
        assert_eq!(get(&both, "a"), Some(("1".to_owned(), 1)));
        apply(&both, vec![put("a", "2"), put("z", "2")]);
    }
    let both = open(&fixture, BOTH, KeyRange::all());
    assert_eq!(get(&both, "z"), Some(("2".to_owned(), 3)));
}

/// [RANGE-12]
fn two_halves_that_become_one_again_have_their_rows_in_one_place(engine: Engine) {
    let fixture = Fixture::new(engine);
    apply(&fixture.cohort(), vec![put("a", "1"), put("z", "1")]);
    let lsn = seal(&fixture.cohort());
    for (cohort, range) in [(LOW, low()), (HIGH, high())] {
        let base = Lsn::new(0, lsn.seq);
        let beginning = Beginning { cohort, range: range.clone(), base, protocol: None };
        fixture.tables().begin(&[(COHORT, range.clone())], &beginning).unwrap();
        apply(&open(&fixture, cohort, range), vec![put("b", "1"), put("y", "1")]);
    }
    let written = fixture.tables().metrics().written_bytes;
    let both = unite_all(&fixture);
    assert!(fixture.tables().metrics().written_bytes - written < 1_000);
    assert_eq!(keys(&all_rows(&both)), ["a", "b", "y", "z"]);
    assert_eq!(both.rows().parts().len(), 1);
    for ended in [COHORT, LOW, HIGH] {
        fixture.tables().drop_cohort(ended).unwrap();
    }
    assert_eq!(keys(&all_rows(&both)), ["a", "b", "y", "z"]);
}

fn one_that_installs_a_snapshot_leaves_nothing_of_its_parts_behind(engine: Engine) {
    let [from, mut to] = [Fixture::new(engine), Fixture::new(engine)];
    for fixture in [&from, &to] {
        apply(&open(fixture, LOW, low()), vec![requested(4, 1, 1, put("a", "1")), put("b", "1")]);
        apply(&open(fixture, HIGH, high()), vec![requested(5, 1, 1, put("z", "1"))]);
        unite_all(fixture);
    }
    let (sent, installed) = [&from, &to].map(|fixture| open(fixture, BOTH, KeyRange::all())).into();
    apply(&sent, vec![put("c", "1"), put("y", "1"), delete("b")]);
    installed.install(stage(&chunks(sent.snapshot().unwrap()))).unwrap();
    assert_eq!(all_rows(&installed), all_rows(&sent));
    assert_eq!(keys(&all_rows(&installed)), ["a", "c", "y", "z"]);
    assert_eq!(apply(&installed, vec![requested(5, 1, 1, put("z", "9"))]), [was_put(1)]);
    to.tables().flush().unwrap();
    drop(installed);
    to.reopen();
    for cohort in [LOW, HIGH, BOTH, COHORT] {
        to.tables().drop_cohort(cohort).unwrap();
    }
    assert_eq!(to.tables().core().first(&everything()).unwrap(), None);
}

/// Fills the limit.
fn cohorts_that_lie_in_too_many_parts_do_not_become_one(engine: Engine) {
    let fixture = Fixture::new(engine);
    let border = |at: usize| Bytes::from(format!("{at:03}"));
    let piece = |from: usize, to: usize| KeyRange::new(border(from), Some(border(to)));
    let open_at = |id: usize, range: KeyRange| {
        let table = open(&fixture, CohortId(100 + id as u64), range.clone());
        apply(
            &table,
            vec![Command {
                request: None,
                operation: Operation::Put {
                    key: range.start,
                    value: key("1"),
                    condition: Condition::None,
                },
            }],
        );
        table
    };
    let mut all = open_at(0, piece(0, 1));
    for at in 1..PARTS_MAX {
        let next = open_at(at, piece(at, at + 1));
        assert_eq!(all.reason_against_merge(&next), None);
        let ended = [(all.id(), piece(0, at)), (next.id(), piece(at, at + 1))];
        all = unite(&fixture, ended, CohortId(1000 + at as u64), piece(0, at + 1));
    }
    assert_eq!(all_rows(&all).len(), PARTS_MAX);
    let next = open_at(PARTS_MAX, piece(PARTS_MAX, PARTS_MAX + 1));
    let reason = all.reason_against_merge(&next).unwrap();
    assert_eq!(reason, "together they have 65 parts of the key space, and 64 are the limit");
}
