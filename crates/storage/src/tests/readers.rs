//! Readers and snapshots beside a writer: each sees whole calls of apply, however flushes and
//! compactions fall.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::*;

for_each_engine!(
    readers_see_whole_calls_while_files_are_written,
    a_snapshot_is_as_of_its_call_while_the_table_goes_on,
    a_flush_beside_a_writer_takes_whole_calls,
    a_read_names_the_state_that_it_was_answered_from,
    a_read_during_an_installation_names_the_state_that_it_was_answered_from,
);

const KEYS: u64 = 64;

/// Gives every key the value `round`, in one call but in two entries.
fn write_round(table: &CohortTable, round: u64) {
    let value = format!("{round:08}{}", "x".repeat(200));
    let puts = |keys: std::ops::Range<u64>| keys.map(|i| put(&format!("{i:03}"), &value)).collect();
    let seq = table.applied().seq;
    let entries = [entry(seq + 1, puts(0..KEYS / 2)), entry(seq + 2, puts(KEYS / 2..KEYS))];
    table.apply(&entries).unwrap();
}

fn round_of(value: &[u8]) -> u64 {
    std::str::from_utf8(&value[..8]).unwrap().parse().unwrap()
}

fn readers_see_whole_calls_while_files_are_written(engine: Engine) {
    let fixture = Fixture::new(engine);
    let table = fixture.cohort();
    write_round(&table, 1);
    let done = AtomicBool::new(false);
    let deadline = Instant::now() + Duration::from_secs(4);
    thread::scope(|scope| {
        for reverse in [false, true] {
            let (table, done) = (&table, &done);
            scope.spawn(move || {
                let mut last = 0;
                while !done.load(Ordering::Acquire) {
                    let page = table.scan(&KeyRange::all(), 1000, reverse).unwrap();
                    assert_eq!(page.rows.len() as u64, KEYS);
                    let round = round_of(&page.rows[0].value);
                    for row in &page.rows {
                        assert_eq!(round_of(&row.value), round, "a page of two rounds");
                    }
                    assert!(round >= last, "round {round} after {last}");
                    // What one look-up has seen, a later one cannot be before.
                    let row = table.get(b"000").unwrap().unwrap();
                    last = round_of(&row.value);
                    let row = table.get(b"063").unwrap().unwrap();
                    assert!(round_of(&row.value) >= last, "half of a round");
                }
            });
        }
        let mut round = 1;
        // Enough for several flushes and compactions, on whatever machine.
        while fixture.tables().metrics().flushes < 30 && Instant::now() < deadline {
            round += 1;
            write_round(&table, round);
        }
        done.store(true, Ordering::Release);
    });
    assert!(fixture.tables().metrics().flushes >= 3, "{:?}", fixture.tables().metrics());
}

fn a_snapshot_is_as_of_its_call_while_the_table_goes_on(engine: Engine) {
    let fixture = Fixture::new(engine);
    let table = fixture.cohort();
    (1..=20).for_each(|round| write_round(&table, round));
    let expected = chunks(table.snapshot().unwrap());
    let reader = table.snapshot().unwrap();
    for round in 21..=120 {
        write_round(&table, round);
    }
    apply(&table, (0..KEYS).map(|i| delete(&format!("{i:03}"))).collect());
    fixture.tables().flush().unwrap();
    while fixture.tables().core().compact().unwrap() {}
    assert_eq!(reader.header().applied, Lsn::new(1, 40));
    assert_eq!(chunks(reader), expected);
    assert_eq!(all_rows(&table), []);
}

/// The applied point of a read is neither older nor newer than its rows, whatever is applied
/// meanwhile.
fn a_read_names_the_state_that_it_was_answered_from(engine: Engine) {
    let fixture = Fixture::new(engine);
    let table = fixture.cohort();
    assert_eq!(table.get_with_applied(b"000").unwrap(), (None, Lsn::ZERO));
    write_round(&table, 1);
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let resident = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let (row, applied) = table.get_with_applied(b"063").unwrap();
                assert_eq!(applied.seq, 2 * round_of(&row.unwrap().value));
                if let Some((row, applied)) = table.get_resident_with_applied(b"063").unwrap() {
                    assert_eq!(applied.seq, 2 * round_of(&row.unwrap().value));
                    resident.fetch_add(1, Ordering::Release);
                }
                let (page, applied) = table.scan_with_applied(&KeyRange::all(), 3, true).unwrap();
                assert_eq!((page.rows.len(), page.more), (3, true));
                assert_eq!(applied.seq, 2 * round_of(&page.rows[2].value));
                reads.fetch_add(1, Ordering::Release);
            }
        });
        let mut round = 1;
        while reads.load(Ordering::Acquire) < 500 {
            round += 1;
            write_round(&table, round);
        }
        done.store(true, Ordering::Release);
    });
    // The rows of the last calls are in memory, where the engine can see it.
    assert_eq!(resident.into_inner() > 0, engine == Engine::Lsm);
}

fn a_read_during_an_installation_names_the_state_that_it_was_answered_from(engine: Engine) {
    let (source, target) = (Fixture::new(engine), Fixture::new(engine));
    let table = target.cohort();
    for round in 1..=8 {
        write_round(&source.cohort(), round);
        let staged = stage(&chunks(source.cohort().snapshot().unwrap()));
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let (row, applied) = table.get_with_applied(b"063").unwrap();
                    let round = row.map_or(0, |row| round_of(&row.value));
                    assert_eq!(applied.seq, 2 * round);
                }
            });
            table.install(staged).unwrap();
            done.store(true, Ordering::Release);
        });
        assert_eq!(table.get_with_applied(b"063").unwrap().1.seq, 2 * round);
    }
}

/// A flush that falls into a call of apply takes all of it or nothing: what a crash right after it
/// leaves is a whole round.
fn a_flush_beside_a_writer_takes_whole_calls(engine: Engine) {
    let mut fixture = Fixture::new(engine);
    for _ in 0..15 {
        let table = fixture.cohort();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    write_round(&table, table.applied().seq / 2 + 1);
                }
            });
            for _ in 0..5 {
                fixture.tables().flush().unwrap();
            }
            done.store(true, Ordering::Release);
            writer.join().unwrap();
        });
        drop(table);
        let table = fixture.reopen();
        let seq = table.applied().seq;
        assert_eq!(seq % 2, 0, "half of a call is applied");
        for row in all_rows(&table) {
            assert_eq!(round_of(&row.value), seq / 2, "a row of another round than {seq}");
        }
    }
}
