//! Scenarios that break a naive version of a protocol, and not the protocol.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Runner, Subject};

/// Runs a script, all of whose replicas make the mistake if one is named. Returns the output, or
/// what was violated.
pub(crate) fn run<S: Subject>(script: &str, fault: Option<&str>) -> Result<String, String> {
    let fault = fault.map(|fault| format!(" fault={fault}")).unwrap_or_default();
    let script = script.replacen("cluster", &format!("cluster{fault}"), 1);
    let commands: Vec<_> = script.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let script = format!("{}\n---\n", commands.join("\n"));
    let generate = || goldenscript::generate(&mut Runner::<S>::default(), &script);
    match catch_unwind(AssertUnwindSafe(generate)) {
        Ok(output) => Ok(output.expect("the script runs")),
        Err(panic) => Err(panic.downcast_ref::<String>().cloned().unwrap_or_default()),
    }
}

/// Checks that the protocol passes the scenario, and reads these rows in it, and that the mistake
/// violates this invariant.
pub(crate) fn check<S: Subject>(script: &str, rows: &[&str], fault: &str, invariant: &str) {
    let output = run::<S>(script, None).expect("the protocol passes");
    check_rows(&output, rows);
    match run::<S>(script, Some(fault)) {
        Ok(output) => panic!("{fault} is not noticed:\n{output}"),
        Err(violated) => assert!(violated.starts_with(invariant), "{fault}: {violated}"),
    }
}

/// Checks that each of these rows was read strongly.
pub(crate) fn check_rows(output: &str, rows: &[&str]) {
    for row in rows {
        let is_read = |line: &str| line.contains(": read ") && line.ends_with(row);
        assert!(output.lines().any(is_read), "nobody reads {row}:\n{output}");
    }
}
