//! The keyspace that cohorts share: points, removal, listeners, and whose folder it is.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::*;
use crate::TableError;
use crate::table::WriteBatch;
use crate::table::keys::{self, Place};

for_each_engine!(
    one_flush_moves_every_cohort,
    an_unflushed_table_is_at_an_earlier_point_after_a_crash,
    writes_after_a_restart_win_over_those_before,
    cohorts_do_not_meet,
    the_files_of_a_range_hold_its_rows,
    a_dropped_cohort_is_gone,
    a_cohort_that_takes_long_to_drop_holds_up_no_other,
    leftovers_of_other_generations_are_removed,
    closed_tables_take_nothing,
    enough_writes_start_a_flush,
    a_folder_belongs_to_its_engine_and_format,
    damaged_rows_are_errors,
);

/// S10: an idle cohort does not hold the log back.
fn one_flush_moves_every_cohort(engine: Engine) {
    let fixture = Fixture::new(engine);
    let tables: Vec<_> =
        (1..=3).map(|id| fixture.tables().cohort(CohortId(id), KeyRange::all()).unwrap()).collect();
    let flushed = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&flushed);
    fixture.tables().on_flush(Box::new(move || {
        count.fetch_add(1, Ordering::AcqRel);
    }));
    apply(&tables[0], vec![put("a", "1")]);
    fixture.tables().flush().unwrap();
    apply(&tables[1], vec![put("b", "2")]);
    apply(&tables[1], vec![put("b", "3")]);
    let points: Vec<_> = tables.iter().map(|t| (t.applied().seq, t.persisted().seq)).collect();
    assert_eq!(points, [(1, 1), (2, 0), (0, 0)]);
    fixture.tables().flush().unwrap();
    let points: Vec<_> = tables.iter().map(|t| (t.applied().seq, t.persisted().seq)).collect();
    assert_eq!(points, [(1, 1), (2, 2), (0, 0)]);
    assert_eq!(flushed.load(Ordering::Acquire), 2);
    assert_eq!(fixture.tables().metrics().flushes, 2);
}

/// Of the files that hold rows of a range, what others have in them counts too.
fn the_files_of_a_range_hold_its_rows(engine: Engine) {
    const BYTES: u64 = 64 * 1024;
    let fixture = Fixture::new(engine);
    let (first, last) = (KeyRange::new("", Some("m")), KeyRange::new("m", None::<&str>));
    let first = fixture.tables().cohort(CohortId(1), first).unwrap();
    let last = fixture.tables().cohort(CohortId(9), last).unwrap();
    let random = |seed: u64| {
        let mut state = seed;
        let mut letter = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'a' + u8::try_from((state >> 33) % 26).unwrap())
        };
        (0..BYTES).map(|_| letter()).collect::<String>()
    };
    apply(&first, vec![put("a", &random(1))]);
    fixture.tables().flush().unwrap();
    let of_first = first.file_bytes().unwrap();
    // Letters at random take more than half of their bytes, however well they are compressed.
    assert!(of_first >= BYTES / 2, "{of_first}");
    apply(&last, vec![put("z", &random(2)), put("y", &random(3))]);
    fixture.tables().flush().unwrap();
    assert!(last.file_bytes().unwrap() >= BYTES);
    if engine == Engine::Lsm {
        assert_eq!(first.file_bytes().unwrap(), of_first, "the other's rows are in another file");
    }
}

fn an_unflushed_table_is_at_an_earlier_point_after_a_crash(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    let table = fixture.cohort();
    apply(&table, vec![put("a", "1"), put("b", "1")]);
    fixture.tables().flush().unwrap();
    apply(&table, vec![put("a", "2"), delete("b")]);
    drop(table);
    let table = fixture.reopen();
    match table.applied().seq {
        1 => assert_eq!(get(&table, "b"), Some(("1".into(), 2))),
        2 => assert_eq!(get(&table, "b"), None),
        seq => panic!("applied up to {seq}"),
    }
    if engine == Engine::Lsm {
        assert_eq!(table.applied().seq, 1, "nothing is flushed when the handles go away");
    }
    assert_eq!(table.persisted(), table.applied());
}

fn writes_after_a_restart_win_over_those_before(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    for round in 1..=12 {
        let table = fixture.cohort();
        apply(&table, vec![put("k", &round.to_string()), put("once", "v")]);
        if round % 4 == 0 {
            apply(&table, vec![delete("k")]);
        }
        fixture.tables().flush().unwrap();
        while fixture.tables().core().compact().unwrap() {}
        drop(table);
        let table = fixture.reopen();
        let expected = (round % 4 != 0).then(|| round.to_string());
        assert_eq!(get(&table, "k").map(|(value, _)| value), expected);
    }
}

fn cohorts_do_not_meet(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    let ids = [1, 2, 255, 256, u64::MAX].map(CohortId);
    for id in ids {
        let table = fixture.tables().cohort(id, KeyRange::all()).unwrap();
        apply(&table, vec![requested(1, 1, 1, put("k", &id.to_string())), put("\u{10ffff}", "")]);
        let same = fixture.tables().cohort(id, KeyRange::new("x", Some("y"))).unwrap();
        assert_eq!(all_rows(&same), all_rows(&table));
    }
    assert_eq!(fixture.tables().cohorts(), ids);
    fixture.tables().flush().unwrap();
    fixture.reopen();
    assert_eq!(fixture.tables().cohorts(), ids);
    for id in ids {
        let table = fixture.tables().cohort(id, KeyRange::all()).unwrap();
        assert_eq!(get(&table, "k"), Some((id.to_string(), 1)));
        assert_eq!(all_rows(&table).len(), 2);
        assert_eq!(apply(&table, vec![requested(1, 1, 1, delete("k"))]), [was_put(1)]);
    }
}

fn a_dropped_cohort_is_gone(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    let other = fixture.tables().cohort(CohortId(2), KeyRange::all()).unwrap();
    apply(&other, vec![put("k", "other")]);
    let table = fixture.cohort();
    for _ in 0..5 {
        apply(&table, (0..1000).map(|i| put(&i.to_string(), "v")).collect());
    }
    fixture.tables().drop_cohort(COHORT).unwrap();
    fixture.tables().drop_cohort(CohortId(9)).unwrap();
    assert!(matches!(table.get(b"1"), Err(TableError::Dropped(COHORT))));
    assert!(matches!(table.apply(&[entry(6, vec![])]), Err(TableError::Dropped(COHORT))));
    assert!(table.snapshot().is_err() && table.scan(&KeyRange::all(), 1, false).is_err());
    assert_eq!(fixture.tables().cohorts(), [CohortId(2)]);
    drop((table, other));
    fixture.tables = None;
    fixture.tables = Some(Tables::open(fixture.path(), fixture.options.clone()).unwrap());
    assert_eq!(fixture.tables().cohorts(), [CohortId(2)]);
    let table = fixture.cohort();
    assert_eq!((table.applied(), all_rows(&table)), (Lsn::ZERO, vec![]));
    assert_eq!(apply(&table, vec![put("1", "v")]), [was_put(1)]);
    let other = fixture.tables().cohort(CohortId(2), KeyRange::all()).unwrap();
    assert_eq!(get(&other, "k"), Some(("other".into(), 1)));
}

/// What a crash amid an installation or a removal leaves on disk.
fn leftovers_of_other_generations_are_removed(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    apply(&fixture.cohort(), vec![put("k", "v")]);
    let mut batch = WriteBatch::default();
    let mut leftovers = Vec::new();
    for (cohort, generation) in [(1, 2), (1, 7), (1, u32::MAX), (5, 1), (5, 2), (u64::MAX, 3)] {
        let place = Place { cohort: CohortId(cohort), generation };
        for i in 0..2000_u32 {
            batch.put(&[&place.row_key(&i.to_be_bytes())], &[b"?"]);
        }
        leftovers.push(place);
    }
    fixture.tables().core().write(batch).unwrap();
    fixture.tables().flush().unwrap();
    let table = fixture.reopen();
    assert_eq!(fixture.tables().cohorts(), [COHORT]);
    assert_eq!(get(&table, "k"), Some(("v".into(), 1)));
    for place in leftovers {
        assert!(fixture.tables().core().first(&place.all()).unwrap().is_none(), "{place:?}");
    }
}

fn closed_tables_take_nothing(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    let table = fixture.cohort();
    apply(&table, vec![put("k", "v")]);
    let handle = table.clone();
    // A listener that holds a handle of the tables themselves must not keep them open.
    fixture.tables().on_flush(Box::new(move || assert!(handle.persisted() > Lsn::ZERO)));
    fixture.tables().close().unwrap();
    assert_eq!(table.persisted(), Lsn::new(1, 1));
    assert!(matches!(table.apply(&[entry(2, vec![])]), Err(TableError::Closed)));
    assert!(matches!(fixture.tables().flush(), Err(TableError::Closed)));
    fixture.tables().close().unwrap();
    drop(table);
    assert_eq!(fixture.reopen().applied(), Lsn::new(1, 1));
}

fn enough_writes_start_a_flush(engine: Engine) {
    let fixture = Fixture::new(engine);
    let (sender, flushed) = mpsc::channel();
    fixture.tables().on_flush(Box::new(move || {
        // Nobody listens any more once the test has seen enough.
        let _ignored = sender.send(());
    }));
    let table = fixture.cohort();
    while table.persisted() == Lsn::ZERO {
        assert!(table.applied().seq < 10_000, "nothing is flushed");
        apply(&table, vec![put("k", &"x".repeat(1000))]);
    }
    flushed.recv_timeout(Duration::from_secs(20)).unwrap();
    let metrics = fixture.tables().metrics();
    assert!(metrics.flushes >= 1 && metrics.written_bytes > 64 * 1024, "{metrics:?}");
    assert!(metrics.disk_bytes > 0, "{metrics:?}");
}

fn a_folder_belongs_to_its_engine_and_format(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    fixture.tables = None;
    let open = |dir: &Path, engine| Tables::open(dir, small(engine)).map(drop).unwrap_err();
    let other = if engine == Engine::Lsm { Engine::Sled } else { Engine::Lsm };
    let refused = open(fixture.path(), other);
    assert!(matches!(refused, TableError::OtherEngine { .. }), "{refused}");
    let format = fixture.path().join("FORMAT");
    let text = fs::read_to_string(&format).unwrap();
    assert_eq!(text, format!("trireme-table 1 {engine}\n"));
    fs::write(&format, text.replace('1', "2")).unwrap();
    let refused = open(fixture.path(), engine);
    assert!(matches!(refused, TableError::Format { found: 2, known: 1, .. }), "{refused}");
    for rubbish in ["", "trireme-table", "trireme-table x lsm", "\u{0}"] {
        fs::write(&format, rubbish).unwrap();
        let refused = open(fixture.path(), engine);
        assert!(matches!(refused, TableError::NotATable { .. }), "{refused}");
    }
    fs::remove_file(&format).unwrap();
    let refused = open(fixture.path(), engine);
    assert!(matches!(refused, TableError::NotATable { .. }), "{refused}");
    // A crash right after the folder was made leaves nothing, or half a claim.
    let fresh = tempfile::tempdir().unwrap();
    fs::write(fresh.path().join("FORMAT.tmp"), "trir").unwrap();
    drop(Tables::open(fresh.path(), small(engine)).unwrap());
    drop(Tables::open(fresh.path(), small(engine)).unwrap());
}

/// Rows that are not what was written are errors that name them, never a panic and never a value; and
/// the tables that have them take no more writes, so that the node stops.
fn damaged_rows_are_errors(engine: Engine) {
    for value in [&[][..], &[1, 2, 3], &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        let fixture = Fixture::new(engine);
        let table = fixture.cohort();
        apply(&table, vec![put("k", "v")]);
        let place = Place { cohort: COHORT, generation: 1 };
        let mut batch = WriteBatch::default();
        batch.put(&[&place.row_key(b"k")], &[value]);
        fixture.tables().core().write(batch).unwrap();
        let read = table.get(b"k").unwrap_err();
        let scanned = table.scan(&KeyRange::all(), 9, false).unwrap_err();
        for error in [read, scanned] {
            let named = matches!(error, TableError::Corrupt { .. } | TableError::Format { .. });
            assert!(named, "{value:?} gave {error}");
        }
        let refused = table.apply(&[entry(2, vec![put("other", "v")])]).unwrap_err();
        assert!(matches!(refused, TableError::Failed { .. }), "{refused}");
    }
    let fixture = Fixture::new(engine);
    let mut batch = WriteBatch::default();
    batch.put(&[&keys::meta_key(CohortId(3))], &[b"\x01damaged"]);
    batch.put(&[&Place { cohort: CohortId(4), generation: 0 }.prefix(keys::KIND_META)], &[b"\x09"]);
    fixture.tables().core().write(batch).unwrap();
    fixture.tables().close().unwrap();
    let Fixture { dir, options, tables } = fixture;
    drop(tables);
    let refused = Tables::open(dir.path(), options).map(drop).unwrap_err();
    assert!(matches!(refused, TableError::Corrupt { cohort: CohortId(3), .. }), "{refused}");
}

/// The removal of many rows and the flush after it take their time, and only what comes for that
/// cohort waits for them.
fn a_cohort_that_takes_long_to_drop_holds_up_no_other(engine: Engine) {
    const PATIENCE: Duration = Duration::from_secs(20);
    let fixture = Fixture::new(engine);
    let tables = fixture.tables();
    apply(&fixture.cohort(), vec![put("a", "1")]);
    let (entered, has_entered) = mpsc::sync_channel(64);
    let (release, is_released) = mpsc::channel::<()>();
    let is_released = Mutex::new(is_released);
    tables.on_flush(Box::new(move || {
        // The flush at the end of the removal is the first.
        let _full = entered.try_send(());
        let _ended = is_released.lock().recv_timeout(PATIENCE);
    }));
    thread::scope(|scope| {
        scope.spawn(|| tables.drop_cohort(COHORT).unwrap());
        has_entered.recv_timeout(PATIENCE).unwrap();
        let (opened, is_opened) = mpsc::channel();
        scope.spawn(move || {
            let other = tables.cohort(CohortId(2), KeyRange::all()).unwrap();
            apply(&other, vec![put("b", "2")]);
            opened.send((tables.cohorts(), get(&other, "b"))).unwrap();
        });
        let (again, is_again) = mpsc::channel();
        let fixture = &fixture;
        scope.spawn(move || again.send(get(&fixture.cohort(), "a")).unwrap());
        let opened = is_opened.recv_timeout(PATIENCE / 2);
        let waits = is_again.try_recv();
        drop(release);
        assert_eq!(opened.unwrap(), (vec![COHORT, CohortId(2)], Some(("2".into(), 1))));
        assert_eq!(waits, Err(mpsc::TryRecvError::Empty), "it was opened while it was removed");
        assert_eq!(is_again.recv_timeout(PATIENCE).unwrap(), None);
    });
}
