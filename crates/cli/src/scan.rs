//! `trireme scan`.

use std::ffi::OsString;

use clap::Args;
use trireme_client::{KeyRange, ScanRange};

use super::cluster::ClusterArgs;
use super::escape::EscapeArgs;
use super::get::ReadArgs;
use super::output::Output;
use super::rows;

/// Arguments of `trireme scan`.
#[derive(Args)]
pub(crate) struct ScanArgs {
    /// First key. [default: the first of all keys]
    start: Option<OsString>,
    /// End of the range, exclusive. [default: none]
    end: Option<OsString>,
    /// Only keys with this prefix.
    #[arg(long, conflicts_with_all = ["start", "end"])]
    prefix: Option<OsString>,
    /// Stop after this number of rows.
    #[arg(long, value_name = "ROWS")]
    limit: Option<usize>,
    /// Print rows in descending key order.
    #[arg(long)]
    reverse: bool,
    /// Print keys without values.
    #[arg(long)]
    keys_only: bool,
    #[command(flatten)]
    read: ReadArgs,
    #[command(flatten)]
    escapes: EscapeArgs,
    /// Print one JSON object per row, including its version.
    #[arg(long)]
    json: bool,
}

impl ScanArgs {
    /// Prints the rows, page by page as they come.
    pub(crate) async fn run(self, cluster: &ClusterArgs) -> anyhow::Result<()> {
        let range = range(self.escapes, self.start, self.end, self.prefix)?;
        let client = cluster.connect().await?;
        let mut scan = client.scan(range).consistency(self.read.consistency);
        if let Some(limit) = self.limit {
            scan = scan.limit(limit);
        }
        if self.reverse {
            scan = scan.reverse();
        }
        let mut output = Output::new();
        let mut text = Vec::new();
        while let Some(page) = scan.next_page().await? {
            text.clear();
            for row in page.rows {
                let value = (!self.keys_only).then_some(&row.value[..]);
                if self.json {
                    rows::write_json(&mut text, &row.key, value, row.version.0);
                } else {
                    rows::write_tsv(&mut text, &row.key, value);
                }
            }
            output.write(&text)?;
        }
        Ok(output.finish()?)
    }
}

/// Returns the keys that a command is to read.
pub(crate) fn range(
    escapes: EscapeArgs,
    start: Option<OsString>,
    end: Option<OsString>,
    prefix: Option<OsString>,
) -> anyhow::Result<ScanRange> {
    if let Some(prefix) = prefix {
        return Ok(ScanRange::prefix(escapes.read(prefix)?));
    }
    let start = escapes.read(start.unwrap_or_default())?;
    let end = end.map(|end| escapes.read(end)).transpose()?;
    Ok(KeyRange { start, end }.into())
}
