//! Readers beside what replaces the rows that they read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;

for_each_engine!(
    a_reader_that_takes_long_holds_up_no_other_while_rows_are_replaced,
    what_is_read_and_the_applied_point_belong_together_while_rows_are_replaced,
);

/// Long after everything should have happened.
const DEADLINE: Duration = Duration::from_secs(20);

/// Installs a snapshot of `from` in a thread of its own.
fn install(table: &CohortTable, from: &CohortTable) -> thread::JoinHandle<()> {
    let (table, staged) = (table.clone(), stage(&chunks(from.snapshot().unwrap())));
    thread::spawn(move || table.install(staged).unwrap())
}

/// Where a change of what is served waited for the readers there were, all later ones waited behind
/// it, those of rows in memory included.
fn a_reader_that_takes_long_holds_up_no_other_while_rows_are_replaced(engine: Engine) {
    let (from, to) = (Fixture::new(engine), Fixture::new(engine));
    let (source, table) = (from.cohort(), to.cohort());
    apply(&table, vec![put("a", "old")]);
    apply(&source, vec![put("a", "0")]);
    apply(&source, vec![put("a", "new")]);
    let reading = table.begin_to_read();
    let installing = install(&table, &source);
    let (found, is_found) = mpsc::channel();
    let other = table.clone();
    thread::spawn(move || {
        while get(&other, "a").is_none_or(|(value, _)| value != "new") {
            thread::sleep(Duration::from_millis(1));
        }
        // Who waited may have given up.
        let _gone = found.send(());
    });
    is_found.recv_timeout(DEADLINE).expect("another reader finds the new row");
    assert!(!installing.is_finished(), "the old rows stay while there are readers of them");
    drop(reading);
    installing.join().unwrap();
}

fn what_is_read_and_the_applied_point_belong_together_while_rows_are_replaced(engine: Engine) {
    let (from, to) = (Fixture::new(engine), Fixture::new(engine));
    let (source, table) = (from.cohort(), to.cohort());
    let is_over = Arc::<AtomicBool>::default();
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (table, is_over) = (table.clone(), Arc::clone(&is_over));
            thread::spawn(move || {
                let mut last = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let (row, applied) = table.get_with_applied(b"a").unwrap();
                    let value = row.map_or(0, |row| row.version.0);
                    assert_eq!(value, applied.seq, "each entry gave the row the next version");
                    assert!(last <= value, "{value} after {last}");
                    last = value;
                }
            })
        })
        .collect();
    for seq in 1..30_u64 {
        assert_eq!(apply(&source, vec![put("a", "value")]), [was_put(seq)]);
        install(&table, &source).join().unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
}
