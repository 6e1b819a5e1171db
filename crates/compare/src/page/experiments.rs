//! What the papers' experiments measured.

use maud::{Markup, html};

use super::parts::{chart, digits, short, table};
use crate::report::{ExperimentReport, Point, Report};

pub(super) fn section(report: &Report) -> Markup {
    html! {
        @if !report.experiments.is_empty() {
            section {
                h2 { "The papers' own experiments" }
                p {
                    "The papers' machines were others, and their figures are theirs: what can be \
                     compared is the shape. Figures that were read off a plot are about right."
                }
                @for (at, experiment) in report.experiments.iter().enumerate() {
                    (one(at, experiment))
                }
            }
        }
    }
}

fn one(at: usize, experiment: &ExperimentReport) -> Markup {
    let head = ["System", "Series", &experiment.setting, &experiment.quantity];
    let measured = experiment.points.iter().map(|point| {
        let Point { system, series, x, y, error } = point;
        let y = match error {
            Some(error) => format!("not measured: {error}"),
            None => digits(*y, 2),
        };
        vec![system.clone(), series.clone(), short(*x), y]
    });
    let paper = experiment.paper.iter().map(|point| {
        vec!["the paper".to_owned(), point.series.clone(), short(point.x), digits(point.y, 2)]
    });
    html! {
        h3 { (experiment.name) }
        p { (experiment.description) " (" (experiment.source) ")." }
        (chart(&format!("experiment-{at}"), &experiment.description))
        details {
            summary { "The figures" }
            (table(&head, measured.chain(paper)))
        }
    }
}
