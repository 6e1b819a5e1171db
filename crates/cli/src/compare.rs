//! `trireme compare`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use parking_lot::Mutex;
use trireme_compare::expectation::Expectation;
use trireme_compare::report::{Handicap, Report};
use trireme_compare::run::{Progress as Step, Without};
use trireme_compare::suite::{Fault, Suite, Timeouts, Workload, fault, workload};
use trireme_compare::{Options, Run, baseline, page, terminal};
use trireme_types::{Durability, Engine, Protocol};

use super::output;
use super::progress::Progress;
use super::stopping::stop_signal;

/// A progress bar has this many steps.
const STEPS: u64 = 1000;

/// Arguments of `trireme compare`.
#[derive(Args)]
pub(crate) struct CompareArgs {
    /// The protocols to compare.
    #[arg(long, value_delimiter = ',', default_value = "spinnaker,raft,pacifica")]
    protocols: Vec<Protocol>,
    /// What to run: tiny (seconds, to try it out), quick (at most five minutes), standard (about 45
    /// minutes), full (hours); spinnaker or pacifica (that paper's experiments).
    #[arg(long, value_enum, default_value = "quick")]
    suite: Suite,
    /// Another store to drive beside the protocols, in the workloads; it must be installed.
    #[arg(long, value_name = "STORE")]
    against: Option<Other>,
    /// A workload to drive instead of the suite's; may be given more than once; 'none' for none.
    #[arg(long = "workload", value_name = "NAME", value_parser = named_workload)]
    workloads: Vec<Choice<Workload>>,
    /// A fault to suffer instead of the suite's; may be given more than once; 'none' for none.
    #[arg(long = "fault", value_name = "NAME", value_parser = named_fault)]
    faults: Vec<Choice<Fault>>,
    /// Has each protocol bear a silent leader for as long as its paper or library does, not all for
    /// a second. Each fault then lasts four times the longest of these, a minute with PacificA.
    #[arg(long)]
    native_timeouts: bool,
    /// The folder that the report is written to; made if it is not there.
    #[arg(long, value_name = "DIR", default_value = "trireme-report")]
    out: PathBuf,
    /// What all choices are made from: the same seed asks the same.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The storage engine: lsm or sled.
    #[arg(long, default_value_t)]
    engine: Engine,
    /// What an acknowledged write has survived: fsync, os or memory.
    #[arg(long, default_value_t)]
    durability: Durability,
    /// The folder that each cluster's own is made in. [default: the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// An earlier report.json: what is worse than in it, by more than chance explains, is printed.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// What the report is to show, such as 'raft.write.p99<5ms' or 'spinnaker.leader-kill.outage<2s';
    /// if it does not, the command fails. May be given more than once.
    #[arg(long = "assert", value_name = "SYSTEM.RUN.FIGURE<BOUND")]
    expectations: Vec<Expectation>,
    /// Slows the callers of a system down in the workloads, to see whether the report shows it: a
    /// name and a part of the latency in percent, such as raft:20.
    #[arg(long = "handicap", value_name = "SYSTEM:PERCENT", value_parser = handicap, hide = true)]
    handicaps: Vec<Handicap>,
    /// Has nodes that have lost their disk make a mistake, to see whether the report shows it.
    #[arg(long = "mistake", value_name = "NAME", hide = true)]
    mistakes: Vec<String>,
    /// Prints the report as JSON instead of the summary.
    #[arg(long)]
    json: bool,
}

/// A store that can stand beside the protocols.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Other {
    /// Three members of etcd.
    Etcd,
}

/// One of those that there are, or none at all.
#[derive(Clone, Copy, Debug)]
enum Choice<T> {
    None,
    Of(T),
}

fn handicap(text: &str) -> Result<Handicap, String> {
    let (system, percent) = text.split_once(':').ok_or("a system, a colon and a percentage")?;
    let percent = percent.parse().map_err(|_| format!("'{percent}' is no percentage"))?;
    Ok(Handicap { system: system.to_owned(), percent })
}

fn named_workload(name: &str) -> Result<Choice<Workload>, String> {
    if name == "none" { Ok(Choice::None) } else { workload(name).map(Choice::Of) }
}

fn named_fault(name: &str) -> Result<Choice<Fault>, String> {
    if name == "none" { Ok(Choice::None) } else { fault(name).map(Choice::Of) }
}

/// Returns what was chosen, and whether that is nothing.
fn chosen<T: Copy>(choices: &[Choice<T>]) -> (Vec<T>, bool) {
    let named = choices.iter().filter_map(|choice| match choice {
        Choice::None => None,
        Choice::Of(item) => Some(*item),
    });
    let named: Vec<T> = named.collect();
    let is_nothing = !choices.is_empty() && named.is_empty();
    (named, is_nothing)
}

impl CompareArgs {
    /// Runs the comparison and writes the report, also when it is interrupted. Fails if consistency
    /// was violated.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        // Read first: it may be what this run will replace, and a bad one is to cost no minutes.
        let baseline = self.baseline.as_deref().map(read).transpose()?;
        fs::create_dir_all(&self.out)
            .with_context(|| format!("making the folder {}", self.out.display()))?;
        let stopped = stop_signal(false)?;
        let (mut bar, step) = (Progress::start(Some(STEPS)), Arc::new(Mutex::new(None)));
        let newest = Arc::clone(&step);
        let run = Run::new(self.options()?, move |step| *newest.lock() = Some(step));
        let outcome = tokio::select! {
            outcome = watched(&run, &mut bar, &step) => outcome,
            // The run is dropped, which stops its clusters; what it has found is kept.
            () = stopped => Err(anyhow::anyhow!("interrupted")),
        };
        bar.end();
        let report = run.report();
        self.write(&report)?;
        outcome?;
        if let Some(baseline) = baseline {
            self.print_worse(&baseline, &report)?;
        }
        let broken = self.expectations.iter().filter_map(|it| it.broken_by(&report));
        let broken: Vec<String> = broken.collect();
        if report.checks.has_failed() {
            bail!("consistency was violated; {} says where", self.page().display());
        }
        let errors = report.errors();
        if !errors.is_empty() {
            bail!("not all could be run: {}", errors.join("; "));
        }
        if !broken.is_empty() {
            bail!("{}", broken.join("; "));
        }
        Ok(())
    }

    fn options(&self) -> anyhow::Result<Options> {
        let (workloads, no_workloads) = chosen(&self.workloads);
        let (faults, no_faults) = chosen(&self.faults);
        let mut protocols = self.protocols.clone();
        protocols.dedup();
        Ok(Options {
            program: std::env::current_exe().context("finding this program")?,
            protocols,
            suite: self.suite,
            workloads,
            faults,
            without: Without { workloads: no_workloads, faults: no_faults },
            timeouts: if self.native_timeouts { Timeouts::Native } else { Timeouts::Same },
            handicaps: self.handicaps.clone(),
            against_etcd: matches!(self.against, Some(Other::Etcd)),
            mistakes: self.mistakes.clone(),
            seed: self.seed,
            engine: self.engine,
            durability: self.durability,
            folder: self.folder.clone(),
        })
    }

    /// Prints what is worse than in an earlier report.
    fn print_worse(&self, baseline: &Report, report: &Report) -> anyhow::Result<()> {
        let changes = baseline::changes(baseline, report).map_err(|why| anyhow::anyhow!(why))?;
        let of = self.baseline.as_deref().unwrap_or_else(|| Path::new("")).display();
        for line in &changes.shared {
            note(format_args!("the machine, or what all share, is worse than in {of}: {line}"));
        }
        for line in &changes.worse {
            note(format_args!("worse than {of}: {line}"));
        }
        if changes.worse.is_empty() {
            let figures = changes.figures;
            note(format_args!("of {figures} figures, no protocol's is worse than in {of}"));
        }
        Ok(())
    }

    fn page(&self) -> PathBuf {
        self.out.join("report.html")
    }

    fn write(&self, report: &Report) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(report)?;
        write(&self.out.join("report.json"), &json)?;
        write(&self.page(), &page::page(report)?)?;
        if self.json {
            output::json(report)?;
        } else {
            output::line(terminal::summary(report))?;
            output::line(format!("the report is {}", self.page().display()))?;
        }
        Ok(())
    }
}

/// Prints a line beside the result. That nobody reads it is no failure.
fn note(text: impl std::fmt::Display) {
    let _unwritten = writeln!(io::stderr(), "{text}");
}

fn read(path: &Path) -> anyhow::Result<Report> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is no report of this version", path.display()))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Runs the comparison and shows how far it is.
async fn watched(run: &Run, bar: &mut Progress, step: &Mutex<Option<Step>>) -> anyhow::Result<()> {
    let mut running = std::pin::pin!(run.run());
    loop {
        tokio::select! {
            done = &mut running => return done,
            () = bar.due() => {
                if let Some(Step { what, part, left_s }) = step.lock().clone() {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss,
                        reason = "a part lies between 0 and 1")]
                    let done = (part * STEPS as f64) as u64;
                    bar.show(done, &format!("{what} (about {left_s:.0} s left)"));
                }
            }
        }
    }
}
