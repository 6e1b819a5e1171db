//! Processes, by their numbers.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// How long a killed process may take to be gone. The memory of a large one takes its time, and so
/// does a disk that it waits for.
pub(crate) const GONE_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a killed process is looked at. It bounds how exactly the end of a process is known.
const GONE_INTERVAL: Duration = Duration::from_millis(1);

/// Kills a process, which may be gone already.
pub(crate) fn kill(pid: u32) {
    if let Some(pid) = to_pid(pid) {
        let _gone = kill_process(pid, Signal::KILL);
    }
}

/// Has a process stop in order.
pub(crate) fn terminate(pid: u32) -> io::Result<()> {
    signal(pid, Signal::TERM)
}

/// Has a process stand still.
pub(crate) fn stop(pid: u32) -> io::Result<()> {
    signal(pid, Signal::STOP)
}

/// Has a process go on that stands still.
pub(crate) fn go_on(pid: u32) -> io::Result<()> {
    signal(pid, Signal::CONT)
}

fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = to_pid(pid).ok_or(io::ErrorKind::NotFound)?;
    Ok(kill_process(pid, signal)?)
}

/// Returns when a process is gone that was sent a signal to end, a child of this one or not.
pub(crate) async fn wait_until_gone(pid: u32, patience: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + patience;
    while !is_gone(pid) {
        if Instant::now() >= deadline {
            bail!("process {pid} is still there after {patience:?}");
        }
        tokio::time::sleep(GONE_INTERVAL).await;
    }
    Ok(())
}

/// Waits for processes that were killed, as long as one may take, without a runtime.
pub(crate) fn wait_for_all(pids: &[u32]) {
    let deadline = Instant::now() + GONE_TIMEOUT;
    while Instant::now() < deadline && !pids.iter().all(|pid| is_gone(*pid)) {
        std::thread::sleep(GONE_INTERVAL);
    }
}

/// Says whether a process runs that was started with a path at or below `folder`. A number alone
/// may by now be another program's. A process that was started this moment may not tell its
/// arguments yet.
pub(crate) fn runs_in(pid: u32, folder: &Path) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let folder = folder.as_os_str().as_encoded_bytes();
    !is_gone(pid) && arguments.split(|byte| *byte == 0).any(|part| part.starts_with(folder))
}

/// Returns the processes that a process has started.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().flat_map(str::parse).collect::<Vec<u32>>())
        .collect()
}

fn is_gone(pid: u32) -> bool {
    to_pid(pid).is_none_or(|raw| test_kill_process(raw).is_err() || is_zombie(pid))
}

/// Says whether a process is dead and merely not waited for yet. Its first thread may die before
/// the others, which keep its ports until they have died, too.
fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    state.starts_with('Z') && threads <= 1
}

fn to_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(pid.cast_signed())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_known_by_its_folder_and_gone_after_it_was_killed() {
        let folder = tempfile::tempdir().unwrap();
        // `cat` waits for its standard input before it opens the file.
        let mut child = Command::new("cat")
            .arg("-")
            .arg(folder.path().join("file"))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let deadline = Instant::now() + GONE_TIMEOUT;
        while !runs_in(pid, folder.path()) {
            assert!(Instant::now() < deadline, "its arguments are never told");
        }
        assert!(!runs_in(pid, Path::new("/elsewhere")));
        assert!(children(std::process::id()).contains(&pid));
        kill(pid);
        wait_for_all(&[pid]);
        assert!(!runs_in(pid, folder.path()));
        child.wait().unwrap();
    }
}
