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
                    (one(report, at, workload))
                }
            }
        }
    }
}

/// Whether the same writes were driven by different numbers of callers.
fn has_load_curve(report: &Report) -> bool {
    report.workloads.iter().filter(|it| is_of_load_curve(it)).count() > 1
}

/// Whether a workload is one of those that write by different numbers of callers: `write`, `write-64`.
fn is_of_load_curve(workload: &WorkloadReport) -> bool {
    let callers = workload.name.strip_prefix("write").map(|rest| rest.trim_start_matches('-'));
    callers.is_some_and(|callers| callers.chars().all(|it| it.is_ascii_digit()))
}

fn one(report: &Report, at: usize, workload: &WorkloadReport) -> Markup {
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
            (workload.value_bytes) " bytes, " (workload.keys) " keys"
            @if workload.ranges > 1 { " in " (workload.ranges) " ranges" }
            @if workload.durability != report.durability.setting {
                ", durability " (workload.durability)
            }
            ". " (workload.finding)
        }
        (chart(&format!("cdf-{at}"), "How many operations were faster than a latency"))
        (table(&head, rows))
    }
}
