//! What an experiment prints: what its figures depend on, one table, and what follows from it.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context;
use comfy_table::{ContentArrangement, Table};
use serde_json::{Map, Value};

use trireme_testbed::Conditions;

/// Spaces between columns.
const GAP: u16 = 2;

/// The result of one experiment.
pub(crate) struct Report {
    experiment: &'static str,
    conditions: Vec<Conditions>,
    settings: Map<String, Value>,
    heads: &'static [&'static str],
    rows: Vec<Vec<String>>,
    lines: Vec<String>,
    results: Map<String, Value>,
}

impl Report {
    /// Begins a report whose table has these column heads.
    pub(crate) fn new(experiment: &'static str, heads: &'static [&'static str]) -> Self {
        Self {
            experiment,
            conditions: Vec::new(),
            settings: Map::new(),
            heads,
            rows: Vec::new(),
            lines: Vec::new(),
            results: Map::new(),
        }
    }

    /// Tells what the figures depend on that follow.
    pub(crate) fn conditions(&mut self, conditions: Conditions) {
        if !self.conditions.contains(&conditions) {
            self.conditions.push(conditions);
        }
    }

    /// Tells what the experiment was asked to do.
    pub(crate) fn setting(&mut self, name: &str, value: impl Into<Value>) {
        self.settings.insert(name.to_owned(), value.into());
    }

    /// Adds a row to the table, and the same to a list for programs.
    pub(crate) fn row(&mut self, cells: Vec<String>, list: &str, object: Value) {
        self.rows.push(cells);
        let rows = self.results.entry(list).or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(rows) = rows {
            rows.push(object);
        }
    }

    /// Adds a line under the table.
    pub(crate) fn line(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    /// Adds a result for programs.
    pub(crate) fn result(&mut self, name: &str, value: impl Into<Value>) {
        self.results.insert(name.to_owned(), value.into());
    }

    /// Prints the report, for people or for programs.
    pub(crate) fn print(self, as_json: bool) -> anyhow::Result<()> {
        let text = if as_json { self.json().to_string() } else { self.text() };
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}").and_then(|()| stdout.flush()).context("writing standard output")
    }

    fn json(self) -> Value {
        let conditions = self.conditions.iter().map(Conditions::json).collect();
        let mut object = Map::new();
        object.insert("experiment".to_owned(), self.experiment.into());
        object.insert("conditions".to_owned(), Value::Array(conditions));
        object.insert("settings".to_owned(), self.settings.into());
        object.insert("results".to_owned(), self.results.into());
        object.into()
    }

    fn text(&self) -> String {
        let mut text = self.head();
        text.push('\n');
        text.push_str(&self.table());
        if !self.lines.is_empty() {
            text.push('\n');
        }
        for line in &self.lines {
            text.push('\n');
            text.push_str(line);
        }
        text
    }

    fn head(&self) -> String {
        let each = |part: fn(&Conditions) -> String| -> String {
            let found: BTreeSet<String> = self.conditions.iter().map(part).collect();
            found.into_iter().collect::<Vec<_>>().join(", ")
        };
        let durability = each(|c| c.durability.clone());
        let engine = each(|c| c.engine.clone());
        let protocol = each(|c| c.protocol.to_string());
        let nodes = each(|c| c.nodes.to_string());
        let ranges = each(|c| c.ranges.to_string());
        let settings: Vec<String> = self
            .settings
            .iter()
            .map(|(name, value)| {
                format!(
                    "{name}: {}",
                    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
                )
            })
            .collect();
        let mut head = format!(
            "durability: {durability}\nengine:     {engine}\nprotocol:   {protocol}\n\
             cluster:    {nodes} nodes, {ranges} range(s) with a replica on each; load and nodes \
             share this machine\nsettings:   {}\n",
            settings.join(", ")
        );
        if self.conditions.iter().any(|conditions| conditions.in_memory) {
            head.push_str("disk:       none: the data lay in a file system in memory\n");
        }
        head
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_preset(comfy_table::presets::NOTHING);
        table.set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(self.heads);
        for row in &self.rows {
            table.add_row(row);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, GAP));
        }
        table.trim_fmt()
    }
}

/// Says on stderr how far an experiment is.
pub(crate) fn progress(line: impl Display) {
    // Nobody is harmed if nobody can see it.
    let _unwritten = writeln!(io::stderr(), "{line}");
}

/// Returns a duration as milliseconds, with one digit after the point.
pub(crate) fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

/// Returns a duration as [`milliseconds`] does; a dash if there is none.
pub(crate) fn milliseconds_or_dash(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "-".to_owned(), milliseconds)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use trireme_types::Protocol;

    use super::*;

    fn report() -> Report {
        let mut report = Report::new("kills", &["KILL", "GAP"]);
        report.conditions(Conditions {
            protocol: Protocol::Raft,
            durability: "fsync".to_owned(),
            engine: "lsm".to_owned(),
            nodes: 3,
            ranges: 1,
            version: "0.1.0".to_owned(),
            in_memory: false,
        });
        report.setting("victim", "leader");
        report.row(
            vec!["1".to_owned(), milliseconds(Duration::from_micros(1500))],
            "kills",
            json!({"gap_us": 1500}),
        );
        report.line("nothing was lost");
        report
    }

    #[test]
    fn figures_stand_with_durability_engine_and_protocol() {
        let text = report().text();
        for part in
            ["durability: fsync\n", "engine:     lsm\n", "protocol:   raft\n", "victim: leader"]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(text.ends_with("KILL  GAP\n1     1.5 ms\n\nnothing was lost"), "{text}");
    }

    #[test]
    fn programs_are_told_the_same() {
        let json = report().json();
        assert_eq!(json["conditions"][0]["durability"], "fsync");
        assert_eq!(json["conditions"][0]["protocol"], "raft");
        assert_eq!(json["results"]["kills"][0]["gap_us"], 1500);
        assert_eq!(json["settings"]["victim"], "leader");
    }
}
