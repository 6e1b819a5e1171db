//! What the papers' experiments measured.

use maud::{Markup, html};

use super::parts::{chart, table};
use crate::report::{Report, SweepReport};

pub(super) fn section(report: &Report) -> Markup {
    html! {
        @if !report.sweeps.is_empty() {
            section {
                h2 { "The papers' own experiments" }
                p {
                    "The papers' machines were others, and their figures are theirs: what can be \
                     compared is the shape."
                }
                @for (at, sweep) in report.sweeps.iter().enumerate() {
                    (one(at, sweep))
                }
            }
        }
    }
}

fn one(at: usize, sweep: &SweepReport) -> Markup {
    let head = [sweep.setting.as_str(), "System", "Takeover ms", "In the paper, ms"];
    let of_paper = |value_s: f64| {
        let near = sweep.paper.iter().find(|(paper_s, _)| (paper_s - value_s).abs() < 1e-9);
        near.map_or_else(|| "not measured".to_owned(), |(_, milliseconds)| milliseconds.to_string())
    };
    let rows = sweep.points.iter().map(|point| {
        let takeover = match &point.error {
            Some(error) => format!("not measured: {error}"),
            None => format!("{:.1}", point.takeover_ms),
        };
        let value = format!("{} s", point.value_s);
        vec![value, point.system.clone(), takeover, of_paper(point.value_s)]
    });
    html! {
        h3 { (sweep.name) }
        p { (sweep.description) " (" (sweep.source) ")." }
        (chart(&format!("sweep-{at}"), "Time of a takeover by the setting"))
        (table(&head, rows))
    }
}
