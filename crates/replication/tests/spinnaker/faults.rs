//! The mistakes of naive versions of the protocol: each breaks something that the runner sees, in a
//! scenario that the protocol passes.

use trireme_replication::spinnaker::Spinnaker;

use crate::script::faults;
use crate::script::invariants::{
    ACKNOWLEDGED_IS_READ, COMMITTED_NEVER_CHANGES, NO_GHOST, THE_SEAL_IS_KEPT,
};

fn check(script: &str, rows: &[&str], fault: &str, invariant: &str) {
    faults::check::<Spinnaker>(script, rows, fault, invariant);
}

/// The trace of Raft's figure 8 [SPIN-31]: n2 has three writes that nobody else has; n3, elected
/// without them, dies when only its own disk has its barrier; n2, elected again, gets its writes to
/// a majority, but not its barrier; and n3, whose log is of a newer epoch, takes their place.
const FIGURE_8: &str = "
    cluster nodes=3
    (run 100)
    put 2 a=kept
    (run 100)

    partition 2
    put 2 x=1
    put 2 y=1
    put 2 z=1
    crash 2
    heal

    coordinator expire 2
    tick 1100
    deliver
    coordinator step
    coordinator step
    log 3
    drop
    crash 3

    coordinator expire 3
    restart 2
    coordinator step
    tick 1100
    deliver
    coordinator step
    coordinator step
    deliver to=1
    deliver to=2
    deliver to=1 count=1
    drop to=1
    deliver to=2
    log 1
    crash 2
    drop

    coordinator expire 2
    restart 3
    run 3000
    restart 2
    run 3000
    status
    get 3 a
    get 3 x
";

#[test]
fn s1_entries_of_an_older_epoch_are_committed_with_the_barrier_only() {
    check(FIGURE_8, &["a=kept v1", "x has no value"], "S1", COMMITTED_NEVER_CHANGES);
}

/// n2 has a write that nobody else has; n3, elected without it, is asked for it and dies when only
/// its own disk has its barrier; n2, elected again, commits the write [SPIN-33].
const GHOST: &str = "
    cluster nodes=3
    (run 100)
    put 2 a=kept
    (run 100)

    partition 2
    put 2 x=1
    crash 2
    heal

    coordinator expire 2
    tick 1100
    deliver
    coordinator step
    coordinator step
    deliver to=1
    deliver to=3
    drop to=1
    get 3 x
    crash 3
    drop

    coordinator expire 3
    restart 2
    run 3000
    status
    get 2 a
    get 2 x
";

#[test]
fn s16_a_write_that_was_not_found_does_not_appear() {
    check(GHOST, &["a=kept v1", "x=1 v2"], "S16", NO_GHOST);
}

/// n1 and n3 stand against n2, whose session has ended and which does not know. Then n2's write
/// reaches n1 [SPIN-21] [SPIN-22].
const ACKNOWLEDGED_AFTER_PUBLISHING: &str = "
    cluster nodes=3
    (run 100)
    put 2 a=old
    (run 100)

    coordinator cut 2
    coordinator expire 2
    coordinator step
    tick 1050
    drop from=2
    deliver
    coordinator step
    put 2 a=new
    deliver from=2 to=1
    deliver from=1 to=2
    coordinator step
    coordinator heal 2
    run 2000
    status
    get 3 a
";

#[test]
fn s2_a_candidate_acknowledges_nothing_more_to_an_older_leader() {
    check(ACKNOWLEDGED_AFTER_PUBLISHING, &["a=old v1"], "S2", COMMITTED_NEVER_CHANGES);
}

/// n3 alone cannot reach the others, but the coordinator, where those still stand who stood in the
/// first round, when no log held anything [SPIN-23]. n1 was not told that the write is committed: a
/// replica that knew could not be had by a leader without it.
const OLD_CANDIDATES: &str = "
    cluster commit_period=5000 nodes=3
    (run 100)
    partition 3
    put 2 a=kept
    run 1600
    heal
    run 3000
    status
    get 2 a
";

#[test]
fn s3_candidates_of_old_rounds_are_not_counted() {
    check(OLD_CANDIDATES, &["a=kept v1"], "S3", COMMITTED_NEVER_CHANGES);
}

/// n2 does not know that the others have elected n3, and is asked to read [SPIN-10].
const PAUSED_LEADER: &str = "
    cluster nodes=3
    (run 100)
    put 2 a=old
    (run 100)

    coordinator cut 2
    coordinator expire 2
    partition 2
    run 1150
    put 3 a=new
    run 100
    get 2 a
    run 1000
    get 3 a
";

#[test]
fn s5_a_leader_that_lost_its_majority_reads_no_more() {
    check(PAUSED_LEADER, &["a=new v2"], "S5", ACKNOWLEDGED_IS_READ);
}

/// n3 lacks a write, n1 has lost it with its disk, and n2, which has it, is dead [SPIN-44].
const WIPED_VOTER: &str = "
    cluster nodes=3
    (run 100)
    partition 3
    put 2 a=kept
    run 100
    crash 2
    crash 1
    wipe 1
    heal
    restart 1
    coordinator expire 1
    coordinator expire 2
    run 3000
    status
    restart 2
    run 4000
    status
    get 2 a
";

#[test]
fn s14_a_replica_that_lost_its_disk_does_not_count() {
    check(WIPED_VOTER, &["a=kept v1"], "S14", COMMITTED_NEVER_CHANGES);
}

/// The same, where what n1 has lost and n3 lacks is the seal [RANGE-1].
#[test]
fn s14_a_replica_that_lost_the_seal_elects_no_leader_without_it() {
    let seal = WIPED_VOTER.replace("put 2 a=kept", "seal 2");
    check(&seal, &[], "S14", THE_SEAL_IS_KEPT);
}
