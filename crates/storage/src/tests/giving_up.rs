//! The log is given up no further than the tables are on disk, whoever asks (S10).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::mistakes::{Mistake, making};
use super::*;
use crate::fs::{Crash, MemFs};
use crate::{LogError, LogErrorClass, LogIdentity, LogOptions, LogWrite, SharedLog};

fn open_log(fs: &MemFs) -> SharedLog {
    let identity =
        LogIdentity { cluster: trireme_types::ClusterId(1), node: trireme_types::NodeId(1) };
    let fs = Arc::new(fs.clone());
    SharedLog::open_stepped(fs, Path::new("/node/log"), identity, LogOptions::default()).unwrap()
}

/// Adds the entries up to `last` to the log, and those up to `applied` to the table.
fn write(log: &SharedLog, table: &CohortTable, last: u64, applied: u64) {
    let cohort = log.cohort(COHORT);
    let client = |seq| requested(7, seq, 1, put(&format!("k{seq}"), "v"));
    let first = cohort.bounds().last.seq + 1;
    let entries: Vec<_> = (first..=last).map(|seq| entry(seq, vec![client(seq)])).collect();
    cohort.submit(LogWrite::Append(entries)).unwrap();
    while log.step() {}
    let unapplied = cohort.read(table.applied().seq + 1..applied + 1, usize::MAX).unwrap();
    table.apply(&unapplied).unwrap();
}

fn purge(log: &SharedLog, seq: u64) -> Result<(), LogError> {
    let upto = Lsn::new(1, seq);
    log.cohort(COHORT).submit(LogWrite::Purge { upto })?;
    while log.step() {}
    Ok(())
}

#[track_caller]
fn assert_refused(result: Result<(), LogError>, found: u64) {
    let error = result.unwrap_err();
    let LogError::NotPersisted { cohort, persisted, .. } = error else {
        panic!("another error: {error}");
    };
    assert_eq!((cohort, persisted.seq, error.class()), (COHORT, found, LogErrorClass::Invalid));
}

fn a_purge_past_what_the_table_has_on_disk_is_refused(engine: Engine) {
    let fs = MemFs::new();
    let mut fixture = Fixture::new(engine);
    let log = open_log(&fs);
    log.protect(fixture.tables());
    assert_refused(purge(&log, 1), 0);
    let table = fixture.cohort();
    write(&log, &table, 10, 8);
    // Applied, but not on disk yet.
    assert_refused(purge(&log, 1), 0);
    fixture.tables().flush().unwrap();
    assert_refused(purge(&log, 9), 8);
    let bounds = log.cohort(COHORT).bounds();
    assert_eq!(bounds.purged, Lsn::ZERO, "a refused purge changes nothing");
    purge(&log, 5).unwrap();
    write(&log, &table, 10, 10);
    purge(&log, 8).unwrap();
    purge(&log, 3).unwrap();
    assert_refused(purge(&log, 10), 8);
    assert_eq!(log.cohort(COHORT).bounds().purged.seq, 8);

    // What is found at a start is on disk. A table that is not open speaks for nothing.
    drop((table, log));
    fixture.tables().close().unwrap();
    fixture.tables = None;
    let log = open_log(&fs.crash_with(Crash::LoseUnsynced));
    fixture.tables = Some(Tables::open(fixture.path(), fixture.options.clone()).unwrap());
    log.protect(fixture.tables());
    assert_refused(purge(&log, 9), 0);
    let table = fixture.cohort();
    assert_eq!((table.applied().seq, table.persisted().seq), (10, 10));
    purge(&log, 10).unwrap();
    fixture.tables().drop_cohort(COHORT).unwrap();
    assert_refused(purge(&log, 11), 0);
}

fn a_snapshot_lets_go_of_the_log_once_it_is_on_disk(engine: Engine) {
    let from = Fixture::new(engine);
    for number in 0..30 {
        apply(&from.cohort(), vec![put(&format!("k{number}"), "v")]);
    }
    let staged = stage(&chunks(from.cohort().snapshot().unwrap()));
    let to = Fixture::new(engine);
    let fs = MemFs::new();
    let log = open_log(&fs);
    log.protect(to.tables());
    let table = to.cohort();
    write(&log, &table, 10, 10);
    let result = table.install_in_steps(staged, &mut |step| {
        // Before the new rows are in force for good, what the log has is needed.
        assert_refused(purge(&log, 30), table.persisted().seq);
        assert!(table.persisted().seq <= 10, "{step:?}");
        match step {
            crate::cohort_table::install::InstallStep::Flipped => Err(crate::TableError::Closed),
            _ => Ok(()),
        }
    });
    result.unwrap_err();
    assert_refused(purge(&log, 30), table.persisted().seq);
    to.tables().flush().unwrap();
    purge(&log, 30).unwrap();
    assert_eq!(log.cohort(COHORT).bounds().last, Lsn::new(1, 30));
}

/// One thread applies, one flushes, and one purges as far as the log goes, again and again: what is
/// left of the log begins where the table on disk ends, or before.
fn whoever_asks_and_whenever_the_log_reaches_back_to_the_table(engine: Engine) {
    let fs = MemFs::new();
    let mut fixture = Fixture::new(engine);
    for round in 1..=3 {
        let log = open_log(&fs);
        log.protect(fixture.tables());
        let table = fixture.cohort();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    fixture.tables().flush().unwrap();
                }
            });
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let last = table.applied().seq;
                    for seq in (last.saturating_sub(20)..=last + 2).rev() {
                        let before = table.persisted().seq;
                        if purge(&log, seq).is_ok() {
                            break;
                        }
                        assert!(seq > before, "a purge up to {seq} of {before} was refused");
                    }
                }
            });
            let first = table.applied().seq + 1;
            for seq in first..first + 100_000 {
                write(&log, &table, seq, seq);
                if log.cohort(COHORT).bounds().purged.seq > first && seq > first + 50 {
                    break;
                }
            }
            is_over.store(true, Ordering::Relaxed);
        });
        let last = log.cohort(COHORT).bounds().last;
        drop((table, log));
        let table = fixture.reopen();
        let log = open_log(&fs);
        let bounds = log.cohort(COHORT).bounds();
        assert!(bounds.purged.seq > 0, "nothing was purged");
        assert!(bounds.purged.seq <= table.applied().seq, "{bounds:?}: rows are lost");
        assert_eq!(bounds.last, last);
        write(&log, &table, last.seq, last.seq);
        assert_eq!(all_rows(&table).len() as u64, last.seq - (round - 1), "rows are lost");
        // The sessions came with the rows: a retry of the last write is recognised.
        let retry = requested(7, last.seq, 1, put("again", "v"));
        let again = vec![entry(last.seq + 1, vec![retry])];
        log.cohort(COHORT).submit(LogWrite::Append(again.clone())).unwrap();
        while log.step() {}
        assert_eq!(table.apply(&again).unwrap()[0].outcomes, [was_put(last.seq - round + 1)]);
    }
}

for_each_engine!(
    a_purge_past_what_the_table_has_on_disk_is_refused,
    a_snapshot_lets_go_of_the_log_once_it_is_on_disk,
    whoever_asks_and_whenever_the_log_reaches_back_to_the_table,
);

/// Returns how far the table came, and where the log begins, after a crash behind a purge of
/// everything that is committed.
fn after_a_crash(mistake: Option<Mistake>) -> (u64, u64) {
    let fs = MemFs::new();
    let mut fixture = Fixture::new(Engine::Lsm);
    let log = open_log(&fs);
    log.protect(fixture.tables());
    let table = fixture.cohort();
    write(&log, &table, 10, 10);
    fixture.tables().flush().unwrap();
    write(&log, &table, 20, 20);
    let _refused = making(mistake, || purge(&log, 20));
    drop((table, log));
    let table = fixture.reopen();
    let log = open_log(&fs.crash_with(Crash::LoseUnsynced));
    (table.applied().seq, log.cohort(COHORT).bounds().purged.seq)
}

#[test]
fn s10_after_a_crash_the_log_reaches_back_to_the_table() {
    assert_eq!(after_a_crash(None), (10, 0));
}

#[test]
fn s10_a_log_that_is_given_up_unasked_loses_rows() {
    let (applied, purged) = after_a_crash(Some(Mistake::GivesUpUnpersisted));
    assert!(applied < purged, "{applied} of {purged}: nothing is lost");
}
