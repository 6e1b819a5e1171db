//! Runs the vendored `protoc` with the arguments it was given.

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let protoc = match protoc_bin_vendored::protoc_bin_path() {
        Ok(path) => path,
        Err(error) => {
            eprintln!("trireme-protoc: no protoc for this platform: {error}");
            return ExitCode::from(1);
        }
    };
    match Command::new(&protoc).args(std::env::args_os().skip(1)).status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("trireme-protoc: cannot run {}: {error}", protoc.display());
            ExitCode::from(1)
        }
    }
}
