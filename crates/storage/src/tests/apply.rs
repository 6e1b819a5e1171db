//! What applying does to rows, versions, sessions and points.

use trireme_types::limits::{SCAN_BYTES_MAX, SCAN_ROWS_MAX, SESSION_LIFETIME};

use super::mistakes::{Mistake, making};
use super::*;
use crate::{APPLY_RESIDENT_BYTES_MAX, TableError};

for_each_engine!(
    puts_and_deletions_do_what_they_say,
    deletions_follow_the_table_in_the_documentation,
    conditions_see_the_commands_before_them_in_the_same_call,
    s12_of_two_writes_that_await_one_version_one_passes,
    versions_rise_across_deletion_and_restart,
    keys_outside_the_range_are_neither_written_nor_read,
    pages_end_at_their_limits,
    entries_out_of_order_are_refused,
    an_entry_that_cannot_be_read_changes_nothing,
    retries_change_nothing,
    retries_are_recognised_after_a_restart,
    all_replicas_forget_the_same_clients,
    protocol_entries_are_kept,
    what_may_have_to_wait_is_not_applied_at_once,
);

fn puts_and_deletions_do_what_they_say(engine: Engine) {
    let fixture = Fixture::new(engine);
    let table = fixture.cohort();
    assert_eq!(table.applied(), Lsn::ZERO);
    assert_eq!(table.apply(&[]).unwrap(), []);
    let outcomes = apply(&table, vec![put("a", "1"), put("b", "2"), put("a", "3"), put("", "")]);
    assert_eq!(outcomes, [was_put(1), was_put(2), was_put(3), was_put(4)]);
    assert_eq!(get(&table, "a"), Some(("3".into(), 3)));
    assert_eq!(get(&table, "b"), Some(("2".into(), 2)));
    assert_eq!(get(&table, ""), Some((String::new(), 4)));
    assert_eq!(
        apply(&table, vec![delete("a"), delete("a"), delete("x")]),
        [DELETED, NOT_THERE, NOT_THERE]
    );
    assert_eq!(get(&table, "a"), None);
    assert_eq!(table.applied(), Lsn::new(1, 2));
    assert_eq!(all_rows(&table).len(), 2);
}

fn deletions_follow_the_table_in_the_documentation(engine: Engine) {
    let fixture = Fixture::new(engine);
    let table = fixture.cohort();
    let cases = [
        (Condition::None, DELETED, NOT_THERE),
        (version(1), DELETED, FAILED_ABSENT),
        (version(99), failed(1), FAILED_ABSENT),
        (Condition::Absent, failed(1), NOT_THERE),
    ];
    for (number, (condition, there, absent)) in (0..).zip(cases) {
        // A cohort of its own, so that the row's version is 1.
        let table = fixture.tables().cohort(CohortId(10 + number), KeyRange::all()).unwrap();
        let outcomes = apply(
            &table,
            vec![put("k", "v"), delete_if("k", condition), delete_if("x", condition)],
        );
        assert_eq!(outcomes[1..], [there, absent], "{condition:?}");
        assert_eq!(get(&table, "k").is_none(), there == DELETED, "{condition:?}");
        let next = if there == DELETED { 3 } else { 2 };
        assert_eq!(apply(&table, vec![put("n", "")]), [was_put(next)], "{condition:?}");
    }
    assert_eq!(all_rows(&table), []);
}

/// S12: two conditional writes that await the same version can never both pass. [SPIN-9]
fn conditions_see_the_commands_before_them_in_the_same_call(engine: Engine) {
    let fixture = Fixture::new(engine);
    let table = fixture.cohort();
    let outcomes = table
        .apply(&[
            entry(
                1,
                vec![put_if("k", "1", Condition::Absent), put_if("k", "2", Condition::Absent)],
            ),
            entry(2, vec![put_if("k", "3", version(1)), put_if("k", "4", version(1))]),
            entry(3, vec![delete_if("k", version(2)), delete_if("k", version(2))]),
            entry(4, vec![put_if("k", "5", version(2)), put_if("k", "6", Condition::Absent)]),
        ])
        .unwrap();
    let outcomes: Vec<_> = outcomes.into_iter().map(|applied| applied.outcomes).collect();
    assert_eq!(
        outcomes,
        [
            [was_put(1), failed(1)],
            [was_put(2), failed(2)],
            [DELETED, FAILED_ABSENT],
            [FAILED_ABSENT, was_put(4)],
        ]
    );
    assert_eq!(get(&table, "k"), Some(("6".into(), 4)));
    // And against rows that earlier calls have left.
    assert_eq!(apply(&table, vec![put_if("k", "7", version(3))]), [failed(4)]);
    assert_eq!(apply(&table, vec![put_if("k", "8", version(4))]), [was_put(5)]);
}

/// S12: judged against the rows as of before the call, both pass, and an update is lost. [SPIN-9]
fn s12_of_two_writes_that_await_one_version_one_passes(engine: Engine) {
    let passed = |mistake| {
        let fixture = Fixture::new(engine);
        let table = fixture.cohort();
        apply(&table, vec![put("k", "0")]);
        let writes = [
            entry(2, vec![put_if("k", "1", version(1))]),
            entry(3, vec![put_if("k", "2", version(1))]),
        ];
        let applied = making(mistake, || table.apply(&writes)).unwrap();
        let outcomes = applied.into_iter().flat_map(|applied| applied.outcomes);
        outcomes.filter(|outcome| matches!(outcome, Outcome::Put { .. })).count()
    };
    assert_eq!(passed(None), 1);
    assert_eq!(passed(Some(Mistake::JudgesOldRows)), 2, "the mistake would not be noticed");
}

/// S13.
fn versions_rise_across_deletion_and_restart(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    let table = fixture.cohort();
    assert_eq!(
        apply(&table, vec![put("k", "1"), delete("k"), put("k", "2")]),
        [was_put(1), DELETED, was_put(3)]
    );
    apply(&table, vec![delete("k")]);
    fixture.tables().close().unwrap();
    drop(table);
    let table = fixture.reopen();
    assert_eq!(table.applied(), Lsn::new(1, 2));
    assert_eq!(apply(&table, vec![put("k", "3")]), [was_put(5)]);
    assert_eq!(get(&table, "k"), Some(("3".into(), 5)));
}

fn keys_outside_the_range_are_neither_written_nor_read(engine: Engine) {
    let fixture = Fixture::new(engine);
    let range = KeyRange::new("b", Some("d"));
    let table = fixture.tables().cohort(COHORT, range.clone()).unwrap();
    let outcomes = apply(
        &table,
        vec![
            put("a", "1"),
            put("b", "2"),
            delete("d"),
            put_if("z", "", Condition::Absent),
            put("c", "3"),
        ],
    );
    let wrong = Outcome::WrongRange;
    assert_eq!(outcomes, [wrong, was_put(1), wrong, wrong, was_put(2)]);
    assert_eq!(get(&table, "a"), None);
    table.set_range(KeyRange::new("c", None::<&str>));
    assert_eq!(get(&table, "b"), None);
    assert_eq!(all_rows(&table).len(), 1);
    assert_eq!(apply(&table, vec![put("z", "4"), put("b", "5")]), [was_put(3), wrong]);
    table.set_range(range);
    assert_eq!(get(&table, "b"), Some(("2".into(), 1)));
    assert_eq!(table.scan(&KeyRange::new("x", Some("y")), 10, false).unwrap().rows, []);
}

fn pages_end_at_their_limits(engine: Engine) {
    let fixture = Fixture::new(engine);
    let table = fixture.cohort();
    let keys: Vec<_> = (0..SCAN_ROWS_MAX + 10).map(|i| format!("{i:06}")).collect();
    for part in keys.chunks(1000) {
        apply(&table, part.iter().map(|key| put(key, "v")).collect());
    }
    // Another cohort's rows lie on both sides.
    for id in [CohortId(0), CohortId(2)] {
        let other = fixture.tables().cohort(id, KeyRange::all()).unwrap();
        apply(&other, vec![put("000005", "other")]);
    }
    let names = |page: &crate::ScanPage| -> Vec<String> {
        page.rows.iter().map(|row| String::from_utf8(row.key.to_vec()).unwrap()).collect()
    };
    let range = KeyRange::new("000002", Some("000007"));
    let page = table.scan(&range, 10, false).unwrap();
    assert_eq!(names(&page), keys[2..7]);
    assert!(!page.more);
    let page = table.scan(&range, 3, true).unwrap();
    assert_eq!(names(&page), ["000006", "000005", "000004"]);
    assert!(page.more);
    assert!(!table.scan(&range, 5, true).unwrap().more);
    let none = table.scan(&range, 0, false).unwrap();
    assert!(none.rows.is_empty() && none.more);
    let page = table.scan(&KeyRange::all(), usize::MAX, false).unwrap();
    assert_eq!(names(&page), keys[..SCAN_ROWS_MAX]);
    assert!(page.more);
    assert_eq!(all_rows(&table).len(), keys.len());
    assert_eq!(table.scan(&KeyRange::new("b", Some("a")), 9, true).unwrap().rows, []);

    let large = "x".repeat(SCAN_BYTES_MAX / 2);
    apply(&table, vec![put("x1", &large), put("x2", &large), put("x3", &large)]);
    let page = table.scan(&KeyRange::new("x", None::<&str>), 10, false).unwrap();
    assert_eq!((names(&page), page.more), (vec!["x1".to_owned(), "x2".to_owned()], true));
}

fn entries_out_of_order_are_refused(engine: Engine) {
    let fixture = Fixture::new(engine);
    let table = fixture.cohort();
    let at = |epoch, seq| Entry { lsn: Lsn::new(epoch, seq), ..entry(seq, vec![put("k", "v")]) };
    table.apply(&[at(2, 1), at(2, 2)]).unwrap();
    let order = |result| matches!(result, Err(TableError::OutOfOrder { .. }));
    for bad in [at(2, 2), at(2, 1), at(1, 3), at(3, 2), at(2, 0)] {
        assert!(order(table.apply(std::slice::from_ref(&bad))), "{} came next", bad.lsn);
        assert_eq!(table.applied(), Lsn::new(2, 2));
    }
    for bad in [at(2, 3), at(1, 4), at(3, 3)] {
        assert!(order(table.apply(&[at(2, 3), bad.clone()])), "{} came after 2.3", bad.lsn);
        assert_eq!(table.applied(), Lsn::new(2, 2));
    }
    table.apply(&[at(2, 3), at(7, 4)]).unwrap();
    assert_eq!(table.applied(), Lsn::new(7, 4));
}

fn an_entry_that_cannot_be_read_changes_nothing(engine: Engine) {
    let fixture = Fixture::new(engine);
    let table = fixture.cohort();
    let mut bad = entry(2, vec![put("b", "2")]);
    bad.payload = bad.payload.slice(..bad.payload.len() - 1);
    let refused = table.apply(&[entry(1, vec![requested(1, 1, 1, put("a", "1"))]), bad]);
    assert!(matches!(refused, Err(TableError::Batch { lsn: Lsn { seq: 2, .. }, .. })));
    assert_eq!((table.applied(), all_rows(&table)), (Lsn::ZERO, vec![]));
    assert_eq!(apply(&table, vec![requested(1, 1, 1, put("a", "1"))]), [was_put(1)]);
}

/// C1.
fn retries_change_nothing(engine: Engine) {
    let fixture = Fixture::new(engine);
    let table = fixture.cohort();
    let first = requested(1, 7, 7, put_if("k", "1", Condition::Absent));
    assert_eq!(apply(&table, vec![first.clone(), first.clone()]), [was_put(1), was_put(1)]);
    assert_eq!(apply(&table, vec![put("k", "2"), first.clone()]), [was_put(2), was_put(1)]);
    assert_eq!(get(&table, "k"), Some(("2".into(), 2)), "the retry has put the old value back");
    // A recorded failure stays one, also when it would pass now.
    let second = requested(1, 8, 7, put_if("k", "3", version(3)));
    assert_eq!(apply(&table, vec![second.clone()]), [failed(2)]);
    assert_eq!(apply(&table, vec![put("k", "4"), second]), [was_put(3), failed(2)]);
    // Once the client awaits it no more, it is forgotten and still not applied.
    assert_eq!(apply(&table, vec![requested(1, 9, 9, delete("x"))]), [NOT_THERE]);
    assert_eq!(apply(&table, vec![first]), [FAILED_ABSENT]);
    assert_eq!(get(&table, "k"), Some(("4".into(), 3)));
}

fn retries_are_recognised_after_a_restart(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    let table = fixture.cohort();
    let commands: Vec<_> =
        (1..=50).map(|i| requested(i % 5, i.try_into().unwrap(), 1, put("k", "v"))).collect();
    let outcomes = apply(&table, commands.clone());
    fixture.tables().flush().unwrap();
    drop(table);
    let table = fixture.reopen();
    assert_eq!(apply(&table, commands), outcomes);
    assert_eq!(get(&table, "k"), Some(("v".into(), 50)));
}

/// A session that goes, goes by the time in the log, so that it does not depend on how entries were
/// grouped, on restarts, or on how many sessions there are. What comes of it later is refused.
fn all_replicas_forget_the_same_clients(engine: Engine) {
    const STEP: u64 = 10_000;
    const EACH: u64 = 200;
    let lifetime = u64::try_from(SESSION_LIFETIME.as_millis()).unwrap();
    let last = 2 * lifetime / STEP;
    let mut one = Fixture::new(engine);
    let other = Fixture::new(engine);
    let dated = |client: u64, start, command| {
        let command = requested(client.into(), 1, 1, command);
        let request = command.request.map(|request| RequestId { start: Some(start), ..request });
        Command { request, ..command }
    };
    let at = |seq: u64, clock, commands| {
        let payload = CommandBatch { commands, clock }.encode();
        Entry { payload, ..entry(seq, vec![]) }
    };
    let entries: Vec<_> = (1..=last)
        .map(|seq| {
            let clients = seq * EACH..(seq + 1) * EACH;
            let put = |client| dated(client, seq * STEP, put(&format!("{client}"), "v"));
            let mut commands: Vec<_> = clients.map(put).collect();
            // One that goes on.
            commands.push(dated(1, STEP, delete("?")));
            at(seq, seq * STEP, commands)
        })
        .collect();
    let (early, late) = entries.split_at(last as usize / 2 + 3);
    early.iter().for_each(|entry| drop(one.cohort().apply(std::slice::from_ref(entry)).unwrap()));
    one.tables().flush().unwrap();
    one.reopen().apply(late).unwrap();
    assert_eq!(one.cohort().clock(), last * STEP);
    other.cohort().apply(&entries).unwrap();
    let bytes = chunks(one.cohort().snapshot().unwrap());
    assert_eq!(bytes, chunks(other.cohort().snapshot().unwrap()));

    let third = Fixture::new(engine);
    third.cohort().install(stage(&bytes)).unwrap();
    assert_eq!(third.cohort().clock(), last * STEP);
    for table in [one.cohort(), third.cohort()] {
        let retry = |client, start, clock| {
            let retry = dated(client, start, put("late", "old"));
            let entry = at(table.applied().seq + 1, clock, vec![retry]);
            table.apply(&[entry]).unwrap().remove(0).outcomes.remove(0)
        };
        let first = EACH;
        let gone = Outcome::SessionGone { clock: last * STEP };
        // Whatever a leader's clock says that lags behind.
        assert_eq!(retry(first, STEP, STEP), gone);
        assert_eq!(retry(1, STEP, 0), NOT_THERE, "it was heard all the time");
        let living = (last - lifetime / STEP) * EACH;
        let start = last * STEP - lifetime;
        assert!(matches!(retry(living, start, 0), Outcome::Put { .. }));
        assert_eq!(get(&table, "late"), None, "a retry was applied");
        let new = retry(u64::MAX, last * STEP, last * STEP + 1);
        assert!(matches!(new, Outcome::Put { .. }), "{new:?}");
        assert_eq!(retry(living + EACH - 1, start, 0), gone_at(last * STEP + 1));
    }
}

const fn gone_at(clock: u64) -> Outcome {
    Outcome::SessionGone { clock }
}

fn protocol_entries_are_kept(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    let table = fixture.cohort();
    assert_eq!(table.protocol_state(), None);
    let protocol =
        |seq, text| Entry { kind: EntryKind::Protocol, payload: key(text), ..entry(seq, vec![]) };
    let barrier = Entry { kind: EntryKind::NoOp, payload: key("?"), ..entry(3, vec![]) };
    let applied = table.apply(&[protocol(1, "a"), protocol(2, "b"), barrier]).unwrap();
    assert!(applied.iter().all(|applied| applied.outcomes.is_empty()));
    assert_eq!(applied[2].lsn, Lsn::new(1, 3));
    assert_eq!(table.protocol_state(), Some((Lsn::new(1, 2), key("b"))));
    apply(&table, vec![put("k", "v")]);
    fixture.tables().flush().unwrap();
    drop(table);
    assert_eq!(fixture.reopen().protocol_state(), Some((Lsn::new(1, 2), key("b"))));
}

/// It is refused as a whole: neither rows nor sessions have changed.
fn what_may_have_to_wait_is_not_applied_at_once(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    apply(&fixture.cohort(), vec![put("a", "1"), put("b", "2")]);
    fixture.tables().flush().unwrap();
    let table = fixture.reopen();
    let at_once = |seq, commands| table.apply_resident(&[entry(seq, commands)]).unwrap();
    // What becomes of these depends on rows that only a file holds.
    for command in [put_if("a", "3", version(1)), delete("a"), delete("absent")] {
        let named = requested(1, 1, 1, put("b", "4"));
        assert_eq!(at_once(2, vec![named, command]), None);
        assert_eq!(table.applied(), Lsn::new(1, 1));
    }
    let is_in_memory = engine == Engine::Lsm;
    let applied = at_once(2, vec![requested(1, 1, 1, put("b", "4"))]);
    assert_eq!(applied.is_some(), is_in_memory);
    if let Some(applied) = applied {
        assert_eq!(applied[0].outcomes, [was_put(3)], "nothing was recorded before");
        assert_eq!(get(&table, "b"), Some(("4".into(), 3)));
    }
    assert_eq!(get(&table, "a"), Some(("1".into(), 1)));
    let seq = table.applied().seq + 1;
    let large = "x".repeat(APPLY_RESIDENT_BYTES_MAX);
    assert_eq!(at_once(seq, vec![put("c", &large)]), None, "it would take long");
    let applied = at_once(seq, vec![put_if("a", "5", version(1))]);
    assert_eq!(applied.is_some(), is_in_memory, "the row was read, and is in memory now");
}
