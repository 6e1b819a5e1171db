//! What got worse since an earlier report.

use crate::report::{Interval, Report};
use crate::statistics::differ;

/// Returns a line for each figure of the workloads that is worse than in an earlier report, by more
/// than the intervals of the two explain.
///
/// # Errors
///
/// If the two reports cannot be compared: they were taken on other machines, with another durability
/// or suite.
pub fn worse(baseline: &Report, report: &Report) -> Result<Vec<String>, String> {
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
    let mut lines = Vec::new();
    for workload in &report.workloads {
        let Some(before) = baseline.workloads.iter().find(|it| it.name == workload.name) else {
            continue;
        };
        for now in &workload.systems {
            let Some(before) = before.systems.iter().find(|it| it.system == now.system) else {
                continue;
            };
            let mut compare = |figure: &str,
                               before: &Interval,
                               now_is: &Interval,
                               more_is_better| {
                let is_worse = (now_is.mean < before.mean) == more_is_better;
                if is_worse && differ(before, now_is) {
                    let (was, is) = (before.mean, now_is.mean);
                    let (system, name) = (&now.system, &workload.name);
                    lines.push(format!("{system}, {name}: {figure} was {was:.0} and is {is:.0}"));
                }
            };
            compare("operations per second", &before.throughput, &now.throughput, true);
            compare("p50 in us", &before.p50_us, &now.p50_us, false);
            compare("p99 in us", &before.p99_us, &now.p99_us, false);
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Measured, WorkloadReport};

    fn with(throughput: f64, p99_us: f64) -> Report {
        let near = |mean: f64| Interval { mean, low: Some(mean * 0.95), high: Some(mean * 1.05) };
        let measured = Measured {
            system: "raft".to_owned(),
            throughput: near(throughput),
            p99_us: near(p99_us),
            ..Measured::default()
        };
        let workload = WorkloadReport {
            name: "write".to_owned(),
            systems: vec![measured],
            ..WorkloadReport::default()
        };
        Report { workloads: vec![workload], ..Report::default() }
    }

    #[test]
    fn what_is_worse_by_more_than_chance_is_listed() {
        let before = with(1000.0, 4000.0);
        assert_eq!(worse(&before, &with(960.0, 4100.0)), Ok(vec![]));
        assert_eq!(worse(&before, &with(1500.0, 2000.0)), Ok(vec![]));
        let lines = worse(&before, &with(800.0, 6000.0)).unwrap();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[0], "raft, write: operations per second was 1000 and is 800");
    }

    #[test]
    fn reports_of_different_conditions_are_not_compared() {
        let mut other = with(1.0, 1.0);
        other.durability.setting = "memory".to_owned();
        assert!(worse(&with(1.0, 1.0), &other).unwrap_err().contains("durability"));
    }
}
