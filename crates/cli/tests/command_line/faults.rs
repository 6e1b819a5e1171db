//! fault.

use trireme_proto::v1::{
    DiskFault, FailedDisk, Lane, LinkFault, LostOnTheWay, SetFaultsRequest, StalledDisk,
    disk_fault, link_fault,
};

use crate::command::run;
use crate::fake::Cluster;

fn lost(to: u64) -> LinkFault {
    LinkFault { to, lane: None, fate: Some(link_fault::Fate::Drop(LostOnTheWay {})) }
}

fn disk(fault: disk_fault::Fault) -> Option<DiskFault> {
    Some(DiskFault { fault: Some(fault) })
}

#[test]
fn the_node_that_is_named_is_asked_for_what_is_named() {
    let cluster = Cluster::start(3, &[]);
    let delay = Some(link_fault::Fate::DelayMs(1500));
    let beats = Some(Lane::Heartbeat.into());
    for (arguments, asked) in [
        (
            &["--to", "1", "--to", "n3", "--drop"][..],
            SetFaultsRequest { links: vec![lost(1), lost(3)], ..Default::default() },
        ),
        (
            &["--to", "1", "--lane", "heartbeat", "--delay", "1.5s"],
            SetFaultsRequest {
                links: vec![LinkFault { to: 1, lane: beats, fate: delay }],
                ..Default::default()
            },
        ),
        (
            &["--coordinator", "cut", "--disk", "stall"],
            SetFaultsRequest {
                coordinator_cut: true,
                disk: disk(disk_fault::Fault::Stall(StalledDisk {})),
                ..Default::default()
            },
        ),
        (
            &["--disk", "slow:50ms"],
            SetFaultsRequest { disk: disk(disk_fault::Fault::SlowMs(50)), ..Default::default() },
        ),
        (
            &["--disk", "fail", "--to", "1", "--drop"],
            SetFaultsRequest {
                links: vec![lost(1)],
                disk: disk(disk_fault::Fault::Fail(FailedDisk {})),
                ..Default::default()
            },
        ),
        (&["--panic"], SetFaultsRequest { panic: true, ..Default::default() }),
        (&["--heal"], SetFaultsRequest::default()),
    ] {
        let ran = run(&cluster, [&["fault", "--node", "2"], arguments].concat());
        assert_eq!(ran.out(), "", "{arguments:?}");
        let faults = &cluster.state().asked_faults;
        assert_eq!((faults.len(), &faults[&2]), (1, &asked), "{arguments:?}");
    }
    let ran = run(&cluster, ["fault", "--node", "4", "--heal"]);
    assert_eq!(ran.error(1), "the cluster has no node n4");
    let ran = run(&cluster, ["fault", "--node", "1", "--to", "5", "--drop"]);
    assert_eq!(ran.error(1), "the cluster has no node n5");
    assert!(!cluster.state().asked_faults.contains_key(&1));
}

#[test]
fn faults_that_make_no_sense_end_with_status_2() {
    let cluster = Cluster::start(1, &[]);
    for arguments in [
        &["--node", "1"][..],
        &["--heal"],
        &["--node", "1", "--to", "2"],
        &["--node", "1", "--drop"],
        &["--node", "1", "--lane", "data", "--disk", "stall"],
        &["--node", "1", "--to", "2", "--drop", "--delay", "1s"],
        &["--node", "1", "--to", "2", "--drop", "--lane", "fast"],
        &["--node", "1", "--heal", "--disk", "stall"],
        &["--node", "1", "--heal", "--panic"],
        &["--node", "1", "--disk", "slow"],
        &["--node", "1", "--disk", "slow:0s"],
        &["--node", "1", "--disk", "melt"],
        &["--node", "1", "--coordinator", "heal"],
    ] {
        let ran = run(&cluster, [&["fault"], arguments].concat());
        assert_eq!(ran.status, 2, "{arguments:?}: {ran:?}");
    }
    assert!(cluster.state().asked_faults.is_empty());
}
