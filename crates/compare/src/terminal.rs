//! A comparison in a few tables, for the terminal.

use std::fmt::Write;

use comfy_table::{ContentArrangement, Table, presets};

use crate::page::parts::short;
use crate::report::{Interval, Report};

/// Returns the summary.
pub fn summary(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |line: String| {
        writeln!(text, "{line}").expect("a string takes every line");
    };
    let durability = &report.durability;
    line(format!(
        "durability {}, engine {}; a forced write of 4 KiB took {:.0} us here{}",
        durability.setting,
        durability.engine,
        durability.forced_write_p50_us,
        if durability.is_in_memory { ", in memory: nothing was durable" } else { "" },
    ));
    for workload in &report.workloads {
        line(format!(
            "\n{} ({} callers): {}",
            workload.name, workload.callers, workload.description
        ));
        let mut table = table(&["system", "ops/s", "p50 us", "p99 us", "p99.9 us", "failed"]);
        for it in &workload.systems {
            table.add_row([
                it.system.clone(),
                interval(&it.throughput),
                interval(&it.p50_us),
                interval(&it.p99_us),
                format!("{:.0}", it.p999_us),
                it.failed.to_string(),
            ]);
        }
        line(table.to_string());
        if !workload.finding.is_empty() {
            line(workload.finding.clone());
        }
    }
    for fault in &report.faults {
        line(format!("\n{}: {}", fault.name, fault.description));
        let mut table = table(&[
            "system",
            "longest outage",
            "half after",
            "90 % after",
            "late in it",
            "unknown",
        ]);
        for it in &fault.systems {
            let milliseconds =
                |after: Option<f64>| after.map_or("never".to_owned(), |it| format!("{it:.0} ms"));
            table.add_row(match &it.error {
                Some(error) => vec![it.system.clone(), format!("not measured: {error}")],
                None => vec![
                    it.system.clone(),
                    format!("{:.0} ms", it.longest_outage_ms),
                    milliseconds(it.half_after_ms),
                    milliseconds(it.nine_tenths_after_ms),
                    format!("{:.0}/s", it.late_in_fault_per_s),
                    it.unknown.to_string(),
                ],
            });
        }
        line(table.to_string());
    }
    for experiment in &report.experiments {
        line(format!("\n{}: {} ({})", experiment.name, experiment.description, experiment.source));
        let head = ["system", "series", &experiment.setting, &experiment.quantity];
        let mut table = table(&head);
        for point in &experiment.points {
            let y = match &point.error {
                Some(error) => format!("not measured: {error}"),
                None => format!("{:.2}", point.y),
            };
            let (system, series) = (point.system.clone(), point.series.clone());
            table.add_row([system, series, short(point.x), y]);
        }
        line(table.to_string());
    }
    if !report.claims.is_empty() {
        line("\nclaims".to_owned());
        for claim in &report.claims {
            line(format!("- {}: {} {}", claim.verdict.words(), claim.claim, claim.evidence));
        }
    }
    line(format!("\n{}", checks(report)));
    text
}

/// Returns what the judge found, in a line or a few.
pub fn checks(report: &Report) -> String {
    let checks = &report.checks;
    let verdict = if checks.has_failed() { "VIOLATED" } else { "kept" };
    let counts = format!(
        "consistency {verdict}: {} histories, {} operations; {} not linearizable, {} undecided, \
         {} lost writes, {} wrong timeline reads",
        checks.histories,
        checks.operations,
        checks.not_linearizable,
        checks.undecided,
        checks.lost_writes,
        checks.wrong_timeline_reads,
    );
    let lines = checks.findings.iter().map(|finding| format!("\n- {finding}"));
    std::iter::once(counts).chain(lines).collect()
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.to_vec());
    table
}

fn interval(interval: &Interval) -> String {
    match interval.high {
        Some(high) => format!("{:.0} ± {:.0}", interval.mean, high - interval.mean),
        None => format!("{:.0}", interval.mean),
    }
}
