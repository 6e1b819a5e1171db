//! The line that `trireme up` prints when its cluster serves.

use std::str::FromStr;

use anyhow::{Context, ensure};

/// What the line says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ready {
    /// Where the nodes listen, the first node first.
    pub(crate) endpoints: Vec<String>,
    /// The nodes' processes, in the same order.
    pub(crate) pids: Vec<u32>,
}

impl FromStr for Ready {
    type Err = anyhow::Error;

    fn from_str(line: &str) -> anyhow::Result<Self> {
        let endpoints: Vec<String> =
            field(line, "endpoints")?.split(',').map(str::to_owned).collect();
        let pids = field(line, "pids")?.split(',').map(str::parse);
        let pids = pids.collect::<Result<Vec<u32>, _>>().context("a pid is not a number")?;
        ensure!(endpoints.len() == pids.len(), "it names not as many endpoints as pids");
        Ok(Self { endpoints, pids })
    }
}

fn field<'a>(line: &'a str, name: &str) -> anyhow::Result<&'a str> {
    let fields = line.strip_prefix("ready ").context("it does not begin with 'ready'")?;
    let mut fields = fields.split(' ').filter_map(|field| field.split_once('='));
    let found = fields.find(|(found, _)| *found == name);
    found.map(|(_, value)| value).with_context(|| format!("it has no field {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_names_endpoints_and_processes_in_order() {
        let line = "ready endpoints=127.0.0.1:1,127.0.0.1:2 coordinator=http://127.0.0.1:0 \
                    replication=raft ranges=1 pids=10,20";
        let ready: Ready = line.parse().unwrap();
        assert_eq!(ready.endpoints, ["127.0.0.1:1", "127.0.0.1:2"]);
        assert_eq!(ready.pids, [10, 20]);
    }

    #[test]
    fn another_line_is_refused() {
        for line in
            ["", "ready", "ready pids=1", "ready endpoints=a pids=x", "ready endpoints=a pids=1,2"]
        {
            assert!(line.parse::<Ready>().is_err(), "{line:?} was taken");
        }
    }
}
