//! The two threads that look after the engine.
//!
//! One flushes when enough was written, one compacts after each flush, and when scans have passed
//! over many tombstones. They are apart so that a
//! long compaction does not keep memory from being freed. A flush waits for compaction only while
//! so many files lie unmerged that reads would suffer; writers then come to wait for the flush,
//! which is how a disk that is too slow makes itself felt at the top.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use trireme_types::Engine;

use crate::table::{Core, TableError};

/// The maintenance threads. They end when the value is dropped.
pub(crate) struct Maintenance {
    core: Arc<Core>,
    threads: Vec<JoinHandle<()>>,
}

impl Maintenance {
    pub(crate) fn start(core: &Arc<Core>, engine: Engine) -> io::Result<Self> {
        // Built first, so that a thread that started ends even if the next one cannot.
        let mut maintenance = Self { core: Arc::clone(core), threads: Vec::new() };
        for (name, task) in [("table-flush", flush_loop as Task), ("table-compact", compact_loop)] {
            let core = Arc::clone(core);
            let thread = thread::Builder::new().name(name.to_owned());
            let thread = thread.spawn(move || run(&core, engine, name, task))?;
            maintenance.threads.push(thread);
        }
        Ok(maintenance)
    }
}

impl Drop for Maintenance {
    fn drop(&mut self) {
        self.core.stop();
        for thread in self.threads.drain(..) {
            // The last handle may go away in a listener that one of the threads is calling.
            if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                tracing::error!("a maintenance thread of the tables panicked");
            }
        }
    }
}

type Task = fn(&Core) -> Result<(), TableError>;

/// Runs one of the threads, and makes a panic in it a failure of the tables: writers must not wait
/// for a thread that is gone.
fn run(core: &Core, engine: Engine, doing: &'static str, task: Task) {
    match catch_unwind(AssertUnwindSafe(|| task(core))) {
        Ok(Ok(())) => {}
        // Taken note of where it happened.
        Ok(Err(error)) => tracing::debug!(%error, thread = doing, "maintenance ends"),
        Err(_) => {
            let source = "the maintenance thread panicked".into();
            core.fail(TableError::Engine { engine, doing, source });
        }
    }
}

fn flush_loop(core: &Core) -> Result<(), TableError> {
    loop {
        {
            let mut tasks = core.tasks();
            loop {
                if tasks.stopping {
                    return Ok(());
                }
                let must_wait = (tasks.compaction_wanted || tasks.compacting) && core.is_behind();
                if tasks.flush_wanted && !must_wait {
                    break;
                }
                core.wait(&mut tasks);
            }
        }
        core.flush()?;
    }
}

fn compact_loop(core: &Core) -> Result<(), TableError> {
    loop {
        let is_purge;
        {
            let mut tasks = core.tasks();
            tasks.compacting = false;
            core.notify();
            while !tasks.compaction_wanted && !tasks.purge_wanted {
                if tasks.stopping {
                    return Ok(());
                }
                core.wait(&mut tasks);
            }
            if tasks.stopping {
                return Ok(());
            }
            is_purge = std::mem::take(&mut tasks.purge_wanted);
            tasks.compaction_wanted = false;
            tasks.compacting = true;
        }
        if is_purge {
            core.purge_tombstones()?;
        }
        while core.compact()? {
            core.notify();
            if core.tasks().stopping {
                return Ok(());
            }
        }
    }
}
