//! What messages cost under load, and without any.

use trireme_replication::pacifica::Pacifica;
use trireme_types::NodeId;

use crate::script::{Command, Runner};

fn run(runner: &mut Runner<Pacifica>, command: &Command) {
    runner.execute(command).expect("the command makes sense");
}

fn beacons(runner: &Runner<Pacifica>) -> u64 {
    runner.status(NodeId(1)).expect("it is alive").measures.beacons
}

/// What the primary sends anyway is a beacon, too [PAC-20] (M40).
#[test]
fn no_beacon_is_sent_under_load() {
    let mut runner = Runner::quiet();
    run(&mut runner, &Command::Cluster { nodes: 3, leader: None, options: Vec::new() });
    run(&mut runner, &Command::Run(1000));
    let idle = beacons(&runner);
    assert!(idle >= 18, "in a second without load two secondaries are sent {idle} beacons");
    for at in 0..400 {
        run(&mut runner, &Command::Put(1, vec![("a".into(), format!("v{at}"))]));
        run(&mut runner, &Command::Run(5));
    }
    assert_eq!(beacons(&runner), idle, "the puts of two seconds were not enough");
    assert_eq!(runner.invariants().history.acknowledged, 400);
}
