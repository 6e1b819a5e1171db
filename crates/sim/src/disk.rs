//! A node's disk: the log's file system, its delays and its faults.

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::sleep;
use trireme_storage::SharedLog;
use trireme_storage::fs::{FsOperation, MemFs};
use trireme_types::NodeId;

use crate::chance::Chance;
use crate::world::World;

/// How often a stalled disk looks whether it goes on.
const STALLED_LOOK: Duration = Duration::from_millis(3);

/// A node's disk, as one start of the node has it. The node's next start has what a crash left.
pub(crate) struct Disk {
    pub(crate) fs: MemFs,
    faults: Arc<Mutex<Faults>>,
}

/// What is wrong with a disk.
struct Faults {
    chance: Chance,
    /// The delays of a write, in milliseconds.
    delay: (u64, u64),
    is_stalled: bool,
    /// After so many calls that change something the machine loses its power.
    power_fails_after: Option<u64>,
    /// The power has failed: nothing changes any more.
    is_off: bool,
    /// After so many syncs one fails.
    sync_fails_after: Option<u64>,
    /// Whether a fault was asked for that makes the log fail.
    may_fail: bool,
}

impl Disk {
    pub(crate) fn new(fs: MemFs, chance: Chance, delay: (u64, u64)) -> Self {
        let faults = Arc::new(Mutex::new(Faults {
            chance,
            delay,
            is_stalled: false,
            power_fails_after: None,
            is_off: false,
            sync_fails_after: None,
            may_fail: false,
        }));
        let passing = Arc::clone(&faults);
        fs.observe(move |call| passing.lock().pass(call.operation));
        Self { fs, faults }
    }

    pub(crate) fn set_stalled(&self, is_stalled: bool) {
        self.faults.lock().is_stalled = is_stalled;
    }

    pub(crate) fn set_delay(&self, delay: (u64, u64)) {
        self.faults.lock().delay = delay;
    }

    /// Has the power fail within a write, after so many calls to the file system.
    pub(crate) fn fail_power_after(&self, calls: u64) {
        let mut faults = self.faults.lock();
        faults.power_fails_after = Some(calls);
        faults.may_fail = true;
    }

    pub(crate) fn fail_sync_after(&self, syncs: u64) {
        let mut faults = self.faults.lock();
        faults.sync_fails_after = Some(syncs);
        faults.may_fail = true;
    }

    /// Lets files grow by this much more.
    pub(crate) fn fill_but(&self, bytes: u64) {
        self.faults.lock().may_fail = true;
        self.fs.limit_room(bytes);
    }

    /// Returns true if a failure of the log was asked for.
    pub(crate) fn may_fail(&self) -> bool {
        self.faults.lock().may_fail
    }

    /// Returns true if the power has failed within a write.
    pub(crate) fn is_off(&self) -> bool {
        self.faults.lock().is_off
    }

    /// Ends the faults that do not end the process.
    pub(crate) fn heal(&self, delay: (u64, u64)) {
        let mut faults = self.faults.lock();
        (faults.is_stalled, faults.delay) = (false, delay);
        (faults.power_fails_after, faults.sync_fails_after) = (None, None);
    }

    fn pause(&self) -> Option<Duration> {
        let faults = &mut *self.faults.lock();
        (!faults.is_stalled).then(|| faults.chance.millis(faults.delay.0, faults.delay.1))
    }
}

impl Faults {
    fn pass(&mut self, operation: FsOperation) -> io::Result<()> {
        if self.is_off {
            return Err(io::Error::other("the power is off"));
        }
        if matches!(operation, FsOperation::Open | FsOperation::Read) {
            return Ok(());
        }
        if let Some(calls) = &mut self.power_fails_after {
            *calls = calls.saturating_sub(1);
            if *calls == 0 {
                self.is_off = true;
                return Err(io::Error::other("the power has failed"));
            }
        }
        if operation == FsOperation::Sync
            && let Some(syncs) = &mut self.sync_fails_after
        {
            *syncs = syncs.saturating_sub(1);
            if *syncs == 0 {
                return Err(io::Error::other("the disk has failed"));
            }
        }
        Ok(())
    }
}

/// Writes what waits in a log, one block after the other, each after a while. Ends with the node.
pub(crate) async fn write(world: Weak<World>, node: NodeId, disk: Arc<Disk>, log: SharedLog) {
    loop {
        match disk.pause() {
            None => sleep(STALLED_LOOK).await,
            Some(pause) => {
                sleep(pause).await;
                let has_written = log.step();
                let Some(world) = world.upgrade() else { return };
                if has_written {
                    world.trace.note("written", format_args!("{node}"));
                }
                if disk.is_off() {
                    world.power_failed(node);
                    return;
                }
                world.observe();
            }
        }
    }
}
