//! Ports that no other test uses, and a turn to run.
//!
//! Test binaries may run at the same moment, and so may several checkouts. Every stretch of ports
//! has a lock file in the system's temporary folder; who holds its lock may use the ports. The lock
//! goes with the process, however it ends. The ports lie below those that Linux hands out for
//! outgoing connections, so that a connection cannot take one while its node is down.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};

/// How many tests of one binary run at once: each keeps several processes busy.
const RUNNING_MAX: usize = 2;

const PORT_FIRST: u16 = 20_000;
const STRETCH_PORTS: u16 = 32;
const STRETCHES: u16 = 300;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// A stretch of ports, and the right to run clusters on them.
pub(crate) struct Seat {
    first: u16,
    used: AtomicU16,
    _lock: File,
    _turn: Turn,
}

impl Seat {
    /// Waits for a turn, and finds a stretch in which every port is free.
    pub(crate) fn take() -> Self {
        let turn = Turn::wait();
        // Binaries that start together do not all try the same stretches.
        let offset = u16::try_from(std::process::id() % u32::from(STRETCHES)).unwrap();
        for index in 0..STRETCHES {
            let stretch = (offset + index) % STRETCHES;
            let first = PORT_FIRST + stretch * STRETCH_PORTS;
            if let Some(lock) = lock(stretch)
                && (first..first + STRETCH_PORTS).all(is_free)
            {
                return Self { first, used: AtomicU16::new(0), _lock: lock, _turn: turn };
            }
        }
        panic!("no {STRETCH_PORTS} ports in a row are free");
    }

    /// Returns the first of so many ports that nobody was given yet.
    pub(crate) fn ports(&self, count: u16) -> u16 {
        let used = self.used.fetch_add(count, Ordering::Relaxed);
        assert!(used + count <= STRETCH_PORTS, "the stretch has no {count} ports left");
        self.first + used
    }
}

struct Turn;

impl Turn {
    fn wait() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = ENDED
            .wait_while(running, |running| *running >= RUNNING_MAX)
            .unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

fn lock(stretch: u16) -> Option<File> {
    let path = std::env::temp_dir().join(format!("trireme-test-ports-{stretch}.lock"));
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).ok()?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(file)
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}
