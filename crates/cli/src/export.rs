//! `trireme export`.
//!
//! The rows are written to FILE.partial, forced to disk, and only then named FILE: a file of that
//! name is always a complete export.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use futures::StreamExt;
use trireme_client::{ClientOptions, Page, Scan};

use super::cluster::ClusterArgs;
use super::escape::EscapeArgs;
use super::get::ReadArgs;
use super::output::{self, Output};
use super::progress::{self, Progress};
use super::rows::{self, Format};
use super::scan;

/// How long a page of rows may take, unless told otherwise: longer than any failure that a cluster
/// survives.
const DEADLINE: Duration = Duration::from_secs(60);

/// Bytes gathered before they are written to the file.
const BUFFER_BYTES: usize = 1024 * 1024;

/// Arguments of `trireme export`.
#[derive(Args)]
pub(crate) struct ExportArgs {
    /// The file, which is replaced if it exists; '-' is standard output.
    file: PathBuf,
    /// The form of its lines.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The lowest key. [default: the lowest there is]
    #[arg(long, value_name = "KEY")]
    start: Option<OsString>,
    /// The first key that is not exported any more. [default: none]
    #[arg(long, value_name = "KEY")]
    end: Option<OsString>,
    /// Exports the keys that begin with this.
    #[arg(long, conflicts_with_all = ["start", "end"])]
    prefix: Option<OsString>,
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    escapes: EscapeArgs,
}

/// Where the rows go.
enum Target {
    Stdout(Output),
    File { path: PathBuf, partial: PathBuf, file: BufWriter<File> },
}

impl ExportArgs {
    /// Writes all rows and says how many there were.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let range = scan::range(self.escapes, self.start, self.end, self.prefix)?;
        let options = ClientOptions { deadline: DEADLINE, ..ClientOptions::default() };
        let client = cluster.connect_with(options).await?;
        let mut target = Target::open(&self.file)?;
        let scan = client.scan(range).consistency(self.read.consistency);
        let mut progress = Progress::start(None);
        let copied = copy(scan, self.format, &mut target, &mut progress).await;
        let seconds = progress.elapsed().as_secs_f64();
        progress.end();
        let summary = format!("exported {} rows in {seconds:.1} s", copied?);
        match target {
            Target::Stdout(output) => {
                output.finish()?;
                progress::say(&summary);
                Ok(())
            }
            Target::File { path, partial, file } => {
                complete(&path, &partial, file)
                    .with_context(|| format!("completing {}", path.display()))?;
                Ok(output::line(summary)?)
            }
        }
    }
}

/// Writes the rows of a scan and returns how many there were.
async fn copy(
    scan: Scan,
    format: Format,
    target: &mut Target,
    progress: &mut Progress,
) -> anyhow::Result<u64> {
    let mut pages = pin!(scan.pages());
    let mut count = 0;
    let mut text = Vec::new();
    loop {
        tokio::select! {
            page = pages.next() => {
                let Some(page) = page.transpose()? else { return Ok(count) };
                count += page.rows.len() as u64;
                text.clear();
                write_page(&mut text, &page, format);
                target.write(&text)?;
            }
            () = progress.due() => {
                let rate = progress::per_second(count, progress.elapsed());
                progress.show(count, &format!("{count} rows, {rate} rows/s"));
            }
        }
    }
}

fn write_page(text: &mut Vec<u8>, page: &Page, format: Format) {
    for row in &page.rows {
        match format {
            Format::Tsv => rows::write_tsv(text, &row.key, Some(&row.value)),
            Format::Jsonl => {
                rows::write_json(text, &row.key, Some(&row.value), row.version.0);
            }
        }
    }
}

impl Target {
    fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout(Output::new()));
        }
        let Some(name) = path.file_name() else { bail!("{} names no file", path.display()) };
        let mut partial_name = name.to_owned();
        partial_name.push(".partial");
        let partial = path.with_file_name(partial_name);
        let file = File::create(&partial);
        let file = file.with_context(|| format!("creating {}", partial.display()))?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(Self::File { path: path.to_owned(), partial, file })
    }

    fn write(&mut self, text: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Stdout(output) => Ok(output.write(text)?),
            Self::File { partial, file, .. } => {
                file.write_all(text).with_context(|| format!("writing {}", partial.display()))
            }
        }
    }
}

/// Gives a file that holds everything its name.
fn complete(path: &Path, partial: &Path, file: BufWriter<File>) -> io::Result<()> {
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(partial, path)?;
    // The new name is as durable as the rows only once the folder is forced to disk, too.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
