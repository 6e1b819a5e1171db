//! What changed since an earlier report.
//!
//! A machine is faster on one day than on another, and then all that runs on it is. So a figure is
//! held against that of the single replica in the same round: what is compared is how many times as
//! much it is. Every round has clusters of its own, so that what differs from start to start is in the
//! intervals. These are as wide as it takes for all figures together to show no change by chance in
//! 19 of 20 reports (Bonferroni).

use crate::report::{Interval, Measured, Report, Role, WorkloadReport};
use crate::statistics::{change, quotients, shows_difference};

/// How often, of all pairs of reports in which nothing changed, chance may show a change.
const BY_CHANCE: f64 = 0.05;

/// What changed by more than chance explains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// How many figures were compared.
    pub figures: usize,
    /// A line for each figure of a system that is worse beside the single replica's than it was.
    pub worse: Vec<String>,
    /// A line for each figure of the single replica itself that is worse: the machine is, or what
    /// all systems share.
    pub shared: Vec<String>,
}

/// A figure of the workloads.
struct Figure {
    name: &'static str,
    is_better_as_more: bool,
    rounds: fn(&Measured) -> &[f64],
}

const FIGURES: [Figure; 3] = [
    Figure { name: "operations per second", is_better_as_more: true, rounds: |it| &it.rounds },
    Figure { name: "p50 in us", is_better_as_more: false, rounds: |it| &it.p50_rounds_us },
    Figure { name: "p99 in us", is_better_as_more: false, rounds: |it| &it.p99_rounds_us },
];

/// A figure of one system, as it was and as it is, round by round.
struct Compared<'a> {
    figure: &'a Figure,
    workload: &'a str,
    system: &'a str,
    is_alone: bool,
    before: Vec<f64>,
    now: Vec<f64>,
}

/// Returns what got worse since an earlier report.
///
/// # Errors
///
/// If the two reports cannot be compared: they were taken on other machines, with another durability
/// or suite, or the earlier one lacks the rounds.
pub fn changes(baseline: &Report, report: &Report) -> Result<Changes, String> {
    for (what, before, now) in [
        ("the schema", baseline.schema.to_string(), report.schema.to_string()),
        ("the suite", baseline.suite.clone(), report.suite.clone()),
        ("the processor", baseline.machine.processor.clone(), report.machine.processor.clone()),
        ("the durability", baseline.durability.setting.clone(), report.durability.setting.clone()),
        ("the engine", baseline.durability.engine.clone(), report.durability.engine.clone()),
    ] {
        if before != now {
            return Err(format!("{what} was {before} and is {now}: that cannot be compared"));
        }
    }
    let compared: Vec<Compared<'_>> = report
        .workloads
        .iter()
        .filter_map(|now| Some((baseline.workloads.iter().find(|it| it.name == now.name)?, now)))
        .flat_map(|(before, now)| compared(report, before, now))
        .collect();
    if compared.is_empty() && !report.workloads.is_empty() {
        return Err("no figure stands in both reports with its rounds".to_owned());
    }
    let confidence = 1.0 - BY_CHANCE / compared.len().max(1) as f64;
    let mut changes = Changes { figures: compared.len(), ..Changes::default() };
    for it in &compared {
        if let Some(by) = it.worse_by(confidence) {
            let lines = if it.is_alone { &mut changes.shared } else { &mut changes.worse };
            lines.push(it.line(&by));
        }
    }
    Ok(changes)
}

/// Returns the figures of a workload that both reports have.
fn compared<'a>(
    report: &Report,
    before: &WorkloadReport,
    now: &'a WorkloadReport,
) -> Vec<Compared<'a>> {
    let alone = report.systems.iter().find(|it| it.role == Role::None).map(|it| &it.name);
    fn of<'a>(workload: &'a WorkloadReport, system: &str) -> Option<&'a Measured> {
        workload.systems.iter().find(|it| it.system == system)
    }
    let both = alone.and_then(|alone| of(before, alone).zip(of(now, alone)));
    let Some((alone_before, alone_now)) = both else { return Vec::new() };
    let mut all = Vec::new();
    for measured in &now.systems {
        let Some(earlier) = of(before, &measured.system) else { continue };
        let is_alone = Some(&measured.system) == alone;
        for figure in &FIGURES {
            let beside = |measured: &Measured, alone: &Measured| {
                let (rounds, alone) = ((figure.rounds)(measured), (figure.rounds)(alone));
                if is_alone { Some(rounds.to_vec()) } else { quotients(rounds, alone) }
            };
            let both = beside(earlier, alone_before).zip(beside(measured, alone_now));
            let Some((before, now_is)) = both else { continue };
            let (workload, system) = (now.name.as_str(), measured.system.as_str());
            all.push(Compared { figure, workload, system, is_alone, before, now: now_is });
        }
    }
    all
}

impl Compared<'_> {
    /// Returns how many times as much it is as it was, if that is worse and not by chance.
    fn worse_by(&self, confidence: f64) -> Option<Interval> {
        let by = change(&self.before, &self.now, confidence)?;
        let is_worse = (by.mean < 1.0) == self.figure.is_better_as_more;
        (is_worse && shows_difference(&by)).then_some(by)
    }

    fn line(&self, by: &Interval) -> String {
        let Self { figure: Figure { name, .. }, workload, system, .. } = self;
        let beside = if self.is_alone { "" } else { ", beside one replica's," };
        let (mean, low, high) = (by.mean, by.low.unwrap_or(by.mean), by.high.unwrap_or(by.mean));
        format!(
            "{system}, {workload}: {name}{beside} are {mean:.2} times what they were \
             ({low:.2} to {high:.2})"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::System;

    /// Returns a report of one workload, in which the single replica and Raft did so many operations
    /// per second, with a little that differs from round to round.
    fn with(none: f64, raft: f64) -> Report {
        let measured = |system: &str, throughput: f64| {
            let is_alone = system == "none";
            let parts = if is_alone { [1.0; 5] } else { [0.99, 1.0, 1.02, 0.98, 1.01] };
            let rounds = |mean: f64| parts.map(|part| part * mean).to_vec();
            Measured {
                system: system.to_owned(),
                rounds: rounds(throughput),
                p50_rounds_us: rounds(1e6 / throughput),
                p99_rounds_us: rounds(5e6 / throughput),
                ..Measured::default()
            }
        };
        let workload = WorkloadReport {
            name: "write".to_owned(),
            systems: vec![measured("raft", raft), measured("none", none)],
            ..WorkloadReport::default()
        };
        let system = |name: &str, role| System { name: name.to_owned(), role, ..System::default() };
        let systems = vec![system("raft", Role::Protocol), system("none", Role::None)];
        Report { systems, workloads: vec![workload], ..Report::default() }
    }

    #[test]
    fn what_is_worse_by_more_than_chance_is_listed() {
        let before = with(2000.0, 1000.0);
        let nothing = Changes { figures: 6, ..Changes::default() };
        assert_eq!(changes(&before, &with(2010.0, 990.0)), Ok(nothing.clone()));
        assert_eq!(changes(&before, &with(2010.0, 1500.0)), Ok(nothing));
        let found = changes(&before, &with(2010.0, 800.0)).unwrap();
        assert_eq!((found.worse.len(), &found.shared), (3, &vec![]), "{found:?}");
        let line = "raft, write: operations per second, beside one replica's, are 0.80 times what \
                    they were (";
        assert!(found.worse[0].starts_with(line), "{found:?}");
    }

    #[test]
    fn a_slower_machine_makes_no_protocol_worse() {
        let found = changes(&with(2000.0, 1000.0), &with(1600.0, 800.0)).unwrap();
        assert_eq!((&found.worse, found.shared.len()), (&vec![], 3), "{found:?}");
    }

    /// Of 20 figures one is out of its 95 % interval by chance: that is no finding.
    #[test]
    fn the_more_figures_there_are_the_more_a_single_one_must_show() {
        let (before, now) = (with(2000.0, 1000.0), with(2000.0, 975.0));
        let rounds = |report: &Report| report.workloads[0].systems[0].rounds.clone();
        let by_itself = change(&rounds(&before), &rounds(&now), 0.95).unwrap();
        assert!(shows_difference(&by_itself), "{by_itself:?}");
        assert_eq!(changes(&before, &now).unwrap().worse, Vec::<String>::new());
    }

    #[test]
    fn reports_of_different_conditions_are_not_compared() {
        let mut other = with(1.0, 1.0);
        other.durability.setting = "memory".to_owned();
        assert!(changes(&with(1.0, 1.0), &other).unwrap_err().contains("durability"));
    }

    #[test]
    fn a_report_without_rounds_is_no_baseline() {
        let mut old = with(1.0, 1.0);
        old.workloads[0].systems.clear();
        assert!(changes(&old, &with(1.0, 1.0)).unwrap_err().contains("rounds"));
    }
}
