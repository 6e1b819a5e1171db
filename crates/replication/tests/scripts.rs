//! Scripts that show, line by line, what a protocol core does (house style, tests 1).

mod pacifica;
mod primary_backup;
mod script;
mod spinnaker;

use primary_backup::PrimaryBackup;
use script::{Cluster, NoCoordinator, Subject, run_scripts};
use trireme_replication::core::Recovered;
use trireme_replication::pacifica::Pacifica;
use trireme_replication::spinnaker::Spinnaker;

impl Subject for PrimaryBackup {
    type Coordinator = NoCoordinator;

    fn start(recovered: Recovered, cluster: &Cluster, _rejoins: bool) -> Self {
        Self::new(recovered, &cluster.nodes, cluster.leader)
    }
}

#[test]
fn primary_backup() {
    run_scripts::<PrimaryBackup>("primary_backup");
}

#[test]
fn spinnaker() {
    run_scripts::<Spinnaker>("spinnaker");
}

#[test]
fn pacifica() {
    run_scripts::<Pacifica>("pacifica");
}
