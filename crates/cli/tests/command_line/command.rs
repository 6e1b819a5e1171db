//! Running the command as a user does.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::fake::Cluster;

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

/// Runs `trireme` against a cluster.
pub(crate) fn run<A: AsRef<OsStr>>(
    cluster: &Cluster,
    arguments: impl IntoIterator<Item = A>,
) -> Ran {
    run_with_input(cluster, arguments, b"")
}

/// Runs `trireme` against a cluster, with this on its standard input.
pub(crate) fn run_with_input<A: AsRef<OsStr>>(
    cluster: &Cluster,
    arguments: impl IntoIterator<Item = A>,
    input: &[u8],
) -> Ran {
    let mut command = trireme();
    command.env("TRIREME_ENDPOINTS", cluster.endpoints()).args(arguments);
    finish(command, input)
}

/// Returns a command that is yet to be told what to do.
pub(crate) fn trireme() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trireme"));
    command.env_remove("TRIREME_ENDPOINTS");
    command
}

/// Runs a command to its end.
pub(crate) fn finish(mut command: Command, input: &[u8]) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that does not read its input may have ended already.
    let _unread = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Ran {
        status: output.status.code().expect("the command was not killed"),
        stdout: output.stdout,
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    /// Returns the output of a command that succeeded and said nothing else.
    #[track_caller]
    pub(crate) fn out(&self) -> &str {
        assert_eq!((self.status, self.stderr.as_str()), (0, ""), "{self:?}");
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// Returns the output of a command that succeeded, as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(self.out()).unwrap()
    }

    /// Returns what a command that failed with this status says, without its name.
    #[track_caller]
    pub(crate) fn error(&self, status: i32) -> &str {
        assert_eq!(self.status, status, "{self:?}");
        let said = self.stderr.strip_prefix("trireme: ").unwrap();
        let line = said.strip_suffix('\n').unwrap();
        assert!(!line.contains('\n'), "more than a line: {line}");
        line
    }
}
