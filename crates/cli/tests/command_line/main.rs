//! The `trireme` command against a cluster in the test's own process: exit statuses, what is
//! printed where, and what reaches the cluster.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod bench;
mod command;
mod fake;
mod faults;
mod files;
mod one_key;
mod scans;
mod starting;
mod usage;
mod views;
