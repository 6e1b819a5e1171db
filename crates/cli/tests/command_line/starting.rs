//! Signals that come while something starts, and the embedded coordinator by itself.

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::command::trireme;

/// How long anything may take that takes a moment. Only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a process may take to end that was asked to while it started: far less than what a start
/// waits for.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// A process that is killed when the test is over.
struct Started(Child);

impl Started {
    fn new(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.0.id().cast_signed()).unwrap(), signal).unwrap();
    }

    #[track_caller]
    fn end_within(&mut self, limit: Duration) -> ExitStatus {
        until("the process has ended", limit, || self.0.try_wait().unwrap())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[track_caller]
fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Starts a coordinator and returns it with its endpoint.
fn coordinator(data: &Path, listen: &str) -> (Started, String) {
    let mut command = trireme();
    command.arg("coordinator").arg("--data").arg(data).args(["--listen", listen]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut started = Started::new(command);
    let mut ready = String::new();
    let stdout = started.0.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut ready).unwrap();
    let endpoint = ready.trim_end().strip_prefix("ready coordinator=").unwrap().to_owned();
    (started, endpoint)
}

fn node(data: &Path, coordinator: &str) -> Started {
    let mut command = trireme();
    command.arg("node").arg("--data").arg(data).args(["--id", "1", "--listen", "127.0.0.1:0"]);
    command.args(["--coordinator", coordinator]).stderr(Stdio::null());
    Started::new(command)
}

/// A node that waited for the coordinator to know a cluster heard no signal for half a minute.
#[test]
fn a_node_that_waits_for_its_cluster_ends_when_it_is_asked_to() {
    let folder = TempDir::new().unwrap();
    let (_coordinator, endpoint) = coordinator(&folder.path().join("c"), "localhost:0");
    for (number, signal) in [Signal::INT, Signal::TERM, Signal::HUP].into_iter().enumerate() {
        let data = folder.path().join(format!("node-{number}"));
        let mut node = node(&data, &endpoint);
        // The lock is taken when signals are heard already.
        until("the node starts", PATIENCE, || data.join("LOCK").exists().then_some(()));
        node.signal(signal);
        let status = node.end_within(END_TIMEOUT);
        assert!(status.success(), "{signal:?}: {status}");
    }
}

/// What takes connections and answers nothing, as a coordinator that is paused.
#[test]
fn a_start_ends_when_it_is_asked_to_while_the_coordinator_is_silent() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("node");
    let mut node = node(&data, &endpoint);
    until("the node starts", PATIENCE, || data.join("LOCK").exists().then_some(()));
    node.signal(Signal::TERM);
    assert!(node.end_within(END_TIMEOUT).success());

    let data = folder.path().join("up");
    let mut command = trireme();
    // Nothing listens on ports of these numbers in any test: they are those of other services.
    command.arg("up").arg("--data").arg(&data).args(["--coordinator", &endpoint]);
    command.args(["--port", "19990"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut up = Started::new(command);
    until("it starts", PATIENCE, || data.join("LOCK").exists().then_some(()));
    up.signal(Signal::INT);
    assert!(up.end_within(END_TIMEOUT).success());
    assert!(!data.join("cluster.json").exists(), "a start that was cut short decided something");
}

/// One that was started by `nohup` outlives the terminal.
#[test]
fn a_process_that_was_started_to_ignore_the_end_of_its_terminal_does() {
    let folder = TempDir::new().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_trireme")]);
    command.arg("coordinator").arg("--data").arg(folder.path().join("c"));
    command.args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut ignoring = Started::new(command);
    let mut ready = String::new();
    BufReader::new(ignoring.0.stdout.take().unwrap()).read_line(&mut ready).unwrap();
    let address = ready.trim_end().strip_prefix("ready coordinator=http://").unwrap();
    // It serves, so that it has set up what it hears: SIGHUP, the first bit, is not among that.
    let status = std::fs::read_to_string(format!("/proc/{}/status", ignoring.0.id())).unwrap();
    let heard = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    let heard = u64::from_str_radix(heard.trim(), 16).unwrap();
    assert_eq!((heard & 1, heard >> 14 & 1), (0, 1), "SIGHUP and SIGTERM in {heard:x}");
    ignoring.signal(Signal::HUP);
    assert!(TcpStream::connect(address).is_ok());
    ignoring.signal(Signal::TERM);
    assert!(ignoring.end_within(END_TIMEOUT).success());
}

/// A coordinator whose disk took nothing more lived on, and looked healthy.
#[test]
fn a_coordinator_that_cannot_write_does_not_serve() {
    let folder = TempDir::new().unwrap();
    let data = folder.path().join("c");
    let (mut first, _) = coordinator(&data, "127.0.0.1:0");
    first.signal(Signal::TERM);
    assert!(first.end_within(END_TIMEOUT).success());
    // Every file is as long as it may become, and a write past that is an error rather than the end of the process.
    let script = "trap '' XFSZ; ulimit -f 0; exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_trireme")]);
    command.arg("coordinator").arg("--data").arg(&data).args(["--listen", "127.0.0.1:0"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut full = Started::new(command);
    assert_eq!(full.end_within(END_TIMEOUT).code(), Some(1));
    let (mut printed, mut said) = (String::new(), String::new());
    full.0.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    full.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(printed, "", "it was ready");
    assert!(said.contains("cannot write") && said.contains("File too large"), "{said}");
    let (mut again, _) = coordinator(&data, "127.0.0.1:0");
    again.signal(Signal::TERM);
    assert!(again.end_within(END_TIMEOUT).success());
}

/// A line without a reader ends no server.
#[test]
fn a_coordinator_whose_output_is_closed_serves() {
    let folder = TempDir::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut command = trireme();
    command.arg("coordinator").arg("--data").arg(folder.path().join("c"));
    command.args(["--listen", &address]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    let mut started = Started(child);
    until("it listens", PATIENCE, || TcpStream::connect(&address).ok());
    started.signal(Signal::TERM);
    assert!(started.end_within(END_TIMEOUT).success());
}
