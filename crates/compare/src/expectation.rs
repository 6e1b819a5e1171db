//! What a report is expected to show: `raft.write.p99<5ms`.

use std::fmt;
use std::str::FromStr;

use crate::report::{Measured, Report, Suffered};

/// A bound on one figure of a report.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    text: String,
    system: String,
    /// A workload or a fault.
    run: String,
    figure: Figure,
    is_upper: bool,
    bound: f64,
}

/// A figure that can be bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    Throughput,
    P50,
    P99,
    P999,
    Messages,
    ForcedWrites,
    Outage,
}

/// Every figure with its name.
const FIGURES: [(&str, Figure); 7] = [
    ("throughput", Figure::Throughput),
    ("p50", Figure::P50),
    ("p99", Figure::P99),
    ("p999", Figure::P999),
    ("messages", Figure::Messages),
    ("forced-writes", Figure::ForcedWrites),
    ("outage", Figure::Outage),
];

/// Units of time, in microseconds.
const UNITS: [(&str, f64); 3] = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];

impl Expectation {
    /// Returns what the report shows instead, if that is not what is expected.
    pub fn broken_by(&self, report: &Report) -> Option<String> {
        let Some(found) = self.found(report) else {
            return Some(format!("'{self}': the report has no such figure"));
        };
        let holds = if self.is_upper { found < self.bound } else { found > self.bound };
        let unit = if self.figure.is_time() { " us" } else { "" };
        (!holds).then(|| format!("'{self}' does not hold: it is {found:.1}{unit}"))
    }

    fn found(&self, report: &Report) -> Option<f64> {
        if self.figure == Figure::Outage {
            let fault = report.faults.iter().find(|it| it.name == self.run)?;
            let of_system = |it: &&Suffered| it.system == self.system && it.error.is_none();
            return Some(fault.systems.iter().find(of_system)?.longest_outage_ms * 1e3);
        }
        let workload = report.workloads.iter().find(|it| it.name == self.run)?;
        let measured = workload.systems.iter().find(|it| it.system == self.system)?;
        Some(self.figure.of(measured))
    }
}

impl Figure {
    const fn is_time(self) -> bool {
        matches!(self, Self::P50 | Self::P99 | Self::P999 | Self::Outage)
    }

    const fn of(self, measured: &Measured) -> f64 {
        match self {
            Self::Throughput => measured.throughput.mean,
            Self::P50 => measured.p50_us.mean,
            Self::P99 => measured.p99_us.mean,
            Self::P999 => measured.p999_us,
            Self::Messages => measured.cost.messages,
            Self::ForcedWrites => measured.cost.forced_writes,
            Self::Outage => f64::NAN,
        }
    }
}

impl FromStr for Expectation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = text.find(['<', '>']).ok_or("there is no '<' and no '>'")?;
        let (path, bound) = (&text[..at], &text[at + 1..]);
        let mut parts = path.trim().split('.');
        let (Some(system), Some(run), Some(figure), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(format!("'{path}' is not SYSTEM.WORKLOAD.FIGURE or SYSTEM.FAULT.outage"));
        };
        let Some((_, figure)) = FIGURES.into_iter().find(|(name, _)| *name == figure) else {
            let names = FIGURES.map(|(name, _)| name).join(", ");
            return Err(format!("there is no figure '{figure}'; there are {names}"));
        };
        Ok(Self {
            text: text.to_owned(),
            system: system.to_owned(),
            run: run.to_owned(),
            figure,
            is_upper: text[at..].starts_with('<'),
            bound: bound_of(figure, bound.trim())?,
        })
    }
}

/// Returns a bound: of a time, in microseconds.
fn bound_of(figure: Figure, text: &str) -> Result<f64, String> {
    let end = text.find(|it: char| !it.is_ascii_digit() && it != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: f64 =
        number.parse().map_err(|_| format!("'{text}' does not begin with a number"))?;
    match (figure.is_time(), unit) {
        (false, "") => Ok(number),
        (false, _) => Err(format!("'{text}': this figure has no unit")),
        (true, unit) => UNITS
            .into_iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, microseconds)| number * microseconds)
            .ok_or_else(|| format!("'{text}': a time ends in us, ms or s")),
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{FaultReport, Interval, WorkloadReport};

    fn report() -> Report {
        let measured = Measured {
            system: "raft".to_owned(),
            p99_us: Interval { mean: 4000.0, ..Interval::default() },
            throughput: Interval { mean: 900.0, ..Interval::default() },
            ..Measured::default()
        };
        let workload = WorkloadReport {
            name: "write".to_owned(),
            systems: vec![measured],
            ..WorkloadReport::default()
        };
        let suffered = Suffered {
            system: "raft".to_owned(),
            longest_outage_ms: 1200.0,
            ..Suffered::default()
        };
        let fault = FaultReport {
            name: "leader-kill".to_owned(),
            systems: vec![suffered],
            ..FaultReport::default()
        };
        Report { workloads: vec![workload], faults: vec![fault], ..Report::default() }
    }

    #[test]
    fn an_expectation_holds_or_says_what_is_shown_instead() {
        let broken = |text: &str| text.parse::<Expectation>().unwrap().broken_by(&report());
        for holds in
            ["raft.write.p99<5ms", "raft.write.throughput > 800", "raft.leader-kill.outage<2s"]
        {
            assert_eq!(broken(holds), None);
        }
        let found = broken("raft.write.p99<3.5ms").unwrap();
        assert_eq!(found, "'raft.write.p99<3.5ms' does not hold: it is 4000.0 us");
        assert!(broken("raft.leader-kill.outage<1s").unwrap().contains("1200000.0 us"));
        assert!(broken("paxos.write.p99<5ms").unwrap().contains("no such figure"));
    }

    #[test]
    fn what_is_no_expectation_is_refused_with_the_reason() {
        let refused = |text: &str| text.parse::<Expectation>().unwrap_err();
        assert!(refused("raft.write.p99").contains("no '<'"));
        assert!(refused("raft.p99<5ms").contains("SYSTEM.WORKLOAD.FIGURE"));
        assert!(refused("raft.write.speed<5").contains("throughput, p50"));
        assert!(refused("raft.write.p99<5").contains("us, ms or s"));
        assert!(refused("raft.write.throughput>5ms").contains("no unit"));
        assert!(refused("raft.write.p99<fast").contains("number"));
    }
}
