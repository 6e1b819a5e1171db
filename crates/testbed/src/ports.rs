//! Ports that nothing else on this machine uses.
//!
//! Every stretch of ports has a lock file in the system's temporary folder; who holds its lock may
//! use the ports. The workspace's tests take their ports from the same stretches by the same locks,
//! so that an experiment and a test run may share a machine. The lock goes with the process,
//! however it ends. The ports lie below those that Linux hands out for outgoing connections, so
//! that a connection cannot take one while its node is down.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;

use anyhow::bail;
use rustix::fs::{FlockOperation, flock};

const PORT_FIRST: u16 = 20_000;
const STRETCH_PORTS: u16 = 32;
const STRETCHES: u16 = 300;

/// The most ports that one cluster may take.
pub(crate) const PORTS_MAX: u16 = STRETCH_PORTS;

/// A stretch of ports that are this process's as long as this lives.
pub(crate) struct Ports {
    first: u16,
    _lock: File,
}

impl Ports {
    /// Finds a stretch in which every port is free.
    pub(crate) fn take() -> anyhow::Result<Self> {
        // Programs that start together do not all try the same stretches.
        let offset = std::process::id() % u32::from(STRETCHES);
        for index in 0..STRETCHES {
            let stretch = (u16::try_from(offset).unwrap_or_default() + index) % STRETCHES;
            let first = PORT_FIRST + stretch * STRETCH_PORTS;
            if let Some(lock) = lock(stretch)
                && (first..first + STRETCH_PORTS).all(is_free)
            {
                return Ok(Self { first, _lock: lock });
            }
        }
        bail!("no {STRETCH_PORTS} ports in a row are free from {PORT_FIRST} on")
    }

    /// Returns the first port.
    pub(crate) const fn first(&self) -> u16 {
        self.first
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
