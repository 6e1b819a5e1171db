//! A panic in any task or thread stops the process.
//!
//! A runtime catches a task's panic and goes on, and a thread's panic ends that thread alone. Either
//! leaves a node that answers its peers and its clients while a part of it is gone: its lease at the
//! coordinator lives on, so that it is not replaced, and the writes that the lost part was to finish
//! end with an unknown outcome. A process that ends is noticed and replaced; so every panic is the
//! end, whichever task, thread or library it is in. A hook sees all of them, also those of tasks
//! that are never joined, which supervising each task's handle would not.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};

/// The status of a process that ended by a panic: the one that Rust itself ends with where the main
/// thread panics.
const PANICKED: i32 = 101;

/// A panic has been met, and the process is about to end.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

/// The process has done its work, and its runtimes are being taken down.
static IS_DISARMED: AtomicBool = AtomicBool::new(false);

/// Has the process end with status 101, and a line that says where and why, as soon as anything in
/// it panics. Where a panic is caught on purpose, as while a damaged table is opened, it is not the
/// end.
pub fn end_process_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if trireme_storage::is_catching_panics() || IS_DISARMED.load(Ordering::SeqCst) {
            return before(info);
        }
        end(info);
    }));
}

/// Has panics be what they are by default from now on. For a process that has ended its work in
/// order: what a runtime that is taken down does to its tasks must not change how it ended.
pub fn disarm() {
    IS_DISARMED.store(true, Ordering::SeqCst);
}

fn end(info: &PanicHookInfo<'_>) -> ! {
    if IS_ENDING.swap(true, Ordering::SeqCst) {
        // Another thread has said why and ends the process; or saying it has panicked too.
        std::process::abort();
    }
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let reason = info.payload_as_str().unwrap_or("without a message");
    tracing::error!(thread, location, reason, "a panic: the process ends");
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        // There is nowhere left to say that stderr cannot be written.
        let _unwritten = writeln!(std::io::stderr(), "{backtrace}");
    }
    std::process::exit(PANICKED);
}
