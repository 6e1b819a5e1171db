//! What processes use of the machine.

use std::fs;
use std::time::Duration;

use anyhow::{Context, bail};

/// Returns the processor time that a process has used so far.
pub fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("asking for the processor time of process {pid}"))?;
    // The name in parentheses may hold anything; what follows is numbers: user and system time are
    // the 12th and 13th.
    let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let mut fields = rest.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let (Some(Ok(user)), Some(Ok(system))) = (fields.next(), fields.next()) else {
        bail!("the processor time of process {pid} cannot be read");
    };
    let ticks = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_micros((user + system) * 1_000_000 / ticks))
}

/// Returns the bytes of memory that a process has to itself: not those of its program and of files.
pub fn own_memory(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("asking for the memory of process {pid}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kibibytes.with_context(|| format!("the memory of process {pid} cannot be read"))? * 1024)
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_time_of_a_process_rises() {
        let own = std::process::id();
        let before = processor_time(own).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while processor_time(own).unwrap() <= before {
            assert!(Instant::now() < until, "no processor time is counted");
        }
    }

    #[test]
    fn the_memory_of_a_process_is_what_it_writes_to() {
        const BYTES: usize = 64 * 1024 * 1024;
        let own = std::process::id();
        let before = own_memory(own).unwrap();
        let written = black_box(vec![1_u8; BYTES]);
        let after = own_memory(own).unwrap();
        assert!(after >= before + written.len() as u64 / 2, "{before} bytes, then {after}");
    }
}
