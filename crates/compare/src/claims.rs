//! What papers and seeds claim of the protocols, against what a run measured.
//!
//! A claim holds, or does not, or is not shown: because the run did not measure it, or because
//! the difference is within what chance makes.

use crate::report::{Claim, Measured, Point, Report, Role, Suffered, Verdict};
use crate::statistics::{ratio, shows_difference};

/// A fault that costs a protocol less than this is nothing to it: a few lost attempts of a client.
const NO_OUTAGE_MS: f64 = 300.0;

/// What serves at this part of its former throughput, or more, serves.
const SERVES_PART: f64 = 0.1;

/// What is this many times slower than before was slowed.
const SLOWED_TIMES: f64 = 2.0;

/// A read that takes fewer messages than this on average takes none: those of the background are
/// counted with it.
const NO_MESSAGE: f64 = 0.02;

/// A conditional write is marginally worse than another at worst if as many are done as this part.
const MARGINALLY_WORSE: f64 = 0.85;

/// An outage does not depend on something if the longest is not this many times the shortest.
const FLAT_TIMES: f64 = 2.0;

/// The names of the protocols.
const PROTOCOLS: [&str; 3] = ["spinnaker", "raft", "pacifica"];

/// What a run shows of a claim.
struct Shown {
    /// `None` if it was not shown.
    holds: Option<bool>,
    evidence: String,
}

/// Judges one claim; `None` if the run did not measure it.
type Judge = fn(&Report) -> Option<Shown>;

/// Judges every claim.
pub fn judge(report: &Report) -> Vec<Claim> {
    let claims: [(&str, &str, Judge); 11] = [
        (
            "Without the coordinator, Raft elects another leader; Spinnaker and PacificA wait for it.",
            "Spinnaker, section 7; PacificA, section 3; Raft, section 5.2",
            coordinator_down,
        ),
        (
            "One slow replica slows PacificA's writes, and those of no majority protocol.",
            "PacificA, section 2.1; Spinnaker, section 5",
            slow_replica,
        ),
        (
            "PacificA serves after two of three replicas were lost one after the other; the others \
             refuse.",
            "PacificA, section 2.3",
            two_lost,
        ),
        (
            "A follower's death costs PacificA its lease, and the others nothing.",
            "PacificA, figure 5",
            follower_death,
        ),
        (
            "A leader's death stops writes for about the time of detection, and every protocol \
             serves again.",
            "Spinnaker, table 1; PacificA, figure 5",
            leader_death,
        ),
        (
            "Timeline reads are cheaper than strong ones: the busiest node spends less on each.",
            "Spinnaker, figure 8",
            timeline_reads,
        ),
        (
            "Strong reads need no message under a lease; Raft's ask a majority.",
            "Spinnaker, section 8; PacificA, section 2.2; Raft (dissertation), section 6.4",
            reads_under_lease,
        ),
        (
            "The longer the commit period, the longer takes a Spinnaker leader's takeover.",
            "Spinnaker, table 1",
            commit_period,
        ),
        (
            "A write that depends on a condition costs little more than any other.",
            "Spinnaker, figure 14",
            conditional_writes,
        ),
        (
            "How long a leader's death stops writes does not depend on the length of the log.",
            "PacificA, figure 6, logical replication",
            log_size,
        ),
        ("Two clusters that do not differ measure the same.", "the control of this run", control),
    ];
    claims
        .into_iter()
        .map(|(claim, source, judged)| {
            let shown = judged(report).unwrap_or_else(|| Shown {
                holds: None,
                evidence: "This run did not measure it.".to_owned(),
            });
            let verdict = match shown.holds {
                Some(true) => Verdict::Holds,
                Some(false) => Verdict::DoesNotHold,
                None => Verdict::NotShown,
            };
            Claim {
                claim: claim.to_owned(),
                source: source.to_owned(),
                verdict,
                evidence: shown.evidence,
            }
        })
        .collect()
}

/// Returns what every protocol suffered of a fault, if all runs went well.
fn suffered<'a>(report: &'a Report, fault: &str) -> Option<[&'a Suffered; 3]> {
    let fault = report.faults.iter().find(|it| it.name == fault)?;
    let of = |name: &str| {
        let found = fault.systems.iter().find(|it| it.system == name);
        found.filter(|it| it.error.is_none())
    };
    Some([of("spinnaker")?, of("raft")?, of("pacifica")?])
}

fn measured<'a>(report: &'a Report, workload: &str, system: &str) -> Option<&'a Measured> {
    let workload = report.workloads.iter().find(|it| it.name == workload)?;
    workload.systems.iter().find(|it| it.system == system)
}

/// Whether writes went through at the end of the fault.
fn serves(suffered: &Suffered) -> bool {
    suffered.late_in_fault_per_s >= SERVES_PART * suffered.before_per_s
        && suffered.late_in_fault_per_s > 0.0
}

fn listed(all: [&Suffered; 3], figure: impl Fn(&Suffered) -> String) -> String {
    let each = all.iter().map(|it| format!("{} {}", it.system, figure(it)));
    each.collect::<Vec<_>>().join(", ")
}

fn coordinator_down(report: &Report) -> Option<Shown> {
    let all = suffered(report, "coordinator-down-leader-kill")?;
    let [spinnaker, raft, pacifica] = all;
    let holds = serves(raft) && !serves(spinnaker) && !serves(pacifica);
    let evidence = listed(all, |it| format!("{:.0} writes/s", it.late_in_fault_per_s));
    let evidence = format!("In the last second of the fault: {evidence}.");
    Some(Shown { holds: Some(holds), evidence })
}

fn slow_replica(report: &Report) -> Option<Shown> {
    let all = suffered(report, "slow-follower")?;
    let times = |it: &Suffered| it.write_p50_in_fault_us / it.write_p50_before_us.max(1.0);
    let [spinnaker, raft, pacifica] = all.map(times);
    let slowed = |times: f64| times >= SLOWED_TIMES;
    let holds = slowed(pacifica) && !slowed(spinnaker) && !slowed(raft);
    let evidence = listed(all, |it| {
        let (before, during) = (it.write_p50_before_us, it.write_p50_in_fault_us);
        format!("{:.1} ms before and {:.1} ms meanwhile", before / 1e3, during / 1e3)
    });
    Some(Shown { holds: Some(holds), evidence: format!("Median write: {evidence}.") })
}

fn two_lost(report: &Report) -> Option<Shown> {
    let all = suffered(report, "two-lost")?;
    let [spinnaker, raft, pacifica] = all;
    let holds = serves(pacifica) && !serves(spinnaker) && !serves(raft);
    let evidence = listed(all, |it| format!("{:.0} writes/s", it.late_in_fault_per_s));
    let evidence = format!("With one replica left: {evidence}.");
    Some(Shown { holds: Some(holds), evidence })
}

fn follower_death(report: &Report) -> Option<Shown> {
    let all = suffered(report, "follower-kill")?;
    let [spinnaker, raft, pacifica] = all.map(|it| it.longest_outage_ms);
    let holds = pacifica > NO_OUTAGE_MS && spinnaker <= NO_OUTAGE_MS && raft <= NO_OUTAGE_MS;
    let evidence = listed(all, |it| format!("{:.0} ms", it.longest_outage_ms));
    let evidence = format!("Longest time without an acknowledged write: {evidence}.");
    Some(Shown { holds: Some(holds), evidence })
}

fn leader_death(report: &Report) -> Option<Shown> {
    let all = suffered(report, "leader-kill")?;
    let holds = all.iter().all(|it| serves(it) && it.half_after_ms.is_some());
    let evidence = listed(all, |it| format!("{:.0} ms", it.longest_outage_ms));
    let evidence = format!("Longest time without an acknowledged write: {evidence}.");
    Some(Shown { holds: Some(holds), evidence })
}

fn timeline_reads(report: &Report) -> Option<Shown> {
    let (mut evidence, mut holds) = (Vec::new(), true);
    for system in PROTOCOLS {
        let strong = measured(report, "read-strong", system)?;
        let timeline = measured(report, "read-timeline", system)?;
        let (strong_us, timeline_us) = (strong.cost.busiest_node_us, timeline.cost.busiest_node_us);
        holds &= timeline_us < strong_us;
        evidence.push(format!(
            "{system} {strong_us:.1} us and {timeline_us:.1} us (median latency {:.0} us and \
             {:.0} us)",
            strong.p50_us.mean, timeline.p50_us.mean
        ));
    }
    let evidence = evidence.join(", ");
    let evidence = format!("Processor time of the busiest node, strong and timeline: {evidence}.");
    Some(Shown { holds: Some(holds), evidence })
}

fn reads_under_lease(report: &Report) -> Option<Shown> {
    let messages = |system| {
        let cost = &measured(report, "read-strong", system)?.cost;
        Some(cost.messages + cost.heartbeats)
    };
    let [spinnaker, raft, pacifica] =
        [messages("spinnaker")?, messages("raft")?, messages("pacifica")?];
    let holds = spinnaker < NO_MESSAGE && pacifica < NO_MESSAGE && raft > NO_MESSAGE;
    let evidence = format!(
        "Messages a strong read, shared by all that are under way: spinnaker {spinnaker:.3}, raft \
         {raft:.3}, pacifica {pacifica:.3}."
    );
    Some(Shown { holds: Some(holds), evidence })
}

fn commit_period(report: &Report) -> Option<Shown> {
    let points = points(report, "commit-period")?;
    let takeovers: Vec<f64> = points.iter().map(|point| point.y).collect();
    let each = points.iter().map(|it| format!("{} s {:.1} ms", it.x, it.y));
    let evidence = format!("Takeover by period: {}.", each.collect::<Vec<_>>().join(", "));
    Some(Shown { holds: Some(takeovers.is_sorted_by(|a, b| a < b)), evidence })
}

/// Returns the points of an experiment that went well and has at least two.
fn points<'a>(report: &'a Report, experiment: &str) -> Option<&'a [Point]> {
    let points = &report.experiments.iter().find(|it| it.name == experiment)?.points;
    let went_well = points.len() > 1 && points.iter().all(|point| point.error.is_none());
    went_well.then_some(points)
}

fn log_size(report: &Report) -> Option<Shown> {
    let points = points(report, "log-size")?;
    let outages = points.iter().map(|point| point.y);
    let (least, most) = (outages.clone().fold(f64::MAX, f64::min), outages.fold(0.0, f64::max));
    let each = points.iter().map(|it| format!("{} {} MiB {:.0} ms", it.system, it.x, it.y));
    let evidence = format!("Outage: {}.", each.collect::<Vec<_>>().join(", "));
    Some(Shown { holds: Some(most < FLAT_TIMES * least), evidence })
}

fn conditional_writes(report: &Report) -> Option<Shown> {
    let (mut evidence, mut holds) = (Vec::new(), true);
    for system in PROTOCOLS {
        let plain = measured(report, "write", system)?;
        let conditional = measured(report, "write-if", system)?;
        let part = conditional.throughput.mean / plain.throughput.mean.max(1.0);
        holds &= part >= MARGINALLY_WORSE;
        evidence.push(format!("{system} {part:.2}"));
    }
    let evidence = evidence.join(", ");
    let evidence = format!("Conditional writes per second, as a part of other writes: {evidence}.");
    Some(Shown { holds: Some(holds), evidence })
}

fn control(report: &Report) -> Option<Shown> {
    let control = report.systems.iter().find(|it| it.role == Role::Control)?;
    let workload = report.workloads.first()?;
    let again = workload.systems.iter().find(|it| it.system == control.name)?;
    let first = workload.systems.iter().find(|it| it.system == control.protocol)?;
    let ratio = ratio(&first.rounds, &again.rounds)?;
    let (low, high) = (ratio.low?, ratio.high?);
    let evidence = format!(
        "{}: {:.0} and {:.0} operations per second, {:.2} times as many ({low:.2} to {high:.2}).",
        workload.name, first.throughput.mean, again.throughput.mean, ratio.mean
    );
    Some(Shown { holds: Some(!shows_difference(&ratio)), evidence })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{ExperimentReport, FaultReport};

    fn with(fault: &str, figures: [(f64, f64); 3]) -> Report {
        let names = ["spinnaker", "raft", "pacifica"];
        let systems = names.into_iter().zip(figures).map(|(name, (late, outage))| Suffered {
            system: name.to_owned(),
            before_per_s: 1000.0,
            late_in_fault_per_s: late,
            longest_outage_ms: outage,
            ..Suffered::default()
        });
        let faults = vec![FaultReport {
            name: fault.into(),
            systems: systems.collect(),
            ..Default::default()
        }];
        Report { faults, ..Report::default() }
    }

    fn verdict(report: &Report, words: &str) -> Verdict {
        let claims = judge(report);
        claims.into_iter().find(|it| it.claim.contains(words)).expect("the claim").verdict
    }

    #[test]
    fn a_claim_holds_only_if_every_protocol_does_what_it_says() {
        let two = "after two of three";
        let lost = |figures| with("two-lost", figures);
        assert_eq!(verdict(&lost([(0.0, 1.0), (0.0, 1.0), (900.0, 1.0)]), two), Verdict::Holds);
        assert_eq!(
            verdict(&lost([(0.0, 1.0), (800.0, 1.0), (900.0, 1.0)]), two),
            Verdict::DoesNotHold
        );
        assert_eq!(
            verdict(&lost([(0.0, 1.0), (0.0, 1.0), (50.0, 1.0)]), two),
            Verdict::DoesNotHold
        );
        assert_eq!(verdict(&Report::default(), two), Verdict::NotShown);
        let follower = |figures| with("follower-kill", figures);
        let death = "follower's death";
        let figures = [(1.0, 50.0), (1.0, 60.0), (1.0, 1100.0)];
        assert_eq!(verdict(&follower(figures), death), Verdict::Holds);
    }

    #[test]
    fn a_takeover_grows_with_the_commit_period_or_does_not() {
        let swept = |takeovers: [f64; 3]| {
            let points = [0.1, 1.0, 4.0].into_iter().zip(takeovers);
            let points = points.map(|(x, y)| Point { x, y, ..Point::default() });
            let experiment = ExperimentReport {
                name: "commit-period".to_owned(),
                points: points.collect(),
                ..ExperimentReport::default()
            };
            Report { experiments: vec![experiment], ..Report::default() }
        };
        assert_eq!(verdict(&swept([5.0, 40.0, 160.0]), "commit period"), Verdict::Holds);
        assert_eq!(verdict(&swept([5.0, 40.0, 30.0]), "commit period"), Verdict::DoesNotHold);
    }

    #[test]
    fn a_run_that_failed_shows_nothing() {
        let mut report = with("two-lost", [(0.0, 1.0), (0.0, 1.0), (900.0, 1.0)]);
        report.faults[0].systems[1].error = Some("it did not start".to_owned());
        assert_eq!(verdict(&report, "after two of three"), Verdict::NotShown);
    }
}
