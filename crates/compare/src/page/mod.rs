//! The report as one page that needs nothing but a browser.
//!
//! The tables are in the page itself; the charts are drawn by Chart.js, which is part of the page,
//! from the report's JSON, which is part of it too.

mod costs;
mod experiments;
mod faults;
pub(crate) mod parts;
mod paths;
mod workloads;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::report::{Checks, Report, System, Verdict};

/// Chart.js 4, under the MIT licence (`assets/chart.LICENSE.md`).
const CHART_JS: &str = include_str!("../../assets/chart.umd.min.js");

const SCRIPT: &str = include_str!("../../assets/page.js");

const STYLE: &str = include_str!("../../assets/page.css");

/// Returns the page.
///
/// # Errors
///
/// If the report cannot be written as JSON.
pub fn page(report: &Report) -> anyhow::Result<String> {
    // `</script` within the JSON would end the element that holds it.
    let json = serde_json::to_string(report)?.replace('<', "\\u003c");
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Trireme: the protocols side by side" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (head(report))
                    (claims(report))
                    (workloads::section(report))
                    (paths::section(report))
                    (faults::section(report))
                    (experiments::section(report))
                    (costs::section(report))
                    (conditions(report))
                }
                script type="application/json" id="report" { (PreEscaped(json)) }
                script { (PreEscaped(CHART_JS)) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    Ok(page.into_string())
}

fn head(report: &Report) -> Markup {
    html! {
        header {
            h1 { "The protocols side by side" }
            p.lead {
                "One program, one log, one router; three ways to replicate. Each cluster was asked the \
                 same, in turns, and suffered the same faults."
            }
            @if !report.is_complete {
                p.banner.unsure { "This run was interrupted: some of it is missing." }
            }
            @for error in report.errors() {
                p.banner.unsure { "Not measured: " (error) "." }
            }
            @if !report.machine.is_optimized {
                p.banner.unsure { "This is a debug build: its speeds mean nothing." }
            }
            @for handicap in &report.handicaps {
                p.banner.unsure {
                    "The callers of " (handicap.system) " were slowed down on purpose by "
                    (handicap.percent) " %."
                }
            }
            (verdict(&report.checks))
            ul.systems {
                @for system in &report.systems {
                    li {
                        span.swatch data-system=(system.name) {}
                        strong { (system.name) } " " (system.description)
                    }
                }
            }
        }
    }
}

fn verdict(checks: &Checks) -> Markup {
    let (class, verdict) = if checks.has_failed() {
        ("bad", "Consistency was violated in this run.")
    } else if checks.undecided > 0 {
        ("unsure", "No violation was found; some histories could not be decided.")
    } else if checks.histories == 0 {
        ("unsure", "Nothing was judged.")
    } else {
        ("good", "Every history is linearizable, and no acknowledged write was lost.")
    };
    html! {
        p class={ "banner " (class) } {
            strong { (verdict) } " "
            (checks.histories) " histories, " (parts::count(checks.operations)) " operations: "
            (checks.not_linearizable) " not linearizable, " (checks.undecided) " undecided, "
            (checks.lost_writes) " acknowledged writes lost, "
            (checks.wrong_timeline_reads) " wrong timeline reads."
        }
        @if !checks.findings.is_empty() {
            ul { @for finding in &checks.findings { li { (finding) } } }
        }
    }
}

fn claims(report: &Report) -> Markup {
    let class = |verdict| match verdict {
        Verdict::Holds => "good",
        Verdict::DoesNotHold => "bad",
        Verdict::NotShown => "unsure",
    };
    html! {
        @if !report.claims.is_empty() {
            section #claims {
                h2 { "What is claimed, and what this run says" }
                div.scroll {
                    table {
                        thead { tr { th { "Claim" } th { "Verdict" } th { "Figures" } } }
                        tbody {
                            @for claim in &report.claims {
                                tr {
                                    td.prose { (claim.claim) br; small { (claim.source) } }
                                    td { span class={ "tag " (class(claim.verdict)) } { (claim.verdict.words()) } }
                                    td.prose { (claim.evidence) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Says for how long a silent leader was borne.
fn patience(systems: &[System]) -> String {
    let graces: Vec<(&str, f64)> =
        systems.iter().filter_map(|it| Some((it.name.as_str(), it.grace_ms?))).collect();
    match graces.as_slice() {
        [] => String::new(),
        [(_, first), others @ ..] if others.iter().all(|(_, grace)| grace == first) => {
            format!("A silent leader was borne for {} s by all.", first / 1e3)
        }
        all => {
            let each: Vec<String> =
                all.iter().map(|(name, grace)| format!("{name} {} s", grace / 1e3)).collect();
            format!(
                "Under the faults a silent leader was borne for as long as each protocol's source \
                 has it: {}.",
                each.join(", ")
            )
        }
    }
}

fn conditions(report: &Report) -> Markup {
    let (machine, durability) = (&report.machine, &report.durability);
    let gigabytes = machine.memory_bytes as f64 / (1024.0 * 1024.0 * 1024.0);
    html! {
        section {
            h2 { "Under what conditions" }
            dl {
                dt { "Durability" }
                dd {
                    (durability.setting) " (engine " (durability.engine) "); a forced write of 4 KiB took "
                    (parts::digits(durability.forced_write_p50_us, 0)) " us at the median and "
                    (parts::digits(durability.forced_write_p99_us, 0))
                    " us at the 99th percentile in the clusters' folder"
                    @if durability.is_in_memory { ". The folder lies in memory: nothing was durable" }
                }
                dt { "Machine" }
                dd {
                    (machine.processor) ", " (machine.cores) " cores, " (parts::digits(gigabytes, 1))
                    " GiB of memory, Linux " (machine.kernel)
                    ". Nodes, coordinators and callers share it; only one cluster is driven at a time."
                }
                dt { "Run" }
                dd {
                    "Trireme " (report.trireme)
                    @if machine.is_optimized { " (optimized build)" } @else { " (debug build)" }
                    ", suite " (report.suite) ", seed " (report.seed) ", "
                    (parts::digits(report.took_s, 0))
                    " s. One range; closed loop: a caller asks again when it was answered. "
                    (patience(&report.systems))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Claim;

    #[test]
    fn nothing_in_a_report_ends_its_element() {
        let system = System { name: "</script><b>".to_owned(), ..System::default() };
        let claim = Claim { evidence: "1 < 2 & 3".to_owned(), ..Claim::default() };
        let report = Report { systems: vec![system], claims: vec![claim], ..Report::default() };
        let page = page(&report).unwrap();
        assert!(!page.contains("</script><b>") && page.contains("1 &lt; 2 &amp; 3"));
        let json = page.split("id=\"report\">").nth(1).unwrap().split("</script>").next().unwrap();
        assert_eq!(serde_json::from_str::<Report>(json).unwrap(), report);
    }

    #[test]
    fn the_page_asks_the_network_for_nothing() {
        let page = page(&Report::default()).unwrap();
        let own = page.replace(CHART_JS, "");
        for word in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!own.contains(word), "the page has {word}");
        }
    }

    #[test]
    fn the_page_says_how_long_a_silent_leader_was_borne() {
        let system =
            |name: &str, grace_ms| System { name: name.to_owned(), grace_ms, ..System::default() };
        let mut systems =
            [system("raft", Some(1000.0)), system("pacifica", Some(1000.0)), system("none", None)];
        assert_eq!(patience(&systems), "A silent leader was borne for 1 s by all.");
        systems[1].grace_ms = Some(15_000.0);
        assert!(patience(&systems).ends_with(": raft 1 s, pacifica 15 s."));
        assert_eq!(patience(&[]), "");
    }

    #[test]
    fn a_violation_is_said_in_red() {
        let mut report = Report::default();
        report.checks.lost_writes = 1;
        assert!(page(&report).unwrap().contains("class=\"banner bad\""));
    }
}
