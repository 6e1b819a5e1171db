//! What the protocols predict that a write costs, against what was measured.
//!
//! The prediction is of a write by itself: with one caller, no two writes share an entry, a message
//! or a forced write.

use crate::report::{Prediction, Report, Role, System};

/// The workload that the predictions are of: writes by one caller.
const WORKLOAD: &str = "write-1";

/// What a measured figure may differ by from the predicted one without needing an explanation.
const TOLERANCE: f64 = 0.1;

/// Compares what a write cost with what the protocol predicts, for every system.
pub(crate) fn judge(report: &Report) -> Vec<Prediction> {
    let Some(workload) = report.workloads.iter().find(|it| it.name == WORKLOAD) else {
        return Vec::new();
    };
    let systems = workload.systems.iter().filter_map(|measured| {
        let is_ours = |it: &&System| it.name == measured.system && it.role != Role::Reference;
        let system = report.systems.iter().find(is_ours)?;
        let (messages, why) = messages(system);
        let replicas = f64::from(system.nodes);
        let forced = "Every replica forces the entry to its disk once.".to_owned();
        Some([
            prediction(system, "forced writes", replicas, measured.cost.forced_writes, forced),
            prediction(system, "messages", messages, measured.cost.messages, why),
        ])
    });
    systems.flatten().collect()
}

/// Returns how many messages a write takes, and why.
fn messages(system: &System) -> (f64, String) {
    let followers = f64::from(system.nodes.saturating_sub(1));
    if followers == 0.0 {
        return (0.0, "There is no other replica.".to_owned());
    }
    let there_and_back = "The entry goes to each follower, and each acknowledges it.";
    if system.protocol == "raft" {
        // The library sends the new commit index at once in a message of its own, if no entry follows.
        let commit = "Then the Raft library sends the commit index at once, which is acknowledged too; the \
                      paper lets it wait for the next entry, which would make 4.";
        (4.0 * followers, format!("{there_and_back} {commit}"))
    } else {
        let commit = "The commit point goes with the next entry.";
        (2.0 * followers, format!("{there_and_back} {commit}"))
    }
}

fn prediction(
    system: &System,
    quantity: &str,
    predicted: f64,
    measured: f64,
    why: String,
) -> Prediction {
    let agrees = (measured - predicted).abs() <= TOLERANCE * predicted;
    let (system, quantity) = (system.name.clone(), quantity.to_owned());
    Prediction { system, quantity, predicted, measured, agrees, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Cost, Measured, WorkloadReport};

    fn judged(protocol: &str, nodes: u16, forced_writes: f64, messages: f64) -> Vec<Prediction> {
        let name = protocol.to_owned();
        let system =
            System { name: name.clone(), protocol: name.clone(), nodes, ..System::default() };
        let cost = Cost { forced_writes, messages, ..Cost::default() };
        let measured = Measured { system: name, cost, ..Measured::default() };
        let workload =
            WorkloadReport { name: WORKLOAD.into(), systems: vec![measured], ..Default::default() };
        judge(&Report { systems: vec![system], workloads: vec![workload], ..Report::default() })
    }

    #[test]
    fn a_cost_within_a_tenth_of_the_prediction_agrees() {
        let agree = |judged: Vec<Prediction>| judged.iter().map(|it| it.agrees).collect::<Vec<_>>();
        assert_eq!(agree(judged("spinnaker", 3, 2.96, 4.2)), [true, true]);
        assert_eq!(agree(judged("spinnaker", 3, 3.4, 4.5)), [false, false]);
        assert_eq!(agree(judged("raft", 3, 3.0, 7.8)), [true, true]);
        assert_eq!(agree(judged("pacifica", 5, 5.0, 8.0)), [true, true]);
        assert_eq!(agree(judged("raft", 1, 1.0, 0.0)), [true, true]);
        assert_eq!(judge(&Report::default()), []);
    }
}
