//! One write on its way through each protocol.

use maud::{Markup, html};

use super::parts::{chart, digits, table};
use crate::report::{Hop, PathReport, Report};

pub(super) fn section(report: &Report) -> Markup {
    html! {
        @if !report.paths.is_empty() {
            section {
                h2 { "One write on its way" }
                p {
                    "A single write, with nothing else to do: each line is a message from one node to \
                     another, each thick bar a forced write to a disk. Time goes down. The dashed line \
                     is when the client had its answer; what comes below it, no client waits for."
                }
                @for (at, path) in report.paths.iter().enumerate() {
                    (one(at, path))
                }
            }
        }
    }
}

fn one(at: usize, path: &PathReport) -> Markup {
    let head = ["us", "Node", "What"];
    let rows =
        path.hops.iter().map(|hop| vec![digits(hop.at_us, 0), format!("n{}", hop.node), what(hop)]);
    html! {
        h3 { (path.system) }
        @match &path.error {
            Some(error) => p { "Not measured: " (error) "." },
            None => {
                p {
                    "n" (path.leader) " leads; the client had its answer after "
                    (digits(path.took_us, 0)) " us."
                }
                (chart(&format!("path-{at}"), "Messages and forced writes of one write over time"))
                details {
                    summary { "Every step" }
                    (table(&head, rows))
                }
            }
        }
    }
}

fn what(hop: &Hop) -> String {
    match (hop.what.as_str(), hop.peer, hop.took_us) {
        ("sent", Some(peer), _) => format!("sends to n{peer}: {}", hop.message),
        ("received", Some(peer), _) => format!("receives from n{peer}: {}", hop.message),
        ("forced", _, Some(took)) => format!("has forced its log to disk, which took {took:.0} us"),
        ("asked", ..) => "is asked by the client".to_owned(),
        ("applied", ..) => "has applied the write".to_owned(),
        ("answered", ..) => "answers the client".to_owned(),
        (what, ..) => what.to_owned(),
    }
}
