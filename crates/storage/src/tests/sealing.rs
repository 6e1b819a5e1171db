//! A cohort ends, and others go on from exactly the state that it ended with.

use std::sync::Barrier;

use trireme_types::{NodeId, Protocol, Seal, Successor};

use super::script::Script;
use super::*;
use crate::{Beginning, TableError};

for_each_engine!(
    nothing_behind_the_seal_is_applied,
    a_sealed_table_answers_no_read,
    a_successor_has_all_that_there_was_and_goes_on,
    no_row_is_written_when_a_successor_begins,
    a_crash_before_the_flush_leaves_what_it_takes_to_begin_again,
    each_half_has_its_own_rows_and_keeps_them_whatever_becomes_of_the_others,
    two_that_are_dropped_at_once_leave_nothing_behind,
    a_successor_that_installs_a_snapshot_leaves_nothing_behind,
    a_half_is_sent_with_its_own_rows_alone_and_all_sessions,
    a_half_that_ends_in_two_leaves_its_sister_as_it_was,
    no_table_begins_where_none_has_ended,
);

const LEFT: CohortId = CohortId(7);
const RIGHT: CohortId = CohortId(8);

fn seal_entry(seq: u64, protocol: Protocol) -> Entry {
    let range = KeyRange::all();
    let (replicas, replicas_wanted) = (vec![NodeId(1)], 1);
    let successors = vec![Successor { range, protocol, replicas, replicas_wanted }];
    let payload = Seal::new(successors).encode();
    Entry { lsn: Lsn::new(1, seq), kind: EntryKind::Commands, payload }
}

/// Ends the table's cohort with its next entry.
fn seal(table: &CohortTable) -> Lsn {
    let entry = seal_entry(table.applied().seq + 1, Protocol::Raft);
    let entries = std::slice::from_ref(&entry);
    assert_eq!(table.apply_resident(entries).unwrap(), None, "it waits for readers");
    let applied = table.apply(entries).unwrap();
    assert_eq!(applied[0].outcomes, []);
    entry.lsn
}

fn beginning(cohort: CohortId, range: KeyRange, seal: Lsn) -> Beginning {
    Beginning { cohort, range, base: Lsn::new(0, seal.seq), protocol: Some(key("members")) }
}

/// Begins a table of all keys where that of [`COHORT`] ended.
fn begin(fixture: &Fixture, cohort: CohortId, seal: Lsn) -> CohortTable {
    begin_part(fixture, cohort, KeyRange::all(), seal)
}

fn begin_part(fixture: &Fixture, cohort: CohortId, range: KeyRange, seal: Lsn) -> CohortTable {
    fixture
        .tables()
        .begin(&[(COHORT, range.clone())], &beginning(cohort, range.clone(), seal))
        .unwrap();
    fixture.tables().cohort(cohort, range).unwrap()
}

/// [RANGE-2]
fn nothing_behind_the_seal_is_applied(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    let table = fixture.cohort();
    let first = requested(4, 1, 1, put("a", "1"));
    let before = entry(1, vec![first.clone()]);
    let payload =
        CommandBatch { commands: vec![requested(4, 2, 1, put("a", "2"))], clock: 99 }.encode();
    let behind = Entry { lsn: Lsn::new(1, 3), kind: EntryKind::Commands, payload };
    let (ends, late) = (seal_entry(2, Protocol::Raft), seal_entry(4, Protocol::Pacifica));
    // In one call with what follows it, so that it is judged by the log alone.
    let applied = table.apply(&[before, ends.clone(), behind, late]).unwrap();
    assert_eq!(applied[0].outcomes, [was_put(1)]);
    assert_eq!(applied[2].outcomes, [Outcome::WrongRange]);
    assert_eq!(table.applied(), Lsn::new(1, 4), "the log goes on");
    assert_eq!(table.clock(), 0);
    let successor = begin(&fixture, LEFT, Lsn::new(1, 2));
    assert_eq!(get(&successor, "a"), Some(("1".to_owned(), 1)));
    // The write behind the seal was not recorded, so that it is applied when it comes here.
    assert_eq!(apply(&successor, vec![requested(4, 2, 1, put("a", "2"))]), [was_put(2)]);
    fixture.tables().flush().unwrap();
    drop((table, successor));
    let table = fixture.reopen();
    let (lsn, found) = table.seal().unwrap();
    assert_eq!((lsn, found.encode()), (ends.lsn, ends.payload), "the first one counts");
    assert_eq!(apply(&table, vec![put("a", "3")]), [Outcome::WrongRange]);
}

/// [RANGE-3] [RANGE-13]
fn a_sealed_table_answers_no_read(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    let ended = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let heard = std::sync::Arc::clone(&ended);
    fixture.tables().on_seal(Box::new(move |cohort| heard.lock().push(cohort)));
    let table = fixture.cohort();
    apply(&table, vec![put("a", "1")]);
    seal(&table);
    assert_eq!(*ended.lock(), [COHORT]);
    fixture.tables().flush().unwrap();
    let answers_no_read = |table: CohortTable| {
        let is_refused = |error| matches!(error, TableError::Sealed(COHORT));
        assert!(is_refused(table.get(b"a").unwrap_err()));
        assert!(is_refused(table.get_resident(b"a").unwrap_err()));
        assert!(is_refused(table.get_with_applied(b"a").unwrap_err()));
        assert!(is_refused(table.get_resident_with_applied(b"a").unwrap_err()));
        assert!(is_refused(table.scan(&KeyRange::all(), 9, false).unwrap_err()));
        assert!(is_refused(table.scan_with_applied(&KeyRange::all(), 9, true).unwrap_err()));
        assert!(is_refused(table.snapshot().map(drop).unwrap_err()));
    };
    answers_no_read(table);
    answers_no_read(fixture.reopen());
}

/// [RANGE-6]
fn a_successor_has_all_that_there_was_and_goes_on(engine: Engine) {
    let fixture = Fixture::new(engine);
    let mut script = Script::new(11);
    let entries: Vec<_> = (0..300).map(|_| script.next().0).collect();
    fixture.cohort().apply(&entries).unwrap();
    let payload = seal_entry(1, Protocol::Raft).payload;
    let lsn = Lsn::new(script.model.applied.epoch, 301);
    let end = Entry { lsn, kind: EntryKind::Commands, payload };
    fixture.cohort().apply(&[end]).unwrap();

    let successor = begin(&fixture, LEFT, lsn);
    let base = Lsn::new(0, 301);
    assert_eq!((successor.applied(), successor.persisted()), (base, Lsn::ZERO));
    assert_eq!(successor.protocol_state(), Some((base, key("members"))));
    script.model.applied = base;
    script.model.protocol = successor.protocol_state();
    script.model.check(&successor);
    // Versions go on, conditions are judged by what was there, and retries of requests from before
    // the seal get what they got.
    for _ in 0..300 {
        let (entry, outcomes) = script.next();
        assert_eq!(successor.apply(&[entry]).unwrap()[0].outcomes, outcomes);
    }
    script.model.check(&successor);
    // To begin again changes nothing.
    script.model.check(&begin(&fixture, LEFT, lsn));
    fixture.tables().flush().unwrap();
    assert_eq!(successor.persisted(), script.model.applied);
}

/// [RANGE-6]
fn no_row_is_written_when_a_successor_begins(engine: Engine) {
    let fixture = Fixture::new(engine);
    let value = "v".repeat(1000);
    for number in 0..500 {
        apply(
            &fixture.cohort(),
            vec![requested(3, number + 1, number, put(&format!("{number:03}"), &value))],
        );
    }
    let lsn = seal(&fixture.cohort());
    let written = || fixture.tables().metrics().written_bytes;
    let before = written();
    assert!(before > 500_000);
    let successor = begin(&fixture, LEFT, lsn);
    assert!(written() - before < 1_000, "{} bytes", written() - before);
    assert_eq!(all_rows(&successor).len(), 500);
}

/// [RANGE-8]
fn a_crash_before_the_flush_leaves_what_it_takes_to_begin_again(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    apply(&fixture.cohort(), vec![put("a", "1"), put("b", "1")]);
    fixture.tables().flush().unwrap();
    let log = [entry(2, vec![put("a", "2")]), seal_entry(3, Protocol::Raft)];
    fixture.cohort().apply(&log).unwrap();
    let successor = begin(&fixture, LEFT, log[1].lsn);
    apply(&successor, vec![delete("b"), put("c", "1")]);
    drop(successor);

    let table = fixture.reopen();
    if table.seal().is_none() {
        table.apply(&log[usize::try_from(table.applied().seq - 1).unwrap()..]).unwrap();
    }
    drop(table);
    let successor = begin(&fixture, LEFT, log[1].lsn);
    if successor.applied().seq == 3 {
        assert_eq!(get(&successor, "a"), Some(("2".to_owned(), 3)));
        assert_eq!(get(&successor, "b"), Some(("1".to_owned(), 2)));
        apply(&successor, vec![delete("b"), put("c", "1")]);
    }
    assert_eq!(get(&successor, "c"), Some(("1".to_owned(), 5)));
    assert_eq!(all_rows(&successor).len(), 2);
    fixture.tables().flush().unwrap();
    drop(successor);
    fixture.reopen();
    let successor = fixture.tables().cohort(LEFT, KeyRange::all()).unwrap();
    assert_eq!((successor.applied().seq, all_rows(&successor).len()), (4, 2));
}

/// [RANGE-12]
fn each_half_has_its_own_rows_and_keeps_them_whatever_becomes_of_the_others(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    let (low, high) = (KeyRange::new("", Some("m")), KeyRange::new("m", None::<&str>));
    apply(&fixture.cohort(), vec![requested(4, 1, 1, put("a", "1")), put("z", "1")]);
    let lsn = seal(&fixture.cohort());
    let left = begin_part(&fixture, LEFT, low.clone(), lsn);
    let right = begin_part(&fixture, RIGHT, high.clone(), lsn);
    // Both know the session.
    let retry = || vec![requested(4, 1, 1, put("z", "2"))];
    assert_eq!(
        (apply(&left, retry()), apply(&right, retry())),
        (vec![was_put(1)], vec![was_put(1)])
    );
    assert_eq!(apply(&left, vec![put("b", "1"), put("y", "1")]), [was_put(3), Outcome::WrongRange]);
    assert_eq!(apply(&right, vec![put("y", "1")]), [was_put(3)]);
    let keys =
        |table: &CohortTable| -> Vec<_> { all_rows(table).into_iter().map(|r| r.key).collect() };

    fixture.tables().drop_cohort(COHORT).unwrap();
    assert_eq!((keys(&left), keys(&right)), (vec![key("a"), key("b")], vec![key("y"), key("z")]));
    drop((left, right));
    fixture.reopen();
    let open = |fixture: &Fixture, cohort, range: &KeyRange| {
        fixture.tables().cohort(cohort, range.clone()).unwrap()
    };
    let (left, right) = (open(&fixture, LEFT, &low), open(&fixture, RIGHT, &high));
    assert_eq!((keys(&left), keys(&right)), (vec![key("a"), key("b")], vec![key("y"), key("z")]));

    fixture.tables().drop_cohort(LEFT).unwrap();
    assert_eq!(keys(&right), [key("y"), key("z")]);
    drop((left, right));
    fixture.reopen();
    assert_eq!(keys(&open(&fixture, RIGHT, &high)), [key("y"), key("z")]);
    {
        let again = open(&fixture, LEFT, &KeyRange::all());
        assert_eq!((again.applied(), keys(&again)), (Lsn::ZERO, vec![]));
    }

    // A third one goes on where the second ends, on rows that never moved.
    let lsn = {
        let right = open(&fixture, RIGHT, &high);
        seal(&right)
    };
    let third = CohortId(20);
    fixture.tables().begin(&[(RIGHT, high.clone())], &beginning(third, high.clone(), lsn)).unwrap();
    fixture.tables().drop_cohort(RIGHT).unwrap();
    assert_eq!(keys(&open(&fixture, third, &high)), [key("y"), key("z")]);
    fixture.tables().drop_cohort(third).unwrap();
    assert_eq!(
        fixture.tables().core().first(&everything()).unwrap(),
        None,
        "nothing is left behind"
    );
}

fn two_that_are_dropped_at_once_leave_nothing_behind(engine: Engine) {
    for _ in 0..8 {
        let fixture = Fixture::new(engine);
        apply(&fixture.cohort(), vec![put("a", "1"), put("z", "1")]);
        let lsn = seal(&fixture.cohort());
        let lsn = seal(&begin(&fixture, LEFT, lsn));
        let next = beginning(RIGHT, KeyRange::all(), lsn);
        fixture.tables().begin(&[(LEFT, KeyRange::all())], &next).unwrap();
        fixture.tables().drop_cohort(COHORT).unwrap();
        // Both have all their rows where the first one had them.
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            for cohort in [LEFT, RIGHT] {
                let (start, tables) = (&start, fixture.tables());
                scope.spawn(move || {
                    start.wait();
                    tables.drop_cohort(cohort).unwrap();
                });
            }
        });
        assert_eq!(fixture.tables().core().first(&everything()).unwrap(), None);
    }
}

fn a_successor_that_installs_a_snapshot_leaves_nothing_behind(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    apply(&fixture.cohort(), vec![put("a", "1")]);
    let lsn = seal(&fixture.cohort());
    let ahead = Fixture::new(engine);
    apply(&ahead.cohort(), vec![put("a", "1")]);
    let from = begin(&ahead, LEFT, seal(&ahead.cohort()));
    apply(&from, vec![put("b", "2")]);
    let to = begin(&fixture, LEFT, lsn);
    to.install(stage(&chunks(from.snapshot().unwrap()))).unwrap();
    assert_eq!(all_rows(&to), all_rows(&from));
    fixture.tables().drop_cohort(COHORT).unwrap();
    drop(to);
    fixture.reopen();
    let to = fixture.tables().cohort(LEFT, KeyRange::all()).unwrap();
    assert_eq!(all_rows(&to), all_rows(&from));
    fixture.tables().drop_cohort(COHORT).unwrap();
    fixture.tables().drop_cohort(LEFT).unwrap();
    assert_eq!(fixture.tables().core().first(&everything()).unwrap(), None);
}

/// [RANGE-6] [RANGE-12]
fn a_half_is_sent_with_its_own_rows_alone_and_all_sessions(engine: Engine) {
    let (from, to) = (Fixture::new(engine), Fixture::new(engine));
    let high = KeyRange::new("m", None::<&str>);
    let first = requested(4, 1, 1, put("a", "1"));
    apply(&from.cohort(), vec![first.clone(), put("l", "1"), put("m", "1"), put("z", "1")]);
    apply(&from.cohort(), vec![delete("z")]);
    let lsn = seal(&from.cohort());
    let low = begin_part(&from, LEFT, KeyRange::new("", Some("m")), lsn);
    let upper = begin_part(&from, RIGHT, high.clone(), lsn);
    apply(&low, vec![put("b", "1")]);
    apply(&upper, vec![put("x", "1")]);
    let sent = to.tables().cohort(RIGHT, high).unwrap();
    sent.install(stage(&chunks(upper.snapshot().unwrap()))).unwrap();
    assert_eq!(all_rows(&sent), all_rows(&upper));
    assert_eq!(all_rows(&sent).into_iter().map(|row| row.key).collect::<Vec<_>>(), ["m", "x"]);
    assert_eq!(sent.clock(), upper.clock());
    // A retry gets what it got, wherever its key lies now.
    assert_eq!(apply(&sent, vec![first]), [was_put(1)]);
}

/// A range is cut in two, the lower half once more, and all without a flush, and again after one: each has
/// its rows and no others, also when those are gone that it comes from. [RANGE-8] [RANGE-12]
fn a_half_that_ends_in_two_leaves_its_sister_as_it_was(engine: Engine) {
    for is_flushed in [false, true] {
        let mut fixture = Fixture::new(engine);
        let range = |start: &'static str, end: Option<&'static str>| KeyRange::new(start, end);
        apply(&fixture.cohort(), ["a", "f", "k", "p", "z"].map(|key| put(key, "1")).into());
        let lsn = seal(&fixture.cohort());
        let low = begin_part(&fixture, LEFT, range("", Some("m")), lsn);
        let high = begin_part(&fixture, RIGHT, range("m", None), lsn);
        apply(&low, vec![put("g", "1"), delete("a")]);
        apply(&high, vec![delete("p")]);
        if is_flushed {
            fixture.tables().flush().unwrap();
        }
        let lsn = seal(&low);
        let quarters = [(20, range("", Some("g"))), (21, range("g", Some("m")))];
        for (cohort, part) in &quarters {
            let begin = beginning(CohortId(*cohort), part.clone(), lsn);
            fixture.tables().begin(&[(LEFT, part.clone())], &begin).unwrap();
        }
        let parts = || {
            let halves = [(RIGHT, range("m", None))];
            let [lower, upper] = quarters.clone().map(|(id, part)| (CohortId(id), part));
            [lower, upper].into_iter().chain(halves)
        };
        let rows = |fixture: &Fixture| -> Vec<Vec<Bytes>> {
            let of = |(id, part)| all_rows(&fixture.tables().cohort(id, part).unwrap());
            parts().map(|part| of(part).into_iter().map(|row| row.key).collect()).collect()
        };
        let expected = [vec!["f"], vec!["g", "k"], vec!["z"]];
        assert_eq!(rows(&fixture), expected);
        // What is gone of those that have ended is on the disk first.
        fixture.tables().flush().unwrap();
        drop((low, high));
        fixture.tables().drop_cohort(COHORT).unwrap();
        fixture.tables().drop_cohort(LEFT).unwrap();
        assert_eq!(rows(&fixture), expected);
        fixture.reopen();
        assert_eq!(rows(&fixture), expected);
        fixture.tables().drop_cohort(CohortId(20)).unwrap();
        assert_eq!(rows(&fixture)[1..], expected[1..]);
        for (cohort, _) in parts() {
            fixture.tables().drop_cohort(cohort).unwrap();
        }
        assert_eq!(fixture.tables().core().first(&everything()).unwrap(), None);
    }
}

fn no_table_begins_where_none_has_ended(engine: Engine) {
    let fixture = Fixture::new(engine);
    let lsn = Lsn::new(1, 1);
    let refused = fixture
        .tables()
        .begin(&[(COHORT, KeyRange::all())], &beginning(LEFT, KeyRange::all(), lsn));
    assert!(matches!(refused, Err(TableError::NotSealed(COHORT))), "it is not open");
    apply(&fixture.cohort(), vec![put("a", "1")]);
    let refused = fixture
        .tables()
        .begin(&[(COHORT, KeyRange::all())], &beginning(LEFT, KeyRange::all(), lsn));
    assert!(matches!(refused, Err(TableError::NotSealed(COHORT))));
    assert_eq!(fixture.tables().cohorts(), [COHORT]);
}

fn everything() -> crate::table::Span {
    crate::table::Span::new(Vec::new(), crate::table::keys::END_OF_KEYS.to_vec())
}
