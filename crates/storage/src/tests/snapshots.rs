//! Snapshots: the stream, its refusals, and installation with a crash at every step.

use trireme_types::limits::VALUE_BYTES_MAX;

use super::script::Script;
use super::*;
use crate::cohort_table::install::InstallStep;
use crate::{SnapshotError, TableError};

for_each_engine!(
    a_snapshot_carries_everything_to_another_node,
    rows_larger_than_a_chunk_pass,
    an_installation_replaces_what_was_there,
    older_snapshots_are_refused,
    a_stream_that_is_not_whole_is_refused,
    content_that_is_no_tables_is_refused_and_changes_nothing,
    a_crash_amid_an_installation_leaves_the_old_state_or_the_new,
    a_failed_installation_can_be_repeated,
);

/// Applies `count` entries of the script.
fn feed(table: &CohortTable, script: &mut Script, count: usize) {
    let entries: Vec<_> = (0..count).map(|_| script.next().0).collect();
    table.apply(&entries).unwrap();
}

fn a_snapshot_carries_everything_to_another_node(engine: Engine) {
    let (from, mut to) = (Fixture::new(engine), Fixture::new(engine));
    let mut script = Script::new(3);
    feed(&from.cohort(), &mut script, 300);
    let sent = chunks(from.cohort().snapshot().unwrap());
    let staged = stage(&sent);
    assert_eq!(staged.header().applied, script.model.applied);
    assert_eq!(staged.header().cohort, COHORT);
    to.cohort().install(staged).unwrap();
    script.model.check(&to.cohort());
    assert_eq!(to.cohort().persisted(), script.model.applied);
    assert_eq!(chunks(to.cohort().snapshot().unwrap()), sent);
    // Both go on alike, retries of requests from before the snapshot included, also after a crash.
    script.model.check(&to.reopen());
    let before = script.clone();
    for table in [from.cohort(), to.cohort()] {
        script = before.clone();
        for _ in 0..200 {
            let (entry, outcomes) = script.next();
            assert_eq!(table.apply(&[entry]).unwrap()[0].outcomes, outcomes);
        }
        script.model.check(&table);
    }
}

fn rows_larger_than_a_chunk_pass(engine: Engine) {
    let (from, to) = (Fixture::new(engine), Fixture::new(engine));
    let large = "v".repeat(VALUE_BYTES_MAX);
    apply(&from.cohort(), vec![put("a", "1"), put("b", &large)]);
    apply(&from.cohort(), vec![put("c", &large), put("d", "4")]);
    let sent = chunks(from.cohort().snapshot().unwrap());
    assert_eq!(sent.len(), 10);
    to.cohort().install(stage(&sent)).unwrap();
    assert_eq!(all_rows(&to.cohort()), all_rows(&from.cohort()));
    let empty = Fixture::new(engine);
    let sent = chunks(empty.cohort().snapshot().unwrap());
    assert_eq!(sent.len(), 2, "a header and an end");
    empty.cohort().install(stage(&sent)).unwrap();
    assert_eq!(empty.cohort().applied(), Lsn::ZERO);
}

fn an_installation_replaces_what_was_there(engine: Engine) {
    let (from, mut to) = (Fixture::new(engine), Fixture::new(engine));
    apply(
        &to.cohort(),
        vec![put("key-000", "old"), put("old", "1"), requested(0, 1, 1, put("", ""))],
    );
    let mut script = Script::new(5);
    feed(&from.cohort(), &mut script, 100);
    for _ in 0..3 {
        to.cohort().install(stage(&chunks(from.cohort().snapshot().unwrap()))).unwrap();
        script.model.check(&to.cohort());
        script.model.check(&to.reopen());
        feed(&from.cohort(), &mut script, 10);
    }
    // Rows outside the range stay behind.
    from.cohort().set_range(KeyRange::new("key-03", None::<&str>));
    let other = to.tables().cohort(CohortId(2), KeyRange::all()).unwrap();
    other.install(stage(&chunks(from.cohort().snapshot().unwrap()))).unwrap();
    let high = script.model.rows.keys().filter(|key| key[..] >= b"key-03"[..]).count();
    assert!(high > 0 && high < script.model.rows.len());
    assert_eq!(all_rows(&other).len(), high);
}

fn older_snapshots_are_refused(engine: Engine) {
    let fixture = Fixture::new(engine);
    let table = fixture.cohort();
    let mut script = Script::new(6);
    feed(&table, &mut script, 10);
    let sent = chunks(table.snapshot().unwrap());
    table.install(stage(&sent)).unwrap();
    feed(&table, &mut script, 1);
    let refused = table.install(stage(&sent)).unwrap_err();
    assert!(matches!(refused, TableError::OldSnapshot { .. }), "{refused}");
    script.model.check(&table);
}

fn a_stream_that_is_not_whole_is_refused(engine: Engine) {
    let fixture = Fixture::new(engine);
    let value = "v".repeat(100_000);
    for i in 0..10 {
        apply(&fixture.cohort(), vec![put(&i.to_string(), &value)]);
    }
    let sent = chunks(fixture.cohort().snapshot().unwrap());
    assert!(sent.len() >= 4);
    let dir = tempfile::tempdir().unwrap();
    let begin = || SnapshotReceiver::new(dir.path()).unwrap();
    for len in 0..sent.len() {
        let mut receiver = begin();
        sent[..len].iter().for_each(|chunk| receiver.push(chunk).unwrap());
        let refused = receiver.finish().map(drop).unwrap_err();
        assert!(matches!(refused, SnapshotError::Truncated { .. }), "{refused}");
    }
    let mut receiver = begin();
    receiver.push(&sent[0]).unwrap();
    for (chunk, what) in [(&sent[0], "repeated"), (&sent[2], "too early")] {
        let refused = receiver.push(chunk).unwrap_err();
        assert!(matches!(refused, SnapshotError::Order { .. }), "{what}: {refused}");
    }
    let mut damaged = sent[1].to_vec();
    damaged[1000] ^= 1;
    assert!(matches!(receiver.push(&damaged), Err(SnapshotError::Damaged { .. })));
    assert!(receiver.push(&vec![0; 1 << 20]).is_err() && receiver.push(&[]).is_err());
    // After all those refusals the right chunks still go through.
    sent[1..].iter().for_each(|chunk| receiver.push(chunk).unwrap());
    assert!(matches!(receiver.push(&sent[0]), Err(SnapshotError::PastEnd)));
    receiver.finish().unwrap();
    // Chunks of two streams that fit by number do not make a third one.
    apply(&fixture.cohort(), vec![put("0", &"w".repeat(100_000))]);
    let other = chunks(fixture.cohort().snapshot().unwrap());
    let mut receiver = begin();
    receiver.push(&other[0]).unwrap();
    let rest = sent[1..].iter().try_for_each(|chunk| receiver.push(chunk));
    assert!(matches!(rest, Err(SnapshotError::Damaged { .. })));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "files are left behind");
}

/// Chunks that are whole, around content that no table makes.
fn content_that_is_no_tables_is_refused_and_changes_nothing(engine: Engine) {
    use crate::snapshot::SnapshotHeader;
    let fixture = Fixture::new(engine);
    let mut script = Script::new(8);
    feed(&fixture.cohort(), &mut script, 20);
    let applied = Lsn::new(1 << 40, 1 << 40);
    let cohort = COHORT;
    let range = KeyRange::new("b", None::<&str>);
    let header = SnapshotHeader { cohort, applied, writes: 5, range, protocol: None, clock: 0 };
    let row = |key: &'static [u8], value: &'static [u8]| -> (Bytes, Bytes) {
        (Bytes::from([&[0; 13], key].concat()), Bytes::from_static(value))
    };
    const GOOD: &[u8] = b"\x01\0\0\0\0\0\0\0\x05value";
    let bad_rows = [
        row(b"c", b""),
        row(b"c", b"\x02\0\0\0\0\0\0\0\x05"),
        row(b"c", b"\x01\0\0\0\0\0\0\0\x06above the counter"),
        row(b"a", GOOD),
    ];
    let bad_sessions = [row(b"short", b"\x01"), row(&[0; 16], b"\x01"), row(&[0; 16], b"\x07")];
    let install = |sessions: Vec<(Bytes, Bytes)>, rows: Vec<(Bytes, Bytes)>| {
        let sessions = Box::new(sessions.into_iter().map(Ok));
        let rows = Box::new(rows.into_iter().map(Ok));
        let reader = SnapshotReader::new(header.clone(), sessions, rows);
        fixture.cohort().install(stage(&chunks(reader)))
    };
    for bad in bad_rows {
        let refused = install(vec![], vec![row(b"b", GOOD), bad]).unwrap_err();
        assert!(!refused.is_fatal(), "{refused}");
        script.model.check(&fixture.cohort());
    }
    for bad in bad_sessions {
        let refused = install(vec![bad], vec![row(b"b", GOOD)]).unwrap_err();
        assert!(!refused.is_fatal(), "{refused}");
        script.model.check(&fixture.cohort());
    }
    install(vec![], vec![row(b"b", GOOD)]).unwrap();
    assert_eq!(fixture.cohort().applied(), applied);
    assert_eq!(get(&fixture.cohort(), "b"), Some(("value".into(), 5)));
}

const STEPS: [InstallStep; 5] = [
    InstallStep::SomeRowsWritten,
    InstallStep::RowsWritten,
    InstallStep::RowsDurable,
    InstallStep::Flipped,
    InstallStep::FlipDurable,
];

/// Installs a large snapshot over `old` and breaks off at the step.
fn break_off(to: &Fixture, sent: &[Bytes], at: InstallStep) {
    let mut reached = false;
    let stopped = to.cohort().install_in_steps(stage(sent), &mut |step| {
        reached |= step == at;
        if step == at { Err(TableError::Closed) } else { Ok(()) }
    });
    assert!(reached && stopped.is_err(), "{at:?} was not reached");
}

/// A source with enough rows for several batches, and its script.
fn large_source(engine: Engine) -> (Fixture, Vec<Bytes>) {
    let from = Fixture::new(engine);
    feed(&from.cohort(), &mut Script::new(9), 60);
    let value = "v".repeat(10_000);
    for part in 0..3 {
        let puts = (0..100).map(|i| put(&format!("large-{part}-{i}"), &value)).collect();
        let seq = from.cohort().applied().seq + 1;
        let lsn = Lsn::new(100, seq);
        from.cohort().apply(&[Entry { lsn, ..entry(seq, puts) }]).unwrap();
    }
    let sent = chunks(from.cohort().snapshot().unwrap());
    (from, sent)
}

fn a_crash_amid_an_installation_leaves_the_old_state_or_the_new(engine: Engine) {
    let (_from, sent) = large_source(engine);
    for at in STEPS {
        let mut to = Fixture::new(engine);
        let mut script = Script::new(10);
        feed(&to.cohort(), &mut script, 40);
        let old = chunks(to.cohort().snapshot().unwrap());
        to.tables().flush().unwrap();
        break_off(&to, &sent, at);
        let found = chunks(to.reopen().snapshot().unwrap());
        assert!(found == old || found == sent, "{at:?} left a mixture");
        match at {
            InstallStep::Flipped => {}
            InstallStep::FlipDurable => assert!(found == sent, "what was durable is gone"),
            _ => assert!(found == old, "{at:?}: the old state is gone"),
        }
        // Nothing of the other generation is left, and the next installation goes through.
        let rows = to.tables().core();
        let mut generations = Vec::new();
        let all = crate::table::keys::cohort_span(COHORT);
        rows.scan(&[all], crate::table::ScanBudget::UNLIMITED, &mut |key, _| {
            generations.extend(crate::table::keys::place_of(&key).map(|place| place.generation));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        generations.dedup();
        assert_eq!(generations.len(), 2, "{at:?} left the generations {generations:?}");
        to.cohort().install(stage(&sent)).unwrap();
        assert!(chunks(to.reopen().snapshot().unwrap()) == sent);
    }
}

fn a_failed_installation_can_be_repeated(engine: Engine) {
    let (_from, sent) = large_source(engine);
    let to = Fixture::new(engine);
    let mut script = Script::new(11);
    feed(&to.cohort(), &mut script, 40);
    for at in [InstallStep::SomeRowsWritten, InstallStep::RowsWritten, InstallStep::RowsDurable] {
        break_off(&to, &sent, at);
        script.model.check(&to.cohort());
        feed(&to.cohort(), &mut script, 5);
    }
    to.cohort().install(stage(&sent)).unwrap();
    assert!(chunks(to.cohort().snapshot().unwrap()) == sent);
}
