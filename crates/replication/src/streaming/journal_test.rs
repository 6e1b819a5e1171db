//! What a core's side of its log writes down, and what it does not.

use std::time::Duration;

use trireme_storage::{IoId, LogWrite};
use trireme_types::{Entry, EntryKind, Lsn, NodeId};

use super::journal::{Offer, Taken};
use super::wire::HardState;
use super::{Beacon, Journal, Preceding};
use crate::core::{Effect, EpochRuns, Moment, Recovered, Ticket};
use crate::spinnaker::Spinnaker;

const LEADER: NodeId = NodeId(2);

/// Returns the journal of a log whose entries 1.1 to 1.9 are there, and committed up to 1.6.
fn journal() -> Journal<Spinnaker> {
    let mut log = EpochRuns::starting_after(Lsn::ZERO);
    (1..=9).for_each(|seq| log.append(Lsn::new(1, seq)));
    let mut journal = Journal::new(&Recovered {
        log,
        commit_point: Lsn::new(1, 6),
        applied: Lsn::new(1, 6),
        ..Recovered::nothing()
    });
    assert_eq!(writes(&mut journal), []);
    journal
}

/// Returns what was written since the last call.
fn writes(journal: &mut Journal<Spinnaker>) -> Vec<LogWrite> {
    let mut effects = Vec::new();
    journal.drain_into(&mut effects);
    let written = effects.into_iter().filter_map(|effect| match effect {
        Effect::Persist(write) => Some(write),
        _ => None,
    });
    written.collect()
}

fn entry(epoch: u64, seq: u64) -> Entry {
    Entry { lsn: Lsn::new(epoch, seq), kind: EntryKind::NoOp, payload: bytes::Bytes::new() }
}

fn behind(previous: Lsn) -> Preceding {
    let committed = Lsn::ZERO;
    Preceding { epoch: 2, previous, committed, sent: Moment::START, current_at: None }
}

/// What precedes them was purged, so it was committed, and is the leader's.
#[test]
fn entries_that_begin_before_the_log_does_are_taken() {
    let mut journal = journal();
    journal.release(5);
    assert_eq!(journal.log().purged(), Lsn::new(1, 5));
    writes(&mut journal);
    let entries: Vec<_> = (4..=9).map(|seq| entry(1, seq)).chain([entry(2, 10)]).collect();
    let taken = journal.take(&behind(Lsn::new(1, 3)), entries);
    assert_eq!(taken, Taken::Matched(Lsn::new(2, 10)));
    assert_eq!(writes(&mut journal), [LogWrite::Append(vec![entry(2, 10)])]);
}

#[test]
fn what_changes_nothing_is_not_written() {
    let mut journal = journal();
    journal.truncate_after(9);
    assert_eq!(writes(&mut journal), [], "there is nothing behind the last entry");
    journal.release(5);
    assert_eq!(writes(&mut journal), [LogWrite::Purge { upto: Lsn::new(1, 5) }]);
    journal.release(5);
    assert_eq!(writes(&mut journal), [], "it was released before");
}

/// Another history's last entry stands where the snapshot ends, and nothing behind it.
#[test]
fn a_snapshot_that_ends_where_the_log_does_truncates_nothing() {
    let mut journal = journal();
    assert_eq!(journal.offer_snapshot(Ticket(1), Lsn::new(2, 9)), Offer::Accepted);
    assert_eq!(journal.installed(Ticket(1), Lsn::new(2, 9)), [Ticket(1)]);
    assert_eq!(writes(&mut journal), [LogWrite::Purge { upto: Lsn::new(2, 9) }]);
    assert_eq!((journal.last(), journal.committed()), (Lsn::new(2, 9), Lsn::new(2, 9)));
}

/// Of two snapshots that are being installed the older is outdated: the newer is under way still.
#[test]
fn an_offer_that_a_snapshot_under_way_supersedes_waits_for_that() {
    let mut journal = journal();
    assert_eq!(journal.offer_snapshot(Ticket(1), Lsn::new(1, 7)), Offer::Accepted);
    assert_eq!(journal.offer_snapshot(Ticket(2), Lsn::new(1, 8)), Offer::Accepted);
    assert_eq!(journal.offer_snapshot(Ticket(3), Lsn::new(1, 8)), Offer::Accepted);
    assert_eq!(journal.outdated(Ticket(1)), [Ticket(1)]);
    assert_eq!(journal.offer_snapshot(Ticket(4), Lsn::new(1, 8)), Offer::Accepted, "it waits");
    assert_eq!(journal.installed(Ticket(2), Lsn::new(1, 8)), [Ticket(2), Ticket(3), Ticket(4)]);
}

/// [SPIN-70] [PAC-70] The newest commit point counts, and of one commit point the newest moment.
#[test]
fn the_newest_moment_of_the_newest_commit_point_is_known() {
    let mut journal = journal();
    let at = |millis| Moment::after_start(Duration::from_millis(millis));
    let mut hear = |committed, current_at| {
        let committed = Lsn::new(1, committed);
        let beacon = Beacon { epoch: 1, committed, sent: at(100), current_at };
        journal.take_current(at(100), LEADER, &beacon);
        journal.current()
    };
    assert_eq!(hear(6, None), None, "the leader does not know");
    assert_eq!(hear(6, Some(at(50))), Some((Lsn::new(1, 6), at(50))));
    assert_eq!(hear(6, Some(at(60))), Some((Lsn::new(1, 6), at(60))));
    assert_eq!(hear(6, Some(at(40))), Some((Lsn::new(1, 6), at(60))));
    assert_eq!(hear(7, Some(at(30))), Some((Lsn::new(1, 7), at(30))));
    assert_eq!(hear(6, Some(at(90))), Some((Lsn::new(1, 7), at(30))));
}

/// An entry is durable with the write that wrote it, not with the one before.
#[test]
fn an_entry_is_durable_with_its_own_write() {
    let mut journal = journal();
    journal.keep(HardState { promised: 1, ..HardState::default() }.encode());
    journal.propose(entry(1, 10));
    assert_eq!(writes(&mut journal).len(), 2);
    journal.on_durable(IoId(1));
    assert_eq!((journal.durable(), journal.is_durable()), (Lsn::new(1, 9), false));
    journal.on_durable(IoId(2));
    assert_eq!((journal.durable(), journal.is_durable()), (Lsn::new(1, 10), true));
}
