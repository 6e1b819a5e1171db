//! Judges recorded histories: linearizable or not.

use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use trireme_checker::search::{Bound, Limits};
use trireme_checker::{Verdict, check, format, timeline};

#[derive(Args)]
pub(crate) struct CheckArgs {
    /// The histories: in this project's format, or as Jepsen's register test or maps in EDN.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Draw each counter-example as a page in this folder.
    #[arg(long, value_name = "DIR")]
    html: Option<PathBuf>,
    /// The most steps that are spent on one key (or on keys that scans join) before its verdict is
    /// `unknown`.
    #[arg(long, value_name = "N", default_value_t = Limits::default().steps_max)]
    steps: u64,
}

impl CheckArgs {
    /// Prints a line per file: its name, a tab, and the verdict. Fails if any is not linearizable.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if let Some(folder) = &self.html {
            fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let mut not = 0;
        for file in &self.files {
            let verdict = self.judge(file)?;
            let name = name(file);
            writeln!(io::stdout(), "{name}\t{}", verdict.name())?;
            not += usize::from(verdict != Verdict::Linearizable);
            self.explain(&name, &verdict)?;
        }
        ensure!(not == 0, "{not} of {} histories are not linearizable", self.files.len());
        Ok(())
    }

    fn judge(&self, file: &Path) -> anyhow::Result<Verdict> {
        let reading = || format!("reading {}", file.display());
        let input = BufReader::new(File::open(file).with_context(reading)?);
        let history = format::read(input).with_context(reading)?;
        let limits = Limits { steps_max: self.steps, ..Limits::default() };
        Ok(check(history, &limits))
    }

    fn explain(&self, name: &str, verdict: &Verdict) -> anyhow::Result<()> {
        let mut stderr = io::stderr();
        match verdict {
            Verdict::Linearizable => {}
            Verdict::Unknown(Bound::Steps) => {
                writeln!(stderr, "{name}: --steps {} were not enough", self.steps)?;
            }
            Verdict::Unknown(Bound::Memo) => {
                writeln!(stderr, "{name}: the memory for one key was not enough")?;
            }
            Verdict::NotLinearizable(example) => {
                let stuck = &example.part[example.stuck];
                let (client, label) = (stuck.client, timeline::label(stuck));
                writeln!(stderr, "{name}: no order explains client {client}: {label}")?;
                if let Some(folder) = &self.html {
                    let path = folder.join(format!("{name}.html"));
                    fs::write(&path, timeline::page(name, example))
                        .with_context(|| format!("writing {}", path.display()))?;
                    writeln!(stderr, "{name}: drawn in {}", path.display())?;
                }
            }
        }
        Ok(())
    }
}

fn name(file: &Path) -> String {
    file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned()
}
