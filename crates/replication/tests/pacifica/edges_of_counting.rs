//! The edges of the rules about whom a primary counts: secondaries that make progress or fall silent,
//! candidates, and those that it has lost.

use std::time::Duration;

use trireme_replication::Role;
use trireme_replication::core::{Core as _, Event, Moment, Ticket};
use trireme_replication::pacifica::{Newest, PacificaMessage};
use trireme_types::{CohortConfig, Lsn, Timing};

use super::edges::{N1, N2, N3, NO_OP, Replica, config, lacking_one, lsns};

/// [PAC-25] A secondary that comes further without an acknowledgement, as by a snapshot, makes progress:
/// it has three leases more. That it reports the same again shows none.
#[test]
fn a_position_that_is_news_is_progress() {
    let mut replica = Replica::start(&lsns(1, 1..=3), None);
    replica.newest(2, &[N1, N2]).force().force().report(N2, 2, Lsn::ZERO);
    let mut pass = |until: u64, last: Option<u64>, asks: bool| {
        while replica.now < Moment::after_start(Duration::from_millis(10_000 + until)) {
            replica.pass(100).support(N2, 2);
            assert!(!replica.asks(), "at {}", replica.now);
        }
        if let Some(last) = last {
            // What both have is committed.
            replica
                .report(N2, 2, Lsn::new(1, last))
                .tell(Event::Applied { upto: Lsn::new(1, last) });
        }
        replica.wait(0);
        assert_eq!(replica.asks(), asks, "at {}", replica.now);
    };
    pass(2000, Some(1), false);
    pass(3000, Some(1), false);
    pass(4300, None, false);
    pass(4300, None, false);
    replica.pass(100).support(N2, 2);
    assert!(replica.asks(), "n2 made no progress for three leases");
}

/// [PAC-38] A primary wakes when a candidate counts as one that does not answer, though no beacon is due.
#[test]
fn a_primary_wakes_to_forget_a_silent_candidate() {
    let seconds = Duration::from_secs;
    let (beacon_interval, lease, grace) = (seconds(35), seconds(90), seconds(120));
    let timing = Timing { beacon_interval, lease, grace, ..Timing::default() };
    let mut replica = lacking_one(timing, 1);
    replica.report(N3, 1, Lsn::ZERO);
    assert!(replica.knows(N3));
    let end = replica.now + grace;
    while replica.knows(N3) {
        let next = replica.core.next_timeout().expect("it waits for something");
        assert!(next <= end, "{next}");
        replica.now = next.max(replica.now);
        replica.tell(Event::Timeout).support(N2, 1);
    }
    assert_eq!(replica.now, end);
}

/// [PAC-29] That a secondary was removed counts for two leases among those that fell silent together. Of
/// one alone the primary does not know whose fault it is.
#[test]
fn secondaries_that_fall_silent_together_do_so_within_two_leases() {
    let steps_down = |milliseconds: u64| {
        let mut replica = Replica::start_with(&[], None, Timing::default(), 2);
        replica.lead_three();
        let removed = CohortConfig { replicas_wanted: 3, ..config(2, &[N1, N2]) };
        replica.tell(Event::Coordination(Newest(removed))).force();
        replica.pass(milliseconds - 800).support(N2, 2).pass(800).tell(Event::Timeout);
        assert!(replica.asks() != replica.steps_down());
        replica.steps_down()
    };
    assert_eq!((steps_down(1599), steps_down(1600)), (true, false));
    let mut replica = lacking_one(Timing::default(), 2);
    replica.wait(800);
    assert!(replica.asks() && !replica.steps_down(), "n2 alone is silent");
}

/// [PAC-29] A primary that no replica has replaced, though it stepped down, does not step down for a minute
/// since its data reaches no secondary; after that it does, to the moment.
#[test]
fn a_primary_that_was_not_replaced_bears_its_secondaries_for_a_minute() {
    let mut replica = Replica::start(&[], None);
    // Nothing that it writes arrives: it steps down, and asks to go on after two graces.
    replica.lead_three().write(1).force().pass(700);
    replica.support(N2, 1).support(N3, 1).wait(100);
    assert!(replica.steps_down());
    replica.force().wait(2000);
    assert!(replica.asks());
    let found = replica.now;
    let after = |milliseconds| found + Duration::from_millis(milliseconds);
    replica.newest(2, &[N1, N2, N3]).force().force();
    for follower in [N2, N3] {
        replica.report(follower, 2, NO_OP).sent().force().prepared(follower, 2, Lsn::new(2, 3));
    }
    replica.tell(Event::Applied { upto: Lsn::new(2, 3) });
    assert_eq!(replica.committed(), 3);
    while replica.now < after(59_000) {
        replica.pass(100).support(N2, 2).support(N3, 2).wait(0);
    }
    replica.write(2).force();
    while replica.now < after(59_900) {
        replica.pass(100).support(N2, 2).support(N3, 2).wait(0);
        assert!(!replica.steps_down(), "at {}", replica.now);
    }
    replica.wait(99);
    assert!(!replica.steps_down());
    replica.wait(1);
    assert!(replica.steps_down(), "a minute has passed");
}

/// [PAC-24] What waits for the manager is refused after a second, though what is asked of it is asked again
/// at other times, and no beacon is due before.
#[test]
fn a_primary_wakes_to_refuse_what_waits_for_an_answer_of_long_ago() {
    let seconds = Duration::from_secs;
    let (beacon_interval, lease, grace) = (seconds(30), seconds(90), seconds(120));
    let timing = Timing { beacon_interval, lease, grace, ..Timing::default() };
    let mut replica = lacking_one(timing, 1);
    replica.report(N3, 1, Lsn::ZERO).sent().prepared(N3, 1, NO_OP);
    assert!(replica.asks(), "n3 is to be added");
    // It was, for all that the primary knows, and serves nothing until it knows more.
    replica.pass(300).hear(N3, PacificaMessage::RejectStaleEpoch { epoch: 2 });
    replica.tell(Event::Read { ticket: Ticket(2) });
    assert!(!replica.refuses());
    let end = replica.now + seconds(1);
    while replica.now < end {
        let next = replica.core.next_timeout().expect("it waits for something");
        assert!(next <= end, "{next}");
        replica.now = next.max(replica.now);
        replica.tell(Event::Timeout);
    }
    assert!(replica.refuses());
}

/// [PAC-20] The lease of a primary that is alone never ends: it waits for no time.
#[test]
fn a_primary_that_is_alone_waits_for_no_time() {
    let mut replica = Replica::start(&[], None);
    replica.newest(1, &[N1]).force().force().tell(Event::Applied { upto: NO_OP }).wait(1000);
    assert_eq!((replica.role(), replica.committed()), (Role::Leader, 1));
    assert_eq!(replica.core.next_timeout(), None);
}
