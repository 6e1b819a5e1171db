//! Many rows, and whether they are the same at every node.

use std::process::Command;

use super::cluster::Cluster;
use super::process::trireme;

impl Cluster {
    /// Returns a command that puts rows for a time, by many callers.
    pub(crate) fn load(&self, time: &str, options: &[&str]) -> Command {
        let mut command = trireme();
        command.env("TRIREME_ENDPOINTS", self.endpoints());
        command.args(["bench", "--warm-up", "0s", "--workload", "put"]);
        if !options.contains(&"--callers") {
            command.args(["--callers", "64"]);
        }
        command.args(["--duration", time]).args(options);
        command
    }

    /// Reads all rows but one that is being written, and once more when this node leads.
    #[track_caller]
    pub(crate) fn assert_has_the_same_rows(&self, node: usize, counter: &str) {
        let rows = || {
            let ran = self.run(["scan", "--json"]);
            let rows: Vec<String> = ran.out().lines().map(str::to_owned).collect();
            let is_counter = |row: &String| row.contains(&format!("\"{counter}\""));
            rows.into_iter().filter(|row| !is_counter(row)).collect::<Vec<_>>()
        };
        let before = rows();
        assert!(before.len() > 1_000, "only {} rows", before.len());
        self.lead_everywhere(node);
        assert!(rows() == before, "node {node} has other rows");
    }
}
