//! What the workloads measured.

use maud::{Markup, html};

use super::parts::{chart, digits, interval, table};
use crate::report::{Report, WorkloadReport};

pub(super) fn section(report: &Report) -> Markup {
    html! {
        @if !report.workloads.is_empty() {
            section {
                h2 { "Throughput" }
                p {
                    "Operations per second, the mean of the rounds; the lines are 95 % confidence \
                     intervals. Two protocols are said to differ only where the interval of their ratio, \
                     taken round by round, does not contain 1."
                }
                (chart("throughput", "Throughput of each workload by system"))
            }
            @if has_load_curve(report) {
                section {
                    h2 { "Throughput against latency" }
                    p { "The same writes by more and more callers: each point is one workload." }
                    (chart("load", "Median latency of writes against their throughput"))
                }
            }
            section {
                h2 { "Latency" }
                @for (at, workload) in report.workloads.iter().enumerate() {
                    (one(at, workload))
                }
            }
        }
    }
}

/// Whether the same writes were driven by different numbers of callers.
fn has_load_curve(report: &Report) -> bool {
    report.workloads.iter().filter(|workload| workload.name.starts_with("write")).count() > 1
}

fn one(at: usize, workload: &WorkloadReport) -> Markup {
    let head = ["System", "Operations/s", "p50 ms", "p99 ms", "p99.9 ms", "Failed", "Unknown"];
    let rows = workload.systems.iter().map(|it| {
        vec![
            it.system.clone(),
            interval(&it.throughput, 1.0, 0),
            interval(&it.p50_us, 1000.0, 2),
            interval(&it.p99_us, 1000.0, 2),
            digits(it.p999_us / 1000.0, 2),
            it.failed.to_string(),
            it.unknown.to_string(),
        ]
    });
    html! {
        h3 { (workload.name) }
        p {
            (workload.description) "; " (workload.callers) " callers, values of "
            (workload.value_bytes) " bytes, " (workload.keys) " keys. " (workload.finding)
        }
        (chart(&format!("cdf-{at}"), "How many operations were faster than a latency"))
        (table(&head, rows))
    }
}
