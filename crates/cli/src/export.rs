//! `trireme export`.
//!
//! The rows are written to FILE.partial, forced to disk, and only then named FILE: a file of that
//! name is always a complete export. What is no file, such as a pipe, is written as it stands.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
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
use super::output::{self, Output, OutputError};
use super::progress::{self, Progress};
use super::rows::{self, Format};
use super::scan;

/// How long a page of rows may take, by default: longer than any failure that a cluster
/// survives.
const DEADLINE: Duration = Duration::from_secs(60);

/// Bytes gathered before they are written to the file.
const BUFFER_BYTES: usize = 1024 * 1024;

/// The most unfinished exports of one file that are passed over for a name that is free.
const PARTIALS_MAX: u32 = 100;

/// The most symbolic links that are followed from one to the next, as in Linux.
const LINKS_MAX: usize = 40;

/// Arguments of `trireme export`.
#[derive(Args)]
pub(crate) struct ExportArgs {
    /// File to write, replaced if it exists; a pipe or a device; '-' is standard output.
    file: PathBuf,
    /// Format of the lines.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// First key. [default: the first of all keys]
    #[arg(long, value_name = "KEY")]
    start: Option<OsString>,
    /// End of the range, exclusive. [default: none]
    #[arg(long, value_name = "KEY")]
    end: Option<OsString>,
    /// Only keys with this prefix.
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
    /// What cannot be replaced: a pipe, a device, a descriptor of this process.
    Direct {
        path: PathBuf,
        file: BufWriter<File>,
    },
    File(Partial),
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
            Target::Direct { file, .. } => {
                file.into_inner().map_err(|error| OutputError::from(error.into_error()))?;
                progress::say(&summary);
                Ok(())
            }
            Target::File(partial) => {
                let completing = || format!("completing {}", self.file.display());
                partial.complete().with_context(completing)?;
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
        let existing = fs::metadata(path).ok();
        if existing.as_ref().is_some_and(Metadata::is_dir) || path.file_name().is_none() {
            bail!("{} names no file", path.display());
        }
        let is_special = existing.as_ref().is_some_and(|existing| !existing.is_file());
        if is_special || is_descriptor(path) {
            let file = OpenOptions::new().write(true).open(path);
            let file = file.with_context(|| format!("opening {}", path.display()))?;
            let file = BufWriter::with_capacity(BUFFER_BYTES, file);
            return Ok(Self::Direct { path: path.to_owned(), file });
        }
        let creating = || format!("creating {}", path.display());
        // What a link leads to is replaced, not the link.
        let path = behind_links(path).with_context(creating)?;
        Partial::create(path, existing.map(|existing| existing.permissions()))
            .with_context(creating)
            .map(Self::File)
    }

    fn write(&mut self, text: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Stdout(output) => Ok(output.write(text)?),
            Self::Direct { path, file } => {
                let written = file.write_all(text).map_err(OutputError::from);
                // A reader that has read enough ends the command well, as that of a pipeline does.
                written.with_context(|| format!("writing {}", path.display()))
            }
            Self::File(Partial { partial, file, .. }) => {
                file.write_all(text).with_context(|| format!("writing {}", partial.display()))
            }
        }
    }
}

/// A file that is being written, beside the one whose name it is to get. It is removed if that
/// never happens.
struct Partial {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    /// The rights of the file that is to be replaced, if there is one.
    permissions: Option<Permissions>,
    is_complete: bool,
}

impl Partial {
    /// Creates a file of a name that no file has: another export may be writing the same one, and
    /// a file of that name that this command did not make is not its to overwrite.
    fn create(path: PathBuf, permissions: Option<Permissions>) -> io::Result<Self> {
        for number in 1.. {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(".partial");
            if number > 1 {
                name.push(format!("-{number}"));
            }
            let partial = path.with_file_name(name);
            let mut options = OpenOptions::new();
            options.write(true).create_new(true);
            if permissions.is_some() {
                // Until it has the rights of the file that it replaces, only its owner reads it.
                options.mode(0o600);
            }
            match options.open(&partial) {
                Ok(file) => {
                    let file = BufWriter::with_capacity(BUFFER_BYTES, file);
                    return Ok(Self { path, partial, file, permissions, is_complete: false });
                }
                Err(error)
                    if error.kind() == io::ErrorKind::AlreadyExists && number < PARTIALS_MAX => {}
                Err(error) => return Err(error),
            }
        }
        unreachable!("the last number returns")
    }

    /// Gives the file, which holds everything, its name.
    fn complete(mut self) -> io::Result<()> {
        self.file.flush()?;
        let file = self.file.get_ref();
        if let Some(permissions) = &self.permissions {
            file.set_permissions(permissions.clone())?;
        }
        file.sync_all()?;
        fs::rename(&self.partial, &self.path)?;
        self.is_complete = true;
        // The new name is as durable as the rows only once the folder is forced to disk, too.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_complete {
            // The command has failed already, and says why.
            fs::remove_file(&self.partial).ok();
        }
    }
}

/// Returns true if the path stands for a descriptor that this process has open already.
fn is_descriptor(path: &Path) -> bool {
    let standard = ["/dev/stdout", "/dev/stderr"].map(Path::new);
    standard.contains(&path) || path.starts_with("/dev/fd") || path.starts_with("/proc")
}

/// Returns the path that a symbolic link leads to in the end, also where there is nothing yet.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        match fs::read_link(&path) {
            // A relative target counts from the folder that the link is in.
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            // It is no link, or there is nothing.
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}
