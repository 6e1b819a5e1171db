//! Processes: running the command as a user does, and killing nodes.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

use super::poll::until;

/// How long any command may take, so that a hung one fails its test instead of holding it up.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Returns a command that is yet to be told what to do.
pub(crate) fn trireme() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trireme"));
    command.env_remove("TRIREME_ENDPOINTS").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Runs `trireme` to its end.
pub(crate) fn run<A: AsRef<OsStr>>(endpoints: &str, arguments: impl IntoIterator<Item = A>) -> Ran {
    let mut command = trireme();
    command.env("TRIREME_ENDPOINTS", endpoints).args(arguments);
    finish(command)
}

/// Runs a command to its end; one that does not end in time is killed and fails the test.
pub(crate) fn finish(mut command: Command) -> Ran {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    wait_for(command.spawn().unwrap())
}

/// Waits for a command whose output is piped.
pub(crate) fn wait_for(mut child: Child) -> Ran {
    let stdout = reader(child.stdout.take().unwrap());
    let stderr = reader(child.stderr.take().unwrap());
    let deadline = Instant::now() + COMMAND_TIMEOUT;
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    let Some(status) = status else {
        panic!("the command took longer than {COMMAND_TIMEOUT:?}; it said: {stderr}");
    };
    let status = status.code().expect("the command was not killed");
    Ran { status, stdout, stderr }
}

fn reader(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    })
}

impl Ran {
    /// Returns the output of a command that succeeded.
    #[track_caller]
    pub(crate) fn out(&self) -> &str {
        assert_eq!(self.status, 0, "{self:?}");
        &self.stdout
    }

    /// Returns the output of a command that succeeded, as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(self.out()).unwrap()
    }

    /// Returns what a command that failed with this status says, which prints no result.
    #[track_caller]
    pub(crate) fn error(&self, status: i32) -> &str {
        assert_eq!((self.status, self.stdout.as_str()), (status, ""), "{self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        &self.stderr
    }
}

/// Kills a process and returns when it is gone.
pub(crate) fn kill(pid: u32) {
    signal(pid, Signal::KILL);
    wait_until_gone(pid);
}

/// Sends a signal to a process that may be gone already.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let _gone = kill_process(to_pid(pid), signal);
}

/// Returns when a process is gone, whoever's child it is.
pub(crate) fn wait_until_gone(pid: u32) {
    until("a killed process is gone", Duration::from_secs(20), || is_gone(pid).then_some(()));
}

fn is_gone(pid: u32) -> bool {
    test_kill_process(to_pid(pid)).is_err() || is_zombie(pid)
}

/// Says whether a process is dead and merely not waited for yet. Its first thread may die before
/// the others, which keep its ports until they have died, too.
fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    state.starts_with('Z') && threads <= 1
}

fn to_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).unwrap()
}
