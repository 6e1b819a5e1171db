//! What the faults did.

use maud::{Markup, html};

use super::parts::{after, chart, digits, table};
use crate::report::{FaultReport, Report, Role, Suffered};

/// Outages up to these many milliseconds are coloured alike, from harmless to bad.
const HEAT_MS: [f64; 4] = [100.0, 500.0, 1500.0, 3000.0];

pub(super) fn section(report: &Report) -> Markup {
    html! {
        @if !report.faults.is_empty() {
            section {
                h2 { "Faults" }
                p {
                    "The longest time without an acknowledged write, from the fault on. The darker, the \
                     longer."
                }
                (heat_map(report))
                p {
                    "Acknowledged writes in each tenth of a second. The fault lasts as long as the shaded \
                     part, or longer where nodes are started in the course of it. Eight callers \
                     write and read; each waits 200 ms for one node before it asks again."
                }
                @for (at, fault) in report.faults.iter().enumerate() {
                    (one(at, fault))
                }
            }
        }
    }
}

fn heat_map(report: &Report) -> Markup {
    let names = report.systems.iter().filter(|it| it.role == Role::Protocol).map(|it| &it.name);
    let names: Vec<&String> = names.collect();
    html! {
        div.scroll {
            table.heat {
                thead { tr { th { "Fault" } @for name in &names { th { (name) } } } }
                tbody {
                    @for fault in &report.faults {
                        tr {
                            th scope="row" { (fault.name) }
                            @for name in &names {
                                (heat(fault.systems.iter().find(|it| &it.system == *name)))
                            }
                        }
                    }
                }
            }
        }
    }
}

fn heat(suffered: Option<&Suffered>) -> Markup {
    let Some(suffered) = suffered.filter(|it| it.error.is_none()) else {
        return html! { td { "not measured" } };
    };
    let outage = suffered.longest_outage_ms;
    let level = HEAT_MS.iter().filter(|limit| outage > **limit).count();
    html! {
        td class={ "heat-" (level) } {
            (digits(outage, 0)) " ms"
            @if suffered.late_in_fault_per_s == 0.0 { " (no write at its end)" }
        }
    }
}

fn one(at: usize, fault: &FaultReport) -> Markup {
    let head = [
        "System",
        "Longest outage",
        "Half again after",
        "90 %",
        "99 %",
        "Writes/s before",
        "Late in the fault",
        "p50 ms before",
        "p50 ms in it",
        "Unknown",
    ];
    let rows = fault.systems.iter().map(|it| match &it.error {
        Some(error) => vec![it.system.clone(), format!("not measured: {error}")],
        None => vec![
            it.system.clone(),
            format!("{:.0} ms", it.longest_outage_ms),
            after(it.half_after_ms),
            after(it.nine_tenths_after_ms),
            after(it.nearly_all_after_ms),
            digits(it.before_per_s, 0),
            digits(it.late_in_fault_per_s, 0),
            digits(it.write_p50_before_us / 1000.0, 2),
            digits(it.write_p50_in_fault_us / 1000.0, 2),
            it.unknown.to_string(),
        ],
    });
    html! {
        h3 { (fault.name) }
        p { (fault.description) "." }
        (chart(&format!("fault-{at}"), "Acknowledged writes per second over time"))
        (table(&head, rows))
    }
}
