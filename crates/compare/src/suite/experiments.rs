//! The papers' own experiments: what is varied, what is measured, and what the papers measured.
//!
//! A [`Sweep`] needs runs of its own. An [`Experiment`] is drawn from workloads that a suite drives
//! anyway, and is part of every report that has at least two of its points.

use super::Suite;

/// An experiment in which a leader dies once for each value of a setting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sweep {
    /// How long a new leader's takeover takes, by how seldom followers learn what is committed.
    CommitPeriod,
    /// How long a leader's death stops writes, by how much log was not in tables yet.
    LogSize,
}

/// An experiment that is drawn from workloads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experiment {
    /// Its name in the report.
    pub name: &'static str,
    /// What is varied and what is measured.
    pub description: &'static str,
    /// The paper and its figure.
    pub source: &'static str,
    /// What is drawn from left to right.
    pub axis: Axis,
    /// What is measured, by workload.
    pub series: &'static [Series],
    /// What the paper measured.
    pub paper: &'static [PaperSeries],
}

/// What is drawn from left to right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// The operations per second that were measured.
    Throughput,
    /// Which part of the operations are writes, in percent: the first number of each point.
    Writes,
}

/// Workloads that differ in one respect alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Series {
    /// What they have in common.
    pub name: &'static str,
    /// A number for [`Axis::Writes`], and the workload.
    pub points: &'static [(f64, &'static str)],
}

/// What a paper measured. Its machines were others: what can be compared is the shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PaperSeries {
    /// What it was.
    pub name: &'static str,
    /// From left to right, in the experiment's units.
    pub points: &'static [(f64, f64)],
}

/// Every experiment. Figures that were read off a plot are about right.
pub const EXPERIMENTS: [Experiment; 5] = [
    Experiment {
        name: "reads",
        description: "median latency of reads by more and more callers",
        source: "Spinnaker, figure 8",
        axis: Axis::Throughput,
        series: &[
            Series {
                name: "strong",
                points: &[
                    (1.0, "read-strong-1"),
                    (4.0, "read-strong-4"),
                    (16.0, "read-strong"),
                    (64.0, "read-strong-64"),
                ],
            },
            Series {
                name: "timeline",
                points: &[
                    (1.0, "read-timeline-1"),
                    (4.0, "read-timeline-4"),
                    (16.0, "read-timeline"),
                    (64.0, "read-timeline-64"),
                ],
            },
        ],
        paper: &[
            PaperSeries {
                name: "strong",
                points: &[
                    (6000.0, 1.6),
                    (12_000.0, 1.7),
                    (23_000.0, 1.7),
                    (39_000.0, 2.0),
                    (46_700.0, 3.4),
                    (47_000.0, 6.9),
                ],
            },
            PaperSeries {
                name: "timeline",
                points: &[
                    (10_500.0, 0.85),
                    (20_500.0, 0.85),
                    (30_500.0, 1.2),
                    (48_500.0, 1.55),
                    (57_700.0, 2.65),
                    (58_000.0, 5.3),
                ],
            },
        ],
    },
    Experiment {
        name: "writes",
        description: "median latency of writes by more and more callers",
        source: "Spinnaker, figure 9",
        axis: Axis::Throughput,
        series: &[Series {
            name: "write",
            points: &[
                (1.0, "write-1"),
                (4.0, "write-4"),
                (16.0, "write"),
                (64.0, "write-64"),
                (256.0, "write-256"),
            ],
        }],
        paper: &[PaperSeries {
            name: "write",
            points: &[
                (150.0, 65.3),
                (410.0, 72.6),
                (710.0, 70.4),
                (1240.0, 72.8),
                (2330.0, 73.2),
                (4100.0, 80.5),
            ],
        }],
    },
    Experiment {
        name: "mixed",
        description: "median latency of two callers' operations, by which part of them are writes",
        source: "Spinnaker, figure 12",
        axis: Axis::Writes,
        series: &[
            Series {
                name: "strong",
                points: &[(10.0, "writes-10"), (30.0, "writes-30"), (50.0, "writes-50")],
            },
            Series {
                name: "timeline",
                points: &[(10.0, "writes-10-timeline"), (50.0, "writes-50-timeline")],
            },
        ],
        paper: &[
            PaperSeries {
                name: "strong",
                points: &[(10.0, 9.2), (20.0, 16.8), (30.0, 23.5), (40.0, 32.4), (50.0, 36.8)],
            },
            PaperSeries {
                name: "timeline",
                points: &[(10.0, 7.8), (20.0, 15.1), (30.0, 22.3), (40.0, 30.9), (50.0, 35.9)],
            },
        ],
    },
    Experiment {
        name: "conditional-writes",
        description: "median latency of conditional writes and of others by more and more callers",
        source: "Spinnaker, figure 14",
        axis: Axis::Throughput,
        series: &[
            Series {
                name: "conditional",
                points: &[
                    (1.0, "write-if-1"),
                    (4.0, "write-if-4"),
                    (16.0, "write-if"),
                    (64.0, "write-if-64"),
                ],
            },
            Series {
                name: "write",
                points: &[(1.0, "write-1"), (4.0, "write-4"), (16.0, "write"), (64.0, "write-64")],
            },
        ],
        paper: &[
            PaperSeries {
                name: "conditional",
                points: &[
                    (140.0, 66.0),
                    (380.0, 72.0),
                    (650.0, 70.0),
                    (1110.0, 73.0),
                    (2080.0, 73.0),
                    (3940.0, 80.0),
                ],
            },
            PaperSeries {
                name: "write",
                points: &[
                    (150.0, 65.0),
                    (410.0, 72.0),
                    (710.0, 70.0),
                    (1240.0, 73.0),
                    (2330.0, 73.0),
                    (4100.0, 80.0),
                ],
            },
        ],
    },
    Experiment {
        name: "memory-log",
        description: "median latency of writes that are acknowledged once a majority has them in \
                      memory, by more and more callers",
        source: "Spinnaker, figure 16",
        axis: Axis::Throughput,
        series: &[Series {
            name: "in memory",
            points: &[
                (1.0, "memory-1"),
                (4.0, "memory-4"),
                (16.0, "memory-16"),
                (64.0, "memory-64"),
            ],
        }],
        paper: &[PaperSeries {
            name: "in memory",
            points: &[
                (4200.0, 1.87),
                (12_200.0, 1.97),
                (17_300.0, 1.98),
                (18_100.0, 2.6),
                (18_200.0, 3.75),
                (19_100.0, 7.5),
            ],
        }],
    },
];

impl Sweep {
    /// Returns its name in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CommitPeriod => "commit-period",
            Self::LogSize => "log-size",
        }
    }

    /// Returns what is varied and what is measured.
    pub const fn description(self) -> &'static str {
        match self {
            Self::CommitPeriod => {
                "how long a new leader's takeover takes, without the time in which the death of the \
                 former is noticed, by how seldom followers learn what is committed"
            }
            Self::LogSize => {
                "how long a leader's death stops writes, by the bytes of log that no table file has \
                 yet"
            }
        }
    }

    /// Returns the paper and its table.
    pub const fn source(self) -> &'static str {
        match self {
            Self::CommitPeriod => "Spinnaker, table 1",
            Self::LogSize => "PacificA, figure 6",
        }
    }

    /// Returns the setting and its unit, in words.
    pub const fn setting(self) -> &'static str {
        match self {
            Self::CommitPeriod => "commit period, seconds",
            Self::LogSize => "log, MiB",
        }
    }

    /// Returns what is measured and its unit, in words.
    pub const fn quantity(self) -> &'static str {
        match self {
            Self::CommitPeriod => "takeover, milliseconds",
            Self::LogSize => "outage, milliseconds",
        }
    }

    /// Returns what the paper measured.
    pub const fn paper(self) -> &'static [PaperSeries] {
        match self {
            Self::CommitPeriod => &[PaperSeries {
                name: "takeover",
                points: &[(1.0, 400.0), (5.0, 1500.0), (10.0, 2600.0), (15.0, 4000.0)],
            }],
            Self::LogSize => &[
                PaperSeries {
                    name: "logical",
                    points: &[(25.0, 1000.0), (100.0, 1000.0), (400.0, 1000.0)],
                },
                PaperSeries {
                    name: "layered",
                    points: &[(25.0, 1000.0), (100.0, 3000.0), (400.0, 11_000.0)],
                },
            ],
        }
    }
}

impl Suite {
    /// Returns the sweeps that it has, with the values of their settings: seconds, or MiB.
    pub fn sweeps(self) -> Vec<(Sweep, Vec<f64>)> {
        let commit_period = |values: &[f64]| (Sweep::CommitPeriod, values.to_vec());
        let log_size = |values: &[f64]| (Sweep::LogSize, values.to_vec());
        match self {
            Self::Tiny => Vec::new(),
            Self::Quick => vec![commit_period(&[0.1, 1.0, 3.0])],
            Self::Standard => {
                vec![commit_period(&[0.1, 1.0, 5.0, 15.0]), log_size(&[1.0, 25.0, 100.0])]
            }
            Self::Full => {
                vec![
                    commit_period(&[0.1, 1.0, 5.0, 10.0, 15.0]),
                    log_size(&[1.0, 25.0, 100.0, 400.0]),
                ]
            }
            Self::Spinnaker => vec![commit_period(&[0.1, 1.0, 5.0, 10.0, 15.0])],
            Self::Pacifica => vec![log_size(&[1.0, 25.0, 100.0, 400.0])],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::workload;

    #[test]
    fn every_point_of_an_experiment_is_a_workload() {
        for experiment in EXPERIMENTS {
            for (_, name) in experiment.series.iter().flat_map(|series| series.points) {
                assert!(workload(name).is_ok(), "{}: {name}", experiment.name);
            }
        }
    }

    #[test]
    fn the_spinnaker_suite_has_every_experiment_of_its_paper() {
        let driven: Vec<_> = Suite::Spinnaker.workloads().iter().map(|it| it.name).collect();
        for experiment in EXPERIMENTS {
            for series in experiment.series {
                let of_series = series.points.iter().filter(|(_, name)| driven.contains(name));
                assert!(of_series.count() >= 2, "{}, {}", experiment.name, series.name);
            }
        }
    }
}
