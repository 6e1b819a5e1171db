//! An import that runs while nodes die.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use super::cluster::Cluster;
use super::data::{Rows, tsv};
use super::process::{Ran, trireme, wait_for};
use super::until_ok;

/// How long an import may take until it has acknowledged the next rows that a test waits for.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);

/// A running `trireme import` with an acknowledgement log.
pub(crate) struct Import {
    child: Option<Child>,
    ack_log: PathBuf,
}

impl Import {
    /// Starts an import of rows.
    pub(crate) fn start<'a>(
        cluster: &Cluster,
        rows: impl IntoIterator<Item = (&'a String, &'a String)>,
        options: &[&str],
    ) -> Self {
        let (file, ack_log) = (cluster.file("import.tsv"), cluster.folder().join("acknowledged"));
        fs::write(&file, tsv(rows)).unwrap();
        let mut command = trireme();
        command
            .env("TRIREME_ENDPOINTS", cluster.endpoints())
            .args(["import", &file, "--ack-log"])
            .arg(&ack_log)
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self { child: Some(command.spawn().unwrap()), ack_log }
    }

    /// Waits until at least so many rows are acknowledged, and checks that the import still runs.
    #[track_caller]
    pub(crate) fn wait_for_acknowledged(&mut self, rows: usize) {
        until_ok("rows are acknowledged", PROGRESS_TIMEOUT, || match self.acknowledged().len() {
            enough if enough >= rows => Ok(()),
            few => Err(few),
        });
        let child = self.child.as_mut().unwrap();
        assert_eq!(child.try_wait().unwrap(), None, "the import is over already");
    }

    /// Returns the keys that were acknowledged until now.
    pub(crate) fn acknowledged(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.ack_log).unwrap_or_default();
        // A line without its end is still being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::to_owned).collect()
    }

    /// Waits for the end of the import.
    pub(crate) fn finish(mut self) -> Ran {
        wait_for(self.child.take().unwrap())
    }

    /// Ends the import without waiting for its rows, and returns the acknowledged keys.
    pub(crate) fn abandon(mut self) -> Vec<String> {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        self.acknowledged()
    }

    pub(crate) fn ack_log(&self) -> &Path {
        &self.ack_log
    }
}

impl Drop for Import {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone = child.kill();
            let _gone = child.wait();
        }
    }
}

/// Checks that every acknowledged row is there with its value, and nothing that nobody wrote.
#[track_caller]
pub(crate) fn assert_holds(found: &Rows, acknowledged: &[String], rows: &Rows) {
    let missing: Vec<&String> =
        acknowledged.iter().filter(|key| !found.contains_key(*key)).collect();
    let (lost, of) = (missing.len(), acknowledged.len());
    assert!(missing.is_empty(), "{lost} of {of} acknowledged rows are lost: {missing:.10?}");
    let strange = found.iter().find(|(key, value)| rows.get(*key) != Some(*value));
    assert_eq!(strange, None, "a row that was never written");
}

impl Cluster {
    /// Reads every row, strongly, and checks that they come in order and once each.
    #[track_caller]
    pub(crate) fn rows(&self) -> Rows {
        let ran = self.run(["scan"]);
        let pair = |line: &str| {
            let (key, value) = line.split_once('\t').unwrap();
            (key.to_owned(), value.to_owned())
        };
        let rows: Vec<(String, String)> = ran.out().lines().map(pair).collect();
        let ordered = rows.windows(2).all(|pair| pair[0].0 < pair[1].0);
        assert!(ordered, "the rows of a scan come out of order or twice");
        rows.into_iter().collect()
    }
}
