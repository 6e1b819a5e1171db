//! `trireme import`.
//!
//! A thread reads the file line by line; as many puts as `--jobs` says are under way at once, and
//! each is tried again by the client until its deadline. Lines that are not read yet wait in the
//! file, so that memory is bounded by the jobs. Of two rows with the same key the later one stands
//! at the end, as if the rows were put one after the other. Of rows with the same key that wait for
//! the put of an earlier one, only the last is put: it stands for all of them.

mod acknowledged;
mod lines;
mod puts;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, value_parser};
use serde_json::json;
use tokio::sync::mpsc;
use trireme_client::ClientOptions;

use super::cluster::ClusterArgs;
use super::output;
use super::progress::Progress;
use super::rows::{Format, LineReader};

use acknowledged::AcknowledgedLog;
use puts::{Counts, Puts};

/// How long a row may take, by default: longer than any failure that a cluster survives.
const DEADLINE: Duration = Duration::from_secs(60);

/// Lines that are read ahead of the puts.
const LINES_AHEAD: usize = 64;

/// The most puts under way at once: what one stream of the client carries.
const JOBS_MAX: u64 = 16 * 1024;

/// Arguments of `trireme import`.
#[derive(Args)]
pub(crate) struct ImportArgs {
    /// File to import; '-' is standard input.
    file: PathBuf,
    /// Format of the lines.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Character between key and value in tsv lines. [default: tab]
    #[arg(long, value_name = "CHARACTER", value_parser = separator)]
    separator: Option<u8>,
    /// Read each line as a key with an empty value.
    #[arg(long)]
    key_only: bool,
    /// Number of concurrent puts.
    #[arg(long, default_value_t = 256, value_parser = value_parser!(u64).range(1..=JOBS_MAX))]
    jobs: u64,
    /// Append the key of each row to this file once the row is acknowledged, one per line, escaped.
    #[arg(long, value_name = "FILE")]
    ack_log: Option<PathBuf>,
    /// Print the summary as a JSON object.
    #[arg(long)]
    json: bool,
}

impl ImportArgs {
    /// Puts all rows and prints how many there were.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let (input, size) = open(&self.file)?;
        let log = self.ack_log.as_deref().map(AcknowledgedLog::open).transpose()?;
        let options = ClientOptions { deadline: DEADLINE, ..ClientOptions::default() };
        let client = cluster.connect_with(options).await?;
        let reader = LineReader {
            format: self.format,
            separator: self.separator.unwrap_or(b'\t'),
            key_only: self.key_only,
        };
        let (sender, lines) = mpsc::channel(LINES_AHEAD);
        std::thread::spawn(move || lines::read_all(input, reader, &sender));

        let jobs = usize::try_from(self.jobs).expect("at most JOBS_MAX");
        let mut progress = Progress::start(size);
        let mut puts = Puts::new(client, jobs, log);
        let broken = puts.run(lines, &mut progress).await;
        let counts = puts.counts();
        let seconds = progress.elapsed().as_secs_f64();
        progress.end();
        self.summarize(counts, seconds)?;
        broken.with_context(|| format!("importing {}", self.file.display()))?;
        if counts.errors > 0 {
            bail!("{} of {} rows failed", counts.errors, counts.rows + counts.errors);
        }
        Ok(())
    }

    fn summarize(&self, counts: Counts, seconds: f64) -> anyhow::Result<()> {
        let Counts { rows, errors, .. } = counts;
        if self.json {
            return output::json(&json!({ "rows": rows, "errors": errors, "seconds": seconds }));
        }
        let text = format!("imported {rows} rows, {errors} errors, in {seconds:.1} s");
        Ok(output::line(text)?)
    }
}

/// Opens the input and returns its size in bytes, if it has one.
fn open(path: &Path) -> anyhow::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let opening = || format!("opening {}", path.display());
    let file = File::open(path).with_context(opening)?;
    let about = file.metadata().with_context(opening)?;
    if about.is_dir() {
        bail!("{} is a folder", path.display());
    }
    Ok((Box::new(file), about.is_file().then_some(about.len())))
}

/// Reads the separator: one byte, which may be escaped. What an escape is written with cannot be
/// one: a key that holds the separator could not be written at all.
fn separator(text: &str) -> Result<u8, String> {
    match super::escape::unescape(text.as_bytes()).map_err(|error| error.to_string())?[..] {
        [b'\n' | b'\r' | b'\\'] => Err("cannot be a line end or a backslash".to_owned()),
        [b't' | b'n' | b'r' | b'x' | b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F'] => {
            Err("cannot be a letter or a digit that escapes are written with".to_owned())
        }
        [byte] => Ok(byte),
        _ => Err("must be one character of one byte".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_separator_is_one_byte() {
        assert_eq!(separator("\t"), Ok(b'\t'));
        assert_eq!(separator(r"\t"), Ok(b'\t'));
        assert_eq!(separator(";"), Ok(b';'));
        for text in
            ["", "ab", "\u{e4}", "\\\\", r"\n", r"\r", r"\q", "x", "t", "7", "F", "a", r"\x30"]
        {
            assert!(separator(text).is_err(), "{text:?} was taken");
        }
    }
}
