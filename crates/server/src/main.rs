//! The `trireme` command: it starts nodes and clusters, and works with running ones.
//!
//! Each subcommand is a thin file of [`cli`]; what nodes do is in the library crate.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
