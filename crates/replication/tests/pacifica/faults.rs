//! The mistakes of naive versions of the protocol: each breaks something that the runner sees, in a
//! scenario that the protocol passes. One cannot, and the test of it says why.

use trireme_replication::pacifica::Pacifica;

use crate::script::faults;
use crate::script::invariants::{ACKNOWLEDGED_IS_READ, LISTED_HAVE_ALL, LOGS_MATCH};

fn check(script: &str, rows: &[&str], fault: &str, invariant: &str) {
    faults::check::<Pacifica>(script, rows, fault, invariant);
}

/// What n2 and n3 say to a beacon reaches n1 late: within its lease, but not long before their
/// graces end, which count from the beacon [PAC-20].
const LATE_ACKNOWLEDGEMENT: &str = "
    cluster nodes=3
    (run 100)
    put 1 a=old
    (run 100)

    coordinator cut 1
    tick 100
    deliver from=1
    tick 680
    drop from=1
    deliver to=1
    partition 1
    run 400
    status
    put 2 a=new
    run 50
    get 1 a

    heal
    coordinator heal 1
    run 3000
    get 2 a
";

#[test]
fn p1_a_lease_counts_from_when_the_beacon_was_sent() {
    check(LATE_ACKNOWLEDGEMENT, &["a=new v2"], "P1", ACKNOWLEDGED_IS_READ);
}

/// n2 hears nothing from n1, but n3 does, until just before n2 takes over [PAC-20].
const ONE_SECONDARY_IN_TOUCH: &str = "
    cluster nodes=3
    (run 100)
    put 1 a=old
    (run 100)

    coordinator cut 1
    cut 1 2
    run 880
    partition 1
    run 200
    status
    put 2 a=new
    run 50
    get 1 a

    heal
    coordinator heal 1
    run 3000
    get 2 a
";

#[test]
fn p2_the_leases_of_all_secondaries_are_needed() {
    check(ONE_SECONDARY_IN_TOUCH, &["a=new v2"], "P2", ACKNOWLEDGED_IS_READ);
}

/// n1 asks to have the others removed, which have removed it [PAC-23].
const BOTH_ASK: &str = "
    cluster nodes=3
    (run 100)
    put 1 a=old
    (run 100)

    coordinator cut 1
    partition 1
    run 1200
    put 2 a=new
    run 50
    get 1 a

    heal
    coordinator heal 1
    run 3000
    get 2 a
";

#[test]
fn p3_a_primary_whose_lease_has_ended_does_not_read() {
    check(BOTH_ASK, &["a=new v2"], "P3", ACKNOWLEDGED_IS_READ);
}

/// What n1 had prepared before its time was over reaches n2 and n3 when those have committed
/// something else [PAC-12].
const LATE_PREPARE: &str = "
    cluster nodes=3
    (run 100)
    put 1 a=old
    (run 100)

    coordinator cut 1
    put 1 a=late
    tick 1100
    coordinator step
    deliver from=2 to=3
    deliver from=3 to=2
    deliver from=2 to=3
    deliver from=3 to=2
    put 2 a=new
    deliver from=2 to=3
    deliver from=3 to=2
    deliver from=1
    deliver to=1

    coordinator heal 1
    run 3000
    get 2 a
";

#[test]
fn p5_nothing_of_an_older_version_is_prepared() {
    check(LATE_PREPARE, &["a=new v2"], "P5", LISTED_HAVE_ALL);
}

/// n3 is being added: the manager has installed it, and nobody knows. What is acknowledged until
/// then is at n3, should it be the only one left [PAC-37].
const CRASH_WHILE_ADDING: &str = "
    cluster nodes=3
    (run 100)
    put 1 a=old
    (run 100)

    crash 3
    run 1000
    restart 3
    run 10
    coordinator hold
    run 1500
    cut 1 3
    put 1 a=new
    run 50
    crash 1
    crash 2
    heal
    coordinator step
    run 3000
    status
    get 3 a
";

#[test]
fn p6_nothing_is_committed_without_a_replica_that_is_being_added() {
    check(CRASH_WHILE_ADDING, &["a=old v1"], "P6", LISTED_HAVE_ALL);
}

/// All lose their power when a write is on two disks and not on the primary's, which would give its
/// number out again [PAC-35].
const PRIMARY_LOSES_ITS_TAIL: &str = "
    cluster nodes=3
    (run 100)
    put 1 a=old
    (run 100)

    disk 1 stall
    put 1 a=new
    deliver
    drop
    crash 1
    crash 2
    crash 3
    disk 1 resume
    restart 1
    restart 2
    restart 3
    run 3000
    status
    get 1 a
";

#[test]
fn p7_a_restarted_primary_changes_the_version() {
    check(PRIMARY_LOSES_ITS_TAIL, &["a=old v1"], "P7", LOGS_MATCH);
}

/// n3 is being added and restarts: what it has acknowledged meanwhile is acknowledged to a client, and
/// the manager lists it then [PAC-43].
const RESTART_WHILE_ADDED: &str = "
    cluster nodes=3
    (run 100)
    put 1 a=old
    (run 100)

    crash 3
    run 1000
    restart 3
    run 10
    coordinator cut 1
    run 1500
    put 1 a=new
    deliver
    deliver
    cut 1 3
    crash 3
    restart 3
    coordinator step
    coordinator heal 1
    run 500
    crash 1
    crash 2
    heal
    run 3000
    get 3 a
";

#[test]
fn p8_a_replica_that_is_being_added_drops_nothing() {
    check(RESTART_WHILE_ADDED, &["a=new v2"], "P8", LISTED_HAVE_ALL);
}

/// n3 has more than n2, which goes on without it; then it comes back [PAC-43].
const AHEAD_AND_BACK: &str = "
    cluster nodes=3
    (run 100)
    put 1 a=old
    (run 100)

    put 1 a=lost
    put 1 b=lost
    deliver to=3
    drop
    crash 1
    partition 3
    run 2000
    get 2 a
    heal
    run 3000
    status
    log 3
    crash 2
    run 2000
    status
    get 3 a
";

/// An LSN names one entry for ever, and a primary's log holds an entry of its own version [PAC-30]. A
/// replica that has something else drops it when it comes to that entry, and none can have something
/// behind it that the primary has not. The report's serial numbers are given out again, and a
/// reconciliation of its own leaves nothing behind in the log: there the tail must go at once.
#[test]
fn p8_a_tail_that_the_primary_has_not_is_dropped_at_its_own_entry() {
    let output = faults::run::<Pacifica>(AHEAD_AND_BACK, None).expect("the protocol passes");
    faults::check_rows(&output, &["a=old v1"]);
    assert!(!output.contains("n3 1.3 a=lost"), "{output}");
}

/// n2 takes over and has not applied what n1 acknowledged [PAC-31].
const READ_BEFORE_RECONCILING: &str = "
    cluster nodes=3
    (run 100)
    put 1 a=old
    (run 100)

    put 1 a=new
    deliver
    deliver
    crash 1
    drop
    tick 1100
    coordinator step
    deliver from=2 to=3
    deliver from=3 to=2 count=1
    get 2 a
    run 2000
    get 2 a
";

#[test]
fn p9_a_new_primary_reads_when_it_has_reconciled() {
    check(READ_BEFORE_RECONCILING, &["a=new v2"], "P9", ACKNOWLEDGED_IS_READ);
}
