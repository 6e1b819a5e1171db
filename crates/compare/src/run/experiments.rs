//! The papers' experiments that are drawn from workloads which were driven anyway.

use crate::report::{ExperimentReport, PaperPoint, Point, Report, Role};
use crate::suite::{Axis, EXPERIMENTS, Experiment, PaperSeries, Series};

/// An experiment with fewer points than this of a series shows nothing.
const POINTS_MIN: usize = 2;

/// Returns every experiment that the report's workloads have enough points of each series of.
pub(super) fn drawn_from(report: &Report) -> Vec<ExperimentReport> {
    EXPERIMENTS.iter().filter_map(|experiment| drawn(experiment, report)).collect()
}

fn drawn(experiment: &Experiment, report: &Report) -> Option<ExperimentReport> {
    let systems = report.systems.iter().filter(|it| it.role == Role::Protocol).count();
    let of_series = |series: &Series| {
        let points = points(experiment, series, report);
        (points.len() >= POINTS_MIN * systems.max(1)).then_some(points)
    };
    let series: Option<Vec<_>> = experiment.series.iter().map(of_series).collect();
    let points = series?.concat();
    let setting = match experiment.axis {
        Axis::Throughput => "operations per second",
        Axis::Writes => "writes, percent",
    };
    Some(ExperimentReport {
        name: experiment.name.to_owned(),
        description: experiment.description.to_owned(),
        source: experiment.source.to_owned(),
        setting: setting.to_owned(),
        quantity: "median latency, milliseconds".to_owned(),
        points,
        paper: paper(experiment.paper),
    })
}

fn points(experiment: &Experiment, series: &Series, report: &Report) -> Vec<Point> {
    let mut points = Vec::new();
    for system in report.systems.iter().filter(|it| it.role == Role::Protocol) {
        for (x, name) in series.points {
            let workload = report.workloads.iter().find(|it| it.name == *name);
            let measured = workload
                .and_then(|workload| workload.systems.iter().find(|it| it.system == system.name));
            let Some(measured) = measured else { continue };
            points.push(Point {
                system: system.name.clone(),
                series: series.name.to_owned(),
                x: match experiment.axis {
                    Axis::Throughput => measured.throughput.mean,
                    Axis::Writes => *x,
                },
                y: measured.p50_us.mean / 1000.0,
                error: None,
            });
        }
    }
    points
}

/// Returns what a paper measured, as the report has it.
pub(super) fn paper(series: &[PaperSeries]) -> Vec<PaperPoint> {
    let points = series.iter().flat_map(|series| {
        series.points.iter().map(|&(x, y)| PaperPoint { series: series.name.to_owned(), x, y })
    });
    points.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Interval, Measured, System, WorkloadReport};

    #[test]
    fn an_experiment_is_drawn_if_it_has_enough_points() {
        let raft = || "raft".to_owned();
        let workload = |name: &str, throughput, p50_us| WorkloadReport {
            name: name.to_owned(),
            systems: vec![Measured {
                system: raft(),
                throughput: Interval { mean: throughput, ..Interval::default() },
                p50_us: Interval { mean: p50_us, ..Interval::default() },
                ..Measured::default()
            }],
            ..WorkloadReport::default()
        };
        let mut report = Report {
            systems: vec![System { name: raft(), ..System::default() }],
            workloads: vec![workload("write", 1000.0, 2000.0)],
            ..Report::default()
        };
        assert_eq!(drawn_from(&report), []);
        report.workloads.push(workload("write-64", 3000.0, 5000.0));
        let drawn = drawn_from(&report);
        assert_eq!(drawn.len(), 1, "there are no conditional writes to set beside them: {drawn:?}");
        let found: Vec<_> = drawn[0].points.iter().map(|point| (point.x, point.y)).collect();
        assert_eq!(found, [(1000.0, 2.0), (3000.0, 5.0)]);
    }
}
