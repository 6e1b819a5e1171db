//! What the figures were measured on.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::report::Machine;

/// How many forced writes are timed.
const PROBES: usize = 200;

/// How long that may take: a slow disk must not hold up the run.
const PROBE_TIME_MAX: Duration = Duration::from_secs(2);

/// The bytes of each.
const PROBE_BYTES: usize = 4096;

impl Machine {
    /// Returns this machine. What the system does not say is empty.
    pub(crate) fn this() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let kilobytes = field(&text("/proc/meminfo"), "MemTotal");
        let kilobytes: u64 = kilobytes.trim_end_matches(" kB").parse().unwrap_or_default();
        Self {
            processor: field(&text("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kilobytes * 1024,
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            is_optimized: !cfg!(debug_assertions),
        }
    }
}

/// Returns how long forced writes take in a folder, the shortest first.
pub(crate) fn forced_writes(folder: &Path) -> anyhow::Result<Vec<Duration>> {
    let path = folder.join("forced-writes");
    let mut file = File::create(&path).context("making a file to time forced writes")?;
    let block = [7_u8; PROBE_BYTES];
    let mut times = Vec::with_capacity(PROBES);
    let until = Instant::now() + PROBE_TIME_MAX;
    while times.len() < PROBES && (times.is_empty() || Instant::now() < until) {
        let begun = Instant::now();
        file.write_all(&block).and_then(|()| file.sync_data()).context("timing forced writes")?;
        times.push(begun.elapsed());
    }
    fs::remove_file(&path).context("removing what was written to time forced writes")?;
    times.sort_unstable();
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_and_its_forced_writes_are_known() {
        let machine = Machine::this();
        assert!(machine.cores > 0 && machine.memory_bytes > 0 && !machine.kernel.is_empty());
        let folder = tempfile::tempdir().unwrap();
        let times = forced_writes(folder.path()).unwrap();
        assert!(!times.is_empty() && times.is_sorted());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
