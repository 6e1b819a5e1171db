//! What operations cost, and what the protocols predict.

use maud::{Markup, html};

use super::parts::{chart, digits, table};
use crate::report::{Report, Role};

pub(super) fn section(report: &Report) -> Markup {
    html! {
        @if !report.workloads.is_empty() {
            section {
                h2 { "What an operation costs" }
                p {
                    "Of all nodes together. Operations that are under way at the same time share \
                     messages, entries of the log and forced writes."
                }
                (chart("cost", "Processor time of an operation by workload and system"))
                (of_operations(report))
                @if !report.predictions.is_empty() {
                    h3 { "Measured and predicted" }
                    p { "Of a write by a single caller, which shares nothing with another." }
                    (predicted(report))
                }
                h3 { "Idle" }
                p { "What a cluster with one range uses while it is asked for nothing." }
                (idle(report))
            }
        }
    }
}

fn of_operations(report: &Report) -> Markup {
    let head = [
        "Workload",
        "System",
        "Processor us",
        "of the busiest node",
        "Messages",
        "Heartbeats",
        "Bytes between nodes",
        "Forced writes",
        "Bytes of log",
        "Entries of log",
    ];
    let rows = report.workloads.iter().flat_map(|workload| {
        workload.systems.iter().map(|it| {
            let (name, system) = (workload.name.clone(), it.system.clone());
            let processor = digits(it.cost.processor_us, 1);
            let busiest = digits(it.cost.busiest_node_us, 1);
            if is_reference(report, &it.system) {
                return vec![name, system, processor, busiest, "not known".to_owned()];
            }
            vec![
                name,
                system,
                processor,
                busiest,
                digits(it.cost.messages, 2),
                digits(it.cost.heartbeats, 2),
                digits(it.cost.network_bytes, 0),
                digits(it.cost.forced_writes, 3),
                digits(it.cost.log_bytes, 0),
                digits(it.cost.log_entries, 3),
            ]
        })
    });
    table(&head, rows)
}

fn is_reference(report: &Report, system: &str) -> bool {
    report.systems.iter().any(|it| it.name == system && it.role == Role::Reference)
}

fn predicted(report: &Report) -> Markup {
    let head = ["System", "What", "Predicted", "Measured", "Within 10 %", "Why"];
    let rows = report.predictions.iter().map(|it| {
        vec![
            it.system.clone(),
            it.quantity.clone(),
            digits(it.predicted, 0),
            digits(it.measured, 2),
            if it.agrees { "yes" } else { "no" }.to_owned(),
            it.why.clone(),
        ]
    });
    table(&head, rows)
}

fn idle(report: &Report) -> Markup {
    let head =
        ["System", "Heartbeats/s", "Other messages/s", "Forced writes/s", "Processor, % of a core"];
    let known = report.idle.iter().filter(|it| !is_reference(report, &it.system));
    let rows = known.map(|it| {
        vec![
            it.system.clone(),
            digits(it.heartbeats_per_s, 1),
            digits(it.messages_per_s, 1),
            digits(it.forced_writes_per_s, 1),
            digits(it.processor_part * 100.0, 1),
        ]
    });
    table(&head, rows)
}
